"""Loaded by every Python that a walk starts: it writes whole lines, as to a terminal, so that no other cuts one."""

from __future__ import annotations

import io
import sys

for stream in (sys.stdout, sys.stderr):
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(line_buffering=True)
