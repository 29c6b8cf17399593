"""What Alembic runs: always on a connection that `sagas.stores.migrate` hands over."""

from alembic import context

from sagas.stores.migrate import VERSION_TABLE
from sagas.stores.schema import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    version_table=VERSION_TABLE,
    transactional_ddl=None,
)
context.run_migrations()
