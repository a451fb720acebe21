"""The pages of stored operations: what they show, who may end one, and that a GET changes nothing."""

from __future__ import annotations

import csv
import json

import pytest
from django.test import Client

from messaging.admin import exports
from messaging.models import AuditRecord, Operation, ProcessedMessage
from messaging.operations import Operator, stored
from messaging.operations.stored import run_waiting
from tests.admin_rows import INCOMING, OUTGOING, incoming, outgoing, staff

pytestmark = pytest.mark.django_db
OPERATIONS = "/admin/messaging/operation/"


def make(count: int = 3, *, try_one: bool = False) -> Operation:
    for _ in range(count):
        incoming("failed")
    rows = ProcessedMessage.objects.filter(state="failed")
    by = Operator(name="anna", reason="broker was away")
    return stored.store(rows, "requeue", by, scope="queue: billing", try_one=try_one)


def page(client: Client, operation: Operation) -> str:
    found = client.get(f"{OPERATIONS}{operation.pk}/change/")
    assert found.status_code == 200
    return found.content.decode()


def test_the_list_and_the_page_tell_how_far_it_is(admin_client: Client) -> None:
    operation = make()
    assert "0 / 3" in admin_client.get(OPERATIONS).content.decode()
    gone = ProcessedMessage.objects.order_by("pk").first()
    assert gone is not None
    gone.delete()
    run_waiting("default", "worker:1")
    text = page(admin_client, operation)
    for words in ("3 / 3", "Requeue", "queue: billing", "broker was away", "anna", "worker:1", "it is gone"):
        assert words in text
    assert "Cancel the rest" not in text


def test_one_that_was_tried_is_linked_and_goes_on_when_told(admin_client: Client) -> None:
    operation = make(try_one=True)
    run_waiting("default", "w")
    tried = ProcessedMessage.objects.get(state="requeued")
    assert f'href="/admin/messaging/processedmessage/{tried.pk}/change/"' in page(admin_client, operation)
    assert admin_client.get(f"{OPERATIONS}{operation.pk}/go-on/").status_code == 302
    assert run_waiting("default", "w") == 0, "a GET tells nothing"
    admin_client.post(f"{OPERATIONS}{operation.pk}/go-on/")
    run_waiting("default", "w")
    assert ProcessedMessage.objects.filter(state="requeued").count() == 3
    again = admin_client.post(f"{OPERATIONS}{operation.pk}/go-on/", follow=True).content.decode()
    assert "is not waiting for your confirmation" in again


def test_the_list_is_filtered_by_state(admin_client: Client) -> None:
    make(1)
    assert "?state=waiting" in admin_client.get(OPERATIONS).content.decode()
    assert "0 / 1" in admin_client.get(f"{OPERATIONS}?state=waiting").content.decode()
    assert "0 / 1" not in admin_client.get(f"{OPERATIONS}?state=done").content.decode()


def test_cancelling_ends_it_and_is_said(admin_client: Client) -> None:
    operation = make()
    admin_client.get(f"{OPERATIONS}{operation.pk}/cancel/")
    assert Operation.objects.get().state == "waiting"
    answer = admin_client.post(f"{OPERATIONS}{operation.pk}/cancel/", follow=True).content.decode()
    assert "It is cancelled." in answer
    assert Operation.objects.get().state == "cancelled"
    assert run_waiting("default", "w") == 0
    assert "has ended already" in admin_client.post(f"{OPERATIONS}{operation.pk}/cancel/", follow=True).content.decode()


def test_who_may_see_messages_sees_it_and_who_has_its_verb_may_end_it() -> None:
    operation = make()
    reader = staff("view_processedmessage", name="reader")
    assert "Cancel the rest" not in page(reader, operation)
    assert reader.post(f"{OPERATIONS}{operation.pk}/cancel/").status_code == 403
    stranger = staff("view_worker", name="stranger")
    assert stranger.get(f"{OPERATIONS}{operation.pk}/change/").status_code == 403
    able = staff("view_processedmessage", "requeue_processedmessage", name="able")
    assert "Cancel the rest" in page(able, operation)
    assert able.post(f"{OPERATIONS}{operation.pk}/cancel/").status_code == 302
    assert Operation.objects.get().state == "cancelled"


