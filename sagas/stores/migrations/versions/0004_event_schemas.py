"""The schema registry."""

import sqlalchemy as sa
from alembic import op

from sagas.stores.columns import MYSQL_OPTIONS, LongText, UtcDateTime, exact

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "events_schema",
        sa.Column("subject", exact(150), nullable=False),
        sa.Column("revision", sa.Integer, autoincrement=False, nullable=False),
        sa.Column("format", sa.String(20), nullable=False),
        sa.Column("definition", LongText, nullable=False),
        sa.Column("fingerprint", sa.String(64), nullable=False),
        sa.Column("owner", exact(100), nullable=False),
        sa.Column("created_at", UtcDateTime, nullable=False),
        sa.PrimaryKeyConstraint("subject", "revision", name="pk_events_schema"),
        **MYSQL_OPTIONS,
    )


def downgrade() -> None:
    op.drop_table("events_schema")
