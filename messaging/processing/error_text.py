"""What a failure says: an exception as text, as a group of its like, and where it came from."""

from __future__ import annotations

import re
import sysconfig
import traceback as tracebacks
from hashlib import blake2b
from types import FrameType, TracebackType

from messaging.exceptions import MessagingError
from messaging.wire.bodies import storable

TRACEBACK_LIMIT = 64 * 1024  # characters kept of a traceback: its end, where the error is
LIBRARIES = tuple({sysconfig.get_paths()[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")})


def describe(error: BaseException) -> str:
    """One line for lists: the exception's type and text. Errors of this app speak for themselves."""
    text = " ".join(text_of(error).split())
    if isinstance(error, MessagingError):
        return storable(text or type_name(error), 2000)
    return storable(f"{type(error).__name__}: {text}" if text else type(error).__name__, 2000)


def fingerprint(error: BaseException, handler: str) -> str:
    """Groups failures: exception class, innermost application frame (without its line) and handler."""
    frame = _application_frame(error.__traceback__)
    place = f"{frame.f_globals.get('__name__', '')}.{frame.f_code.co_qualname}" if frame else _normalised(error)
    return blake2b(f"{type_name(error)}|{place}|{handler}".encode("utf-8", "replace"), digest_size=16).hexdigest()


def _normalised(error: BaseException) -> str:
    return re.sub(r"\d+", "0", text_of(error))[:200]


def text_of(error: BaseException) -> str:
    """What an exception says."""
    try:
        return str(error)
    except Exception as problem:  # noqa: BLE001  an exception whose own text fails must be recorded all the same
        return f"(its text cannot be shown: {type(problem).__name__})"


def type_name(error: BaseException) -> str:
    """Its class, as rows keep it: with its module, unless it is built in."""
    kind = type(error)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"[-255:]


def traceback_of(error: BaseException) -> str:
    """Where it came from, without the frames of this app before the handler's, and without more than fits."""
    if error.__traceback__ is None:
        return ""
    try:
        text = "".join(tracebacks.format_exception(type(error), error, without_ours(error.__traceback__)))
    except Exception as problem:  # noqa: BLE001  an exception whose own text fails
        text = f"The traceback cannot be shown: {type(problem).__name__}."
    text = "\n".join(storable(line) for line in text.split("\n"))
    return text if len(text) <= TRACEBACK_LIMIT else "…\n" + text[-TRACEBACK_LIMIT:]


def without_ours(trace: TracebackType | None) -> TracebackType | None:
    """The traceback from where the user's code begins; whole when it never got there."""
    rest = trace
    while rest is not None and _is_ours(rest.tb_frame):
        rest = rest.tb_next
    return rest or trace


def _is_ours(frame: FrameType) -> bool:
    name = str(frame.f_globals.get("__name__", ""))
    return name.partition(".")[0] in ("messaging", "asgiref", "contextlib", "concurrent")


def _application_frame(trace: TracebackType | None) -> FrameType | None:
    found = None
    while trace is not None:
        path = trace.tb_frame.f_code.co_filename
        if not path.startswith((*LIBRARIES, "<")) and not _is_ours(trace.tb_frame):
            found = trace.tb_frame
        trace = trace.tb_next
    return found
