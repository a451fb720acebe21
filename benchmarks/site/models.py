"""What handlers leave behind, to be counted."""

from django.db import models


class Effect(models.Model):
    """One run of a handler that was committed. The database adds `at`: see `benchmarks.tables`."""

    key = models.CharField(max_length=64)
    started = models.FloatField(null=True)

    class Meta:
        managed = False
        db_table = "bench_effect"

    def __str__(self) -> str:
        return self.key
