"""Whether everything that one JSON Schema allows is allowed by another, and what is not.

It knows what `schemas`, pydantic and msgspec write. Of two schemas that it cannot judge it says so, and counts that as
a refusal. What a schema does not name is taken to be neither sent nor looked at.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from messaging.contracts.schemas import REFERENCE, Schema

DEEPEST = 64  # levels of a schema
_LEAST = ("minLength", "minItems", "minProperties")
_MOST = ("maxLength", "maxItems", "maxProperties")
_SAME = ("pattern", "format", "contentEncoding", "contentMediaType")
_UNJUDGED = (
    *("not", "if", "then", "else", "patternProperties", "propertyNames", "contains", "dependencies"),
    *("dependentRequired", "dependentSchemas", "unevaluatedProperties"),
)
_TYPES: dict[str, Any] = {
    "string": str, "boolean": bool, "null": type(None), "object": Mapping, "array": list, "number": (int, float),
    "integer": int,
}  # fmt: skip


class Refusal(NamedTuple):
    """Something that the narrower schema allows and the wider one does not.

    Attributes:
        path: where, such as "payload.items[].price".
        kind: "missing" (may be missing), "absent" (is not there at all), "unknown" (is not known), or "other".
        name: of the property that is missing, absent or unknown; else of what differs, such as "type".
        narrower, wider: both values of that, in words.
    """

    path: str
    kind: str
    name: str
    narrower: str = ""
    wider: str = ""


class Narrowing:
    """Compares schemas of two documents.

    Args:
        narrower: schemas of the document all of whose values are to be allowed, by name.
        wider: those of the other one.
        open: whether values may have properties that their schema does not name.
    """

    def __init__(self, narrower: Mapping[str, Schema], wider: Mapping[str, Schema], *, open: bool) -> None:  # noqa: A002
        self._narrower, self._wider, self._open = narrower, wider, open

    def refusals(self, narrower: Any, wider: Any, path: str) -> list[Refusal]:
        """What `narrower` allows and `wider` does not."""
        return list(self._compare(narrower, wider, path, frozenset()))

    def _compare(self, narrower: Any, wider: Any, path: str, seen: frozenset[tuple[str, str]]) -> Iterator[Refusal]:
        pair = json.dumps(narrower, sort_keys=True), json.dumps(wider, sort_keys=True)
        if pair in seen or len(seen) > DEEPEST:  # further down in what refers to itself
            return
        seen |= {pair}
        theirs = list(alternatives(wider, self._wider))
        if {} in theirs:
            return
        for one in alternatives(narrower, self._narrower):
            tried = [list(self._compare_plain(one, other, path, seen)) for other in theirs]
            if all(tried):
                yield from self._best(one, theirs, tried, path)

    def _best(
        self, one: Schema, theirs: Sequence[Schema], tried: Sequence[list[Refusal]], path: str
    ) -> Iterator[Refusal]:
        """What is said of a value that fits no alternative: what the one of its own type says, if there is one."""
        alike = [found for other, found in zip(theirs, tried, strict=True) if other.get("type") == one.get("type")]
        if alike or len(theirs) == 1:
            yield from min(alike or tried, key=len)
        else:
            yield Refusal(path, "other", "type", told(one), " or ".join(map(told, theirs)) or "nothing")

    def _compare_plain(
        self, one: Schema, other: Schema, path: str, seen: frozenset[tuple[str, str]]
    ) -> Iterator[Refusal]:
        values, allowed = _values(one), _values(other)
        if values is not None:
            refused = [value for value in values if not _takes(other, value)]
            if refused:
                yield Refusal(path, "other", "values", told(one), told(other))
            return
        if allowed is not None:
            if one.get("type") == "null" and None in allowed:
                return
            yield Refusal(path, "other", "values", told(one), told(other))
            return
        kind, wanted = one.get("type"), other.get("type")
        if wanted is not None and kind != wanted and (kind, wanted) != ("integer", "number"):
            yield Refusal(path, "other", "type", told(one), told(other))
            return
        yield from _compare_limits(one, other, path)
        if wanted == "array" or "items" in other:
            yield from self._compare_items(one, other, path, seen)
        if wanted == "object" or "properties" in other or "required" in other:
            yield from self._compare_objects(one, other, path, seen)

    def _compare_items(
        self, one: Schema, other: Schema, path: str, seen: frozenset[tuple[str, str]]
    ) -> Iterator[Refusal]:
        mine, theirs = one.get("items", {}), other.get("items", {})
        if isinstance(theirs, list):
            if not isinstance(mine, list) or len(mine) != len(theirs):
                yield Refusal(path, "other", "items", told(one), told(other))
                return
            for number, (item, wanted) in enumerate(zip(mine, theirs, strict=True)):
                yield from self._compare(item, wanted, f"{path}[{number}]", seen)
            return
        for item in mine if isinstance(mine, list) else [mine]:
            yield from self._compare(item, theirs, f"{path}[]", seen)

    def _compare_objects(
        self, one: Schema, other: Schema, path: str, seen: frozenset[tuple[str, str]]
    ) -> Iterator[Refusal]:
        mine, theirs = one.get("properties", {}), other.get("properties", {})
        further, allowed = one.get("additionalProperties", True), other.get("additionalProperties", True)
        for name in sorted(set(other.get("required", ())) - set(one.get("required", ()))):
            yield Refusal(path, "missing" if name in mine else "absent", name)
        for name in sorted(mine):
            if name in theirs:
                yield from self._compare(mine[name], theirs[name], f"{path}.{name}", seen)
            elif allowed is False:
                yield Refusal(path, "unknown", name)
            elif allowed is not True:
                yield from self._compare(mine[name], allowed, f"{path}.{name}", seen)
        if isinstance(further, Mapping):
            for name in sorted(theirs.keys() - mine.keys()):
                yield from self._compare(further, theirs[name], f"{path}.{name}", seen)
        if allowed is False and further is not False and self._open:
            yield Refusal(path, "other", "further properties", "allowed", "not allowed")
        elif isinstance(allowed, Mapping) and further is not False and (self._open or not mine):
            yield from self._compare({} if further is True else further, allowed, f"{path}.*", seen)


def alternatives(schema: Any, components: Mapping[str, Schema], depth: int = 0) -> Iterator[Schema]:
    """A schema as plain ones, each of one type, without references: what it allows is what any of them allows."""
    if schema is False or depth > DEEPEST:
        return
    found = {} if schema is True or not isinstance(schema, Mapping) else _plain(schema, components)
    for keyword in ("anyOf", "oneOf"):
        if keyword in found:
            rest = {name: value for name, value in found.items() if name != keyword}
            for one in found[keyword]:
                yield from alternatives({"allOf": [one, rest]} if rest else one, components, depth + 1)
            return
    if isinstance(found.get("type"), list):
        bare = {name: value for name, value in found.items() if name not in _SAME}  # what limits text alone
        for kind in found["type"]:
            one = found if kind == "string" else bare
            yield from alternatives({**one, "type": kind}, components, depth + 1)
        return
    values = _values(found)
    if values is not None and "type" in found:
        kept = [value for value in values if _is_of(found["type"], value)]
        found = {name: value for name, value in found.items() if name != "const"} | {"enum": kept}
    yield found


def told(schema: Schema) -> str:
    """A plain schema in a few words."""
    values = _values(schema)
    if values is not None:
        return ", ".join(json.dumps(value, ensure_ascii=False) for value in values) or "nothing"
    kind = schema.get("type")
    if kind is None:
        return "anything"
    parts = [f"{name} {schema[name]}" for name in ("format", "pattern", "contentEncoding") if name in schema]
    return f"{kind} ({', '.join(parts)})" if parts else str(kind)


def _plain(schema: Mapping[str, Any], components: Mapping[str, Schema]) -> Schema:
    """A schema whose reference is followed and whose `allOf` is put together, without what only people read."""
    followed: Any = schema
    for _ in range(DEEPEST):
        if not (isinstance(followed, Mapping) and isinstance(followed.get("$ref"), str)):
            break
        followed = components.get(followed["$ref"].removeprefix(REFERENCE), {})
    if not isinstance(followed, Mapping):
        return {} if followed is not False else {"enum": []}
    found = {name: value for name, value in followed.items() if name not in _FOR_PEOPLE}
    for part in found.pop("allOf", ()):
        found = _both(found, _plain(part, components) if isinstance(part, Mapping) else {})
    return found


_FOR_PEOPLE = frozenset({"title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly", "$id"})


def _both(first: Schema, second: Schema) -> Schema:
    """What two schemas say together, where they do not contradict each other."""
    found = {**first, **second}
    if "properties" in first and "properties" in second:
        found["properties"] = {**first["properties"], **second["properties"]}
    if "required" in first and "required" in second:
        found["required"] = sorted({*first["required"], *second["required"]})
    return found


def _compare_limits(one: Schema, other: Schema, path: str) -> Iterator[Refusal]:
    differing = [name for name in _LEAST if one.get(name, 0) < other.get(name, 0)]
    differing += [name for name in _MOST if one.get(name, math.inf) > other.get(name, math.inf)]
    differing += [name for name in _SAME if name in other and one.get(name) != other[name]]
    differing += [name for name in _UNJUDGED if name in other and one.get(name) != other[name]]
    if other.get("uniqueItems") and not one.get("uniqueItems"):
        differing.append("uniqueItems")
    factor = other.get("multipleOf")
    if factor and (not one.get("multipleOf") or one["multipleOf"] % factor):
        differing.append("multipleOf")
    differing += [] if _lower(one) >= _lower(other) else ["minimum"]
    differing += [] if _upper(one) <= _upper(other) else ["maximum"]
    for name in differing:
        yield Refusal(path, "other", name, _limit(one, name), _limit(other, name))


def _limit(schema: Schema, name: str) -> str:
    value = schema.get(name, schema.get(f"exclusive{name.capitalize()}"))
    return "none" if value is None else json.dumps(value, ensure_ascii=False)


def _lower(schema: Schema) -> tuple[float, bool]:
    """The lowest number, and whether it is itself excluded."""
    bounds = [(schema.get("minimum", -math.inf), False), (schema.get("exclusiveMinimum", -math.inf), True)]
    return max(bounds if "exclusiveMinimum" in schema else bounds[:1])


def _upper(schema: Schema) -> tuple[float, bool]:
    """The highest number, and whether it is itself included."""
    bounds = [(schema.get("maximum", math.inf), True), (schema.get("exclusiveMaximum", math.inf), False)]
    return min(bounds if "exclusiveMaximum" in schema else bounds[:1])


def _values(schema: Schema) -> list[Any] | None:
    """The values of a list that is all that a schema allows; None where there is no such list."""
    if "const" in schema:
        return [schema["const"]]
    values = schema.get("enum")
    return list(values) if isinstance(values, list) else None


def _takes(schema: Schema, value: Any) -> bool:
    """Whether a plain schema allows one value, as far as such values have limits."""
    values = _values(schema)
    if values is not None:
        return any(one == value and type(one) is type(value) for one in values)
    kind = schema.get("type")
    if kind is not None and not _is_of(kind, value):
        return False
    if isinstance(value, str):
        is_short = schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", math.inf)
        return is_short and re.search(schema.get("pattern", ""), value) is not None
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return _lower(schema) <= (value, False) and (value, True) <= _upper(schema)
    return True


def _is_of(kind: str, value: Any) -> bool:
    if isinstance(value, bool) and kind in ("integer", "number"):
        return False
    return isinstance(value, _TYPES.get(kind, ()))
