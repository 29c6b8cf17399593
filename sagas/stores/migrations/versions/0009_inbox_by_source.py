"""The inbox knows messages by source and id; bindings are remembered; and messages that reached nobody are marked."""

import sqlalchemy as sa
from alembic import op

from sagas.stores.columns import MYSQL_OPTIONS, UtcDateTime, exact

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("events_inbox", sa.Column("digest", sa.String(64), nullable=True))
    _key("queue", "source", "event_id")
    op.add_column("events_outbox", sa.Column("heard", sa.Boolean, nullable=True))
    unheard = sa.text("heard IS NOT NULL")
    op.create_index(
        "ix_events_outbox_heard", "events_outbox", ["heard", "id"], postgresql_where=unheard, sqlite_where=unheard
    )
    op.create_table(
        "events_binding",
        sa.Column("queue", exact(200), nullable=False),
        sa.Column("topic", exact(150), nullable=False),
        sa.Column("exchange", exact(200), nullable=False),
        sa.Column("declared_at", UtcDateTime, nullable=False),
        sa.Column("removed_at", UtcDateTime),
        sa.PrimaryKeyConstraint("queue", "topic", name="pk_events_binding"),
        **MYSQL_OPTIONS,
    )


def downgrade() -> None:
    op.drop_table("events_binding")
    op.drop_index("ix_events_outbox_heard", table_name="events_outbox")
    op.drop_column("events_outbox", "heard")
    _key("queue", "event_id")
    op.drop_column("events_inbox", "digest")


def _key(*columns: str) -> None:
    """Give the inbox another primary key. Old code goes on: it names neither the key nor its columns."""
    match op.get_context().dialect.name:
        case "sqlite":  # which cannot change a key. Not by Alembic's batches: those ask in a way that is not Django's
            op.rename_table("events_inbox", "events_inbox_before")
            for index in ("correlation_id", "handled_at"):
                op.drop_index(f"ix_events_inbox_{index}", table_name="events_inbox_before")
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
                sa.Column("digest", sa.String(64)),
                sa.PrimaryKeyConstraint(*columns, name="pk_events_inbox"),
            )
            kept = "queue, event_id, type, version, source, correlation_id, causation_id, handled_at, digest"
            op.execute(f"INSERT OR IGNORE INTO events_inbox ({kept}) SELECT {kept} FROM events_inbox_before")  # noqa: S608
            op.drop_table("events_inbox_before")
            for index in ("correlation_id", "handled_at"):
                op.create_index(f"ix_events_inbox_{index}", "events_inbox", [index])
        case "postgresql":
            op.drop_constraint("pk_events_inbox", "events_inbox", type_="primary")
            op.create_primary_key("pk_events_inbox", "events_inbox", list(columns))
        case _:
            op.execute(f"ALTER TABLE events_inbox DROP PRIMARY KEY, ADD PRIMARY KEY ({', '.join(columns)})")
