"""URLs of the tests: the admin, and a view that saves and publishes."""

from importlib.util import find_spec

from django.contrib import admin
from django.db import transaction
from django.http import HttpRequest, HttpResponse
from django.urls import include, path

from messaging import publish
from tests.app.models import Effect


def place_order(request: HttpRequest) -> HttpResponse:
    """Save something and publish it, as a site's view does."""
    with transaction.atomic():
        effect = Effect.objects.create(key="order", value=request.GET["number"])
        publish("work.order", str(effect.value))
    return HttpResponse("placed")


urlpatterns = [path("admin/", admin.site.urls), path("order/", place_order)]
if find_spec("messaging.monitoring"):  # which the release before lacks
    urlpatterns.append(path("messaging/", include("messaging.monitoring.urls")))
