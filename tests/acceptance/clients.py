"""AMQP clients that know nothing of Django: what the other services of a company do, with pika alone."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pika

SCRIPT = """
import sys, pika
connection = pika.BlockingConnection(pika.URLParameters(sys.argv[1]))
channel = connection.channel()
{declare}
channel.basic_publish(
    exchange="", routing_key=sys.argv[2], body="Hello World", properties=pika.BasicProperties(delivery_mode=2)
)
connection.close()
"""


def publish_hello(url: str, queue: str = "hello", *, declare: str = "") -> None:
    """Run a script of its own that publishes "Hello World", persistent, to a queue."""
    subprocess.run([sys.executable, "-c", SCRIPT.format(declare=declare), url, queue], check=True, timeout=240)


def declare(url: str, queue: str, **options: Any) -> None:
    """Declare a queue."""
    with pika.BlockingConnection(pika.URLParameters(url)) as connection:
        connection.channel().queue_declare(queue, **options)


def depth(url: str, queue: str) -> int:
    """How many messages of a queue are ready."""
    with pika.BlockingConnection(pika.URLParameters(url)) as connection:
        return int(connection.channel().queue_declare(queue, passive=True).method.message_count)
