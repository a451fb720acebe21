"""docs/reference/api.md: the built page tells all of each public name, once, and its examples do what they say."""

from __future__ import annotations

import html
import inspect
import pydoc
import re
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import FunctionType, SimpleNamespace
from typing import Any

import pytest
from django.dispatch import Signal
from django.utils.module_loading import import_string

import messaging
from messaging import Event, ReceivedMessage, exceptions, publish, signals, testing
from messaging.contracts.events import events
from messaging.handlers import registry
from messaging.testing import drain
from messaging.wire.envelope import Envelope
from messaging.wire.properties import Properties
from tests.docs.blocks import DOCS, Block, blocks_of, find
from tests.docs.test_snippets import run

PAGE = DOCS / "reference" / "api.md"
ERRORS = {
    name: f"messaging.{name}" if name in messaging.__all__ else f"messaging.exceptions.{name}"
    for name, value in vars(exceptions).items()
    if isinstance(value, type)
}
SIGNALS = [f"messaging.signals.{name}" for name in vars(signals) if name.startswith("message_")]
PUBLIC = sorted(
    {*(f"messaging.{name}" for name in messaging.__all__), *(f"messaging.testing.{name}" for name in testing.__all__)}
    | {*ERRORS.values(), *SIGNALS, "messaging.admin.register", "messaging.django_tasks.MessagingBackend"}
)
SIGNATURE = re.compile(r'<div class="[^"]*doc-signature highlight">.*?</div>', re.DOTALL)
EXAMPLE = re.compile(r'<div class="language-\w+ highlight">|For example: ')


@pytest.fixture(scope="module")
def sections(built: Path) -> dict[str, str]:
    """What the page tells of each name, by dotted name."""
    page = (built / "reference" / "api.html").read_text().partition("</article>")[0]
    _, *parts = re.split(r'<h[1-6] id="([^"]+)"', page)
    assert sorted(set(parts[::2])) == sorted(parts[::2]), "a name has two headings"
    return dict(zip(parts[::2], parts[1::2], strict=True))


def words(part: str) -> str:
    """A part of the page as it is read."""
    return " ".join(html.unescape(re.sub(r"<[^>]+>", "", part)).split())


def test_it_has_the_public_names_and_no_others(sections: dict[str, str]) -> None:
    assert sorted(name for name in sections if name.startswith("messaging.")) == PUBLIC


@pytest.mark.parametrize("path", PUBLIC)
def test_a_name_has_one_example(sections: dict[str, str], path: str) -> None:
    assert len(EXAMPLE.findall(SIGNATURE.sub("", sections[path]))) == 1


@pytest.mark.parametrize("path", [path for path in PUBLIC if path not in SIGNALS])
def test_a_signature_has_the_types(sections: dict[str, str], path: str) -> None:
    public: Any = pydoc.locate(path)
    shown = [words(one) for one in SIGNATURE.findall(sections[path])]
    parameters = parameters_of(public)
    assert len(shown) == bool(parameters)
    for parameter in parameters:
        assert re.search(rf"[(*, ]{parameter.name}: \w", shown[0]), parameter.name
        has_default = parameter.default is not parameter.empty
        assert bool(re.search(rf"[(*, ]{parameter.name}: [^=]*?[\w\]] = ", shown[0])) >= has_default, parameter.name
    if isinstance(public, FunctionType):
        assert ") -> " in shown[0]


@pytest.mark.parametrize("path", SIGNALS)
def test_a_signal_is_said_to_be_one(sections: dict[str, str], path: str) -> None:
    assert [words(one) for one in SIGNATURE.findall(sections[path])] == [f"{path.rpartition('.')[2]}: Signal"]


@pytest.mark.parametrize("path", PUBLIC)
def test_each_argument_and_field_is_told_once_with_its_type(sections: dict[str, str], path: str) -> None:
    public: Any = pydoc.locate(path)
    text = words(SIGNATURE.sub("", sections[path]))
    expected = fields_of(public) or {parameter.name for parameter in parameters_of(public)}
    for name in expected:
        assert len(re.findall(rf"(?<!\w){name} \(\w[^–]+\) – \S", text)) == 1, name


@pytest.mark.parametrize("path", PUBLIC)
def test_each_error_is_an_item_of_its_own(sections: dict[str, str], path: str) -> None:
    documentation = inspect.getdoc(pydoc.locate(path)) or ""
    raised = re.findall(r"^    (\w+): ", documentation.partition("\nRaises:\n")[2], re.MULTILINE)
    text = words(sections[path])
    assert [name for name in raised if not re.search(rf"(?<!\w){name} – \S", text)] == []
    assert not re.search(r"^(?!    ).*\bRaises \w+Error", documentation, re.MULTILINE)


def parameters_of(public: Any) -> list[inspect.Parameter]:
    """What our users call it with."""
    if isinstance(public, type):
        is_made_by_us = public is ReceivedMessage or not {"__init__", "__new__"} & vars(public).keys()
        if is_made_by_us:
            return []
    elif not isinstance(public, FunctionType):
        return []
    return list(inspect.signature(public).parameters.values())


def fields_of(public: Any) -> set[str]:
    """What can be read of it."""
    if isinstance(public, Signal):
        return {"rows"} if public is signals.message_published else {"row"}
    if public is Event:
        return set(Event.__annotations__)
    if public is ReceivedMessage:
        message = ReceivedMessage(Envelope("", "", Properties(), b""), queue="")
        return {name for name in dir(message) if not name.startswith("_")} - {"envelope"}
    return {field.name for field in fields(public)} if is_dataclass(public) else set()


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """No handler and no event but the example's."""
    monkeypatch.setattr(registry, "_handlers", {})
    monkeypatch.setattr(registry, "_discovered", True)
    monkeypatch.setattr(events, "_events", [])


@pytest.mark.django_db
@pytest.mark.parametrize("block", find("reference"), ids=str)
def test_an_example_does_what_it_says(block: Block, fresh: None) -> None:
    """Its handlers are given a message each, its receivers what they are sent; what is to be raised stands above it."""
    if block.argument.startswith("as in "):
        page = DOCS / "how-to" / block.argument.removeprefix("as in ")
        assert block.text in {other.text for other in blocks_of(page)}
        return
    names: dict[str, Any] = {"__name__": "snippet"}
    raised: list[str] = []
    try:
        run(block, names)
    except exceptions.MessagingError as error:
        raised.append(type(error).__name__)
    for handler in registry.all():
        publish(handler.routing_keys[0], {"order": 17}, reply_to="answers")
        raised += {type(error).__name__ for error in drain(raise_errors=False).errors}
    assert raised == ([block.argument] if block.argument else [])
    if "TASKS" in names:
        import_string(names["TASKS"]["default"]["BACKEND"])("default", names["TASKS"]["default"])
    row = SimpleNamespace(queue="billing", message_id="1", error="no")
    given = {"row": row, "rows": [row], "attempt": 1, "error": ValueError(), "duration": 0.1}
    for name in filter(re.compile("message_").match, names):
        sent = re.findall(r"^    (\w+) \(", documentation_of(name), re.MULTILINE)
        answers = getattr(signals, name).send_robust(sender=None, **{argument: given[argument] for argument in sent})
        assert [answer for receiver, answer in answers if receiver in names.values()] == [None]


def documentation_of(signal: str) -> str:
    """The text below a signal in the source."""
    source = inspect.getsource(signals)
    return source.partition(f"\n{signal}: Signal = Signal()\n")[2].partition('"""\n\n')[0]
