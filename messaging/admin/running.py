"""What workers run now, as each of them said when it was last seen, with links to the messages that have rows."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from django.http import HttpRequest
from django.utils.safestring import SafeString
from django.utils.translation import gettext as _

from messaging import conf
from messaging.admin import databases
from messaging.admin.display import exactly, moment, seconds_until
from messaging.models import ProcessedMessage, PublishedMessage, Worker
from messaging.monitoring.conditions import SILENT
from messaging.monitoring.databases import known

SHOWN = 50  # runs on one page, the longest ones
OVER = 1.5  # times what a handler has usually taken at most, from which on a run takes too long
LEAST = 10.0  # seconds before which none does


@dataclass(frozen=True, slots=True)
class Run:
    """One run of a handler.

    Attributes:
        worker: who runs it.
        told: what the worker says of it; see `consuming.running`.
        url: of the message's page; "" where it has none that the user may see.
        message: what to call the message.
    """

    worker: Worker
    told: dict[str, Any]
    url: str = ""
    message: str = ""

    @property
    def age(self) -> float:
        """Seconds for which it had run when its worker was last seen."""
        age = self.told.get("age")
        return float(age) if isinstance(age, (int, float)) else 0.0

    @property
    def began(self) -> datetime:
        """When it began, by the database's clock."""
        return self.worker.seen_at - timedelta(seconds=self.age)

    @property
    def since(self) -> SafeString:
        """The same for the page."""
        return moment(self.began)

    @property
    def queue(self) -> str:
        """Where the message was taken from."""
        alias, queue = self.told.get("alias", conf.DEFAULT_ALIAS), str(self.told.get("queue", ""))
        return queue if alias == conf.DEFAULT_ALIAS else f"{alias} · {queue}"

    @property
    def limit(self) -> str:
        """After how long it is killed."""
        limit = self.told.get("limit")
        return _("limit %(span)s") % {"span": exactly(limit)} if isinstance(limit, (int, float)) else ""

    @property
    def over(self) -> str:
        """In words, that it takes longer than its handler usually does; "" where it does not, or nobody knows."""
        usual = self.told.get("usual")
        if not isinstance(usual, (int, float)) or self.age <= max(LEAST, OVER * usual):
            return ""
        return _("over its usual time (at most %(span)s)") % {"span": exactly(usual)}

    @property
    def others(self) -> int:
        """How many messages run with it, in one batch."""
        batch = self.told.get("batch", 1)
        return batch - 1 if isinstance(batch, int) else 0


def runs(request: HttpRequest, site: str, workers: Iterable[Worker]) -> list[Run]:
    """What these workers run, the longest runs first.

    Args:
        request: who looks: messages are named to those who may see them.
        site: name of the admin site that the links lead into.
        workers: whose runs.
    """
    found = _of(workers)[:SHOWN]
    if not request.user.has_perm("messaging.view_processedmessage"):
        return found
    may_see_outgoing = request.user.has_perm("messaging.view_publishedmessage")
    return [
        replace(run, url=_url(run, site, may_see_outgoing), message=str(run.told.get("message_id", "")))
        for run in found
    ]


def _url(run: Run, site: str, may_see_outgoing: bool) -> str:
    """The page of a message: incoming, or where that is not recorded yet, as it was published here."""
    incoming, outgoing = run.told.get("row"), run.told.get("outgoing")
    database = run.told.get("database")
    if database not in known():
        return ""
    if isinstance(incoming, int) and incoming:
        return databases.page_in(ProcessedMessage, database, incoming, site)
    if isinstance(outgoing, int) and may_see_outgoing:
        return databases.page_in(PublishedMessage, database, outgoing, site)
    return ""


def over_usual(workers: Iterable[Worker]) -> list[Run]:
    """Of what these workers run, what takes longer than its handler usually does, the longest first."""
    return [run for run in _of(workers) if run.over]


def _of(workers: Iterable[Worker]) -> list[Run]:
    heard = [worker for worker in workers if seconds_until(worker.seen_at) > -SILENT]
    found = [Run(worker, one) for worker in heard for one in worker.running or () if isinstance(one, dict)]
    return sorted(found, key=lambda run: run.began)
