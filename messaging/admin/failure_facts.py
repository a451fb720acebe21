"""What is counted of failure groups, for a list and for a page: open failures, and a small chart of the past day."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

from django.db.models import Count, OuterRef, QuerySet, Subquery
from django.db.models.functions import Coalesce
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.translation import gettext as _

from messaging.admin.charts import sparkline
from messaging.admin.display import distance, local
from messaging.admin.paginator import LIMIT, bounded
from messaging.db.clock import in_utc
from messaging.models import FailureGroup, ProcessedMessage
from messaging.models.processed import in_group
from messaging.monitoring import failure_groups
from messaging.monitoring.counters import Period, minute_of

DAY, STEP = 1440, 30  # minutes of the chart, and of a bar
MANY = 2**62  # no primary key is higher


class Facts(NamedTuple):
    """Of one group: failed and retrying messages, and how many attempts failed in each `STEP` minutes of a day."""

    failed: int
    retrying: int
    history: Sequence[int]


def facts_of(groups: Sequence[FailureGroup]) -> list[Facts]:
    """Those of each of these groups of one database, with two queries for all."""
    if not groups:
        return []
    database = str(groups[0]._state.db)
    counts = failure_groups.open_counts(database, (group.fingerprint for group in groups))
    past = failure_groups.history(database, (group.pk for group in groups), _past_day())
    states = (ProcessedMessage.State.FAILED, ProcessedMessage.State.RETRYING)
    found = []
    for group in groups:
        failed, retrying = (bounded(counts.get((group.fingerprint, state.value), 0)) for state in states)
        found.append(Facts(failed, retrying, past[group.pk]))
    return found


def with_group(rows: QuerySet[Any]) -> QuerySet[Any]:
    """Messages, each with `group_pk`, its failure group, and `alike`, how many failed messages are in that.

    Counted are `LIMIT` and one more, as by a `LIMIT` of SQL, which MariaDB does not have within such a subquery.
    """
    failed, own = ProcessedMessage.State.FAILED, OuterRef("fingerprint")
    beyond = ProcessedMessage.objects.filter(in_group(OuterRef(own), failed)).order_by("state", "pk")
    last = Subquery(beyond.values("pk")[LIMIT : LIMIT + 1])
    some = ProcessedMessage.objects.filter(in_group(own, failed), pk__lte=Coalesce(last, MANY))
    count = some.order_by().values("fingerprint").annotate(number=Count("pk")).values("number")
    groups = FailureGroup.objects.filter(fingerprint=OuterRef("fingerprint")).values("pk")
    found: QuerySet[Any] = rows.annotate(group_pk=Subquery(groups[:1]), alike=Subquery(count))
    return found


def spark(history: Sequence[int]) -> SafeString:
    """A chart without axes, which also says in words what it shows."""
    most = max(history, default=0)
    values = {"total": f"{sum(history):,}", "most": f"{most:,}", "minutes": STEP}
    words = _("%(total)s failed attempts in 24 hours, at most %(most)s in %(minutes)d minutes") % values
    return sparkline(history, _past_day().starts, words, "failed")


def ago(value: datetime) -> SafeString:
    """How far away a point in time is, itself as the title: for a list."""
    aware = in_utc(value)
    return format_html('<time datetime="{}" title="{}">{}</time>', aware.isoformat(), local(aware), distance(aware))


def _past_day() -> Period:
    return Period(minute_of(datetime.now(UTC)), DAY, STEP)
