"""An index by which the code breaks of the last day are counted (EUB-20)."""

from typing import Final

from alembic import op

revision: Final = "0023_from_0002"
down_revision: Final[str | None] = "0022_from_0002"
branch_labels: Final = None
depends_on: Final = None


def upgrade() -> None:
    """Add it; code breaks are rare, so it is small."""
    op.create_index(op.f("ix_code_break_study_id_broken_at"), "code_break", ["study_id", "broken_at"])


def downgrade() -> None:
    """Take it away again."""
    op.drop_index(op.f("ix_code_break_study_id_broken_at"), "code_break")
