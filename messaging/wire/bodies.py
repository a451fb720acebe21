"""Bodies: from a payload, to a payload, and as a row keeps them; and texts.

Texts of strangers are made fit for databases, properties and log lines.
"""

from __future__ import annotations

import base64
import gzip
import json
import re
import zlib
from encodings import normalize_encoding
from encodings.aliases import aliases
from typing import Any

from django.core.serializers.json import DjangoJSONEncoder

from messaging.exceptions import PayloadError, WireError
from messaging.wire.fields import MAX_SHORT

LENGTH = 300  # characters of an error in a log line
# Encodings of Python's that no other program calls a charset: what is not for texts, and what takes hours to decode.
NO_CHARSETS = frozenset({
    "punycode", "idna", "undefined", "unicode_escape", "raw_unicode_escape", "charmap", "mbcs", "oem",
    "base64_codec", "bz2_codec", "hex_codec", "quopri_codec", "rot_13", "uu_codec", "zlib_codec",
})  # fmt: skip
# Those that Python has no other name for.
_FURTHER = {
    *("utf_8_sig", "koi8_r", "koi8_t", "koi8_u", "cp720", "cp737", "cp856", "cp874", "cp875", "cp1006", "palmos"),
    *("mac_arabic", "mac_croatian", "mac_farsi", "mac_romanian"),
}
# Looked up here, because Python keeps every name that it was ever asked for.
CHARSETS = {name: name for name in {*aliases.values(), *_FURTHER} - NO_CHARSETS}
CHARSETS |= {alias: name for alias, name in aliases.items() if name in CHARSETS}

LONGEST_CHARSET = 40  # characters of a name

# What senders name as the encoding of bodies that are not encoded; some name the charset there.
PLAIN = frozenset({"", "identity", "binary", "utf-8", "utf8", "us-ascii", "ascii", "8bit", "7bit"})
COMPRESSED = frozenset({"gzip", "x-gzip", "deflate"})
MOST_DECODED = 16 * 1024 * 1024  # bytes: what RabbitMQ 4 takes of a message that is not compressed
_CONTAINERS = (dict, list, tuple)
_OTHER_KEY = re.compile(r'"(?:-?[0-9][^"]*|null|true|false)":')  # how JSON writes a key that is not text
# What such a key ends with, which is looked for in half the time: hardly a key of text does.
_OTHER_END = re.compile(r'":(?:(?<=[0-9]":)|(?<="null":)|(?<="true":)|(?<="false":))')

_json = DjangoJSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def storable(text: str, limit: int | None = None) -> str:
    """Text that every database takes: NUL and bytes that are not UTF-8 are shown as escapes, then cut to `limit`."""
    if "\x00" in text or not text.isprintable():
        try:
            raw = text.encode("utf-8", "surrogateescape")
        except UnicodeEncodeError:  # halves of characters, as JSON's \ud800 yields them
            raw = text.encode("utf-8", "backslashreplace")
        text = raw.decode("utf-8", "backslashreplace").replace("\x00", "\\x00")
    return text if limit is None or len(text) <= limit else text[: limit - 1] + "…"


def short(text: str) -> str:
    """Text as `storable()` shows it, cut to the 255 bytes that a property can have."""
    return storable(text, MAX_SHORT).encode()[:MAX_SHORT].decode(errors="ignore")


def one_line(error: object) -> str:
    """An error's text for a log line: a driver's may have several lines, and no end.

    What could steer a terminal is shown as escapes: strangers choose ids and routing keys.
    """
    line = " ".join(str(error).split()) or type(error).__name__
    line = "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in line)
    return line if len(line) <= LENGTH else line[: LENGTH - 1] + "…"


def encode_body(payload: Any, content_type: str | None, content_encoding: str | None = None) -> tuple[bytes, str]:
    """Encode a payload: bytes as they are, str as text unless the content type says JSON, anything else as JSON.

    What is not bytes is compressed where the content encoding is gzip or deflate. Returns the body and its content
    type. Raises PayloadError for what cannot be encoded.
    """
    if isinstance(payload, (bytes, bytearray, memoryview)):
        return bytes(payload), content_type or "application/octet-stream"
    body, content_type = _encode_text(payload, content_type)
    return _compressed(body, content_encoding) if content_encoding else body, content_type


def _encode_text(payload: Any, content_type: str | None) -> tuple[bytes, str]:
    if isinstance(payload, str) and not is_json(content_type):
        try:
            return payload.encode(_charset(content_type)), content_type or "text/plain; charset=utf-8"
        except (ValueError, LookupError) as error:
            raise PayloadError(f"The text cannot be encoded as {content_type or 'UTF-8'}: {error}.") from error
    if content_type and not is_json(content_type):
        raise PayloadError(
            f"A payload of type {type(payload).__name__} cannot be sent as {content_type!r}; give bytes or text."
        )
    try:
        text = _json.encode(payload)
        body = text.encode(_charset(content_type))
    except (TypeError, ValueError, LookupError, RecursionError) as error:
        raise PayloadError(f"The payload cannot be written as JSON: {error}.") from error
    if _OTHER_END.search(text) and _OTHER_KEY.search(text):
        _check_keys(payload)
    return body, content_type or "application/json"


def _check_keys(payload: Any) -> None:
    """Raise PayloadError where two keys of a dict are one in JSON, as 1 and "1": the reader would see one of them.

    For what was written as JSON, so that it has an end.
    """
    waiting = [payload]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            if not all(isinstance(key, str) for key in value):
                _check_texts(value)
            waiting += [one for one in value.values() if isinstance(one, _CONTAINERS)]
        elif isinstance(value, _CONTAINERS):
            waiting += [one for one in value if isinstance(one, _CONTAINERS)]


