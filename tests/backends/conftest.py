"""Fixtures of the backends' tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from messaging.backends.rabbitmq import RabbitMQ
from tests.backends.rabbitmq_settings import rabbitmq_backend
from tests.certificates import Authority


@pytest.fixture(params=["management API", "AMQP alone"])
def backend(request: pytest.FixtureRequest, broker_url: str) -> RabbitMQ:
    """RabbitMQ as a site sees it that names a management API, and as one that does not."""
    if request.param == "AMQP alone":
        return rabbitmq_backend(broker_url)
    return rabbitmq_backend(broker_url, management_url=request.getfixturevalue("management_url"))


@pytest.fixture(scope="module")
def authority() -> Iterator[Authority]:
    """Whom the certificates are signed by."""
    own = Authority()
    yield own
    own.close()
