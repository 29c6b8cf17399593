"""What Alembic runs: on a connection that `sagas.stores.migrate` hands over, or to write down the SQL."""

from alembic import context

from sagas.stores.migrate import VERSION_TABLE
from sagas.stores.schema import metadata

if context.is_offline_mode():
    context.configure(
        dialect_name=context.config.attributes["dialect"],
        target_metadata=metadata,
        version_table=VERSION_TABLE,
        literal_binds=True,
        transactional_ddl=False,  # whoever writes it down says where it begins and ends
    )
else:
    context.configure(
        connection=context.config.attributes["connection"],
        target_metadata=metadata,
        version_table=VERSION_TABLE,
        transactional_ddl=None,
    )
context.run_migrations()
