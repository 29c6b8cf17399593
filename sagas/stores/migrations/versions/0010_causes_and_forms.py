"""What started a saga, with the chain that led to it; and of which form of its type a snapshot is."""

import sqlalchemy as sa
from alembic import op

from sagas.stores.columns import LongText

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # Nullable and without a default: none of the databases rewrites the table for that.
    op.add_column("sagas_saga", sa.Column("caused_by", LongText, nullable=True))
    op.add_column("events_snapshot", sa.Column("form", sa.String(64), nullable=True))


def downgrade() -> None:
    op.drop_column("events_snapshot", "form")
    op.drop_column("sagas_saga", "caused_by")
