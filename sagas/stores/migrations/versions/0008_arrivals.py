"""How far the messages of each task have come; how often a saga was dispatched, and when a step was sent a message."""

import sqlalchemy as sa
from alembic import op

from sagas.stores.columns import MYSQL_OPTIONS, UtcDateTime, exact

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # None of the databases rewrites a table for a column that is nullable, or has a constant default.
    op.add_column("sagas_saga", sa.Column("dispatches", sa.Integer, nullable=False, server_default="1"))
    op.add_column("sagas_step", sa.Column("sent_at", UtcDateTime, nullable=True))
    op.create_table(
        "sagas_arrival",
        sa.Column("task", exact(255), nullable=False),
        sa.Column("sent_at", UtcDateTime, nullable=False),
        sa.PrimaryKeyConstraint("task", name="pk_sagas_arrival"),
        **MYSQL_OPTIONS,
    )


def downgrade() -> None:
    op.drop_table("sagas_arrival")
    op.drop_column("sagas_step", "sent_at")
    op.drop_column("sagas_saga", "dispatches")
