"""How states, times and sizes look on every page."""

from __future__ import annotations

from datetime import UTC, datetime

from django.utils import timezone
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from messaging.db.clock import in_utc

UNKNOWN = "—"  # never 0 for what nobody knows

# A shape beside the word, so that nothing depends on seeing colours.
SHAPES = {
    "draft": "✎",
    "pending": "◷",
    "published": "✓",
    "processing": "▶",
    "processed": "✓",
    "retrying": "↻",
    "requeued": "↺",
    "failed": "✕",
    "discarded": "⊘",
    "superseded": "⇥",
    "waiting": "◷",
    "running": "▶",
    "held": "‖",
    "done": "✓",
    "cancelled": "⊘",
    "succeeded": "✓",
    "refused": "⊘",
    "late": "◷",
    "died": "✕",
}


def state_badge(state: str, label: str) -> SafeString:
    """A state as a word with a shape."""
    return format_html(
        '<span class="msg-state msg-state-{}"><span aria-hidden="true">{}</span> {}</span>',
        state if state in SHAPES else "unknown",
        SHAPES.get(state, "?"),
        label,
    )


def moment(value: datetime | None, *, seconds: bool = True) -> SafeString:
    """A point in time: local and absolute, UTC as its title, and how far away it is."""
    if value is None:
        return format_html('<span class="msg-none">{}</span>', UNKNOWN)
    aware = in_utc(value)
    stamp = format_html(
        '<time datetime="{}" title="{} UTC">{}</time>',
        aware.isoformat(),
        aware.isoformat(" ", "seconds").partition("+")[0],
        local(aware, seconds=seconds),
    )
    return format_html('{} <span class="msg-when">{}</span>', stamp, distance(aware))


def local(value: datetime, *, seconds: bool = False) -> str:
    """A point in time in the reader's time zone."""
    text = timezone.localtime(in_utc(value)).isoformat(" ", "seconds" if seconds else "minutes")
    return text[: 19 if seconds else 16]


def client_of(address: str) -> str:
    """Where a session of the database comes from."""
    return address or _("the database's own host")


def distance(value: datetime) -> str:
    """How far a point in time is from now, such as "5 min ago" or "in 40 s"."""
    seconds = seconds_until(value)
    if abs(seconds) < 1:
        return _("now")
    if seconds < 0:
        return _("%(span)s ago") % {"span": span(-seconds)}
    return _("in %(span)s") % {"span": span(seconds)}


def seconds_until(value: datetime) -> float:
    """How far a point in time lies ahead; below 0 for one that is past."""
    return (in_utc(value) - datetime.now(UTC)).total_seconds()


def span(seconds: float) -> str:
    """A length of time in its largest fitting unit."""
    if seconds < 90:
        return _("%(number)d s") % {"number": round(seconds)}
    if seconds < 5400:
        return _("%(number)d min") % {"number": round(seconds / 60)}
    if seconds < 129_600:
        return _("%(number)d h") % {"number": round(seconds / 3600)}
    days = round(seconds / 86400)
    return ngettext("%(number)d day", "%(number)d days", days) % {"number": days}


def exactly(seconds: float) -> str:
    """A length of time to three digits while it is short: what a handler took."""
    if seconds < 0.001:
        return _("under 1 ms")
    if seconds < 0.9995:
        return _("%(number)d ms") % {"number": round(seconds * 1000)}
    if seconds < 9.95:
        return _("%(number).1f s") % {"number": seconds}
    return span(seconds)


def size(count: int) -> str:
    """A number of bytes for people."""
    if count < 1024:
        return ngettext("%(number)d byte", "%(number)d bytes", count) % {"number": count}
    if count < 1024 * 1024:
        return f"{count / 1024:.1f} KiB"
    return f"{count / 1024 / 1024:.1f} MiB"


def ending(text: str, length: int = 8) -> SafeString | str:
    """The last `length` characters of an id, whole in its title: ids of the same moment begin alike."""
    if len(text) <= length + 4:
        return text
    return format_html('<span title="{}">…{}</span>', text, text[-length:])


def shorten(text: str, length: int = 36) -> SafeString | str:
    """Text cut to `length` characters, whole in its title."""
    if len(text) <= length:
        return text
    return format_html('<span title="{}">{}…</span>', text, text[: length - 1])


def linked(url: str, text: str) -> SafeString | str:
    """A text that leads to an address, where there is one."""
    return format_html('<a href="{}">{}</a>', url, text) if url else text
