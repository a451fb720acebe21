"""The operator's console, inside Django's admin.

The classes can be registered again on another admin site, or extended: nothing outside this package needs them.
"""

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
]

admin.site.register(PublishedMessage, PublishedMessageAdmin)
admin.site.register(ProcessedMessage, ProcessedMessageAdmin)
admin.site.register(FailureGroup, FailureGroupAdmin)
admin.site.register(QueueControl, QueueControlAdmin)
admin.site.register(MessageTemplate, MessageTemplateAdmin)
admin.site.register(Operation, OperationAdmin)
admin.site.register(AuditRecord, AuditRecordAdmin)
admin.site.register(Worker, WorkerAdmin)
