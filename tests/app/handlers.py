"""Handlers that leave one `Effect` per message."""

from messaging import ReceivedMessage, handler
from tests.app.models import Effect


@handler("effects", "effects.#")
def effect(message: ReceivedMessage) -> None:
    """Leave an `Effect` under the message's id."""
    Effect.objects.create(key=message.id, value=str(message.payload))
