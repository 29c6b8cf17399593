import os

from celery import Celery
from kombu.transport import TRANSPORT_ALIASES

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "webshop.settings")

TRANSPORT_ALIASES["folder"] = "webshop.folder_broker:Transport"

app = Celery("webshop")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks()
