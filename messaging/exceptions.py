"""Every error that the app raises; all derive from `MessagingError`."""

from __future__ import annotations

LONGEST_WAIT = 10 * 366 * 86400  # seconds that anything may be put off: a date so far ahead still fits every database


class MessagingError(Exception):
    """Base of all errors of this app; not raised itself."""


class ConfigurationError(MessagingError):
    """A setting is missing or wrong. The text names the setting and what it should be."""


class PublishError(MessagingError, ValueError):
    """`publish()` was given something that can never be sent; nothing was written."""


class PayloadError(MessagingError, ValueError):
    """A body cannot be decoded as its content type says."""


class WireError(MessagingError, ValueError):
    """Bytes that are not valid AMQP 0-9-1, or a value that AMQP 0-9-1 cannot carry."""


class BrokerUnavailable(MessagingError):
    """The broker cannot be reached, or the connection to it was lost. Nothing was spent: try again."""


class TopologyError(MessagingError):
    """The broker holds something that cannot be used safely; the text says what differs and the way out."""


class UnusableQueue(TopologyError):
    """A queue turned out to be of a kind that can never be consumed from."""


class DatabaseUnavailable(MessagingError):
    """The database does not answer a fresh connection, or takes no writes. Hold the delivery and try again.

    Args:
        text: the sentence for people.
        database: which one.
    """

    def __init__(self, text: str, database: str = "") -> None:
        super().__init__(text)
        self.database = database


class CommitNotProven(MessagingError):
    """A handler returned normally, but its transaction was rolled back.

    It called `set_rollback(True)`, closed the connection, swallowed a database error, or executed ROLLBACK itself.
    """


class HandlerNotRun(MessagingError):
    """A handler gave back a generator, or another iterator of that kind, so that nothing of its body has run."""


class HandlerTimeout(MessagingError):
    """A handler ran longer than its `timeout` and its process was killed."""


class ProcessDied(MessagingError):
    """The process that ran a handler died (killed, out of memory, a segmentation fault, `os._exit`)."""


class DeadLettered(MessagingError):
    """The broker itself gave a message up: expired, over a length or delivery limit, or rejected by a consumer."""


class IdReused(MessagingError):
    """Another message with this id was recorded before, with other content or headers."""


class ConsumerFailed(MessagingError):
    """The consumer itself cannot process a message, whatever its handler would do: an error of this app's."""


class MessageTooLarge(MessagingError):
    """A message has more bytes than a consumer may hold."""


class HandlerNotFound(MessagingError):
    """No handler of the queue takes this routing key."""


class NewerVersion(MessagingError):
    """A payload has a version that is not known here yet: a later release may, so that it is tried again."""


class Retry(MessagingError):
    """Raise from a handler to have the message retried later; counts as an attempt.

    Args:
        after: seconds until the next attempt, or a little more; None leaves it to the handler's backoff.
        reason: shown to operators.
    """

    def __init__(self, reason: str = "", *, after: float | None = None) -> None:
        if after is not None and not 0 <= after <= LONGEST_WAIT:
            raise ValueError(f"Retry(after={after!r}): seconds must be between 0 and ten years.")
        super().__init__(reason or "The handler asked for a retry.")
        self.after = after


class Reject(MessagingError):
    """Raise from a handler to fail the message for good, without further attempts.

    Args:
        reason: why the message cannot be processed; shown to operators.
    """

    def __init__(self, reason: str = "The handler rejected the message.") -> None:
        super().__init__(reason)
