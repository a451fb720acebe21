"""`drain()`: relay and handlers without a broker, inside a test's transaction and without one."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.db import IntegrityError, OperationalError, connection, transaction
from django.test import TestCase, TransactionTestCase, override_settings
from django.utils import timezone

from messaging import Message, Reject, Retry, apublish, handler, publish, publish_many
from messaging.exceptions import CommitNotProven, DatabaseUnavailable, HandlerNotFound, IdReused, MessagingError
from messaging.handlers import registry
from messaging.message import ReceivedMessage
from messaging.models import Attempt, ProcessedMessage, PublishedMessage
from messaging.operations import Operator, requeue
from messaging.testing import assert_published, drain, published
from tests.app.models import Effect

Handle = Callable[..., Any]


@pytest.fixture(autouse=True)
def handle(monkeypatch: pytest.MonkeyPatch) -> Handle:
    """Registers a function as the handler of the queue `work`; no other handlers are known."""
    monkeypatch.setattr(registry, "_handlers", {})

    def register(function: Callable[..., Any], *keys: str, queue: str = "work", **options: Any) -> Callable[..., Any]:
        return handler(queue, *(keys or ("work.#",)), **options)(function)

    return register


@pytest.fixture(
    params=[
        pytest.param("inside", marks=pytest.mark.django_db),
        pytest.param("without", marks=pytest.mark.django_db(transaction=True)),
    ]
)
def either(request: pytest.FixtureRequest) -> str:
    """Inside a transaction of the test's, as in `TestCase`, and without one, as in `TransactionTestCase`."""
    assert connection.in_atomic_block == (request.param == "inside")
    return str(request.param)


@pytest.fixture
def inside(db: None) -> None:
    """Inside a transaction of the test's alone."""


def effect(message: ReceivedMessage) -> None:
    Effect.objects.create(key=message.routing_key, value=str(message.payload))


def effects() -> list[str]:
    return list(Effect.objects.order_by("pk").values_list("value", flat=True))


def fail(message: ReceivedMessage) -> None:
    Effect.objects.create(key="lost")
    publish("never.sent", 1)
    raise ValueError(f"attempt {message.attempt}")


# Routing


def test_a_message_is_sent_and_processed(either: str, handle: Handle) -> None:
    handle(effect)
    row = publish("work.do", {"order": 17}, headers={"tenant": "a"})
    drained = drain()
    assert effects() == ["{'order': 17}"]
    (incoming,) = drained.processed
    assert (incoming.state, incoming.attempts, incoming.message_id) == ("processed", 1, row.message_id)
    assert incoming.headers == {"tenant": "a"}
    row.refresh_from_db()
    assert (row.state, row.due_at) == ("published", None)
    assert row.published_at is not None
    assert (drained.failed, drained.retrying, drained.sent_elsewhere, drained.errors) == ([], [], [], [])
    assert drain().processed == []


def test_what_handlers_publish_is_processed_too(either: str, handle: Handle) -> None:
    def first(message: ReceivedMessage) -> None:
        publish("mail.send", {"to": message.payload["by"]})

    handle(first)
    handle(effect, "mail.*", queue="mail")
    cause = publish("work.do", {"by": "Ann"})
    assert [row.queue for row in drain().processed] == ["work", "mail"]
    assert effects() == ["{'to': 'Ann'}"]
    assert assert_published("mail.send", count=1)[0].causation_id == cause.message_id


def test_a_message_takes_the_way_that_the_broker_would_choose(inside: None, handle: Handle) -> None:
    handle(effect, "orders.*", "#.placed", queue="one")
    handle(effect, "orders.placed", queue="two")
    handle(effect, "unused", queue="three")
    queues = {"three": {"bindings": [("their.exchange", "stock.#")]}, "theirs": {"bindings": [("messaging", "#")]}}
    with override_settings(MESSAGING={"default": {"URL": "database://", "QUEUES": queues}}):
        publish("orders.placed", 1)
        publish("stock.taken.now", 2, exchange="their.exchange")
        publish("unused", 3, queue="three")
        publish("three", 4, exchange="")
        nowhere = [publish("a", 5), publish("a", 6, queue="theirs"), publish("orders.placed", 7, exchange="other")]
        drained = drain(within=timedelta(days=1), raise_errors=False)
    reached = [(row.queue, row.body) for row in drained.processed + drained.failed]
    assert reached == [("one", "1"), ("two", "1"), ("three", "3"), ("three", "2"), ("three", "4")]
    assert drained.sent_elsewhere == nowhere
    assert {row.state for row in published()} == {"published"}


