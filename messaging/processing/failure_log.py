"""A log line for each attempt that failed, for whoever reads what a consumer says. It listens to signals."""

from __future__ import annotations

import logging
from typing import Any

from messaging.models import ProcessedMessage
from messaging.signals import message_failed, message_retrying
from messaging.supervising.repeats import KIND
from messaging.wire.bodies import one_line

logger = logging.getLogger("messaging.consumer")


def connect() -> None:
    """Begin to log. More than once is the same as once."""
    message_retrying.connect(_on_retrying)
    message_failed.connect(_on_failed)


def _on_retrying(row: ProcessedMessage, attempt: int, **_facts: Any) -> None:
    text = "%s: attempt %s failed and will be repeated: %s"
    logger.warning(text, _name(row), attempt, one_line(row.error), extra=_kind(row))


def _on_failed(row: ProcessedMessage, **_facts: Any) -> None:
    logger.error("%s failed and waits for an operator: %s", _name(row), one_line(row.error), extra=_kind(row))


def _kind(row: ProcessedMessage) -> dict[str, Any]:
    """What tells its lines from others; classes of exceptions are few, and no stranger's choice."""
    return {KIND: (row.alias, row.queue, row.exception_type)}


def _name(row: ProcessedMessage) -> str:
    return one_line(f"Message {row.message_id or 'without id'} of the queue {row.queue}")
