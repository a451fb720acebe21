"""`make run`: database, admin user, broker, web server and consumer in one terminal; one Ctrl-C ends them all."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from urllib.parse import urlsplit

from tools.environment import ROOT, ensure_environment, read_env_file
from tools.janitor import Janitor
from tools.packages import install_missing
from tools.rabbitmq import RabbitMQ, speaks_amqp
from tools.services import ServiceFailed, ServiceMissing, free_ports, is_listening, stopping_on_signals

DEFAULT_URL = "amqp://guest:guest@127.0.0.1:5672/"
STOP_TIMEOUT = 40.0  # seconds; the consumer gives its handlers 30
LOOPBACK = {"127.0.0.1", "localhost", "::1"}


class Site:
    """The demo site's processes.

    Args:
        python: the virtual environment's Python.
        on_rabbitmq: whether the site uses RabbitMQ, started where none is reachable, or the embedded broker.
    """

    def __init__(self, python: Path, *, on_rabbitmq: bool) -> None:
        self.python = python
        self.on_rabbitmq = on_rabbitmq
        self.environment = read_env_file() | dict(os.environ) | {"PYTHONUNBUFFERED": "1"}
        self.port = int(self.environment.get("PORT", "8000"))
        self.folder = Path(self.environment.get("DATA_DIR", ROOT / "var"))
        self.janitor = Janitor()
        self.node: RabbitMQ | None = None
        self.processes: dict[str, subprocess.Popen[str]] = {}

    def run(self) -> int:
        """Start everything, wait for the end of any, and return the exit status."""
        self._check_port()
        self.folder.mkdir(parents=True, exist_ok=True)
        self._choose_broker()
        self._manage("migrate", "--verbosity", "0")
        password = self._ensure_admin()
        self._start("web", "runserver", "--noreload", f"127.0.0.1:{self.port}")
        self._start("consume", "consume")
        while self._all_run() and not is_listening(self.port):
            time.sleep(0.05)
        self._introduce(password)
        while self._all_run():
            time.sleep(0.2)
        ended = next(name for name, process in self.processes.items() if process.poll() is not None)
        print(f"The process “{ended}” has ended; its last lines above say why. Stopping the others.", flush=True)
        return self.processes[ended].returncode or 1

    def close(self) -> None:
        """Stop everything in order: the web server and the consumer first, then the broker."""
        for process in self.processes.values():
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
        deadline = time.monotonic() + STOP_TIMEOUT
        for process in self.processes.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, deadline - time.monotonic()))
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            self.janitor.forget(process.pid)
        if self.node is not None:
            self.node.close(orderly=True)

    def _check_port(self) -> None:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", self.port))
            except OSError:
                raise SystemExit(
                    f"Port {self.port} is in use: choose another one, such as `make run PORT={self.port + 1}`."
                ) from None

    def _choose_broker(self) -> None:
        if not self.on_rabbitmq:
            self.environment["MESSAGING_URL"] = "database://"
            return
        url = urlsplit(self.environment.get("MESSAGING_URL", "").split(",")[0])
        if url.scheme not in {"amqp", "amqps"}:
            url = urlsplit(DEFAULT_URL)
            self.environment["MESSAGING_URL"] = DEFAULT_URL
        host, port = url.hostname or "localhost", url.port or (5671 if url.scheme == "amqps" else 5672)
        if is_listening(port, host) and (url.scheme == "amqps" or speaks_amqp(host, port)):
            return
        if host not in LOOPBACK:
            raise SystemExit(
                f"No broker answers at {host}:{port}, which MESSAGING_URL names: start it, "
                "or unset MESSAGING_URL to have a private one started here."
            )
        self._start_node(port)

    def _start_node(self, port: int) -> None:
        if sentences := install_missing("rabbitmq-server"):
            raise SystemExit(
                f"No broker answers at 127.0.0.1:{port}. {sentences[0]} "
                "`docker compose up -d rabbitmq` gives you one too, or name yours: MESSAGING_URL=amqp://user:password@host/"
            )
        print("Starting a private RabbitMQ node ...", flush=True)
        self.node = RabbitMQ(
            self.folder.resolve() / "rabbitmq",
            self.janitor,
            port=_free_or_other(port),
            management_port=_free_or_other(int(self.environment.get("MANAGEMENT_PORT", "15672"))),
        )
        self.node.start()
        self.environment["MESSAGING_URL"] = self.node.url
        self.environment["MESSAGING_MANAGEMENT_URL"] = self.node.management_url

    def _ensure_admin(self) -> str:
        """Create the user `admin` at the first start; the password, or "" where someone has changed it since."""
        kept = self.folder / "admin-password"
        given = self.environment.get("ADMIN_PASSWORD", "")
        if not given and not kept.exists():
            kept.touch(mode=0o600)
            kept.write_text(secrets.token_urlsafe(9))
        password = given or kept.read_text().strip()
        answer = self._manage("ensure_admin", ADMIN_PASSWORD=password)
        return "" if "unchanged" in answer else password

    def _manage(self, *arguments: str, **environment: str) -> str:
        command = [str(self.python), "manage.py", *arguments]
        done = subprocess.run(
            command, cwd=ROOT, env=self.environment | environment, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise SystemExit(f"manage.py {arguments[0]} failed:\n{done.stdout}{done.stderr}".rstrip())
        return done.stdout

    def _start(self, name: str, *arguments: str) -> None:
        process = subprocess.Popen(
            [str(self.python), "manage.py", *arguments],
            cwd=ROOT,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,  # Ctrl-C is for this process alone, which stops the others in order
        )
        self.janitor.watch(process.pid)
        self.processes[name] = process
        threading.Thread(target=_copy_output, args=(name, process), daemon=True).start()

    def _all_run(self) -> bool:
        return all(process.poll() is None for process in self.processes.values())

    def _introduce(self, password: str) -> None:
        base = f"http://127.0.0.1:{self.port}"
        secret = password or "its own password, changed since it was created"
        lines = [f"Site      {base}/", f"Admin     {base}/admin/   (user admin, {_said(secret, password)})"]
        if self.node is not None:
            lines.append(f"RabbitMQ  http://127.0.0.1:{self.node.management_port}/   (guest, guest; a private node)")
        lines.append("Ctrl-C stops everything.")
        print("\n" + "\n".join(lines) + "\n", flush=True)


def main(arguments: list[str]) -> int:
    """Run the site until Ctrl-C; returns the exit status."""
    python = ensure_environment()
    site = Site(python, on_rabbitmq="--rabbitmq" in arguments)
    try:
        with stopping_on_signals():
            return _run(site)
    finally:
        site.janitor.close()


def _run(site: Site) -> int:
    try:
        return site.run()
    except KeyboardInterrupt:
        print("\nStopping ... (once more to stop at once)", flush=True)
        return 0
    except (ServiceFailed, ServiceMissing) as error:
        print(error, file=sys.stderr)
        return 1
    finally:
        with contextlib.suppress(KeyboardInterrupt):
            site.close()


def _said(secret: str, password: str) -> str:
    return f"password {secret}" if password else secret


def _free_or_other(port: int) -> int:
    return free_ports(1)[0] if is_listening(port) else port


def _copy_output(name: str, process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        sys.stdout.write(f"{name:>7} | {line}")
        sys.stdout.flush()


if __name__ == "__main__":
    try:
        raise SystemExit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        raise SystemExit(130) from None
