"""keys of outside issuers, read where they are."""

from typing import Final

import sqlalchemy as sa
from alembic import op

revision: Final = "0018_from_0002"
down_revision: Final[str | None] = "0017_from_0002"
branch_labels: Final = None
depends_on: Final = None


def upgrade() -> None:
    """Bring the tables up to this revision."""
    op.add_column("issuer", sa.Column("jwks_uri", sa.Text(), nullable=True))
    op.add_column("issuer", sa.Column("is_discovered", sa.Boolean(), nullable=True))


def downgrade() -> None:
    """Take this revision back."""
    op.drop_column("issuer", "is_discovered")
    op.drop_column("issuer", "jwks_uri")
