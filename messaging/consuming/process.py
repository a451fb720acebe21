"""The process that consumes, as the supervisor's child: records how its predecessor died, then consumes."""

from __future__ import annotations

import json
import logging
import os
import secrets
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, cast

from django.db import connections
from django.utils.autoreload import iter_all_python_module_files

from messaging.consuming.consumer import Consumer, Plan
from messaging.consuming.deaths import Deaths
from messaging.db import forks
from messaging.exceptions import ConfigurationError, TopologyError
from messaging.monitoring import traces
from messaging.monitoring.alerts import AlertThread
from messaging.operations import rehearsals
from messaging.operations.stored import Runner, run_waiting
from messaging.processing.processor import Processor
from messaging.relaying.relay import Relay
from messaging.supervising import lines, repeats
from messaging.supervising.child import EXIT_CONFIGURATION, STOP_SIGNALS, VARIABLE
from messaging.supervising.ledger import Ledger
from messaging.supervising.process_setup import give_back_large, set_loaded_aside
from messaging.supervising.watchdog import Pulse

logger = logging.getLogger("messaging.consumer")

LOOK_FOR_FILES = 2.0  # seconds between two looks at which source files are loaded
RELAY_PAUSE = 5.0  # seconds until a relay that failed is started again
FAILED = "it failed, and is started again; the log has the reason"
KEEP_CONNECTIONS = 600  # seconds; a new connection per message would cost more than most handlers


class Control(threading.Thread):
    """The socket to the supervisor.

    When the supervisor is gone this process ends at once, handlers and all: the broker then gives its messages to
    others, and nobody is left who could stop it.

    Args:
        fd: the inherited socket.
        on_stop: called when the supervisor asks to stop.
        on_release: called when it is about to kill this process.
    """

    def __init__(self, fd: int, on_stop: Callable[[], None], on_release: Callable[[], None]) -> None:
        super().__init__(name="messaging-control", daemon=True)
        os.set_inheritable(fd, False)
        # Never closed by this process: the supervisor sees its end in the process's end.
        self._reader = open(fd, "rb", closefd=False)  # noqa: SIM115
        self._writer = open(fd, "wb", closefd=False)  # noqa: SIM115
        self._on_stop = on_stop
        self._on_release = on_release
        self._sending = threading.Lock()

    def fileno(self) -> int:
        """Its descriptor."""
        return self._reader.fileno()

    def crashed(self) -> list[dict[str, Any]]:
        """What the predecessors died of, as the supervisor says first. Call it before `start()`."""
        crashed: list[dict[str, Any]] = self._order()["crashed"]
        return crashed

    def run(self) -> None:
        """Obey until the supervisor is gone."""
        while True:
            order = self._order()
            if "log" in order:
                lines.write(order["log"])
                self.report(logged=1)
            if order.get("stop"):
                self._on_stop()
            if order.get("release"):
                self._on_release()

    def report(self, **facts: Any) -> None:
        """Tell the supervisor."""
        with self._sending:
            try:
                self._writer.write(json.dumps(facts).encode() + b"\n")
                self._writer.flush()
            except OSError:
                os._exit(1)

    def _order(self) -> dict[str, Any]:
        try:
            line = self._reader.readline()
        except OSError:
            line = b""
        if not line.endswith(b"\n"):
            os._exit(1)
        order: dict[str, Any] = json.loads(line)
        return order


def _beat(control: Control, known: list[Callable[[], dict[str, Any]]]) -> None:
    """Give the supervisor a sign of life, with what whoever asks on this host is to know."""
    told: dict[str, Any] = {}
    for tell in known:
        with suppress(Exception):  # whatever it is, this process lives
            told |= tell()
    control.report(alive=True, told=told)


def is_child() -> bool:
    """Whether a supervisor started this process."""
    return VARIABLE in os.environ


