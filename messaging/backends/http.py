"""Asking an HTTP server that may be anything: one answer, from nowhere else, within a limit of time and one of size."""

from __future__ import annotations

import io
import socket
import ssl
import time
from collections.abc import Mapping
from http.client import HTTPConnection, HTTPException, InvalidURL
from typing import Any
from urllib.parse import urlsplit

MOST = 16 * 1024 * 1024  # bytes of an answer: the bindings of some 50,000 queues
PIECE = 64 * 1024  # bytes read at once


class NoAnswer(Exception):
    """There is none that can be used; says why."""


def get(url: str, headers: Mapping[str, str], seconds: float, tls: ssl.SSLContext | None = None) -> tuple[int, bytes]:
    """Status and body of a GET request; see `ask()`."""
    return ask("GET", url, headers, seconds, tls)


def ask(
    method: str,
    url: str,
    headers: Mapping[str, str],
    seconds: float,
    tls: ssl.SSLContext | None = None,
    body: bytes | None = None,
    most: int | None = None,
) -> tuple[int, bytes]:
    """Status and body of a request's answer. Redirects are not followed: headers, body and URL may hold credentials.

    Args:
        method: "GET" or "POST".
        url: with a scheme of http, or of https and `tls`; proxies of the environment are not used.
        headers: to send.
        seconds: for all of it, from the connection to the last byte; to resolve the host's name may take longer.
        tls: how to verify the server.
        body: to send.
        most: bytes that the answer may have; `MOST` unless given.

    Raises NoAnswer, which does not repeat the URL.
    """
    address, deadline = urlsplit(url), time.monotonic() + seconds
    path = f"{address.path}?{address.query}" if address.query else address.path
    host, port = address.hostname or "", address.port or (443 if tls else 80)
    try:
        connection: Any = HTTPConnection(host, port)
        with _connect(connection.host, connection.port, deadline, tls) as wire:
            connection.sock = _Timed(wire, deadline)
            connection.request(method, path, body, headers={**headers, "Connection": "close"})
            with connection.getresponse() as response:
                return response.status, _body(response, most or MOST)
    except TimeoutError:
        raise NoAnswer(f"no whole answer came within {seconds:g} seconds") from None
    except InvalidURL:  # whose text has the path
        raise NoAnswer("its URL has characters that no URL has") from None
    except (OSError, ValueError, HTTPException) as error:
        raise NoAnswer(getattr(error, "strerror", None) or str(error) or type(error).__name__) from None


def _body(response: io.BufferedIOBase, most: int) -> bytes:
    pieces, size = [], 0
    while piece := response.read(PIECE):
        pieces.append(piece)
        size += len(piece)
        if size > most:
            size_told = f"{most // 1024 // 1024} MiB" if most >= 1024 * 1024 else f"{most // 1024} KiB"
            raise NoAnswer(f"the answer has more than {size_told}")
    return b"".join(pieces)


def _connect(host: str, port: int, deadline: float, tls: ssl.SSLContext | None) -> socket.socket:
    """A connected socket, by the deadline."""
    problem: OSError = OSError(f"{host} has no address")
    for family, kind, protocol, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        connection = socket.socket(family, kind, protocol)
        try:
            connection.settimeout(_left(deadline))
            connection.connect(address)
            connection.settimeout(_left(deadline))
            return tls.wrap_socket(connection, server_hostname=host) if tls else connection
        except OSError as error:
            connection.close()
            problem = error
    raise problem


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


class _Timed:
    """What `http.client` needs of a socket. A timeout of the socket's own begins anew with each byte that arrives."""

    def __init__(self, connection: socket.socket, deadline: float) -> None:
        self._connection, self._deadline = connection, deadline

    def sendall(self, data: bytes) -> None:
        self._connection.settimeout(_left(self._deadline))
        self._connection.sendall(data)

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(_Incoming(self._connection, self._deadline))

    def close(self) -> None:
        """Nothing: the answer may still have to be read."""


class _Incoming(io.RawIOBase):
    """The bytes that arrive, until the deadline."""

    def __init__(self, connection: socket.socket, deadline: float) -> None:
        self._connection, self._deadline = connection, deadline

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._connection.settimeout(_left(self._deadline))
        return self._connection.recv_into(buffer)
