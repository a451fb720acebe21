"""`MESSAGING_CONSOLE`: its defaults, and what is wrong with it in words."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.core.checks import CheckMessage
from django.db import connection

from messaging import conf
from messaging.checks import check_console
from messaging.conf import rules
from messaging.exceptions import ConfigurationError
from messaging.monitoring.conditions import LIMITS, limit, long_paused
from messaging.monitoring.snapshot import Pause, Snapshot
from messaging.monitoring.telling import NOBODY
from messaging.reports import passwords

REDACT = f"{__name__}.redact"
not_callable = 5


def redact(value: Any, **about: Any) -> Any:
    return value


def checked(settings: Any, value: Any) -> list[CheckMessage]:
    settings.MESSAGING_CONSOLE = value
    return list(check_console())


def test_nothing_needs_to_be_set(settings: Any) -> None:
    assert conf.console() == conf.ConsoleSettings(None, "", {}, edit=False, payload_search=False)
    assert checked(settings, {}) == []
    assert checked(settings, None) == []


def test_everything_can_be_set(settings: Any) -> None:
    every = {
        "REDACT": REDACT, "BANNER": "PRODUCTION", "ALERTS": {"late": 5}, "EDIT": True, "PAYLOAD_SEARCH": False,
        "RELEASE": "2026.5", "HEALTH_TOKEN": {"env": "PATH"},
    }  # fmt: skip
    assert set(every) == set(rules.CONSOLE)
    assert checked(settings, every) == []
    token = {"env": "PATH"}
    assert conf.console() == conf.ConsoleSettings(
        REDACT, "PRODUCTION", {"late": 5}, edit=True, release="2026.5", health_token=token
    )
    assert checked(settings, {"REDACT": None, "BANNER": None}) == []
    assert conf.console().banner == ""


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ([], "is not a dict"),
        ({"REDCT": REDACT}, 'Did you mean "REDACT"?'),
        ({1: 2}, "has no key"),
        ({"REDACT": redact}, "dotted path"),
        ({"REDACT": "redact"}, "dotted path"),
        ({"BANNER": 5}, "at most 100 characters"),
        ({"BANNER": "two\nlines"}, "at most 100 characters"),
        ({"EDIT": "yes"}, "True or False"),
        ({"PAYLOAD_SEARCH": 1}, "True or False"),
        ({"ALERTS": 5}, "a dict"),
        ({"ALERTS": {"lat": 5}}, 'Did you mean "late"?'),
        ({"ALERTS": {"late": "5"}}, "number of seconds"),
        ({"ALERTS": {"rise": 0}}, "from 1 to 1000"),
        ({"ALERTS": {"mail": "ops@example.com"}}, "a list of mail addresses"),
        ({"ALERTS": {"mail": ["ops"]}}, "a list of mail addresses"),
        ({"ALERTS": {"mail": ["ops@example.com\nBcc: all@example.com"]}}, "a list of mail addresses"),
        ({"ALERTS": {"slack": ["ftp://host/"]}}, "a list of webhooks"),
        ({"ALERTS": {"webhooks": ["https://user:secret@host/"]}}, "a list of webhooks"),
        ({"ALERTS": {"webhooks": ["https://host:port/"]}}, "a list of webhooks"),
        ({"ALERTS": {"call": redact}}, "the dotted path"),
        ({"ALERTS": {"certificate_days": -1}}, "a number of days"),
        ({"HEALTH_TOKEN": ""}, "None where nobody"),
        ({"HEALTH_TOKEN": 5}, "None where nobody"),
    ],
)
def test_what_is_wrong_is_said_with_the_way_out(settings: Any, value: Any, words: str) -> None:
    [problem] = checked(settings, value)
    assert problem.id == "messaging.E013"
    assert words in f"{problem.msg} {problem.hint}"
    with pytest.raises(ConfigurationError, match="MESSAGING_CONSOLE"):
        conf.console()


@pytest.mark.parametrize("name", ["not_callable", "missing"])
def test_a_callable_that_is_not_there_is_an_error(settings: Any, name: str) -> None:
    [problem] = checked(settings, {"REDACT": f"{__name__}.{name}"})
    assert problem.id == "messaging.E014"
    assert "withholds every payload" in str(problem.hint)


def test_who_is_told_can_be_told(settings: Any) -> None:
    told = {"mail": ["ops@example.com"], "slack": [{"env": "PATH"}], "webhooks": ["https://host/x"], "call": REDACT}
    assert checked(settings, {"ALERTS": told}) == []
    assert "host/x" not in repr(conf.console())
    [problem] = checked(settings, {"ALERTS": {"call": f"{__name__}.missing"}})
    assert problem.id == "messaging.E015"
    [problem] = checked(settings, {"ALERTS": {"slack": [{"file": "/nowhere"}]}})
    assert problem.id == "messaging.W004"
    [problem] = checked(settings, {"HEALTH_TOKEN": {"env": "NO_SUCH_VARIABLE"}})
    assert problem.id == "messaging.W004"


def test_error_reports_hide_webhooks_and_tokens(settings: Any) -> None:
    settings.MESSAGING_CONSOLE = {"ALERTS": {"slack": ["https://hooks/secret"]}, "HEALTH_TOKEN": "token-of-ours"}
    assert {"https://hooks/secret", "token-of-ours"} <= passwords()


@pytest.mark.parametrize("configured", [{"default": {"URL": "database://"}}, []])
def test_all_checks_report_it(settings: Any, configured: Any) -> None:
    from messaging.checks import check_messaging

    settings.MESSAGING, settings.MESSAGING_CONSOLE = configured, {"REDCT": ""}
    assert "messaging.E013" in [found.id for found in check_messaging()]


def test_search_in_payloads_takes_postgresql(settings: Any) -> None:
    found = [one.id for one in checked(settings, {"PAYLOAD_SEARCH": True})]
    assert found == ([] if connection.vendor == "postgresql" else ["messaging.W013"])


@pytest.mark.django_db
@pytest.mark.skipif(connection.vendor != "postgresql", reason="payloads are searched in PostgreSQL")
def test_a_search_without_an_index_is_told_with_the_statement_that_makes_it(settings: Any) -> None:
    from messaging.checks import check_servers

    assert check_servers(databases=["default"]) == []
    settings.MESSAGING_CONSOLE = {"PAYLOAD_SEARCH": True}
    assert check_servers(databases=[]) == []
    both = check_servers(databases=["default"])
    assert [one.id for one in both] == ["messaging.W014"] * 2
    with connection.cursor() as cursor:  # what another schema has tells nothing of ours
        cursor.execute("CREATE SCHEMA elsewhere")
        for table in ("messaging_processedmessage", "messaging_publishedmessage"):
            cursor.execute(f"CREATE TABLE elsewhere.{table} (body text)")
            cursor.execute(f"CREATE INDEX ON elsewhere.{table} USING gin (messaging_payload(body) jsonb_path_ops)")
    assert check_servers(databases=["default"]) == both
    for problem in both:
        statement = str(problem.hint).partition(": ")[2].replace("CONCURRENTLY ", "")
        with connection.cursor() as cursor:
            cursor.execute(statement)
    assert check_servers(databases=["default"]) == []


def test_alerts_say_from_when_on_something_is_wrong(settings: Any) -> None:
    assert {*LIMITS, *NOBODY} == set(rules.ALERTS)
    now = datetime.now(UTC)
    paused = Snapshot(now=now, pauses=(Pause("default", "billing", now - timedelta(seconds=100)),))
    assert list(long_paused(paused)) == []
    settings.MESSAGING_CONSOLE = {"ALERTS": {"long_pause": 60}}
    assert limit("long_pause") == 60
    assert [one.subject for one in long_paused(paused)] == ["billing"]
    settings.MESSAGING_CONSOLE = {"ALERTS": {"long_pause": "60"}}
    assert limit("long_pause") == LIMITS["long_pause"], "a page does not fail over it"