def test_a_message_published_twice_is_processed_once_and_a_reused_id_is_an_error(either: str, handle: Handle) -> None:
    handle(effect)
    publish_many([Message("work.do", 1, message_id="the-id")] * 2)
    assert len(drain().processed) == 1
    publish("work.do", 2, message_id="the-id")
    with pytest.raises(IdReused):
        drain()
    assert effects() == ["1"]
    assert ProcessedMessage.objects.get(state="failed").body == "2"


def test_what_no_handler_of_the_queue_takes_is_an_error_and_goes_round(either: str, handle: Handle) -> None:
    handle(effect, "work.a")
    publish("work.b", 1, queue="work")
    with pytest.raises(HandlerNotFound, match=r"takes the routing key 'work\.b'"):
        drain()
    assert ProcessedMessage.objects.values_list("state", "attempts").get() == ("retrying", 1)
    assert len(drain(within=timedelta(days=1), raise_errors=False).failed) == 1


def test_a_dead_letter_is_recorded_as_failed(either: str, handle: Handle) -> None:
    handle(effect)
    publish("work.do", 1, queue="work.dead")
    (row,) = drain(raise_errors=False).failed
    assert (row.queue, row.error) == ("work", "The broker gave it up: reason unknown.")
    assert effects() == []


def test_a_dead_letter_queue_with_a_handler_of_its_own_is_a_queue(either: str, handle: Handle) -> None:
    handle(effect)
    handle(effect, queue="work.dead")
    publish("work.do", 1, queue="work.dead")
    assert [row.queue for row in drain().processed] == ["work.dead"]


# Failures and time


def test_an_error_is_recorded_and_raised_once_all_is_done(either: str, handle: Handle) -> None:
    def fail_on_one(message: ReceivedMessage) -> None:
        effect(message)
        if message.payload == 1:
            raise ValueError("no one")

    handle(fail_on_one, backoff=60)
    publish_many([Message("work.do", number) for number in (1, 2)])
    with pytest.raises(ValueError, match="no one") as raised:
        drain()
    assert any("drain()" in note for note in raised.value.__notes__)
    assert [entry.name for entry in raised.traceback][-2:] == ["drain", "fail_on_one"]
    assert effects() == ["2"]
    row = ProcessedMessage.objects.get(state="retrying")
    assert (row.attempts, row.error) == (1, "ValueError: no one")
    assert "fail_on_one" in row.attempt_set.get().traceback
    assert drain().processed == []


def test_attempts_are_made_when_they_are_due_until_it_rests_as_failed(either: str, handle: Handle) -> None:
    handle(fail, max_attempts=3, backoff=lambda attempt: 10_000 * attempt)
    publish("work.do", 1)

    def attempts(within: float) -> int:
        drain(within=within, raise_errors=False)
        return ProcessedMessage.objects.get().attempts

    assert [attempts(0), attempts(9000), attempts(1000), attempts(19_000)] == [1, 1, 2, 2]
    drained = drain(within=timedelta(seconds=1000), raise_errors=False)
    assert [str(error) for error in drained.errors] == ["attempt 3"]
    assert (drained.failed[0].attempts, drained.failed[0].attempt_set.count()) == (3, 3)
    assert (effects(), len(published())) == ([], 1)
    assert not PublishedMessage.objects.pending().exists()


def test_several_pauses_can_pass_in_one_call(either: str, handle: Handle) -> None:
    handle(fail, max_attempts=9, backoff=1000)
    publish("work.do", 1)
    drained = drain(within=2500, raise_errors=False)
    assert [str(error) for error in drained.errors] == ["attempt 1", "attempt 2", "attempt 3"]
    assert drained.retrying == [ProcessedMessage.objects.get()]


