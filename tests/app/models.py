"""What handlers leave behind in tests, to be counted."""

from django.db import models


class Effect(models.Model):
    """One run of a handler that was committed. `key` is not unique: a message handled twice shows as two rows."""

    key = models.CharField(max_length=255, db_index=True)
    value = models.TextField(blank=True)
    at = models.DateTimeField(auto_now_add=True)

    def __str__(self) -> str:
        return f"{self.key}={self.value}"
