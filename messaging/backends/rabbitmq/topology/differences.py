"""What differs between the topology and the broker, said so that an operator knows what to do."""

from __future__ import annotations

import re
from typing import Any

from messaging.backends.base import Difference
from messaging.backends.rabbitmq.errors import INEQUIVALENT, ChannelRefused

DEAD_LETTER = ("x-dead-letter-exchange", "x-dead-letter-routing-key", "x-dead-letter-strategy")
_ASK_OWNER = "Ask its owner to declare it durable and without auto_delete, or consume from another queue."
_DELETE_EXCHANGE = "Delete it yourself and run `manage.py topology`; or use another exchange name."


def of_queue(name: str, refusal: ChannelRefused) -> Difference:
    """What a refused declaration of an existing queue says."""
    subject = f'queue "{name}"'
    if refusal.code == 405:
        return exclusive(name)
    match = INEQUIVALENT.search(refusal.reason)
    if refusal.code != 406 or match is None:
        return refused(subject, refusal)
    if match["name"] == "durable":
        return not_durable(name)
    if match["name"] == "auto_delete":
        return auto_deleted(name)
    return of_argument(name, match["name"], parsed(match["current"]), parsed(match["wanted"]))


def parsed(value: str) -> Any:
    """A value out of the broker's wording of it."""
    if value == "none":
        return None
    found = re.fullmatch(r"the value (?P<value>.*) of type '(?P<type>\w+)'", value, re.DOTALL)
    if found is None:
        return value.strip("'")
    plain = found["value"].strip("'")
    if found["type"] == "bool":
        return plain == "true"
    is_number = found["type"] != "longstr" and re.fullmatch(r"-?\d+", plain)
    return int(plain) if is_number else plain


def both(what: str, current: Any, wanted: Any, *, known: bool = True) -> str:
    """What it is at the broker, and where that differs what the topology says; `known` if it says anything at all."""
    if not known or current == wanted:
        return f"{what} is {shown(current)}"
    return f"{what} is {shown(current)} at the broker, the topology says {shown(wanted)}"


def shown(value: Any) -> str:
    """An argument's value for people."""
    return "not set" if value is None else f"'{value}'"


def change(name: str) -> str:
    """The way out where an argument differs: it cannot be changed."""
    return (
        f'Say what it is in QUEUES["{name}"] (type, arguments, dead_letter), or empty it, delete it yourself and run '
        "`manage.py topology` to have it declared anew."
    )


def of_argument(name: str, argument: str, current: Any, wanted: Any) -> Difference:
    """A queue argument that differs; it cannot be changed, so the queue is used as it is."""
    way_out = change(name)
    if argument in DEAD_LETTER:
        way_out += " A policy can set dead lettering without that."
    return Difference(f'queue "{name}"', f"{both(argument, current, wanted)}; the queue is used as it is.", way_out)


def not_durable(name: str, ours: bool = True) -> Difference:
    """A queue that does not survive a restart; `ours` if we declare it."""
    way_out = "Nothing was deleted. When it is empty, delete it yourself and run `manage.py topology`; or use another "
    return Difference(
        f'queue "{name}"',
        "it is not durable (durable is false at the broker, the topology says true). Our messages are persistent, but "
        "a queue that is not durable loses them all when the broker restarts.",
        way_out + "queue name." if ours else _ASK_OWNER,
        "error",
    )


def auto_deleted(name: str, ours: bool = True) -> Difference:
    """A queue that goes with its last consumer; `ours` if we declare it."""
    way_out = "Delete it yourself when it is empty and run `manage.py topology`; or use another queue name."
    return Difference(
        f'queue "{name}"',
        "it is an auto-delete queue (auto_delete is true at the broker, the topology says false): it and its messages "
        "are deleted when its last consumer goes.",
        way_out if ours else _ASK_OWNER,
        "loss",
    )


def stream(name: str) -> Difference:
    """A queue that is a log: each consumer is shown it from a place of its own."""
    return Difference(
        f'queue "{name}"',
        "it is a stream: what comes while nobody consumes would be skipped, and nothing is delivered again after a "
        "failure.",
        "Consume from a quorum or classic queue that is bound to the same exchange.",
        "error",
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
    match = INEQUIVALENT.search(refusal.reason)
    if refusal.code != 406 or match is None:
        return refused(f'exchange "{name}"', refusal)
    return of_exchange_property(name, match["name"], parsed(match["current"]), parsed(match["wanted"]))


def of_exchange_property(name: str, what: str, current: Any, wanted: Any, *, ours: bool = True) -> Difference:
    """A property of an exchange that differs; `ours` unless it is only bound to, and others publish to it."""
    problem = f"its {what} is {shown(current)} at the broker, the topology says {shown(wanted)}"
    consequence, severity = {
        "durable": ("it and its bindings are lost when the broker restarts.", "error" if ours else "loss"),
        "internal": ("nobody can publish to it.", "error"),
        "auto_delete": ("it is deleted with its last binding.", "loss"),
        "alternate-exchange": (
            "a message that no queue takes goes there, and counts as published instead of unroutable.",
            "warning",
        ),
    }.get(what, ("messages may not reach their queues. It is used as it is.", "loss"))
    way_out = _DELETE_EXCHANGE if ours else "Have its owner declare it anew, or bind to another exchange."
    return Difference(f'exchange "{name}"', f"{problem}: {consequence}", way_out, severity)


def forbidden(subject: str) -> Difference:
    """Something that exists, and that this account may use but not declare."""
    return Difference(
        subject,
        "the broker's user may not declare it, so it is used as it is, and what differs cannot be seen.",
        "Run `manage.py topology --check` as a user that may, or with MANAGEMENT_URL.",
    )


def unavailable(name: str) -> Difference:
    """A queue that exists and does not answer."""
    return Difference(
        f'queue "{name}"',
        "it exists and cannot be used now, so what differs cannot be seen.",
        "See that its node runs, and that it has a leader (`rabbitmq-queues quorum_status` for a quorum queue).",
        "loss",
    )


def refused(subject: str, refusal: ChannelRefused) -> Difference:
    """Anything else that the broker refuses."""
    code = f"{refusal.code} " if refusal.code else ""
    hint = "Give the broker's user the permission." if refusal.code == 403 else "Correct its name or its settings."
    return Difference(subject, f"the broker refuses it: {code}{refusal.reason}.", hint, "error")
