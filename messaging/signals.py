"""Signals for logs, metrics and site code. Receivers never change a message's fate: they are sent robustly.

`message_published`: an outbox row was confirmed by the broker (`rows`: list of PublishedMessage).
`message_unpublishable`: an outbox row ended failed (`row`).
`message_processed`: a handler's work was committed (`row`, `duration` in seconds).
`message_retrying`: an attempt failed and another one is scheduled (`row`, `attempt`, `error`: the exception).
`message_failed`: a message rests as failed until an operator acts (`row`; `attempt` and `error` unless its retry could
not be sent).
"""

from __future__ import annotations

from django.dispatch import Signal

message_published = Signal()
message_unpublishable = Signal()
message_processed = Signal()
message_retrying = Signal()
message_failed = Signal()
