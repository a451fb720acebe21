"""The floors: what pika and psycopg do alone, and loops written by hand that give the same guarantees."""

from __future__ import annotations

import sys

from benchmarks import load, timing
from benchmarks.measuring import Broken, Sample, measurement
from benchmarks.stage import Stage


@measurement("publish", "raw pika, a wait for each confirm", full=2_000, quick=800)
def raw_confirm_each(stage: Stage, count: int) -> Sample:
    """Publishing without any database."""
    return _publish(stage, "confirm_each", count)


@measurement("relay", "raw pika, pipelined confirms", full=20_000, quick=8_000)
def raw_pipelined(stage: Stage, count: int) -> Sample:
    """Publishing without any database."""
    return _publish(stage, "pipelined", count)


@measurement("publish", "raw psycopg, rows of our outbox, 500 at once", full=20_000, quick=8_000)
def raw_insert(stage: Stage, count: int) -> Sample:
    """Rows of the same shape in the same table with the same indexes."""
    stage.clear()
    seconds = stage.job("benchmarks.floor_jobs", "insert", stage.rabbitmq.url, stage.dsn, count)["seconds"]
    found = stage.value("SELECT count(*) FROM messaging_publishedmessage WHERE state = 'pending'")
    if found != count:
        raise Broken(f"{found} rows in the outbox, not {count}")
    return Sample(count, seconds)


@measurement("relay", "hand-written relay, 1,000 at once", full=20_000, quick=8_000)
def handwritten_relay(stage: Stage, count: int) -> Sample:
    """Claimed with SKIP LOCKED, sent pipelined, persistent and mandatory, marked after the confirms."""
    return timing.relaying(stage, _job(stage, "relay"), count)


@measurement("consume", "hand-written loop, one by one", full=4_000, quick=1_500)
def handwritten_consume(stage: Stage, count: int) -> Sample:
    """Inbox row and effect in one transaction, then the ack."""
    return timing.consumption(stage, _job(stage, "consume"), load.SINGLE, count, ledger=timing.LEDGER)


@measurement("batch", "hand-written loop, 500 at once", full=25_000, quick=8_000)
def handwritten_batch(stage: Stage, count: int) -> Sample:
    """Inbox rows and effects of 500 messages in one transaction, then one ack."""
    return timing.consumption(stage, _job(stage, "consume_batches"), load.BATCH, count, ledger=timing.LEDGER)


def _job(stage: Stage, name: str) -> list[str]:
    return [sys.executable, "-m", "benchmarks.floor_jobs", name, stage.rabbitmq.url, stage.dsn, "0"]


def _publish(stage: Stage, name: str, count: int) -> Sample:
    stage.clear()
    seconds = stage.job("benchmarks.floor_jobs", name, stage.rabbitmq.url, stage.dsn, count)["seconds"]
    stage.expect_depth(load.SINGLE, count)
    return Sample(count, seconds)
