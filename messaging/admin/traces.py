"""Tracebacks for people: the application's own frames are open, those of libraries folded between them."""

from __future__ import annotations

import re
from itertools import groupby
from typing import NamedTuple

from messaging.processing.error_text import is_library

_FRAME = re.compile(r'^( *(?:\| +)?)File "([^"\n]+)", line \d+')


class Part(NamedTuple):
    """Lines of a traceback.

    Attributes:
        text: the lines.
        folded: how many frames of libraries they are; 0 for the application's own, and for what is no frame.
    """

    text: str
    folded: int


def parts(trace: str) -> list[Part]:
    """A traceback in parts. Frames that no application has written are folded, but not where there are no others."""
    found = [(_is_library(lines[0]), "\n".join(lines)) for lines in _pieces(trace)]
    if not any(is_folded is False for is_folded, _text in found):
        return [Part(trace, 0)] if trace.strip() else []
    result = []
    for is_folded, group in groupby(found, key=lambda piece: piece[0] is True):
        texts = [text for _is_library, text in group]
        result.append(Part("\n".join(texts), len(texts) if is_folded else 0))
    return result


def _pieces(trace: str) -> list[list[str]]:
    """The lines, a list for each frame with its source and for each run of other lines."""
    pieces: list[list[str]] = []
    indent: int | None = None  # of the frame that the lines before belong to
    for line in trace.strip("\n").split("\n"):
        frame = _FRAME.match(line)
        is_source = indent is not None and (not line.strip(" |") or len(line) - len(line.lstrip(" |")) > indent)
        if frame or not pieces or (indent is not None and not is_source):
            pieces.append([line])
            indent = len(frame[1]) if frame else None
        else:
            pieces[-1].append(line)
    return pieces


def _is_library(line: str) -> bool | None:
    """Whether a frame is a library's; None for a line that begins none."""
    frame = _FRAME.match(line)
    if frame is None:
        return None
    return is_library(frame[2])
