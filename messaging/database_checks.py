"""System checks of the databases that hold messages: the options of SQLite, and tables that a router would not make."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from django.apps import apps
from django.core.checks import CheckMessage, Error
from django.core.checks import Warning as CheckWarning
from django.db import connections, router
from django.db.models import Model

from messaging import conf
from messaging.exceptions import ConfigurationError
from messaging.handlers import Handler
from messaging.models import ProcessedMessage, PublishedMessage
from messaging.problems import shown, suggest


def used_databases(handlers: list[Handler]) -> dict[str, list[type[Model]]]:
    """Every database that holds messages, by alias, with the tables that it cannot do without."""
    used: dict[str, list[type[Model]]] = {}
    both = [PublishedMessage, ProcessedMessage]
    for alias in conf.aliases():
        try:
            settings = conf.get(alias)
        except ConfigurationError:
            continue  # said by its own checks
        for name in settings.databases:
            used.setdefault(name, []).extend(both)
        if settings.broker_database:
            used.setdefault(settings.broker_database, []).extend(_embedded())
    for handler in handlers:
        used.setdefault(handler.database, []).extend(both)
    return {name: list(dict.fromkeys(models)) for name, models in sorted(used.items()) if name in connections.settings}


def check_sqlite(databases: list[str]) -> Iterator[CheckMessage]:
    """SQLite databases whose options let one slow handler lock everybody out."""
    for name in databases:
        if not _is_sqlite(name):
            continue
        options = _options(name)
        missing = [
            what
            for what, is_there in (
                ('"transaction_mode": "IMMEDIATE"', str(options.get("transaction_mode", "")).upper() == "IMMEDIATE"),
                ('"init_command": "PRAGMA journal_mode=WAL"', "wal" in str(options.get("init_command", "")).lower()),
                ('"timeout": 20', _at_least(options.get("timeout"), 5)),
            )
            if not is_there
        ]
        if missing:
            yield CheckWarning(
                f'The SQLite database "{name}" will report "database is locked" under several processes.',
                hint=f'Add {", ".join(missing)} to DATABASES["{name}"]["OPTIONS"].',
                id="messaging.W002",
            )


def check_routers(databases: Mapping[str, list[type[Model]]]) -> Iterator[CheckMessage]:
    """Databases that hold messages although a router of `DATABASE_ROUTERS` keeps the tables out of them."""
    for name, models in databases.items():
        refused = [model._meta.label for model in models if not _may_migrate(name, model)]
        if refused:
            yield Error(
                f'The database "{name}" is to hold messages, but a router keeps {", ".join(refused)} out of it.',
                hint=f'Have allow_migrate() of DATABASE_ROUTERS allow the app "messaging" in "{name}", or use another '
                "database.",
                id="messaging.E030",
            )


def check_memory(databases: list[str]) -> Iterator[CheckMessage]:
    """SQLite databases in memory, which no other process sees. For deployments: tests may well use them."""
    for name in databases:
        if is_in_memory(name):
            yield CheckWarning(
                f'The SQLite database "{name}" is in memory: no other process sees its messages, and they end with it.',
                hint=f'Name a file in DATABASES["{name}"]["NAME"].',
                id="messaging.W010",
            )


def require(names: Iterable[str], *, shared: bool = False) -> list[str]:
    """These databases, sorted, for a command that is to use them; `shared` if other processes are to see them too.

    Raises ConfigurationError for one that Django does not have, or that is in memory.
    """
    wanted = sorted(set(names))
    for name in wanted:
        if name not in connections.settings:
            raise ConfigurationError(
                f'A handler uses the database "{shown(name)}", which DATABASES does not have. '
                f"{suggest(name, connections.settings)}"
            )
    for name in filter(is_in_memory, wanted if shared else ()):
        raise ConfigurationError(
            f'The database "{name}" is SQLite in memory, where no other process sees its messages: '
            f'name a file in DATABASES["{name}"]["NAME"].'
        )
    return wanted


def is_in_memory(name: str) -> bool:
    """Whether a database is SQLite's in memory."""
    where = str(connections.settings.get(name, {}).get("NAME") or ":memory:")
    return _is_sqlite(name) and (":memory:" in where or "mode=memory" in where)


def _is_sqlite(name: str) -> bool:
    return str(connections.settings.get(name, {}).get("ENGINE", "")).endswith("sqlite3")


def _options(name: str) -> Mapping[str, Any]:
    options = connections.settings[name].get("OPTIONS")
    return options if isinstance(options, Mapping) else {}


def _embedded() -> list[type[Model]]:
    """The tables of the embedded broker."""
    models = apps.get_app_config("messaging").get_models()
    return [model for model in models if model.__module__.endswith(".embedded")]


def _may_migrate(database: str, model: type[Model]) -> bool:
    try:
        return router.allow_migrate_model(database, model)
    except Exception:  # noqa: BLE001  a site's own code, whose errors `migrate` shows
        return True


def _at_least(value: Any, least: float) -> bool:
    return isinstance(value, (int, float)) and value >= least
