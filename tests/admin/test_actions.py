"""What operators can do in the admin: every verb × state × permission, from the list and from the page."""

from __future__ import annotations

import uuid
from datetime import timedelta
from typing import Any

import pytest
from django.contrib.admin.models import LogEntry
from django.test import Client
from django.utils import timezone

from messaging.admin import actions, paginator
from messaging.admin.verbs import INCOMING as INCOMING_VERBS
from messaging.admin.verbs import OUTGOING as OUTGOING_VERBS
from messaging.db.clock import Now
from messaging.models import AuditRecord, Operation, ProcessedMessage, PublishedMessage
from messaging.operations import stored
from messaging.operations.stored import run_waiting
from messaging.publishing.rounds import LONG
from tests.admin_rows import INCOMING, OUTGOING, incoming, outgoing, staff

pytestmark = pytest.mark.django_db

AFTER = {
    "in": {"requeue": "requeued", "discard": "discarded", "restore": "failed"},
    "out": {"publish": "pending", "replay": "pending", "discard": "discarded"},
}
EVERY = [
    *(("in", verb, state) for verb in INCOMING_VERBS for state in ProcessedMessage.State.values),
    *(("out", verb, state) for verb in OUTGOING_VERBS for state in PublishedMessage.State.values),
]
PERMISSIONS = {
    "in": {
        "requeue": "requeue_processedmessage",
        "discard": "discard_processedmessage",
        "restore": "discard_processedmessage",
    },
    "out": {
        "publish": "publish_publishedmessage",
        "copy": "publish_publishedmessage",
        "replay": "replay_publishedmessage",
        "discard": "discard_publishedmessage",
        "restore": "discard_publishedmessage",
    },
}
FITTING = {"copy": "published", "replay": "published", "restore": "discarded"}


def make(side: str, state: str) -> tuple[Any, str]:
    if side == "in" and state == "processing":  # by a worker that lives
        row = incoming(state, lease_token=uuid.uuid4(), leased_until=Now() + timedelta(seconds=60))
    else:
        row = incoming(state) if side == "in" else outgoing(state)
    if side == "in" and state == "requeued":  # a moment ago
        outgoing("pending", inbox=row, message_id=row.message_id, queue=row.queue, exchange="")
    return row, INCOMING if side == "in" else OUTGOING


def viewer(side: str) -> str:
    return "view_processedmessage" if side == "in" else "view_publishedmessage"


@pytest.mark.parametrize("verb", INCOMING_VERBS[:2], ids=lambda verb: verb.name)
def test_what_is_in_processing_can_be_taken_once_its_worker_is_gone(admin_client: Client, verb: Any) -> None:
    rows = [
        incoming("processing"),
        incoming("processing", lease_token=uuid.uuid4(), leased_until=Now() - timedelta(seconds=1)),
        make("in", "processing")[0],
    ]
    found = [f"/{verb.name}/" in admin_client.get(f"{INCOMING}{row.pk}/change/").content.decode() for row in rows]
    data = {"action": verb.name, "_selected_action": [row.pk for row in rows], "post": "yes"}
    page = admin_client.post(INCOMING, data, follow=True).content.decode()
    for row in rows:
        row.refresh_from_db()
    after = AFTER["in"][verb.name]
    assert [row.state for row in rows] == [after, after, "processing"]
    assert "1 message was skipped: it is" in page
    assert found == [True, True, False]


@pytest.mark.parametrize(("side", "verb", "state"), EVERY, ids=lambda value: getattr(value, "name", value))
def test_a_verb_acts_on_the_right_states_and_says_what_it_skips(
    admin_client: Client, side: str, verb: Any, state: str
) -> None:
    row, base = make(side, state)
    data = {"action": verb.name, "_selected_action": row.pk, "post": "yes", "reason": "because"}
    page = admin_client.post(base, data, follow=True).content.decode()
    row.refresh_from_db()
    if verb.states is None or state in verb.states:
        assert AuditRecord.objects.get().reason == "because"
        assert LogEntry.objects.get().object_id == str(row.pk)
        expected = state if verb.name == "copy" else AFTER[side].get(verb.name)
        if (side, verb.name) == ("out", "restore"):
            expected = "draft"
        assert row.state == expected
    else:
        assert row.state == state
        assert "1 message was skipped: it is" in page
        assert not AuditRecord.objects.exists()
        assert not LogEntry.objects.exists()


