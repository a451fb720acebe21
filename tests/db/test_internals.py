"""What we use of Django and pika without a promise is looked for, so that a version without it is refused in words."""

from __future__ import annotations

import tomllib
from importlib import import_module, metadata
from typing import Any

import pytest
from django.apps import apps
from django.core.exceptions import ImproperlyConfigured
from packaging.requirements import Requirement

from messaging.backends import get_backend, pika_internals
from messaging.conf.installed import lacking
from messaging.db import django_internals
from messaging.exceptions import ConfigurationError
from tests.site import ROOT

NEWER = (
    "A newer {0} is installed than the one that was tested. Run `make test test-slow` with it, look whether what {1} "
    "lists still does what its comments say, then raise the bound there and in pyproject.toml."
)


def named(module: Any) -> list[tuple[str, str, str]]:
    return [
        (table, owner, name)
        for table in ("USED", "GIVEN")
        for owner, names in getattr(module, table).items()
        for name in names
    ]


def take_away(monkeypatch: pytest.MonkeyPatch, module: Any, table: str, owner: str, name: str) -> None:
    """Remove it from pika; what instances have, and what other tests need of Django, is looked for renamed."""
    path, _, last = owner.rpartition(".")
    bases = [] if last.islower() else getattr(import_module(path), last).__mro__
    has = [base for base in bases if name in vars(base)]
    if table == "USED" and module is pika_internals and has:
        for base in has:
            monkeypatch.delattr(base, name)
        return
    rows = getattr(module, table)
    monkeypatch.setattr(
        module, table, {**rows, owner: [f"{one}_of_old" if one == name else one for one in rows[owner]]}
    )


@pytest.fixture
def amqp(settings: Any) -> None:
    settings.MESSAGING = {"default": {"URL": "amqp://guest:secret@127.0.0.1:1/"}}


def test_everything_is_there() -> None:
    assert lacking(pika_internals.USED, pika_internals.GIVEN) == []
    assert lacking(django_internals.USED, django_internals.GIVEN) == []


@pytest.mark.parametrize(("table", "owner", "name"), named(pika_internals))
def test_a_pika_without_it_is_refused_in_one_sentence(
    amqp: None, monkeypatch: pytest.MonkeyPatch, table: str, owner: str, name: str
) -> None:
    take_away(monkeypatch, pika_internals, table, owner, name)
    with pytest.raises(ConfigurationError) as refusal:
        get_backend("default")
    words = str(refusal.value)
    assert f"it has no {owner}.{name}" in words
    assert words.endswith("Install pika>=1.4,<1.5, which was tested.")
    assert "secret" not in words


@pytest.mark.parametrize(("table", "owner", "name"), named(django_internals))
def test_a_django_without_it_is_refused_as_the_site_starts(
    monkeypatch: pytest.MonkeyPatch, table: str, owner: str, name: str
) -> None:
    take_away(monkeypatch, django_internals, table, owner, name)
    with pytest.raises(ImproperlyConfigured) as refusal:
        apps.get_app_config("messaging").ready()
    assert f"it has no {owner}.{name}" in str(refusal.value)
    assert str(refusal.value).endswith("Install Django>=5.2,<6.2, which was tested.")


@pytest.mark.parametrize(("library", "module"), [("pika", pika_internals), ("Django", django_internals)])
def test_the_bound_is_the_version_that_was_tested(library: str, module: Any) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert module.TESTED in project["dependencies"]
    bound = Requirement(module.TESTED).specifier
    assert bound.contains(metadata.version(library), prereleases=True), NEWER.format(library, module.__file__)
