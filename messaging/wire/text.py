"""Texts of strangers, made fit for databases, properties and log lines."""

from __future__ import annotations

from messaging.wire.fields import MAX_SHORT

LENGTH = 300  # characters of an error in a log line


def storable(text: str, limit: int | None = None) -> str:
    """Text that every database takes: NUL and bytes that are not UTF-8 are shown as escapes, then cut to `limit`."""
    if "\x00" in text or not text.isprintable():
        try:
            raw = text.encode("utf-8", "surrogateescape")
        except UnicodeEncodeError:  # halves of characters, as JSON's \ud800 yields them
            raw = text.encode("utf-8", "backslashreplace")
        text = raw.decode("utf-8", "backslashreplace").replace("\x00", "\\x00")
    return text if limit is None or len(text) <= limit else text[: limit - 1] + "…"


def short(text: str) -> str:
    """Text as `storable()` shows it, cut to the 255 bytes that a property can have."""
    return storable(text, MAX_SHORT).encode()[:MAX_SHORT].decode(errors="ignore")


def one_line(error: object) -> str:
    """An error's text for a log line: a driver's may have several lines, and no end.

    What could steer a terminal is shown as escapes: strangers choose ids and routing keys.
    """
    line = " ".join(str(error).split()) or type(error).__name__
    line = "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in line)
    return line if len(line) <= LENGTH else line[: LENGTH - 1] + "…"
