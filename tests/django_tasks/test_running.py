"""A task runs as any message does, and its result is what the rows say."""

from __future__ import annotations

import json
import logging
import uuid
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
from django.core.management import call_command
from django.db import connection
from django.utils import timezone
from pytest_django import Settings

from messaging import publish
from messaging.db.clock import Now
from messaging.exceptions import HandlerNotFound, PayloadError
from messaging.handlers import registry
from messaging.models import Attempt, ProcessedMessage, PublishedMessage, TaskValue
from messaging.operations import Operator, discard, requeue
from messaging.processing.processor import Processor
from messaging.testing import assert_published, drain
from tests.app.models import Effect
from tests.deliveries import Acks, Arrived, arrived
from tests.django_tasks import jobs
from tests.django_tasks.conftest import Use
from tests.django_tasks.test_behaviours import LOGGER, InvalidTask, default_task_backend, exceptions, framework
from tests.options import set_options

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("tasks")]

ADMIN = Operator(name="admin")
Told = list[tuple[str, str, str]]


@pytest.fixture
def told() -> Iterator[Told]:
    """What receivers of the three signals were told: the signal, the task's name and its status."""
    found: Told = []
    receivers: list[tuple[Any, Callable[..., None]]] = []
    for name in ("enqueued", "started", "finished"):

        def receive(task_result: Any, name: str = name, **_: Any) -> None:
            found.append((name, task_result.task.name, str(task_result.status)))

        signal = getattr(framework, f"task_{name}")
        signal.connect(receive)
        receivers.append((signal, receive))
    yield found
    for signal, receive in receivers:
        signal.disconnect(receive)


def run(task: Any, *args: Any, within: float = 0, **kwargs: Any) -> Any:
    """Enqueue a task, let that time pass, and return its result."""
    result = task.enqueue(*args, **kwargs)
    drain(within=within, raise_errors=False)
    result.refresh()
    return result


@pytest.mark.parametrize("task", [jobs.noop, jobs.anoop], ids=["sync", "async"])
def test_a_task_that_ran_is_successful(task: Any) -> None:
    result = run(task, 1, two=3)
    assert (result.status, result.return_value) == ("SUCCESSFUL", None)
    assert result.is_finished
    assert result.enqueued_at <= result.started_at <= result.last_attempted_at <= result.finished_at
    assert (result.task, result.args, result.kwargs) == (task, [1], {"two": 3})
    assert (result.attempts, result.worker_ids, result.errors) == (1, ["drain()"], [])
    assert not TaskValue.objects.exists()  # of what returns nothing nothing is kept


def test_a_task_is_an_ordinary_message() -> None:
    run(jobs.leave.using(queue_name="queue_1"), "key")
    [row] = assert_published("tests.django_tasks.jobs.leave", queue="tasks.queue_1", state="published")
    received = ProcessedMessage.objects.get()
    assert (received.message_id, received.queue) == (row.message_id, "tasks.queue_1")
    assert received.handler == "tests.django_tasks.jobs.leave"
    assert row.payload["args"] == ["key"]


@pytest.mark.parametrize("atomic", [True, False])
def test_what_a_task_returns_is_kept(use: Use, atomic: bool) -> None:
    use(atomic=atomic)
    assert run(jobs.meaning).return_value == 42
    assert run(jobs.ameaning, "key").return_value == {"meaning": [42, None, "\0 \U0001f600"]}
    assert Effect.objects.filter(key="key").count() == 1
    assert run(jobs.in_transaction).return_value == connection.in_atomic_block or not atomic


@pytest.mark.parametrize(
    ("task", "error", "text"),
    [
        (jobs.value_error, ValueError, "ValueError: This task failed: value\n"),
        (jobs.system_exit, SystemExit, "SystemExit: This task failed: exit\n"),
        (jobs.complex_exception, ValueError, "ValueError: This task failed\n"),
    ],
    ids=["value error", "system exit", "complex"],
)
def test_a_task_that_raises_has_failed(use: Use, task: Any, error: type, text: str) -> None:
    use(max_attempts=1)
    result = run(task)
    assert result.status == "FAILED"
    assert result.is_finished
    with pytest.raises(ValueError, match="Task failed"):
        _ = result.return_value
    assert result.enqueued_at <= result.started_at <= result.last_attempted_at <= result.finished_at
    assert [one.exception_class for one in result.errors] == [error]
    assert result.errors[0].traceback.endswith(text)
    assert (result.attempts, result.worker_ids) == (1, ["drain()"])


@pytest.mark.parametrize("atomic", [True, False])
def test_what_json_cannot_hold_is_no_return_value(use: Use, atomic: bool) -> None:
    use(max_attempts=1, atomic=atomic)
    result = run(jobs.complex_return)
    assert result.status == "FAILED"
    assert result.errors[0].exception_class is TypeError
    assert "Unsupported type" in result.errors[0].traceback


