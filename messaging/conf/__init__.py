"""Every setting of the app, with its default; read from `settings.MESSAGING` on each access.

`MESSAGING = {"default": {"URL": "amqp://user:password@host:5672/vhost", "QUEUES": {"billing": {}}}}`

What concerns the console alone stands once per site, in `settings.MESSAGING_CONSOLE`.
"""

from __future__ import annotations

import marshal
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from django.conf import settings
from django.db import DEFAULT_DB_ALIAS, connections

from messaging.conf.rules import name_of, plain
from messaging.exceptions import BrokerUnavailable, ConfigurationError

DEFAULT_ALIAS = "default"
UNROUTABLE = (1.0, 5.0, 30.0, 120.0, 600.0, *[1800.0] * 12)  # a good six hours: a deployment that goes wrong at first

_last: tuple[bytes | None, dict[str, AliasSettings]] = (None, {})  # what was checked last, and what came of it


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
        hosts: (host, port) pairs, tried in order; one that failed less than a minute ago comes last.
        vhost, username, password: the rest of the URL, percent-decoded, and `USER` and `PASSWORD` where they are text.
        secrets: where the others are: `{"PASSWORD": {"file": ...}}`; see `credentials()`.
        exchange: durable topic exchange that `publish()` uses.
        databases: databases whose outboxes the relay serves.
        lease: seconds for which a relay or a long handler's worker owns a row without renewing.
        heartbeat: seconds between AMQP heartbeats.
        tls: `CA_FILE`, `CERT_FILE`, `KEY_FILE`, `VERIFY`, `SERVER_NAME`.
        management_url: base of RabbitMQ's management API, with credentials if they differ from `URL`'s.
        stop_timeout: seconds that running handlers get after the first signal.
        freeze_timeout: seconds for which a handler may keep all else in its process from running; None for any.
        held_bytes: bytes of message bodies that a consumer process holds at most; None for a share of the memory.
        resend_after: seconds after which a retry or requeue that did not come back is sent again; None for never.
        notify: wake relays by NOTIFY where the database has it.
        poll_interval: seconds between a relay's looks at the outbox.
        relay: False where nothing may be sent, as from a copy of another site's database.
        unroutable: seconds before each further try of a message that no queue took.
        traces: how spans belong to the one that created their message: "parent" or "link"; "" for no spans.
        middleware: dotted paths of what is around each call of a handler.
        publish_middleware: the same around each message that is published.
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
    freeze_timeout: float | None = None
    held_bytes: int | None = None
    resend_after: float | None = None
    notify: bool = True
    poll_interval: float = 0.2
    relay: bool = True
    unroutable: tuple[float, ...] = UNROUTABLE
    traces: str = "parent"
    middleware: tuple[str, ...] = ()
    publish_middleware: tuple[str, ...] = ()
    secrets: Mapping[str, Mapping[str, Any]] = field(default_factory=dict, repr=False)

    def credentials(self) -> tuple[str, str]:
        """User name and password, read now where a file or the environment holds them: they may be renewed meanwhile.

        Raises BrokerUnavailable where they cannot be read.
        """
        own = {"USER": self.username, "PASSWORD": self.password}
        user, password = (
            read_secret(self.secrets[key], f'MESSAGING["{self.alias}"]["{key}"]') if key in self.secrets else own[key]
            for key in own
        )
        return user, password

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
        user = "…@" if "USER" in self.secrets else f"{self.username}@" if self.username else ""
        hosts = ",".join(f"{host}:{port}" for host, port in self.hosts)
        return f"{self.scheme}://{user}{hosts}/{'' if self.vhost == '/' else self.vhost}"


