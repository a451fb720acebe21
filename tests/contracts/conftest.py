"""Fixtures of the tests of contracts."""

from __future__ import annotations

import pytest

from messaging.contracts import events


@pytest.fixture(autouse=True)
def declared(monkeypatch: pytest.MonkeyPatch) -> events.Events:
    """A registry of events for this test alone."""
    fresh = events.Events()
    monkeypatch.setattr(events, "events", fresh)
    return fresh
