"""System checks of declared events."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress

from django.core.checks import CheckMessage, Error

from messaging import conf
from messaging.conf.problems import shown, suggest
from messaging.contracts.events import Event, conflicts
from messaging.contracts.schemas import Schemas
from messaging.exceptions import ConfigurationError


def check_events(events: Sequence[Event], aliases: Sequence[str]) -> Iterator[CheckMessage]:
    """The problems of events, as far as their modules are imported."""
    exchanges: dict[str, str] = {}
    for alias in aliases:
        with suppress(ConfigurationError):  # said elsewhere
            exchanges[alias] = conf.get(alias).exchange
    for event in events:
        if event.using not in aliases:
            text = f'{event!r} uses the alias "{shown(event.using)}", which MESSAGING does not have.'
            yield Error(text, hint=suggest(event.using, list(aliases)), id="messaging.E040")
        try:
            Schemas(sent=True).of(event.payload)
        except ConfigurationError as error:
            hint = "Declare the event with a type that can be described."
            yield Error(f"{event!r}: {error}", hint=hint, id="messaging.E041")
    for first, second in conflicts(events, exchanges):
        text = f"Two events have the same exchange and routing key, but different types: {first!r} and {second!r}."
        hint = "Declare one event with a type for both, or give one of them another routing key."
        yield Error(text, hint=hint, id="messaging.E042")
