"""URLs for tools that look after the site: `path("messaging/", include("messaging.monitoring.urls"))`."""

from __future__ import annotations

from django.urls import path

from messaging.monitoring import health_views

app_name = "messaging_monitoring"
urlpatterns = [
    path("health/live/", health_views.live, name="live"),
    path("health/ready/", health_views.ready, name="ready"),
]
