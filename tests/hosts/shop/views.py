"""Views that save and publish."""

import os

from django.conf import settings
from django.db import transaction
from django.http import HttpRequest, HttpResponse
from shop.models import Order

from messaging import apublish, publish

DATABASE = getattr(settings, "SHOP_DATABASE", "default")


def place(request: HttpRequest, number: int) -> HttpResponse:
    """Both in one transaction; answers with the number of the process."""
    with transaction.atomic(using=DATABASE):
        Order.objects.create(number=number)
        publish("orders.placed", {"order": number})
    return HttpResponse(str(os.getpid()))


async def aplace(request: HttpRequest, number: int) -> HttpResponse:
    """The same in an event loop, each by itself."""
    await Order.objects.acreate(number=number)
    await apublish("orders.placed", {"order": number})
    return HttpResponse(str(os.getpid()))
