"""The demo shop's handlers. An order is taken to three queues; two of the handlers have a hard life."""

import logging
import random

from django.db import transaction

from messaging import ReceivedMessage, Reject, handler
from project.events import OrderPlaced
from project.models import Order, Outage, Step
from project.story import STEPS

logger = logging.getLogger(__name__)


class ServiceDown(Exception):
    """The service that a handler depends on does not answer."""


@handler("hello")
def hello(message: ReceivedMessage) -> None:
    """Greet whoever is named in the message."""
    logger.info("Received: %s", message.payload)


@handler("stock", "orders.placed")
def reserve_stock(message: ReceivedMessage[OrderPlaced]) -> None:
    """Take the article from the shelf; always works."""
    _record(message, STEPS["stock"])


@handler("parcels", "orders.placed", max_attempts=5, backoff=3)
def book_parcel(message: ReceivedMessage[OrderPlaced]) -> None:
    """Book a parcel with a carrier who answers half the calls, and always the fourth: the message is retried."""
    _record(message, STEPS["parcels"])
    if message.attempt < 4 and random.random() < 0.5:
        raise ServiceDown("The carrier did not answer; what this attempt wrote is rolled back.")


@handler("invoices", "orders.placed", max_attempts=2, backoff=2)
def write_invoice(message: ReceivedMessage[OrderPlaced]) -> None:
    """Write the invoice. During an outage the message fails, and waits for an operator to requeue it."""
    if Outage.objects.exists():
        raise ServiceDown("The invoicing service is down. Repair it on the start page, then requeue this message.")
    _record(message, STEPS["invoices"])


def _record(message: ReceivedMessage[OrderPlaced], name: str) -> None:
    number = message.payload["order"]
    order = Order.objects.filter(pk=number).first()
    if order is None:
        raise Reject(f"There is no order {number}.")
    Step.objects.create(order=order, name=name)
    transaction.on_commit(lambda: logger.info("Order %s: %s", number, name))
