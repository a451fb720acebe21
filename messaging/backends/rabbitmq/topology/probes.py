"""Questions that AMQP itself answers: whether something exists, and what it is like.

A declaration is the only way to ask what something is like, and it would create what is missing: so existence is asked
for first. The broker names the first difference only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from messaging.backends import missing
from messaging.backends.base import Difference, Topology
from messaging.backends.rabbitmq.errors import INEQUIVALENT, ChannelRefused
from messaging.backends.rabbitmq.session import Session
from messaging.backends.rabbitmq.topology import differences
from messaging.backends.rabbitmq.topology.found import FoundQueue
from messaging.exceptions import QueueUnavailable

# An argument that no broker accepts: an existing queue answers with what differs, a missing one is not created.
_PROBE = {"x-queue-type": "none"}
_MOST_ARGUMENTS = 20


def exists(session: Session, name: str) -> bool:
    """Whether a queue exists; one that may not be looked at is taken to. Raises ChannelRefused for an exclusive one.

    RabbitMQ from 4.3 shows a queue only to a user who has some right to it. Older ones show it to everybody.
    """
    try:
        session.look_at_queue(name)
    except ChannelRefused as refusal:
        if refusal.code in (403, 404):
            return refusal.code == 403
        raise
    return True


def exchange_exists(session: Session, name: str) -> bool:
    """Whether an exchange exists; one that may not be looked at is taken to, see `exists()`."""
    try:
        session.look_at_exchange(name)
    except ChannelRefused as refusal:
        return refusal.code != 404
    return True


def look_at_foreign(session: Session, name: str) -> list[Difference]:
    """What is wrong with a queue that someone else owns: missing, away, exclusive, not durable, or auto-deleted."""
    try:
        if not exists(session, name):
            return [missing.queue(name, ours=False)]
        session.declare_queue(name, _PROBE)
    except ChannelRefused as refusal:
        match = INEQUIVALENT.search(refusal.reason)
        if refusal.code == 405:
            return [differences.exclusive(name)]
        if match is not None and match["name"] == "durable":
            return [differences.not_durable(name, ours=False)]
        if match is not None and match["name"] == "auto_delete":
            return [differences.auto_deleted(name, ours=False)]
        if match is not None and is_stream(session, name):
            return [differences.stream(name)]
    except QueueUnavailable:
        return [differences.unavailable(name)]
    return []


def is_stream(session: Session, name: str) -> bool:
    """Whether an existing queue is known to be a stream; the broker names its type after the other arguments."""
    asked: dict[str, Any] = dict(_PROBE)
    for _ in range(_MOST_ARGUMENTS):
        try:
            session.declare_queue(name, asked)
        except ChannelRefused as refusal:
            match = INEQUIVALENT.search(refusal.reason)
            if match is not None and match["name"] == "x-queue-type":
                return bool(differences.parsed(match["current"]) == "stream")
            if not _correct(asked, refusal):
                return False
    return False


def find_queue(session: Session, name: str, wanted: Mapping[str, Any]) -> FoundQueue | None:
    """A queue with all its arguments, found by asking for what the broker said last; None when it does not exist.

    Raises ChannelRefused for a queue that is no ordinary one, or that the broker does not tell about.
    """
    asked = dict(wanted)
    for _ in range(_MOST_ARGUMENTS):
        if not exists(session, name):
            return None
        try:
            session.declare_queue(name, asked)
            break
        except ChannelRefused as refusal:
            if not _correct(asked, refusal):
                raise
    return FoundQueue(name, str(asked.get("x-queue-type", "classic")), arguments=asked)


def declare_exchange(session: Session, name: str, type_: str) -> list[Difference]:
    """Create an exchange or look at the one that exists."""
    try:
        session.declare_exchange(name, type_)
    except ChannelRefused as refusal:
        if refusal.code == 403 and exchange_exists(session, name):
            return [differences.forbidden(f'exchange "{name}"')]
        found = [differences.of_exchange(name, refusal)]
        match = INEQUIVALENT.search(refusal.reason)
        current = match["current"].strip("'") if match is not None and match["name"] == "type" else type_
        if current != type_:  # the broker names the first difference only; whether it is durable matters more
            found += declare_exchange(session, name, current)
        return found
    return []


def look_at_exchange_of_others(session: Session, name: str) -> list[Difference]:
    """What is wrong with our exchange where someone else declares all that this site uses."""
    if is_builtin(name):
        return []
    if not exchange_exists(session, name):
        return [missing.exchange_of_others(name)]
    return list(look_at_foreign_exchange(session, name))


def look_at_foreign_exchange(session: Session, name: str) -> Iterator[Difference]:
    """What is wrong with an existing exchange of others that our queues are bound to."""
    type_ = "topic"
    for _ in range(2):  # the first time it may be told what the type is
        try:
            session.declare_exchange(name, type_)
        except ChannelRefused as refusal:
            match = INEQUIVALENT.search(refusal.reason)
            if match is None:
                return  # it may not be looked at more closely
            what, current = match["name"], differences.parsed(match["current"])
            if what == "type":
                type_ = str(current)
                continue
            if what in ("durable", "auto_delete"):
                yield differences.of_exchange_property(name, what, current, match["wanted"].strip("'"), ours=False)
        return


def foreign_exchanges(topology: Topology) -> list[str]:
    """The exchanges that bindings of our queues name, except our own and the broker's."""
    known = {exchange.name for exchange in topology.exchanges}
    named = [exchange for queue in topology.queues if queue.declare for exchange, _ in queue.bindings]
    return [name for name in dict.fromkeys(named) if name not in known and not is_builtin(name)]


def is_builtin(exchange: str) -> bool:
    """Whether an exchange is the broker's own, which nobody may declare."""
    return exchange == "" or exchange.startswith("amq.")


def _correct(asked: dict[str, Any], refusal: ChannelRefused) -> bool:
    """Take over what the broker says an argument is; False when that is not about one, or leads no further."""
    match = INEQUIVALENT.search(refusal.reason)
    if refusal.code != 406 or match is None or not match["name"].startswith("x-"):
        return False
    name, current = match["name"], differences.parsed(match["current"])
    if isinstance(asked.get(name), int) and isinstance(current, str) and current.lstrip("-").isdecimal():
        current = int(current)  # of two numbers the broker does not tell the type
    if asked.get(name) == current:
        return False
    if current is None:
        del asked[name]
    else:
        asked[name] = current
    return True
