"""What went wrong with a connection or a channel, in words without credentials."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from pika import exceptions
from pika.adapters.utils import connection_workflow

from messaging.backends.rabbitmq.frames import text
from messaging.exceptions import BrokerUnavailable, QueueUnavailable
from messaging.wire.fields import printable

NOT_IMPLEMENTED = 540
# Protocol errors that a message can cause, and that close the connection rather than a channel.
HARD_ERRORS = frozenset({501, 502, 503, 504, 505, 540, 541})
# A queue that is known and does not answer is "not found" as well; only these words tell it from a missing one.
NOT_NOW = re.compile(r"down or inaccessible|due to timeout|stopped by supervisor|crashed and failed to restart")
LIMIT = re.compile(r"(?P<what>(?:\w+ )?connection limit \(\d+\)) is reached")
NO_EXCHANGE = re.compile(r"no exchange '(?P<name>.*)' in vhost", re.DOTALL)
INEQUIVALENT = re.compile(
    r"inequivalent arg '(?P<name>[^']+)' for (?P<kind>\w+) '(?P<subject>.*)' in vhost '.*?': "
    r"received (?P<wanted>.*) but current is (?P<current>.*)",
    re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class Loss:
    """Why a connection or channel ended: words for people, and the broker's code where it gave one."""

    reason: str
    code: int | None = None
    ours: bool = False
    unanswered: bool = False  # this side gave it up for want of an answer

    @classmethod
    def of(cls, error: BaseException | None) -> Loss:
        """Describe an exception of pika's."""
        if isinstance(error, (exceptions.ConnectionClosedByClient, exceptions.ChannelClosedByClient)):
            return cls("closed by this side", ours=True)
        if isinstance(error, (exceptions.ConnectionClosed, exceptions.ChannelClosed)):
            return cls(printable(text(error.reply_text)), code=int(error.reply_code))
        return cls(_describe(error), unanswered=isinstance(error, BrokerUnavailable))


class ChannelRefused(Exception):
    """The broker closed a channel over a request."""

    def __init__(self, code: int | None, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


class NoChannelLeft(Exception):
    """The connection has as many channels as RabbitMQ allows."""


def refusal(loss: Loss) -> ChannelRefused | QueueUnavailable:
    """What a closed channel means for the request that closed it."""
    if loss.code == 404 and NOT_NOW.search(loss.reason):
        return QueueUnavailable(f"It cannot be used now: {loss.reason}.")
    return ChannelRefused(loss.code, loss.reason)


def _describe(error: BaseException | None) -> str:
    if isinstance(error, exceptions.ProbableAuthenticationError):
        return "the broker refused the login; check the user name and the password"
    if isinstance(error, exceptions.ProbableAccessDeniedError):
        if limit := LIMIT.search(str(error)):
            return f"the broker's {limit['what']} is reached; raise it, or run fewer processes"
        return "the broker refused the virtual host; check its name and the user's permissions"
    if isinstance(error, exceptions.IncompatibleProtocolError):
        return "it hung up before speaking AMQP 0-9-1; check the port, and whether it expects TLS or our certificate"
    if isinstance(error, exceptions.AMQPHeartbeatTimeout):
        return "no heartbeat from the broker"
    if isinstance(error, exceptions.ConnectionBlockedTimeout):
        return "the broker blocked publishers for too long (a memory or disk alarm)"
    cause = _innermost(error)
    if isinstance(cause, connection_workflow.AMQPConnectorStackTimeout):
        return "it did not answer in time"
    if isinstance(cause, TimeoutError):
        return "timed out"
    if isinstance(cause, OSError) and cause.strerror:
        return cause.strerror
    return _tidy(str(cause) or type(cause).__name__)


def _innermost(error: Any) -> Any:
    """The cause within pika's wrappers of wrappers."""
    for _ in range(8):
        if isinstance(error, connection_workflow.AMQPConnectionWorkflowFailed):
            error = error.exceptions[-1]
        elif isinstance(error, connection_workflow.AMQPConnectorPhaseErrorBase):
            error = error.exception
        elif isinstance(error, exceptions.AMQPConnectionError) and error.args and isinstance(error.args[0], Exception):
            error = error.args[0]
        else:
            break
    return error


def _tidy(words: str) -> str:
    """`Stream connection lost: ConnectionResetError(104, 'Connection reset by peer')` without the Python in it."""
    if "indicated EOF" in words:
        return "the broker hung up"
    match = re.search(r"\w+\((?:-?\d+, )?['\"](.*?)['\"]\)", words)
    return printable(match.group(1) if match else words)
