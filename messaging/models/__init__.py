"""The rows behind the road: outbox, inbox, attempts, what failed alike, what operators did, the embedded broker."""

from messaging.models.alerts import Alert, AlertMessage
from messaging.models.counting import Counter
from messaging.models.embedded import (
    EmbeddedBinding,
    EmbeddedConnection,
    EmbeddedExchange,
    EmbeddedMessage,
    EmbeddedQueue,
)
from messaging.models.failure_groups import FailureCount, FailureGroup
from messaging.models.operations import AuditRecord, Operation, OperationItem, QueueControl, Worker
from messaging.models.processed import Attempt, ProcessedMessage
from messaging.models.published import PublishedMessage
from messaging.models.rehearsals import Rehearsal
from messaging.models.task_values import TaskValue
from messaging.models.templates import MessageTemplate

__all__ = [
    "Alert",
    "AlertMessage",
    "Attempt",
    "AuditRecord",
    "Counter",
    "EmbeddedBinding",
    "EmbeddedConnection",
    "EmbeddedExchange",
    "EmbeddedMessage",
    "EmbeddedQueue",
    "FailureCount",
    "FailureGroup",
    "MessageTemplate",
    "Operation",
    "OperationItem",
    "ProcessedMessage",
    "PublishedMessage",
    "QueueControl",
    "Rehearsal",
    "TaskValue",
    "Worker",
]

# Wagtail notes what each row refers to, with a task for each that is saved. Of a message's row that would be a message.
for _model in [globals()[_name] for _name in __all__]:
    _model.wagtail_reference_index_ignore = True
