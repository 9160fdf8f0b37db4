"""Grants with a beginning and an end, and the day on which an account was switched off (USR-08, USR-19).

The release before takes no notice of the dates: give the first dated grant when its last process has ended.
"""

from typing import Final

import sqlalchemy as sa
from alembic import op

revision: Final = "0005_from_0002"
down_revision: Final[str | None] = "0004_from_0002"
branch_labels: Final = None
depends_on: Final = None

_FIXED: Final = (
    *("grant_id", "principal_id", "role", "study_code", "site_code", "granted_at", "granted_by"),
    *("starts_at", "ends_at"),
)
_ADDED: Final = 2


def upgrade() -> None:
    """Add the columns; the two of a grant never change, so its refusal is made anew with them."""
    op.add_column("role_grant", sa.Column("starts_at", sa.DateTime(timezone=True), nullable=True))
    op.add_column("role_grant", sa.Column("ends_at", sa.DateTime(timezone=True), nullable=True))
    op.add_column("principal", sa.Column("deactivated_at", sa.DateTime(timezone=True), nullable=True))
    _fix(_FIXED)


def downgrade() -> None:
    """Forget them; refused where a grant has a date, for without it the grant would hold for ever."""
    if op.get_bind().scalar(
        sa.text("SELECT count(*) FROM role_grant WHERE starts_at IS NOT NULL OR ends_at IS NOT NULL")
    ):
        message = "Grants have dates: without these columns they would hold for ever. Restore a backup instead."
        raise RuntimeError(message)
    _fix(_FIXED[:-_ADDED])
    op.drop_column("principal", "deactivated_at")
    op.drop_column("role_grant", "ends_at")
    op.drop_column("role_grant", "starts_at")


def _fix(columns: tuple[str, ...]) -> None:
    """Refuse every change of these columns, as 0002 does."""
    message = "nothing changes but revoked_at, revoked_by"
    if op.get_bind().dialect.name == "postgresql":
        differs = " OR ".join(f'NEW."{column}" IS DISTINCT FROM OLD."{column}"' for column in columns)
        op.execute('DROP TRIGGER "role_grant_fixed" ON "role_grant"')
        op.execute(
            f'CREATE TRIGGER "role_grant_fixed" BEFORE UPDATE ON "role_grant" FOR EACH ROW WHEN ({differs}) '
            f"EXECUTE FUNCTION snose_refuse('{message}')"
        )
        op.execute('ALTER TABLE "role_grant" ENABLE ALWAYS TRIGGER "role_grant_fixed"')
        return
    differs = " OR ".join(f'NEW."{column}" IS NOT OLD."{column}"' for column in (*columns, "rowid"))
    op.execute('DROP TRIGGER "role_grant_fixed"')
    op.execute(
        f'CREATE TRIGGER "role_grant_fixed" BEFORE UPDATE ON "role_grant" WHEN {differs} '
        f"BEGIN SELECT RAISE(ABORT, 'role_grant: {message}'); END"
    )