@dataclass(frozen=True, slots=True)
class ConsoleSettings:
    """`MESSAGING_CONSOLE`.

    Attributes:
        redact: dotted path of the callable that payloads, headers and errors go through before they show.
        banner: what stands above each page of the console, such as "PRODUCTION"; "" for nothing.
        alerts: from when on something is wrong, see `monitoring.conditions`; and who is told, see `monitoring.telling`.
        edit: whether a failed message may be edited before it is requeued.
        payload_search: whether the search of the lists looks into payloads, which takes PostgreSQL.
        release: what is deployed, as the site calls it; see `release()`.
        health_token: with which the health view tells details: text, or where that is; None for nobody.
    """

    redact: str | None = None
    banner: str = ""
    alerts: Mapping[str, Any] = field(default_factory=dict, repr=False)
    edit: bool = False
    payload_search: bool = False
    release: str | None = None
    health_token: str | Mapping[str, Any] | None = field(default=None, repr=False)


def console() -> ConsoleSettings:
    """Read `MESSAGING_CONSOLE`. Raises ConfigurationError for whatever the system checks call an error."""
    from messaging.conf import problems

    configured = read_console()
    for problem in problems.of_console(configured):
        raise ConfigurationError(str(problem))
    given = {key.lower(): value for key, value in configured.items()}
    return ConsoleSettings(**{**given, "banner": given.get("banner") or ""})


def read_console() -> Any:
    """`MESSAGING_CONSOLE` as it stands; an empty dict where it is missing."""
    configured = getattr(settings, "MESSAGING_CONSOLE", None)
    return {} if configured is None else configured


def metrics_token() -> str:
    """The token that a request for metrics has to bring, read now where a file or the environment holds it.

    Returns "" where `MESSAGING_METRICS` has none. Raises ConfigurationError for whatever the system checks call an
    error, BrokerUnavailable where it cannot be read.
    """
    from messaging.conf import problems

    configured = read_metrics()
    for problem in problems.of_metrics(configured):
        raise ConfigurationError(str(problem))
    return text_of((configured or {}).get("TOKEN"), 'MESSAGING_METRICS["TOKEN"]')


def text_of(source: str | Mapping[str, Any] | None, where: str) -> str:
    """A secret that stands in a setting, or where that says that it is; "" for none. Raises as `read_secret()`."""
    return read_secret(source, where) if isinstance(source, Mapping) else source or ""


def read_metrics() -> Any:
    """`MESSAGING_METRICS` as it stands; None where web processes count nothing."""
    return getattr(settings, "MESSAGING_METRICS", None)


def aliases() -> tuple[str, ...]:
    """The aliases of `MESSAGING`, in order; ("default",) when the setting is missing or no dict."""
    configured = read()
    names = [plain(name) for name in configured if isinstance(name, str)] if isinstance(configured, Mapping) else []
    return tuple(names) or (DEFAULT_ALIAS,)


def read() -> Any:
    """`MESSAGING` as it stands; where it is missing or empty, the default alias with nothing set."""
    configured = getattr(settings, "MESSAGING", None)
    return {DEFAULT_ALIAS: {}} if configured is None or configured == {} else configured


def task_aliases() -> list[str]:
    """The aliases of Django's `TASKS` whose backend is this app's."""
    configured = getattr(settings, "TASKS", None) or {}
    own = "messaging.django_tasks."
    given = configured.items() if isinstance(configured, Mapping) else ()
    return [
        alias
        for alias, options in given
        if isinstance(options, Mapping) and str(options.get("BACKEND", "")).startswith(own)
    ]


def release() -> str:
    """What is deployed, as the site calls it; "" where it does not say, or says what the system checks refuse."""
    with suppress(ConfigurationError):
        return plain(console().release or "")
    return ""


def get(alias: str = DEFAULT_ALIAS) -> AliasSettings:
    """Read one alias.

    Raises ConfigurationError for an unknown alias, and for whatever the system checks call an error.
    """
    global _last
    configured = read()
    stamp = _stamp(configured)
    checked, known = _last
    if stamp is None or stamp != checked:
        known = {}
        _last = (stamp, known)
    try:
        return known[alias]
    except (KeyError, TypeError):  # not a lookup before: what cannot be hashed is an unknown alias as well
        known[alias] = settings = _checked(alias, configured)
        return settings


def _stamp(configured: Any) -> bytes | None:
    """Tells settings apart that differ in any way, in a fraction of the time that checking takes; None if it cannot."""
    try:
        return marshal.dumps((configured, list(connections.settings)), 2)
    except ValueError:  # texts or dicts of classes of their own, most likely
        pass
    try:
        return marshal.dumps((_plain(configured), list(connections.settings)), 2)
    except (ValueError, RecursionError):
        return None


