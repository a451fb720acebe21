"""Fixtures of the tests of the processor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from django.db import connection
from pytest_django import Settings

from messaging.handlers import Registry
from messaging.processing.processor import Processor
from tests.deliveries import registered
from tests.options import set_options
from tests.processing.tools import Handle, effect


@pytest.fixture
def handle(settings: Settings) -> Handle:
    """Builds a processor with one handler. No lease runs out but where a test says so."""
    set_options(settings, LEASE=600)

    def build(function: Callable[..., Any] = effect, **options: Any) -> Processor:
        registry = Registry()
        registered(registry, function, **options)
        return Processor("default", "worker-1", handlers=registry)

    return build


@pytest.fixture
def has_sessions(db: None) -> None:
    """Skips where no server ends connections."""
    if connection.vendor == "sqlite":
        pytest.skip("needs a server that ends connections")
