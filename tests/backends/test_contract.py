"""The contract, for each backend."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from messaging.backends.base import Backend
from tests.backends.contract import BackendContract
from tests.backends.rabbitmq_settings import rabbitmq_backend


@pytest.mark.broker
class TestRabbitMQ(BackendContract):
    @pytest.fixture
    def backend(self, broker_url: str) -> Backend:
        return rabbitmq_backend(broker_url)

    @pytest.fixture
    def broker(self, broker_url: str) -> Mapping[str, Any]:
        return {"url": broker_url, "databases": {}}
