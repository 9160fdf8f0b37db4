"""What a study's protocol says of safety unblindings: exempt events, and whether a site is shown one (UNB-04, UNB-05)."""

from typing import Any, Final

import sqlalchemy as sa
from alembic import op

revision: Final = "0019_from_0002"
down_revision: Final[str | None] = "0018_from_0002"
branch_labels: Final = None
depends_on: Final = None


def upgrade() -> None:
    """Add the column; the trigger that fixes what never changes is made anew, so that it knows it."""
    _lift()
    op.add_column("study", sa.Column("exempt_events", sa.Text(), nullable=False, server_default="[]"))
    op.add_column(
        "study", sa.Column("safety_unblinding_shown", sa.Boolean(), nullable=False, server_default=sa.false())
    )
    _fix()


def downgrade() -> None:
    """Forget it again; refused where a protocol says something else than the release before does."""
    said = sa.text("SELECT count(*) FROM study WHERE exempt_events <> '[]' OR safety_unblinding_shown")
    if op.get_bind().scalar(said):
        message = "A study has terms of its own for safety unblindings, and would lose them. Restore a backup instead."
        raise RuntimeError(message)
    _lift()
    op.drop_column("study", "safety_unblinding_shown")
    op.drop_column("study", "exempt_events")
    _fix()


def _lift() -> None:
    on_table = " ON study" if op.get_bind().dialect.name == "postgresql" else ""
    op.execute(f'DROP TRIGGER "study_fixed"{on_table}')


def _fix() -> None:
    environment = op.get_context().environment_context
    if environment is None:
        message = "migrations run in Alembic's environment"
        raise LookupError(message)
    refusals: dict[str, Any] = vars(environment.script.get_revision("0002").module)
    rule = refusals["RULES"]["study"]
    may = ", ".join(rule.may_change)
    fixed = refusals["_any_fixed_differs"]("study", rule)
    refusals["_refuse"]("study", "fixed", "UPDATE", f"nothing changes but {may}", when=fixed)
