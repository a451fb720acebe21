"""System checks of the databases that hold messages: their options, MySQL's variables, tables no router makes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from django.apps import apps
from django.conf import settings as site
from django.core.checks import CheckMessage, Error
from django.core.checks import Warning as CheckWarning
from django.db import DatabaseError, connections, router
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import Model

from messaging import conf
from messaging.conf.problems import shown, suggest
from messaging.exceptions import ConfigurationError
from messaging.handlers import Handler
from messaging.models import ProcessedMessage, PublishedMessage

VARIABLES = (
    "sql_mode", "default_storage_engine", "transaction_isolation", "tx_isolation", "max_allowed_packet",
)  # fmt: skip
LEAST_PACKET = 16 * 1024 * 1024  # bytes: MariaDB's own, and the largest message of RabbitMQ 4


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


def check_autocommit(databases: Iterable[str]) -> Iterator[CheckMessage]:
    """Databases in which nothing is committed unless it is asked for: what runs without a transaction is undone."""
    for name in databases:
        if connections.settings[name].get("AUTOCOMMIT") is False:
            yield Error(
                f'The database "{name}" has "AUTOCOMMIT": False: what relays, consumers and the admin write there '
                "would never be committed.",
                hint=f'Remove it from DATABASES["{name}"], and call transaction.set_autocommit(False, using="{name}") '
                "where you commit yourself.",
                id="messaging.E034",
            )


def check_mysql(databases: Iterable[str]) -> Iterator[CheckMessage]:
    """MySQL and MariaDB servers whose settings lose messages. Asks the servers; one that is away is left out."""
    for name in databases:
        connection = connections[name]
        if connection.vendor != "mysql":
            continue
        try:
            variables, tables = _variables(connection), _tables_of_other_engines(connection)
        except DatabaseError:
            continue
        yield from _check_variables(name, variables)
        if tables:
            yield Error(
                f'The database "{name}" keeps {", ".join(tables)} outside of transactions.',
                hint="Convert each: ALTER TABLE ... ENGINE = InnoDB.",
                id="messaging.E032",
            )


def _variables(connection: BaseDatabaseWrapper) -> dict[str, str]:
    names = ", ".join(f"'{name}'" for name in VARIABLES)
    with connection.cursor() as cursor:
        cursor.execute(f"SHOW VARIABLES WHERE Variable_name IN ({names})")
        return {str(name): str(value).upper() for name, value in cursor.fetchall()}


def _tables_of_other_engines(connection: BaseDatabaseWrapper) -> list[str]:
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT table_name FROM information_schema.tables "  # noqa: S608 - our own models' names
            f"WHERE table_schema = DATABASE() AND engine <> 'InnoDB' AND table_name IN ({_table_names()})"
        )
        return sorted(str(name) for (name,) in cursor.fetchall())


def _table_names() -> str:
    models = apps.get_app_config("messaging").get_models()
    return ", ".join(f"'{model._meta.db_table}'" for model in models)


def _check_variables(name: str, variables: Mapping[str, str]) -> Iterator[CheckMessage]:
    options = f'DATABASES["{name}"]["OPTIONS"]'
    if "STRICT_" not in variables.get("sql_mode", "STRICT_"):
        yield Error(
            f'The database "{name}" cuts off values that do not fit, instead of refusing them.',
            hint=f'Add "sql_mode": "STRICT_TRANS_TABLES" to {options}.',
            id="messaging.E031",
        )
    if (engine := variables.get("default_storage_engine", "INNODB")) != "INNODB":
        yield Error(
            f'The database "{name}" makes new tables with the engine {engine}, which has no transactions.',
            hint=f'Add "init_command": "SET default_storage_engine = InnoDB" to {options}.',
            id="messaging.E032",
        )
    if "READ-UNCOMMITTED" in (variables.get("transaction_isolation"), variables.get("tx_isolation")):
        yield Error(
            f'The database "{name}" shows what is not committed yet: a message may be taken for processed that is not.',
            hint=f'Set "isolation_level" in {options} to "read committed", or remove it.',
            id="messaging.E033",
        )
    if (packet := int(variables.get("max_allowed_packet", LEAST_PACKET))) < LEAST_PACKET:
        yield CheckWarning(
            f'The database "{name}" takes statements of {packet:,} bytes at most: a larger message cannot be '
            "published, and one that is received waits at the broker.",
            hint="Raise max_allowed_packet in the server's configuration to twice the largest message, or more.",
            id="messaging.W006",
        )


def check_routers(databases: Mapping[str, list[type[Model]]]) -> Iterator[CheckMessage]:
    """Databases that hold messages although a router of `DATABASE_ROUTERS` keeps the tables out of them."""
    for name, models in databases.items():
        refused = [model._meta.label for model in models if not _may_migrate(name, model)]
        if refused and not _is_in_tenants_schema(name):
            yield Error(
                f'The database "{name}" is to hold messages, but a router keeps {", ".join(refused)} out of it.',
                hint=f'Have allow_migrate() of DATABASE_ROUTERS allow the app "messaging" in "{name}", or use another '
                "database.",
                id="messaging.E030",
            )


def check_tenants() -> Iterator[CheckMessage]:
    """django-tenants: tables of ours in each tenant's schema, where no relay and no consumer looks."""
    listed = list(getattr(site, "TENANT_APPS", None) or ())
    if getattr(site, "HAS_MULTI_TYPE_TENANTS", False):
        shared = getattr(site, "PUBLIC_SCHEMA_NAME", "public")
        for name, kind in getattr(site, "TENANT_TYPES", {}).items():
            listed += kind.get("APPS", ()) if name != shared else ()
    if any(str(name) == "messaging" or str(name).startswith("messaging.apps.") for name in listed):
        yield Error(
            "The app messaging is among the apps of tenants: what is published in a tenant's schema would never be "
            "sent, because relays and consumers look in the shared one.",
            hint='Move "messaging" to SHARED_APPS: the messages of all tenants are in one place then.',
            id="messaging.E035",
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


def require_fit(name: str) -> None:
    """Raise ConfigurationError where a server's settings would lose messages; nothing where it does not answer."""
    for problem in check_mysql([name]):
        if problem.is_serious() and not problem.is_silenced():
            raise ConfigurationError(f"{problem.msg} {problem.hint}")


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


def _is_in_tenants_schema(database: str) -> bool:
    """Whether this runs for one tenant of django-tenants, as each of their `migrate` does: our tables are elsewhere."""
    shared = getattr(site, "PUBLIC_SCHEMA_NAME", "public")
    return bool(getattr(connections[database], "schema_name", shared) != shared)


def _at_least(value: Any, least: float) -> bool:
    return isinstance(value, (int, float)) and value >= least


def check_payload_index(names: Iterable[str]) -> Iterator[CheckMessage]:
    """Tables whose payloads are searched without an index, where the site searches them."""
    try:
        is_searched = conf.console().payload_search
    except ConfigurationError:
        return  # said elsewhere
    if not is_searched or (database := router.db_for_write(ProcessedMessage)) not in names:
        return
    connection = connections[database]
    if connection.vendor != "postgresql":
        return
    for table in (ProcessedMessage._meta.db_table, PublishedMessage._meta.db_table):
        if not _has_payload_index(connection, table):
            yield CheckWarning(
                f"The payloads of {table} are searched without an index: a search through many of them is cut off.",
                hint=f"If writes may become slower: CREATE INDEX CONCURRENTLY ON {table} USING gin "
                "(messaging_payload(body) jsonb_path_ops);",
                id="messaging.W014",
            )


def _has_payload_index(connection: BaseDatabaseWrapper, table: str) -> bool:
    """Whether there is one; also where nobody can say, for want of a table or of the server."""
    sql = (
        "SELECT EXISTS (SELECT FROM pg_index WHERE indrelid = to_regclass(%s) "  # that of the search path's schema
        "AND pg_get_indexdef(indexrelid) LIKE '%%messaging_payload(body)%%')"
    )
    try:
        with connection.cursor() as cursor:
            cursor.execute(sql, [table])
            return bool(cursor.fetchone()[0])
    except DatabaseError:
        return True
