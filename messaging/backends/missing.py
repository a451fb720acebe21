"""What the topology names and a broker does not have, said the same way whatever the broker is."""

from __future__ import annotations

from contextlib import suppress

from messaging import conf
from messaging.backends.base import Difference, Topology
from messaging.conf.rules import dead_queue
from messaging.exceptions import ConfigurationError
from messaging.handlers import registry

DECLARE = "Run `manage.py topology`, which declares what is missing."


def exchange(name: str) -> Difference:
    """An exchange that does not exist."""
    return Difference(f'exchange "{name}"', "it does not exist.", DECLARE, "missing")


def exchange_of_others(name: str) -> Difference:
    """An exchange that does not exist where nothing is declared: a site that only consumes needs none."""
    return Difference(
        f'exchange "{name}"',
        'it does not exist, and is not declared where every queue says "declare": False. It takes nothing.',
        'If this site publishes, whoever owns it must create it; else write "EXCHANGE": "" into MESSAGING.',
    )


def queue(name: str, ours: bool) -> Difference:
    """A queue that does not exist; `ours` if it would be declared here."""
    way_out = DECLARE if ours else (
        f'Whoever owns it must create it; without "declare": False in QUEUES["{name}"] it would be declared here.'
    )  # fmt: skip
    return Difference(f'queue "{name}"', "it does not exist.", way_out, "missing")


def binding(name: str, exchange: str, routing_key: str) -> Difference:
    """A binding that does not exist."""
    return Difference(
        f'queue "{name}"',
        f'it is not bound to exchange "{exchange}" with routing key "{routing_key}".',
        DECLARE,
        "missing",
    )


def needless_binding(name: str, exchange: str, routing_key: str) -> Difference:
    """A binding of our exchange to a queue that this site does not name: an old one, or another service's."""
    return Difference(
        f'queue "{name}"',
        f'it is bound to exchange "{exchange}" with routing key "{routing_key}", and this site does not name it. If '
        "that was its name here before, it fills; it may be another service's.",
        "If it is yours: run what it holds by naming it once more, then remove its bindings one by one with "
        "`manage.py topology --unbind QUEUE KEY`.",
    )


def default_binding(name: str, routing_key: str) -> Difference:
    """A binding that cannot be made: the default exchange delivers by queue name and takes no bindings."""
    return Difference(
        f'queue "{name}"',
        f'it cannot be bound to the default exchange (routing key "{routing_key}"), which delivers by queue name.',
        f'Remove the binding from QUEUES["{name}"].',
    )


def named_queues(topology: Topology) -> frozenset[str]:
    """The queues of a topology and those of every other alias, with their dead-letter queues."""
    names = {queue.name for queue in topology.queues}
    for alias in conf.aliases():
        names.update(registry.queues(alias))
        with suppress(ConfigurationError):
            names.update(conf.get(alias).queues)
    return frozenset(names | set(map(dead_queue, names)))
