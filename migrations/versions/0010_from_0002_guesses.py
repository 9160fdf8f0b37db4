"""Guesses at a password are counted until it is known or another one (USR-10)."""

from typing import Final

import sqlalchemy as sa
from alembic import op

revision: Final = "0010_from_0002"
down_revision: Final[str | None] = "0009_from_0002"
branch_labels: Final = None
depends_on: Final = None


def upgrade() -> None:
    """Add the count; what the release before goes on inserting begins at nothing."""
    op.add_column("sign_in_tries", sa.Column("guesses", sa.Integer(), nullable=False, server_default="0"))


def downgrade() -> None:
    """Forget it again."""
    op.drop_column("sign_in_tries", "guesses")
