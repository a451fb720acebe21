"""A log line for each attempt that failed, with its traceback. It listens to signals.

Each is an error, so that what makes an event of an error in the log makes exactly one of an attempt.
"""

from __future__ import annotations

import logging
from typing import Any

from messaging.models import ProcessedMessage
from messaging.processing.error_text import without_ours
from messaging.signals import message_failed, message_retrying
from messaging.supervising.log_records import about
from messaging.supervising.repeats import KIND
from messaging.wire.bodies import one_line

logger = logging.getLogger("messaging.consumer")


def connect() -> None:
    """Begin to log. More than once is the same as once."""
    message_retrying.connect(_on_retrying)
    message_failed.connect(_on_failed)


def _on_retrying(row: ProcessedMessage, attempt: int, error: BaseException | None = None, **_facts: Any) -> None:
    text = "%s: attempt %s failed and will be repeated: %s"
    logger.error(
        text,
        _name(row),
        attempt,
        one_line(row.error),
        exc_info=_trace(error),
        extra=_extra(row, attempt, row.round - 1),
    )


def _on_failed(
    row: ProcessedMessage, attempt: int | None = None, error: BaseException | None = None, **_facts: Any
) -> None:
    text, extra = "%s failed and waits for an operator: %s", _extra(row, attempt or row.attempts, row.round)
    logger.error(text, _name(row), one_line(row.error), exc_info=_trace(error), extra=extra)


def _trace(error: BaseException | None) -> Any:
    """As the console shows it: from where the handler's own code begins."""
    return None if error is None else (type(error), error, without_ours(error.__traceback__))


def _extra(row: ProcessedMessage, attempt: int, round_: int) -> dict[str, Any]:
    """What tells its lines from others, too; classes of exceptions are few, and no stranger's choice."""
    return about(row, attempt=attempt, round=round_) | {KIND: (row.alias, row.queue, row.exception_type)}


def _name(row: ProcessedMessage) -> str:
    return one_line(f"Message {row.message_id or 'without id'} of the queue {row.queue}")
