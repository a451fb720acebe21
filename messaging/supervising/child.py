"""One child of the supervisor: its process, the socket to it, its ledger, and what it died of."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import random
import signal
import socket
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from messaging.supervising.ledger import Ledger, RunningEntry
from messaging.supervising.log_records import about
from messaging.supervising.offspring import end, offspring_of
from messaging.supervising.watchdog import Watch

if TYPE_CHECKING:
    from messaging.supervising.counts import Counts

logger = logging.getLogger("messaging.supervisor")

VARIABLE = "MESSAGING_CHILD"  # tells a child who it is: JSON with index, control, ledger, slots, stacks and careful
EXIT_CONFIGURATION = 78  # EX_CONFIG: a restart would not help; the child has said why
# Windows has fewer.
STOP_SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT") if hasattr(signal, name)
)
FIRST_PAUSE, LONGEST_PAUSE = 0.25, 30.0  # seconds between a death and the next start
RELEASE_TIME = 2.0  # seconds that a process gets to hand over what it runs before it is killed
RAN_WELL = 20.0  # seconds after which a death is no longer a series


@dataclass(frozen=True)
class Command:
    """How to start a child.

    Attributes:
        arguments: its command line.
        environment: its environment.
        slots: how many worker threads it has.
        freeze_timeout: seconds for which it may do nothing beside a handler that holds the interpreter's lock.
        counts: where it counts; None where nobody asked for metrics.
    """

    arguments: tuple[str, ...]
    environment: Mapping[str, str]
    slots: int
    freeze_timeout: float | None = None
    counts: Counts | None = None


class Child:
    """A place that one process after another fills. Made and used by the supervisor's only thread."""

    def __init__(self, command: Command, index: int) -> None:
        self._command = command
        self._index = index
        self._ledger = Ledger.create(command.slots)
        self._tally = command.counts.place() if command.counts is not None else None
        self._watch = Watch(command.freeze_timeout)
        self._is_frozen = False  # set once it is killed for it
        self._is_unexplained = False  # whether the last one died and nothing that it ran is to blame
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._received = b""
        self._crashed: list[dict[str, Any]] = []  # not yet recorded by a successor
        self._overdue: list[RunningEntry] = []
        self._told: dict[str, Any] = {}  # what it last said of itself
        self._files: list[str] = []
        self._offspring: list[int] = []  # to be ended with it
        self._unwritten: list[dict[str, Any]] = []
        self._failures = 0
        self._started_at = self._start_at = 0.0
        self._leave_by: float | None = None  # set once it was asked to stop
        self._kill_at: float | None = None  # set once it was told that it is killed
        self._has_finished = False
        self.is_finished = False

    @property
    def pid(self) -> int:
        """The process id; 0 before the first start."""
        return self._process.pid if self._process is not None else 0

    @property
    def is_running(self) -> bool:
        """Whether there is a live process."""
        return self._process is not None and self._process.poll() is None

    def state(self) -> dict[str, Any]:
        """How it does, for a `StateFile`."""
        return {
            "pid": self.pid,
            "runs": self.is_running,
            "started": self._started_at,
            "heard": self._watch.heard_at,
            "next": self._start_at,
            "told": self._told,
        }

    def may_start(self) -> bool:
        """Whether the pause after the last death is over."""
        return time.monotonic() >= self._start_at

    def start_soon(self) -> None:
        """Forget the pause."""
        self._failures, self._start_at = 0, 0.0

    def start(self) -> None:
        """Start a process. It first records what its predecessors died of."""
        ours, theirs = socket.socketpair()
        self._ledger.clear()
        self._watch.begin()
        self._is_frozen = False
        self._overdue, self._leave_by, self._kill_at, self._has_finished = [], None, None, False
        self._received, self._socket, self._started_at = b"", ours, time.monotonic()
        self._told = {}
        ours.setblocking(False)
        role = {
            "index": self._index,
            "control": theirs.fileno(),
            "ledger": self._ledger.fd,
            "slots": self._ledger.slots,
            "stacks": self._watch.fd,
            "careful": self._is_unexplained,
            "tally": -1 if self._tally is None else self._tally.fd,
        }
        self._is_unexplained = False
        further = [fd for fd in (self._watch.fd, role["tally"]) if fd >= 0]
        # Inherited as blocked: a Ctrl-C that reaches the child while it loads must not kill it.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        try:
            self._process = subprocess.Popen(
                self._command.arguments,
                env={**self._command.environment, VARIABLE: json.dumps(role)},
                pass_fds=(theirs.fileno(), self._ledger.fd, *further),
            )
            if self._tally is not None:
                self._tally.begin()
        except OSError as error:  # such as no memory left for it
            self._socket = None
            ours.close()
            pause = self._pause()
            logger.error("No process can be started: %s. Trying again in %.1f s.", error, pause)  # noqa: TRY400
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            theirs.close()
        self._tell({"crashed": self._crashed})

    def ask_to_stop(self, within: float = math.inf) -> bool:
        """Have it finish what runs, hand back the rest and leave.

        Args:
            within: seconds after which `enforce_stop()` ends it.

        Returns False when it was asked before or is not there.
        """
        if self._leave_by is not None or not self.is_running:
            return False
        self._leave_by = time.monotonic() + within
        self._tell({"stop": True})
        return True

    def release(self) -> None:
        """Have it hand over what it runs and end, blaming nobody; `enforce_stop()` kills it if it does not, soon."""
        if self._kill_at is None and self.is_running:
            self._kill_at = time.monotonic() + RELEASE_TIME
            self._offspring = offspring_of(self.pid)
            self._tell({"release": True})

    def enforce_stop(self) -> None:
        """Let it end when it was asked to stop and had its time."""
        now = time.monotonic()
        if self._kill_at is not None:
            if now > self._kill_at and self._process is not None:
                self._kill()
        elif self._leave_by is not None and now > self._leave_by:
            logger.warning("Process %s still runs handlers: it is replaced now.", self.pid)
            self.release()

    def enforce_time_limits(self) -> None:
        """Kill it when a handler has run longer than its timeout."""
        overdue = [] if self._overdue else self._ledger.overdue(time.monotonic())
        if overdue and self._process is not None:
            self._overdue = overdue
            for running in overdue:
                entry, text = running.entry, "%s %s: killing process %s."
                logger.warning(text, entry.handler, _too_long(running), self.pid, extra=_about([running]))
            self._kill()

    def enforce_life(self, *, may_end: bool) -> None:
        """Say so when it does nothing beside one handler, and kill it where that is limited and `may_end`."""
        if self._watch.look(self.pid, self._handlers) and may_end and not self._is_frozen:
            self._is_frozen = True
            logger.error("Process %s %s: it is killed.", self.pid, self._froze())
            self._kill()

    def _handlers(self) -> list[str]:
        return sorted({found.entry.handler for found in self._ledger.running_entries()})

    def _froze(self) -> str:
        return f"has done nothing beside one handler for more than {self._watch.limit or 0:g} s"

    def bury(self, *, blame: bool) -> bool:
        """After its end, once: note what it was running and when the next may start.

        Args:
            blame: whether messages that were running count as crashed.

        Returns whether it refused its configuration.
        """
        if self._process is None or self._socket is None:
            return False
        end(self._offspring)
        self._offspring = []
        self.read_reports()
        self._socket.close()
        self._socket = None
        if self._tally is not None:
            self._tally.end()
        status, running = self._process.returncode, self._ledger.running_entries()
        if status == 0 and self._has_finished:
            self.is_finished = self._leave_by is None
        elif status == EXIT_CONFIGURATION and not running:  # a handler may leave with any status
            self._pause()
            return True
        elif blame:
            self._note_end(status, running)
        return False

    def _kill(self) -> None:
        """Kill it, and what its handlers have forked: nobody waits for that any more."""
        if self._process is not None:
            self._offspring = offspring_of(self.pid)
            self._process.kill()

    def owns(self, pid: int) -> bool:
        """Whether this is its process; if that has ended, its exit status is taken."""
        if self._process is None or self._process.pid != pid:
            return False
        self._process.poll()
        return True

    def log(self, line: Mapping[str, Any]) -> bool:
        """Have it write a log line; False when it is not there."""
        if self._socket is None or not self.is_running:
            return False
        self._unwritten.append(dict(line))
        self._tell({"log": line})
        return True

    def take_unwritten(self) -> list[dict[str, Any]]:
        """The log lines that it did not write before its end."""
        lines, self._unwritten = self._unwritten, []
        return lines

    def read_reports(self) -> None:
        """Take in what the child has said since."""
        if self._socket is None:
            return
        with contextlib.suppress(BlockingIOError, ConnectionError):
            while chunk := self._socket.recv(65536):
                self._received += chunk
        *lines, self._received = self._received.split(b"\n")
        for line in lines:
            self._take_report(json.loads(line))

    def take_files(self) -> list[str]:
        """The source files that it has reported since the last call."""
        files, self._files = self._files, []
        return files

    def memory(self) -> float:
        """Its resident memory in megabytes; 0 when that cannot be read."""
        try:
            with open(f"/proc/{self.pid}/statm") as file:
                return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
        except FileNotFoundError:
            said = subprocess.run(
                ["ps", "-o", "rss=", "-p", str(self.pid)], capture_output=True, text=True, check=False
            )
            return int(said.stdout.strip() or 0) / 1e3

    def _take_report(self, report: Mapping[str, Any]) -> None:
        if report.get("recorded"):
            del self._crashed[:1]
        if report.get("alive"):
            self._watch.heard(self.pid)
            self._told = report.get("told") or {}
        self._files += report.get("files", ())
        del self._unwritten[: report.get("logged", 0)]
        self._has_finished = self._has_finished or bool(report.get("finished"))

    def _tell(self, order: Mapping[str, Any]) -> None:
        with contextlib.suppress(OSError):  # it died meanwhile, which is noticed elsewhere
            if self._socket is not None:
                self._socket.settimeout(5.0)
                self._socket.sendall(json.dumps(order).encode() + b"\n")
                self._socket.setblocking(False)

    def _note_end(self, status: int, running: list[RunningEntry]) -> None:
        """What the successor has to count, and whose claims ended through no fault of theirs."""
        if self._tally is not None:
            self._tally.note_death()
        if self._kill_at is not None or self._overdue:
            late = [found for found in running if found in self._overdue]
            spared = [found for found in running if found not in late and found.entry.token]
            self._crashed += [
                _crash(found, "HandlerTimeout", _too_long(found)) for found in late if found.entry.batch == 1
            ]
            self._crashed += [_crash(found) for found in spared]
            return
        blamed = [found for found in running if found.entry.batch == 1]
        how = f"{self._froze()}, and was killed" if self._is_frozen else describe(status)
        self._crashed += [_crash(found, "ProcessDied", f"The process that ran it {how}.") for found in blamed]
        # Each death that somebody is blamed for costs an attempt, so that their series ends without longer pauses.
        self._is_unexplained = not blamed
        pause = self._pause(grows=not blamed)
        logger.error(
            "Process %s %s while it ran %s; another one starts in %.1f s.",
            self.pid,
            describe(status),
            ", ".join(self._handlers()) or "no handler",
            pause,
            extra=_about(running),
        )

    def _pause(self, *, grows: bool = True) -> float:
        """Let the next process wait; returns for how many seconds."""
        if time.monotonic() - self._started_at > RAN_WELL:
            self._failures = 0
        self._failures += grows
        pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** max(0, self._failures - 1)) if grows else FIRST_PAUSE
        pause *= random.uniform(0.75, 1.0)
        self._start_at = time.monotonic() + pause
        return pause


def stop_signals() -> list[signal.Signals]:
    """The signals that stop us; not SIGHUP where we were started to ignore it, as `nohup` does."""
    return [
        number for number in STOP_SIGNALS if number.name != "SIGHUP" or signal.getsignal(number) is not signal.SIG_IGN
    ]


def _crash(found: RunningEntry, error: str = "", text: str = "") -> dict[str, Any]:
    """An attempt that a process did not survive, as its successor is told; without an error it is not to be counted."""
    return {"entry": found.entry.to_json(), "error": error, "text": text, "since": found.since}


def _about(running: list[RunningEntry]) -> dict[str, Any]:
    """What a log record says of the message that was running, if it was one; its attempts are not known here."""
    return about(running[0].entry) if len(running) == 1 and running[0].entry.batch == 1 else {}


def describe(status: int) -> str:
    """An exit status in words: "exited with status 3", "was killed by signal 9 (SIGKILL)"."""
    if status >= 0:
        return f"exited with status {status}"
    try:
        return f"was killed by signal {-status} ({signal.Signals(-status).name})"
    except ValueError:
        return f"was killed by signal {-status}"


def _too_long(running: RunningEntry) -> str:
    return f"ran longer than its timeout of {running.entry.timeout or 0:g} s"
