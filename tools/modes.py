"""A pytest plugin, `-p tools.modes`: which tests prove which failure modes, and how they went.

Writes JSON to the file that `MODES_FILE` names: the broker's version, and per test its modes, outcome and seconds.
With `MODES_BROKER=given` tests that kill a broker are left out: they start the installed one, of whatever version.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pika
import pytest

_tests: dict[str, dict[str, Any]] = {}


def pytest_itemcollected(item: pytest.Item) -> None:
    """Note the modes with the test, so that they travel with its reports."""
    item.user_properties += [("mode", int(mark.args[0])) for mark in item.iter_markers("mode")]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what would not run on the broker that was given."""
    if os.environ.get("MODES_BROKER") == "given":
        elsewhere = [item for item in items if "own_rabbitmq" in getattr(item, "fixturenames", ())]
        config.hook.pytest_deselected(items=elsewhere)
        items[:] = [item for item in items if item not in elsewhere]


def pytest_collection_finish(session: pytest.Session) -> None:
    """Note what was found, also where nothing is run."""
    for item in session.items:
        _note(item.nodeid, item.user_properties)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Note how a test went: the worst of its three phases."""
    test = _note(report.nodeid, report.user_properties)
    test["seconds"] += report.duration
    if report.failed or (report.skipped and test["outcome"] != "failed"):
        test["outcome"] = report.outcome
    elif report.when == "call" and not test["outcome"]:
        test["outcome"] = "passed"


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Write the file, while the broker still runs."""
    if hasattr(session.config, "workerinput"):
        return
    proofs = {name: test for name, test in _tests.items() if test["modes"]}
    Path(os.environ["MODES_FILE"]).write_text(json.dumps({"broker": _broker_version(), "tests": proofs}))


def _note(name: str, properties: list[tuple[str, Any]]) -> dict[str, Any]:
    modes = [value for key, value in properties if key == "mode"]
    return _tests.setdefault(name, {"modes": modes, "outcome": "", "seconds": 0.0})


def _broker_version() -> str:
    """Such as "3.10"; empty where no test asked for a broker."""
    url = os.environ.get("MESSAGING_TEST_URL")
    if not url:
        return ""
    connection = pika.BlockingConnection(pika.URLParameters(url))
    version = str(connection._impl.server_properties["version"])
    connection.close()
    return ".".join(version.split(".")[:2])
