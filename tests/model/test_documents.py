"""The table of transitions in `docs/architecture.md` is what the model does."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from tests.model.configurations import BY_NAME
from tests.model.transitions import NONE, Transition, taken

PAGE = Path(__file__).parents[2] / "docs" / "architecture.md"
# These make all the changes that there are; some lie deeper, so fewer things go wrong in the worlds where they are.
WORLDS = (
    "retention", "unroutable", "dead letters", "dead letters, no id", "operators", "edit", "purge", "stop",
    "stop, no id", "batch", "two databases", "not atomic", "one attempt",
)  # fmt: skip
STATES = 2500
LATER = ("a process dies", "look, and claim later", "look whose a crash was, and count it later")
DEEPER = (
    replace(BY_NAME["two databases, requeued"], trouble=frozenset({"a machine dies"})),
    replace(BY_NAME["no id"], trouble=frozenset(LATER)),
)
DEEPER_STATES = 5000


def test_the_table_of_transitions_is_what_the_model_takes() -> None:
    assert documented() == in_the_model()


def in_the_model() -> dict[Transition, set[str]]:
    """What the model's rows go through, and the actions that do it."""
    found = taken(map(BY_NAME.__getitem__, WORLDS), STATES)
    for change, names in taken(DEEPER, DEEPER_STATES).items():
        found.setdefault(change, set()).update(names)
    return found


def documented() -> dict[Transition, set[str]]:
    """The table on the page."""
    cell = rf"(?:`([a-z, ]+)`|{NONE})"
    rows = re.findall(rf"^\| (outbox|inbox) \| {cell} \| {cell} \| ([^|]+) \|$", PAGE.read_text(), re.MULTILINE)
    return {(table, before or NONE, after or NONE): set(by.split(", ")) for table, before, after, by in rows}
