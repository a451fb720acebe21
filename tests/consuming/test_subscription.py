"""One queue is down, and the consumers of the others go on: against a real broker that says so."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from messaging.backends.allowance import Allowance
from messaging.backends.base import Difference, QueueSpec, Topology
from messaging.backends.rabbitmq import RabbitMQ
from messaging.consuming.subscription import Subscription
from messaging.exceptions import BrokerUnavailable, QueueUnavailable, TopologyError
from tests.backends.rabbitmq_settings import rabbitmq_backend
from tests.backends.tools import Deliveries, crashed, message, send, unique
from tests.services import Broker
from tests.waiting import wait_until

pytestmark = pytest.mark.broker


@dataclass
class Scene:
    """A subscription to two classic queues that exist."""

    backend: RabbitMQ
    subscription: Subscription
    deliveries: Deliveries
    down: str
    other: str

    def follow(self, *queues: str) -> None:
        self.subscription.follow(frozenset(queues), frozenset(queues))

    def follow_until(self, condition: Callable[[], bool], what: str) -> None:
        """Follow both queues until something holds."""

        def look() -> bool:
            self.follow(self.down, self.other)
            return condition()

        wait_until(look, what=what)

    def send(self, queue: str, count: int) -> None:
        """Send some messages, and wait until they are delivered, although none is acknowledged."""
        before = len(self.deliveries.all)
        sender = self.backend.sender()
        sender.open()
        send(sender, *(message(queue) for _ in range(count)))
        sender.close()
        assert [delivery.queue for delivery in self.deliveries.wait(before + count)[before:]] == [queue] * count


@pytest.fixture
def scene(rabbitmq: Broker, caplog: pytest.LogCaptureFixture) -> Iterator[Scene]:
    caplog.set_level(logging.INFO, "messaging.consumer")
    backend, deliveries = rabbitmq_backend(rabbitmq.url), Deliveries()
    specs = tuple(QueueSpec(unique(name), type="classic", dead_letter=False) for name in ("down", "other"))
    topology = Topology(queues=specs)
    backend.declare(topology)
    prefetch = {spec.name: 10 for spec in specs}
    subscription = Subscription(
        backend, topology, prefetch, frozenset(), deliveries.on_delivery, deliveries.on_change, Allowance()
    )
    yield Scene(backend, subscription, deliveries, specs[0].name, specs[1].name)
    subscription.close()
    backend.purge_and_delete(topology)


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What the consumer has logged, without the broker's address."""
    lines = [record.getMessage() for record in caplog.records if record.name == "messaging.consumer"]
    return [re.sub(r"^amqp://\S+: ", "", line) for line in lines]


def test_the_others_are_consumed_and_it_is_tried_until_it_is_back(
    scene: Scene, rabbitmq: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    with crashed(rabbitmq, scene.down):
        scene.follow(scene.down, scene.other)
        assert (scene.subscription.is_well, scene.subscription.away) == (True, {scene.down})
        scene.send(scene.other, 5)
    scene.follow_until(lambda: len(told(caplog)) == 5, "the end of each trouble")
    assert not scene.subscription.away
    scene.send(scene.down, 5)
    unreached, away, connected = told(caplog)[:3]
    assert unreached.startswith("These queues cannot be used now, and messages may not reach them: ")
    assert away.startswith(f"queue {scene.down} is away, the others are consumed. It cannot be used now: ")
    assert connected.endswith(f"consuming {scene.other}.")
    ends = {f"queue {scene.down} is back, and is consumed.", "Messages can reach all queues again."}
    assert set(told(caplog)[3:]) == ends


def test_one_that_is_lost_is_told_once_and_forgotten_when_it_is_paused(
    scene: Scene, rabbitmq: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    scene.follow(scene.down, scene.other)
    subscription = scene.subscription
    with crashed(rabbitmq, scene.down):
        subscription._receiver.cancel(scene.down)
        subscription._receiver._troubles[scene.down] = "The broker cancelled it."  # type: ignore[attr-defined]
        for _ in range(3):
            scene.follow(scene.down, scene.other)
        assert subscription.away == {scene.down}
        for _ in range(3):
            scene.follow(scene.other)
        assert (subscription.is_well, subscription.away) == (True, frozenset())
    assert [line.split(" ")[0] for line in told(caplog)] == ["Connected", "The", "queue", "Connected"]


def test_one_that_was_down_from_the_start_and_is_deleted_is_declared_anew(scene: Scene, rabbitmq: Broker) -> None:
    with crashed(rabbitmq, scene.down):
        scene.follow(scene.down, scene.other)
        assert scene.subscription.away == {scene.down}
    scene.backend.purge_and_delete(Topology(queues=(QueueSpec(scene.down, dead_letter=False),)))
    scene.follow_until(lambda: not scene.subscription.away, "the queue is back")
    scene.send(scene.down, 1)


def test_what_can_never_be_used_is_told_at_the_start_whatever_is_down(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: Topology) -> list[Difference]:
        raise QueueUnavailable("It may lack bindings.", (scene.down,), unusable="Another one is not durable.")

    monkeypatch.setattr(scene.backend, "declare", refuse)
    with pytest.raises(TopologyError, match="not durable"):
        scene.follow(scene.down, scene.other)


def test_bindings_that_could_not_be_made_are_made_as_soon_as_they_can_be(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    declared, declare = [], scene.backend.declare

    def refuse_some_times(topology: Topology) -> list[Difference]:
        declared.append(topology)
        if len(declared) == 2:
            raise BrokerUnavailable("It takes no more connections.")
        if len(declared) <= 3:
            raise QueueUnavailable("It may lack bindings.")
        return declare(topology)

    monkeypatch.setattr(scene.backend, "declare", refuse_some_times)
    scene.follow_until(lambda: len(declared) == 4, "a fourth try")
    for _ in range(3):
        scene.follow(scene.down, scene.other)
    assert len(declared) == 4
    first, connected, last = told(caplog)
    assert first == "It may lack bindings. This is tried again until it works."
    assert connected.endswith(f"consuming {scene.down}, {scene.other}.")
    assert last == "Messages can reach all queues again."
