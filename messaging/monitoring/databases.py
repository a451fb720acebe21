"""Where messages live: in one database on most sites, in several on some."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any, TypeVar

from django.db import Error, connections, models, router, transaction

from messaging import conf
from messaging.exceptions import ConfigurationError
from messaging.models import PublishedMessage
from messaging.wire.bodies import one_line

logger = logging.getLogger("messaging.monitoring")

LEFT_ALONE = 10.0  # seconds for which a database that could not be read is not asked again by this process

_away: dict[str, float] = {}  # until when
_Told = TypeVar("_Told")
_View = TypeVar("_View", bound=Callable[..., Any])


def home(model: type[models.Model] = PublishedMessage) -> str:
    """The database that a router has this model's rows written to; on most sites the only one."""
    return router.db_for_write(model)


def known(model: type[models.Model] = PublishedMessage) -> list[str]:
    """Every database that has messages, `home()` first: those of each alias, which its handlers' are among."""
    names = [home(model)]
    for alias in conf.aliases():
        with suppress(ConfigurationError):  # said by the system checks
            names += [name for name in conf.get(alias).databases if name in connections.settings]
    return list(dict.fromkeys(names))


def ask_each(ask: Callable[[str], _Told], databases: Iterable[str] | None = None) -> dict[str, _Told]:
    """What each of the databases tells, by its name.

    One that cannot be read, beside `home()`, is left out, and alone for a while: it is no reason to show nothing.

    Args:
        ask: called with each name.
        databases: these; all that are known unless given.
    """
    told = {}
    for database in known() if databases is None else databases:
        if database == home():
            told[database] = ask(database)
        elif not is_away(database):
            with suppress(_Unreadable):
                told[database] = _steadily(ask, database)
    return told


def is_away(database: str) -> bool:
    """Whether it could not be read a moment ago."""
    return time.monotonic() < _away.get(database, 0.0)


def outside_transactions(view: _View) -> _View:
    """A view for which no database is asked for a transaction, whatever `ATOMIC_REQUESTS` says: it may be away."""
    for database in connections.settings:
        transaction.non_atomic_requests(using=database)(view)
    return view


class _Unreadable(Exception):
    """A database tells nothing now."""


def _steadily(ask: Callable[[str], _Told], database: str) -> _Told:
    try:
        return ask(database)
    except Error as error:
        if connections[database].in_atomic_block:  # in which nothing can be read any more
            raise
        _away[database] = time.monotonic() + LEFT_ALONE
        logger.warning('The database "%s" cannot be read: %s', database, one_line(error))
        raise _Unreadable from error
