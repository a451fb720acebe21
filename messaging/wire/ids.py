"""Ids for new messages."""

from __future__ import annotations

import os
import time
import uuid

_RANDOM_BITS = 80
_VERSION, _VARIANT = 7 << 76, 2 << 62
_FREE = ~(0xF << 76 | 3 << 62)  # all bits but those of version and variant


def new_id() -> uuid.UUID:
    """A random UUID that begins with the time in milliseconds (RFC 9562, version 7).

    Ids of about the same time lie together in an index, so however large that is, few of its pages are touched.
    """
    milliseconds = time.time_ns() // 1_000_000
    value = milliseconds << _RANDOM_BITS | int.from_bytes(os.urandom(_RANDOM_BITS // 8), "big")
    return uuid.UUID(int=value & _FREE | _VERSION | _VARIANT)


def new_epoch() -> int:
    """Where the epochs of an outbox row begin whose message id other rows may have: hardly where theirs do."""
    return int.from_bytes(os.urandom(3))
