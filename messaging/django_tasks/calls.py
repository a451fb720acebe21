"""What a message says of a task that is to be run: which one, and with what.

The routing key is the task's path, such as "shop.tasks.send_mail"; the body has its arguments.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any

from django.utils.module_loading import import_string

from messaging.django_tasks.framework import Task, TaskResult
from messaging.exceptions import HandlerNotFound, PayloadError, Reject

NOT_OURS = (
    "This message does not come from this site's outbox, so it cannot say which task to run. Enqueue tasks with "
    "enqueue(), and give all processes of the site the same SECRET_KEY."
)

known: set[str] = set()  # paths of the tasks that this process has seen


class NotOurs(Reject):
    """A message in a queue of tasks that nobody but a stranger can have sent."""

    def __init__(self) -> None:
        super().__init__(NOT_OURS)


@dataclass(frozen=True, slots=True)
class Call:
    """One task that is to be run, or was.

    Attributes:
        task: with the priority, queue, time and backend that it was enqueued with.
        args, kwargs: what it is given.
        backend: alias of `TASKS`.
        enqueued_at: when, by the clock of who did it; None where the message does not say.
    """

    task: Task[..., Any]
    args: list[Any]
    kwargs: dict[str, Any]
    backend: str
    enqueued_at: datetime | None


def content_of(result: TaskResult[..., Any], *, with_time: bool) -> dict[str, Any]:
    """The payload of the message that has a task run.

    Args:
        result: what enqueueing it returns.
        with_time: whether it says when that was; not where a rerun has to say the same.
    """
    task = result.task
    content = {
        "args": result.args,
        "kwargs": result.kwargs,
        "backend": result.backend,
        "queue_name": task.queue_name,
        "priority": task.priority,
        "run_after": _text(task.run_after),
    }
    return content | {"enqueued_at": _text(result.enqueued_at)} if with_time else content


def call_of(exchange: str, queue: str, routing_key: str, content: Any) -> Call:
    """What a message asks for.

    Nothing is imported because a stranger says so. Whose routing key is another than the queue that it was sent to,
    past all exchanges, was recognised as this site's own when it arrived.

    Args:
        exchange: of the message.
        queue: that it came from.
        routing_key: of the message.
        content: its payload.

    Raises NotOurs, PayloadError for what is no call, and HandlerNotFound where there is no such task here.
    """
    if exchange or routing_key == queue:
        raise NotOurs
    task = find(routing_key)
    try:
        args, kwargs, backend = content["args"], content["kwargs"], content["backend"]
        priority, queue_name = content["priority"], content["queue_name"]
        run_after, enqueued_at = _moment(content["run_after"]), _moment(content.get("enqueued_at"))
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise PayloadError(f"The payload does not say how to call a task: {error!r}.") from error
    if not isinstance(args, list) or not isinstance(kwargs, dict):
        raise PayloadError('The payload does not say how to call a task: "args" is a list, and "kwargs" an object.')
    own = {"priority": priority, "queue_name": queue_name, "run_after": run_after, "backend": backend}
    return Call(_with(task, own), args, kwargs, backend, enqueued_at)


def find(path: str) -> Task[..., Any]:
    """The task with this path. Raises HandlerNotFound: a newer release may know it, so it is tried again."""
    try:
        found = import_string(path)
    except ImportError as error:
        raise HandlerNotFound(f'There is no task "{path}" here: {error}') from error
    if not isinstance(found, Task):
        raise HandlerNotFound(f'"{path}" is no task: it is not decorated with @task.')
    known.add(path)
    return found


def _with(task: Task[..., Any], values: dict[str, Any]) -> Task[..., Any]:
    """The task with other values. They were valid when it was enqueued, whatever the settings say by now."""
    found = object.__new__(type(task))
    for one in fields(task):
        object.__setattr__(found, one.name, values.get(one.name, getattr(task, one.name)))
    return found


def _text(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat()


def _moment(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)
