"""A private RabbitMQ node with the management plugin, on loopback ports and in a folder of its own."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from tools.janitor import Janitor
from tools.services import Daemon, ServiceFailed, ServiceMissing, free_ports, is_listening, wait_for

HOW_TO_GET = "RabbitMQ is not installed: `apt-get install rabbitmq-server` (Debian, Ubuntu) or `brew install rabbitmq`."
# Debian's /usr/sbin/rabbitmq-server switches to the account `rabbitmq`; these are the programs behind it.
SCRIPT_FOLDERS = ("/usr/lib/rabbitmq/bin", "/usr/local/opt/rabbitmq/sbin", "/opt/homebrew/opt/rabbitmq/sbin")


class RabbitMQ:
    """One node. `start()` after `stop()` or `kill()` finds the same data on the same ports.

    Args:
        folder: where data, log, configuration and cookie live; created if missing.
        janitor: ends the node should this process die.
        port, management_port: None chooses free ones.
        config: more lines of `rabbitmq.conf`.
        peer: another node, to make a cluster with at the first start.
    """

    def __init__(
        self,
        folder: Path,
        janitor: Janitor,
        *,
        port: int | None = None,
        management_port: int | None = None,
        config: Mapping[str, str] | None = None,
        peer: RabbitMQ | None = None,
    ) -> None:
        self.folder = folder
        self._janitor = janitor
        self._scripts = find_scripts()
        chosen = free_ports(4)
        self.port = port or chosen[0]
        self.management_port = management_port or chosen[1]
        self._distribution_port, self._epmd_port = chosen[2:]
        self._peer = peer
        if peer is not None:
            self._epmd_port = peer._epmd_port  # the peer starts it, and it tells both where the other one is
        self._config = dict(config or {}) | (_cluster_with(peer) if peer is not None else {})
        self._node: Daemon | None = None
        self._epmd: Daemon | None = None
        self.name = self._prepare()

    @property
    def url(self) -> str:
        """The AMQP URL of the virtual host "/"."""
        return self.url_of("/")

    def url_of(self, vhost: str) -> str:
        """The AMQP URL of a virtual host."""
        return f"amqp://guest:guest@127.0.0.1:{self.port}/{quote(vhost, safe='')}"

    @property
    def management_url(self) -> str:
        """The base of the management API, with credentials."""
        return f"http://guest:guest@127.0.0.1:{self.management_port}"

    @property
    def is_running(self) -> bool:
        """Whether its process is there; the broker inside may be stopped."""
        return self._node is not None and self._node.is_running

    @property
    def has_data(self) -> bool:
        """Whether it was started before."""
        return any((self.folder / "data").iterdir())

    @property
    def is_available(self) -> bool:
        """Whether the broker accepts connections."""
        return self.is_running and self._answers()

    def log_tail(self, lines: int) -> str:
        """The last lines of its log; "" if it was never started."""
        return self._node.log_tail(lines) if self._node is not None else ""

    def start(self) -> None:
        """Start the node and wait until it accepts connections. Raises ServiceFailed."""
        if self._peer is None and (self._epmd is None or not self._epmd.is_running):
            self._epmd = self._spawn([_epmd(), "-port", str(self._epmd_port), "-address", "127.0.0.1"], "epmd.log")
            wait_for(lambda: is_listening(self._epmd_port), self._epmd, "Erlang's port mapper")
        self._node = self._spawn([str(self._scripts / "rabbitmq-server")], "rabbitmq.log")
        wait_for(self._answers, self._node, "RabbitMQ")

    def stop(self) -> None:
        """Stop the node in an orderly way."""
        if self._node is not None:
            self._node.end()

    def kill(self) -> None:
        """Kill the node with SIGKILL, as a crash of its machine would."""
        if self._node is not None:
            self._node.end(signal.SIGKILL)

    def freeze(self) -> None:
        """Stop the node's clock: its connections stay open, and nobody answers on them."""
        self._signal(signal.SIGSTOP)

    def close(self, *, orderly: bool = False) -> None:
        """End the node and its port mapper; orderly for data that is to be kept."""
        self.stop() if orderly else self.kill()
        if self._epmd is not None:
            self._epmd.end(signal.SIGKILL)

    def stop_app(self) -> None:
        """Stop the broker and leave its Erlang machine running; its connections close."""
        self.ctl("stop_app")

    def start_app(self) -> None:
        """Start the broker again after `stop_app()`."""
        self.ctl("start_app")

    def ctl(self, *arguments: str, timeout: float = 120.0) -> str:
        """Run `rabbitmqctl` on this node and return its output. Raises ServiceFailed with what it said."""
        return self.tool("rabbitmqctl", *arguments, timeout=timeout)

    def tool(self, program: str, *arguments: str, timeout: float = 120.0) -> str:
        """Run `rabbitmq-queues` or another of its tools on this node; see `ctl()`."""
        command = [*self._tool(program), *arguments]
        done = subprocess.run(
            command,
            env=self.environment,
            stdin=subprocess.DEVNULL,  # some read what they are not told
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        if done.returncode:
            raise ServiceFailed(f"{program} {' '.join(arguments)}: {done.stdout}{done.stderr}")
        return done.stdout

    @property
    def ctl_command(self) -> list[str]:
        """What `ctl()` runs, without its arguments; it needs `environment`."""
        return self._tool("rabbitmqctl")

    def api(self, method: str, path: str, body: object = None) -> Any:
        """Call the management API, such as `api("GET", "/api/queues")`, and return the decoded answer or None."""
        return call_api(self.management_url, method, path, body)

    def add_vhost(self, name: str) -> str:
        """Create a virtual host and return its AMQP URL."""
        add_vhost(self.management_url, name, "guest")
        return self.url_of(name)

    def delete_vhost(self, name: str) -> None:
        """Delete a virtual host with all it holds."""
        delete_vhost(self.management_url, name)

    @property
    def environment(self) -> dict[str, str]:
        """The environment of the node and its tools: nothing of the caller's RABBITMQ_* or ERL_* variables."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("RABBITMQ_", "ERL_"))}
        folder = str(self.folder)
        return kept | {
            "HOME": folder,
            "LANG": "C.UTF-8",
            "LC_ALL": "C.UTF-8",
            "ERL_EPMD_PORT": str(self._epmd_port),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "ERL_CRASH_DUMP": f"{folder}/erl_crash.dump",
            "RABBITMQ_NODENAME": self.name,
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_DIST_PORT": str(self._distribution_port),
            "RABBITMQ_MNESIA_BASE": f"{folder}/data",
            "RABBITMQ_LOG_BASE": f"{folder}/log",
            "RABBITMQ_LOGS": "-",
            "RABBITMQ_SCHEMA_DIR": f"{folder}/schema",
            "RABBITMQ_GENERATED_CONFIG_DIR": f"{folder}/generated",
            "RABBITMQ_CONFIG_FILE": f"{folder}/rabbitmq.conf",
            "RABBITMQ_ADVANCED_CONFIG_FILE": f"{folder}/advanced.config",
            "RABBITMQ_CONF_ENV_FILE": f"{folder}/rabbitmq-env.conf",
            "RABBITMQ_ENABLED_PLUGINS_FILE": f"{folder}/enabled_plugins",
            "RABBITMQ_PID_FILE": f"{folder}/pid",
            # Distribution on loopback only; schedulers that sleep at once instead of spinning on an idle machine.
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1} +sbwt none",
            # Makes the start script exec Erlang, so that our child is the node itself and a signal reaches it.
            "RUNNING_UNDER_SYSTEMD": "true",
        }

    @property
    def cookie(self) -> str:
        """The secret that the nodes of a cluster share."""
        return (self.folder / ".erlang.cookie").read_text()

    def _prepare(self) -> str:
        """Write the node's files and return its name, which its data folder is bound to."""
        for name in ("data", "log", "schema", "generated"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        config = {
            "listeners.tcp.1": f"127.0.0.1:{self.port}",
            "management.tcp.ip": "127.0.0.1",
            "management.tcp.port": str(self.management_port),
            "collect_statistics_interval": "1000",
            "raft.wal_max_size_bytes": str(64 * 1024 * 1024),
            "handshake_timeout": "120000",  # milliseconds: a client may stand still for a while
            "ssl_handshake_timeout": "120000",
        } | self._config
        (self.folder / "rabbitmq.conf").write_text("".join(f"{key} = {value}\n" for key, value in config.items()))
        (self.folder / "advanced.config").write_text("[].\n")
        (self.folder / "rabbitmq-env.conf").write_text("")
        (self.folder / "enabled_plugins").write_text("[rabbitmq_management].\n")
        cookie = self.folder / ".erlang.cookie"
        if not cookie.exists():
            cookie.touch(mode=0o600)
            cookie.write_text(self._peer.cookie if self._peer else secrets.token_hex(16))
            cookie.chmod(0o400)
        name = self.folder / "node-name"
        if not name.exists():
            name.write_text(f"messaging-{secrets.token_hex(4)}@localhost")
        return name.read_text().strip()

    def _tool(self, program: str) -> list[str]:
        return [str(self._scripts / program), "--quiet", "-n", self.name]

    def _signal(self, number: int) -> None:
        if self._node is not None and self._node.is_running:
            os.kill(self._node.pid, number)

    def _spawn(self, command: list[str], log: str) -> Daemon:
        return Daemon(
            command, environment=self.environment, log=self.folder / log, janitor=self._janitor, cwd=self.folder
        )

    def _answers(self) -> bool:
        return speaks_amqp("127.0.0.1", self.port) and is_listening(self.management_port)


def find_scripts() -> Path:
    """The folder with `rabbitmq-server` and `rabbitmqctl`: `MESSAGING_TEST_SBIN` or where they are installed.

    Raises ServiceMissing.
    """
    for folder in map(Path, [*filter(None, [os.environ.get("MESSAGING_TEST_SBIN")]), *SCRIPT_FOLDERS]):
        if (folder / "rabbitmq-server").exists():
            return folder
    found = shutil.which("rabbitmq-server")
    if found is None:
        raise ServiceMissing(HOW_TO_GET)
    return Path(found).resolve().parent


def speaks_amqp(host: str, port: int, timeout: float = 3.0) -> bool:
    """Whether an AMQP 0-9-1 broker answers there."""
    with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=timeout) as connection:
        connection.settimeout(timeout)
        connection.sendall(b"AMQP\x00\x00\x09\x01")
        return connection.recv(1) == b"\x01"
    return False


def call_api(base: str, method: str, path: str, body: object = None) -> Any:
    """Call a management API whose base URL holds the credentials. Raises ServiceFailed, which does not repeat them."""
    scheme, _, rest = base.rstrip("/").partition("://")
    credentials, _, host = rest.rpartition("@")
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"{scheme}://{host}{path}", data=data, method=method)
    request.add_header("Authorization", "Basic " + b64encode(credentials.encode()).decode())
    request.add_header("Content-Type", "application/json")
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            text = answer.read()
    except urllib.error.HTTPError as error:
        with error:
            raise ServiceFailed(f"{method} {host}{path}: {error.code} {error.read().decode()[:300]}") from None
    except OSError as error:
        raise ServiceFailed(f"{method} {host}{path}: {error}") from None
    return json.loads(text) if text else None


