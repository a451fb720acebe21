"""The few numbers that tell an operator where to look first."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, NamedTuple

from django.db.models import BooleanField, Count, ExpressionWrapper, Min, Q
from django.http import HttpRequest
from django.urls import reverse
from django.utils.translation import gettext as _

from messaging.admin.display import local, seconds_until, span
from messaging.admin.paginator import LIMIT, Bounded, bounded_count
from messaging.admin.running import over_usual
from messaging.db.clock import Now
from messaging.models import ProcessedMessage, PublishedMessage
from messaging.models.base import written
from messaging.models.outbox import UNROUTED
from messaging.publishing.rounds import LONG, first_sent, not_back

LATE = 60  # seconds after which a message that is due and not sent is a sign of trouble


class Card(NamedTuple):
    """A number with its name, a remark, and the list behind it; `alarm` when somebody should act."""

    label: str
    value: int
    note: str
    url: str
    alarm: bool


def cards(request: HttpRequest, site: str = "admin") -> list[Card]:
    """What the user may see of it.

    Args:
        request: who looks.
        site: name of the admin site that the cards link into.
    """
    slow = _over_usual(site) if request.user.has_perm("messaging.view_worker") else []
    if not request.user.has_perm("messaging.view_processedmessage"):
        return [*slow, *outgoing_cards(request, site)]
    failed = written(ProcessedMessage).failed()
    name = f"{site}:messaging_processedmessage_changelist"
    return [_failed(_("Incoming, failed"), failed, name), *_not_back(name), *slow, *outgoing_cards(request, site)]


def outgoing_cards(request: HttpRequest, site: str = "admin") -> list[Card]:
    """The numbers of the outbox, which no broker knows."""
    if not request.user.has_perm("messaging.view_publishedmessage"):
        return []
    name = f"{site}:messaging_publishedmessage_changelist"
    rows = written(PublishedMessage).filter(state=PublishedMessage.State.FAILED)
    return [*_unsent(name), _failed(_("Outgoing, failed"), rows, name)]


def _failed(label: str, rows: Any, name: str) -> Card:
    count = bounded_count(rows)
    note = _("wait for an operator") if count else _("none")
    return Card(label, count, note, f"{reverse(name)}?state=failed", alarm=bool(count))


def _not_back(name: str) -> list[Card]:
    """The retries and requeues that left the outbox and are not back, if there are any."""
    rows = not_back(written(ProcessedMessage), Now() - timedelta(seconds=LONG))
    count, first = bounded_count(rows), first_sent(rows)
    if not count or first is None:
        return []
    note = _("since %(moment)s") % {"moment": local(first)}
    return [Card(_("Incoming, sent and not back"), count, note, f"{reverse(name)}?state=away", alarm=True)]


def _over_usual(site: str) -> list[Card]:
    """The runs that take longer than their handlers usually do, if there are any."""
    runs = over_usual()
    if not runs:
        return []
    name = str(runs[0].told.get("handler", "")).rpartition(".")[2]
    note = _("%(handler)s since %(moment)s") % {"handler": name, "moment": local(runs[0].began)}
    url = reverse(f"{site}:messaging_worker_changelist")
    return [Card(_("Running over their usual time"), len(runs), note, url, alarm=True)]


def _unsent(name: str) -> list[Card]:
    """What is due; and what no queue took, if there is any. One query, of as many rows as are ever counted."""
    due = written(PublishedMessage).pending().filter(publish_at__lte=Now()).order_by("id")
    found = due.annotate(is_unrouted=ExpressionWrapper(UNROUTED, BooleanField()))[: LIMIT + 1].aggregate(
        waiting=Count("pk", filter=Q(is_unrouted=True)),
        due=Count("pk", filter=Q(is_unrouted=False)),
        oldest=Min("publish_at", filter=Q(is_unrouted=False)),
    )
    first, url = found["oldest"], reverse(name)
    number: type[int] = Bounded if found["due"] + found["waiting"] > LIMIT else int
    age = -seconds_until(first) if first else 0.0
    note = _("oldest %(span)s") % {"span": span(age)} if first else _("nothing waits")
    cards = [Card(_("Outgoing, due"), number(found["due"]), note, f"{url}?state=due", alarm=age > LATE)]
    if found["waiting"]:
        label, note = _("Outgoing, waiting for a queue"), _("no queue takes them")
        cards.append(Card(label, number(found["waiting"]), note, f"{url}?state=waiting", alarm=True))
    return cards
