"""docs/how-to/on-call.md has a row for each thing that is called wrong, and for each log line that begins a trouble."""

from __future__ import annotations

import ast
import re

from tests.docs.blocks import DOCS
from tests.site import ROOT

PAGE = DOCS / "how-to" / "on-call.md"
HOUSE = ROOT / "messaging"
LEVELS = {"warning", "error", "critical", "exception"}
# The ends of troubles, whose beginnings have rows.
ENDS = {
    "…: queue … is back, and is consumed.",
    "Messages can reach all queues again.",
    "Could see to … again.",
    "The database can be used again after … s: consumption goes on.",
    'No claim in the database "…" is about to lapse any more.',
    "The crash of … is recorded now.",
    "Process … goes on, after … s.",
}


def rows(header: str) -> list[list[str]]:
    """The cells of the table whose header begins so."""
    table = PAGE.read_text().partition(f"\n| {header} |")[2].partition("\n\n")[0]
    return [[cell.strip() for cell in row.strip("| ").split(" | ")] for row in table.splitlines()[2:]]


def names_of_conditions() -> set[str]:
    found = set()
    for path in (HOUSE / "monitoring").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Condition":
                found |= {str(node.args[0].value)} if isinstance(node.args[0], ast.Constant) else set()
    return found - {"test"}  # which somebody asks for


def text_of(node: ast.expr, function: ast.AST) -> str | None:
    """The text of a log call, `…` where something is filled in; None where it is made elsewhere."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return re.sub(r"%[-\d.]*[sdgrf]", "…", node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values)
    for assigned in ast.walk(function) if isinstance(node, ast.Name) else ():
        if isinstance(assigned, ast.Assign) and ast.unparse(assigned.targets[0]) == ast.unparse(node):
            return text_of(assigned.value, function)
    return None


def logged() -> dict[str, set[str]]:
    """The texts of warnings and errors, with their loggers."""
    found: dict[str, set[str]] = {}
    for path in HOUSE.rglob("*.py"):
        tree = ast.parse(path.read_text())
        named = re.search(r"getLogger\('([\w.]+)'\)", ast.unparse(tree))
        logger = named[1] if named else f"messaging.{path.parent.name}"
        for function in (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)):
            for node in ast.walk(function):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and _is_trouble(node.func):
                    text = text_of(node.args[0], function) if node.args else None
                    if text is not None and re.search(r"\w", text):
                        found.setdefault(text, set()).add(logger)
    return found


def _is_trouble(called: ast.Attribute) -> bool:
    by = ast.unparse(called.value)
    return (by == "logger" and called.attr in LEVELS) or (called.attr == "begin" and "self._" in by)


def pattern_of(line: str) -> re.Pattern[str]:
    return re.compile(".*".join(map(re.escape, line.split("…"))), re.DOTALL)


def test_every_alarm_has_a_row() -> None:
    told = [re.findall(r"`([a-z_]+)`", row[0])[0] for row in rows("Alarm")]
    assert sorted(told) == sorted(names_of_conditions())
    assert all(len(row) == 4 and all(row) for row in rows("Alarm"))


def test_every_log_line_that_begins_a_trouble_has_a_row() -> None:
    told = [row[0].strip("`") for row in rows("Line")]
    texts = logged()
    assert len(texts) > 30
    assert set(texts) > ENDS
    begin = set(texts) - ENDS
    assert [text for text in begin if not any(pattern_of(line).fullmatch(text) for line in told)] == []


def test_every_line_of_the_table_is_logged_so() -> None:
    source = "".join(path.read_text() for path in HOUSE.rglob("*.py"))
    texts = logged()
    for line, logger, *_ in rows("Line"):
        meant = {name for text in texts if pattern_of(line.strip("`")).fullmatch(text) for name in texts[text]}
        if meant:
            assert logger.strip("`") in meant, line
        else:  # put together from parts
            assert [part for part in line.strip("`").split("…") if part.strip(" :.") not in source] == [], line
