"""Modes 36 to 44: queues and messages of others, clocks that are wrong, operators in a hurry."""

from __future__ import annotations

import struct
import threading
import time

import pika
import pytest
from django.db import connection

from messaging import operations
from messaging.models import ProcessedMessage, PublishedMessage
from messaging.wire.fields import encode_table
from tests.admin_rows import incoming
from tests.failures.journal import assert_told_once, lines_of
from tests.failures.scene import HANDLERS, channel, consume, effects, processed, ready, send, send_raw
from tests.site import Site, SiteFactory
from tests.waiting import wait_until

CLOCK_HANDLERS = """
import os, time
from pathlib import Path
from messaging import handler

@handler("work", "work.#", backoff=3)
def work(message):
    (Path(os.environ["DATA_DIR"]) / f"ran-{message.payload}-{message.attempt}").write_text(str(time.monotonic()))
    if message.payload == "flaky" and message.attempt == 1:
        raise ValueError("on purpose")

@handler("long", "long.#", backoff=3, atomic=False)
def long(message):
    work(message)
"""
SHIFT = """
CREATE SCHEMA shifted;
CREATE FUNCTION shifted.statement_timestamp() RETURNS timestamptz LANGUAGE sql STABLE
AS $$ SELECT pg_catalog.statement_timestamp() + interval '{hours} hours' $$;
ALTER DATABASE {name} SET search_path = shifted, pg_catalog, public;
"""
UNSHIFTED = """SELECT COUNT(*) FROM information_schema.columns
WHERE table_schema = 'public' AND column_default = 'pg_catalog.statement_timestamp()'"""
# A default is bound to its function when it is made, so those of the columns are made again.
SHIFT_DEFAULTS = """
DO $$ DECLARE place record; BEGIN
FOR place IN SELECT table_name, column_name FROM information_schema.columns
             WHERE table_schema = 'public' AND column_default = 'pg_catalog.statement_timestamp()' LOOP
    EXECUTE format('ALTER TABLE %I ALTER %I SET DEFAULT statement_timestamp()', place.table_name, place.column_name);
END LOOP; END $$;
"""


def failed(site: Site, *texts: str) -> None:
    """Wait until exactly these messages rest as failed, and that the queue is empty: they were acknowledged.

    Several workers record them in any order: each text is looked for in an error of its own, the longest text first.
    """
    query = "SELECT error FROM messaging_processedmessage WHERE state = 'failed'"
    wait_until(lambda: site.states().get("failed", 0) == len(texts), what=f"{len(texts)} failed messages")
    errors = [error for (error,) in site.sql(query)]
    for text in sorted(texts, key=len, reverse=True):
        found = next((error for error in errors if text in error), None)
        assert found is not None, f"{text!r} is in none of {errors}"
        errors.remove(found)
    assert not errors
    assert ready(site, "work") == ready(site, "work.dead") == 0


@pytest.mark.mode(36)
def test_a_queue_with_other_arguments_is_used_and_named_once(site: SiteFactory) -> None:
    made = site(db="postgres", handlers=HANDLERS)
    arguments = {"x-queue-type": "quorum", "x-message-ttl": 3_600_000}
    with channel(made) as broker:
        broker.queue_declare("work", durable=True, arguments=arguments)
    running = consume(made)
    send(made, "work", "first")
    processed(made, 1)
    with channel(made) as broker:
        broker.queue_declare("work", durable=True, arguments=arguments)  # refused, were it another one now
    assert running.stop() == 0
    assert_told_once(running, besides=['queue "work"'])
    assert sum('queue "work"' in line.text for line in lines_of(running)) == 1, running.output


@pytest.mark.mode(37)
def test_a_malformed_body_is_a_failed_row(site: SiteFactory) -> None:
    made = site(db="postgres", handlers=HANDLERS)
    running = consume(made)
    send(made, "work", "cut off", body=b'{"do": ')
    send(made, "work", "no text", body=b"\xff\xfe", content_type="text/plain")
    failed(made, "JSON", "")
    send(made, "work", "fine")
    wait_until(lambda: made.states().get("processed") == 1, what="the message behind them")
    assert running.stop() == 0
    assert_told_once(running, besides=["failed and waits for an operator"])


@pytest.mark.mode(38)
def test_a_message_without_headers_or_id_is_recorded(site: SiteFactory, any_db: str) -> None:
    made = site(db=any_db, handlers=HANDLERS)
    running = consume(made)
    send(made, "work", None, None, body=b"{}")
    processed(made, 2)
    assert effects(made) == (2, 2)
    assert running.stop() == 0
    assert_told_once(running)


@pytest.mark.mode(39)
def test_a_message_that_no_handler_knows_is_parked_and_can_be_requeued(site: SiteFactory) -> None:
    made = site(db="postgres", handlers=HANDLERS, options={"RETRY": {"max_attempts": 2}})
    made.manage("topology")
    with channel(made) as broker:
        broker.queue_bind("work", "messaging", "unheard.of")
        json = pika.BasicProperties(content_type="application/json")
        broker.basic_publish("messaging", "unheard.of", b"{}", json, mandatory=True)
    running = consume(made)
    failed(made, "No handler of the queue 'work' takes the routing key 'unheard.of'")
    assert running.stop() == 0
    assert_told_once(running, besides=["failed and waits for an operator: .*add a handler", "attempt 1 failed"])
    source = made.folder / "extra" / "handlers.py"
    source.write_text(source.read_text().replace('"work", "work.#"', '"work", "work.#", "unheard.of"'))
    made.manage("requeue_messages", "--queue", "work")
    made.manage("consume", "--burst")
    processed(made, 1)


