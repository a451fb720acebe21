"""A second database beside the default one, of the same kind, for tests in pytest's own process."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy

from django.db import connections

from messaging import killpoints

OTHER = "other"


@contextmanager
def second_database() -> Iterator[None]:
    """As the first is, whose tables are empty between tests, and known to Django as `other`."""
    first = connections["default"]
    creation = first.creation
    settings = connections.settings[OTHER] = deepcopy(creation.get_test_db_clone_settings(OTHER))
    if first.vendor == "mysql":  # Django copies it with a program that may be missing
        settings["TEST"]["NAME"] = settings["NAME"]
        connections[OTHER].creation.create_test_db(verbosity=0, autoclobber=True)
    else:
        if first.vendor == "sqlite":
            with first.cursor() as cursor:
                cursor.execute("PRAGMA wal_checkpoint(TRUNCATE)")  # the file that is copied then has it all
        creation.clone_test_db(OTHER, verbosity=0)
    try:
        yield
    finally:
        connections[OTHER].close()
        creation.destroy_test_db(suffix=OTHER, verbosity=0)
        del connections.settings[OTHER]
        del connections[OTHER]


def killed(point: str, work: Callable[[], object]) -> None:
    """Do some work in a process of its own that is killed with SIGKILL at a kill point."""
    connections.close_all()
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", DeprecationWarning
        )  # other threads: those of pytest, which hold nothing of ours
        child = os.fork()
    if not child:
        killpoints._armed = point
        try:
            work()
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), f"it did not pass {point}"
