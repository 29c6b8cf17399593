"""Upgrade all tables to this version, before the workers start: `python -m config.migrate`.

The first half is the same as `celery -A config sagas db upgrade`; the second creates the shop's own tables.
"""

import sys

from config.celery import store
from sagas.errors import SagaError
from tasks import tables

if __name__ == "__main__":
    try:
        store.upgrade()
    except SagaError as error:
        sys.exit(f"the tables could not be upgraded: {error}")
    tables.create_all(store.engine)
