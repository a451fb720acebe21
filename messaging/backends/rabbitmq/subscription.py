"""A consumer on a channel of its own, its deliveries, and their acknowledgements.

To write an acknowledgement wakes the I/O thread, and costs the broker a command. So they wait for others, and are
written with as few frames as will do, unless the broker should hear of them to deliver more.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from pika import spec
from pika.exceptions import NoFreeChannels

from messaging.backends.base import Delivery
from messaging.backends.rabbitmq.connection import Connection
from messaging.backends.rabbitmq.errors import Loss, NoChannelLeft, refusal
from messaging.backends.rabbitmq.frames import Deliver, ack_frame, requeue_frame
from messaging.exceptions import BrokerUnavailable
from messaging.wire.properties import Properties

if TYPE_CHECKING:
    from messaging.backends.rabbitmq.receiver import RabbitReceiver


GATHERING = 0.02  # seconds that an acknowledgement waits for others
# A quorum queue takes 32 acknowledgements of a channel at once; the broker holds further ones back until those are
# on disk, and forgets them when the channel closes meanwhile. So after a burst a channel is closed a little later.
_BURST = 30
_SETTLING_SECONDS = 0.5

_FORGETTING = 0.98  # share of a large body's size that is still reckoned with after another `GATHERING`
_QUIET = 1.0  # seconds after which what the broker could send has left its queue

STREAM_OFFSET = b"x-stream-offset"  # a header of whatever comes from a stream

_CANCELLED = (
    'The broker cancelled the consumer of queue "{}": the queue was deleted or is unavailable, or a delivery was held '
    "longer than its consumer timeout."
)


class Settlements:
    """What is to be written about the deliveries of one receiver."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: list[tuple[ChannelSubscription, int, bool]] = []
        self._is_hurried = False

    def add(self, subscription: ChannelSubscription, tag: int, *, done: bool) -> bool:
        """Have a delivery acknowledged, or requeued, soon; from any thread. False when the connection is gone."""
        with self._lock:
            self._waiting.append((subscription, tag, done))
        return not subscription.is_low or self.hurry()

    def hurry(self) -> bool:
        """Write what waits without waiting for more; from any thread. False when the connection is gone."""
        with self._lock:
            if self._waiting and not self._is_hurried:
                try:
                    self._waiting[-1][0].connection.run(self.write)
                except BrokerUnavailable:
                    return False
                self._is_hurried = True
        return True

    def write(self) -> None:
        """Write all that waits; in the I/O thread."""
        with self._lock:
            taken, self._waiting = self._waiting, []
            self._is_hurried = False
        settled: dict[ChannelSubscription, tuple[set[int], list[int]]] = {}
        for subscription, tag, done in taken:
            acked, returned = settled.setdefault(subscription, (set(), []))
            if done:
                acked.add(tag)
            else:
                returned.append(tag)
        for subscription, (acked, returned) in settled.items():
            subscription.write_settled(acked, returned)

    def forget(self) -> None:
        """The connection is gone: what waits comes again."""
        with self._lock:
            self._waiting.clear()
            self._is_hurried = False


def settlement_frames(channel: int, open_tags: dict[int, None], acked: set[int], returned: list[int]) -> list[bytes]:
    """The frames that settle deliveries of one channel.

    Args:
        channel: its number.
        open_tags: all that it has delivered and nobody has settled, in order; those settled here are removed.
        acked: tags to be acknowledged: those that nothing open precedes with one frame together.
        returned: tags to be requeued.
    """
    frames = [requeue_frame(channel, tag) for tag in returned]
    for tag in returned:
        open_tags.pop(tag, None)
    together = 0
    for tag in open_tags:
        if tag not in acked:
            break
        together = tag
    if together:
        frames.append(ack_frame(channel, together, multiple=True))
    frames += [ack_frame(channel, tag) for tag in sorted(acked) if tag > together]
    for tag in acked:
        open_tags.pop(tag, None)
    return frames


