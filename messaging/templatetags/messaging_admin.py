"""Tags for the admin's pages."""

from __future__ import annotations

from typing import Any

from django import template

register = template.Library()


@register.simple_tag
def older_url(cl: Any) -> str:
    """Where the list goes on behind the last row of this page, once counting has stopped; "" elsewhere."""
    rows = list(cl.result_list)
    if not rows or not getattr(cl.paginator, "is_bounded", False):
        return ""
    url: str = cl.get_query_string({"before": rows[-1].pk}, ["p"])
    return url
