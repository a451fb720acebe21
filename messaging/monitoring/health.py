"""Whether processes live and are ready: of consumers and relays on this host, of a web process, and of the whole site.

A process is asked through the file that it keeps up to date (`supervising.state`), so that neither a broker nor a
database that is away can make a healthy one look as if it hung. A database is asked within a time of our own, whatever
keeps it from answering: a connection that does not come about, a name that is not resolved, a server that says nothing.
"""

from __future__ import annotations

import hashlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from django.conf import settings
from django.db import DEFAULT_DB_ALIAS, connections

from messaging.db.connections import is_up
from messaging.monitoring import readings, snapshot
from messaging.monitoring.conditions import Condition, alive, conditions
from messaging.monitoring.databases import home, known
from messaging.monitoring.evaluation import unreached
from messaging.wire.bodies import one_line

if TYPE_CHECKING:  # not on Windows, which has none
    from messaging.supervising.state import State

SECONDS = 0.8  # for an answer; a probe has one second
HUNG = 30.0  # seconds without a sign of life after which a process hangs
STARTING = 300.0  # seconds that a process may take until its first sign
STUCK = 600.0  # seconds after which what waits for a broker or a database that gives no sign has to begin anew
READY = ("running", "")  # how the status of a consumer or relay begins that is well
DIED_FIX = "Look at the supervisor's log for what it died of. What it ran comes again."
HUNG_FIX = "Look at the supervisor's log, which has its stacks. End it: what it ran comes again."
WAITS_FIX = "It lives, and goes on by itself: look at what it waits for."

Level = Literal["ok", "warning", "critical"]
Kind = Literal["consumer", "relay", "web"]
LEVELS: tuple[Level, ...] = ("ok", "warning", "critical")


@dataclass(frozen=True, slots=True)
class Check:
    """What was found about one thing.

    Attributes:
        name: "consumer", "process" (of a consumer), "relay", "database", or the name of a `Condition`.
        level: of a process: "ok" when it is ready, "warning" when it lives and is not ready, "critical" when it does
            not live.
        subject: which process, database, alias or queue.
        words: what was found.
        fix: what to do; "" where there is nothing to do.
    """

    name: str
    level: Level
    subject: str
    words: str
    fix: str = ""


def worst(checks: Iterable[Check]) -> Level:
    """The worst level among them."""
    return max((check.level for check in checks), key=LEVELS.index, default="ok")


def site() -> str:
    """Tells the sites on a host apart that the same user runs: by their settings and their database."""
    name = str(getattr(settings, "SETTINGS_MODULE", None) or "")
    database = connections.settings.get(DEFAULT_DB_ALIAS, {})
    where = [str(database.get(key, "")) for key in ("ENGINE", "HOST", "PORT", "NAME")]
    parts = [name, str(getattr(sys.modules.get(name), "__file__", "")), *where]
    return hashlib.sha256("\0".join(parts).encode("utf-8", "backslashreplace")).hexdigest()[:16]


def of_processes(kind: Kind, hung: float = HUNG) -> list[Check]:
    """How the consumers, or the relays, on this host do. Asks no broker and no database.

    Args:
        kind: "consumer" (with all that runs inside) or "relay" (those inside of consumers included).
        hung: seconds without a sign of life after which a process hangs.
    """
    found = [check for own, check in _local(hung) if kind in (own, check.name)]
    if found:
        return found
    fix = (
        f"Start one on this host, as the same user. Where it runs, see that it and this command agree on {_variable()}."
    )
    return [Check(kind, "critical", "", f"No {kind} of this site is known on this host.", fix)]


def of_web(seconds: float = SECONDS) -> list[Check]:
    """Whether each database with messages answers: what it takes to publish."""
    askings = {name: _Asking.of(f"database {name}", _probe(name)) for name in known()}
    until = time.monotonic() + seconds
    return [_of_database(name, asking.told(until - time.monotonic()), seconds) for name, asking in askings.items()]


def of_site(seconds: float = SECONDS, hung: float = HUNG) -> list[Check]:
    """Everything that is wrong on the site, as far as its database and the processes on this host tell."""
    queues = _Asking.of("queues", readings.waiting)
    tables = _Asking.of("tables", snapshot.read)
    until = time.monotonic() + seconds
    now = tables.told(until - time.monotonic())
    found = [check for _, check in _local(hung)]
    if not isinstance(now, snapshot.Snapshot):
        answer = now if isinstance(now, Exception) else None
        return [_of_database(home(), answer, seconds, "critical"), *found]
    told = queues.told(until - time.monotonic())
    reading = told if isinstance(told, readings.Waiting) else readings.Waiting()
    wrong = [*unreached(now, reading), *conditions(replace(now, ready=reading.ready))]
    found += [_of_condition(condition) for condition in wrong]
    workers = len(list(alive(now)))
    words = f"It answers. {workers} workers have been seen within a minute."
    return [Check("database", "ok", home(), words), *found]


def answers(database: str, seconds: float) -> bool:
    """Whether a database answers, and takes writes, within so many seconds."""
    return _Asking.of(f"database {database}", _probe(database)).told(seconds) is True


def _of_condition(condition: Condition) -> Check:
    return Check(condition.name, condition.level, condition.subject, condition.words, condition.fix)


# Databases


