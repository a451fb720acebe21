"""What `PUBLISH_MIDDLEWARE` names, around the making of each outbox row.

The row is made from the message that the innermost one passes on. So what is added on the way counts as if the caller
had given it: in ids that derive from content, and for consumers that compare what comes twice.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from functools import cache
from typing import Any

from django.db import Error

from messaging import conf
from messaging.conf.middleware import Outcome, build
from messaging.exceptions import MessagingError, PublishError
from messaging.message import Message
from messaging.models import PublishedMessage
from messaging.publishing.rows import Composer


class _Making:
    """The row of one message while it is made; `row` and `error` are what came of it last."""

    def __init__(self, composer: Composer) -> None:
        self._composer = composer
        self.row: PublishedMessage | None = None
        self.error: Exception | None = None

    def compose(self, message: Message) -> PublishedMessage:
        try:
            self.row = self._composer.compose(message)
        except Exception as error:
            self.error = error
            raise
        return self.row


_making: ContextVar[_Making] = ContextVar("messaging_making")


def compose_all(
    settings: conf.AliasSettings, composer: Composer, messages: Iterable[Message]
) -> list[PublishedMessage]:
    """The unsaved rows of messages, each made inside of the alias's middleware.

    Raises PublishError, also for whatever a middleware raises that is no error of ours or of a database.
    """
    around = _around(settings.alias, settings.publish_middleware)
    return [_compose(around, composer, composer.addressed(message)) for message in messages]


def _compose(around: Outcome, composer: Composer, message: Message) -> PublishedMessage:
    token = _making.set(_Making(composer))
    try:
        # Headers of its own, which a middleware may change in place.
        row: PublishedMessage = around(replace(message, headers=dict(message.headers or {})))
    finally:
        _making.reset(token)
    return row


@cache  # the factories are called once in a process
def _around(alias: str, paths: tuple[str, ...]) -> Outcome:
    return build(f'MESSAGING["{alias}"]["PUBLISH_MIDDLEWARE"]', paths, _innermost, _watched)


def _innermost(message: Message) -> PublishedMessage:
    return _making.get().compose(message)


def _watched(path: str, around: Outcome, is_async: bool) -> Outcome:
    """What a middleware made, with its name in the errors that are its own."""
    if is_async:

        async def awatched(message: Message) -> Any:
            with _named(path):
                return _the_row(path, await around(message))

        return awatched

    def watched(message: Message) -> Any:
        with _named(path):
            return _the_row(path, around(message))

    return watched


def _the_row(path: str, outcome: Any) -> PublishedMessage:
    """The row that was made. A message is published or there is an error: none is left out in silence."""
    row = _making.get().row
    if row is None or outcome is not row:
        raise PublishError(
            f'"{path}" of PUBLISH_MIDDLEWARE has to return what get_outcome(message) gives it. To refuse a message, '
            "raise PublishError."
        )
    return row


@contextmanager
def _named(path: str) -> Iterator[None]:
    try:
        yield
    except MessagingError:
        raise
    except Error as error:  # by its class a conflict or a lost connection is told, and tried again
        error.add_note(f'Raised in "{path}" of PUBLISH_MIDDLEWARE.')
        raise
    except Exception as error:
        if error is _making.get().error:  # the message's own, as of a payload that cannot be encoded
            raise
        raise PublishError(f'"{path}" of PUBLISH_MIDDLEWARE failed: {type(error).__name__}: {error}') from error
