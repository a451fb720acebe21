"""An upgrade without downtime: the release before runs beside this one, on the same tables and the same broker."""

from __future__ import annotations

import random
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.release_before import extracted
from tests.site import ROOT, Running, Site, SiteFactory
from tests.waiting import wait_until
from tools.log_lines import without_failures

HANDLERS = """
import os, re, time
from pathlib import Path
from django.db import connection
from messaging import Reject, Retry, handler, publish
from tests.app.models import Effect

FOLDER, RELEASE = Path(os.environ["DATA_DIR"]), os.environ["RELEASE"]
options = {"backoff": 0.1, "max_attempts": 1000}

def leave(message):
    Effect.objects.create(key=message.payload["key"], value="done")

def note(message):
    '''Which releases have run it so far, in order, this run included.'''
    path = FOLDER / f"ran-{message.payload['key']}"
    with path.open("a") as file:
        file.write(RELEASE[0])
    return path.read_text()

def has_crossed(runs):
    return re.search("on+o|no+n", runs) is not None

def is_of_old(message):
    '''Whether the release before recorded it first; its code cannot ask its models.'''
    with connection.cursor() as cursor:
        found = "SELECT derivation FROM messaging_processedmessage WHERE message_id = %s"
        return cursor.execute(found, [message.id]).fetchone() == (None,)

def hold():
    while (FOLDER / "hold").exists():
        time.sleep(0.02)

@handler("plain", "plain.*", **options)
def plain(message):
    note(message)
    leave(message)
    hold()

@handler("batch", "batch.*", batch=20, **options)
def batch(messages):
    for message in messages:
        note(message)
        leave(message)
    hold()

@handler("chain", "chain.*", **options)
def chain(message):
    leave(message)
    publish("plain.after", {"key": message.payload["key"] + ".after"})

@handler("flaky", "flaky.*", **options)
async def flaky(message):
    await Effect.objects.acreate(key=message.payload["key"], value="done")
    if not has_crossed(note(message)):
        raise ValueError("It has not been to the other release and back.")

@handler("job", "job.*", atomic=False, **options)
def job(message):
    key, runs = message.payload["key"], note(message)
    Effect.objects.get_or_create(key=key, value="done")
    # What the release before recorded first keeps its ids; else they are the caller's, as the guide advises.
    publish("plain.after", {"key": key + ".after"}, message_id=None if is_of_old(message) else key + ".after")
    hold()
    if not has_crossed(runs) and not key.startswith("held"):
        raise ValueError("It has not been to the other release and back.")

@handler("doomed", "doomed.*", **options)
def doomed(message):
    if not (FOLDER / "cure").exists():
        if message.payload["by"] != RELEASE:
            raise ValueError("It waits for the other release, to be rejected there.")
        raise Reject(f"rejected by {RELEASE}")
    leave(message)

@handler("killer", "killer.*", **options)
def kill(message):
    if note(message) == RELEASE[0]:
        os._exit(7)
    leave(message)

@handler("acts", "acts.*", **options)
def act(message):
    do = message.payload["key"]
    if not (FOLDER / "cure").exists():
        if do in ("failed", "requeued", "discarded"):
            raise Reject(do)
        if do == "retrying":
            raise Retry(after=3600)
    leave(message)

@handler("stranger", **options)
def stranger(message):
    note(message)
    leave(message)
    hold()

@handler("stranger-job", atomic=False, **options)
def stranger_job(message):
    note(message)
    leave(message)
    hold()
"""

