"""Settings of the tests that run in pytest's own process.

`TEST_DB=sqlite` (the default), or `postgres` or `mariadb`, whose address the fixture `django_db_modify_db_settings`
fills in. `TEST_USE_TZ=0` has Django keep times without their zone, in one that is far from UTC.
"""

import os
import tempfile
from pathlib import Path
from typing import Any

SECRET_KEY = "tests"
DEBUG = False
ALLOWED_HOSTS = ["*"]
USE_TZ = os.environ.get("TEST_USE_TZ") != "0"
TIME_ZONE = "UTC" if USE_TZ else "Asia/Kolkata"
USE_I18N = True
LANGUAGE_CODE = "en"
LANGUAGES = [("en", "English"), ("zh-hans", "简体中文")]
ROOT_URLCONF = "tests.urls"
STATIC_URL = "static/"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]

INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "messaging",
    "tests.app",
]

MIDDLEWARE = [
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.locale.LocaleMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
]

TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
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

# The process id keeps runs side by side, and the workers of one run, apart.
_name = f"messaging-test-{os.getpid()}"
_databases: dict[str, dict[str, Any]] = {
    "sqlite": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": ":memory:",
        "TEST": {"NAME": str(Path(tempfile.gettempdir()) / f"{_name}.sqlite3")},
        "OPTIONS": {
            "transaction_mode": "IMMEDIATE",
            "timeout": 20,
            "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL",
        },
    },
    "postgres": {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": "postgres",
        "TEST": {"NAME": _name},
    },
    "mariadb": {
        "ENGINE": "django.db.backends.mysql",
        "NAME": "mysql",
        "TEST": {"NAME": _name},
    },
}
TEST_DB = os.environ.get("TEST_DB", "sqlite")
DATABASES = {"default": _databases[TEST_DB]}

MESSAGING: dict[str, dict[str, Any]] = {"default": {"URL": "database://"}}
