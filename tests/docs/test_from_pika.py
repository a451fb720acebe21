"""docs/how-to/from-pika.md beside what test_walks.py does of it: what may be said of a queue that exists."""

from __future__ import annotations

import re
from ast import literal_eval

import pytest
from pytest_django import Settings

from messaging import topology
from messaging.backends import get_backend
from messaging.handlers import Registry
from tests.acceptance.clients import declare
from tests.docs.blocks import DOCS, prose

PAGE = DOCS / "how-to" / "from-pika.md"


@pytest.mark.broker
def test_a_queue_that_is_meant_to_be_as_it_is_differs_in_nothing(vhost_url: str, settings: Settings) -> None:
    [said] = re.findall(r'`"QUEUES": (\{.+\})`', prose(PAGE))
    settings.MESSAGING = {"default": {"URL": vhost_url, "QUEUES": {"billing": {}}}}
    declare(vhost_url, "billing", durable=True)
    backend = get_backend("default")
    assert backend.declare(topology.build("default", Registry()))
    settings.MESSAGING = {"default": {"URL": vhost_url, "QUEUES": literal_eval(said)}}
    backend = get_backend("default")
    assert backend.declare(topology.build("default", Registry())) == []
