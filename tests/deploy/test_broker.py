"""The broker as docs/deploy/ has it: each process works with its own account and certificate, and nobody without."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from messaging.exceptions import BrokerUnavailable
from tests.backends.rabbitmq_settings import rabbitmq_backend
from tests.deploy.brokers import Configured
from tests.deploy.files import DEPLOY
from tests.docs.blocks import find
from tests.services import missing
from tests.site import Site, SiteFactory
from tests.waiting import wait_until
from tools import rabbitmq
from tools.janitor import Janitor
from tools.services import ServiceMissing

pytestmark = [pytest.mark.broker, pytest.mark.slow]

HANDLERS = """
from messaging import handler

@handler("billing", "orders.placed", max_attempts=3, backoff=0.1)
def bill(message):
    if message.attempt == 1:
        raise ValueError("once more")
"""


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Configured]:
    try:
        rabbitmq.find_scripts()
    except ServiceMissing as error:
        missing(error)
    folder = tmp_path_factory.mktemp("deployed")
    secrets, certificates = folder / "secrets", folder / "certificates"
    certificates.mkdir()
    subprocess.run([sys.executable, str(DEPLOY / "make_secrets.py"), str(secrets)], check=True, timeout=60)
    (block,) = find("certificates")
    made = subprocess.run(
        ["bash", "-euc", block.text], cwd=certificates, capture_output=True, text=True, timeout=240, check=False
    )
    assert made.returncode == 0, made.stderr
    janitor = Janitor()
    node = Configured(folder / "node", janitor, secrets, certificates)
    try:
        node.start()
        yield node
    finally:
        node.close()
        janitor.close()


def options(broker: Configured, account: str, **more: Any) -> dict[str, Any]:
    """The settings of a process that has an account, its password's file and its certificate."""
    folder = broker.folder.parent
    tls = {
        "CA_FILE": str(folder / "certificates" / "ca.pem"),
        "CERT_FILE": str(folder / "certificates" / f"{account}.both.pem"),
        "SERVER_NAME": "rabbitmq",
    }
    return {"USER": account, "PASSWORD": {"file": str(folder / "secrets" / f"{account}-password")}, "TLS": tls} | more


def as_(broker: Configured, account: str, **more: Any) -> dict[str, str]:
    made = json.dumps(options(broker, account, **more))
    return {"MESSAGING_OPTIONS": made, "DJANGO_SETTINGS_MODULE": "tools.site_settings"}  # no queue but the page's


@pytest.fixture
def shop(broker: Configured, site: SiteFactory) -> Site:
    url = f"amqps://127.0.0.1:{broker.tls_port}/shop"
    return site("sqlite", broker=url, handlers=HANDLERS, env=as_(broker, "monitor"))


def test_each_process_does_its_work_with_its_own_account_and_certificate(broker: Configured, shop: Site) -> None:
    shop.manage("topology", env=as_(broker, "deploy"))
    shop.run("from messaging import publish\npublish('orders.placed', {'order': 17})")
    shop.start("relay", env=as_(broker, "relay"))
    shop.start("consume", "--no-relay", env=as_(broker, "consumer"))
    wait_until(lambda: shop.states() == {"processed": 1}, what="the order, at its second attempt")
    wait_until(lambda: shop.states("published") == {"published": 2}, what="the relay to have marked both attempts")
    password = (broker.folder.parent / "secrets" / "monitor-password").read_text()
    management = f"http://monitor:{password}@127.0.0.1:{broker.management_port}"
    shop.manage("topology", "--check", env=as_(broker, "monitor", MANAGEMENT_URL=management))
    listed = broker.ctl("list_policies", "-p", "shop", "--formatter", "json")
    assert [policy["name"] for policy in json.loads(listed)] == ["bounded"]
    assert "guest" not in {user["user"] for user in json.loads(broker.ctl("list_users", "--formatter", "json"))}


@pytest.mark.parametrize(
    ("account", "change", "words"),
    [
        ("relay", {"TLS": {}}, "certificate verify failed"),
        ("relay", {"TLS": {"VERIFY": False}}, "our certificate|certificate required"),
        ("relay", {"PASSWORD": "wrong"}, "ACCESS_REFUSED|refused"),
        ("guest", {"PASSWORD": "guest"}, "ACCESS_REFUSED|refused"),
    ],
)
def test_nobody_gets_in_without_certificate_and_password(
    broker: Configured, account: str, change: dict[str, Any], words: str
) -> None:
    own = options(broker, "relay") | change
    password = own["PASSWORD"] if isinstance(own["PASSWORD"], str) else Path(own["PASSWORD"]["file"]).read_text()
    url = f"amqps://{account}:{password}@127.0.0.1:{broker.tls_port}/shop"
    with pytest.raises(BrokerUnavailable, match=words):
        rabbitmq_backend(url, tls=own["TLS"]).sender().open()
