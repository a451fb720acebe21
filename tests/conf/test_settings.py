"""Settings are read on access, whatever passes the checks can be used, and URLs are never misread."""

from __future__ import annotations

import enum
from typing import Any

import pytest
from django.test import Client, override_settings
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from pytest_django import Settings

from messaging import conf
from messaging.checks import check_messaging
from messaging.conf import rules, urls
from messaging.conf.urls import parse_management_url, parse_url
from messaging.exceptions import ConfigurationError
from messaging.handlers import Registry
from tests.admin_rows import INCOMING, OUTGOING, QUEUES, incoming


@pytest.fixture(autouse=True)
def handlers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("messaging.checks.registry", Registry())


def test_every_setting_is_read_on_access() -> None:
    for lease in (1, 2):
        with override_settings(MESSAGING={"default": {"LEASE": lease}}):
            assert conf.get().lease == lease
            conf.settings.MESSAGING["default"]["LEASE"] = 3
            assert conf.get().lease == 3


@pytest.mark.parametrize("value", [[], "amqp://user:hush@host", 7, {1: {}}, {"default": 7}, {"default": None}])
def test_a_setting_that_is_no_dict_is_refused_in_words(settings: Settings, value: Any) -> None:
    settings.MESSAGING = value
    with pytest.raises(ConfigurationError, match="not a dict") as caught:
        conf.get()
    assert "hush" not in str(caught.value)
    assert conf.aliases()


@pytest.mark.django_db
@pytest.mark.parametrize("value", [{"default": {"LEASE": "x"}}, ["x"], {5: {}, "default": {}}])
def test_the_admin_survives_broken_settings(settings: Settings, admin_client: Client, value: Any) -> None:
    row = incoming("failed")
    settings.MESSAGING = value
    for page in (INCOMING, OUTGOING, QUEUES, f"{INCOMING}{row.pk}/change/", f"{OUTGOING}add/"):
        assert admin_client.get(page).status_code == 200


@pytest.mark.parametrize("alias", ["defualt", None, 5, [], {}])
def test_an_unknown_alias_is_refused_in_words(alias: Any) -> None:
    with pytest.raises(ConfigurationError, match="has no alias"):
        conf.get(alias)


class Name(str, enum.Enum):  # noqa: UP042 - StrEnum is text as it is
    ALIAS = "default"
    EXCHANGE = "shop"
    QUEUE = "billing\r\n"
    TYPE = "classic"


def test_texts_are_read_as_they_are_at_the_broker(settings: Settings) -> None:
    bindings = [(Name.EXCHANGE, Name.QUEUE)]
    queue = {"type": Name.TYPE, "bindings": bindings, "arguments": {"x-dead-letter-exchange": Name.EXCHANGE}}
    settings.MESSAGING = {Name.ALIAS: {"EXCHANGE": Name.EXCHANGE, "QUEUES": {Name.QUEUE: queue}}}
    assert conf.aliases() == ("default",)
    read = conf.get(Name.ALIAS)
    billing = read.queue("billing")
    shown = (
        f"{read.alias} {read.exchange} {', '.join(read.queues)} {billing.type} {billing.arguments} {billing.bindings}"
    )
    assert shown == ("default shop billing classic {'x-dead-letter-exchange': 'shop'} (('shop', 'billing'),)")
    assert conf.get() is read  # and read once


def test_a_database_named_twice_has_one_relay(settings: Settings) -> None:
    settings.MESSAGING = {"default": {"DATABASES": ["default", "default"]}}
    assert conf.get().databases == ("default",)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("amqp://", ("amqp", (("localhost", 5672),), "/", "guest", "guest")),
        ("amqp:///vhost", ("amqp", (("localhost", 5672),), "vhost", "guest", "guest")),
        ("AMQPS://Host", ("amqps", (("host", 5671),), "/", "guest", "guest")),
        ("amqp://u:p@a,b:5673,[::1]:5/v", ("amqp", (("a", 5672), ("b", 5673), ("::1", 5)), "v", "u", "p")),
        ("amqp://u%40x:p%2F%3F%25@h/%2Fv%2f", ("amqp", (("h", 5672),), "/v/", "u@x", "p/?%")),
        ("amqp://u:p@ss:w%d#?@h:1//", ("amqp", (("h", 1),), "/", "u", "p@ss:w%d#?")),
        ("amqp://u@h/", ("amqp", (("h", 5672),), "/", "u", "")),
        ("amqp://h_1.example:/", ("amqp", (("h_1.example", 5672),), "/", "guest", "guest")),
        ("database://", ("database", (), "", "", "")),
        ("database://reports", ("database", (), "reports", "", "")),
    ],
)
def test_a_url_is_taken_apart(url: str, expected: tuple[Any, ...]) -> None:
    assert tuple(parse_url(url)[part] for part in ("scheme", "hosts", "vhost", "username", "password")) == expected


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("", "no URL"),
        ("localhost", "no URL"),
        ("://h", "no URL"),
        ("user:hush@h://x", "must start with"),
        ("ampq://h", 'Did you mean "amqp://"'),
        ("pyamqp://user:hush@h", "must start with"),
        ("redis://h", "must start with"),
        (" amqp://h", "white space"),
        ("amqp://u:hush@h\n", "white space"),
        ("amqp://u:hu\tsh@h", "cannot be printed"),
        ("amqp://h:0", "between 1 and 65535"),
        ("amqp://h:65536", "between 1 and 65535"),
        ("amqp://h:99999999999999999999", "between 1 and 65535"),
        ("amqp://h:-1", "host or port"),
        ("amqp://h:port", "host or port"),
        ("amqp://h:५", "host or port"),
        ("amqp://::1", "empty host"),
        ("amqp://1::2", "host or port"),
        ("amqp://[::1", "host or port"),
        ("amqp://h..x", "host or port"),
        ("amqp://a%20b", "host or port"),
        ("amqp://:5672", "empty host"),
        ("amqp://u:hush@", "empty host"),
        ("amqp://u:hush@:5672/", "empty host"),
        ("amqp://a,,b", "empty host"),
        ("amqp://a,", "empty host"),
        ("amqp://:hush@h", "no user name"),
        ("amqp://u:hush@a,u:hush@b", 'more than one "@"'),
        ("amqp://u:hu/sh@h", "%2F"),
        ("amqp://u:12/hush@h", "%2F"),
        ("amqp://h/v?heartbeat=5", "would be ignored"),
        ("amqp://h?heartbeat=5", "would be ignored"),
        ("amqp://h/v#x", "would be ignored"),
        ("amqp://h/a/b", "virtual host"),
        ("amqp://h/v/", "virtual host"),
        ("amqp://h/" + "v" * 256, "255 bytes"),
        ("amqp://u:hush%ff@h", "not UTF-8"),
        ("amqp://u:hush%00@h", "NUL"),
    ],
)
def test_a_url_that_could_be_misread_is_refused_without_repeating_it(url: str, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words) as caught:
        parse_url(url)
    assert "hu" not in str(caught.value)


