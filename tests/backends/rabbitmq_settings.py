"""A RabbitMQ backend for a URL, without Django's settings."""

from __future__ import annotations

from typing import Any

from messaging.backends.rabbitmq import RabbitMQ
from messaging.conf import AliasSettings
from messaging.conf.urls import parse_url


def rabbitmq_backend(url: str, **options: Any) -> RabbitMQ:
    """A backend for a broker's URL; options are those of `AliasSettings`."""
    return RabbitMQ("default", AliasSettings(alias="default", **parse_url(url), **options))
