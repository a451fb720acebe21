"""What every page of the console says first: what is wrong, and what to do about it."""

from __future__ import annotations

from typing import Any

from django.http import HttpRequest
from django.urls import reverse

from messaging.admin.display import moment
from messaging.monitoring import snapshot
from messaging.monitoring.conditions import Condition, conditions
from messaging.monitoring.snapshot import Snapshot

APP = "messaging"
SEEN_WITH = {"failuregroup": "processedmessage"}  # what has no permission of its own, and whose it takes


def look(request: HttpRequest) -> Snapshot:
    """The site at the moment of a request; read once for all that a page shows."""
    known: Snapshot | None = getattr(request, "_messaging_now", None)
    if known is None:
        from messaging.monitoring import readings  # and with them what reads a broker

        known = snapshot.read(readings.unattended())
        request._messaging_now = known  # type: ignore[attr-defined]
    return known


def alerts(request: HttpRequest, site: str = "admin") -> list[dict[str, Any]]:
    """What is wrong, as far as the user may see where the admin shows more of it.

    Args:
        request: who looks.
        site: name of the admin site that the links lead into.
    """
    if not request.user.has_module_perms(APP):
        return []
    top = reverse(f"{site}:app_list", args=[APP])
    return [
        {
            "condition": condition,
            "url": top + condition.link,
            "since": moment(condition.since, seconds=False) if condition.since else "",
        }
        for condition in conditions(look(request))
        if _may_see(request, condition)
    ]


def _may_see(request: HttpRequest, condition: Condition) -> bool:
    model = condition.link.partition("/")[0]
    return request.user.has_perm(f"{APP}.view_{SEEN_WITH.get(model, model)}")
