"""The start of a site with the admin, with or without messaging: `python -m benchmarks.site.startup with|without`."""

import json
import sys
import time

import django
from django.conf import settings

CONTRIB = ("admin", "auth", "contenttypes", "sessions", "messages", "staticfiles")

if __name__ == "__main__":
    apps = [f"django.contrib.{name}" for name in CONTRIB]
    settings.configure(
        INSTALLED_APPS=[*apps, "messaging"] if sys.argv[1] == "with" else apps,
        DATABASES={"default": {"ENGINE": "django.db.backends.postgresql", "NAME": "unused"}},
        DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
        MESSAGING={"default": {"URL": "amqp://127.0.0.1/"}},
        USE_TZ=True,
    )
    began = time.process_time()
    django.setup()
    print(json.dumps({"seconds": time.process_time() - began}))
