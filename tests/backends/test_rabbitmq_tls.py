"""`TLS`: the broker and its management API are verified by the alias's authority, and never without one."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any
from urllib.parse import urlsplit

import pytest

from messaging.backends.base import QueueSpec, Topology
from messaging.backends.rabbitmq.management import Management
from messaging.conf import AliasSettings
from messaging.conf.urls import parse_url
from messaging.exceptions import BrokerUnavailable
from tests.backends.rabbitmq_settings import rabbitmq_backend
from tests.backends.tools import confirmed, message, send, unique
from tests.certificates import Authority
from tools.rabbitmq import RabbitMQ as Node
from tools.services import free_ports

LISTEN = """
    rabbit_networking:ensure_ssl(),
    Options = [{cacertfile, "%(ca)s"}, {certfile, "%(certificate)s"}, {keyfile, "%(key)s"},
               {verify, verify_peer}, {fail_if_no_peer_cert, true}],
    rabbit_networking:start_ssl_listener({"127.0.0.1", %(port)d, auto}, Options, 2).
"""


class Answer(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = b'{"name": "billing"}'
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None: ...


@pytest.fixture
def port(authority: Authority) -> Iterator[int]:
    """Where a management API answers over TLS."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*authority.sign("localhost"))
    with HTTPServer(("127.0.0.1", 0), Answer) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        server.handle_error = lambda *_: None  # type: ignore[method-assign]
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


def test_a_management_api_is_verified_by_the_authority_of_the_alias(port: int, authority: Authority) -> None:
    def management(**tls: object) -> Management:
        url = f"https://localhost:{port}"
        return Management(AliasSettings("default", **parse_url("amqp://"), management_url=url, tls=tls))

    assert management(CA_FILE=authority.ca_file).queue("billing") == {"name": "billing"}
    assert management(VERIFY=False).queue("billing") == {"name": "billing"}
    with pytest.raises(BrokerUnavailable, match="certificate"):
        management().queue("billing")


@pytest.mark.broker
def test_a_broker_is_verified_and_shown_our_certificate(own_rabbitmq: Node, authority: Authority) -> None:
    certificate, key = authority.sign("rabbit.example")
    listener = {"ca": authority.ca_file, "certificate": certificate, "key": key, "port": free_ports(1)[0]}
    own_rabbitmq.ctl("eval", LISTEN % listener)
    credentials, _, _ = urlsplit(own_rabbitmq.url).netloc.rpartition("@")
    url = f"amqps://{credentials}@127.0.0.1:{listener['port']}/"
    our_certificate, our_key = authority.sign("shop")
    tls: dict[str, Any] = {"CA_FILE": authority.ca_file, "CERT_FILE": our_certificate, "KEY_FILE": our_key}

    backend = rabbitmq_backend(url, tls={**tls, "SERVER_NAME": "rabbit.example"})
    topology = Topology(queues=(QueueSpec(unique("q"), type="classic"),))
    assert backend.declare(topology) == []
    for trusting in (backend, rabbitmq_backend(url, tls={**tls, "VERIFY": False})):
        sender = trusting.sender()
        sender.open()
        assert confirmed(send(sender, message(topology.queues[0].name)))
        sender.close()
    backend.purge_and_delete(topology)

    name = {"SERVER_NAME": "rabbit.example"}
    refused = [
        (tls, "not valid for '127.0.0.1'"),
        ({**name, "CERT_FILE": our_certificate, "KEY_FILE": our_key}, "certificate verify failed"),
        ({**name, "CA_FILE": authority.ca_file}, "our certificate|certificate required"),
    ]
    for options, words in refused:
        with pytest.raises(BrokerUnavailable, match=words):
            rabbitmq_backend(url, tls=options).sender().open()
