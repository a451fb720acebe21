"""Whether spans are made: once the site has a tracer provider of OpenTelemetry's. Without one nothing is imported.

Sites set theirs up early or late: before Django, in an app's `ready()`, or in a web server's process once that is
forked. So it is looked for at moments that come before a message and are no part of its road: as the app is loaded, as
a worker begins, with the first connection to a database, and with each request.
"""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING, Any

from django.core.signals import request_started
from django.db.backends.signals import connection_created

from messaging import signals

if TYPE_CHECKING:
    from opentelemetry.trace import TracerProvider

logger = logging.getLogger("messaging.traces")

API = "opentelemetry.trace"


def watch() -> None:
    """Look for a tracer provider now, and later as long as there is none."""
    if look():
        return
    request_started.connect(_on_request, dispatch_uid=__name__)
    connection_created.connect(_on_connection, dispatch_uid=__name__)


def look() -> bool:
    """Look for one now. Returns whether that need not be done again: nothing else fails because of what is found."""
    try:
        return begin()
    except Exception:
        request_started.disconnect(dispatch_uid=__name__)
        logger.warning("No spans are made: OpenTelemetry cannot be used.", exc_info=True)
        return True


def begin(provider: TracerProvider | None = None) -> bool:
    """Make spans of what is published, sent and processed in this process from now on. More than once is the same.

    Args:
        provider: makes them; the process's own unless given.

    Returns whether there is one.
    """
    if provider is None:
        if signals.tracing is not None:
            return True
        if API not in sys.modules:  # whoever sets one up has imported it
            return False
        from opentelemetry import trace

        provider = trace.get_tracer_provider()
        if isinstance(provider, trace.ProxyTracerProvider):  # stands for one that is still to come
            return False
    from messaging.monitoring import spans

    made = spans.Spans(provider)
    signals.message_retrying.connect(spans.note_failure, dispatch_uid=__name__)
    signals.message_failed.connect(spans.note_failure, dispatch_uid=__name__)
    signals.tracing = made
    request_started.disconnect(dispatch_uid=__name__)
    return True


def end() -> None:
    """Make no more of them."""
    signals.tracing = None
    for signal in (signals.message_retrying, signals.message_failed):
        signal.disconnect(dispatch_uid=__name__)


def _on_request(**_facts: Any) -> None:
    look()


def _on_connection(**_facts: Any) -> None:
    """Once: some sites make a connection for each message."""
    connection_created.disconnect(dispatch_uid=__name__)
    look()
