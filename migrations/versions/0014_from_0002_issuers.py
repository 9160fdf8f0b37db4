"""outside issuers, and the identities that they vouch for."""

from typing import Final

import sqlalchemy as sa
from alembic import op

revision: Final = "0014_from_0002"
down_revision: Final[str | None] = "0013_from_0002"
branch_labels: Final = None
depends_on: Final = None


def upgrade() -> None:
    """Bring the tables up to this revision."""
    op.create_table(
        "issuer",
        sa.Column("issuer_id", sa.Uuid(), nullable=False),
        *(sa.Column(name, sa.Text(), nullable=False) for name in ("issuer", "audience", "jwks", "proof_acr_values")),
        *_steps("requested", nullable=False),
        *_steps("confirmed"),
        *_steps("revoked"),
        sa.PrimaryKeyConstraint("issuer_id", name=op.f("pk_issuer")),
    )
    op.create_index(op.f("ix_issuer_issuer"), "issuer", ["issuer"], unique=False)
    op.create_table(
        "identity_link",
        sa.Column("link_id", sa.Uuid(), nullable=False),
        sa.Column("issuer", sa.Text(), nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("principal_id", sa.Uuid(), nullable=False),
        *_steps("requested", nullable=False),
        *_steps("confirmed"),
        *_steps("ended"),
        sa.Column("proof_spent_until", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["principal_id"], ["principal.principal_id"], name=op.f("fk_identity_link_principal")),
        sa.PrimaryKeyConstraint("link_id", name=op.f("pk_identity_link")),
    )
    op.create_index(op.f("ix_identity_link_issuer_subject"), "identity_link", ["issuer", "subject"], unique=False)
    op.create_index(op.f("ix_identity_link_principal_id"), "identity_link", ["principal_id"], unique=False)
    op.add_column("session", sa.Column("link_id", sa.Uuid(), nullable=True))


def _steps(act: str, *, nullable: bool = True) -> tuple[sa.Column[object], sa.Column[object]]:
    return (
        sa.Column(f"{act}_at", sa.DateTime(timezone=True), nullable=nullable),
        sa.Column(f"{act}_by", sa.Text(), nullable=nullable),
    )


def downgrade() -> None:
    """Take this revision back."""
    op.drop_column("session", "link_id")
    op.drop_table("identity_link")
    op.drop_table("issuer")
