"""Public keys of machine clients, and secrets that overlap."""

from typing import Final

import sqlalchemy as sa
from alembic import op

revision: Final = "0004_from_0002"
down_revision: Final[str | None] = "0003_from_0002"
branch_labels: Final = None
depends_on: Final = None


def upgrade() -> None:
    """Bring the tables up to this revision."""
    op.create_table(
        "former_secret",
        sa.Column("principal_id", sa.Uuid(), nullable=False),
        sa.Column("secret_hash", sa.Text(), nullable=False),
        sa.Column("set_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("ends_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["principal_id"], ["principal.principal_id"], name=op.f("fk_former_secret_principal")),
        sa.PrimaryKeyConstraint("principal_id", "secret_hash", name=op.f("pk_former_secret")),
    )
    op.create_table(
        "client_key",
        sa.Column("key_id", sa.Text(), nullable=False),
        sa.Column("principal_id", sa.Uuid(), nullable=False),
        sa.Column("algorithm", sa.Text(), nullable=False),
        sa.Column("public_jwk", sa.Text(), nullable=False),
        sa.Column("added_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("added_by", sa.Text(), nullable=False),
        sa.Column("revoked_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("revoked_by", sa.Text(), nullable=True),
        sa.ForeignKeyConstraint(["principal_id"], ["principal.principal_id"], name=op.f("fk_client_key_principal")),
        sa.PrimaryKeyConstraint("key_id", name=op.f("pk_client_key")),
    )
    op.create_index(op.f("ix_client_key_principal_id"), "client_key", ["principal_id"], unique=False)
    op.create_table(
        "used_assertion",
        sa.Column("digest", sa.LargeBinary(length=32), nullable=False),
        sa.Column("used_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("digest", name=op.f("pk_used_assertion")),
    )


def downgrade() -> None:
    """Take this revision back."""
    op.drop_table("used_assertion")
    op.drop_index(op.f("ix_client_key_principal_id"), table_name="client_key")
    op.drop_table("client_key")
    op.drop_table("former_secret")
