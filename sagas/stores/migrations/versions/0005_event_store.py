"""Streams of events, snapshots and projections."""

import sqlalchemy as sa
from alembic import op

from sagas.stores.columns import MYSQL_OPTIONS, LongText, Serial, UtcDateTime, exact

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "events_stream",
        sa.Column("name", exact(200), nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_events_stream"),
        **MYSQL_OPTIONS,
    )

    op.create_table(
        "events_event",
        sa.Column("position", Serial, autoincrement=True, nullable=False),
        sa.Column("stream", exact(200), nullable=False),
        sa.Column("stream_version", sa.Integer, nullable=False),
        sa.Column("event_id", sa.String(36), nullable=False),
        sa.Column("type", exact(100), nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("data", LongText, nullable=False),
        sa.Column("metadata", LongText, nullable=False),
        sa.Column("recorded_at", UtcDateTime, nullable=False),
        sa.PrimaryKeyConstraint("position", name="pk_events_event"),
        sa.UniqueConstraint("stream", "stream_version", name="uq_events_event_stream_stream_version"),
        sa.UniqueConstraint("event_id", name="uq_events_event_event_id"),
        **MYSQL_OPTIONS,
    )

    op.create_table(
        "events_position",
        sa.Column("id", sa.Integer, autoincrement=False, nullable=False),
        sa.Column("position", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_events_position"),
        **MYSQL_OPTIONS,
    )

    op.create_table(
        "events_snapshot",
        sa.Column("stream", exact(200), nullable=False),
        sa.Column("schema_version", sa.Integer, autoincrement=False, nullable=False),
        sa.Column("stream_version", sa.Integer, nullable=False),
        sa.Column("state", LongText, nullable=False),
        sa.Column("recorded_at", UtcDateTime, nullable=False),
        sa.PrimaryKeyConstraint("stream", "schema_version", name="pk_events_snapshot"),
        **MYSQL_OPTIONS,
    )

    op.create_table(
        "events_projection",
        sa.Column("name", exact(100), nullable=False),
        sa.Column("version", sa.Integer, autoincrement=False, nullable=False),
        sa.Column("position", sa.BigInteger, nullable=False),
        sa.Column("failed_position", sa.BigInteger),
        sa.Column("error", LongText),
        sa.Column("updated_at", UtcDateTime, nullable=False),
        sa.PrimaryKeyConstraint("name", "version", name="pk_events_projection"),
        **MYSQL_OPTIONS,
    )

    op.create_table(
        "events_projection_live",
        sa.Column("name", exact(100), nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("since", UtcDateTime, nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_events_projection_live"),
        **MYSQL_OPTIONS,
    )


def downgrade() -> None:
    for table in (
        "events_projection_live",
        "events_projection",
        "events_snapshot",
        "events_position",
        "events_event",
        "events_stream",
    ):
        op.drop_table(table)
