"""Which of an alias's hosts to try first: in the order of its URL, but those that failed lately come last.

A node can accept connections and still be of no use: cut off from the others, or out of disk. Shared by all connections
of the process, so that one's experience serves the next.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable

FORGIVEN_AFTER = 60.0  # seconds

_failed: dict[tuple[str, int], float] = {}


def in_order(hosts: Iterable[tuple[str, int]]) -> list[tuple[str, int]]:
    """The hosts in the order in which to try them; among those that failed, the first that did."""
    forgiven = time.monotonic() - FORGIVEN_AFTER

    def failed_at(host: tuple[str, int]) -> float:
        at = _failed.get(host, -math.inf)
        return at if at > forgiven else -math.inf

    return sorted(hosts, key=failed_at)


def failed(host: str, port: int) -> None:
    """Remember that a host did not answer, or ended a connection."""
    _failed[host, port] = time.monotonic()
