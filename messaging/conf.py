"""Every setting of the app, with its default; read from `settings.MESSAGING` on each access.

`MESSAGING = {"default": {"URL": "amqp://user:password@host:5672/vhost", "QUEUES": {"billing": {}}}}`
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote, urlsplit

from django.conf import settings

from messaging.exceptions import ConfigurationError

DEFAULT_ALIAS = "default"
DEFAULT_PORTS = {"amqp": 5672, "amqps": 5671}


@dataclass(frozen=True, slots=True)
class QueueSettings:
    """One entry of `QUEUES`.

    Attributes:
        type: "quorum" or "classic".
        arguments: more queue arguments; they win over ours.
        declare: False for a queue that someone else owns.
        prefetch: deliveries held unacknowledged at most, per process.
        bindings: (exchange, routing key) pairs, beside those of the handlers.
        dead_letter: whether `<queue>.dead` is declared beside it and drained into the inbox.
    """

    type: str = "quorum"
    arguments: Mapping[str, Any] = field(default_factory=dict)
    declare: bool = True
    prefetch: int = 50
    bindings: tuple[tuple[str, str], ...] = ()
    dead_letter: bool = True


@dataclass(frozen=True, slots=True)
class RetrySettings:
    """`RETRY`: how failures back off where a handler does not say.

    Attributes:
        max_attempts: started attempts after which a message rests as failed.
        initial: seconds before the second attempt.
        multiplier: factor from one pause to the next.
        maximum: seconds that no pause exceeds.
        jitter: share of the pause by which it varies at random, 0 to 1.
    """

    max_attempts: int = 8
    initial: float = 5.0
    multiplier: float = 3.0
    maximum: float = 3600.0
    jitter: float = 0.1


@dataclass(frozen=True, slots=True)
class RetentionSettings:
    """`RETENTION`: days for which rows that ended well, or that an operator discarded, are kept; None keeps them."""

    published: float | None = 30.0
    processed: float | None = 30.0
    discarded: float | None = 30.0


@dataclass(frozen=True, slots=True)
class AliasSettings:
    """One alias of `MESSAGING`.

    Attributes:
        scheme: "amqp", "amqps" or "database".
        hosts: (host, port) pairs, tried in order.
        vhost, username, password: the rest of the URL, percent-decoded.
        exchange: durable topic exchange that `publish()` uses.
        databases: databases whose outboxes the relay serves.
        lease: seconds for which a relay or a long handler's worker owns a row without renewing.
        heartbeat: seconds between AMQP heartbeats.
        tls: `CA_FILE`, `CERT_FILE`, `KEY_FILE`, `VERIFY`, `SERVER_NAME`.
        management_url: base of RabbitMQ's management API, with credentials if they differ from `URL`'s.
        stop_timeout: seconds that running handlers get after the first signal.
        notify: wake relays by NOTIFY where the database has it.
        poll_interval: seconds between a relay's looks at the outbox.
    """

    alias: str
    scheme: str
    hosts: tuple[tuple[str, int], ...]
    vhost: str
    username: str
    password: str = field(repr=False)
    exchange: str = "messaging"
    queues: Mapping[str, QueueSettings] = field(default_factory=dict)
    databases: tuple[str, ...] = ("default",)
    retry: RetrySettings = field(default_factory=RetrySettings)
    retention: RetentionSettings = field(default_factory=RetentionSettings)
    lease: float = 15.0
    heartbeat: int = 60
    tls: Mapping[str, Any] = field(default_factory=dict, repr=False)
    management_url: str | None = field(default=None, repr=False)
    stop_timeout: float = 30.0
    notify: bool = True
    poll_interval: float = 0.2

    def queue(self, name: str) -> QueueSettings:
        """The settings of a queue; the defaults where `QUEUES` does not name it."""
        return self.queues.get(name) or QueueSettings()

    @property
    def broker_database(self) -> str:
        """The database that holds the embedded broker; "" where the broker is another."""
        return (self.vhost or "default") if self.scheme == "database" else ""

    @property
    def safe_url(self) -> str:
        """The URL without its password, for logs and pages."""
        if self.broker_database:
            return f"{self.scheme}://{self.broker_database}"
        user = f"{self.username}@" if self.username else ""
        hosts = ",".join(f"{host}:{port}" for host, port in self.hosts)
        return f"{self.scheme}://{user}{hosts}/{'' if self.vhost == '/' else self.vhost}"


def aliases() -> tuple[str, ...]:
    """The aliases of `MESSAGING`, in order; ("default",) when the setting is missing."""
    configured = getattr(settings, "MESSAGING", None)
    return tuple(configured) if isinstance(configured, Mapping) and configured else (DEFAULT_ALIAS,)


def get(alias: str = DEFAULT_ALIAS) -> AliasSettings:
    """Read one alias. Raises ConfigurationError for an unknown alias or an unusable value."""
    configured = getattr(settings, "MESSAGING", None) or {DEFAULT_ALIAS: {}}
    if alias not in configured:
        known = ", ".join(f'"{name}"' for name in configured)
        raise ConfigurationError(f'MESSAGING has no alias "{alias}"; it has {known}.')
    values = configured[alias]
    where = f'MESSAGING["{alias}"]'
    try:
        return AliasSettings(
            alias=alias,
            **parse_url(values.get("URL", "database://"), where),
            exchange=values.get("EXCHANGE", "messaging"),
            queues={name: _queue(options) for name, options in values.get("QUEUES", {}).items()},
            databases=tuple(values.get("DATABASES", ("default",))),
            retry=RetrySettings(**_lower(values.get("RETRY", {}))),
            retention=RetentionSettings(**_lower(values.get("RETENTION", {}))),
            lease=float(values.get("LEASE", 15)),
            heartbeat=int(values.get("HEARTBEAT", 60)),
            tls=values.get("TLS", {}),
            management_url=values.get("MANAGEMENT_URL"),
            stop_timeout=float(values.get("STOP_TIMEOUT", 30)),
            notify=bool(values.get("NOTIFY", True)),
            poll_interval=float(values.get("POLL_INTERVAL", 0.2)),
        )
    except (TypeError, ValueError, AttributeError) as error:
        raise ConfigurationError(f"{where} cannot be used: {error}. `manage.py check` says more.") from error


def parse_url(url: str, where: str = "The URL") -> dict[str, Any]:
    """Split a broker URL into scheme, hosts, vhost, username and password.

    Several hosts are separated by commas; user, password and virtual host are percent-decoded. An empty path means
    the virtual host "/". Raises ConfigurationError without repeating the URL, which holds a password.
    """
    scheme, separator, rest = str(url).partition("://")
    if not separator or not scheme:
        raise ConfigurationError(
            f'{where}["URL"] is no URL; it should look like "amqp://user:password@host:5672/vhost".'
        )
    if scheme == "database":
        return {"scheme": scheme, "hosts": (), "vhost": rest, "username": "", "password": ""}
    authority, _, path = rest.partition("/")
    credentials, _, host_list = authority.rpartition("@")
    username, _, password = credentials.partition(":")
    hosts = []
    for item in host_list.split(","):
        try:
            parts = urlsplit(f"//{item}")
            hosts.append((parts.hostname or "localhost", parts.port or DEFAULT_PORTS.get(scheme, 5672)))
        except ValueError as error:
            raise ConfigurationError(f'{where}["URL"] has a host or port that cannot be read.') from error
    return {
        "scheme": scheme,
        "hosts": tuple(hosts),
        "vhost": unquote(path.partition("?")[0]) or "/",
        "username": unquote(username) or "guest",
        "password": unquote(password) if credentials else "guest",
    }


def _queue(options: Mapping[str, Any]) -> QueueSettings:
    values = dict(options)
    values["bindings"] = tuple((str(exchange), str(key)) for exchange, key in values.get("bindings", ()))
    return QueueSettings(**values)


def _lower(values: Mapping[str, Any]) -> dict[str, Any]:
    return {str(name).lower(): value for name, value in values.items()}
