"""`topology --check` on RabbitMQ: whatever can lose a message is found, with the management API or without."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any
from urllib.parse import quote, urlsplit

import pika
import pytest
from pika.adapters.blocking_connection import BlockingChannel

from messaging.backends.base import Difference, ExchangeSpec, QueueSpec, Topology
from messaging.backends.rabbitmq import RabbitMQ
from messaging.backends.rabbitmq.topology.arguments import for_queue
from messaging.backends.rabbitmq.topology.found import FoundQueue
from messaging.backends.rabbitmq.topology.handing import of_handing_out
from messaging.backends.rabbitmq.topology.losses import Wish, of_queue
from tests.backends.rabbitmq_settings import rabbitmq_backend
from tests.backends.tools import unique
from tests.services import Broker
from tests.waiting import wait_until
from tools.services import ServiceFailed

pytestmark = pytest.mark.broker


@pytest.fixture
def all_seeing(broker_url: str, management_url: str) -> RabbitMQ:
    return rabbitmq_backend(broker_url, management_url=management_url)


@pytest.fixture
def channel(broker_url: str) -> Iterator[BlockingChannel]:
    connection = pika.BlockingConnection(pika.URLParameters(broker_url))
    yield connection.channel()
    if connection.is_open:
        connection.close()


@pytest.fixture
def spec() -> QueueSpec:
    return QueueSpec(unique("q"), type="classic")


@pytest.fixture
def dead(channel: BlockingChannel, spec: QueueSpec) -> str:
    """The dead-letter queue as we would declare it."""
    channel.queue_declare(spec.dead, durable=True)
    return spec.dead


def ours(spec: QueueSpec, **more: Any) -> dict[str, Any]:
    """The arguments of our classic queue, and more."""
    return {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": spec.dead, **more}


def look(backend: RabbitMQ, *specs: QueueSpec, exchanges: tuple[ExchangeSpec, ...] = ()) -> list[Difference]:
    found = backend.compare(Topology(exchanges, specs))
    assert all(one.subject and one.problem and one.way_out for one in found)
    return found


def severities(found: list[Difference]) -> list[str]:
    return [one.severity for one in found]


def test_a_queue_and_its_dead_letter_queue_that_are_missing(backend: RabbitMQ, spec: QueueSpec) -> None:
    dead, queue = look(backend, spec)
    assert [dead.subject, queue.subject] == [f'queue "{spec.dead}"', f'queue "{spec.name}"']
    assert severities([dead, queue]) == ["missing", "missing"]
    [foreign] = look(backend, QueueSpec(spec.name, declare=False))
    assert "Whoever owns it" in foreign.way_out


def test_a_missing_dead_letter_queue_alone_is_told_once(
    backend: RabbitMQ, channel: BlockingChannel, spec: QueueSpec
) -> None:
    channel.queue_declare(spec.name, durable=True, arguments=ours(spec))
    [found] = look(backend, spec)
    assert (found.subject, found.severity) == (f'queue "{spec.dead}"', "missing")


def test_a_queue_that_is_not_durable_loses_our_persistent_messages(
    backend: RabbitMQ, channel: BlockingChannel, spec: QueueSpec, dead: str
) -> None:
    channel.queue_declare(spec.name, durable=False, arguments=ours(spec))
    [found] = look(backend, spec)
    assert found.severity == "error"
    assert "persistent, but a queue that is not durable loses them all" in found.problem
    [found] = look(backend, QueueSpec(spec.name, declare=False, dead_letter=False))
    assert found.severity == "error"
    assert "Ask its owner" in found.way_out


def test_queues_that_vanish_with_somebody_else(
    backend: RabbitMQ, channel: BlockingChannel, spec: QueueSpec, dead: str
) -> None:
    channel.queue_declare(spec.name, durable=True, auto_delete=True, arguments=ours(spec))
    assert severities(look(backend, spec)) == ["loss"]
    own = QueueSpec(unique("exclusive"), type="classic", dead_letter=False)
    channel.queue_declare(own.name, durable=True, exclusive=True)
    assert severities(look(backend, own)) == ["error"]


def test_our_queue_without_a_dead_letter_exchange_is_a_loss(
    backend: RabbitMQ, channel: BlockingChannel, spec: QueueSpec, dead: str
) -> None:
    channel.queue_declare(spec.name, durable=True)
    [found] = look(backend, spec)
    assert found.severity == "loss"
    assert "x-dead-letter-exchange is not set at the broker, the topology says ''" in found.problem
    assert "set_policy" in found.way_out
    assert look(backend, QueueSpec(spec.name, type="classic", dead_letter=False)) == []


def test_dead_letters_that_go_nowhere_are_a_loss(
    backend: RabbitMQ, channel: BlockingChannel, spec: QueueSpec, dead: str
) -> None:
    ends = {
        "nowhere": ({"x-dead-letter-exchange": unique("none")}, "which does not exist"),
        "elsewhere": (ours(spec) | {"x-dead-letter-routing-key": unique("none")}, "which does not exist"),
        "unnamed": ({"x-dead-letter-exchange": ""}, "own routing keys"),
    }
    for arguments, words in ends.values():
        queue = QueueSpec(unique("q"), type="classic", arguments={"x-dead-letter-routing-key": None} | arguments)
        channel.queue_declare(queue.dead, durable=True)
        channel.queue_declare(queue.name, durable=True, arguments=arguments)
        [found] = look(backend, queue)
        assert found.severity == "loss"
        assert words in found.problem


def test_a_queue_that_drops_is_a_loss_and_one_that_dead_letters_a_warning(
    backend: RabbitMQ, channel: BlockingChannel
) -> None:
    for arguments in ({"x-message-ttl": 5000}, {"x-max-length": 5}, {"x-max-length-bytes": 5}):
        caught, bare = QueueSpec(unique("q"), type="classic"), QueueSpec(unique("q"), type="classic", dead_letter=False)
        channel.queue_declare(caught.dead, durable=True)
        channel.queue_declare(caught.name, durable=True, arguments=ours(caught, **arguments))
        channel.queue_declare(bare.name, durable=True, arguments=arguments)
        [warning] = look(backend, caught)
        [loss] = look(backend, bare)
        assert severities([warning, loss]) == ["warning", "loss"]
        assert "is '5" in warning.problem
        assert "the topology says not set" in warning.problem
        assert "dropped" in loss.problem
        asked = QueueSpec(caught.name, type="classic", arguments=arguments)
        assert look(backend, asked) == []
        asked = QueueSpec(bare.name, type="classic", dead_letter=False, arguments=arguments)
        assert severities(look(backend, asked)) == ["loss"]  # asked for, and lost all the same


def test_a_full_queue_that_refuses_loses_nothing(backend: RabbitMQ, channel: BlockingChannel) -> None:
    arguments = {"x-max-length": 5, "x-overflow": "reject-publish"}
    spec = QueueSpec(unique("q"), type="classic", arguments=arguments, dead_letter=False)
    channel.queue_declare(spec.name, durable=True, arguments=arguments)
    assert look(backend, spec) == []


def test_a_queue_that_expires_is_a_loss_whatever_else(
    backend: RabbitMQ, channel: BlockingChannel, spec: QueueSpec, dead: str
) -> None:
    channel.queue_declare(spec.name, durable=True, arguments=ours(spec, **{"x-expires": 600_000}))
    [found] = look(backend, spec)
    assert found.severity == "loss"
    assert "deleted with all its messages" in found.problem


def test_a_dead_letter_queue_that_drops_is_a_loss(backend: RabbitMQ, channel: BlockingChannel, spec: QueueSpec) -> None:
    channel.queue_declare(spec.dead, durable=True, arguments={"x-message-ttl": 5000})
    channel.queue_declare(spec.name, durable=True, arguments=ours(spec))
    [found] = look(backend, spec)
    assert (found.subject, found.severity) == (f'queue "{spec.dead}"', "loss")


def test_a_low_delivery_limit_and_the_type_are_told_with_both_values(
    backend: RabbitMQ, channel: BlockingChannel
) -> None:
    low = QueueSpec(unique("q"))
    limited = {"x-queue-type": "quorum", "x-delivery-limit": 3, "x-overflow": "reject-publish"}
    strategy = {"x-dead-letter-strategy": "at-least-once"}
    channel.queue_declare(low.dead, durable=True, arguments={"x-queue-type": "quorum", "x-delivery-limit": 1_000_000})
    channel.queue_declare(low.name, durable=True, arguments=ours(low) | limited | strategy)
    [found] = look(backend, low)
    assert found.severity == "warning"
    assert "x-delivery-limit is '3' at the broker, the topology says '1000000'" in found.problem
    other = QueueSpec(unique("q"))
    channel.queue_declare(other.dead, durable=True)
    channel.queue_declare(other.name, durable=True, arguments=ours(other))
    found = look(backend, other)
    problems = "\n".join(one.problem for one in found)
    assert problems.count("x-queue-type is 'classic' at the broker, the topology says 'quorum'") == 2
    assert "x-overflow is not set at the broker, the topology says 'reject-publish'" in problems
    assert severities(found) == ["warning"] * 3


def test_dead_letters_that_are_not_handed_over_are_a_loss(backend: RabbitMQ, channel: BlockingChannel) -> None:
    spec = QueueSpec(unique("q"))
    limited = {"x-queue-type": "quorum", "x-delivery-limit": 1_000_000}
    channel.queue_declare(spec.dead, durable=True, arguments=limited)
    channel.queue_declare(spec.name, durable=True, arguments=ours(spec) | limited | {"x-overflow": "reject-publish"})
    [found] = look(backend, spec)
    assert found.severity == "loss"
    assert "x-dead-letter-strategy is not set at the broker, the topology says 'at-least-once'" in found.problem


def test_exchanges_that_do_not_keep_what_they_should(backend: RabbitMQ, channel: BlockingChannel) -> None:
    made: list[tuple[dict[str, Any], list[str]]] = [
        ({"durable": False}, ["error"]),
        ({"durable": True, "internal": True}, ["error"]),
        ({"durable": True, "auto_delete": True}, ["loss"]),
        ({"durable": True, "exchange_type": "direct"}, ["loss"]),
        ({"durable": True, "arguments": {"alternate-exchange": "amq.fanout"}}, ["warning"]),
        ({"durable": False, "exchange_type": "fanout"}, ["error", "loss"]),
    ]
    for options, expected in made:
        name = unique("exchange")
        channel.exchange_declare(name, **{"exchange_type": "topic", **options})
        found = look(backend, exchanges=(ExchangeSpec(name),))
        assert sorted(severities(found)) == expected
        assert all("the topology says" in one.problem for one in found)
        channel.exchange_delete(name)
    assert severities(look(backend, exchanges=(ExchangeSpec(unique("missing")),))) == ["missing"]
    assert look(backend, exchanges=(ExchangeSpec("amq.topic"),)) == []


def test_exchanges_of_others_are_looked_at_too(
    backend: RabbitMQ, channel: BlockingChannel, spec: QueueSpec, dead: str
) -> None:
    transient, fine, gone = unique("transient"), unique("fine"), unique("gone")
    channel.exchange_declare(transient, "fanout", durable=False)
    channel.exchange_declare(fine, "direct", durable=True, internal=True)
    channel.queue_declare(spec.name, durable=True, arguments=ours(spec))
    for exchange in (transient, fine):
        channel.queue_bind(spec.name, exchange, "key")
    bound = QueueSpec(spec.name, type="classic", bindings=((transient, "key"), (fine, "key")))
    [found] = look(backend, bound)
    assert (found.subject, found.severity) == (f'exchange "{transient}"', "loss")
    missing = QueueSpec(spec.name, type="classic", bindings=((gone, "key"),))
    assert look(backend, missing)[0] == look(backend, missing)[0]
    assert look(backend, missing)[0].severity == "missing"
    for exchange in (transient, fine):
        channel.exchange_delete(exchange)


def test_comparing_creates_and_changes_nothing(backend: RabbitMQ, management_url: str, broker_url: str) -> None:
    spec = QueueSpec(unique("q"), bindings=((unique("exchange"), "a"),))
    topology = Topology((ExchangeSpec(unique("exchange")),), (spec, QueueSpec(unique("q"), declare=False)))
    first = backend.compare(topology)
    assert severities(first) == ["missing"] * 5
    assert backend.compare(topology) == first


def test_what_cannot_be_seen_is_said(backend: RabbitMQ, broker_url: str, management_url: str) -> None:
    topology = Topology(queues=(QueueSpec(unique("q"), declare=False),))
    backend.compare(topology)
    assert ("MANAGEMENT_URL" in backend.unseen) == (backend.settings.management_url is None)
    refused = urlsplit(management_url)._replace(netloc=f"who:hush@{urlsplit(management_url).netloc.split('@')[1]}")
    # A port where AMQP is spoken, and a login that is refused.
    for url in (f"http://u:hush@127.0.0.1:{urlsplit(broker_url).port}", refused.geturl()):
        blind = rabbitmq_backend(broker_url, management_url=url)
        assert severities(blind.compare(topology)) == ["missing"]
        assert "management API" in blind.unseen
        assert "hush" not in blind.unseen


class TestWithTheManagementAPI:
    def test_a_queue_of_others_is_looked_at_closely(self, all_seeing: RabbitMQ, channel: BlockingChannel) -> None:
        bare, dlx, dead = unique("foreign"), unique("dlx"), unique("dead")
        channel.queue_declare(bare, durable=True)
        [found] = look(all_seeing, QueueSpec(bare, declare=False))
        assert found.severity == "loss"
        assert '"dead_letter": False' in found.way_out
        assert look(all_seeing, QueueSpec(bare, declare=False, dead_letter=False)) == []
        # Dead letters through an exchange: missing, bound to nothing, bound to another key, bound.
        name = unique("foreign")
        arguments = {"x-dead-letter-exchange": dlx, "x-dead-letter-routing-key": "failed.here"}
        channel.queue_declare(name, durable=True, arguments=arguments)
        foreign = QueueSpec(name, declare=False)
        assert "does not exist" in look(all_seeing, foreign)[0].problem
        channel.exchange_declare(dlx, "topic", durable=True)
        channel.queue_declare(dead, durable=True)
        assert 'no binding for "failed.here"' in look(all_seeing, foreign)[0].problem
        channel.queue_bind(dead, dlx, "other.#")
        assert severities(look(all_seeing, foreign)) == ["loss"]
        channel.queue_bind(dead, dlx, "failed.*")
        assert look(all_seeing, foreign) == []

    def test_a_dead_letter_queue_of_others_that_loses_is_a_loss(
        self, all_seeing: RabbitMQ, channel: BlockingChannel
    ) -> None:
        name, dead = unique("foreign"), unique("dead")
        channel.queue_declare(dead, durable=False, arguments={"x-max-length": 5})
        channel.queue_declare(
            name, durable=True, arguments={"x-dead-letter-exchange": "", "x-dead-letter-routing-key": dead}
        )
        found = look(all_seeing, QueueSpec(name, declare=False))
        assert {one.subject for one in found} == {f'queue "{dead}"'}
        assert severities(found) == ["error", "loss"]

    def test_policies_that_drop_or_catch_messages_are_seen(
        self, all_seeing: RabbitMQ, channel: BlockingChannel, rabbitmq: Broker, spec: QueueSpec, dead: str
    ) -> None:
        bare = unique("bare")
        channel.queue_declare(spec.name, durable=True, arguments=ours(spec))
        channel.queue_declare(bare, durable=True)
        plain = QueueSpec(bare, type="classic", arguments={"x-dead-letter-routing-key": dead}, dead_letter=True)
        channel.queue_declare(plain.dead, durable=True)
        assert look(all_seeing, spec) == []
        vhost = quote(rabbitmq.vhost, safe="")
        definitions = {
            spec.name: {"message-ttl": 7000},
            bare: {"dead-letter-exchange": "", "dead-letter-routing-key": dead},
        }
        for name, definition in definitions.items():
            body = {"pattern": f"^{name}$", "definition": definition, "apply-to": "queues"}
            rabbitmq.api("PUT", f"/api/policies/{vhost}/{name}", body)
        wait_until(lambda: look(all_seeing, spec) != [], what="the policy in the queue's description")
        [found] = look(all_seeing, spec)
        assert found.severity == "warning"
        assert f'message-ttl is 7000 by the policy "{spec.name}"' in found.problem
        wait_until(lambda: look(all_seeing, plain) == [], what="the policy in the other's description")
        for name in definitions:
            rabbitmq.api("DELETE", f"/api/policies/{vhost}/{name}")

    @pytest.mark.parametrize(
        "definition, said",
        [
            ({"consumer-timeout": 60_000}, "consumer-timeout is 60000 by the policy"),
            (
                {"delayed-retry-type": "all", "delayed-retry-min": 5000, "delayed-retry-max": 90_000},
                "90000 millisecond",
            ),
            ({"delayed-retry-type": "returned", "delayed-retry-min": 5000}, "up to 5000 milliseconds"),
        ],
    )
    def test_policies_that_take_back_or_hold_back_are_seen(
        self,
        all_seeing: RabbitMQ,
        channel: BlockingChannel,
        rabbitmq: Broker,
        definition: dict[str, Any],
        said: str,
    ) -> None:
        spec = QueueSpec(unique("q"), dead_letter=False)
        channel.queue_declare(spec.name, durable=True, arguments=for_queue(spec))
        path = f"/api/policies/{quote(rabbitmq.vhost, safe='')}/{spec.name}"
        body = {"pattern": f"^{spec.name}$", "definition": definition, "apply-to": "queues"}
        try:
            rabbitmq.api("PUT", path, body)
        except ServiceFailed as error:
            pytest.skip(f"this broker knows no such policy: {error}")
        wait_until(lambda: look(all_seeing, spec) != [], what="the policy in the queue's description")
        [found] = look(all_seeing, spec)
        assert found.severity == "warning"
        assert said in found.problem
        meant = replace(spec, arguments={f"x-{key}": value for key, value in definition.items()})
        assert look(all_seeing, meant) == []
        rabbitmq.api("DELETE", path)

    def test_an_alternate_exchange_by_policy_is_a_warning(
        self, all_seeing: RabbitMQ, channel: BlockingChannel, rabbitmq: Broker
    ) -> None:
        name = unique("exchange")
        channel.exchange_declare(name, "topic", durable=True)
        definition = {"alternate-exchange": "amq.fanout"}
        body = {"pattern": f"^{name}$", "definition": definition, "apply-to": "exchanges"}
        path = f"/api/policies/{quote(rabbitmq.vhost, safe='')}/{name}"
        rabbitmq.api("PUT", path, body)
        [found] = look(all_seeing, exchanges=(ExchangeSpec(name),))
        assert found.severity == "warning"
        assert "counts as published" in found.problem
        rabbitmq.api("DELETE", path)
        assert look(all_seeing, exchanges=(ExchangeSpec(name),)) == []
        channel.exchange_delete(name)

    def test_a_low_delivery_limit_of_others_can_be_told_to_us(
        self, all_seeing: RabbitMQ, channel: BlockingChannel, dead: str
    ) -> None:
        name = unique("foreign")
        arguments = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": dead, "x-delivery-limit": 5}
        channel.queue_declare(name, durable=True, arguments={"x-queue-type": "quorum", **arguments})
        [found] = look(all_seeing, QueueSpec(name, declare=False))
        assert found.severity == "warning"
        assert '"arguments": {"x-delivery-limit": 5}' in found.way_out
        assert look(all_seeing, QueueSpec(name, declare=False, arguments={"x-delivery-limit": 5})) == []

    def test_a_pattern_at_a_direct_exchange_matches_nothing(
        self, all_seeing: RabbitMQ, channel: BlockingChannel, spec: QueueSpec, dead: str
    ) -> None:
        name = unique("direct")
        channel.exchange_declare(name, "direct", durable=True)
        channel.queue_declare(spec.name, durable=True, arguments=ours(spec))
        for key in ("orders.#", "orders.placed"):
            channel.queue_bind(spec.name, name, key)
        bindings = ((name, "orders.#"), (name, "orders.placed"))
        [found] = look(all_seeing, QueueSpec(spec.name, type="classic", bindings=bindings))
        assert found.severity == "loss"
        assert '"orders.#" literally' in found.problem
        channel.exchange_delete(name)

    def test_a_stream_cannot_be_consumed_from(self, all_seeing: RabbitMQ, channel: BlockingChannel) -> None:
        name = unique("stream")
        channel.queue_declare(name, durable=True, arguments={"x-queue-type": "stream"})
        found = look(all_seeing, QueueSpec(name, declare=False, dead_letter=False))
        assert severities(found) == ["error"]


def test_the_smaller_of_an_argument_and_a_policy_holds() -> None:
    arguments, policy = (
        {"x-message-ttl": 9, "x-overflow": "drop-head"},
        {"message-ttl": 3, "overflow": "reject-publish"},
    )
    queue = FoundQueue("q", "classic", arguments=arguments, policy=policy, policy_name="p")
    assert (queue.value("message-ttl"), queue.value("overflow"), queue.value("expires")) == (3, "drop-head", None)
    assert queue.is_by_policy("message-ttl")
    assert not queue.is_by_policy("overflow")


def test_a_queue_that_is_down_is_an_error() -> None:
    [(_, found)] = of_queue(FoundQueue("q", "quorum", state="down"), Wish(dead_letter=False), lambda *_: "")
    assert found.severity == "error"


@pytest.mark.parametrize(
    "arguments, policy, said",
    [
        ({}, {"consumer-timeout": 1_800_000}, ""),
        ({"x-consumer-timeout": 1_799_999}, {}, "x-consumer-timeout is '1799999' at the broker"),
        ({"x-consumer-timeout": 60_000}, {"consumer-timeout": 50_000}, 'consumer-timeout is 50000 by the policy "p"'),
        ({"x-consumer-timeout": 60_000}, {"consumer-timeout": 70_000}, "x-consumer-timeout is '60000' at the broker"),
        ({"x-delayed-retry-type": "all"}, {}, ""),  # without a smallest delay it is not in force
        ({"x-delayed-retry-type": "disabled", "x-delayed-retry-min": 9}, {}, ""),
        (
            {"x-delayed-retry-type": "failed", "x-delayed-retry-min": 9},
            {},
            "with a lost connection wait for up to 9 mill",
        ),
        ({"x-delayed-retry-type": "all", "x-delayed-retry-min": 9}, {"delayed-retry-type": "disabled"}, ""),
        (
            {"x-delayed-retry-type": "all", "x-delayed-retry-min": 9},
            {"delayed-retry-type": "returned", "delayed-retry-min": 8, "delayed-retry-max": 7000},
            'delayed-retry-type is returned by the policy "p"',
        ),
    ],
)
def test_what_takes_or_holds_messages_back(arguments: dict[str, Any], policy: dict[str, Any], said: str) -> None:
    queue = FoundQueue("q", "quorum", arguments=arguments, policy=policy, policy_name="p")
    found = [difference for _, difference in of_handing_out(queue, Wish())]
    assert [one.severity for one in found] == ["warning"] * bool(said)
    assert all(said in one.problem for one in found)
    assert list(of_handing_out(queue, Wish(is_last=True))) == [], "nobody consumes a dead-letter queue in order"
    assert list(of_handing_out(replace(queue, type="stream"), Wish())) == []
