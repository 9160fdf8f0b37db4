"""Sessions know the sign-in that they belong to, and when it was last used (USR-12)."""

from typing import Final

import sqlalchemy as sa
from alembic import op

revision: Final = "0003_from_0002"
down_revision: Final[str | None] = "0002"
branch_labels: Final = None
depends_on: Final = None


def upgrade() -> None:
    """Add what the idle limit looks at; a session without it, begun by the release before, is its own sign-in."""
    op.add_column("session", sa.Column("sign_in_id", sa.Uuid(), nullable=True))
    op.add_column("session", sa.Column("used_at", sa.DateTime(timezone=True), nullable=True))


def downgrade() -> None:
    """Forget it again."""
    op.drop_column("session", "used_at")
    op.drop_column("session", "sign_in_id")
