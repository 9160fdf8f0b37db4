"""Passkeys: a person's keys on devices of their own."""

from typing import Final

import sqlalchemy as sa
from alembic import op

revision: Final = "0006_from_0002"
down_revision: Final[str | None] = "0005_from_0002"
branch_labels: Final = None
depends_on: Final = None


def upgrade() -> None:
    """Add the table; a release that does not know it goes on without passkeys."""
    op.create_table(
        "passkey",
        sa.Column("passkey_id", sa.Uuid(), nullable=False),
        sa.Column("principal_id", sa.Uuid(), nullable=False),
        sa.Column("credential_digest", sa.LargeBinary(32), nullable=False),
        sa.Column("sealed_key", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("sign_count", sa.BigInteger(), nullable=False),
        sa.Column("last_challenge_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("last_request", sa.Text(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("removed_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("passkey_id", name="pk_passkey"),
        sa.ForeignKeyConstraint(["principal_id"], ["principal.principal_id"], name="fk_passkey_principal"),
        sa.UniqueConstraint("credential_digest", name="uq_passkey_credential_digest"),
    )
    op.create_index("ix_passkey_principal_id", "passkey", ["principal_id"])


def downgrade() -> None:
    """Take the table away."""
    op.drop_table("passkey")
