"""Which database a page is about, where messages live in more than one: its address says so.

A list takes it from `?database=`, a page of one row from the row's key: its number, which stands behind the name of its
database where that is not the one that lists begin with, as in `other:17`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from urllib.parse import urlencode

from django.contrib import admin
from django.contrib.admin.utils import quote, unquote
from django.db.models import Model, QuerySet
from django.http import HttpRequest
from django.urls import NoReverseMatch, reverse
from django.utils.translation import gettext_lazy as _

from messaging.admin.filters import number_of
from messaging.monitoring.databases import home, known

PARAMETER = "database"


def key_of(row: Any) -> str:
    """What names a row in the admin's history; in addresses it stands quoted."""
    return key_in(type(row), row._state.db, row.pk)


def key_in(model: type[Model], database: str | None, pk: int) -> str:
    """The key of the row that has this number in a database."""
    return str(pk) if database in (None, home(model)) else f"{database}:{pk}"


def named(model: Any, key: str) -> QuerySet[Any]:
    """The row that a key names, or none."""
    database, pk = place_of(model, key)
    rows: QuerySet[Any] = model._default_manager.using(database)
    return rows.none() if pk is None else rows.filter(pk=pk)


def place_of(model: type[Model], key: str) -> tuple[str, int | None]:
    """The database and the number in it that a key names; no number where it names nothing."""
    database, separator, number = key.rpartition(":")
    if not separator:
        return home(model), number_of(number)
    return (database, number_of(number)) if database in known(model) else (home(model), None)


def of(request: HttpRequest, model: type[Model]) -> str:
    """The database that a page of this model is about."""
    values = getattr(request.resolver_match, "kwargs", {})
    key = values.get("key") or values.get("object_id")
    if key is not None:
        return place_of(model, unquote(str(key)))[0]
    asked = request.GET.get(PARAMETER)
    return asked if asked in known(model) else home(model)


def page_of(row: Any, site: str) -> str:
    """The address of a row's page."""
    return page_in(type(row), row._state.db, row.pk, site)


def page_in(model: type[Model], database: str | None, pk: int, site: str) -> str:
    """The address of the page of the row that has this number in a database."""
    return reverse(f"{_name(model, site)}_change", args=[quote(key_in(model, database, pk))])


def list_of(model: type[Model], database: str, site: str, **query: str) -> str:
    """The address of a model's list, with a database's rows that fit the query."""
    chosen = query if database == home(model) else {PARAMETER: database, **query}
    address = reverse(f"{_name(model, site)}_changelist")
    return f"{address}?{urlencode(chosen)}" if chosen else address


def if_any(address: Callable[..., str], *args: Any, **kwargs: Any) -> str:
    """What a function says is an address; "" on an admin site that has no such page."""
    try:
        return address(*args, **kwargs)
    except NoReverseMatch:
        return ""


def beside(label: str, database: str) -> str:
    """A label, with the name of the database where it is not the one that lists begin with."""
    return label if database == home() else f"{label} · {database}"


def _name(model: type[Model], site: str) -> str:
    return f"{site}:{model._meta.app_label}_{model._meta.model_name}"


class DatabaseFilter(admin.SimpleListFilter):
    """Whose rows a list shows, where there are several databases. It shows those of one at a time."""

    title = _("database")
    parameter_name = PARAMETER

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        """All that have messages."""
        self.home, names = home(model_admin.model), known(model_admin.model)
        return [(name, name) for name in names] if len(names) > 1 else []

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        """As they are: `ReadOnlyAdmin.get_queryset()` has asked the right one."""
        return queryset

    def choices(self, changelist: Any) -> Any:
        """Each of them; there is no list of all."""
        chosen = self.value() if self.value() in dict(self.lookup_choices) else self.home
        for name, label in self.lookup_choices:
            change = ({}, [PARAMETER, "p", "before"]) if name == self.home else ({PARAMETER: name}, ["p", "before"])
            yield {"selected": name == chosen, "query_string": changelist.get_query_string(*change), "display": label}