@pytest.mark.mode(39)
def test_a_key_that_only_a_newer_version_handles_waits_for_it(site: SiteFactory) -> None:
    handlers = HANDLERS.replace('"work.#", backoff=0.1', '"work.#", backoff=3')
    made = site(db="postgres", handlers=handlers, options={"RETRY": {"max_attempts": 1000}})
    old = consume(made, "--no-reload")
    with channel(made) as broker:
        broker.queue_bind("work", "messaging", "brand.new")
        json = pika.BasicProperties(content_type="application/json", message_id="new")
        broker.basic_publish("messaging", "brand.new", b"{}", json, mandatory=True)
    wait_until(lambda: made.states() == {"retrying": 1}, what="the first retry")
    assert made.value("SELECT MIN(number) FROM messaging_attempt") == 1
    # One statement wrote both, however late this is read.
    pause = made.value("SELECT publish_at - created_at FROM messaging_publishedmessage ORDER BY id LIMIT 1")
    assert 2 < pause.total_seconds() < 4, "the shortest back-off of the queue's handlers"
    source = made.folder / "extra" / "handlers.py"
    source.write_text(source.read_text().replace('"work", "work.#"', '"work", "work.#", "brand.new"'))
    new = consume(made, "--no-reload")
    assert old.stop() == 0
    processed(made, 1)
    assert new.stop() == 0


@pytest.mark.mode(40)
@pytest.mark.parametrize(
    "field",
    [b"T" + struct.pack(">Q", 1_700_000_000_000), pytest.param(b"T" + b"\xff" * 8, marks=pytest.mark.slow)],
    ids=["milliseconds", "beyond time"],
)
def test_a_header_that_pika_cannot_decode_stops_nothing(site: SiteFactory, field: bytes) -> None:
    made = site(db="postgres", handlers=HANDLERS)
    made.manage("topology")
    send_raw(made, "work", b"\x04\xff\x00ab" + field + encode_table({"after": 1}))
    running = consume(made)
    wait_until(lambda: sum(made.states().values()) == 1, what="a row for it")
    send(made, "work", "behind")
    wait_until(lambda: sum(made.states().values()) == 2, what="the message behind it")
    assert set(made.states()) <= {"processed", "failed"}
    wait_until(lambda: ready(made, "work") == 0, what="an empty queue")
    assert running.stop() == 0
    assert_told_once(running, besides=["failed and waits for an operator"])


@pytest.mark.mode(42)
@pytest.mark.parametrize("hours", [1, -1])
@pytest.mark.slow
def test_a_clock_that_is_wrong_by_an_hour_neither_loses_nor_hurries_a_retry(site: SiteFactory, hours: int) -> None:
    """The database's clock is moved, which every process here is then wrong against."""
    made = site(db="postgres", handlers=CLOCK_HANDLERS)
    made.sql(SHIFT.format(hours=hours, name=made.database_url.rpartition("/")[2]))
    apart = made.value("SELECT round(extract(epoch FROM statement_timestamp() - clock_timestamp()) / 3600)")
    assert apart == hours
    assert made.value(UNSHIFTED) > 0
    made.sql(SHIFT_DEFAULTS)
    assert made.value(UNSHIFTED) == 0
    running = consume(made)
    begun = time.monotonic()
    made.shell(
        "from messaging import publish\n"
        "publish('work.a', 'flaky'); publish('long.a', 'flaky'); publish('work.a', 'later', delay=4)"
    )
    processed(made, 3)

    def ran(name: str) -> float:
        return float((made.folder / f"ran-{name}").read_text())

    assert 2.5 < ran("flaky-2") - ran("flaky-1") < 600
    assert ran("later-1") - begun > 4
    assert running.stop() == 0
    assert_told_once(running, besides=["attempt 1 failed and will be repeated: .*on purpose"])


@pytest.mark.mode(44)
@pytest.mark.django_db(transaction=True)
def test_two_requeues_at_once_are_one_new_run() -> None:
    row = incoming("failed", attempts=8)
    both, outcomes = threading.Barrier(2), []

    def click() -> None:
        try:
            both.wait(120)
            outcomes.append(
                operations.requeue(ProcessedMessage.objects.filter(pk=row.pk), operations.Operator(name="twice"))
            )
        finally:
            connection.close()

    threads = [threading.Thread(target=click) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert sorted(len(outcome.done) for outcome in outcomes) == [0, 1]
    assert [outcome.skipped_count for outcome in outcomes if not outcome.done] == [1]
    assert PublishedMessage.objects.filter(inbox=row).count() == 1
    row.refresh_from_db()
    assert (row.state, row.round) == ("requeued", 2)


@pytest.mark.mode(44)
def test_requeueing_what_has_succeeded_since_runs_nothing(site: SiteFactory, any_db: str) -> None:
    made = site(db=any_db, handlers=HANDLERS)
    made.manage("topology")
    send(made, "work", "once")
    made.manage("consume", "--burst")
    processed(made, 1)
    requeue = (
        "from messaging.operations import Operator, requeue; from messaging.models import ProcessedMessage\n"
        "print(len(requeue(ProcessedMessage.objects.all(), Operator(name='test')).done))"
    )
    assert made.shell(requeue).split()[-1] == "0"
    made.manage("consume", "--burst")
    assert (effects(made), made.states("published")) == ((1, 1), {})
