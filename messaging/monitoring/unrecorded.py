"""An alert that no table can keep: the database itself is away. A file on the host remembers that it was told."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from django.utils.translation import gettext as _

from messaging.models import Alert
from messaging.monitoring import health, readings
from messaging.monitoring.alerts import AGAIN, tell_all
from messaging.monitoring.conditions import Condition
from messaging.monitoring.databases import home
from messaging.monitoring.telling import BEGINS, GOES_ON, OVER, Channel

FORGETFUL = (
    "No folder keeps the file that remembers what was told, so that each run tells it again: let MESSAGING_STATE_DIR "
    "name one that can be written to, and that the next run finds as well."
)


def database_away() -> Condition:
    """What can be said without it; the brokers that are not tables are asked."""
    words = _("The database “%(name)s” does not answer: nothing is published, consumed or recorded.") % {
        "name": home(Alert)
    }
    away = readings.waiting(brokers_alone=True).unreachable
    if away:
        names = {"aliases": ", ".join(sorted(away))}
        words += " " + _("The broker cannot be reached from here either (%(aliases)s).") % names
    fix = _("Check that it runs, that this host reaches it, and that its tables are migrated.")
    return Condition("database_away", "critical", home(Alert), words, fix)


def begin(condition: Condition, told: Iterable[Channel]) -> dict[str, str]:
    """Tell it, unless it was told within an hour. Returns for each channel what went wrong; "" where nothing did."""
    file = _file()
    before = _told_at(file)
    if before is not None and 0 <= time.time() - before < AGAIN.total_seconds():
        return {}
    problems = tell_all(BEGINS if before is None else GOES_ON, condition, told)
    if file is not None and "" in problems.values():
        with suppress(OSError):  # then it is told again at the next look
            file.write_text(json.dumps({"told_at": time.time(), "words": condition.words}))
    return problems


def is_remembered() -> bool:
    """Whether a file knows that it was told."""
    return _told_at(_file()) is not None


def end(told: Iterable[Channel]) -> dict[str, str]:
    """Tell that it is over, if it was told that it began. Returns as `begin()` does."""
    file = _file()
    if file is None or _told_at(file) is None:
        return {}
    words = _("The database “%(name)s” answers again.") % {"name": home(Alert)}
    problems = tell_all(OVER, Condition("database_away", "warning", home(Alert), words, ""), told)
    if "" in problems.values():
        with suppress(OSError):
            file.unlink()
    return problems


def _file() -> Path | None:
    """Where it is remembered; None where no folder takes it, so that each look tells it."""
    if os.name != "posix":
        return None
    from messaging.supervising.state import own_folder  # which takes file locks

    folder = own_folder()
    return Path(folder) / f"alerts-{health.site()}.json" if folder is not None else None


def _told_at(file: Path | None) -> float | None:
    try:
        return None if file is None else float(json.loads(file.read_text())["told_at"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
