"""Models of pydantic and structs of msgspec, recognised without importing either."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import cache
from typing import Any

from messaging.contracts.violations import Loader, Memo, Unreadable, Violation, expected, member, name_of

_PLACE = re.compile(r"(?P<reason>.*?)(?: - at `(?P<path>.*)`)?", re.DOTALL)
_MISSING = re.compile(r"Object missing required field `(?P<name>.*)`")


def of(kind: Any) -> Callable[[Any], Loader] | None:
    """What reads a class of one of the libraries; None for any other."""
    if hasattr(kind, "__pydantic_validator__"):
        return _pydantic
    return _msgspec if hasattr(kind, "__struct_fields__") else None


def is_pydantic(kind: Any) -> bool:
    """Whether a type is a pydantic model, which describes itself."""
    return isinstance(kind, type) and callable(getattr(kind, "model_json_schema", None))


def is_msgspec(kind: Any) -> bool:
    """Whether a type is a msgspec struct."""
    return isinstance(kind, type) and hasattr(kind, "__struct_fields__")


def plain(value: Any) -> Any:
    """An instance of theirs as its library writes it as JSON."""
    kind: Any = type(value)
    if of(kind) is _pydantic:
        return _adapter(kind).dump_python(value, mode="json", by_alias=True)
    import msgspec

    return msgspec.to_builtins(value, str_keys=True)


@cache
def _adapter(kind: Any) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


def _pydantic(kind: Any) -> Loader:
    from pydantic import ValidationError

    try:
        adapter = _adapter(kind)
    except Exception as error:
        raise Unreadable(f"pydantic cannot read {name_of(kind)} ({type(error).__name__}: {error}).") from error

    def load(value: Any, _memo: Memo) -> Any:
        try:
            text = json.dumps(value)
        except (TypeError, ValueError):
            raise expected("an object", value) from None
        try:
            return adapter.validate_json(text)  # which takes text for a date where a model is strict, too
        except ValidationError as error:
            found = error.errors(include_url=False, include_context=False, include_input=False)
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        raise Violation(f"{found[0]['msg']}{more}", "".join(map(member, found[0]["loc"])))

    return load


def _msgspec(kind: Any) -> Loader:
    import msgspec

    def load(value: Any, _memo: Memo) -> Any:
        try:
            return msgspec.convert(value, type=kind, str_keys=True)
        except msgspec.ValidationError as error:
            told = _PLACE.fullmatch(str(error))
        reason, path = (told["reason"], told["path"] or "") if told else ("is not valid", "")
        path = path.removeprefix("$")
        if missing := _MISSING.fullmatch(reason):
            reason, path = "is missing", path + member(missing["name"])
        elif reason.startswith("Invalid enum value"):  # which it repeats
            reason = "Invalid enum value"
        raise Violation(reason, path)

    return load
