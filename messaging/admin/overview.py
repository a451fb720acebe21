"""The few numbers that tell an operator where to look first."""

from __future__ import annotations

from datetime import datetime
from functools import partial
from typing import NamedTuple

from django.db.models import Count, Min, Model, Q
from django.http import HttpRequest
from django.urls import reverse
from django.utils.translation import gettext as _

from messaging.admin.databases import beside, list_of
from messaging.admin.display import local, seconds_until, span
from messaging.admin.paginator import LIMIT, Bounded, bounded, bounded_count
from messaging.admin.running import over_usual
from messaging.models import FailureGroup, ProcessedMessage, PublishedMessage
from messaging.models.base import listed_in
from messaging.monitoring.conditions import limit
from messaging.monitoring.databases import ask_each, home
from messaging.monitoring.snapshot import Outbox, Snapshot
from messaging.publishing.rounds import not_back, with_sent_at


class Card(NamedTuple):
    """A number with its name, a remark, and the list behind it.

    Attributes:
        label: its name.
        value: the number.
        note: the remark.
        url: of the list.
        alarm: whether somebody should act.
        database: whose rows are counted; "" where it is none of a database's.
    """

    label: str
    value: int
    note: str
    url: str
    alarm: bool
    database: str = ""


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
    return [*_failures(now, site), *_not_back(site), *slow, *outgoing_cards(request, now, site)]


def outgoing_cards(request: HttpRequest, now: Snapshot, site: str = "admin") -> list[Card]:
    """The numbers of the outboxes, which no broker knows."""
    if not request.user.has_perm("messaging.view_publishedmessage"):
        return []
    found = [card for name, box in now.by_database.items() for card in _unsent(box, name, site)]
    for name, box in now.by_database.items():
        found.append(_failed(_("Outgoing, failed"), bounded(box.failed), PublishedMessage, name, site))
    return _of_note(found)


def _of_note(cards: list[Card]) -> list[Card]:
    """Those of the usual database, and of others what is not empty."""
    return [card for card in cards if card.value or card.database == home()]


def _failures(now: Snapshot, site: str) -> list[Card]:
    """What failed in each database, and as how many groups; what is silenced is counted, but no alarm."""
    cards = []
    for database, (count, silenced) in ask_each(partial(_count_failed, now)).items():
        card = _failed(_("Incoming, failed"), count, ProcessedMessage, database, site)
        if silenced:
            note = _("%(count)s of them silenced") % {"count": bounded(silenced)}
            # Of more than are counted some are not known to be silenced.
            card = card._replace(note=note, alarm=count > silenced or isinstance(count, Bounded))
        recent = now.recent.get(database, 0)
        note = _("seen in the past 24 hours") if recent else _("none in the past 24 hours")
        url, label = list_of(FailureGroup, database, site), beside(_("Failure groups"), database)
        cards += [card, Card(label, bounded(recent), note, url, False, database)]
    return _of_note(cards)


def _count_failed(now: Snapshot, database: str) -> tuple[int, int]:
    """How many messages failed in a database, and how many of these are silenced."""
    rows = ProcessedMessage.objects.using(database).filter(listed_in(ProcessedMessage.State.FAILED))
    quiet = now.quiet.get(database)
    if not quiet:
        return bounded_count(rows, "state", "id"), 0
    found = rows.order_by("state", "id").values("fingerprint")[: LIMIT + 1]
    told = found.aggregate(count=Count("fingerprint"), silenced=Count("fingerprint", filter=Q(fingerprint__in=quiet)))
    return bounded(told["count"]), told["silenced"]


def _failed(label: str, count: int, model: type[Model], database: str, site: str) -> Card:
    note = _("wait for an operator") if count else _("none")
    url = list_of(model, database, site, state="failed")
    return Card(beside(label, database), count, note, url, bool(count), database)


def _not_back(site: str) -> list[Card]:
    """The retries and requeues that left the outbox and are not back, if there are any."""
    cards = []
    for database, (count, first) in ask_each(_sum_up_away).items():
        if first is None:
            continue
        note = _("since %(moment)s") % {"moment": local(first)}
        label, url = _("Incoming, sent and not back"), list_of(ProcessedMessage, database, site, state="away")
        cards.append(Card(beside(label, database), count, note, url, True, database))
    return cards


def _sum_up_away(database: str) -> tuple[int, datetime | None]:
    rows = not_back(ProcessedMessage.objects.using(database))
    count = bounded_count(rows, "state", "pk")
    if not count:
        return 0, None
    return count, with_sent_at(rows).order_by("state", "pk")[: LIMIT + 1].aggregate(first=Min("sent_at"))["first"]


def _over_usual(now: Snapshot, site: str) -> list[Card]:
    """The runs that take longer than their handlers usually do, if there are any."""
    runs = over_usual(now.workers)
    if not runs:
        return []
    name = str(runs[0].told.get("handler", "")).rpartition(".")[2]
    note = _("%(handler)s since %(moment)s") % {"handler": name, "moment": local(runs[0].began)}
    url = reverse(f"{site}:messaging_worker_changelist")
    return [Card(_("Running over their usual time"), len(runs), note, url, alarm=True)]


def _unsent(box: Outbox, database: str, site: str) -> list[Card]:
    """What is due in a database; and what no queue took, if there is any."""
    age = -seconds_until(box.oldest) if box.oldest else 0.0
    note = _("oldest %(span)s") % {"span": span(age)} if box.oldest else _("nothing waits")
    url = list_of(PublishedMessage, database, site, state="due")
    label = beside(_("Outgoing, due"), database)
    cards = [Card(label, bounded(box.due), note, url, age > limit("late"), database)]
    if box.unrouted:
        label, note = beside(_("Outgoing, waiting for a queue"), database), _("no queue takes them")
        url = list_of(PublishedMessage, database, site, state="waiting")
        cards.append(Card(label, bounded(box.unrouted), note, url, True, database))
    return cards
