"""A rehearsal runs today's handler, tells what it did, and leaves nothing behind; what it could not undo it refuses."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.core import mail
from django.core.mail import EmailMessage, send_mail
from django.core.mail.backends import smtp
from django.db import connection, connections, transaction

from messaging import Reject, publish, signals
from messaging.exceptions import ConfigurationError
from messaging.handlers import handler, registry
from messaging.models import Attempt, AuditRecord, ProcessedMessage, PublishedMessage
from messaging.processing.rehearsing import Report, rehearse
from tests.admin_rows import incoming
from tests.app.models import Effect
from tests.settings import TEST_DB

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def _registry() -> Iterator[None]:
    before = {key: list(value) for key, value in registry._handlers.items()}
    yield
    registry._handlers.clear()
    registry._handlers.update(before)


def run(function: Callable[[Any], Any], row: Any = None, **options: Any) -> Report:
    registry._handlers.pop(("default", "rehearsed"), None)
    handler("rehearsed", **{"rehearse": True, **options})(function)
    row = row or incoming("failed", queue="rehearsed")
    before = ProcessedMessage.objects.filter(pk=row.pk).values().get()
    report = rehearse(ProcessedMessage.objects.get(pk=row.pk), row.round, 20)
    assert ProcessedMessage.objects.filter(pk=row.pk).values().get() == before, "its row stays what it is"
    for model in (Effect, PublishedMessage, Attempt, AuditRecord):
        assert not model.objects.exists()
    connections.close_all()
    return report


def test_says_what_would_be_done_and_takes_it_back(settings: Any) -> None:
    settings.MAILERS = {"default": {}}  # which Django 6.1 wants where mail is sent
    ran: list[Any] = []

    def work(message: Any) -> None:
        Effect.objects.create(key="a", value=message.payload["order"])
        Effect.objects.bulk_create([Effect(key="b"), Effect(key="c")])
        Effect.objects.filter(key__in="ab").update(value="x")
        Effect.objects.filter(key="c").delete()
        publish("orders.shipped", {"order": 1})
        publish("hello", "x", queue="hello")
        send_mail("s", "t", "from@example.com", ["to@example.com"])
        transaction.on_commit(lambda: ran.append("hook"))
        ran.append((message.attempt, message.round, message.headers, message.routing_key))

    signals.message_processed.connect(told := lambda **_: ran.append("signal"), weak=False)
    try:
        report = run(work)
    finally:
        signals.message_processed.disconnect(told)
    assert (report.state, report.error) == ("succeeded", "")
    assert report.handler.endswith("work")
    result = report.result or {}
    assert result["tables"] == {Effect._meta.db_table: 6}
    assert (result["rows"], result["messages"], result["mails"]) == (6, 2, 1)
    assert result["published"] == [["messaging", "orders.shipped"], ["hello", "hello"]]
    assert ran == [(1, 2, {"tenant": "acme"}, "orders.placed")]
    assert not mail.outbox


def test_an_error_is_told_with_its_traceback() -> None:
    def broken(message: Any) -> None:
        Effect.objects.create(key="a")
        raise ValueError("no such order")

    report = run(broken)
    assert (report.state, report.error) == ("failed", "ValueError: no such order")
    assert "in broken" in report.traceback
    assert run(lambda _: exec("raise SystemExit(3)")).state == "failed"

    def rejects(message: Any) -> None:
        raise Reject("never")

    assert run(rejects).state == "failed"


def test_what_could_not_be_committed_is_no_success() -> None:
    def swallows(message: Any) -> None:
        transaction.set_rollback(True)

    report = run(swallows)
    assert (report.state, "rolled back" in report.error) == ("failed", True)


def test_a_second_connection_is_refused_whatever_the_handler_makes_of_that() -> None:
    def in_a_thread(message: Any) -> None:
        thread = threading.Thread(target=lambda: Effect.objects.create(key="kept"))
        thread.start()
        thread.join()

    def by_itself(message: Any) -> None:
        try:
            connection.copy().connect()
        except Exception:  # noqa: BLE001
            return

    for function in (in_a_thread, by_itself):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(threading, "excepthook", lambda _: None)
            report = run(function)
        assert (report.state, "second connection" in report.error) == ("refused", True)


@pytest.mark.parametrize("statement", ["COMMIT", "  rollback ;", "SELECT 1; COMMIT", "BEGIN", "END"])
def test_ending_the_transaction_is_refused(statement: str) -> None:
    def ends(message: Any) -> None:
        Effect.objects.create(key="a")
        with connection.cursor() as cursor:
            try:
                cursor.execute(statement)
            except Exception:  # noqa: BLE001
                return

    report = run(ends)
    assert (report.state, "ends its transaction" in report.error) == ("refused", True)


def test_savepoints_are_none_of_that() -> None:
    def nested(message: Any) -> None:
        with transaction.atomic():
            Effect.objects.create(key="a")
        try:
            with transaction.atomic():
                raise ValueError
        except ValueError:
            pass

    assert (report := run(nested)).state == "succeeded"
    assert (report.result or {})["rows"] == 1


def test_a_batch_handler_gets_a_list_of_one_and_async_ones_stay_in_the_transaction() -> None:
    seen: list[Any] = []
    assert run(lambda messages: seen.append(len(messages)), batch=10).state == "succeeded"
    assert seen == [1]

    async def later(message: Any) -> None:
        await Effect.objects.acreate(key="a")

    assert (run(later).result or {})["rows"] == 1


def test_mail_by_a_backend_of_the_handlers_own_choice_is_kept_as_well() -> None:
    def work(message: Any) -> None:
        backend = smtp.EmailBackend.__new__(smtp.EmailBackend)  # never connected
        backend.send_messages([EmailMessage("s", "t", "from@example.com", ["to@example.com"])])

    assert (run(work).result or {})["mails"] == 1


def test_what_is_not_to_be_rehearsed_is_not_run() -> None:
    def never(message: Any) -> None:
        raise AssertionError("it ran")

    for row in (incoming("processed", queue="rehearsed"), incoming("failed", queue="unknown")):
        assert run(never, row).state == "refused"
    assert run(never, incoming("failed", queue="rehearsed", wire=b"damaged")).state == "refused"
    assert run(never, rehearse=False).state == "refused"
    row = incoming("failed", queue="rehearsed")
    assert rehearse(row, row.round + 1, 5).state == "refused"
    with pytest.raises(ConfigurationError, match="rolled back"):
        handler("rehearsed", rehearse=True, atomic=False)
    with pytest.raises(ConfigurationError, match="rehearse"):
        handler("rehearsed", rehearse="yes")  # type: ignore[arg-type]


@pytest.mark.skipif(TEST_DB == "sqlite", reason="nothing waits for a lock of its own there")
def test_a_lock_is_not_waited_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    from messaging.processing import rehearsing

    monkeypatch.setattr(rehearsing, "LOCK_WAIT", 1.0)
    table = Effect._meta.db_table
    other = connection.copy()
    Effect.objects.create(key="a")
    other.set_autocommit(False)
    try:
        with other.cursor() as cursor:
            cursor.execute(f"UPDATE {table} SET value = 'held'")

        handler("rehearsed", rehearse=True)(lambda _: Effect.objects.update(value="x"))
        row = incoming("failed", queue="rehearsed")
        report = rehearse(ProcessedMessage.objects.get(pk=row.pk), row.round, 20)
        assert (report.state, "lock" in report.error.lower()) == ("failed", True)
    finally:
        other.rollback()
        other.close()
