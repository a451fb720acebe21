"""Asking, and waiting for the one answer: for scripts and tests, which keep nobody waiting but themselves."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from queue import Empty, SimpleQueue
from typing import Any

from django.db import connections

from messaging import conf
from messaging.backends import get_backend
from messaging.backends.base import Delivery, QueueSpec, Receiver, Topology
from messaging.exceptions import BrokerUnavailable
from messaging.message import ReceivedMessage
from messaging.publishing.publisher import publish

SPARE = 60.0  # seconds for which the broker keeps a queue of answers whose process has died


def ask(
    routing_key: str, payload: Any, *, timeout: float = 10.0, using: str = conf.DEFAULT_ALIAS, **options: Any
) -> ReceivedMessage:
    """Publish a message and wait for the answer, in a queue that is made for it and deleted afterwards.

    A relay and the service that answers have to run in other processes. Do not call it in web requests: the page
    *Request and reply* says why.

    Args:
        routing_key: the routing key of the question.
        payload: the payload of the question.
        timeout: seconds to wait for the answer.
        using: alias of `MESSAGING`.
        **options: other arguments of `publish()`, except `reply_to` and `correlation_id`.

    Returns:
        The answer.

    Raises:
        TimeoutError: no answer came in time. The question stays published, and may still be handled.
        RuntimeError: it was called inside a transaction, so that the question would be sent only after its end.
        BrokerUnavailable: the broker cannot be reached.
        PublishError: as for `publish()`.
    """
    if any(connection.in_atomic_block for connection in connections.all(initialized_only=True)):
        raise RuntimeError("ask() was called inside a transaction: the question would be sent only after its end.")
    asked = str(uuid.uuid4())
    with _answers(using, f"answers-{asked}", timeout) as (receiver, queue, arrived):
        publish(routing_key, payload, using=using, reply_to=queue, correlation_id=asked, **options)
        deadline = time.monotonic() + timeout
        while (left := deadline - time.monotonic()) > 0:
            try:
                delivery = arrived.get(timeout=left)
            except Empty:
                break
            if delivery is None:
                if queue not in receiver.consuming:
                    raise BrokerUnavailable(f"The answer cannot be received any more. {receiver.trouble}".rstrip())
            elif delivery.properties.correlation_id == asked:
                return ReceivedMessage(delivery.envelope, queue=queue)
    raise TimeoutError(f"No answer to {routing_key!r} within {timeout:g} seconds.")


@contextmanager
def _answers(using: str, queue: str, timeout: float) -> Iterator[tuple[Receiver, str, SimpleQueue[Delivery | None]]]:
    """A queue of one's own while it lasts, and what arrives in it; None for a change of the connection."""
    backend, arrived = get_backend(using), SimpleQueue[Delivery | None]()
    kept = {} if conf.get(using).broker_database else {"x-expires": int((timeout + SPARE) * 1000)}
    topology = Topology(queues=(QueueSpec(queue, type="classic", arguments=kept, dead_letter=False),))

    def take(delivery: Delivery) -> None:
        delivery.ack()
        arrived.put(delivery)

    receiver = backend.receiver(take, lambda: arrived.put(None))
    backend.declare(topology)
    try:
        receiver.open()
        receiver.consume(queue, 1)
        yield receiver, queue, arrived
    finally:
        receiver.close()
        with suppress(BrokerUnavailable):  # which deletes it itself, later
            backend.purge_and_delete(topology)