def test_what_is_scheduled_waits_for_its_time(either: str, handle: Handle) -> None:
    handle(effect)
    publish("work.do", "later", delay=60)
    publish("work.do", "tomorrow", at=timezone.now() + timedelta(days=1))
    publish("work.do", "now", delay=timedelta(0))
    drain()
    assert effects() == ["now"]
    drain(within=timedelta(minutes=2))
    assert effects() == ["now", "later"]
    assert len(published()) == 3
    drain(within=86400)
    assert effects() == ["now", "later", "tomorrow"]


def test_what_falls_due_first_runs_first(inside: None, handle: Handle) -> None:
    handle(effect)
    publish_many([Message("work.do", seconds, delay=seconds) for seconds in (30, 10, 20)])
    drain(within=60)
    assert effects() == ["10", "20", "30"]


@pytest.mark.parametrize("within", [-1, 4e9, timedelta(days=-1)])
def test_time_passes_forwards_and_within_reason(inside: None, within: float | timedelta) -> None:
    with pytest.raises(ValueError, match="seconds from 0 to ten years"):
        drain(within=within)


def test_retry_and_reject_say_what_follows(either: str, handle: Handle) -> None:
    def refuse(message: ReceivedMessage) -> None:
        if message.attempt == 1:
            raise Retry("the bank is closed", after=3600)
        raise Reject("no such account")

    handle(refuse)
    publish("work.do", 1)
    assert drain(raise_errors=False, within=3000).retrying[0].error == "the bank is closed"
    with pytest.raises(Reject, match="no such account"):
        drain(within=600)
    assert ProcessedMessage.objects.get().state == "failed"


def test_a_requeued_message_is_processed(either: str, handle: Handle) -> None:
    broken = [True]

    def mend(message: ReceivedMessage) -> None:
        if broken:
            raise Reject("not yet")
        effect(message)

    handle(mend)
    publish("work.do", 1)
    drain(raise_errors=False)
    broken.clear()
    requeue(ProcessedMessage.objects.failed(), Operator(name="ann"))
    (row,) = drain().processed
    assert (row.round, effects()) == (2, ["1"])


def test_an_endless_loop_ends_with_an_error(either: str, handle: Handle) -> None:
    handle(lambda message: publish("work.again", 1))
    publish("work.do", 1)
    with pytest.raises(MessagingError, match=r"sent 20 messages and more are due.*work\.again \(19 times\)"):
        drain(limit=20)


def test_an_interrupt_ends_the_test_at_once(inside: None, handle: Handle) -> None:
    def interrupt(message: ReceivedMessage) -> None:
        Effect.objects.create(key="run")
        raise KeyboardInterrupt

    handle(interrupt)
    publish_many([Message("work.do", 1), Message("work.do", 2)])
    with pytest.raises(KeyboardInterrupt):
        drain(raise_errors=False)
    assert Attempt.objects.count() == 1


def test_a_message_that_cannot_be_encoded_ends_failed(either: str, handle: Handle) -> None:
    handle(effect)
    row = publish("work.do", 1)
    PublishedMessage.objects.update(wire=b"\xff\xff")
    with pytest.raises(MessagingError, match="cut short"):
        drain()
    row.refresh_from_db()
    assert (row.state, effects()) == ("failed", [])


# The commit proof


def test_a_handler_that_rolls_back_in_secret_has_failed(either: str, handle: Handle) -> None:
    def undo(message: ReceivedMessage) -> None:
        fail_quietly = message.payload == "flag"
        effect(message)
        publish("never.sent", 1)
        if fail_quietly:
            transaction.set_rollback(True)
            return
        with suppress(IntegrityError):
            Attempt.objects.create(message=None, number=1, round=1)

    handle(undo, backoff=60)
    publish_many([Message("work.do", "flag"), Message("work.do", "swallowed")])
    drained = drain(raise_errors=False)
    assert [type(error) for error in drained.errors] == [CommitNotProven, CommitNotProven]
    assert len(drained.retrying) == 2
    assert (effects(), len(published())) == ([], 2)


