"""What a web process says of its health. To everybody one word; details only to who shows the site's token."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from django.contrib.auth.decorators import login_not_required
from django.http import HttpRequest, JsonResponse
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe

from messaging import conf
from messaging.exceptions import BrokerUnavailable, ConfigurationError
from messaging.monitoring import health
from messaging.monitoring.databases import outside_transactions
from messaging.monitoring.views import brings


@login_not_required
@outside_transactions
@never_cache
@require_safe
def live(_request: HttpRequest) -> JsonResponse:
    """Whether this process answers: 200. Asks nobody."""
    return JsonResponse({"status": "ok"})


@login_not_required
@outside_transactions
@never_cache
@require_safe
def ready(request: HttpRequest) -> JsonResponse:
    """Whether this process can publish: 200, or 503 where a database does not answer. Within a second.

    With the header `Authorization: Bearer <HEALTH_TOKEN>` the answer has the checks of the whole site.
    """
    checks = health.of_web()
    status = health.worst(checks)
    answer: dict[str, Any] = {"status": status}
    if _may_see(request):
        checks = health.of_site() if status == "ok" else checks
        answer = {"status": status, "site": health.worst(checks), "checks": [asdict(check) for check in checks]}
    return JsonResponse(answer, status=200 if status == "ok" else 503)


@outside_transactions
@never_cache
@require_safe
def details(_request: HttpRequest) -> JsonResponse:
    """The checks of the whole site: 200, or 503 where one is critical. To be put behind a decorator of the site's."""
    checks = health.of_site()
    status = health.worst(checks)
    answer = {"status": status, "checks": [asdict(check) for check in checks]}
    return JsonResponse(answer, status=503 if status == "critical" else 200)


def _may_see(request: HttpRequest) -> bool:
    """Whether the request shows the site's token; never, where it has none or that cannot be read."""
    try:
        token = conf.text_of(conf.console().health_token, "HEALTH_TOKEN")
    except (ConfigurationError, BrokerUnavailable):
        return False
    return bool(token) and brings(request, token)
