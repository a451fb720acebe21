"""Commands that cannot serve metrics say so before they begin."""

from __future__ import annotations

import sys

import pytest
from django.core.management import CommandError, call_command

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.mark.parametrize("command", ["consume", "relay"])
def test_a_port_that_is_none_is_refused(command: str) -> None:
    for port in ("70000", "-1"):
        with pytest.raises(CommandError, match="--metrics-port must be 0 to 65535"):
            call_command(command, f"--metrics-port={port}")


@pytest.mark.parametrize("command", ["consume", "relay"])
def test_a_missing_library_is_said(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(CommandError, match=r"pip install \"django-durable-messaging\[metrics\]\""):
        call_command(command, "--metrics-port=0")
