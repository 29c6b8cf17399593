"""What a test wants otherwise comes as JSON in PROJECT."""

import json
import os
from pathlib import Path
from typing import Any

BASE_DIR = Path(__file__).parent
FOLDER = Path(os.environ.get("PROJECT_FOLDER", BASE_DIR))

SECRET_KEY = "not a secret"
DEBUG = True
ALLOWED_HOSTS = ["127.0.0.1", "testserver"]
ROOT_URLCONF = "tests.django_project.urls"
USE_TZ = True
STATIC_URL = "static/"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "sagas.contrib.django",
    "tests.django_project.orders",
]
MIDDLEWARE = [
    "django.contrib.sessions.middleware.SessionMiddleware",
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
            ]
        },
    }
]
DATABASES: dict[str, dict[str, Any]] = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": FOLDER / "db.sqlite3",
        "OPTIONS": {"timeout": 20},
        "TEST": {"NAME": FOLDER / "test.sqlite3"},
    },
    "other": {"ENGINE": "django.db.backends.sqlite3", "NAME": FOLDER / "other.sqlite3"},
}
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]

MIGRATION_MODULES = dict.fromkeys(["admin", "auth", "contenttypes", "sessions"])  # theirs are not tested here

CELERY_BROKER_URL = "memory://"
CELERY_WORKER_HIJACK_ROOT_LOGGER = False
CELERY_BROKER_CONNECTION_RETRY_ON_STARTUP = True
CELERY_SAGAS_EVENTS = "tests.django_project.orders.events.events"
CELERY_SAGAS_REDACT = ["card"]

globals().update(json.loads(os.environ.get("PROJECT", "{}")))

if DATABASES["default"]["ENGINE"].endswith("mysql"):
    import pymysql

    pymysql.version_info = (2, 2, 7, "final", 0)  # the version of mysqlclient that Django asks for
    pymysql.install_as_MySQLdb()
