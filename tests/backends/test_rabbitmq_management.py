"""A management API that is something else, or somebody who answers in its place: one sentence, soon, and no harm."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest

from messaging.backends import http
from messaging.backends.rabbitmq.management import Management
from messaging.conf import AliasSettings
from messaging.conf.urls import parse_url
from messaging.exceptions import BrokerUnavailable

Answer = Callable[[socket.socket], Any]


@contextmanager
def served(answer: Answer) -> Iterator[tuple[int, list[bytes]]]:
    """A server that answers each connection in some way. Yields its port, and the requests that it got."""
    requests: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection, suppress(OSError):
                    requests.append(connection.recv(65536))
                    answer(connection)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield listener.getsockname()[1], requests
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def management(port: int, timeout: float = 60.0) -> Management:
    url = f"http://who:hush@127.0.0.1:{port}"
    return Management(AliasSettings("default", **parse_url("amqp://"), management_url=url), timeout)


def http_answer(body: bytes, status: str = "200 OK", headers: str = "") -> Answer:
    head = f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n{headers}\r\n".encode()
    return lambda connection: connection.sendall(head + body)


@pytest.mark.mode(60)
def test_credentials_do_not_follow_a_redirect() -> None:
    with served(http_answer(b"{}")) as (elsewhere, requests):
        to = f"Location: http://127.0.0.1:{elsewhere}/\r\n"
        for status in ("301 Moved", "302 Found", "307 Temporary", "308 Permanent"):
            answer = http_answer(b"", status, to)
            with served(answer) as (port, _), pytest.raises(BrokerUnavailable, match=f"answers {status[:3]}"):
                management(port).queue("billing")
        assert requests == []


def test_an_answer_is_read_to_its_limit_and_no_further(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "MOST", 1024 * 1024)
    sent = 0

    def flood(connection: socket.socket) -> None:
        nonlocal sent
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n[")
        while True:
            sent += connection.send(b" " * 65536)

    with served(flood) as (port, _), pytest.raises(BrokerUnavailable, match="more than 1 MiB"):
        management(port).queue("billing")
    assert sent < 64 * 1024 * 1024


def _slowly(connection: socket.socket, text: bytes) -> None:
    connection.sendall(text)
    for _ in range(2400):  # two minutes
        connection.sendall(b" ")
        time.sleep(0.05)  # how slow the server is


@pytest.mark.parametrize("begin", [b"", b"HTTP/1.1 200 OK\r\nX: ", b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n["])
def test_one_deadline_holds_for_all_of_an_answer(begin: bytes) -> None:
    with served(lambda connection: _slowly(connection, begin)) as (port, _):
        began = time.monotonic()
        with pytest.raises(BrokerUnavailable, match=r"within 0\.5 seconds"):
            management(port, timeout=0.5).queue("billing")
        assert time.monotonic() - began < 60


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 200_000,
        b'{"a":' * 200_000,
        b"[]",
        b"7",
        b"null",
        b"<html>",
        b"\xff",
        b'{"messages_ready": "7"}',
        b'{"messages_ready": 7.5}',
        b'{"messages_ready": true}',
        b'{"consumers": {}}',
        b'{"durable": "yes"}',
        b'{"arguments": [1]}',
        b'{"arguments": "none"}',
        b'{"policy": 5}',
        b'{"name": null, "type": []}',
    ],
)
def test_what_the_api_does_not_answer_is_said_in_a_sentence(body: bytes) -> None:
    with served(http_answer(body)) as (port, _):
        with pytest.raises(BrokerUnavailable, match="does not answer as RabbitMQ's management API does") as caught:
            management(port).queue("billing")
        assert "hush" not in str(caught.value)
        if body != b"[]":
            with pytest.raises(BrokerUnavailable):
                management(port).bindings_of("billing")
        with pytest.raises(BrokerUnavailable):
            management(port).policy("limits")


@pytest.mark.parametrize("body", [b"[1]", b"{}", b'[{"source": "e"}]', b'[{"source": 1, "routing_key": "k"}]'])
def test_bindings_are_tables_with_a_routing_key(body: bytes) -> None:
    with served(http_answer(body)) as (port, _), pytest.raises(BrokerUnavailable, match="does not answer as"):
        management(port).bindings_from("messaging")


def test_an_empty_table_may_be_written_as_an_empty_list() -> None:
    with served(http_answer(b'{"arguments": [], "policy": null, "messages_ready": 3}')) as (port, requests):
        assert management(port).queue("a/b") == {"arguments": {}, "policy": None, "messages_ready": 3}
        [reading] = management(port).depths(["a/b"], 60.0)
    assert (reading.ready, reading.unacked) == (3, None)
    assert requests[0].startswith(b"GET /api/queues/%2F/a%2Fb HTTP/1.1\r\n")
    assert b"Authorization: Basic d2hvOmh1c2g=" in requests[0]


def test_a_server_that_is_not_there_is_said_in_a_sentence() -> None:
    with served(http_answer(b"")) as (port, _):
        pass
    with pytest.raises(BrokerUnavailable, match="does not answer: Connection refused"):
        management(port).queue("billing")
