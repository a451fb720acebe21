"""What the code has that the model must have: kill points, and functions that write rows or begin a transaction."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

MESSAGING = Path(__file__).parents[2] / "messaging"
ELSEWHERE = ("admin", "management", "migrations", "templatetags", "locale")
WRITES = frozenset(
    {
        "atomic", "create", "bulk_create", "update_or_create", "delete", "_raw_delete", "move", "insert", "insert_many",
        "insert_values", "proven_commit", "_brief",
    }
)  # fmt: skip


def writers() -> dict[str, set[str]]:
    """By dotted name, each function of `messaging` that writes, with the calls that say so."""
    found: dict[str, set[str]] = {}
    for path in sorted(MESSAGING.rglob("*.py")):
        parts = path.relative_to(MESSAGING).with_suffix("").parts
        if parts[0] in ELSEWHERE:
            continue
        module = ".".join(part for part in ("messaging", *parts) if part != "__init__")
        for name, function in _functions(ast.parse(path.read_text()), module):
            if calls := {call for node in ast.walk(function) if (call := _write(node))}:
                found[name] = calls
    return found


def _functions(node: ast.AST, prefix: str) -> Iterator[tuple[str, ast.AST]]:
    """Functions and methods; what is defined in a function is part of it."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef):
            yield from _functions(child, f"{prefix}.{child.name}")
        elif isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield f"{prefix}.{child.name}", child
        elif isinstance(child, (ast.If, ast.Try, ast.With)):
            yield from _functions(child, prefix)


def _write(node: ast.AST) -> str:
    """The name of a call that writes; "" for anything else."""
    if not isinstance(node, ast.Call):
        return ""
    name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    keywords = {keyword.arg for keyword in node.keywords}
    if name == "update":  # of a dict or a set it has a positional argument
        return name if keywords and not node.args else ""
    if name == "save":
        return name if keywords & {"using", "force_insert", "update_fields"} else ""
    if name == "insert" and isinstance(node.func, ast.Attribute):  # into a list
        return ""
    return name if name in WRITES else ""
