"""The old place of `Now`, under which migrations know it."""

from messaging.db.clock import Now

__all__ = ["Now"]