def test_a_row_that_refers_to_nothing_fails_as_at_a_commit(either: str, handle: Handle) -> None:
    def dangle(message: ReceivedMessage) -> None:
        Attempt.objects.create(message_id=10**9, number=1, round=1)

    handle(dangle, max_attempts=1)
    publish("work.do", 1)
    with pytest.raises(IntegrityError):
        drain()
    assert ProcessedMessage.objects.get().attempt_set.count() == 1


def test_commit_hooks_run_once_and_only_for_what_was_committed(either: str, handle: Handle) -> None:
    ran: list[str] = []

    def hook(message: ReceivedMessage) -> None:
        name = str(message.payload)
        transaction.on_commit(lambda: ran.append(name))
        transaction.on_commit(lambda: transaction.on_commit(lambda: ran.append(f"{name} again")))
        if name == "failing":
            raise ValueError

    handle(hook, backoff=60)
    if either == "inside":
        transaction.on_commit(lambda: ran.append("the test's own"))
    publish_many([Message("work.do", name) for name in ("failing", "a", "b")])
    drain(raise_errors=False)
    drain()
    assert ran == ["a", "a again", "b", "b again"]


def test_a_raising_commit_hook_does_not_undo_what_was_processed(
    either: str, handle: Handle, caplog: pytest.LogCaptureFixture
) -> None:
    ran: list[str] = []

    def hook(message: ReceivedMessage) -> None:
        effect(message)
        transaction.on_commit(lambda: ran.append("before"))
        transaction.on_commit(lambda: Effect.objects.create(value=None), robust=message.payload == 2)
        transaction.on_commit(lambda: ran.append("after"))

    handle(hook)
    publish_many([Message("work.do", number) for number in (1, 2)])
    assert len(drain().processed) == 2
    assert effects() == ["1", "2"]
    assert ran == ["before", "before", "after"]  # after an error the rest runs only if the hook was robust
    assert "is processed, but a commit hook failed" in caplog.text


def test_a_timeout_of_a_statement_is_a_failed_attempt_since_the_database_answers(either: str, handle: Handle) -> None:
    def wait_in_vain(message: ReceivedMessage) -> None:
        raise OperationalError("canceling statement due to statement timeout")

    handle(wait_in_vain, backoff=60)
    publish("work.do", 1)
    with pytest.raises(OperationalError, match="statement timeout"):
        drain()
    assert ProcessedMessage.objects.get().attempts == 1


def test_a_closed_connection_ends_the_tests_transaction_and_is_told(inside: None, handle: Handle) -> None:
    handle(lambda message: connection.close())
    publish("work.do", 1)
    with pytest.raises(DatabaseUnavailable, match=r"closed the database connection.*use TransactionTestCase"):
        drain()


def test_a_closed_connection_is_a_failed_attempt_where_the_test_has_no_transaction(
    transactional_db: None, handle: Handle
) -> None:
    handle(lambda message: connection.close(), backoff=60)
    publish("work.do", 1)
    with pytest.raises(CommitNotProven):
        drain()
    assert ProcessedMessage.objects.get().state == "retrying"


def test_drain_is_refused_inside_a_transaction_that_is_not_the_tests(either: str) -> None:
    with transaction.atomic(), pytest.raises(RuntimeError, match=r"inside atomic\(\).*Call it after the block"):
        drain()


# Kinds of handlers


def test_a_handler_without_a_transaction_keeps_what_it_did_before_it_failed(either: str, handle: Handle) -> None:
    ran: list[int] = []

    def work(message: ReceivedMessage) -> None:
        effect(message)
        publish("mail.send", 1)
        transaction.on_commit(lambda: ran.append(message.attempt))
        if message.attempt == 1:
            raise ValueError

    handle(work, atomic=False, backoff=0)
    publish("work.do", 1)
    drained = drain(raise_errors=False)
    assert [type(error) for error in drained.errors] == [ValueError]
    assert (drained.processed[0].attempts, effects(), ran) == (2, ["1", "1"], [1, 2])
    assert len(published("mail.send")) == 1


