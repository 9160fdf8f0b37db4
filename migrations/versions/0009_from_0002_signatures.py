"""Electronic signatures: a table of their own, to which rows are only added (21 CFR 11.70)."""

from typing import Final

import sqlalchemy as sa
from alembic import op

revision: Final = "0009_from_0002"
down_revision: Final[str | None] = "0008_from_0002"
branch_labels: Final = None
depends_on: Final = None

_TABLE: Final = "signature"
_REFUSED: Final = {
    "no_delete": ("DELETE", "no row is ever deleted"),
    "no_update": ("UPDATE", "no row is ever changed"),
}
_NO_REPLACE: Final = """
    CREATE TRIGGER "signature_no_replace" BEFORE INSERT ON "signature"
    WHEN EXISTS (SELECT 1 FROM "signature" WHERE "rowid" = NEW."rowid")
    OR EXISTS (SELECT 1 FROM "signature" WHERE "study_id" = NEW."study_id" AND "signature_id" = NEW."signature_id")
    BEGIN SELECT RAISE(ABORT, 'signature: this row is there already'); END
"""


def upgrade() -> None:
    """Make the table, and let the database refuse whatever is no new row (as 0002 does for the others)."""
    op.create_table(
        _TABLE,
        sa.Column("study_id", sa.Uuid(), nullable=False),
        sa.Column("signature_id", sa.Uuid(), nullable=False),
        sa.Column("record_kind", sa.Text(), nullable=False),
        sa.Column("record_id", sa.Text(), nullable=False),
        sa.Column("content_hash", sa.LargeBinary(length=32), nullable=False),
        sa.Column("meaning", sa.Text(), nullable=False),
        sa.Column("printed_name", sa.Text(), nullable=False),
        sa.Column("username", sa.Text(), nullable=False),
        sa.Column("role", sa.Text(), nullable=False),
        sa.Column("signed_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("session_id", sa.Uuid(), nullable=False),
        sa.Column("proved_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("mac", sa.LargeBinary(length=32), nullable=False),
        sa.ForeignKeyConstraint(["study_id"], ["study.study_id"], name=op.f("fk_signature_study")),
        sa.PrimaryKeyConstraint("study_id", "signature_id", name=op.f("pk_signature")),
    )
    op.create_index(
        op.f("ix_signature_study_id_record_kind_record_id"), _TABLE, ["study_id", "record_kind", "record_id"]
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
    if op.get_bind().scalar(sa.text("SELECT count(*) FROM signature, deployment WHERE NOT is_demo")):
        raise RuntimeError(
            "Records were signed: without this table their signatures are lost. Restore a backup instead."
        )
    op.drop_index(op.f("ix_signature_study_id_record_kind_record_id"), table_name=_TABLE)
    op.drop_table(_TABLE)
