"""Documents of small sites, for tests."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import field, make_dataclass
from typing import Any

from messaging.backends.base import QueueSpec
from messaging.conf import AliasSettings
from messaging.contracts.asyncapi import Site, document
from messaging.contracts.events import Event
from messaging.handlers import Handler, Registry
from tests.deliveries import registered

NOTHING = object()


def model(name: str = "Order", /, **fields: Any) -> Any:
    """A dataclass with these fields: a type, or a pair of type and default."""
    each: list[Any] = []
    for key, value in fields.items():
        each.append((key, value[0], field(default=value[1])) if isinstance(value, tuple) else (key, value))
    return make_dataclass(name, sorted(each, key=len))


def taking(
    kind: Any = None, *keys: str, queue: str = "billing", name: str = "shop.handlers.bill", told: str = ""
) -> Handler:
    """A handler of that name, with that docstring."""

    def take(message: Any) -> None: ...

    take.__module__, _, take.__qualname__ = name.rpartition(".")
    take.__doc__ = told
    registry = Registry()
    return registered(registry, take, queue=queue, routing_keys=keys, payload=kind)


def site(
    *, events: Iterable[Event] = (), handlers: Iterable[Any] = (), bindings: Iterable[tuple[str, str]] = (), **more: Any
) -> Site:
    """A site with one alias, each of whose queues is bound to what its handlers take, and to `bindings`."""
    values = {"alias": "default", "scheme": "amqp", "hosts": (("rabbit.example", 5672),), "vhost": "/shop"}
    settings = AliasSettings(**{**values, "username": "shop", "password": "secret", **more})  # type: ignore[arg-type]
    handlers = list(handlers)
    queues = [
        QueueSpec(
            name,
            bindings=(
                *((settings.exchange, key) for one in handlers if one.queue == name for key in one.routing_keys),
                *bindings,
            ),
        )
        for name in sorted({handler.queue for handler in handlers})
    ]
    return Site(settings, queues, handlers, list(events))


def written(**options: Any) -> dict[str, Any]:
    """The document of such a site."""
    return document([site(**options)], title="shop", version="1")
