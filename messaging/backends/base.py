"""What a broker must be able to do, and what it promises while doing it.

A backend moves bytes. It knows nothing of rows, handlers or retries: the relay and the consumer decide, a backend
reports. Each object below owns one connection; `Sender` and `Receiver` may be called from any thread.
"""

from __future__ import annotations

import abc
import enum
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

from django.utils.functional import cached_property

from messaging.backends.allowance import Allowance
from messaging.conf import AliasSettings
from messaging.conf.rules import dead_queue
from messaging.wire.envelope import Envelope
from messaging.wire.properties import Properties

if TYPE_CHECKING:
    from messaging.models.spools import Spool


@dataclass(frozen=True, slots=True)
class Outgoing:
    """One message on its way to the broker.

    Attributes:
        token: the caller's name for it, unique among those under way; comes back in the `SendOutcome`. It also travels
            as the header `x-messaging-row`, by which a returned message is recognised.
        exchange: exchange name, "" for the default exchange.
        routing_key: routing key; surrogate escapes stand for bytes that are not UTF-8.
        properties: encoded by `Properties.encode()` (content header without class, weight and size).
        body: the payload.
        mandatory: whether the broker returns the message when no queue takes it.
    """

    token: str
    exchange: str
    routing_key: str
    properties: bytes
    body: bytes
    mandatory: bool = True


class Fate(enum.Enum):
    """How a sent message ended."""

    CONFIRMED = "confirmed"  # the broker has taken responsibility
    UNROUTABLE = "unroutable"  # returned: no queue takes it, or its exchange does not exist
    NACKED = "nacked"  # the broker says: not now (a full queue, a crashed queue)
    REFUSED = "refused"  # the broker or the protocol can never take it (too large, bad property, no permission)
    SUSPECT = "suspect"  # the channel or connection was closed over one of those under way: send it alone to find out
    UNKNOWN = "unknown"  # the connection was lost before the broker answered; it may have arrived
    UNANSWERED = "unanswered"  # this side did not wait for the broker's answer any longer; it may have arrived


@dataclass(frozen=True, slots=True)
class SendOutcome:
    """The fate of one `Outgoing`; `reason` is for people and never holds a credential."""

    token: str
    fate: Fate
    reason: str = ""


class Sender(abc.ABC):
    """One publishing connection, with publisher confirms and any number of messages under way."""

    @abc.abstractmethod
    def open(self) -> None:
        """Connect, or reconnect after a loss. Raises BrokerUnavailable. Does nothing when already open."""

    @abc.abstractmethod
    def send(self, messages: Sequence[Outgoing]) -> None:
        """Hand over messages, in order, and return at once. Each gets exactly one `SendOutcome`, whatever happens.

        Raises BrokerUnavailable, with nothing handed over, when there is no connection.
        """

    @abc.abstractmethod
    def outcomes(self, timeout: float) -> list[SendOutcome]:
        """Wait up to `timeout` seconds for news and return all there is; an empty list after the timeout."""

    @abc.abstractmethod
    def wake(self) -> None:
        """Make a waiting `outcomes()` return now. Called from any thread."""

    @property
    @abc.abstractmethod
    def under_way(self) -> int:
        """How many messages were handed over whose outcome has not been returned by `outcomes()`."""

    @property
    @abc.abstractmethod
    def is_open(self) -> bool:
        """Whether the connection stands, as far as this side can tell."""

    @property
    @abc.abstractmethod
    def is_blocked(self) -> bool:
        """Whether the broker has stopped reading from publishers (a memory or disk alarm): stop feeding."""

    @property
    def trouble(self) -> str:
        """Why the connection was last lost, or is blocked, in words; "" while all is well or nobody can tell."""
        return ""

    @abc.abstractmethod
    def close(self, timeout: float = 5.0) -> None:
        """Wait up to `timeout` seconds for what is under way, then disconnect. Never raises."""


class Delivery(abc.ABC):
    """A message that the broker delivered and now waits for.

    Attributes:
        spool: has the body where that is too large to be held, so that `body` is empty.
    """

    queue: str
    exchange: str
    routing_key: str
    properties: Properties
    body: bytes
    redelivered: bool
    received_at: float  # time.monotonic() of its arrival
    spool: Spool | None = None

    @cached_property
    def envelope(self) -> Envelope:
        """The message as it was first published, whatever way a retry took."""
        return Envelope.received(self.exchange, self.routing_key, self.properties, self.body, self.queue)

    @property
    def message_id(self) -> str:
        """The id that its publisher gave; "" for none."""
        return self.properties.message_id or ""

    @abc.abstractmethod
    def ack(self) -> bool:
        """Tell the broker that it is done. False when its channel is gone: it will come again."""

    @abc.abstractmethod
    def requeue(self) -> bool:
        """Give it back unprocessed, to be delivered again. False when its channel is gone: it will come again."""

    @property
    @abc.abstractmethod
    def is_live(self) -> bool:
        """Whether its channel still stands, so that `ack()` and `requeue()` can reach the broker."""


