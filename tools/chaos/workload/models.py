"""What has to happen, and what did. No key is unique: what happens twice shows as two rows.

The last three tables are filled for the proof alone, from what the run knows besides.
"""

from django.db import models


class Expected(models.Model):
    """The ledger: an effect that is due, written in the transaction that published its cause."""

    key = models.CharField(max_length=64)
    # A handler without a transaction runs again if it is killed at its end; what it publishes must not double.
    may_repeat = models.BooleanField(default=False)

    def __str__(self) -> str:
        return self.key


class Effect(models.Model):
    """What a handler did, committed."""

    key = models.CharField(max_length=64, db_index=True)

    def __str__(self) -> str:
        return self.key


class Meeting(models.Model):
    """The same for a message without an id, of which several may have one key."""

    key = models.CharField(max_length=64, db_index=True)

    def __str__(self) -> str:
        return self.key


class Elsewhere(models.Model):
    """An effect in the other database."""

    key = models.CharField(max_length=64, db_index=True)

    def __str__(self) -> str:
        return self.key


class Stranger(models.Model):
    """A content that clients without an outbox sent, and how many messages of it the broker has confirmed."""

    key = models.CharField(max_length=64, db_index=True)
    confirmed = models.PositiveIntegerField()

    def __str__(self) -> str:
        return self.key


class Forgotten(models.Model):
    """What a copy of the database that was promoted had never received: a row for each of `kind`, by its key."""

    kind = models.CharField(
        max_length=10
    )  # "expected", "published", "effect", "received", or "at": when it was promoted
    key = models.CharField(max_length=64, db_index=True)

    def __str__(self) -> str:
        return f"{self.kind} {self.key}"
