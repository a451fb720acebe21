"""The management API over TLS: with the alias's own certificate authority, and never without one."""

from __future__ import annotations

import ssl
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from messaging.backends.rabbitmq.management import Management
from messaging.conf import AliasSettings, parse_url
from messaging.exceptions import BrokerUnavailable


class Answer(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = b'{"name": "billing"}'
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None: ...


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    path = tmp_path / "both.pem"
    command = (
        "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -addext subjectAltName=DNS:localhost"
    )
    files = ["-keyout", str(tmp_path / "key.pem"), "-out", str(tmp_path / "certificate.pem")]
    subprocess.run([*command.split(), *files], check=True, capture_output=True, timeout=60)
    path.write_text("".join((tmp_path / name).read_text() for name in ("key.pem", "certificate.pem")))
    return path


@pytest.fixture
def port(certificate: Path) -> Iterator[int]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    with HTTPServer(("127.0.0.1", 0), Answer) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        server.handle_error = lambda *_: None  # type: ignore[method-assign]
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


def test_it_is_verified_by_the_authority_of_the_alias(port: int, certificate: Path) -> None:
    def management(**tls: object) -> Management:
        url = f"https://localhost:{port}"
        return Management(AliasSettings("default", **parse_url("amqp://"), management_url=url, tls=tls))

    assert management(CA_FILE=certificate).queue("billing") == {"name": "billing"}
    assert management(VERIFY=False).queue("billing") == {"name": "billing"}
    with pytest.raises(BrokerUnavailable, match="certificate"):
        management().queue("billing")
