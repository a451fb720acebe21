"""List filters whose choices come from settings and code: none of them asks the database what values there are."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from datetime import timedelta
from typing import Any

from django.contrib import admin
from django.contrib.admin.views.main import SEARCH_VAR
from django.db import connections
from django.db.models import Max, Q, QuerySet
from django.db.models.functions import Greatest
from django.http import HttpRequest
from django.utils import timezone
from django.utils.translation import gettext_lazy as _
from django.utils.translation import pgettext_lazy

from messaging import conf
from messaging.admin.paginator import LIMIT
from messaging.handlers import queues_of, registry
from messaging.models import OperationItem, ProcessedMessage, PublishedMessage
from messaging.models.base import listed_in
from messaging.models.outbox import PublishedMessageQuerySet
from messaging.models.processed import in_group
from messaging.operations.stored import kind_of
from messaging.publishing.rounds import not_back

PERIODS = {
    "15m": (_("Past 15 minutes"), timedelta(minutes=15)),
    "1h": (_("Past hour"), timedelta(hours=1)),
    "24h": (_("Past 24 hours"), timedelta(days=1)),
    "7d": (_("Past 7 days"), timedelta(days=7)),
    "30d": (_("Past 30 days"), timedelta(days=30)),
}
DURATIONS = {
    "1s": (_("1 second or more"), 1),
    "10s": (_("10 seconds or more"), 10),
    "1m": (_("1 minute or more"), 60),
    "10m": (_("10 minutes or more"), 600),
    "1h": (_("1 hour or more"), 3600),
}
RESULTS = {result.name.lower(): result for result in OperationItem.Result}
LOOKED_AT = 100_000  # rows among which a column without an index is looked at, for one page
OVERTAKEN = 10_000  # how far a row's number may be below that of an earlier row, if both were written at the same time
_NUMBER = re.compile(r"[0-9]{1,18}")
_OPERATION = re.compile(r"[0-9]{1,18}(-(done|skipped|failed))?")
_FINGERPRINT = re.compile(r"[0-9a-zA-Z_-]{1,32}")


def number_of(text: str) -> int | None:
    """The primary key that an address or a form names; None for what can be none."""
    return int(text) if _NUMBER.fullmatch(text) else None


def known_queues() -> list[str]:
    """The queues of every alias, from settings and handlers."""
    return sorted({name for alias in conf.aliases() for name in queues_of(alias)})


def is_listed(model: Any, state: str | None) -> bool:
    """Whether rows in a state are found by it: those that have not ended well."""
    ended = (ProcessedMessage.State.PROCESSED, PublishedMessage.State.PUBLISHED)
    return state in model.State.values and state not in ended


def chosen_state(query: Mapping[str, str]) -> str | None:
    """The state that a list's address asks for. Failures that are alike are the failed ones, unless it says another."""
    return query.get("state") or (ProcessedMessage.State.FAILED if query.get("fingerprint") else None)


def floor_of(request: HttpRequest, rows: QuerySet[Any]) -> int:
    """The number of the row behind the last one that a filter on a column without an index looks at; 0 for all.

    The newest `LOOKED_AT` are looked at, or as many before the row that the list begins at. Where a list is of one
    state that few rows are in, it looks at all of these.
    """
    if is_listed(rows.model, chosen_state(request.GET)):
        return 0
    known: int | None = getattr(request, "_messaging_floor", None)
    if known is None:
        before = number_of(request.GET.get(OlderFilter.parameter_name, ""))
        last = newest_pk(rows.model._default_manager.using(rows.db)) + 1 if before is None else before
        known = max(0, last - 1 - LOOKED_AT)
        request._messaging_floor = known  # type: ignore[attr-defined]  # several filters ask
    return known


class StateFilter(admin.SimpleListFilter):
    """By state; incoming messages also by being open, outgoing ones by being due or waiting for a queue."""

    title = _("state")
    parameter_name = "state"

    def lookups(self, request: HttpRequest, model_admin: Any) -> Iterable[tuple[str, Any]]:
        """Every state of the model."""
        if model_admin.model is ProcessedMessage:
            own = [("open", _("open")), ("away", _("sent, not back"))]
            return [*own, *model_admin.model.State.choices]
        own = [("due", pgettext_lazy("outgoing message", "due")), ("waiting", _("waiting for a queue"))]
        return [*model_admin.model.State.choices, *own]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        """The rows in that state."""
        value = self.value()
        if value == "away" and queryset.model is ProcessedMessage:
            return not_back(queryset)
        if value == "open" and queryset.model is ProcessedMessage:
            return queryset.filter(state__in=ProcessedMessage.OPEN)
        if value == "due" and isinstance(queryset, PublishedMessageQuerySet):
            return queryset.unsent()
        if value == "waiting" and isinstance(queryset, PublishedMessageQuerySet):
            return queryset.waiting_for_queue()
        if is_listed(queryset.model, value):
            return queryset.filter(listed_in(str(value)))
        return queryset.filter(state=value) if value in queryset.model.State.values else queryset


