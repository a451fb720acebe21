"""A handler that cannot bill order 13 until it is repaired."""

import os

from django.conf import settings
from shop.models import Bill

from messaging import ReceivedMessage, handler, publish

DATABASE = getattr(settings, "SHOP_DATABASE", "default")


@handler("billing", "orders.placed", max_attempts=1, database=DATABASE)
def bill(message: ReceivedMessage) -> None:
    """Write a bill and say so, in one transaction."""
    number = message.payload["order"]
    if number == 13 and "REPAIRED" not in os.environ:
        raise ValueError("Order 13 has no address")
    Bill.objects.create(order=number)
    publish("orders.billed", {"order": number}, mandatory=False)
