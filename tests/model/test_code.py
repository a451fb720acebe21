"""The model has what the code has: its kill points, and every function that writes rows; and names nothing else."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import pytest

from messaging.killpoints import POINTS
from tests.model import explore
from tests.model.code import writers
from tests.model.protocol import ACTIONS, Action

assert explore.NAMES  # every action is declared once all its modules are loaded

# What writes, and is no step of the protocol.
MEANS = "how the functions of actions write"
BROKER = "the embedded broker's own upkeep, which its contract tests cover; to the model a broker is a bag of copies"
WORKERS = "rows that show which workers live"
TOLD = "how long a run took, which decides nothing"
STORED = "which messages an operation is about, and how far it is; to each message it does what its verb does"
REHEARSED = "what became of a rehearsal: its handler's work is rolled back, and no row of a message changes"
COUNTED = "how many messages ended how, for charts; it decides nothing"
ALERTED = "what people are told of; it decides nothing"
GROUPED = "what failures have in common, told to people; it decides nothing"
OUTSIDE = {
    "messaging.monitoring.failure_groups._end_silence": GROUPED,
    "messaging.monitoring.failure_groups._seen": GROUPED,
    "messaging.monitoring.failure_groups._write_count": GROUPED,
    "messaging.monitoring.failure_groups.prune": GROUPED,
    "messaging.monitoring.failure_groups.write": GROUPED,
    "messaging.operations.failure_groups._change": GROUPED,
    "messaging.supervising.__main__.Supervisor.show_state": "creates a file, no row",
    "messaging.supervising.counts.Place.__init__": "creates shared memory, no row",
    "messaging.monitoring.alerts._begin_again": ALERTED,
    "messaging.monitoring.alerts._claim": ALERTED,
    "messaging.monitoring.alerts._end": ALERTED,
    "messaging.monitoring.alerts._go_on": ALERTED,
    "messaging.monitoring.alerts._put_off": ALERTED,
    "messaging.monitoring.alerts._send": ALERTED,
    "messaging.monitoring.alerts._takes_beat": ALERTED,
    "messaging.monitoring.alerts._tell": ALERTED,
    "messaging.monitoring.alerts._note": ALERTED,
    "messaging.monitoring.alerts.prune": ALERTED,
    "messaging.operations.failure_groups.act_on": STORED,
    "messaging.backends.database.DatabaseBroker.purge_and_delete": "for tests",
    "messaging.backends.database.catalog._declare_queue": BROKER,
    "messaging.backends.database.catalog.declare": BROKER,
    "messaging.backends.database.catalog.unbind": BROKER,
    "messaging.backends.database.errors.broker_errors": BROKER,
    "messaging.backends.database.feed.Feed.open": BROKER,
    "messaging.backends.database.sender.DatabaseSender._probe": BROKER,
    "messaging.backends.database.sweeper.Sweeper._bury_expired": BROKER,
    "messaging.models.embedded.EmbeddedConnectionQuerySet.renew": BROKER,
    "messaging.db.insert_one.insert": MEANS,
    "messaging.processing.crashes._brief": MEANS,
    "messaging.processing.durations.correct": TOLD,
    "messaging.processing.durations.correct_late": TOLD,
    "messaging.processing.elsewhere.Elsewhere._refuse_unseen": "writes nothing: it waits for a lock and rolls back",
    "messaging.processing.inbox.Place._insert": MEANS,
    "messaging.processing.inbox.Place._move": MEANS,
    "messaging.db.insert_many.insert_many": MEANS,
    "messaging.db.insert_many.insert_values": MEANS,
    "messaging.models.outbox.PublishedMessageQuerySet._change_held": MEANS,
    "messaging.models.processed.ProcessedMessage.move": MEANS,
    "messaging.operations._change": MEANS,
    "messaging.operations.acting._act_on": MEANS,
    "messaging.operations.stored.cancel": STORED,
    "messaging.retention.prune_operations": STORED,
    "messaging.monitoring.counters._add_up": COUNTED,
    "messaging.monitoring.counters._is_free": COUNTED,
    "messaging.monitoring.counters.prune": COUNTED,
    "messaging.monitoring.counters.write": COUNTED,
    "messaging.operations.stored.go_on": STORED,
    "messaging.operations.stored.store": STORED,
    "messaging.operations.stored._Run.leave": STORED,
    "messaging.operations.stored._Run._note": STORED,
    "messaging.operations.stored._Run._step": STORED,
    "messaging.operations.stored._Run._tried": STORED,
    "messaging.models.base.Claimable.claim": STORED,
    "messaging.operations.rehearsals.ask": REHEARSED,
    "messaging.operations.rehearsals.end_abandoned": REHEARSED,
    "messaging.operations.rehearsals.run_waiting": REHEARSED,
    "messaging.processing.rehearsing._run": REHEARSED,
    "messaging.publishing.rounds.add_round": MEANS,
    "messaging.models.spools.Spool.store": MEANS,
    "messaging.processing.without_handler._whole": MEANS,
    "messaging.supervising.child.Child.__init__": "creates a ledger, no row",
    "messaging.testing.draining.Drain._let_pass": "for tests of those who use the package",
    "messaging.testing.draining.refuse_nested": "for tests of those who use the package",
    "messaging.django_tasks.running._keep": "what a task returned, in its transaction; it decides nothing",
    "messaging.consuming.housekeeping.Housekeeper._leave": WORKERS,
    "messaging.consuming.housekeeping.Housekeeper._show_life": WORKERS,
    "messaging.relaying.leases.Leases.report": WORKERS,
    "messaging.relaying.leases.Leases.sign_off": WORKERS,
    "messaging.operations.publish_copy": "a new message, as any other",
    "messaging.operations.set_paused": "a pause holds deliveries back, which the model's broker may do at any time",
}


def test_the_model_has_every_function_that_writes() -> None:
    named = {name for action in ACTIONS.values() for name in action.by}
    assert set(writers()) - named == set(OUTSIDE)


@pytest.mark.parametrize("action", [one for one in ACTIONS.values() if one.by], ids=lambda action: action.name)
def test_what_the_model_names_exists(action: Action) -> None:
    for name in action.by:
        assert callable(_found(name)), name


def test_the_model_has_every_kill_point_and_no_other() -> None:
    assert {point for action in ACTIONS.values() for point in action.at} == set(POINTS)


def _found(name: str) -> Any:
    parts = name.split(".")
    for count in range(len(parts), 0, -1):
        try:
            found: Any = import_module(".".join(parts[:count]))
        except ModuleNotFoundError:
            continue
        for part in parts[count:]:
            found = getattr(found, part)
        return found
    raise AssertionError(name)
