"""Certificates that are about to end are seen: the broker's by asking it, the client's own in its file."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from messaging.backends import get_backend
from messaging.backends.rabbitmq import certificates
from messaging.monitoring import evaluation
from tests.certificates import Authority

SOON = timedelta(days=1), timedelta(days=2, minutes=1)  # for which ours are valid


@pytest.fixture
def port(authority: Authority) -> Iterator[int]:
    """A server that shows its certificate, and asks for the client's."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*authority.sign("localhost"))
    context.load_verify_locations(authority.ca_file)
    context.verify_mode = ssl.CERT_REQUIRED
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with suppress(OSError):
                while True:
                    wire, _ = listener.accept()
                    with suppress(OSError), context.wrap_socket(wire, server_side=True) as tls:
                        tls.recv(1)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(120)


def test_both_certificates_are_seen_before_they_end(authority: Authority, port: int, settings: Any) -> None:
    certificate, key = authority.sign("client")
    tls = {"CA_FILE": str(authority.ca_file), "CERT_FILE": str(certificate), "KEY_FILE": str(key)}
    settings.MESSAGING = {"default": {"URL": f"amqps://localhost:{port}/", "TLS": tls}}
    evaluation._looked_at.clear()
    ends = get_backend("default").certificates()
    for moment in (ends["broker"], ends["client"]):
        assert moment is not None
        assert SOON[0] < moment - datetime.now(UTC) < SOON[1]
    found, unseen = evaluation.certificates()
    assert unseen == set()
    assert [(one.name, one.level, one.subject) for one in found] == [
        ("certificate", "warning", "default: broker"),
        ("certificate", "warning", "default: client"),
    ]
    settings.MESSAGING_CONSOLE = {"ALERTS": {"certificate_days": 1}}
    assert evaluation.certificates() == ([], set())


def test_what_cannot_be_seen_is_not_over(authority: Authority, settings: Any) -> None:
    certificate, key = authority.sign("client")
    settings.MESSAGING = {
        "default": {"URL": "amqps://localhost:1/", "TLS": {"CERT_FILE": str(certificate), "KEY_FILE": str(key)}}
    }
    evaluation._looked_at.clear()
    found, unseen = evaluation.certificates()
    assert ([one.subject for one in found], unseen) == (["default: client"], {"default: broker"})
    settings.MESSAGING = {"default": {"URL": "amqp://localhost:1/"}}
    assert get_backend("default").certificates() == {}


def test_the_end_is_that_which_openssl_reads(authority: Authority) -> None:
    decode: Any = ssl._ssl._test_decode_cert  # type: ignore[attr-defined]
    for path in (authority.ca_file, authority.sign("localhost")[0]):
        der = ssl.PEM_cert_to_DER_cert(path.read_text()[path.read_text().index("-----BEGIN CERT") :])
        said = ssl.cert_time_to_seconds(decode(str(path))["notAfter"])
        assert certificates.end_of(der).timestamp() == said
        for length in range(0, len(der), 7):
            with pytest.raises(ValueError, match=r"."):
                certificates.end_of(der[:length])


def test_a_file_without_a_certificate_tells_nothing(tmp_path: Path) -> None:
    path = tmp_path / "empty.pem"
    path.write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    assert certificates._of_file(path) is None
    assert certificates._of_file(tmp_path / "missing.pem") is None
