"""RabbitMQ's management API, where it is configured: exact queue arguments, bindings and unacknowledged messages."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Iterable, Iterator
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import quote
from urllib.request import Request, urlopen

from messaging.addresses import parse_management_url
from messaging.backends import missing
from messaging.backends.base import Difference, QueueDepth, QueueSpec, Topology
from messaging.backends.rabbitmq import arguments, differences
from messaging.backends.rabbitmq.declare import is_builtin
from messaging.conf import AliasSettings
from messaging.exceptions import BrokerUnavailable

SOURCE = "management API"


class Management:
    """Reads from the management API.

    Args:
        settings: the alias's, with `management_url`; its credentials are used, else those of the broker's URL.
        timeout: seconds for each answer. Every method raises BrokerUnavailable when there is none.
    """

    def __init__(self, settings: AliasSettings, timeout: float = 5.0) -> None:
        address = parse_management_url(settings.management_url or "", "MANAGEMENT_URL")
        user = address.username or settings.username
        password = address.password or settings.password
        self._base = address.base
        self._authorization = "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode("ascii")
        self._vhost = quote(settings.vhost, safe="")
        self._timeout = timeout

    def queue(self, name: str, timeout: float | None = None) -> dict[str, Any] | None:
        """What the broker says about a queue; None when it does not exist."""
        found = self._get(f"queues/{self._vhost}/{_quoted(name)}", timeout)
        return found if isinstance(found, dict) else None

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

    def compare(self, topology: Topology) -> list[Difference]:
        """Every difference between the topology and the broker."""
        found: list[Difference] = []
        for exchange in topology.exchanges:
            if not is_builtin(exchange.name):
                found += self._compare_exchange(exchange.name, exchange.type)
        known = {exchange.name for exchange in topology.exchanges}
        named = [name for queue in topology.queues if queue.declare for name, _ in queue.bindings]
        for name in dict.fromkeys(named):
            if name not in known and not is_builtin(name):
                found += self._compare_exchange(name, None)
        for queue in topology.queues:
            found += self._compare_queue(queue)
        return found

    def _compare_exchange(self, name: str, type_: str | None) -> Iterator[Difference]:
        subject, found = f'exchange "{name}"', self._get(f"exchanges/{self._vhost}/{_quoted(name)}")
        delete = "Delete it yourself and run `manage.py topology`; or use another exchange name."
        if not isinstance(found, dict):
            yield missing.exchange(name)
            return
        if not found.get("durable", True):
            problem = "it is not durable: it and its bindings are lost when the broker restarts."
            yield Difference(subject, problem, delete, "error")
        if found.get("internal"):
            yield Difference(subject, "it is internal: nobody can publish to it.", delete, "error")
        if found.get("auto_delete"):
            yield Difference(subject, "it is deleted with its last binding.", delete, "loss")
        if type_ is not None and found.get("type") != type_:
            problem = f"its type is {found.get('type')} at the broker, the topology says {type_}; it is used as it is."
            yield Difference(subject, problem, delete)

    def _compare_queue(self, queue: QueueSpec) -> Iterator[Difference]:
        if queue.declare and queue.dead_letter:
            yield from self._compare_one(queue.dead, arguments.for_dead_letters(queue))
        if not queue.declare:
            yield from self._compare_one(queue.name, None)
            return
        found = list(self._compare_one(queue.name, arguments.for_queue(queue)))
        yield from found
        if not any(difference.severity == "missing" for difference in found):
            yield from self._compare_bindings(queue)

    def _compare_one(self, name: str, wanted: dict[str, Any] | None) -> Iterator[Difference]:
        found = self.queue(name)
        if found is None:
            yield missing.queue(name, ours=wanted is not None)
            return
        if found.get("exclusive"):
            yield differences.exclusive(name)
        elif not found.get("durable", True):
            yield differences.not_durable(name)
        elif found.get("auto_delete"):
            yield differences.auto_deleted(name)
        if wanted is None:
            return
        current = {"x-queue-type": found.get("type"), **(found.get("arguments") or {})}
        policy = found.get("effective_policy_definition") or {}
        for argument in sorted(wanted.keys() | current.keys()):
            ours, theirs = wanted.get(argument), current.get(argument)
            # A policy may say what an argument does not.
            if ours != theirs and not (theirs is None and policy and policy.get(argument.removeprefix("x-")) == ours):
                yield differences.of_argument(name, argument, _shown(theirs), _shown(ours))

    def _compare_bindings(self, queue: QueueSpec) -> Iterator[Difference]:
        found = self._get(f"queues/{self._vhost}/{_quoted(queue.name)}/bindings") or []
        current = {(binding["source"], binding["routing_key"]) for binding in found if binding["source"]}
        wanted = {binding for binding in queue.bindings if binding[0]}
        for exchange, routing_key in sorted(wanted - current):
            yield missing.binding(queue.name, exchange, routing_key)
        for exchange, routing_key in sorted(current - wanted):
            yield Difference(
                f'queue "{queue.name}"',
                f'it is also bound to exchange "{exchange}" with routing key "{routing_key}", which the topology does '
                "not say.",
                "If no handler wants these messages any more, remove the binding at the broker.",
            )

    def _get(self, path: str, timeout: float | None = None) -> Any:
        request = Request(f"{self._base}/api/{path}", headers={"Authorization": self._authorization})  # noqa: S310 - http(s)
        try:
            with urlopen(request, timeout=timeout or self._timeout) as response:  # noqa: S310
                return json.load(response)
        except HTTPError as error:
            with error:
                if error.code == 404:
                    return None
            raise BrokerUnavailable(f"RabbitMQ's management API at {self._base} answers {error.code}.") from None
        except (URLError, OSError, ValueError, HTTPException) as error:
            reason = getattr(error, "reason", None) or error
            words = getattr(reason, "strerror", None) or reason
            raise BrokerUnavailable(f"RabbitMQ's management API at {self._base} does not answer: {words}.") from None


def _quoted(name: str) -> str:
    return quote(name.encode("utf-8", "surrogateescape"), safe="")


def _shown(value: Any) -> str:
    return "not set" if value is None else f"'{value}'"
