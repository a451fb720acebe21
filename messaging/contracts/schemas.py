"""JSON Schema of payload types: plain annotations, dataclasses, TypedDict, enums; pydantic and msgspec write their own.

What is sent and what is received of one type can differ: a dataclass's field with a default is always sent, and may be
missing in what is received.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import datetime
import decimal
import enum
import inspect
import re
import types
import typing
import uuid
from collections.abc import Iterable, Iterator, Mapping
from importlib import import_module
from typing import Annotated, Any, Union, get_args, get_origin

from messaging.contracts.events import name_of_type, required_keys
from messaging.contracts.libraries import is_msgspec, is_pydantic
from messaging.contracts.validation import QUALIFIERS, is_typed_dict
from messaging.exceptions import ConfigurationError

REFERENCE = "#/components/schemas/"
Schema = dict[str, Any]

_SIMPLE: dict[Any, Schema] = {
    Any: {},
    object: {},
    None: {"type": "null"},
    type(None): {"type": "null"},
    bool: {"type": "boolean"},
    int: {"type": "integer"},
    float: {"type": "number"},
    str: {"type": "string"},
    bytes: {"type": "string", "contentEncoding": "base64"},
    decimal.Decimal: {"type": "string", "format": "decimal"},
    uuid.UUID: {"type": "string", "format": "uuid"},
    datetime.datetime: {"type": "string", "format": "date-time"},
    datetime.date: {"type": "string", "format": "date"},
    datetime.time: {"type": "string", "format": "time"},
    datetime.timedelta: {"type": "string", "format": "duration"},
    dict: {"type": "object"},
    list: {"type": "array"},
    tuple: {"type": "array"},
    set: {"type": "array", "uniqueItems": True},
    frozenset: {"type": "array", "uniqueItems": True},
}
# What is read more freely than it is written.
_RECEIVED: dict[Any, Schema] = {**_SIMPLE, decimal.Decimal: {"type": ["string", "number"], "format": "decimal"}}
_UNIONS = (Union, types.UnionType)
_WRAPPERS = {Annotated, *QUALIFIERS}
_MAPPINGS = (dict, collections.abc.Mapping, collections.abc.MutableMapping)
_SETS = (set, frozenset, collections.abc.Set, collections.abc.MutableSet)
_LISTS = (list, collections.abc.Sequence, collections.abc.MutableSequence, collections.abc.Iterable)
_JSON_TYPES = {str: "string", bool: "boolean", int: "integer", float: "number", type(None): "null"}


class Schemas:
    """Describes types of one direction; what has a name is put into `components` once, and referred to.

    Args:
        sent: whether payloads of these types are sent; else they are received.
    """

    def __init__(self, *, sent: bool) -> None:
        self.components: dict[str, Schema] = {}
        self._sent, self._simple = sent, _SIMPLE if sent else _RECEIVED
        self._names: dict[Any, str] = {}

    def of(self, kind: Any) -> Schema:
        """The schema of a type, or a reference to it. Raises ConfigurationError for what has none."""
        try:
            known = self._simple.get(kind)
        except TypeError:  # no annotation at all, such as a list of types
            known = None
        if known is not None:
            return dict(known)
        origin = get_origin(kind)
        if origin is not None and not dataclasses.is_dataclass(origin):
            return self._composed(kind, origin, get_args(kind))
        if isinstance(kind, type) or origin is not None:
            return self._named(kind, origin or kind)
        for attribute in ("__supertype__", "__value__", "__bound__"):  # of NewType, a type alias, a type variable
            if hasattr(kind, attribute):
                return self.of(getattr(kind, attribute) or Any)
        raise _unknown(kind)

    def _composed(self, kind: Any, origin: Any, arguments: tuple[Any, ...]) -> Schema:
        if origin in _UNIONS:
            return _any_of(map(self.of, arguments))
        if origin is typing.Literal:
            return _choice(kind, arguments)
        if origin in _WRAPPERS:
            return self.of(arguments[0])
        if origin in _MAPPINGS:
            return {"type": "object", "additionalProperties": self.of(arguments[1])}
        if origin in _SETS:
            return {"type": "array", "items": self.of(arguments[0]), "uniqueItems": True}
        if origin is tuple and not (len(arguments) == 2 and arguments[1] is ...):
            size = len(arguments)
            return {"type": "array", "items": [*map(self.of, arguments)], "minItems": size, "maxItems": size}
        if origin is tuple or origin in _LISTS:
            return {"type": "array", "items": self.of(arguments[0])}
        if hasattr(origin, "__value__"):  # a generic alias of a `type` statement
            return self.of(_substituted(origin.__value__, dict(zip(origin.__type_params__, arguments, strict=False))))
        if is_pydantic(kind) or is_msgspec(origin) or is_pydantic(origin):
            return self._named(kind, origin)
        raise _unknown(kind)

    def _named(self, kind: Any, plain: Any) -> Schema:
        if not (is_pydantic(kind) or is_msgspec(plain) or dataclasses.is_dataclass(plain) or is_typed_dict(plain)):
            return self._class(kind)
        if kind not in self._names:
            name = self._new_name(kind)
            self._names[kind], self.components[name] = name, {}
            try:
                self.components[name] = self._model(kind, plain)
            except BaseException:
                del self._names[kind], self.components[name]
                raise
        return {"$ref": REFERENCE + self._names[kind]}

    def _class(self, kind: Any) -> Schema:
        if issubclass(kind, enum.Enum):
            return _choice(kind, [member.value for member in kind])
        for base in kind.__mro__[:-1]:
            if base in self._simple:
                return dict(self._simple[base])
        raise _unknown(kind)

    def _model(self, kind: Any, plain: Any) -> Schema:
        if is_pydantic(kind) or is_msgspec(plain):
            return self._adopted(kind, *_of_library(kind, plain, sent=self._sent))
        own = dict(zip(getattr(plain, "__parameters__", ()), get_args(kind), strict=False))
        try:
            hints = typing.get_type_hints(plain, include_extras=True)
        except NameError as error:
            raise ConfigurationError(f"{name_of_type(kind)} cannot be described: {error}.") from error
        properties, required, defaults = self._fields(plain, hints)
        schema: Schema = {"type": "object"}
        if description := _description(plain):
            schema["description"] = description
        schema["properties"] = {name: self.of(_substituted(hints[name], own)) for name in properties}
        for name, default in defaults.items():
            if "$ref" not in schema["properties"][name]:
                schema["properties"][name]["default"] = default
        return {**schema, "required": required} if required else schema

    def _fields(self, kind: Any, hints: Mapping[str, Any]) -> tuple[list[str], list[str], dict[str, Any]]:
        """The names of what an object has, of what it always has, and defaults that a document can show."""
        if is_typed_dict(kind):
            keys = required_keys(kind)
            return list(hints), [name for name in hints if name in keys], {}
        fields = [one for one in dataclasses.fields(kind) if self._sent or one.init]
        if self._sent:
            return [one.name for one in fields], [one.name for one in fields], {}
        missing = dataclasses.MISSING
        required = [one.name for one in fields if one.default is missing and one.default_factory is missing]
        defaults = {one.name: one.default for one in fields if type(one.default) in _JSON_TYPES}
        return [one.name for one in fields], required, defaults

    def _adopted(self, kind: Any, root: str, definitions: dict[str, Schema]) -> Schema:
        """A schema that a library wrote, whose other definitions are put where all are."""
        names = {root: self._names[kind]}
        found = definitions.pop(root)
        for name, definition in definitions.items():
            known = self.components.get(name)
            names[name] = name if known is None or known == _adapted(definition, {}) else self._free(name)
        for name, definition in definitions.items():
            self.components[names[name]] = _adapted(definition, names)
        return renamed(found, names)

    def _new_name(self, kind: Any) -> str:
        plain = get_origin(kind) or kind
        short = "_".join([plain.__name__, *(getattr(one, "__name__", str(one)) for one in get_args(kind))])
        return self._free(short, f"{plain.__module__}.{short}")

    def _free(self, *names: str) -> str:
        cleaned = [re.sub(r"[^A-Za-z0-9._-]+", "_", name) for name in names]
        numbered = (f"{cleaned[-1]}-{number}" for number in range(2, 10_000))
        return next(name for name in (*cleaned, *numbered) if name not in self.components)


def merged(sent: Schemas, received: Schemas) -> tuple[dict[str, Schema], dict[str, str]]:
    """The components of both directions together, and the new names of what is received and differs from what is sent.

    A component differs if one that it refers to does.
    """
    both = sent.components.keys() & received.components.keys()
    other = {name for name in both if sent.components[name] != received.components[name]}
    while True:
        leading = {name for name in both - other if other & {*references(received.components[name])}}
        if not leading:
            break
        other |= leading
    taken = {*sent.components, *received.components}
    names = {name: next(one for one in _alternatives(name) if one not in taken) for name in sorted(other)}
    moved = {names.get(name, name): _adapted(schema, names) for name, schema in received.components.items()}
    return dict(sorted({**sent.components, **moved}.items())), names


def renamed(schema: Schema, names: Mapping[str, str]) -> Schema:
    """A schema that refers to components by their new names."""
    adapted: Schema = _adapted(schema, names)
    return adapted


def references(value: Any) -> Iterator[str]:
    """The names of all components that a schema refers to."""
    if isinstance(value, Mapping):
        reference = value.get("$ref")
        if isinstance(reference, str):
            yield reference.removeprefix(REFERENCE)
        for one in value.values():
            yield from references(one)
    elif isinstance(value, list):
        for one in value:
            yield from references(one)


def _alternatives(name: str) -> Iterator[str]:
    yield f"{name}-received"
    yield from (f"{name}-received-{number}" for number in range(2, 10_000))


def _adapted(value: Any, names: Mapping[str, str]) -> Any:
    """A schema as AsyncAPI takes it, which knows draft 7 of JSON Schema."""
    if isinstance(value, list):
        return [_adapted(one, names) for one in value]
    if not isinstance(value, Mapping):
        return value
    found = {key: _adapted(one, names) for key, one in value.items()}
    reference, discriminator = found.get("$ref"), found.get("discriminator")
    if isinstance(reference, str):
        name = reference.removeprefix(REFERENCE)
        found["$ref"] = REFERENCE + names.get(name, name)
    if isinstance(discriminator, Mapping) and isinstance(discriminator.get("propertyName"), str):
        found["discriminator"] = discriminator["propertyName"]
    if isinstance(found.get("prefixItems"), list):
        found["items"] = found.pop("prefixItems")
    return found


def _of_library(kind: Any, plain: Any, *, sent: bool) -> tuple[str, dict[str, Schema]]:
    """What pydantic or msgspec say: the definition of this type by its name, and those that it refers to."""
    if is_pydantic(kind):
        mode = "serialization" if sent else "validation"
        schema = kind.model_json_schema(mode=mode, ref_template=REFERENCE + "{model}")
        definitions = schema.pop("$defs", {})
        if "$ref" in schema:  # it refers to itself
            return schema["$ref"].removeprefix(REFERENCE), definitions
        return "", {**definitions, "": schema}
    msgspec = import_module("msgspec")  # which is there, since one of its structs is
    (schema,), definitions = msgspec.json.schema_components([kind], ref_template=REFERENCE + "{name}")
    if sent and not plain.__struct_config__.omit_defaults:  # every field is written
        for definition in definitions.values():
            if definition.get("type") == "object" and "properties" in definition:
                definition["required"] = list(definition["properties"])
    return schema["$ref"].removeprefix(REFERENCE), definitions


def _any_of(schemas: Iterable[Schema]) -> Schema:
    each: list[Schema] = []
    for schema in schemas:
        each += [one for one in schema.get("anyOf", [schema]) if one not in each]
    return each[0] if len(each) == 1 else {"anyOf": each}


def _choice(kind: Any, values: Iterable[Any]) -> Schema:
    found = [value.value if isinstance(value, enum.Enum) else value for value in values]
    if not found or not all(type(value) in _JSON_TYPES for value in found):
        raise _unknown(kind)
    names = sorted({_JSON_TYPES[type(value)] for value in found})
    return {"type": names[0] if len(names) == 1 else names, "enum": found}


def _substituted(kind: Any, own: Mapping[Any, Any]) -> Any:
    """An annotation with type variables replaced."""
    if not own:
        return kind
    if kind in own:
        return own[kind]
    parameters = getattr(kind, "__parameters__", ())
    return kind[tuple(own.get(one, one) for one in parameters)] if parameters and get_origin(kind) else kind


def _description(kind: Any) -> str:
    """The first paragraph of a class's own docstring; "" for none, or one that was made of its fields."""
    text = kind.__dict__.get("__doc__")
    if not isinstance(text, str) or text.startswith(f"{kind.__name__}("):
        return ""
    return " ".join(inspect.cleandoc(text).partition("\n\n")[0].split())


def _unknown(kind: Any) -> ConfigurationError:
    return ConfigurationError(
        f"{name_of_type(kind)} cannot be described as JSON Schema: use a dataclass, a TypedDict, a pydantic model, a "
        "msgspec struct, or types that JSON has."
    )
