"""Every check has a stable id, says what to do, and none raises."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from django.core.checks import CheckMessage
from django.core.checks import Error as CheckError
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from pytest_django import Settings

from messaging.checks import check_handlers, check_messaging, check_sqlite
from messaging.handlers import Registry
from tests.processing import registered


def run(settings: Settings, value: Any) -> list[CheckMessage]:
    settings.MESSAGING = value
    return check_messaging()


def ids(messages: Any) -> list[str]:
    return [str(message.id) for message in messages]


@pytest.fixture(autouse=True)
def handlers(monkeypatch: pytest.MonkeyPatch) -> Registry:
    registry = Registry()
    monkeypatch.setattr("messaging.checks.registry", registry)
    monkeypatch.setattr("messaging.checks.check_sqlite", lambda _: [])
    return registry


def test_the_defaults_and_a_full_example_are_fine(settings: Settings) -> None:
    assert run(settings, {"default": {}}) == []
    assert run(settings, None) == []
    full = {
        "URL": "amqp://user:pw@a:5672,b:5672/vhost",
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
        "TLS": {"VERIFY": True, "CA_FILE": "/etc/ca.pem"},
        "MANAGEMENT_URL": None,
        "STOP_TIMEOUT": 30,
        "NOTIFY": False,
        "POLL_INTERVAL": 0.2,
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
        ({"NOTIFY": "yes"}, "messaging.E004"),
        ({"POLL_INTERVAL": 0}, "messaging.E004"),
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
    ],
)
def test_a_wrong_value_is_one_message_with_a_hint(settings: Settings, options: Any, identity: str) -> None:
    (message,) = run(settings, {"default": options})
    assert isinstance(message, CheckError)
    assert message.id == identity
    assert message.hint
    assert "pw" not in f"{message.msg}{message.hint}".replace("user:password", "")


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


def test_a_handler_whose_retries_nobody_would_send(handlers: Registry, settings: Settings) -> None:
    settings.MESSAGING = {"default": {"DATABASES": ["another"]}}
    registered(handlers, lambda message: None)
    (message,) = check_handlers(handlers.all(), ["default"])
    assert message.id == "messaging.E024"
    assert message.hint == 'Add "default" to MESSAGING["default"]["DATABASES"].'


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
    from django.db import connections

    from messaging import checks

    database = {"ENGINE": "django.db.backends.sqlite3", "OPTIONS": {"timeout": 20}}
    monkeypatch.setitem(connections.settings, "bare", database)
    (message,) = check_sqlite(["bare"])
    assert message.id == "messaging.W002"
    assert "IMMEDIATE" in str(message.hint)
    assert "WAL" in str(message.hint)
    assert '"timeout"' not in str(message.hint)
    database["OPTIONS"] = {"timeout": 20, "transaction_mode": "immediate", "init_command": "PRAGMA journal_mode=wal;"}
    assert list(checks.check_sqlite(["bare", "no-such"])) == []


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.binary(max_size=4),
    lambda children: (
        st.lists(children, max_size=3)
        | st.dictionaries(
            st.sampled_from(["default", "URL", "QUEUES", "RETRY", "RETENTION", "TLS", "DATABASES", "bindings", "x"])
            | st.integers(),
            children,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@hypothesis_settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(value=anything | st.fixed_dictionaries({"default": anything}))
def test_no_value_makes_a_check_raise(settings: Settings, value: Any) -> None:
    for message in run(settings, value):
        assert message.id
        assert message.hint
        assert message.msg


@hypothesis_settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(url=st.text(alphabet="amqps:/@[]%,.0123456789#?ä ", max_size=30))
def test_no_url_makes_a_check_raise(settings: Settings, url: str) -> None:
    run(settings, {"default": {"URL": url}})
    run(settings, {"default": {"URL": f"amqp://{url}"}})
