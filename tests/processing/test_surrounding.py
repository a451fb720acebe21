"""Middleware around handlers: inside the transaction, in every mode, and no way to lose a message that did not run."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

import pytest
from asgiref.sync import iscoroutinefunction, sync_to_async
from django.core.exceptions import MiddlewareNotUsed
from django.db import connection, transaction
from django.utils import translation
from django.utils.decorators import async_only_middleware, sync_and_async_middleware
from pytest_django import Settings

from messaging import Reject, Retry, handler, publish
from messaging.exceptions import ConfigurationError, HandlerNotRun
from messaging.handlers import Registry, registry
from messaging.models import ProcessedMessage, PublishedMessage
from messaging.processing.execution import call
from messaging.processing.processor import Processor
from messaging.processing.rehearsing import rehearse
from messaging.testing import drain
from tests.admin_rows import incoming
from tests.app.models import Effect
from tests.deliveries import arrived, registered, sent
from tests.processing.tools import Handle, effect, ignore, next_round, nothing, only_row

pytestmark = pytest.mark.django_db(transaction=True)
State = ProcessedMessage.State
seen: list[Any] = []
tenant: ContextVar[str] = ContextVar("tenant", default="")


@pytest.fixture(autouse=True)
def _nothing_seen() -> Iterator[None]:
    seen.clear()
    before = {key: list(value) for key, value in registry._handlers.items()}
    yield
    registry._handlers.clear()
    registry._handlers.update(before)


Use = Callable[..., None]


@pytest.fixture
def use(settings: Settings) -> Use:
    """Puts functions of this module around handlers."""

    def put(*functions: Any) -> None:
        paths = [f"{__name__}.{function.__name__}" for function in functions]
        settings.MESSAGING = {"default": {"MIDDLEWARE": paths}}

    return put


def outer(get_outcome: Any) -> Any:
    seen.append("made")

    def around(message: Any) -> Any:
        seen.append(("outer", connection.in_atomic_block))
        Effect.objects.create(key="outer", value=message.id)
        result = get_outcome(message)
        seen.append("after")
        return result

    return around


class Inner:
    """An object of a class, as Django's older middleware is."""

    def __init__(self, get_outcome: Any) -> None:
        self.get_outcome = get_outcome

    def __call__(self, message: Any) -> Any:
        seen.append("inner")
        return self.get_outcome(message)


def test_the_first_is_outermost_and_all_are_in_the_handlers_transaction(use: Use, handle: Handle) -> None:
    use(outer, Inner)
    handle(effect).process(arrived(message_id="one"), nothing)
    assert seen == ["made", ("outer", True), "inner", "after"]
    assert sorted(Effect.objects.values_list("key", flat=True)) == ["one", "outer"]
    assert only_row().state == State.PROCESSED


def test_what_it_wrote_goes_with_a_handler_that_fails(use: Use, handle: Handle) -> None:
    def fail(message: Any) -> None:
        raise ValueError("no")

    use(outer)
    handle(fail).process(arrived(), nothing)
    assert (only_row().state, only_row().error) == (State.RETRYING, "ValueError: no")
    assert not Effect.objects.exists()


def test_it_is_loaded_once_and_runs_for_each_message_and_each_round(use: Use, handle: Handle) -> None:
    def fail(message: Any) -> None:
        raise ValueError

    use(outer)
    processor = handle(fail)
    assert seen == ["made"]
    processor.process(arrived("other"), nothing)
    PublishedMessage.objects.all().delete()
    processor.process(arrived(), nothing)
    processor.process(sent(next_round()), nothing)
    assert seen == ["made", *[("outer", True)] * 3]


def test_without_any_a_handler_is_called_as_ever(handle: Handle) -> None:
    assert handle(effect)._station.call is call


# Sync and async


@async_only_middleware
def in_async(get_outcome: Any) -> Any:
    async def around(message: Any) -> Any:
        tenant.set(message.headers["tenant"])
        await Effect.objects.acreate(key="async", value=message.id)
        return await get_outcome(message)

    return around


@sync_and_async_middleware
def in_both(get_outcome: Any) -> Any:
    if iscoroutinefunction(get_outcome):

        async def around(message: Any) -> Any:
            seen.append("both, async")
            return await get_outcome(message)

        return around

    def plain(message: Any) -> Any:
        seen.append("both, sync")
        return get_outcome(message)

    return plain


