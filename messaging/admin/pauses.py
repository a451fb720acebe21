"""Which consumers of a paused queue have heard of the pause: each says with its heartbeat what it leaves alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING

from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from messaging.db.clock import in_utc
from messaging.models import Worker

if TYPE_CHECKING:
    from messaging.admin.panels import AliasPanel

NAMED = 3  # workers that have not heard


def told(alias: str, queue: str, since: datetime, workers: Iterable[Worker]) -> str:
    """How many of the workers that take from a paused queue have said that they leave it alone, in words.

    Args:
        alias: alias of `MESSAGING`.
        queue: the paused one.
        since: when it was paused.
        workers: those that are alive.
    """
    own = [worker for worker in workers if worker.alias == alias and queue in worker.queues]
    if not own:
        return _("no worker of ours takes from it")
    late = [worker for worker in own if not _has_heard(worker, queue, since)]
    text = ngettext(
        "acknowledged by %(done)d of %(count)d worker", "acknowledged by %(done)d of %(count)d workers", len(own)
    ) % {"done": len(own) - len(late), "count": len(own)}
    if not late:
        return text
    names = ", ".join([f"{worker.host}:{worker.pid}" for worker in late[:NAMED]] + ["…"] * (len(late) > NAMED))
    return _("%(acknowledged)s, not yet by %(names)s") % {"acknowledged": text, "names": names}


def acknowledged(panels: Sequence[AliasPanel], workers: Sequence[Worker]) -> list[AliasPanel]:
    """The same panels, whose paused queues say which workers have heard of it."""
    found = []
    for panel in panels:
        rows = [
            replace(row, heard=told(row.alias, row.name, row.control.changed_at, workers))
            if row.control is not None and row.paused
            else row
            for row in panel.rows
        ]
        found.append(replace(panel, rows=rows))
    return found


def _has_heard(worker: Worker, queue: str, since: datetime) -> bool:
    """Whether it has said so since then: what it said before was of an earlier pause."""
    return in_utc(worker.seen_at) >= in_utc(since) and queue in (worker.paused or ())
