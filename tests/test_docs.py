"""What README.md and docs/ say is so: commands exist with these options, snippets run, links and pictures are there."""

from __future__ import annotations

import ast
import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from django.core.management import get_commands, load_command_class
from django.core.management.base import BaseCommand, CommandParser
from django.test import override_settings

from messaging import Reject, Retry, conf, handlers, values
from messaging.checks import check_handlers, check_messaging
from messaging.handlers import Registry
from messaging.killpoints import POINTS
from messaging.models import PublishedMessage
from tests.acceptance.clients import declare, depth
from tests.site import ROOT
from tests.waiting import wait_until

README = ROOT / "README.md"
ARCHITECTURE = ROOT / "docs" / "architecture.md"
DOCUMENTS = [README, ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
IMAGES = ROOT / "docs" / "images"
FENCE = re.compile(
    r"(?:<!-- (?P<kind>[^:>]+?)(?:: (?P<name>\S+))? -->\n)?```(?P<language>\w+)\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
LINK = re.compile(r"\]\((?P<path>[^)#\s]*)(?:#(?P<anchor>[^)]+))?\)")
KINDS = {"runs", "handlers", "settings", "ten lines"}


@dataclass(frozen=True)
class Block:
    """A fenced block; `kind` and `name` come from the comment before it and say how it is tested."""

    language: str
    text: str
    kind: str
    name: str


def blocks(document: Path, language: str, kind: str | None = None) -> list[Block]:
    found = [
        Block(match["language"], match["text"], match["kind"] or "", match["name"] or "")
        for match in FENCE.finditer(document.read_text())
    ]
    return [block for block in found if block.language == language and kind in (None, block.kind)]


def parser_of(command: str) -> CommandParser:
    app = get_commands().get(command)
    assert app is not None, f"there is no command manage.py {command}"
    return load_command_class(app, command).create_parser("manage.py", command)


def options_of(parser: CommandParser) -> set[str]:
    return {option for option in parser._option_string_actions if option.startswith("--")}


def check_shell(line: str) -> None:
    words = shlex.split(line, comments=True)
    if "manage.py" in words:
        command, *arguments = words[words.index("manage.py") + 1 :]
        parser_of(command).parse_args(arguments)
    elif words[0] == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert {word for word in words[1:] if "=" not in word} <= set(targets)
    elif words[0] == "pip":
        assert words[1] == "install"
        assert (ROOT / "pyproject.toml").exists()
    else:
        assert words[0] == "cd", f"nobody checks {line!r}"


def prose(document: Path) -> str:
    return FENCE.sub("", document.read_text())


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_shell_command_can_be_given_so(document: Path) -> None:
    for block in blocks(document, "sh"):
        for line in block.text.splitlines():
            if line.strip():
                check_shell(line)
    for code in re.findall(r"`([^`\n]+)`", prose(document)):
        words = re.sub(r"\[.*?\]|…|\.\.\.", "", code)
        if re.match(r"(\S*python )?manage\.py \w|make [a-z]", words):
            check_shell(words)
        elif re.match(r"(consume|relay|topology|prune_messages|requeue_messages) --", words):
            check_shell(f"manage.py {words}")


def test_the_table_of_commands_is_complete() -> None:
    rows = re.findall(r"^\| `manage\.py (\w+)[^|]*\|[^|]*\|(.*)\|$", README.read_text(), re.MULTILINE)
    common = options_of(BaseCommand().create_parser("manage.py", "any"))
    ours = {name for name, app in get_commands().items() if app == "messaging"}
    assert {name for name, _ in rows} == ours
    for name, options in rows:
        assert set(re.findall(r"--[a-z-]+", options)) == options_of(parser_of(name)) - common, name


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_python_snippet_compiles_and_is_tested_below(document: Path) -> None:
    for block in blocks(document, "python"):
        ast.parse(block.text)
        assert block.kind in KINDS, f"say with a comment before it how this is tested:\n{block.text}"


@pytest.mark.django_db
def test_the_publishing_snippets_publish() -> None:
    for block in blocks(README, "python", "runs"):
        if "pika" not in block.text:
            before = PublishedMessage.objects.count()
            exec(compile(block.text, "README.md", "exec"), {})
            published = PublishedMessage.objects.pending().count() - before
            assert published == (8 if "publish_many(" in block.text else 1)


@pytest.mark.broker
def test_the_plain_script_reaches_the_queue(vhost_url: str) -> None:
    declare(vhost_url, "hello", durable=True)
    (script,) = [block for block in blocks(README, "python", "runs") if "pika" in block.text]
    text, replaced = re.subn(r'"amqp://[^"]+"', repr(vhost_url), script.text)
    assert replaced == 1
    exec(compile(text, "README.md", "exec"), {})
    wait_until(lambda: depth(vhost_url, "hello") == 1, what="the message in the queue")


def test_the_handlers_can_be_registered_and_do_what_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    registry = Registry()
    monkeypatch.setattr(handlers, "registry", registry)
    (block,) = blocks(README, "python", "handlers")
    names: dict[str, Any] = {"__name__": "readme"}
    exec(compile(block.text, "README.md", "exec"), names)
    assert len(registry.all()) == 4
    assert list(check_handlers(registry.all(), ["default"])) == []
    names["bill"](SimpleNamespace(payload={"amount": 1}))
    with pytest.raises(Reject, match="negative"):
        names["bill"](SimpleNamespace(payload={"amount": -1}))
    with pytest.raises(Retry) as raised:
        names["bill"](SimpleNamespace(payload={"amount": 20_000}))
    assert raised.value.after == 3600


def test_the_settings_are_all_there_is_with_their_defaults() -> None:
    (block,) = blocks(README, "python", "settings")
    names: dict[str, Any] = {}
    exec(compile(block.text, "README.md", "exec"), names)
    shown = names["MESSAGING"]["default"]
    assert set(shown) == set(values.ALIAS)
    assert re.findall(r"[A-Z]+_?[A-Z]+", block.text.partition('"TLS": {},  # ')[2].splitlines()[0]) == list(values.TLS)
    with override_settings(MESSAGING=names["MESSAGING"]):
        assert [str(problem) for problem in check_messaging()] == []
        documented = conf.get()
    with override_settings(MESSAGING={"default": {"URL": shown["URL"]}}):
        default = conf.get()
    for name in set(conf.AliasSettings.__slots__) - {"queues"}:
        assert getattr(documented, name) == getattr(default, name), name
    assert documented.queue("billing").type == default.queue("billing").type
    assert documented.queue("billing").prefetch == default.queue("billing").prefetch


@pytest.mark.broker
def test_ten_lines_put_it_into_an_existing_site(tmp_path: Path, vhost_url: str) -> None:
    lines = {block.name: block.text for block in blocks(README, "python", "ten lines")}
    assert set(lines) == {"settings.py", "orders/handlers.py", "publish"}
    assert sum(1 for text in lines.values() for line in text.splitlines() if line.strip()) <= 10
    django(tmp_path, "-m", "django", "startproject", "shop", ".")
    django(tmp_path, "manage.py", "startapp", "orders")
    settings = tmp_path / "shop" / "settings.py"
    test_broker = f'INSTALLED_APPS += ["orders"]\nMESSAGING["default"]["URL"] = {vhost_url!r}\n'
    settings.write_text(settings.read_text() + lines["settings.py"] + test_broker)
    (tmp_path / "orders" / "handlers.py").write_text(lines["orders/handlers.py"])
    said = django(tmp_path, "manage.py", "check")
    assert "messaging.W002" in said  # the advice for SQLite that the README speaks of
    django(tmp_path, "manage.py", "migrate", "--verbosity=0")
    django(tmp_path, "manage.py", "shell", "-c", lines["publish"])
    said = django(tmp_path, "manage.py", "consume", "--burst")
    assert "To be billed: order 17" in said
    count = "from messaging.models import ProcessedMessage as P; print(P.objects.filter(state='processed').count())"
    assert django(tmp_path, "manage.py", "shell", "-c", count).split()[-1] == "1"


def django(folder: Path, *arguments: str) -> str:
    """Run Python in a site that knows the package and nothing else of this checkout; returns what it said."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("DJANGO_", "MESSAGING_"))}
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=environment | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_relative_link_leads_somewhere(document: Path) -> None:
    for match in LINK.finditer(document.read_text()):
        path, anchor = match["path"], match["anchor"]
        if re.match(r"[a-z]+:", path):
            continue
        target = (document.parent / path) if path else document
        assert target.exists(), f"{document.name} links to {path}"
        if anchor:
            headings = re.findall(r"^#+ (.+)$", FENCE.sub("", target.read_text()), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_picture_is_shown_and_small() -> None:
    shown = {match["path"] for match in LINK.finditer(README.read_text()) if match["path"].endswith(".png")}
    pictures = {str(path.relative_to(ROOT)): path for path in IMAGES.iterdir()}
    assert shown == set(pictures)
    for name, path in pictures.items():
        content = path.read_bytes()
        assert content.startswith(b"\x89PNG\r\n"), name
        assert len(content) < 300_000, name


def test_every_file_that_the_architecture_names_exists() -> None:
    for name in re.findall(r"`([\w/.-]+(?:\.py|\.md|/))`", ARCHITECTURE.read_text()):
        assert (ROOT / "messaging" / name).exists() or (ROOT / name).exists() or name == "messaging/", name


def test_every_module_has_its_place_in_the_architecture() -> None:
    text = ARCHITECTURE.read_text()
    missing = [path.name for path in (ROOT / "messaging").glob("*.py") if f"`{path.name}`" not in text]
    assert [name for name in missing if name != "__init__.py"] == []


def test_every_kill_point_is_told_in_order() -> None:
    rows = re.findall(r"^\| `(\w+\.\w+)` \|", ARCHITECTURE.read_text(), re.MULTILINE)
    assert rows == list(POINTS)
