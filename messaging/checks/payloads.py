"""What is wrong with the types that handlers say of their payloads, and with the steps between their versions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from django.core.checks import CheckMessage, Error

from messaging.contracts.annotations import annotated_payload
from messaging.contracts.payloads import contract_of
from messaging.contracts.upgrades import lifted_classes, missing_steps, rival_steps
from messaging.contracts.violations import Unreadable, name_of
from messaging.handlers import Handler

_VERSIONS = "Each function lifts to the next version, up to the one that @payload_version declares."


def check_payloads(handlers: Sequence[Handler]) -> Iterator[CheckMessage]:
    """The problems of typed payloads."""
    taken: list[Any] = lifted_classes()
    for handler in handlers:
        try:
            contract = contract_of(handler)
        except Unreadable as error:
            text = f"The payload of the handler {handler.name} cannot be checked: {error}"
            hint = "Correct the type, or remove it to get payloads unchecked."
            yield Error(text, hint=hint, obj=handler.name, id="messaging.E026")
            continue
        taken += [contract.versioned] if contract is not None else []
        yield from _check_annotation(handler)
    for kind in [one for number, one in enumerate(taken) if one not in taken[:number]]:
        for text in missing_steps(kind):
            yield Error(text, hint=_VERSIONS, obj=name_of(kind), id="messaging.E027")
        for text in rival_steps(kind):
            yield Error(text, hint="Keep one of them.", obj=name_of(kind), id="messaging.E028")


def _check_annotation(handler: Handler) -> Iterator[CheckMessage]:
    """What `payload=` and the annotation say, where both say something."""
    said = handler.payload
    try:
        annotated = annotated_payload(handler.annotated) if said is not None else None
    except Unreadable:
        return  # payload= is enough
    is_derived = isinstance(said, type) and isinstance(annotated, type) and issubclass(said, annotated)
    if annotated is not None and annotated != said and not is_derived:
        names = f"payload={name_of(said)}, but its annotation names {name_of(annotated)}"
        text = f"The handler {handler.name} has {names}."
        yield Error(text, hint="Name the type in one place only.", obj=handler.name, id="messaging.E025")