@pytest.mark.parametrize(("side", "verb", "state"), EVERY, ids=lambda value: getattr(value, "name", value))
def test_a_page_offers_a_verb_only_where_it_acts(admin_client: Client, side: str, verb: Any, state: str) -> None:
    row, base = make(side, state)
    page = admin_client.get(f"{base}{row.pk}/change/").content.decode()
    is_form = side == "out" and state == "draft"
    offered = f'href="{base}{row.pk}/{verb.name}/"' in page
    if is_form:
        assert offered == (verb.name == "discard")
    else:
        assert offered == (verb.states is None or state in verb.states)


@pytest.mark.parametrize(("side", "name"), [(side, name) for side, verbs in PERMISSIONS.items() for name in verbs])
def test_without_its_permission_a_verb_is_neither_offered_nor_done(side: str, name: str) -> None:
    row, base = make(side, FITTING.get(name, "failed"))
    client = staff(viewer(side))
    page = client.get(f"{base}{row.pk}/change/").content.decode()
    assert f"/{row.pk}/{name}/" not in page
    assert client.get(f"{base}{row.pk}/{name}/").status_code == 403
    assert client.post(f"{base}{row.pk}/{name}/").status_code == 403
    client.post(base, {"action": name, "_selected_action": row.pk, "post": "yes"})
    assert not AuditRecord.objects.exists()
    before = row.state
    row.refresh_from_db()
    assert row.state == before


@pytest.mark.parametrize(("side", "name"), [(side, name) for side, verbs in PERMISSIONS.items() for name in verbs])
def test_its_own_permission_is_enough_for_a_verb(side: str, name: str) -> None:
    row, base = make(side, FITTING.get(name, "failed"))
    client = staff(viewer(side), PERMISSIONS[side][name])
    assert f"/{row.pk}/{name}/" in client.get(f"{base}{row.pk}/change/").content.decode()
    assert f'value="{name}"' in client.get(base).content.decode()
    response = client.post(f"{base}{row.pk}/{name}/", {"reason": "why"})
    assert response.headers["Location"] == f"{base}{row.pk}/change/"
    assert AuditRecord.objects.get().username == "olga"


def test_a_verbs_permission_without_the_right_to_view_is_not_enough() -> None:
    row = incoming()
    client = staff("requeue_processedmessage")
    assert client.post(f"{INCOMING}{row.pk}/requeue/").status_code == 403
    assert client.post(INCOMING, {"action": "requeue", "_selected_action": row.pk, "post": "y"}).status_code == 403


def test_nothing_happens_on_get(admin_client: Client) -> None:
    row = incoming()
    page = admin_client.get(f"{INCOMING}{row.pk}/requeue/").content.decode()
    assert "1 message is affected." in page
    row.refresh_from_db()
    assert row.state == "failed"


@pytest.mark.mode(44)
def test_a_double_click_requeues_once(admin_client: Client) -> None:
    row = incoming(attempts=8)
    pages = [admin_client.post(f"{INCOMING}{row.pk}/requeue/", follow=True).content.decode() for _ in range(2)]
    assert "1 message was requeued." in pages[0]
    assert "1 message was skipped: it is requeued." in pages[1]
    out = PublishedMessage.objects.get(inbox=row)
    assert (out.state, out.queue, out.round) == ("pending", "billing", 2)
    row.refresh_from_db()
    assert (row.round, row.attempts) == (2, 0)


def test_what_was_requeued_is_offered_again_once_it_has_been_away(admin_client: Client) -> None:
    row, _ = make("in", "requeued")
    out, page = PublishedMessage.objects.filter(inbox=row), f"{INCOMING}{row.pk}/change/"
    assert f"{INCOMING}{row.pk}/requeue/" not in admin_client.get(page).content.decode()
    assert "1 — it is requeued" in admin_client.get(f"{INCOMING}{row.pk}/requeue/").content.decode()
    assert f"{INCOMING}{row.pk}/discard/" not in admin_client.get(page).content.decode()
    out.update(state="published", published_at=Now() - timedelta(seconds=60))
    assert f"{INCOMING}{row.pk}/requeue/" not in admin_client.get(page).content.decode()
    assert f"{INCOMING}{row.pk}/discard/" in admin_client.get(page).content.decode()
    out.update(published_at=Now() - timedelta(seconds=LONG + 60))
    assert f"{INCOMING}{row.pk}/requeue/" in admin_client.get(page).content.decode()
    assert "1 message is affected." in admin_client.get(f"{INCOMING}{row.pk}/requeue/").content.decode()
    done = admin_client.post(f"{INCOMING}{row.pk}/requeue/", follow=True).content.decode()
    assert "1 message was requeued." in done