class ChannelSubscription:
    """One consumer's life; a new one is made after its end, so old deliveries can never reach a new channel."""

    def __init__(
        self, queue: str, prefetch: int, receiver: RabbitReceiver, connection: Connection, *, is_narrow: bool = False
    ) -> None:
        self.queue = queue
        self.connection = connection
        self.is_narrow = is_narrow  # whether one delivery at once is wanted, for now
        self._most = prefetch  # that was asked for
        self._prefetch = 1 if is_narrow else prefetch  # that the broker knows of
        self._largest = 0  # bytes of a body since the last look
        self._size = 0.0  # bytes of a large body, as of late
        self._newest = 0  # tag of the last delivery,
        self._came = 0  # as it was at the last look,
        self._came_at = 0.0  # and when it became that
        self._is_resizing = False
        self._receiver = receiver
        self._channel: Any = None
        self._tag = ""
        self._started: Future[None] | None = None
        self._stopped: Callable[[Any], None] | None = None
        self._stopping = False
        self._closed = False
        self._is_ticking = False
        self._is_first = True  # whether nothing was delivered yet
        self._unsettled: dict[int, bool] = {}
        self._unwritten: dict[int, None] = {}  # those of which the broker was told nothing yet
        self._burst = 0
        self._burst_at = 0.0

    @property
    def is_live(self) -> bool:
        """Whether its channel still stands."""
        return not self._closed and self.connection.is_open

    def start(self, started: Future[None]) -> None:
        """Open the channel and consume; in the I/O thread."""
        self._started = started
        try:
            self._channel = self.connection.io.channel(on_open_callback=self._opened)
        except NoFreeChannels as error:  # which pika takes for an error of the connection
            raise NoChannelLeft from error
        self._channel.add_on_close_callback(self._on_closed)

    def stop(self, stopped: Future[None]) -> None:
        """Cancel the consumer, keep the channel until its deliveries are settled; in the I/O thread."""
        if self._closed or self._stopping:
            stopped.set_result(None)
            return

        def done(_: Any) -> None:
            self._channel._consumers.pop(self._tag, None)
            if not stopped.done():
                stopped.set_result(None)
            self.close_if_done()

        self._stopping, self._stopped = True, done
        if not self._is_resizing:  # else once its consumer is gone, or back
            self._cancel(done)

    def _cancel(self, done: Callable[[Any], None]) -> None:
        # Not pika's basic_cancel(): that one rejects what arrives meanwhile, and rejects count against a message.
        request: Any = spec.Basic.Cancel(consumer_tag=self._tag, nowait=False)
        self._channel._rpc(request, done, [(spec.Basic.CancelOk, {"consumer_tag": self._tag})])

    def widen(self) -> None:
        """Have more than one message delivered at once; in the I/O thread."""
        self.is_narrow = False
        self._resize()

    def _resize(self) -> None:
        """Ask for as many deliveries as may be held of the size that they have of late.

        A consumer keeps its prefetch, so another one takes its place. What the first was delivered stays with the
        channel: to hand it back would count against each message.
        """
        wanted = 1 if self.is_narrow else min(self._most, self._receiver.fits(max(self._largest, self._size)))
        if wanted == self._prefetch or self._prefetch < wanted < min(self._most, 2 * self._prefetch):
            return
        if self._is_resizing or self._stopping or not self._tag or not self.is_live or self._is_coming(wanted):
            return
        self._is_resizing, self._prefetch = True, wanted
        self._cancel(self._replace)

    def _is_coming(self, wanted: int) -> bool:
        """Whether deliveries may be on their way, which a queue takes back from a consumer that is cancelled then."""
        if len(self._unwritten) >= self._prefetch:
            return False  # the broker has sent all that it may
        return wanted > self._prefetch or time.monotonic() - max(self._came_at, self._burst_at) < _QUIET

    def _replace(self, _: Any) -> None:
        """The consumer is cancelled: begin another."""
        self._channel._consumers.pop(self._tag, None)
        if self._stopping:
            self._resized()
        else:
            self._channel.basic_qos(prefetch_count=self._prefetch, callback=self._consume)

    def _resized(self) -> None:
        was_resizing, self._is_resizing = self._is_resizing, False
        if not was_resizing or self._stopped is None:
            return
        if self._tag in self._channel._consumers:
            self._cancel(self._stopped)
        else:
            self._stopped(None)

    def abandon(self) -> None:
        """Close a channel whose start was not awaited to its end."""
        self._stopping = True
        with contextlib.suppress(BrokerUnavailable):
            self.connection.run(self.close_if_done)

    def close_if_done(self) -> None:
        """Close the channel of a stopped consumer once nothing on it waits; in the I/O thread."""
        channel = self._channel
        if self._stopping and not self._unwritten and channel is not None and channel.is_open:
            if self.settling > 0:
                self.connection.io.later(self.settling, self.close_if_done)
                return
            self._leave()
            channel.close()

    @property
    def is_low(self) -> bool:
        """Whether half of what the broker may deliver is settled, so that it should hear of that now."""
        return 2 * len(self._unsettled) <= self._prefetch

    @property
    def settling(self) -> float:
        """Seconds until the channel can be closed without the broker forgetting acknowledgements."""
        return self._burst_at + _SETTLING_SECONDS - time.monotonic() if self._burst > _BURST else 0.0

    def settle(self, tag: int, *, done: bool) -> bool:
        """Acknowledge or requeue one delivery, once; from any thread."""
        if not self.is_live:
            return False
        if self._unsettled.pop(tag, None) is None:
            return True  # settled before; twice would close the channel
        return self._receiver.settlements.add(self, tag, done=done)

    def write_settled(self, acked: set[int], returned: list[int]) -> None:
        """Tell the broker of settled deliveries; in the I/O thread. A channel's number is used again after its end."""
        if self.is_live:
            frames = settlement_frames(self.number, self._unwritten, acked, returned)
            self.connection.io.write(b"".join(frames))
            now = time.monotonic()
            self._burst = len(frames) + (self._burst if now - self._burst_at < _SETTLING_SECONDS else 0)
            self._burst_at = now
        self.close_if_done()

    @property
    def number(self) -> int:
        """The channel's number."""
        return int(self._channel.channel_number)

    def _opened(self, channel: Any) -> None:
        channel.add_on_cancel_callback(self._on_cancelled)
        self.connection.io.consumers[self.number] = self._on_message
        channel.basic_qos(prefetch_count=self._prefetch, callback=self._consume)

    def _consume(self, _: Any) -> None:
        self._tag = self._channel.basic_consume(self.queue, _never_called, callback=self._consuming)

    def _consuming(self, _: Any) -> None:
        if self._started is not None and not self._started.done():
            self._started.set_result(None)
        self._resized()
        self.close_if_done()

    def _on_message(self, message: Deliver) -> None:
        is_first, self._is_first = self._is_first, False
        if is_first and STREAM_OFFSET in message.properties and self._receiver.suspects(self.queue):
            self._stopping = True
            self._receiver.gone(self, f'Queue "{self.queue}" seems to be a stream.')
            self._leave()
            self._channel.close()  # nothing was taken from it
        else:
            self._take(message)

    def _take(self, message: Deliver) -> None:
        if self._stopping:
            self.connection.io.write(requeue_frame(self.number, message.tag))
            return
        if message.size > self._largest:
            self._largest = message.size
        self._newest = message.tag
        self._unsettled[message.tag] = True
        self._unwritten[message.tag] = None
        if self._prefetch == 1 < self._most:
            self._resize()
        if not self._is_ticking:
            self._is_ticking = True
            self.connection.io.later(GATHERING, self._tick)
        self._receiver.deliver(RabbitDelivery(self, message))

    def _tick(self) -> None:
        """Write what was settled meanwhile, and come again while anything is out."""
        self._receiver.settlements.write()
        self._look_at_sizes()
        self._is_ticking = self.is_live and bool(self._unwritten)
        if self._is_ticking:
            self.connection.io.later(GATHERING, self._tick)

    def _look_at_sizes(self) -> None:
        """Forget large ones slowly, and ask for more or less where that makes a difference."""
        kept = 1.0 if self.is_narrow else _FORGETTING  # else it would ask for many as soon as it may
        self._size, self._largest = max(float(self._largest), self._size * kept), 0
        if self._newest != self._came:
            self._came, self._came_at = self._newest, time.monotonic()
        self._resize()

    def _on_cancelled(self, _: Any) -> None:
        self._stopping = True  # the channel stays for what was delivered on it
        self._receiver.gone(self, _CANCELLED.format(self.queue))
        self.close_if_done()

    def _on_closed(self, _channel: Any, error: Exception) -> None:
        self._closed = True
        self._unsettled.clear()
        self._unwritten.clear()
        self._leave()
        if self._stopped is not None:
            self._stopped(None)
        loss = Loss.of(error)
        if loss.ours or not self.connection.io.is_open:
            return  # the connection's own end says more
        if self._started is not None and not self._started.done():
            self._started.set_exception(refusal(loss))
        elif not self._stopping:
            self._receiver.gone(
                self, f'The broker closed the channel of queue "{self.queue}": {loss.code} {loss.reason}.'
            )

    def _leave(self) -> None:
        self._channel._consumers.clear()
        if self.connection.io.consumers.get(self.number) == self._on_message:
            del self.connection.io.consumers[self.number]


def _never_called(*_: Any) -> None:
    """For pika: deliveries do not go through it."""


class RabbitDelivery(Delivery):
    """A message from RabbitMQ, tied to the channel that it came on."""

    def __init__(self, subscription: ChannelSubscription, message: Deliver) -> None:
        self._subscription = subscription
        self._tag = message.tag
        self.queue = subscription.queue
        self.exchange = message.exchange
        self.routing_key = message.routing_key
        self.redelivered = message.redelivered
        self.properties = Properties.decode(message.properties)
        self.body = message.body
        self.spool = message.spool
        self.received_at = time.monotonic()

    def __repr__(self) -> str:
        return f"<delivery {self._tag} of queue {self.queue!r}>"

    def ack(self) -> bool:
        """Tell the broker that it is done; from any thread."""
        return self._subscription.settle(self._tag, done=True)

    def requeue(self) -> bool:
        """Give it back unprocessed; from any thread."""
        return self._subscription.settle(self._tag, done=False)

    @property
    def is_live(self) -> bool:
        """Whether its channel still stands."""
        return self._subscription.is_live