def test_a_task_is_tried_again_and_is_ready_meanwhile(use: Use, told: Told) -> None:
    use(max_attempts=3, backoff=60)
    result = run(jobs.succeed_at, 3)
    assert (result.status, result.attempts, len(result.errors), result.finished_at) == ("READY", 1, 1, None)
    assert result.last_attempted_at is not None
    drain(within=61, raise_errors=False)
    result.refresh()
    assert (result.status, result.attempts) == ("READY", 2)
    drain(within=61)
    result.refresh()
    assert result.return_value == {"errors": 2, "workers": 3}
    assert (result.status, result.attempts, len(result.errors)) == ("SUCCESSFUL", 3, 2)
    assert result.started_at <= result.last_attempted_at
    assert Effect.objects.get().value == "3"  # those of failed attempts are rolled back
    assert [name for name, *_ in told] == ["enqueued", "started", "started", "started", "finished"]
    assert told[-1] == ("finished", "succeed_at", "SUCCESSFUL")


def test_an_operator_has_a_failed_task_run_again(use: Use) -> None:
    use(max_attempts=1)
    result = run(jobs.succeed_at, 2)
    assert result.status == "FAILED"
    requeue(ProcessedMessage.objects.all(), ADMIN)
    result.refresh()
    assert result.status == "READY"
    drain()
    result.refresh()
    assert (result.status, result.attempts, len(result.errors)) == ("SUCCESSFUL", 2, 1)


def test_a_discarded_task_has_failed(use: Use) -> None:
    use(max_attempts=5, backoff=60)
    result = run(jobs.value_error)
    discard(ProcessedMessage.objects.all(), ADMIN)
    result.refresh()
    assert (result.status, len(result.errors)) == ("FAILED", 1)
    assert result.finished_at is not None


def test_what_could_not_be_sent_has_failed() -> None:
    result = jobs.noop.enqueue()
    PublishedMessage.objects.update(state="failed", error="No queue took it.")
    result.refresh()
    assert result.status == "FAILED"
    assert result.errors[0].traceback == "No queue took it."
    assert issubclass(result.errors[0].exception_class, Exception)


def test_a_task_that_runs_says_so() -> None:
    result = jobs.noop.enqueue()
    key = uuid.uuid4()
    row = PublishedMessage.objects.get()
    claim = ProcessedMessage.objects.create(
        state="processing",
        queue=row.queue,
        message_id=row.message_id,
        key=_key_of(row.message_id),
        digest=key,
        routing_key=row.routing_key,
        body=row.body,
        content_type=row.content_type,
        worker="one",
        lease_token=key,
        leased_until=Now() + timedelta(seconds=15),
    )
    result.refresh()
    assert (result.status, result.worker_ids) == ("READY", [])
    ProcessedMessage.objects.filter(pk=claim.pk).update(started_at=Now())
    result.refresh()
    assert (result.status, result.worker_ids) == ("RUNNING", ["one"])
    assert result.started_at is not None


def _key_of(message_id: str) -> uuid.UUID:
    from messaging.wire.envelope import key_of

    return key_of(message_id)


def test_a_task_runs_once_and_its_effects_are_rolled_back_with_it(use: Use) -> None:
    use(max_attempts=1)
    assert run(jobs.leave_and_fail, "key").status == "FAILED"
    assert not Effect.objects.exists()


def test_a_task_is_told_of_itself() -> None:
    result = run(jobs.own_id)
    assert result.return_value == result.id
    assert run(jobs.check_context, 1).status == "SUCCESSFUL"


def test_receivers_are_told_of_a_success(told: Told, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, logger=LOGGER):
        result = run(jobs.meaning)
    assert told == [("enqueued", "meaning", "READY"), ("started", "meaning", "RUNNING"),
                    ("finished", "meaning", "SUCCESSFUL")]  # fmt: skip
    lines = [record.getMessage() for record in caplog.records if record.name.startswith(LOGGER)]
    assert all(result.id in line for line in lines)
    assert "state=RUNNING" in lines[1]
    assert "state=SUCCESSFUL" in lines[2]
    assert "NoneType" not in caplog.text


def test_receivers_are_told_of_a_failure_after_the_last_attempt(
    use: Use, told: Told, caplog: pytest.LogCaptureFixture
) -> None:
    use(max_attempts=2, backoff=1)
    with caplog.at_level(logging.DEBUG, logger=LOGGER):
        run(jobs.value_error, within=5)
    assert [(name, status) for name, _, status in told] == [
        ("enqueued", "READY"), ("started", "RUNNING"), ("started", "RUNNING"), ("finished", "FAILED"),
    ]  # fmt: skip
    [error] = [record for record in caplog.records if record.name.startswith(LOGGER) and record.levelno > logging.INFO]
    assert "state=FAILED" in error.getMessage()
    assert error.exc_info is not None
    assert error.exc_info[0] is ValueError


