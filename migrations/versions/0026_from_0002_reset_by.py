"""Who reset an account whose new second factor takes a colleague."""

from typing import Final

import sqlalchemy as sa
from alembic import op

revision: Final = "0026_from_0002"
down_revision: Final[str | None] = "0025_from_0002"
branch_labels: Final = None
depends_on: Final = None


def upgrade() -> None:
    """Bring the tables up to this revision."""
    op.add_column("credential", sa.Column("reset_by", sa.Text(), nullable=True))


def downgrade() -> None:
    """Take this revision back."""
    op.drop_column("credential", "reset_by")
