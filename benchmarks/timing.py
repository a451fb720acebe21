"""From first to last, by the database's clock: neither the start of a process nor its end counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import psycopg

from benchmarks import load, tables
from benchmarks.measuring import Broken, Sample
from benchmarks.stage import Stage
from tools.environment import ROOT

# Between the beginnings of the first and the last transaction all effects but those of the last were recorded.
SPAN = """
SELECT count(*), count(DISTINCT key), count(*) FILTER (WHERE at < (SELECT max(at) FROM bench_effect)),
       EXTRACT(EPOCH FROM max(at) - min(at))::double precision
FROM bench_effect
"""
LEDGER = "SELECT count(*) FROM messaging_processedmessage WHERE state = 'processed'"


def consumption(
    stage: Stage,
    command: Sequence[str],
    queue: str,
    count: int,
    *,
    ledger: str = "",
    env: Mapping[str, str] | None = None,
) -> Sample:
    """Fill a queue, run a consumer until every message has had its effect, and see that none had two.

    Args:
        stage: empty or not; it is cleared.
        command: of the consumer, which is stopped at the end.
        queue: that it takes from.
        count: messages.
        ledger: a query for how many messages the consumer's own records call done.
        env: its environment, unless ours.
    """
    stage.clear()
    load.fill(stage.rabbitmq.url, queue, count)
    return effects_of(stage, command, count, ledger=ledger, env=env)


def effects_of(
    stage: Stage,
    command: Sequence[str],
    count: int,
    *,
    ledger: str = "",
    env: Mapping[str, str] | None = None,
    cwd: Path = ROOT,
) -> Sample:
    """Run a consumer for what its queue holds already; see `consumption()`."""
    with stage.running(command, env, cwd) as daemon:
        stage.wait(count, lambda: int(stage.value("SELECT count(*) FROM bench_effect")), daemon)
        if ledger:
            stage.wait(count, lambda: int(stage.value(ledger)), daemon)
    return span(stage, count)


def span(stage: Stage, count: int) -> Sample:
    """The sample that the effects on PostgreSQL make. Raises Broken unless there is one for each message."""
    row = stage.database.execute(SPAN).fetchone()
    assert row is not None
    found, distinct, before_last, seconds = row
    if (found, distinct) != (count, count):
        raise Broken(f"{found} effects of {distinct} messages, where {count} messages were to have one each")
    return Sample(before_last, seconds)


def from_start(stage: Stage, count: int, began: float, *, untimed: int) -> Sample:
    """The same from when the first message was published, in seconds of the epoch, to the last effect.

    `untimed` of the messages were published before.
    """
    span(stage, count)
    return Sample(count - untimed, float(stage.value("SELECT EXTRACT(EPOCH FROM max(at)) FROM bench_effect")) - began)


def relaying(stage: Stage, command: Sequence[str], count: int) -> Sample:
    """Run a relay, commit rows once it has sent one, and time it from that commit to its last mark."""
    stage.clear()
    with stage.running(command) as daemon:
        commit_outbox(stage.dsn, 1)
        stage.wait(1, lambda: _published(stage), daemon)
        began = commit_outbox(stage.dsn, count)
        stage.wait(count + 1, lambda: _published(stage), daemon)
    stage.expect_depth(load.SINGLE, count + 1)
    last = stage.value("SELECT EXTRACT(EPOCH FROM max(published_at)) FROM messaging_publishedmessage")
    return Sample(count, float(last) - began)


def commit_outbox(dsn: str, count: int) -> float:
    """Publish by hand, in one transaction; returns the moment just before its commit, by the database's clock."""
    with psycopg.connect(dsn) as connection:
        tables.publish(connection, load.SINGLE, count)
        connection.execute("SELECT pg_notify('messaging_outbox', 'default')")
        row = connection.execute("SELECT EXTRACT(EPOCH FROM clock_timestamp())").fetchone()
        assert row is not None
        return float(row[0])


def _published(stage: Stage) -> int:
    return int(stage.value("SELECT count(*) FROM messaging_publishedmessage WHERE state = 'published'"))
