"""The broker's password: taken from where it is kept, and shown nowhere."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from django.core.checks import CheckMessage
from django.test import RequestFactory
from django.views.debug import ExceptionReporter, SafeExceptionReporterFilter
from pytest_django import Settings

from messaging import conf
from messaging.backends import get_backend
from messaging.checks import check_messaging
from messaging.conf.urls import parse_url
from messaging.exceptions import BrokerUnavailable, ConfigurationError
from messaging.handlers import Registry
from messaging.reports import ReporterFilter

URL = "amqp://shop:open%40sesame@rabbit/vhost"


@pytest.fixture(autouse=True)
def handlers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("messaging.checks.registry", Registry())


def read(settings: Settings, **options: Any) -> conf.AliasSettings:
    settings.MESSAGING = {"default": {"URL": "amqp://rabbit", **options}}
    return conf.get()


def found(settings: Settings, **options: Any) -> list[CheckMessage]:
    settings.MESSAGING = {"default": {"URL": "amqp://rabbit", **options}}
    return check_messaging()


def test_user_and_password_may_stand_beside_the_url(settings: Settings) -> None:
    assert read(settings, USER="shop", PASSWORD="p/@ss:1\n").credentials() == ("shop", "p/@ss:1")
    assert read(settings, URL="amqp://shop@rabbit", PASSWORD="open").credentials() == ("shop", "open")
    assert read(settings, USER=None, PASSWORD=None).credentials() == ("guest", "guest")
    assert read(settings, URL=URL).credentials() == ("shop", "open@sesame")
    assert read(settings, USER="shop", PASSWORD="open").safe_url == "amqp://shop@rabbit:5672/"
    assert "sesame" not in repr(read(settings, PASSWORD="sesame"))


def test_they_are_read_when_they_are_used_from_files_and_the_environment(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "password"
    file.write_text("first\r\n")
    monkeypatch.setenv("BROKER_USER", "shop")
    configured = read(settings, USER={"env": "BROKER_USER"}, PASSWORD={"file": file})
    assert configured.credentials() == ("shop", "first")
    assert configured.safe_url == "amqp://…@rabbit:5672/"
    file.write_text("second\n")
    assert configured.credentials() == ("shop", "second")


def test_what_cannot_be_read_is_said_and_tried_again(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("BROKER_USER", raising=False)
    for options, words in (
        ({"PASSWORD": {"file": str(tmp_path / "gone")}}, 'gone" cannot be read: No such file'),
        ({"USER": {"env": "BROKER_USER"}}, 'BROKER_USER" cannot be read: it is not set'),
    ):
        (problem,) = found(settings, **options)
        assert problem.id == "messaging.W004"
        assert words in problem.msg
        with pytest.raises(BrokerUnavailable, match="cannot be read"):
            get_backend("default").sender().open()


@pytest.mark.parametrize(
    ("options", "identity"),
    [
        ({"URL": URL, "PASSWORD": "x"}, "messaging.E005"),
        ({"URL": "amqp://shop@rabbit", "USER": "x"}, "messaging.E005"),
        ({"PASSWORD": 5}, "messaging.E004"),
        ({"PASSWORD": {"file": "a", "env": "b"}}, "messaging.E004"),
        ({"PASSWORD": {}}, "messaging.E004"),
        ({"PASSWORD": {"vault": "x"}}, "messaging.E004"),
        ({"USER": {"env": 5}}, "messaging.E004"),
        ({"USER": {"file": ""}}, "messaging.E004"),
        ({"URL": "database://", "PASSWORD": "x"}, "messaging.W003"),
    ],
)
def test_what_cannot_be_meant_is_a_check(settings: Settings, options: dict[str, Any], identity: str) -> None:
    (message,) = found(settings, **options)
    assert message.id == identity
    assert "sesame" not in f"{message.msg}{message.hint}"


@pytest.mark.broker
def test_a_broker_takes_them(settings: Settings, vhost_url: str, tmp_path: Path) -> None:
    address, file = parse_url(vhost_url), tmp_path / "password"
    url = vhost_url.partition("://")[0] + "://" + vhost_url.rpartition("@")[2]
    file.write_text(address["password"] + "\n")
    settings.MESSAGING = {"default": {"URL": url, "USER": address["username"], "PASSWORD": {"file": file}}}
    sender = get_backend("default").sender()
    sender.open()
    sender.close()
    file.write_text("another")
    with pytest.raises(BrokerUnavailable, match="refused the login"):
        sender.open()


def reports(settings: Settings) -> str:
    """Everything that Django reports of an error in which our settings were at work."""
    request = RequestFactory().get("/", MESSAGING_URL=URL)
    url, configured = URL, settings.MESSAGING  # noqa: F841  the frame's variables
    try:
        parse_url(URL.replace("/vhost", "/a/b"))
    except ConfigurationError:
        reporter = ExceptionReporter(request, *sys.exc_info(), is_email=False)
        pages = reporter.get_traceback_html() + reporter.get_traceback_text()
    try:
        read(settings, URL=URL, LEASE="soon")
    except ConfigurationError:
        mailed = ExceptionReporter(request, *sys.exc_info(), is_email=True)
        pages += mailed.get_traceback_html() + mailed.get_traceback_text()
    return pages


@pytest.mark.mode(60)
@pytest.mark.parametrize("debug", [False, True])
@pytest.mark.parametrize(
    "options", [{"URL": URL}, {"URL": "amqp://shop@rabbit/vhost", "PASSWORD": "open@sesame"}], ids=["url", "apart"]
)
def test_no_report_of_django_shows_a_password(settings: Settings, options: dict[str, Any], debug: bool) -> None:
    settings.DEBUG = debug
    settings.MESSAGING = {"default": {**options, "MANAGEMENT_URL": "http://shop:open%40sesame@rabbit:15672"}}
    html = reports(settings)
    assert "MESSAGING" in html
    assert "rabbit" in html
    assert "sesame" not in html


class OfTheSite(SafeExceptionReporterFilter):
    pass


class Derived(ReporterFilter):
    pass


def test_a_filter_of_the_sites_own_is_warned_about_where_a_url_holds_a_password(settings: Settings) -> None:
    assert found(settings, URL=URL) == []
    settings.DEFAULT_EXCEPTION_REPORTER_FILTER = f"{__name__}.OfTheSite"
    (message,) = found(settings, URL=URL)
    assert message.id == "messaging.W012"
    assert found(settings, PASSWORD="sesame") == found(settings, URL="amqp://guest:guest@rabbit") == []
    settings.DEFAULT_EXCEPTION_REPORTER_FILTER = f"{__name__}.Derived"
    assert found(settings, URL=URL) == []
