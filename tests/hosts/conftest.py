"""Fixtures for the hosts."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.hosts.host import HostFactory


@pytest.fixture(scope="session")
def _hosts(
    tmp_path_factory: pytest.TempPathFactory, worker_id: str, request: pytest.FixtureRequest
) -> Iterator[HostFactory]:
    base = tmp_path_factory.getbasetemp()
    shared = base if worker_id == "master" else base.parent
    factory = HostFactory(tmp_path_factory.mktemp("hosts"), shared, request.getfixturevalue)
    yield factory
    factory.close()


@pytest.fixture
def host(_hosts: HostFactory) -> Iterator[HostFactory]:
    """`host("wagtail", "wagtail", "start", "mysite", ".")`: a project of others; see `HostFactory.__call__`."""
    yield _hosts
    _hosts.end()
