"""What is done for every message costs the same however many rows there are: its statements find theirs by an index."""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import partial
from itertools import product
from typing import Any

import pytest
from django.db import connection

from messaging import operations, retention
from messaging.db.clock import Now
from messaging.db.connections import Outages
from messaging.exceptions import MessagingError
from messaging.handlers import Registry
from messaging.message import ReceivedMessage
from messaging.models import ProcessedMessage, PublishedMessage, TaskValue
from messaging.operations import Operator
from messaging.processing.crashes import Crash, record_crash
from messaging.processing.processor import Processor
from messaging.processing.station import Claims
from messaging.supervising.ledger import Entry
from tests import many_rows
from tests.deliveries import arrived, registered, sent

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.skipif(connection.vendor not in ("postgresql", "sqlite"), reason="reads two databases' plans"),
]
rows = PublishedMessage.objects
In, Out = ProcessedMessage.State, PublishedMessage.State
MANY, FEW = 1000, 10
TABLES = ("messaging_publishedmessage", "messaging_processedmessage", "messaging_taskvalue")
MODELS = (ProcessedMessage, PublishedMessage)
PARTIAL = {index.name: index.fields for model in MODELS for index in model._meta.indexes if index.condition is not None}
OLD = Now() - timedelta(days=40)
LONG = "a" * 100
BODY = '"%s"' % ("x" * 400)  # or a table of a thousand rows would be so small that reading all of it is right


def outgoing(number: int, **values: Any) -> PublishedMessage:
    return PublishedMessage(message_id=f"out-{number}", routing_key="work.do", body=BODY, **values)


def incoming(number: int, **values: Any) -> ProcessedMessage:
    identity = {"message_id": f"in-{number}", "key": uuid.uuid4(), "digest": uuid.uuid4(), "queue": "work"}
    return ProcessedMessage(**{**identity, "routing_key": "work.do", "body": BODY, **values})


@pytest.fixture
def full() -> None:
    """Tables as a busy site has them: nearly all has ended well, the oldest of it may go, a little of each else."""
    ended = {"state": Out.PUBLISHED, "due_at": None}
    rows.bulk_create([outgoing(n, created_at=OLD, published_at=OLD, **ended) for n in range(FEW)])
    laid_aside = {"state": Out.DISCARDED, "due_at": None, "created_at": OLD, "discarded_at": OLD}
    rows.bulk_create([outgoing(n, **laid_aside) for n in range(FEW)])
    many_rows.create(outgoing(0, published_at=Now(), **ended), MANY)
    for state in (Out.PENDING, Out.FAILED, Out.DRAFT):
        rows.bulk_create([outgoing(n, state=state) for n in range(FEW)])
    inbox = ProcessedMessage.objects
    inbox.bulk_create([incoming(n, state=In.PROCESSED, received_at=OLD, processed_at=OLD) for n in range(FEW)])
    inbox.bulk_create([incoming(n, state=In.DISCARDED, received_at=OLD, discarded_at=OLD) for n in range(FEW)])
    many_rows.create(incoming(0, state=In.PROCESSED, processed_at=Now()), MANY)
    for state in (In.FAILED, In.RETRYING):
        inbox.bulk_create([incoming(n, state=state) for n in range(FEW)])
    claim = {"state": In.PROCESSING, "lease_token": uuid.uuid4(), "leased_until": Now(), "wire": b"damaged"}
    inbox.bulk_create([incoming(n, **claim) for n in range(FEW)])
    values = {"alias": "default", "queue": "tasks.default", "value": "17"}
    TaskValue.objects.bulk_create([TaskValue(**values, key=uuid.uuid4(), created_at=OLD) for _ in range(FEW)])
    many_rows.create(TaskValue(**values, key=uuid.uuid4(), created_at=Now()), MANY)
    if connection.vendor == "postgresql":  # SQLite has statistics only where somebody asked for them
        with connection.cursor() as cursor:
            cursor.execute(f"ANALYZE messaging_taskvalue, {', '.join(TABLES)}")


@pytest.fixture
def overtaken() -> Iterator[None]:
    """The same when there were no statistics since a backlog began, as after an outage."""
    if connection.vendor != "postgresql":
        pytest.skip("only its plans follow from statistics that are gathered now and then")
    many_rows.create(outgoing(0, state=Out.PUBLISHED, due_at=None, published_at=Now()), 5 * MANY)
    many_rows.create(incoming(0, state=In.PROCESSED, processed_at=Now()), 5 * MANY)
    with connection.cursor() as cursor:
        for table in TABLES:
            cursor.execute(f"ALTER TABLE {table} SET (autovacuum_enabled = off)")
            cursor.execute(f"VACUUM ANALYZE {table}")
    # An index on a long name is higher than others of as many rows, and so seems to be the dearer one.
    many_rows.create(outgoing(0, alias=LONG), 6 * MANY)
    many_rows.create(outgoing(0), 3 * MANY)
    many_rows.create(outgoing(0, state=Out.FAILED), MANY)
    for state in (In.FAILED, In.RETRYING, In.PROCESSING):
        many_rows.create(incoming(0, state=state), MANY)
    yield
    with connection.cursor() as cursor:
        for table in TABLES:
            cursor.execute(f"ALTER TABLE {table} RESET (autovacuum_enabled)")