@pytest.mark.parametrize("name", ["started", "finished"])
def test_a_receiver_that_raises_changes_nothing(name: str) -> None:
    def receive(**_: Any) -> None:
        raise ValueError("a receiver")

    signal = getattr(framework, f"task_{name}")
    signal.connect(receive)
    try:
        assert run(jobs.meaning).return_value == 42
    finally:
        signal.disconnect(receive)


def test_options_are_the_handlers(use: Use) -> None:
    use(prefix="jobs/", timeout=30, max_attempts=2, backoff=7.0, batch=5)
    assert registry.queues("default") == ["jobs/default", "jobs/queue_1"]
    [one, _] = registry.all()
    assert (one.timeout, one.max_attempts, one.backoff, one.batch) == (30, 2, 7.0, 5)
    assert jobs.noop.get_backend().options["prefix"] == "jobs/"


def test_run_after_is_when_it_is_sent() -> None:
    at = timezone.now() + timedelta(hours=2)
    result = jobs.meaning.using(run_after=at).enqueue()
    drain(within=7000)
    result.refresh()
    assert (result.status, result.task.run_after) == ("READY", at)
    drain(within=300)
    result.refresh()
    assert result.return_value == 42
    assert result.task == jobs.meaning.using(run_after=at)


def test_priorities_are_refused_where_queues_have_none(use: Use) -> None:
    with pytest.raises(InvalidTask, match=r"queue .tasks\.default. has none"):
        jobs.noop.using(priority=1)
    jobs.noop.enqueue()
    assert PublishedMessage.objects.get().priority is None


def test_a_priority_is_one_of_the_queues(settings: Settings, use: Use) -> None:
    classic = {"type": "classic", "arguments": {"x-max-priority": 10}}
    set_options(settings, QUEUES={"tasks.default": classic})
    assert jobs.noop.get_backend().supports_priority
    for priority in (-100, -50, 0, 1, 20, 100):
        jobs.noop.using(priority=priority).enqueue()
    assert [row.priority for row in PublishedMessage.objects.order_by("pk")] == [0, 2, 5, 5, 6, 10]
    with pytest.raises(InvalidTask, match=r"tasks\.queue_1"):
        jobs.noop.using(priority=1, queue_name="queue_1")
    use(max_priority=200)
    for priority in range(-100, 101):
        jobs.noop.using(priority=priority).enqueue()
    assert [row.priority for row in PublishedMessage.objects.order_by("pk")][6:] == list(range(201))


def test_a_batch_of_tasks_has_one_transaction_unless_one_fails(use: Use) -> None:
    use(batch=10, max_attempts=1)
    results = [jobs.leave.enqueue("key", str(number)) for number in range(3)]
    results.append(jobs.leave_and_fail.enqueue("no"))
    results += [jobs.meaning.enqueue() for _ in range(2)]
    drain(raise_errors=False)
    for result in results:
        result.refresh()
    assert [str(result.status) for result in results] == [*["SUCCESSFUL"] * 3, "FAILED", *["SUCCESSFUL"] * 2]
    assert [result.return_value for result in results[4:]] == [42, 42]
    assert Effect.objects.count() == 3


def test_a_task_enqueues_another_one() -> None:
    result = run(jobs.enqueue_another, "key")
    other = default_task_backend.get_result(result.return_value)
    assert (other.task, other.status) == (jobs.leave, "SUCCESSFUL")
    assert PublishedMessage.objects.get(message_id=other.id).causation_id == result.id


@pytest.mark.django_db(transaction=True)
def test_a_rerun_without_a_transaction_enqueues_the_same(use: Use) -> None:
    use(atomic=False, backoff=0, max_attempts=3)
    result = jobs.enqueue_another.enqueue("key")
    drain()
    result.refresh()
    first = result.return_value
    ProcessedMessage.objects.filter(message_id=result.id).update(state="failed")  # as if it had died before its record
    requeue(ProcessedMessage.objects.filter(message_id=result.id), ADMIN)
    drain()
    result.refresh()
    assert result.return_value == first
    assert Effect.objects.count() == 1
    assert TaskValue.objects.count() == 1


@pytest.mark.django_db(transaction=True)
def test_a_rerun_that_returns_nothing_leaves_no_value(use: Use) -> None:
    use(atomic=False)
    result = run(jobs.value_at_first)
    assert result.return_value == "first"
    rows = ProcessedMessage.objects.all()
    Attempt.objects.create(message=rows.get(), number=1, round=1, started_at=Now(), exception_type="ValueError")
    rows.update(state="failed")  # as if it had died before its record
    requeue(rows, ADMIN)
    drain()
    result.refresh()
    assert (result.status, result.return_value) == ("SUCCESSFUL", None)


