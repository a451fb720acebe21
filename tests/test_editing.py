"""Editing a failed message: a copy with another content takes its place, in one transaction or not at all."""

from __future__ import annotations

import json
from typing import Any

import pytest

from messaging import operations
from messaging.exceptions import PayloadError
from messaging.models import AuditRecord, ProcessedMessage, PublishedMessage
from messaging.operations import Operator
from messaging.operations.editing import Edit, changed_headers, content_of, difference, is_locked
from messaging.processing.inbox import Verdict, gate
from messaging.processing.recognition import is_ours
from messaging.publishing.rows import seal
from messaging.wire.bodies import pack_body
from messaging.wire.envelope import Envelope
from messaging.wire.properties import Properties
from tests.admin_rows import incoming, outgoing

pytestmark = pytest.mark.django_db
BY = Operator(name="anna", reason="the amount was wrong", details="-1\n+2")


def change(row: Any, text: str = '{"order": 18}', **headers: Any) -> Edit:
    return Edit(text, headers, (), row.round)


def edit(row: Any, how: Edit | None = None) -> Any:
    return operations.edit(ProcessedMessage.objects.filter(pk=row.pk), how or change(row), BY)


def failed(properties: dict[str, Any] | None = None, body: bytes = b'{"order": 17}', **values: Any) -> Any:
    given = {"message_id": "m-1", "content_type": "application/json", **(properties or {})}
    envelope = Envelope("messaging", "orders.placed", Properties.build(**given), body)
    columns = {"wire": envelope.to_wire(), "content_type": given["content_type"] or "", "message_id": "m-1"}
    return incoming("failed", body=body, **{**columns, **values})


def test_a_copy_takes_its_place_and_it_is_superseded() -> None:
    row = failed({"headers": {"tenant": "acme", "n": 1}, "correlation_id": "c-1", "type": "Order"})
    outcome = edit(row, change(row, tenant="other"))
    row.refresh_from_db()
    [copy] = ProcessedMessage.objects.exclude(pk=row.pk)
    assert (outcome.done, outcome.created) == ([row.pk], [copy.pk])
    assert (row.state, row.round, row.body) == ("superseded", 2, '{"order": 17}')
    assert row.discarded_at is not None
    assert (copy.state, copy.edited_from_id, copy.queue, copy.body) == ("requeued", row.pk, "billing", '{"order": 18}')
    assert copy.message_id not in ("", "m-1")
    assert (copy.exchange, copy.routing_key, copy.correlation_id, copy.type) == (
        "messaging", "orders.placed", "c-1", "Order",
    )  # fmt: skip
    assert copy.headers == {"tenant": "other", "n": 1}
    [sent] = PublishedMessage.objects.all()
    assert (sent.state, sent.inbox_id, sent.queue, sent.round) == ("pending", copy.pk, "billing", copy.round)
    [record] = AuditRecord.objects.all()
    assert (record.action, record.message_pk, record.state_before, record.state_after) == (
        "edit", row.pk, "failed", "superseded",
    )  # fmt: skip
    assert (record.username, record.details) == ("anna", "-1\n+2")


def test_what_is_sent_runs_as_the_copy_and_old_copies_of_the_other_do_not() -> None:
    row = failed()
    old = row.envelope()
    edit(row)
    row.refresh_from_db()
    copy = ProcessedMessage.objects.get(edited_from=row)
    exchange, key, properties, body = seal(PublishedMessage.objects.get())
    assert (exchange, key) == ("", "billing")
    arrived = Envelope.received(exchange, key, Properties.decode(properties), body, "billing")
    assert (arrived.message_id, arrived.round, arrived.key) == (copy.message_id, 2, copy.key)
    assert (arrived.exchange, arrived.routing_key, arrived.body) == ("messaging", "orders.placed", b'{"order": 18}')
    assert is_ours([copy], arrived)
    assert gate(copy, arrived) is Verdict.RUN
    row.digest, row.headers_digest = old.digest, None
    assert gate(row, old) is Verdict.DONE


@pytest.mark.parametrize("state", sorted(set(ProcessedMessage.State) - {"failed"}))
def test_only_what_is_failed_is_edited(state: str) -> None:
    row = incoming(state)
    outcome = edit(row)
    assert not outcome.done
    assert sum(map(len, outcome.skipped.values())) == 1
    assert (ProcessedMessage.objects.count(), PublishedMessage.objects.count()) == (1, 0)
    assert not AuditRecord.objects.exists()


