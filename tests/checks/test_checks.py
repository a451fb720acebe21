"""Every check has a stable id, says what to do, and none raises."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from io import StringIO
from typing import Any

import pytest
from django.core.checks import CheckMessage
from django.core.checks import Error as CheckError
from django.core.management import CommandError, call_command
from django.db import connections, router
from pytest_django import Settings

from messaging import checks, conf
from messaging.checks import check_deployment, check_handlers, check_messaging
from messaging.checks.databases import check_routers, check_sqlite, require, used_databases
from messaging.contracts.events import Events
from messaging.exceptions import ConfigurationError
from messaging.handlers import Registry
from tests.admin_rows import incoming
from tests.deliveries import registered
from tests.site import ROOT


def run(settings: Settings, value: Any) -> list[CheckMessage]:
    settings.MESSAGING = value
    return check_messaging()


def ids(messages: Any) -> list[str]:
    return [str(message.id) for message in messages]


@pytest.fixture(autouse=True)
def handlers(monkeypatch: pytest.MonkeyPatch) -> Registry:
    registry = Registry()
    monkeypatch.setattr(checks, "registry", registry)
    monkeypatch.setattr(checks, "events", Events())
    monkeypatch.setattr(checks, "check_sqlite", lambda _: [])
    return registry


@pytest.mark.parametrize(
    ("value", "wrong"),
    [
        (None, []),
        ({"RELEASE": "2026.5"}, []),
        ({"RELEASE": None}, []),
        ([], ["messaging.E013"]),
        ({"RELEASE": 5}, ["messaging.E013"]),
        ({"RELEASE": "x" * 101}, ["messaging.E013"]),
        ({"RELAESE": "1"}, ["messaging.E013"]),
    ],
)
def test_the_consoles_settings_are_checked_and_a_wrong_one_is_as_none(
    settings: Settings, value: Any, wrong: list[str]
) -> None:
    settings.MESSAGING_CONSOLE = value
    assert ids(run(settings, {"default": {}})) == wrong
    assert conf.release() == ("2026.5" if isinstance(value, dict) and value.get("RELEASE") == "2026.5" else "")


def test_traces_that_cannot_be_made_are_told_where_they_are_asked_for(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(settings, {"default": {"TRACES": "link"}}) == []
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    monkeypatch.setitem(sys.modules, "opentelemetry.trace", None)
    assert ids(run(settings, {"default": {"TRACES": "link"}})) == ["messaging.W018"]
    assert run(settings, {"default": {"TRACES": False}}) == run(settings, {"default": {}}) == []


def test_the_defaults_and_a_full_example_are_fine(settings: Settings) -> None:
    assert run(settings, {"default": {}}) == []
    assert run(settings, None) == []
    full = {
        "URL": "amqps://user:pw@a:5672,b:5672/vhost",
        "EXCHANGE": "messaging",
        "QUEUES": {
            "billing": {
                "type": "quorum",
                "arguments": {},
                "declare": True,
                "prefetch": 50,
                "bindings": [("their.exchange", "orders.#")],
            }
        },
        "DATABASES": ["default"],
        "RETRY": {"max_attempts": 3, "INITIAL": 1},
        "RETENTION": {"processed": None},
        "LEASE": 15,
        "HEARTBEAT": 60,
        "TLS": {"VERIFY": True, "CA_FILE": __file__},
        "MANAGEMENT_URL": None,
        "STOP_TIMEOUT": 30,
        "FREEZE_TIMEOUT": 60,
        "HELD_BYTES": 64 * 1024 * 1024,
        "NOTIFY": False,
        "POLL_INTERVAL": 0.2,
        "UNROUTABLE": [1, 2.5],
        "TRACES": "link",
        "RELAY": False,
    }
    assert run(settings, {"default": full}) == []


@pytest.mark.parametrize("value", [[], "amqp://", 7, {1: {}}, {"default": {}, None: {}}])
def test_messaging_must_be_a_dict_of_aliases(settings: Settings, value: Any) -> None:
    assert ids(run(settings, value)) == ["messaging.E001"]


@pytest.mark.parametrize(
    ("options", "identity"),
    [
        ([], "messaging.E002"),
        ({"QUEUE": {}}, "messaging.E003"),
        ({"URL": None}, "messaging.E004"),
        ({"EXCHANGE": 5}, "messaging.E004"),
        ({"EXCHANGE": "x" * 256}, "messaging.E004"),
        ({"QUEUES": ["billing"]}, "messaging.E004"),
        ({"DATABASES": "default"}, "messaging.E004"),
        ({"DATABASES": []}, "messaging.E004"),
        ({"RETRY": 3}, "messaging.E004"),
        ({"RETENTION": 30}, "messaging.E004"),
        ({"LEASE": 0}, "messaging.E004"),
        ({"LEASE": "15"}, "messaging.E004"),
        ({"HEARTBEAT": -1}, "messaging.E004"),
        ({"HEARTBEAT": 1.5}, "messaging.E004"),
        ({"TLS": True}, "messaging.E004"),
        ({"MANAGEMENT_URL": "localhost:15672"}, "messaging.E004"),
        ({"STOP_TIMEOUT": float("nan")}, "messaging.E004"),
        ({"FREEZE_TIMEOUT": 1}, "messaging.E004"),
        ({"HELD_BYTES": 1000}, "messaging.E004"),
        ({"HELD_BYTES": "64M"}, "messaging.E004"),
        ({"NOTIFY": "yes"}, "messaging.E004"),
        ({"POLL_INTERVAL": 0}, "messaging.E004"),
        ({"RELAY": 0}, "messaging.E004"),
        ({"TRACES": True}, "messaging.E004"),
        ({"UNROUTABLE": 30}, "messaging.E004"),
        ({"UNROUTABLE": [-1]}, "messaging.E004"),
        ({"MIDDLEWARE": "shop.messaging.tenant"}, "messaging.E004"),
        ({"MIDDLEWARE": ["tenant"]}, "messaging.E004"),
        ({"PUBLISH_MIDDLEWARE": [len]}, "messaging.E004"),
        ({"UNROUTABLE": ["5"]}, "messaging.E004"),
        ({"URL": "localhost"}, "messaging.E005"),
        ({"URL": "redis://localhost"}, "messaging.E005"),
        ({"URL": "amqp://user:pw@host:port/"}, "messaging.E005"),
        ({"RETRY": {"attempts": 3}}, "messaging.E006"),
        ({"RETRY": {"max_attempts": 0}}, "messaging.E006"),
        ({"RETRY": {"jitter": 2}}, "messaging.E006"),
        ({"RETENTION": {"failed": 3}}, "messaging.E007"),
        ({"RETENTION": {"published": -1}}, "messaging.E007"),
        ({"TLS": {"VERIFY": "no"}}, "messaging.E008"),
        ({"DATABASES": ["default", "defualt"]}, "messaging.E009"),
        ({"URL": "database://elsewhere"}, "messaging.E009"),
        ({"QUEUES": {"": {}}}, "messaging.E010"),
        ({"QUEUES": {"x" * 251: {}}}, "messaging.E010"),
        ({"QUEUES": {"billing": None}}, "messaging.E011"),
        ({"QUEUES": {"billing": {"type": "stream"}}}, "messaging.E011"),
        ({"QUEUES": {"billing": {"type": []}}}, "messaging.E011"),
        ({"QUEUES": {"billing": {"prefech": 3}}}, "messaging.E011"),
        ({"QUEUES": {"billing": {"prefetch": 0}}}, "messaging.E011"),
        ({"QUEUES": {"billing": {"bindings": ["orders.#"]}}}, "messaging.E011"),
        ({"QUEUES": {"billing": {"declare": False, "bindings": [("e", "k")]}}}, "messaging.E012"),
        ({1: 2}, "messaging.E003"),
        ({b"URL": "database://"}, "messaging.E003"),
        ({"Url": "database://"}, "messaging.E003"),
        ({"URL": b"amqp://"}, "messaging.E004"),
        ({"EXCHANGE": None}, "messaging.E004"),
        ({"EXCHANGE": "amq.direct"}, "messaging.E004"),
        ({"EXCHANGE": "messa\nging"}, "messaging.E004"),
        ({"EXCHANGE": "\udc80"}, "messaging.E004"),
        ({"DATABASES": [None]}, "messaging.E004"),
        ({"LEASE": True}, "messaging.E004"),
        ({"LEASE": 10**400}, "messaging.E004"),
        ({"HEARTBEAT": False}, "messaging.E004"),
        ({"STOP_TIMEOUT": float("inf")}, "messaging.E004"),
        ({"POLL_INTERVAL": 1e300}, "messaging.E004"),
        ({"NOTIFY": 1}, "messaging.E004"),
        ({"MANAGEMENT_URL": ""}, "messaging.E004"),
        ({"MANAGEMENT_URL": "http://host:99999"}, "messaging.E004"),
        ({"MANAGEMENT_URL": "amqp://user:pw@host"}, "messaging.E004"),
        ({"MANAGEMENT_URL": "http://user:p/w@host:15672"}, "messaging.E004"),
        ({"MANAGEMENT_URL": "http://a,b"}, "messaging.E004"),
        ({"MANAGEMENT_URL": b"http://host"}, "messaging.E004"),
        ({"URL": ""}, "messaging.E005"),
        ({"URL": "database://default?user:pw@x"}, "messaging.E005"),
        ({"URL": "database://user:pw@default"}, "messaging.E005"),
        ({"RETRY": {"initial": None}}, "messaging.E006"),
        ({"RETRY": {"multiplier": 1e300}}, "messaging.E006"),
        ({"RETRY": {"maximum": float("nan")}}, "messaging.E006"),
        ({"RETRY": {"initial": 7200}}, "messaging.E006"),
        ({"RETRY": {"JITTER": 0, "jitter": 0}}, "messaging.E006"),
        ({"RETENTION": {"published": 1e9}}, "messaging.E007"),
        ({"RETENTION": {"published": True}}, "messaging.E007"),
        ({"TLS": {"verify": True}}, "messaging.E008"),
        ({"TLS": {"CA_FILE": ""}}, "messaging.E008"),
        ({"TLS": {"CA_FILE": "a\0b"}}, "messaging.E008"),
        ({"URL": "amqps://", "TLS": {"KEY_FILE": __file__}}, "messaging.E008"),
        ({"QUEUES": {5: {}}}, "messaging.E010"),
        ({"QUEUES": {"amq.gen-x": {}}}, "messaging.E010"),
        ({"QUEUES": {"a\0b": {}}}, "messaging.E010"),
        ({"QUEUES": {"billing": {}, "billing\n": {}}}, "messaging.E010"),
        ({"QUEUES": {"bill\r\ning": {}}}, "messaging.E010"),
        ({"QUEUES": {"billing": {"bindings": [("e\ne", "k")]}}}, "messaging.E011"),
        ({"QUEUES": {"billing": {"bindings": [("e", "k\nk")]}}}, "messaging.E011"),
        ({"QUEUES": {"billing": {"arguments": {"x-dead-letter-exchange": "e\ne"}}}}, "messaging.E011"),
        ({"QUEUES": {"billing": {"Type": "quorum"}}}, "messaging.E011"),
        ({"QUEUES": {"billing": {"type": "Quorum"}}}, "messaging.E011"),
        ({"QUEUES": {"billing": {"declare": None}}}, "messaging.E011"),
        ({"QUEUES": {"billing": {"prefetch": True}}}, "messaging.E011"),
        ({"QUEUES": {"billing": {"dead_letter": "no"}}}, "messaging.E011"),
        ({"QUEUES": {"billing": {"bindings": "ab"}}}, "messaging.E011"),
        ({"QUEUES": {"billing": {"bindings": ["ab"]}}}, "messaging.E011"),
        ({"QUEUES": {"billing": {"bindings": [("", "billing")]}}}, "messaging.E011"),
        ({"QUEUES": {"billing": {"bindings": [("e", b"k")]}}}, "messaging.E011"),
        ({"QUEUES": {"billing": {"arguments": ["x-max-length"]}}}, "messaging.E011"),
        ({"QUEUES": {"billing": {"arguments": {1: 2}}}}, "messaging.E011"),
        ({"QUEUES": {"billing": {"arguments": {"x-max-length": 1.5}}}}, "messaging.E011"),
        ({"QUEUES": {"billing": {"arguments": {"x-max-length": 2**63}}}}, "messaging.E011"),
        ({"QUEUES": {"billing": {"arguments": {"x-odd": [{"deep": None}]}}}}, "messaging.E011"),
        ({"QUEUES": {"billing": {"arguments": {"x-queue-type": "stream"}}}}, "messaging.E011"),
        ({"QUEUES": {"billing": {"type": "quorum", "arguments": {"x-queue-type": "classic"}}}}, "messaging.E011"),
    ],
)
def test_a_wrong_value_is_one_message_with_a_hint(settings: Settings, options: Any, identity: str) -> None:
    (message,) = run(settings, {"default": options})
    assert isinstance(message, CheckError)
    assert message.id == identity
    assert message.hint
    assert "pw" not in f"{message.msg}{message.hint}".replace("user:password", "")
    with pytest.raises(ConfigurationError) as caught:
        conf.get()
    assert str(caught.value) == f"{message.msg} {message.hint}"


@pytest.mark.parametrize("alias", ["", "x" * 101, "a\0b", "\udc80"])
def test_an_alias_must_fit_into_its_column(settings: Settings, alias: str) -> None:
    assert ids(run(settings, {"default": {}, alias: {}})) == ["messaging.E002"]


def test_keys_that_hold_a_credential_are_not_repeated(settings: Settings) -> None:
    url = "amqp://user:hush@host/"
    for value in ({url: {}, "default": []}, {"default": {url: {}, "QUEUES": {url: 1}, "DATABASES": [url]}}):
        assert "hush" not in "".join(f"{message.msg}{message.hint}" for message in run(settings, value))
    with pytest.raises(ConfigurationError) as caught:
        conf.get(url)
    assert "hush" not in str(caught.value)


def test_a_database_without_autocommit_is_refused(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(connections.settings, "other", {**connections.settings["default"], "AUTOCOMMIT": False})
    assert run(settings, {"default": {}}) == []
    (message,) = run(settings, {"default": {"DATABASES": ["default", "other"]}})
    assert isinstance(message, CheckError)
    assert message.id == "messaging.E034"
    assert '"AUTOCOMMIT": False' in message.msg


@pytest.mark.parametrize("name", ["messaging", "messaging.apps.MessagingConfig"])
def test_tables_in_each_tenants_schema_are_refused(settings: Settings, name: str) -> None:
    settings.SHARED_APPS, settings.TENANT_APPS = ["messaging"], ["shop"]
    assert run(settings, {"default": {}}) == []
    settings.TENANT_APPS = ["shop", name]
    (message,) = run(settings, {"default": {}})
    assert isinstance(message, CheckError)
    assert message.id == "messaging.E035"
    assert "SHARED_APPS" in str(message.hint)


def test_tables_in_the_schemas_of_a_type_of_tenants_are_refused(settings: Settings) -> None:
    settings.HAS_MULTI_TYPE_TENANTS = True
    settings.TENANT_TYPES = {"public": {"APPS": ["messaging"]}, "shops": {"APPS": ["shop"]}}
    assert run(settings, {"default": {}}) == []
    settings.TENANT_TYPES["shops"] = {"APPS": ["messaging"]}
    assert ids(run(settings, {"default": {}})) == ["messaging.E035"]


def test_an_empty_setting_is_the_default(settings: Settings) -> None:
    assert run(settings, {}) == []
    assert conf.aliases() == ("default",)
    assert conf.get().scheme == "database"


@pytest.mark.parametrize(
    ("options", "identity"),
    [
        ({"URL": "amqp://", "TLS": {"VERIFY": True}}, "messaging.W003"),
        ({"TLS": {"VERIFY": True}}, "messaging.W003"),
        ({"URL": "amqp://", "MANAGEMENT_URL": "https://h", "TLS": {"CA_FILE": "/no/such/file"}}, "messaging.W004"),
        ({"MANAGEMENT_URL": "http://host:15672"}, "messaging.W003"),
        ({"URL": "amqps://", "TLS": {"CA_FILE": "/no/such/file"}}, "messaging.W004"),
    ],
)
def test_what_has_no_effect_is_a_warning(settings: Settings, options: Any, identity: str) -> None:
    (message,) = run(settings, {"default": options})
    assert (message.id, message.is_serious()) == (identity, False)
    assert message.hint
    conf.get()  # usable all the same


def test_a_deployment_is_warned_of_what_is_only_fit_for_trying_out(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = {"ENGINE": "django.db.backends.sqlite3", "NAME": "file:x?mode=memory&cache=shared"}
    monkeypatch.setitem(connections.settings, "memory", memory)
    monkeypatch.setitem(connections.settings, "file", {**memory, "NAME": "/var/db.sqlite3"})
    settings.MESSAGING = {"default": {"URL": "amqps://", "TLS": {"VERIFY": False}, "DATABASES": ["memory", "file"]}}
    assert ids(check_deployment()) == ["messaging.W010", "messaging.W011"]
    settings.MESSAGING = {"default": {"URL": "amqps://", "DATABASES": ["file"]}, "broken": 7}
    assert check_deployment() == []


def test_a_near_miss_is_suggested(settings: Settings) -> None:
    (message,) = run(settings, {"default": {"EXCHANGES": "x"}})
    assert message.hint == 'Did you mean "EXCHANGE"?'
    (message,) = run(settings, {"default": {"url": "database://"}})
    assert message.hint == 'Did you mean "URL"?'


def test_a_missing_default_is_a_warning(settings: Settings) -> None:
    assert ids(run(settings, {"other": {}})) == ["messaging.W001"]


def test_generator_functions_are_refused(handlers: Registry) -> None:
    def one(message: Any) -> Iterator[None]:
        yield

    async def other(message: Any) -> Any:
        yield

    registered(handlers, one)
    registered(handlers, other, queue="other")
    assert ids(check_handlers(handlers.all(), ["default"])) == ["messaging.E020"] * 2


def test_unknown_aliases_and_databases_of_handlers(handlers: Registry) -> None:
    registered(handlers, lambda message: None, using="defualt", database="defualt")
    messages = list(check_handlers(handlers.all(), ["default"]))
    assert ids(messages) == ["messaging.E021", "messaging.E022"]
    assert "<function" not in "".join(map(str, messages))
    assert all(message.hint == 'Did you mean "default"?' for message in messages)


def test_a_handler_whose_retries_nobody_would_send(
    handlers: Registry, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(connections.settings, "another", {})
    settings.MESSAGING = {"default": {"DATABASES": ["another"]}}
    registered(handlers, lambda message: None)
    (message,) = check_handlers(handlers.all(), ["default"])
    assert message.id == "messaging.E024"
    assert message.hint == 'Add "default" to MESSAGING["default"]["DATABASES"].'


def test_a_misspelt_queue_is_found_by_its_handler(handlers: Registry, settings: Settings) -> None:
    registered(handlers, lambda message: None, queue="billing")
    registered(handlers, lambda message: None, queue="orders")
    (message,) = run(settings, {"default": {"QUEUES": {"biling": {}, "mail": {}, "billing.dead": {}, "orders": {}}}})
    assert (message.id, message.hint) == ("messaging.W005", 'Did you mean "billing"?')
    assert run(settings, {"default": {"QUEUES": {"billing": {}, "billings": {}}}}) == []


def test_a_queue_that_a_cluster_has_once_only_is_told(settings: Settings) -> None:
    queues: dict[str, dict[str, object]] = {
        "old": {"type": "classic"},
        "new": {},
        "of others": {"type": "classic", "declare": False},
    }
    assert run(settings, {"default": {"URL": "amqp://a/", "QUEUES": queues}}) == []
    (message,) = run(settings, {"default": {"URL": "amqp://a,b/", "QUEUES": queues}})
    assert (message.id, '"old"' in message.msg) == ("messaging.W015", True)


@pytest.mark.parametrize(
    ("first", "second", "overlap"),
    [
        (("orders.*",), ("orders.#",), True),
        (("orders.placed",), ("orders.paid",), False),
        ((), ("orders.paid",), True),
        ((), (), True),
        (("a", "b.*"), ("*.c",), True),
    ],
)
def test_handlers_of_one_queue_must_not_overlap(
    handlers: Registry, first: tuple[str, ...], second: tuple[str, ...], overlap: bool
) -> None:
    def one(message: Any) -> None: ...
    def other(message: Any) -> None: ...

    registered(handlers, one, routing_keys=first)
    registered(handlers, other, routing_keys=second)
    assert ids(check_handlers(handlers.all(), ["default"])) == ["messaging.E023"] * overlap


def test_sqlite_without_its_options_is_warned_about(monkeypatch: pytest.MonkeyPatch) -> None:
    database = {"ENGINE": "django.db.backends.sqlite3", "OPTIONS": {"timeout": 20}}
    monkeypatch.setitem(connections.settings, "bare", database)
    (message,) = check_sqlite(["bare"])
    assert message.id == "messaging.W002"
    assert "IMMEDIATE" in str(message.hint)
    assert "WAL" in str(message.hint)
    assert '"timeout"' not in str(message.hint)
    database["OPTIONS"] = {"timeout": 20, "transaction_mode": "immediate", "init_command": "PRAGMA journal_mode=wal;"}
    assert list(check_sqlite(["bare", "no-such"])) == []


def test_every_database_that_holds_messages_is_looked_at(
    handlers: Registry, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("queue", "outbox", "inbox"):
        monkeypatch.setitem(connections.settings, name, {"ENGINE": "django.db.backends.sqlite3"})
    settings.MESSAGING = {"default": {"URL": "database://queue", "DATABASES": ["outbox"]}, "broken": {"URL": 5}}
    registered(handlers, lambda message: None, database="inbox")
    registered(handlers, lambda message: None, queue="other", database="no-such")
    assert list(used_databases(handlers.all())) == ["inbox", "outbox", "queue"]
    monkeypatch.undo()
    settings.MESSAGING = {"default": {"URL": "database://"}}
    assert list(used_databases([])) == ["default"]
    tables = {model.__name__ for model in used_databases([])["default"]}
    assert tables >= {"PublishedMessage", "ProcessedMessage", "EmbeddedMessage"}
    settings.MESSAGING = {"default": {"URL": "amqp://"}}
    assert {model.__name__ for model in used_databases([])["default"]} == {"PublishedMessage", "ProcessedMessage"}


class KeepsOut:
    def allow_migrate(self, db: str, app_label: str, model_name: str | None = None, **hints: Any) -> bool | None:
        if app_label == "sessions":
            raise RuntimeError
        return False if (app_label, model_name) == ("messaging", "processedmessage") else None


def test_tables_that_a_router_keeps_out_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    from django.contrib.sessions.models import Session

    databases = used_databases([])
    assert list(check_routers(databases)) == []
    monkeypatch.setattr(router, "routers", [KeepsOut()])
    (message,) = check_routers(databases)
    assert message.id == "messaging.E030"
    assert "messaging.ProcessedMessage out" in message.msg
    assert list(check_routers({"default": [Session]})) == []  # a router's own errors are shown by `migrate`


def test_a_tenants_schema_is_kept_free_of_our_tables_without_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each `migrate` of django-tenants runs the checks there, with a router that keeps shared apps out."""
    monkeypatch.setattr(router, "routers", [KeepsOut()])
    for schema, found in (("public", ["messaging.E030"]), ("acme", [])):
        monkeypatch.setattr(connections["default"], "schema_name", schema, raising=False)
        assert ids(check_routers(used_databases([]))) == found


