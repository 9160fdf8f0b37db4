"""An index by which the acts that can unblind are found among a million others (UNB-08)."""

from typing import Final

import sqlalchemy as sa
from alembic import op

revision: Final = "0008_from_0002"
down_revision: Final[str | None] = "0007_from_0002"
branch_labels: Final = None
depends_on: Final = None

_UNBLINDING: Final = (
    "action IN ('accidental_unblinding:record', 'code_break:create', 'envelope:enter_opening', 'final_unblinding:release', "
    "'interim_unblinding:release', 'packing_list:release', 'preparation:read', 'safety_unblinding:create', "
    "'third_party_unblinding:open')"
)


def upgrade() -> None:
    """Add it; these acts are rare, so it is small."""
    op.create_index(
        "ix_trail_entry_unblinding",
        "trail_entry",
        ["study_id", "segment", "log_index"],
        postgresql_where=sa.text(_UNBLINDING),
        sqlite_where=sa.text(_UNBLINDING),
    )


def downgrade() -> None:
    """Take it away again."""
    op.drop_index("ix_trail_entry_unblinding", "trail_entry")
