"""Rendering those pages of the console that Django's admin has not."""

from __future__ import annotations

from typing import Any

from django.contrib.admin import ModelAdmin
from django.http import HttpRequest
from django.template.response import TemplateResponse


def page(
    model_admin: ModelAdmin[Any], request: HttpRequest, template: str, title: Any, row: Any = None, **own: Any
) -> TemplateResponse:
    """Render a page of the console.

    Args:
        model_admin: whose page it is.
        request: what is answered.
        template: its name within `admin/messaging/`.
        title: of the page, text or one that is translated when it is shown.
        row: what the page is about, if that is one row.
        own: what else the template shows.
    """
    request.current_app = model_admin.admin_site.name
    context = {
        **model_admin.admin_site.each_context(request),
        "title": title,
        "opts": model_admin.opts,
        "original": row,
        "media": model_admin.media,
        "preserved_filters": model_admin.get_preserved_filters(request),
        **own,
    }
    return TemplateResponse(request, f"admin/messaging/{template}", context)
