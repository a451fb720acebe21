"""Every block of README and docs/ is run, or given to what would run it. One that nobody tests fails here."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from django.core.management import call_command, get_commands, load_command_class
from django.core.management.base import CommandParser
from django.db import connection, connections
from django.test import override_settings

from messaging import conf, handlers, signals
from messaging.checks import check_handlers, check_messaging
from messaging.conf.urls import parse_url
from messaging.handlers import Registry
from messaging.models import PublishedMessage
from tests.acceptance.clients import declare, depth
from tests.docs.blocks import CHINESE, DOCS, PAGES, WALKED, Block, blocks_of, find, prose
from tests.site import ROOT
from tests.waiting import wait_until
from tools import asyncapi
from tools.cluster import CONFIG

DOCUMENTS = [*PAGES, *(ROOT / name for name in ("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"))]
# The kinds that are tested on any page, by language; "" is a block without a comment before it. All are tested here but
# "testing" and "cluster", whose pages are run by test_pytest_plugin.py and test_cluster.py in tests/acceptance/,
# "logging" and "sentry", which test_logs.py there gives to a site, "permissions" and "topic permissions", which
# tests/backends/test_rabbitmq_permissions.py gives to accounts, "tasks", run by tests/django_tasks/test_page.py,
# "tracing", run by tests/monitoring/test_spans.py, and "hosts", which tests/hosts/ puts into projects of others;
# "certificates" and the commands of a backup are run in tests/deploy/; "middleware", "ask", "replies", "recipe",
# "celery", "migrated" and "reference" beside this, in test_middleware.py, test_request_reply.py, test_cookbook.py,
# test_from_celery.py and test_reference.py.
KINDS = {
    "python": {"runs", "handlers", "settings", "signals", "pika", "testing", "redact", "logging", "sentry", "tracing"}
    | {"middleware", "ask", "replies", "tasks", "hosts", "recipe", "reference", "celery", "migrated"},
    "sh": {"", "systemctl", "cluster", "permissions", "topic permissions", "certificates", "containers"}
    | {"save", "restore", "send again"},
    "ini": {"systemd", "environment", "rabbitmq conf", "shipped"},
    "text": {"", "drawing", "layers"},
    "sql": {"statements"},
    "html": {"demo template"},
    "yaml": {"prometheus"},  # test_deploy_files.py
    "json": {"asyncapi"},  # test_the_page_of_the_demos_messages_is_current
}
# And those that only a walk understands.
IN_WALKS = {
    *("as in the tutorial", "install", "terminal", "output", "shell", "script", "rabbitmqctl", "does", "settings", ""),
}
FINITE = {"check", "migrate", "prune_messages", "requeue_messages"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_block_is_tested(page: Path) -> None:
    blocks = blocks_of(page)
    assert len(re.findall(r"^\s*```", page.read_text(), re.MULTILINE)) == 2 * sum(b.kind != "does" for b in blocks)
    unlisted = re.sub(r"\n(?:[-\d]|:::).*(\n +.*)*", "", prose(page))
    assert "\n    " not in unlisted, "an indented block escapes the tests"
    for block in blocks:
        known = IN_WALKS if CHINESE.get(page, page) in WALKED else KINDS.get(block.language, set())
        assert block.kind in known, f"{block}: say with a comment before it how this is tested"


@pytest.mark.parametrize("block", find("demo template"), ids=str)
def test_a_template_is_the_demos(block: Block) -> None:
    assert block.text.strip() == (ROOT / "templates/admin/index.html").read_text().strip()


@pytest.mark.django_db
@pytest.mark.parametrize("block", find("runs"), ids=str)
def test_a_snippet_runs_and_publishes_as_many_messages_as_it_says(block: Block) -> None:
    before = PublishedMessage.objects.count()
    said = run(block)
    assert PublishedMessage.objects.count() - before == int(block.argument) - block.text.count("async def")
    follower = next((other for other in blocks_of(block.page) if other.line > block.line), None)
    if follower is not None and (follower.language, follower.kind) == ("text", ""):
        assert said == follower.text


@pytest.mark.parametrize(
    "page", [page for page in PAGES if page not in {*WALKED, *CHINESE}], ids=lambda page: page.name
)
def test_every_output_follows_the_snippet_that_says_it(page: Path) -> None:
    blocks = blocks_of(page)
    for before, block in zip([None, *blocks], blocks, strict=False):
        if (block.language, block.kind) == ("text", ""):
            assert before is not None
            assert before.kind == "runs", str(block)


@pytest.mark.parametrize("block", find("handlers"), ids=str)
def test_handlers_can_be_registered(block: Block, monkeypatch: pytest.MonkeyPatch) -> None:
    registry = Registry()
    monkeypatch.setattr(handlers, "registry", registry)
    run(block)
    assert len(registry.all()) == int(block.argument)
    assert list(check_handlers(registry.all(), ["default"])) == []


@pytest.mark.parametrize("block", find("settings"), ids=str)
def test_settings_pass_the_system_checks(block: Block, monkeypatch: pytest.MonkeyPatch) -> None:
    names: dict[str, Any] = {}
    run(block, names)
    own = {name: value for name, value in names.items() if name.startswith("MESSAGING")}
    assert own, "it sets nothing"
    for alias in own.get("MESSAGING", {}).values():
        for database in alias.get("DATABASES", ()):
            monkeypatch.setitem(connections.settings, database, connections.settings["default"])
    with override_settings(**own):
        absent = "messaging.W004"  # the files and variables that a page names are on no machine of ours
        assert [str(problem) for problem in check_messaging() if problem.id != absent] == []
        for alias in conf.aliases():
            conf.get(alias)


@pytest.mark.parametrize("block", find("signals"), ids=str)
def test_receivers_take_what_their_signal_sends(block: Block) -> None:
    names: dict[str, Any] = {}
    run(block, names)
    sent = [name for name in names if name.startswith("message_")]
    row = SimpleNamespace(queue="billing", message_id="1", attempts=8, error="no")
    for name in sent:
        answers = getattr(signals, name).send_robust(sender=None, row=row)
        assert [answer for receiver, answer in answers if receiver in names.values()] == [None]


@pytest.mark.django_db
@pytest.mark.skipif(connection.vendor != "postgresql", reason="statements for PostgreSQL")
@pytest.mark.parametrize("block", find("statements"), ids=str)
def test_statements_can_be_executed(block: Block) -> None:
    with connection.cursor() as cursor:
        cursor.execute(block.text.replace("CONCURRENTLY ", ""))  # which takes a transaction of its own


@pytest.mark.parametrize("block", find("redact"), ids=str)
def test_data_is_hidden_as_it_says(block: Block) -> None:
    names: dict[str, Any] = {}
    run(block, names)
    about = {"part": "payload", "kind": "incoming", "queue": "billing", "routing_key": "orders.placed"}
    payload = {"card": {"number": 1}, "orders": [{"note": "4111-1111-1111-1111", "n": 4111}]}
    assert names["redact"](payload, **about) == {"card": "…", "orders": [{"note": "…", "n": 4111}]}
    assert names["redact"](b"4111", **about) is None


@pytest.mark.broker
@pytest.mark.parametrize("block", find("pika"), ids=str)
def test_a_plain_script_reaches_the_queue(block: Block, vhost_url: str) -> None:
    declare(vhost_url, "hello", durable=True)
    text, replaced = re.subn(r'"amqp://[^"]+"', repr(vhost_url), block.text)
    assert replaced == 1
    exec(compile(text, str(block), "exec"), {})
    wait_until(lambda: depth(vhost_url, "hello") == 1, what="the message in the queue")


@pytest.mark.django_db
@pytest.mark.parametrize("block", find("", "sh"), ids=str)
def test_a_shell_command_can_be_given_so(block: Block) -> None:
    for line in block.lines:
        command = check_shell(line)
        if command and command[0] in FINITE:
            call_command(*command, stdout=io.StringIO())


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_command_in_a_sentence_can_be_given_so(document: Path) -> None:
    for code in re.findall(r"`([^`\n]+)`", prose(document)):
        words = re.sub(r"\[.*?\]|…|\.\.\.", "", code)
        if re.match(r"(\S*python )?manage\.py \w|make [a-z]", words):
            check_shell(words)
        elif re.match(r"(consume|relay|topology|prune_messages|requeue_messages) --", words):
            check_shell(f"manage.py {words}")


@pytest.mark.parametrize("block", find("systemd"), ids=str)
def test_systemd_accepts_the_unit(block: Block, tmp_path: Path) -> None:
    for line in block.lines:
        if line.startswith("ExecStart="):
            check_shell(line)
    if shutil.which("systemd-analyze") is None:
        assert re.findall(r"^\[(\w+)\]$", block.text, re.MULTILINE)[0] == "Unit"
        return
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.symlink_to(sys.executable)
    for unit in find("systemd"):
        text = unit.text.replace("/srv/shop", str(tmp_path)).replace("User=shop\n", "")
        (tmp_path / Path(unit.title).name).write_text(text)
    command = ["systemd-analyze", "verify", "--man=no", str(tmp_path / Path(block.title).name)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    ours = [line for line in done.stderr.splitlines() if "shop-" in line]
    assert (done.returncode, ours) == (0, [])


@pytest.mark.parametrize("block", find("systemctl"), ids=str)
def test_systemctl_is_given_units_that_are_shown(block: Block) -> None:
    units = {Path(unit.title).name for unit in find("systemd") if unit.page == block.page}
    for line in block.text.splitlines():
        program, verb, *rest = line.split()
        assert (program, verb in {"daemon-reload", "enable", "restart"}) == ("systemctl", True)
        assert {word for word in rest if not word.startswith("--")} <= units


@pytest.mark.parametrize("block", find("shipped"), ids=str)
def test_what_is_shown_of_a_shipped_file_is_in_it(block: Block) -> None:
    assert block.text == (DOCS / "deploy" / block.argument).read_text()


@pytest.mark.parametrize("block", find("containers"), ids=str)
def test_commands_for_containers_name_files_and_services_that_are_shipped(block: Block) -> None:
    services = yaml.safe_load((DOCS / "deploy" / "compose.yaml").read_text())["services"]
    for words in map(shlex.split, block.lines):
        assert words[0] in {"cp", "cat", "python", "docker", "kubectl"}, words
        for word in words:
            assert not word.startswith("docs/deploy") or (ROOT / word).exists(), word
        if "manage.py" in words and words[-1] != "createsuperuser":
            check_shell(shlex.join(words))
        if words[:2] == ["docker", "compose"] and words[2] in {"run", "exec"}:
            assert next(word for word in words[3:] if not word.startswith("-")) in services


def test_the_commands_of_a_restore_are_run_elsewhere() -> None:
    for kind in ("save", "restore", "send again"):
        (block,) = find(kind)
        assert f'"{kind}"' in (ROOT / "tests/deploy/test_backup.py").read_text()
        for line in block.lines:
            assert line.split()[0] in {"pg_dump", "createdb", "pg_restore", "rabbitmqctl"} or check_shell(line)


@pytest.mark.parametrize("block", find("environment"), ids=str)
def test_the_environment_file_holds_what_the_units_read(block: Block) -> None:
    values = dict(line.split("=", 1) for line in block.text.splitlines())
    assert set(values) == {"DJANGO_SETTINGS_MODULE", "MESSAGING_URL"}
    assert parse_url(values["MESSAGING_URL"])["vhost"] == "shop"
    assert all(f"EnvironmentFile={block.title}" in u.text for u in find("systemd") if "[Service]" in u.text)


@pytest.mark.parametrize("block", find("layers"), ids=str)
def test_the_layers_are_those_that_are_checked(block: Block) -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = [set(re.findall(r"\w+", layer)) for layer in contracts[0]["layers"]]
    told = [set(re.findall(r"\w+", line)) for line in block.text.splitlines()]
    here = {path.stem for path in (ROOT / "messaging").iterdir()}
    assert [layer & here - {"migrations"} for layer in layers] == told


def test_the_testing_page_is_run_elsewhere() -> None:
    assert {block.page for block in find("testing")} == {DOCS / "how-to" / "test.md"}
    assert "<!-- testing -->" in (ROOT / "tests/acceptance/test_pytest_plugin.py").read_text()


@pytest.mark.parametrize("block", find("rabbitmq conf"), ids=str)
def test_the_cluster_of_the_tests_is_configured_like_this(block: Block) -> None:
    assert dict(line.split(" = ") for line in block.text.splitlines()) == CONFIG


def test_commands_for_a_cluster_are_run_elsewhere() -> None:
    assert {block.page for block in find("cluster")} == {DOCS / "how-to" / "cluster.md"}
    assert 'find("cluster")' in (ROOT / "tests/acceptance/test_cluster.py").read_text()


def test_the_page_of_the_demos_messages_is_current() -> None:
    assert asyncapi.PAGE.read_text() == asyncapi.page(asyncapi.demo_document()), "python -m tools.asyncapi writes it"


def test_drawings_are_only_in_the_architecture() -> None:
    assert {block.page for block in find("drawing")} <= {DOCS / "architecture.md"}


def run(block: Block, names: dict[str, Any] | None = None) -> str:
    """Run a snippet in a module of its own and return what it printed."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        code = compile(block.text, str(block), "exec", dont_inherit=True)  # our annotations are text, theirs are not
        exec(code, {"__name__": "snippet"} if names is None else names)
    return said.getvalue()


def check_shell(line: str) -> list[str]:
    """Give a command line to what would read it; returns the words of a `manage.py` command."""
    words = shlex.split(line, comments=True)
    if "manage.py" in words:
        command, *arguments = words[words.index("manage.py") + 1 :]
        if "--help" not in arguments:
            parser_of(command).parse_args(arguments)
        return [command, *arguments]
    if words[0] == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert {word for word in words[1:] if "=" not in word} <= set(targets), line
    elif words[:3] == ["git", "clone", "REPOSITORY"]:
        assert words[3:] == ["django-durable-messaging"], line
    else:
        assert words[0] == "cd", f"nobody checks {line!r}"
    return []


def parser_of(command: str) -> CommandParser:
    """The parser of a `manage.py` command."""
    app = get_commands().get(command)
    assert app is not None, f"there is no command manage.py {command}"
    found = app if not isinstance(app, str) else load_command_class(app, command)
    return found.create_parser("manage.py", command)
