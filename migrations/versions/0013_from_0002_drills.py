"""Code-break drills: a table of their own, to which rows are only added (EUB-18)."""

from typing import Final

import sqlalchemy as sa
from alembic import op

revision: Final = "0013_from_0002"
down_revision: Final[str | None] = "0012_from_0002"
branch_labels: Final = None
depends_on: Final = None

_TABLE: Final = "drill"
_REFUSED: Final = {
    "no_delete": ("DELETE", "no row is ever deleted"),
    "no_update": ("UPDATE", "no row is ever changed"),
}
_NO_REPLACE: Final = """
    CREATE TRIGGER "drill_no_replace" BEFORE INSERT ON "drill"
    WHEN EXISTS (SELECT 1 FROM "drill" WHERE "rowid" = NEW."rowid")
    OR EXISTS (SELECT 1 FROM "drill" WHERE "study_id" = NEW."study_id" AND "drill_id" = NEW."drill_id")
    BEGIN SELECT RAISE(ABORT, 'drill: this row is there already'); END
"""


def upgrade() -> None:
    """Make the table, and let the database refuse whatever is no new row (as 0002 does for the others)."""
    op.create_table(
        _TABLE,
        sa.Column("study_id", sa.Uuid(), nullable=False),
        sa.Column("drill_id", sa.Uuid(), nullable=False),
        sa.Column("site_code", sa.Text(), nullable=False),
        sa.Column("username", sa.Text(), nullable=False),
        sa.Column("revealed_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("reveal_ms", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["study_id"], ["study.study_id"], name=op.f("fk_drill_study")),
        sa.PrimaryKeyConstraint("study_id", "drill_id", name=op.f("pk_drill")),
    )
    op.create_index(op.f("ix_drill_study_id_site_code_username"), _TABLE, ["study_id", "site_code", "username"])
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
    if op.get_bind().scalar(sa.text("SELECT count(*) FROM drill, deployment WHERE NOT is_demo")):
        raise RuntimeError("Drills were done: without this table they are lost. Restore a backup instead.")
    op.drop_index(op.f("ix_drill_study_id_site_code_username"), table_name=_TABLE)
    op.drop_table(_TABLE)
