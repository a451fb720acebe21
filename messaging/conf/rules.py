"""What each key of `MESSAGING` and `MESSAGING_CONSOLE`, and each option of `@handler`, may hold."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import isfinite
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from messaging.exceptions import LONGEST_WAIT

LONGEST_KEPT = 100 * 366  # days
DEAD = ".dead"  # what a dead-letter queue's name ends with
LONGEST_QUEUE = 255 - len(DEAD)  # bytes, of AMQP 0-9-1
LONGEST_RELEASE = 100  # bytes; the column's
_SIXTY_FOUR_BITS = 1 << 63


class Rule(NamedTuple):
    """What a value has to be.

    Attributes:
        accepts: whether a value will do; takes anything and never raises.
        wanted: the rule in words, to follow "It is".
    """

    accepts: Callable[[Any], bool]
    wanted: str


def plain(text: str) -> str:
    """The text itself of what may be of a class of its own: `str()` of a `(str, Enum)` member is "Class.NAME"."""
    return str.__str__(text)


def name_of(text: str) -> str:
    """A name as the broker knows it: without the line break at its end that a name read from a file may have.

    RabbitMQ takes line breaks out of a name that is declared, but not out of one that is published to or consumed.
    """
    return str.__str__(text).rstrip("\r\n")


def dead_queue(queue: str) -> str:
    """The name of a queue's dead-letter queue."""
    return queue + DEAD


def living_queue(queue: str) -> str:
    """The name of the queue whose dead-letter queue this is; its own where it is none."""
    return queue.removesuffix(DEAD)


def is_text(value: Any, most: int = 255) -> bool:
    """Whether a value is text of 1 to `most` bytes that brokers and databases can hold: UTF-8 without NUL."""
    try:
        return isinstance(value, str) and "\0" not in value and 0 < len(value.encode()) <= most
    except UnicodeEncodeError:
        return False


def is_name(value: Any, most: int = 255) -> bool:
    """Whether a value will do, after `name_of()`, as the name of something at the broker or as a routing key there."""
    return isinstance(value, str) and is_text(name := name_of(value), most) and "\n" not in name and "\r" not in name


def _number(least: float, most: float, *, above: bool = False) -> Callable[[Any], bool]:
    def accepts(value: Any) -> bool:
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            return False
        # An integer may be too large to become a float.
        is_finite = isinstance(value, int) or isfinite(value)
        return is_finite and (least < value if above else least <= value) and value <= most

    return accepts


def _whole(least: int, most: int) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, int) and _number(least, most)(value)


