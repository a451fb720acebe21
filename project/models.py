"""What the demo shop remembers: orders, what was done for each, and whether its invoicing service is down."""

from django.db import models


class Order(models.Model):
    """An order that a visitor placed."""

    article = models.CharField(max_length=100)
    placed_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ("-pk",)

    def __str__(self) -> str:
        return f"Order {self.pk}: {self.article}"

    @property
    def message_id(self) -> str:
        """The id of the message that says that it was placed."""
        return f"order-{self.pk}-placed"


class Step(models.Model):
    """Something that a handler did for an order. Nothing keeps a handler from doing it twice but the inbox."""

    order = models.ForeignKey(Order, on_delete=models.CASCADE, related_name="steps")
    name = models.CharField(max_length=50)
    done_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ("pk",)

    def __str__(self) -> str:
        return self.name


class Outage(models.Model):
    """While a row exists, the invoicing service is down."""

    since = models.DateTimeField(auto_now_add=True)

    def __str__(self) -> str:
        return f"Down since {self.since}"
