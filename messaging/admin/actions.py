"""Carrying out a `Verb` from the admin: what it would do, the confirmation page, doing it, and saying what was done."""

from __future__ import annotations

import math
import time
from collections import Counter
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any

from django.contrib import admin, messages
from django.contrib.admin import helpers
from django.contrib.admin.models import CHANGE, LogEntry
from django.contrib.contenttypes.models import ContentType
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from messaging.admin import databases, lists
from messaging.admin.filters import newest_pk, number_of
from messaging.admin.pages import page
from messaging.admin.paginator import LIMIT, Bounded, bounded_count
from messaging.admin.verbs import Verb
from messaging.models import FailureGroup, Operation
from messaging.monitoring.databases import home
from messaging.operations import Operator, Outcome, failure_groups, stored
from messaging.operations.acting import BATCH

if TYPE_CHECKING:
    from messaging.admin.base import MessageAdmin

SAMPLES = 10
INLINE = 1000  # messages up to which a request acts itself on all that match
PATIENCE = 10.0  # seconds after which no further batch is begun: web servers end requests that take much longer
FASTEST = 1_000_000  # messages per second that can be asked for
LOGGED = 100  # rows up to which each gets its own log entry
REASON = 1000  # characters of a reason


@dataclass(frozen=True, slots=True)
class Preview:
    """What a verb would do: how many rows it acts on, and how many it skips for which reason."""

    count: int
    skipped: list[tuple[str, int]]


def preview(verb: Verb, rows: QuerySet[Any]) -> Preview:
    """Look at a selection, with bounded counts."""
    skipped = []
    if verb.states is not None:
        labels = dict(rows.model.State.choices)
        others = rows.order_by().exclude(verb.right_state).values_list("state", flat=True)
        found = Counter(others[: LIMIT + 1])
        more = found.total() > LIMIT
        for state, count in found.most_common():
            skipped.append((_in_state(labels.get(state, state), count), Bounded(count) if more else count))
    if verb.lacking:
        lacking = bounded_count(rows.filter(verb.right_state).exclude(verb.requires))
        if lacking:
            skipped.append((str(verb.lacking), lacking))
    return Preview(bounded_count(rows.filter(verb.eligible)), skipped)


def as_action(verb: Verb) -> Any:
    """A verb as a list action: it shows the confirmation page, and acts when that is posted."""

    @admin.action(permissions=[verb.permission], description=verb.label)
    def action(model_admin: MessageAdmin, request: HttpRequest, queryset: QuerySet[Any]) -> HttpResponse | None:
        across = request.POST.get("select_across") == "1"
        cutoff = number_of(request.POST.get("cutoff", ""))
        if across and cutoff is not None:
            queryset = queryset.filter(pk__lte=cutoff)
        is_long = across and bounded_count(queryset.filter(verb.eligible)) > INLINE
        if request.POST.get("post") and not is_long:
            carry_out(model_admin, request, verb, queryset)
            return None
        if request.POST.get("post") and (page := store_operation(model_admin, request, verb, queryset)) is not None:
            return page
        fields = _repeat(request, verb, queryset, across)
        return confirm(model_admin, request, verb, queryset, fields, request.get_full_path(), is_long=is_long)

    action.__name__ = verb.name
    return action


def confirm(
    model_admin: MessageAdmin,
    request: HttpRequest,
    verb: Verb,
    rows: QuerySet[Any],
    fields: list[tuple[str, str]],
    back: str,
    *,
    is_long: bool = False,
    look: Preview | None = None,
) -> TemplateResponse:
    """The page that says what will happen and asks.

    `fields` is what its form posts beside the answer; `back` is where one goes who does not want it; `is_long` says
    that it will be stored as an operation; `look` is what is known already of what it would do.
    """
    look = look or preview(verb, rows)
    samples = list(rows.filter(verb.eligible).only(*model_admin.sample_fields)[:SAMPLES])
    return page(
        model_admin,
        request,
        "confirm.html",
        verb.label if fields else verb.button,
        verb=verb,
        preview=look,
        question=_question(look.count),
        is_long=is_long,
        most=stored.MOST,
        samples=[(sample, model_admin.badge(sample)) for sample in samples],
        unlisted=look.count - len(samples) if not isinstance(look.count, Bounded) else None,
        fields=fields,
        back=back,
        reason_length=REASON,
    )


def carry_out(model_admin: MessageAdmin, request: HttpRequest, verb: Verb, rows: QuerySet[Any]) -> Outcome:
    """Act on up to `LIMIT` of the rows, for `PATIENCE` seconds; log it, and tell the operator what was done."""
    look = preview(verb, rows)
    ids = iter(rows.filter(verb.eligible).order_by("pk").values_list("pk", flat=True)[:LIMIT])
    manager = rows.model._default_manager.using(rows.db)
    outcome, by = Outcome(), operator(request)
    until = time.monotonic() + PATIENCE
    while (batch := list(islice(ids, BATCH))) and (time.monotonic() < until or not outcome.done):
        outcome.add(verb.act(manager.filter(pk__in=batch), by))
    log(model_admin, request, verb, outcome, rows.db)
    report(model_admin, request, verb, outcome, look, rest=bool(batch) or isinstance(look.count, Bounded))
    return outcome


def operator(request: HttpRequest) -> Operator:
    """Who sent this request, and the reason given."""
    reason = request.POST.get("reason", "").replace("\x00", "").strip()
    return Operator(user=request.user, reason=reason[:REASON])


