"""RabbitMQ's management API, where it is configured: exact queue arguments, bindings and unacknowledged messages."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Iterable
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import quote
from urllib.request import Request, urlopen

from messaging.addresses import parse_management_url
from messaging.backends.base import QueueDepth
from messaging.backends.rabbitmq import parameters
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
        self._tls = parameters.tls_context(settings) if address.base.startswith("https:") else None

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

    def exchange(self, name: str) -> dict[str, Any] | None:
        """What the broker says about an exchange; None when it does not exist."""
        found = self._get(f"exchanges/{self._vhost}/{_quoted(name)}")
        return found if isinstance(found, dict) else None

    def bindings_of(self, queue: str) -> list[dict[str, Any]]:
        """The bindings that lead to a queue."""
        return list(self._get(f"queues/{self._vhost}/{_quoted(queue)}/bindings") or ())

    def bindings_from(self, exchange: str) -> list[dict[str, Any]]:
        """The bindings that lead from an exchange."""
        return list(self._get(f"exchanges/{self._vhost}/{_quoted(exchange)}/bindings/source") or ())

    def policy(self, name: str) -> dict[str, Any]:
        """What a policy defines; nothing when it does not exist."""
        found = self._get(f"policies/{self._vhost}/{_quoted(name)}")
        return dict(found["definition"]) if isinstance(found, dict) else {}

    def _get(self, path: str, timeout: float | None = None) -> Any:
        request = Request(f"{self._base}/api/{path}", headers={"Authorization": self._authorization})  # noqa: S310 - http(s)
        try:
            with urlopen(request, timeout=timeout or self._timeout, context=self._tls) as response:  # noqa: S310
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
