"""Three RabbitMQ nodes and quorum queues: a node goes while messages flow, and every message has its effect once.

Each test counts at its end. The last look of `Flow.finish()` is the proof: everything published and processed, each
effect once, nothing spent and nothing left in a queue.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from uuid import uuid4

import pytest

from tests.acceptance.clients import depth
from tests.docs.blocks import find
from tests.site import Running, SiteFactory
from tests.waiting import wait_until
from tools.cluster import Cluster
from tools.rabbitmq import RabbitMQ

pytestmark = [
    pytest.mark.broker,
    pytest.mark.postgres,
    pytest.mark.chaos,
    pytest.mark.slow,
    pytest.mark.timeout(600),
]

HANDLERS = """
from messaging import handler
from tests.app.models import Effect

@handler("counted", "counted.*", max_attempts=1)
def count(message):
    Effect.objects.create(key=message.id, value=str(message.payload["number"]))
"""

HANDLERS_OF_TWO = (
    HANDLERS.replace('"counted.*"', '"counted.*", "both.*"')
    + """
handler("lonely", "lonely.*", "both.*", max_attempts=1)(count)
"""
)

PUBLISH = """
import time
from messaging import Message, publish_many
for start in range(0, {count}, 25):
    publish_many([Message("{queue}.one", {{"number": number}}) for number in range(start, start + 25)])
    time.sleep({pause})
