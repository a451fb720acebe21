"""What the settings of a site in containers need, at the end of shop/settings.py: nothing secret is in the image."""

import os
from pathlib import Path

SECRETS = Path(os.environ.get("SECRETS", "/run/secrets"))


def secret(name):
    """What the file of a secret holds; "" where it is not mounted, as while the image is built."""
    path = SECRETS / name
    return path.read_text().strip() if path.is_file() else ""


DEBUG = False
SECRET_KEY = secret("secret-key")
ALLOWED_HOSTS = os.environ.get("ALLOWED_HOSTS", "localhost").split(",")
STATIC_ROOT = "/srv/shop/static"
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.postgresql",
        "HOST": os.environ.get("DATABASE_HOST", "postgres"),
        "PORT": os.environ.get("DATABASE_PORT", "5432"),
        "NAME": "shop",
        "USER": "shop",
        "PASSWORD": secret("database-password"),
        "OPTIONS": {"connect_timeout": 5},
    }
}
MESSAGING = {
    "default": {
        "URL": os.environ.get("MESSAGING_URL", "amqp://rabbitmq:5672/shop"),
        "USER": os.environ.get("BROKER_USER", "monitor"),  # each process its own
        "PASSWORD": {"file": str(SECRETS / "broker-password")},
        "STOP_TIMEOUT": 30,
    }
}
