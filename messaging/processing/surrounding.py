"""What `MIDDLEWARE` names, around each call of a handler, inside its transaction.

A message counts as processed only where its handler has run to its end. An error that a middleware keeps to itself is a
decision; a call that was forgotten, or not waited for, would be a loss.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from asgiref.sync import iscoroutinefunction, sync_to_async

from messaging import conf
from messaging.conf.middleware import Outcome, build
from messaging.exceptions import HandlerNotRun
from messaging.handlers import Handler
from messaging.message import HandlerContext, ReceivedMessage, handler_context
from messaging.processing.execution import finish
from messaging.processing.station import Call


class Surroundings:
    """Calls handlers inside of their alias's middleware, which is put around each once.

    Args:
        settings: the alias's.
        handlers: those that are known; a middleware that cannot be used is told before anything is consumed.
        call: calls a handler.
    """

    def __init__(self, settings: conf.AliasSettings, handlers: Iterable[Handler], call: Call) -> None:
        self._settings, self._call = settings, call
        self._known: dict[int, tuple[Handler, Handler]] = {}  # with the first, whose number is its as long as it lives
        for handler in handlers:
            self._around(handler)

    def __call__(
        self, handler: Handler, argument: ReceivedMessage | list[ReceivedMessage], context: HandlerContext
    ) -> None:
        """Call a handler, as `execution.call()` does."""
        self._call(self._around(handler), argument, context)

    def _around(self, handler: Handler) -> Handler:
        known = self._known.get(id(handler))
        if known is None:
            known = self._known[id(handler)] = handler, surrounded(self._settings, handler)
        return known[1]


def surrounded(settings: conf.AliasSettings, handler: Handler) -> Handler:
    """The handler with its alias's middleware around it. Raises ConfigurationError for one that cannot be used."""
    if not settings.middleware:
        return handler
    where = f'MESSAGING["{settings.alias}"]["MIDDLEWARE"]'
    around = build(where, settings.middleware, _async_end(handler) if _is_async(handler) else _end(handler))

    def run(argument: Any) -> None:
        result = around(argument)
        if result is not None:  # work still to be done, perhaps
            finish(result, handler)
        context = handler_context.get()
        if context is None or not context.has_run:
            raise HandlerNotRun(
                f"The handler {handler.name} has not run to its end, although its middleware returned. Does each one "
                "of MIDDLEWARE call get_outcome(message), and await it where it is an `async def`? To leave a message "
                "out, raise Reject."
            )

    return replace(handler, function=run)


def _is_async(handler: Handler) -> bool:
    return iscoroutinefunction(handler.function)


def _end(handler: Handler) -> Outcome:
    """The handler itself, with what it left to be done; says that it has run."""

    def run(argument: Any) -> None:
        try:
            result = handler.function(argument)
            if result is not None:
                finish(result, handler)
        except Exception as error:
            _note_end(error)
            raise
        _note_end()

    return run


def _async_end(handler: Handler) -> Outcome:
    async def run(argument: Any) -> None:
        try:
            result = await handler.function(argument)
            if result is not None:
                await sync_to_async(finish)(result, handler)
        except Exception as error:
            _note_end(error)
            raise
        _note_end()

    return run


def _note_end(error: Exception | None = None) -> None:
    """Note that a handler returned or raised; not where it is cancelled, nor for what cannot be waited for."""
    context = handler_context.get()
    if context is not None and not isinstance(error, HandlerNotRun):
        context.has_run = True
