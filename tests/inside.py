"""Code that prepares a test, run inside of a site by forks of a process that has the project loaded.

Starting Python for each message that a test publishes would take a good part of all its time. What a test is about is
a process of its own from the start: see `tests.site`.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from importlib import import_module, reload
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ONE_SITES = ("EXTRA_APPS", "MESSAGING_TEST_SITE")  # what is started with the latter ends with its site
# Settings that the environment rules.
RULED = ("MESSAGING", "MESSAGING_CONSOLE", "EMAIL_BACKEND", "EMAIL_FILE_PATH", "MAILERS")
LONGEST = 1 << 17  # bytes of a request: code and environment


class Loaded:
    """The processes that are forked: one for each kind of database, started at its first use."""

    def __init__(self) -> None:
        self._servers: dict[str, tuple[subprocess.Popen[bytes], socket.socket]] = {}

    def run(self, code: str, env: Mapping[str, str], deadline: float = 240.0) -> str:
        """Run code as the site with this environment would, but without its handlers; returns what it prints.

        Raises AssertionError with its output where it fails, or takes longer than `deadline` seconds.
        """
        connection = self._connected(env)
        connection.settimeout(deadline)
        with tempfile.TemporaryFile() as output:
            request = json.dumps({"code": code, "env": dict(env)}).encode()
            socket.send_fds(connection, [request], [output.fileno()])
            pid = int(connection.recv(64))
            try:
                status = os.waitstatus_to_exitcode(int(connection.recv(64)))
            except TimeoutError:
                os.kill(pid, signal.SIGKILL)
                connection.recv(64)
                status = -signal.SIGKILL
            output.seek(0)
            said = output.read().decode()
        assert status == 0, f"This ended with {status}:\n{code}\n{said}"
        return said

    def close(self) -> None:
        """End them."""
        for server, connection in self._servers.values():
            connection.close()
            server.wait()
        self._servers.clear()

    def _connected(self, env: Mapping[str, str]) -> socket.socket:
        kind = env["DATABASE_URL"].partition(":")[0]  # statements that were prepared for another would be kept
        if kind not in self._servers:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            plain = {name: value for name, value in env.items() if name not in ONE_SITES}
            command = [sys.executable, "-m", "tests.inside", str(theirs.fileno())]
            with theirs:
                server = subprocess.Popen(command, env=plain, cwd=ROOT, pass_fds=[theirs.fileno()])
            self._servers[kind] = server, ours
        return self._servers[kind][1]


def serve(connection: socket.socket) -> None:
    """Fork for each request; answer with the number of that process, then with its status."""
    import django
    from django.db import connections

    django.setup()
    for name in (
        "project.settings",
        "messaging.operations",
        "messaging.publishing.publisher",
        "messaging.publishing.rows",
    ):
        import_module(name)
    assert connections["default"].connection is None  # its driver is loaded
    gc.collect()
    gc.freeze()  # forks share what is loaded
    while True:
        request, files, _, _ = socket.recv_fds(connection, LONGEST, 1)
        if not request:
            return
        if not (pid := os.fork()):
            connection.close()
            _run(files[0], **json.loads(request))
            return
        os.close(files[0])
        connection.send(str(pid).encode())
        connection.send(str(os.waitpid(pid, 0)[1]).encode())


def _run(output: int, code: str, env: dict[str, str]) -> None:
    from django.conf import settings
    from django.db import connections

    for number in (1, 2):
        os.dup2(output, number)
    os.close(output)
    os.environ.clear()
    os.environ.update(env)
    for name in ("project.settings", "tools.site_settings", "tests.site_settings"):
        module = reload(import_module(name))
    for name in RULED:
        if hasattr(module, name):
            setattr(settings, name, getattr(module, name))
    connections.settings = connections.configure_settings(module.DATABASES)  # type: ignore[misc]
    with suppress(AttributeError):
        del connections["default"]  # that of the site which was first
    exec(code, {})
    connections.close_all()
    sys.stdout.flush()
    os._exit(0)  # taking apart what was loaded costs as much as all of the above


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the tests end it
    with socket.socket(fileno=int(sys.argv[1])) as opened:
        serve(opened)
