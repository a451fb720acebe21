"""Places between two durable steps where a test can kill the process.

Inert unless the environment names one: `MESSAGING_KILL_AT=relay.sent` kills the process with SIGKILL the first time
that it passes `kill_point("relay.sent")`. Where `MESSAGING_KILL_FILE` is set too, that file must exist and is removed
first, so that a restarted process survives.
"""

from __future__ import annotations

import os
import signal

POINTS = {
    "publisher.saved": "the outbox row is written, its transaction is not committed",
    "publisher.committed": "the outbox row is committed, nothing is sent",
    "relay.leased": "rows are leased, none is sent",
    "relay.sent": "rows are sent, none is known to be confirmed",
    "relay.confirmed": "the broker has confirmed, the rows are not marked",
    "relay.marked": "the rows are marked published",
    "embedded.taken": "rows of the embedded broker are given to a receiver, none is handed over",
    "consumer.received": "a delivery is received, nothing is written",
    "processor.claimed": "the claim is committed, the handler has not started",
    "processor.moved": "its old row in another database is superseded, the handler has not started",
    "processor.begun": "the claim says that its handler begins, which has not started",
    "processor.handled": "the handler returned, its transaction is not committed",
    "processor.committed": "the handler's transaction is committed, nothing is acknowledged",
    "processor.rolled_back": "the handler failed and is rolled back, the attempt is not recorded",
    "processor.recorded": "the attempt and its retry are committed, nothing is acknowledged",
    "consumer.acked": "the acknowledgement is handed to the connection",
    "embedded.removed": "acknowledged rows of the embedded broker are deleted",
    "operations.requeued": "an operator's requeue or edit is written, its transaction is not committed",
    "operations.acted": "a batch of a stored operation is committed, the next one has not begun",
}

_armed = os.environ.get("MESSAGING_KILL_AT", "")


def kill_point(name: str) -> None:
    """Kill this process with SIGKILL if the environment asks for it at `name` (one of `POINTS`)."""
    if _armed and _armed == name:
        marker = os.environ.get("MESSAGING_KILL_FILE")
        if marker:
            try:
                os.unlink(marker)
            except FileNotFoundError:
                return
        os.kill(os.getpid(), signal.SIGKILL)


def armed() -> bool:
    """Whether the environment names a kill point at all."""
    return bool(_armed)
