"""What is not a rate: latency, what an idle consumer takes, and what the start of a site costs."""

from __future__ import annotations

import os
import sqlite3
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from pathlib import Path

from benchmarks import load, tables
from benchmarks.measuring import Broken, Figures, measurement
from benchmarks.stage import Stage, manage
from tools.services import Daemon

SETTLE = 3.0  # seconds after the last message before a consumer counts as idle
STARTED = "SELECT key, started FROM bench_effect WHERE started IS NOT NULL"


@measurement("figures", "latency at 100 messages a second, PostgreSQL", full=1_000, quick=200)
def latency(stage: Stage, count: int) -> Figures:
    """From the commit to the handler's first line, with a consumer that has its relay inside."""
    stage.clear()
    env = stage.environment()

    def rows() -> list[tuple[str, float]]:
        return stage.database.execute(STARTED).fetchall()

    taken = _paced(stage, count, rows, env)
    return {"latency_p50_ms": statistics.median(taken), "latency_p99_ms": taken[int(len(taken) * 0.99)]}


@measurement("figures", "the same on SQLite, which cannot notify", full=500, quick=150)
def latency_polling(stage: Stage, count: int) -> Figures:
    """RabbitMQ as before; the relay finds rows by looking."""
    stage.clear()
    for old in stage.folder.glob("latency.sqlite3*"):
        old.unlink()
    database = stage.folder / "latency.sqlite3"
    env = stage.environment(DATABASE_URL=f"sqlite:///{database}")
    stage.manage("migrate", "--verbosity=0", env=env)
    with closing(sqlite3.connect(database, timeout=20)) as connection:
        connection.executescript(tables.SQLITE)

        def rows() -> list[tuple[str, float]]:
            return connection.execute(STARTED).fetchall()

        taken = _paced(stage, count, rows, env)
    return {"latency_polling_p50_ms": statistics.median(taken), "latency_polling_p99_ms": taken[int(len(taken) * 0.99)]}


@measurement("figures", "an idle consumer with its relay", full=20, quick=5)
def idle(stage: Stage, seconds: int) -> Figures:
    """Supervisor and child together, once they have handled a message and rested for a moment."""
    if not Path("/proc/self/schedstat").exists():
        return {}
    stage.clear()
    with stage.running([*manage(), "consume"]) as consumer:
        stage.job("benchmarks.site.jobs", "together", 1, load.SINGLE)
        stage.wait(1, lambda: int(stage.value("SELECT count(*) FROM bench_effect")), consumer)
        time.sleep(SETTLE)
        before, began = _cpu_seconds(consumer), time.monotonic()
        time.sleep(seconds)
        used = (_cpu_seconds(consumer) - before) / (time.monotonic() - began)
        return {"idle_cpu_percent": used * 100, "idle_memory_mb": memory(consumer) / 1e6}


@measurement("figures", "what the app adds to the start of a Django site", full=9, quick=5)
def startup(stage: Stage, times: int) -> Figures:
    """Processor time of django.setup() of the same site with and without it, in turn; the least of each."""
    took: dict[str, list[float]] = {"with": [], "without": []}
    # Compiled once, as what is installed is, whatever this environment says of that.
    env = stage.environment(PYTHONDONTWRITEBYTECODE="", PYTHONPYCACHEPREFIX=str(stage.folder / "bytecode"))
    for _ in range(times):
        for kind, found in took.items():
            found.append(stage.job("benchmarks.site.startup", kind, env=env)["seconds"])
    return {"import_ms": (min(took["with"]) - min(took["without"])) * 1000}


def _consume() -> list[str]:
    return [*manage(), "consume", load.TIMED]


def _paced(
    stage: Stage, count: int, rows: Callable[[], list[tuple[str, float]]], env: Mapping[str, str]
) -> list[float]:
    """Publish at a steady pace to a warm consumer; milliseconds from commit to handler start, sorted."""
    with stage.running(_consume(), env) as consumer:
        stage.job("benchmarks.site.jobs", "paced", 20, load.TIMED, env=env)
        stage.wait(20, lambda: len(rows()), consumer)
        committed = stage.job("benchmarks.site.jobs", "paced", count, load.TIMED, env=env)["committed"]
        stage.wait(count + 20, lambda: len(rows()), consumer)
    return _milliseconds(rows(), committed)


def _milliseconds(rows: Iterable[tuple[str, float]], committed: Mapping[str, float]) -> list[float]:
    """From commit to handler start, sorted. Raises Broken unless each was handled once."""
    found = [(key, started) for key, started in rows if key in committed]
    if sorted(key for key, _ in found) != sorted(committed):
        raise Broken(f"{len(found)} handlers started for {len(committed)} messages")
    return sorted((started - committed[key]) * 1000 for key, started in found)


def _processes(daemon: Daemon) -> list[Path]:
    """The /proc folders of a process group."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if os.getpgid(int(folder.name)) == daemon.pid:
                found.append(folder)
        except OSError:  # it has just ended
            continue
    return found


def _cpu_seconds(daemon: Daemon) -> float:
    """What all threads have used, as the scheduler measured it: `stat` has whole ticks, which the idle rarely fill."""
    threads = [task for folder in _processes(daemon) for task in (folder / "task").iterdir()]
    return sum(int((task / "schedstat").read_text().split()[0]) for task in threads) / 1e9


def memory(daemon: Daemon) -> float:
    """Resident bytes, what they share counted once for each."""
    return sum(
        int((folder / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") for folder in _processes(daemon)
    )