def _plain(value: Any) -> Any:
    """Settings in which each text is what it is for the broker."""
    if isinstance(value, str):
        return name_of(value)
    if isinstance(value, Mapping):
        return {_plain(key): _plain(one) for key, one in value.items()}
    return type(value)(map(_plain, value)) if type(value) in (list, tuple) else value


def _checked(alias: str, configured: Any) -> AliasSettings:
    from messaging.conf import problems  # where settings are used, which is after a site's start

    for problem in problems.of_all(configured):
        raise ConfigurationError(str(problem))
    if alias not in tuple(configured):  # not a lookup: an alias that cannot be hashed is unknown as well
        name = problems.shown(alias)
        raise ConfigurationError(f'MESSAGING has no alias "{name}". {problems.suggest(name, configured)}')
    values = configured[alias]
    for problem in problems.of_alias(alias, values):
        raise ConfigurationError(str(problem))
    return _settings(plain(alias), _plain(values))


def _settings(alias: str, values: Mapping[str, Any]) -> AliasSettings:
    from messaging.conf.problems import folded
    from messaging.conf.urls import parse_url

    address = parse_url(values.get("URL", "database://"))
    given = {key: values[key] for key in ("USER", "PASSWORD") if values.get(key) is not None}
    texts = {key: value for key, value in given.items() if isinstance(value, str)}
    address["username"] = texts.get("USER", address["username"])
    address["password"] = texts.get("PASSWORD", address["password"])
    return AliasSettings(
        alias=alias,
        **address,
        secrets={key: value for key, value in given.items() if key not in texts},
        exchange=values.get("EXCHANGE", "messaging"),
        queues={name: _queue(options) for name, options in values.get("QUEUES", {}).items()},
        databases=tuple(dict.fromkeys(values.get("DATABASES", (DEFAULT_DB_ALIAS,)))),
        retry=RetrySettings(**folded(values.get("RETRY", {}))),
        retention=RetentionSettings(**folded(values.get("RETENTION", {}))),
        lease=float(values.get("LEASE", 15)),
        heartbeat=values.get("HEARTBEAT", 60),
        tls=values.get("TLS", {}),
        management_url=values.get("MANAGEMENT_URL"),
        stop_timeout=float(values.get("STOP_TIMEOUT", 30)),
        freeze_timeout=values.get("FREEZE_TIMEOUT"),
        held_bytes=values.get("HELD_BYTES"),
        resend_after=values.get("RESEND_AFTER"),
        notify=values.get("NOTIFY", True),
        poll_interval=float(values.get("POLL_INTERVAL", 0.2)),
        relay=values.get("RELAY", True),
        unroutable=tuple(map(float, values.get("UNROUTABLE", UNROUTABLE))),
        traces=values.get("TRACES", "parent") or "",
        middleware=tuple(values.get("MIDDLEWARE", ())),
        publish_middleware=tuple(values.get("PUBLISH_MIDDLEWARE", ())),
    )


def read_secret(source: Mapping[str, Any], where: str) -> str:
    """What a file or a variable of the environment holds, without the line break at its end.

    Args:
        source: `{"file": path}` or `{"env": name}`.
        where: the setting, for errors, which say nothing of what was found.

    Raises BrokerUnavailable where that cannot be read.
    """
    [(kind, name)] = source.items()
    try:
        text = os.environ[name] if kind == "env" else Path(name).read_text()
    except (OSError, ValueError, KeyError) as error:
        why = "it is not set" if kind == "env" else getattr(error, "strerror", None) or "it is no text"
        what = "variable" if kind == "env" else "file"
        raise BrokerUnavailable(f'{where}: the {what} "{name}" cannot be read: {why}.') from None
    return text.rstrip("\r\n")


def _queue(options: Mapping[str, Any]) -> QueueSettings:
    bindings = tuple((exchange, key) for exchange, key in options.get("bindings", ()))
    return QueueSettings(**{**options, "bindings": bindings})
