"""Handlers that fork: what they leave behind holds nothing of ours, and does nothing in our name. Real processes."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from tests.failures.deeds import attempts, consume, effects, send, settled
from tests.processes import is_alive, stat_of
from tests.site import Site, SiteFactory
from tests.waiting import wait_until

pytestmark = pytest.mark.broker

HANDLERS = """
import ctypes, multiprocessing, os, signal, sys, time
from pathlib import Path
from messaging import handler
from tests.app.models import Effect

FOLDER = Path(os.environ["DATA_DIR"])
C = ctypes.CDLL(None)
FORK = multiprocessing.get_context("fork")

def note(*pids):
    with (FOLDER / "pids").open("a") as file:
        file.write("".join(f"{pid}\\n" for pid in pids))

@handler("work", "work.#", max_attempts=2, backoff=0.1, timeout=120)
def work(message):
    DEEDS[message.payload["do"]](message)
    Effect.objects.create(key=message.id, value=message.payload["do"])

@handler("brief", "brief.#", max_attempts=2, backoff=0.1, timeout=2)
def brief(message):
    work(message)

def pool(message):
    with FORK.Pool(2) as pool:
        assert pool.map(abs, [-1, -2]) == [1, 2]

def end_at_once(message):
    for _ in range(5):
        pid = os.fork()
        if pid == 0:
            time.sleep(900)
        note(pid)
        os.kill(pid, signal.SIGTERM)
        os.waitpid(pid, 0)

def hang(message):
    pool = FORK.Pool(2)
    note(*(process.pid for process in pool._pool))
    pool.apply(time.sleep, (900,))

def die(message):
    hanging = FORK.Process(target=time.sleep, args=(900,))
    hanging.start()
    note(hanging.pid)
    if message.attempt == 1 and not message.redelivered:
        (FOLDER / "ready").touch()
        time.sleep(900)
    hanging.kill()

def query(message):
    from django.db import connection
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_sleep(900)")

def fork_in_c(message):
    if message.attempt > 1 or message.redelivered:
        return
    pid = C.fork()  # past Python, so that nothing is closed
    if pid == 0:
        C.sleep(900)
        C._exit(0)
    note(pid)
    os.kill(os.getpid(), 9)

def leave(how):
    def deed(message):
        pid = os.fork()
        if pid == 0:
            Effect.objects.create(key=f"{message.id}-child", value="in the child")
            how()
            return
        (FOLDER / "status").write_text(str(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])))
    return deed

def fail():
    raise ValueError("in the child")

def write_on():
    from django.db import connection, transaction
    with transaction.atomic():
        Effect.objects.create(key="rolled back", value="in the child")
        raise ValueError("in the child")

DEEDS = {
    "pool": pool,
    "end at once": end_at_once,
    "hang": hang,
    "die": die,
    "query": query,
    "fork in C": fork_in_c,
    "return": leave(lambda: None),
    "exit": leave(lambda: sys.exit(3)),
    "raise": leave(fail),
    "write": leave(write_on),
    "nothing": lambda message: None,
}
"""

IDLE = "SELECT COUNT(*) FROM pg_stat_activity WHERE datname = current_database() AND state LIKE 'idle in%%'"


def pids(site: Site) -> list[int]:
    """The processes that handlers say they have forked."""
    file = site.folder / "pids"
    return [int(line) for line in file.read_text().split()] if file.exists() else []


@pytest.fixture
def doing(site: SiteFactory) -> Iterator[Site]:
    made = site("postgres", handlers=HANDLERS)
    made.manage("topology")
    yield made
    for pid in filter(is_alive, pids(made)):
        os.kill(pid, signal.SIGKILL)


@pytest.mark.mode(51)
def test_a_handler_that_hangs_in_a_pool_of_its_own_is_ended_with_it_and_counted(doing: Site) -> None:
    running = consume(doing)
    send(doing, "brief", ("hang-0", "hang"))
    settled(doing, failed=1)
    assert attempts(doing) == {"hang-0": 2}
    assert pids(doing)  # of both attempts, unless one was ended before it noted them
    wait_until(lambda: not any(map(is_alive, pids(doing))), what="the end of the pools")
    wait_until(lambda: doing.value(IDLE) == 0, what="the end of their transactions")
    assert running.stop() == 0


@pytest.mark.mode(51)
@pytest.mark.parametrize("whole", [True, False], ids=["all of it", "one process"])
def test_the_orphan_of_a_killed_consumer_keeps_its_message_from_nobody(doing: Site, whole: bool) -> None:
    running = consume(doing)
    send(doing, "work", ("die-0", "die"))
    wait_until((doing.folder / "ready").exists)
    (orphan,) = pids(doing)
    if whole:
        os.kill(running.pid, signal.SIGKILL)  # not its group, as other tests do
        running = consume(doing)
    else:
        os.kill(parent_of(orphan), signal.SIGKILL)
    settled(doing, processed=1)
    assert is_alive(orphan)
    assert effects(doing) == {"die": 1}
    assert running.stop() == 0


def test_a_statement_that_goes_on_when_its_process_is_dead_is_ended_and_counted(doing: Site) -> None:
    running = consume(doing)
    send(doing, "brief", ("query-0", "query"))
    settled(doing, failed=1)
    assert attempts(doing) == {"query-0": 2}
    wait_until(lambda: doing.value("SELECT COUNT(*) FROM pg_stat_activity WHERE query LIKE '%%pg_sleep(9%%'") <= 1)
    assert running.stop() == 0


@pytest.mark.mode(51)
def test_an_orphan_that_keeps_all_connections_does_not_keep_the_attempt_from_being_counted(doing: Site) -> None:
    running = consume(doing)
    send(doing, "work", ("first", "nothing"))  # after which its session is known
    settled(doing, processed=1)
    # One alone: what other threads were about to claim at that moment is in no ledger.
    send(doing, "work", ("in-c", "fork in C"))
    wait_until(lambda: doing.value("SELECT COUNT(*) FROM messaging_attempt") > 0, what="an attempt")
    wait_until(lambda: doing.value(IDLE) == 0, what="the end of its transaction")
    assert any(map(is_alive, pids(doing)))
    running.kill()


def parent_of(pid: int) -> int:
    return int(stat_of(pid)[1])


def test_a_forked_process_has_a_database_session_of_its_own_and_records_nothing(doing: Site) -> None:
    running = consume(doing)
    for number, (do, status) in enumerate({"return": 0, "exit": 3, "raise": 1, "write": 1}.items(), start=1):
        (doing.folder / "status").write_text("")
        send(doing, "work", (f"fork-{number}", do))
        settled(doing, processed=number)
        assert (doing.folder / "status").read_text() == str(status), do
    send(doing, "work", ("after", "nothing"))
    settled(doing, processed=5)
    assert attempts(doing) == {}
    # What returns has gone on in the handler's own code.
    assert effects(doing) == {"return": 2, "exit": 1, "raise": 1, "write": 1, "nothing": 1, "in the child": 4}
    assert running.stop() == 0


@pytest.mark.parametrize("do", ["pool", "end at once"])
def test_a_pool_can_end_its_processes(doing: Site, do: str) -> None:
    running = consume(doing)
    send(doing, "work", *((f"pool-{number}", do) for number in range(3)))
    settled(doing, processed=3)
    assert attempts(doing) == {}
    assert running.stop() == 0
