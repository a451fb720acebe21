"""What waits in the queues of each alias, as its broker says now: for health checks and alerts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from messaging import conf, topology
from messaging.backends import get_backend
from messaging.exceptions import BrokerUnavailable, MessagingError
from messaging.wire.bodies import one_line


@dataclass(frozen=True, slots=True)
class Reading:
    """What the brokers told.

    Attributes:
        ready: messages that wait in queues without a consumer, by alias and queue.
        away: why nothing is known of the queues of an alias, by alias.
        unreachable: the aliases among these whose broker cannot be reached from here.
    """

    ready: Mapping[tuple[str, str], int] = field(default_factory=dict)
    away: Mapping[str, str] = field(default_factory=dict)
    unreachable: frozenset[str] = frozenset()


def queues_of(alias: str) -> list[str]:
    """The queues of an alias; none where its settings cannot be read."""
    try:
        return [queue.name for queue in topology.build(alias).queues]
    except MessagingError:
        return []


def read(*, brokers_alone: bool = False) -> Reading:
    """Ask the broker of each alias, one after the other: about two seconds for each at most. Never raises.

    Args:
        brokers_alone: leave out the embedded broker, which is a database's table.
    """
    ready: dict[tuple[str, str], int] = {}
    away: dict[str, str] = {}
    unreachable = set()
    for alias in conf.aliases():
        try:
            if brokers_alone and conf.get(alias).broker_database:
                continue
            queues = queues_of(alias)
            found = get_backend(alias).depths(queues) if queues else []
        except BrokerUnavailable as error:
            away[alias] = one_line(error)
            unreachable.add(alias)
        except MessagingError as error:
            away[alias] = one_line(error)
        except Exception as error:  # noqa: BLE001  whatever a broker answers, the others are asked
            away[alias] = f"{type(error).__name__}: {one_line(error)}"
        else:
            ready |= {(alias, one.queue): one.unattended for one in found if one.unattended}
    return Reading(ready, away, frozenset(unreachable))