def test_what_went_round_since_it_was_read_is_left_alone() -> None:
    row = failed()
    how = change(row)
    ProcessedMessage.objects.update(round=3)
    assert not edit(row, how).done
    assert edit(row, how._replace(seen=3)).done
    assert not edit(row, how._replace(seen=3)).done, "a second click"
    assert ProcessedMessage.objects.count() == 2


def test_a_failed_round_of_it_is_cancelled() -> None:
    row = failed()
    left = outgoing("failed", inbox=row, queue="billing", message_id="m-1", exchange="")
    edit(row)
    left.refresh_from_db()
    assert left.state == "discarded"


def test_all_or_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    row = failed()
    monkeypatch.setattr(operations, "add_round", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        edit(row)
    row.refresh_from_db()
    assert row.state == "failed"
    assert ProcessedMessage.objects.count() == 1


def test_headers_that_stay_keep_their_bytes_and_those_of_identity_are_not_offered() -> None:
    from decimal import Decimal

    headers = {
        "tenant": "acme", "amount": Decimal("1.50"), "raw": b"\xff", "traceparent": "00-1", "B3": "x",
        "x-messaging-causation-id": "m-0", "x-death": [], "CC": ["a"],
    }  # fmt: skip
    row = failed({"headers": headers})
    content = content_of(row)
    assert content.headers == {"tenant": "acme"}
    assert set(content.locked) == {"amount", "raw", "traceparent", "B3", "x-messaging-causation-id"}
    edit(row, Edit('{"order": 17}', {"new": 1}, ("tenant",), row.round))
    found = ProcessedMessage.objects.get(edited_from=row).envelope().properties.headers
    assert found == {name: headers[name] for name in content.locked} | {"new": 1}


@pytest.mark.parametrize("name", ["traceparent", "TraceState", "x-messaging-round", "X-B3-TraceId", "CC", "x-death"])
def test_names_of_identity_and_tracing_are_locked(name: str) -> None:
    assert is_locked(name)
    assert not is_locked(f"my-{name}")


@pytest.mark.parametrize(
    ("properties", "body", "why"),
    [
        ({"content_encoding": "gzip"}, b"\x1f\x8b", "compressed"),
        ({"content_encoding": "aes128"}, b"{}", "encrypted"),
        ({"content_type": "application/octet-stream"}, b"\xff\xfe\x00", "no text"),
        ({"content_type": "text/plain"}, b"a\r\nb", "line ends"),
        ({"content_type": "text/plain; charset=klingon"}, b"a", "no text"),
        ({}, b"1" * (512 * 1024 + 1), "too large"),
    ],
)
def test_what_cannot_be_edited_says_why(properties: dict[str, Any], body: bytes, why: str) -> None:
    with pytest.raises(PayloadError, match=why):
        content_of(failed(properties, body))


def test_text_is_written_in_the_character_set_that_it_was_read_in() -> None:
    row = failed({"content_type": "text/plain; charset=latin-1"}, "café".encode("latin-1"))
    assert content_of(row).text == "café"
    edit(row, change(row, "thé"))
    copy = ProcessedMessage.objects.get(edited_from=row)
    assert copy.raw_body == "thé".encode("latin-1")
    assert (copy.body, copy.body_encoding) == pack_body("thé".encode("latin-1"))
    with pytest.raises(PayloadError):
        edit(failed({"content_type": "text/plain; charset=latin-1"}, b"a", key=None), Edit("日", {}, (), 1))


def test_the_difference_has_both_and_types_are_told_apart() -> None:
    content = content_of(failed({"headers": {"n": 1, "gone": "x"}}))
    text = difference(content, '{"order": 18}', {"n": 1.0})
    assert '-{"order": 17}' in text
    assert '+{"order": 18}' in text
    assert '-"gone": "x"' in text
    assert changed_headers({"n": 1, "b": True, "gone": "x"}, {"n": 1.0, "b": True, "new": None}) == (
        {"n": 1.0, "new": None}, {"gone"},
    )  # fmt: skip
    assert difference(content, content.text, content.headers) == ""
    assert json.dumps(content.headers)
