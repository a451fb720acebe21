"""What we use of Django that Django does not document, and whether the installed Django still has it.

The commit proof, the refusal of another database's open transaction and the statements of every message rest on them.
If a version renamed one, `publish()` would raise AttributeError in a view: so they are looked for as the site starts.
"""

from __future__ import annotations

import django
from django.core.exceptions import ImproperlyConfigured

from messaging.conf.installed import lacking

TESTED = "Django>=5.2,<6.2"

USED = {
    "django.db.backends.base.base.BaseDatabaseWrapper": (
        "savepoint_commit", "savepoint_rollback",
        # connections that live longer than a request
        "ensure_connection", "close_if_unusable_or_obsolete", "is_usable",
        "connect",  # which a rehearsal keeps from being called
    ),
    "django.db.transaction": ("get_connection", "mark_for_rollback_on_error"),
    # an INSERT that is compiled once
    "django.db.models.expressions": ("DatabaseDefault",),
    "django.db.models.sql": ("InsertQuery",),
}  # fmt: skip

# Attributes of instances: whether a transaction is open, whose, and what will follow it.
GIVEN = {
    "django.db.backends.base.base.BaseDatabaseWrapper": (
        "in_atomic_block", "atomic_blocks", "run_on_commit", "needs_rollback", "closed_in_transaction",
    ),
    "django.db.transaction.Atomic": ("_from_testcase",),
}  # fmt: skip


def require() -> None:
    """Raise ImproperlyConfigured, with what to install, where the installed Django lacks something of this."""
    gone = lacking(USED, GIVEN)
    if gone:
        raise ImproperlyConfigured(
            f"Django {django.get_version()} cannot be used with the app messaging: it has no {', '.join(gone)}. "
            f"Install {TESTED}, which was tested."
        )
