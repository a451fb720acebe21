"""Tags for the admin's pages."""

from __future__ import annotations

from typing import Any

from django import template
from django.contrib.admin.utils import quote

from messaging import conf
from messaging.admin import live
from messaging.admin.alerts import APP, alerts, look
from messaging.admin.charts import charts, counted, row
from messaging.admin.databases import key_of
from messaging.admin.filters import LOOKED_AT
from messaging.admin.latency import figures, told
from messaging.admin.lists import in_words, newer_page
from messaging.admin.overview import cards
from messaging.admin.queue_table import table
from messaging.admin.rights import rights
from messaging.admin.search import is_path, why_not
from messaging.exceptions import ConfigurationError
from messaging.monitoring.percentiles import total

register = template.Library()


@register.filter
def key(row: Any) -> str:
    """What names a row in addresses."""
    return quote(key_of(row))


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


@register.simple_tag(takes_context=True)
def searched(context: Any) -> str:
    """How far payloads were searched, in a sentence; "" where they were not."""
    return getattr(context["request"], "_messaging_searched", "")


@register.simple_tag(takes_context=True)
def unsearched(context: Any, cl: Any) -> str:
    """Why payloads were not searched, where it seems that somebody meant them."""
    return why_not(context["request"], cl.model_admin) if is_path(cl.query) else ""


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
    """How much was published, processed and failed lately, and how long that took; the address may say since when."""
    found = counted(context["request"])
    shown, lengths = charts(found), figures(found.points)
    rows = [row(part) for part in shown["parts"]]
    if lengths:
        for cells, part in zip(rows, shown["parts"], strict=True):
            cells += [told(total([point.waits for point in part])), told(total([point.runs for point in part]))]
    return {**shown, "figures": lengths, "rows": rows}


@register.inclusion_tag("admin/messaging/queue_table.html", takes_context=True)
def messaging_queues(context: Any) -> dict[str, Any]:
    """What each queue did within the past hour."""
    from messaging.monitoring import readings  # and with it what reads a broker

    request = context["request"]
    return table(counted(request), look(request), readings.ready, _site(request))


@register.inclusion_tag("admin/messaging/alerts.html", takes_context=True)
def messaging_alerts(context: Any) -> dict[str, Any]:
    """What is wrong, with what to do about it; nothing where all is well."""
    request = context["request"]
    return {"alerts": alerts(request, _site(request))}


@register.inclusion_tag("admin/messaging/banner.html")
def messaging_banner() -> dict[str, Any]:
    """Where one is, such as "PRODUCTION", as the site's setting `BANNER` says."""
    return {"banner": _banner()}


@register.simple_tag
def messaging_place() -> str:
    """The same before the title of a page."""
    return f"{banner} · " if (banner := _banner()) else ""


@register.inclusion_tag("admin/messaging/rights.html", takes_context=True)
def messaging_rights(context: Any) -> dict[str, Any]:
    """What the user may do, and which permission the rest takes; who has that, if the address asks `who`."""
    request = context["request"]
    asked = "who" in request.GET
    found = rights(request, APP, _site(request), with_groups=asked)
    return {"rights": found, "asked": asked, "is_lacking": not all(right.given for right in found)}


def _banner() -> str:
    try:
        return conf.console().banner
    except ConfigurationError as error:  # which the person in front of it may be able to put right
        return str(error)


@register.inclusion_tag("admin/messaging/live.html", takes_context=True)
def messaging_live(context: Any, is_brief: bool = False) -> dict[str, Any]:
    """Have the page look again by itself; `is_brief` where what it shows will end."""
    return live.context(context["request"], is_brief=is_brief)


def _site(request: Any) -> str:
    return getattr(request, "current_app", None) or "admin"
