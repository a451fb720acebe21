"""The tables that the measurements need beside ours, and rows for our outbox, all in plain SQL."""

from __future__ import annotations

import json
import uuid
from hashlib import md5
from typing import Any

import pika
import psycopg

from benchmarks.load import EXCHANGE
from benchmarks.payloads import encoded

# `at` is when the transaction began that recorded the effect. No model knows the column, so nobody can set it.
POSTGRESQL = """
CREATE TABLE bench_effect (
    id bigserial PRIMARY KEY,
    key varchar(64) NOT NULL,
    started double precision,
    at timestamptz NOT NULL DEFAULT now()
);
"""
SQLITE = """
CREATE TABLE bench_effect (
    id integer PRIMARY KEY AUTOINCREMENT,
    key varchar(64) NOT NULL,
    started real,
    at real NOT NULL DEFAULT ((julianday('now') - 2440587.5) * 86400.0)
);
"""
# What `publish()` fills in; the rest is NULL or has a default of the database.
OUTBOX = (
    "alias, message_id, queue, exchange, routing_key, type, content_type, correlation_id, causation_id, reply_to, "
    "headers, body, body_encoding, round, attempts, error, state, mandatory, lease_owner"
)
# And what is recorded of a message that was processed.
INBOX = (
    "alias, message_id, queue, exchange, routing_key, type, content_type, correlation_id, causation_id, reply_to, "
    "headers, body, body_encoding, wire, round, attempts, error, state, key, digest, handler, worker, exception_type, "
    "fingerprint, processed_at"
)
ROWS = 500  # of one call of `publish()`, in all that compares with it


def outbox_row(queue: str) -> tuple[object, ...]:
    """The values of `OUTBOX` for a new message."""
    key, body = encoded()
    address = ("default", key, "", EXCHANGE, queue, "", "application/json", "", "", "")
    return (*address, "{}", body.decode(), "", 1, 0, "", "pending", True, "")


def inbox_row(method: Any, properties: pika.BasicProperties, body: bytes) -> tuple[object, ...]:
    """The values of `INBOX` for a delivery, but the last."""
    message_id, key, queue = properties.message_id, method.routing_key, method.routing_key
    address = ("default", message_id, queue, method.exchange, key, "", properties.content_type, "", "", "")
    wire = json.dumps([method.exchange, key, vars(properties)]).encode()
    identity = (uuid.UUID(bytes=md5(message_id.encode()).digest()), uuid.UUID(bytes=md5(body).digest()))
    headers = json.dumps(properties.headers or {})
    return (*address, headers, body.decode(), "", wire, 1, 1, "", "processed", *identity, "bench", "bench", "", "")


def publish(connection: psycopg.Connection, queue: str, count: int) -> None:
    """Insert rows into our outbox. The caller commits.

    `executemany()` prepares the statement and sends all rows at once: no other INSERT is as fast. COPY is faster, but
    cannot tell the keys.
    """
    places = ", ".join(["%s"] * len(OUTBOX.split(",")))
    with connection.cursor() as cursor:
        statement = f"INSERT INTO messaging_publishedmessage ({OUTBOX}) VALUES ({places})"
        cursor.executemany(statement.encode(), [outbox_row(queue) for _ in range(count)])
