"""What differs between the topology and the broker, said so that an operator knows what to do."""

from __future__ import annotations

import re

from messaging.backends.base import Difference
from messaging.backends.rabbitmq.errors import INEQUIVALENT, ChannelRefused

_REPLACE = "or empty it, delete it yourself and run `manage.py topology` to have it declared anew"
_DEAD_LETTER = ("x-dead-letter-exchange", "x-dead-letter-routing-key", "x-dead-letter-strategy")


def of_queue(name: str, refusal: ChannelRefused) -> Difference:
    """What a refused declaration of an existing queue says."""
    subject = f'queue "{name}"'
    if refusal.code == 405:
        return exclusive(name)
    match = INEQUIVALENT.search(refusal.reason)
    if refusal.code != 406 or match is None:
        return refused(subject, refusal)
    wanted, current = _plain(match["wanted"]), _plain(match["current"])
    if match["name"] == "durable":
        return not_durable(name)
    if match["name"] == "auto_delete":
        return auto_deleted(name)
    return of_argument(name, match["name"], current, wanted)


def _plain(value: str) -> str:
    """A value as the broker words it, without the wording."""
    if found := re.fullmatch(r"the value (.*) of type '\w+'", value):
        return found[1]
    return "not set" if value == "none" else value


def of_argument(name: str, argument: str, current: str, wanted: str) -> Difference:
    """A queue argument that differs; it cannot be changed, so the queue is used as it is."""
    problem = f"{argument} is {current} at the broker, the topology says {wanted}; the queue is used as it is."
    way_out = f'Say what it is in QUEUES["{name}"] (type, arguments, dead_letter), {_REPLACE}.'
    if argument in _DEAD_LETTER:
        way_out += " A policy can set dead lettering without that."
    return Difference(f'queue "{name}"', problem, way_out)


def not_durable(name: str) -> Difference:
    """A queue that does not survive a restart."""
    return Difference(
        f'queue "{name}"',
        "it is not durable (durable is false at the broker, the topology says true): it and all its messages are "
        "lost when the broker restarts.",
        "Nothing was deleted. When it is empty, delete it yourself and run `manage.py topology`; or use another queue "
        "name.",
        "error",
    )


def auto_deleted(name: str) -> Difference:
    """A queue that goes with its last consumer."""
    return Difference(
        f'queue "{name}"',
        "it is an auto-delete queue: it and its messages are deleted when its last consumer goes.",
        "Delete it yourself when it is empty and run `manage.py topology`; or use another queue name.",
        "loss",
    )


def exclusive(name: str) -> Difference:
    """A queue that belongs to another connection."""
    return Difference(
        f'queue "{name}"',
        "it is exclusive to another connection, and is deleted with that.",
        "Use another queue name, or have its owner declare it without `exclusive`.",
        "error",
    )


def of_exchange(name: str, refusal: ChannelRefused) -> Difference:
    """What a refused declaration of an existing exchange says."""
    subject = f'exchange "{name}"'
    match = INEQUIVALENT.search(refusal.reason)
    if refusal.code != 406 or match is None:
        return refused(subject, refusal)
    what, wanted, current = match["name"], match["wanted"], match["current"]
    problem = f"its {what} is {current} at the broker, the topology says {wanted}"
    delete = "Delete it yourself and run `manage.py topology`; or use another exchange name."
    if what == "durable":
        return Difference(
            subject, f"{problem}: it and its bindings are lost when the broker restarts.", delete, "error"
        )
    if what == "internal":
        return Difference(subject, f"{problem}: nobody can publish to it.", delete, "error")
    if what == "auto_delete":
        return Difference(subject, f"{problem}: it is deleted with its last binding.", delete, "loss")
    return Difference(subject, f"{problem}: messages may not reach their queues. It is used as it is.", delete, "loss")


def refused(subject: str, refusal: ChannelRefused) -> Difference:
    """Anything else that the broker refuses."""
    code = f"{refusal.code} " if refusal.code else ""
    hint = "Give the broker's user the permission." if refusal.code == 403 else "Correct its name or its settings."
    return Difference(subject, f"the broker refuses it: {code}{refusal.reason}.", hint, "error")
