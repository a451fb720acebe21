"""Tags for the admin's pages."""

from __future__ import annotations

from typing import Any

from django import template

from messaging.admin.alerts import APP, alerts, look
from messaging.admin.charts import charts
from messaging.admin.filters import LOOKED_AT
from messaging.admin.lists import in_words, newer_page
from messaging.admin.overview import cards

register = template.Library()


@register.simple_tag
def older_url(cl: Any) -> str:
    """Where the list goes on behind the last row of this page, once counting has stopped; "" elsewhere."""
    rows = list(cl.result_list)
    if not rows or not getattr(cl.paginator, "is_bounded", False):
        return ""
    url: str = cl.get_query_string({"before": rows[-1].pk}, ["p"])
    return url


@register.simple_tag(takes_context=True)
def newer_url(context: Any, cl: Any) -> str:
    """Where the list goes on before the first row of this page, where it began in the midst; "" elsewhere."""
    return newer_page(cl, context["request"])


@register.simple_tag
def chosen(cl: Any) -> list[tuple[str, str]]:
    """The filters in use as names and values, in words."""
    return in_words(cl)


@register.simple_tag
def without(cl: Any, name: str) -> str:
    """The list without one of its filters, from its first page."""
    url: str = cl.get_query_string({}, [name, "p"])
    return url


@register.filter
def diff_lines(text: str) -> list[tuple[str, str]]:
    """The lines of a difference, each with what it is: "new", "old", "place" or ""."""
    marks = {"+": "new", "-": "old", "@": "place"}
    return [("place" if line[:3] in ("+++", "---") else marks.get(line[:1], ""), line) for line in text.split("\n")]


@register.inclusion_tag("admin/messaging/beyond.html", takes_context=True)
def beyond(context: Any, cl: Any) -> dict[str, Any]:
    """How far back a filter has looked, and a link to what is before that; nothing where it has looked at all."""
    floor = getattr(context["request"], "_messaging_floor", 0)
    if not floor or cl.page_num < cl.paginator.num_pages:
        return {}
    return {"looked_at": f"{LOOKED_AT:,}", "url": cl.get_query_string({"before": floor + 1}, ["p"])}


@register.inclusion_tag("admin/messaging/overview.html", takes_context=True)
def messaging_overview(context: Any) -> dict[str, Any]:
    """What failed or waits, with links to the lists; for an admin site's index page.

    The page needs the stylesheet `messaging/admin.css`.
    """
    request = context["request"]
    if not request.user.has_module_perms(APP):
        return {}
    site = _site(request)
    return {"alerts": alerts(request, site), "cards": cards(request, look(request), site)}


@register.inclusion_tag("admin/messaging/charts.html", takes_context=True)
def messaging_charts(context: Any) -> dict[str, Any]:
    """How much was published, processed and failed lately; the address may choose the `period`."""
    request = context["request"]
    return charts(look(request), request.GET.get("period", ""))


@register.inclusion_tag("admin/messaging/alerts.html", takes_context=True)
def messaging_alerts(context: Any) -> dict[str, Any]:
    """What is wrong, with what to do about it; nothing where all is well."""
    request = context["request"]
    return {"alerts": alerts(request, _site(request))}


def _site(request: Any) -> str:
    return getattr(request, "current_app", None) or "admin"
