"""What changed between two AsyncAPI documents of a site, and what of it breaks those on the other side.

What a site publishes may not lose what consumers need: all that it sends now has to be what the earlier document
allows. What a site handles may not refuse what publishers were allowed to send: all that was taken has to be still.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from messaging.contracts.asyncapi import KEYS
from messaging.contracts.narrowing import Narrowing, Refusal, alternatives
from messaging.exceptions import ConfigurationError

Address = tuple[str, ...]


class Change(NamedTuple):
    """One difference.

    Attributes:
        is_breaking: whether somebody on the other side has to change first.
        path: where: what is published or handled, and the place in its payload.
        text: what differs, in a sentence.
    """

    is_breaking: bool
    path: str
    text: str

    def __str__(self) -> str:
        return f"{self.path}: {self.text}"


class Operation(NamedTuple):
    """What is sent or handled.

    Attributes:
        message: its message, without references.
        keys: patterns of routing keys that a handler takes.
    """

    message: Mapping[str, Any]
    keys: tuple[str, ...] = ()


class Contract:
    """What a document says, by address. Raises ConfigurationError for what is no AsyncAPI 3 document.

    Args:
        document: as it was read.
    """

    def __init__(self, document: Any) -> None:
        if not isinstance(document, Mapping) or not str(document.get("asyncapi", "")).startswith("3."):
            raise ConfigurationError("It is no AsyncAPI 3 document.")
        self._document = document
        self.sent: dict[Address, Operation] = {}
        self.handled: dict[Address, list[Operation]] = {}
        self.bound: dict[Address, list[tuple[str, str]]] = {}
        try:
            self.schemas: Mapping[str, Any] = document.get("components", {}).get("schemas", {})
            for operation in document.get("operations", {}).values():
                self._add(operation)
        except (AttributeError, KeyError, TypeError, IndexError) as error:
            raise ConfigurationError("It is no AsyncAPI 3 document that this command has written.") from error

    def _add(self, operation: Mapping[str, Any]) -> None:
        channel = self._at(operation["channel"])
        message = self._at(self._at(operation["messages"][0]))
        servers = channel.get("servers") or [{"$ref": ""}]
        alias = servers[0]["$ref"].removeprefix("#/servers/")
        if operation["action"] == "send":
            exchange = channel["bindings"]["amqp"]["exchange"]["name"]
            self.sent[alias, exchange, channel["address"]] = Operation(message)
            return
        address = alias, channel["address"]
        self.handled.setdefault(address, []).append(Operation(message, tuple(operation.get(KEYS, ["#"]))))
        self.bound[address] = [(one["exchange"], one["routingKey"]) for one in channel.get(KEYS, ())]

    def _at(self, value: Mapping[str, Any]) -> Mapping[str, Any]:
        """What a reference leads to; the value itself where it is none."""
        reference = value.get("$ref")
        if reference is None:
            return value
        found: Any = self._document
        for part in reference.removeprefix("#/").split("/"):
            found = found[part.replace("~1", "/").replace("~0", "~")]
        if not isinstance(found, Mapping):
            raise TypeError(reference)
        return found


def changes(before: Any, now: Any) -> list[Change]:
    """What differs between two documents, what breaks somebody first. Raises ConfigurationError for what is none."""
    old, new = Contract(before), Contract(now)
    found = [*_sent(old, new), *_handled(old, new)]
    return sorted(dict.fromkeys(found), key=lambda change: not change.is_breaking)


def _sent(old: Contract, new: Contract) -> Iterator[Change]:
    for address in sorted(old.sent.keys() | new.sent.keys()):
        path = f'publish "{address[2]}"' + (f' to "{address[1]}"' if address[1] else "")
        before, now = old.sent.get(address), new.sent.get(address)
        if now is None:
            yield Change(True, path, "It is no longer published.")
        elif before is None:
            yield Change(False, path, "It is new.")
        else:
            yield from _labels(before, now, path)
            forth = Narrowing(new.schemas, old.schemas, open=False)
            back = Narrowing(old.schemas, new.schemas, open=False)
            own, theirs = _payload(now), _payload(before)
            breaking = forth.refusals(own, theirs, "payload")
            relaxed = back.refusals(theirs, own, "payload")
            yield from _told(path, breaking, relaxed, sent=True)
            yield from _properties(path, (theirs, old.schemas), (own, new.schemas), "It could be missing before.")


def _labels(before: Operation, now: Operation, path: str) -> Iterator[Change]:
    """What consumers choose by: content type and message type."""
    for what, of in (("content type", _content_type), ("message type", _type)):
        was, is_ = of(before.message), of(now.message)
        if was != is_:
            text = f"The {what} was {_quoted(was)}, and is {_quoted(is_)} now."
            yield Change(bool(was), path, text)


def _handled(old: Contract, new: Contract) -> Iterator[Change]:
    for address in sorted(old.handled.keys() | new.handled.keys()):
        path = f'handle queue "{address[1]}"'
        before, now = old.handled.get(address), new.handled.get(address)
        if now is None:
            yield Change(True, path, "No handler takes its messages any more.")
        elif before is None:
            yield Change(False, path, "It is new.")
        else:
            yield from _taken(before, now, path)
            yield from _bindings(old.bound[address], new.bound[address], now, path)
            for one in before:
                for other in now:
                    if overlap(one.keys, other.keys) is not None:
                        yield from _accepted(one, other, old, new, path)


def _taken(before: Sequence[Operation], now: Sequence[Operation], path: str) -> Iterator[Change]:
    """Routing keys that were taken and are not, and the other way round."""
    old, new = ([key for one in each for key in one.keys] for each in (before, now))
    for first, second, is_breaking, text in (
        (old, new, True, 'No handler takes the routing key "{}" any more, which "{}" did.'),
        (new, old, False, 'A handler takes the routing key "{}" now, by "{}".'),
    ):
        for key in dict.fromkeys(first):
            example = uncovered(key, second)
            if example is not None:
                yield Change(is_breaking, path, text.format(example, key))


def _bindings(
    old: Sequence[tuple[str, str]], new: Sequence[tuple[str, str]], now: Sequence[Operation], path: str
) -> Iterator[Change]:
    """Routing keys that handlers would take and that no longer get into the queue, and the other way round."""
    taken = [key for one in now for key in one.keys]
    for first, second, is_breaking, text in (
        (old, new, True, 'The exchange "{}" no longer puts "{}" into it.'),
        (new, old, False, 'The exchange "{}" puts "{}" into it now.'),
    ):
        for exchange, key in first:
            example = uncovered(key, [other for name, other in second if name == exchange])
            if example is not None and (not is_breaking or uncovered(example, taken) is None):
                yield Change(is_breaking, path, text.format(exchange, key))


def _accepted(one: Operation, other: Operation, old: Contract, new: Contract, path: str) -> Iterator[Change]:
    was, is_ = _content_type(one.message), _content_type(other.message)
    if was and is_ and was != is_:
        yield Change(True, path, f"The content type was {_quoted(was)}, and is {_quoted(is_)} now.")
    before, now = _payload(one), _payload(other)
    breaking = Narrowing(old.schemas, new.schemas, open=True).refusals(before, now, "payload")
    relaxed = Narrowing(new.schemas, old.schemas, open=True).refusals(now, before, "payload")
    yield from _told(path, breaking, relaxed, sent=False)
    refused = {(refusal.path, refusal.name) for refusal in breaking if refusal.kind == "unknown"}
    if not refused:
        yield from _properties(path, (before, old.schemas), (now, new.schemas), "It is passed over.")


def _told(path: str, breaking: Sequence[Refusal], relaxed: Sequence[Refusal], *, sent: bool) -> Iterator[Change]:
    """Refusals as changes: first those that break, then what is so only in the other direction.

    Of what is sent the new schema is the narrower one, of what is handled the old one.
    """
    worse = {(refusal.path, refusal.name) for refusal in breaking}
    for refusal in breaking:
        yield Change(True, f"{path}: {refusal.path}", _sentence(refusal, sent=sent, is_new=sent))
    for refusal in relaxed:
        if (refusal.path, refusal.name) not in worse and refusal.kind != "unknown":
            yield Change(False, f"{path}: {refusal.path}", _sentence(refusal, sent=sent, is_new=not sent))


def _sentence(refusal: Refusal, *, sent: bool, is_new: bool) -> str:
    """What a refusal means where the narrower schema is the new one, or else the old one."""
    name, always = f'"{refusal.name}"', "always there" if sent else "required"
    if refusal.kind == "missing":
        now = f"{name} was {always}, and may be missing now."
        return now if is_new else f"{name} is {always} now, and could be missing."
    if refusal.kind == "absent":
        return f"{name} was {always}, and is gone." if is_new else f"{name} is new, and {always}."
    if refusal.kind == "unknown":
        return f"{name} is new, and was ruled out." if is_new else f"{name} is refused now."
    old, new = (refusal.wider, refusal.narrower) if is_new else (refusal.narrower, refusal.wider)
    return f"The {refusal.name} was {old}, and is {new} now."


def _properties(
    path: str, before: tuple[Any, Mapping[str, Any]], now: tuple[Any, Mapping[str, Any]], gone: str
) -> Iterator[Change]:
    """Properties that one side does not know and that are optional on the other: nobody has to change."""
    old, new = _optional(*before, "payload"), _optional(*now, "payload")
    places = ({"payload", *(f"{where}.{name}" for where, name in one)} for one in (old, new))
    common = set.intersection(*({place for one in each for place in (one, f"{one}[]")} for each in places))
    for where, name in sorted(old.keys() - new.keys()):
        if where in common and not old[where, name]:
            yield Change(False, f"{path}: {where}", f'"{name}" is gone. {gone}')
    for where, name in sorted(new.keys() - old.keys()):
        if where in common and not new[where, name]:
            yield Change(False, f"{path}: {where}", f'"{name}" is new, and optional.')


def _optional(schema: Any, schemas: Mapping[str, Any], path: str, depth: int = 0) -> dict[tuple[str, str], bool]:
    """Each property of a schema by where it is and its name, and whether it is required."""
    found: dict[tuple[str, str], bool] = {}
    for one in alternatives(schema, schemas) if depth < 5 else ():
        for name, value in one.get("properties", {}).items():
            found[path, name] = name in one.get("required", ())
            found |= _optional(value, schemas, f"{path}.{name}", depth + 1)
        items = one.get("items")
        if isinstance(items, Mapping):
            found |= _optional(items, schemas, f"{path}[]", depth + 1)
    return found


def _payload(operation: Operation) -> Any:
    return operation.message.get("payload", {})


def _content_type(message: Mapping[str, Any]) -> str:
    return str(message.get("contentType") or "")


def _type(message: Mapping[str, Any]) -> str:
    return str(message.get("bindings", {}).get("amqp", {}).get("messageType") or "")


def _quoted(text: str) -> str:
    return f'"{text}"' if text else "none"


# Patterns of routing keys: "*" stands for one word, "#" for any number of words.


def uncovered(pattern: str, others: Sequence[str]) -> str | None:
    """A routing key that a pattern matches and none of the others does; None where there is none."""
    return _search([pattern, *others], lambda matched: matched[0] and not any(matched[1:]))


def overlap(first: Sequence[str], second: Sequence[str]) -> str | None:
    """A routing key that one of the first patterns matches and one of the second; None where there is none."""
    pairs = ((one, other) for one in first for other in second)
    return next((found for pair in pairs if (found := _search(pair, all)) is not None), None)


def _search(patterns: Sequence[str], wanted: Callable[[list[bool]], bool]) -> str | None:
    """The shortest routing key for which is wanted what matches it."""
    parts = [pattern.split(".") if pattern else [] for pattern in patterns]
    words = sorted({"anything"} | {word for each in parts for word in each} - {"*", "#"})
    start = tuple(_further(each, {0}) for each in parts)
    waiting: list[tuple[tuple[frozenset[int], ...], tuple[str, ...]]] = [(start, ())]
    known = {start}
    for state, key in waiting:
        if wanted([len(each) in places for each, places in zip(parts, state, strict=True)]):
            return ".".join(key)
        for word in words:
            after = tuple(_step(each, places, word) for each, places in zip(parts, state, strict=True))
            if after not in known:
                known.add(after)
                waiting.append((after, (*key, word)))  # read to its end, which moves
    return None


def _step(parts: Sequence[str], places: frozenset[int], word: str) -> frozenset[int]:
    reached = {i if parts[i] == "#" else i + 1 for i in places if i < len(parts) and parts[i] in ("#", "*", word)}
    return _further(parts, reached)


def _further(parts: Sequence[str], places: set[int]) -> frozenset[int]:
    """Those places, and what is reached from them by a "#" that stands for nothing."""
    reached = set(places)
    for i, part in enumerate(parts):
        if i in reached and part == "#":
            reached.add(i + 1)
    return frozenset(reached)
