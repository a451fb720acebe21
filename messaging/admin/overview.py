"""The few numbers that tell an operator where to look first."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import NamedTuple

from django.db.models import Count, Min, Q
from django.http import HttpRequest
from django.urls import reverse
from django.utils.translation import gettext as _

from messaging.admin.display import local, seconds_until, span
from messaging.admin.paginator import LIMIT, Bounded, bounded, bounded_count
from messaging.admin.running import over_usual
from messaging.db.clock import Now
from messaging.models import ProcessedMessage
from messaging.models.base import listed_in, written
from messaging.monitoring.conditions import limit
from messaging.monitoring.snapshot import Outbox, Snapshot
from messaging.publishing.rounds import LONG, not_back


class Card(NamedTuple):
    """A number with its name, a remark, and the list behind it; `alarm` when somebody should act."""

    label: str
    value: int
    note: str
    url: str
    alarm: bool


def cards(request: HttpRequest, now: Snapshot, site: str = "admin") -> list[Card]:
    """What the user may see of it.

    Args:
        request: who looks.
        now: what is known of the site.
        site: name of the admin site that the cards link into.
    """
    slow = _over_usual(now, site) if request.user.has_perm("messaging.view_worker") else []
    if not request.user.has_perm("messaging.view_processedmessage"):
        return [*slow, *outgoing_cards(request, now, site)]
    name = f"{site}:messaging_processedmessage_changelist"
    return [*_failures(now, site, name), *_not_back(name), *slow, *outgoing_cards(request, now, site)]


def outgoing_cards(request: HttpRequest, now: Snapshot, site: str = "admin") -> list[Card]:
    """The numbers of the outbox, which no broker knows."""
    if not request.user.has_perm("messaging.view_publishedmessage"):
        return []
    name = f"{site}:messaging_publishedmessage_changelist"
    boxes = list(now.outboxes.values())
    return [*_unsent(boxes, name), _failed(_("Outgoing, failed"), bounded(sum(box.failed for box in boxes)), name)]


def _failures(now: Snapshot, site: str, name: str) -> list[Card]:
    """What failed, and as how many groups; what is silenced is counted, but no alarm."""
    rows = written(ProcessedMessage).filter(listed_in(ProcessedMessage.State.FAILED)).order_by("state", "id")
    silenced = 0
    if now.quiet:
        found = rows.values("fingerprint")[: LIMIT + 1].aggregate(
            count=Count("fingerprint"), silenced=Count("fingerprint", filter=Q(fingerprint__in=now.quiet))
        )
        count, silenced = bounded(found["count"]), found["silenced"]
    else:
        count = bounded_count(rows, "state", "id")
    card = _failed(_("Incoming, failed"), count, name)
    if silenced:
        note = _("%(count)s of them silenced") % {"count": bounded(silenced)}
        # Of more than are counted some are not known to be silenced.
        card = card._replace(note=note, alarm=count > silenced or isinstance(count, Bounded))
    note = _("seen in the past 24 hours") if now.recent else _("none in the past 24 hours")
    url = reverse(f"{site}:messaging_failuregroup_changelist")
    return [card, Card(_("Failure groups"), bounded(now.recent), note, url, alarm=False)]


def _failed(label: str, count: int, name: str) -> Card:
    note = _("wait for an operator") if count else _("none")
    return Card(label, count, note, f"{reverse(name)}?state=failed", alarm=bool(count))


def _not_back(name: str) -> list[Card]:
    """The retries and requeues that left the outbox and are not back, if there are any."""
    rows = not_back(written(ProcessedMessage), Now() - timedelta(seconds=LONG)).order_by("state", "pk")
    found = rows[: LIMIT + 1].aggregate(count=Count("pk"), first=Min("sent_at"))
    if not found["count"]:
        return []
    note = _("since %(moment)s") % {"moment": local(found["first"])}
    label = _("Incoming, sent and not back")
    return [Card(label, bounded(found["count"]), note, f"{reverse(name)}?state=away", alarm=True)]


def _over_usual(now: Snapshot, site: str) -> list[Card]:
    """The runs that take longer than their handlers usually do, if there are any."""
    runs = over_usual(now.workers)
    if not runs:
        return []
    name = str(runs[0].told.get("handler", "")).rpartition(".")[2]
    note = _("%(handler)s since %(moment)s") % {"handler": name, "moment": local(runs[0].began)}
    url = reverse(f"{site}:messaging_worker_changelist")
    return [Card(_("Running over their usual time"), len(runs), note, url, alarm=True)]


def _unsent(boxes: list[Outbox], name: str) -> list[Card]:
    """What is due; and what no queue took, if there is any."""
    due, waiting = sum(box.due for box in boxes), sum(box.unrouted for box in boxes)
    first: datetime | None = min((box.oldest for box in boxes if box.oldest is not None), default=None)
    age, url = -seconds_until(first) if first else 0.0, reverse(name)
    note = _("oldest %(span)s") % {"span": span(age)} if first else _("nothing waits")
    cards = [Card(_("Outgoing, due"), bounded(due), note, f"{url}?state=due", alarm=age > limit("late"))]
    if waiting:
        label, note = _("Outgoing, waiting for a queue"), _("no queue takes them")
        cards.append(Card(label, bounded(waiting), note, f"{url}?state=waiting", alarm=True))
    return cards
