"""Bring all tables to what this version needs, before the workers start: `python -m config.migrate`.

The first half is `celery -A config sagas db upgrade`; the second is the shop's own.
"""

import sys

from config.celery import store
from sagas.errors import SagaError
from tasks import tables

if __name__ == "__main__":
    try:
        store.upgrade()
    except SagaError as error:
        sys.exit(f"the tables were not brought up to date: {error}")
    tables.create_all(store.engine)
