"""What must exist at the broker: exchanges, queues and bindings, from settings and handlers."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import replace

from messaging import conf
from messaging.backends.base import Difference, ExchangeSpec, QueueSpec, Topology
from messaging.conf.rules import living_queue
from messaging.handlers import Registry, registry

logger = logging.getLogger("messaging.topology")
_said: set[tuple[str, str]] = set()


def build(alias: str, handlers: Registry = registry) -> Topology:
    """The topology of an alias: every queue of `QUEUES` and of the handlers, with its bindings, sorted by name."""
    settings = conf.get(alias)
    names = sorted({*settings.queues, *handlers.queues(alias)})
    queues = tuple(_queue(name, _options(name, settings, names), settings, handlers) for name in names)
    is_ours = not queues or any(queue.declare for queue in queues)
    exchanges = (ExchangeSpec(settings.exchange, declare=is_ours),) if settings.exchange else ()
    return Topology(exchanges, queues)


def only(topology: Topology, queues: list[str]) -> Topology:
    """The part of a topology that concerns these queues."""
    return Topology(topology.exchanges, tuple(queue for queue in topology.queues if queue.name in queues))


def warn_once(alias: str, differences: Iterable[Difference]) -> None:
    """Log each difference once in the life of this process, however often and by whom it is found."""
    for difference in differences:
        say_once(alias, f"{difference.subject}: {difference.problem} {difference.way_out}")


def say_once(alias: str, text: str) -> None:
    """Log a warning unless this process has logged it."""
    if (alias, text) not in _said:
        _said.add((alias, text))
        logger.warning("%s", text)


def _options(name: str, settings: conf.AliasSettings, names: list[str]) -> conf.QueueSettings:
    """The settings of a queue; one that is another's dead-letter queue is declared as that, and has none itself."""
    options, owner = settings.queue(name), living_queue(name)
    if owner == name or owner not in names or not settings.queue(owner).dead_letter:
        return options
    arguments = {"x-overflow": None, **options.arguments}
    return replace(options, type=settings.queue(owner).type, arguments=arguments, dead_letter=False)


def _queue(name: str, options: conf.QueueSettings, settings: conf.AliasSettings, handlers: Registry) -> QueueSpec:
    keys = [key for handler in handlers.all(settings.alias) if handler.queue == name for key in handler.routing_keys]
    ours = [(settings.exchange, key) for key in keys] if settings.exchange else []
    return QueueSpec(
        name=name,
        type=options.type,
        arguments=dict(options.arguments),
        declare=options.declare,
        bindings=tuple(dict.fromkeys([*ours, *options.bindings])),
        dead_letter=options.dead_letter,
    )