PUBLISHER = """
import os, time
from pathlib import Path
from django.db import connection, transaction
from messaging import Message, publish, publish_many
from messaging.backends import get_backend
from messaging.backends.base import Fate, Outgoing
try:
    from messaging.wire.properties import Properties
except ImportError:  # the release before has it elsewhere
    from messaging.wire import Properties
from tests.app.models import Effect

FOLDER, NAME, KINDS = Path(os.environ["DATA_DIR"]), "NAMED" or f"{os.environ['RELEASE']}-{os.getpid()}", ["KINDS"]
strange = Properties.build(content_type="application/json")
sender = get_backend("default").sender()
sender.open()

def send(queue, key):
    '''As somebody who has no outbox and gives no id.'''
    body = ('{"key": "%s"}' % key).encode()
    properties = Properties.build(content_type="application/json", delivery_mode=2).encode()
    sender.send([Outgoing(key, "", queue, properties, body)])
    while sender.under_way:
        for outcome in sender.outcomes(1):
            assert outcome.fate is Fate.CONFIRMED, outcome

for number in range(COUNT):
    key = f"{NAME}-{number}"
    keys = [f"{key}-{kind}" for kind in KINDS]
    with transaction.atomic():
        publish("plain.one", {"key": keys[0]})
        by = ("old", "new")[number % 2]
        publish_many([Message(f"{kind}.one", {"key": one, "by": by}) for kind, one in zip(KINDS[1:], keys[1:])])
        due = [*keys, *(f"{one}.after" for one in keys if one.endswith(("-chain", "-job")))]
        Effect.objects.bulk_create([Effect(key=one, value="due") for one in due])
    for queue in ("stranger", "stranger-job"):
        send(queue, f"{key}-{queue}")
        Effect.objects.create(key=f"{key}-{queue}", value="due")
    time.sleep(0.05)
sender.close()
"""

ACT = """
from messaging import operations
from messaging.models import ProcessedMessage, PublishedMessage
by = operations.Operator(name="operator")
"""
KINDS = ("plain", "batch", "chain", "flaky", "job", "doomed")
OTHERS = {"old": "new", "new": "old"}
COMMANDS = [("consume", "--no-relay", "--concurrency=3"), ("relay",)]
ON_BOTH = [
    pytest.param(("postgres", None), marks=[pytest.mark.broker, pytest.mark.postgres], id="rabbitmq"),
    pytest.param(("sqlite", "database://"), marks=pytest.mark.slow, id="embedded"),
]

ENDED = {"processed", "published", "discarded"}
LOST = """SELECT due.key FROM app_effect due WHERE due.value = 'due'
    AND NOT EXISTS (SELECT 1 FROM app_effect done WHERE done.value = 'done' AND done.key = due.key)"""
# A message without an id may run again after a crash.
DOUBLED = """SELECT key FROM app_effect WHERE value = 'done' AND key NOT LIKE '%stranger%'
    GROUP BY key HAVING COUNT(*) > 1"""
UNASKED = """SELECT done.key FROM app_effect done WHERE done.value = 'done' AND done.key NOT LIKE '%stranger%'
    AND NOT EXISTS (SELECT 1 FROM app_effect due WHERE due.value = 'due' AND due.key = done.key)"""


def publisher(count: int, *kinds: str, name: str = "") -> str:
    """A program that publishes so many messages of each kind, and as many without an id, and notes what is due."""
    named = PUBLISHER.replace("COUNT", str(count)).replace('"NAMED"', repr(name))
    return named.replace('["KINDS"]', repr(kinds))


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return extracted(tmp_path_factory.mktemp("before"))


@pytest.fixture(params=ON_BOTH)
def releases(site: SiteFactory, before: Path, request: pytest.FixtureRequest) -> dict[str, Site]:
    """One site, run by the old code and by the new."""
    db, broker = request.param
    options = {"LEASE": 3, "STOP_TIMEOUT": 120}
    made = site(db, handlers=HANDLERS, broker=broker, options=options, env={"RELEASE": "new"})
    made.manage("topology")
    return {"old": made.beside(before, RELEASE="old"), "new": made}


