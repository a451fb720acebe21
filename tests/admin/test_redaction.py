"""What the site redacts shows nowhere: not where it is asked for, and not where its callable fails."""

from __future__ import annotations

import base64
import gzip
import json
import logging
from typing import Any

import pytest
from django.contrib.admin.models import LogEntry
from django.test import Client

from messaging.admin import payload, redaction
from messaging.models import (
    Attempt,
    AuditRecord,
    FailureGroup,
    Operation,
    OperationItem,
    ProcessedMessage,
    QueueControl,
    Rehearsal,
)
from messaging.monitoring import readings
from messaging.wire.envelope import Envelope
from messaging.wire.properties import Properties
from tests.admin_rows import INCOMING, OUTGOING, QUEUES, incoming, outgoing, staff

pytestmark = pytest.mark.django_db
SECRET = "4111-1111-1111-1111"
OPERATIONS, AUDIT = "/admin/messaging/operation/", "/admin/messaging/auditrecord/"
GROUPS = "/admin/messaging/failuregroup/"
asked: list[tuple[Any, dict[str, Any]]] = []


def hide(value: Any, **about: Any) -> Any:
    asked.append((value, about))
    if isinstance(value, dict):
        return {name: hide(one, **about) for name, one in value.items()}
    if isinstance(value, list):
        return [hide(one, **about) for one in value]
    return value.replace(SECRET, "***") if isinstance(value, str) else value


def fail(value: Any, **about: Any) -> Any:
    raise ValueError(f"cannot redact {value}")


def withhold(value: Any, **about: Any) -> Any:
    return None


def answer_wrongly(value: Any, **about: Any) -> Any:
    return {1: object(), (2,): value} if about["part"] == "payload" else 5


@pytest.fixture(autouse=True)
def _settings(settings: Any) -> None:
    settings.MESSAGING = {"default": {"URL": "amqp://guest:guest@127.0.0.1:1/", "QUEUES": {"billing": {}}}}
    settings.MESSAGING_CONSOLE = {"REDACT": f"{__name__}.hide", "EDIT": True}
    readings.forget()
    asked.clear()


def pages() -> list[str]:
    """Rows with a secret in whatever can hold one, and every page that shows them."""
    body = json.dumps({"card": SECRET, "order": [17, {"card": SECRET}]}).encode()
    headers = {"card": SECRET, "nested": {"card": [SECRET]}}
    error = f"Declined: {'x' * 90} {SECRET} was refused"
    row = incoming(
        "failed", body=body, headers=headers, error=error, exception_type="shop.Declined", fingerprint="f1", attempts=1
    )
    trace = f'Traceback (most recent call last):\n  File "shop.py", line 1\n    pay("{SECRET}")\n' + "y" * 30_000
    Attempt.objects.create(
        message=row,
        number=1,
        round=1,
        exception_type="shop.Declined",
        exception_message=error,
        traceback=trace + SECRET,
    )
    text = incoming("failed", body=f"card {SECRET}".encode(), content_type="text/plain", headers=headers, error=error)
    broken = incoming("failed", body=b'{"card": "%s"' % SECRET.encode())
    unnamed = incoming("failed", body=body, content_type="")
    tried = json.dumps({"at": 1_800_000_000_000, "by": "r", "fate": "failed", "answer": f"no {SECRET}"})
    out = outgoing("failed", body=body, headers=headers, error=error, tries=tried)
    draft = outgoing("draft", body=body)
    group = FailureGroup.objects.create(fingerprint="f1", exception_type="shop.Declined", note=f"of {SECRET}")
    rehearsal = Rehearsal.objects.create(row=row.pk, round=1, state="failed", error=error, traceback=trace + SECRET)
    mine = {"username": "olga", "reason": f"he gave {SECRET}"}
    AuditRecord.objects.create(action="requeue", kind="processed", message_pk=row.pk, alias="default", **mine)
    QueueControl.objects.create(queue="billing", paused=True, changed_by="olga", reason=mine["reason"])
    done = Operation.objects.create(
        verb="requeue", kind="processed", scope=f"search: card:{SECRET}", total=1, reasons={f"no {SECRET}": 1}, **mine
    )
    OperationItem.objects.create(operation=done, row=row.pk, result=2, note=f"no {SECRET}")
    OperationItem.objects.create(operation=done, row=text.pk, result=1)
    found = [
        INCOMING,
        OUTGOING,
        QUEUES,
        AUDIT,
        OPERATIONS,
        f"{OPERATIONS}{done.pk}/change/",
        "/admin/messaging/",
        "/admin/",
    ]
    for one in (row, text, broken, unnamed):
        found += [f"{INCOMING}{one.pk}/{name}/" for name in ("change", "payload", "requeue", "history", "edit")]
        found.append(f"{OUTGOING}add/?clone=incoming:{one.pk}")
    for one in (out, draft):
        found += [f"{OUTGOING}{one.pk}/{name}/" for name in ("change", "payload", "discard", "history")]
    found += [f"{INCOMING}export/", f"{OUTGOING}export/", f"{AUDIT}export/", f"{OPERATIONS}export/"]
    found += [f"{GROUPS}{name}" for name in ("", "export/", f"{group.pk}/change/", f"{group.pk}/requeue/")]
    found.append(f"{INCOMING}rehearsal/{rehearsal.pk}/")
    found += [f"{OPERATIONS}{done.pk}/result/", "/admin/messaging/worker/"]
    return [*found, f"{INCOMING}?q={row.message_id}", f"{INCOMING}?state=failed", f"{INCOMING}?fingerprint=f1"]


