"""A private RabbitMQ cluster on this machine, whose nodes can be killed, frozen, parted and started again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote

from tools.janitor import Janitor
from tools.rabbitmq import RabbitMQ
from tools.services import ServiceFailed

CONFIG = {"cluster_partition_handling": "pause_minority"}  # what docs/how-to/cluster.md advises


class Cluster:
    """Nodes that hold each other's queues. A node that cannot see most of them stops serving until it can.

    Args:
        folder: where the nodes' folders are made.
        janitor: ends the nodes should this process die.
        size: how many nodes.
        config: more lines of each `rabbitmq.conf`.
    """

    def __init__(self, folder: Path, janitor: Janitor, size: int = 3, config: Mapping[str, str] | None = None) -> None:
        config = CONFIG | dict(config or {})
        first = RabbitMQ(folder / "1", janitor, config=config)
        others = (RabbitMQ(folder / str(number), janitor, config=config, peer=first) for number in range(2, size + 1))
        self.nodes = [first, *others]

    def start(self) -> None:
        """Bring all nodes back; one that is frozen is killed first. Raises ServiceFailed."""
        for node in self.nodes:
            if not node.is_available:
                node.kill()
        if not any(node.has_data for node in self.nodes):
            self.nodes[0].start()
        with ThreadPoolExecutor() as pool:
            list(pool.map(_start, [node for node in self.nodes if not node.is_running]))
        self.nodes[0].ctl("await_online_nodes", str(len(self.nodes)))

    @property
    def running(self) -> list[RabbitMQ]:
        """The nodes that accept connections."""
        return [node for node in self.nodes if node.is_available]

    def close(self) -> None:
        """Kill all nodes."""
        for node in reversed(self.nodes):
            node.close()

    def url_of(self, vhost: str, nodes: Iterable[RabbitMQ] | None = None) -> str:
        """The AMQP URL of a virtual host with several hosts: all nodes in order, or those given."""
        hosts = ",".join(f"127.0.0.1:{node.port}" for node in nodes or self.nodes)
        return f"amqp://guest:guest@{hosts}/{quote(vhost, safe='')}"

    def leader_of(self, vhost: str, queue: str, asked: RabbitMQ | None = None) -> RabbitMQ:
        """The node on which a queue's leader lives, as `asked` or else the first node sees it."""
        path = f"/api/queues/{quote(vhost, safe='')}/{quote(queue, safe='')}"
        found = (asked or self.nodes[0]).api("GET", path)
        return self._node(found.get("leader") or found["node"])

    def others(self, node: RabbitMQ) -> list[RabbitMQ]:
        """The nodes but one."""
        return [other for other in self.nodes if other is not node]

    def handle_partitions(self, strategy: str) -> None:
        """Change `cluster_partition_handling` of the nodes as they run."""
        for node in self.nodes:
            node.ctl("eval", f"application:set_env(rabbit, cluster_partition_handling, {strategy}).")

    def part(self, node: RabbitMQ) -> None:
        """Cut a node off from the others, as a network would; clients still reach it."""
        peers = ",".join(f"'{other.name}'" for other in self.others(node))
        node.ctl("eval", f"[begin erlang:set_cookie(N, parted), erlang:disconnect_node(N) end || N <- [{peers}]].")

    def _node(self, name: str) -> RabbitMQ:
        return next(node for node in self.nodes if node.name == name)


def _start(node: RabbitMQ) -> None:
    """Start a node, again where it ends at once, as its service manager would.

    RabbitMQ 3.10 does end when it asks another node about feature flags that has only just started itself
    (`incompatible_feature_flags`, with a `badmap` from `rabbit_feature_flags:enable_dependencies/2`).
    """
    try:
        node.start()
    except ServiceFailed:
        node.kill()
        node.start()
