"""The command line, a plug-in of Celery's: `celery -A yourapp sagas ...`."""
