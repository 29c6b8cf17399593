"""Sagas in the frameworks that people run Celery with. Each is an extra, and imported by those who use it."""