def test_only_a_copy_without_its_history_may_lack_the_release_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, shallow, exported = (tmp_path / name for name in ("whole", "shallow", "exported"))
    author = ["-c", "user.name=olga", "-c", "user.email=olga@example.com"]
    for arguments in [
        ["init", "--quiet", str(whole)],
        *[["-C", str(whole), *author, "commit", "--quiet", "--allow-empty", "-m", name] for name in ("one", "two")],
        ["clone", "--quiet", "--depth=1", whole.as_uri(), str(shallow)],
    ]:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    exported.mkdir()
    fails, skips = pytest.fail.Exception, pytest.skip.Exception
    for in_ci, of_whole in (("true", fails), ("", skips)):
        monkeypatch.setenv("CI", in_ci)
        for root, ends in ((whole, of_whole), (shallow, skips), (exported, skips)):
            with pytest.raises((fails, skips), match="release before") as caught:
                extracted(tmp_path / "before", root)
            assert caught.type is ends, root


def test_each_release_runs_its_own_code(releases: dict[str, Site]) -> None:
    for name, site in releases.items():
        said = site.shell("import messaging; print(messaging.__file__); print(messaging.models.Attempt._meta.fields)")
        *_, where, fields = said.splitlines()
        assert Path(where).parent == site.root / "messaging"
        assert ("UUIDField: run" in fields) == (name == "new")


@pytest.mark.slow
@pytest.mark.chaos
def test_nothing_is_lost_or_doubled_while_the_release_before_runs_beside_this_one(releases: dict[str, Site]) -> None:
    site = releases["new"]
    programs = [(name, command) for name in releases for command in COMMANDS]
    programs += [(name, ("shell", "-c", publisher(15, *KINDS))) for name in releases]
    running = [releases[name].start(*command) for name, command in programs]
    kill_each(releases, programs, running)
    for one in running[4:]:
        assert one.wait(180) == 0, one.output
    settle(site, "failed")
    (site.folder / "cure").touch()
    for name, other in OTHERS.items():
        requeue_and_replay(releases[name], written_by=other)
    settle(site)
    for process in running[:4]:
        assert process.stop() in (0, -signal.SIGTERM), process.output
        assert "Traceback" not in without_failures(process.output)
    assert [site.sql(statement) for statement in (LOST, DOUBLED, UNASKED)] == [[], [], []]
    assert_that_messages_crossed(site)


@pytest.mark.chaos
@pytest.mark.parametrize("dies", ["old", "new"])
def test_what_one_release_was_killed_with_is_ended_by_the_other(releases: dict[str, Site], dies: str) -> None:
    site = releases[dies]
    if site.database_url.startswith("sqlite"):
        pytest.skip("SQLite lets one handler write at a time, so that five of them cannot be held at once.")
    (site.folder / "hold").touch()
    killed = site.start("consume", "--concurrency=8")
    kinds = ("plain", "batch", "job")
    site.shell(publisher(1, *kinds, name="held"))
    ran = [site.folder / f"ran-held-0-{kind}" for kind in (*kinds, "stranger", "stranger-job")]
    wait_until(lambda: all(path.exists() for path in ran), what="all to be run")
    killed.kill()
    (site.folder / "hold").unlink()
    other = releases[OTHERS[dies]].start("consume", "--concurrency=8")
    settle(site)
    assert other.stop() == 0
    assert [site.sql(statement) for statement in (LOST, DOUBLED, UNASKED)] == [[], [], []]


@pytest.mark.chaos
def test_a_supervisor_of_the_release_before_goes_on_with_this_one(releases: dict[str, Site], tmp_path: Path) -> None:
    """As where an installation is replaced under running processes: each child is started from what is there then."""
    site = releases["new"].beside(extracted(tmp_path / "replaced"), RELEASE="old")
    supervisor = site.start("consume")
    supervisor.wait_for_output("Connected")
    shutil.rmtree(site.root / "messaging")
    shutil.copytree(ROOT / "messaging", site.root / "messaging")
    releases["new"].shell("from messaging import publish\npublish('killer.one', {'key': 'killer'})")
    wait_until(lambda: site.states() == {"processed": 1}, what="the message that kills")
    assert site.sql("SELECT number, crashed FROM messaging_attempt") == [(1, True)]
    assert site.value("SELECT COUNT(*) FROM app_effect") == 1
    assert supervisor.stop() == 0


