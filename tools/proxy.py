"""A TCP proxy that fails on purpose: in front of a broker or a database, to cut, reset, silence or slow connections."""

from __future__ import annotations

import contextlib
import selectors
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

_CHUNK = 65536


@dataclass
class _Pipe:
    """One direction of one connection."""

    source: socket.socket
    target: socket.socket
    downstream: bool  # from the server to the client
    queue: deque[tuple[float, bytes]] = field(default_factory=deque)
    seen: bytes = b""  # the last that passed, as what is looked for may come in two pieces
    sent: bytes = b""  # upstream, of the open transaction
    lost: threading.Event | None = None  # downstream, where the answer to a COMMIT is kept; set once it has come


class Proxy:
    """Forwards `127.0.0.1:port` to `host:target_port`; a context manager. Its switches act at once, from any thread.

    Attributes:
        port: where clients connect.
        delay: seconds by which each piece of data is late, in both directions.
        silent_downstream, silent_upstream: swallow what the server, or the client, sends; connections stay open.
        refuses: hang up on new connections at once.
        poison: bytes from a client over which its connection is reset.
        accepted: how many connections were made so far.
    """

    def __init__(self, host: str, target_port: int) -> None:
        self._target = (host, target_port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.delay = 0.0
        self.silent_downstream = False
        self.silent_upstream = False
        self.refuses = False
        self.poison = b""
        self.accepted = 0
        self._losses: list[tuple[tuple[bytes, ...], threading.Event]] = []
        self._pipes: list[_Pipe] = []
        self._lock = threading.Lock()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="proxy", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._closing = True
        self._thread.join(5)
        self.cut()
        self._listener.close()

    def aim(self, port: int) -> None:
        """Forward new connections to another port of the host."""
        self._target = (self._target[0], port)

    def blackhole(self) -> None:
        """Swallow everything in both directions without closing anything, as a dead network does."""
        self.silent_downstream = self.silent_upstream = True

    def heal(self) -> None:
        """Forward again, at full speed. What was swallowed is gone, so cut connections that lost something."""
        self.silent_downstream = self.silent_upstream = self.refuses = False
        self.poison = b""
        self.delay = 0.0

    def lose_commit(self, *marks: bytes) -> threading.Event:
        """Keep the answer to one COMMIT of PostgreSQL's from its client, and close that connection.

        It is the first one of a transaction in which all of `marks` were sent. What is returned is set once the server
        has answered: the transaction is durable then, and its client cannot know.
        """
        lost = threading.Event()
        self._losses.append((marks, lost))
        return lost

    def cut(self) -> None:
        """Close every connection in the ordinary way (FIN)."""
        self._end(reset=False)

    def reset(self) -> None:
        """Reset every connection (RST)."""
        self._end(reset=True)

    def _end(self, *, reset: bool) -> None:
        with self._lock:
            pipes, self._pipes = self._pipes, []
        for sock in {pipe.source for pipe in pipes}:
            if reset:
                with contextlib.suppress(OSError):
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            else:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
            sock.close()

    def _run(self) -> None:
        while not self._closing:
            with self._lock, selectors.DefaultSelector() as selector:
                selector.register(self._listener, selectors.EVENT_READ, None)
                for pipe in self._pipes:
                    selector.register(pipe.source, selectors.EVENT_READ, pipe)
                ready = selector.select(0.002)
            for key, _ in ready:
                if key.data is None:
                    self._accept()
                else:
                    self._read(key.data)
            self._forward()

    def _accept(self) -> None:
        client, _ = self._listener.accept()
        self.accepted += 1
        try:
            if self.refuses:
                raise ConnectionRefusedError
            server = socket.create_connection(self._target, timeout=60)
        except OSError:
            client.close()
            return
        for sock in (client, server):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.settimeout(60)
        with self._lock:
            self._pipes += [_Pipe(client, server, downstream=False), _Pipe(server, client, downstream=True)]

    def _read(self, pipe: _Pipe) -> None:
        try:
            data = pipe.source.recv(_CHUNK)
        except OSError:
            data = b""
        if not data:
            self._drop(pipe)
        elif self._is_poisoned(pipe, data):
            for sock in (pipe.source, pipe.target):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self._drop(pipe)
        elif pipe.lost is not None:
            pipe.seen += data
            if b"COMMIT\0" in pipe.seen:  # which the server calls by its name only if that is what it did
                self._drop(pipe)
                pipe.lost.set()
        elif not (self.silent_downstream if pipe.downstream else self.silent_upstream):
            if self._losses and not pipe.downstream:
                self._look_for_commit(pipe, data)
            pipe.queue.append((time.monotonic() + self.delay, data))

    def _look_for_commit(self, pipe: _Pipe, data: bytes) -> None:
        pipe.sent = (pipe.sent + data).rpartition(b"BEGIN")[2]
        if b"COMMIT" not in pipe.sent:
            return
        sent, pipe.sent = pipe.sent, b""
        loss = next((loss for loss in self._losses if all(mark in sent for mark in loss[0])), None)
        if loss is not None:
            self._losses.remove(loss)
            answers = next(other for other in self._pipes if other.source is pipe.target)
            answers.seen, answers.lost = b"", loss[1]

    def _is_poisoned(self, pipe: _Pipe, data: bytes) -> bool:
        if not self.poison or pipe.downstream:
            return False
        seen = pipe.seen + data
        pipe.seen = seen[1 - len(self.poison) :]
        return self.poison in seen

    def _forward(self) -> None:
        now = time.monotonic()
        for pipe in list(self._pipes):
            while pipe.queue and pipe.queue[0][0] <= now:
                try:
                    pipe.target.sendall(pipe.queue.popleft()[1])
                except OSError:
                    self._drop(pipe)
                    break

    def _drop(self, pipe: _Pipe) -> None:
        """Close both ends of a connection that one end has left."""
        with self._lock:
            self._pipes = [other for other in self._pipes if other.source not in (pipe.source, pipe.target)]
        for sock in (pipe.source, pipe.target):
            sock.close()


@contextlib.contextmanager
def before(url: str, port: int) -> Iterator[tuple[Proxy, str]]:
    """A proxy before a server, and the URL of that server that leads through it.

    Args:
        url: of the server, with its credentials.
        port: the server's, where the URL names none.
    """
    parts = urlsplit(url)
    credentials, at, _ = parts.netloc.rpartition("@")
    with Proxy(parts.hostname or "127.0.0.1", parts.port or port) as proxy:
        yield proxy, parts._replace(netloc=f"{credentials}{at}127.0.0.1:{proxy.port}").geturl()
