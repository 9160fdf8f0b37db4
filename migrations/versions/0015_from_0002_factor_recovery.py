"""recoveries of lost second factors."""

from typing import Final

import sqlalchemy as sa
from alembic import op

revision: Final = "0015_from_0002"
down_revision: Final[str | None] = "0014_from_0002"
branch_labels: Final = None
depends_on: Final = None


def upgrade() -> None:
    """Add the table, and when somebody's factor was recovered."""
    op.create_table(
        "factor_recovery",
        sa.Column("recovery_id", sa.Uuid(), nullable=False),
        sa.Column("principal_id", sa.Uuid(), nullable=False),
        sa.Column("code_digest", sa.LargeBinary(length=32), nullable=False),
        sa.Column("sealed_totp_secret", sa.Text(), nullable=False),
        sa.Column("former_last_step", sa.BigInteger(), nullable=True),
        sa.Column("requested_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("tries", sa.Integer(), nullable=False),
        sa.Column("confirmed_by", sa.Text(), nullable=True),
        sa.Column("confirmed_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("identity_check", sa.Text(), nullable=True),
        sa.Column("confirmation_mac", sa.LargeBinary(length=32), nullable=True),
        sa.Column("closed_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(
            ["principal_id"], ["principal.principal_id"], name=op.f("fk_factor_recovery_principal")
        ),
        sa.PrimaryKeyConstraint("recovery_id", name=op.f("pk_factor_recovery")),
        sa.UniqueConstraint("code_digest", name=op.f("uq_factor_recovery_code_digest")),
    )
    op.create_index(op.f("ix_factor_recovery_principal_id"), "factor_recovery", ["principal_id"], unique=False)
    op.add_column("credential", sa.Column("factor_recovered_at", sa.DateTime(timezone=True), nullable=True))


def downgrade() -> None:
    """Take this revision back."""
    op.drop_column("credential", "factor_recovered_at")
    op.drop_table("factor_recovery")
