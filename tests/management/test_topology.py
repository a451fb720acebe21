"""`manage.py topology` declares, and with `--check` says what differs, what it means and what to do."""

from __future__ import annotations

import json
from io import StringIO
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from pytest_django import Settings

from messaging.management.commands.topology import Command
from tests.acceptance.clients import declare

QUEUES = {"billing": {"type": "classic", "bindings": [("shop", "orders.#")]}}


def run(*arguments: str, status: int = 0) -> str:
    """What the command prints, when it ends with this exit status."""
    out = StringIO()
    if not status:
        call_command("topology", *arguments, stdout=out)
        return out.getvalue()
    with pytest.raises((SystemExit, CommandError)) as caught:
        call_command("topology", *arguments, stdout=out)
    error = caught.value
    assert (error.code if isinstance(error, SystemExit) else error.returncode) == status
    return out.getvalue() + ("" if isinstance(error, SystemExit) else str(error))


def use(settings: Settings, url: str, **options: Any) -> None:
    # No handler of the tests' own app uses this alias.
    settings.MESSAGING = {"shop": {"URL": url, "EXCHANGE": "shop", "QUEUES": QUEUES, **options}}


@pytest.mark.django_db
def test_the_embedded_broker_is_declared_and_compared(settings: Settings) -> None:
    use(settings, "database://")
    said = run("--check", status=1)
    assert 'queue "billing": it does not exist.' in said
    assert said.splitlines()[-1] == "3 missing: something has to be done."
    assert "queues billing." in run()
    assert run("--check").splitlines()[-1] == "Everything is as it should be."
    assert json.loads(run("--check", "--json")) == []


@pytest.mark.broker
@pytest.mark.django_db
@pytest.mark.parametrize("kind", ["quorum", "classic"])
def test_a_dead_letter_queue_that_is_named_itself_is_declared_once(
    settings: Settings, kind: str, vhost_url: str, management_url: str
) -> None:
    queues = {"billing": {"type": kind}, "billing.dead": {"prefetch": 5}}
    for url, options in (("database://", {}), (vhost_url, {"MANAGEMENT_URL": management_url})):
        use(settings, url, QUEUES=queues, **options)
        assert "billing.dead.dead" not in run()
        assert run("--check").splitlines()[-1] == "Everything is as it should be."


@pytest.mark.broker
def test_what_differs_is_grouped_by_urgency_and_counted_in_the_last_line(settings: Settings, vhost_url: str) -> None:
    use(settings, vhost_url)
    declare(vhost_url, "billing", durable=True, arguments={"x-message-ttl": 5000})
    said = run("--check", status=1)
    headings = [line for line in said.splitlines() if line.startswith("  ") and not line.startswith("   ")]
    assert headings == ["  Missing: does not exist", "  Loss: can lose messages", "  Note: cannot be seen"]
    assert said.splitlines()[-1] == "2 missing, 2 losses: something has to be done."
    for paragraph in said.split("\n\n")[2:-1]:
        assert paragraph.startswith(("    ", "  Loss", "  Note")), paragraph
    assert said.count("Without MANAGEMENT_URL, bindings") == said.count("are not checked.") == 1
    assert "guest:guest" not in said


@pytest.mark.broker
def test_everything_is_in_the_json(settings: Settings, vhost_url: str, management_url: str) -> None:
    use(settings, vhost_url)
    rows = json.loads(run("--check", "--json", status=1))
    assert [row["severity"] for row in rows] == ["missing"] * 3 + ["note"]
    assert {tuple(row) for row in rows} == {("alias", "subject", "problem", "way_out", "severity")}
    use(settings, vhost_url, MANAGEMENT_URL=management_url)
    run()
    assert json.loads(run("--check", "--json")) == []
    assert run("--check").splitlines()[-1] == "Everything is as it should be."


@pytest.mark.broker
def test_warnings_alone_leave_nothing_to_do(settings: Settings, vhost_url: str) -> None:
    use(settings, vhost_url, QUEUES={"billing": {"type": "classic", "dead_letter": False}})
    declare(vhost_url, "billing", durable=True, arguments={"x-max-priority": 3})
    run()
    assert run("--check").splitlines()[-1] == "1 warning: nothing has to be done."


@pytest.mark.broker
def test_a_queue_that_cannot_be_used_is_left_alone_and_ends_in_words(settings: Settings, vhost_url: str) -> None:
    use(settings, vhost_url)
    declare(vhost_url, "billing", durable=False)
    said = run(status=1)
    assert "not durable" in said
    assert "Nothing was deleted" in said
    assert "  Error: cannot be used as it is" in run("--check", status=1)


def test_one_alias_that_cannot_be_reached_does_not_hide_the_others(settings: Settings, db: None) -> None:
    use(settings, "database://")
    settings.MESSAGING = {"away": {"URL": "amqp://user:hush@127.0.0.1:1/"}, **settings.MESSAGING}
    said = run("--check", status=2)
    assert "away: " in said
    assert "3 missing" in said
    assert "hush" not in said
    settings.MESSAGING["broken"] = {"LEASE": "x"}
    assert "broken: " in run("--check", status=1)


def test_the_help_tells_the_exit_status(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        Command().run_from_argv(["manage.py", "topology", "--help"])
    assert "exit status:\n  0  nothing has to be done" in capsys.readouterr().out


@pytest.mark.mode(63)
@pytest.mark.broker
@pytest.mark.django_db
@pytest.mark.parametrize("embedded", [True, False])
def test_bindings_to_a_queue_that_was_renamed_are_told_and_removed_one_by_one(
    settings: Settings, embedded: bool, vhost_url: str, management_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = "database://" if embedded else vhost_url
    options = {} if embedded else {"MANAGEMENT_URL": management_url}
    use(settings, url, **options, QUEUES={"billing": {"bindings": [("shop", "orders.#"), ("shop", "paid")]}})
    run()
    use(settings, url, **options, QUEUES={"invoices": {"bindings": [("shop", "orders.#")]}})
    run()
    said = run("--check")
    assert said.count("this site does not name it") == 2
    assert "it may be another service's" in said
    assert "--unbind QUEUE KEY" in said
    assert said.splitlines()[-1] == "2 warnings: nothing has to be done."
    asked: list[str] = []
    monkeypatch.setattr("builtins.input", lambda text: asked.append(text) or "no")
    assert "Nothing was changed" in run("--using", "shop", "--unbind", "billing", "orders.#", status=1)
    assert 'queue "billing" with routing key "orders.#"' in asked[0]
    monkeypatch.setattr("builtins.input", lambda _: "y")
    assert "It keeps those that it has" in run("--using", "shop", "--unbind", "billing", "orders.#")
    assert run("--check").count("this site does not name it") == 1
    assert "Removed" in run("--using", "shop", "--unbind", "billing", "paid", "--no-input")
    assert run("--check").splitlines()[-1] == "Everything is as it should be."


@pytest.mark.django_db
def test_a_binding_that_the_site_asks_for_is_not_removed(settings: Settings) -> None:
    use(settings, "database://")
    run()
    assert "asks for the routing key" in run("--using", "shop", "--unbind", "billing", "orders.#", status=1)


@pytest.mark.django_db
def test_queues_of_other_aliases_are_this_sites_too(settings: Settings) -> None:
    use(settings, "database://")
    settings.MESSAGING["other"] = {"URL": "database://", "EXCHANGE": "shop", "QUEUES": {"mail": QUEUES["billing"]}}
    run()
    assert run("--check").splitlines()[-1] == "Everything is as it should be."
