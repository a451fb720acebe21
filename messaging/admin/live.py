"""Pages that look again by themselves while what they show can change; see `static/messaging/live.js`.

Without the script a link does it. A look of the script's takes no word from the operator that it has not shown: what
was to be said on the next page stays for that.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from django.http import HttpRequest

from messaging.admin.display import local, seconds_until
from messaging.models import Operation, ProcessedMessage, PublishedMessage

HEADER = "X-Messaging-Look"  # of a look by the script
CHOICES = (5, 15, 60)  # seconds between two looks, to choose from
SOON = 600  # seconds: what is planned for later is not waited for
BRISK, CALM = 2, 15  # seconds between two looks at what ends soon, and at what goes on
PATIENCE = 600  # seconds after which a page does not look for an end any more, unless somebody touches it
SHIFT = 4 * 3600  # seconds for which a page is watched that goes on


def ends(row: Any) -> bool:
    """Whether the next thing that happens to a message, or to an operation, is to be expected soon."""
    if isinstance(row, Operation):
        return row.state in Operation.UNFINISHED
    if isinstance(row, PublishedMessage):
        return row.state == PublishedMessage.State.PENDING and _is_soon(row.due_at)
    if row.state == ProcessedMessage.State.RETRYING:
        return _is_soon(row.retry_at)
    return row.state in (ProcessedMessage.State.PROCESSING, ProcessedMessage.State.REQUEUED)


def context(request: HttpRequest, *, is_brief: bool) -> dict[str, Any]:
    """What `live.html` shows, on a page that is rendered as far as there.

    Args:
        request: who looks.
        is_brief: whether what the page shows will end.
    """
    said = getattr(request, "_messages", None)
    if said is not None and request.headers.get(HEADER):
        said.used = False
    return {
        "every": BRISK if is_brief else CALM,
        "seconds": PATIENCE if is_brief else SHIFT,
        "choices": CHOICES,
        "now": local(datetime.now(UTC), seconds=True),
    }


def _is_soon(moment: datetime | None) -> bool:
    return moment is None or seconds_until(moment) < SOON
