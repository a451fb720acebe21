"""Something that is wrong for a while, said once at its beginning and once at its end."""

from __future__ import annotations

import logging

from messaging.wire.text import one_line

logger = logging.getLogger("messaging.relay")


class Trouble:
    """Says once that something is wrong, and once that it is well again."""

    def __init__(self) -> None:
        self.reason = ""

    def begin(self, message: str, reason: object) -> None:
        """Log `message` unless this trouble was logged before."""
        if not self.reason:
            logger.warning("%s: %s", message, one_line(reason))
        self.reason = str(reason) or message

    def end(self, message: str) -> None:
        """Log `message` if there was trouble."""
        if self.reason:
            logger.warning("%s", message)
        self.reason = ""
