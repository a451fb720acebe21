"""Typed payloads: what a handler's messages have to hold, and what instances are sent as."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from enum import Enum
from typing import Any, get_args

from django.core.serializers.json import DjangoJSONEncoder

from messaging.contracts import libraries, upgrades
from messaging.contracts.annotations import annotated_payload
from messaging.contracts.validation import is_union, loader_of, unwrapped
from messaging.contracts.violations import Unreadable, Violation, name_of
from messaging.exceptions import PayloadError
from messaging.handlers import UNREAD, Handler
from messaging.message import ReceivedMessage

_PLAIN = (str, int, float, bool, type(None))
_json = DjangoJSONEncoder(sort_keys=True)


class Contract:
    """What payloads have to be.

    Args:
        kind: a dataclass, a TypedDict, a model of pydantic, a struct of msgspec, or what consists of such and of what
            JSON has.

    Raises Unreadable, a ConfigurationError, for a type that is not supported.
    """

    def __init__(self, kind: Any) -> None:
        self.kind, self.name = kind, name_of(kind)
        inner = unwrapped(kind)
        if is_union(inner) and any(map(upgrades.is_versioned, map(unwrapped, get_args(inner)))):
            raise Unreadable(
                f"{self.name} has versions of several classes, and a message says only one: write a handler for each."
            )
        self.versioned = inner
        self._load = loader_of(kind)

    def load(self, payload: Any, version: int) -> Any:
        """A payload as its type has it, lifted from an older version.

        Raises PayloadError for one that does not fit, NewerVersion for one that only a later release can know, and
        whatever a step to a newer version raises.
        """
        if version != upgrades.version_of(self.versioned).number:
            payload = upgrades.lift(self.versioned, payload, version)
        try:
            return self._load(payload, {})
        except Violation as violation:
            reason = str(violation)
        except RecursionError:
            reason = "it is nested too deeply"
        # Raised here, it has no other error behind it that could repeat what the payload holds.
        raise PayloadError(f"The payload does not fit {self.name}: {reason}.")


def contract_of(handler: Handler) -> Contract | None:
    """What a handler's payloads have to be; None for anything. Raises Unreadable."""
    kind = payload_type(handler)
    return None if kind is None else Contract(kind)


def payload_type(handler: Handler) -> Any:
    """The type that a handler says by `payload=`, else by its annotation; None for any. Raises Unreadable."""
    return annotated_payload(handler.annotated) if handler.payload is None else handler.payload


def receive(handler: Handler, argument: ReceivedMessage | list[ReceivedMessage]) -> None:
    """Have a handler's messages hold what it says. Raises what `Contract.load()` raises."""
    contract = handler.contract
    if contract is UNREAD:
        contract = vars(handler)["contract"] = contract_of(handler)
    if contract is not None:
        for message in argument if isinstance(argument, list) else (argument,):
            vars(message)["payload"] = contract.load(message.payload, message.version)


def plain(value: Any, *, inside: bool = False) -> Any:
    """A payload with what JSON has in the place of instances: of dataclasses, models, structs, and members of an Enum.

    What Django's encoder writes, such as dates, stays for it.

    Args:
        value: the payload.
        inside: whether it is a part of a dataclass, whose sets become lists, in an order that is always the same, and
            whose dicts may have other keys than text.
    """
    kind = type(value)
    if kind in _PLAIN:
        return value
    if isinstance(value, Enum):
        return plain(value.value, inside=inside)
    if libraries.of(kind):
        return libraries.plain(value)
    if dataclasses.is_dataclass(kind):
        return {one.name: plain(getattr(value, one.name), inside=True) for one in dataclasses.fields(value)}
    if isinstance(value, Mapping) and (inside or isinstance(value, dict)):
        return _plain_dict(value, inside=inside)
    if isinstance(value, (list, tuple)):
        return [plain(one, inside=inside) for one in value]
    if inside and isinstance(value, (set, frozenset)):
        return sorted((plain(one, inside=True) for one in value), key=_json.encode)
    return value


def _plain_dict(table: Mapping[Any, Any], *, inside: bool) -> dict[Any, Any]:
    found = {_plain_key(key) if inside else key: plain(value, inside=inside) for key, value in table.items()}
    if len(found) < len(table):
        raise ValueError("two keys of a dict are one in JSON")
    return found


def _plain_key(key: Any) -> Any:
    """A key of a dict as JSON may have it; text where Django's encoder writes it so, as a date."""
    if isinstance(key, Enum):
        return _plain_key(key.value)
    if isinstance(key, _PLAIN):
        return key
    written = _json.encode(key)
    return written[1:-1] if written[:1] == '"' else key
