"""RabbitMQ through pika. Only this package imports pika.

`RabbitMQ` is the way in: `sender` publishes over a `Lane`, `receiver` consumes through a `subscription` per queue,
`declare` creates the topology, `inspection` and `survey` compare it. They all stand on `connection`, which owns the I/O
thread, and on `frames`, which reads what pika would not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import datetime

from messaging.backends.allowance import Allowance
from messaging.backends.base import Backend, Delivery, Difference, QueueDepth, Topology
from messaging.backends.rabbitmq import certificates, parameters
from messaging.backends.rabbitmq.errors import ChannelRefused
from messaging.backends.rabbitmq.logs import logger
from messaging.backends.rabbitmq.management import Management
from messaging.backends.rabbitmq.receiver import RabbitReceiver
from messaging.backends.rabbitmq.sender import RabbitSender
from messaging.backends.rabbitmq.session import Session
from messaging.backends.rabbitmq.topology import declare, inspection
from messaging.backends.rabbitmq.topology.probes import is_builtin
from messaging.backends.rabbitmq.topology.survey import Survey
from messaging.conf import AliasSettings
from messaging.exceptions import BrokerUnavailable, QueueUnavailable, TopologyError

__all__ = ["RabbitMQ"]

_READING_SECONDS = 1.0


class RabbitMQ(Backend):
    """The backend of `amqp://` and `amqps://`. Raises ConfigurationError for certificate files that cannot be used."""

    def __init__(self, alias: str, settings: AliasSettings) -> None:
        super().__init__(alias, settings)
        parameters.require_tls(settings)
        self._unseen = ""

    def sender(self) -> RabbitSender:
        """A new publishing connection, not yet open."""
        return RabbitSender(self.settings)

    def receiver(
        self,
        on_delivery: Callable[[Delivery], None],
        on_change: Callable[[], None],
        allowance: Allowance | None = None,
    ) -> RabbitReceiver:
        """A new consuming connection, not yet open."""
        return RabbitReceiver(self.settings, on_delivery, on_change, allowance)

    def declare(self, topology: Topology) -> list[Difference]:
        """Create what is missing; see the contract."""
        with Session(self.settings, "topology") as session:
            return declare.Declarer(session).declare(topology)

    def compare(self, topology: Topology) -> list[Difference]:
        """The differences; bindings and policies only where `MANAGEMENT_URL` is set and answers."""
        self._unseen = f"Without MANAGEMENT_URL, {inspection.UNSEEN} are not checked."
        if self.settings.management_url:
            try:
                found = list(Survey(Management(self.settings)).compare(topology))
            except BrokerUnavailable as error:
                self._unseen = f"{error} Without it, {inspection.UNSEEN} are not checked."
            else:
                self._unseen = ""
                return found
        with Session(self.settings, "topology check") as session:
            return list(inspection.compare(session, topology))

    def unbind(self, queue: str, exchange: str, routing_key: str) -> None:
        """Remove one binding; see the contract."""
        try:
            with Session(self.settings, "topology") as session:
                session.unbind_queue(queue, exchange, routing_key)
        except ChannelRefused as refusal:
            raise TopologyError(f'Queue "{queue}" cannot be unbound: {refusal.code} {refusal.reason}.') from None

    @property
    def unseen(self) -> str:
        """What the last `compare()` could not see."""
        return self._unseen

    def depths(self, queues: Iterable[str]) -> list[QueueDepth]:
        """A reading of each queue, from the management API where it answers, else from passive declarations."""
        names = list(dict.fromkeys(queues))
        readings: dict[str, QueueDepth] = {}
        if self.settings.management_url:
            try:
                found = Management(self.settings, _READING_SECONDS).depths(names, _READING_SECONDS)
                # RabbitMQ 3.10 takes a queue whose node is gone for missing here.
                readings = {reading.queue: reading for reading in found if reading.exists}
            except BrokerUnavailable as error:
                logger.debug("%s", error)
        missing = [name for name in names if name not in readings]
        if missing:
            with Session(self.settings, "readings", timeout=_READING_SECONDS) as session:
                readings |= {name: _look(session, name) for name in missing}
        return [readings[name] for name in names]

    def routes(self, exchange: str, routing_key: str) -> list[str] | None:
        """The queues that a message would reach now, where `MANAGEMENT_URL` is set; see the contract."""
        if not self.settings.management_url:
            return None
        return Management(self.settings, _READING_SECONDS).routes(exchange, routing_key)

    def certificates(self) -> dict[str, datetime | None]:
        """When the broker's certificate and the client's own end; see the contract."""
        return certificates.ends(self.settings)

    def purge_and_delete(self, topology: Topology) -> None:
        """Delete these queues and exchanges with all they hold. For tests."""
        with Session(self.settings, "tests") as session:
            for queue in topology.queues:
                for name in (queue.name, queue.dead):
                    session.delete_queue(name)
            for exchange in topology.exchanges:
                if not is_builtin(exchange.name):
                    session.delete_exchange(exchange.name)


def _look(session: Session, name: str) -> QueueDepth:
    try:
        ready, consumers = session.look_at_queue(name)
    except ChannelRefused as refusal:
        return QueueDepth(name, exists=refusal.code != 404, source="passive declare")
    except QueueUnavailable:
        return QueueDepth(name, source="passive declare")
    return QueueDepth(name, ready, None, consumers, source="passive declare")