def test_every_id_is_in_the_reference_in_order_and_the_reference_has_no_other() -> None:
    reference = (ROOT / "docs" / "reference" / "checks.md").read_text()
    rows = re.findall(r"^\| `(messaging\.[EW]\d{3})` \| .+ \| .+ \|$", reference, re.MULTILINE)
    sources = [path.read_text() for path in (ROOT / "messaging").rglob("*.py")]
    used = {found for source in sources for found in re.findall(r'"(?:messaging\.)?([EW]\d{3})"', source)}
    assert sorted(rows) == sorted(f"messaging.{identity}" for identity in used)
    for table in re.findall(r"(?:^\| `messaging\..+\n)+", reference, re.MULTILINE):
        ids_there = re.findall(r"^\| `messaging\.(\w+)`", table, re.MULTILINE)
        assert ids_there == sorted(ids_there)


BROKEN = [
    {"default": {"URL": "amqp://user:hush@host:port/"}},
    {"default": {"LEASE": "x"}},
    {"default": {"DATABASES": ["elsewhere"]}},
    {"default": {"URL": "amqps://user:hush@127.0.0.1:1/", "TLS": {"CA_FILE": "/no/such/file"}}},
    {"default": {"RETENTION": {"published": "x"}}},
    ["hush"],
]


