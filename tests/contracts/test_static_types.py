"""What type checkers make of a handler's message."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.site import ROOT

CODE = """
from dataclasses import dataclass
from messaging import ReceivedMessage, handler, payload_version, upgrades

@payload_version(2)
@dataclass
class Order:
    number: int

@upgrades(Order, from_version=1)
def lift(payload: dict[str, int]) -> dict[str, int]:
    return payload

@handler("billing", "orders.placed")
def bill(message: ReceivedMessage[Order]) -> None:
    reveal_type(message.payload)
    message.payload.nothing

@handler("stock", "orders.placed", payload=Order)
def reserve(message: ReceivedMessage) -> None:
    reveal_type(message.payload)

@handler("events", batch=5)
def store(messages: list[ReceivedMessage[Order]]) -> None:
    reveal_type(messages[0].payload.number)

reveal_type(Order(1))
"""


@pytest.mark.slow
def test_the_payload_has_the_type_that_the_annotation_names(tmp_path: Path) -> None:
    file = tmp_path / "shop.py"
    file.write_text(CODE)
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file", str(ROOT / "pyproject.toml"), str(file)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500, check=False)
    said = [line.partition(": ")[2] for line in done.stdout.splitlines() if line.startswith(str(file))]
    assert said == [
        'note: Revealed type is "shop.Order"',
        'error: "Order" has no attribute "nothing"  [attr-defined]',
        'note: Revealed type is "Any"',
        'note: Revealed type is "builtins.int"',
        'note: Revealed type is "shop.Order"',
    ], done.stdout + done.stderr
