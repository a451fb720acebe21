"""Databases of the MariaDB server that tests share."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote, urlsplit


@dataclass(frozen=True)
class MariaDatabase:
    """A running MariaDB server that tests share. `dsn` names a database that exists already."""

    dsn: str

    def dsn_of(self, name: str) -> str:
        """The URL of another database of this server."""
        return urlsplit(self.dsn)._replace(path=f"/{name}").geturl()

    def create(self, name: str, template: str = "") -> str:
        """Create a database, as a copy of `template` where given, and return its URL."""
        with connected(self.dsn) as cursor:
            cursor.execute(f"CREATE DATABASE `{name}`")
            cursor.execute("SET foreign_key_checks = 0")  # the tables come in no order
            cursor.execute(f"USE `{name}`")
            for table in _tables(cursor, template):
                cursor.execute(f"SHOW CREATE TABLE `{template}`.`{table}`")
                cursor.execute(cursor.fetchone()[1])
                cursor.execute(f"INSERT INTO `{table}` SELECT * FROM `{template}`.`{table}`")
        return self.dsn_of(name)

    def drop(self, name: str) -> None:
        """Drop a database."""
        with connected(self.dsn) as cursor:
            cursor.execute(f"DROP DATABASE IF EXISTS `{name}`")


@contextlib.contextmanager
def connected(url: str) -> Iterator[Any]:
    """A cursor of a connection of its own, each statement committed at once; "double quotes" quote names."""
    import MySQLdb

    parts = urlsplit(url)
    connection = MySQLdb.connect(
        host=parts.hostname or "127.0.0.1",
        port=parts.port or 3306,
        user=unquote(parts.username or "root"),
        password=unquote(parts.password or ""),
        database=parts.path.strip("/"),
        charset="utf8mb4",
        autocommit=True,
        sql_mode="STRICT_TRANS_TABLES,ANSI_QUOTES",
    )
    with contextlib.closing(connection):
        yield connection.cursor()


def _tables(cursor: Any, database: str) -> list[str]:
    if not database:
        return []
    cursor.execute(f"SHOW TABLES FROM `{database}`")
    return [row[0] for row in cursor.fetchall()]
