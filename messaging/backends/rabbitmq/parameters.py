"""Connection parameters and TLS from an alias's settings, and which of its hosts to try first.

They are tried in the order of its URL, but those that failed lately come last.
"""

from __future__ import annotations

import math
import os
import socket
import ssl
import time
from collections.abc import Iterable

import pika

from messaging.conf import AliasSettings
from messaging.exceptions import ConfigurationError

FORGIVEN_AFTER = 60.0  # seconds

_failed: dict[tuple[str, int], float] = {}
# A blocked connection is alive (heartbeats go on) and its messages are kept by the broker: dropping it early would
# only send them twice. It is dropped in the end, so that a broker that never recovers is left for another host.
BLOCKED_TIMEOUT = 300.0


def in_order(hosts: Iterable[tuple[str, int]]) -> list[tuple[str, int]]:
    """The hosts in the order in which to try them; among those that failed, the first that did."""
    forgiven = time.monotonic() - FORGIVEN_AFTER

    def failed_at(host: tuple[str, int]) -> float:
        at = _failed.get(host, -math.inf)
        return at if at > forgiven else -math.inf

    return sorted(hosts, key=failed_at)


def failed(host: str, port: int) -> None:
    """Remember that a host did not answer, or ended a connection."""
    _failed[host, port] = time.monotonic()


def for_hosts(settings: AliasSettings, role: str, timeout: float) -> list[pika.ConnectionParameters]:
    """The parameters of each host of an alias, in the order in which to try them.

    Args:
        settings: the alias's.
        role: what the connection is for; shown in the broker's list of connections.
        timeout: seconds to connect to one host.

    Raises ConfigurationError for unusable TLS settings, BrokerUnavailable for credentials that cannot be read.
    """
    user, password = settings.credentials()
    context = tls_context(settings) if settings.scheme == "amqps" else None
    name = f"django {settings.alias} {role} {socket.gethostname()}:{os.getpid()}"
    return [
        pika.ConnectionParameters(
            host=host,
            port=port,
            virtual_host=settings.vhost,
            credentials=pika.PlainCredentials(user, password),
            heartbeat=settings.heartbeat,
            socket_timeout=timeout,
            stack_timeout=timeout,
            blocked_connection_timeout=max(BLOCKED_TIMEOUT, 5.0 * settings.heartbeat),
            ssl_options=pika.SSLOptions(context, settings.tls.get("SERVER_NAME") or host) if context else None,
            client_properties={"connection_name": name, "product": "django-durable-messaging"},
        )
        for host, port in in_order(settings.hosts)
    ]


def require_tls(settings: AliasSettings) -> None:
    """Read the certificate files, so that unusable ones are known at once. Raises ConfigurationError."""
    if settings.scheme == "amqps":
        tls_context(settings)


def tls_context(settings: AliasSettings) -> ssl.SSLContext:
    """What an alias's `TLS` says, for the broker's connections and for an `https://` management API.

    Raises ConfigurationError for certificate files that cannot be used.
    """
    tls = settings.tls
    try:
        context = ssl.create_default_context(cafile=tls.get("CA_FILE"))
        if tls.get("CERT_FILE"):
            context.load_cert_chain(tls["CERT_FILE"], tls.get("KEY_FILE"))
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise ConfigurationError(
            f'MESSAGING["{settings.alias}"]["TLS"]: the certificate files cannot be used ({why}).'
        ) from None
    if not tls.get("VERIFY", True):
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
