"""The first tables: sagas, their steps, their history, and dead letters."""

import sqlalchemy as sa
from alembic import op

from sagas.stores.columns import MYSQL_OPTIONS, LongText, Serial, UtcDateTime, exact

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "sagas_saga",
        sa.Column("id", sa.String(36), nullable=False),
        sa.Column("name", exact(100), nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("key", exact(200), nullable=False),
        sa.Column("shape", sa.Text, nullable=False),
        sa.Column("correlation_id", exact(200), nullable=False),
        sa.Column("input", LongText, nullable=False),
        sa.Column("status", sa.String(12), nullable=False),
        sa.Column("direction", sa.String(8), nullable=False),
        sa.Column("epoch", sa.Integer, nullable=False),
        sa.Column("revision", sa.Integer, nullable=False),
        sa.Column("stalls", sa.Integer, nullable=False),
        sa.Column("error", LongText),
        sa.Column("created_at", UtcDateTime, nullable=False),
        sa.Column("updated_at", UtcDateTime, nullable=False),
        sa.Column("ready_at", UtcDateTime, nullable=False),
        sa.Column("deadline", UtcDateTime),
        sa.Column("wake_at", UtcDateTime),
        sa.PrimaryKeyConstraint("id", name="pk_sagas_saga"),
        sa.UniqueConstraint("name", "key", name="uq_sagas_saga_name_key"),
        **MYSQL_OPTIONS,
    )
    due = sa.text("wake_at IS NOT NULL")
    op.create_index("ix_sagas_saga_wake_at", "sagas_saga", ["wake_at"], postgresql_where=due, sqlite_where=due)
    op.create_index("ix_sagas_saga_status_id", "sagas_saga", ["status", "id"])
    op.create_index("ix_sagas_saga_name_id", "sagas_saga", ["name", "id"])
    op.create_index("ix_sagas_saga_correlation_id", "sagas_saga", ["correlation_id"])

    op.create_table(
        "sagas_step",
        sa.Column("saga_id", sa.String(36), nullable=False),
        sa.Column("name", exact(100), nullable=False),
        sa.Column("status", sa.String(8), nullable=False),
        sa.Column("position", sa.Integer, nullable=False),
        sa.Column("failures", sa.Integer, nullable=False),
        sa.Column("lost", sa.Integer, nullable=False),
        sa.Column("owner", sa.String(100)),
        sa.Column("lease_until", UtcDateTime),
        sa.Column("deadline", UtcDateTime),
        sa.Column("due_at", UtcDateTime),
        sa.Column("result", LongText),
        sa.Column("error", LongText),
        sa.Column("started_at", UtcDateTime),
        sa.Column("finished_at", UtcDateTime),
        sa.PrimaryKeyConstraint("saga_id", "name", name="pk_sagas_step"),
        sa.ForeignKeyConstraint(["saga_id"], ["sagas_saga.id"], name="fk_sagas_step_saga_id", ondelete="CASCADE"),
        **MYSQL_OPTIONS,
    )

    op.create_table(
        "sagas_history",
        sa.Column("id", Serial, autoincrement=True, nullable=False),
        sa.Column("saga_id", sa.String(36), nullable=False),
        sa.Column("at", UtcDateTime, nullable=False),
        sa.Column("what", sa.String(50), nullable=False),
        sa.Column("epoch", sa.Integer, nullable=False),
        sa.Column("step", exact(100)),
        sa.Column("detail", LongText, nullable=False),
        sa.Column("by", sa.String(200)),
        sa.PrimaryKeyConstraint("id", name="pk_sagas_history"),
        sa.ForeignKeyConstraint(["saga_id"], ["sagas_saga.id"], name="fk_sagas_history_saga_id", ondelete="CASCADE"),
        **MYSQL_OPTIONS,
    )
    op.create_index("ix_sagas_history_saga_id_id", "sagas_history", ["saga_id", "id"])

    op.create_table(
        "sagas_dead_letter",
        sa.Column("id", Serial, autoincrement=True, nullable=False),
        sa.Column("saga_id", sa.String(36), nullable=False),
        sa.Column("step", exact(100), nullable=False),
        sa.Column("direction", sa.String(8), nullable=False),
        sa.Column("error", LongText, nullable=False),
        sa.Column("created_at", UtcDateTime, nullable=False),
        sa.Column("resolved_at", UtcDateTime),
        sa.Column("resolution", sa.String(50)),
        sa.Column("reason", LongText),
        sa.Column("by", sa.String(200)),
        sa.PrimaryKeyConstraint("id", name="pk_sagas_dead_letter"),
        sa.ForeignKeyConstraint(
            ["saga_id"], ["sagas_saga.id"], name="fk_sagas_dead_letter_saga_id", ondelete="CASCADE"
        ),
        **MYSQL_OPTIONS,
    )
    op.create_index("ix_sagas_dead_letter_saga_id_step", "sagas_dead_letter", ["saga_id", "step"])
    op.create_index("ix_sagas_dead_letter_resolved_at", "sagas_dead_letter", ["resolved_at"])


def downgrade() -> None:
    for table in ("sagas_dead_letter", "sagas_history", "sagas_step", "sagas_saga"):
        op.drop_table(table)