@pytest.mark.parametrize("broken", BROKEN, ids=str)
@pytest.mark.parametrize("command", ["consume", "relay", "topology"])
def test_a_command_given_a_broken_setting_ends_in_words(settings: Settings, command: str, broken: Any) -> None:
    settings.MESSAGING = broken
    with pytest.raises(CommandError, match="MESSAGING") as caught:
        call_command(command)
    assert "hush" not in str(caught.value)


@pytest.mark.parametrize("command", ["consume", "relay", "topology", "prune_messages"])
def test_a_command_given_an_unknown_alias_ends_in_words(command: str) -> None:
    with pytest.raises(CommandError, match='Did you mean "default"'):
        call_command(command, using="defualt")


def test_pruning_given_a_broken_setting_ends_in_words(settings: Settings) -> None:
    settings.MESSAGING = {"default": {"RETENTION": {"published": "x"}}}
    with pytest.raises(CommandError, match="RETENTION"):
        call_command("prune_messages")


@pytest.mark.django_db
def test_requeueing_does_not_depend_on_settings(settings: Settings) -> None:
    row = incoming("failed")
    settings.MESSAGING = {"default": {"LEASE": "x"}}
    call_command("requeue_messages", stdout=StringIO())
    row.refresh_from_db()
    assert row.state == "requeued"


@pytest.mark.parametrize("command", ["consume", "prune_messages"])
def test_a_command_given_a_handler_of_an_unknown_database_ends_in_words(
    command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = Registry()
    monkeypatch.setattr("messaging.handlers.registry", registry)
    monkeypatch.setattr("messaging.management.commands.consume.registry", registry)
    monkeypatch.setattr(registry, "discover", lambda: None)
    registered(registry, lambda message: None, database="defualt")
    with pytest.raises(CommandError, match='Did you mean "default"'):
        call_command(command)


def test_a_consumer_on_a_database_in_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}
    monkeypatch.setitem(connections.settings, "memory", memory)
    with pytest.raises(ConfigurationError, match=r'DATABASES\["memory"\]\["NAME"\]'):
        require(["memory"], shared=True)
    assert require(["memory"]) == ["memory"]
