"""The outbox, the relay's shards, the inbox, and who reads what."""

import sqlalchemy as sa
from alembic import op

from sagas.stores.columns import MYSQL_OPTIONS, LongText, Serial, UtcDateTime, exact

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "events_outbox",
        sa.Column("id", Serial, autoincrement=True, nullable=False),
        sa.Column("shard", sa.Integer, nullable=False),
        sa.Column("event_id", exact(36), nullable=False),
        sa.Column("type", exact(100), nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("source", exact(100), nullable=False),
        sa.Column("key", exact(200)),
        sa.Column("correlation_id", exact(200), nullable=False),
        sa.Column("causation_id", sa.String(200)),
        sa.Column("queue", exact(200)),
        sa.Column("body", LongText, nullable=False),
        sa.Column("created_at", UtcDateTime, nullable=False),
        sa.Column("sent_at", UtcDateTime),
        sa.PrimaryKeyConstraint("id", name="pk_events_outbox"),
        **MYSQL_OPTIONS,
    )
    op.create_index("ix_events_outbox_correlation_id", "events_outbox", ["correlation_id"])
    op.create_index("ix_events_outbox_event_id", "events_outbox", ["event_id"])
    op.create_index("ix_events_outbox_sent_at_shard_id", "events_outbox", ["sent_at", "shard", "id"])
    unsent = sa.text("sent_at IS NULL")
    op.create_index(
        "ix_events_outbox_unsent", "events_outbox", ["shard", "id"], postgresql_where=unsent, sqlite_where=unsent
    )

    shards = op.create_table(
        "events_relay_shard",
        sa.Column("shard", sa.Integer, autoincrement=False, nullable=False),
        sa.PrimaryKeyConstraint("shard", name="pk_events_relay_shard"),
    )
    op.bulk_insert(shards, [{"shard": shard} for shard in range(16)])

    op.create_table(
        "events_inbox",
        sa.Column("queue", exact(200), nullable=False),
        sa.Column("event_id", exact(36), nullable=False),
        sa.Column("type", exact(100), nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("source", exact(100), nullable=False),
        sa.Column("correlation_id", exact(200), nullable=False),
        sa.Column("causation_id", sa.String(200)),
        sa.Column("handled_at", UtcDateTime, nullable=False),
        sa.PrimaryKeyConstraint("queue", "event_id", name="pk_events_inbox"),
        **MYSQL_OPTIONS,
    )
    op.create_index("ix_events_inbox_correlation_id", "events_inbox", ["correlation_id"])
    op.create_index("ix_events_inbox_handled_at", "events_inbox", ["handled_at"])

    op.create_table(
        "events_suspect",
        sa.Column("queue", exact(200), nullable=False),
        sa.Column("event_id", exact(36), nullable=False),
        sa.Column("begun", sa.Integer, nullable=False),
        sa.Column("seen_at", UtcDateTime, nullable=False),
        sa.PrimaryKeyConstraint("queue", "event_id", name="pk_events_suspect"),
        **MYSQL_OPTIONS,
    )
    op.create_index("ix_events_suspect_seen_at", "events_suspect", ["seen_at"])

    op.create_table(
        "events_reader",
        sa.Column("queue", exact(200), nullable=False),
        sa.Column("owner", sa.String(100), nullable=False),
        sa.Column("lease_until", UtcDateTime, nullable=False),
        sa.PrimaryKeyConstraint("queue", name="pk_events_reader"),
        **MYSQL_OPTIONS,
    )


def downgrade() -> None:
    for table in ("events_reader", "events_suspect", "events_inbox", "events_relay_shard", "events_outbox"):
        op.drop_table(table)
