"""Answering a message: straight to the queue that it names, through the outbox, within the handler's transaction.

Who asked may have gone meanwhile, and its queue with it. That is nobody's failure, so an answer that no queue takes is
dropped by the broker unless the caller says otherwise: it would keep an operator busy who can do nothing about it.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from asgiref.sync import sync_to_async

from messaging.conf.rules import is_name, is_text, living_queue, name_of
from messaging.exceptions import PublishError, Reject
from messaging.handlers import queues_of
from messaging.message import HandlerContext, ReceivedMessage, handler_context
from messaging.models import PublishedMessage
from messaging.publishing.publisher import publish, whole
from messaging.publishing.rows import REPLIES
from messaging.wire.bodies import one_line

DIRECT = f"{REPLIES}."  # before a waiting client's number; to the broker it is no queue even while that waits


def answer(
    message: ReceivedMessage,
    payload: Any,
    *,
    headers: Mapping[str, Any] | None = None,
    message_id: str | uuid.UUID | None = None,
    content_type: str | None = None,
    content_encoding: str | None = None,
    type: str | None = None,  # noqa: A002  AMQP's own name
    reply_to: str | None = None,
    priority: int | None = None,
    expiration: float | timedelta | None = None,
    mandatory: bool = False,
) -> PublishedMessage:
    """Answer a message from within its handler: the answer is sent if the handler's transaction commits.

    The answer goes straight to the queue that `message.reply_to` names. It has the correlation id of the message, or,
    if the message has none, the message's own id.

    Args:
        message: the message to answer; in a batch, one of the batch.
        payload: the answer, as for `publish()`.
        headers: plain values, as for `publish()`.
        message_id: up to 255 bytes; a new UUID by default.
        content_type: decides how text is encoded; by default it is guessed from the payload.
        content_encoding: `"gzip"` or `"deflate"` compresses a payload that is not bytes.
        type: the answer's type, up to 255 bytes.
        reply_to: the queue that expects an answer to the answer.
        priority: 0 to 255.
        expiration: seconds after which the broker may drop the answer from a queue.
        mandatory: whether it is an error if the queue is gone. Pass `True` if `reply_to` names a permanent queue.

    Returns:
        The outbox row.

    Raises:
        Reject: the message has no `reply_to`, or one that cannot be a queue. A handler that lets it pass fails the
            message for good, because the next attempt would see the same.
        PublishError: the answer can never be sent, or no handler is running.
    """
    current = handler_context.get()
    if current is None:
        raise PublishError(
            "answer() is for handlers. Elsewhere call publish() with queue=message.reply_to and "
            "correlation_id=message.correlation_id."
        )
    queue = _queue_of(message, current)
    return publish(
        queue,
        payload,
        queue=queue,
        headers=headers,
        message_id=message_id,
        correlation_id=_correlation_of(message),
        content_type=content_type,
        content_encoding=content_encoding,
        type=type,
        reply_to=reply_to,
        priority=priority,
        expiration=expiration,
        mandatory=mandatory and not queue.startswith(DIRECT),
        using=current.using,
    )


async def aanswer(message: ReceivedMessage, payload: Any, **options: Any) -> PublishedMessage:
    """`answer()` for async handlers.

    Args:
        message: the message to answer.
        payload: the answer.
        **options: the other arguments of `answer()`.

    Returns:
        The outbox row.

    Raises:
        Reject: as for `answer()`.
        PublishError: as for `answer()`.
    """
    return await sync_to_async(lambda: whole(answer(message, payload, **options)))()


def _queue_of(message: ReceivedMessage, current: HandlerContext) -> str:
    """The queue that a message names. A stranger may have written anything there. Raises Reject."""
    queue = message.reply_to
    if not queue:
        raise Reject(
            "The message has no reply_to, so that nobody can be answered. Look at message.reply_to where that may be."
        )
    if not is_name(queue) or queue != name_of(queue) or queue == REPLIES:
        raise Reject(f'The reply_to "{one_line(queue)}" of the message cannot be the name of a queue.')
    if queue == message.queue:
        raise Reject(f'The reply_to of the message is its own queue "{queue}", where answers would be handled again.')
    if living_queue(queue) in queues_of(current.using) - {queue}:
        raise Reject(f'The reply_to "{queue}" of the message is a queue of dead letters, which takes no answers.')
    return queue


def _correlation_of(message: ReceivedMessage) -> str | None:
    """What the one who asked recognises its answer by. Raises Reject."""
    known = message.correlation_id or message.id
    if known and not is_text(known):
        raise Reject(f'The correlation id "{one_line(known)}" of the message cannot be sent back: it is no text.')
    return known or None
