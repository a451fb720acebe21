"""Results of tasks, as the rows tell them: those of the inbox first, for a message's own row in the outbox stays."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from messaging import conf
from messaging.db.clock import as_stored
from messaging.django_tasks.calls import Call, NotOurs, call_of
from messaging.django_tasks.framework import (
    TaskError,
    TaskResult,
    TaskResultDoesNotExist,
    TaskResultStatus,
)
from messaging.exceptions import HandlerNotFound, MessagingError, PayloadError, PublishError, WireError
from messaging.models import Attempt, ProcessedMessage, PublishedMessage, TaskValue
from messaging.wire.bodies import decode_body, storable
from messaging.wire.envelope import key_of, made_at

In = ProcessedMessage.State
Out = PublishedMessage.State
FAILED = (In.FAILED, In.DISCARDED, In.SUPERSEDED)
NOT_SENT = f"{PublishError.__module__}.{PublishError.__qualname__}"
GIVEN_UP = f"{MessagingError.__module__}.{MessagingError.__qualname__}"


def find(result_id: str, settings: conf.AliasSettings, databases: Sequence[str], queues: Sequence[str]) -> Any:
    """The result with this id.

    Args:
        result_id: the id of its message.
        settings: of the alias that it was published with.
        databases: where it may be, the most likely one first.
        queues: that tasks are sent to.

    Raises TaskResultDoesNotExist where there is none, or no longer.
    """
    own = {"alias": settings.alias, "queue__in": queues}
    try:
        key = key_of(result_id)
        for database in databases:
            received = ProcessedMessage.objects.using(database).filter(**own, key=key).first()
            if received is not None:
                return of_incoming(_newest(received), result_id)
        for database in databases:
            sent = (
                PublishedMessage.objects.using(database)
                .filter(**own, message_id=storable(result_id, 255), round=1)
                .first()
            )
            if sent is not None and not _is_forgotten(sent, settings):
                return _of_outgoing(sent)
    except (NotOurs, HandlerNotFound, PayloadError, WireError, UnicodeEncodeError) as error:
        raise TaskResultDoesNotExist(result_id) from error
    raise TaskResultDoesNotExist(result_id)


def of_incoming(row: ProcessedMessage, result_id: str) -> TaskResult[..., Any]:
    """The result of a task whose message was received, under the id that it was enqueued with.

    Raises NotOurs, HandlerNotFound, PayloadError and WireError for what is no task's.
    """
    payload = decode_body(row.raw_body, row.content_type)
    call = call_of(row.exchange, row.queue, row.routing_key, payload)
    status = status_of(row)
    may_have_failed = status != TaskResultStatus.SUCCESSFUL or row.attempts > 1 or row.round > 1
    attempts = list(row.failures()) if may_have_failed else []
    runs = [(attempt.worker, attempt.started_at) for attempt in attempts]
    if status in (TaskResultStatus.RUNNING, TaskResultStatus.SUCCESSFUL):
        runs.append((row.worker, row.began_at))
    errors = errors_of(attempts)
    if status == TaskResultStatus.FAILED and not errors:  # given up before it ran, or by the broker
        errors = [TaskError(exception_class_path=_path(row.exception_type or GIVEN_UP), traceback=row.error)]
    ended_at = row.processed_at if status == TaskResultStatus.SUCCESSFUL else row.failed_at or row.discarded_at
    result = _result(
        result_id,
        call,
        status,
        enqueued_at=call.enqueued_at or _made(row.message_id) or row.received_at,
        began=[began for _, began in runs if began is not None],
        ended_at=ended_at if status in (TaskResultStatus.SUCCESSFUL, TaskResultStatus.FAILED) else None,
        errors=errors,
        worker_ids=[worker for worker, _ in runs],
    )
    if status == TaskResultStatus.SUCCESSFUL:
        object.__setattr__(result, "_return_value", _returned(row))
    return result


def status_of(row: ProcessedMessage) -> TaskResultStatus:
    """What has become of a task: one that waits to be tried again is ready, as Django has it."""
    if row.state == In.PROCESSED:
        return TaskResultStatus.SUCCESSFUL
    if row.state in FAILED:
        return TaskResultStatus.FAILED
    runs = row.state == In.PROCESSING and row.lease_token is not None and row.started_at is not None
    return TaskResultStatus.RUNNING if runs else TaskResultStatus.READY


def errors_of(attempts: Iterable[Attempt]) -> list[TaskError]:
    """The errors of failed attempts, in their order."""
    return [
        TaskError(
            exception_class_path=_path(attempt.exception_type),
            traceback=attempt.traceback or attempt.exception_message,
        )
        for attempt in attempts
    ]


def _of_outgoing(row: PublishedMessage) -> TaskResult[..., Any]:
    """The result of a task whose message no consumer has recorded yet."""
    call = call_of(row.exchange, row.queue, row.routing_key, row.payload)
    is_over = row.state in (Out.FAILED, Out.DISCARDED)
    return _result(
        row.message_id,
        call,
        TaskResultStatus.FAILED if is_over else TaskResultStatus.READY,
        enqueued_at=call.enqueued_at or row.created_at,
        began=[],
        ended_at=row.discarded_at,
        errors=[TaskError(exception_class_path=NOT_SENT, traceback=row.error)] if is_over else [],
        worker_ids=[],
    )


def _result(
    result_id: str,
    call: Call,
    status: TaskResultStatus,
    *,
    enqueued_at: datetime | None,
    began: list[datetime],
    ended_at: datetime | None,
    errors: list[TaskError],
    worker_ids: list[str],
) -> TaskResult[..., Any]:
    began_first, began_last = (began[0], began[-1]) if began else (None, None)
    first, last, ended = _in_order(enqueued_at, began_first, began_last, ended_at)
    return TaskResult(
        task=call.task,
        id=result_id,
        status=status,
        enqueued_at=enqueued_at,
        started_at=first,
        last_attempted_at=last,
        finished_at=ended,
        args=call.args,
        kwargs=call.kwargs,
        backend=call.backend,
        errors=errors,
        worker_ids=worker_ids,
    )


def _in_order(begin: datetime | None, *moments: datetime | None) -> list[datetime | None]:
    """Moments that follow each other, as they do to people: some are by a host's clock, some are the database's."""
    told: list[datetime | None] = []
    for moment in moments:
        if moment is not None:
            begin = moment if begin is None else max(moment, begin)
        told.append(begin if moment is not None else None)
    return told


def _newest(row: ProcessedMessage) -> ProcessedMessage:
    """What an operator has made of a message by editing it, where that was done."""
    while row.state == In.SUPERSEDED:
        edited = ProcessedMessage.objects.using(row._state.db).filter(edited_from=row.pk).order_by("-pk").first()
        if edited is None:
            break
        row = edited
    return row


def _is_forgotten(row: PublishedMessage, settings: conf.AliasSettings) -> bool:
    """Whether a message was sent so long ago that what became of it may have been removed by retention."""
    days = settings.retention.processed
    if row.state != Out.PUBLISHED or row.published_at is None or days is None:
        return False
    return bool(row.published_at < as_stored(datetime.now(UTC) - timedelta(days=days)))


def _returned(row: ProcessedMessage) -> Any:
    values = TaskValue.objects.using(row._state.db).filter(alias=row.alias, queue=row.queue, key=row.key)
    text = values.values_list("value", flat=True).first()
    return None if text is None else json.loads(text)


def _path(exception_type: str) -> str:
    """The dotted path of a class, which rows have without its module where it is built in."""
    return exception_type if "." in exception_type else f"builtins.{exception_type}"


def _made(message_id: str) -> datetime | None:
    seconds = made_at(message_id)
    return None if seconds is None else as_stored(datetime.fromtimestamp(seconds, UTC))
