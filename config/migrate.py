"""Bring all tables to what this version needs, before the workers start: `python -m config.migrate`.

The first half is `celery -A config sagas db upgrade`; the second is the shop's own.
"""

from config.celery import store
from tasks import tables

if __name__ == "__main__":
    store.upgrade()
    tables.create_all(store.engine)
