"""Settings of the sites that browsers visit: the tests' own, under the strictest policy.

`THEME` names the package of an admin theme; its pages may break the policy themselves, so it is not sent then.
"""

import os

from tests.site_settings import *  # noqa: F403
from tests.site_settings import INSTALLED_APPS, MIDDLEWARE

SOURCES = ("script-src", "style-src", "img-src", "connect-src", "form-action")
POLICY = "; ".join(["default-src 'none'", *(f"{name} 'self'" for name in SOURCES)])
THEME = os.environ.get("THEME", "")

DEBUG = True  # for the files that runserver serves
INSTALLED_APPS = [*([THEME] if THEME else []), *INSTALLED_APPS]
MIDDLEWARE = [name for name in MIDDLEWARE if name != "project.middleware.content_security_policy"]
MIDDLEWARE += [] if THEME else ["tests.browser.policy.strict"]
