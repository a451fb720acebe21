"""Whether what a delivery says in headers of ours was said by us.

Anyone who may write to a queue may write such headers. They are believed where they show the nonce that the message's
row knows; on all others they say nothing, and the message is what it would be without them: a stranger's.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Sequence
from functools import partial

from messaging.models import ProcessedMessage, PublishedMessage
from messaging.processing.station import Station
from messaging.wire import nonces
from messaging.wire.bodies import storable
from messaging.wire.envelope import Envelope


class Recognition:
    """Recognises what this site has sent to itself.

    Args:
        station: where this process stands.
    """

    def __init__(self, station: Station) -> None:
        self._station = station

    def of(self, queue: str, envelope: Envelope) -> Envelope:
        """The message as it is to be understood: as its headers of ours say, or as a stranger's.

        It asks the databases, unless there is nothing to be asked. Raises DatabaseUnavailable.
        """
        if envelope.is_proven:
            return envelope
        if envelope.row_key is None:
            known = any(self._has_sent(database, queue, envelope) for database in self._databases)
        else:
            known = is_ours(self._rows(queue, envelope.row_key), envelope)
        return envelope if known else envelope.as_a_strangers()

    @property
    def _databases(self) -> tuple[str, ...]:
        """Those that may know a message."""
        own = self._station.database
        return own, *self._station.elsewhere.others(own)

    def _rows(self, queue: str, key: uuid.UUID) -> list[ProcessedMessage]:
        found: list[ProcessedMessage] = []
        for database in self._databases:
            rows = ProcessedMessage.objects.using(database).filter(alias=self._station.alias, queue=queue)
            found += self._station.outages.steadily(database, partial(list, rows.filter(key=key)))
        return found

    def _has_sent(self, database: str, queue: str, envelope: Envelope) -> bool:
        """Whether an outbox of ours has such a message: `SECRET_KEY` changed since, or the release before sent it."""
        rows = PublishedMessage.objects.using(database).filter(message_id=storable(envelope.message_id, 255))
        own = rows.filter(alias=self._station.alias, queue=queue, routing_key=storable(envelope.routing_key, 255))
        return bool(envelope.message_id) and self._station.outages.steadily(database, own.exists)


def is_ours(rows: Sequence[ProcessedMessage], envelope: Envelope) -> bool:
    """Whether we sent the round that a delivery says it is.

    Args:
        rows: those of its key, in each database. Where there are none, a database was set back: `SECRET_KEY` tells.
        envelope: which says so.
    """
    assert envelope.row_key is not None
    known = {row.nonce for row in rows if row.nonce is not None}
    if len(known) < len(rows) or not rows:
        known.update(nonces.possible(envelope.target, envelope.row_key))
    shown = (nonces.proves_round(envelope.nonce, nonce, envelope.round) for nonce in known)
    return any(shown) or _is_of_the_release_before(rows, envelope)


# For one release: delete this function and its call with the next.
def _is_of_the_release_before(rows: Iterable[ProcessedMessage], envelope: Envelope) -> bool:
    """Whether the release before, which knows no nonces, sent this round: the rows tell, not the message."""
    for row in rows:
        if envelope.round > row.round:
            continue
        if row.nonce is None:
            return True
        sent = PublishedMessage.objects.using(row._state.db).filter(inbox_id=row.pk, round=envelope.round)
        own = sent.filter(alias=row.alias, queue=row.queue, message_id=row.message_id)
        shown = nonces.of_round(row.nonce, envelope.round).encode()
        if any(shown not in bytes(wire or b"") for wire in own.values_list("wire", flat=True)):
            return True
    return False
