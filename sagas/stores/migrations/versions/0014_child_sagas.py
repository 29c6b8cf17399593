"""Sagas that belong to a step of another saga."""

import sqlalchemy as sa
from alembic import op

from sagas.stores.columns import exact

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # Nullable and without a default: none of the databases rewrites the table for that.
    op.add_column("sagas_saga", sa.Column("parent_id", sa.String(36), nullable=True))
    op.add_column("sagas_saga", sa.Column("parent_step", exact(120), nullable=True))
    op.add_column("sagas_saga", sa.Column("root_id", sa.String(36), nullable=True))
    op.add_column("sagas_step", sa.Column("child_id", sa.String(36), nullable=True))
    op.create_index(
        "ix_sagas_saga_root_id",
        "sagas_saga",
        ["root_id"],
        postgresql_where=sa.text("root_id IS NOT NULL"),
        sqlite_where=sa.text("root_id IS NOT NULL"),
    )


def downgrade() -> None:
    op.drop_index("ix_sagas_saga_root_id", "sagas_saga")
    op.drop_column("sagas_step", "child_id")
    for name in ("root_id", "parent_step", "parent_id"):
        op.drop_column("sagas_saga", name)
