"""Schedules and their ticks."""

import sqlalchemy as sa
from alembic import op

from sagas.stores.columns import MYSQL_OPTIONS, LongText, UtcDateTime, exact

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "sagas_schedule",
        sa.Column("name", exact(100), nullable=False),
        sa.Column("saga", exact(100), nullable=False),
        sa.Column("cron", exact(200), nullable=False),
        sa.Column("timezone", exact(100), nullable=False),
        sa.Column("next_at", UtcDateTime, nullable=False),
        sa.Column("waiting", UtcDateTime),
        sa.Column("paused_at", UtcDateTime),
        sa.Column("paused_by", sa.String(200)),
        sa.Column("paused_why", LongText),
        sa.Column("seen_at", UtcDateTime, nullable=False),
        sa.Column("revision", sa.Integer, nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_sagas_schedule"),
        **MYSQL_OPTIONS,
    )
    op.create_table(
        "sagas_tick",
        sa.Column("schedule", exact(100), nullable=False),
        sa.Column("at", UtcDateTime, nullable=False),
        sa.Column("outcome", sa.String(8), nullable=False),
        sa.Column("why", LongText, nullable=False),
        sa.Column("saga_id", sa.String(36)),
        sa.Column("decided_at", UtcDateTime, nullable=False),
        sa.Column("actor", sa.String(200)),
        sa.PrimaryKeyConstraint("schedule", "at", name="pk_sagas_tick"),
        **MYSQL_OPTIONS,
    )


def downgrade() -> None:
    op.drop_table("sagas_tick")
    op.drop_table("sagas_schedule")
