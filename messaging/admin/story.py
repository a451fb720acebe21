"""What happened to a message, as a list of events in time; and the messages it is linked with."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from itertools import chain
from typing import Any, NamedTuple

from django.db.models import Exists, OuterRef, QuerySet
from django.utils.safestring import SafeString
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from messaging.admin import databases, redaction
from messaging.admin.display import moment, state_badge
from messaging.models import AuditRecord, OperationItem, ProcessedMessage
from messaging.models.operations import STOPPED
from messaging.monitoring.databases import ask_each

SHOWN = 50  # events and links of a kind on one page

ACTS = {
    "requeue": gettext_lazy("requeued"),
    "edit": gettext_lazy("edited and requeued"),
    "rehearse": gettext_lazy("rehearsed"),
    "discard": gettext_lazy("discarded"),
    "restore": gettext_lazy("restored"),
    "publish": gettext_lazy("published"),
    "replay": gettext_lazy("replayed"),
    "copy": gettext_lazy("published a copy"),
    "pause": gettext_lazy("paused"),
    "resume": gettext_lazy("resumed"),
    "export": gettext_lazy("exported"),
    "silence": gettext_lazy("silenced"),
    "unsilence": gettext_lazy("silence ended"),
    "note": gettext_lazy("noted"),
    AuditRecord.INTERRUPTION: gettext_lazy("interrupted"),
}


class Event(NamedTuple):
    """One line of a timeline.

    Attributes:
        at: when.
        title: what, in a few words.
        note: more, in a sentence.
        trace: a traceback.
        url: of the row that it is about.
        kind: "good", "bad", "act" or "" (for its mark).
        change: how an operator changed its content; for those alone who may see that.
    """

    at: datetime
    title: str
    note: str = ""
    trace: str = ""
    url: str = ""
    kind: str = ""
    change: str = ""

    @property
    def stamp(self) -> SafeString:
        """When, for the page."""
        return moment(self.at)


class Link(NamedTuple):
    """A message that another page shows."""

    text: str
    url: str
    badge: SafeString


class Related(NamedTuple):
    """Linked messages under one heading."""

    heading: str
    links: list[Link]


def with_operation(rows: QuerySet[Any]) -> QuerySet[Any]:
    """Messages, each with whether a stored operation has acted on it; the others, most, need no further query."""
    done = OperationItem.objects.using(rows.db).filter(row=OuterRef("pk"), result=OperationItem.Result.DONE)
    annotated: QuerySet[Any] = rows.annotate(has_operation=Exists(done))
    return annotated


def audit_events(kind: str, row: Any) -> list[Event]:
    """What operators did to a row, each by itself or in an operation on many."""
    own = row._state.db
    records = AuditRecord.objects.using(own).filter(kind=kind, message_pk=row.pk).order_by("-pk")[:SHOWN]
    events = [audit_event(record) for record in records]
    if getattr(row, "has_operation", True):
        done = {"row": row.pk, "result": OperationItem.Result.DONE, "operation__kind": kind}
        items = OperationItem.objects.using(own).filter(**done)
        events += map(_operation_event, items.select_related("operation").order_by("-pk")[:SHOWN])
    return events


def _operation_event(item: OperationItem) -> Event:
    operation = item.operation
    title = _("%(act)s by %(user)s, operation #%(number)d") % {
        "act": ACTS.get(operation.verb, operation.verb),
        "user": operation.username or _("unknown"),
        "number": operation.pk,
    }
    return Event(item.settled_at or operation.created_at, title, redaction.text(operation.reason), kind="act")


def audit_event(record: AuditRecord) -> Event:
    """One act of an operator, or a run that was cut short."""
    if record.action == AuditRecord.INTERRUPTION:
        title = _("Interrupted by a stop") if record.reason == STOPPED else _("Interrupted")
        note = " · ".join(filter(None, (redaction.text(record.reason), record.username, _("this is no attempt"))))
        return Event(record.at, title, note)
    title = _("%(act)s by %(user)s") % {
        "act": ACTS.get(record.action, record.action),
        "user": record.username or _("unknown"),
    }
    return Event(
        record.at, title, redaction.text(record.reason), kind="act", change=redaction.text(record.details or "")
    )


def in_order(events: Iterable[Event]) -> list[Event]:
    """Events by time."""
    return sorted(events, key=lambda event: event.at)


def link(row: Any, site: str) -> Link:
    """A link to a message's page."""
    text = databases.beside(str(row), row._state.db)
    return Link(text, databases.page_of(row, site), state_badge(row.state, row.get_state_display()))


def related(heading: Any, rows: Iterable[Any], site: str) -> list[Related]:
    """The linked messages under a heading, as a list that is empty where there are none."""
    links = [link(row, site) for row in rows]
    return [Related(str(heading), links)] if links else []


def incoming_with_ids(ids: list[str]) -> list[ProcessedMessage]:
    """What arrived under these message ids, wherever it is recorded."""

    def ask(database: str) -> list[ProcessedMessage]:
        found = ProcessedMessage.objects.using(database).filter(message_id__in=ids)
        return list(found.defer("body", "headers", "wire", "error")[:SHOWN])

    return list(chain.from_iterable(ask_each(ask).values())) if ids else []