def test_what_was_enqueued_runs_whatever_is_allowed_by_now(use: Use) -> None:
    use(max_priority=10)
    result = jobs.meaning.using(priority=50).enqueue()
    use()
    drain()
    result.refresh()
    assert (result.status, result.return_value) == ("SUCCESSFUL", 42)
    assert jobs.meaning.get_result(result.id).task.priority == 50


# What a message may ask for


def forged(path: str, *, exchange: str = "", queue: str = "tasks.default", **content: Any) -> Arrived:
    payload = {
        "args": [],
        "kwargs": {},
        "backend": "default",
        "queue_name": "default",
        "priority": 0,
        "run_after": None,
    }
    delivery = arrived({**payload, **content}, queue=queue, routing_key=path)
    delivery.exchange = exchange
    return delivery


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("way", ["exchange", "header", "queue"])
def test_a_stranger_has_nothing_run_or_imported(tasks: None, way: str) -> None:
    path = "tests.django_tasks.jobs.leave"
    if way == "exchange":
        delivery = forged(path, exchange="messaging", args=["key"])
    elif way == "header":
        delivery = arrived(json.loads(json.dumps({"args": ["key"], "kwargs": {}})), queue="tasks.default",
                           routing_key="tasks.default", headers={"x-messaging-routing-key": path})  # fmt: skip
        delivery.exchange = ""
    else:
        delivery = forged("tasks.default", args=["key"])
    processor = Processor("default", "worker")
    assert processor.process(delivery, Acks()).action == "ack"
    row = ProcessedMessage.objects.get()
    assert (row.state, row.attempts) == ("failed", 1)
    assert "does not come from this site's outbox" in row.error
    assert not Effect.objects.exists()
    with pytest.raises(exceptions.TaskResultDoesNotExist):
        default_task_backend.get_result(row.message_id)


@pytest.mark.parametrize(
    "path", ["subprocess.run", "tests.django_tasks.jobs.no_task", "tests.django_tasks.jobs.gone", "no.such.module", "x"]
)
def test_only_tasks_are_called(use: Use, path: str) -> None:
    use(max_attempts=2, backoff=1)
    content = {"args": [], "kwargs": {}, "backend": "default", "queue_name": "default", "priority": 0}
    publish(path, {**content, "run_after": None}, queue="tasks.default")
    drained = drain(raise_errors=False, within=5)
    [row] = drained.failed
    assert row.attempts == 2  # another release may know it
    assert all(isinstance(error, HandlerNotFound) for error in drained.errors)
    assert not Effect.objects.exists()
    with pytest.raises(exceptions.TaskResultDoesNotExist):
        default_task_backend.get_result(row.message_id)


@pytest.mark.parametrize("payload", ["text", 7, None, [], {}, {"args": []}, b"\xff", {"args": 1, "kwargs": 2}])
def test_what_is_no_call_fails_at_once_in_words(payload: Any) -> None:
    if isinstance(payload, dict) and "kwargs" in payload:
        payload |= {"backend": "default", "queue_name": "default", "priority": 0, "run_after": None}
    publish("tests.django_tasks.jobs.noop", payload, queue="tasks.default")
    drained = drain(raise_errors=False)
    assert [row.attempts for row in drained.failed] == [1]
    assert all(isinstance(error, PayloadError) for error in drained.errors)


# Retention


def test_a_value_goes_with_its_message() -> None:
    kept, gone = jobs.meaning.enqueue(), jobs.meaning.enqueue()
    drain()
    old = Now() - timedelta(days=31)
    TaskValue.objects.update(created_at=old)
    for rows in (ProcessedMessage.objects, PublishedMessage.objects):
        rows.filter(message_id=gone.id).update(created_at=old)
    ProcessedMessage.objects.filter(message_id=gone.id).update(received_at=old, processed_at=old)
    PublishedMessage.objects.filter(message_id=gone.id).update(published_at=old)
    call_command("prune_messages", verbosity=0)
    assert TaskValue.objects.count() == 1
    assert jobs.meaning.get_result(kept.id).return_value == 42
    with pytest.raises(exceptions.TaskResultDoesNotExist):
        jobs.meaning.get_result(gone.id)


def test_what_became_of_a_task_long_ago_may_be_forgotten(settings: Settings) -> None:
    set_options(settings, RETENTION={"published": None})
    result = run(jobs.meaning)
    ProcessedMessage.objects.all().delete()
    PublishedMessage.objects.update(published_at=Now() - timedelta(days=31))
    with pytest.raises(exceptions.TaskResultDoesNotExist):
        result.refresh()  # not "READY", which it once was


def test_without_failures_two_rows_are_read(django_assert_num_queries: Any) -> None:
    result = run(jobs.meaning)
    assert not Attempt.objects.exists()
    with django_assert_num_queries(2):
        result.refresh()
