"""Where sagas are kept. `SqlStore` is the store that ships; `CheckpointStore` is what the engine asks of any store."""

from __future__ import annotations

import importlib
import sys

from sagas.stores.codecs import Codec
from sagas.stores.filters import EVERYTHING, AuditEntry, Filter, InFlight, Payloads, Standing, StatusCount
from sagas.stores.protocols import CheckpointStore, OperatorStore, Queries, SagaLog, operator_store
from sagas.stores.sessions import AnySession
from sagas.stores.sql import SqlStore

__all__ = [
    "EVERYTHING",
    "AnySession",
    "AuditEntry",
    "CheckpointStore",
    "Codec",
    "Filter",
    "InFlight",
    "OperatorStore",
    "Payloads",
    "Queries",
    "SagaLog",
    "SqlStore",
    "Standing",
    "StatusCount",
    "operator_store",
]

if "alembic" in sys.modules:
    # This may be the `env.py` of an application, which imports us: our tables are kept out of what is generated
    # there, for those too who have not read how to. Elsewhere Alembic is slow to import, and rarely needed.
    importlib.import_module("sagas.stores.autogenerate")
