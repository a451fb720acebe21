"""`manage.py consume` as real processes on a real broker; and the backlog's order, which is pure."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import pika
import pytest

from messaging.backends.base import Delivery
from messaging.consuming.backlog import Backlog, Job
from messaging.consuming.consumer import FIRST_MESSAGES, FIRST_TICK, TICK, Consumer, Plan
from messaging.handlers import Handler
from messaging.wire.envelope import DIED, KEY, QUEUE, ROUND
from messaging.wire.properties import Properties
from tests.deliveries import Parcel
from tests.services import Broker, Database
from tests.site import ROOT, Running, Site, SiteFactory
from tests.waiting import DEADLINE, wait_until
from tools.postgresql import PostgreSQL
from tools.rabbitmq import RabbitMQ

HANDLERS = """
import os, time, uuid
from pathlib import Path
from messaging import handler
from messaging.consuming import backlog, consumer, housekeeping
from tests.app.models import Effect

consumer.KEEP_CONSUMING = 120.0  # so long it waits for its first look at what is paused
housekeeping.Keeper.stop.__defaults__ = (120.0,)  # and for its row to be gone at the end
FOLDER = Path(os.environ["DATA_DIR"])

def note(name):
    (FOLDER / f"{name}.{uuid.uuid4().hex}").touch()

def act(message):
    do = message.payload.get("do")
    note(f"started-{do}")
    if do == "wait":
        while not (FOLDER / "go").exists():
            time.sleep(0.02)
    if do == "die" and message.attempt == 1:
        os.kill(os.getpid(), 9)
    if do == "hang" and message.attempt == 1:
        time.sleep(600)
    if do == "exit" and message.attempt == 1:
        raise SystemExit(3)
    Effect.objects.create(key=message.id, value=str(message.payload.get("name")))

@handler("work", "work.#", backoff=0.1, timeout=600)
def work(message):
    act(message)

@handler("brief", "brief.#", backoff=0.1, timeout=5)
def brief(message):
    act(message)

@handler("other", "other.#")
def other(message):
    act(message)

@handler("many", "many.#", batch=5)
def many(messages):
    note(f"batch-{len(messages)}")
    for message in messages:
        Effect.objects.create(key=message.id, value="many")
