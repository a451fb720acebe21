"""Databases of the MariaDB server that tests share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from tools.mariadb import connected


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


def _tables(cursor: Any, database: str) -> list[str]:
    if not database:
        return []
    cursor.execute(f"SHOW TABLES FROM `{database}`")
    return [row[0] for row in cursor.fetchall()]
