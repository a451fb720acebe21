"""What workers and records say in the language of the code, in the reader's."""

from __future__ import annotations

import re
from collections.abc import Callable

from django.utils.translation import gettext as _
from django.utils.translation import ngettext, pgettext_lazy

from messaging.models import ProcessedMessage, PublishedMessage
from messaging.monitoring.conditions import BROKER_TROUBLE, WAITS_FOR_BROKER, WAITS_FOR_DATABASE

KINDS = {
    "consume": pgettext_lazy("kind of worker", "consumer"),
    "relay": pgettext_lazy("kind of worker", "relay"),
}
SOURCES = {
    "database": pgettext_lazy("source of numbers", "database"),
    "management API": pgettext_lazy("source of numbers", "management API"),
    "passive declare": pgettext_lazy("source of numbers", "passive declare"),
}
STATES = {**dict(PublishedMessage.State.choices), **dict(ProcessedMessage.State.choices)}
# What a worker's status is made of, and how it is said; what is none of these stays as it is.
_SAYINGS: tuple[tuple[str, Callable[..., str]], ...] = (
    ("stopping", lambda: _("stopping")),
    (WAITS_FOR_DATABASE, lambda: _("waiting for the database")),
    (WAITS_FOR_BROKER, lambda: _("waiting for the broker")),
    (
        r"running (\d+), waiting (\d+)",
        lambda running, waiting: (
            _("running %(running)s, waiting %(waiting)s") % {"running": running, "waiting": waiting}
        ),
    ),
    (
        r"a handler kept all else from running for (\d+) s",
        lambda seconds: _("a handler kept all else from running for %(seconds)s s") % {"seconds": seconds},
    ),
    (
        r"waits for another process's transaction: (\d+) messages?",
        lambda count: (
            ngettext(
                "waits for another process's transaction: %(count)s message",
                "waits for another process's transaction: %(count)s messages",
                int(count),
            )
            % {"count": count}
        ),
    ),
    (r"cannot use for now: (.+)", lambda names: _("cannot use for now: %(names)s") % {"names": names}),
    (r"cannot renew its claims in (.+)", lambda names: _("cannot renew its claims in %(names)s") % {"names": names}),
    (f"{BROKER_TROUBLE}(.+)", lambda reason: _("broker: %(reason)s") % {"reason": reason}),
)


def kind(name: str) -> str:
    """What a worker is."""
    return str(KINDS.get(name, name))


def source(name: str) -> str:
    """Where a backend has the numbers of its queues from."""
    return str(SOURCES.get(name, name))


def status(text: str) -> str:
    """What a worker says that it does."""
    return "; ".join(map(_said, text.split("; ")))


def change(before: str, after: str) -> str:
    """From which state to which; "" where there was none before."""
    return f"{STATES.get(before, before)} → {STATES.get(after, after)}" if before else ""


def _said(text: str) -> str:
    for pattern, say in _SAYINGS:
        found = re.fullmatch(pattern, text, re.DOTALL)
        if found:
            return say(*found.groups())
    return text