def test_a_database_error_of_a_handler_without_a_transaction_is_a_failed_attempt(either: str, handle: Handle) -> None:
    handle(lambda message: Effect.objects.create(value=None), atomic=False, backoff=60)
    publish("work.do", 1)
    with pytest.raises(IntegrityError):
        drain()
    assert ProcessedMessage.objects.get().state == "retrying"


def swallow(message: ReceivedMessage) -> None:
    try:
        Effect.objects.create(value=None)
    except IntegrityError:
        Effect.objects.create(value="after it")


def test_an_error_that_a_handler_without_a_transaction_catches_is_none(transactional_db: None, handle: Handle) -> None:
    handle(swallow, atomic=False)
    publish("work.do", 1)
    assert len(drain().processed) == 1
    assert effects() == ["after it"]


def test_an_error_that_the_tests_transaction_does_not_survive_is_told(inside: None, handle: Handle) -> None:
    def swallow_alone(message: ReceivedMessage) -> None:
        with suppress(IntegrityError):
            Effect.objects.create(value=None)

    handle(swallow_alone, atomic=False, backoff=60)
    publish("work.do", 1)
    with pytest.raises(transaction.TransactionManagementError, match="use TransactionTestCase"):
        drain()
    assert ProcessedMessage.objects.get().state == "retrying"


def test_a_handler_without_a_transaction_that_closes_the_connection_is_told_at_once(
    inside: None, handle: Handle
) -> None:
    handle(lambda message: connection.close(), atomic=False)
    publish("work.do", 1)
    with pytest.raises(DatabaseUnavailable, match="use TransactionTestCase"):
        drain()


def test_a_batch_handler_receives_lists_and_only_the_culprit_fails(either: str, handle: Handle) -> None:
    sizes: list[int] = []

    def work(messages: list[ReceivedMessage]) -> None:
        sizes.append(len(messages))
        for message in messages:
            effect(message)
            if message.payload == 4:
                raise ValueError

    handle(work, batch=3, backoff=60)
    publish_many([Message("work.do", number) for number in range(8)])
    drained = drain(raise_errors=False)
    assert sizes == [3, 3, 1, 1, 1, 2]
    assert effects() == ["0", "1", "2", "3", "5", "6", "7"]
    assert (len(drained.processed), [row.body for row in drained.retrying]) == (7, ["4"])


def test_an_async_handler_runs_in_the_tests_own_transaction(either: str, handle: Handle) -> None:
    async def work(message: ReceivedMessage) -> None:
        await Effect.objects.acreate(value=str(message.payload))
        await apublish("mail.send", 1)

    handle(work)
    publish("work.do", 1)
    assert len(drain().processed) == 1
    assert effects() == ["1"]
    assert_published("mail.send")


# Django's own test cases


class InTestCase(TestCase):
    """Run by the unittest runner's rules, which pytest follows."""

    @classmethod
    def setUpTestData(cls) -> None:
        publish("work.set.up", "set up")

    def test_what_the_class_set_up_is_drained_in_each_test(self) -> None:
        handler("work", "work.#")(effect)
        drain()
        assert effects() == ["set up"]

    test_and_in_the_next_one = test_what_the_class_set_up_is_drained_in_each_test

    def test_what_a_commit_hook_publishes_is_drained(self) -> None:
        handler("work", "work.#")(effect)
        with self.captureOnCommitCallbacks(execute=True):
            transaction.on_commit(lambda: publish("work.do", "hook"))
        drain()
        assert effects() == ["set up", "hook"]

    async def test_an_async_test_drains_in_a_thread(self) -> None:
        handler("work", "work.#")(effect)
        await apublish("work.do", "async")
        await sync_to_async(drain)()
        assert await sync_to_async(effects)() == ["set up", "async"]


class InTransactionTestCase(TransactionTestCase):
    """Without a transaction of the test's."""

    def test_what_was_committed_is_drained(self) -> None:
        handler("work", "work.#")(effect)
        with transaction.atomic():
            publish("work.do", datetime.date(2026, 3, 1))
        drain()
        assert effects() == ["2026-03-01"]
