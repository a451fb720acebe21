"""The rows behind the road: outbox, inbox, attempts, what operators did, and the embedded broker's queues."""

from messaging.models.counting import Counter
from messaging.models.embedded import (
    EmbeddedBinding,
    EmbeddedConnection,
    EmbeddedExchange,
    EmbeddedMessage,
    EmbeddedQueue,
)
from messaging.models.operations import AuditRecord, Operation, OperationItem, QueueControl, Worker
from messaging.models.processed import Attempt, ProcessedMessage
from messaging.models.published import PublishedMessage
from messaging.models.rehearsals import Rehearsal
from messaging.models.templates import MessageTemplate

__all__ = [
    "Attempt",
    "AuditRecord",
    "Counter",
    "EmbeddedBinding",
    "EmbeddedConnection",
    "EmbeddedExchange",
    "EmbeddedMessage",
    "EmbeddedQueue",
    "MessageTemplate",
    "Operation",
    "OperationItem",
    "ProcessedMessage",
    "PublishedMessage",
    "QueueControl",
    "Rehearsal",
    "Worker",
]
