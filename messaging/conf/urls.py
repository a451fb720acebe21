"""URLs of brokers and of RabbitMQ's management API: taken apart strictly, because a misread one fails far away.

What is wrong is said without repeating the URL, which holds a password.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any
from urllib.parse import unquote

from messaging.exceptions import ConfigurationError

DEFAULT_PORTS = {"amqp": 5672, "amqps": 5671}
SCHEMES = (*DEFAULT_PORTS, "database")
_HOST = re.compile(r"(?:\[(?P<six>[0-9A-Fa-f:.]+)\]|(?P<name>[^\s:\[\]@/\\?#%]+))(?::(?P<port>[0-9]*))?")


@dataclass(frozen=True, slots=True)
class ManagementAddress:
    """A management API.

    Attributes:
        base: its URL without credentials, without a final "/" or "/api".
        username, password: percent-decoded; None where the URL does not say.
    """

    base: str
    username: str | None = None
    password: str | None = field(default=None, repr=False)


def parse_url(url: str, where: str = "The URL") -> dict[str, Any]:
    """Split a broker URL into scheme, hosts, vhost, username and password.

    Several hosts are separated by commas; user, password and virtual host are percent-decoded. An empty path means
    the virtual host "/". For `database://` the virtual host is the alias of the database, "" for the default.

    Args:
        url: such as "amqp://user:password@host:5672/vhost".
        where: what the URL is an item of, for errors: `MESSAGING["default"]`.

    Raises ConfigurationError.
    """
    setting = f'{where}["URL"]'
    scheme, rest = _scheme(url, setting, SCHEMES)
    if scheme == "database":
        return {"scheme": scheme, "hosts": (), "vhost": rest, "username": "", "password": ""}
    authority, path = _path(rest, setting)
    username, password, hosts = _authority(authority, setting)
    if "/" in path and path != "/":
        raise ConfigurationError(f'{setting} has a "/" inside its virtual host; write %2F there.')
    vhost = _decoded(path, setting) or "/"
    if len(vhost.encode()) > 255:
        raise ConfigurationError(f"{setting} has a virtual host of more than 255 bytes.")
    return {
        "scheme": scheme,
        "hosts": tuple((host, port or DEFAULT_PORTS[scheme]) for host, port in hosts),
        "vhost": vhost,
        "username": "guest" if username is None else username,
        "password": "guest" if password is None else password,
    }


def has_credentials(url: str) -> tuple[bool, bool]:
    """Whether a URL that can be read says a user name, and whether it says a password."""
    credentials, at, _ = url.partition("://")[2].rpartition("@")
    return bool(at), ":" in credentials


def parse_management_url(url: str, setting: str = "The URL") -> ManagementAddress:
    """Take a management API's URL apart; `setting` is its name for errors. Raises ConfigurationError."""
    scheme, rest = _scheme(url, setting, ("http", "https"))
    authority, path = _path(rest, setting)
    username, password, hosts = _authority(authority, setting)
    if len(hosts) > 1 or not authority:
        raise ConfigurationError(f"{setting} must name one host.")
    host = authority.rpartition("@")[2]
    base = f"{scheme}://{host}/{path}".rstrip("/").removesuffix("/api").rstrip("/")
    return ManagementAddress(base, username, password)


def _scheme(url: str, setting: str, known: tuple[str, ...]) -> tuple[str, str]:
    scheme, separator, rest = url.partition("://")
    if url != url.strip() or not url.isprintable():
        raise ConfigurationError(f"{setting} has white space around it, or characters that cannot be printed.")
    if not separator or not scheme:
        raise ConfigurationError(f'{setting} is no URL: it has no "://".')
    if scheme.lower() not in known:
        near = get_close_matches(scheme.lower(), known, n=1)
        suggestion = f' Did you mean "{near[0]}://"?' if near else ""
        raise ConfigurationError(f"{setting} must start with {_listed(known)}.{suggestion}")
    return scheme.lower(), rest


def _path(rest: str, setting: str) -> tuple[str, str]:
    """What stands before and after the first "/"."""
    authority, _, path = rest.partition("/")
    if "@" in path:
        problem = 'has an "@" after its first "/": write "/" in a user name or password as %2F, and "@" as %40.'
        raise ConfigurationError(f"{setting} {problem}")
    if "?" in path or "#" in path or "?" in authority.rpartition("@")[2]:
        problem = 'has options after a "?" or "#", which would be ignored; heartbeats, TLS and such are settings.'
        raise ConfigurationError(f"{setting} {problem}")
    return authority, path


def _authority(authority: str, setting: str) -> tuple[str | None, str | None, list[tuple[str, int]]]:
    """User name and password, None where there are none, and hosts with their ports, 0 where there is none."""
    credentials, at, hosts = authority.rpartition("@")
    if not at:
        return None, None, _hosts(hosts, setting)
    name, _, password = credentials.partition(":")
    if not name:
        raise ConfigurationError(f'{setting} has an "@" and no user name before it.')
    if "@" in credentials and "," in credentials:
        problem = 'has more than one "@": write user name and password once, before the first host, "@" in them as %40.'
        raise ConfigurationError(f"{setting} {problem}")
    return _decoded(name, setting), _decoded(password, setting), _hosts(hosts, setting, may_be_empty=False)


def _hosts(hosts: str, setting: str, may_be_empty: bool = True) -> list[tuple[str, int]]:
    if not hosts and may_be_empty:
        return [("localhost", 0)]
    return [_host(item, setting) for item in hosts.split(",")]


def _host(item: str, setting: str) -> tuple[str, int]:
    if not item or item.startswith(":"):
        raise ConfigurationError(f"{setting} has an empty host.")
    match = _HOST.fullmatch(item)
    if match is None or not _is_name(match["six"] or match["name"]):
        problem = 'has a host or port that cannot be read; characters such as "/" in a password are percent-encoded.'
        raise ConfigurationError(f"{setting} {problem}")
    port = match["port"] or ""
    if port and not (len(port) <= 5 and 0 < int(port) < 65536):
        raise ConfigurationError(f"{setting} has a port that is not between 1 and 65535.")
    return (match["six"] or match["name"]).lower(), int(port or 0)


def _is_name(host: str) -> bool:
    try:
        host.encode("idna")  # as connecting would
    except UnicodeError:
        return False
    return True


def _decoded(part: str, setting: str) -> str:
    try:
        decoded = unquote(part, errors="strict")
        decoded.encode()
    except UnicodeError:
        raise ConfigurationError(f"{setting} is percent-encoded in a way that is not UTF-8.") from None
    if "\0" in decoded:
        raise ConfigurationError(f"{setting} has a NUL character in it.")
    return decoded


def _listed(schemes: tuple[str, ...]) -> str:
    *first, last = (f'"{scheme}://"' for scheme in schemes)
    return f"{', '.join(first)} or {last}"
