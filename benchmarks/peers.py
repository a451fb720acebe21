"""The peers, each in an environment and a process of its own, set up for the same guarantees as far as they go."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, replace

from benchmarks import timing
from benchmarks.environments import python_of
from benchmarks.measuring import Sample, measurement
from benchmarks.stage import Stage
from tools.environment import ROOT

Action = Callable[[Stage, "Peer", int], Sample]


@dataclass(frozen=True)
class Peer:
    """A peer on RabbitMQ and PostgreSQL.

    Attributes:
        name: of its environment, and of its package in `peer_sites`.
        worker: the arguments of its Python that start one process.
        queue: that it takes from.
        ledger: counts what its own records call done.
    """

    name: str
    worker: tuple[str, ...]
    queue: str
    ledger: str

    def command(self, *arguments: str) -> list[str]:
        """A command for its Python."""
        return [str(python_of(self.name)), *arguments]

    def environment(self, stage: Stage) -> dict[str, str]:
        """Of its processes."""
        return environment(self.name, BENCH_DATABASE=database_of(stage), BENCH_BROKER=stage.rabbitmq.url)


_CELERY = ("-m", "celery", "-A", "benchmarks.peer_sites.with_celery.tasks", "worker", "--loglevel=WARNING")
CELERY = Peer(
    "celery",
    (*_CELERY, "--concurrency=1"),
    "bench_celery",
    "SELECT count(*) FROM django_celery_results_taskresult WHERE status = 'SUCCESS'",
)
CELERY_THREADS = replace(CELERY, worker=(*_CELERY, "--pool=threads", "--concurrency=4"))
_DRAMATIQ = ("-m", "dramatiq", "django_dramatiq.setup", "benchmarks.peer_sites.with_dramatiq.tasks", "--processes=1")
DRAMATIQ = Peer(
    "dramatiq",
    (*_DRAMATIQ, "--threads=1"),
    "bench_dramatiq",
    "SELECT count(*) FROM django_dramatiq_task WHERE status = 'done'",
)
DRAMATIQ_THREADS = replace(DRAMATIQ, worker=(*_DRAMATIQ, "--threads=8"))


def environment(name: str, **more: str) -> dict[str, str]:
    """Of a peer's processes, wherever they run."""
    package = f"benchmarks.peer_sites.with_{name}"
    return {
        **os.environ,
        "DJANGO_SETTINGS_MODULE": f"{package}.settings",
        "PYTHONPATH": str(ROOT),
        "PYTHONUNBUFFERED": "1",
        "dramatiq_queue_prefetch": "50",  # as our queues have it
        **more,
    }


def database_of(stage: Stage) -> str:
    """The stage's PostgreSQL as an entry of Django's `DATABASES`, in JSON."""
    address = {"NAME": "bench", "USER": "postgres", "HOST": "127.0.0.1", "PORT": str(stage.postgresql.port)}
    return json.dumps({"ENGINE": "django.db.backends.postgresql", **address})


def publish(stage: Stage, peer: Peer, count: int) -> Sample:
    """One after another, each confirmed."""
    _clear(stage, peer)
    seconds = _send(stage, peer, count)["seconds"]
    stage.expect_depth(peer.queue, count + 1)
    return Sample(count, seconds)


def consume(stage: Stage, peer: Peer, count: int) -> Sample:
    """What its queue holds, one by one."""
    _clear(stage, peer)
    _send(stage, peer, count - 1)
    return timing.effects_of(stage, peer.command(*peer.worker), count, ledger=peer.ledger, env=peer.environment(stage))


def end_to_end(stage: Stage, peer: Peer, count: int) -> Sample:
    """One process publishes while one consumes."""
    _clear(stage, peer)
    env = peer.environment(stage)

    def effects() -> int:
        return int(stage.value("SELECT count(*) FROM bench_effect"))

    with stage.running(peer.command(*peer.worker), env) as worker:
        _send(stage, peer, 0)
        stage.wait(1, effects, worker)
        began = _send(stage, peer, count)["began"]
        stage.wait(count + 2, lambda: int(stage.value(peer.ledger)), worker)
    return timing.from_start(stage, count + 2, began, untimed=2)


def _send(stage: Stage, peer: Peer, count: int) -> dict[str, float]:
    """Publish one message, then as many as are timed."""
    command = peer.command("-m", f"benchmarks.peer_sites.with_{peer.name}.tasks", str(count))
    found: dict[str, float] = json.loads(stage.run(command, peer.environment(stage)).splitlines()[-1])
    return found


def _clear(stage: Stage, peer: Peer) -> None:
    if not stage.prepared(peer.name):
        stage.run(peer.command("-m", "django", "migrate", "--verbosity=0"), peer.environment(stage))
    stage.clear()
    stage.broker.queue_delete(peer.queue)


def _add(peer: Peer, action: Action, name: str, group: str, title: str, sizes: tuple[int, int]) -> None:
    @measurement(group, title, full=sizes[0], quick=sizes[1], name=name)
    def run(stage: Stage, count: int) -> Sample:
        return action(stage, peer, count)


_add(CELERY, publish, "celery_publish", "publish", "Celery, delay()", (1_500, 400))
_add(CELERY, consume, "celery_consume", "consume", "Celery, one worker", (1_500, 300))
_add(CELERY_THREADS, consume, "celery_threads", "consume", "Celery, 4 threads", (1_500, 0))
_add(CELERY, end_to_end, "celery_end_to_end", "end to end", "Celery, one worker", (1_500, 300))
_add(DRAMATIQ, publish, "dramatiq_publish", "publish", "Dramatiq, send()", (1_500, 400))
_add(DRAMATIQ, consume, "dramatiq_consume", "consume", "Dramatiq, one worker", (1_500, 400))
_add(DRAMATIQ_THREADS, consume, "dramatiq_threads", "consume", "Dramatiq, 8 threads", (1_500, 0))
