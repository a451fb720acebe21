"""Acknowledgements on their way to the broker: gathered for a moment, then written with as few frames as will do.

To write one wakes the I/O thread, and costs the broker a command. So they wait for others, unless the broker should
hear of them to deliver more.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from messaging.backends.rabbitmq.frames import ack_frame, requeue_frame
from messaging.exceptions import BrokerUnavailable

if TYPE_CHECKING:
    from messaging.backends.rabbitmq.subscription import Subscription

GATHERING = 0.02  # seconds that an acknowledgement waits for others


class Settlements:
    """What is to be written about the deliveries of one receiver."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: list[tuple[Subscription, int, bool]] = []
        self._is_hurried = False

    def add(self, subscription: Subscription, tag: int, *, done: bool) -> bool:
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
        settled: dict[Subscription, tuple[set[int], list[int]]] = {}
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
