"""What is particular to RabbitMQ: its ways of refusing, losing and hiding things, against a real broker."""

from __future__ import annotations

import logging
import math
import struct
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

import pika
import pytest
from pika.adapters.blocking_connection import BlockingChannel

from messaging.backends.base import Difference, ExchangeSpec, Fate, QueueSpec, Topology
from messaging.backends.rabbitmq import RabbitMQ, parameters
from messaging.backends.rabbitmq.connection import Connection
from messaging.backends.rabbitmq.topology import differences
from messaging.exceptions import BrokerUnavailable, ConfigurationError, QueueUnavailable, TopologyError
from messaging.wire.envelope import ROW
from messaging.wire.fields import encode_table
from messaging.wire.properties import Properties
from tests.backends.rabbitmq_settings import rabbitmq_backend
from tests.backends.tools import Deliveries, confirmed, crashed, fates, message, send, unique
from tests.services import Broker
from tests.waiting import wait_until
from tools.proxy import Proxy
from tools.rabbitmq import RabbitMQ as Node

pytestmark = pytest.mark.broker


@pytest.fixture
def backend(broker_url: str) -> RabbitMQ:
    return rabbitmq_backend(broker_url)


@pytest.fixture
def channel(broker_url: str) -> Iterator[BlockingChannel]:
    """An ordinary pika channel, for doing what others do to our broker."""
    connection = pika.BlockingConnection(pika.URLParameters(broker_url))
    yield connection.channel()
    if connection.is_open:
        connection.close()


@pytest.fixture
def queue(channel: BlockingChannel) -> Iterator[str]:
    name = unique("queue")
    channel.queue_declare(name, durable=True)
    yield name
    channel.connection.channel().queue_delete(name)


@pytest.fixture
def proxy(broker_url: str) -> Iterator[Proxy]:
    url = urlsplit(broker_url)
    with Proxy(url.hostname or "localhost", url.port or 5672) as proxy:
        yield proxy


def through(broker_url: str, proxy: Proxy, **options: Any) -> RabbitMQ:
    """A backend that reaches the broker through a proxy only."""
    url = urlsplit(broker_url)
    return rabbitmq_backend(
        url._replace(netloc=f"{url.username}:{url.password}@127.0.0.1:{proxy.port}").geturl(), **options
    )


