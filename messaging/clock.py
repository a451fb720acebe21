"""The database's clock, which every host shares: their own clocks may be an hour apart."""

from __future__ import annotations

from typing import Any

from django.db.models import functions


class Now(functions.Now):
    """The moment of the statement, in UTC whatever the session's time zone is.

    Django's own follows the session's time zone on MySQL and MariaDB, while what it stores there is UTC.
    """

    def as_mysql(self, compiler: Any, connection: Any, **context: Any) -> Any:
        """UTC_TIMESTAMP with microseconds."""
        return self.as_sql(compiler, connection, template="UTC_TIMESTAMP(6)", **context)
