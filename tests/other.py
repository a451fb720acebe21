"""A second database beside the default one, of the same kind, for tests in pytest's own process."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from tempfile import gettempdir

from django.db import connections

from messaging import killpoints

OTHER = "other"


@contextmanager
def second_database() -> Iterator[None]:
    """Migrated like the first, and known to Django as `other`."""
    first = connections["default"]
    settings = deepcopy(first.settings_dict)
    name = f"messaging-test-{os.getpid()}-other"
    settings["TEST"]["NAME"] = str(Path(gettempdir()) / f"{name}.sqlite3") if first.vendor == "sqlite" else name
    before = settings["NAME"]
    connections.settings[OTHER] = settings
    connection = connections[OTHER]
    connection.creation.create_test_db(verbosity=0, autoclobber=True)
    try:
        yield
    finally:
        connection.close()
        connection.creation.destroy_test_db(before, verbosity=0)
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
