"""The worlds that are explored: small ones with each run of the tests, larger ones by `make model`."""

from __future__ import annotations

from dataclasses import replace

from tests.model.invariants import COUNTED, DEATHS, LAST
from tests.model.protocol import Configuration

# What may go wrong anywhere. Each world counts how often in all.
TROUBLE = frozenset(
    {
        "a relay dies",
        "a lease lapses",
        "lose the confirm",
        "a process dies",
        "a machine dies",
        "a channel is lost",
        "look, and claim later",
        "look whose a crash was, and count it later",
        "claim, its answer lost",
        "commit the handler, the answer lost",
        "record the failure, the answer lost",
        "commit a batch, the answer lost",
        "retire its row elsewhere, the answer lost",
        "the database goes away",
        "a claim lapses though held",
        "a claim lapses in an outage",
        "report a crash and die before telling",
    }
)
PURGE, REPLAY = "the broker loses what is ready", "replay"
STOP, MOVE, LAG = "a stop signal", "the handler moves to another database", "a copy of the database falls behind"
OLD = {
    COUNTED: "the release before counts whatever lapses, and a crash as often as it is reported",
    DEATHS: "it ends a report that meets a lock, and its successes overwrite what was counted meanwhile",
    LAST: "it claims no last attempt before it runs",
}


def _world(name: str, says: str, **options: object) -> Configuration:
    return Configuration(name, says, **{"trouble": TROUBLE, "troubles": 1, **options})  # type: ignore[arg-type]


SMALL = (
    _world("one message", "with an id, atomic", troubles=2),
    _world("not atomic", "acknowledged when claimed", atomic=False, troubles=2),
    _world("recorded last", "as on SQLite: nothing is locked while the handler runs", locks=False),
    _world("one attempt", "the first is the last", attempts=1, rarely={"requeue": 1}),
    _world(
        "two of each", "two relays, two consumers, sent twice", relays=("new",) * 2, consumers=("new",) * 2, copies=2
    ),
    _world("no id", "a random key; a redelivery adopts", identified=False, troubles=2),
    _world("no id, not atomic", "", identified=False, atomic=False),
    _world("twins", "two of equal content without ids", identified=False, messages=2, troubles=1, rounds=2),
    _world("twins, not atomic", "", identified=False, messages=2, atomic=False, troubles=1, rounds=2),
    _world("operators", "requeue, discard, restore", rarely={"requeue": 1, "discard": 1, "restore": 1}),
    _world("edit", "a copy takes the place of what is failed", copies=2, rarely={"edit": 1, REPLAY: 1, "requeue": 1}),
    _world("purge", "the broker forgets, an operator replays", rarely={PURGE: 1, REPLAY: 1}),
    _world("purge, not atomic", "", atomic=False, rarely={PURGE: 1, REPLAY: 1}),
    _world(
        "purge, no id", "what cannot be told apart needs an operator", identified=False, rarely={PURGE: 1, "discard": 1}
    ),
    _world(
        "unroutable",
        "no queue takes it",
        trouble=TROUBLE | {"return as unroutable"},
        rarely={"publish again": 1, "requeue": 1, "discard the outgoing row": 1, "edit": 1, "discard": 1},
    ),
    _world("stop", "a process is asked to stop, and ends at its deadline", rarely={STOP: 1}),
    _world("stop, not atomic", "", atomic=False, rarely={STOP: 1}),
    _world("stop, no id", "", identified=False, rarely={STOP: 1}),
    _world("two databases", "the handler moves", databases=2, rarely={MOVE: 1}),
    _world("two databases, not atomic", "", databases=2, atomic=False, rarely={MOVE: 1}),
    _world("back and forth", "the handler moves, and back", databases=2, attempts=3, rarely={MOVE: 2}),
    _world("two databases, requeued", "", databases=2, rarely={MOVE: 2, "requeue": 1}),
    _world("failover", "to a copy that lags; numbers are given again", messages=2, rarely={LAG: 1}),
    _world("dead letters", "the broker gives up", rarely={"the broker gives a message up": 1, "requeue": 1}),
    _world("dead letters, no id", "", identified=False, rarely={"the broker gives a message up": 1}),
    _world("two queues", "of one id", queues=2),
    _world("batch", "two in one transaction", messages=2, batch=True),
    _world("retention", "rows of what ended go", rarely={"retention deletes it": 2, "requeue": 1, "discard": 1}),
    _world(
        "two releases", "the one before beside this one", relays=("new", "old"), consumers=("new", "old"), relaxed=OLD
    ),
    _world(
        "two releases, not atomic",
        "",
        relays=("new", "old"),
        consumers=("new", "old"),
        atomic=False,
        relaxed=OLD,
        troubles=1,
    ),
)
BY_NAME = {one.name: one for one in SMALL}


def full() -> list[Configuration]:
    """The same worlds with more trouble in them, and those that are too large for each run of the tests."""
    larger = [replace(one, troubles=(one.troubles or 0) + 1, rounds=4) for one in SMALL]
    larger.append(replace(BY_NAME["one message"], name="one message, any trouble", troubles=None))
    larger.append(replace(BY_NAME["one message"], name="three attempts", troubles=3, attempts=3))
    larger.append(replace(BY_NAME["not atomic"], name="three attempts, not atomic", troubles=3, attempts=3))
    larger.append(
        replace(BY_NAME["purge"], name="purge in between", troubles=2, rarely={PURGE: 1, REPLAY: 2, "requeue": 1})
    )
    verbs = {"requeue": 2, "discard": 2, "restore": 2}
    larger.append(replace(BY_NAME["operators"], name="operators that act twice", troubles=1, rarely=verbs))
    return larger
