"""Tags for the admin's pages."""

from __future__ import annotations

from typing import Any

from django import template

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


@register.inclusion_tag("admin/messaging/overview.html", takes_context=True)
def messaging_overview(context: Any) -> dict[str, Any]:
    """What failed or waits, with links to the lists; for an admin site's index page.

    The page needs the stylesheet `messaging/admin.css`.
    """
    request = context["request"]
    return {"cards": cards(request, getattr(request, "current_app", None) or "admin")}
