"""A small Django project, as its authors would write it: a Celery app, one app with sagas, and the admin."""

from tests.django_project.celery import app as celery_app

__all__ = ["celery_app"]
