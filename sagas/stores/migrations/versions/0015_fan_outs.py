"""Sagas that are one of many items of a step."""

import sqlalchemy as sa
from alembic import op

from sagas.stores.columns import MYSQL_OPTIONS, exact

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # Nullable and without a default: none of the databases rewrites the table for that.
    op.add_column("sagas_saga", sa.Column("parent_item", sa.Integer, nullable=True))
    op.add_column("sagas_saga", sa.Column("place_passed", sa.Integer, nullable=True))
    op.create_index(
        "ix_sagas_saga_parent_item",
        "sagas_saga",
        ["parent_id", "parent_step", "parent_item"],
        postgresql_where=sa.text("parent_item IS NOT NULL"),
        sqlite_where=sa.text("parent_item IS NOT NULL"),
    )
    op.create_table(
        "sagas_fan_out",
        sa.Column("saga_id", sa.String(36), nullable=False),
        sa.Column("step", exact(120), nullable=False),
        sa.Column("items", sa.Integer, nullable=False),
        sa.Column("next_item", sa.Integer, nullable=False),
        sa.ForeignKeyConstraint(
            ["saga_id"], ["sagas_saga.id"], name="fk_sagas_fan_out_saga_id_sagas_saga", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("saga_id", "step", name="pk_sagas_fan_out"),
        **MYSQL_OPTIONS,
    )


def downgrade() -> None:
    op.drop_table("sagas_fan_out")
    op.drop_index("ix_sagas_saga_parent_item", "sagas_saga")
    op.drop_column("sagas_saga", "place_passed")
    op.drop_column("sagas_saga", "parent_item")