class AsyncObject:
    """Its calls are async, which it says as the decorators do."""

    sync_capable = False
    async_capable = True

    def __init__(self, get_outcome: Any) -> None:
        self.get_outcome = get_outcome

    async def __call__(self, message: Any) -> Any:
        return await self.get_outcome(message)


def in_sync(message: Any) -> None:
    seen.append((tenant.get(), connection.in_atomic_block))
    Effect.objects.create(key="handler")
    if message.payload == "fails":
        raise ValueError


async def as_async(message: Any) -> None:
    await sync_to_async(in_sync)(message)


async def twice(message: Any) -> Any:
    return as_async(message)


def decorated(message: Any) -> Any:
    return as_async(message)


CHAINS = [
    (in_async,),
    (in_both, in_async),
    (in_async, Inner),
    (Inner, in_async, outer),
    (AsyncObject, in_async, in_both),
]


@pytest.mark.parametrize("function", [in_sync, as_async, twice, decorated])
@pytest.mark.parametrize("chain", CHAINS, ids=lambda chain: "-".join(one.__name__ for one in chain))
def test_each_kind_is_around_each_kind_of_handler_in_its_transaction(
    use: Use, handle: Handle, chain: Any, function: Any
) -> None:
    use(*chain)
    processor = handle(function)
    processor.process(arrived("works", headers={"tenant": "acme"}), nothing)
    assert ("acme", True) in seen
    assert only_row().state == State.PROCESSED
    keys = set(Effect.objects.values_list("key", flat=True))
    assert keys == {"async", "handler"} | ({"outer"} if outer in chain else set())
    Effect.objects.all().delete()
    processor.process(arrived("fails", headers={"tenant": "acme"}), nothing)
    assert sorted(ProcessedMessage.objects.values_list("state", flat=True)) == [State.PROCESSED, State.RETRYING]
    assert not Effect.objects.exists()
    assert tenant.get() == ""


@pytest.mark.parametrize(("function", "kind"), [(in_sync, "both, sync"), (as_async, "both, async")])
def test_one_that_can_be_both_is_what_the_handler_is(use: Use, handle: Handle, function: Any, kind: str) -> None:
    use(in_both)
    handle(function).process(arrived(), nothing)
    assert seen[0] == kind


# What ends with the message, and what belongs to it


def speaking(get_outcome: Any) -> Any:
    def around(message: Any) -> Any:
        if "tenant" in message.headers:
            tenant.set(message.headers["tenant"])
            translation.activate("zh-hans")
        return get_outcome(message)

    return around


def test_what_it_sets_ends_with_the_message(use: Use, handle: Handle) -> None:
    use(speaking)
    processor = handle(lambda message: seen.append((tenant.get(), translation.get_language())))
    processor.process(arrived(headers={"tenant": "acme"}), nothing)
    processor.process(arrived(), nothing)
    assert seen == [("acme", "zh-hans"), ("", "en")]


def telling(get_outcome: Any) -> Any:
    def around(message: Any) -> Any:
        publish("audit", 1)
        return get_outcome(message)

    return around


def test_what_it_publishes_belongs_to_the_message(use: Use, handle: Handle) -> None:
    use(telling)
    handle(ignore).process(arrived(message_id="the-cause"), nothing)
    assert PublishedMessage.objects.get().causation_id == "the-cause"


# What it may do wrong


def swallowing(get_outcome: Any) -> Any:
    def around(message: Any) -> Any:
        try:
            return get_outcome(message)
        except ValueError:
            return "whatever"

    return around


def undoing(get_outcome: Any) -> Any:
    def around(message: Any) -> None:
        try:
            with transaction.atomic():
                get_outcome(message)
        except ValueError:
            pass

    return around


def write_and_fail(message: Any) -> None:
    Effect.objects.create(key="half")
    raise ValueError


def break_and_fail(message: Any) -> None:
    with transaction.atomic(savepoint=False):
        write_and_fail(message)


@pytest.mark.parametrize(("function", "left"), [(swallowing, 1), (undoing, 0)])
@pytest.mark.parametrize("atomic", [True, False])
def test_an_error_that_it_keeps_is_its_decision(
    use: Use, handle: Handle, function: Any, left: int, atomic: bool
) -> None:
    use(function)
    handle(write_and_fail, atomic=atomic).process(arrived(), nothing)
    assert only_row().state == State.PROCESSED
    assert Effect.objects.count() == left


