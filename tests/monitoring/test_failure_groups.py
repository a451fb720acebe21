"""What failed alike is one group, by the failed message itself; its row is written seconds later, by whoever lives."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pytest
from django.core.management import call_command
from django.db import DatabaseError

from messaging import operations
from messaging.consuming.housekeeping import Housekeeper
from messaging.db.clock import in_utc
from messaging.exceptions import ProcessDied, Reject
from messaging.handlers import Registry
from messaging.message import ReceivedMessage
from messaging.models import AuditRecord, FailureCount, FailureGroup, ProcessedMessage, PublishedMessage
from messaging.models.failure_groups import BUCKET
from messaging.monitoring import failure_groups, snapshot
from messaging.monitoring.conditions import conditions
from messaging.monitoring.counters import Period
from messaging.monitoring.failure_groups import Cause, adopt, history, open_counts, write
from messaging.operations import Operator
from messaging.operations.failure_groups import end_silence, silence
from messaging.processing.error_text import cause_of
from messaging.processing.processor import Processor
from messaging.relaying.relay import Relay
from tests.admin_rows import incoming
from tests.deliveries import arrived, registered, sent
from tests.waiting import wait_until

pytestmark = pytest.mark.django_db(transaction=True)
ANN = Operator(name="ann", reason="known")


def site(source: str, name: str = "shop.handlers", file: str = "/srv/one/shop/handlers.py") -> Any:
    """A module of an application, as if it stood in that file."""
    module = types.ModuleType(name)
    exec(compile(source, file, "exec"), module.__dict__)
    return module


def raised(call: Callable[[], object]) -> BaseException:
    try:
        call()
    except Exception as error:  # noqa: BLE001
        return error
    raise AssertionError


def of(call: Callable[[], object], handler: str = "shop.handlers.place", queue: str = "work") -> Cause:
    return cause_of(raised(call), handler, queue)


CODE = """
def place(message=None):
    return price(int(message or 0))

def price(number):
    return [10 / number for _ in "x"]
