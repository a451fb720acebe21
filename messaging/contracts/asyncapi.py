"""What a site publishes and handles, as an AsyncAPI 3.0 document: a function of its settings and its code alone.

Each event is a channel whose address is its routing key, and an operation that sends. Each queue is a channel whose
address is its name, and each of its handlers an operation that receives. Nothing of it is a credential.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple
from urllib.parse import quote

from messaging.conf import DEFAULT_ALIAS, AliasSettings
from messaging.contracts.events import Event
from messaging.contracts.payloads import payload_type
from messaging.contracts.schemas import Schemas, merged, renamed

VERSION = "3.0.0"
BINDING = {"bindingVersion": "0.3.0"}  # of AMQP
KEYS = "x-routing-keys"  # of a channel that is a queue, and of an operation: what is bound, and what a handler takes
JSON = "application/json"
CONTENT_TYPES: dict[Any, str] = {str: "text/plain; charset=utf-8", bytes: "application/octet-stream"}
PERSISTENT = 2


class Site(NamedTuple):
    """One alias of a site.

    Attributes:
        settings: its settings.
        queues: what the topology knows, each with `name`, `bindings` and `declare`.
        handlers: its handlers.
        events: what is declared to be published there.
    """

    settings: AliasSettings
    queues: Sequence[Any]
    handlers: Sequence[Any]
    events: Sequence[Event]


def document(sites: Sequence[Site], *, title: str, version: str) -> dict[str, Any]:
    """The document. Raises ConfigurationError for a type that cannot be described."""
    writer = _Writer()
    for site in sites:
        writer.add(site)
    return writer.finished(title, version)


class _Writer:
    def __init__(self) -> None:
        self._servers: dict[str, Any] = {}
        self._channels: dict[str, Any] = {}
        self._operations: dict[str, Any] = {}
        self._messages: dict[str, Any] = {}
        self._sent, self._received = Schemas(sent=True), Schemas(sent=False)
        self._arriving: list[dict[str, Any]] = []  # messages whose schemas are of what is received
        self._said: list[dict[str, Any]] = []  # the messages of each channel, which become references

    def add(self, site: Site) -> None:
        """Write down an alias."""
        settings = site.settings
        named = dict(_servers(settings))
        self._servers |= named
        servers = [{"$ref": f"#/servers/{name}"} for name in named]
        for event in site.events:
            self._publish(event, settings, servers)
        for queue in site.queues:
            handlers = [handler for handler in site.handlers if handler.queue == queue.name]
            if handlers:
                self._handle(queue, handlers, settings, servers)

    def finished(self, title: str, version: str) -> dict[str, Any]:
        """All of it, in an order of its own."""
        schemas, names = merged(self._sent, self._received)
        for message in self._arriving:
            message["payload"] = renamed(message["payload"], names)
        for said in self._said:
            said |= {key: self._reference(message) for key, message in said.items()}
        components = {"schemas": schemas, "messages": dict(sorted(self._messages.items()))}
        found: dict[str, Any] = {
            "asyncapi": VERSION,
            "info": {"title": title, "version": version},
            "defaultContentType": JSON,
            "servers": self._servers,
            "channels": dict(sorted(self._channels.items())),
            "operations": dict(sorted(self._operations.items())),
            "components": {name: value for name, value in components.items() if value},
        }
        return {name: value for name, value in found.items() if value}

    def _publish(self, event: Event, settings: AliasSettings, servers: list[Any]) -> None:
        exchange = settings.exchange if event.exchange is None else event.exchange
        alias = () if settings.alias == DEFAULT_ALIAS else (settings.alias,)
        other = () if event.exchange in (None, settings.exchange) else (exchange,)
        channel = _free(self._channels, ".".join((*alias, *other, str.__str__(event))))
        message = self._message(event.type or _short_name(event.payload) or channel, event.payload, sent=True)
        if event.description:
            message["description"] = event.description
        if event.type:
            message["bindings"] = {"amqp": {"messageType": event.type, **BINDING}}
        where: dict[str, Any] = {"name": exchange}
        if exchange in ("", settings.exchange):  # nobody knows what another one is
            where |= {"type": "topic" if exchange else "default", "durable": True, "autoDelete": False}
        said = {message["name"]: message}
        self._said.append(said)
        self._channels[channel] = {
            "address": str.__str__(event),
            "servers": servers,
            "messages": said,
            "bindings": {"amqp": {"is": "routingKey", "exchange": {**where, "vhost": _vhost(settings)}, **BINDING}},
        }
        sending = {"deliveryMode": PERSISTENT, "mandatory": True, "timestamp": True, **BINDING}
        self._operations[_free(self._operations, f"publish.{channel}")] = {
            "action": "send",
            "channel": {"$ref": f"#/channels/{channel}"},
            **({"summary": event.description} if event.description else {}),
            "messages": [{"$ref": f"#/channels/{channel}/messages/{message['name']}"}],
            "bindings": {"amqp": sending},
        }

    def _handle(self, queue: Any, handlers: Sequence[Any], settings: AliasSettings, servers: list[Any]) -> None:
        alias = () if settings.alias == DEFAULT_ALIAS else (settings.alias,)
        channel = _free(self._channels, ".".join((*alias, "queue", queue.name)))
        where = {"name": queue.name, "durable": True, "exclusive": False, "autoDelete": False}
        said: dict[str, Any] = {}
        self._said.append(said)
        self._channels[channel] = {
            "address": queue.name,
            "servers": servers,
            "messages": said,
            "bindings": {"amqp": {"is": "queue", "queue": {**where, "vhost": _vhost(settings)}, **BINDING}},
            KEYS: [{"exchange": exchange, "routingKey": key} for exchange, key in sorted(set(queue.bindings))],
        }
        for handler in sorted(handlers, key=lambda one: (one.name, one.routing_keys)):
            kind = payload_type(handler)
            name = _short_name(kind) or f"{queue.name}.{handler.name.rpartition('.')[2]}"
            message = self._message(name, kind, sent=False)
            key = _free(said, message["name"])
            said[key] = message
            operation = _free(self._operations, f"handle.{channel.removeprefix('queue.')}.{handler.name}")
            summary = _summary(handler.function)
            self._operations[operation] = {
                "action": "receive",
                "channel": {"$ref": f"#/channels/{channel}"},
                **({"summary": summary} if summary else {}),
                "messages": [{"$ref": f"#/channels/{channel}/messages/{key}"}],
                "bindings": {"amqp": {"ack": True, **BINDING}},
                KEYS: list(handler.routing_keys) or ["#"],
            }

    def _message(self, name: str, kind: Any, *, sent: bool) -> dict[str, Any]:
        message: dict[str, Any] = {"name": _key(name)}
        if kind is None and not sent:
            return message
        message["contentType"] = CONTENT_TYPES.get(kind, JSON) if isinstance(kind, type) else JSON
        schema = (self._sent if sent else self._received).of(kind)
        message["payload"] = schema if message["contentType"] == JSON else {"type": "string"}
        if not sent:
            self._arriving.append(message)
        return message

    def _reference(self, message: dict[str, Any]) -> dict[str, str]:
        """Put a message among the components, unless it is there, and refer to it."""
        wanted = message["name"]
        name = wanted if self._messages.get(wanted) == message else _free(self._messages, wanted)
        self._messages[name] = message
        return {"$ref": f"#/components/messages/{name}"}


def _servers(settings: AliasSettings) -> Iterator[tuple[str, dict[str, Any]]]:
    """Where messages go, one server for each host, without who signs in there."""
    name = _key(settings.alias)
    if settings.scheme == "database":
        text = "The embedded broker: tables in this database of the site."
        yield name, {"host": settings.vhost or "default", "protocol": "database", "description": text}
        return
    for number, (host, port) in enumerate(settings.hosts, 1):
        shown = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        server = {"host": shown, "protocol": settings.scheme, "protocolVersion": "0.9.1"}
        yield name if number == 1 else f"{name}-{number}", {**server, "pathname": f"/{_quoted(settings.vhost)}"}


def _vhost(settings: AliasSettings) -> str:
    return "/" if settings.scheme == "database" else settings.vhost


def _quoted(vhost: str) -> str:
    """A virtual host as a URL has it; nothing for the usual one."""
    return "" if vhost == "/" else quote(vhost, safe="")


def _short_name(kind: Any) -> str:
    """The name of a type that has one of its own."""
    is_own = isinstance(kind, type) and kind.__module__ != "builtins" and not hasattr(kind, "__origin__")
    return kind.__name__ if is_own else ""


def _summary(function: Any) -> str:
    """The first sentence of what a handler's docstring says."""
    text = (getattr(function, "__doc__", None) or "").strip().partition("\n\n")[0]
    return " ".join(text.split())


def _key(name: str) -> str:
    """A name that AsyncAPI takes as a key."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", name) or "_"


def _free(taken: Mapping[str, Any], name: str) -> str:
    wanted = _key(name)
    numbered = (f"{wanted}-{number}" for number in range(2, 100_000))
    return next(one for one in (wanted, *numbered) if one not in taken)
