"""Running tasks: the handler of each queue of tasks, and whom it tells."""

from __future__ import annotations

import json
import uuid
from dataclasses import dataclass, replace
from functools import cache, cached_property, partial
from typing import TYPE_CHECKING, Any

from django.db import connections, transaction
from django.utils import timezone

from messaging.django_tasks import calls, results
from messaging.django_tasks.calls import Call, NotOurs, call_of
from messaging.django_tasks.framework import (
    TaskContext,
    TaskResult,
    TaskResultStatus,
    normalize_json,
    task_finished,
    task_started,
)
from messaging.exceptions import HandlerNotFound, PayloadError, WireError
from messaging.handlers import Handler
from messaging.message import HandlerContext, ReceivedMessage, handler_context
from messaging.models import Attempt, ProcessedMessage, TaskValue

if TYPE_CHECKING:
    from messaging.django_tasks import MessagingBackend

IDENTITY = ("alias", "queue", "key")


@dataclass(frozen=True)
class TaskHandler(Handler):
    """The handler of a queue of tasks; `task` is the path of the one that it runs, "" for any."""

    task: str = ""

    @cached_property
    def name(self) -> str:
        """The task's path, by which operators know it."""
        return self.task or super().name

    def for_key(self, routing_key: str) -> Handler:
        """The same under the name of its task, once this process knows that there is one."""
        return _named(self, routing_key) if routing_key in calls.known else self


@cache
def _named(handler: TaskHandler, path: str) -> TaskHandler:
    return replace(handler, task=path)


def handlers_of(backend: MessagingBackend) -> list[Handler]:
    """The handlers of a backend: one for each of its queues."""
    given = backend.handler_options
    function = _runner(given["using"], type(backend))
    return [TaskHandler(function, queue, (), **given) for queue in backend.broker_queues]


@cache
def _runner(using: str, sender: type[MessagingBackend]) -> Any:
    return partial(run, using, sender)


def run(using: str, sender: type[MessagingBackend], given: ReceivedMessage | list[ReceivedMessage]) -> None:
    """Run the tasks of messages, in the order in which they come.

    Args:
        using: alias of `MESSAGING`.
        sender: whose signals tell of it; Django makes a backend anew in each context that asks a task for its own.
        given: one message, or those of a batch.
    """
    context = handler_context.get()
    assert context is not None
    for message in given if isinstance(given, list) else [given]:
        _run(using, sender, message, context)


def _run(using: str, sender: type[MessagingBackend], message: ReceivedMessage, context: HandlerContext) -> None:
    call = call_of(message.exchange, message.queue, message.routing_key, message.payload)
    result = _begun(using, message, call, context)
    if context.rehearsed is None:  # which nobody is to notice
        task_started.send_robust(sender, task_result=result)
    args = (TaskContext(task_result=result), *result.args) if call.task.takes_context else result.args
    value = normalize_json(call.task.call(*args, **result.kwargs))
    if value is not None or message.attempt > 1 or message.round > 1:  # an earlier run may have returned something
        _keep(using, message, value, context.database)
    tell = partial(_tell_success, sender, result, value)
    if context.atomic:
        transaction.on_commit(tell, using=context.database)
    else:
        tell()


def _begun(using: str, message: ReceivedMessage, call: Call, context: HandlerContext) -> TaskResult[..., Any]:
    """What the task is told of itself, and receivers of it."""
    attempts: list[Attempt] = []
    if message.attempt > 1 or message.round > 1:
        rows = ProcessedMessage.objects.using(context.database)
        row = rows.filter(alias=using, queue=message.queue, key=_key_of(message)).first()
        attempts = [] if row is None else list(row.failures())
    now = timezone.now()
    began = [attempt.started_at for attempt in attempts if attempt.started_at is not None]
    return TaskResult(
        task=call.task,
        id=message.id,
        status=TaskResultStatus.RUNNING,
        enqueued_at=call.enqueued_at,
        started_at=began[0] if began else now,
        last_attempted_at=now,
        finished_at=None,
        args=call.args,
        kwargs=call.kwargs,
        backend=call.backend,
        errors=results.errors_of(attempts),
        worker_ids=[*(attempt.worker for attempt in attempts), context.worker],
    )


def _keep(using: str, message: ReceivedMessage, value: Any, database: str) -> None:
    """Store what a task returned, beside the record that it ran; a rerun without a transaction stores it anew."""
    if value is None:
        own = {"alias": using, "queue": message.queue, "key": _key_of(message)}
        TaskValue.objects.using(database).filter(**own).delete()
        return
    row = TaskValue(alias=using, queue=message.queue, key=_key_of(message), value=json.dumps(value))
    takes_target = connections[database].features.supports_update_conflicts_with_target
    TaskValue.objects.using(database).bulk_create(
        [row],
        update_conflicts=True,
        update_fields=["value"],
        unique_fields=IDENTITY if takes_target else None,
    )


def _key_of(message: ReceivedMessage) -> uuid.UUID:
    key = message.envelope.key
    assert key is not None  # what is ours has an id
    return key


def _tell_success(sender: type, result: TaskResult[..., Any], value: Any) -> None:
    """Tell that a task has succeeded; receivers change nothing about that."""
    now = {"status": TaskResultStatus.SUCCESSFUL, "finished_at": timezone.now(), "_return_value": value}
    for name, one in now.items():
        object.__setattr__(result, name, one)  # as Django does it: results are read-only to all others
    task_finished.send_robust(sender, task_result=result)


def tell_failure(row: ProcessedMessage, **_details: Any) -> None:
    """Receiver of `message_failed`: tell that a task has failed and will not be tried again by itself."""
    try:
        result = results.of_incoming(row, row.message_id)
    except (NotOurs, HandlerNotFound, PayloadError, WireError):
        return  # no task of this site's
    task_finished.send_robust(type(result.task.get_backend()), task_result=result)