"""
EDITED = '"""Words."""\nimport os\n\n' + CODE.replace("10 /", "# a line\n        11 /").replace("message or", "0 or")


def test_a_group_stays_the_same_over_an_edit_a_deployment_and_other_words() -> None:
    first = of(site(CODE).place)
    assert (first.exception_type, first.frame) == ("ZeroDivisionError", "shop/handlers.py:price")
    assert of(site(EDITED, file="/srv/two/releases/7/shop/handlers.py").place) == first

    def said(text: str) -> None:
        raise ValueError(text)

    assert of(partial(said, "order 1 of eve")) == of(partial(said, "order 2 of mallory"))


def test_another_class_place_handler_or_queue_is_another_group() -> None:
    shop = site(CODE)
    causes = [
        of(shop.place),
        of(partial(shop.place, "x")),  # ValueError, in place()
        of(shop.place, handler="shop.handlers.other"),
        of(shop.place, handler=""),
        of(shop.place, handler="", queue="mail"),
    ]
    assert len({cause.fingerprint for cause in causes}) == len(causes)
    assert [cause.queue for cause in causes] == ["", "", "", "work", "mail"], "a queue stands for a handler alone"


def test_frames_of_libraries_and_of_this_app_are_not_the_place(monkeypatch: pytest.MonkeyPatch) -> None:
    source = "def load():\n    import json\n    json.loads('{')\n"
    assert of(site(source).load).frame == "shop/handlers.py:load"
    installed = site(source, "paidapi", "/venv/lib/python3.12/site-packages/paidapi.py")
    monkeypatch.setitem(sys.modules, "paidapi", installed)
    through = site("import paidapi\ndef pay():\n    paidapi.load()\n")
    assert of(through.pay).frame == "shop/handlers.py:pay"
    assert of(installed.load, handler="paidapi.load").frame == "paidapi.py:load", "a site that is a package itself"
    assert cause_of(ProcessDied("killed"), "shop.handlers.place", "work").frame == ""


def fail(message: ReceivedMessage) -> None:
    if message.payload == "good":
        return
    raise ValueError(message.payload)


@pytest.fixture
def processor() -> Processor:
    registry = Registry()
    registered(registry, fail, max_attempts=2)
    return Processor("default", "worker-1", handlers=registry)


def test_a_failure_names_its_group_and_a_success_after_it_none(processor: Processor, settings: Any) -> None:
    settings.MESSAGING_CONSOLE = {"RELEASE": "1.0"}
    for payload in ("one", "two"):
        delivery = arrived(payload)
        processor.process(delivery, lambda: None)
        processor.process(sent(PublishedMessage.objects.get(message_id=delivery.properties.message_id)), lambda: None)
    assert not FailureGroup.objects.exists(), "nothing is written by the failing message's own transaction"
    write("default")
    group = FailureGroup.objects.get()
    assert set(ProcessedMessage.objects.values_list("fingerprint", "state")) == {(group.fingerprint, "failed")}
    assert (group.exception_type, group.queue, group.first_release) == ("ValueError", "", "1.0")
    assert group.frame == "tests/monitoring/test_failure_groups.py:fail"
    [count] = FailureCount.objects.values("group", "failed", "retried", "alias")
    assert count == {"group": group.pk, "failed": 2, "retried": 2, "alias": "default"}
    write("default")
    assert FailureCount.objects.get().failed == 2, "once"
    counts = open_counts("default", [group.fingerprint])
    assert counts == {(group.fingerprint, "failed"): 2, (group.fingerprint, "retrying"): 0}
    assert open_counts("default", []) == {}


def test_what_is_processed_in_the_end_is_in_no_group() -> None:
    registry, seen = Registry(), []

    def flaky(message: ReceivedMessage) -> None:
        seen.append(message)
        if len(seen) == 1:
            raise ValueError

    registered(registry, flaky)
    processor = Processor("default", "worker-1", handlers=registry)
    delivery = arrived()
    processor.process(delivery, lambda: None)
    row = ProcessedMessage.objects.get()
    assert (row.state, bool(row.fingerprint)) == ("retrying", True)
    processor.process(sent(PublishedMessage.objects.get()), lambda: None)
    row.refresh_from_db()
    assert (row.state, row.fingerprint) == ("processed", "")


def test_a_round_that_cannot_be_sent_counts_in_the_group_of_its_last_failure(settings: Any) -> None:
    settings.MESSAGING = {"default": {"URL": "database://", "UNROUTABLE": [], "POLL_INTERVAL": 0.05}}
    row = incoming("failed", queue="gone", fingerprint="f" * 32, exception_type="ValueError", handler="shop.place")
    operations.requeue(ProcessedMessage.objects.all(), ANN)
    relay = Relay("default")
    wait_until(lambda: relay.run_once(timeout=0.05) == 0 and state_of(row) == "failed")
    relay._finish()
    group = FailureGroup.objects.get(fingerprint="f" * 32)
    assert (group.handler, group.queue, FailureCount.objects.get(group=group).failed) == ("shop.place", "", 1)


def state_of(row: Any) -> str:
    return str(ProcessedMessage.objects.get(pk=row.pk).state)


def count(fingerprint: str = "a" * 32, *, is_final: bool = True, **about: str) -> None:
    failure_groups.add("default", "default", Cause(fingerprint, "shop.Boom", **about), is_final=is_final)


def test_what_cannot_be_written_stays_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    count()

    def away(*_: Any) -> None:
        count()  # another thread goes on
        raise DatabaseError("away")

    with monkeypatch.context() as patch:
        patch.setattr(failure_groups, "_write_count", away)
        with pytest.raises(DatabaseError):
            write("default")
    assert not FailureGroup.objects.exists(), "all or nothing"
    write("default")
    assert FailureCount.objects.get().failed == 2


def test_groups_without_number_are_counted_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failure_groups, "MOST", 3)
    for number in range(10):
        count(f"{number:032}")
    write("default")
    assert FailureGroup.objects.count() == 3
    assert FailureCount.objects.get(group=None).failed == 7


def test_a_group_that_only_messages_name_gets_its_row_and_none_gets_two(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failure_groups, "LOOKED_AT", 2)
    now = datetime.now(UTC)
    for number in range(3):
        for hours in (1, 5, 3):
            failed_at = now - timedelta(hours=hours)
            own = {"fingerprint": str(number) * 32, "exception_type": f"E{number}", "handler": "", "queue": "billing"}
            incoming("failed" if hours > 1 else "retrying", failed_at=failed_at, **own)
    incoming("processed")
    count("1" * 32, frame="shop/x.py:f", handler="shop.handlers.f")
    write("default")
    adoption = failure_groups.Adoption("default")
    adoption.go_on()
    assert set(FailureGroup.objects.values_list("fingerprint", flat=True)) == {"0" * 32, "1" * 32}
    for _ in range(3):
        adoption.go_on()
    assert FailureGroup.objects.count() == 3
    group = FailureGroup.objects.get(fingerprint="2" * 32)
    assert (group.exception_type, group.queue, group.first_release) == ("E2", "billing", "")
    assert abs(in_utc(group.first_seen) - (now - timedelta(hours=5))) < timedelta(seconds=1)
    assert abs(in_utc(group.last_seen) - (now - timedelta(hours=1))) < timedelta(seconds=1)
    incoming("failed", fingerprint="3" * 32)
    adoption.go_on()
    assert FailureGroup.objects.count() == 3, "not before an hour has passed"
    assert adopt("default", "2" * 32) is None
    assert FailureGroup.objects.count() == 4
    count("2" * 32, frame="shop/y.py:g")
    write("default")
    group.refresh_from_db()
    assert group.frame == "shop/y.py:g", "what messages do not say is filled in"


def test_a_consumer_writes_them_and_the_rest_as_it_ends(processor: Processor) -> None:
    nothing = lambda *_: None  # noqa: E731
    incoming("failed", fingerprint="b" * 32, exception_type="shop.Old")
    keeper = Housekeeper("worker-1", ("work",), processor, str, lambda: False, nothing, nothing)
    count("a" * 32)
    keeper.start()
    wait_until(lambda: FailureGroup.objects.count() == 2)
    count("c" * 32)
    keeper.stop(30)
    assert FailureGroup.objects.count() == 3


def test_history_has_a_number_for_every_step() -> None:
    count()
    write("default")
    group = FailureGroup.objects.get()
    FailureCount.objects.all().delete()
    for alias, minute, failed, retried in (
        ("default", 990, 1, 0), ("other", 990, 1, 1), ("default", 1020, 4, 0), ("default", 980, 9, 9),
    ):  # fmt: skip
        FailureCount.objects.create(group=group, alias=alias, minute=minute, failed=failed, retried=retried)
    assert history("default", [group.pk], Period(1025, 60, 30)) == {group.pk: [3, 4]}
    assert history("default", [group.pk, 0], Period(1025, 90, 30)) == {group.pk: [18, 3, 4], 0: [0, 0, 0]}


def rising(fingerprint: str, number: int = 10) -> None:
    for _ in range(number):
        count(fingerprint)
    write("default")


def alarms() -> list[str]:
    return [found.words for found in conditions(snapshot.read()) if found.name == "failures_rising"]


def test_a_silenced_group_raises_no_alarm_and_is_counted_all_the_same(django_assert_num_queries: Any) -> None:
    rising("a" * 32)
    [words] = alarms()
    assert words.startswith("Failures are rising: 10 within 20 minutes")
    group = FailureGroup.objects.get()
    silence(group, ANN)
    assert alarms() == []
    rising("b" * 32)
    assert alarms() == [
        "Failures are rising: 10 within 20 minutes, instead of the usual 0. In silenced groups: 10 more."
    ]
    with django_assert_num_queries(2):
        now = snapshot.read()
    assert (now.quiet, now.recent) == ({"default": {"a" * 32}}, {"default": 1})
    assert sum(now.failures.values()) == sum(now.silenced.values()) == 10
    end_silence(group, ANN)
    assert "20 within" in alarms()[0]
    kept = AuditRecord.objects.filter(kind="group", message_pk=group.pk).order_by("pk")
    assert list(kept.values_list("action", "username", "reason")) == [
        ("silence", "ann", "known"),
        ("unsilence", "ann", "known"),
    ]


def test_a_silence_ends_when_its_time_is_over() -> None:
    rising("a" * 32)
    group = FailureGroup.objects.get()
    silence(group, ANN, seconds=3600)
    assert FailureGroup.objects.silenced().exists()
    FailureGroup.objects.update(silenced_until=datetime.now(UTC) - timedelta(seconds=1))
    assert not FailureGroup.objects.silenced().exists()
    assert alarms()


def test_a_silence_ends_when_the_group_is_seen_in_a_later_release(settings: Any) -> None:
    def seen_in(release: str) -> bool:
        settings.MESSAGING_CONSOLE = {"RELEASE": release}
        count()
        write("default")
        return FailureGroup.objects.silenced().exists()

    seen_in("1.0")
    silence(FailureGroup.objects.get(), ANN, releases=["1.1", "1.0"])  # the site is being deployed
    assert seen_in("1.0")
    assert seen_in("1.1")
    assert seen_in(""), "a process that names none"
    assert not seen_in("1.2")
    assert not seen_in("1.1"), "for good"
    record = AuditRecord.objects.get(action="unsilence")
    assert (record.kind, record.reason) == ("group", "It was seen in the release 1.2.")
    silence(FailureGroup.objects.get(), ANN)
    assert seen_in("1.3"), "no release ends it unless it says so"


def test_two_processes_that_see_a_new_group_at_once_make_one(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = failure_groups._seen

    def after_another(*args: Any) -> Any:
        FailureGroup.objects.get_or_create(fingerprint="a" * 32, defaults={"exception_type": "shop.Boom"})
        return seen(*args)

    monkeypatch.setattr(failure_groups, "_seen", after_another)
    rising("a" * 32)
    assert FailureGroup.objects.get().count_set.get().failed == 10


def test_what_is_long_past_is_forgotten_and_nothing_that_is_left() -> None:
    long_ago = datetime.now(UTC) - failure_groups.FORGOTTEN - timedelta(hours=1)
    for name in "abcd":
        rising(name * 32, 1)
    incoming("failed", fingerprint="b" * 32)
    FailureGroup.objects.exclude(fingerprint="d" * 32).update(last_seen=long_ago)
    FailureGroup.objects.filter(fingerprint="c" * 32).update(note="ours")
    FailureCount.objects.filter(group__fingerprint="d" * 32).update(minute=1000)
    call_command("prune_messages", verbosity=0)
    assert {group.fingerprint[0] for group in FailureGroup.objects.all()} == set("bcd")
    assert {name[0] for name in FailureCount.objects.values_list("group__fingerprint", flat=True)} == set("bc")


def test_groups_that_messages_are_left_of_keep_no_other_from_being_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failure_groups, "MOST", 1)
    long_ago = datetime.now(UTC) - failure_groups.FORGOTTEN - timedelta(days=1)
    for number, fingerprint in enumerate(("a" * 32, "b" * 32)):
        FailureGroup.objects.create(fingerprint=fingerprint)
        seen = long_ago + timedelta(hours=number)
        FailureGroup.objects.filter(fingerprint=fingerprint).update(last_seen=seen)
    incoming("failed", fingerprint="a" * 32)
    assert failure_groups.prune("default") == 1
    assert FailureGroup.objects.get().fingerprint == "a" * 32


def test_a_rejected_message_and_a_crash_have_groups_too() -> None:
    registry = Registry()

    def refuse(message: ReceivedMessage) -> None:
        raise Reject("no such customer")

    registered(registry, refuse)
    Processor("default", "worker-1", handlers=registry).process(arrived(), lambda: None)
    row = ProcessedMessage.objects.get()
    write("default")
    assert FailureGroup.objects.get().fingerprint == row.fingerprint
    assert FailureGroup.objects.get().name == "Reject"


def test_buckets_are_those_that_the_alarm_adds_up() -> None:
    count()
    write("default")
    assert FailureCount.objects.get().minute % BUCKET == 0
