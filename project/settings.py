"""Settings of the demo site, from the environment and a file `.env` beside `manage.py` (see `.env.example`)."""

import os
from pathlib import Path
from typing import Any

import environ
from django.core.exceptions import ImproperlyConfigured

BASE_DIR = Path(__file__).resolve().parent.parent
DATA_DIR = Path(os.environ.get("DATA_DIR", BASE_DIR / "var"))

env = environ.Env()
env_file = Path(os.environ.get("ENV_FILE", BASE_DIR / ".env"))
if env_file.is_file():
    env.read_env(env_file)

DEBUG = env.bool("DEBUG", default=True)
# The default only ever serves development; without DEBUG the environment must say.
SECRET_KEY = env.str("SECRET_KEY", default="development-only-not-a-secret") if DEBUG else env.str("SECRET_KEY")
ALLOWED_HOSTS = env.list("ALLOWED_HOSTS", default=["localhost", "127.0.0.1", "[::1]"])
CSRF_TRUSTED_ORIGINS = env.list("CSRF_TRUSTED_ORIGINS", default=[])

INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "messaging",
    "project",
]

MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.locale.LocaleMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "project.middleware.content_security_policy",
]

ROOT_URLCONF = "project.urls"
WSGI_APPLICATION = "project.wsgi.application"
ASGI_APPLICATION = "project.asgi.application"

TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [BASE_DIR / "templates"],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ],
        },
    },
]


def database(url: str) -> dict[str, Any]:
    """A database of `DATABASES`, with what SQLite needs so that several processes can write to it."""
    try:
        values: dict[str, Any] = env.db_url_config(url) if url.partition("://")[0] in env.DB_SCHEMES else {}
    except ValueError:
        values = {}
    if not values:
        raise ImproperlyConfigured(
            "DATABASE_URL cannot be read; it should look like postgres://user:password@127.0.0.1:5432/shop "
            "or sqlite:////folder/file.sqlite3."
        )
    if values["ENGINE"] == "django.db.backends.sqlite3":
        values["OPTIONS"] = {
            "transaction_mode": "IMMEDIATE",
            "timeout": 20,
            "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL",
        } | values.get("OPTIONS", {})
    elif values["ENGINE"] == "django.db.backends.postgresql":
        values.setdefault("OPTIONS", {}).setdefault("connect_timeout", 10)
    return values


DATA_DIR.mkdir(mode=0o700, parents=True, exist_ok=True)  # messages and accounts: for this user alone
DATABASES = {"default": database(env.str("DATABASE_URL", default="") or f"sqlite:///{DATA_DIR / 'db.sqlite3'}")}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

MESSAGING: dict[str, dict[str, Any]] = {
    "default": {
        "URL": env.str("MESSAGING_URL", default="database://"),
        "MANAGEMENT_URL": env.str("MESSAGING_MANAGEMENT_URL", default="") or None,
        "RETRY": {"max_attempts": 5, "initial": 2.0, "multiplier": 2.0},
    },
}

AUTH_PASSWORD_VALIDATORS = [
    {"NAME": "django.contrib.auth.password_validation.MinimumLengthValidator"},
    {"NAME": "django.contrib.auth.password_validation.CommonPasswordValidator"},
]

LANGUAGE_CODE = "en"
LANGUAGES = [("en", "English"), ("zh-hans", "简体中文")]
TIME_ZONE = env.str("TIME_ZONE", default="UTC")
USE_I18N = True
USE_TZ = True

STATIC_URL = "static/"
STATIC_ROOT = DATA_DIR / "static"

LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"line": {"format": "{asctime} {levelname} {name}: {message}", "style": "{"}},
    "handlers": {"console": {"class": "logging.StreamHandler", "formatter": "line"}},
    "loggers": {
        "messaging": {"handlers": ["console"], "level": env.str("LOG_LEVEL", default="INFO")},
        "project": {"handlers": ["console"], "level": env.str("LOG_LEVEL", default="INFO")},
    },
}
