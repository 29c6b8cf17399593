"""Leases on ordered queues: one process at a time reads such a queue, because two would overtake each other."""

from __future__ import annotations

from datetime import timedelta

from sqlalchemy import Connection, Engine, delete, insert, select, update
from sqlalchemy.exc import IntegrityError

from sagas.stores import schema
from sagas.stores.engines import database_now, translated
from sagas.stores.transactions import begun

__all__ = ["is_mine", "release", "take"]

_TABLE = schema.consumer_leases


def take(engine: Engine, queue: str, owner: str, seconds: float) -> bool:
    """Take or renew the lease on a queue; return whether this owner holds it. Raises `StoreUnavailable`."""
    with translated(engine):
        try:
            with begun(engine) as connection:
                now = connection.execute(select(database_now(engine.dialect.name))).scalar_one()
                until = now + timedelta(seconds=seconds)
                free = (_TABLE.c.owner == owner) | (_TABLE.c.lease_until < now)
                mine = update(_TABLE).where(_TABLE.c.queue == queue, free).values(owner=owner, lease_until=until)
                if connection.execute(mine).rowcount == 1:
                    return True
                if connection.execute(select(_TABLE.c.queue).where(_TABLE.c.queue == queue)).first() is not None:
                    return False
                connection.execute(insert(_TABLE), {"queue": queue, "owner": owner, "lease_until": until})
                return True
        except IntegrityError:  # another process was faster
            return False


def release(engine: Engine, queue: str, owner: str) -> None:
    """Let other processes read the queue at once."""
    with translated(engine), begun(engine) as connection:
        connection.execute(delete(_TABLE).where(_TABLE.c.queue == queue, _TABLE.c.owner == owner))


def is_mine(connection: Connection, queue: str, owner: str) -> bool:
    """Return whether this owner still holds the lease."""
    return connection.execute(select(_TABLE.c.owner).where(_TABLE.c.queue == queue)).scalar() == owner