def contents(client: Client, page: str) -> str:
    is_file = page.endswith(("/export/", "/result/"))
    response = client.post(page, {"format": "json", "payload": "1"}) if is_file else client.get(page)
    if is_file and response.status_code == 403:  # a list without payloads
        response = client.post(page, {"format": "csv"})
    if response.status_code == 403 and page.endswith("/edit/"):  # the setting that switches it on cannot be read
        return ""
    assert response.status_code == 200, page
    raw = b"".join(response) if response.streaming else response.content  # type: ignore[attr-defined,arg-type]
    return raw.decode()


def is_told(text: str) -> bool:
    return SECRET in text or base64.b64encode(SECRET.encode()).decode()[:16] in text


def test_a_secret_is_on_every_kind_of_page_and_redacted_on_all_of_them(admin_client: Client, settings: Any) -> None:
    every = pages()
    row = ProcessedMessage.objects.order_by("pk")[0]
    admin_client.post(f"{INCOMING}{row.pk}/discard/", {"reason": f"he gave {SECRET}"})
    assert SECRET in LogEntry.objects.get().change_message
    for name in ("hide", "fail", "withhold", "answer_wrongly", "missing"):
        settings.MESSAGING_CONSOLE = {"REDACT": f"{__name__}.{name}", "EDIT": True}
        for page in every if name in ("hide", "fail") else every[::5]:
            assert not is_told(contents(admin_client, page)), (name, page)
    settings.MESSAGING_CONSOLE = {"REDACT": 5}
    assert not any(is_told(contents(admin_client, page)) for page in every), "a setting that cannot be read"
    settings.MESSAGING_CONSOLE = {"EDIT": True}
    told = [page for page in every if is_told(contents(admin_client, page))]
    assert len(told) > len(every) / 2, "there was something to redact"


def test_the_callable_is_told_what_it_looks_at(admin_client: Client) -> None:
    row = incoming("failed", body=b'{"card": 1}', headers={"tenant": "acme"}, error="Declined")
    contents(admin_client, f"{INCOMING}{row.pk}/change/")
    own = {"kind": "incoming", "queue": "billing", "routing_key": "orders.placed"}
    for value, part in (({"card": 1}, "payload"), ({"tenant": "acme"}, "headers"), ("Declined", "text")):
        assert (value, {"part": part, **own}) in asked
    out = outgoing(body=b"plain", content_type="text/plain")
    contents(admin_client, f"{OUTGOING}{out.pk}/change/")
    assert ("plain", {"part": "payload", **own, "kind": "outgoing", "queue": ""}) in asked


