"""Settings of the sites that tests and tools start as processes: the demo site's, ruled by the environment.

Beside those of `project.settings`: `EXTRA_APPS` (comma-separated), `MESSAGING_QUEUES` and `MESSAGING_OPTIONS` (JSON),
`SECOND_DATABASE_URL` for a database "second", `LOG_FILE` for a `LOGGING` of its own, `MESSAGING_CONSOLE` and `TASKS`
(JSON), and `MAIL_FOLDER` for what is mailed.
"""

from importlib.util import find_spec

from project.settings import *  # noqa: F403
from project.settings import DATABASES, INSTALLED_APPS, MESSAGING, database, env

DEBUG = env.bool("DEBUG", default=False)
SECRET_KEY = "tests"
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
# The demo site has handlers of its own, which would take the messages of those under test.
ROOT_URLCONF = "tools.site_urls"
INSTALLED_APPS = [name for name in INSTALLED_APPS if not name.startswith("project")]
INSTALLED_APPS += env.list("EXTRA_APPS", default=[])

if second := env.str("SECOND_DATABASE_URL", default=""):
    DATABASES["second"] = database(second)

MESSAGING["default"]["QUEUES"] = env.json("MESSAGING_QUEUES", default={})
MESSAGING["default"] |= env.json("MESSAGING_OPTIONS", default={})

MESSAGING_CONSOLE = env.json("MESSAGING_CONSOLE", default={})
if tasks := env.json("TASKS", default={}):
    TASKS = tasks
if mail_folder := env.str("MAIL_FOLDER", default=""):
    if find_spec("django.core.mail.handler"):  # Django 6.1
        options = {"file_path": mail_folder}
        MAILERS = {"default": {"BACKEND": "django.core.mail.backends.filebased.EmailBackend", "OPTIONS": options}}
    else:
        EMAIL_BACKEND = "django.core.mail.backends.filebased.EmailBackend"
        EMAIL_FILE_PATH = mail_folder
elif find_spec("django.core.mail.handler"):
    MAILERS = {"default": {}}

if log_file := env.str("LOG_FILE", default=""):
    LOGGING = {
        "version": 1,
        "handlers": {"file": {"class": "logging.FileHandler", "filename": log_file}},
        "loggers": {"messaging": {"handlers": ["file"], "level": "INFO"}},
    }
