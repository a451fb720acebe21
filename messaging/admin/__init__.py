"""The operator's console, inside Django's admin.

`register(site)` puts it into another admin site. The classes can be extended: nothing outside this package needs them.
"""

from typing import Any

from django.contrib import admin

from messaging.admin.failure_groups import FailureGroupAdmin
from messaging.admin.operations import OperationAdmin
from messaging.admin.processed import ProcessedMessageAdmin
from messaging.admin.published import PublishedMessageAdmin
from messaging.admin.queues import QueueControlAdmin
from messaging.admin.records import AuditRecordAdmin, WorkerAdmin
from messaging.admin.templates import MessageTemplateAdmin
from messaging.models import (
    AuditRecord,
    FailureGroup,
    MessageTemplate,
    Operation,
    ProcessedMessage,
    PublishedMessage,
    QueueControl,
    Worker,
)

__all__ = [
    "AuditRecordAdmin",
    "FailureGroupAdmin",
    "MessageTemplateAdmin",
    "OperationAdmin",
    "ProcessedMessageAdmin",
    "PublishedMessageAdmin",
    "QueueControlAdmin",
    "WorkerAdmin",
    "register",
]

_CONSOLE: dict[Any, Any] = {
    PublishedMessage: PublishedMessageAdmin,
    ProcessedMessage: ProcessedMessageAdmin,
    FailureGroup: FailureGroupAdmin,
    QueueControl: QueueControlAdmin,
    MessageTemplate: MessageTemplateAdmin,
    Operation: OperationAdmin,
    AuditRecord: AuditRecordAdmin,
    Worker: WorkerAdmin,
}


def register(site: admin.AdminSite) -> None:
    """Put the whole console into an admin site of your own. Django's own admin site has it already.

    The console comes as a whole because its pages link to each other. A model that the site has registered before keeps
    its `ModelAdmin`, such as a class of yours that extends the console's.

    Args:
        site: the admin site, such as `AdminSite(name="backoffice")`.
    """
    for model, console in _CONSOLE.items():
        if not site.is_registered(model):
            site.register(model, console)


register(admin.site)
