"""What an attempt at a step reports while it runs."""

import sqlalchemy as sa
from alembic import op

from sagas.stores.columns import LongText, UtcDateTime

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # Nullable and without a default: none of the databases rewrites the table for that.
    op.add_column("sagas_step", sa.Column("heartbeat_at", UtcDateTime, nullable=True))
    op.add_column("sagas_step", sa.Column("heartbeat_details", LongText, nullable=True))
    op.add_column("sagas_step", sa.Column("progress_done", sa.BigInteger, nullable=True))
    op.add_column("sagas_step", sa.Column("progress_total", sa.BigInteger, nullable=True))


def downgrade() -> None:
    op.drop_column("sagas_step", "progress_total")
    op.drop_column("sagas_step", "progress_done")
    op.drop_column("sagas_step", "heartbeat_details")
    op.drop_column("sagas_step", "heartbeat_at")
