"""What every backend promises, as tests: subclass `BackendContract` and give it a `backend` fixture."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from subprocess import PIPE
from typing import Any

import pytest

from messaging.backends.base import Backend, ExchangeSpec, Fate, QueueSpec, Receiver, Sender, Topology
from messaging.exceptions import BrokerUnavailable, TopologyError
from messaging.wire.envelope import ROW
from messaging.wire.fields import encode_table
from messaging.wire.properties import Properties
from tests.backends.tools import CountedDeliveries, Deliveries, confirmed, message, send, unique
from tests.site import ROOT
from tests.waiting import wait_until

MB = 1024 * 1024


class BackendContract:
    """Sentences about a backend. `queue` is a fresh, bound queue with a dead-letter queue; `exchange` feeds it."""

    @pytest.fixture
    def backend(self) -> Backend:
        """The backend under test."""
        raise NotImplementedError

    @pytest.fixture
    def broker(self) -> Mapping[str, Any]:
        """The `url` of the broker and the `databases` of Django, for another process."""
        raise NotImplementedError

    @pytest.fixture
    def exchange(self) -> str:
        return unique("exchange")

    @pytest.fixture
    def topology(self, exchange: str) -> Topology:
        name = unique("queue")
        return Topology((ExchangeSpec(exchange),), (QueueSpec(name, bindings=((exchange, "orders.#"),)),))

    @pytest.fixture
    def queue(self, backend: Backend, topology: Topology) -> Iterator[str]:
        assert backend.declare(topology) == []
        yield topology.queues[0].name
        backend.purge_and_delete(topology)

    @pytest.fixture
    def sender(self, backend: Backend) -> Iterator[Sender]:
        sender = backend.sender()
        sender.open()
        yield sender
        sender.close()

    @contextmanager
    def receiving(self, backend: Backend, queue: str, prefetch: int = 100) -> Iterator[tuple[Receiver, Deliveries]]:
        deliveries = Deliveries()
        receiver = backend.receiver(deliveries.on_delivery, deliveries.on_change)
        receiver.open()
        receiver.consume(queue, prefetch)
        yield receiver, deliveries
        receiver.close(60)

    def depth(self, backend: Backend, queue: str) -> int | None:
        return backend.depths([queue])[0].ready

    # Sending

    def test_a_sent_message_is_confirmed_and_delivered_to_the_byte(
        self, backend: Backend, queue: str, sender: Sender
    ) -> None:
        # In the order of their names, in which some brokers put them.
        headers = encode_table({"f": 0.1, "list": [1, "a", None], "n": 1, "table": {"x": b"\xff"}, "text": "é\udcff"})
        properties = Properties(
            content_type="application/json", content_encoding="utf-8", delivery_mode=2, priority=3, timestamp=17,
            correlation_id="c\udcff", reply_to="r", message_id="m" * 255, type="t", app_id="a", raw_headers=headers,
        )  # fmt: skip
        [outcome] = send(sender, message(queue, b"\x00\xff" * 1000, raw=properties.encode()))
        assert outcome.fate is Fate.CONFIRMED
        assert sender.under_way == 0
        with self.receiving(backend, queue) as (_, deliveries):
            [delivery] = deliveries.wait(1)
            assert delivery.ack()
        assert delivery.body == b"\x00\xff" * 1000
        assert (delivery.queue, delivery.exchange, delivery.routing_key) == (queue, "", queue)
        assert delivery.redelivered is False
        assert delivery.properties.problem == ""
        assert delivery.properties.edited(drop_headers=[ROW]) == properties

    def test_the_row_header_names_the_token(self, backend: Backend, queue: str, sender: Sender) -> None:
        sent = message(queue, headers={"user": "kept"})
        assert confirmed(send(sender, sent))
        with self.receiving(backend, queue) as (_, deliveries):
            [delivery] = deliveries.wait(1)
            delivery.ack()
        assert delivery.properties.headers == {ROW: sent.token, "user": "kept"}

    def test_an_empty_body_and_no_properties_travel(self, backend: Backend, queue: str, sender: Sender) -> None:
        assert confirmed(send(sender, message(queue, b"", raw=Properties().encode())))
        with self.receiving(backend, queue) as (_, deliveries):
            [delivery] = deliveries.wait(1)
            delivery.ack()
        assert delivery.body == b""

    def test_the_exchange_routes_by_pattern(self, backend: Backend, queue: str, exchange: str, sender: Sender) -> None:
        assert confirmed(send(sender, message(queue, exchange=exchange, routing_key="orders.placed.eu")))
        with self.receiving(backend, queue) as (_, deliveries):
            [delivery] = deliveries.wait(1)
            delivery.ack()
        assert (delivery.exchange, delivery.routing_key) == (exchange, "orders.placed.eu")

    def test_a_message_that_no_queue_takes_is_unroutable(self, queue: str, exchange: str, sender: Sender) -> None:
        good, bad, more = (
            message(queue, exchange=exchange, routing_key=key) for key in ("orders.a", "nobody.cares", "orders.b")
        )
        outcomes = send(sender, good, bad, more)
        assert [outcome.fate for outcome in outcomes] == [Fate.CONFIRMED, Fate.UNROUTABLE, Fate.CONFIRMED]
        assert exchange in outcomes[1].reason
        assert "nobody.cares" in outcomes[1].reason

    def test_an_unroutable_message_that_may_be_dropped_is_confirmed(
        self, queue: str, exchange: str, sender: Sender
    ) -> None:
        assert confirmed(send(sender, message(queue, exchange=exchange, routing_key="none", mandatory=False)))

    def test_a_missing_exchange_is_unroutable_and_its_batch_mates_can_be_sent_again(
        self, backend: Backend, queue: str, sender: Sender
    ) -> None:
        missing = unique("no-such-exchange")
        batch = [message(queue, str(number).encode()) for number in range(40)]
        bad = message(queue, exchange=missing)
        outcomes = send(sender, *batch[:20], bad, *batch[20:])
        assert outcomes[20].fate is Fate.UNROUTABLE
        assert missing in outcomes[20].reason
        mates = outcomes[:20] + outcomes[21:]
        assert {outcome.fate for outcome in mates} <= {Fate.CONFIRMED, Fate.SUSPECT}
        again = [mate for mate, outcome in zip(batch, mates, strict=True) if outcome.fate is Fate.SUSPECT]
        for one in again:
            assert confirmed(send(sender, one))
        with self.receiving(backend, queue) as (_, deliveries):
            wait_until(lambda: {one.body for one in deliveries.all} == {mate.body for mate in batch})
            for delivery in deliveries.all:
                delivery.ack()

    def test_what_cannot_be_encoded_is_refused_alone(self, queue: str, sender: Sender) -> None:
        outcomes = send(sender, message(queue), message(queue, routing_key="é" * 200), message(queue))
        assert [outcome.fate for outcome in outcomes] == [Fate.CONFIRMED, Fate.REFUSED, Fate.CONFIRMED]
        assert "255" in outcomes[1].reason

    def test_thousands_are_under_way_at_once(self, backend: Backend, queue: str, sender: Sender) -> None:
        batch = [message(queue) for _ in range(3000)]
        assert confirmed(send(sender, *batch))
        wait_until(lambda: self.depth(backend, queue) == 3000)

    def test_outcomes_return_after_the_timeout_and_when_woken(self, sender: Sender) -> None:
        assert sender.outcomes(0.05) == []
        sender.wake()
        assert sender.outcomes(60) == []

    def test_sending_while_closed_hands_nothing_over(self, backend: Backend, queue: str) -> None:
        sender = backend.sender()
        assert not sender.is_open
        with pytest.raises(BrokerUnavailable):
            sender.send([message(queue)])
        assert sender.under_way == 0
        assert sender.outcomes(0) == []
        sender.close()

    def test_a_closed_sender_can_be_opened_again(self, queue: str, sender: Sender) -> None:
        sender.close()
        sender.close()
        wait_until(lambda: not sender.is_open)
        sender.open()
        sender.open()
        assert sender.is_open
        assert confirmed(send(sender, message(queue)))

    # Receiving

    def test_no_more_bytes_are_delivered_than_may_be_held(self, backend: Backend, queue: str, sender: Sender) -> None:
        size = 1024 * 1024
        assert confirmed(send(sender, *(message(queue, b"x" * size) for _ in range(6))))
        deliveries = CountedDeliveries(5 * size // 2)
        receiver = backend.receiver(deliveries.on_delivery, deliveries.on_change, deliveries.allowance)
        receiver.open()
        receiver.consume(queue, 10)
        deliveries.wait(1)
        assert self.depth(backend, queue) == 5, "it begins with one"
        receiver.widen({queue})
        deliveries.wait(2)
        for number in range(6):
            deliveries.finish(deliveries.wait(number + 1)[number])
        assert deliveries.most == 2 * size
        receiver.close(60)
        assert self.depth(backend, queue) == 0

    def test_the_only_message_may_exceed_what_may_be_held_together(
        self, backend: Backend, queue: str, sender: Sender
    ) -> None:
        assert confirmed(send(sender, message(queue, b"x" * 900), message(queue, b"y" * 1000)))
        deliveries = CountedDeliveries(1000)
        receiver = backend.receiver(deliveries.on_delivery, deliveries.on_change, deliveries.allowance)
        receiver.open()
        receiver.consume(queue, 10)
        receiver.widen({queue})
        for number in range(2):
            deliveries.finish(deliveries.wait(number + 1)[number])
        assert deliveries.most == 1000
        receiver.close(60)

    def test_what_is_too_large_goes_to_a_file(self, backend: Backend, queue: str, sender: Sender) -> None:
        bodies = (b"x" * 100, b"\x00\xff" * (4 * MB) + b"end", b"y" * 2 * MB, b"z" * 100)
        for body in bodies:
            assert confirmed(send(sender, message(queue, body)))
        deliveries = CountedDeliveries(MB)
        receiver = backend.receiver(deliveries.on_delivery, deliveries.on_change, deliveries.allowance)
        receiver.open()
        receiver.consume(queue, 10)
        receiver.widen({queue})
        found = []
        for number, body in enumerate(bodies):
            delivery = deliveries.wait(number + 1)[number]
            if delivery.spool is not None:
                assert (delivery.body, delivery.spool.size, delivery.spool.trouble) == (b"", len(body), "")
                found.append(b"".join(delivery.spool.pieces()))
                delivery.spool.close()
            else:
                found.append(delivery.body)
            deliveries.finish(delivery)
        assert found == list(bodies)
        assert deliveries.most <= 200
        receiver.close(60)
        assert self.depth(backend, queue) == 0

    def test_an_acknowledged_message_is_gone(self, backend: Backend, queue: str, sender: Sender) -> None:
        send(sender, message(queue))
        with self.receiving(backend, queue) as (_, deliveries):
            [delivery] = deliveries.wait(1)
            assert delivery.is_live
            assert delivery.ack()
            assert delivery.ack()  # once more does no harm
        wait_until(lambda: self.depth(backend, queue) == 0)
        wait_until(lambda: not delivery.is_live)

    def test_acknowledgements_handed_over_before_close_arrive(
        self, backend: Backend, queue: str, sender: Sender
    ) -> None:
        assert confirmed(send(sender, *(message(queue) for _ in range(500))))
        with self.receiving(backend, queue, prefetch=500) as (_, deliveries):
            for delivery in deliveries.wait(500):
                assert delivery.ack()
        wait_until(lambda: self.depth(backend, queue) == 0)

    def test_a_requeued_message_comes_again_as_redelivered(self, backend: Backend, queue: str, sender: Sender) -> None:
        send(sender, message(queue))
        with self.receiving(backend, queue) as (_, deliveries):
            [first] = deliveries.wait(1)
            assert first.requeue()
            second = deliveries.wait(2)[1]
            assert second.redelivered
            assert second.ack()
        wait_until(lambda: self.depth(backend, queue) == 0)

    def test_a_message_that_comes_again_says_how_often_it_came_back(
        self, backend: Backend, queue: str, sender: Sender
    ) -> None:
        send(sender, message(queue, headers={"user": "kept"}))
        with self.receiving(backend, queue) as (_, deliveries):
            for times in (1, 2, 3):
                newest = deliveries.wait(times)[-1]
                headers = newest.properties.headers
                # Since RabbitMQ 4.3 what is given back no longer counts towards a queue's limit, and is counted apart.
                assert headers.get("x-acquired-count", headers.get("x-delivery-count", 0)) == times - 1
                assert headers["user"] == "kept"
                assert newest.requeue() if times < 3 else newest.ack()

    def test_two_receivers_share_a_queue(self, backend: Backend, queue: str, sender: Sender) -> None:
        with (
            self.receiving(backend, queue, prefetch=20) as (_, ours),
            self.receiving(backend, queue, prefetch=20) as (_, theirs),
        ):
            assert confirmed(send(sender, *(message(queue, str(number).encode()) for number in range(40))))
            wait_until(lambda: len(ours.all) + len(theirs.all) == 40)
            bodies = {delivery.body for delivery in ours.all} | {delivery.body for delivery in theirs.all}
            assert len(bodies) == 40
            assert all(delivery.ack() for delivery in [*ours.all, *theirs.all])
        wait_until(lambda: self.depth(backend, queue) == 0)

    def test_a_message_that_expires_becomes_a_dead_letter(
        self, backend: Backend, topology: Topology, queue: str, exchange: str, sender: Sender
    ) -> None:
        sent = message(queue, b"late", exchange=exchange, routing_key="orders.placed", expiration="50")
        assert confirmed(send(sender, sent))
        # Some brokers look for what has expired only while somebody consumes.
        with self.receiving(backend, topology.queues[0].dead) as (_, deliveries):
            [dead] = deliveries.wait(1)
            assert dead.ack()
        assert dead.body == b"late"
        assert dead.properties.expiration is None
        [death] = dead.properties.headers["x-death"]
        assert (death["reason"], death["queue"], death["count"]) == ("expired", queue, 1)
        assert (death["exchange"], death["routing-keys"]) == (exchange, ["orders.placed"])
        wait_until(lambda: self.depth(backend, queue) == 0)

    def test_what_was_not_acknowledged_comes_again(self, backend: Backend, queue: str, sender: Sender) -> None:
        send(sender, message(queue))
        with self.receiving(backend, queue) as (_, deliveries):
            [lost] = deliveries.wait(1)
        assert lost.ack() is False
        assert lost.requeue() is False
        with self.receiving(backend, queue) as (_, deliveries):
            [again] = deliveries.wait(1)
            assert again.redelivered
            assert again.ack()

    def test_what_a_killed_process_held_comes_again(
        self, backend: Backend, broker: Mapping[str, Any], queue: str, sender: Sender
    ) -> None:
        assert confirmed(send(sender, *(message(queue, str(number).encode()) for number in range(5))))
        holder = subprocess.Popen(
            [sys.executable, "-m", "tests.backends.holder"], cwd=ROOT, stdin=PIPE, stdout=PIPE, text=True
        )
        with holder:
            assert holder.stdin is not None
            assert holder.stdout is not None
            holder.stdin.write(json.dumps({**broker, "queue": queue, "count": 5}, default=str) + "\n")
            holder.stdin.flush()
            assert holder.stdout.readline() == "holding\n"
            assert self.depth(backend, queue) == 0
            holder.kill()
        with self.receiving(backend, queue) as (_, deliveries):
            again = deliveries.wait(5)
            assert sorted(delivery.body for delivery in again) == [b"0", b"1", b"2", b"3", b"4"]
            assert all(delivery.redelivered and delivery.ack() for delivery in again)
        wait_until(lambda: self.depth(backend, queue) == 0)

    def test_prefetch_limits_what_is_held(self, backend: Backend, queue: str, sender: Sender) -> None:
        send(sender, *(message(queue) for _ in range(10)))
        with self.receiving(backend, queue, prefetch=3) as (_, deliveries):
            deliveries.wait(3)
            wait_until(lambda: self.depth(backend, queue) == 7)
            assert len(deliveries.all) == 3
            deliveries.all[0].ack()
            deliveries.wait(4)

    def test_a_cancelled_consumer_gets_no_more_but_settles_what_it_has(
        self, backend: Backend, queue: str, sender: Sender
    ) -> None:
        send(sender, *(message(queue) for _ in range(4)))
        with self.receiving(backend, queue, prefetch=2) as (receiver, deliveries):
            held = deliveries.wait(2)
            receiver.cancel(queue)
            receiver.cancel(queue)
            assert receiver.consuming == frozenset()
            assert all(delivery.is_live for delivery in held)
            assert held[0].ack()
            wait_until(lambda: self.depth(backend, queue) == 2)  # nothing that was handed over went back
            assert len(deliveries.all) == 2
            receiver.consume(queue, 10)
            deliveries.wait(4)
            assert not any(delivery.redelivered for delivery in deliveries.all)
            assert held[1].ack()
            for delivery in deliveries.all[2:]:
                assert delivery.ack()
        wait_until(lambda: self.depth(backend, queue) == 0)
        assert deliveries.changes == 0
        assert receiver.trouble == ""

    def test_acknowledgements_after_cancelling_arrive(self, backend: Backend, queue: str, sender: Sender) -> None:
        assert confirmed(send(sender, *(message(queue) for _ in range(300))))
        with self.receiving(backend, queue, prefetch=300) as (receiver, deliveries):
            held = deliveries.wait(300)
            receiver.cancel(queue)
            for delivery in held:
                assert delivery.ack()
        wait_until(lambda: self.depth(backend, queue) == 0)

    def test_deliveries_are_settled_from_many_threads(self, backend: Backend, queue: str, sender: Sender) -> None:
        assert confirmed(send(sender, *(message(queue) for _ in range(400))))
        with self.receiving(backend, queue, prefetch=400) as (_, deliveries), ThreadPoolExecutor(8) as threads:
            held = deliveries.wait(400)
            assert all(threads.map(lambda delivery: delivery.ack(), held))
        wait_until(lambda: self.depth(backend, queue) == 0)

    def test_consuming_from_a_missing_queue_is_a_topology_error(
        self, backend: Backend, queue: str, sender: Sender
    ) -> None:
        missing = unique("no-such-queue")
        with self.receiving(backend, queue) as (receiver, deliveries):
            with pytest.raises(TopologyError, match=missing):
                receiver.consume(missing, 1)
            assert receiver.consuming == {queue}
            send(sender, message(queue))
            assert deliveries.wait(1)[0].ack()

    # The topology

    def test_declaring_twice_changes_nothing(
        self, backend: Backend, queue: str, topology: Topology, sender: Sender
    ) -> None:
        send(sender, message(queue))
        assert backend.declare(topology) == []
        assert list(backend.compare(topology)) == []
        assert self.depth(backend, queue) == 1

    def test_comparing_creates_nothing_and_names_what_is_missing(self, backend: Backend, topology: Topology) -> None:
        found = backend.compare(topology)
        assert {difference.severity for difference in found} == {"missing"}
        subjects = " ".join(difference.subject for difference in found)
        assert topology.queues[0].name in subjects
        assert topology.queues[0].dead in subjects
        assert topology.exchanges[0].name in subjects
        assert [reading.exists for reading in backend.depths([topology.queues[0].name])] == [False]

    def test_a_foreign_queue_is_looked_at_but_never_created(self, backend: Backend) -> None:
        topology = Topology(queues=(QueueSpec(unique("foreign"), declare=False),))
        [difference] = backend.declare(topology)
        assert difference.severity == "missing"
        assert "owns" in difference.way_out
        assert backend.depths([topology.queues[0].name])[0].exists is False

    def test_depths_tell_what_waits_from_what_is_held(self, backend: Backend, queue: str, sender: Sender) -> None:
        send(sender, *(message(queue) for _ in range(5)))
        with self.receiving(backend, queue, prefetch=2) as (_, deliveries):
            deliveries.wait(2)
            wait_until(lambda: self.depth(backend, queue) == 3)

            def is_told() -> bool:  # each statistic has a time of its own
                [reading] = backend.depths([queue])  # a source may not know, but never says 0 instead
                return reading.consumers == 1 and reading.unacked in (2, None)

            wait_until(is_told)
        wait_until(lambda: self.depth(backend, queue) == 5)

    def test_depths_know_what_is_not_there(self, backend: Backend, queue: str, sender: Sender) -> None:
        send(sender, message(queue), message(queue))
        missing = unique("nothing")
        known, unknown = backend.depths([queue, missing])
        assert (known.queue, known.ready, known.exists) == (queue, 2, True)
        assert (unknown.queue, unknown.ready, unknown.exists) == (missing, None, False)
        assert known.source
