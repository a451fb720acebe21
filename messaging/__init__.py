"""RabbitMQ messaging for Django in which no message is lost.

The names below are loaded on first use, so that importing the package needs no loaded apps.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from messaging.contracts.events import Event
    from messaging.contracts.upgrades import payload_version, upgrades
    from messaging.exceptions import Reject, Retry
    from messaging.handlers import handler
    from messaging.message import Message, ReceivedMessage
    from messaging.publishing.answering import aanswer, answer
    from messaging.publishing.publisher import apublish, apublish_many, publish, publish_many
    from messaging.wire.cloudevents import CloudEvent

__all__ = [
    "CloudEvent",
    "Event",
    "Message",
    "ReceivedMessage",
    "Reject",
    "Retry",
    "aanswer",
    "answer",
    "apublish",
    "apublish_many",
    "handler",
    "payload_version",
    "publish",
    "publish_many",
    "upgrades",
]

_HOMES = {
    "CloudEvent": "messaging.wire.cloudevents",
    "Event": "messaging.contracts.events",
    "Message": "messaging.message",
    "ReceivedMessage": "messaging.message",
    "Reject": "messaging.exceptions",
    "Retry": "messaging.exceptions",
    "aanswer": "messaging.publishing.answering",
    "answer": "messaging.publishing.answering",
    "apublish": "messaging.publishing.publisher",
    "apublish_many": "messaging.publishing.publisher",
    "handler": "messaging.handlers",
    "payload_version": "messaging.contracts.upgrades",
    "publish": "messaging.publishing.publisher",
    "publish_many": "messaging.publishing.publisher",
    "upgrades": "messaging.contracts.upgrades",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(home), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
