"""The command line, as two plug-ins of Celery's: `celery -A yourapp sagas ...` and `celery -A yourapp events ...`."""
