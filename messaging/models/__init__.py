"""The rows behind the road: outbox, inbox, attempts, and what operators did."""

from messaging.models.operations import AuditRecord, QueueControl, Worker
from messaging.models.processed import Attempt, ProcessedMessage
from messaging.models.published import PublishedMessage

__all__ = ["Attempt", "AuditRecord", "ProcessedMessage", "PublishedMessage", "QueueControl", "Worker"]