def test_a_management_url_is_taken_apart() -> None:
    for url in ("http://u:p%40@Host:15672", "http://u:p%40@Host:15672/", "http://u:p%40@Host:15672/api/"):
        address = parse_management_url(url)
        assert (address.base, address.username, address.password) == ("http://Host:15672", "u", "p@")
        assert "p@" not in repr(address)
    assert parse_management_url("https://h/rabbit/api").base == "https://h/rabbit"
    for url in ("", "h:15672", "http://", "http:///", "http://h:0", "http://a,b", "http://u:hu/sh@h", "http://h?x"):
        with pytest.raises(ConfigurationError):
            parse_management_url(url)


words = st.sampled_from(["quorum", "classic", "a.b", "", "x-queue-type", "x-max-length", "default", "database://"])
numbers = st.integers() | st.floats() | st.sampled_from([0, 1, 0.5, 10**400, -(10**400), 2**63, True])
leaf = st.none() | numbers | words | st.text(max_size=8) | st.binary(max_size=4)
anything = st.recursive(
    leaf,
    lambda children: (
        st.lists(children, max_size=3)
        | st.tuples(children, children)
        | st.dictionaries(words | st.text(max_size=4) | st.integers(), children, max_size=3)
    ),
    max_leaves=8,
)


def table(keys: Any, value: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """A dict with some of these keys, and now and then another."""
    known = st.fixed_dictionaries({}, optional=dict.fromkeys(keys, value))
    return known | st.dictionaries(st.sampled_from([*keys, "x"]) | st.text(max_size=3), value, max_size=3)


url = st.builds(
    "{}://{}".format,
    st.sampled_from([*urls.SCHEMES, "http"]),
    st.text(alphabet="amqps:/@[]%,.0123456789#?ä \n\0\udc80", max_size=20),
)
queues = st.dictionaries(st.text(max_size=4) | words, table(rules.QUEUE, anything), max_size=2)
alias = st.fixed_dictionaries(
    {},
    optional={
        **dict.fromkeys(rules.ALIAS, anything),
        "URL": url | st.just("amqps://u:p@h/v") | anything,
        "MANAGEMENT_URL": url | anything,
        "RETRY": table(rules.RETRY, anything),
        "RETENTION": table(rules.RETENTION, anything),
        "TLS": table(rules.TLS, anything),
        "QUEUES": queues | anything,
    },
)


def read_all() -> list[conf.AliasSettings]:
    return [conf.get(name) for name in conf.aliases()]


@hypothesis_settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(value=st.fixed_dictionaries({"default": alias}) | st.fixed_dictionaries({"default": anything}) | anything)
def test_no_value_makes_a_check_raise_and_what_passes_can_be_read(settings: Settings, value: Any) -> None:
    settings.MESSAGING = value
    found = check_messaging()
    assert all(message.id and message.msg and message.hint for message in found)
    wrong = [message for message in found if message.is_serious()]
    if wrong:
        with pytest.raises(ConfigurationError):
            read_all()
        return
    for read in read_all():
        assert read.scheme in urls.SCHEMES
        assert all(1 <= port <= 65535 and host for host, port in read.hosts)
        assert all(isinstance(queue, conf.QueueSettings) for queue in read.queues.values())
        assert "password" not in read.safe_url


@hypothesis_settings(max_examples=300, deadline=None)
@given(part=st.text(max_size=10).filter(lambda part: "\0" not in part and part.isprintable()))
def test_whatever_is_percent_encoded_arrives(part: str) -> None:
    from urllib.parse import quote

    quoted = quote(part, safe="", errors="surrogatepass")
    try:
        part.encode()
    except UnicodeEncodeError:
        return
    read = parse_url(f"amqp://u{quoted}:{quoted}@h/{quoted}")
    assert (read["username"], read["password"], read["vhost"]) == (f"u{part}", part, part or "/")
