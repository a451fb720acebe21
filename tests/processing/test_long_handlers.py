"""Handlers without a transaction: acknowledged under a claim, run again, and what they publish meanwhile."""

from __future__ import annotations

import logging
import threading
import uuid
from datetime import UTC, datetime
from typing import Any

import pytest
from django.db import connection, transaction

from messaging import publish
from messaging.handlers import Registry
from messaging.message import ReceivedMessage
from messaging.models import ProcessedMessage, PublishedMessage
from messaging.processing.processor import Processor
from tests.app.models import Effect
from tests.deliveries import Acks, Arrived, arrived, in_a_thread, registered, sent
from tests.processing.tools import Handle, effect, end_this_session, nothing, only_row

pytestmark = pytest.mark.django_db(transaction=True)
State = ProcessedMessage.State


def test_a_long_handler_is_acknowledged_once_its_claim_is_durable(handle: Handle) -> None:
    acks = Acks()
    seen: list[tuple[str, int]] = []

    def long(message: ReceivedMessage) -> None:
        seen.append((only_row().state, len(acks.times)))
        assert not connection.in_atomic_block
        effect(message)

    settlement = handle(long, atomic=False).process(arrived(), acks)
    assert settlement.action == "done"
    assert seen == [(State.PROCESSING, 1)]
    assert only_row().state == State.PROCESSED


def test_a_long_handler_that_runs_again_does_not_publish_twice(handle: Handle) -> None:
    def long(message: ReceivedMessage) -> None:
        publish("effects.first", {"attempt": message.attempt}, message_id=f"{message.id}-first")
        publish("effects.second", "same", headers={"a": 1, "b": b"2"})
        publish("effects.second", "same", headers={"b": b"2", "a": 1})
        publish("effects.second", "another")
        if message.attempt == 1:
            raise ValueError

    processor = handle(long, atomic=False)
    run_twice(processor)
    assert PublishedMessage.objects.filter(routing_key="effects.first").count() == 1
    assert PublishedMessage.objects.filter(routing_key="effects.second").count() == 3
    assert len(ids_of("effects.second")) == 3


def run_twice(processor: Processor, delivery: Arrived | None = None) -> None:
    """The second time as a retry of what failed the first time."""
    processor.process(delivery or arrived(), Acks())
    processor.process(sent(PublishedMessage.objects.get(inbox__isnull=False)), Acks())


def ids_of(routing_key: str) -> set[str]:
    return set(PublishedMessage.objects.filter(routing_key=routing_key).values_list("message_id", flat=True))


def test_a_long_handler_that_leaves_out_what_is_done_loses_no_message(handle: Handle) -> None:
    def long(message: ReceivedMessage) -> None:
        for item in "abc":
            if not Effect.objects.filter(key=item).exists():
                publish("item.done", item)
                Effect.objects.create(key=item)
                if item == "a":
                    raise ValueError

    run_twice(handle(long, atomic=False))
    assert sorted(PublishedMessage.objects.filter(routing_key="item.done").values_list("body", flat=True)) == [*"abc"]
    assert len(ids_of("item.done")) == 3


@pytest.mark.parametrize(
    "other",
    [
        {"routing_key": "item.other"}, {"queue": "other"}, {"exchange": "other"}, {"payload": "other"},
        {"headers": {"a": b"1"}}, {"type": "other"}, {"content_type": "text/other"}, {"reply_to": "other"},
        {"priority": 1}, {"expiration": 1}, {"mandatory": False}, {"delay": 0},
        {"at": datetime(2031, 5, 6, tzinfo=UTC)},
        {"correlation_id": "other"},
    ],
    ids=lambda other: next(iter(other)),
)  # fmt: skip
def test_each_difference_makes_another_message(handle: Handle, other: dict[str, Any]) -> None:
    common: dict[str, Any] = {"routing_key": "item.done", "payload": "a", "headers": {"a": "1"}}

    def long(message: ReceivedMessage) -> None:
        if message.attempt == 1:  # a second one must get an id that this one does not have
            publish(**common)
            raise ValueError
        publish(**{**common, **other})

    run_twice(handle(long, atomic=False))
    assert len(set(PublishedMessage.objects.filter(inbox=None).values_list("message_id", flat=True))) == 2


def test_one_function_of_two_queues_publishes_for_each(handle: Handle) -> None:
    def long(message: ReceivedMessage) -> None:
        publish("item.done", "a")

    registry = Registry()
    for queue in ("work", "other"):
        registered(registry, long, queue=queue, atomic=False)
    processor = Processor("default", "worker-1", handlers=registry)
    for queue in ("work", "other"):
        processor.process(arrived(queue=queue, message_id="the same"), Acks())
    assert len(ids_of("item.done")) == 2


def test_one_id_to_two_queues_from_a_long_handler_is_two_messages(handle: Handle) -> None:
    def long(message: ReceivedMessage) -> None:
        for queue in ("one", "two"):
            publish("item.done", "a", queue=queue, message_id="the same")
        if message.attempt == 1:
            raise ValueError

    run_twice(handle(long, atomic=False))
    sent_to = PublishedMessage.objects.filter(routing_key="item.done").order_by("pk")
    assert list(sent_to.values_list("queue", flat=True)) == ["one", "two"]


def test_what_the_release_before_recorded_first_keeps_its_ids(handle: Handle) -> None:
    def long(message: ReceivedMessage) -> None:
        publish("item.done", "a")
        publish("item.done", "b", queue="other")
        if message.attempt == 1:
            ProcessedMessage.objects.update(derivation=None)
            PublishedMessage.objects.filter(inbox=None).delete()
            raise ValueError

    run_twice(handle(long, atomic=False))
    row = only_row()
    cause = uuid.uuid5(row.key, row.handler)
    assert ids_of("item.done") == {str(uuid.uuid5(cause, f"1:{to}:item.done")) for to in ("messaging:", ":other")}


def test_a_long_handler_whose_connection_is_gone_at_its_end_does_not_run_again(
    has_sessions: None, handle: Handle
) -> None:
    runs: list[int] = []

    def lose_the_connection(message: ReceivedMessage) -> None:
        runs.append(1)
        end_this_session()

    assert handle(lose_the_connection, atomic=False).process(arrived(), nothing).action == "done"
    assert (only_row().state, only_row().attempts, len(runs)) == (State.PROCESSED, 1, 1)


def test_a_long_handler_whose_row_is_locked_at_its_end_does_not_run_again(handle: Handle) -> None:
    if connection.vendor == "sqlite":
        pytest.skip("needs row locks")
    runs: list[int] = []
    locked, waited = threading.Event(), threading.Event()

    def hold() -> None:
        with transaction.atomic():
            list(ProcessedMessage.objects.select_for_update())
            locked.set()
            waited.wait(60)

    def run(message: ReceivedMessage) -> None:
        runs.append(1)
        threads.append(in_a_thread(hold))
        locked.wait(60)

    class Watch(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            waited.set()

    threads: list[threading.Thread] = []
    watch = Watch()
    logging.getLogger("messaging.processor").addHandler(watch)
    try:
        settlement = handle(run, atomic=False).process(arrived(), nothing)
    finally:
        logging.getLogger("messaging.processor").removeHandler(watch)
        waited.set()
        threads[0].join()
    assert (settlement.action, only_row().state, len(runs)) == ("done", State.PROCESSED, 1)
