"""By default SQLite, and a folder as broker. Set SHOP_DATABASE and SHOP_BROKER for PostgreSQL and Redis."""

import os
from pathlib import Path
from urllib.parse import urlsplit

BASE_DIR = Path(__file__).parent.parent
DATA = Path(os.environ.get("SHOP_DATA", BASE_DIR / "data"))
DATA.mkdir(exist_ok=True)

SECRET_KEY = "only for this example"
DEBUG = True
ALLOWED_HOSTS = ["127.0.0.1", "localhost", "testserver"]
ROOT_URLCONF = "webshop.urls"
USE_TZ = True
TIME_ZONE = "UTC"
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
    "shop",
]
MIDDLEWARE = [
    "django.contrib.sessions.middleware.SessionMiddleware",
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
            ]
        },
    }
]

if "SHOP_DATABASE" in os.environ:  # postgresql://user:password@host:port/name
    url = urlsplit(os.environ["SHOP_DATABASE"])
    DATABASES = {
        "default": {
            "ENGINE": "django.db.backends.postgresql",
            "NAME": url.path.lstrip("/"),
            "USER": url.username,
            "PASSWORD": url.password or "",
            "HOST": url.hostname,
            "PORT": url.port or 5432,
            "CONN_MAX_AGE": 60,
        }
    }
else:
    DATABASES = {
        "default": {
            "ENGINE": "django.db.backends.sqlite3",
            "NAME": DATA / "shop.sqlite3",
            # Writers then wait for each other, and readers do not wait.
            "OPTIONS": {
                "timeout": 20,
                "transaction_mode": "IMMEDIATE",
                "init_command": "PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL",
            },
        }
    }

if "SHOP_BROKER" in os.environ:  # redis://host:port/0
    CELERY_BROKER_URL = os.environ["SHOP_BROKER"]
    CELERY_BROKER_TRANSPORT_OPTIONS = {"socket_timeout": 30}
else:
    CELERY_BROKER_URL = "folder://"
    CELERY_BROKER_TRANSPORT_OPTIONS = {
        "data_folder_in": DATA / "queue",
        "data_folder_out": DATA / "queue",
        "control_folder": DATA / "control",
        "polling_interval": 0.05,
    }
    (DATA / "queue").mkdir(exist_ok=True)
CELERY_BROKER_CONNECTION_RETRY_ON_STARTUP = True
CELERY_WORKER_PREFETCH_MULTIPLIER = 1

# Shorter than in production, so that you can watch recovery after a worker is killed.
CELERY_SAGAS_LEASE = 4
CELERY_SAGAS_REDISPATCH_AFTER = 4
CELERY_SAGAS_REDACT = ["card"]

#: Seconds that each step takes, so that there is something to see.
SHOP_STEP_SECONDS = float(os.environ.get("SHOP_STEP_SECONDS", "1"))