"""

PAUSE = "from messaging.operations import Operator, set_paused; set_paused('work', {}, Operator(name='test'))"


@pytest.fixture
def make_site(site: SiteFactory) -> Callable[..., Site]:
    return lambda **options: site(handlers=HANDLERS, **options)


def publish(site: Site, *messages: tuple[str, dict[str, Any]]) -> None:
    lines = [f"publish({key!r}, {payload!r})" for key, payload in messages]
    site.run("from messaging import publish\n" + "\n".join(lines))


@contextlib.contextmanager
def channel(site: Site) -> Iterator[Any]:
    connection = pika.BlockingConnection(pika.URLParameters(site.broker_url))
    with contextlib.closing(connection):
        yield connection.channel()


def send(site: Site, queue: str, payload: dict[str, Any], message_id: str | None = None) -> None:
    """Straight to a queue, without any database."""
    properties = pika.BasicProperties(content_type="application/json", message_id=message_id, delivery_mode=2)
    with channel(site) as broker:
        broker.confirm_delivery()
        broker.basic_publish("", queue, json.dumps(payload).encode(), properties, mandatory=True)


def ready(site: Site, queue: str) -> int:
    with channel(site) as broker:
        return int(broker.queue_declare(queue, passive=True).method.message_count)


def consumers(site: Site, queue: str) -> int:
    with channel(site) as broker:
        return int(broker.queue_declare(queue, passive=True).method.consumer_count)


def exists(site: Site, queue: str) -> bool:
    try:
        ready(site, queue)
    except pika.exceptions.ChannelClosedByBroker:
        return False
    return True


def consume(site: Site, *arguments: str) -> Running:
    running = site.start("consume", *arguments)
    running.wait_for_output(r"Connected to")
    return running


def started(site: Site, name: str, count: int = 1, deadline: float = DEADLINE) -> None:
    wait_until(lambda: len(list(site.folder.glob(f"started-{name}.*"))) >= count, deadline=deadline, what=name)


def children_of(pid: int) -> list[int]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, parent = stat.read_text().rpartition(")")[2].split()[:2]
            if int(parent) == pid and state != "Z":
                found.append(int(stat.parent.name))
    return found


def has_processed(site: Site, count: int) -> bool:
    return site.states().get("processed", 0) == count


def test_burst_does_what_there_is_and_ends(make_site: Callable[..., Site], any_db: str) -> None:
    site = make_site(db=any_db)
    publish(site, *(("work.a", {"name": n}) for n in range(20)), ("other.a", {"name": "x"}))
    burst = site.start("consume", "work", "other", "--burst")
    assert burst.wait() == 0, burst.output
    assert site.states() == {"processed": 21}
    assert site.states("published") == {"published": 21}
    assert re.search(
        r"^Consuming work, other from amqp://\w+@127.0.0.1:\d+/\S* \(1 process x 4 workers\)\. Stop with Ctrl-C\.",
        burst.output,
        re.MULTILINE,
    )
    assert "Traceback" not in burst.output
    assert "ResourceWarning" not in burst.output
    assert site.value("SELECT COUNT(*) FROM messaging_worker") == 0


def test_burst_does_not_take_a_queue_whose_leader_does_not_answer_for_empty(
    make_site: Callable[..., Site], rabbitmq: Broker
) -> None:
    site = make_site(queues={"work": {"prefetch": 1}})
    burst = site.start("consume", "work", "--burst", "--concurrency=1")
    publish(site, ("work.a", {"do": "wait"}), *(("work.a", {"name": n}) for n in range(5)))
    started(site, "wait")
    # One more than its prefetch may be held, by the consumer with which a queue is begun.
    wait_until(lambda: ready(site, "work") in (4, 5), what="the others to wait")
    leader = f"'{Broker(site.broker_url).vhost}_work'"
    rabbitmq.ctl("eval", f"sys:suspend({leader}).")
    try:
        (site.folder / "go").touch()
        wait_until(lambda: site.states().get("processed"), what="the first")
        ended = time.monotonic() + 5
        wait_until(lambda: burst.returncode is not None or time.monotonic() > ended)
        assert burst.returncode is None, burst.output
    finally:
        rabbitmq.ctl("eval", f"sys:resume({leader}).")
    assert burst.wait() == 0, burst.output
    assert site.states() == {"processed": 6}


def test_burst_ends_where_the_dead_letters_may_not_be_read(make_site: Callable[..., Site], rabbitmq: Broker) -> None:
    site = make_site()
    site.manage("topology")
    user, url = f"reader-{uuid.uuid4().hex[:8]}", urlsplit(site.broker_url)
    rabbitmq.ctl("add_user", user, "secret")
    try:
        vhost = Broker(site.broker_url).vhost
        rabbitmq.ctl("set_permissions", "-p", vhost, user, ".*", ".*", "^(?!.*[.]dead$)")
        publish(site, ("work.a", {"name": 1}))
        theirs = url._replace(netloc=f"{user}:secret@{url.hostname}:{url.port}").geturl()
        burst = site.start("consume", "work", "--burst", env={"MESSAGING_URL": theirs})
        assert burst.wait() == 0, burst.output
    finally:
        rabbitmq.ctl("delete_user", user)
    assert site.states() == {"processed": 1}


@pytest.mark.mode(32)
def test_first_signal_finishes_and_hands_back(make_site: Callable[..., Site]) -> None:
    site = make_site(options={"STOP_TIMEOUT": 600})
    running = consume(site, "work", "--concurrency=1")
    publish(site, ("work.a", {"do": "wait"}))
    started(site, "wait")
    publish(site, *(("work.a", {"name": n}) for n in range(3)))
    wait_until(lambda: site.states("published") == {"published": 4})
    os.killpg(running.pid, signal.SIGINT)  # Ctrl-C reaches the children too
    running.wait_for_output("Stopping: what runs may finish")
    wait_until(lambda: ready(site, "work") == 3, what="the unstarted ones at the broker")
    assert running.returncode is None
    (site.folder / "go").touch()
    assert running.wait() == 0
    assert site.states() == {"processed": 1}
    assert "Traceback" not in running.output
    process_the_rest(site, 4)


def process_the_rest(site: Site, count: int) -> None:
    """Another consumer finds what a stopped one left, and nothing of it has spent an attempt."""
    (site.folder / "go").touch()
    site.manage("consume", "work", "--burst")
    assert site.states() == {"processed": count}
    assert site.sql("SELECT DISTINCT attempts FROM messaging_processedmessage") == [(1,)]
    assert site.value("SELECT COUNT(*) FROM messaging_attempt") == 0
    assert site.value("SELECT COUNT(*) FROM app_effect") == count


@pytest.mark.mode(33)
def test_second_signal_ends_now_and_loses_nothing(make_site: Callable[..., Site]) -> None:
    site = make_site(options={"STOP_TIMEOUT": 600})
    running = consume(site, "work")
    publish(site, ("work.a", {"do": "wait"}))
    started(site, "wait")
    running.signal(signal.SIGTERM)
    running.wait_for_output("Stopping: what runs may finish")
    running.signal(signal.SIGTERM)
    assert running.wait() == 1
    wait_until(lambda: ready(site, "work") == 1, what="the message at the broker")
    process_the_rest(site, 1)


@pytest.mark.mode(33)
def test_the_stop_timeout_ends_what_does_not_finish(make_site: Callable[..., Site]) -> None:
    site = make_site(options={"STOP_TIMEOUT": 1})
    running = consume(site, "work")
    publish(site, ("work.a", {"do": "wait"}))
    started(site, "wait")
    assert running.stop() == 1
    wait_until(lambda: ready(site, "work") == 1, what="the message at the broker")


def test_a_killed_supervisor_takes_its_children_along(make_site: Callable[..., Site]) -> None:
    site = make_site()
    running = consume(site, "work", "--processes=2")
    wait_until(lambda: running.output.count("Connected to") == 2)
    publish(site, ("work.a", {"do": "wait"}))
    started(site, "wait")
    children = children_of(running.pid)
    assert len(children) == 2
    running.kill_process()
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in children), what="their end")
    wait_until(lambda: ready(site, "work") == 1, what="the message at the broker")


@pytest.mark.parametrize(
    "queue,do,error,text",
    [
        pytest.param("work", "die", "ProcessDied", "killed by signal 9", marks=pytest.mark.mode(20)),
        pytest.param("brief", "hang", "HandlerTimeout", "ran longer than its timeout", marks=pytest.mark.mode(31)),
        pytest.param("work", "exit", "SystemExit", "3", marks=[pytest.mark.mode(28), pytest.mark.slow]),
    ],
)
def test_killers_are_counted_and_retried(
    make_site: Callable[..., Site], any_db: str, queue: str, do: str, error: str, text: str
) -> None:
    site = make_site(db=any_db)
    running = consume(site, queue)
    publish(site, (f"{queue}.a", {"do": do}))
    wait_until(lambda: has_processed(site, 1), what=running.output)
    found = site.sql("SELECT exception_type, exception_message FROM messaging_attempt")
    assert len(found) == 1 or (
        queue == "brief" and found
    )  # whose next run takes too long, too, where its process stands still
    assert all(error in kind and text in message for kind, message in found), found
    assert site.value("SELECT COUNT(*) FROM app_effect") == 1
    assert running.stop() == 0


@pytest.mark.parametrize("ids", [pytest.param([None], marks=pytest.mark.slow), ["twin", "twin"]])
def test_a_killer_leaves_nothing_behind_whoever_takes_it_next(
    make_site: Callable[..., Site], ids: list[str | None]
) -> None:
    site = make_site(db="postgres")
    site.manage("topology")
    for message_id in ids:
        send(site, "work", {"do": "die"}, message_id)
    running = consume(site, "work", "--processes=2")
    wait_until(lambda: has_processed(site, 1), what=running.output)
    wait_until(lambda: site.states() == {"processed": 1}, what=running.output)
    assert "could not be recorded" not in running.output
    assert running.stop() == 0
    site.manage("consume", "work", "--burst")  # what was set aside goes back to the queue at a stop
    assert ready(site, "work") == 0
    assert site.states() == {"processed": 1}


def test_a_stored_operation_is_carried_out_beside_the_messages(make_site: Callable[..., Site]) -> None:
    site = make_site()
    site.run(
        "import uuid; from messaging.models import ProcessedMessage; "
        "from messaging.operations import Operator, stored; "
        "[ProcessedMessage.objects.create(state='failed', key=uuid.uuid4(), digest=uuid.uuid4()) for _ in range(3)]; "
        "stored.store(ProcessedMessage.objects.all(), 'discard', Operator(name='script'))"
    )
    running = consume(site, "work")
    wait_until(lambda: site.states() == {"discarded": 3}, what="the operation")
    wait_until(lambda: site.value("SELECT state FROM messaging_operation") == "done", what="its end")
    assert running.stop() == 0


def test_a_paused_queue_rests_until_it_is_resumed(make_site: Callable[..., Site]) -> None:
    site = make_site()
    running = consume(site, "work", "other")
    site.run(PAUSE.format(True))
    running.wait_for_output("The queue work is paused")
    wait_until(lambda: consumers(site, "work") == 0, what="that nobody takes from it")
    publish(site, ("work.a", {"name": 1}), ("other.a", {"name": 2}))
    wait_until(lambda: has_processed(site, 1))
    wait_until(lambda: ready(site, "work") == 1)
    send(site, "work.dead", {"name": 3})
    wait_until(lambda: site.states().get("failed") == 1, what="the dead letter of a paused queue")
    site.run(PAUSE.format(False))
    wait_until(lambda: has_processed(site, 2))
    assert running.stop() == 0


def test_a_queue_paused_before_the_start_is_left_alone(make_site: Callable[..., Site]) -> None:
    site = make_site()
    site.run(PAUSE.format(True))
    site.manage("topology")
    publish(site, ("work.a", {"name": 1}), ("other.a", {"name": 2}))
    site.manage("consume", "--burst", "work", "other")
    assert site.states() == {"processed": 1}
    wait_until(lambda: ready(site, "work") == 1, what="the message of the paused queue")


def test_batches_are_gathered(site: SiteFactory) -> None:
    made = site(handlers=HANDLERS + "backlog.GATHERING = 120.0")  # until they are complete
    made.manage("topology")
    for _ in range(10):
        send(made, "many", {})
    made.manage("consume", "--burst", "many", "--concurrency=1")
    assert made.states() == {"processed": 10}, str(made.sql("SELECT * FROM messaging_attempt"))
    sizes = [path.name.split(".")[0] for path in made.folder.glob("batch-*")]
    assert sizes == ["batch-5", "batch-5"]


@pytest.mark.mode(7)
@pytest.mark.slow
def test_a_restarted_broker_is_found_again(make_site: Callable[..., Site], own_rabbitmq: RabbitMQ) -> None:
    site = make_site(broker=own_rabbitmq.url)
    running = consume(site, "work")
    send(site, "work", {"name": 1})
    wait_until(lambda: has_processed(site, 1))
    own_rabbitmq.stop_app()
    running.wait_for_output("Trying again until it works")
    publish(site, ("work.a", {"name": 2}))
    assert site.states("published") == {"pending": 1}
    own_rabbitmq.start_app()
    running.wait_for_output(r"Connected to .* again; consuming work\.")
    wait_until(lambda: has_processed(site, 2), what="what was published meanwhile")
    assert running.output.count("Trying again until it works; nothing is lost") == 1
    assert running.stop() == 0


def test_waits_for_a_broker_that_is_not_there_yet(make_site: Callable[..., Site]) -> None:
    site = make_site(broker="amqp://guest:secret@127.0.0.1:1/")
    running = site.start("consume", "work")
    running.wait_for_output("Trying again until it works")
    assert running.stop() == 0
    assert "secret" not in running.output
    assert "Traceback" not in running.output


@pytest.mark.mode(35)
def test_a_deleted_queue_is_declared_again(make_site: Callable[..., Site]) -> None:
    site = make_site()
    running = consume(site, "work")
    with channel(site) as broker:
        broker.queue_delete("work")
    running.wait_for_output(r"Connected to .* again")
    publish(site, ("work.a", {"name": 1}))
    wait_until(lambda: has_processed(site, 1))
    with channel(site) as broker:
        broker.queue_delete("work.dead")
    wait_until(lambda: exists(site, "work.dead"), what="the dead-letter queue")
    send(site, "work.dead", {"name": 2})
    wait_until(lambda: site.states().get("failed") == 1, what="the dead letter")
    assert running.stop() == 0


@pytest.mark.mode(36)
def test_an_unusable_queue_ends_the_command_and_stays(make_site: Callable[..., Site]) -> None:
    site = make_site()
    with channel(site) as broker:
        broker.queue_declare("work", durable=False)
    done = site.manage("consume", "work", check=False, timeout=240)
    assert done.returncode == 1
    assert "Error: " in done.stderr
    assert "durable" in done.stderr
    assert "Traceback" not in done.stderr
    with channel(site) as broker:
        broker.queue_declare("work", passive=True)


@pytest.mark.mode(22)
def test_without_the_database_deliveries_are_held(site: SiteFactory, own_postgres: PostgreSQL) -> None:
    away = site(db="postgres", handlers=HANDLERS, server=Database(own_postgres.dsn))
    running = consume(away, "work")
    own_postgres.stop()
    send(away, "work", {"name": 1}, message_id="held")
    running.wait_for_output("cannot be used .*: consumption pauses")
    own_postgres.start()
    running.wait_for_output("The database can be used again")
    wait_until(lambda: has_processed(away, 1))
    assert away.sql("SELECT attempts, message_id FROM messaging_processedmessage") == [(1, "held")]
    assert away.value("SELECT COUNT(*) FROM messaging_attempt") == 0
    # Once each time: a database that stands still for longer than its patience is another one.
    assert 1 <= running.output.count("consumption pauses") <= 2
    assert running.output.count("consumption pauses") == running.output.count("The database can be used again")
    assert running.stop() == 0


def test_a_changed_handler_is_reloaded(make_site: Callable[..., Site]) -> None:
    site = make_site()
    running = consume(site, "work", "--reload")
    source = site.folder / "extra" / "handlers.py"

    def touch() -> bool:
        source.write_text(source.read_text() + "\n")
        return "handlers.py changed: restarting" in running.output

    wait_until(touch, interval=0.5, what="the restart")
    wait_until(lambda: running.output.count("Connected to") >= 2)
    assert running.stop() == 0


def test_refuses_what_cannot_work(make_site: Callable[..., Site]) -> None:
    site = make_site()
    unknown = site.manage("consume", "nothing", check=False)
    assert unknown.returncode == 1
    assert "No handler takes from nothing. Queues with handlers:" in unknown.stderr
    assert "--processes must be at least 1" in site.manage("consume", "--processes=0", check=False).stderr
    assert 'no alias "else"' in site.manage("consume", "--using=else", check=False).stderr


def test_runs_from_call_command_too(make_site: Callable[..., Site]) -> None:
    site = make_site()
    publish(site, ("work.a", {"name": 1}))
    site.shell("from django.core.management import call_command; call_command('consume', 'work', burst=True)")
    assert site.states() == {"processed": 1}


@pytest.mark.parametrize(
    "launcher",
    [
        pytest.param([sys.executable, str(ROOT / "manage.py")], id="manage.py"),
        pytest.param([sys.executable, "-W", "error", "-m", "django"], id="python -m django", marks=pytest.mark.slow),
        pytest.param(["django-admin"], id="django-admin", marks=pytest.mark.slow),
    ],
)
def test_starts_from_anywhere(make_site: Callable[..., Site], launcher: list[str], tmp_path: Path) -> None:
    site = make_site()
    publish(site, ("work.a", {"name": 1}))
    env = site.env | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{site.env['PATH']}"}
    if "manage.py" in launcher[-1]:
        env["PYTHONPATH"] = str(site.folder)  # the script's own folder must be found without it
    command = [*launcher, "consume", "work", "--burst"]
    done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    assert site.states() == {"processed": 1}


def test_shows_that_it_lives(make_site: Callable[..., Site]) -> None:
    site = make_site()
    running = consume(site, "work")
    sql = "SELECT kind, queues FROM messaging_worker WHERE kind = 'consume'"
    ((kind, queues),) = wait_until(lambda: site.sql(sql))
    assert (kind, json.loads(queues)) == ("consume", ["work"])
    assert running.stop() == 0
    assert site.value("SELECT COUNT(*) FROM messaging_worker WHERE kind = 'consume'") == 0


def test_topology_declares_and_compares(make_site: Callable[..., Site]) -> None:
    site = make_site()
    missing = site.manage("topology", "--check", check=False)
    assert missing.returncode == 1
    assert "work" in missing.stdout
    assert "work" in site.manage("topology").stdout
    assert site.manage("topology", "--check").stdout.endswith("Everything that can be seen is as it should be.\n")
    [note] = json.loads(site.manage("topology", "--check", "--json").stdout)
    assert (note["severity"], "MANAGEMENT_URL" in note["problem"]) == ("note", True)


# The backlog's order


def handler(queue: str, *, atomic: bool = True, batch: int | None = None) -> Handler:
    return Handler(print, queue, (), "default", "default", atomic, None, None, None, batch)


HANDLER = {"work": handler("work"), "other": handler("other"), "long": handler("long", atomic=False)}
BATCH = handler("many", batch=3)


@pytest.fixture
def backlog() -> Backlog:
    return Backlog(lambda delivery: {**HANDLER, "many": BATCH}.get(delivery.queue), ["work.dead"])


def take(backlog: Backlog) -> list[Delivery]:
    job = backlog.take()
    assert job is not None
    return [item.delivery for item in job.items]


def try_to_take(backlog: Backlog) -> list[Job | None]:
    """A thread that takes one job whenever it may; the list fills then."""
    taken: list[Job | None] = []
    threading.Thread(target=lambda: taken.append(backlog.take()), daemon=True).start()
    return taken


def test_queues_take_turns(backlog: Backlog) -> None:
    parcels = [Parcel("work"), Parcel("work"), Parcel("work"), Parcel("other"), Parcel("work.dead")]
    for parcel in parcels:
        backlog.put(parcel)
    assert [take(backlog)[0].queue for _ in parcels] == ["work", "other", "work.dead", "work", "work"]


def test_a_suspect_waits_for_what_runs_and_then_runs_alone(backlog: Backlog) -> None:
    backlog.put(Parcel())
    first = backlog.take()
    assert first is not None
    suspect = Parcel(redelivered=True)
    for parcel in (suspect, Parcel("other"), Parcel("long"), Parcel("long", redelivered=True)):
        backlog.put(parcel)
    assert [take(backlog)[0].queue, take(backlog)[0].queue] == ["long", "long"]
    taken = try_to_take(backlog)
    assert taken == []
    backlog.done(first)
    (job,) = wait_until(lambda: taken)
    assert job is not None
    assert job.head.delivery is suspect


def test_what_waits_for_another_transaction_is_counted_until_it_ends_otherwise(backlog: Backlog) -> None:
    for queue in ("work", "other"):
        backlog.put(Parcel(queue))
    job, beside = backlog.take(), backlog.take()
    assert job is not None
    assert beside is not None
    assert backlog.held == 0
    backlog.put_back(job.items, held=True)
    backlog.done(job)
    backlog.put_back(beside.items)
    backlog.done(beside)
    assert backlog.held == 1
    jobs = [backlog.take(), backlog.take()]
    assert backlog.held == 1, "it is being tried again"
    for again in jobs:
        assert again is not None
        backlog.done(again)
    assert backlog.held == 0


def test_what_its_row_says_killed_a_process_is_offered_again_alone(backlog: Backlog) -> None:
    died, beside = Parcel("many"), Parcel("many")
    backlog.put(died)
    first = backlog.take()
    assert first is not None
    assert not first.is_alone
    backlog.put_back(first.items, alone=True)
    backlog.done(first)
    backlog.put(beside)
    job = backlog.take()
    assert job is not None
    assert (job.is_alone, [item.delivery for item in job.items]) == (True, [died])
    taken = try_to_take(backlog)
    backlog.done(job)
    wait_until(lambda: taken)


@pytest.mark.mode(64)
def test_a_strangers_header_about_a_death_slows_nobody(backlog: Backlog) -> None:
    forged = [Parcel("many") for _ in range(2)]
    for parcel in forged:
        parcel.properties = Properties.build(headers={DIED: True})
        backlog.put(parcel)
    job = backlog.take()
    assert job is not None
    assert (job.is_alone, [item.delivery for item in job.items]) == (False, forged)


@pytest.mark.mode(64)
def test_what_only_says_that_it_is_a_round_makes_no_batch_run_one_by_one(backlog: Backlog) -> None:
    forged, *others = Parcel("many"), Parcel("many"), Parcel("many")
    forged.properties = Properties.build(headers={QUEUE: "many", ROUND: 2, KEY: str(uuid.uuid4())})
    forged.exchange = ""
    for parcel in (others[0], forged, others[1]):
        backlog.put(parcel)
    batch, alone = backlog.take(), backlog.take()
    assert batch is not None
    assert alone is not None
    assert [item.delivery for item in batch.items] == others
    assert (alone.is_alone, [item.delivery for item in alone.items]) == (False, [forged])


def test_nothing_atomic_runs_beside_a_suspect(backlog: Backlog) -> None:
    backlog.put(Parcel(redelivered=True))
    alone = backlog.take()
    assert alone is not None
    assert alone.is_alone
    backlog.put(Parcel("other"))
    backlog.put(Parcel("long", redelivered=True))
    assert take(backlog)[0].queue == "long"
    taken = try_to_take(backlog)
    assert backlog.waiting == 1
    assert taken == []
    backlog.done(alone)
    wait_until(lambda: taken)


def test_a_batch_is_of_one_handler_and_without_suspects(backlog: Backlog) -> None:
    suspect = Parcel("many", redelivered=True)
    fresh = [Parcel("many") for _ in range(4)]
    for parcel in (fresh[0], suspect, *fresh[1:]):
        backlog.put(parcel)
    job = backlog.take()
    assert job is not None
    assert [item.delivery for item in job.items] == fresh[:3]
    backlog.done(job)
    assert take(backlog) == [suspect]


def test_no_batch_asks_for_more_than_the_broker_can_be_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("messaging.consuming.consumer.registry.all", lambda _: [handler("many", batch=40_000)])
    assert Plan("default", ("many",)).prefetches()["many"] == 65535
    assert Plan("default", ("many",), prefetch=100_000).prefetches()["many"] == 65535
    assert Plan("default", ("many",), prefetch=7).prefetches()["many"] == 7


def test_many_at_once_may_come_of_a_queue_that_showed_it_has_nothing_nearly_given_up() -> None:
    consumer = Consumer(Plan("default", ("effects", "other"), concurrency=1), "worker-1")
    to = {"routing_key": "effects.made"}
    worn, other = {"headers": {"x-delivery-count": 10**6}, "redelivered": True, **to}, Parcel("other")
    consumer._backlog.put(Parcel("effects", **worn))
    assert wide_after(consumer, 2) == set()
    consumer._backlog.put(other)
    assert wide_after(consumer, 0) == set()
    assert wide_after(consumer, 2) == {"other"}
    assert wide_after(consumer, 61) == consumer._wanted()
    consumer._backlog.put(Parcel("effects", **to))
    assert wide_after(consumer, 2) == {"other", "effects"}


def test_a_queue_with_a_batch_handler_has_all_of_its_prefetch_at_once_always(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("messaging.consuming.consumer.registry.all", lambda _: [handler("many", batch=3)])
    consumer = Consumer(Plan("default", ("effects", "many"), concurrency=1), "worker-1")
    assert consumer._wide() == {"many"}
    assert wide_after(consumer, 2) == {"many"}, "after a reconnection, when nothing has come of it yet"


def test_after_a_death_that_nobody_is_blamed_for_it_holds_one_at_once_for_a_minute_whatever_is_done() -> None:
    consumer = Consumer(Plan("default", ("effects",), concurrency=1), "worker-1", is_careful=True)
    consumer._backlog.put(Parcel("effects"))
    consumer._backlog.finished = FIRST_MESSAGES
    assert wide_after(consumer, 59) == set()
    assert wide_after(consumer, 61) == consumer._wanted()


def wide_after(consumer: Consumer, seconds: float) -> frozenset[str]:
    consumer._well_since = 1000.0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("messaging.consuming.consumer.time", SimpleNamespace(monotonic=lambda: 1000.0 + seconds))
        return consumer._wide()


@pytest.mark.django_db(transaction=True)
def test_one_that_has_just_begun_looks_often_for_whether_it_may_have_more_than_one_at_once() -> None:
    consumer = Consumer(Plan("default", ("effects",), concurrency=1), "worker-1")
    assert consumer._tick() == TICK  # the broker is not there yet
    try:
        wait_until(lambda: consumer._step() or consumer._subscription.is_well, what="the broker")
        assert consumer._tick() == FIRST_TICK
    finally:
        consumer._subscription.close()


def test_an_incomplete_batch_waits_only_for_a_moment(backlog: Backlog) -> None:
    parcel = Parcel("many")
    backlog.put(parcel)
    assert take(backlog) == [parcel]
    assert time.monotonic() - parcel.received_at >= 0.05


def test_set_aside_comes_again_later_and_first(backlog: Backlog) -> None:
    aside, later = Parcel(), Parcel()
    backlog.put(aside)
    job = backlog.take()
    assert job is not None
    before = time.monotonic()
    backlog.put_back(job.items, 0.1)
    backlog.done(job)
    assert take(backlog) == [aside]
    assert time.monotonic() - before >= 0.1
    backlog.put(later)
    assert take(backlog) == [later]


def test_what_the_broker_took_back_is_forgotten(backlog: Backlog) -> None:
    lost, kept = Parcel(), Parcel()
    backlog.put(lost)
    backlog.put(kept)
    lost.live = False
    assert backlog.drop_stale() == 1
    assert take(backlog) == [kept]
    assert lost.settled == []


def test_gives_back_what_is_chosen_but_nothing_acknowledged(backlog: Backlog) -> None:
    old, young, done = Parcel(age=400), Parcel(), Parcel("long", age=400)
    backlog.put(done)
    job = backlog.take()
    assert job is not None
    job.head.ack()
    job.head.ack()
    backlog.put_back(job.items, 60)
    backlog.put(old)
    backlog.put(young)
    assert backlog.give_back(lambda delivery: time.monotonic() - delivery.received_at > 300) == 1
    assert (old.settled, young.settled, done.settled) == (["requeue"], [], ["ack"])


def test_what_went_back_unstarted_is_no_suspect_when_it_comes_again(backlog: Backlog) -> None:
    backlog.put(Parcel())
    backlog.give_back(lambda _: True)
    for parcel in (Parcel(redelivered=True), Parcel(redelivered=True)):
        backlog.put(parcel)
    returned = backlog.take()
    assert returned is not None
    assert not returned.is_alone, "this process gave it back itself"
    backlog.done(returned)
    suspect = backlog.take()
    assert suspect is not None
    assert suspect.is_alone, "one was given back, not two"


def test_a_suspect_that_went_back_is_still_one(backlog: Backlog) -> None:
    backlog.put(Parcel(redelivered=True))
    backlog.give_back(lambda _: True)
    backlog.put(Parcel(redelivered=True))
    job = backlog.take()
    assert job is not None
    assert job.is_alone


def test_a_closed_backlog_takes_and_gives_nothing(backlog: Backlog) -> None:
    taken = try_to_take(backlog)
    backlog.close()
    wait_until(lambda: taken == [None])
    late = Parcel()
    backlog.put(late)
    assert late.settled == ["requeue"]


def test_who_finds_nothing_to_take_says_so() -> None:
    idle = threading.Event()
    backlog = Backlog(lambda delivery: HANDLER[delivery.queue], on_idle=idle.set)
    backlog.put(Parcel())
    assert len(take(backlog)) == 1
    assert not idle.is_set()
    try_to_take(backlog)
    assert idle.wait(120)
    backlog.close()
