"""To be included by a site: `metrics`, closed unless `MESSAGING_METRICS["TOKEN"]` is set."""

from django.urls import path

from messaging.monitoring.views import metrics_with_token

app_name = "messaging_monitoring"
urlpatterns = [path("metrics", metrics_with_token, name="metrics")]
