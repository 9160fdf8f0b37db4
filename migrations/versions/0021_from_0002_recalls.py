"""Which consignments are called back, and by which recall (UNB-01); the index of what can unblind knows its release."""

from typing import Any, Final

import sqlalchemy as sa
from alembic import op

revision: Final = "0021_from_0002"
down_revision: Final[str | None] = "0020_from_0002"
branch_labels: Final = None
depends_on: Final = None

_INDEX: Final = "ix_trail_entry_unblinding"
_BEFORE: Final = (
    "action IN ('accidental_unblinding:record', 'code_break:create', 'envelope:enter_opening', 'final_unblinding:release', "
    "'interim_unblinding:release', 'packing_list:release', 'preparation:read', 'safety_unblinding:create', "
    "'third_party_unblinding:open')"
)
_SINCE: Final = _BEFORE.replace("'safety_", "'recall:release', 'safety_")


def upgrade() -> None:
    """Add the column, which is written once; the index is made anew: the release before asks for less than it holds."""
    _lift()
    op.add_column("consignment", sa.Column("recall_id", sa.Uuid(), nullable=True))
    _fix(("recall_id",))
    _index(_SINCE)


def downgrade() -> None:
    """Forget it again; refused where something was recalled."""
    if op.get_bind().scalar(sa.text("SELECT count(*) FROM consignment WHERE recall_id IS NOT NULL")):
        message = "Consignments were recalled, and would be usable again for who has them. Restore a backup instead."
        raise RuntimeError(message)
    _lift()
    op.drop_column("consignment", "recall_id")
    _fix(())
    _index(_BEFORE)


def _lift() -> None:
    on_table = " ON consignment" if op.get_bind().dialect.name == "postgresql" else ""
    op.execute(f'DROP TRIGGER "consignment_fixed"{on_table}')


def _fix(once: tuple[str, ...]) -> None:
    """Have the database refuse what never changes, and what is written once."""
    environment = op.get_context().environment_context
    if environment is None:
        message = "migrations run in Alembic's environment"
        raise LookupError(message)
    refusals: dict[str, Any] = vars(environment.script.get_revision("0002").module)
    may = (*refusals["RULES"]["consignment"].may_change, *once)
    refused = [refusals["_any_fixed_differs"]("consignment", refusals["Rule"](may))]
    refused += [refusals["_only_once"](column).refused_when for column in once]
    message = f"nothing changes but {', '.join(may)}"
    refusals["_refuse"]("consignment", "fixed", "UPDATE", message, when=" OR ".join(refused))


def _index(what: str) -> None:
    op.drop_index(_INDEX, "trail_entry")
    columns = ["study_id", "segment", "log_index"]
    op.create_index(_INDEX, "trail_entry", columns, postgresql_where=sa.text(what), sqlite_where=sa.text(what))
