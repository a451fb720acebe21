"""Log lines that repeat are written a few times, and then counted."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from messaging.supervising.log_records import FIELDS, about
from messaging.supervising.repeats import KIND, Repeats
from tests.waiting import wait_until


class Lines(logging.Handler):
    """Keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(self.format(record))
        self.records.append(record)


@pytest.fixture
def lines() -> Iterator[Lines]:
    logger = logging.getLogger("messaging.test-repeats")
    handler = Lines()
    logger.addHandler(handler)
    logger.propagate = False
    yield handler
    logger.removeHandler(handler)
    logger.filters.clear()


def limited(**limits: float) -> tuple[logging.Logger, Repeats]:
    logger, repeats = logging.getLogger("messaging.test-repeats"), Repeats(**limits)  # type: ignore[arg-type]
    logger.addFilter(repeats)
    return logger, repeats


def test_what_repeats_is_written_a_few_times_and_then_counted(lines: Lines) -> None:
    logger, repeats = limited(most=2, seconds=600)
    for number in range(1000):
        logger.error("message %d failed", number, extra={KIND: "a"})
    logger.error("message %d failed", 1, extra={KIND: "b"})
    logger.warning("message %d failed", 2, extra={KIND: "a"})
    assert lines.texts == ["message 0 failed", "message 1 failed", "message 1 failed", "message 2 failed"]
    del lines.texts[:]
    repeats.flush()
    assert lines.texts == ["998 more lines like this one were left out: message 0 failed"]
    repeats.flush()
    logger.error("message %d failed", 5, extra={KIND: "a"})
    assert lines.texts[1:] == ["message 5 failed"]


def test_the_line_that_stands_for_others_is_about_no_one_message(lines: Lines) -> None:
    logger, repeats = limited(most=1, seconds=600)
    for number in range(3):
        try:
            raise ValueError(number)
        except ValueError:
            own = about(alias="default", queue="work", message_id=f"m-{number}", attempt=1) | {KIND: "a"}
            logger.exception("message %d failed", number, extra=own)
    assert all(kind.record.exc_info is None for kind in repeats._kinds.values()), "it keeps the frames alive"
    repeats.flush()
    summary = lines.records[-1]
    assert {name: getattr(summary, name) for name in FIELDS if getattr(summary, name) is not None} == {
        "messaging_alias": "default",
        "messaging_queue": "work",
    }
    assert summary.messaging_left_out == 2  # type: ignore[attr-defined]
    assert summary.msg == "%d more lines like this one were left out: %s"  # one event of many, for who groups by it


def test_the_count_is_told_although_no_further_line_comes(lines: Lines) -> None:
    logger, _ = limited(most=1, seconds=2)
    for number in range(3):
        logger.error("message %d failed", number)
    wait_until(lambda: len(lines.texts) == 2)
    assert lines.texts == ["message 0 failed", "2 more lines like this one were left out: message 0 failed"]


def test_what_informs_and_a_traceback_of_the_first_are_written(lines: Lines) -> None:
    logger, repeats = limited(most=1, seconds=600)
    logger.setLevel(logging.INFO)
    for _ in range(3):
        logger.info("connected")
        try:
            raise ValueError("broken")
        except ValueError:
            logger.exception("failed")
    repeats.flush()
    assert lines.texts.count("connected") == 3
    assert sum("Traceback" in text for text in lines.texts) == 1
    assert lines.texts[-1] == "2 more lines like this one were left out: failed"
