"""Trainings, and grants that are effective only after one (USR-08).

The release before takes no notice of the rule: give the first such grant when its last process has ended.
"""

from typing import Any, Final

import sqlalchemy as sa
from alembic import op

revision: Final = "0012_from_0002"
down_revision: Final[str | None] = "0011_from_0002"
branch_labels: Final = None
depends_on: Final = None


def upgrade() -> None:
    """Make the table, to which rows are only added, and the column, which never changes."""
    op.create_table(
        "training",
        sa.Column("training_id", sa.Uuid(), nullable=False),
        sa.Column("principal_id", sa.Uuid(), nullable=False),
        sa.Column("study_code", sa.Text(), nullable=True),
        sa.Column("topic", sa.Text(), nullable=False),
        sa.Column("completed_on", sa.Date(), nullable=False),
        sa.Column("valid_until", sa.Date(), nullable=True),
        sa.Column("recorded_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("recorded_by", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["principal_id"], ["principal.principal_id"], name=op.f("fk_training_principal")),
        sa.PrimaryKeyConstraint("training_id", name=op.f("pk_training")),
    )
    op.create_index(op.f("ix_training_principal_id"), "training", ["principal_id"], unique=False)
    refusals = _refusals()
    refusals["_refuse"]("training", "no_delete", "DELETE", "no row is ever deleted")
    if _is_postgresql():
        refusals["_refuse"]("training", "no_truncate", "TRUNCATE", "no row is ever deleted")
    else:
        refusals["_refuse_replacing"]("training", refusals["Rule"]())
    refusals["_refuse"]("training", "no_update", "UPDATE", "no row is ever changed")
    op.add_column("role_grant", sa.Column("needs_training", sa.Boolean(), nullable=True))
    _drop_fixed()
    _make_fixed(refusals)


def downgrade() -> None:
    """Take them away; refused where they hold what is on record."""
    on_record = sa.text(
        "SELECT (SELECT count(*) FROM training) + (SELECT count(*) FROM role_grant WHERE needs_training)"
    )
    if op.get_bind().scalar(on_record):
        message = "Trainings are on record: without these columns they are lost. Restore a backup instead."
        raise RuntimeError(message)
    _drop_fixed()
    op.drop_column("role_grant", "needs_training")
    _make_fixed(_refusals())
    op.drop_index(op.f("ix_training_principal_id"), table_name="training")
    op.drop_table("training")


def _is_postgresql() -> bool:
    return op.get_bind().dialect.name == "postgresql"


def _refusals() -> dict[str, Any]:
    """Return what revision 0002 makes refusals with: one way of making them, for what came later too."""
    environment = op.get_context().environment_context
    if environment is None:
        message = "migrations run in Alembic's environment"
        raise LookupError(message)
    return vars(environment.script.get_revision("0002").module)


def _drop_fixed() -> None:
    op.execute('DROP TRIGGER "role_grant_fixed"' + (' ON "role_grant"' if _is_postgresql() else ""))


def _make_fixed(refusals: dict[str, Any]) -> None:
    """Refuse every change of a grant but its revocation, whatever columns there are by now."""
    rule = refusals["RULES"]["role_grant"]
    differs = refusals["_any_fixed_differs"]("role_grant", rule)
    refusals["_refuse"](
        "role_grant", "fixed", "UPDATE", f"nothing changes but {', '.join(rule.may_change)}", when=differs
    )