class Receiver(abc.ABC):
    """One consuming connection. Deliveries arrive through `on_delivery`, called from the backend's own thread."""

    @abc.abstractmethod
    def open(self) -> None:
        """Connect, or reconnect after a loss; consumers are not restored. Raises BrokerUnavailable."""

    @abc.abstractmethod
    def consume(self, queue: str, prefetch: int) -> None:
        """Start a consumer on `queue` with at most `prefetch` unacknowledged deliveries.

        Raises BrokerUnavailable, or TopologyError when the queue does not exist or cannot be consumed from.
        """

    @abc.abstractmethod
    def widen(self, queues: Collection[str]) -> None:
        """Have the consumers on these queues given more than one delivery at once, with which an allowance begins."""

    @abc.abstractmethod
    def hurry(self) -> None:
        """Tell the broker now of what was settled, since someone waits for more; from any thread."""

    @abc.abstractmethod
    def cancel(self, queue: str) -> None:
        """Stop the consumer on `queue`; what was delivered stays deliverable to `ack()`. No error if there is none."""

    @property
    @abc.abstractmethod
    def consuming(self) -> frozenset[str]:
        """The queues with a live consumer; one that the broker cancelled (queue deleted) is no longer here."""

    @property
    @abc.abstractmethod
    def is_open(self) -> bool:
        """Whether the connection stands, as far as this side can tell."""

    @property
    @abc.abstractmethod
    def trouble(self) -> str:
        """Why the connection or a consumer was last lost, in words; "" while all is well."""

    @abc.abstractmethod
    def close(self, timeout: float = 5.0) -> None:
        """Send the acknowledgements handed over so far, then disconnect. Never raises."""


@dataclass(frozen=True, slots=True)
class ExchangeSpec:
    """The exchange that we publish to: durable, never auto-deleted.

    Attributes:
        declare: False where someone else declares all that this site uses: it is only looked at.
    """

    name: str
    type: str = "topic"
    declare: bool = True


@dataclass(frozen=True, slots=True)
class QueueSpec:
    """A queue of the known topology.

    Attributes:
        type: "quorum" or "classic".
        arguments: further queue arguments of the user's; they win over ours.
        declare: False when someone else owns the queue: it is only looked at, and nothing is bound to it.
        bindings: (exchange, routing key) pairs.
        dead_letter: whether `<name>.dead` is declared and named as its dead-letter queue.
    """

    name: str
    type: str = "quorum"
    arguments: dict[str, Any] = field(default_factory=dict)
    declare: bool = True
    bindings: tuple[tuple[str, str], ...] = ()
    dead_letter: bool = True

    @property
    def dead(self) -> str:
        """The name of its dead-letter queue."""
        return dead_queue(self.name)


@dataclass(frozen=True, slots=True)
class Topology:
    """All exchanges and queues that one alias knows, from settings and handlers."""

    exchanges: tuple[ExchangeSpec, ...] = ()
    queues: tuple[QueueSpec, ...] = ()


@dataclass(frozen=True, slots=True)
class Difference:
    """Something at the broker that is not as the topology says.

    Attributes:
        subject: what it is about, such as `queue "billing"`.
        problem: what differs, with both values.
        way_out: what an operator can do.
        severity: "error" (cannot be used), "missing", "loss" (messages can be lost) or "warning" (used as it is).
    """

    subject: str
    problem: str
    way_out: str
    severity: str = "warning"


@dataclass(frozen=True, slots=True)
class QueueDepth:
    """A reading of one queue; None where the source cannot know (never 0)."""

    queue: str
    ready: int | None = None
    unacked: int | None = None
    consumers: int | None = None
    exists: bool = True
    source: str = ""

    @property
    def unattended(self) -> int:
        """How many messages are known to wait in it while nobody is known to consume them."""
        return (self.ready or 0) if self.exists and not self.consumers else 0


class Backend(abc.ABC):
    """A broker as one alias of `MESSAGING` describes it."""

    def __init__(self, alias: str, settings: AliasSettings) -> None:
        self.alias = alias
        self.settings = settings

    @abc.abstractmethod
    def sender(self) -> Sender:
        """A new publishing connection, not yet open."""

    @abc.abstractmethod
    def receiver(
        self,
        on_delivery: Callable[[Delivery], None],
        on_change: Callable[[], None],
        allowance: Allowance | None = None,
    ) -> Receiver:
        """A new consuming connection, not yet open.

        Args:
            on_delivery: called in the backend's thread for each delivery; must return at once and never raise.
            on_change: called in the backend's thread when the connection or a consumer is lost.
            allowance: the bytes that may be held, which `on_delivery` counts. Above it nothing is taken in, and fewer
                deliveries than `consume()` allows are asked for. Consumers begin with one; see `Receiver.widen()`.
        """

    @abc.abstractmethod
    def declare(self, topology: Topology) -> list[Difference]:
        """Create what is missing, on a connection of its own, and return once it may be published into.

        Returns what differs but can be used as it is. Raises QueueUnavailable when messages may not reach a queue now,
        TopologyError for what can never be used, both after doing all the rest; BrokerUnavailable.
        """

    @abc.abstractmethod
    def compare(self, topology: Topology) -> list[Difference]:
        """The differences between the topology and the broker; changes nothing. Raises BrokerUnavailable."""

    @abc.abstractmethod
    def unbind(self, queue: str, exchange: str, routing_key: str) -> None:
        """Remove one binding; one that does not exist is no error. Raises TopologyError, BrokerUnavailable."""

    @property
    def unseen(self) -> str:
        """What the last `compare()` could not see of this broker and why, in one sentence; "" if it saw everything."""
        return ""

    @abc.abstractmethod
    def depths(self, queues: Iterable[str]) -> list[QueueDepth]:
        """A reading of each queue within about two seconds. Raises BrokerUnavailable."""

    def routes(self, exchange: str, routing_key: str) -> list[str] | None:
        """The queues that a message would reach now, within about two seconds; None where this broker does not tell.

        Raises BrokerUnavailable.
        """
        return None

    def certificates(self) -> dict[str, datetime | None]:
        """When the certificates of the "broker" and of this "client" end, where there are any; None for one not seen.

        Within a few seconds. Never raises.
        """
        return {}

    @abc.abstractmethod
    def purge_and_delete(self, topology: Topology) -> None:
        """Delete these queues and exchanges with all they hold. For tests."""
