"""Backends: how bytes travel. `get_backend(alias)` is the only door."""

from __future__ import annotations

from messaging import conf
from messaging.backends.base import Backend
from messaging.exceptions import ConfigurationError

__all__ = ["get_backend"]


def get_backend(alias: str) -> Backend:
    """Return a new backend for an alias of `MESSAGING`; connects to nothing. Raises ConfigurationError."""
    settings = conf.get(alias)
    if settings.scheme in ("amqp", "amqps"):
        from messaging.backends import pika_internals  # pika is loaded only where RabbitMQ is used

        pika_internals.require()
        from messaging.backends.rabbitmq import RabbitMQ

        return RabbitMQ(alias, settings)
    if settings.scheme == "database":
        from messaging.backends.database import DatabaseBroker

        return DatabaseBroker(alias, settings)
    raise ConfigurationError(
        f'MESSAGING["{alias}"]["URL"] starts with "{settings.scheme}://", which is no known broker. '
        'Use "amqp://user:password@host:5672/vhost", "amqps://…" or "database://".'
    )
