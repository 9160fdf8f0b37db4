"""What code breaks mean for the trial: a table of its own, to which rows are only added (EUB-24)."""

from typing import Final

import sqlalchemy as sa
from alembic import op

revision: Final = "0024_from_0002"
down_revision: Final[str | None] = "0023_from_0002"
branch_labels: Final = None
depends_on: Final = None

_TABLE: Final = "code_break_assessment"
_REFUSED: Final = {
    "no_delete": ("DELETE", "no row is ever deleted"),
    "no_update": ("UPDATE", "no row is ever changed"),
}
_NO_REPLACE: Final = """
    CREATE TRIGGER "code_break_assessment_no_replace" BEFORE INSERT ON "code_break_assessment"
    WHEN EXISTS (SELECT 1 FROM "code_break_assessment" WHERE "rowid" = NEW."rowid")
    OR EXISTS (
        SELECT 1 FROM "code_break_assessment" WHERE "study_id" = NEW."study_id" AND "code_break_id" = NEW."code_break_id"
    )
    BEGIN SELECT RAISE(ABORT, 'code_break_assessment: this row is there already'); END
"""


def upgrade() -> None:
    """Make the table, and let the database refuse whatever is no new row (as 0002 does for the others)."""
    op.create_table(
        _TABLE,
        sa.Column("study_id", sa.Uuid(), nullable=False),
        sa.Column("code_break_id", sa.Uuid(), nullable=False),
        sa.Column("assessed_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("assessed_by", sa.Text(), nullable=False),
        sa.Column("impact", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["study_id"], ["study.study_id"], name=op.f("fk_code_break_assessment_study")),
        sa.PrimaryKeyConstraint("study_id", "code_break_id", name=op.f("pk_code_break_assessment")),
    )
    if op.get_bind().dialect.name == "postgresql":
        for name, (act, message) in (_REFUSED | {"no_truncate": ("TRUNCATE", "no row is ever deleted")}).items():
            op.execute(
                f'CREATE TRIGGER "{_TABLE}_{name}" BEFORE {act} ON "{_TABLE}" FOR EACH STATEMENT '
                f"EXECUTE FUNCTION snose_refuse('{message}')"
            )
            op.execute(f'ALTER TABLE "{_TABLE}" ENABLE ALWAYS TRIGGER "{_TABLE}_{name}"')
        return
    for name, (act, message) in _REFUSED.items():
        op.execute(
            f'CREATE TRIGGER "{_TABLE}_{name}" BEFORE {act} ON "{_TABLE}" '
            f"BEGIN SELECT RAISE(ABORT, '{_TABLE}: {message}'); END"
        )
    op.execute(_NO_REPLACE)


def downgrade() -> None:
    """Take the table away; its triggers go with it."""
    if op.get_bind().scalar(sa.text("SELECT count(*) FROM code_break_assessment, deployment WHERE NOT is_demo")):
        raise RuntimeError("Code breaks were assessed: without this table they are lost. Restore a backup instead.")
    op.drop_table(_TABLE)
