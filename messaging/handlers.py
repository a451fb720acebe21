"""The registry of handlers: which function takes which messages of which queue."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from typing import Any, TypeVar

from django.apps import apps
from django.utils.functional import cached_property
from django.utils.module_loading import module_has_submodule

from messaging import conf
from messaging.conf import rules
from messaging.conf.rules import name_of, plain
from messaging.exceptions import ConfigurationError

Backoff = float | Callable[[int], float]
Function = TypeVar("Function", bound=Callable[..., Any])
UNREAD: Any = object()


@dataclass(frozen=True)
class Handler:
    """One registered function; see `handler()` for the attributes.

    `contract` is what its payloads have to be, `UNREAD` until the first message comes, None for anything. `annotated`
    is the function that says so, whatever is called in its place.
    """

    function: Callable[..., Any]
    queue: str
    routing_keys: tuple[str, ...]
    using: str
    database: str
    atomic: bool
    timeout: float | None
    max_attempts: int | None
    backoff: Backoff | None
    batch: int | None
    rehearse: bool = False
    payload: Any = None
    annotated: Any = field(default=None, compare=False, repr=False)
    contract: Any = field(default=UNREAD, init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        if self.annotated is None:
            vars(self)["annotated"] = self.function

    @cached_property
    def name(self) -> str:
        """Dotted name, as operators see it: of an object its class's, of a partial its function's."""
        function: Any = self.function
        while isinstance(function, partial):
            function = function.func
        named = function if hasattr(function, "__qualname__") else type(function)
        return f"{named.__module__}.{named.__qualname__}"

    def matches(self, routing_key: str) -> bool:
        """Whether a message of this queue with this routing key is for this handler."""
        return not self.routing_keys or any(topic_matches(pattern, routing_key) for pattern in self.routing_keys)

    def for_key(self, routing_key: str) -> Handler:
        """The handler as messages with this routing key have it: one of many things may go by a name for each."""
        return self


class Registry:
    """Handlers by alias and queue. `registry` is the one that `@handler` fills."""

    def __init__(self) -> None:
        self._handlers: dict[tuple[str, str], list[Handler]] = {}
        self._discovered = False

    def add(self, handler: Handler) -> None:
        """Register a handler; the same one again replaces itself (a module may be imported twice)."""
        handlers = self._handlers.setdefault((handler.using, handler.queue), [])
        # One function may take several keys in several ways, and partials of it have its name.
        same = handler.name, handler.routing_keys
        handlers[:] = [known for known in handlers if (known.name, known.routing_keys) != same]
        handlers.append(handler)

    def discover(self) -> None:
        """Import `handlers.py` of every installed app, once."""
        if self._discovered:
            return
        for app in apps.get_app_configs():
            # Django's own apps have modules of that name about requests, which take long to import.
            if not app.name.startswith("django.contrib.") and module_has_submodule(app.module, "handlers"):
                import_module(f"{app.name}.handlers")
        self._discovered = True

    def find(self, using: str, queue: str, routing_key: str) -> Handler | None:
        """The handler for a message, or None."""
        for handler in self._handlers.get((using, queue), ()):
            if handler.matches(routing_key):
                return handler.for_key(routing_key)
        return None

    def all(self, using: str | None = None) -> list[Handler]:
        """Every handler, or those of one alias."""
        return [
            handler
            for (alias, _), handlers in sorted(self._handlers.items())
            for handler in handlers
            if using is None or alias == using
        ]

    def queues(self, using: str) -> list[str]:
        """The queues of an alias that have a handler, sorted."""
        return sorted(queue for alias, queue in self._handlers if alias == using)

    def clear(self) -> None:
        """Forget everything. For tests."""
        self._handlers.clear()


registry = Registry()


def queues_of(alias: str) -> set[str]:
    """The queues of an alias; those of the handlers alone where its settings are wrong."""
    names = set(registry.queues(alias))
    with suppress(ConfigurationError):
        names.update(conf.get(alias).queues)
    return names


def handler(
    queue: str,
    *routing_keys: str,
    using: str = conf.DEFAULT_ALIAS,
    database: str = "default",
    atomic: bool = True,
    timeout: float | None = None,
    max_attempts: int | None = None,
    backoff: Backoff | None = None,
    batch: int | None = None,
    rehearse: bool = False,
    payload: Any = None,
) -> Callable[[Function], Function]:
    """Register a function or an `async def` as the handler of messages. Put it into an app's `handlers.py`.

    A callable object or a `functools.partial` works as well: `handler("billing")(Importer())`.

    The handler receives a `ReceivedMessage`, or with `batch` a list of them. If it returns, the message is processed;
    if it raises, the message is retried. Raise `Retry(after=60)` to choose the pause, and `Reject("why")` to give up.

    Args:
        queue: the queue to consume from.
        *routing_keys: patterns that bind the queue to the alias's exchange: `*` stands for one word, `#` for any
            number. Without any, the handler takes every message of the queue.
        using: alias of `MESSAGING`.
        database: the database in which the message is recorded and the handler's transaction runs.
        atomic: whether the record and the handler's writes share one transaction. Pass `False` for work that takes
            minutes or hours: the message is then acknowledged once a lease on it is durable.
        timeout: seconds after which the process that runs the handler is killed. That counts as a failed attempt.
        max_attempts: after so many started attempts the message rests as failed; `None` for what `RETRY` says.
        backoff: seconds between attempts, or a function that gets the number of the attempt and returns them; `None`
            for what `RETRY` says.
        batch: receive lists of at most this many messages, each list in one transaction.
        rehearse: whether operators may run the handler on a failed message in a transaction that is rolled back. Pass
            `True` only if a rollback and a mailbox that sends nothing undo all that it does: no HTTP call, no file, no
            cache.
        payload: the type of the payload, where the first parameter is not annotated with it, as in
            `message: ReceivedMessage[OrderPlaced]`: a dataclass, a TypedDict, a pydantic model or a msgspec struct. A
            message whose payload does not fit fails for good, before the handler is called.

    Returns:
        A decorator that registers the function and returns it unchanged.

    Raises:
        ConfigurationError: an argument cannot work.
    """
    options = {"using": using, "database": database, "atomic": atomic, "batch": batch}
    options |= {"timeout": timeout, "max_attempts": max_attempts, "backoff": backoff, "rehearse": rehearse}
    _check_arguments(queue, routing_keys, options)

    def register(function: Function) -> Function:
        given: Any = function
        if not callable(given) or isinstance(given, type):
            text = f"@handler({queue!r}) needs a function, not {given!r}."
            way = " Calling a class only makes an object: register one of its objects." if callable(given) else ""
            raise ConfigurationError(text + way)
        registry.add(
            Handler(
                function=function,
                queue=name_of(queue),
                routing_keys=tuple(map(name_of, routing_keys)),
                using=plain(using),
                database=plain(database),
                atomic=atomic,
                timeout=timeout,
                max_attempts=max_attempts,
                backoff=backoff,
                batch=batch,
                rehearse=rehearse,
                payload=payload,
            )
        )
        return function

    return register


def is_generator(function: Callable[..., Any]) -> bool:
    """Whether calling it would run nothing of its body: a generator function, sync or async, or an object with one."""
    own = getattr(type(function), "__call__", None)  # noqa: B004  its code is asked for, not whether there is any
    return any(inspect.isgeneratorfunction(one) or inspect.isasyncgenfunction(one) for one in (function, own))


def topic_matches(pattern: str, routing_key: str) -> bool:
    """Whether a topic pattern matches a routing key, as RabbitMQ's topic exchange decides it."""
    words = _words(routing_key)
    reachable = {0}
    for part in _words(pattern):
        if part == "#":
            reachable = set(range(min(reachable), len(words) + 1)) if reachable else set()
        else:
            reachable = {i + 1 for i in reachable if i < len(words) and part in ("*", words[i])}
    return len(words) in reachable