"""

HEARTBEAT = 5  # seconds; a dead peer is noticed within twice that and ten more
DEADLINE = 180.0


class Flow:
    """A site on a cluster: a relay and a consumer, and messages that are published all the time.

    Args:
        make: the fixture `site`.
        cluster: the nodes.
        hosts: the nodes in the order in which the URL names them.
        made_with: more arguments of `make`.
    """

    def __init__(
        self, make: SiteFactory, cluster: Cluster, hosts: list[RabbitMQ] | None = None, **made_with: Any
    ) -> None:
        self.cluster = cluster
        self.vhost = f"flow-{uuid4().hex[:8]}"
        cluster.nodes[0].add_vhost(self.vhost)
        url = cluster.url_of(self.vhost, hosts)
        options = {"LEASE": 5, "HEARTBEAT": HEARTBEAT}
        self.site = make("postgres", broker=url, options=options, **{"handlers": HANDLERS, **made_with})
        self.site.manage("topology", env={"MESSAGING_URL": cluster.url_of(self.vhost)})  # the first node leads
        self.published = self.copies = 0  # messages, and further queues that take one of them
        self.running: list[Running] = []

    def begin(self, count: int, pause: float = 0.1) -> None:
        """Start a relay and a consumer, publish `count` messages, and wait until messages flow."""
        self.running = [self.site.start("relay"), self.site.start("consume", "--no-relay")]
        self.running[1].wait_for_output("consuming counted")
        self.publish(count, pause)
        self.wait_for_effects(min(count, 500))

    def publish(self, count: int, pause: float = 0.1, queue: str = "counted") -> None:
        """Have a process of its own publish `count` messages, 25 at a time and `pause` seconds apart."""
        self.published += count
        self.site.start("shell", "-c", PUBLISH.format(count=count, pause=pause, queue=queue))

    def wait_for_effects(self, count: int) -> None:
        """Wait until so many were handled."""
        wait_until(lambda: self.effects >= count, deadline=DEADLINE, what=f"{count} effects")

    @property
    def effects(self) -> int:
        return int(self.site.value("SELECT COUNT(*) FROM app_effect"))

    @property
    def outbox(self) -> dict[str, int]:
        return self.site.states("published")

    @property
    def is_done(self) -> bool:
        processed = {"processed": self.published + self.copies}
        return self.outbox == {"published": self.published} and self.site.states() == processed

    @property
    def is_kept_waiting(self) -> bool:
        """Whether the relay has noticed that nobody takes messages; RabbitMQ 3.10 refuses them, 4.0 is silent."""
        refused = "SELECT COUNT(*) FROM messaging_publishedmessage WHERE error LIKE '%did not take it%'"
        relay = self.running[0].output
        return "messages wait" in relay.splitlines()[-1] or "no confirm for" in relay or self.site.value(refused) > 0

    def finish(self) -> None:
        """Everything that was published was processed, once."""
        wait_until(lambda: self.is_done, deadline=DEADLINE, what="all is processed")
        assert self.effects == self.published + self.copies
        assert self.site.value('SELECT COUNT(DISTINCT "key") FROM app_effect') == self.published
        assert self.site.value("SELECT MAX(attempts) FROM messaging_publishedmessage") == 1
        for process in self.running:
            assert process.stop() == 0
            assert "Traceback" not in process.output
        for queue in ("counted", "counted.dead"):
            assert depth(self.cluster.url_of(self.vhost, [self.cluster.running[0]]), queue) == 0


@pytest.fixture
def flow(site: SiteFactory, rabbitmq_cluster: Cluster) -> Iterator[Callable[..., Flow]]:
    """`flow(hosts=...)`: see `Flow`. What its processes said is shown where a test fails."""
    made: list[Flow] = []

    def make(hosts: list[RabbitMQ] | None = None, **made_with: Any) -> Flow:
        made.append(Flow(site, rabbitmq_cluster, hosts, **made_with))
        return made[-1]

    yield make
    for one in made:
        sys.stdout.write(f"published {one.outbox}, processed {one.site.states()}\n")
    for process in (process for one in made for process in one.running):
        sys.stdout.write(f"--- {process}\n{process.output}")


def test_the_node_that_serves_us_is_killed_while_messages_flow(
    flow: Callable[..., Flow], rabbitmq_cluster: Cluster
) -> None:
    flowing = flow()
    flowing.begin(3000)
    rabbitmq_cluster.nodes[0].kill()
    flowing.finish()


def test_the_node_of_the_queue_s_leader_is_killed_while_another_serves_us(
    flow: Callable[..., Flow], rabbitmq_cluster: Cluster
) -> None:
    first, second, third = rabbitmq_cluster.nodes
    flowing = flow([second, third, first])
    assert rabbitmq_cluster.leader_of(flowing.vhost, "counted") is first
    flowing.begin(3000)
    first.kill()
    flowing.finish()
    assert rabbitmq_cluster.leader_of(flowing.vhost, "counted", second) is not first


def test_a_node_is_stopped_in_order_while_messages_flow(flow: Callable[..., Flow], rabbitmq_cluster: Cluster) -> None:
    flowing = flow()
    flowing.begin(3000)
    rabbitmq_cluster.nodes[0].stop()
    flowing.finish()


def test_a_node_that_freezes_is_left_for_another(flow: Callable[..., Flow], rabbitmq_cluster: Cluster) -> None:
    """We notice before the cluster does, which needs a minute to go on without it."""
    flowing = flow()
    flowing.begin(3000)
    rabbitmq_cluster.nodes[0].freeze()
    flowing.finish()


def test_a_node_that_is_cut_off_is_left_for_another(flow: Callable[..., Flow], rabbitmq_cluster: Cluster) -> None:
    """Clients still reach it. It notices that it is alone, and hangs up."""
    flowing = flow()
    flowing.begin(3000)
    rabbitmq_cluster.part(rabbitmq_cluster.nodes[0])
    flowing.finish()


def test_all_nodes_are_restarted_in_turn_with_a_backlog(flow: Callable[..., Flow], rabbitmq_cluster: Cluster) -> None:
    """As the page on clusters says."""
    grow, before, after = (block.text.splitlines() for block in find("cluster"))
    flowing = flow()
    flowing.begin(8000, pause=0.0)
    for number, node in enumerate(rabbitmq_cluster.nodes):
        flowing.wait_for_effects(500 * (number + 1))
        type_at(node, before)
        node.stop()
        node.start()
    type_at(rabbitmq_cluster.nodes[0], after)
    nodes = {f"rabbit@rabbit-{number}": node.name for number, node in enumerate(rabbitmq_cluster.nodes, 1)}
    type_at(rabbitmq_cluster.nodes[0], grow, nodes)
    flowing.finish()


def test_a_queue_that_is_gone_with_its_node_holds_up_no_other(
    flow: Callable[..., Flow], rabbitmq_cluster: Cluster
) -> None:
    """A classic queue has no copies: what it takes waits for its node, alone or with other queues."""
    flowing = flow(handlers=HANDLERS_OF_TWO, queues={"lonely": {"type": "classic"}})
    flowing.begin(100)
    relays = [flowing.running[0], flowing.site.start("relay")]
    flowing.running.append(relays[1])
    rabbitmq_cluster.nodes[0].kill()
    for relay in relays:
        relay.wait_for_output("A queue is away")
    flowing.publish(50, queue="lonely")
    flowing.publish(50, queue="both")
    flowing.copies = 50
    flowing.publish(100)
    flowing.wait_for_effects(200)
    wait_until(lambda: flowing.outbox == {"published": 200, "pending": 100}, what="what the queue takes waits")
    rabbitmq_cluster.nodes[0].start()
    flowing.finish()
    assert all("All queues are there again" in relay.output for relay in relays)


@pytest.mark.parametrize("handling", ["pause_minority", "ignore"])
def test_without_a_majority_messages_wait_and_nothing_is_spent(
    flow: Callable[..., Flow], rabbitmq_cluster: Cluster, handling: str
) -> None:
    """The node that is left serves nobody, or refuses or leaves unconfirmed what it cannot copy."""
    flowing = flow()
    flowing.begin(500)
    rabbitmq_cluster.handle_partitions(handling)
    for node in rabbitmq_cluster.nodes[:2]:
        node.kill()
    flowing.publish(500)
    wait_until(lambda: flowing.outbox == {"published": 500, "pending": 500}, deadline=DEADLINE, what="waiting")
    wait_until(lambda: flowing.is_kept_waiting, deadline=DEADLINE, what="what the broker says")
    assert flowing.outbox == {"published": 500, "pending": 500}
    rabbitmq_cluster.nodes[2].kill()  # it was told to handle partitions in its own way
    rabbitmq_cluster.start()
    flowing.finish()


def type_at(node: RabbitMQ, lines: list[str], names: Mapping[str, str] | None = None) -> None:
    """Run commands of the documentation on a node."""
    for line in lines:
        program, *arguments = line.split()
        node.tool(program, *((names or {}).get(word, word) for word in arguments))
