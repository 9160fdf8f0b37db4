"""Grants that wait for a second service administrator."""

from typing import Final

import sqlalchemy as sa
from alembic import op

revision: Final = "0025_from_0002"
down_revision: Final[str | None] = "0024_from_0002"
branch_labels: Final = None
depends_on: Final = None


def upgrade() -> None:
    """Bring the tables up to this revision."""
    op.create_table(
        "pending_grant",
        sa.Column("grant_id", sa.Uuid(), nullable=False),
        sa.Column("principal_id", sa.Uuid(), nullable=False),
        sa.Column("role", sa.Text(), nullable=False),
        sa.Column("study_code", sa.Text(), nullable=True),
        sa.Column("site_code", sa.Text(), nullable=True),
        sa.Column("starts_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("ends_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("needs_training", sa.Boolean(), nullable=False),
        sa.Column("requested_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("requested_by", sa.Text(), nullable=False),
        sa.Column("decided_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("decided_by", sa.Text(), nullable=True),
        sa.ForeignKeyConstraint(["principal_id"], ["principal.principal_id"], name=op.f("fk_pending_grant_principal")),
        sa.PrimaryKeyConstraint("grant_id", name=op.f("pk_pending_grant")),
    )
    op.create_index(op.f("ix_pending_grant_principal_id"), "pending_grant", ["principal_id"], unique=False)


def downgrade() -> None:
    """Take this revision back."""
    op.drop_table("pending_grant")
