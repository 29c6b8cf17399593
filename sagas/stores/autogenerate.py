"""What Alembic's autogenerate is told of our tables: they are none of the application's.

A table that is in the database and not in the application's metadata is one that autogenerate would drop.
"""

from __future__ import annotations

from alembic.autogenerate.api import AutogenContext
from alembic.operations.ops import UpgradeOps
from alembic.runtime.plugins import Plugin
from alembic.util import DispatchPriority, PriorityDispatchResult
from sqlalchemy import Table
from sqlalchemy.schema import SchemaItem

from sagas.stores.migrate import VERSION_TABLE
from sagas.stores.schema import metadata

__all__ = ["include_object"]


def include_object(
    object: SchemaItem,  # noqa: A002 - Alembic's names
    name: str | None,  # noqa: ARG001
    type_: str,
    reflected: bool,
    compare_to: SchemaItem | None,
) -> bool:
    """Tell Alembic's autogenerate to leave the library's tables alone: `context.configure(include_object=...)`.

    In a Flask app with `FlaskSagas` it is asked without that, and in an `env.py` that imports the library.
    A table of your own may have the name of one of ours, in a database without sagas: it is compared as any other.

    >>> from alembic import context
    >>> context.configure(target_metadata=Base.metadata, include_object=include_object)  # doctest: +SKIP
    """
    in_database, declared = (object, compare_to) if reflected else (compare_to, object)
    if type_ != "table" or not isinstance(in_database, Table):
        return True
    if isinstance(declared, Table) and declared.metadata is metadata:
        return True  # whoever gives it our own metadata wants to compare that
    if in_database.name == VERSION_TABLE:
        return False
    ours = metadata.tables.get(in_database.name)
    if ours is None:
        return True
    # What nobody declares is never dropped. What somebody declares, for a foreign key to it, is ours by its columns.
    return declared is not None and not set(ours.primary_key.columns.keys()) <= set(in_database.columns.keys())


def _ask(context: AutogenContext, _: UpgradeOps) -> PriorityDispatchResult:
    """Have a run of autogenerate ask, before it compares anything."""
    # The argument of `context.configure` can be given once, and that is the application's. No public name adds to it,
    # and operations that are taken away afterwards have been reported, each of our tables as removed.
    context._object_filters.append(include_object)  # noqa: SLF001
    return PriorityDispatchResult.CONTINUE


# By this name it is among the plugins that take part unless somebody lists others.
Plugin("alembic.autogenerate.celery_sagas").add_autogenerate_comparator(
    _ask, "autogenerate", priority=DispatchPriority.FIRST
)
