"""The demo shop's start page and its buttons."""

import random
from datetime import timedelta
from typing import Any

from django.contrib import messages
from django.db import transaction
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.utils import timezone
from django.utils.translation import gettext as _
from django.utils.translation import gettext_noop
from django.views.decorators.http import require_POST, require_safe

from messaging import conf, publish
from messaging.models import ProcessedMessage, PublishedMessage, Worker
from project.events import ORDER_PLACED, OrderPlaced
from project.models import Order, Outage
from project.story import tell

ARTICLES = (
    gettext_noop("Teapot"),
    gettext_noop("Umbrella"),
    gettext_noop("Bicycle bell"),
    gettext_noop("Field guide"),
    gettext_noop("Lantern"),
)
SHOWN = 10  # orders
ALIVE = timedelta(seconds=30)  # since a consumer last said so


@require_safe
def home(request: HttpRequest) -> HttpResponse:
    """The buttons, and what goes on."""
    return render(request, "home.html", {"outage": Outage.objects.first(), "broker": _broker(), **_going_on()})


@require_safe
def now(request: HttpRequest) -> HttpResponse:
    """What goes on, as the part of the start page that a script fetches again and again."""
    return render(request, "now.html", _going_on())


@require_POST
def place_order(request: HttpRequest) -> HttpResponse:
    """Save an order and publish it: both are committed, or neither is."""
    with transaction.atomic():
        order = Order.objects.create(article=random.choice(ARTICLES))
        placed: OrderPlaced = {"order": order.pk, "article": order.article}
        publish(ORDER_PLACED, placed, message_id=order.message_id)
    messages.success(request, _("Order %(number)s is placed.") % {"number": order.pk})
    return redirect("home")


@require_POST
def say_hello(request: HttpRequest) -> HttpResponse:
    """Send a greeting straight to the queue `hello`."""
    publish("hello", "Hello World", queue="hello")
    messages.success(request, _("“Hello World” is on its way; the consumer's output shows its arrival."))
    return redirect("home")


@require_POST
def switch_invoicing(request: HttpRequest) -> HttpResponse:
    """Break the invoicing service, or repair it."""
    repaired, _rows = Outage.objects.all().delete()
    if repaired:
        messages.success(request, _("Invoicing works again. Requeue the failed messages in the admin."))
    else:
        Outage.objects.create()
        messages.warning(request, _("Invoicing is down. Orders placed now will fail in the queue “invoices”."))
    return redirect("home")


def _going_on() -> dict[str, Any]:
    return {
        "orders": tell(Order.objects.prefetch_related("steps")[:SHOWN]),
        "greetings": ProcessedMessage.objects.filter(queue="hello", state=ProcessedMessage.State.PROCESSED).count(),
        "waiting": PublishedMessage.objects.pending().count(),
        "failed": ProcessedMessage.objects.failed().count(),
        "has_consumer": Worker.objects.filter(kind="consume", seen_at__gte=timezone.now() - ALIVE).exists(),
    }


def _broker() -> str:
    """Which broker this site uses, without its credentials."""
    settings = conf.get()
    if settings.scheme == "database":
        return _("the embedded broker, a table in this site's own database")
    hosts = ", ".join(f"{host}:{port}" for host, port in settings.hosts)
    return _("RabbitMQ at %(hosts)s") % {"hosts": hosts}
