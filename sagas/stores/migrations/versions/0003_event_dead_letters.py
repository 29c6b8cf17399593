"""Dead letters of events and commands."""

import sqlalchemy as sa
from alembic import op

from sagas.stores.columns import MYSQL_OPTIONS, LongText, Serial, UtcDateTime, exact

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "events_dead_letter",
        sa.Column("id", Serial, autoincrement=True, nullable=False),
        sa.Column("queue", exact(200), nullable=False),
        sa.Column("event_id", exact(36), nullable=False),
        sa.Column("type", exact(100), nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("key", exact(200)),
        sa.Column("correlation_id", exact(200), nullable=False),
        sa.Column("headers", LongText, nullable=False),
        sa.Column("body", LongText, nullable=False),
        sa.Column("error", LongText, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("behind", sa.BigInteger),
        sa.Column("created_at", UtcDateTime, nullable=False),
        sa.Column("resolved_at", UtcDateTime),
        sa.Column("resolution", sa.String(50)),
        sa.Column("reason", LongText),
        sa.Column("by", sa.String(200)),
        sa.PrimaryKeyConstraint("id", name="pk_events_dead_letter"),
        **MYSQL_OPTIONS,
    )
    op.create_index("ix_events_dead_letter_correlation_id", "events_dead_letter", ["correlation_id"])
    op.create_index("ix_events_dead_letter_event_id", "events_dead_letter", ["event_id"])
    op.create_index("ix_events_dead_letter_queue_key", "events_dead_letter", ["queue", "key"])
    op.create_index("ix_events_dead_letter_resolved_at", "events_dead_letter", ["resolved_at"])


def downgrade() -> None:
    op.drop_table("events_dead_letter")
