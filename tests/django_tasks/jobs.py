"""Tasks to be enqueued by tests. Whatever `TASKS` says when this is imported, each test has its own backends."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

import django
from django.db import transaction

from tests.app.models import Effect

if TYPE_CHECKING or django.VERSION >= (6, 0):
    from django.tasks import TaskContext, task
else:
    from django_tasks import TaskContext, task


@task()
def noop(*args: Any, **kwargs: Any) -> None:
    """Nothing."""


@task
def bare(*args: Any, **kwargs: Any) -> None:
    """Nothing."""


@task()
async def anoop(*args: Any, **kwargs: Any) -> None:
    """Nothing."""


@task()
def meaning() -> int:
    return 42


@task()
async def ameaning(key: str) -> dict[str, Any]:
    await Effect.objects.acreate(key=key)
    return {"meaning": [42, None, "\0 \U0001f600"]}


@task()
def value_error() -> None:
    raise ValueError("This task failed: value")


@task()
def system_exit() -> None:
    raise SystemExit("This task failed: exit")


@task()
def complex_exception() -> None:
    raise ValueError(ValueError("This task failed"))


@task()
def complex_return() -> Any:
    return datetime(2026, 1, 1)  # noqa: DTZ001


@task(takes_context=True)
def own_id(context: TaskContext[Any, Any]) -> str:
    return context.task_result.id


@task(takes_context=True)
def check_context(context: TaskContext[Any, Any], attempt: int) -> None:
    assert isinstance(context, TaskContext)
    assert context.attempt == attempt


@task()
def leave(key: str, value: str = "") -> None:
    Effect.objects.create(key=key, value=value)


@task()
def leave_and_fail(key: str) -> None:
    Effect.objects.create(key=key)
    raise ValueError("after the effect")


@task(takes_context=True)
def succeed_at(context: TaskContext[Any, Any], attempt: int) -> dict[str, Any]:
    """Fails until this attempt."""
    Effect.objects.create(key="attempt", value=str(context.attempt))
    if context.attempt < attempt:
        raise ValueError(f"attempt {context.attempt}")
    return {"errors": len(context.task_result.errors), "workers": len(context.task_result.worker_ids)}


@task()
def enqueue_another(key: str) -> str:
    return str(leave.enqueue(key).id)


@task()
def in_transaction() -> bool:
    return transaction.get_connection().in_atomic_block


def no_task() -> None:
    Effect.objects.create(key="called all the same")


@task(takes_context=True)
def value_at_first(context: TaskContext[Any, Any]) -> str | None:
    """Returns something in its first run alone."""
    return "first" if context.attempt == 1 else None
