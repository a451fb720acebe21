"""Sending rounds again that did not come back, without an operator, where `RESEND_AFTER` says so.

Nothing tells a lost round from one that waits in a long queue but time, and that its queue was seen empty. To send one
again that is not lost does no harm: it is a copy of a round, and one of the two will not run.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta

from django.db import router, transaction
from django.db.models import QuerySet

from messaging import conf
from messaging.backends import get_backend
from messaging.db.clock import Now
from messaging.exceptions import BrokerUnavailable
from messaging.models import AuditRecord, ProcessedMessage, QueueControl
from messaging.models.light import light
from messaging.publishing.publisher import wake_relays
from messaging.publishing.rounds import not_back, send_round_again

BATCH = 500
# Stands in the audit where an operator's name does.
_BY = {"username": "RESEND_AFTER", "reason": "It had not come back, and its queue was empty."}


def resend(alias: str, queues: Iterable[str], database: str) -> int:
    """Send again what has not come back within `RESEND_AFTER` to queues that are empty and not paused.

    Returns how many were. Raises nothing where the broker is away.
    """
    after = conf.get(alias).resend_after
    if after is None:
        return 0
    # Found before the queues are looked at: what was in one of them at that moment is not lost.
    old = Now() - timedelta(seconds=after)
    rows = ProcessedMessage.objects.using(database).filter(alias=alias, queue__in=list(queues), wire__isnull=False)
    found = dict(not_back(rows, old).order_by("pk").values_list("pk", "queue")[:BATCH])
    empty = _empty(alias, set(found.values())) if found else set()
    ids = [pk for pk, queue in found.items() if queue in empty]
    return _send_again(alias, not_back(rows, old).filter(pk__in=ids), database) if ids else 0


def _empty(alias: str, queues: set[str]) -> set[str]:
    """Those that hold nothing and are not paused."""
    controls = QueueControl.objects.using(router.db_for_write(QueueControl))
    paused = controls.filter(alias=alias, queue__in=queues, paused=True).values_list("queue", flat=True)
    try:
        depths = get_backend(alias).depths(sorted(queues.difference(paused)))
    except BrokerUnavailable:
        return set()
    return {depth.queue for depth in depths if depth.exists and depth.ready == 0 and not depth.unacked}


def _send_again(alias: str, rows: QuerySet[ProcessedMessage], database: str) -> int:
    features = transaction.get_connection(database).features
    with transaction.atomic(using=database):
        ids = list(rows.values_list("pk", flat=True))
        wanted = ProcessedMessage.objects.using(database).filter(pk__in=ids).order_by("pk")
        if features.has_select_for_update:
            wanted = wanted.select_for_update(skip_locked=features.has_select_for_update_skip_locked)
        locked = light(wanted)
        # Asked again: another process may have sent some of them meanwhile.
        still = set(rows.filter(pk__in=[row.pk for row in locked]).values_list("pk", flat=True))
        sent = [row for row in locked if row.pk in still and send_round_again(row) is not None]
        AuditRecord.objects.using(database).bulk_create(
            [AuditRecord.of(row, "replay", row.state, **_BY) for row in sent]
        )
        if sent:
            wake_relays(database, conf.get(alias))
    return len(sent)