def _check_texts(table: dict[Any, Any]) -> None:
    known: dict[str, Any] = {}
    for key in table:
        text = str.__str__(key) if isinstance(key, str) else _json.encode(key)
        if text in known:
            raise PayloadError(f"The payload has the keys {known[text]!r} and {key!r}, in JSON both are {text!r}.")
        known[text] = key


def decode_body(body: bytes, content_type: str | None, content_encoding: str | None = None) -> Any:
    """Decode a body by its content type: JSON, text, or bytes; without one, text where it is UTF-8.

    A body that is compressed with gzip or deflate is decompressed first. Raises PayloadError when the body is not what
    its content type says, or is encoded in another way.
    """
    encoding = (content_encoding or "").strip().lower()
    if encoding in COMPRESSED:
        body = _decompressed(body, encoding)
    elif encoding not in PLAIN:
        raise PayloadError(
            f"The body is encoded as {content_encoding!r}, which is not decoded here; take message.body."
        )
    if not content_type:
        try:
            return body.decode()
        except UnicodeDecodeError:
            return body
    if is_json(content_type):
        try:
            return json.loads(body.decode(_charset(content_type)))
        except (ValueError, LookupError, RecursionError) as error:
            raise PayloadError(f"The body is not valid JSON: {str(error) or 'nested too deeply'}.") from error
    if _media_type(content_type).startswith("text/"):
        try:
            return body.decode(_charset(content_type))
        except (ValueError, LookupError) as error:
            raise PayloadError(f"The body is not {content_type}: {error}.") from error
    return body


def text_of_body(body: bytes, content_type: str | None) -> str:
    """A body as text, by the character set of its content type. Raises PayloadError for what is none."""
    try:
        text = body.decode(_charset(content_type))
    except (ValueError, LookupError) as error:
        raise PayloadError(f"The body is no text: {error}.") from error
    if "\x00" in text or text.encode(_charset(content_type)) != body:
        raise PayloadError("The body is no text that could be written again as it is.")
    return text


def body_of_text(text: str, content_type: str | None) -> bytes:
    """Inverse of `text_of_body()`. Raises PayloadError for characters that the content type's character set lacks."""
    try:
        return text.encode(_charset(content_type))
    except (ValueError, LookupError) as error:
        raise PayloadError(f"The text cannot be encoded as {content_type or 'UTF-8'}: {error}.") from error


def pack_body(body: bytes) -> tuple[str, str]:
    """A body as the database stores it: text where it is UTF-8 without NUL, else base64; and which of both."""
    try:
        if b"\x00" not in body:
            return body.decode(), ""
    except UnicodeDecodeError:
        pass
    return base64.b64encode(body).decode("ascii"), "base64"


def unpack_body(body: str, body_encoding: str) -> bytes:
    """Inverse of `pack_body()`. Raises WireError for what it did not write."""
    if body_encoding not in ("", "base64"):
        raise WireError(f"A stored body has the unknown encoding {body_encoding!r}.")
    try:
        return base64.b64decode(body, validate=True) if body_encoding else body.encode()
    except ValueError as error:
        raise WireError(f"A stored body is damaged: {error}.") from error


def _compressed(body: bytes, content_encoding: str) -> bytes:
    encoding = content_encoding.strip().lower()
    if encoding in PLAIN:
        return body
    if encoding not in COMPRESSED:
        raise PayloadError(f"A payload cannot be encoded as {content_encoding!r} here; give bytes that are.")
    return zlib.compress(body) if encoding == "deflate" else gzip.compress(body, mtime=0)  # the same each time


def _decompressed(body: bytes, encoding: str) -> bytes:
    """As much as may be: a few kilobytes can become gigabytes."""
    pieces, left = [b""], MOST_DECODED
    try:
        while body:
            engine = zlib.decompressobj(_window(body, encoding))
            pieces.append(engine.decompress(body, left + 1))
            left -= len(pieces[-1])
            if left < 0:
                raise PayloadError(
                    f"The body has more than {MOST_DECODED // 1024 // 1024} MiB once it is decompressed."
                )
            if not engine.eof:
                raise PayloadError(f"The body is not {encoding}: it is cut short.")
            body = engine.unused_data.lstrip(b"\0") if encoding != "deflate" else b""  # gzip may have several parts
    except zlib.error as error:
        raise PayloadError(f"The body is not {encoding}: {error}.") from error
    return b"".join(pieces)


def _window(body: bytes, encoding: str) -> int:
    """What tells zlib the format; some who say deflate leave out its header."""
    if encoding != "deflate":
        return 16 + zlib.MAX_WBITS
    has_header = len(body) > 1 and body[0] & 15 == 8 and int.from_bytes(body[:2]) % 31 == 0
    return zlib.MAX_WBITS if has_header else -zlib.MAX_WBITS


def _media_type(content_type: str) -> str:
    return content_type.partition(";")[0].strip().lower()


def is_json(content_type: str | None) -> bool:
    """Whether a content type says that a body is JSON."""
    media_type = _media_type(content_type or "")
    return media_type in ("application/json", "text/json") or media_type.endswith("+json")


def _charset(content_type: str | None) -> str:
    for parameter in (content_type or "").split(";")[1:]:
        name, _, value = parameter.partition("=")
        if name.strip().lower() == "charset" and value.strip():
            charset = value.strip().strip('"')
            known = CHARSETS.get(normalize_encoding(charset[:LONGEST_CHARSET].lower()).replace(".", "_"))
            if known is None:
                raise LookupError(f"unknown encoding: {storable(charset, LONGEST_CHARSET)}")
            return known
    return "utf-8"