@pytest.fixture
def processor() -> Processor:
    def fail(message: ReceivedMessage) -> None:
        if message.payload == "fail":
            raise ValueError

    registry = Registry()
    registered(registry, fail)
    return Processor("default", "worker-1", handlers=registry)


def plans_of(run: Callable[[], object]) -> dict[str, str]:
    """The plan of each statement that a call executes on our tables, by its text."""
    found: dict[str, Any] = {}

    def note(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        if any(table in sql for table in TABLES):
            found.setdefault(sql, params)
        return execute(sql, params, many, context)

    with connection.execute_wrapper(note):
        run()
    explain = "EXPLAIN" if connection.vendor == "postgresql" else "EXPLAIN QUERY PLAN"
    plans = {}
    with connection.cursor() as cursor:
        for sql, params in found.items():
            cursor.execute(f"{explain} {sql}", params)
            plans[sql] = "\n".join(str(line[-1]) for line in cursor.fetchall())
    return plans


def scans(plan: str) -> list[str]:
    """The lines of a plan that read a whole table, or a whole index that holds all rows."""
    whole = "Seq Scan on messaging_" if connection.vendor == "postgresql" else "SCAN messaging_"
    return [line for line in plan.splitlines() if whole in line and not PARTIAL.keys() & set(line.split())]


def assert_indexed(run: Callable[[], object], unwanted: Callable[[str], list[str]] = scans) -> None:
    plans = plans_of(run)
    assert plans
    for sql, plan in plans.items():
        assert not unwanted(plan), f"{sql}\n{plan}"


def backlogs(plan: str) -> list[str]:
    """The lines of a plan that read a partial index for neither its first two columns nor its first rows."""
    lines = plan.splitlines()
    found = []
    for above, line, below in zip(["", *lines[:-1]], lines, [*lines[1:], ""], strict=True):
        for name in PARTIAL.keys() & set(line.split()):
            looked_for = "Index Cond" in below and all(
                re.search(rf"\b{field}(_id)?\b", below) for field in PARTIAL[name][:2]
            )
            if not looked_for and "Limit" not in above:
                found.append(line)
    return found


def assert_apart(run: Callable[[], object]) -> None:
    assert_indexed(run, lambda plan: scans(plan) + backlogs(plan))


def nothing() -> None:
    """An acknowledgement."""


def nothing_with(message: ReceivedMessage) -> None:
    """A handler."""


@pytest.mark.usefixtures("full")
def test_the_relay_finds_its_rows_by_an_index() -> None:
    held: list[PublishedMessage] = []

    def lease() -> None:
        assert rows.wait("default") == 0
        half = FEW // 2
        held.extend(rows.lease("default", "one", 15, FEW - half))
        held.extend(rows.lease("default", "one", 15, half, newest=True))
        assert len(held) == FEW

    def mark() -> None:
        rows.renew(held, 15)
        rows.back_off(held[:2], -1, "a full queue")
        rows.release(held[2:4])
        rows.fail(held[4:6], "no such exchange")
        rows.mark_published(held[6:])

    for sql, plan in plans_of(lease).items():
        assert not scans(plan), f"{sql}\n{plan}"
        if "due_at" in sql.partition("ORDER BY")[2]:  # what is due is read in its order, not sorted for each lease
            assert "messaging_outbox_due" in plan
            assert not re.search("TEMP B-TREE|(?<!Incremental )Sort ", plan), plan
    assert_indexed(mark)
    [whole] = plans_of(lambda: rows.filter(error="never").count()).values()
    assert scans(whole), "a table that is read as a whole is noticed"


@pytest.mark.usefixtures("overtaken")
def test_no_step_reads_a_backlog_that_is_newer_than_the_statistics(processor: Processor) -> None:
    held: list[PublishedMessage] = []

    def relay() -> None:
        assert rows.wait("default") == 0
        held.extend(rows.lease("default", "one", 15, MANY))
        rows.renew(held, 15)
        rows.back_off(held[:2], -1, "a full queue")
        rows.release(held[2:4])
        rows.fail(held[4:6], "no such exchange")
        assert rows.mark_published(held[6:]) == MANY - 6

    assert_apart(relay)
    assert_apart(lambda: rows.wait(LONG))
    assert_apart(lambda: rows.lease(LONG, "one", 15, MANY))
    assert_apart(lambda: rows.lease(LONG, "one", 15, MANY, newest=True))
    [one] = plans_of(lambda: rows.exclude(state=Out.PUBLISHED).filter(pk=held[0].pk).count()).values()
    assert backlogs(one), "an index that is read as a whole is noticed"
    delivery = arrived("fail")
    assert_apart(lambda: processor.process(delivery, nothing))
    retry = rows.get(message_id=delivery.properties.message_id)
    assert_apart(lambda: processor.process(sent(retry), nothing))
    registry = Registry()
    registered(registry, nothing_with, atomic=False)
    claiming = Processor("default", "worker-1", handlers=registry)
    assert_apart(lambda: claiming.process(arrived(), nothing))
    failed = ProcessedMessage.objects.filter(pk=retry.inbox_id)
    for act in (operations.discard, operations.restore, operations.requeue):
        assert_apart(partial(act, failed, Operator(name="ann")))
    ended = ProcessedMessage.objects.filter(state=In.PROCESSED).order_by("pk").values_list("pk", flat=True)[:FEW]
    expired = retention.deletable(ProcessedMessage.objects.filter(pk__in=list(ended)))
    for plan in plans_of(lambda: len(expired)).values():
        assert "messaging_outbox_unsent" not in plan, plan
    last_round = rows.get(inbox=retry.inbox_id, state=Out.PENDING)
    assert_apart(last_round.fail_round)
    for act in (operations.discard_published, operations.restore_published, operations.release):
        assert_apart(partial(act, rows.filter(pk=held[0].pk), Operator(name="ann")))
    assert_apart(partial(operations.replay, rows.filter(pk=held[6].pk), Operator(name="ann")))
    assert_apart(partial(operations.discard_published, rows.filter(pk=last_round.pk), Operator(name="ann")))


@pytest.mark.usefixtures("full")
def test_a_delivery_is_deduped_by_an_index(processor: Processor) -> None:
    for message_id, redelivered in product(("", None), (False, True)):
        delivery = arrived(message_id=message_id, redelivered=redelivered)
        assert_indexed(partial(processor.process, delivery, nothing))
        assert_indexed(partial(processor.process, delivery, nothing))


@pytest.mark.usefixtures("full")
def test_a_retry_is_scheduled_and_finds_its_message_by_an_index(processor: Processor) -> None:
    delivery = arrived("fail")
    assert_indexed(lambda: processor.process(delivery, nothing))
    retry = rows.get(message_id=delivery.properties.message_id)
    assert_indexed(lambda: processor.process(sent(retry), nothing))
    assert ProcessedMessage.objects.get(pk=retry.inbox_id).attempts == 2
    failed = ProcessedMessage.objects.filter(pk=retry.inbox_id)
    for act in (operations.discard, operations.restore, operations.requeue):
        assert_indexed(partial(act, failed, Operator(name="ann")))


@pytest.mark.usefixtures("full")
def test_claims_are_kept_and_swept_and_crashes_counted_by_an_index(processor: Processor) -> None:
    claims = Claims(15.0, Outages())
    with claims.held(uuid.uuid4(), "default"):
        assert_indexed(partial(claims.renew, "default"))
    assert_indexed(processor.sweep)
    for message_id in ("crashed", ""):
        key, digest = str(uuid.uuid4()), str(uuid.uuid4())
        entry = Entry("default", "work", key, digest, 1, message_id, "default", "a handler", time.time())
        crash = Crash.of(processor._station, entry, MessagingError("killed"), time.monotonic() - 1)
        assert_indexed(partial(record_crash, crash))


@pytest.mark.usefixtures("full")
def test_retention_looks_at_nothing_that_is_younger_than_what_it_deletes() -> None:
    def prune() -> None:
        for what, expired in retention.expired("default"):
            assert retention.prune(expired) == FEW, what

    for sql, plan in plans_of(prune).items():
        assert not scans(plan), f"{sql}\n{plan}"
        if " DESC" in sql:  # where to end
            indexes = ("messaging_outbox_created", "messaging_inbox_received", "messaging_task_value_created")
            assert any(index in plan for index in indexes), f"{sql}\n{plan}"
        elif '"id" > ' in sql:
            assert '"id" <= ' in sql
    assert rows.filter(state=Out.PUBLISHED).count() == MANY
    assert ProcessedMessage.objects.filter(state=In.PROCESSED).count() == MANY
