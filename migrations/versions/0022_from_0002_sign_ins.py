"""as whom the service signs people in at an outside issuer."""

from typing import Final

import sqlalchemy as sa
from alembic import op

revision: Final = "0022_from_0002"
down_revision: Final[str | None] = "0021_from_0002"
branch_labels: Final = None
depends_on: Final = None

_NEW: Final = ("client_id", "sealed_client_secret", "redirect_uris", "groups_claim", "required_groups")


def upgrade() -> None:
    """Bring the tables up to this revision."""
    for name in _NEW:
        op.add_column("issuer", sa.Column(name, sa.Text(), nullable=True))


def downgrade() -> None:
    """Take this revision back."""
    for name in reversed(_NEW):
        op.drop_column("issuer", name)
