"""What has to happen, and what did. Neither key is unique: what happens twice shows as two rows."""

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