def above_floor(request: HttpRequest, rows: QuerySet[Any]) -> QuerySet[Any]:
    """Those of the rows that a list without a state looks at: see `floor_of()`."""
    return rows.filter(pk__gt=floor) if (floor := floor_of(request, rows)) else rows


class _KnownFilter(admin.SimpleListFilter):
    """By a column whose values the code knows; another one that a link asks for is kept, not silently dropped."""

    parameter_name: str

    def names(self) -> list[str]:
        raise NotImplementedError

    def lookups(self, request: HttpRequest, model_admin: Any) -> Iterable[tuple[str, Any]]:
        names, value = self.names(), self.value()
        return [(name, name) for name in (names if not value or value in names else [*names, value])]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        value = self.value()
        if not value or "\x00" in value:
            return queryset
        found = queryset.filter(**{self.parameter_name: value})
        return above_floor(request, found)


class QueueFilter(_KnownFilter):
    """By queue."""

    title = _("queue")
    parameter_name = "queue"

    def names(self) -> list[str]:
        """The queues of settings and handlers."""
        return known_queues()


class HandlerFilter(_KnownFilter):
    """By handler."""

    title = _("handler")
    parameter_name = "handler"

    def names(self) -> list[str]:
        """The registered handlers."""
        return sorted({handler.name for handler in registry.all()})


class AliasFilter(_KnownFilter):
    """By alias, where there are several."""

    title = _("alias")
    parameter_name = "alias"

    def names(self) -> list[str]:
        """The aliases of the settings."""
        return list(conf.aliases()) if len(conf.aliases()) > 1 else []


def moment_of(model: Any) -> str:
    """The column by which a list's time goes."""
    return "received_at" if model is ProcessedMessage else "created_at"


class ExceptionFilter(admin.SimpleListFilter):
    """By the class of the last error, typed with its module or without."""

    title = _("exception")
    parameter_name = "exception"
    template = "admin/messaging/typed_filter.html"

    def lookups(self, request: HttpRequest, model_admin: Any) -> Iterable[tuple[str, Any]]:
        """None to choose from: no one knows all classes. What was typed is the one in effect."""
        return [(self.value() or "", self.value() or "")]

    def choices(self, changelist: Any) -> Iterator[Any]:
        """What was typed, and what the form has to keep of the list's address."""
        given = changelist.get_filters_params().items()
        kept = [(name, value) for name, value in given if name not in (self.parameter_name, OlderFilter.parameter_name)]
        yield {
            "selected": bool(self.value()),
            "display": self.value() or "",
            "kept": [*((name, one) for name, value in kept for one in _each(value)), *_searched(changelist)],
            "query_string": changelist.get_query_string(remove=[self.parameter_name]),
        }

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        """The rows with that class."""
        value = (self.value() or "").strip()
        if not value or "\x00" in value:
            return queryset
        found = queryset.filter(Q(exception_type=value) | Q(exception_type__endswith=f".{value}"))
        return above_floor(request, found)


class DurationFilter(admin.SimpleListFilter):
    """By how long the last run took."""

    title = _("run")
    parameter_name = "run"

    def lookups(self, request: HttpRequest, model_admin: Any) -> Iterable[tuple[str, Any]]:
        """The lengths to choose from."""
        return [(name, label) for name, (label, _length) in DURATIONS.items()]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        """The rows whose run took at least so long."""
        if self.value() not in DURATIONS:
            return queryset
        found = queryset.filter(duration__gte=DURATIONS[str(self.value())][1] * 1_000_000)
        return above_floor(request, found)


