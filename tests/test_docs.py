"""What README.md and docs/ state as facts: tables, links, pictures. Commands and snippets are run in `tests/docs/`."""

from __future__ import annotations

import inspect
import re
import tomllib
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from django.apps import apps
from django.contrib.auth.models import Permission
from django.core.management import get_commands
from django.core.management.base import BaseCommand, CommandParser
from django.test import override_settings

from messaging import Reject, Retry, conf, handler, handlers, message, publish
from messaging.conf import rules
from messaging.handlers import Registry
from messaging.killpoints import POINTS
from messaging.models import ProcessedMessage, PublishedMessage
from messaging.monitoring import conditions, telling
from tests.docs.blocks import DOCS, PAGES, README, README_ZH, blocks_of, prose
from tests.docs.test_snippets import parser_of, run
from tests.site import ROOT

HOW_TO, REFERENCE = DOCS / "how-to", DOCS / "reference"
ARCHITECTURE, BENCHMARKS, GLOSSARY = (DOCS / f"{name}.md" for name in ("architecture", "benchmarks", "glossary"))
IMAGES = DOCS / "images"
ROOMS = (
    *("publishing", "relaying", "consuming", "processing", "supervising", "wire", "db", "conf", "checks", "testing"),
    *("metrics", "monitoring", "contracts", "django_tasks"),
)
DOCUMENTS = [*PAGES, *(ROOT / name for name in ("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"))]
LINK = re.compile(r"\]\((?P<path>[^)#\s]*)(?:#(?P<anchor>[^)]+))?\)")


def column(page: Path, header: str, section: str = "") -> list[str]:
    """The names in backticks in the first column of the table whose header begins so."""
    text = page.read_text().partition(f"## {section}\n")[2] if section else page.read_text()
    table = text.partition(f"\n| {header} |")[2].partition("\n\n")[0]
    return [name for row in table.splitlines()[2:] for name in re.findall(r"`([^`]+)`", row.split(" | ")[0])]


def options_of(parser: CommandParser) -> set[str]:
    return {option for option in parser._option_string_actions if option.startswith("--")}


def test_the_table_of_commands_is_complete() -> None:
    text = (REFERENCE / "commands.md").read_text().partition("## ")[0]
    rows = re.findall(r"^\| `manage\.py (\w+)[^|]*\|[^|]*\|(.*)\|$", text, re.MULTILINE)
    common = options_of(BaseCommand().create_parser("manage.py", "any"))
    ours = {name for name, app in get_commands().items() if app == "messaging"}
    assert {name for name, _ in rows} == ours
    for name, options in rows:
        assert set(re.findall(r"--[a-z-]+", options)) == options_of(parser_of(name)) - common, name


def test_the_tables_of_arguments_are_complete() -> None:
    assert column(HOW_TO / "publish.md", "Argument") == sorted(
        inspect.signature(publish).parameters, key=column(HOW_TO / "publish.md", "Argument").index
    )
    assert set(column(HOW_TO / "handle.md", "Argument")) == set(inspect.signature(handler).parameters) - {
        "queue",
        "routing_keys",
    }


def test_the_handlers_do_what_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handlers, "registry", Registry())
    block = next(block for block in blocks_of(HOW_TO / "handle.md") if "Reject" in block.text)
    names: dict[str, Any] = {"__name__": "snippet"}
    run(block, names)
    names["bill"](SimpleNamespace(payload={"amount": 1}))
    with pytest.raises(Reject, match="negative"):
        names["bill"](SimpleNamespace(payload={"amount": -1}))
    with pytest.raises(Retry) as raised:
        names["bill"](SimpleNamespace(payload={"amount": 20_000}))
    assert raised.value.after == 3600


def test_the_settings_are_all_there_is_with_their_defaults() -> None:
    block = blocks_of(REFERENCE / "settings.md")[0]
    names: dict[str, Any] = {}
    run(block, names)
    shown = names["MESSAGING"]["default"]
    assert set(shown) == set(rules.ALIAS)
    about_tls = block.text.partition('"TLS": {}')[0].splitlines()[-2]
    assert re.findall(r"[A-Z]+_?[A-Z]+", about_tls) == list(rules.TLS)
    with override_settings(MESSAGING=names["MESSAGING"]):
        documented = conf.get()
    with override_settings(MESSAGING={"default": {"URL": shown["URL"]}}):
        default = conf.get()
    for name in set(conf.AliasSettings.__slots__) - {"queues"}:
        assert getattr(documented, name) == getattr(default, name), name
    assert documented.queue("billing").type == default.queue("billing").type
    assert documented.queue("billing").prefetch == default.queue("billing").prefetch


def test_the_consoles_settings_are_all_there_is_with_their_defaults() -> None:
    names: dict[str, Any] = {}
    run(next(block for block in blocks_of(REFERENCE / "settings.md") if "MESSAGING_CONSOLE" in block.text), names)
    shown = names["MESSAGING_CONSOLE"]
    assert list(shown) == list(rules.CONSOLE)
    assert shown.pop("ALERTS") == {**conditions.LIMITS, **telling.NOBODY}
    with override_settings(MESSAGING_CONSOLE=shown):
        assert conf.console() == conf.ConsoleSettings()