def patterns_overlap(first: str, second: str) -> bool:
    """Whether some routing key matches both topic patterns."""
    return _overlap(tuple(_words(first)), tuple(_words(second)))


def _words(key: str) -> list[str]:
    """The words of a routing key or pattern, as RabbitMQ counts them: an empty one has none."""
    return key.split(".") if key else []


def _overlap(first: tuple[str, ...], second: tuple[str, ...]) -> bool:
    table = [[False] * (len(second) + 1) for _ in range(len(first) + 1)]
    for i in range(len(first), -1, -1):
        for j in range(len(second), -1, -1):
            if i == len(first) and j == len(second):
                table[i][j] = True
                continue
            head = first[i] if i < len(first) else None
            other = second[j] if j < len(second) else None
            if (head == "#" and (table[i + 1][j] or (other is not None and table[i][j + 1]))) or (
                other == "#" and (table[i][j + 1] or (head is not None and table[i + 1][j]))
            ):
                table[i][j] = True
            elif head is not None and other is not None and "#" not in (head, other):
                table[i][j] = (head == other or "*" in (head, other)) and table[i + 1][j + 1]
    return table[0][0]


def _check_arguments(queue: Any, routing_keys: Iterable[Any], options: dict[str, Any]) -> None:
    def refuse(problem: str) -> None:
        raise ConfigurationError(f"@handler({queue!r}): {problem}")

    if not isinstance(queue, str) or not queue:
        refuse("the queue must be a name, as in @handler('billing', 'orders.placed').")
    if not rules.is_name(queue, rules.LONGEST_QUEUE):
        refuse("a queue name has at most 250 bytes (255 less those of '.dead') of UTF-8, on one line.")
    for key in routing_keys:
        if key != "" and not rules.is_name(key):
            refuse(f"the routing key {key!r} must be text of at most 255 bytes, on one line.")
    for name, rule in rules.HANDLER.items():
        if not rule.accepts(options[name]):
            refuse(f"{name} must be {rule.wanted}.")
    if options["batch"] is not None and not options["atomic"]:
        refuse("a batch shares one transaction, so it cannot have atomic=False.")
    if options["rehearse"] and not options["atomic"]:
        refuse("a rehearsal is a transaction that is rolled back, so it cannot have atomic=False.")