def _or_none(accepts: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or accepts(value)


def _is_boolean(value: Any) -> bool:
    return isinstance(value, bool)


def _is_string(value: Any) -> bool:
    return isinstance(value, str)


def _is_dict(value: Any) -> bool:
    return isinstance(value, Mapping)


def _is_path(value: Any) -> bool:
    return bool(hasattr(value, "__fspath__") or is_text(value, 4096))


def _is_exchange(value: Any) -> bool:
    return value == "" if not is_name(value) else (value == "amq.topic" or not value.startswith("amq."))


def _is_queue_type(value: Any) -> bool:
    return isinstance(value, str) and value in ("quorum", "classic")


def _is_name_list(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and bool(value) and all(isinstance(name, str) for name in value)


def _is_traces(value: Any) -> bool:
    return value is False or (isinstance(value, str) and value in ("parent", "link"))


def _is_pauses(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and len(value) <= 10_000 and all(map(_number(0, LONGEST_WAIT), value))


def is_secret(value: Any) -> bool:
    """Whether a value is text, or says where that is: in a file or in the environment."""
    if isinstance(value, Mapping):
        where: Any = next(iter(value)) if len(value) == 1 else None
        accepts = {"file": _is_path, "env": is_text}.get(where) if isinstance(where, str) else None
        return accepts is not None and bool(accepts(value[where]))
    return isinstance(value, str) and (not value or is_text(value)) and value.rstrip("\r\n").isprintable()


def _is_dotted(value: Any) -> bool:
    return isinstance(value, str) and "." in value and all(part.isidentifier() for part in value.split("."))


def _is_list_of(accepts: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, (list, tuple)) and len(value) <= 100 and all(map(accepts, value))


def _is_address(value: Any) -> bool:
    """Whether a value looks like a mail address, on one line."""
    return is_text(value) and value.isprintable() and bool(value.partition("@")[0] and value.partition("@")[2])


def _is_webhook(value: Any) -> bool:
    """Whether a value is the URL of a webhook, without a user name, or says where that is."""
    if isinstance(value, Mapping):
        return is_secret(value)
    if not is_text(value, 2048) or not value.isprintable() or any(map(str.isspace, value)):
        return False
    try:
        found = urlsplit(value)
        return (
            found.scheme in ("http", "https") and bool(found.hostname) and found.port != 0 and "@" not in found.netloc
        )
    except ValueError:
        return False


def _is_banner(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= 100 and (not value or value.isprintable())


def _is_bindings(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(
        isinstance(pair, (list, tuple)) and len(pair) == 2 and is_name(pair[0]) and (pair[1] == "" or is_name(pair[1]))
        for pair in value
    )


def _is_arguments(value: Any) -> bool:
    return isinstance(value, Mapping) and all(
        is_text(name) and (argument is None or _is_argument(argument)) for name, argument in value.items()
    )


def _is_argument(value: Any, depth: int = 4) -> bool:
    """Whether AMQP 0-9-1 can carry a value; floats are left out, because RabbitMQ takes none as an argument."""
    if isinstance(value, (list, Mapping)):
        items = value.values() if isinstance(value, Mapping) else value
        names = value if isinstance(value, Mapping) else ()
        return depth > 0 and all(map(is_text, names)) and all(_is_argument(item, depth - 1) for item in items)
    if isinstance(value, int):
        return -_SIXTY_FOUR_BITS <= value < _SIXTY_FOUR_BITS
    return value == "" or is_name(value, 1 << 20)


_DICT = Rule(_is_dict, "a dict")
_FILE = Rule(_or_none(_is_path), "the path of a file, or None")
_FLAG = Rule(_is_boolean, "True or False")
_DAYS = Rule(_or_none(_number(0, LONGEST_KEPT)), "a number of days, 0 to 36600, or None to keep them for ever")
_SECRET = 'text, or {"file": "/run/secrets/name"}, or {"env": "NAME"} for a variable of the environment'
_PAUSE = "a number of seconds, at most ten years"
_MIDDLEWARE = Rule(_is_list_of(_is_dotted), 'a list of dotted paths, such as ["shop.messaging.tenant"]')

ALIAS: Mapping[str, Rule] = {
    "URL": Rule(_is_string, 'text such as "amqp://user:password@host:5672/vhost"'),
    "USER": Rule(_or_none(is_secret), f"{_SECRET}; None where URL has it"),
    "PASSWORD": Rule(_or_none(is_secret), f"{_SECRET}; None where URL has it"),
    "EXCHANGE": Rule(
        _is_exchange,
        'the name of a topic exchange, one line of at most 255 bytes; of those named "amq.…" only "amq.topic" is one',
    ),
    "QUEUES": Rule(_is_dict, 'a dict of queues, such as {"billing": {"prefetch": 50}}'),
    "DATABASES": Rule(_is_name_list, 'a list of aliases of DATABASES, such as ["default"]'),
    "RETRY": _DICT,
    "RETENTION": _DICT,
    "LEASE": Rule(_number(1, 86400), "a number of seconds, 1 to 86400"),
    "HEARTBEAT": Rule(_whole(0, 65535), "a whole number of seconds, 0 to 65535 (0 switches heartbeats off)"),
    "TLS": _DICT,
    "MANAGEMENT_URL": Rule(_or_none(_is_string), 'a URL such as "http://user:password@host:15672", or None'),
    "STOP_TIMEOUT": Rule(_number(0, 86400), "a number of seconds, 0 to 86400"),
    "FREEZE_TIMEOUT": Rule(_or_none(_number(5, 86400)), "a number of seconds, 5 to 86400, or None"),
    "HELD_BYTES": Rule(
        _or_none(_whole(1024 * 1024, 1 << 50)), "a whole number of bytes, at least 1048576, or None to go by the memory"
    ),
    "RESEND_AFTER": Rule(
        _or_none(_number(60, LONGEST_WAIT)), "a number of seconds, at least 60, or None to leave it to operators"
    ),
    "NOTIFY": _FLAG,
    "POLL_INTERVAL": Rule(_number(0, 86400, above=True), "a number of seconds above 0, at most 86400"),
    "RELAY": _FLAG,
    "UNROUTABLE": Rule(_is_pauses, "a list of pauses in seconds, such as [1, 5, 30]; an empty one gives up at once"),
    "TRACES": Rule(_is_traces, '"parent", "link", or False for no spans'),
    "MIDDLEWARE": _MIDDLEWARE,
    "PUBLISH_MIDDLEWARE": _MIDDLEWARE,
}

RETRY: Mapping[str, Rule] = {
    "max_attempts": Rule(_whole(1, 1_000_000), "a whole number from 1 to 1000000"),
    "initial": Rule(_number(0, LONGEST_WAIT), f"{_PAUSE}, at least 0"),
    "multiplier": Rule(_number(1, 1000), "a number from 1 to 1000"),
    "maximum": Rule(_number(0, LONGEST_WAIT, above=True), f"{_PAUSE}, above 0"),
    "jitter": Rule(_number(0, 1), "a number from 0 to 1"),
}

RETENTION: Mapping[str, Rule] = {"published": _DAYS, "processed": _DAYS, "discarded": _DAYS}

TLS: Mapping[str, Rule] = {
    "CA_FILE": _FILE,
    "CERT_FILE": _FILE,
    "KEY_FILE": _FILE,
    "VERIFY": _FLAG,
    "SERVER_NAME": Rule(_or_none(is_text), "the host name in the broker's certificate, or None"),
}

QUEUE: Mapping[str, Rule] = {
    "type": Rule(_is_queue_type, '"quorum" or "classic"'),
    "arguments": Rule(
        _is_arguments, 'a dict of queue arguments, such as {"x-max-length": 1000}: text, whole numbers, True or False'
    ),
    "declare": Rule(_is_boolean, "True, or False for a queue that someone else owns"),
    "prefetch": Rule(_whole(1, 65535), "a whole number from 1 to 65535"),
    "bindings": Rule(
        _is_bindings,
        'a list of pairs of exchange and routing key, such as [("their.exchange", "orders.#")]; the default exchange '
        "needs none",
    ),
    "dead_letter": _FLAG,
}

CONSOLE: Mapping[str, Rule] = {
    "REDACT": Rule(_or_none(_is_dotted), 'the dotted path of a function, such as "shop.privacy.redact", or None'),
    "BANNER": Rule(_or_none(_is_banner), "a line of at most 100 characters, or None"),
    "ALERTS": _DICT,
    "EDIT": _FLAG,
    "PAYLOAD_SEARCH": _FLAG,
    "RELEASE": Rule(
        _or_none(lambda value: is_text(value, LONGEST_RELEASE)),
        "the name of what is deployed, text of at most 100 bytes, or None",
    ),
    "HEALTH_TOKEN": Rule(
        _or_none(lambda value: value != "" and is_secret(value)), f"{_SECRET}; None where nobody is to see details"
    ),
}

METRICS: Mapping[str, Rule] = {"TOKEN": Rule(_or_none(is_secret), f"{_SECRET}; None to answer nobody")}

_WEBHOOK = 'a URL such as "https://host/path", or {"file": "/run/secrets/name"}, or {"env": "NAME"}'
_SECONDS = Rule(_number(0, LONGEST_WAIT, above=True), "a number of seconds above 0, at most ten years")

ALERTS: Mapping[str, Rule] = {
    "late": _SECONDS,
    "far_too_late": _SECONDS,
    "long_pause": _SECONDS,
    "few_failures": Rule(_whole(0, 1_000_000), "a whole number from 0 to 1000000"),
    "rise": Rule(_number(1, 1000), "a number from 1 to 1000"),
    "certificate_days": Rule(_number(0, 3660), "a number of days, 0 to 3660"),
    "mail": Rule(_is_list_of(_is_address), 'a list of mail addresses, such as ["ops@example.com"]'),
    "slack": Rule(_is_list_of(_is_webhook), f"a list of webhooks, each {_WEBHOOK}"),
    "webhooks": Rule(_is_list_of(_is_webhook), f"a list of webhooks, each {_WEBHOOK}"),
    "call": Rule(_or_none(_is_dotted), 'the dotted path of a function, such as "shop.alerts.tell", or None'),
}

HANDLER: Mapping[str, Rule] = {
    "using": Rule(is_text, "an alias of MESSAGING, as text"),
    "database": Rule(is_text, "an alias of DATABASES, as text"),
    "atomic": _FLAG,
    "timeout": Rule(_or_none(_number(0, LONGEST_WAIT, above=True)), "a number of seconds above 0, or None"),
    "max_attempts": Rule(_or_none(_whole(1, 1_000_000)), "a whole number, at least 1, or None"),
    "backoff": Rule(
        lambda value: value is None or callable(value) or _number(0, LONGEST_WAIT)(value),
        "a number of seconds, a callable of the attempt, or None",
    ),
    "batch": Rule(_or_none(_whole(1, 65535)), "a whole number from 1 to 65535, or None"),
    "rehearse": _FLAG,
}

_OF_TASKS = ("using", "database", "atomic", "timeout", "max_attempts", "backoff", "batch", "rehearse")
TASKS: Mapping[str, Rule] = {
    **{name: HANDLER[name] for name in _OF_TASKS},
    "prefix": Rule(_or_none(lambda value: value == "" or is_name(value, 200)), "text of at most 200 bytes, or None"),
    "max_priority": Rule(_or_none(_whole(1, 255)), "a whole number from 1 to 255, or None"),
}
