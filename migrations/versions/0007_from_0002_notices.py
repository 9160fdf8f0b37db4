"""Receivers of notices, and the outbox of what they are told (EUB-12)."""

from typing import Any, Final

import sqlalchemy as sa
from alembic import op

revision: Final = "0007_from_0002"
down_revision: Final[str | None] = "0006_from_0002"
branch_labels: Final = None
depends_on: Final = None

_WAITING: Final = sa.text("delivered_at IS NULL AND given_up_at IS NULL")


def upgrade() -> None:
    """Make the tables, with the refusals that every table has."""
    op.create_table(
        "notice_receiver",
        sa.Column("study_id", sa.Uuid(), nullable=False),
        sa.Column("receiver_id", sa.Uuid(), nullable=False),
        sa.Column("channel", sa.Text(), nullable=False),
        sa.Column("address", sa.Text(), nullable=False),
        sa.Column("added_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("added_by", sa.Text(), nullable=False),
        sa.Column("removed_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("removed_by", sa.Text(), nullable=True),
        sa.Column("disabled_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["study_id"], ["study.study_id"], name=op.f("fk_notice_receiver_study")),
        sa.PrimaryKeyConstraint("study_id", "receiver_id", name=op.f("pk_notice_receiver")),
    )
    op.create_table(
        "notice",
        sa.Column("study_id", sa.Uuid(), nullable=False),
        sa.Column("notice_id", sa.Uuid(), nullable=False),
        sa.Column("receiver_id", sa.Uuid(), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.Column("posted_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.Column("next_try_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("delivered_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("given_up_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["study_id"], ["study.study_id"], name=op.f("fk_notice_study")),
        sa.ForeignKeyConstraint(
            ["study_id", "receiver_id"],
            ["notice_receiver.study_id", "notice_receiver.receiver_id"],
            name=op.f("fk_notice_notice_receiver"),
        ),
        sa.PrimaryKeyConstraint("study_id", "notice_id", "receiver_id", name=op.f("pk_notice")),
    )
    op.create_index(op.f("ix_notice_study_id_receiver_id"), "notice", ["study_id", "receiver_id"], unique=False)
    op.create_index(
        "ix_notice_waiting",
        "notice",
        ["next_try_at"],
        unique=False,
        postgresql_where=_WAITING,
        sqlite_where=_WAITING,
    )
    refusals = _refusals()
    for table, columns, once in (
        ("notice_receiver", ("removed_at", "removed_by", "disabled_at"), ("removed_at", "removed_by", "disabled_at")),
        (
            "notice",
            ("failures", "next_try_at", "delivered_at", "given_up_at"),
            ("delivered_at", "given_up_at"),
        ),
    ):
        _guard(refusals, table, refusals["Rule"](columns, (refusals["_only_once"](*once),)))


def downgrade() -> None:
    """Drop the tables, and their triggers with them; refused where they hold what is on record."""
    if op.get_bind().scalar(sa.text("SELECT count(*) FROM notice_receiver")):
        message = "Receivers of notices are on record: without these tables they are lost. Restore a backup instead."
        raise RuntimeError(message)
    op.drop_table("notice")
    op.drop_table("notice_receiver")


def _refusals() -> dict[str, Any]:
    """Return what revision 0002 makes refusals with: one way of making them, for tables that came later too."""
    environment = op.get_context().environment_context
    if environment is None:
        message = "migrations run in Alembic's environment"
        raise LookupError(message)
    return vars(environment.script.get_revision("0002").module)


def _guard(refusals: dict[str, Any], table: str, rule: Any) -> None:  # noqa: ANN401  # a rule of revision 0002
    refuse = refusals["_refuse"]
    refuse(table, "no_delete", "DELETE", "no row is ever deleted")
    if op.get_bind().dialect.name == "postgresql":
        refuse(table, "no_truncate", "TRUNCATE", "no row is ever deleted")
    else:
        refusals["_refuse_replacing"](table, rule)
    may = ", ".join(rule.may_change)
    fixed = refusals["_any_fixed_differs"](table, rule)
    refuse(table, "fixed", "UPDATE", f"nothing changes but {may}", when=fixed)
    for condition in rule.conditions:
        refuse(table, condition.name, "UPDATE", condition.message, when=condition.refused_when)
