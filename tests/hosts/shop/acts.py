"""What developers, customers and operators do in a host; called by its `manage.py shell`."""

from io import StringIO
from typing import Any

from django.conf import settings
from django.contrib.admin.models import LogEntry
from django.contrib.auth import get_user_model
from django.core.management import call_command
from django.db import router
from django.test import Client
from django.urls import reverse

from messaging.models import AuditRecord, ProcessedMessage, PublishedMessage

ADMIN = getattr(settings, "HOST_ADMIN", "admin")  # the name of the admin site
SERVER = getattr(settings, "HOST_SERVER", "localhost")
OPERATOR = getattr(settings, "HOST_OPERATOR", {"username": "olga", "email": "olga@example.org"})
LISTS = (
    "processedmessage", "publishedmessage", "failuregroup", "queuecontrol", "messagetemplate", "operation",
    "auditrecord", "worker",
)  # fmt: skip


def check() -> None:
    """Neither a system check nor a missing migration is about messaging, and none is an error."""
    said = StringIO()
    call_command("check", databases=["default"], stdout=said, stderr=said)
    assert "messaging" not in said.getvalue(), said.getvalue()
    call_command("makemigrations", "messaging", check_changes=True, dry_run=True)


def place(*numbers: int, server: str = SERVER) -> None:
    """Customers order."""
    for number in numbers:
        answer = Client(SERVER_NAME=server).get(f"/shop/{number}/")
        assert answer.status_code == 200, answer.content


def look_and_requeue() -> None:
    """An operator looks around, opens the message that failed, and sends it round again."""
    client, user = Client(SERVER_NAME=SERVER), _operator()
    client.force_login(user)

    def page(name: str, *arguments: object) -> str:
        answer = client.get(reverse(f"{ADMIN}:{name}", args=arguments))
        assert answer.status_code == 200, (name, answer.status_code)
        return answer.content.decode()

    page("index")
    assert "messaging/admin.css" in page("app_list", "messaging")
    for name in LISTS:
        assert "messaging/admin.css" in page(f"messaging_{name}_changelist"), name
    page("messaging_publishedmessage_add")
    failed = _written(ProcessedMessage).get(state="failed")
    assert "Order 13 has no address" in page("messaging_processedmessage_change", failed.pk)
    assert "billing" in page("messaging_processedmessage_requeue", failed.pk)
    published = _written(PublishedMessage).filter(state="published").latest("pk")
    page("messaging_publishedmessage_change", published.pk)
    listed = {"action": "requeue", "_selected_action": [failed.pk], "index": "0", "post": "1", "reason": "repaired"}
    answer = client.post(reverse(f"{ADMIN}:messaging_processedmessage_changelist"), listed)
    assert answer.status_code == 302, answer.content
    failed.refresh_from_db()
    assert failed.state == "requeued"
    record = _written(AuditRecord).get(message_pk=failed.pk, kind="processed")
    assert (record.user_id, record.username, record.reason) == (user.pk, user.get_username(), "repaired")
    assert record.user == user
    assert LogEntry.objects.filter(user=user, object_id=str(failed.pk)).exists()
    assert user.get_username() in page("messaging_processedmessage_change", failed.pk)
    assert user.get_username() in page("messaging_auditrecord_changelist")
    page("messaging_processedmessage_history", failed.pk)


def _written(model: Any) -> Any:
    """Its rows where they are written: a replica may lag."""
    return model.objects.using(router.db_for_write(model))


def _operator() -> Any:
    return get_user_model()._default_manager.create_superuser(**OPERATOR, password="secret")