class PeriodFilter(admin.SimpleListFilter):
    """By age."""

    title = _("time")
    parameter_name = "period"

    def lookups(self, request: HttpRequest, model_admin: Any) -> Iterable[tuple[str, Any]]:
        """The periods to choose from."""
        return [(name, label) for name, (label, _length) in PERIODS.items()]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        """The rows of that period."""
        if self.value() not in PERIODS:
            return queryset
        since = timezone.now() - PERIODS[str(self.value())][1]
        moment = moment_of(queryset.model)
        is_recent = Q(**{f"{moment}__gte": since})
        found = queryset.filter(is_recent)
        if not is_listed(queryset.model, chosen_state(request.GET)):
            return found
        # The index of a state is in the order of the numbers. With a number to end at, it need not be read as a whole.
        rows = queryset.model._default_manager.using(queryset.db)
        first = rows.filter(is_recent).order_by(moment, "pk").values_list("pk", flat=True).first()
        if first is None:
            return found
        # Like this no index of times serves it, which would read the whole period.
        unindexed: QuerySet[Any] = queryset.alias(moment=Greatest(moment, moment))
        return unindexed.filter(moment__gte=since, pk__gt=first - OVERTAKEN)


class OriginFilter(admin.SimpleListFilter):
    """Outgoing messages by whether they are a retry of an incoming one."""

    title = _("origin")
    parameter_name = "origin"

    def lookups(self, request: HttpRequest, model_admin: Any) -> Iterable[tuple[str, Any]]:
        """New messages, or retries and requeues."""
        return [("new", _("new messages")), ("rounds", _("retries and requeues"))]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        """The rows of that origin."""
        if self.value() not in ("new", "rounds"):
            return queryset
        return queryset.filter(inbox__isnull=self.value() == "new")


class _LinkedFilter(admin.SimpleListFilter):
    """A filter that a link sets: it is shown only while it is in effect."""

    parameter_name: str

    def lookups(self, request: HttpRequest, model_admin: Any) -> Iterable[tuple[str, Any]]:
        return [(self.value() or "", self.label())] if self.is_sound() else []

    def is_sound(self) -> bool:
        raise NotImplementedError

    def label(self) -> str:
        return str(self.value())


class SimilarFilter(_LinkedFilter):
    """Messages of one failure group."""

    title = _("similar failures")
    parameter_name = "fingerprint"

    def is_sound(self) -> bool:
        """Whether it can be a fingerprint."""
        return bool(_FINGERPRINT.fullmatch(self.value() or ""))

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        """The rows with that fingerprint, in the state that is chosen."""
        if not self.is_sound():
            return queryset
        found = queryset.filter(in_group(str(self.value())))
        return found if self.request.GET.get("state") else found.filter(listed_in(ProcessedMessage.State.FAILED))


class OperationFilter(_LinkedFilter):
    """Messages that a stored operation has acted on, or has left as they were: `12-skipped`, or `12` for all."""

    title = _("operation")
    parameter_name = "operation"

    def is_sound(self) -> bool:
        """Whether it can be one."""
        return bool(_OPERATION.fullmatch(self.value() or ""))

    def label(self) -> str:
        """Its number, and what became of them."""
        number, _dash, result = str(self.value()).partition("-")
        return f"#{number} · {RESULTS[result].label}" if result else f"#{number}"

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        """The newest of them, before the row that the list begins at."""
        if not self.is_sound():
            return queryset
        number, _dash, result = str(self.value()).partition("-")
        items = OperationItem.objects.using(queryset.db).filter(operation=int(number))
        items = items.filter(operation__kind=kind_of(queryset.model))
        if result:
            items = items.filter(result=RESULTS[result])
        before = number_of(request.GET.get(OlderFilter.parameter_name, ""))
        if before is not None:
            items = items.filter(row__lt=before)
        named = items.order_by("-row").values("row")
        # MySQL takes no limit there.
        is_whole = getattr(request, "is_whole", False) or connections[queryset.db].vendor == "mysql"
        return queryset.filter(pk__in=named if is_whole else named[: LIMIT + 1])


class OlderFilter(_LinkedFilter):
    """Rows before a given one: how to go on where counting stops."""

    title = _("older than row")
    parameter_name = "before"

    def is_sound(self) -> bool:
        """Whether it can be a primary key."""
        return number_of(self.value() or "") is not None

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        """The rows before that one."""
        return queryset.filter(pk__lt=int(self.value() or 0)) if self.is_sound() else queryset


def newest_pk(rows: QuerySet[Any]) -> int:
    """The highest primary key, 0 without rows."""
    return rows.order_by().aggregate(newest=Max("pk"))["newest"] or 0


def _each(value: Any) -> Iterable[Any]:
    return value if isinstance(value, list) else [value]


def _searched(changelist: Any) -> list[tuple[str, str]]:
    return [(SEARCH_VAR, changelist.query)] if changelist.query else []