class _Asking(threading.Thread):
    """A question that may never be answered. One at a time: who asks meanwhile waits for the same answer."""

    _under_way: dict[str, _Asking] = {}
    _guard = threading.Lock()

    def __init__(self, key: str, ask: Callable[[], Any]) -> None:
        super().__init__(name="messaging-health", daemon=True)
        self._key, self._ask = key, ask
        self._answer: Any = None

    @classmethod
    def of(cls, key: str, ask: Callable[[], Any]) -> _Asking:
        """The question with this name, which is asked now unless it is already."""
        with cls._guard:
            asking = cls._under_way.get(key)
            if asking is None or not asking.is_alive():  # as in a process that was forked meanwhile
                asking = cls._under_way[key] = cls(key, ask)
                asking.start()
        return asking

    def run(self) -> None:
        try:
            self._answer = self._ask()
        except Exception as error:  # noqa: BLE001  whatever is asked, not to know is an answer
            self._answer = error
        finally:
            connections.close_all()  # of this thread
            with self._guard:
                if self._under_way.get(self._key) is self:
                    del self._under_way[self._key]

    def told(self, seconds: float) -> Any:
        """The answer, or the exception instead; None where none comes within so many seconds."""
        self.join(max(0.0, seconds))
        return self._answer


def _probe(database: str) -> Callable[[], bool]:
    return lambda: is_up(database)


def _of_database(name: str, answer: Any, seconds: float, level: Level = "warning") -> Check:
    if answer is True:
        return Check("database", "ok", name, "It answers.")
    fix = "Check that it runs, that this host reaches it, and that its tables are migrated. Nothing is lost meanwhile."
    if answer is None:
        return Check("database", level, name, f"It does not answer within {seconds:g} s.", fix)
    why = f" ({type(answer).__name__}: {one_line(answer)})" if isinstance(answer, Exception) else ""
    return Check("database", level, name, f"It cannot be used{why}.", fix)


# Processes of this host


def _variable() -> str:
    return "MESSAGING_STATE_DIR" if os.name == "posix" else "this system, which has no such files"


def _local(hung: float) -> Iterator[tuple[str, Check]]:
    """How each process does, or a part of it, with the kind of the process."""
    if os.name != "posix":
        return
    from messaging.supervising.state import states  # which takes file locks

    for state in states(site()):
        name = str(state.facts["kind"])
        subject = f"{state.facts['pid']} ({state.facts['alias']})"
        for check in _of_state(name, subject, state, hung):
            yield name, check


def _of_state(name: str, subject: str, state: State, hung: float) -> Iterator[Check]:
    if not state.lives:
        fix = f"Start it again; what it held is sent or comes again. To forget it, delete {state.path}."
        yield Check(name, "critical", subject, "It ended without signing off.", fix)
    elif state.age > hung:
        yield Check(name, "critical", subject, f"It has given no sign of life for {state.age:.0f} s.", HUNG_FIX)
    elif name == "relay":
        yield _of_relay(subject, state.facts, hung)
    else:
        yield from _of_consumer(subject, state.facts, hung)


def _of_consumer(subject: str, facts: Mapping[str, Any], hung: float) -> Iterator[Check]:
    children = list(facts.get("children", ()))
    words = "It stops." if facts.get("stopping") else f"It watches over {len(children)} process(es)."
    yield Check("consumer", "warning" if facts.get("stopping") else "ok", subject, words)
    for child in children:
        own = f"{child['pid']} of {subject}"
        check = _of_child(own, child, hung)
        yield check
        if check.level != "critical" and "relay" in child.get("told", {}):
            yield _of_relay(f"inside of {own}", child["told"], hung)


def _of_child(subject: str, child: Mapping[str, Any], hung: float) -> Check:
    now, told = time.monotonic(), child.get("told", {})
    if not child["runs"]:
        pause = max(0.0, float(child["next"]) - now)
        return Check("process", "warning", subject, f"It has ended; another one starts in {pause:.0f} s.", DIED_FIX)
    if child["heard"] is None:
        age = now - float(child["started"])
        return Check("process", "critical" if age > STARTING else "warning", subject, f"It starts, since {age:.0f} s.")
    silent = now - float(child["heard"])
    if silent > hung:
        words = f"It has given no sign of life for {silent:.0f} s: it hangs, or a handler lets nothing else run."
        return Check("process", "critical", subject, words, HUNG_FIX)
    return _of_loop("process", subject, str(told.get("status", "")), told.get("stepped"), hung)


def _of_relay(subject: str, facts: Mapping[str, Any], hung: float) -> Check:
    return _of_loop("relay", subject, str(facts.get("relay", "")), facts.get("looped"), hung)


def _of_loop(name: str, subject: str, status: str, at: float | None, hung: float) -> Check:
    """Of what says that it lives: what its loop does, which may wait for somebody who gives no sign."""
    if at is None:
        return Check(name, "warning", subject, "It starts: nothing has been consumed yet.")
    still = time.monotonic() - at
    if still > hung:
        words = f"It has waited for {still:.0f} s for a broker or a database that gives no sign."
        return Check(name, "critical" if still > STUCK else "warning", subject, words, WAITS_FIX)
    if status.startswith(READY[0]) or status == READY[1]:
        return Check(name, "ok", subject, status or "It sends.")
    return Check(name, "warning", subject, f"It is not ready: {status}.", WAITS_FIX)