def test_the_settings_of_metrics_are_all_there_is() -> None:
    names: dict[str, Any] = {}
    run(next(block for block in blocks_of(REFERENCE / "settings.md") if "MESSAGING_METRICS" in block.text), names)
    assert list(names["MESSAGING_METRICS"]) == list(rules.METRICS)
    with override_settings(MESSAGING_METRICS=names["MESSAGING_METRICS"]):
        assert conf.metrics_token() == ""


@pytest.mark.parametrize(
    ("section", "defaults"),
    [("Queues", conf.QueueSettings()), ("Retries", conf.RetrySettings()), ("Retention", conf.RetentionSettings())],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_tables_of_settings_are_complete(section: str, defaults: Any) -> None:
    text = (REFERENCE / "settings.md").read_text().partition(f"## {section}\n")[2].partition("\n## ")[0]
    told = dict(re.findall(r"^\| `(\w+)` \| `([^`]+)` \|", text, re.MULTILINE))
    expected = {one.name: getattr(defaults, one.name) for one in fields(defaults)}
    shown = {name: [] if value == () else value for name, value in expected.items()}
    assert told == {name: str(value) if not isinstance(value, str) else f'"{value}"' for name, value in shown.items()}


def test_the_table_of_tls_is_complete() -> None:
    assert column(REFERENCE / "settings.md", "Key", "TLS") == list(rules.TLS)


def test_the_tables_of_states_are_complete() -> None:
    page = REFERENCE / "states.md"
    assert column(page, "State", "Outgoing messages") == PublishedMessage.State.values
    assert column(page, "State", "Incoming messages") == ProcessedMessage.State.values


def test_the_table_of_headers_is_complete() -> None:
    assert set(column(REFERENCE / "headers.md", "Header")) == {*message.OURS, message.CAUSATION, message.VERSION}


def test_the_tables_fields_are_there() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (`.+`) \|$", (REFERENCE / "api.md").read_text(), re.MULTILINE)
    assert len(rows) == 7
    for name, columns in rows:
        model = apps.get_model("messaging", name)
        assert set(re.findall(r"`(\w+)`", columns)) <= {field.name for field in model._meta.get_fields()}, name


@pytest.mark.django_db
def test_the_table_of_permissions_is_complete() -> None:
    told = set(column(HOW_TO / "permissions.md", "Permission"))
    there = Permission.objects.filter(content_type__app_label="messaging").values_list("codename", flat=True)
    assert told == set(there)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_relative_link_leads_somewhere(document: Path) -> None:
    for match in LINK.finditer(prose(document)):
        path, anchor = match["path"], match["anchor"]
        if re.match(r"[a-z]+:", path):
            continue
        target = (document.parent / path) if path else document
        assert target.exists(), f"{document.name} links to {path}"
        if anchor:
            headings = re.findall(r"^#+ (.+)$", prose(target), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_picture_is_shown_and_small() -> None:
    links = ((page, match["path"]) for page in PAGES for match in LINK.finditer(page.read_text()))
    shown = {(page.parent / path).resolve() for page, path in links if path.endswith((".png", ".svg"))}
    assert shown == set(IMAGES.iterdir())
    for path in shown:
        content = path.read_bytes()
        assert content.startswith(b"\x89PNG\r\n" if path.suffix == ".png" else b"<svg"), path
        assert len(content) < 300_000, path


@pytest.mark.parametrize("page", [DOCS / "demo.md", HOW_TO / "on-call.md"], ids=lambda path: path.name)
def test_buttons_and_pages_have_the_names_that_are_told(page: Path) -> None:
    catalogues = [app / "locale/zh_Hans/LC_MESSAGES/django.po" for app in (ROOT / "messaging", ROOT / "project")]
    texts = "".join(path.read_text() for path in catalogues)
    there = {text.lower() for text in re.findall(r'^msgid "(.+)"$', texts, re.MULTILINE)}
    told = re.findall(r"(?<!\*)\*{1,2}([A-Z][^*]+?)\*{1,2}(?!\*)", prose(page))
    assert len(told) > 5
    assert [label for label in told if label.lower() not in there] == []


@pytest.mark.parametrize(
    "page",
    [HOW_TO / "troubleshoot.md", HOW_TO / "on-call.md", DOCS / "zh" / "how-to" / "troubleshoot.md"],
    ids=lambda path: str(path.relative_to(DOCS)),
)
def test_what_is_said_is_said_by_the_code(page: Path) -> None:
    source = "".join(path.read_text() for path in (ROOT / "messaging").rglob("*.py"))
    rows = [row.split(" | ")[0] for row in page.read_text().splitlines() if row.startswith("| ")]
    told = [part.strip() for row in rows for text in re.findall('"(.+?)"', row) for part in text.split("…")]
    assert len(told) > 5
    assert [part for part in told if part not in source] == []


def test_the_readme_is_short() -> None:
    assert len(README.read_text().splitlines()) <= 110


@pytest.mark.parametrize("page", [README, README_ZH], ids=lambda path: path.name)
def test_the_readme_compares_by_the_figures_and_versions_that_were_measured(page: Path) -> None:
    measured = (DOCS / "benchmarks.md").read_text().partition("<!-- measured -->")[2].replace("`", "")
    row = re.compile(r"^\| ([a-z ]+) \| (.+?) \| ([\d,]+) \|", re.MULTILINE)
    rates = {(group, what): rate for group, what, rate in row.findall(measured)}
    rows = [line for line in page.read_text().splitlines() if line.count(" | ") == 5]
    shown = next(line for line in rows if "(docs/benchmarks.md#result)" in line)
    assert re.findall(r"\d[\d,]+\d", shown) == [
        rates["consume", "consume --concurrency=1"],
        rates["consume", "Celery, one worker"],
        rates["consume", "Dramatiq, one worker"],
        rates["embedded", "django-tasks-db, db_worker"],
        rates["embedded", "publish(), database://, consume --concurrency=1"],
        rates["consume", "hand-written loop, one by one"],
    ]
    compared = next(line for line in rows if "(CHANGELOG.md)" in line).strip("| ").split(" | ")[2:]
    for package, version in zip(("celery", r"dramatiq\S*", "django-tasks-db", "pika"), compared, strict=True):
        assert re.search(rf"\b{package} {re.escape(version)}\.", measured), package


def test_the_overview_counts_the_ways_to_fail() -> None:
    tables = (DOCS / "reliability.md").read_text().partition("\n## Kill points\n")[0]
    modes = re.findall(r"^\| (\d+) \|", tables, re.MULTILINE)
    assert f"{len(modes)} ways to fail" in (DOCS / "index.md").read_text()


def test_every_file_that_the_architecture_names_exists() -> None:
    for name in re.findall(r"`([\w/.-]+(?:\.py|\.md|/))`", ARCHITECTURE.read_text()):
        folders = (ROOT, ROOT / "messaging", ROOT / "messaging" / "backends" / "database")
        assert any((folder / name).exists() for folder in folders), name


def test_every_module_has_its_place_in_the_architecture() -> None:
    text = ARCHITECTURE.read_text()
    house = ROOT / "messaging"
    paths = [path for room in ("", *ROOMS) for path in (house / room).glob("*.py")]
    missing = [str(path.relative_to(house)) for path in paths if path.name != "__init__.py"]
    assert [name for name in missing if f"`{name}`" not in text] == []


def test_every_kill_point_is_told_in_order() -> None:
    rows = re.findall(r"^\| `(\w+\.\w+)` \|", ARCHITECTURE.read_text(), re.MULTILINE)
    assert rows == list(POINTS)


def test_the_rates_by_which_a_site_is_sized_are_about_those_that_were_measured() -> None:
    rate = re.compile(r"^\| [\w ]+ \| (.+?) \| ([\d,]+) \| .+ – .+ \|$", re.MULTILINE)
    measured = dict(rate.findall(BENCHMARKS.read_text()))
    table = (HOW_TO / "size.md").read_text().partition("\n| What runs | Messages a second |")[2].partition("\n\n")[0]
    told = dict(re.findall(r"^\| (.+) \| ([\d,]+) \|$", table, re.MULTILINE))
    assert len(told) == 6
    for what, rate in told.items():
        ratio = int(rate.replace(",", "")) / int(measured[what].replace(",", ""))
        assert 0.7 < ratio < 1.4, f"{what}: {rate} a second are told, {measured[what]} were measured"


def test_every_word_of_ours_and_every_state_is_in_the_glossary() -> None:
    glossary = GLOSSARY.read_text()
    terms = {term.strip() for row in re.findall(r"^\| ([^|]+) \|", glossary, re.MULTILINE) for term in row.split(",")}
    ours = {"publisher", "outbox", "relay", "consumer", "handler", "inbox", "attempt", "round"}
    acts = {"requeue", "discard", "restore"}
    states = {*PublishedMessage.State, *ProcessedMessage.State}
    assert (ours | acts | states) - terms == set()


def test_what_is_released_and_supported_is_the_same_everywhere() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    headings = re.findall(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings[0] == "Unreleased"
    assert re.fullmatch(rf"{re.escape(project['version'])} - \d{{4}}-\d\d-\d\d", headings[1])
    minor = project["version"].rpartition(".")[0]
    written_for = " ".join((REFERENCE / "versions.md").read_text().partition("\n\n")[2].partition("\n\n")[0].split())
    assert re.findall(r"^\| ([\d.]+) \| yes \|$", (ROOT / "SECURITY.md").read_text(), re.MULTILINE)[0] == minor
    for name in ("Python", "Django", "RabbitMQ"):
        (span,) = re.findall(rf"^\| {name} \| ([\d.]+ to [\d.]+) \|", (DOCS / "support.md").read_text(), re.MULTILINE)
        assert f"{name} {span}" in written_for
