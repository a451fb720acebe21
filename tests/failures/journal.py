"""What an operator reads: the log of a whole scenario, held to one line when trouble begins and one when it ends."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from tests.site import Running
from tools.log_lines import without_failures

SECRET = "sesame-4711"  # the password in the addresses of these tests
_LINE = re.compile(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} (DEBUG|INFO|WARNING|ERROR|CRITICAL) (messaging\.\w+): (.*)$")
_BANNER = re.compile(r"^Consuming .* Stop with Ctrl-C\.$")


class Line(NamedTuple):
    """One line of a log."""

    level: str
    logger: str
    text: str


class Trouble(NamedTuple):
    """What one component of a process has to say about one condition: patterns of its two lines."""

    logger: str
    begins: str
    ends: str


DATABASE = Trouble(
    "messaging.consumer",
    r'The database "default" cannot be used \(.+\): consumption pauses until it can be used, what was delivered is',
    r"The database can be used again after \d+ s: consumption goes on",
)
CONSUMER = Trouble(
    "messaging.consumer", r"Trying again until it works; nothing is lost\.$", r"Connected to .* again; consuming "
)
AWAY = Trouble(
    "messaging.consumer", r"queue .* is away, the others are consumed\. ", r"queue .* is back, and is consumed"
)
RELAY = Trouble("messaging.relay", r"; messages wait in the outbox: .+", r"Connected to .* again; messages are sent")
ALARM = Trouble("messaging.relay", r"takes no messages for now; they wait in the outbox: .+", r"takes messages again")
HALT = "Timeout while setting up AMQP"
QUEUE = Trouble(
    "messaging.consumer", r"The broker cancelled the consumer of queue .* Trying again until it works\.$", CONSUMER.ends
)


def lines_of(running: Running) -> list[Line]:
    """Its log but for the tracebacks of failed attempts.

    Raises AssertionError for anything else that is not one clear line, and for a password.
    """
    told = without_failures(running.output)
    assert "Traceback" not in told, running.output
    assert SECRET not in running.output
    found = []
    for text in told.splitlines():
        match = _LINE.match(text)
        assert match or _BANNER.match(text), f"not a log line: {text!r} in\n{running.output}"
        if match:
            found.append(Line(*match.groups()))
    return found


def assert_told_once(
    running: Running, *troubles: Trouble, besides: Iterable[str] = (), may_recur: bool = False
) -> None:
    """Each trouble began with one line and ended with a later one, and nothing else was worth a warning.

    Args:
        running: a command whose scenario is over.
        troubles: what happened, once each and to one process.
        besides: patterns of further warnings that belong to the scenario.
        may_recur: whether a machine that stands still for a while is the same trouble, and it may have come again.
    """
    lines = _without_halts(line for line in lines_of(running) if line.level not in ("DEBUG", "INFO"))
    told = "\n".join(map(str, lines))
    for trouble in troubles:
        begins, ends = (_positions(lines, trouble.logger, pattern) for pattern in (trouble.begins, trouble.ends))
        assert len(begins) == len(ends) > 0, f"{trouble} was told {len(begins)} and {len(ends)} times:\n{told}"
        assert may_recur or len(begins) == 1, f"{trouble} was told {len(begins)} times:\n{told}"
        moments = [moment for pair in zip(begins, ends, strict=True) for moment in pair]
        assert moments == sorted(moments), told
    known = [pattern for trouble in troubles for pattern in (trouble.begins, trouble.ends)] + list(besides)
    strange = [line for line in lines if not any(re.search(pattern, line.text) for pattern in known)]
    assert not strange, f"{strange} among\n{told}"


def _without_halts(lines: Iterable[Line]) -> list[Line]:
    """Without both lines of each time that the broker stood still for longer than a connection may take."""
    kept, halted = [], set[str]()
    for line in lines:
        trouble = next((one for one in (CONSUMER, RELAY) if one.logger == line.logger), None)
        if trouble and HALT in line.text and re.search(trouble.begins, line.text):
            halted.add(line.logger)
        elif trouble and line.logger in halted and re.search(trouble.ends, line.text):
            halted.discard(line.logger)
        else:
            kept.append(line)
    assert not halted, f"{halted} did not connect again"
    return kept


def _positions(lines: list[Line], logger: str, pattern: str) -> list[int]:
    return [index for index, line in enumerate(lines) if line.logger == logger and re.search(pattern, line.text)]
