"""What such a site would keep: the columns of our outbox and inbox that say something of these messages."""

from django.db import models


class Recorded(models.Model):
    """A message, as both sides keep it."""

    message_id = models.CharField(max_length=255, db_index=True)
    name = models.CharField(max_length=255)
    content_type = models.CharField(max_length=255, default="application/json")
    headers = models.JSONField(default=dict)
    body = models.TextField()
    state = models.CharField(max_length=10)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        abstract = True

    def __str__(self) -> str:
        return self.message_id


class Sent(Recorded):
    """A message that was published."""


class Received(Recorded):
    """A message that was processed; each once."""

    message_id = models.CharField(max_length=255, unique=True)
    handler = models.CharField(max_length=255)
    worker = models.CharField(max_length=200)
    attempts = models.PositiveIntegerField(default=1)
    processed_at = models.DateTimeField(auto_now_add=True)
