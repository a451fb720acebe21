"""Backends and handlers of tasks for one test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import django
import pytest
from pytest_django import Settings

from messaging import signals
from messaging.handlers import registry

if django.VERSION < (6, 0):
    pytest.importorskip("django_tasks", reason="django-tasks is not installed")

BACKEND = "messaging.django_tasks.MessagingBackend"
Use = Callable[..., list[Any]]


@pytest.fixture
def use(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[Use]:
    """`use(**options)` sets `TASKS`, with these `OPTIONS` for `default`, and has its queues handled."""
    monkeypatch.setattr(registry, "_handlers", {})

    def given(*, others: dict[str, Any] | None = None, queues: list[str] | None = None, **options: Any) -> list[Any]:
        from messaging.django_tasks import register_handlers

        queues = ["default", "queue_1"] if queues is None else queues
        default = {"BACKEND": BACKEND, "QUEUES": queues, "OPTIONS": options}
        settings.TASKS = {"default": default, **(others or {})}
        registry._handlers.clear()
        return register_handlers()

    yield given
    signals.message_failed.disconnect(dispatch_uid="messaging.django_tasks")


@pytest.fixture
def tasks(use: Use) -> None:
    """The backend without any options."""
    use()