def test_a_broken_transaction_is_no_decision(use: Use, handle: Handle) -> None:
    use(swallowing)
    handle(break_and_fail).process(arrived(), nothing)
    assert (only_row().state, only_row().exception_type) == (State.RETRYING, "messaging.exceptions.CommitNotProven")
    assert not Effect.objects.exists()


def rolling_back(get_outcome: Any) -> Any:
    def around(message: Any) -> None:
        get_outcome(message)
        transaction.set_rollback(True)

    return around


def closing(get_outcome: Any) -> Any:
    def around(message: Any) -> None:
        get_outcome(message)
        connection.close()

    return around


def ending(get_outcome: Any) -> Any:
    def around(message: Any) -> None:
        get_outcome(message)
        with connection.cursor() as cursor:
            cursor.execute("ROLLBACK")

    return around


@pytest.mark.parametrize("function", [rolling_back, closing, ending])
def test_one_that_takes_the_transaction_away_is_a_failed_attempt(use: Use, handle: Handle, function: Any) -> None:
    use(function)
    assert handle(effect).process(arrived(), nothing).action == "ack"
    assert (only_row().state, only_row().attempts) == (State.RETRYING, 1)
    assert only_row().exception_type == "messaging.exceptions.CommitNotProven"
    assert not Effect.objects.exists()
    assert next_round().round == 2


def forgetting(get_outcome: Any) -> Any:
    def around(message: Any) -> str:
        return "nothing was called"

    return around


@async_only_middleware
def not_awaiting(get_outcome: Any) -> Any:
    async def around(message: Any) -> None:
        get_outcome(message).close()  # as the interpreter does with one that nobody awaited, and warns

    return around


@async_only_middleware
def leaving_alone(get_outcome: Any) -> Any:
    async def around(message: Any) -> None:
        seen.append(asyncio.ensure_future(get_outcome(message)))

    return around


@async_only_middleware
def giving_back(get_outcome: Any) -> Any:
    async def around(message: Any) -> Any:
        return get_outcome(message)

    return around


@pytest.mark.parametrize("atomic", [True, False])
@pytest.mark.parametrize("function", [forgetting, not_awaiting, leaving_alone])
def test_a_handler_that_was_not_called_to_its_end_is_a_failed_attempt(
    use: Use, handle: Handle, function: Any, atomic: bool
) -> None:
    async def slow(message: Any) -> None:
        await asyncio.sleep(30)

    use(function)
    handle(slow, atomic=atomic).process(arrived(), nothing)
    assert (only_row().state, only_row().attempts) == (State.RETRYING, 1)
    assert only_row().exception_type == "messaging.exceptions.HandlerNotRun"
    assert "get_outcome(message)" in only_row().error


@pytest.mark.parametrize("function", [in_sync, as_async])
def test_a_call_that_it_gives_back_is_waited_for(use: Use, handle: Handle, function: Any) -> None:
    use(giving_back)
    handle(function).process(arrived(), nothing)
    assert only_row().state == State.PROCESSED
    assert Effect.objects.get().key == "handler"


def generate(message: Any) -> Iterator[int]:
    yield 1


def generating(message: Any) -> Iterator[int]:
    return generate(message)


def test_a_handler_of_which_nothing_ran_has_not_run_whatever_is_kept(use: Use, handle: Handle) -> None:
    use(keeping_all)
    handle(generating).process(arrived(), nothing)
    assert only_row().exception_type == "messaging.exceptions.HandlerNotRun"


def keeping_all(get_outcome: Any) -> Any:
    def around(message: Any) -> None:
        try:
            get_outcome(message)
        except BaseException as error:  # noqa: BLE001  as bad code does
            seen.append(error)

    return around


def test_a_handler_that_ends_its_process_has_not_run_to_its_end(use: Use, handle: Handle) -> None:
    def leave(message: Any) -> None:
        raise SystemExit

    use(keeping_all)
    handle(leave).process(arrived(), nothing)
    assert only_row().exception_type == "messaging.exceptions.HandlerNotRun"


def refusing(get_outcome: Any) -> Any:
    def around(message: Any) -> None:
        raise {"reject": Reject("no such tenant"), "retry": Retry(after=600), "other": KeyError("x")}[message.payload]

    return around


