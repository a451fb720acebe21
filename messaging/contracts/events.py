"""What a site publishes: declared once, published by its declaration, and told to others in a document."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import is_dataclass, replace
from functools import cache
from importlib import import_module
from itertools import combinations
from typing import Any, get_type_hints

from django.apps import apps
from django.utils.module_loading import module_has_submodule

from messaging.conf import DEFAULT_ALIAS, rules
from messaging.contracts.libraries import is_msgspec, is_pydantic
from messaging.contracts.validation import is_typed_dict, required_of
from messaging.exceptions import ConfigurationError, PublishError
from messaging.wire.cloudevents import CloudEvent


class Event(str):  # noqa: SLOT000  one for each kind of message
    """A kind of message that this site publishes: a routing key, and the type of its payload.

    An event is its routing key (a `str`), so both `publish(ORDER_PLACED, OrderPlaced(...))` and
    `Message(ORDER_PLACED, ...)` work. Declare it as a constant in an app's `events.py`.

    Attributes:
        payload: the type of the payload: a dataclass, a TypedDict, a pydantic model, a msgspec struct, or any
            annotation such as `dict[str, int]`; `str` and `bytes` for text and bytes.
        description: what has happened when this is published, for readers of the AsyncAPI document.
        exchange: `None` for the alias's `EXCHANGE`.
        type: AMQP's message type; `None` if it has none.
        using: alias of `MESSAGING`.

    Raises:
        ConfigurationError: an argument cannot work. `publish()` raises `PublishError` for a payload of another type.
    """

    payload: Any
    description: str
    exchange: str | None
    type: str | None
    using: str

    def __new__(
        cls,
        routing_key: str,
        payload: Any,
        *,
        description: str = "",
        exchange: str | None = None,
        type: str | None = None,  # noqa: A002  AMQP's own name
        using: str = DEFAULT_ALIAS,
    ) -> Event:
        """Declare and register it."""
        _check(routing_key, {"description": description, "exchange": exchange, "type": type, "using": using})
        event = super().__new__(cls, rules.name_of(routing_key))
        event.payload, event.description, event.using = payload, description, using
        event.exchange, event.type = exchange, type
        events.add(event)
        return event

    def __repr__(self) -> str:
        return f"Event({str.__repr__(self)}, {name_of_type(self.payload)})"

    def addressed(self, message: Any, alias: str) -> Any:
        """The message that this declares, with what the declaration says and the message does not.

        Raises PublishError where its payload is not of the declared type, or its alias another.
        """
        if self.using != alias:
            raise PublishError(
                f'The event "{rules.plain(self)}" belongs to the alias "{self.using}": publish it with '
                f'using="{self.using}".'
            )
        payload = message.payload
        self._check_payload(payload.data if isinstance(payload, CloudEvent) else payload)
        is_elsewhere = message.queue or message.exchange is not None
        return replace(
            message,
            routing_key=rules.plain(self),
            exchange=message.exchange if is_elsewhere else self.exchange,
            type=message.type or self.type,
        )

    def _check_payload(self, payload: Any) -> None:
        kind = self.payload
        if is_typed_dict(kind):
            self._check_keys(payload)
        elif isinstance(kind, type) and _is_model(kind) and not isinstance(payload, kind):
            raise PublishError(
                f'The payload of the event "{rules.plain(self)}" is {kind.__name__}, not {type(payload).__name__}.'
            )

    def _check_keys(self, payload: Any) -> None:
        what = f'The payload of the event "{rules.plain(self)}"'
        if not isinstance(payload, Mapping):
            raise PublishError(f"{what} is {self.payload.__name__}, not {type(payload).__name__}.")
        missing = sorted(required_keys(self.payload) - payload.keys())
        if missing:
            raise PublishError(f'{what} lacks "{missing[0]}", which {self.payload.__name__} requires.')
        unknown = sorted(map(str, payload.keys() - self.payload.__required_keys__ - self.payload.__optional_keys__))
        if unknown:
            raise PublishError(f'{what} has "{unknown[0]}", which {self.payload.__name__} does not know.')


class Events:
    """Declared events. `events` is the one that `Event` fills."""

    def __init__(self) -> None:
        self._events: list[Event] = []

    def add(self, event: Event) -> None:
        """Register an event; the same one again replaces itself (a module may be imported twice)."""
        same = _address(event), name_of_type(event.payload)
        self._events[:] = [one for one in self._events if (_address(one), name_of_type(one.payload)) != same]
        self._events.append(event)

    def all(self, using: str | None = None) -> list[Event]:
        """Every event, or those of one alias, by address."""
        found = [event for event in self._events if using is None or event.using == using]
        return sorted(found, key=lambda event: (*_address(event), name_of_type(event.payload)))

    def discover(self) -> None:
        """Import `events.py` of every installed app."""
        for app in apps.get_app_configs():
            if not app.name.startswith("django.contrib.") and module_has_submodule(app.module, "events"):
                import_module(f"{app.name}.events")

    def clear(self) -> None:
        """Forget everything. For tests."""
        self._events.clear()


events = Events()


def conflicts(declared: Sequence[Event], exchanges: Mapping[str, str]) -> Iterator[tuple[Event, Event]]:
    """Pairs of one address and different types.

    Args:
        declared: events.
        exchanges: the `EXCHANGE` of each alias.
    """
    for first, second in combinations(declared, 2):
        if _address(first, exchanges) == _address(second, exchanges):
            yield first, second


def name_of_type(kind: Any) -> str:
    """A type as people and documents name it, with its module."""
    if isinstance(kind, type) and not hasattr(kind, "__origin__"):
        return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    return repr(kind)


@cache
def required_keys(kind: Any) -> frozenset[str]:
    """The keys that a TypedDict requires."""
    return required_of(kind, get_type_hints(kind, include_extras=True))


def _is_model(kind: Any) -> bool:
    return is_dataclass(kind) or is_pydantic(kind) or is_msgspec(kind)


def _address(event: Event, exchanges: Mapping[str, str] | None = None) -> tuple[str, str, str]:
    exchange = event.exchange
    if exchange is None:
        exchange = (exchanges or {}).get(event.using, "")
    return event.using, exchange, rules.plain(event)


def _check(routing_key: Any, options: dict[str, Any]) -> None:
    def refuse(problem: str) -> None:
        raise ConfigurationError(f"Event({routing_key!r}): {problem}")

    if not rules.is_name(routing_key):
        refuse("the routing key must be text of 1 to 255 bytes, on one line.")
    if not isinstance(options["description"], str):
        refuse("description must be text.")
    if not rules.is_text(options["using"]):
        refuse("using must be an alias of MESSAGING, as text.")
    for name in ("exchange", "type"):
        value = options[name]
        if value is not None and value != "" and not rules.is_name(value):
            refuse(f"{name} must be text of at most 255 bytes, on one line, or None.")
