"""What the user may do here, and which permission the rest takes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from django.contrib.admin.sites import all_sites
from django.contrib.auth.models import Permission
from django.http import HttpRequest
from django.utils.translation import gettext as _

SHOWN = 500  # pairs of a permission and a group


class Right(NamedTuple):
    """Something that one may do.

    Attributes:
        codename: of the permission, with the app's label.
        words: what it allows.
        given: whether the user has it.
        groups: names of groups that have it, where they were asked for.
    """

    codename: str
    words: str
    given: bool
    groups: tuple[str, ...] = ()


def rights(request: HttpRequest, app: str, site: str = "admin", *, with_groups: bool = False) -> list[Right]:
    """Everything that the pages of an app ask permission for.

    Args:
        request: who looks.
        app: label of the app.
        site: name of the admin site.
        with_groups: whether to name the groups that may do what this user may not.
    """
    found = [
        Right(f"{app}.{codename}", words, request.user.has_perm(f"{app}.{codename}"))
        for codename, words in _of(app, site)
    ]
    missing = [right.codename.partition(".")[2] for right in found if not right.given]
    groups: dict[str, list[str]] = {}
    if with_groups and missing:
        own = Permission.objects.filter(content_type__app_label=app, codename__in=missing, group__isnull=False)
        for codename, name in own.order_by("codename", "group__name").values_list("codename", "group__name")[:SHOWN]:
            groups.setdefault(f"{app}.{codename}", []).append(str(name))
    return [right._replace(groups=tuple(groups.get(right.codename, ()))) for right in found]


def _of(app: str, site: str) -> Iterator[tuple[str, str]]:
    """Names and words of the permissions of every model that the admin site shows."""
    registry: dict[Any, Any] = next((one._registry for one in all_sites if one.name == site), {})
    for model in registry:
        opts = model._meta
        if opts.app_label == app:
            if "view" in opts.default_permissions:
                yield f"view_{opts.model_name}", _("Can see %(what)s") % {"what": opts.verbose_name_plural}
            yield from ((codename, str(words)) for codename, words in opts.permissions)