class TestSending:
    def test_a_bad_expiration_is_refused_when_it_is_alone(self, backend: RabbitMQ, queue: str) -> None:
        sender = backend.sender()
        sender.open()
        good, bad = message(queue), message(queue, expiration="-1")
        outcomes = send(sender, good, bad)
        assert outcomes[0].fate in (Fate.CONFIRMED, Fate.SUSPECT)
        assert outcomes[1].fate in (Fate.REFUSED, Fate.SUSPECT)
        [alone] = send(sender, bad)
        assert alone.fate is Fate.REFUSED
        assert "expiration" in alone.reason
        assert confirmed(send(sender, good))
        sender.close()

    @pytest.mark.mode(11)
    def test_a_header_that_breaks_the_connection_is_refused_when_it_is_alone(
        self, backend: RabbitMQ, queue: str
    ) -> None:
        """NaN makes RabbitMQ close the connection with 541; our own codec refuses it, other rows may still hold it."""
        nan = b"\x01nd" + struct.pack(">d", math.nan)
        bad = message(queue, raw=Properties(raw_headers=nan).encode())
        sender = backend.sender()
        sender.open()
        outcomes = send(sender, message(queue), message(queue), bad)
        assert {outcome.fate for outcome in outcomes} <= {Fate.CONFIRMED, Fate.SUSPECT, Fate.REFUSED}
        wait_until(lambda: not sender.is_open)
        sender.open()
        [alone] = send(sender, bad)
        assert alone.fate is Fate.REFUSED
        assert "541" in alone.reason
        sender.open()
        assert confirmed(send(sender, message(queue)))
        sender.close()

    def test_headers_larger_than_a_frame_are_refused_without_a_word_to_the_broker(
        self, backend: RabbitMQ, queue: str
    ) -> None:
        sender = backend.sender()
        sender.open()
        outcomes = send(sender, message(queue), message(queue, headers={"big": "x" * 200_000}), message(queue))
        assert [outcome.fate for outcome in outcomes] == [Fate.CONFIRMED, Fate.REFUSED, Fate.CONFIRMED]
        sender.close()

    @pytest.mark.slow
    @pytest.mark.mode(10)
    def test_a_body_over_the_broker_s_limit_is_refused_when_it_is_alone(self, backend: RabbitMQ, queue: str) -> None:
        sender = backend.sender()
        sender.open()
        [outcome] = send(sender, message(queue, b"x" * (128 * 1024 * 1024 + 1)))
        assert outcome.fate is Fate.REFUSED
        assert "size" in outcome.reason
        wait_until(lambda: sender.is_open)
        assert confirmed(send(sender, message(queue)))
        sender.close()

    def test_a_body_of_several_frames_arrives_whole(self, backend: RabbitMQ, queue: str) -> None:
        body = bytes(range(256)) * 4096
        sender, deliveries = backend.sender(), Deliveries()
        sender.open()
        assert confirmed(send(sender, message(queue, body)))
        sender.close()
        receiver = backend.receiver(deliveries.on_delivery, deliveries.on_change)
        receiver.open()
        receiver.consume(queue, 1)
        [delivery] = deliveries.wait(1)
        assert delivery.body == body
        assert delivery.ack()
        receiver.close()

    def test_a_full_queue_is_a_nack(self, backend: RabbitMQ) -> None:
        limits = {"x-max-length": 1, "x-overflow": "reject-publish"}
        topology = Topology(queues=(QueueSpec(unique("full"), type="classic", arguments=limits),))
        backend.declare(topology)
        sender = backend.sender()
        sender.open()
        outcomes = [send(sender, message(topology.queues[0].name))[0] for _ in range(3)]
        assert [outcome.fate for outcome in outcomes] == [Fate.CONFIRMED, Fate.NACKED, Fate.NACKED]
        sender.close()
        backend.purge_and_delete(topology)

    def test_a_refused_exchange_is_not_retried_forever(
        self, backend: RabbitMQ, channel: BlockingChannel, queue: str
    ) -> None:
        internal = unique("internal")
        channel.exchange_declare(internal, "topic", internal=True)
        sender = backend.sender()
        sender.open()
        [outcome] = send(sender, message(queue, exchange=internal))
        assert outcome.fate is Fate.REFUSED
        assert "403" in outcome.reason
        sender.close()
        channel.exchange_delete(internal)

    def test_returned_before_the_channel_was_closed_is_still_unroutable(self, backend: RabbitMQ, queue: str) -> None:
        sender = backend.sender()
        sender.open()
        unroutable = [message(unique("nobody")) for _ in range(20)]
        outcomes = send(sender, *unroutable, message(queue, exchange=unique("missing")))
        assert {outcome.fate for outcome in outcomes[:20]} <= {Fate.UNROUTABLE, Fate.SUSPECT}
        assert outcomes[0].fate is Fate.UNROUTABLE
        sender.close()

    def test_two_missing_exchanges_in_one_batch(self, backend: RabbitMQ, queue: str) -> None:
        first, second = (message(queue, exchange=unique("missing")) for _ in range(2))
        sender = backend.sender()
        sender.open()
        outcomes = send(sender, first, message(queue), second)
        assert [outcome.fate for outcome in outcomes] == [Fate.UNROUTABLE, Fate.SUSPECT, Fate.SUSPECT]
        assert send(sender, second)[0].fate is Fate.UNROUTABLE
        assert confirmed(send(sender, message(queue)))
        sender.close()