def test_the_audit_leads_to_it(admin_client: Client) -> None:
    operation = make()
    assert AuditRecord.objects.get().kind == "operation"
    text = admin_client.get("/admin/messaging/auditrecord/").content.decode()
    assert f'href="/admin/messaging/operation/{operation.pk}/change/"' in text


def test_its_counts_lead_to_the_messages_that_it_dealt_with(admin_client: Client) -> None:
    operation = make()
    first, second, third = ProcessedMessage.objects.order_by("pk")
    first.delete()
    ProcessedMessage.objects.filter(pk=second.pk).update(state="discarded")
    run_waiting("default", "w")
    other = outgoing("published", pk=third.pk)
    text = page(admin_client, operation)
    for result, wanted in (("done", [third.pk]), ("skipped", [second.pk]), ("failed", [])):
        link = f"{INCOMING}?operation={operation.pk}-{result}"
        assert (f'href="{link}"' in text) == (result != "failed")
        listed = admin_client.get(link)
        assert [row.pk for row in listed.context["cl"].result_list] == wanted, result
        assert f"#{operation.pk} · {result}" in listed.content.decode()
    listed = admin_client.get(f"{INCOMING}?operation={operation.pk}&before={third.pk}")
    assert [row.pk for row in listed.context["cl"].result_list] == [second.pk]
    raw = b"".join(admin_client.post(f"{INCOMING}export/?operation={operation.pk}", {"format": "json"}))  # type: ignore[arg-type]
    assert [one["id"] for one in json.loads(raw)] == [third.pk, second.pk]
    listed = admin_client.get(f"{OUTGOING}?operation={operation.pk}-done")
    assert other.pk not in [row.pk for row in listed.context["cl"].result_list], "those of another kind"
    stranger = staff("view_publishedmessage", name="stranger")
    assert "?operation=" not in page(stranger, operation)
    for nonsense in ("x", "1-x", "-done", "1-", "9" * 30):
        assert admin_client.get(f"{INCOMING}?operation={nonsense}").status_code == 200


def test_its_result_is_a_file(admin_client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exports, "BATCH", 2)
    operation = make(5)
    rows = list(ProcessedMessage.objects.order_by("pk"))
    rows[0].delete()
    run_waiting("default", "w")
    address = f"{OPERATIONS}{operation.pk}/result/"
    assert admin_client.get(address).status_code == 302
    assert f'action="{address}"' in page(admin_client, operation)
    lines = b"".join(admin_client.post(address)).decode().splitlines()  # type: ignore[arg-type]
    found = list(csv.DictReader(lines))
    assert [(one["row"], one["result"]) for one in found[1:]] == [(str(row.pk), "done") for row in rows[1:]]
    assert (found[0]["result"], found[0]["note"], found[0]["message_id"]) == ("skipped", "it is gone", "")
    assert found[1]["message_id"] == rows[1].message_id
    assert AuditRecord.objects.filter(action="export", kind="operation", message_pk=operation.pk).count() == 1
    stranger = staff("view_publishedmessage", name="stranger")
    assert address not in page(stranger, operation)
    assert stranger.post(address).status_code == 403


@pytest.mark.parametrize("key", ["0", "999999999999999999999", "x"])
def test_another_number_is_no_error(admin_client: Client, key: str) -> None:
    assert admin_client.get(f"{OPERATIONS}{key}/change/").status_code == 302


def test_an_empty_list_says_what_comes_here(admin_client: Client) -> None:
    assert "No operation was stored. What is done" in admin_client.get(OPERATIONS).content.decode()
