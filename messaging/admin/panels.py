"""What the page of queues shows: of each broker its queues, with what waits and failed there, and who works."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, NamedTuple, TypeAlias
from urllib.parse import urlencode

from django.urls import reverse
from django.utils.translation import gettext as _

from messaging import conf, topology
from messaging.admin import redaction, words
from messaging.admin.databases import list_of
from messaging.admin.display import UNKNOWN, client_of, local, moment, seconds_until, span
from messaging.admin.holders import long_ones
from messaging.admin.paginator import LIMIT, Bounded
from messaging.backends.base import QueueDepth, QueueSpec
from messaging.exceptions import ConfigurationError
from messaging.models import ProcessedMessage, QueueControl, Worker
from messaging.models.base import listed_in, written
from messaging.monitoring.conditions import SILENT
from messaging.monitoring.databases import ask_each, home
from messaging.monitoring.readings import Reading, read
from messaging.publishing.rounds import not_back, with_sent_at

Numbers: TypeAlias = "dict[str, dict[tuple[str, str], str]]"  # by database, then by alias and queue

KEPT = timedelta(days=1)  # for which a silent worker is still listed


class Count(NamedTuple):
    """A number of a queue's messages in one database, and their list; `database` where it is not the usual one."""

    text: str
    url: str
    database: str


@dataclass(frozen=True, slots=True)
class QueueRow:
    """One queue on the page; texts, because what is unknown is not a number.

    `heard` says of a paused one which workers leave it alone.
    """

    alias: str
    name: str
    ready: str
    unacked: str
    consumers: str
    dead: str
    failures: list[Count]
    away: list[Count]
    control: QueueControl | None
    exists: bool
    links: dict[str, str]
    heard: str = ""

    @property
    def paused(self) -> bool:
        """Whether our consumers leave it alone."""
        return self.control is not None and self.control.paused

    @property
    def reason(self) -> str:
        """Why it was paused."""
        return redaction.text(self.control.reason) if self.control is not None else ""

    @property
    def changed(self) -> str:
        """When it was paused."""
        return moment(self.control.changed_at) if self.control is not None else ""


@dataclass(frozen=True, slots=True)
class AliasPanel:
    """One broker on the page."""

    reading: Reading
    problem: str
    rows: list[QueueRow]

    @property
    def age(self) -> str:
        """How old its numbers are."""
        return "" if self.reading.age is None else span(self.reading.age)

    @property
    def sources(self) -> str:
        """Where its numbers come from."""
        return ", ".join(map(words.source, self.reading.sources))

    @property
    def taken_at(self) -> str:
        """When its numbers were read."""
        return moment(self.reading.taken_at)


def panels(site: str) -> list[AliasPanel]:
    """One for each alias.

    Args:
        site: name of the admin site that their links lead into.
    """
    controls = {(control.alias, control.queue): control for control in written(QueueControl)[:LIMIT]}
    failures, away = ask_each(open_failures), ask_each(rounds_away)
    return [_panel(alias, site, controls, failures, away) for alias in conf.aliases()]


def open_failures(database: str) -> dict[tuple[str, str], str]:
    """Failed incoming messages by alias and queue; bounded, so that a flood does not stop the page."""
    rows = ProcessedMessage.objects.using(database).filter(listed_in(ProcessedMessage.State.FAILED))
    found = Counter(rows.order_by("state", "id").values_list("alias", "queue")[: LIMIT + 1])
    if found.total() <= LIMIT:
        return {key: str(count) for key, count in found.items()}
    return {key: str(Bounded(count)) for key, count in found.items()}


def rounds_away(database: str) -> dict[tuple[str, str], str]:
    """What was sent to each queue and is not back, and since when, by alias and queue; of the first so many."""
    rows = not_back(ProcessedMessage.objects.using(database)).order_by("state", "pk")
    found: dict[tuple[str, str], list[datetime]] = {}
    away = with_sent_at(rows).values_list("alias", "queue", "sent_at")[:LIMIT] if rows.exists() else ()
    for alias, queue, sent_at in away:
        found.setdefault((alias, queue), []).append(sent_at)
    return {
        key: _("%(count)d since %(moment)s") % {"count": len(times), "moment": local(min(times))}
        for key, times in found.items()
    }


def workers(rows: Iterable[Worker]) -> list[dict[str, Any]]:
    """Those of a snapshot, as the page shows them."""
    return [
        {
            "worker": row,
            "kind": words.kind(row.kind),
            "status": words.status(row.status),
            "seen": moment(row.seen_at),
            "started": moment(row.started_at),
            "silent": seconds_until(row.seen_at) < -SILENT,
            "queues": ", ".join(map(str, row.queues)) if isinstance(row.queues, list) else "",
        }
        for row in rows
    ]


def holders() -> list[dict[str, Any]]:
    """The open transactions that keep messages, for `holders.html`."""
    return [
        {
            "holder": holder,
            "client": client_of(holder.client),
            "since": moment(holder.since),
            "idle_since": moment(holder.idle_since),
        }
        for holder in long_ones()
    ]


def is_waiting(workers: list[dict[str, Any]]) -> bool:
    """Whether a worker is silent or says that it waits for a transaction, so that it is worth asking for those."""
    return any(item["silent"] or "transaction" in item["worker"].status for item in workers)


def _panel(
    alias: str,
    site: str,
    controls: dict[tuple[str, str], QueueControl],
    failures: Numbers,
    away: Numbers,
) -> AliasPanel:
    try:
        specs = topology.build(alias).queues
    except ConfigurationError as error:
        return AliasPanel(Reading(alias), str(error), [])
    wanted = [name for spec in specs for name in _with_dead(spec)]
    reading = read(alias, wanted) if wanted else Reading(alias)
    rows = []
    for spec in specs:
        depth = reading.depths.get(spec.name)
        dead = reading.depths.get(spec.dead)
        rows.append(
            QueueRow(
                alias=alias,
                name=spec.name,
                ready=_number(depth, "ready"),
                unacked=_number(depth, "unacked"),
                consumers=_number(depth, "consumers"),
                dead=_number(dead, "ready"),
                failures=_counts(failures, "failed", alias, spec.name, site),
                away=_counts(away, "away", alias, spec.name, site),
                control=controls.get((alias, spec.name)),
                exists=depth is None or depth.exists,
                links=_links(alias, spec.name, site),
            )
        )
    return AliasPanel(reading, reading.error, rows)


def _counts(numbers: Numbers, state: str, alias: str, queue: str, site: str) -> list[Count]:
    """A queue's numbers, each with the list of these messages."""
    # The list filters by alias only where there are several.
    same = {"queue": queue, "alias": alias} if len(conf.aliases()) > 1 else {"queue": queue}
    return [
        Count(
            own[alias, queue],
            list_of(ProcessedMessage, database, site, state=state, **same),
            "" if database == home() else database,
        )
        for database, own in numbers.items()
        if (alias, queue) in own
    ]


def _links(alias: str, queue: str, site: str) -> dict[str, str]:
    query = urlencode({"alias": alias, "queue": queue})
    return {
        "pause": f"{reverse(f'{site}:messaging_queuecontrol_pause')}?{query}",
        "resume": f"{reverse(f'{site}:messaging_queuecontrol_resume')}?{query}",
    }


def _with_dead(spec: QueueSpec) -> list[str]:
    return [spec.name, spec.dead] if spec.declare and spec.dead_letter else [spec.name]


def _number(depth: QueueDepth | None, name: str) -> str:
    value = getattr(depth, name) if depth is not None and depth.exists else None
    return UNKNOWN if value is None else f"{value:,}"
