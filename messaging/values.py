"""What each key of `MESSAGING` may hold, for the system checks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Any
from urllib.parse import urlsplit


@dataclass(frozen=True, slots=True)
class Rule:
    """What a value has to be.

    Attributes:
        accepts: whether a value will do; takes anything and never raises.
        wanted: the rule in words, to follow "It is".
    """

    accepts: Callable[[Any], bool]
    wanted: str


def _number(least: float, most: float = float("inf"), *, above: bool = False) -> Callable[[Any], bool]:
    def accepts(value: Any) -> bool:
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and isfinite(value)
        return is_number and (least < value if above else least <= value) and value <= most

    return accepts


def _whole(least: int, most: float = float("inf")) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, int) and _number(least, most)(value)


def _or_none(accepts: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or accepts(value)


def _is_boolean(value: Any) -> bool:
    return isinstance(value, bool)


def _is_dict(value: Any) -> bool:
    return isinstance(value, Mapping)


def _is_path(value: Any) -> bool:
    return value is None or hasattr(value, "__fspath__") or (isinstance(value, str) and bool(value))


def _is_short(value: Any) -> bool:
    return isinstance(value, str) and len(value.encode(errors="replace")) <= 255


def _is_name_list(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and bool(value) and all(isinstance(name, str) for name in value)


def _is_bindings(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(
        isinstance(pair, (list, tuple)) and len(pair) == 2 and all(map(_is_short, pair)) for pair in value
    )


def _is_http(value: Any) -> bool:
    try:
        parts = urlsplit(value) if isinstance(value, str) else None
        return parts is not None and parts.scheme in ("http", "https") and bool(parts.hostname)
    except ValueError:
        return False


_SECONDS = "a positive number of seconds"
_DICT = Rule(_is_dict, "a dict")
_FILE = Rule(_is_path, "the path of a file, or None")
_DAYS = Rule(_or_none(_number(0)), "a number of days, or None to keep them for ever")

ALIAS: Mapping[str, Rule] = {
    "URL": Rule(lambda value: isinstance(value, str), 'text such as "amqp://user:password@host:5672/vhost"'),
    "EXCHANGE": Rule(_is_short, "the name of an exchange, text of at most 255 bytes"),
    "QUEUES": Rule(_is_dict, 'a dict of queues, such as {"billing": {"prefetch": 50}}'),
    "DATABASES": Rule(_is_name_list, 'a list of aliases of DATABASES, such as ["default"]'),
    "RETRY": _DICT,
    "RETENTION": _DICT,
    "LEASE": Rule(_number(1), "a number of seconds, at least 1"),
    "HEARTBEAT": Rule(_whole(0, 65535), "a whole number of seconds, 0 to 65535 (0 switches heartbeats off)"),
    "TLS": _DICT,
    "MANAGEMENT_URL": Rule(_or_none(_is_http), 'a URL such as "http://user:password@host:15672", or None'),
    "STOP_TIMEOUT": Rule(_number(0), "a number of seconds, at least 0"),
    "NOTIFY": Rule(_is_boolean, "True or False"),
    "POLL_INTERVAL": Rule(_number(0, above=True), _SECONDS),
}

RETRY: Mapping[str, Rule] = {
    "max_attempts": Rule(_whole(1), "a whole number, at least 1"),
    "initial": Rule(_number(0), "a number of seconds, at least 0"),
    "multiplier": Rule(_number(1), "a number, at least 1"),
    "maximum": Rule(_number(0, above=True), _SECONDS),
    "jitter": Rule(_number(0, 1), "a number from 0 to 1"),
}

RETENTION: Mapping[str, Rule] = {"published": _DAYS, "processed": _DAYS, "discarded": _DAYS}

TLS: Mapping[str, Rule] = {
    "CA_FILE": _FILE,
    "CERT_FILE": _FILE,
    "KEY_FILE": _FILE,
    "VERIFY": Rule(_is_boolean, "True or False"),
    "SERVER_NAME": Rule(_or_none(_is_short), "the host name in the broker's certificate, or None"),
}

QUEUE: Mapping[str, Rule] = {
    "type": Rule(lambda value: isinstance(value, str) and value in ("quorum", "classic"), '"quorum" or "classic"'),
    "arguments": Rule(_is_dict, 'a dict of queue arguments, such as {"x-max-length": 1000}'),
    "declare": Rule(_is_boolean, "True, or False for a queue that someone else owns"),
    "prefetch": Rule(_whole(1, 65535), "a whole number from 1 to 65535"),
    "bindings": Rule(_is_bindings, 'a list of pairs, such as [("their.exchange", "orders.#")]'),
    "dead_letter": Rule(_is_boolean, "True or False"),
}
