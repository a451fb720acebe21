"""Signals for logs, metrics and site code. Receivers never change a message's fate: they are sent robustly."""

from __future__ import annotations

from typing import Any

from django.dispatch import Signal

message_published = Signal()
"""Outbox rows were confirmed by the broker (`rows`: list of PublishedMessage)."""

message_unpublishable = Signal()
"""An outbox row ended failed (`row`: PublishedMessage)."""

message_processed = Signal()
"""A handler's work was committed (`row`: ProcessedMessage, `duration` in seconds)."""

message_retrying = Signal()
"""An attempt failed, another is scheduled (`row`: ProcessedMessage, `attempt`: its number, `error`: the exception)."""

message_failed = Signal()
"""A message rests as failed until an operator acts (`row`: ProcessedMessage; `attempt` and `error` as above, unless its
retry could not be sent)."""

tracing: Any = None
"""What makes spans, where there are traces: a `monitoring.spans.Spans`. Without them a step does no more than ask."""
