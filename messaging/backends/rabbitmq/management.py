"""RabbitMQ's management API, where it is configured: exact queue arguments, bindings and unacknowledged messages."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import quote

from messaging.backends import http
from messaging.backends.base import QueueDepth
from messaging.backends.rabbitmq import parameters
from messaging.conf import AliasSettings
from messaging.conf.urls import parse_management_url
from messaging.exceptions import BrokerUnavailable
from messaging.handlers import topic_matches

SOURCE = "management API"
# What an answer may hold under these names; None besides. An empty table may come as an empty list.
_TYPES: dict[str, type] = {
    **dict.fromkeys(("name", "type", "state", "policy", "operator_policy", "source", "routing_key"), str),
    **dict.fromkeys(("durable", "auto_delete", "exclusive", "internal"), bool),
    **dict.fromkeys(("messages_ready", "messages_unacknowledged", "consumers"), int),
    **dict.fromkeys(("arguments", "effective_policy_definition", "definition"), dict),
}
# By the type of an exchange, whether a binding with this key takes a message with that one.
_MATCHES: dict[str, Callable[[str, str], bool]] = {
    "topic": topic_matches,
    "direct": str.__eq__,
    "fanout": lambda _bound, _routing_key: True,
}


class Management:
    """Reads from the management API.

    Args:
        settings: the alias's, with `management_url`; its credentials are used, else those of the broker's URL.
        timeout: seconds for each answer. Every method raises BrokerUnavailable when there is none, or when it is
            something else than the API answers.
    """

    def __init__(self, settings: AliasSettings, timeout: float = 5.0) -> None:
        address = parse_management_url(settings.management_url or "", "MANAGEMENT_URL")
        user, password = settings.credentials() if address.username is None else (address.username, "")
        password = address.password or password
        self._base = address.base
        self._authorization = "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode("ascii")
        self._vhost = quote(settings.vhost, safe="")
        self._timeout = timeout
        self._tls = parameters.tls_context(settings) if address.base.startswith("https:") else None

    def queue(self, name: str, timeout: float | None = None) -> dict[str, Any] | None:
        """What the broker says about a queue; None when it does not exist."""
        return self._one(f"queues/{self._vhost}/{_quoted(name)}", timeout)

    def depths(self, names: Iterable[str], seconds: float) -> list[QueueDepth]:
        """Readings of queues, within `seconds` in all; fewer when the time is up."""
        deadline = time.monotonic() + seconds
        readings = []
        for name in names:
            left = deadline - time.monotonic()
            if left <= 0:
                break
            found = self.queue(name, min(left, self._timeout))
            if found is None:
                readings.append(QueueDepth(name, exists=False, source=SOURCE))
            elif "messages_ready" in found:  # a queue that is seconds old has no statistics yet
                readings.append(
                    QueueDepth(
                        name,
                        found["messages_ready"],
                        found.get("messages_unacknowledged"),
                        found.get("consumers"),
                        source=SOURCE,
                    )
                )
        return readings

    def exchange(self, name: str) -> dict[str, Any] | None:
        """What the broker says about an exchange; None when it does not exist."""
        return self._one(f"exchanges/{self._vhost}/{_quoted(name)}")

    def bindings_of(self, queue: str) -> list[dict[str, Any]]:
        """The bindings that lead to a queue."""
        return self._bindings(f"queues/{self._vhost}/{_quoted(queue)}/bindings")

    def bindings_from(self, exchange: str) -> list[dict[str, Any]]:
        """The bindings that lead from an exchange."""
        return self._bindings(f"exchanges/{self._vhost}/{_quoted(exchange)}/bindings/source")

    def routes(self, exchange: str, routing_key: str) -> list[str] | None:
        """The queues that a message would reach; None where an exchange goes by more than the routing key."""
        if exchange == "":
            return [] if self.queue(routing_key) is None else [routing_key]
        found = self.exchange(exchange)
        if found is None:
            return []
        matches = _MATCHES.get(found.get("type", ""))
        bindings = self.bindings_from(exchange)
        is_plain = all(one.get("destination_type") == "queue" for one in bindings)
        if matches is None or not is_plain or found.get("arguments", {}).get("alternate-exchange"):
            return None
        return sorted({str(one.get("destination")) for one in bindings if matches(one["routing_key"], routing_key)})

    def policy(self, name: str) -> dict[str, Any]:
        """What a policy defines; nothing when it does not exist."""
        found = self._one(f"policies/{self._vhost}/{_quoted(name)}")
        return found.get("definition") or {} if found else {}

    def _one(self, path: str, timeout: float | None = None) -> dict[str, Any] | None:
        found = self._get(path, timeout)
        return None if found is None else self._checked(found)

    def _bindings(self, path: str) -> list[dict[str, Any]]:
        found = self._get(path)
        bindings = [self._checked(one) for one in found] if isinstance(found, list) else []
        if not isinstance(found, list | None) or not all(isinstance(one.get("routing_key"), str) for one in bindings):
            raise self._odd("bindings are no list of tables with a routing key each")
        return bindings

    def _checked(self, found: Any) -> dict[str, Any]:
        """A table of the API's, in which nothing is of another type than its name says."""
        if not isinstance(found, dict):
            raise self._odd("it is no table")
        for name, kind in _TYPES.items():
            value = found.get(name)
            if kind is dict and value == []:
                found[name] = {}
            elif value is not None and type(value) is not kind:
                raise self._odd(f'"{name}" is not of the type {kind.__name__}')
        return found

    def _odd(self, problem: str) -> BrokerUnavailable:
        return BrokerUnavailable(f"{self._base} does not answer as RabbitMQ's management API does: {problem}.")

    def _get(self, path: str, timeout: float | None = None) -> Any:
        headers = {"Authorization": self._authorization}
        try:
            status, body = http.get(f"{self._base}/api/{path}", headers, timeout or self._timeout, self._tls)
        except http.NoAnswer as problem:
            raise BrokerUnavailable(f"RabbitMQ's management API at {self._base} does not answer: {problem}.") from None
        if status == 404:
            return None
        if status != 200:
            raise BrokerUnavailable(f"RabbitMQ's management API at {self._base} answers {status}.")
        try:
            found = json.loads(body)
        except (ValueError, RecursionError):
            raise self._odd("it is no JSON, or nested too deeply") from None
        if found is None:
            raise self._odd("it is empty")
        return found


def _quoted(name: str) -> str:
    return quote(name.encode("utf-8", "surrogateescape"), safe="")
