"""A log line for each attempt that failed, with its traceback. It listens to signals.

Each is an error, so that what makes an event of an error in the log makes exactly one of an attempt.
"""

from __future__ import annotations

import logging
from typing import Any

from messaging.models import ProcessedMessage
from messaging.processing.error_text import describe, without_ours
from messaging.signals import message_failed, message_retrying
from messaging.supervising.log_records import about
from messaging.supervising.repeats import KIND
from messaging.wire.bodies import one_line

logger = logging.getLogger("messaging.consumer")

CHAIN = 20  # exceptions, each of which led to the one before, that are looked at


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
    if error is None:
        return None
    trace = without_ours(error.__traceback__)
    if not _is_printable(error):  # the log would lose the line over it
        error = RuntimeError(one_line(describe(error)))
    return type(error), error, trace


def _is_printable(error: BaseException | None) -> bool:
    """Whether each text of it, and of what led to it, can be written: half a character cannot."""
    for _ in range(CHAIN):
        if error is None:
            break
        try:
            str(error).encode()
        except UnicodeEncodeError:
            return False
        except Exception:  # noqa: S110, BLE001  one without a text is written as such
            pass
        error = error.__cause__ or error.__context__
    return True


def _extra(row: ProcessedMessage, attempt: int, round_: int) -> dict[str, Any]:
    """What tells its lines from others, too; classes of exceptions are few, and no stranger's choice."""
    return about(row, attempt=attempt, round=round_) | {KIND: (row.alias, row.queue, row.exception_type)}


def _name(row: ProcessedMessage) -> str:
    return one_line(f"Message {row.message_id or 'without id'} of the queue {row.queue}")
