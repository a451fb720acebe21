"""The publishing side of every peer: `python -m <its tasks> COUNT`."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

from benchmarks.payloads import payload


def publish(send: Callable[[dict[str, Any]], object]) -> None:
    """Send as many messages as the command line says, one after another, and print as JSON when and how long.

    One is sent before, so that neither connecting nor declaring a queue counts.
    """
    send(payload())
    began, epoch = time.perf_counter(), time.time()
    for _ in range(int(sys.argv[1])):
        send(payload())
    print(json.dumps({"seconds": time.perf_counter() - began, "began": epoch}))
