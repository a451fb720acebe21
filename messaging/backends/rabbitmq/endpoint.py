"""What a sender and a receiver share: a connection that is replaced after a loss, and the words for its trouble.

Those who use it tell operators what it means for them, once; so here it is logged for debugging only.
"""

from __future__ import annotations

import threading

from messaging.backends.rabbitmq.connection import Connection
from messaging.backends.rabbitmq.errors import Loss
from messaging.backends.rabbitmq.logs import logger
from messaging.conf import AliasSettings
from messaging.exceptions import BrokerUnavailable


class Endpoint:
    """One connection at a time, opened again on request; subclasses say what to do with it.

    Args:
        settings: the alias's.
        role: "publisher" or "consumer", for the log and for the broker's list of connections.
    """

    def __init__(self, settings: AliasSettings, role: str) -> None:
        self._settings = settings
        self._role = role
        self._opening = threading.Lock()
        self._connection: Connection | None = None
        self._connection_trouble = ""

    def open(self) -> None:
        """Connect, or reconnect after a loss. Raises BrokerUnavailable. Does nothing when already open."""
        with self._opening:
            if self.is_open:
                return
            if self._connection is not None:
                self._connection.close()  # it ended already: this waits until its messages are settled
            connection = Connection(self._settings, self._role, lambda loss: self._on_lost(connection, loss))
            try:
                connection.open()
                self._prepare(connection)
            except BrokerUnavailable as error:
                connection.close(0)
                self._begin_trouble(str(error))
                raise
            self._connection = connection
            self._end_trouble(connection)

    @property
    def is_open(self) -> bool:
        """Whether the connection stands, as far as this side can tell."""
        return self._connection is not None and self._connection.is_open

    def _prepare(self, connection: Connection) -> None:
        """Make a new connection ready for use. Raises BrokerUnavailable."""

    def _lost(self, _connection: Connection, loss: Loss) -> None:
        """Settle what depended on a connection that ended; called in its I/O thread."""

    def _on_lost(self, connection: Connection, loss: Loss) -> None:
        if not loss.ours:
            code = f"{loss.code} " if loss.code else ""
            self._begin_trouble(f"The {self._role}'s connection to {connection.peer} was lost: {code}{loss.reason}.")
        self._lost(connection, loss)

    def _begin_trouble(self, words: str) -> None:
        if not self._connection_trouble:
            logger.debug("%s", words)
        self._connection_trouble = words

    def _end_trouble(self, connection: Connection) -> None:
        if self._connection_trouble:
            logger.debug("The %s is connected to %s again.", self._role, connection.peer)
        self._connection_trouble = ""

    def _unavailable(self) -> BrokerUnavailable:
        return BrokerUnavailable(self._connection_trouble or f"The {self._role}'s connection is not open.")