def test_what_is_not_secret_is_still_there(admin_client: Client) -> None:
    row = incoming("failed", body=json.dumps({"card": SECRET, "n": "中"}).encode(), error=f"No: {SECRET}")
    html = contents(admin_client, f"{INCOMING}{row.pk}/change/")
    assert "{\n  &quot;card&quot;: &quot;***&quot;,\n  &quot;n&quot;: &quot;中&quot;\n}" in html
    assert "No: ***" in html
    response = admin_client.get(f"{INCOMING}{row.pk}/payload/")
    assert json.loads(response.content) == {"card": "***", "n": "中"}
    assert "-redacted." in response.headers["Content-Disposition"]


@pytest.mark.parametrize(("name", "text"), [("fail", "has failed on it"), ("withhold", "Withheld by the site")])
def test_a_failure_is_said_and_logged_without_what_it_says(
    name: str, text: str, admin_client: Client, settings: Any, caplog: pytest.LogCaptureFixture
) -> None:
    settings.MESSAGING_CONSOLE = {"REDACT": f"{__name__}.{name}"}
    row = incoming("failed", body=json.dumps({"card": SECRET}).encode(), error=f"No: {SECRET}")
    with caplog.at_level(logging.ERROR):
        html = contents(admin_client, f"{INCOMING}{row.pk}/change/")
    assert text in html
    assert "The body is empty" not in html
    assert SECRET not in caplog.text
    assert ("ValueError" in caplog.text) == (name == "fail")
    assert ("test_redaction.py" in caplog.text) == (name == "fail")


def test_a_compressed_body_is_read_to_be_redacted(admin_client: Client) -> None:
    body = gzip.compress(json.dumps({"card": SECRET}).encode())
    properties = Properties.build(message_id="m", content_type="application/json", content_encoding="gzip")
    row = incoming("failed", body=body, wire=Envelope("", "billing", properties, b"").to_wire())
    assert json.loads(contents(admin_client, f"{INCOMING}{row.pk}/payload/")) == {"card": "***"}


def test_a_payload_that_is_too_large_is_withheld(admin_client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redaction, "LARGEST", 1000)
    row = incoming("failed", body=b'{"a": "%s"}' % (b"x" * 2000))
    assert "only payloads of up to 1000 bytes are redacted" in contents(admin_client, f"{INCOMING}{row.pk}/change/")
    assert "xxx" not in contents(admin_client, f"{INCOMING}{row.pk}/payload/")


def test_no_more_than_the_beginning_of_a_long_payload_is_shown(admin_client: Client) -> None:
    row = incoming("failed", body=b'{"a": "%s"}' % (b"x" * 200_000))
    html = contents(admin_client, f"{INCOMING}{row.pk}/change/")
    assert "only the beginning is shown" in html
    assert len(html) < 2 * payload.PREVIEW


def test_a_draft_with_something_redacted_is_in_no_form_that_would_write_it_back(admin_client: Client) -> None:
    secret = outgoing("draft", body=json.dumps({"card": SECRET}).encode())
    plain = outgoing("draft", body=b'{"order": 17}')
    assert '<form method="post" id="message_form"' in contents(admin_client, f"{OUTGOING}{plain.pk}/change/")
    assert "message_form" not in contents(admin_client, f"{OUTGOING}{secret.pk}/change/")
    admin_client.post(f"{OUTGOING}{secret.pk}/change/", {"body": "{}", "queue": "billing", "format": "json"})
    secret.refresh_from_db()
    assert SECRET in secret.body


def test_a_callable_that_changes_what_it_is_given_changes_no_message(settings: Any) -> None:
    row = incoming("failed", headers={"nested": {"card": SECRET}})
    assert redaction.headers(row) == {"nested": {"card": "***"}}
    assert row.headers == {"nested": {"card": SECRET}}


def test_payloads_still_take_their_permission() -> None:
    row = incoming("failed", body=json.dumps({"card": SECRET}).encode())
    client = staff("view_processedmessage")
    assert "***" not in contents(client, f"{INCOMING}{row.pk}/change/")
    assert client.get(f"{INCOMING}{row.pk}/payload/").status_code == 403