def test_what_was_never_received_cannot_be_requeued(admin_client: Client) -> None:
    row = incoming(wire=None)
    page = admin_client.get(f"{INCOMING}{row.pk}/requeue/").content.decode()
    assert "its content was never received" in page
    assert 'name="reason"' not in page
    admin_client.post(f"{INCOMING}{row.pk}/requeue/")
    row.refresh_from_db()
    assert row.state == "failed"


def test_a_round_is_acted_upon_through_its_incoming_message_only(admin_client: Client) -> None:
    row = incoming()
    out = outgoing("pending", inbox=row)
    page = admin_client.post(f"{OUTGOING}{out.pk}/discard/", follow=True).content.decode()
    assert "it is a round of an incoming message" in page
    assert "/discard/" not in page
    out.refresh_from_db()
    assert out.state == "pending"


def test_the_confirmation_repeats_the_selection_and_counts_what_is_skipped(admin_client: Client) -> None:
    rows = [incoming("failed"), incoming("failed"), incoming("processed"), incoming("discarded")]
    data = {"action": "requeue", "_selected_action": [row.pk for row in rows], "index": "0"}
    page = admin_client.post(INCOMING, data).content.decode()
    assert "2 messages are affected." in page
    assert "1 — it is processed" in page
    assert page.count('name="_selected_action"') == 4
    assert "select_across" not in page


def test_all_that_match_are_taken_without_naming_each_but_nothing_that_came_later(admin_client: Client) -> None:
    for _ in range(150):
        incoming("failed")
    incoming("failed", queue="mail")
    data = {"action": "requeue", "_selected_action": "1", "select_across": "1", "index": "0"}
    page = admin_client.post(f"{INCOMING}?queue=billing", data)
    assert "150 messages are affected." in page.content.decode()
    assert page.content.decode().count('name="_selected_action"') == 1
    assert f'href="{INCOMING}?queue=billing" class="closelink"' in page.content.decode()
    fields = dict(page.context["fields"])
    late = incoming("failed")
    done = admin_client.post(f"{INCOMING}?queue=billing", {**fields, "post": "yes", "reason": "broken deploy"})
    assert done.status_code == 302
    assert ProcessedMessage.objects.filter(state="requeued").count() == 150
    late.refresh_from_db()
    assert late.state == "failed"
    assert AuditRecord.objects.filter(reason="broken deploy").count() == 150
    entry = LogEntry.objects.get()  # one for all
    assert entry.object_id is None
    assert "150" in entry.object_repr


