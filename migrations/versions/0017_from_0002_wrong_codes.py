"""Wrong one-time codes are counted by person, by sign-in and by known device (USR-10)."""

from typing import Final

import sqlalchemy as sa
from alembic import op

revision: Final = "0017_from_0002"
down_revision: Final[str | None] = "0016_from_0002"
branch_labels: Final = None
depends_on: Final = None
_COUNTED: Final = ("credential", "session", "known_device")


def upgrade() -> None:
    """Add the counts; what the release before goes on inserting begins at nothing."""
    for table in _COUNTED:
        op.add_column(table, sa.Column("wrong_codes", sa.Integer(), nullable=False, server_default="0"))
    op.add_column("session", sa.Column("device_id", sa.Uuid(), nullable=True))


def downgrade() -> None:
    """Forget them again."""
    op.drop_column("session", "device_id")
    for table in _COUNTED:
        op.drop_column(table, "wrong_codes")
