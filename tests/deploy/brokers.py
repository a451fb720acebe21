"""A RabbitMQ node that is configured by the files of docs/deploy/rabbitmq/, as far as one machine allows."""

from __future__ import annotations

from pathlib import Path

from tests.deploy.files import DEPLOY
from tools.janitor import Janitor
from tools.rabbitmq import RabbitMQ
from tools.services import free_ports

OTHERS = {"listeners.tcp"}  # the tests' tools talk to a node without TLS as well


def shipped(name: str) -> dict[str, str]:
    """The lines of a configuration file of docs/deploy/rabbitmq/."""
    lines = (DEPLOY / "rabbitmq" / name).read_text().splitlines()
    return dict(line.split(" = ", 1) for line in lines if line and not line.startswith("#"))


class Configured(RabbitMQ):
    """A node with the shipped configuration: accounts, policies, and TLS that asks for certificates.

    Args:
        folder: of its data.
        janitor: ends it should this process die.
        secrets: the folder with definitions.json.
        certificates: the folder with what openssl made.

    Attributes:
        tls_port: where it listens for TLS.
    """

    def __init__(self, folder: Path, janitor: Janitor, secrets: Path, certificates: Path) -> None:
        (self.tls_port,) = free_ports(1)
        lines = shipped("rabbitmq.conf") | shipped("tls.conf")
        assert lines.pop("listeners.ssl.default") == "5671"
        lines["listeners.ssl.1"] = f"127.0.0.1:{self.tls_port}"
        places = {"/etc/rabbitmq/tls": str(certificates), "/etc/rabbitmq/definitions": f"{secrets}/definitions"}
        for shown, real in places.items():
            lines = {key: value.replace(shown, real) for key, value in lines.items()}
        super().__init__(folder, janitor, config={key: value for key, value in lines.items() if key not in OTHERS})
