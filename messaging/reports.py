"""Django's error mails and debug pages, without the passwords and webhooks that our settings hold."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any
from urllib.parse import unquote

from django.http import HttpRequest
from django.views.debug import SafeExceptionReporterFilter

from messaging import conf
from messaging.conf import rules
from messaging.exceptions import BrokerUnavailable

URLS = ("URL", "MANAGEMENT_URL")
SHORTEST = 6  # characters of a password that is hidden wherever it stands; a shorter one is part of other words
OUR_MODULES = ("messaging", "pika")
PLAIN = (str, dict, list, tuple, set)  # what is looked at in the frames of others: to ask any object may be costly
_PASSWORD = re.compile(r"://[^:/@]*:(.*)@", re.DOTALL)


class ReporterFilter(SafeExceptionReporterFilter):
    """Hides the passwords of `MESSAGING` in settings, in the environment, and in the variables of each frame.

    In place unless the site sets `DEFAULT_EXCEPTION_REPORTER_FILTER`; a filter of its own can derive from it.
    """

    def cleanse_setting(self, key: Any, value: Any) -> Any:
        """The value as it may be shown."""
        cleansed = super().cleanse_setting(key, value)
        return self._masked(cleansed, passwords()) if isinstance(cleansed, str) else cleansed

    def get_traceback_frame_variables(self, request: HttpRequest | None, tb_frame: Any) -> Any:
        """The local variables of a frame as they may be shown."""
        found, hidden = super().get_traceback_frame_variables(request, tb_frame), passwords()
        kinds = object if str(tb_frame.f_globals.get("__name__")).startswith(OUR_MODULES) else PLAIN
        return [(name, self._shown(value, hidden) if isinstance(value, kinds) else value) for name, value in found]

    def _masked(self, text: str, hidden: set[str]) -> str:
        """Text in which stars stand for each password."""
        for password in hidden:
            text = text.replace(f":{password}@", f":{self.cleansed_substitute}@")
            text = text.replace(password, self.cleansed_substitute) if len(password) >= SHORTEST else text
        return text

    def _shown(self, value: Any, hidden: set[str]) -> Any:
        """A variable itself if no password is in what a report shows of it, else stars."""
        try:
            text = repr(value)
        except Exception:  # noqa: BLE001  somebody else's code, which the report calls as well
            return value
        return value if self._masked(text, hidden) == text else self.cleansed_substitute


def passwords() -> set[str]:
    """Every password of `MESSAGING`, as it is and as a URL writes it, and the secrets of the console. Never raises."""
    return {password for password in _passwords() if password not in ("", "guest")}


def are_told() -> bool:
    """Whether a URL of `MESSAGING` holds a password. Never raises."""
    return any(_of_url(url) not in ("", "guest") for url in _urls())


def _passwords() -> Iterator[str]:
    for url in _urls():
        yield from (_of_url(url), unquote(_of_url(url)))
    for options in _options():
        password = options.get("PASSWORD")
        if isinstance(password, str):
            yield password.rstrip("\r\n")
        elif isinstance(password, Mapping) and rules.is_secret(password):
            with suppress(BrokerUnavailable):
                yield conf.read_secret(password, "")
    yield from _of_console()


def _of_console() -> Iterator[str]:
    """Whoever knows the URL of a webhook may write to it."""
    configured = conf.read_console()
    configured = configured if isinstance(configured, Mapping) else {}
    alerts = configured.get("ALERTS")
    lists = [alerts.get(kind) for kind in ("slack", "webhooks")] if isinstance(alerts, Mapping) else []
    found = [one for own in lists if isinstance(own, (list, tuple)) for one in own]
    for source in (*found, configured.get("HEALTH_TOKEN")):
        if isinstance(source, str):
            yield source
        elif isinstance(source, Mapping) and rules.is_secret(source):
            with suppress(BrokerUnavailable):
                yield conf.read_secret(source, "")


def _urls() -> Iterator[str]:
    for options in _options():
        yield from (options[key] for key in URLS if isinstance(options.get(key), str))


def _options() -> Iterator[Mapping[Any, Any]]:
    configured = conf.read()
    for options in configured.values() if isinstance(configured, Mapping) else ():
        if isinstance(options, Mapping):
            yield options


def _of_url(url: str) -> str:
    found = _PASSWORD.search(url)
    return found[1] if found else ""
