"""The embedded broker: the contract, on the database that TEST_DB chooses, and what is its own."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import pytest
from django.db import IntegrityError, OperationalError, connection, transaction
from hypothesis import example, given
from hypothesis import strategies as st

from messaging.backends.base import Backend, ExchangeSpec, Fate, Outgoing, QueueSpec, Sender, Topology
from messaging.backends.database import DatabaseBroker, letters, processes
from messaging.backends.database.catalog import Routes
from messaging.backends.database.sweeper import AT_ONCE, Sweeper
from messaging.conf import AliasSettings
from messaging.conf.urls import parse_url
from messaging.db.clock import Now
from messaging.exceptions import BrokerUnavailable
from messaging.models import EmbeddedConnection, EmbeddedMessage, EmbeddedQueue
from messaging.models.embedded import EmbeddedMessageQuerySet, key_of
from messaging.wire.envelope import ROW
from messaging.wire.properties import Properties
from tests.backends.contract import BackendContract
from tests.backends.tools import Deliveries, confirmed, message, send, unique
from tests.settings import TEST_DB
from tests.waiting import wait_until

in_database = pytest.mark.django_db(transaction=True)


def database_backend(**options: Any) -> DatabaseBroker:
    """A backend in the test database; options are those of `AliasSettings`."""
    return DatabaseBroker("default", AliasSettings(alias="default", **parse_url("database://"), **options))


@in_database
class TestEmbeddedBroker(BackendContract):
    @pytest.fixture
    def backend(self) -> Backend:
        return database_backend()

    @pytest.fixture
    def broker(self) -> Mapping[str, Any]:
        return {"url": "database://", "databases": {"default": connection.settings_dict}}


@pytest.fixture
def backend(transactional_db: None) -> DatabaseBroker:
    # So long a lease that nothing is renewed during a test but what a test renews.
    return database_backend(lease=600.0)


@pytest.fixture
def queue(backend: DatabaseBroker) -> str:
    name = unique("queue")
    backend.declare(Topology(queues=(QueueSpec(name),)))
    return name


@pytest.fixture
def sender(backend: DatabaseBroker) -> Sender:
    sender = backend.sender()
    sender.open()
    return sender


def stored(queue: str) -> int:
    return EmbeddedMessage.objects.filter(queue__key=key_of(queue)).count()


# Leases


def test_what_a_receiver_holds_goes_to_others_when_its_lease_ran_out(
    backend: DatabaseBroker, queue: str, sender: Sender, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("messaging.backends.database.feed.CHORES", 3600.0)  # nobody sweeps but this test
    frozen, other = Deliveries(), Deliveries()
    first = backend.receiver(frozen.on_delivery, frozen.on_change)
    first.open()
    first.consume(queue, 1)
    send(sender, message(queue))
    [held] = frozen.wait(1)
    wait_until(lambda: EmbeddedConnection.objects.get().queues == [queue], what="its renewal for the new consumer")
    late = EmbeddedConnection.objects.get()
    second = backend.receiver(other.on_delivery, other.on_change)
    second.open()
    second.consume(queue, 10)
    EmbeddedConnection.objects.filter(pk=late.pk).update(leased_until=Now() - timedelta(seconds=1))
    sweeper = Sweeper("default")
    assert sweeper.sweep(renewed_at=math.inf) == 0  # late once proves nothing
    assert sweeper.sweep(renewed_at=0.0) == 0  # nor twice, while nobody could renew
    assert sweeper.sweep(renewed_at=time.monotonic()) == 1
    [again] = other.wait(1)
    assert again.redelivered
    held.ack()  # under a lease that is no more: it must not take the message from its new holder
    wait_until(lambda: not first.is_open, what="the frozen receiver to notice by that")
    assert frozen.changes == 1
    assert "gave this consumer up" in first.trouble
    assert not held.is_live
    assert stored(queue) == 1
    assert again.ack()
    second.close(60)
    assert stored(queue) == 0


def test_a_lease_that_is_renewed_in_time_is_left_alone(backend: DatabaseBroker, queue: str) -> None:
    late, alive = (EmbeddedConnection.objects.create(leased_until=Now() - timedelta(seconds=1)) for _ in range(2))
    sweeper = Sweeper("default")
    assert sweeper.sweep() == 0
    assert EmbeddedConnection.objects.get_queryset().renew(alive.pk, 60.0, [])
    assert sweeper.sweep() == 1
    assert list(EmbeddedConnection.objects.all()) == [alive]
    assert not EmbeddedConnection.objects.get_queryset().renew(late.pk, 60.0, [])


def test_a_connection_that_was_ended_can_take_nothing(backend: DatabaseBroker, queue: str, sender: Sender) -> None:
    send(sender, message(queue))
    ended = EmbeddedConnection.objects.create(leased_until=Now() + timedelta(seconds=60))
    assert EmbeddedConnection.objects.get_queryset().end(ended.pk)
    queue_id = EmbeddedQueue.objects.get(key=key_of(queue)).pk
    with pytest.raises(IntegrityError):
        EmbeddedMessage.objects.get_queryset().take(queue_id, ended.pk, 10)
    assert backend.depths([queue])[0].ready == 1


def test_what_was_taken_while_the_answer_got_lost_is_delivered_all_the_same(
    backend: DatabaseBroker, queue: str, sender: Sender, monkeypatch: pytest.MonkeyPatch
) -> None:
    take = EmbeddedMessageQuerySet.take
    lost: list[EmbeddedMessage] = []

    def take_and_lose_the_first_answer(self: EmbeddedMessageQuerySet, *args: int) -> list[EmbeddedMessage]:
        taken = take(self, *args)
        if lost:
            return taken
        lost.extend(taken)
        raise OperationalError("the connection broke behind the commit")

    # In the receiver's own thread, as it happens: nobody else may take under its lease.
    monkeypatch.setattr(EmbeddedMessageQuerySet, "take", take_and_lose_the_first_answer)
    deliveries = Deliveries()
    receiver = backend.receiver(deliveries.on_delivery, deliveries.on_change)
    receiver.open()
    receiver.consume(queue, 10)
    send(sender, message(queue, b"lost"))
    wait_until(lambda: lost, what="an answer to be lost")
    send(sender, message(queue, b"next"))
    found = {delivery.body: delivery for delivery in deliveries.wait(2)}
    assert set(found) == {bytes(lost[0].body), b"next"}
    assert not found[b"lost"].redelivered  # nobody has seen it
    assert all(delivery.ack() for delivery in found.values())
    receiver.close(60)
    assert stored(queue) == 0


def test_what_a_dead_process_held_is_free_before_its_lease_ends(
    backend: DatabaseBroker, queue: str, sender: Sender
) -> None:
    send(sender, message(queue))
    dead = EmbeddedConnection.objects.create(
        process=identity_of_a_dead_process(), leased_until=Now() + timedelta(hours=1)
    )
    queue_id = EmbeddedQueue.objects.get(key=key_of(queue)).pk
    assert len(EmbeddedMessage.objects.get_queryset().take(queue_id, dead.pk, 10)) == 1
    deliveries = Deliveries()
    receiver = backend.receiver(deliveries.on_delivery, deliveries.on_change)
    receiver.open()
    receiver.consume(queue, 1)
    [delivery] = deliveries.wait(1)
    assert delivery.redelivered
    assert delivery.ack()
    receiver.close(60)
    assert not EmbeddedConnection.objects.exists()


def identity_of_a_dead_process() -> str:
    code = "django.setup(); from messaging.backends.database import processes; print(processes.identity())"
    done = subprocess.run(
        [sys.executable, "-c", f"import django; {code}"],
        env=os.environ | {"DJANGO_SETTINGS_MODULE": "tests.settings", "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
        timeout=240,
    )
    return done.stdout.strip()


def test_only_a_process_that_surely_ended_is_called_dead() -> None:
    assert not processes.has_ended(processes.identity())
    machine, _, rest = processes.identity().rpartition(" ")[0].rpartition(" ")
    assert processes.has_ended(f"{machine} {rest} another-start")  # its number was given to another
    assert not processes.has_ended(f"elsewhere {rest} 1")
    assert not processes.has_ended("")
    assert not processes.has_ended("nonsense")


@pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="needs /proc")
def test_a_process_that_nobody_collected_yet_has_ended() -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    wait_until(lambda: processes._started(child.pid) == "ended")
    machine = processes.identity().rpartition(" ")[0].rpartition(" ")[0]
    assert processes.has_ended(f"{machine} {child.pid} 1")
    child.wait()


# Trouble


def test_a_deleted_queue_ends_its_consumer_and_no_other(backend: DatabaseBroker, queue: str, sender: Sender) -> None:
    gone = unique("gone")
    backend.declare(Topology(queues=(QueueSpec(gone),)))
    deliveries = Deliveries()
    receiver = backend.receiver(deliveries.on_delivery, deliveries.on_change)
    receiver.open()
    receiver.consume(queue, 10)
    receiver.consume(gone, 10)
    backend.purge_and_delete(Topology(queues=(QueueSpec(gone),)))
    wait_until(lambda: deliveries.changes == 1)
    assert receiver.consuming == {queue}
    assert gone in receiver.trouble
    send(sender, message(queue))
    assert deliveries.wait(1)[0].ack()
    receiver.close(60)


def test_a_message_for_a_queue_that_was_deleted_is_unroutable(
    backend: DatabaseBroker, queue: str, sender: Sender
) -> None:
    backend.purge_and_delete(Topology(queues=(QueueSpec(queue),)))
    [outcome] = send(sender, message(queue))
    assert outcome.fate is Fate.UNROUTABLE
    assert queue in outcome.reason


def test_a_message_that_the_database_refuses_fails_alone(backend: DatabaseBroker, queue: str, sender: Sender) -> None:
    table, sqlite = "messaging_embeddedmessage", connection.vendor == "sqlite"
    text = {"postgresql": "convert_from(body, 'UTF8')", "mysql": "CONVERT(body USING utf8mb4)"}.get(connection.vendor)
    trigger = "BEFORE INSERT ON {} WHEN CAST(NEW.body AS TEXT) = 'poison' BEGIN SELECT RAISE(ABORT, 'refuse'); END"
    with connection.cursor() as cursor:
        if sqlite:
            cursor.execute(f"CREATE TRIGGER refuse {trigger.format(table)}")
        else:
            cursor.execute(f"ALTER TABLE {table} ADD CONSTRAINT refuse CHECK ({text} <> 'poison')")
    try:
        outcomes = send(sender, message(queue), message(queue, b"poison"), message(queue))
    finally:
        with connection.cursor() as cursor:
            cursor.execute("DROP TRIGGER refuse" if sqlite else f"ALTER TABLE {table} DROP CONSTRAINT refuse")
    assert [outcome.fate for outcome in outcomes] == [Fate.CONFIRMED, Fate.REFUSED, Fate.CONFIRMED]
    assert "refuse" in outcomes[1].reason
    assert stored(queue) == 2


def test_a_row_that_cannot_be_read_does_not_stop_those_behind_it(
    backend: DatabaseBroker, queue: str, sender: Sender
) -> None:
    EmbeddedMessage.objects.create(queue=EmbeddedQueue.objects.get(key=key_of(queue)), wire=b"\xff", body=b"damaged")
    send(sender, message(queue, b"behind"))
    deliveries = Deliveries()
    receiver = backend.receiver(deliveries.on_delivery, deliveries.on_change)
    receiver.open()
    receiver.consume(queue, 10)
    damaged, behind = deliveries.wait(2)
    assert (damaged.body, behind.body) == (b"damaged", b"behind")
    assert "cut short" in damaged.properties.problem
    receiver.close(60)


@pytest.mark.skipif(TEST_DB != "postgres", reason="looks at PostgreSQL's plans")
def test_taking_from_a_long_backlog_reads_no_more_than_it_takes(backend: DatabaseBroker, queue: str) -> None:
    other = unique("other")
    backend.declare(Topology(queues=(QueueSpec(other),)))
    ids = [EmbeddedQueue.objects.get(key=key_of(name)).pk for name in (other, queue)]
    rows = [EmbeddedMessage(queue_id=pk, wire=b"", body=b"") for pk in ids for _ in range(2000)]
    EmbeddedMessage.objects.bulk_create(rows)
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE messaging_embeddedmessage")
    # The backlog of the other queue has the lower numbers: by number alone, all of it would be read.
    plan = EmbeddedMessage.objects.get_queryset().next_ready(ids[1])[:10].explain()
    assert "messaging_embedded_ready" in plan
    assert "Sort" not in plan


def test_without_tables_every_door_says_what_to_do(backend: DatabaseBroker, queue: str, sender: Sender) -> None:
    deliveries = Deliveries()
    with connection.cursor() as cursor:
        cursor.execute("ALTER TABLE messaging_embeddedqueue RENAME TO hidden")
    try:
        with pytest.raises(BrokerUnavailable, match="migrate --database default"):
            sender.send([message(queue)])
        assert not sender.is_open
        with pytest.raises(BrokerUnavailable, match="migrate"):
            backend.depths([queue])
        with pytest.raises(BrokerUnavailable, match="migrate"):
            backend.declare(Topology(queues=(QueueSpec(queue),)))
        with transaction.atomic():  # a page that asks goes on in its own transaction
            with pytest.raises(BrokerUnavailable, match="migrate"):
                backend.depths([queue])
            assert EmbeddedMessage.objects.count() == 0
        receiver = backend.receiver(deliveries.on_delivery, deliveries.on_change)
        receiver.open()
        with pytest.raises(BrokerUnavailable, match="migrate"):
            receiver.consume(queue, 1)
        receiver.close(60)
    finally:
        with connection.cursor() as cursor:
            cursor.execute("ALTER TABLE hidden RENAME TO messaging_embeddedqueue")


# Routing


def test_an_exchange_routes_by_its_type(backend: DatabaseBroker, sender: Sender) -> None:
    names = {type_: unique(type_) for type_ in ("topic", "direct", "fanout")}
    queues = tuple(
        QueueSpec(unique(f"{type_}-queue"), bindings=((exchange, "a.*"),)) for type_, exchange in names.items()
    )
    topology = Topology(tuple(ExchangeSpec(exchange, type_) for type_, exchange in names.items()), queues)
    assert backend.declare(topology) == []
    routes = Routes.read("default")
    found = {
        type_: [bool(routes.find(exchange, key)) for key in ("a.b", "a.*", "c")] for type_, exchange in names.items()
    }
    assert found == {"topic": [True, True, False], "direct": [False, True, False], "fanout": [True, True, True]}
    assert backend.declare(topology) == []


def test_a_queue_that_is_bound_twice_gets_a_message_once(backend: DatabaseBroker, sender: Sender) -> None:
    exchange, name = unique("exchange"), unique("queue")
    bindings = ((exchange, "orders.#"), (exchange, "*.placed"))
    backend.declare(Topology((ExchangeSpec(exchange),), (QueueSpec(name, bindings=bindings),)))
    assert confirmed(send(sender, message(name, exchange=exchange, routing_key="orders.placed")))
    assert stored(name) == 1


def test_names_that_a_collation_would_equate_are_different_queues(backend: DatabaseBroker, sender: Sender) -> None:
    name = unique("queue")
    backend.declare(Topology(queues=(QueueSpec(name), QueueSpec(name.upper()))))
    assert confirmed(send(sender, message(name), message(name.upper()), message(name)))
    assert [reading.ready for reading in backend.depths([name, name.upper()])] == [2, 1]


def test_what_a_table_cannot_do_is_said(backend: DatabaseBroker) -> None:
    queue = QueueSpec(unique("queue"), arguments={"x-max-length": 5}, bindings=(("", "elsewhere"),))
    topology = Topology((ExchangeSpec(unique("exchange"), "headers"),), (queue,))
    for found in (backend.declare(topology), backend.compare(topology)):
        problems = " ".join(difference.problem for difference in found)
        assert {difference.severity for difference in found} == {"warning"}
        assert "x-max-length has no effect" in problems
        assert "headers" in problems
        assert "default exchange" in problems


def test_dead_letters_follow_the_newest_declaration(backend: DatabaseBroker) -> None:
    name = unique("queue")
    without, with_ = (Topology(queues=(QueueSpec(name, dead_letter=dead),)) for dead in (False, True))
    backend.declare(without)
    [difference] = [found for found in backend.compare(with_) if name + ".dead" not in found.subject]
    assert difference.severity == "loss"
    backend.declare(with_)
    assert backend.compare(with_) == []


def test_a_message_that_expires_without_a_dead_letter_queue_is_dropped(backend: DatabaseBroker, sender: Sender) -> None:
    name = unique("queue")
    backend.declare(Topology(queues=(QueueSpec(name, dead_letter=False),)))
    send(sender, message(name, expiration="0"), message(name, b"stays"))
    wait_until(lambda: EmbeddedMessage.objects.get_queryset().expired().exists())
    Sweeper("default").sweep()
    assert [bytes(row.body) for row in EmbeddedMessage.objects.filter(queue__name=name)] == [b"stays"]


def test_messages_that_expire_in_crowds_are_seen_to_without_a_pause_between(
    backend: DatabaseBroker, queue: str, sender: Sender, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("messaging.backends.database.feed.CHORES", 3600.0)
    count = 2 * AT_ONCE + 1
    row, wire, past = EmbeddedQueue.objects.get(key=key_of(queue)), letters.seal(message(queue)), Now() - timedelta(1)
    EmbeddedMessage.objects.bulk_create(
        EmbeddedMessage(queue=row, wire=wire, body=b"", expires_at=past) for _ in range(count)
    )
    deliveries = Deliveries()
    receiver = backend.receiver(deliveries.on_delivery, deliveries.on_change)
    receiver.open()
    dead = f"{queue}.dead"
    wait_until(lambda: backend.depths([dead])[0].ready == count, what="all to become dead letters")
    receiver.close(60)


def test_an_expiration_that_is_no_number_is_refused(backend: DatabaseBroker, queue: str, sender: Sender) -> None:
    [outcome] = send(sender, message(queue, expiration="soon"))
    assert outcome.fate is Fate.REFUSED
    assert "soon" in outcome.reason


def test_an_idle_receiver_writes_nothing_but_its_lease(backend: DatabaseBroker, queue: str) -> None:
    deliveries = Deliveries()
    receiver = backend.receiver(deliveries.on_delivery, deliveries.on_change)
    receiver.open()
    receiver.consume(queue, 5)
    until = EmbeddedConnection.objects.values_list("leased_until", flat=True)
    wait_until(lambda: backend.depths([queue])[0].consumers == 1)
    before = list(until)
    deadline = time.monotonic() + 1.0
    wait_until(lambda: time.monotonic() > deadline)
    assert list(until) == before
    receiver.close(60)


# Letters

text = st.text(max_size=60).map(lambda value: value.encode("utf-8", "surrogatepass").decode("utf-8", "surrogateescape"))


@given(exchange=text, routing_key=text, headers=st.dictionaries(st.text(max_size=20), st.text(max_size=20)))
@example(exchange="", routing_key="", headers={ROW: "from elsewhere"})
def test_a_letter_is_read_as_it_was_written(exchange: str, routing_key: str, headers: dict[str, str]) -> None:
    properties = Properties.build(message_id="one", delivery_mode=2, headers=headers)
    outgoing = Outgoing("token", exchange, routing_key, properties.encode(), b"")
    letter = letters.unseal(letters.seal(outgoing))
    assert (letter.exchange, letter.routing_key) == (exchange, routing_key)
    assert letter.properties.headers == {**headers, ROW: "token"}
    without = properties.edited(drop_headers=[ROW])
    assert letter.properties.edited(drop_headers=[ROW]).encode() == without.encode()
