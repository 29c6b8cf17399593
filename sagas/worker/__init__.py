"""What a Celery worker does for sagas and events beside running their tasks."""
