"""Somebody who uses a site in a browser, and whatever the browser complains about meanwhile."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import urljoin

from tests.site import Site
from tools.browser import walk

TOP = "/admin/messaging/"
SIGN_IN = """
from django.contrib.auth import get_user_model
from django.contrib.auth.models import Permission
from django.test import Client
names = {codenames!r}
user, is_new = get_user_model().objects.get_or_create(username={name!r}, defaults={{"is_staff": True}})
if names is None:
    user.is_superuser = True
    user.save()
else:
    user.user_permissions.set(Permission.objects.filter(codename__in=names, content_type__app_label="messaging"))
client = Client()
client.force_login(user)
print("session:", client.cookies["sessionid"].value)
"""
REPORT = """addEventListener('securitypolicyviolation', event =>
    report(`${event.violatedDirective} ${event.blockedURI} ${event.sourceFile}:${event.lineNumber}`))"""


class Visitor:
    """A page of a browser, signed in to a site.

    Args:
        browser: Playwright's.
        base: the site's address.
        site: the site.
        name: of the user, who is made if there is none.
        codenames: the user's permissions; None for all.
        scheme: "light" or "dark".
    """

    def __init__(
        self, browser: Any, base: str, site: Site, name: str, codenames: tuple[str, ...] | None, scheme: str = "light"
    ) -> None:
        self.base = base
        self.complaints: list[str] = []
        self.context = browser.new_context(
            viewport={"width": 1280, "height": 900}, color_scheme=scheme, locale="en-US", timezone_id="UTC"
        )
        self.context.set_default_timeout(120_000)
        said = site.shell(SIGN_IN.format(name=name, codenames=codenames))
        [session] = re.findall("session: (.+)", said)
        self.context.add_cookies([{"name": "sessionid", "value": session, "url": base}])
        self.page = self.context.new_page()
        self.page.expose_function("report", lambda text: self.complaints.append(f"{self.page.url}: {text}"))
        self.page.add_init_script(REPORT)
        self.page.on("console", self._on_console)
        self.page.on("pageerror", lambda error: self.complaints.append(f"{self.page.url}: {error}"))

    def _on_console(self, message: Any) -> None:
        if message.type == "error" and "favicon.ico" not in str(message.location):
            self.complaints.append(f"{self.page.url}: {message.text}")

    def go(self, path: str) -> None:
        """Open a page, which must be there."""
        answer = self.page.goto(urljoin(self.base, path))
        assert answer is not None, path
        assert answer.ok, (path, answer.status)

    def status(self, path: str) -> int:
        """How the site answers a page, without showing it."""
        return int(self.context.request.get(urljoin(self.base, path)).status)

    def text(self) -> str:
        """What can be read."""
        return str(self.page.inner_text("body"))

    def walk(self) -> Iterator[str]:
        """Every page of the console that links lead to, one of each shape, shown one after another; their paths."""
        return walk(self.page, self.base + TOP)

    def close(self) -> None:
        """Leave."""
        self.context.close()
