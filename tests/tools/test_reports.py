"""A test that fails says what the processes that it started have said: nobody may see it fail a second time."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from tests.conftest import LINES, pytest_runtest_makereport
from tests.site import SiteFactory


@pytest.mark.parametrize(("when", "outcome", "is_told"), [
    ("call", "failed", True), ("call", "passed", False), ("teardown", "failed", False),
])  # fmt: skip
def test_a_failure_says_what_its_processes_have_said(site: SiteFactory, when: Any, outcome: Any, is_told: bool) -> None:
    running = site().start("shell", "-c", "print('said', 'something')")
    assert running.wait() == 0
    report = pytest.TestReport("a test", ("", 0, ""), {}, outcome, None, when)
    reporting = pytest_runtest_makereport(SimpleNamespace(funcargs={"_one": site, "site": site}))  # type: ignore[arg-type]
    next(reporting)
    with pytest.raises(StopIteration) as end:
        reporting.send(report)
    assert end.value.value is report
    assert (report.sections == [(f"Output of {running}", running.log_tail(LINES))]) == is_told
    assert "said something" in str(report.sections) or not is_told
