"""The demo shop's start page and its buttons."""

import random

from django.contrib import messages
from django.db import transaction
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.utils.translation import gettext as _
from django.views.decorators.http import require_POST, require_safe

from messaging import publish
from project.models import Order, Outage

ARTICLES = ("Teapot", "Umbrella", "Bicycle bell", "Field guide", "Lantern")


@require_safe
def home(request: HttpRequest) -> HttpResponse:
    """The last orders, and what the handlers did for each."""
    orders = Order.objects.prefetch_related("steps")[:10]
    return render(request, "home.html", {"orders": orders, "outage": Outage.objects.first()})


@require_POST
def place_order(request: HttpRequest) -> HttpResponse:
    """Save an order and publish it: both are committed, or neither is."""
    with transaction.atomic():
        order = Order.objects.create(article=random.choice(ARTICLES))
        publish("orders.placed", {"order": order.pk, "article": order.article})
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