def vhost_of(url: str) -> str:
    """The virtual host of an AMQP URL."""
    return unquote(url.partition("://")[2].partition("/")[2].partition("?")[0]) or "/"


def add_vhost(base: str, name: str, user: str) -> None:
    """Create a virtual host in which `user` may do everything."""
    path = quote(name, safe="")
    _put(base, f"/api/vhosts/{path}", {})
    everything = {"configure": ".*", "write": ".*", "read": ".*"}
    _put(base, f"/api/permissions/{path}/{quote(user, safe='')}", everything)


def delete_vhost(base: str, name: str) -> None:
    """Delete a virtual host with all it holds; its connections are closed."""
    call_api(base, "DELETE", f"/api/vhosts/{quote(name, safe='')}")


def _put(base: str, path: str, body: object) -> None:
    """Again where it failed: a node that stood still gives up what others there were waiting for."""
    for tries_left in (2, 1, 0):
        try:
            call_api(base, "PUT", path, body)
            return
        except ServiceFailed:
            if not tries_left:
                raise
            time.sleep(1)


def _cluster_with(peer: RabbitMQ) -> dict[str, str]:
    formation = "cluster_formation.peer_discovery_backend"
    return {formation: "classic_config", "cluster_formation.classic_config.nodes.1": peer.name}


def _epmd() -> str:
    found = shutil.which("epmd") or next(map(str, Path("/usr/lib/erlang").glob("erts-*/bin/epmd")), None)
    if found is None:
        raise ServiceMissing(
            "Erlang's `epmd` is not on PATH, though RabbitMQ needs it: install the package erlang-base."
        )
    return found
