"""The embedded broker: the contract, on the database that TEST_DB chooses, and what is its own."""

from __future__ import annotations

import pytest

from messaging.backends.base import Backend
from messaging.backends.database import DatabaseBroker
from messaging.conf import AliasSettings
from tests.backends.contract import BackendContract


def database_backend(**options: object) -> DatabaseBroker:
    """A backend in the test database; options are those of `AliasSettings`."""
    values = {"scheme": "database", "hosts": (), "vhost": "", "username": "", "password": "", **options}
    return DatabaseBroker("default", AliasSettings(alias="default", **values))  # type: ignore[arg-type]


@pytest.mark.django_db(transaction=True)
class TestEmbeddedBroker(BackendContract):
    @pytest.fixture
    def backend(self) -> Backend:
        return database_backend()
