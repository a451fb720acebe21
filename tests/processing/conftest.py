"""Fixtures of the tests of the processor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from django.db import connection

from messaging.handlers import Registry
from messaging.processing.processor import Processor
from tests.deliveries import registered
from tests.processing.tools import Handle, effect


@pytest.fixture
def handle() -> Handle:
    """Builds a processor with one handler."""

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
