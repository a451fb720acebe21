"""Starts the processes that consume, watches over them, and stops them. Standard library only, to stay small.

A supervisor holds no connection to a broker or a database. It knows of each child: a socket between the two, through
which the child is told to stop and notices the supervisor's end, and a ledger that shows what the child is running.
Run as `python -m messaging.supervising [options] -- COMMAND...`; COMMAND is each child's command line.
"""

from __future__ import annotations

import argparse
import logging
import os
import resource
import selectors
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any

from messaging.supervising import process_setup
from messaging.supervising.child import Child, Command, stop_signals
from messaging.supervising.lines import HandedOver
from messaging.supervising.reloading import FileWatcher
from messaging.supervising.state import NO_FOLDER, StateFile

logger = logging.getLogger("messaging.supervisor")

TICK = 0.25  # seconds
MEMORY_INTERVAL = 2.0  # seconds between two looks
FILES, FILES_PER_SLOT = 64, 8  # that a child has open, sockets and loaded modules among them
NO_ROOM = (
    "There is no room for the ledger that tells what a process was running when it died: {}. Let TMPDIR name a "
    "temporary directory that can be written to and has space left."
)
ONE_PRESS = 0.5  # seconds: a terminal's SIGINT and its launcher's SIGTERM are one wish


class Supervisor:
    """Keeps `processes` children running.

    Args:
        command: how to start a child.
        processes: how many.
        stop_timeout: seconds that running handlers get after the first signal.
        max_memory: megabytes of resident memory above which a child is replaced once what it runs has ended; 0 for any.
        reload: replace the children when a source file changes.
    """

    def __init__(
        self, command: Command, processes: int, *, stop_timeout: float, max_memory: int = 0, reload: bool = False
    ) -> None:
        self._children = [Child(command, index) for index in range(processes)]
        self._stop_timeout = stop_timeout
        self._max_memory = max_memory
        self._files = FileWatcher() if reload else None
        self._signals: list[tuple[int, float]] = []
        self._deadline: float | None = None
        self._memory_read_at = 0.0
        self._has_released = False
        self._status = 0
        self._lines: HandedOver | None = None
        self._state: StateFile | None = None

    def hand_over_lines(self) -> None:
        """Have the children write this process's log lines, as the site's `LOGGING` says."""
        self._lines = HandedOver(lambda line: any(child.log(line) for child in self._children))
        logger.addHandler(self._lines)
        logger.setLevel(logging.INFO)

    def show_state(self, alias: str, site: str) -> None:
        """Say how the children do, for whoever asks on this host; see `state`."""
        self._state = StateFile.create("consumer", alias, site, len(self._children))
        if self._state is None:
            logger.warning(NO_FOLDER)

    def run(self) -> int:
        """Supervise until stopped or until every child has finished. Returns the exit status."""
        wake, woken = socket.socketpair()
        with wake, woken, selectors.DefaultSelector() as selector:
            wake.setblocking(False)
            signal.set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)
            for number in stop_signals():
                signal.signal(number, self._on_signal)
            signal.signal(signal.SIGCHLD, lambda *_: None)  # only to wake up
            selector.register(woken, selectors.EVENT_READ)
            while not self._is_over():
                self._step()
                if selector.select(TICK):
                    woken.recv(4096)
            signal.set_wakeup_fd(-1)
        for child in self._children:
            child.bury(blame=False)
        self._look_after_lines(at_the_end=True)
        if self._state is not None:
            self._state.close()
        return self._status

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if not any(other != number and now - at < ONE_PRESS for other, at in self._signals):
            self._signals.append((number, now))

    def _is_over(self) -> bool:
        return all(child.is_finished or (self._stopping and not child.is_running) for child in self._children)

    @property
    def _stopping(self) -> bool:
        return self._deadline is not None

    def _step(self) -> None:
        self._obey_signals()
        self._reap_orphans()
        for child in self._children:
            child.read_reports()
            if not child.is_running:
                self._after_end(child)
                continue
            if not self._stopping:
                child.enforce_time_limits()
            child.enforce_life(may_end=not self._stopping)
            child.enforce_stop()
        self._look_after_lines()
        self._write_state()
        self._limit_memory()
        self._reload_if_changed()

    def _obey_signals(self) -> None:
        if self._signals and not self._stopping:
            logger.info("Stopping: what runs may finish within %g s. Signal again to stop now.", self._stop_timeout)
            self._stop(0)
        if len(self._signals) > 1:
            self._release_all("Stopping now: what was running goes back to the broker.")
        elif self._deadline is not None and time.monotonic() > self._deadline:
            self._release_all(f"Handlers still run after {self._stop_timeout:g} s: stopping now.")

    def _stop(self, status: int) -> None:
        self._status = self._status or status
        self._deadline = time.monotonic() + self._stop_timeout
        for child in self._children:
            child.ask_to_stop()

    def _release_all(self, why: str) -> None:
        if self._has_released:
            return
        self._has_released, self._status = True, 1
        logger.warning(why)
        for child in self._children:
            child.release()

    def _after_end(self, child: Child) -> None:
        is_refused = child.bury(blame=not self._stopping)
        self._take_back_lines(child)  # before another one may be there
        if child.is_finished or self._stopping:
            return
        if is_refused and not (self._files and self._files.known):
            self._stop(1)  # the child has said why
        elif child.may_start():
            child.start()

    def _reap_orphans(self) -> None:
        """As process 1: what the handlers' programs left behind has no other parent."""
        try:
            while ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                if not any(child.owns(ended.si_pid) for child in self._children):
                    os.waitpid(ended.si_pid, os.WNOHANG)
        except ChildProcessError:  # there is none
            return

    def _look_after_lines(self, *, at_the_end: bool = False) -> None:
        if self._lines is None:
            return
        self._lines.hand_over()
        if at_the_end:
            for child in self._children:
                self._take_back_lines(child)
            self._lines.write_rest()

    def _take_back_lines(self, child: Child) -> None:
        """The lines that it did not write before its end."""
        if self._lines is not None:
            self._lines.take_back(child.take_unwritten())

    def _write_state(self) -> None:
        if self._state is not None and self._state.is_due:
            children = [child.state() for child in self._children if not child.is_finished]
            self._state.write({"children": children, "stopping": self._stopping})

    def _limit_memory(self) -> None:
        now = time.monotonic()
        if not self._max_memory or self._stopping or now - self._memory_read_at < MEMORY_INTERVAL:
            return
        self._memory_read_at = now
        for child in self._children:
            if child.is_running and child.memory() > self._max_memory and child.ask_to_stop():
                logger.info(
                    "Process %s uses more than %s MB: it is replaced once what it runs has ended.",
                    child.pid,
                    self._max_memory,
                )

    def _reload_if_changed(self) -> None:
        if self._files is None or self._stopping:
            return
        for child in self._children:
            self._files.add(child.take_files())
        changed = self._files.changed()
        if changed:
            logger.info("%s changed: restarting.", changed)
            for child in self._children:
                child.ask_to_stop(within=self._stop_timeout)
                child.start_soon()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m messaging.supervising", description=__doc__)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--slots", type=int, default=1, help="worker threads of each process")
    parser.add_argument("--stop-timeout", type=float, default=30.0)
    parser.add_argument("--max-memory", type=int, default=0)
    parser.add_argument("--freeze-timeout", type=float)
    parser.add_argument("--reload", action="store_true")
    parser.add_argument("--verbosity", type=int, default=1)
    parser.add_argument("--hand-over-lines", action="store_true", help="have the children write the log")
    parser.add_argument("--python-path", help="PYTHONPATH of the children; none if missing")
    parser.add_argument("--alias", default="", help="whose messages the children consume")
    parser.add_argument("--site", help="tells sites apart for whoever asks how the children do; nobody can, if missing")
    parser.add_argument("--metrics-port", type=int, help="where metrics are served; nowhere if missing")
    parser.add_argument("--metrics-host", default="127.0.0.1")
    parser.add_argument("command", nargs="+")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, supervise, return the exit status."""
    options = _parser().parse_args(arguments)
    process_setup.open_streams()
    if not options.hand_over_lines:
        process_setup.configure(options.verbosity)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    if options.python_path is not None:
        environment["PYTHONPATH"] = options.python_path
    counts = None
    try:
        if options.metrics_port is not None:
            from messaging.supervising.counts import Counts  # where metrics were asked for

            counts = Counts(options.alias)
        supervisor = Supervisor(
            Command(tuple(options.command), environment, options.slots, options.freeze_timeout, counts),
            options.processes,
            stop_timeout=options.stop_timeout,
            max_memory=options.max_memory,
            reload=options.reload,
        )
    except OSError as error:
        sys.stderr.write(f"Error: {NO_ROOM.format(error)}\n")
        return 1
    if options.hand_over_lines:
        supervisor.hand_over_lines()
    _make_room_for_files(options.slots)
    if counts is not None and not _serve_metrics(counts.read, options.metrics_host, options.metrics_port):
        return 1
    if options.site is not None:
        supervisor.show_state(options.alias, options.site)
    return supervisor.run()


def _serve_metrics(read: Callable[[], Any], host: str, port: int) -> bool:
    """Answer scrapes, whatever the children do; False, and said, where the port cannot be had."""
    from messaging.metrics import exposition

    try:
        address = exposition.serve(read, host, port)
    except OSError as error:
        sys.stderr.write(f"Error: {error}\n")
        return False
    logger.info("Metrics are served at %s.", address)
    return True


def _make_room_for_files(slots: int) -> None:
    """Raise this process's limit of open files, which its children inherit, to what they need."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = FILES + FILES_PER_SLOT * slots
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    allowed = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    if allowed < needed:
        logger.warning(
            "A process may open %d files here and needs about %d: raise the limit (`ulimit -n`, LimitNOFILE=).",
            allowed,
            needed,
        )


if __name__ == "__main__":
    sys.exit(main())
