"""Who is told of alerts, and how: by mail, webhook or a function of the site's. Directly, never over the broker."""

from __future__ import annotations

import hashlib
import json
import ssl
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from django.conf import settings
from django.core import mail
from django.db import connections
from django.utils.module_loading import import_string
from django.utils.translation import gettext as _

from messaging import conf
from messaging.backends import http
from messaging.exceptions import BrokerUnavailable, ConfigurationError
from messaging.wire.bodies import one_line

SECONDS = 10.0  # for a webhook's whole answer, and for each step of a mail server's
CALL_SECONDS = 60.0  # for the site's own function, within `alerts.LEASE`
MOST = 64 * 1024  # bytes of a webhook's answer
BEGINS, GOES_ON, OVER, TEST = "begins", "goes_on", "over", "test"  # what a message says of its alert

# Who is told, where `MESSAGING_CONSOLE["ALERTS"]` does not say otherwise.
NOBODY: Mapping[str, Any] = {"mail": [], "slack": [], "webhooks": [], "call": None}

Content = Mapping[str, Any]


class NotTold(Exception):
    """A recipient could not be told; says why, without the address of a webhook, which is a secret."""


@dataclass(frozen=True, slots=True)
class Channel:
    """One way to tell.

    Attributes:
        key: names it in rows: "mail", "call", or the kind and a digest of the target, such as "slack:3f2a9c41d0b7",
            which does not change with the place in its list.
        kind: "mail", "slack", "webhooks" or "call", as in the settings.
        target: the addresses, the webhook or the dotted path.
        name: for people: the kind and the place in its list, such as "slack:0". Rows of an earlier release have it.
    """

    key: str
    kind: str
    target: Any = field(repr=False)
    name: str

    def tell(self, content: Content) -> None:
        """Raises NotTold."""
        try:
            _WAYS[self.kind](self.target, content)
        except NotTold:
            raise
        except (Exception, SystemExit) as error:  # a mail server's, or of a backend of the site's own
            raise NotTold(f"{type(error).__name__}: {one_line(error)}") from error


def channels() -> list[Channel]:
    """Everyone who is told; nobody where the settings name nobody, or cannot be read."""
    try:
        alerts = conf.console().alerts
    except ConfigurationError:  # said by the system checks
        return []
    found = [Channel("mail", "mail", list(alerts["mail"]), "mail")] if alerts.get("mail") else []
    for kind in ("slack", "webhooks"):
        targets = enumerate(alerts.get(kind) or ())
        found += [Channel(_key(kind, target), kind, target, f"{kind}:{place}") for place, target in targets]
    return [*found, *([Channel("call", "call", alerts["call"], "call")] if alerts.get("call") else [])]


def _key(kind: str, target: Any) -> str:
    """Tells a webhook from others without telling its address, which is a secret."""
    text = target if isinstance(target, str) else json.dumps(target, sort_keys=True, default=repr)
    return f"{kind}:{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def headline(content: Content) -> str:
    """What it is about, on one line."""
    words = {
        BEGINS: _("Alert: %(words)s"),
        GOES_ON: _("Still: %(words)s"),
        OVER: _("Over: %(words)s"),
        TEST: _("Test: %(words)s"),
    }[content["event"]]
    banner = f"[{content['banner']}] " if content.get("banner") else ""
    return one_line(banner + words % {"words": content["words"]})


def _mail(addresses: list[str], content: Content) -> None:
    mailers: Any = getattr(mail, "mailers", None)  # from Django 6.1 on, whether or not a site has MAILERS
    connection: Any = mail.get_connection() if mailers is None else mailers["default"]
    if getattr(connection, "timeout", SECONDS) is None:  # Django's own waits for ever, unless EMAIL_TIMEOUT is set
        connection.timeout = SECONDS
    facts = [
        content["words"],
        content["fix"],
        "",
        *(f"{name}: {content[name]}" for name in _FACTS if content.get(name)),
    ]
    message = mail.EmailMessage(headline(content), "\n".join(facts), settings.DEFAULT_FROM_EMAIL, addresses)
    if not connection.send_messages([message]):
        raise NotTold("no mail was sent")


def _slack(source: Any, content: Content) -> None:
    lines = [f"*{_escaped(headline(content))}*", _escaped(str(content["fix"]))]
    _post(source, {"text": "\n".join(filter(None, lines))})


def _webhook(source: Any, content: Content) -> None:
    _post(source, content)


def _call(path: str, content: Content) -> None:
    """Call the site's own function, in a thread of its own: one that never comes back is left there."""
    before = _calls.get(path)
    if before is not None and before.is_alive():
        raise NotTold("its call before has not come back yet")
    call = _calls[path] = _Call(path, content)
    call.start()
    call.join(CALL_SECONDS)
    if call.is_alive():
        raise NotTold(f"it has not come back within {CALL_SECONDS:g} seconds")
    if call.error is not None:
        raise NotTold(f"{type(call.error).__name__}: {one_line(call.error)}") from call.error


class _Call(threading.Thread):
    """One call of the site's own function; `error` is what it has raised."""

    def __init__(self, path: str, content: Content) -> None:
        super().__init__(name="messaging-alert-call", daemon=True)
        self.path, self.content = path, dict(content)
        self.error: BaseException | None = None

    def run(self) -> None:
        """Call it."""
        try:
            import_string(self.path)(self.content)
        except BaseException as error:  # noqa: BLE001  whatever it is, nobody was told
            self.error = error
        finally:
            connections.close_all()  # of this thread


def _post(source: Any, content: Content) -> None:
    url = _url(source)
    try:
        tls = ssl.create_default_context() if urlsplit(url).scheme == "https" else None
        headers = {"Content-Type": "application/json", "User-Agent": "django-durable-messaging"}
        body = json.dumps(content).encode()
        status, _answer = http.ask("POST", url, headers, SECONDS, tls, body, MOST)
    except http.NoAnswer as problem:
        raise NotTold(f"the webhook does not answer: {problem}") from None
    except ValueError:  # a port that is no number
        raise NotTold("the webhook's URL cannot be used") from None
    if not 200 <= status < 300:
        raise NotTold(f"the webhook answers {status}")


def _url(source: Any) -> str:
    if isinstance(source, str):
        return source
    try:
        url = conf.read_secret(source, 'MESSAGING_CONSOLE["ALERTS"]')
    except BrokerUnavailable as error:
        raise NotTold(str(error)) from None
    if not url.startswith(("http://", "https://")):
        raise NotTold("what is read is no URL of a webhook")
    return url


def _escaped(text: str) -> str:
    """Text as Slack has it, which reads mentions and links in angle brackets."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


_calls: dict[str, _Call] = {}  # the last one of each function
_FACTS = ("level", "kind", "subject", "alias", "since", "page")
_WAYS: Mapping[str, Callable[[Any, Content], None]] = {
    "mail": _mail,
    "slack": _slack,
    "webhooks": _webhook,
    "call": _call,
}
