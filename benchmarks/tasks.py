"""Django's tasks on PostgreSQL: on our backend with RabbitMQ, and on django-tasks-db, whose queue is its table.

All are enqueued before; from the first effect to the last, which is with us from the outbox by way of the broker.
"""

from __future__ import annotations

from benchmarks import peers, timing
from benchmarks.environments import python_of
from benchmarks.measuring import Sample, measurement
from benchmarks.stage import Stage, manage

_QUEUES = {"default": "tasks.default", "many": "tasks.many.default"}  # by alias of the site's `TASKS`
_PEERS_LEDGER = "SELECT count(*) FROM django_tasks_database_dbtaskresult WHERE status = 'SUCCESSFUL'"


@measurement("tasks", "MessagingBackend, consume --processes=2 --concurrency=2", full=8_000, quick=1_000)
def tasks(stage: Stage, count: int) -> Sample:
    """One transaction for each task."""
    return _ours(stage, "default", count, "--processes=2", "--concurrency=2")


@measurement("tasks", 'MessagingBackend, {"batch": 500}, one worker', full=12_000, quick=2_000)
def tasks_batch(stage: Stage, count: int) -> Sample:
    """One transaction for as many as there are, up to 500."""
    return _ours(stage, "many", count, "--concurrency=1")


@measurement("tasks", "django-tasks-db, db_worker", full=1_500, quick=300)
def tasks_peer(stage: Stage, count: int) -> Sample:
    """The queue's row becomes the record."""
    python = str(python_of("embedded"))
    env = peers.environment("django_tasks", BENCH_DATABASE=peers.database_of(stage))
    if not stage.prepared("django_tasks"):
        stage.run([python, "-m", "django", "migrate", "--verbosity=0"], env)
    stage.clear()
    stage.run([python, "-m", "benchmarks.peer_sites.with_django_tasks.tasks", str(count - 1)], env)
    worker = [python, "-m", "django", "db_worker", "--no-startup-delay", "--interval=0.05"]
    return timing.effects_of(stage, worker, count, ledger=_PEERS_LEDGER, env=env)


def _ours(stage: Stage, alias: str, count: int, *shares: str) -> Sample:
    env, queue = stage.environment(BENCH_TASKS="1"), _QUEUES[alias]
    stage.clear()
    for name in (queue, f"{queue}.dead"):
        stage.broker.queue_delete(name)
    stage.job("benchmarks.site.enqueuing", count, alias, env=env)
    return timing.effects_of(stage, [*manage(), "consume", queue, *shares], count, ledger=timing.LEDGER, env=env)
