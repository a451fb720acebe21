"""What a handler leaves behind in its database session, noticed before the next one runs in it.

PostgreSQL tells with the statement that is the first of a handler's transaction anyway, and the connection is replaced.
What is not looked at, such as parameters of the site's own, ends with a transaction that sets it by SET LOCAL. On other
databases a statement of ours has to fail first, see `database.is_unfit()`.
"""

from __future__ import annotations

from django.db import OperationalError
from django.db.backends.base.base import BaseDatabaseWrapper

_KEPT = "_messaging_session"  # attribute of Django's connection: the driver's, and how its session was at first

# Few, since it is asked with every message: each takes the server a third of a microsecond.
_PARAMETERS = (
    "search_path", "TimeZone", "default_transaction_isolation", "default_transaction_read_only", "statement_timeout",
)  # fmt: skip
STATE = "concat_ws('|', current_user, " + ", ".join(f"current_setting('{name}')" for name in _PARAMETERS) + ")"


class SessionChanged(OperationalError):
    """A handler has left its session in another state than it found it in. Use another connection."""


def compare(connection: BaseDatabaseWrapper, state: str) -> None:
    """Note how a session is where that is not known yet. Raises SessionChanged where it was otherwise.

    Args:
        connection: whose session.
        state: what `STATE` says of it now.
    """
    known = vars(connection).get(_KEPT)
    if known is None or known[0] is not connection.connection:
        vars(connection)[_KEPT] = connection.connection, state
    elif known[1] != state and not _in_test(connection):
        raise SessionChanged(f"A handler has left its database session in another state: {state}, not {known[1]}.")


def _in_test(connection: BaseDatabaseWrapper) -> bool:
    """Whether the session is within the transaction of a `TestCase`, which another connection does not see."""
    return bool(connection.atomic_blocks) and bool(getattr(connection.atomic_blocks[0], "_from_testcase", False))
