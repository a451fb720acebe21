"""What a consumer says about messages that fail."""

from __future__ import annotations

import logging

import pytest

from messaging import Reject
from messaging.handlers import Registry
from messaging.message import ReceivedMessage
from messaging.models import PublishedMessage
from messaging.processing.processor import Processor
from messaging.supervising.log_records import FIELDS, NAMES, about
from tests.deliveries import arrived, registered, sent

pytestmark = pytest.mark.django_db(transaction=True)


def process(function: object, *, attempts: int, caplog: pytest.LogCaptureFixture) -> list[tuple[int, str]]:
    """Have a message fail so many times; returns levels and lines of the log."""
    registry = Registry()
    registered(registry, function, max_attempts=2, backoff=0)  # type: ignore[arg-type]
    processor = Processor("default", "worker-1", handlers=registry)
    delivery = arrived("hello", message_id="greeting-1")
    with caplog.at_level(logging.INFO, "messaging"):
        for _ in range(attempts):
            processor.process(delivery, lambda: None)
            if retry := PublishedMessage.objects.filter(state="pending").last():
                delivery = sent(retry)
    return [(record.levelno, record.getMessage()) for record in caplog.records]


def test_each_failed_attempt_is_a_line(caplog: pytest.LogCaptureFixture) -> None:
    def fails(message: ReceivedMessage) -> None:
        raise ValueError("no\nsuch order")

    said = process(fails, attempts=2, caplog=caplog)
    message = "Message greeting-1 of the queue work"
    assert said == [
        (logging.ERROR, f"{message}: attempt 1 failed and will be repeated: ValueError: no such order"),
        (logging.ERROR, f"{message} failed and waits for an operator: ValueError: no such order"),
    ]


def test_a_rejected_message_is_a_line_of_bounded_length(caplog: pytest.LogCaptureFixture) -> None:
    def rejects(message: ReceivedMessage) -> None:
        raise Reject("x" * 10_000)

    ((level, line),) = process(rejects, attempts=1, caplog=caplog)
    assert level == logging.ERROR
    assert "waits for an operator: xxx" in line
    assert len(line) < 400


def test_an_error_that_no_stream_takes_is_told_with_escapes(caplog: pytest.LogCaptureFixture) -> None:
    def fails(message: ReceivedMessage) -> None:
        raise ValueError("half a character: " + chr(0xD800))

    process(fails, attempts=1, caplog=caplog)
    assert caplog.text.encode().decode().count("half a character: \\ud800") == 2, "in the line, and below it"
    assert "raise ValueError" in caplog.text


def test_success_is_not_told(caplog: pytest.LogCaptureFixture) -> None:
    assert process(lambda message: None, attempts=1, caplog=caplog) == []


def test_no_stranger_writes_lines_of_the_log(caplog: pytest.LogCaptureFixture) -> None:
    def fails(message: ReceivedMessage) -> None:
        raise Reject(f"bad id {message.id}")

    registry = Registry()
    registered(registry, fails)
    identity = "1\n2026-01-01 ERROR forged\r\x1b[2J\u202e"
    Processor("default", "worker-1", handlers=registry).process(arrived("x", message_id=identity), lambda: None)
    assert all(record.getMessage().isprintable() for record in caplog.records)
    assert "\\x1b[2J" in caplog.records[0].getMessage()


def test_each_line_says_which_message_and_has_its_traceback_once(caplog: pytest.LogCaptureFixture) -> None:
    def fails(message: ReceivedMessage) -> None:
        raise ValueError("no such order")

    process(fails, attempts=2, caplog=caplog)
    common = {"alias": "default", "queue": "work", "routing_key": "work.do", "message_id": "greeting-1"}
    for number, record in enumerate(caplog.records, 1):
        said = {name: getattr(record, f"messaging_{name}") for name in NAMES}
        own = {"handler": f"{__name__}.{fails.__qualname__}", "attempt": number, "round": number}
        assert said == {**common, **own}
        assert record.exc_info is not None
        assert record.exc_info[1].args == ("no such order",)  # type: ignore[union-attr]
        text = logging.Formatter("%(message)s").format(record)
        assert text.count("Traceback") == 1
        assert "messaging/processing" not in text  # from where the handler's own code begins


def test_what_is_not_known_is_said_to_be_unknown_and_nothing_begins_a_line() -> None:
    extra = about(message_id="a\nb", queue="", attempt=0)
    assert list(extra) == list(FIELDS)
    assert extra["messaging_message_id"] == "a\\nb"
    assert (extra["messaging_queue"], extra["messaging_round"], extra["messaging_attempt"]) == (None, None, 0)
