"""Versions of payloads: which one a class is, and the steps that lift to it what was published in an earlier one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, TypeVar

from messaging.contracts.violations import name_of
from messaging.exceptions import ConfigurationError, NewerVersion, PayloadError
from messaging.wire.envelope import LATEST_VERSION

MARK = "__messaging_version__"  # of a class, so that those that derive from it have its version

Step = Callable[[Any], Any]
Class = TypeVar("Class", bound=type)
Function = TypeVar("Function", bound=Step)


class Version(NamedTuple):
    """What `payload_version()` says."""

    number: int
    oldest: int


_steps: dict[type, dict[int, list[Step]]] = {}


def payload_version(number: int, *, oldest: int = 1) -> Callable[[Class], Class]:
    """Declare which version of a payload a class is. A class without this decorator is version 1.

    Put it above all other decorators. From version 2 on, instances are published with the header `x-messaging-version`.

    Args:
        number: the version. Raise it by one with each change that consumers of the last version would not understand.
        oldest: the oldest version that is still accepted. An older payload fails for good; one between the two is
            lifted by the functions that `upgrades()` registers.

    Returns:
        A decorator that returns the class.

    Raises:
        ConfigurationError: a number is not a version, or `oldest` is above `number`.
    """
    for name, value in (("number", number), ("oldest", oldest)):
        _check(f"payload_version(): {name}", value)
    if oldest > number:
        raise ConfigurationError(f"payload_version({number}): the oldest version that is taken cannot be {oldest}.")

    def declare(kind: Class) -> Class:
        setattr(kind, MARK, Version(number, oldest))
        return kind

    return declare


def upgrades(kind: type, *, from_version: int) -> Callable[[Function], Function]:
    """Register a function that lifts a payload of `from_version` to the next version.

    The function receives the payload as decoded JSON and returns that of the next version, also as decoded JSON. It
    runs at each attempt, so it must depend on nothing but the payload. An error in it fails the attempt like one in
    the handler.

    Args:
        kind: the class of the payload, whose version `payload_version()` declares.
        from_version: the version that the function accepts.

    Returns:
        A decorator that registers the function and returns it unchanged.

    Raises:
        ConfigurationError: `kind` is not a class, or `from_version` is not a version.
    """
    given: Any = kind
    if not isinstance(given, type):
        raise ConfigurationError(f"@upgrades() needs the class of a payload, not {given!r}.")
    _check(f"@upgrades({name_of(kind)}): from_version", from_version)

    def register(function: Function) -> Function:
        known = _steps.setdefault(kind, {}).setdefault(from_version, [])
        # A module may be imported twice.
        known[:] = [one for one in known if _dotted(one) != _dotted(function)]
        known.append(function)
        return function

    return register


def _check(what: str, value: Any) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= LATEST_VERSION:
        raise ConfigurationError(f"{what} must be a whole number, at least 1, not {value!r}.")


def _dotted(function: Step) -> str:
    named: Any = function if hasattr(function, "__qualname__") else type(function)
    return f"{named.__module__}.{named.__qualname__}"


def version_of(kind: Any) -> Version:
    """The version that a class is."""
    found: Version = getattr(kind, MARK, None) or Version(1, 1)
    return found


def is_versioned(kind: Any) -> bool:
    """Whether a class says its version, or functions lift to it."""
    return hasattr(kind, MARK) or bool(steps_of(kind))


def steps_of(kind: Any) -> Mapping[int, list[Step]]:
    """The functions that lift to a class, or to the one that it derives from, by the version that they begin with."""
    bases = kind.__mro__ if isinstance(kind, type) else ()
    return next((_steps[base] for base in bases if base in _steps), {})


def lift(kind: Any, payload: Any, version: int) -> Any:
    """A payload of another version as the class's own has it.

    Raises NewerVersion for one that is not known here yet, PayloadError for one that is too old, ConfigurationError
    where a step is missing, and whatever a step raises.
    """
    number, oldest = version_of(kind)
    if version > number:
        raise NewerVersion(
            f"The payload has version {version} of {name_of(kind)}, and this release takes {number} at most. While a "
            "newer one is being deployed, its consumers take the message; else deploy one, then requeue it."
        )
    if version < oldest:
        raise PayloadError(f"The payload has version {version} of {name_of(kind)}, and {oldest} is the oldest taken.")
    steps = steps_of(kind)
    for begin in range(version, number):
        if begin not in steps:
            raise ConfigurationError(_missing(kind, begin))
        step = steps[begin][0]
        payload = step(payload)
        if payload is None:
            text = f"{_dotted(step)} returned nothing: it has to return the payload of version {begin + 1}."
            raise ConfigurationError(text)
    return payload


def missing_steps(kind: Any) -> Iterator[str]:
    """What keeps payloads of a version that is taken from being lifted to the class's, in words."""
    (number, oldest), steps = version_of(kind), steps_of(kind)
    for begin in range(oldest, number):
        if begin not in steps:
            yield _missing(kind, begin)
    for begin in sorted(begin for begin in steps if begin >= number):
        text = f"{_dotted(steps[begin][0])} lifts {name_of(kind)} from version {begin}, and that is version {number}"
        yield f"{text}: declare @payload_version({begin + 1})."


def rival_steps(kind: Any) -> Iterator[str]:
    """Where several functions lift from the same version, in words."""
    for begin, functions in sorted(steps_of(kind).items()):
        if len(functions) > 1:
            yield f"{name_of(kind)} is lifted from version {begin} by several: {', '.join(map(_dotted, functions))}."


def _missing(kind: Any, begin: int) -> str:
    name = name_of(kind)
    return f"No function lifts {name} from version {begin}: write @upgrades({name}, from_version={begin})."


def lifted_classes() -> list[type]:
    """Every class that functions lift to."""
    return list(_steps)
