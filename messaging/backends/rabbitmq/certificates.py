"""When certificates end: the broker's, as it shows it, and the one that this site shows to the broker."""

from __future__ import annotations

import socket
import ssl
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from messaging.backends.rabbitmq import parameters
from messaging.conf import AliasSettings
from messaging.exceptions import ConfigurationError

SECONDS = 3.0  # for each host
_VERSION, _UTC_TIME, _GENERALIZED_TIME = 0xA0, 0x17, 0x18
_BEGIN, _END = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"


def ends(settings: AliasSettings) -> dict[str, datetime | None]:
    """When the certificates of the "broker" and of the "client" end, where there are any; None for one not seen."""
    if settings.scheme != "amqps":
        return {}
    found: dict[str, datetime | None] = {"broker": _of_broker(settings)}
    if settings.tls.get("CERT_FILE"):
        found["client"] = _of_file(Path(settings.tls["CERT_FILE"]))
    return found


def end_of(certificate: bytes) -> datetime:
    """When a certificate ends, which is given in DER. Raises ValueError where it is none."""
    _tag, content, _rest = _element(_element(certificate)[1])  # of the certificate, its part that is signed
    tag, _value, rest = _element(content)
    for _name in ("serial number", "algorithm", "issuer") if tag == _VERSION else ("algorithm", "issuer"):
        _tag, _value, rest = _element(rest)
    _tag, validity, _rest = _element(rest)
    _tag, _begin, rest = _element(validity)
    tag, moment, _rest = _element(rest)
    if tag not in (_UTC_TIME, _GENERALIZED_TIME):
        raise ValueError("It has no time.")
    text = moment.decode("ascii")
    if tag == _UTC_TIME:  # whose years have two digits, from 1950 on
        text = ("19" if text >= "5" else "20") + text
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC)


def _element(data: bytes) -> tuple[int, bytes, bytes]:
    """The tag and the content of the first element in DER, and what follows it."""
    try:
        tag, length, start = data[0], data[1], 2
        if length & 0x80:
            start += length & 0x7F
            length = int.from_bytes(data[2:start], "big")
    except IndexError:
        raise ValueError("It ends too soon.") from None
    if len(data) < start + length:
        raise ValueError("It ends too soon.")
    return tag, data[start : start + length], data[start + length :]


def _of_broker(settings: AliasSettings) -> datetime | None:
    """Of the first host that shows one. It is not verified here: one that has ended could not be read otherwise."""
    try:
        context = parameters.tls_context(settings)
    except ConfigurationError:
        return None
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    for host, port in parameters.in_order(settings.hosts):
        name = settings.tls.get("SERVER_NAME") or host
        with (
            suppress(OSError, ValueError),
            socket.create_connection((host, port), SECONDS) as plain,
            context.wrap_socket(plain, server_hostname=name) as wire,
        ):
            return end_of(wire.getpeercert(binary_form=True) or b"")
    return None


def _of_file(path: Path) -> datetime | None:
    """Of the first certificate in a file, which is the site's own; others may follow, up to the authority's."""
    try:
        begun = path.read_text("ascii", "replace").partition(_BEGIN)[2].partition(_END)[0]
        return end_of(ssl.PEM_cert_to_DER_cert(f"{_BEGIN}{begun}{_END}\n"))
    except (OSError, ValueError):
        return None
