"""The table of transitions in `docs/architecture.md` is what the model does."""

from __future__ import annotations

import re
from pathlib import Path

from tests.model.configurations import BY_NAME
from tests.model.transitions import NONE, Transition, taken

PAGE = Path(__file__).parents[2] / "docs" / "architecture.md"
STATES = 1500
# These make all the changes that there are.
WORLDS = (
    "retention", "unroutable", "dead letters", "operators", "edit", "purge", "stop", "stop, no id", "two databases",
)  # fmt: skip


def test_the_table_of_transitions_is_what_the_model_takes() -> None:
    assert documented() == set(taken(map(BY_NAME.__getitem__, WORLDS), STATES))


def documented() -> set[Transition]:
    cell = rf"(?:`([a-z, ]+)`|{NONE})"
    rows = re.findall(rf"^\| (outbox|inbox) \| {cell} \| {cell} \| [^|]+ \|$", PAGE.read_text(), re.MULTILINE)
    return {(table, before or NONE, after or NONE) for table, before, after in rows}