@pytest.mark.parametrize(
    ("payload", "state", "error"),
    [
        ("reject", State.FAILED, "messaging.exceptions.Reject"),
        ("retry", State.RETRYING, "messaging.exceptions.Retry"),
        ("other", State.RETRYING, "KeyError"),
    ],
)
def test_its_errors_are_as_the_handlers(use: Use, handle: Handle, payload: str, state: str, error: str) -> None:
    use(refusing)
    handle(effect).process(arrived(payload), nothing)
    assert (only_row().state, only_row().exception_type) == (state, error)


def repeating(get_outcome: Any) -> Any:
    def around(message: Any) -> None:
        get_outcome(message)
        get_outcome(message)

    return around


def test_called_twice_the_handler_runs_twice_in_one_transaction(use: Use, handle: Handle) -> None:
    use(repeating)
    handle(effect).process(arrived(), nothing)
    assert Effect.objects.count() == 2
    assert ProcessedMessage.objects.count() == 1


# Batches


def by_tenant(get_outcome: Any) -> Any:
    def around(messages: list[Any]) -> None:
        seen.append(len(messages))
        for name in sorted({message.headers["tenant"] for message in messages}):
            tenant.set(name)
            get_outcome([message for message in messages if message.headers["tenant"] == name])

    return around


@pytest.mark.parametrize(("fails", "calls"), [("", [3]), ("b", [3, 1, 1, 1])])
def test_a_batch_is_one_call_and_its_messages_singly_one_each(use: Use, fails: str, calls: list[int]) -> None:
    def store(messages: list[Any]) -> None:
        for message in messages:
            Effect.objects.create(key=tenant.get(), value=message.payload)
        if tenant.get() == fails:
            raise ValueError

    use(by_tenant)
    known = Registry()
    own = registered(known, store, batch=10)
    processor = Processor("default", "worker-1", handlers=known)
    processor.process_batch(own, [arrived(one, headers={"tenant": one}) for one in "bac"])
    assert seen == calls
    assert {(row.key, row.value) for row in Effect.objects.all()} == {(one, one) for one in {*"abc"} - {fails}}
    assert ProcessedMessage.objects.filter(state=State.PROCESSED).count() == 3 - len(fails)


def test_a_batch_that_it_forgets_is_a_failed_attempt_of_each(use: Use) -> None:
    use(forgetting)
    known = Registry()
    own = registered(known, ignore, batch=10)
    Processor("default", "worker-1", handlers=known).process_batch(own, [arrived("a"), arrived("b")])
    assert [row.state for row in ProcessedMessage.objects.all()] == [State.RETRYING] * 2


# Where else handlers run


def test_a_rehearsal_runs_inside(use: Use) -> None:
    use(speaking, outer)
    handler("rehearsed", rehearse=True)(lambda message: seen.append(tenant.get()))
    report = rehearse(incoming("failed", queue="rehearsed"), 1, 20)
    assert (report.state, report.error) == ("succeeded", "")
    assert seen == ["made", ("outer", True), "acme", "after"]
    assert not Effect.objects.exists()


def test_a_rehearsal_of_a_handler_that_is_not_called_fails(use: Use) -> None:
    use(forgetting)
    handler("rehearsed", rehearse=True)(effect)
    assert "get_outcome" in rehearse(incoming("failed", queue="rehearsed"), 1, 20).error


def test_drain_runs_inside(use: Use) -> None:
    use(speaking)
    handler("work", "work.#")(lambda message: seen.append(tenant.get()))
    publish("work.do", 1, headers={"tenant": "acme"})
    assert len(drain().processed) == 1
    assert seen == ["acme"]


def test_a_handler_that_drain_finds_not_called_raises(use: Use) -> None:
    use(forgetting)
    handler("work", "work.#")(ignore)
    publish("work.do", 1)
    with pytest.raises(HandlerNotRun, match=r"tools\.ignore has not run to its end"):
        drain()


# What cannot be put around anything


def unused(get_outcome: Any) -> Any:
    raise MiddlewareNotUsed


def wrong(get_outcome: Any) -> None:
    """Has no `return`."""


def test_one_that_is_not_used_is_left_out(use: Use, handle: Handle) -> None:
    use(unused, Inner)
    handle(effect).process(arrived(), nothing)
    assert seen == ["inner"]
    assert Effect.objects.count() == 1


def test_a_consumer_does_not_begin_with_one_that_cannot_be_used(use: Use, handle: Handle) -> None:
    use(wrong)
    with pytest.raises(ConfigurationError, match=r'\["MIDDLEWARE"\] names ".*wrong", which returned None'):
        handle(effect)
