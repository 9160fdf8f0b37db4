"""devices that are known at the sign-in."""

from typing import Final

import sqlalchemy as sa
from alembic import op

revision: Final = "0016_from_0002"
down_revision: Final[str | None] = "0015_from_0002"
branch_labels: Final = None
depends_on: Final = None


def upgrade() -> None:
    """Add the table."""
    op.create_table(
        "known_device",
        sa.Column("device_id", sa.Uuid(), nullable=False),
        sa.Column("principal_id", sa.Uuid(), nullable=False),
        sa.Column("secret_digest", sa.LargeBinary(length=32), nullable=False),
        sa.Column("remembered_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("used_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("wrong_passwords", sa.Integer(), nullable=False),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["principal_id"], ["principal.principal_id"], name=op.f("fk_known_device_principal")),
        sa.PrimaryKeyConstraint("device_id", name=op.f("pk_known_device")),
        sa.UniqueConstraint("secret_digest", name=op.f("uq_known_device_secret_digest")),
    )
    op.create_index(op.f("ix_known_device_principal_id"), "known_device", ["principal_id"], unique=False)


def downgrade() -> None:
    """Take this revision back."""
    op.drop_table("known_device")
