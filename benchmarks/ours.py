"""Ours: the calls that publish, `manage.py relay` and `manage.py consume`, as processes of their own."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from urllib.request import urlopen

from benchmarks import load, timing
from benchmarks.measuring import Broken, Sample, measurement
from benchmarks.stage import Stage, manage
from tools.services import free_ports

# Ways to share the work out that are tried for the best, as (processes, concurrency).
SHARES = ((1, 2), (1, 4), (2, 1), (2, 2))
QUICK_SHARES = ((1, 4), (2, 2))
SCRAPING = 5.0  # seconds between two readings of the metrics: a third of what is usual


@measurement("publish", "publish(), all in one transaction", full=5_000, quick=2_000)
def publish(stage: Stage, count: int) -> Sample:
    """One call, one row."""
    return _publish(stage, "one_by_one", count)


@measurement("publish", "publish_many(), 500 at once", full=20_000, quick=8_000)
def publish_many(stage: Stage, count: int) -> Sample:
    """One transaction for each call."""
    return _publish(stage, "together_after_one", count)


@measurement("relay", "manage.py relay", full=20_000, quick=8_000)
def relay(stage: Stage, count: int) -> Sample:
    """From the commit of the rows to the last mark."""
    return timing.relaying(stage, [*manage(), "relay"], count)


@measurement("consume", "consume --concurrency=1", full=4_000, quick=1_000)
def consume_single(stage: Stage, count: int) -> Sample:
    """One transaction per message, one worker."""
    return _consume(stage, load.SINGLE, count, 1, 1)


@measurement("consume", "the same, whose metrics are read every five seconds", full=4_000, quick=1_000)
def consume_metrics(stage: Stage, count: int) -> Sample:
    """What metrics cost, with those who read them at work on the same cores."""
    [port] = free_ports(1)
    with _scraping(port) as scraped:
        sample = _consume(stage, load.SINGLE, count, 1, 1, f"--metrics-port={port}")
    if not scraped:
        raise Broken("the metrics were never read")
    return sample


@measurement("consume", "the same, which makes spans that nobody keeps", full=4_000, quick=1_000)
def consume_traced(stage: Stage, count: int) -> Sample:
    """What spans cost in the process that makes them; to export them costs as much as the exporter takes."""
    return _consume(stage, load.SINGLE, count, 1, 1, env=stage.environment(BENCH_TRACES="1"))


def _consume_shared(processes: int, concurrency: int) -> None:
    name, quick = f"consume_{processes}x{concurrency}", 1_500 if (processes, concurrency) in QUICK_SHARES else 0
    title = f"consume --processes={processes} --concurrency={concurrency}"

    @measurement("consume", title, full=6_000, quick=quick, name=name)
    def consume(stage: Stage, count: int) -> Sample:
        return _consume(stage, load.SINGLE, count, processes, concurrency)


for _share in SHARES:
    _consume_shared(*_share)


@measurement("batch", "consume, @handler(batch=500)", full=25_000, quick=8_000)
def consume_batch(stage: Stage, count: int) -> Sample:
    """One transaction per batch, one worker."""
    return _consume(stage, load.BATCH, count, 1, 1)


@measurement("end to end", "publish_many(), relay, @handler(batch=500)", full=20_000, quick=5_000)
def end_to_end(stage: Stage, count: int) -> Sample:
    """One process publishes while one consumes, with the relay inside; every message is in the outbox and the inbox."""
    stage.clear()
    with stage.running([*manage(), "consume", load.BATCH, "--concurrency=1"]) as consumer:
        _warm_up(stage, load.BATCH, 1)
        began = stage.job("benchmarks.site.jobs", "together", count, load.BATCH)["began"]
        stage.wait(count + 1, lambda: int(stage.value("SELECT count(*) FROM bench_effect")), consumer)
        stage.wait(count + 1, lambda: int(stage.value(timing.LEDGER)), consumer)
        stage.wait(count + 1, lambda: int(stage.value(_SENT)), consumer)
    return timing.from_start(stage, count + 1, began, untimed=1)


_SENT = "SELECT count(*) FROM messaging_publishedmessage WHERE state = 'published'"


def _publish(stage: Stage, job: str, count: int) -> Sample:
    stage.clear()
    seconds = stage.job("benchmarks.site.jobs", job, count, load.SINGLE)["seconds"]
    found = stage.value("SELECT count(*) FROM messaging_publishedmessage WHERE state = 'pending'")
    if found != count + 1:  # one was published before the clock started
        raise Broken(f"{found} rows in the outbox, not {count + 1}")
    return Sample(count, seconds)


def _consume(
    stage: Stage,
    queue: str,
    count: int,
    processes: int,
    concurrency: int,
    *options: str,
    env: Mapping[str, str] | None = None,
) -> Sample:
    shares = [f"--processes={processes}", f"--concurrency={concurrency}"]
    command = [*manage(), "consume", queue, "--no-relay", *shares, *options]
    return timing.consumption(stage, command, queue, count, ledger=timing.LEDGER, env=env)


@contextmanager
def _scraping(port: int) -> Iterator[list[bytes]]:
    """Read the metrics of a process now and then; what was read."""
    found: list[bytes] = []
    is_over = threading.Event()

    def scrape() -> None:
        while not is_over.wait(SCRAPING if found else 0.2):
            with suppress(OSError), urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
                found.append(answer.read())

    thread = threading.Thread(target=scrape)
    thread.start()
    try:
        yield found
    finally:
        is_over.set()
        thread.join()


def _warm_up(stage: Stage, queue: str, count: int) -> None:
    """Have a consumer that was just started handle a message, so that its start does not count."""
    stage.job("benchmarks.site.jobs", "together", count, queue)
    stage.wait(count, lambda: int(stage.value("SELECT count(*) FROM bench_effect")))
