"""By what we recognise messages that we sent to ourselves, since anyone may write our headers.

A nonce belongs to an inbox row. It is made when the row first goes round, from `SECRET_KEY` and the row's identity, and
kept in the row: so it outlives a change of `SECRET_KEY`, and processes that were given different ones agree on it.
Where a database was set back and the row is gone, `SECRET_KEY` and its fallbacks make it again. On the wire it shows
only mixed with the round, so that whoever sees one round cannot write the next.
"""

from __future__ import annotations

import hmac
import uuid
from collections.abc import Iterator
from functools import cache

from django.conf import settings
from django.utils.encoding import force_bytes

_SALT = b"messaging.nonce"


def of_row(queue: str, key: uuid.UUID) -> uuid.UUID:
    """The nonce of a row that has none yet."""
    return next(possible(queue, key))


def possible(queue: str, key: uuid.UUID) -> Iterator[uuid.UUID]:
    """The nonces that a row may have that does not tell: by `SECRET_KEY`, then by each of its fallbacks."""
    message = _joined("round", queue, str(key))
    for secret in _secrets():
        yield uuid.UUID(bytes=_mac(secret, message)[:16], version=4)


def of_round(nonce: uuid.UUID, round_: int) -> str:
    """What a round of the row with this nonce shows."""
    return _mac(nonce.bytes, str(round_).encode()).hex()[:32]


def proves_round(shown: str, nonce: uuid.UUID, round_: int) -> bool:
    """Whether that is what the round shows."""
    return _is_same(shown, of_round(nonce, round_))


def of_address(queue: str, routing_key: str, message_id: str) -> str:
    """What a message shows that is published straight to a queue under another routing key."""
    return _of_address(next(_secrets()), queue, routing_key, message_id)


def proves_address(shown: str, queue: str, routing_key: str, message_id: str) -> bool:
    """Whether that is what such a message shows, by the keys that we have."""
    return any(_is_same(shown, _of_address(secret, queue, routing_key, message_id)) for secret in _secrets())


def _of_address(secret: bytes, queue: str, routing_key: str, message_id: str) -> str:
    return _mac(secret, _joined("address", queue, routing_key, message_id)).hex()[:32]


def _is_same(shown: str, right: str) -> bool:
    return hmac.compare_digest(shown.encode("utf-8", "surrogateescape"), right.encode())


def _secrets() -> Iterator[bytes]:
    for secret in (settings.SECRET_KEY, *settings.SECRET_KEY_FALLBACKS):
        yield _derived(force_bytes(secret))


@cache
def _derived(secret: bytes) -> bytes:
    """A key of our own: what is signed with it is of no use for anything else that Django signs."""
    return _mac(secret, _SALT)


def _joined(*texts: str) -> bytes:
    raws = [text.encode("utf-8", "surrogateescape") for text in texts]
    return b"".join(b"%d:%b" % (len(raw), raw) for raw in raws)


def _mac(key: bytes, message: bytes) -> bytes:
    return hmac.new(key, message, "sha256").digest()  # `hmac.digest()` would give other threads their turn each time
