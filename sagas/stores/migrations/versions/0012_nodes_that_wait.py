"""What nodes need that decide, wait or fan out."""

import sqlalchemy as sa
from alembic import op

from sagas.stores.columns import LongText, UtcDateTime

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # Nullable and without a default: none of the databases rewrites the table for that.
    op.add_column("sagas_step", sa.Column("opened_at", UtcDateTime, nullable=True))
    op.add_column("sagas_step", sa.Column("input", LongText, nullable=True))


def downgrade() -> None:
    op.drop_column("sagas_step", "input")
    op.drop_column("sagas_step", "opened_at")
