"""Every metric: its name, its labels, what it counts. Standard library only.

Names follow Prometheus's rules (base units, `_total`, `_seconds`) and, where OpenTelemetry's conventions for messaging
have a metric of the same meaning, its name.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

# Seconds at which the steps of a histogram end.
BOUNDS = (
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0, 7200.0,
)  # fmt: skip
OTHER = "other"  # the value of a label beyond what is told apart

Kind = Literal["counter", "histogram", "gauge"]


@dataclass(frozen=True, slots=True, eq=False)  # its own identity, so that it is found in a moment
class Family:
    """A metric with all its labels' values.

    Attributes:
        name: without the `_total` that a counter's samples end with.
        kind: "counter", "histogram" (of seconds, with the steps of `BOUNDS`) or "gauge".
        labels: their names, `alias` first.
        help: what it says, in a sentence.
    """

    name: str
    kind: Kind
    labels: tuple[str, ...]
    help: str

    @property
    def sample(self) -> str:
        """What a query calls it."""
        return f"{self.name}_total" if self.kind == "counter" else self.name

    @property
    def size(self) -> int:
        """How many numbers one of its series has: a histogram's steps and sum, a gauge's value and moment."""
        return {"counter": 1, "histogram": len(BOUNDS) + 2, "gauge": 2}[self.kind]


_OUT = ("alias", "queue")
_IN = ("alias", "queue", "handler")

PUBLISHED = Family(
    "messaging_published_messages", "counter", _OUT, "Messages that publish() wrote and whose transaction committed."
)
RELAYED = Family("messaging_relayed_messages", "counter", _OUT, "Messages that the broker confirmed.")
RETURNED = Family("messaging_returned_messages", "counter", _OUT, "Times that the broker found no queue for a message.")
UNSENDABLE = Family("messaging_unsendable_messages", "counter", _OUT, "Outgoing messages that can never be sent.")
PROCESSED = Family(
    "messaging_processed_messages", "counter", _IN, "Messages whose handler succeeded and whose transaction committed."
)
RETRIED = Family("messaging_retried_messages", "counter", _IN, "Attempts that failed and are followed by another.")
FAILED = Family("messaging_failed_messages", "counter", _IN, "Messages that came to rest as failed.")
INTERRUPTED = Family(
    "messaging_interrupted_messages", "counter", _IN, "Runs that ended without an attempt, as by a stop."
)
DURATION = Family(
    "messaging_process_duration_seconds",
    "histogram",
    _IN,
    "How long handlers ran that succeeded, their commit included; each message of a batch counts.",
)
CRITICAL = Family(
    "messaging_critical_time_seconds",
    "histogram",
    _IN,
    "From when a message was to be sent until it was processed, as its id tells (UUID version 7), retries included.",
)

PROCESSES = Family("messaging_child_processes", "gauge", ("alias",), "Processes that this supervisor has running.")
DEATHS = Family(
    "messaging_child_process_deaths", "counter", ("alias",), "Processes of this supervisor that ended unasked."
)

DUE = Family("messaging_outbox_due_messages", "gauge", ("alias",), "Messages that are due and not sent, up to 10001.")
OLDEST_DUE = Family(
    "messaging_outbox_oldest_due_seconds", "gauge", ("alias",), "For how long the oldest of those has been due."
)
UNROUTED = Family(
    "messaging_outbox_unrouted_messages", "gauge", ("alias",), "Messages that wait for a queue, up to 10001."
)
UNSENT = Family(
    "messaging_outbox_failed_messages", "gauge", ("alias",), "Outgoing messages that rest as failed, up to 10001."
)
NOT_BACK = Family(
    "messaging_not_back_messages",
    "gauge",
    ("alias",),
    "Retries and requeues that were sent and have not come back, up to 10001.",
)
WORKERS = Family(
    "messaging_workers", "gauge", ("alias", "kind"), "Consumers and relays that were seen within the last minute."
)
SILENT = Family(
    "messaging_silent_workers",
    "gauge",
    ("alias", "kind"),
    "Those that say nothing any more, did not sign off, and have no newer one in their place.",
)
PAUSED = Family("messaging_queue_paused", "gauge", _OUT, "1 for each queue that is paused.")
READY = Family("messaging_queue_ready_messages", "gauge", _OUT, "Messages that wait in a queue of the broker.")
UNACKED = Family(
    "messaging_queue_unacked_messages", "gauge", _OUT, "Messages that consumers have and did not acknowledge."
)
CONSUMERS = Family("messaging_queue_consumers", "gauge", _OUT, "Consumers that the broker has on a queue.")
DATABASE_UP = Family("messaging_database_up", "gauge", ("database",), "1 where the tables could be read, else 0.")

COUNTED = (
    PUBLISHED, RELAYED, RETURNED, UNSENDABLE, PROCESSED, RETRIED, FAILED, INTERRUPTED, DURATION, CRITICAL,
)  # fmt: skip
SUPERVISED = (PROCESSES, DEATHS)
OF_THE_SITE = (
    DUE, OLDEST_DUE, UNROUTED, UNSENT, NOT_BACK, WORKERS, SILENT, PAUSED, READY, UNACKED, CONSUMERS, DATABASE_UP,
)  # fmt: skip
FAMILIES = (*COUNTED, *SUPERVISED, *OF_THE_SITE)
BY_NAME = {family.name: family for family in FAMILIES}