def run(plan: Plan, *, relay: bool, reload: bool) -> int:
    """Consume as `plan` says until the supervisor asks to stop. Returns the exit status.

    Args:
        plan: what to consume.
        relay: whether to send the outbox too, if this is the first child.
        reload: whether to tell the supervisor which source files to watch.
    """
    role = json.loads(os.environ.pop(VARIABLE))
    _ignore_signals()
    stopping = threading.Event()
    release = _Release()
    control = Control(role["control"], stopping.set, release.start)
    crashed = control.crashed()
    control.start()
    if reload and role["index"] == 0:
        threading.Thread(target=_report_files, args=(control,), name="messaging-files", daemon=True).start()
    forks.watch(control)
    repeats.limit()
    traces.look()
    give_back_large()
    _keep_connections()
    name = f"{socket.gethostname()[:150]}:{os.getpid()}:{secrets.token_hex(2)}"
    try:
        ledger = Ledger.attach(role["ledger"], role["slots"])
        consumer = Consumer(plan, name, ledger, is_careful=role.get("careful", False))
        release.processor = consumer.processor
        if role.get("tally", -1) >= 0:
            _count_in(plan.alias, role["tally"], tells_of_the_site=role["index"] == 0)
        sender = _RelayThread(plan, name, stopping) if relay and (plan.burst or role["index"] == 0) else None
        known = [consumer.state, *([sender.state] if sender is not None else [])]
        Pulse(role.get("stacks", -1), partial(_beat, control, known), consumer.note_freeze).start()
        deaths = Deaths(crashed, consumer.processor, lambda: control.report(recorded=1), stopping)
        deaths.record()
        threading.Thread(target=_stop, args=(stopping, consumer, sender), name="messaging-stop", daemon=True).start()
        if role["index"] == 0 and not plan.burst:
            for work in (run_waiting, rehearsals.run_waiting):
                Runner(tuple(consumer.processor.databases), name, stopping, work).start()
            AlertThread(stopping).start()
        set_loaded_aside()
        if sender is not None:
            sender.start()
        consumer.run()
        if plan.burst:
            deaths.finish()
        stopping.set()
        if sender is not None:
            sender.join()
    except (ConfigurationError, TopologyError) as error:
        sys.stderr.write(f"Error: {error}\n")
        sys.stderr.flush()
        return EXIT_CONFIGURATION
    control.report(finished=True)
    return 0


def _count_in(alias: str, fd: int, *, tells_of_the_site: bool) -> None:
    """Count where the supervisor reads it; one child also tells what it serves of the whole site."""
    from messaging.metrics.tally import attach  # where metrics were asked for
    from messaging.monitoring import metrics

    tally = attach(fd)
    metrics.start(tally).begin_with(alias)
    if tells_of_the_site:
        metrics.SiteReader(tally).start()


def _ignore_signals() -> None:
    """A terminal and an init system signal the whole group, but only the supervisor decides.

    A function that does nothing, unlike SIG_IGN, is not passed on to programs that handlers start.
    """
    for number in STOP_SIGNALS:
        signal.signal(number, lambda *_: None)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)


def _keep_connections() -> None:
    """Let this process's connections outlive a message, where the site leaves them at "close after each request".

    They are taken out of Django's pool: each thread needs one all the time, and a pool may have fewer.
    """
    for connection in connections.all(initialized_only=True):
        connection.close()
        if connection.settings_dict.get("OPTIONS", {}).get("pool"):
            cast("Any", connection).close_pool()
    for settings in connections.settings.values():
        settings["OPTIONS"].pop("pool", None)
        if settings["CONN_MAX_AGE"] == 0:
            settings["CONN_MAX_AGE"] = KEEP_CONNECTIONS


class _RelayThread(threading.Thread):
    """Sends the outbox from within this process until `stopping`."""

    def __init__(self, plan: Plan, name: str, stopping: threading.Event) -> None:
        super().__init__(name="messaging-relay", daemon=True)
        self._relay = Relay(plan.alias, name=f"{name}:relay", held_bytes=plan.held_bytes)
        self._stopping = stopping
        self._failed_at: float | None = None

    def state(self) -> dict[str, Any]:
        """How it does, for whoever asks on this host."""
        now = time.monotonic()
        if self._failed_at is not None and now - self._failed_at < 2 * RELAY_PAUSE:
            return {"relay": FAILED, "looped": now}
        return {"relay": self._relay.status, "looped": self._relay.looped_at}

    def run(self) -> None:
        before = ""
        while not self._stopping.is_set():
            try:
                self._relay.run(self._stopping)
            except Exception as error:
                is_known, before, self._failed_at = repr(error) == before, repr(error), time.monotonic()
                level = logging.DEBUG if is_known else logging.ERROR
                logger.log(level, "The relay failed; it is started again each %g s.", RELAY_PAUSE, exc_info=True)
                self._stopping.wait(RELAY_PAUSE)
        connections.close_all()

    def finish(self) -> None:
        """Have it settle what is under way; `stopping` is set."""
        self._relay.wake()


class _Release(threading.Thread):
    """Hands over what runs here, then ends this process. The supervisor kills it when that takes too long."""

    def __init__(self) -> None:
        super().__init__(name="messaging-release", daemon=True)
        self.processor: Processor | None = None

    def run(self) -> None:
        try:
            if self.processor is not None:
                self.processor.give_up()
        finally:
            os._exit(1)


def _stop(stopping: threading.Event, consumer: Consumer, sender: _RelayThread | None) -> None:
    stopping.wait()
    consumer.stop()
    if sender is not None:
        sender.finish()
    consumer.processor.interrupt()


def _report_files(control: Control) -> None:
    known: set[str] = set()
    while True:
        files = {str(path) for path in iter_all_python_module_files()}
        if files - known:
            control.report(files=sorted(files - known))
            known |= files
        time.sleep(LOOK_FOR_FILES)