WRITE_OUTGOING = """
from messaging import publish
from messaging.models import PublishedMessage
from messaging.operations import Operator, discard_published, restore_published
by = Operator(name="olga")

def written(state, **options):
    row = publish("acts.out", {"key": f"out-{state}"}, **options)
    return PublishedMessage.objects.filter(pk=row.pk)

written("published")
written("pending", delay=3600)
written("failed").update(headers=["not", "a", "dict"])
discard_published(written("discarded"), by)
draft = written("draft")
discard_published(draft, by)
restore_published(draft, by)
for state in ("processed", "retrying", "failed", "requeued", "discarded"):
    publish("acts.in", {"key": state})
publish("job.held", {"key": "held-processing"})
"""

WRITE_INCOMING = """
import time, uuid
from messaging.exceptions import MessagingError
from messaging.failures import record_crash
from messaging.ledger import Entry
from messaging.models import ProcessedMessage
from messaging.operations import Operator, discard, requeue
by = Operator(name="olga")
requeue(ProcessedMessage.objects.filter(error__contains="requeued"), by)
discard(ProcessedMessage.objects.filter(error__contains="discarded"), by)
crashed = Entry("default", "acts", uuid.uuid4().hex, uuid.uuid4().hex, 1, "gone", "default", "extra.handlers.act", time.time())
record_crash(crashed, MessagingError("Its process died."), "test")
"""  # noqa: E501

READ = """
from django.contrib.auth import get_user_model
from django.test import Client
from messaging.models import ProcessedMessage, PublishedMessage

client = Client(headers={"host": "localhost"})
client.force_login(get_user_model().objects.create_superuser("olga"))
for model in (PublishedMessage, ProcessedMessage):
    where = f"/admin/messaging/{model._meta.model_name}/"
    pages = [where, *(f"{where}?state={state}" for state in model.State), *(f"{where}{row.pk}/change/" for row in model.objects.all())]
    print([page for page in pages if client.get(page, follow=True).status_code != 200])
"""  # noqa: E501

ACT = """
from messaging import operations
from messaging.clock import Now
from messaging.models import ProcessedMessage, PublishedMessage
by = operations.Operator(name="olga")

def do(verb, model, state, **found):
    outcome = verb(model.objects.filter(state=state, **found), by)
    print(f"{verb.__name__} {state}: {len(outcome.done)}, skipped {outcome.skipped_count}")

PublishedMessage.objects.filter(state="failed").update(headers={})
do(operations.discard_published, PublishedMessage, "pending")
do(operations.restore_published, PublishedMessage, "discarded")
do(operations.release, PublishedMessage, "failed")
PublishedMessage.objects.filter(state="draft").update(publish_at=Now())
do(operations.release, PublishedMessage, "draft")
do(operations.replay, PublishedMessage, "published")
do(operations.requeue, ProcessedMessage, "retrying")
do(operations.requeue, ProcessedMessage, "failed")
do(operations.restore, ProcessedMessage, "discarded")
do(operations.requeue, ProcessedMessage, "failed")
do(operations.discard, ProcessedMessage, "processing", wire=None)
"""
DONE = """discard_published pending: 2, skipped 2
restore_published discarded: 3, skipped 0
release failed: 1, skipped 0
release draft: 4, skipped 0
replay published: 7, skipped 0
requeue retrying: 1, skipped 0
requeue failed: 1, skipped 0
restore discarded: 1, skipped 0
requeue failed: 1, skipped 0
discard processing: 1, skipped 0
"""


