"""The hand-written loops, each as a process of its own: `python -m benchmarks.floor_jobs NAME URL DSN COUNT`."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import pika
import psycopg

from benchmarks import load, tables
from benchmarks.pipeline import Pipeline

CLAIM = """
SELECT id, exchange, routing_key, message_id, content_type, body FROM messaging_publishedmessage
WHERE state = 'pending' AND alias = 'default' AND due_at <= now()
ORDER BY due_at, id LIMIT 1000 FOR UPDATE SKIP LOCKED
"""
MARK = """
UPDATE messaging_publishedmessage
SET state = 'published', published_at = clock_timestamp(), due_at = NULL, attempts = attempts + 1
WHERE id = ANY(%s)
"""
RECORD = f"""
INSERT INTO messaging_processedmessage ({tables.INBOX}) VALUES ({"%s, " * 24}now())
ON CONFLICT (alias, queue, key) DO NOTHING
"""
EFFECT = "INSERT INTO bench_effect (key) VALUES (%s)"
PREFETCH = 50  # as our queues have it
BATCH = 500
Delivery = tuple[Any, Any, bytes]  # method, properties, body


def confirm_each(url: str, _dsn: str, count: int) -> dict[str, Any]:
    """Publish with pika's BlockingChannel, which waits for each confirm."""
    with pika.BlockingConnection(pika.URLParameters(url)) as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        began = time.perf_counter()
        for exchange, routing_key, body, properties in load.messages(count, load.SINGLE):
            channel.basic_publish(exchange, routing_key, body, properties, mandatory=True)
        return {"seconds": time.perf_counter() - began}


def pipelined(url: str, _dsn: str, count: int) -> dict[str, Any]:
    """Publish with up to 1,000 messages under way."""
    pipeline = Pipeline(url)
    began = time.perf_counter()
    pipeline.send(load.messages(count, load.SINGLE))
    seconds = time.perf_counter() - began
    pipeline.close()
    return {"seconds": seconds}


def insert(_url: str, dsn: str, count: int) -> dict[str, Any]:
    """Insert outbox rows, 500 in each transaction."""
    with psycopg.connect(dsn) as connection:
        began = time.perf_counter()
        for start in range(0, count, tables.ROWS):
            tables.publish(connection, load.SINGLE, min(tables.ROWS, count - start))
            connection.commit()
        return {"seconds": time.perf_counter() - began}


def relay(url: str, dsn: str, _count: int) -> dict[str, Any]:
    """Claim, publish, mark, for ever. A crash in between rolls back, and the rows are sent again."""
    pipeline = Pipeline(url)
    with psycopg.connect(dsn) as connection:
        while True:
            rows = connection.execute(CLAIM).fetchall()
            pipeline.send((exchange, key, body.encode(), _as_sent(*ids)) for _, exchange, key, *ids, body in rows)
            connection.execute(MARK, [[row[0] for row in rows]])
            connection.commit()
            if not rows:
                time.sleep(0.05)


def _as_sent(message_id: str, content_type: str) -> pika.BasicProperties:
    return pika.BasicProperties(content_type=content_type, delivery_mode=2, message_id=message_id)


def consume(url: str, dsn: str, _count: int) -> dict[str, Any]:
    """Inbox row and effect in a transaction for each message, then its ack, for ever."""
    channel = _channel(url, PREFETCH)
    with psycopg.connect(dsn) as connection:
        for delivery in channel.consume(load.SINGLE):
            _record(connection, delivery)
            connection.commit()
            channel.basic_ack(delivery[0].delivery_tag)
    raise AssertionError("the broker cancelled the consumer")


def consume_batches(url: str, dsn: str, _count: int) -> dict[str, Any]:
    """The same for 500 messages at once."""
    channel = _channel(url, 4 * BATCH)
    gathered: list[Delivery] = []
    with psycopg.connect(dsn) as connection:
        for method, properties, body in channel.consume(load.BATCH, inactivity_timeout=0.05):
            if method is not None:
                gathered.append((method, properties, body))
            if gathered and (len(gathered) == BATCH or method is None):
                _record_batch(connection, gathered)
                channel.basic_ack(gathered[-1][0].delivery_tag, multiple=True)
                gathered.clear()
    raise AssertionError("the broker cancelled the consumer")


def _record(connection: psycopg.Connection, delivery: Delivery) -> None:
    if connection.execute(RECORD.encode(), tables.inbox_row(*delivery)).rowcount:
        connection.execute(EFFECT, [json.loads(delivery[2])["key"]])


def _record_batch(connection: psycopg.Connection, deliveries: Sequence[Delivery]) -> None:
    """All of them in one transaction; one after another where some were recorded before."""
    with connection.cursor() as cursor:
        cursor.executemany(RECORD.encode(), [tables.inbox_row(*delivery) for delivery in deliveries])
        if cursor.rowcount == len(deliveries):
            cursor.executemany(EFFECT, [(json.loads(body)["key"],) for _, _, body in deliveries])
        else:
            connection.rollback()
            for delivery in deliveries:
                _record(connection, delivery)
    connection.commit()


def _channel(url: str, prefetch: int) -> Any:
    channel = pika.BlockingConnection(pika.URLParameters(url)).channel()
    channel.basic_qos(prefetch_count=prefetch)
    return channel


JOBS: dict[str, Callable[[str, str, int], dict[str, Any]]] = {
    job.__name__: job for job in (confirm_each, pipelined, insert, relay, consume, consume_batches)
}


if __name__ == "__main__":
    _name, _url, _dsn, _number = sys.argv[1:]
    print(json.dumps(JOBS[_name](_url, _dsn, int(_number))))