def store_operation(
    model_admin: MessageAdmin,
    request: HttpRequest,
    verb: Verb,
    rows: QuerySet[Any],
    *,
    scope: str = "",
    group: FailureGroup | None = None,
) -> HttpResponse | None:
    """Store an operation on the rows, and lead to its page; None where what was typed is no rate, which it says.

    `scope` says which rows these are, unless the list's filters do; `group` is whose failures, if they are one's.
    """
    rate = _rate(request.POST.get("rate", ""))
    if rate is None:
        model_admin.message_user(request, _("The rate has to be a number of messages per second."), messages.ERROR)
        return None
    store = stored.store if group is None else partial(failure_groups.act_on, group)
    operation = store(
        rows.filter(verb.eligible),
        verb.name,
        operator(request),
        scope=scope or lists.scope(model_admin.get_changelist_instance(request)),
        rate=rate or None,
        try_one=bool(request.POST.get("try_one")),
    )
    text = _("It is stored as operation #%(number)d: consumers, relays or `manage.py run_operations` carry it out.")
    model_admin.message_user(request, text % {"number": operation.pk}, messages.SUCCESS)
    url = page_of_operation(operation, model_admin.admin_site.name)
    return HttpResponseRedirect(url or request.get_full_path())


def page_of_operation(operation: Operation, site: str) -> str:
    """The address of an operation's page; "" on a site that has none."""
    return databases.if_any(databases.page_of, operation, site)


def _rate(text: str) -> float | None:
    """Messages per second; 0 for as many as can be, None for what is no rate."""
    if not text.strip():
        return 0.0
    try:
        rate = float(text.strip().replace(",", "."))
    except ValueError:
        return None
    return rate if math.isfinite(rate) and stored.SLOWEST <= rate <= FASTEST else None


def log(model_admin: MessageAdmin, request: HttpRequest, verb: Verb, outcome: Outcome, database: str) -> None:
    """The admin's own history: an entry per row, one for all where there are many."""
    count = len(outcome.done)
    if not count:
        return
    reason = operator(request).reason
    text = f"{verb.button}: {reason}" if reason else str(verb.button)
    user_id = operator(request).user.pk
    if count <= LOGGED:
        rows = model_admin.model._default_manager.using(database).only(*model_admin.sample_fields)
        log_each(rows.filter(pk__in=outcome.done), user_id, text)
        return
    LogEntry.objects.create(
        user_id=user_id,
        content_type_id=ContentType.objects.get_for_model(model_admin.model).pk,
        object_id=None,
        object_repr=f"{count} {model_admin.opts.verbose_name_plural}"[:200],
        action_flag=CHANGE,
        change_message=f"{text} · {verb.done(count)}",
    )


def log_each(rows: QuerySet[Any], user_id: Any, text: str) -> None:
    """An entry for each row, under its key: rows of several databases may have the same number."""
    if rows.db == home(rows.model):
        LogEntry.objects.log_actions(user_id, rows, CHANGE, text)
        return
    kind = ContentType.objects.get_for_model(rows.model).pk
    values = {"user_id": user_id, "content_type_id": kind, "action_flag": CHANGE, "change_message": text}
    LogEntry.objects.bulk_create(
        LogEntry(object_id=databases.key_of(row), object_repr=str(row)[:200], **values) for row in rows
    )


def report(
    model_admin: MessageAdmin, request: HttpRequest, verb: Verb, outcome: Outcome, look: Preview, *, rest: bool
) -> None:
    """Say what was done, what was skipped, and whether there is a rest."""
    count = len(outcome.done)
    if count:
        model_admin.message_user(request, verb.done(count), messages.SUCCESS)
    skipped = [*look.skipped, *((reason, len(ids)) for reason, ids in outcome.skipped.items())]
    for reason, number in skipped:
        model_admin.message_user(request, skip_text(reason, number), messages.WARNING)
    if rest:
        text = _("There are more than one step takes; repeat the action for the rest.")
        model_admin.message_user(request, text, messages.WARNING)
    if not count and not skipped:
        model_admin.message_user(request, _("There was nothing to do."), messages.WARNING)


def skip_text(reason: str, count: int) -> str:
    """How many messages were skipped, and why."""
    text = ngettext("%(count)s message was skipped: %(reason)s.", "%(count)s messages were skipped: %(reason)s.", count)
    return text % {"count": count, "reason": reason}


def _in_state(label: str, count: int) -> str:
    return ngettext("it is %(state)s", "they are %(state)s", count) % {"state": label}


def _question(count: int) -> str:
    return ngettext("%(count)s message is affected.", "%(count)s messages are affected.", count) % {"count": count}


def _repeat(request: HttpRequest, verb: Verb, rows: QuerySet[Any], across: bool) -> list[tuple[str, str]]:
    """What the confirmation must post so that the same selection is acted upon, but nothing that arrives later."""
    selected = request.POST.getlist(helpers.ACTION_CHECKBOX_NAME)
    fields = [("action", verb.name)]
    if across:
        fields += [("select_across", "1"), ("cutoff", str(newest_pk(rows.model._default_manager.using(rows.db))))]
        selected = selected[:1]  # the admin wants one to be named; the filter decides
    return fields + [(helpers.ACTION_CHECKBOX_NAME, pk) for pk in selected]