def test_more_than_a_request_can_wait_for_is_stored_as_an_operation(
    admin_client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(actions, "INLINE", 5)
    for module in (actions, paginator):
        monkeypatch.setattr(module, "LIMIT", 6)
    rows = [incoming("failed") for _ in range(7)]
    incoming("failed", queue="mail")
    data = {"action": "discard", "_selected_action": str(rows[0].pk), "select_across": "1"}
    page = admin_client.post(f"{INCOMING}?queue=billing", data)
    assert "6+ messages are affected." in page.content.decode()
    assert "stored as an operation" in page.content.decode()
    late = incoming("failed")
    fields = {**dict(page.context["fields"]), "post": "yes", "reason": "obsolete", "rate": "50", "try_one": "1"}
    page = admin_client.post(f"{INCOMING}?queue=billing", fields, follow=True)
    operation = Operation.objects.get()
    assert page.redirect_chain == [(f"/admin/messaging/operation/{operation.pk}/change/", 302)]
    assert (operation.total, operation.rate, operation.is_trial) == (7, 50.0, True)
    assert (operation.scope, operation.reason, operation.username) == ("queue: billing", "obsolete", "admin")
    assert not ProcessedMessage.objects.filter(state="discarded").exists()
    run_waiting("default", "w")
    assert stored.go_on(operation)
    run_waiting("default", "w")
    assert ProcessedMessage.objects.filter(state="discarded").count() == 7
    late.refresh_from_db()
    assert late.state == "failed"
    page = admin_client.get(f"{INCOMING}{rows[0].pk}/change/")
    assert f"iscarded by admin, operation #{operation.pk}" in page.content.decode()


@pytest.mark.parametrize("rate", ["fast", "0", "-1", "nan", "inf", "1e99"])
def test_a_rate_that_is_none_is_said_so_and_nothing_is_stored(
    admin_client: Client, monkeypatch: pytest.MonkeyPatch, rate: str
) -> None:
    monkeypatch.setattr(actions, "INLINE", 1)
    rows = [incoming("failed") for _ in range(2)]
    data = {"action": "requeue", "_selected_action": str(rows[0].pk), "select_across": "1", "post": "yes"}
    page = admin_client.post(INCOMING, {**data, "rate": rate})
    assert "has to be a number of messages per second" in page.content.decode()
    assert 'name="try_one"' in page.content.decode(), "it asks again"
    assert not Operation.objects.exists()


def test_a_step_ends_after_the_batch_in_which_its_time_is_up(
    admin_client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(actions, "PATIENCE", 0.0)
    monkeypatch.setattr(actions, "BATCH", 2)
    rows = [incoming("failed") for _ in range(5)]
    data = {"action": "requeue", "_selected_action": [row.pk for row in rows], "post": "yes"}
    page = admin_client.post(INCOMING, data, follow=True).content.decode()
    assert "2 messages were requeued." in page
    assert "repeat the action for the rest" in page
    assert ProcessedMessage.objects.filter(state="failed").count() == 3


def test_a_copy_is_a_new_message_and_a_replay_is_the_same(admin_client: Client) -> None:
    row = outgoing("published", published_at=timezone.now())
    admin_client.post(f"{OUTGOING}{row.pk}/copy/")
    copy = PublishedMessage.objects.get(copy_of=row)
    assert copy.message_id != row.message_id
    assert (copy.state, copy.body) == ("pending", row.body)
    admin_client.post(f"{OUTGOING}{row.pk}/replay/")
    row.refresh_from_db()
    assert (row.state, PublishedMessage.objects.count()) == ("pending", 2)


def test_a_row_that_is_gone_is_said_so(admin_client: Client) -> None:
    for path in ("99/requeue/", "99/payload/", "99/change/", "abc/change/", f"{10**30}/change/", f"{10**30}/requeue/"):
        response = admin_client.get(INCOMING + path, follow=True)
        assert response.status_code == 200, path
        assert "doesn’t exist" in response.content.decode(), path


@pytest.mark.parametrize("cutoff", ["", "abc", "-1", "9" * 40, "\x00", "١٢"])
def test_a_forged_cutoff_is_no_error(admin_client: Client, cutoff: str) -> None:
    incoming()
    data = {"action": "requeue", "_selected_action": "1", "select_across": "1", "cutoff": cutoff, "post": "y"}
    assert admin_client.post(INCOMING, data).status_code == 302


def test_rows_can_not_be_deleted(admin_client: Client) -> None:
    row, out = incoming(), outgoing("draft")
    assert admin_client.post(f"{INCOMING}{row.pk}/delete/", {"post": "yes"}).status_code == 403
    assert admin_client.post(f"{OUTGOING}{out.pk}/delete/", {"post": "yes"}).status_code == 403
    admin_client.post(INCOMING, {"action": "delete_selected", "_selected_action": row.pk, "post": "yes"})
    assert ProcessedMessage.objects.count() == 1


def test_a_reason_may_hold_anything(admin_client: Client) -> None:
    row = incoming()
    admin_client.post(f"{INCOMING}{row.pk}/requeue/", {"reason": "a\x00b <script>" + "x" * 5000})
    assert AuditRecord.objects.get().reason.startswith("ab <script>x")
    assert len(AuditRecord.objects.get().reason) == 1000
    page = admin_client.get(f"{INCOMING}{row.pk}/change/").content.decode()
    assert "ab &lt;script&gt;" in page


def test_a_forged_post_needs_the_token() -> None:
    from django.contrib.auth import get_user_model

    row = incoming()
    client = Client(enforce_csrf_checks=True)
    client.force_login(get_user_model().objects.create_superuser("root"))
    assert client.post(f"{INCOMING}{row.pk}/requeue/").status_code == 403
    row.refresh_from_db()
    assert row.state == "failed"
