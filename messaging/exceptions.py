"""Every error that the app raises; all derive from `MessagingError`."""

from __future__ import annotations

LONGEST_WAIT = 10 * 366 * 86400  # seconds that anything may be put off: a date so far ahead still fits every database


class MessagingError(Exception):
    """The base of all errors of this app. It is not raised itself."""


class ConfigurationError(MessagingError):
    """A setting or an argument is missing or wrong. The text names it, and says what it should be."""


class PublishError(MessagingError, ValueError):
    """`publish()` was given something that can never be sent. Nothing was written."""


class PayloadError(MessagingError, ValueError):
    """A body cannot be decoded as its content type says."""


class WireError(MessagingError, ValueError):
    """Bytes that are not valid AMQP 0-9-1, or a value that AMQP 0-9-1 cannot carry."""


class BrokerUnavailable(MessagingError):
    """The broker cannot be reached, or the connection to it was lost. This costs no attempt: try again."""


class QueueUnavailable(BrokerUnavailable):
    """A queue exists and cannot be used now, while others can: its node is gone, or it has no leader.

    Args:
        text: what is wrong, for people.
        queues: names of those that messages may not reach.
        unusable: what else was found that can never be used, for people.
    """

    def __init__(self, text: str, queues: tuple[str, ...] = (), unusable: str = "") -> None:
        super().__init__(text)
        self.queues = queues
        self.unusable = unusable


class TopologyError(MessagingError):
    """An exchange or a queue of the broker cannot be used safely. The text says what differs, and what to do."""


class UnusableQueue(TopologyError):
    """A queue is of a kind that this app can never consume from."""


class DatabaseUnavailable(MessagingError):
    """The database does not answer a new connection, or accepts no writes. Deliveries are held until it does.

    Args:
        text: what is wrong, for people.
        database: the alias of the database.
    """

    def __init__(self, text: str, database: str = "") -> None:
        super().__init__(text)
        self.database = database


class CommitNotProven(MessagingError):
    """A handler returned normally, but its transaction was rolled back.

    It called `set_rollback(True)`, closed the connection, swallowed a database error, or executed ROLLBACK itself.
    """


class HandlerNotRun(MessagingError):
    """A handler returned a generator or something similar, so that nothing of its body has run."""


class HandlerTimeout(MessagingError):
    """A handler ran longer than its `timeout` and its process was killed."""


class ProcessDied(MessagingError):
    """The process that ran a handler died (killed, out of memory, a segmentation fault, `os._exit`)."""


class DeadLettered(MessagingError):
    """The broker dead-lettered a message: it expired, went over a length or delivery limit, or was rejected."""


class IdReused(MessagingError):
    """A message with the same id, but with other content or headers, was recorded before."""


class ConsumerFailed(MessagingError):
    """The consumer cannot process a message because of an error in this app. Its handler is not to blame."""


class MessageTooLarge(MessagingError):
    """A message has more bytes than a consumer may hold in memory."""


class HandlerNotFound(MessagingError):
    """No handler of the queue takes this routing key."""


class NewerVersion(MessagingError):
    """A payload has a newer version than this release knows. It is retried, because a later release may know it."""


class Retry(MessagingError):
    """Raise it in a handler to have the message retried later. This attempt counts.

    Args:
        reason: why, as operators read it.
        after: seconds until the next attempt, which may begin a little later; `None` for the handler's backoff.

    Raises:
        ValueError: `after` is negative, or more than ten years.
    """

    def __init__(self, reason: str = "", *, after: float | None = None) -> None:
        if after is not None and not 0 <= after <= LONGEST_WAIT:
            raise ValueError(f"Retry(after={after!r}): seconds must be between 0 and ten years.")
        super().__init__(reason or "The handler asked for a retry.")
        self.after = after


class Reject(MessagingError):
    """Raise it in a handler to fail the message for good, without further attempts.

    Args:
        reason: why the message cannot be processed, as operators read it.
    """

    def __init__(self, reason: str = "The handler rejected the message.") -> None:
        super().__init__(reason)
