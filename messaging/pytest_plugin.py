"""Fixtures for pytest with pytest-django. Loaded wherever the package is installed: nothing is imported until used."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    from messaging.models import PublishedMessage
    from messaging.testing import Drained


@pytest.fixture
def published_messages(db: None) -> Callable[..., list[PublishedMessage]]:
    """`published_messages(routing_key=None, ...)`: what this test published; see `messaging.testing.published()`."""
    from messaging.testing import published

    return published


@pytest.fixture
def assert_published(db: None) -> Callable[..., list[PublishedMessage]]:
    """`assert_published(routing_key, payload, ...)`: see `messaging.testing.assert_published()`."""
    from messaging.testing import assert_published

    return assert_published


@pytest.fixture
def assert_not_published(db: None) -> Callable[..., None]:
    """`assert_not_published(routing_key, payload, ...)`: see `messaging.testing.assert_not_published()`."""
    from messaging.testing import assert_not_published

    return assert_not_published


@pytest.fixture
def drain_messages(db: None) -> Callable[..., Drained]:
    """`drain_messages(...)`: have everything sent and processed here and now; see `messaging.testing.drain()`."""
    from messaging.testing import drain

    return drain
