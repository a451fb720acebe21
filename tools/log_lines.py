"""What our processes say, without what an attempt that failed is expected to say."""

from __future__ import annotations

import re

_RECORD = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} ")
_FAILED = re.compile(r"attempt \d+ failed and will be repeated: |failed and waits for an operator: ")


def without_failures(said: str) -> str:
    """A log without the tracebacks of attempts that failed: what follows their lines up to the next record."""
    kept, is_skipping = [], False
    for line in said.splitlines(keepends=True):
        if _RECORD.match(line):
            is_skipping = _FAILED.search(line) is not None
        elif is_skipping:
            continue
        kept.append(line)
    return "".join(kept)