class TestLosingTheConnection:
    def test_a_request_just_after_the_loss_says_that_the_broker_is_away(self, broker_url: str) -> None:
        connection = Connection(rabbitmq_backend(broker_url).settings, "control")
        connection.open()

        def ask(answer: Future[None]) -> None:
            state, connection.io.connection_state = connection.io.connection_state, connection.io.CONNECTION_CLOSED
            try:  # closed, and nobody has been told yet
                connection.io.channel(on_open_callback=lambda _: None)
            finally:
                connection.io.connection_state = state

        with pytest.raises(BrokerUnavailable):
            connection.call(ask, 10)
        connection.close()

    @pytest.mark.parametrize("way", ["cut", "reset"])
    @pytest.mark.mode(5)
    def test_what_was_not_confirmed_is_unknown_and_the_sender_opens_again(
        self, broker_url: str, proxy: Proxy, queue: str, caplog: pytest.LogCaptureFixture, way: str
    ) -> None:
        caplog.set_level(logging.DEBUG, "messaging.rabbitmq")
        sender = through(broker_url, proxy).sender()
        sender.open()
        proxy.silent_downstream = True
        batch = [message(queue) for _ in range(300)]
        sender.send(batch)
        assert sender.under_way == 300
        getattr(proxy, way)()
        outcomes = fates(sender, batch)
        assert {outcome.fate for outcome in outcomes.values()} == {Fate.UNKNOWN}
        assert not sender.is_open
        with pytest.raises(BrokerUnavailable):
            sender.send([message(queue)])
        assert sender.under_way == 0
        proxy.heal()
        sender.open()
        assert confirmed(send(sender, message(queue)))
        sender.close()
        lines = [record.getMessage() for record in caplog.records if record.name == "messaging.rabbitmq"]
        assert len(lines) == 2
        assert "lost" in lines[0]
        assert "again" in lines[1]

    def test_a_connection_that_ends_late_ends_nothing_of_the_next_one(
        self, backend: RabbitMQ, queue: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The thread of the first is busy for longer than anybody waits for its end."""
        is_busy, is_free = threading.Event(), threading.Event()
        sender, others = backend.sender(), set(threading.enumerate())

        def hang(*_: object) -> None:
            is_busy.set()
            is_free.wait()

        def is_open() -> bool:
            with suppress(BrokerUnavailable):  # the first has not ended yet
                sender.open()
            return sender.is_open

        with monkeypatch.context() as busy:
            busy.setattr("messaging.backends.rabbitmq.sender.CONNECT_TIMEOUT", 0.1)
            busy.setattr(sender, "_open_lane", hang)
            with pytest.raises(BrokerUnavailable):
                sender.open()
            assert is_busy.wait(120)
        [late] = [
            one for one in threading.enumerate() if one.name == "messaging-rabbitmq-publisher" and one not in others
        ]
        timer = threading.Timer(1, is_free.set)
        timer.start()
        wait_until(is_open)
        timer.join()
        late.join()
        assert confirmed(send(sender, message(queue)))
        sender.close()

    def test_nothing_is_opened_beside_a_connection_that_does_not_end(
        self, backend: RabbitMQ, queue: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        sender = backend.sender()
        sender.open()
        connection = sender._connection
        assert connection is not None
        sender.close()
        with monkeypatch.context() as busy:
            busy.setattr(connection, "close", lambda: False)
            with pytest.raises(BrokerUnavailable, match="has not ended yet"):
                sender.open()
        sender.open()
        assert confirmed(send(sender, message(queue)))
        sender.close()

    def test_a_host_that_answers_too_late_does_not_end_the_connection_to_the_next_one(
        self, backend: RabbitMQ, broker_url: str, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        proxy.delay = 1.0
        slow = through(broker_url, proxy).settings
        hosts = [*parameters.for_hosts(slow, "late", 60), *parameters.for_hosts(backend.settings, "late", 60)]
        monkeypatch.setattr(parameters, "for_hosts", lambda *_: hosts)
        connection = Connection(backend.settings, "late")
        attempt = connection._try

        def briefly(host: pika.ConnectionParameters, timeout: float) -> Any:
            return attempt(host, -4.5 if host.port == proxy.port else timeout)  # it waits for five seconds more

        monkeypatch.setattr(connection, "_try", briefly)
        connection.open()
        for thread in threading.enumerate():
            if thread.name == "messaging-rabbitmq-late" and thread is not connection._thread:
                thread.join()
        assert connection.is_open
        assert connection.close()

    @pytest.mark.mode(4)
    @pytest.mark.mode(45)
    def test_a_silent_broker_is_left_after_two_heartbeats(self, broker_url: str, proxy: Proxy, queue: str) -> None:
        sender = through(broker_url, proxy).sender()
        assert sender._stall_after == 2 * sender._settings.heartbeat
        sender.open()
        sender._stall_after = 2.0
        proxy.silent_downstream = True
        batch = [message(queue)]
        sender.send(batch)
        [outcome] = fates(sender, batch).values()
        assert outcome.fate is Fate.UNANSWERED
        assert "no confirm" in outcome.reason
        sender.close()

    def test_closing_does_not_hang_on_a_silent_broker(self, broker_url: str, proxy: Proxy, queue: str) -> None:
        sender = through(broker_url, proxy).sender()
        sender.open()
        proxy.blackhole()
        batch = [message(queue)]
        sender.send(batch)
        sender.close(timeout=0.3)
        wait_until(lambda: not sender.is_open, deadline=50, what="its end, before that by missing heartbeats")
        assert [outcome.fate for outcome in sender.outcomes(60)] == [Fate.UNKNOWN]

    def test_a_slow_network_loses_nothing(self, broker_url: str, proxy: Proxy, queue: str) -> None:
        proxy.delay = 0.15
        sender = through(broker_url, proxy).sender()
        sender.open()
        assert confirmed(send(sender, *(message(queue) for _ in range(1000))))
        sender.close()

    @pytest.mark.mode(18)
    def test_the_next_host_is_used_when_the_first_is_down(self, broker_url: str, queue: str) -> None:
        url = urlsplit(broker_url)
        hosts = f"{url.username}:{url.password}@127.0.0.1:1,{url.hostname}:{url.port}"
        sender = rabbitmq_backend(url._replace(netloc=hosts).geturl()).sender()
        sender.open()
        assert confirmed(send(sender, message(queue)))
        sender.close()

    @pytest.mark.mode(34)
    def test_an_old_delivery_never_acknowledges_a_new_one(
        self, broker_url: str, backend: RabbitMQ, proxy: Proxy, queue: str
    ) -> None:
        sender = backend.sender()
        sender.open()
        send(sender, message(queue, b"1"), message(queue, b"2"))
        sender.close()
        deliveries = Deliveries()
        receiver = through(broker_url, proxy).receiver(deliveries.on_delivery, deliveries.on_change)
        receiver.open()
        receiver.consume(queue, 10)
        old = deliveries.wait(2)
        proxy.reset()
        wait_until(lambda: deliveries.changes == 1)
        assert receiver.consuming == frozenset()
        assert "lost" in receiver.trouble
        assert not any(delivery.is_live or delivery.ack() or delivery.requeue() for delivery in old)
        receiver.open()
        assert receiver.trouble == ""
        receiver.consume(queue, 10)
        new = deliveries.wait(4)[2:]
        assert {delivery.body for delivery in new} == {b"1", b"2"}
        assert not any(delivery.ack() for delivery in old)
        assert new[0].ack()
        receiver.close(60)
        wait_until(lambda: backend.depths([queue])[0].ready == 1)


class TestReceiving:
    def test_a_deleted_queue_ends_its_consumer_only(
        self, backend: RabbitMQ, channel: BlockingChannel, queue: str
    ) -> None:
        doomed, deliveries = unique("doomed"), Deliveries()
        channel.queue_declare(doomed, durable=True)
        receiver = backend.receiver(deliveries.on_delivery, deliveries.on_change)
        receiver.open()
        receiver.consume(queue, 5)
        receiver.consume(doomed, 5)
        assert receiver.consuming == {queue, doomed}
        channel.queue_delete(doomed)
        wait_until(lambda: deliveries.changes == 1)
        assert receiver.consuming == {queue}
        assert receiver.is_open
        assert doomed in receiver.trouble
        channel.queue_declare(doomed, durable=True)
        receiver.consume(doomed, 5)
        assert receiver.consuming == {queue, doomed}
        assert receiver.trouble == ""
        receiver.close()
        channel.queue_delete(doomed)

    def test_a_channel_that_the_broker_closes_leaves_the_others_alone(
        self, backend: RabbitMQ, channel: BlockingChannel, queue: str
    ) -> None:
        """As a consumer timeout does: the broker closes the channel with 406."""
        other, deliveries = unique("other"), Deliveries()
        channel.queue_declare(other, durable=True)
        for name in (queue, other):
            channel.basic_publish("", name, b"body")
        receiver = backend.receiver(deliveries.on_delivery, deliveries.on_change)
        receiver.open()
        receiver.consume(queue, 5)
        receiver.consume(other, 5)
        held = {delivery.queue: delivery for delivery in deliveries.wait(2)}
        subscription = receiver._subscriptions[queue]
        subscription.connection.run(lambda: subscription._channel.basic_ack(4711))
        wait_until(lambda: deliveries.changes == 1)
        assert receiver.consuming == {other}
        assert "406" in receiver.trouble
        assert held[queue].ack() is False
        assert held[other].ack() is True
        receiver.close(60)
        wait_until(lambda: backend.depths([other, queue])[0].ready == 0)
        assert backend.depths([queue])[0].ready == 1
        channel.queue_delete(other)

    @pytest.mark.parametrize(
        "field",
        [
            b"T" + struct.pack(">Q", 1_700_000_000_000),  # milliseconds: pika drops the connection over it
            b"T" + struct.pack(">Q", 2**64 - 1),
            b"d" + struct.pack(">d", 0.1),  # pika makes 0 of it
            b"f" + struct.pack(">f", 0.5),
            b"b\xff", b"B\xff", b"s\xff\xff", b"u\xff\xff", b"I\xff\xff\xff\xff", b"i\xff\xff\xff\xff",
            b"l" + b"\xff" * 8, b"L" + b"\xff" * 8, b"D\x02\x00\x00\x01\x00", b"V", b"t\x01", b"x\0\0\0\2\xff\0",
            b"S\0\0\0\2\xff\0", b"F\0\0\0\x03\x01aV", b"A\0\0\0\x03VVV",
        ],
        ids=lambda field: field[:1].decode() + field[1:4].hex(),
    )  # fmt: skip
    @pytest.mark.mode(40)
    def test_every_header_that_the_broker_lets_through_arrives(
        self, backend: RabbitMQ, queue: str, field: bytes
    ) -> None:
        raw = b"\x04\xff\x00ab" + field + encode_table({"after": 1})
        sender, deliveries = backend.sender(), Deliveries()
        sender.open()
        assert confirmed(send(sender, message(queue, raw=Properties(raw_headers=raw).encode())))
        sender.close()
        receiver = backend.receiver(deliveries.on_delivery, deliveries.on_change)
        receiver.open()
        receiver.consume(queue, 1)
        [delivery] = deliveries.wait(1)
        assert delivery.properties.problem == ""
        assert delivery.properties.headers["after"] == 1
        same = delivery.properties.edited(drop_headers=[ROW]).raw_headers
        # RabbitMQ 4 keeps decoded values, and writes "L" and repeated names back its own way.
        assert same == raw or delivery.properties.headers.items() >= Properties(raw_headers=raw).headers.items()
        assert delivery.ack()
        receiver.close()

    def test_addresses_that_are_not_utf_8_survive(
        self, backend: RabbitMQ, channel: BlockingChannel, queue: str
    ) -> None:
        exchange, deliveries = unique("topic"), Deliveries()
        channel.exchange_declare(exchange, "fanout")
        channel.queue_bind(queue, exchange, "")
        sender = backend.sender()
        sender.open()
        assert confirmed(send(sender, message(queue, exchange=exchange, routing_key="k\udcff\udcfe")))
        sender.close()
        receiver = backend.receiver(deliveries.on_delivery, deliveries.on_change)
        receiver.open()
        receiver.consume(queue, 1)
        [delivery] = deliveries.wait(1)
        assert delivery.routing_key == "k\udcff\udcfe"
        assert delivery.ack()
        receiver.close()
        channel.exchange_delete(exchange)

    def test_a_callback_that_breaks_its_promise_loses_nothing(
        self, backend: RabbitMQ, channel: BlockingChannel, queue: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        seen: list[bool] = []

        def on_delivery(delivery: Any) -> None:
            seen.append(delivery.redelivered)
            if len(seen) == 1:
                raise ValueError("defect")
            delivery.ack()

        channel.basic_publish("", queue, b"body")
        receiver = backend.receiver(on_delivery, lambda: None)
        receiver.open()
        receiver.consume(queue, 1)
        wait_until(lambda: seen == [False, True])
        receiver.close()
        assert "was not taken" in caplog.text


# Marks a queue as one whose process crashed too often to be restarted: where queues are in a database module of their
# own, and before that.
class TestDeclaring:
    def test_our_arguments_in_full(self, backend: RabbitMQ, broker_url: str, management_url: str) -> None:
        backend = rabbitmq_backend(broker_url, management_url=management_url)
        spec = QueueSpec(unique("q"), arguments={"x-max-length": 7, "x-delivery-limit": 5, "x-overflow": None})
        topology = Topology(queues=(spec,))
        assert backend.declare(topology) == []
        assert backend.compare(topology) == []
        management = _management(backend)
        queue, dead = management.queue(spec.name), management.queue(spec.dead)
        assert queue is not None
        assert dead is not None
        assert queue["arguments"] == {
            "x-queue-type": "quorum", "x-dead-letter-exchange": "", "x-dead-letter-routing-key": spec.dead,
            "x-dead-letter-strategy": "at-least-once", "x-delivery-limit": 5, "x-max-length": 7,
        }  # fmt: skip
        assert dead["arguments"] == {"x-queue-type": "quorum", "x-delivery-limit": 1_000_000}
        backend.purge_and_delete(topology)

    def test_many_processes_that_declare_the_same_at_once_need_patience_at_most(self, broker_url: str) -> None:
        for kind in ["classic", "quorum", "classic", "quorum"]:
            specs = tuple(QueueSpec(unique("q"), type=kind) for _ in range(4))
            topology = Topology((ExchangeSpec(unique("x")),), specs)
            start = threading.Barrier(6)

            def declare(topology: Topology = topology, start: threading.Barrier = start) -> list[Difference]:
                start.wait(120)
                for _ in range(20):
                    try:
                        return rabbitmq_backend(broker_url).declare(topology)
                    except BrokerUnavailable:  # a queue that another process is creating is not there yet
                        continue
                raise AssertionError("patience ran out")

            with ThreadPoolExecutor(6) as pool:
                assert [done.result() for done in [pool.submit(declare) for _ in range(6)]] == [[]] * 6
            rabbitmq_backend(broker_url).purge_and_delete(topology)

    def test_a_queue_that_is_down_keeps_nothing_else_from_being_declared(self, rabbitmq: Broker, queue: str) -> None:
        backend, name, exchange = rabbitmq_backend(rabbitmq.url), unique("down"), ExchangeSpec(unique("x"))
        down = QueueSpec(name, type="classic", dead_letter=False, bindings=((exchange.name, "a"),))
        new = QueueSpec(unique("new"), type="classic", bindings=((exchange.name, "b"),))
        backend.declare(Topology((exchange,), (down,)))
        deliveries = Deliveries()
        receiver = backend.receiver(deliveries.on_delivery, deliveries.on_change)
        receiver.open()
        with crashed(rabbitmq, name):
            found = backend.declare(Topology((exchange,), (down, new)))
            assert found == [differences.unavailable(name)]
            assert found == backend.compare(Topology((exchange,), (down, new)))
            for spec in (QueueSpec(name, declare=False), QueueSpec(name, type="classic", dead_letter=False)):
                with pytest.raises(QueueUnavailable, match="may not reach") as caught:  # nothing was bound
                    backend.declare(Topology(queues=(spec,)))
                assert caught.value.queues == (name,)
            [reading] = backend.depths([name])
            assert (reading.exists, reading.ready) == (True, None)
            sender = backend.sender()
            sender.open()
            assert confirmed(send(sender, message("b", exchange=exchange.name)))
            sender.close()
            with pytest.raises(QueueUnavailable, match="cannot be used now"):
                receiver.consume(name, 1)
            receiver.consume(new.name, 1)
            deliveries.wait(1)
        receiver.consume(name, 1)
        receiver.close()
        topology = Topology((exchange,), (down, new))
        assert backend.declare(topology) == []
        backend.purge_and_delete(topology)

    @pytest.mark.chaos
    @pytest.mark.slow
    def test_a_queue_outlives_a_broker_that_is_killed_as_soon_as_it_is_declared(self, own_rabbitmq: Node) -> None:
        backend, name = rabbitmq_backend(own_rabbitmq.url), unique("young")
        topology = Topology(queues=(QueueSpec(name, dead_letter=False),))
        assert backend.declare(topology) == []
        sender = backend.sender()
        sender.open()
        assert confirmed(send(sender, message(name)))
        own_rabbitmq.kill()
        sender.close()
        own_rabbitmq.start()
        sender.open()
        assert confirmed(send(sender, message(name)))
        sender.close()
        wait_until(lambda: backend.depths([name])[0].ready == 2, what="both messages")
        backend.purge_and_delete(topology)

    def test_a_queue_that_is_not_durable_is_an_error_that_deletes_nothing(
        self, backend: RabbitMQ, channel: BlockingChannel
    ) -> None:
        name, mate = unique("transient"), unique("mate")
        channel.queue_declare(name, durable=False, exclusive=False)
        channel.basic_publish("", name, b"kept")
        topology = Topology(queues=(QueueSpec(name, type="classic"), QueueSpec(mate, type="classic")))
        with pytest.raises(TopologyError, match=name) as caught:
            backend.declare(topology)
        assert "not durable" in str(caught.value)
        assert "delete it yourself" in str(caught.value)
        readings = backend.depths([name, mate])
        assert [reading.exists for reading in readings] == [True, True]
        assert readings[0].ready == 1
        [difference] = [found for found in backend.compare(topology) if name in found.subject]
        assert difference.severity == "error"
        foreign = Topology(queues=(QueueSpec(name, declare=False),))
        with pytest.raises(TopologyError, match="not durable"):
            backend.declare(foreign)
        backend.purge_and_delete(topology)

    def test_an_exclusive_queue_of_another_connection_is_an_error(
        self, backend: RabbitMQ, channel: BlockingChannel
    ) -> None:
        name = unique("exclusive")
        channel.queue_declare(name, exclusive=True)
        for declare in (True, False):
            topology = Topology(queues=(QueueSpec(name, type="classic", declare=declare, dead_letter=False),))
            with pytest.raises(TopologyError, match="exclusive"):
                backend.declare(topology)
            assert backend.compare(topology)[0].severity == "error"
        assert backend.depths([name])[0].exists is True

    def test_other_arguments_are_used_as_they_are(self, backend: RabbitMQ, channel: BlockingChannel) -> None:
        name, exchange = unique("other"), unique("exchange")
        channel.queue_declare(name, durable=True, arguments={"x-message-ttl": 60_000})
        spec = QueueSpec(name, type="classic", bindings=((exchange, "a.b"),))
        topology = Topology((ExchangeSpec(exchange),), (spec,))
        [difference] = backend.declare(topology)
        assert difference.severity == "warning"
        assert name in difference.subject
        assert "is '60000' at the broker, the topology says not set" in difference.problem
        sender = backend.sender()
        sender.open()
        assert confirmed(send(sender, message(name, exchange=exchange, routing_key="a.b")))
        sender.close()
        backend.purge_and_delete(topology)

    def test_a_foreign_queue_is_never_bound_nor_changed(
        self, backend: RabbitMQ, channel: BlockingChannel, queue: str
    ) -> None:
        exchange = unique("exchange")
        spec = QueueSpec(queue, declare=False, bindings=((exchange, "#"),))
        topology = Topology((ExchangeSpec(exchange),), (spec,))
        assert backend.declare(topology) == []
        sender = backend.sender()
        sender.open()
        [outcome] = send(sender, message(queue, exchange=exchange, routing_key="any"))
        assert outcome.fate is Fate.UNROUTABLE
        sender.close()
        assert backend.depths([spec.dead])[0].exists is False
        channel.exchange_delete(exchange)

    def test_the_probe_of_a_foreign_queue_creates_nothing(self, backend: RabbitMQ) -> None:
        from messaging.backends.rabbitmq.errors import ChannelRefused
        from messaging.backends.rabbitmq.session import Session
        from messaging.backends.rabbitmq.topology.probes import _PROBE

        name = unique("probe")
        with Session(backend.settings, "tests") as session, pytest.raises(ChannelRefused, match="x-queue-type"):
            session.declare_queue(name, _PROBE)
        assert backend.depths([name])[0].exists is False

    def test_exchanges_of_others_are_found_or_made(self, backend: RabbitMQ, channel: BlockingChannel) -> None:
        fanout, new = unique("fanout"), unique("new")
        channel.exchange_declare(fanout, "fanout", durable=True)
        bindings = ((fanout, ""), (new, "a.#"), ("amq.topic", "b.#"))
        spec = QueueSpec(unique("q"), type="classic", bindings=bindings)
        topology = Topology((ExchangeSpec(fanout),), (spec,))
        [difference] = backend.declare(topology)
        assert difference.severity == "loss"
        assert "fanout" in difference.problem
        sender = backend.sender()
        sender.open()
        batch = [message(spec.name, exchange=exchange, routing_key=key)
                 for exchange, key in ((fanout, ""), (new, "a.b"), ("amq.topic", "b.c"))]  # fmt: skip
        assert confirmed(send(sender, *batch))
        sender.close()
        backend.purge_and_delete(topology)
        channel.exchange_delete(new)

    def test_an_exchange_that_is_not_durable_is_an_error(self, backend: RabbitMQ, channel: BlockingChannel) -> None:
        name = unique("transient")
        channel.exchange_declare(name, "fanout", durable=False)
        with pytest.raises(TopologyError, match="restarts"):
            backend.declare(Topology((ExchangeSpec(name),)))
        channel.exchange_delete(name)

    def test_the_binding_to_a_broker_s_own_exchange_that_does_not_exist_is_an_error(self, backend: RabbitMQ) -> None:
        topology = Topology(queues=(QueueSpec(unique("q"), type="classic", bindings=(("amq.nonsense", "a"),)),))
        with pytest.raises(TopologyError, match=r"amq\.nonsense"):
            backend.declare(topology)
        backend.purge_and_delete(topology)

    def test_arguments_that_no_broker_takes_are_an_error(self, backend: RabbitMQ) -> None:
        for arguments in ({"x-message-ttl": "never"}, {"x-odd": 1.5}):
            topology = Topology(queues=(QueueSpec(unique("q"), arguments=arguments),))
            with pytest.raises(TopologyError, match=topology.queues[0].name):
                backend.declare(topology)
            backend.purge_and_delete(topology)

    def test_management_sees_bindings(self, broker_url: str, management_url: str, channel: BlockingChannel) -> None:
        backend = rabbitmq_backend(broker_url, management_url=management_url)
        exchange, name = unique("exchange"), unique("q")
        wide = QueueSpec(name, type="classic", bindings=((exchange, "a"), (exchange, "b")))
        topology = Topology((ExchangeSpec(exchange),), (wide,))
        assert backend.declare(topology) == []
        assert backend.compare(topology) == []
        channel.queue_unbind(name, exchange, "b")
        channel.queue_bind(name, exchange, "c")
        missing, extra = backend.compare(topology)
        assert (missing.severity, extra.severity) == ("missing", "warning")
        assert '"b"' in missing.problem
        assert '"c"' in extra.problem
        backend.purge_and_delete(topology)

    def test_management_tells_where_a_message_would_go(
        self, broker_url: str, management_url: str, channel: BlockingChannel
    ) -> None:
        backend = rabbitmq_backend(broker_url, management_url=management_url)
        exchange, name = unique("exchange"), unique("q")
        topology = Topology(
            (ExchangeSpec(exchange),), (QueueSpec(name, type="classic", bindings=((exchange, "a.*"),)),)
        )
        backend.declare(topology)
        assert backend.routes(exchange, "a.b") == [name]
        assert backend.routes(exchange, "b") == []
        assert backend.routes("", name) == [name]
        assert backend.routes("", unique("q")) == []
        assert backend.routes(unique("exchange"), "a") == []
        channel.exchange_bind("amq.direct", exchange, "a.b")
        assert backend.routes(exchange, "a.b") is None, "it leads on to another exchange"
        channel.exchange_unbind("amq.direct", exchange, "a.b")
        channel.queue_bind(name, "amq.headers", "")
        assert backend.routes("amq.headers", "a.b") is None
        assert rabbitmq_backend(broker_url).routes(exchange, "a.b") is None
        backend.purge_and_delete(topology)

    def test_management_counts_what_is_unacknowledged(
        self, broker_url: str, management_url: str, channel: BlockingChannel, queue: str
    ) -> None:
        backend = rabbitmq_backend(broker_url, management_url=management_url)
        for _ in range(3):
            channel.basic_publish("", queue, b"body")
        deliveries = Deliveries()
        receiver = backend.receiver(deliveries.on_delivery, deliveries.on_change)
        receiver.open()
        receiver.consume(queue, 2)
        deliveries.wait(2)

        def read() -> tuple[int | None, int | None, int | None, str]:  # each statistic has a time of its own
            reading = backend.depths([queue])[0]
            return reading.ready, reading.unacked, reading.consumers, reading.source

        wait_until(lambda: read() == (1, 2, 1, "management API"))
        receiver.close()

    def test_depths_do_without_a_management_api_that_does_not_answer(
        self, broker_url: str, queue: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        backend = rabbitmq_backend(broker_url, management_url="http://guest:secret@127.0.0.1:1")
        [reading] = backend.depths([queue])
        assert (reading.ready, reading.unacked, reading.source) == (0, None, "passive declare")
        with pytest.raises(ConfigurationError, match="MANAGEMENT_URL"):
            rabbitmq_backend(broker_url, management_url="file:///etc/passwd").depths([queue])
        assert "secret" not in caplog.text


class TestWords:
    def test_an_unreachable_broker_is_named_without_its_password(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.DEBUG, "messaging.rabbitmq")
        sender = rabbitmq_backend("amqp://someone:s3cret-word@127.0.0.1:1,localhost:2/vhost").sender()
        for _ in range(3):
            with pytest.raises(BrokerUnavailable) as caught:
                sender.open()
        assert "127.0.0.1:1: Connection refused" in str(caught.value)
        assert "localhost:2" in str(caught.value)
        assert "s3cret" not in str(caught.value) + repr(caught.value) + repr(sender) + caplog.text
        assert (
            len([record for record in caplog.records if record.name == "messaging.rabbitmq"]) == 1
        )  # once per trouble, not once per attempt

    def test_a_refused_login_and_virtual_host_are_told_apart(self, broker_url: str, caplog: Any) -> None:
        url = urlsplit(broker_url)
        wrong = rabbitmq_backend(url._replace(netloc=f"guest:s3cret-word@{url.hostname}:{url.port}").geturl())
        with pytest.raises(BrokerUnavailable, match="refused the login") as caught:
            wrong.sender().open()
        missing = rabbitmq_backend(url._replace(path="/no-such-vhost").geturl())
        with pytest.raises(BrokerUnavailable, match="virtual host"):
            missing.sender().open()
        assert "s3cret" not in str(caught.value) + caplog.text

    def test_tls_to_a_plain_port_fails_in_words(self, broker_url: str) -> None:
        url = urlsplit(broker_url)
        with pytest.raises(BrokerUnavailable):
            rabbitmq_backend(url._replace(scheme="amqps").geturl()).sender().open()
        for tls in ({"CA_FILE": "/no/such/file"}, {"CERT_FILE": __file__}):
            with pytest.raises(ConfigurationError, match="TLS"):
                rabbitmq_backend(url._replace(scheme="amqps").geturl(), tls=tls)

    def test_pika_stays_as_it_is_for_others(
        self, backend: RabbitMQ, channel: BlockingChannel, queue: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO)
        sender = backend.sender()
        sender.open()
        send(sender, message(queue))
        sender.close()
        assert not [record for record in caplog.records if record.name.startswith("pika")]
        method, properties, body = channel.basic_get(queue, auto_ack=True)
        assert method is not None
        assert type(properties) is pika.BasicProperties
        assert body == b"body"
        channel.connection.channel().close()
        assert [record for record in caplog.records if record.name.startswith("pika")]


@pytest.mark.mode(14)
def test_a_memory_alarm_blocks_the_sender_and_nothing_is_lost(own_rabbitmq: Node) -> None:
    backend = rabbitmq_backend(own_rabbitmq.url)
    topology = Topology(queues=(QueueSpec(unique("q"), type="classic"),))
    backend.declare(topology)
    sender = backend.sender()
    sender.open()
    own_rabbitmq.ctl("set_vm_memory_high_watermark", "0.00001")
    try:
        first = [message(topology.queues[0].name)]
        sender.send(first)
        wait_until(lambda: sender.is_blocked)
        second = [message(topology.queues[0].name) for _ in range(50)]
        sender.send(second)
        assert sender.outcomes(0.5) == []
        assert sender.under_way == 51
    finally:
        own_rabbitmq.ctl("set_vm_memory_high_watermark", "0.4")
    assert confirmed(fates(sender, first + second).values())
    assert not sender.is_blocked
    sender.close()
    backend.purge_and_delete(topology)


def _management(backend: RabbitMQ) -> Any:
    from messaging.backends.rabbitmq.management import Management

    return Management(backend.settings)
