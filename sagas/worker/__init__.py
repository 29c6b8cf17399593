"""What a Celery worker does for sagas and events besides running their tasks."""
