"""What is written in the transactions that publish and handle."""

from django.db import models


class Order(models.Model):
    """What a view saves."""

    id = models.BigAutoField(primary_key=True)
    number = models.IntegerField()

    def __str__(self) -> str:
        return f"Order {self.number}"


class Bill(models.Model):
    """What the handler saves."""

    id = models.BigAutoField(primary_key=True)
    order = models.IntegerField()

    def __str__(self) -> str:
        return f"Bill of order {self.order}"