@pytest.mark.slow
def test_rows_of_every_state_that_the_release_before_wrote_can_be_read_and_acted_upon(
    releases: dict[str, Site],
) -> None:
    old, site = releases["old"], releases["new"]
    (site.folder / "hold").touch()
    old.shell(WRITE_OUTGOING)
    old.manage("relay", "--burst")
    consumer = old.start("consume", "--no-relay")
    received = {"processed": 2, "retrying": 1, "failed": 3, "processing": 1}
    wait_until(lambda: site.states() == received, what="what was published to be received")
    followed = "SELECT COUNT(*) FROM messaging_publishedmessage WHERE routing_key = 'plain.after'"
    wait_until(lambda: site.value(followed) == 1, what="the job to have published")
    consumer.kill()
    old.shell(WRITE_INCOMING)
    assert set(site.states("published")) == {"draft", "pending", "published", "failed", "discarded"}
    written = {"processing": 2, "processed": 2, "retrying": 1, "failed": 1, "requeued": 1, "discarded": 1}
    assert site.states() == written
    assert site.shell(READ).splitlines()[-2:] == ["[]", "[]"]
    assert site.shell(ACT).endswith(DONE)
    (site.folder / "cure").touch()
    (site.folder / "hold").unlink()
    consumer = site.start("consume")
    settle(site)
    assert consumer.stop() == 0
    assert site.states() == {"processed": 12, "discarded": 1}  # eleven and what the job has published
    assert site.sql("SELECT key FROM app_effect GROUP BY key HAVING COUNT(*) > 1") == []
    assert site.value("SELECT COUNT(*) FROM app_effect") == 12


def kill_each(releases: dict[str, Site], programs: list[tuple[str, tuple[str, ...]]], running: list[Running]) -> None:
    """Kill each process once, as a machine's crash would, and start it again."""
    order = list(range(len(running)))
    random.Random(5).shuffle(order)
    for victim in order:
        time.sleep(1)  # the pace of the killing, not a wait for anything
        running[victim].kill()
        name, command = programs[victim]
        running[victim] = releases[name].start(*command)


def settle(site: Site, *states: str) -> None:
    """Wait until nothing is under way any more, in the tables or at the embedded broker; ended in `states` is ended."""
    try:
        wait_until(lambda: not under_way(site, *states))
    except AssertionError as error:
        raise AssertionError(f"{error} Under way: {under_way(site, *states)}") from None


def under_way(site: Site, *states: str) -> list[Any]:
    """What has not come to its end."""
    lost = [key for (key,) in site.sql(LOST) if not states or "doomed" not in key]
    sent = {state: count for state, count in site.states("published").items() if state not in ENDED}
    received = {state: count for state, count in site.states().items() if state not in (*ENDED, *states)}
    held = site.value("SELECT COUNT(*) FROM messaging_embeddedmessage")
    return [found for found in (lost, sent, received, held) if found]


def requeue_and_replay(site: Site, *, written_by: str) -> None:
    """Have an operator act by one release's code on what the other's code has written."""
    said = site.shell(f"""
from messaging import operations
from messaging.models import ProcessedMessage, PublishedMessage
by = operations.Operator(name="olga")
failed = ProcessedMessage.objects.filter(state="failed", error__contains="rejected by {written_by}")
published = PublishedMessage.objects.filter(state="published", body__contains='"{written_by}-', inbox=None)
for done in operations.requeue(failed, by), operations.replay(published, by):
    print(len(done.done), done.skipped)
""")
    requeued, replayed = (line.split(maxsplit=1) for line in said.splitlines()[-2:])
    assert (int(requeued[0]) > 0, requeued[1]) == (True, "{}")
    assert (int(replayed[0]) > 50, replayed[1]) == (True, "{}")


def assert_that_messages_crossed(site: Site) -> None:
    """Retries went from each release to the other and back."""
    ran = {path.name.removeprefix("ran-"): path.read_text() for path in site.folder.glob("ran-*")}
    crossing = [runs for key, runs in ran.items() if re.search(r"\d-(flaky|job)$", key)]
    assert len(crossing) >= 60
    assert all(re.search("on+o|no+n", runs) for runs in crossing)
