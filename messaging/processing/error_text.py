"""What a failure says: an exception as text, as a group of its like, and where it came from."""

from __future__ import annotations

import sysconfig
import traceback as tracebacks
from hashlib import blake2b
from pathlib import Path, PurePath
from types import FrameType, TracebackType

import messaging
from messaging.exceptions import MessagingError
from messaging.monitoring.failure_groups import Cause
from messaging.wire.bodies import storable

TRACEBACK_LIMIT = 64 * 1024  # characters kept of a traceback: its end, where the error is
_APP = str(Path(messaging.__file__).parent)
# Where libraries are installed: here, and on whatever host wrote a traceback that is read here.
_HERE = (*(sysconfig.get_paths()[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")), _APP, "<")
_ANYWHERE = ("/site-packages/", "/dist-packages/", "/lib/python", "/lib64/python", "\\site-packages\\", "\\lib\\python")


def describe(error: BaseException) -> str:
    """One line for lists: the exception's type and text. Errors of this app speak for themselves."""
    text = " ".join(text_of(error).split())
    if isinstance(error, MessagingError):
        return storable(text or type_name(error), 2000)
    return storable(f"{type(error).__name__}: {text}" if text else type(error).__name__, 2000)


def cause_of(error: BaseException, handler: str, queue: str) -> Cause:
    """Which failures this one is like: those of the same class, at the same place, in the same handler.

    The place is the innermost function of the application, whatever its line: it stays the same when code around it is
    edited. What the error says is no part of it. People may change that, and strangers choose it where it repeats what
    they have sent: then each message would be a group.

    Args:
        error: what went wrong.
        handler: the name of what ran; "" where nothing did.
        queue: of the message; it takes the handler's place where there is none.
    """
    where = _application_frame(error.__traceback__, handler)
    queue, kind = "" if handler else queue, type_name(error)
    place = "" if where is None else f"{_module(where)}.{_function(where)}"
    text = f"{kind}|{place}|{handler or queue}"
    digest = blake2b(text.encode("utf-8", "replace"), digest_size=16).hexdigest()
    frame = "" if where is None else f"{_file(where)}:{_function(where)}"
    return Cause(digest, storable(kind, 255), storable(frame, 10_000)[-255:], storable(handler, 255), queue)


def is_library(path: str) -> bool:
    """Whether a frame of this file is no application's: of an installed package, of Python, or of this app."""
    return path.startswith(_HERE) or any(part in path.lower() for part in _ANYWHERE)


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
    return _module(frame).partition(".")[0] in ("messaging", "asgiref", "contextlib", "concurrent")


def _application_frame(trace: TracebackType | None, handler: str) -> FrameType | None:
    """The innermost frame of the application; else of whatever it is but this app.

    What stands in the handler's own package is the application's, even where the whole site is an installed package.
    """
    own, found, other = handler.partition(".")[0], None, None
    while trace is not None:
        frame = trace.tb_frame
        if not is_library(frame.f_code.co_filename) or (own and _module(frame).partition(".")[0] == own):
            found = frame
        elif not _is_ours(frame):
            other = frame
        trace = trace.tb_next
    return found or other


def _module(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", ""))


def _function(frame: FrameType) -> str:
    """Its function, without the nameless ones and comprehensions within: Python 3.12 has no frame for the latter."""
    return frame.f_code.co_qualname.partition(".<locals>.<")[0]


def _file(frame: FrameType) -> str:
    """Its file, as its module has it: the same wherever the site is deployed."""
    parts = PurePath(frame.f_code.co_filename).parts
    length = _module(frame).count(".") + (2 if parts[-1:] == ("__init__.py",) else 1)
    return "/".join(parts[-length:])
