"""Metrics for who asks a web process."""

from __future__ import annotations

from django.contrib.auth.decorators import login_not_required
from django.http import HttpRequest, HttpResponse, HttpResponseNotFound
from django.utils.crypto import constant_time_compare
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe

from messaging import conf
from messaging.exceptions import BrokerUnavailable, ConfigurationError
from messaging.monitoring.databases import outside_transactions

TEXT = "text/plain; charset=utf-8"


@require_safe
@never_cache
@login_not_required
@outside_transactions
def metrics(request: HttpRequest) -> HttpResponse:
    """Every metric that this process can tell, for whoever asks: put a decorator of your own around it."""
    from messaging.metrics import exposition  # where metrics are asked for

    try:
        exposition.require()
    except ImportError as error:
        return HttpResponse(f"{error}\n", TEXT, status=503)
    from messaging.monitoring.metrics import read

    text, content_type = exposition.page(read, request.headers.get("Accept", ""))
    return HttpResponse(text, content_type)


@login_not_required
@outside_transactions
def metrics_with_token(request: HttpRequest) -> HttpResponse:
    """The same for who knows `MESSAGING_METRICS["TOKEN"]`; without that setting it is as if nothing were here."""
    try:
        token = conf.metrics_token()
    except (ConfigurationError, BrokerUnavailable):  # said by the system checks
        token = ""
    if not token:
        return HttpResponseNotFound("Not found\n", TEXT)
    if not brings(request, token):
        return HttpResponse("Unauthorized\n", TEXT, status=401, headers={"WWW-Authenticate": "Bearer"})
    return metrics(request)


def brings(request: HttpRequest, token: str) -> bool:
    """Whether a request has this token, in the header `Authorization: Bearer <token>`."""
    scheme, _, given = request.headers.get("Authorization", "").partition(" ")
    return scheme.lower() == "bearer" and constant_time_compare(given.strip(), token)
