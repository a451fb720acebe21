"""Somebody whom alerts are told to: a web server that notes what is posted, and answers as it is told to."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self


class Recipient:
    """A context manager.

    Attributes:
        told: what was posted, as JSON, in order.
        status: what it answers.
        headers: further headers of its answers.
        body: what its answers hold.
        go_on: cleared, it answers nobody until it is set again.
    """

    def __init__(self) -> None:
        self.told: list[Any] = []
        self.status, self.headers, self.body = 200, dict[str, str](), b"ok"
        self.go_on = threading.Event()
        self.go_on.set()
        recipient = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                recipient.told.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                recipient.go_on.wait(120)
                self.send_response(recipient.status)
                for name, value in recipient.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(recipient.body)))
                self.end_headers()
                self.wfile.write(recipient.body)

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  its interface says so
                """Nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.handle_error = lambda *_: None  # type: ignore[method-assign]  who hangs up early is no matter
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}/hook"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.go_on.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @property
    def events(self) -> list[tuple[str, str]]:
        """What each post was about: the event, and the kind of the alert."""
        return [(post["event"], post["kind"]) for post in self.told]
