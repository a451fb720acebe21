"""The overview's table of queues: what each did within the past hour, and what is known of it; no broker is asked."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from django.urls import reverse
from django.utils.safestring import SafeString
from django.utils.translation import gettext as _

from messaging import conf
from messaging.admin import pauses
from messaging.admin.charts import Counted, sparkline
from messaging.admin.display import UNKNOWN, moment, span
from messaging.admin.latency import told_p95
from messaging.handlers import queues_of
from messaging.monitoring.conditions import alive
from messaging.monitoring.counters import Point
from messaging.monitoring.snapshot import Snapshot

Key = tuple[str, str]  # a queue's alias and name

SHOWN = 50  # queues, those of which most is to be said
LATELY = 3  # points of the past hour: a quarter of it


@dataclass(frozen=True, slots=True)
class Row:
    """One queue; texts, because what is unknown is not a number."""

    name: str
    url: str
    paused: Any
    heard: str
    consumers: int
    ready: str
    processed: str
    failed: str
    wait: str
    oldest: str
    spark: SafeString


def table(found: Counted, now: Snapshot, ready: Callable[[list[Key]], Mapping[Key, int]], site: str) -> dict[str, Any]:
    """What `queue_table.html` shows.

    Args:
        found: what was counted.
        now: what is known of pauses and workers.
        ready: tells how many messages are in queues, as far as brokers have told lately.
        site: name of the admin site that the links lead into.
    """
    known = {(alias, queue) for alias in conf.aliases() for queue in queues_of(alias)}
    paused = {(pause.alias, pause.queue) for pause in now.pauses}

    def rank(key: Key) -> tuple[bool, int, int, Key]:
        """First what is paused, then what failed most, then what did most."""
        points = found.queues.get(key, ())
        return key not in paused, -_sum(points, "failed"), -_sum(points, "processed"), key

    shown = sorted(known, key=rank)[:SHOWN]
    numbers = ready(shown)
    rows = [_row(key, found.queues.get(key, ()), now, numbers.get(key), site) for key in shown]
    return {"rows": rows, "more": len(known) - len(rows)}


def _row(key: Key, points: Sequence[Point], now: Snapshot, ready: int | None, site: str) -> Row:
    alias, queue = key
    paused = next((pause for pause in now.pauses if (pause.alias, pause.queue) == key), None)
    done = {kind: f"{_sum(points, kind):,}" for kind in ("processed", "failed")}
    own = [worker for worker in alive(now, alias) if queue in worker.queues]
    told = [worker.oldest.get(queue) for worker in own if isinstance(worker.oldest, dict)]
    ages = [age for age in told if isinstance(age, int | float)]
    named = {"queue": queue, "alias": alias} if len(conf.aliases()) > 1 else {"queue": queue}
    return Row(
        name=queue if alias == conf.DEFAULT_ALIAS else f"{alias} · {queue}",
        url=f"{reverse(f'{site}:messaging_processedmessage_changelist')}?{urlencode(named)}",
        paused=moment(paused.since, seconds=False) if paused else "",
        heard=pauses.told(alias, queue, paused.since, alive(now)) if paused else "",
        consumers=len(own),
        ready=UNKNOWN if ready is None else f"{ready:,}",
        **done,
        wait=told_p95(point.waits for point in points[-LATELY:]),
        oldest=span(max(ages)) if ages else UNKNOWN,
        spark=sparkline(
            [point.processed + point.failed for point in points],
            [point.minute for point in points],
            _("%(processed)s processed and %(failed)s failed in the past hour") % done,
        ),
    )


def _sum(points: Iterable[Point], kind: str) -> int:
    return sum(getattr(point, kind) for point in points)
