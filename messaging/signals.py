"""Signals for logs, metrics and site code. Receivers never change a message's fate: they are sent robustly."""

from __future__ import annotations

from typing import Any

from django.dispatch import Signal

message_published: Signal = Signal()
"""The broker has confirmed messages.

Args:
    rows (list[PublishedMessage]): their outbox rows.
"""

message_unpublishable: Signal = Signal()
"""A message could not be sent, and its outbox row ended failed.

Args:
    row (PublishedMessage): the outbox row; `row.error` says why.
"""

message_processed: Signal = Signal()
"""A handler's work was committed.

Args:
    row (ProcessedMessage): the inbox row.
    duration (float): how many seconds the handler and its commit took; for a batch, those of the whole batch.
"""

message_retrying: Signal = Signal()
"""An attempt failed, and another one is scheduled.

Args:
    row (ProcessedMessage): the inbox row; `row.retry_at` is the time of the next attempt.
    attempt (int): the number of the attempt that failed.
    error (BaseException): what was raised.
"""

message_failed: Signal = Signal()
"""A message rests as failed until an operator acts.

Args:
    row (ProcessedMessage): the inbox row; `row.error` says why.
    attempt (int): the number of the last attempt. It is missing where a retry could not be sent.
    error (BaseException): what was raised. It is missing where a retry could not be sent.
"""

tracing: Any = None
"""What makes spans, where there are traces: a `monitoring.spans.Spans`. Without them a step does no more than ask."""
