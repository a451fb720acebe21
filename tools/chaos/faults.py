"""Doing harm, and undoing it."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from tools.chaos.schedule import DATABASE, FAILOVER, PACE, Fault
from tools.chaos.stage import MARATHON, QUEUES, Stage

REPLAYED = 300  # messages at a time that need no replay
LEAVING = 6.0  # seconds that consumers get where all of them are to go


class Injector:
    """Injects a plan: a thread for each lane.

    Attributes:
        done: how many faults of each kind were injected.
        under_way: what is broken now, in words.
        trouble: errors of the injecting itself, which spoil the run.
    """

    def __init__(self, stage: Stage, faults: list[Fault]) -> None:
        self.done: Counter[str] = Counter()
        self.under_way: dict[str, str] = {}
        self.trouble: list[str] = []
        self._stage = stage
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(
                target=self._run, args=(lane, [one for one in faults if one.lane == lane]), name=f"chaos-{lane}"
            )
            for lane in PACE
        ]

    def start(self) -> None:
        """Begin; the plan's times count from now."""
        self._began = time.monotonic()
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Begin no further fault, and wait until those under way are undone."""
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _run(self, lane: str, faults: list[Fault]) -> None:
        for fault in faults:
            if self._stop.wait(max(0.0, self._began + fault.at - time.monotonic())):
                return
            try:
                with (
                    self._stage.database_is_well if lane == DATABASE else contextlib.nullcontext(),
                    _MEANS[fault.kind](self._stage, random.Random(fault.choice)) as victim,
                ):
                    self.done[fault.kind] += 1
                    self.under_way[lane] = f"{fault.kind}{victim and f' ({victim})'}"
                    self._stop.wait(fault.seconds)
            except Exception as error:  # noqa: BLE001 - whatever it was, the run has to say so
                self.trouble.append(f"{fault.kind}: {error!r}")
                self._stop.set()
                return
            finally:
                self.under_way.pop(lane, None)


Means = Callable[[Stage, random.Random], AbstractContextManager[str]]
_MEANS: dict[str, Means] = {}


def _means(kind: str) -> Callable[[Callable[[Stage, random.Random], Iterator[str]]], None]:
    """Register how a kind of fault is done, up to its `yield`, and undone."""

    def register(function: Callable[[Stage, random.Random], Iterator[str]]) -> None:
        _MEANS[kind] = contextmanager(function)

    return register


@_means("relay killed")
def _kill_relay(stage: Stage, _chance: random.Random) -> Iterator[str]:
    stage.place("relay").kill()
    yield ""


@_means("consumer's child killed")
def _kill_child(stage: Stage, chance: random.Random) -> Iterator[str]:
    place = chance.choice(stage.consumers)
    for child in place.children()[:1] if chance.random() < 0.5 else place.children()[-1:]:
        _signal(child, signal.SIGKILL)
    yield place.name


@_means("consumer's supervisor killed")
def _kill_supervisor(stage: Stage, chance: random.Random) -> Iterator[str]:
    place = chance.choice(stage.consumers)
    place.kill()
    yield place.name


@_means("publisher killed")
def _kill_publisher(stage: Stage, chance: random.Random) -> Iterator[str]:
    place = chance.choice(stage.publishers)
    place.kill()
    yield place.name


@_means("consumer stopped")
def _stop_consumer(stage: Stage, chance: random.Random) -> Iterator[str]:
    place = chance.choice([*stage.consumers, *2 * [stage.place(MARATHON)]])
    # What a stop says of its claims must reach the database, so none is taken away meanwhile.
    with stage.database_is_well if place.name == MARATHON else contextlib.nullcontext():
        started = place.starts
        place.ask_to_stop()
        yield place.name
        if chance.random() < 0.5 and place.starts == started:
            place.ask_to_stop()
        if place.name == MARATHON:
            _wait(lambda: place.starts > started, 30.0)


@_means("process frozen")
def _freeze(stage: Stage, chance: random.Random) -> Iterator[str]:
    place = chance.choice([place for place in stage.places if place.name != MARATHON])
    pid = chance.choice(place.children() or [place.pid])
    _signal(pid, signal.SIGSTOP)
    try:
        yield place.name
    finally:
        _signal(pid, signal.SIGCONT)


@_means("connections reset")
def _reset(stage: Stage, chance: random.Random) -> Iterator[str]:
    name = chance.choice(sorted(stage.proxies))
    stage.proxies[name].reset()
    yield name


@_means("network silent")
def _silence(stage: Stage, chance: random.Random) -> Iterator[str]:
    name = chance.choice(sorted(stage.proxies))
    stage.proxies[name].blackhole()
    try:
        yield name
    finally:
        stage.proxies[name].reset()
        stage.proxies[name].heal()


@_means("network slow")
def _slow(stage: Stage, chance: random.Random) -> Iterator[str]:
    name = chance.choice(sorted(stage.proxies))
    stage.proxies[name].delay = chance.uniform(0.02, 0.5)
    try:
        yield name
    finally:
        stage.proxies[name].heal()


@_means("database sessions ended")
def _end_sessions(stage: Stage, _chance: random.Random) -> Iterator[str]:
    stage.end_sessions()
    yield ""


@_means(FAILOVER)
def _fail_over(stage: Stage, _chance: random.Random) -> Iterator[str]:
    stage.pair.cut()
    yield "the copy lags"
    forgotten = stage.pair.fail_over()
    stage.proxies["database"].aim(stage.postgres.port)
    stage.proxies["database"].reset()
    stage.replay({key for *_, key in forgotten.received if key})
    stage.pair.follow()


@_means("PostgreSQL killed")
def _kill_postgres(stage: Stage, _chance: random.Random) -> Iterator[str]:
    stage.postgres.kill()
    try:
        yield ""
    finally:
        stage.postgres.start()


@_means("PostgreSQL stopped")
def _stop_postgres(stage: Stage, _chance: random.Random) -> Iterator[str]:
    stage.postgres.stop()
    try:
        yield ""
    finally:
        stage.postgres.start()


@_means("RabbitMQ killed")
def _kill_rabbitmq(stage: Stage, _chance: random.Random) -> Iterator[str]:
    assert stage.rabbitmq is not None
    stage.rabbitmq.kill()
    try:
        yield ""
    finally:
        stage.rabbitmq.start()


@_means("RabbitMQ restarted")
def _restart_rabbitmq(stage: Stage, _chance: random.Random) -> Iterator[str]:
    assert stage.rabbitmq is not None
    stage.rabbitmq.stop()
    try:
        yield ""
    finally:
        stage.rabbitmq.start()


@_means("memory alarm")
def _raise_alarm(stage: Stage, _chance: random.Random) -> Iterator[str]:
    assert stage.rabbitmq is not None
    stage.rabbitmq.ctl("set_vm_memory_high_watermark", "0")
    try:
        yield ""
    finally:
        stage.rabbitmq.ctl("set_vm_memory_high_watermark", "0.4")


@_means("messages replayed")
def _replay(stage: Stage, _chance: random.Random) -> Iterator[str]:
    stage.operate("replay", f"--latest={REPLAYED}")
    yield ""


@_means("queue purged")
def _purge(stage: Stage, chance: random.Random) -> Iterator[str]:
    queue = chance.choice(QUEUES)
    stage.operate("pause", f"--queue={queue}")
    yield queue  # it fills
    dropped = stage.purge(queue)
    stage.operate("resume", f"--queue={queue}")
    stage.replay(dropped)


@_means("handlers moved")
def _move(stage: Stage, chance: random.Random) -> Iterator[str]:
    # Nothing tells two databases of each other, so nobody may be left who works in the one when the other's turn comes.
    with stage.keeper.without(stage.consumers), stage.database_is_well:
        if chance.random() < 0.5:
            for place in stage.consumers:
                place.ask_to_stop()
            _wait(lambda: not any(place.is_running for place in stage.consumers), LEAVING)
        for place in stage.consumers:
            place.kill()
            place.end()
        stage.end_sessions()
        moved_to = stage.move_handlers()
    yield moved_to


@_means("release deployed")
def _deploy(stage: Stage, _chance: random.Random) -> Iterator[str]:
    """One after the other, so that both releases run side by side for a while."""
    release = stage.change_release()
    first, *others = stage.consumers
    first.ask_to_stop()
    yield release
    for place in others:
        place.ask_to_stop()


def _wait(condition: Callable[[], bool], seconds: float) -> None:
    """Wait for a condition, but not longer."""
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.1)


def _signal(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
