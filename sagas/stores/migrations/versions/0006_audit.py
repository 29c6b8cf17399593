"""What was done to the sagas as a whole."""

import sqlalchemy as sa
from alembic import op

from sagas.stores.columns import MYSQL_OPTIONS, LongText, Serial, UtcDateTime

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "sagas_audit",
        sa.Column("id", Serial, autoincrement=True, nullable=False),
        sa.Column("at", UtcDateTime, nullable=False),
        sa.Column("by", sa.String(200)),
        sa.Column("what", sa.String(50), nullable=False),
        sa.Column("detail", LongText, nullable=False),
        sa.Column("reason", LongText, nullable=False),
        sa.Column("count", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_sagas_audit"),
        **MYSQL_OPTIONS,
    )


def downgrade() -> None:
    op.drop_table("sagas_audit")
