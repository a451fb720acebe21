"""The demo site's broker: the embedded one, a RabbitMQ that answers already, or a private node."""

from __future__ import annotations

from collections.abc import MutableMapping
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

from tools.environment import port_of
from tools.janitor import Janitor
from tools.packages import install_missing
from tools.rabbitmq import RabbitMQ, speaks_amqp
from tools.services import free_ports, is_listening

EMBEDDED_URL = "database://"
DEFAULT_URL = "amqp://guest:guest@127.0.0.1:5672/"
LOOPBACK = {"127.0.0.1", "localhost", "::1"}


def use_embedded(environment: MutableMapping[str, str]) -> None:
    """Point MESSAGING_URL at the table in the site's own database."""
    if environment.get("MESSAGING_URL", "").startswith("amqp"):
        print("MESSAGING_URL names RabbitMQ, which `make run-rabbitmq` uses; this is the embedded broker.", flush=True)
    if not environment.get("MESSAGING_URL", "").startswith(EMBEDDED_URL):
        environment["MESSAGING_URL"] = EMBEDDED_URL


def use_rabbitmq(environment: MutableMapping[str, str], folder: Path, janitor: Janitor) -> RabbitMQ | None:
    """Point MESSAGING_URL at RabbitMQ.

    Args:
        environment: the site's, which may name a broker, and is changed.
        folder: where a private node keeps its data.
        janitor: ends that node should this process die.

    Returns:
        A private node that has yet to be started, or None where a broker answers.

    Raises:
        SystemExit: with a sentence where neither can be had.
    """
    url = _named(environment)
    host, port = url.hostname or "localhost", url.port or (5671 if url.scheme == "amqps" else 5672)
    if is_listening(port, host) and (url.scheme == "amqps" or speaks_amqp(host, port)):
        return None
    if host not in LOOPBACK:
        raise SystemExit(
            f"No broker answers at {host}:{port}, which MESSAGING_URL names: start it, "
            "or unset MESSAGING_URL to have a private one started here."
        )
    if sentences := install_missing("rabbitmq-server"):
        raise SystemExit(
            f"No broker answers at 127.0.0.1:{port}. {sentences[0]} "
            "`docker compose up -d rabbitmq` gives you one too, or name yours: "
            "MESSAGING_URL=amqp://user:password@host/. `make run` needs none."
        )
    node = RabbitMQ(
        folder,
        janitor,
        port=_free_or_other(port),
        management_port=_free_or_other(port_of(environment, "MANAGEMENT_PORT", 15672)),
    )
    environment["MESSAGING_URL"] = node.url
    environment["MESSAGING_MANAGEMENT_URL"] = node.management_url
    return node


def _named(environment: MutableMapping[str, str]) -> SplitResult:
    """The first host that MESSAGING_URL names; the default where it names no RabbitMQ."""
    url = urlsplit(environment.get("MESSAGING_URL", "").split(",")[0])
    if url.scheme not in {"amqp", "amqps"}:
        environment["MESSAGING_URL"] = DEFAULT_URL
        url = urlsplit(DEFAULT_URL)
    try:
        _ = url.port
    except ValueError:
        raise SystemExit("MESSAGING_URL has a port that is no number.") from None
    return url


def _free_or_other(port: int) -> int:
    return free_ports(1)[0] if is_listening(port) else port
