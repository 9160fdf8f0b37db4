"""Let the database itself refuse what no one may do: delete, replace, or change what stands (rules A9, E2).

The rules are one table, the same on SQLite and PostgreSQL, and they hold for the owner too. A column that no rule
names never changes, so that a column added to a table and forgotten here is fixed and not open. Which columns and
keys there are is read from the database: at this revision it is what 0001 has made.

Beside UPDATE and DELETE there are two back doors. PostgreSQL's TRUNCATE fires triggers of its own. SQLite's
INSERT OR REPLACE deletes the row in the way and fires no delete trigger, whether the row is in the way by one of its
keys or by its rowid, and so does UPDATE OR REPLACE; so a row in the way is looked for before the insert, and no key
and no rowid ever changes.

PostgreSQL has no trigger at all on inserts, and one that hits a list of a million slots costs it nothing. An owner
who drops a trigger is not stopped; the verifier finds what was done (rule E4).
"""

from dataclasses import dataclass
from typing import Final

import sqlalchemy as sa
from alembic import op

revision: Final = "0002"
down_revision: Final[str | None] = "0001"
branch_labels: Final = None
depends_on: Final = None

REFUSED: Final = "SN001"


@dataclass(frozen=True)
class Condition:
    """A change that is refused although its columns may change."""

    name: str
    refused_when: str
    message: str


@dataclass(frozen=True)
class Rule:
    """What may change in the rows of a table; no row is ever deleted or replaced."""

    may_change: tuple[str, ...] = ()
    conditions: tuple[Condition, ...] = ()
    is_claimed: bool = False
    """Inserts meet a row that is there and go on (SQLite's ON CONFLICT DO NOTHING): the row stands, without an error."""


def _differs(column: str) -> str:
    return f'NEW."{column}" IS DISTINCT FROM OLD."{column}"'


def _only_resealed(*columns: str) -> Condition:
    touched = " OR ".join(_differs(column) for column in (*columns, "key_version"))
    resealed = " AND ".join(_differs(column) for column in columns)
    return Condition(
        "rotation",
        f'({touched}) AND NOT ({resealed} AND NEW."key_version" > OLD."key_version")',
        "a sealed value changes only with its key version, and the version rises",
    )


def _only_once(*columns: str) -> Condition:
    return Condition(
        "once",
        " OR ".join(f'OLD."{column}" IS NOT NULL AND {_differs(column)}' for column in columns),
        "what is on record once is not changed",
    )


def _only_steps(*steps: str) -> Condition:
    allowed = ", ".join(f"'{step}'" for step in steps)
    return Condition(
        "status",
        f"""{_differs("status")} AND OLD."status" || ' to ' || NEW."status" NOT IN ({allowed})""",
        "this step does not follow from the present status",
    )


_KEY_VERSIONS: Final = ("key_version", "min_key_version")
RULES: Final = {
    "trail_entry": Rule(),
    "trail_node": Rule(),
    "trail_restricted": Rule(("sealed", "key_version"), (_only_resealed("sealed"),)),
    "log": Rule(
        ("size", "frontier", "last_at", "mac", "key_version"),
        (
            Condition(
                "growth",
                'NEW."size" < OLD."size" OR NEW."last_at" < OLD."last_at" OR NEW."key_version" < OLD."key_version"'
                f' OR NEW."size" = OLD."size" AND {_differs("frontier")}',
                "a log only grows, and its time goes forward",
            ),
        ),
    ),
    "stored_answer": Rule(
        ("sealed_small", "sealed_large"), (_only_once("sealed_small", "sealed_large"),), is_claimed=True
    ),
    "deployment": Rule(("wrapped_secret",)),
    "signing_key": Rule(("wrapped",)),
    "principal": Rule(("display_name", "email", "is_active")),
    "role_grant": Rule(("revoked_at", "revoked_by"), (_only_once("revoked_at", "revoked_by"),)),
    "study": Rule(
        ("title", "planned_subjects", "stock_floor", "backup_contact", "status", "is_frozen", *_KEY_VERSIONS),
        (
            Condition("status", f"""OLD."status" = 'closed' AND {_differs("status")}""", "closed is for ever"),
            Condition("thaw", 'OLD."is_frozen" AND NOT NEW."is_frozen"', "a frozen definition stays frozen"),
            Condition(
                "rotation",
                'NEW."key_version" < OLD."key_version" OR NEW."min_key_version" < OLD."min_key_version"'
                ' OR NEW."min_key_version" > NEW."key_version"',
                "key versions only rise, and the newest one is never retired",
            ),
        ),
    ),
    "study_key": Rule(
        ("wrapped",),
        (Condition("rotation", f"""{_differs("wrapped")} AND NEW."wrapped" <> ''""", "a key is kept or destroyed"),),
    ),
    "arm": Rule(),
    "factor": Rule(),
    "site": Rule(("name", "timezone", "is_active")),
    # Nothing is in the row but its key: it is there to be locked.
    "site_stock": Rule(),
    "schedule": Rule(
        (
            *("status", "commitment_note", "decided_at", "decided_by", "activated_at", "activated_by"),
            *("sealed_specification", "sealed_seed", "sealed_quality_report", "key_version"),
        ),
        (
            _only_resealed("sealed_specification", "sealed_seed", "sealed_quality_report"),
            _only_once("commitment_note", "decided_at", "decided_by", "activated_at", "activated_by"),
            _only_steps("generated to approved", "generated to rejected", "approved to active", "active to closed"),
        ),
    ),
    "stratum": Rule(
        ("allocated",),
        (
            Condition(
                "growth",
                f'{_differs("allocated")} AND NEW."allocated" <> OLD."allocated" + 1',
                "slots are used one after the other",
            ),
        ),
    ),
    "schedule_stratum": Rule(("first_ordinal",), (_only_once("first_ordinal"),)),
    "slot": Rule(("sealed", "key_version"), (_only_resealed("sealed"),)),
    "commitment_tile": Rule(),
    "consignment": Rule(
        ("site_code", "status", "dispatched_at", "assignable_at", "withdrawn_at", "sheets_released_at")
    ),
    "kit": Rule(("site_code", "status", "sealed", "key_version"), (_only_resealed("sealed"),)),
    "allocation": Rule(("sealed_binding", "key_version"), (_only_resealed("sealed_binding"),)),
    "subject_flag": Rule(),
    "kit_assignment": Rule(
        ("dispensed_at", "dispensed_by", "sealed_binding", "key_version"),
        (_only_resealed("sealed_binding"), _only_once("dispensed_at", "dispensed_by")),
    ),
    "replacement_release": Rule(),
    "envelope": Rule(("written_at",), (_only_once("written_at"),)),
    "code_break": Rule(("status", "narrated_at"), (_only_once("narrated_at"), _only_steps("authorised to withheld"))),
    "safety_unblinding": Rule(
        ("status", "sealed_subject", "key_version"),
        (_only_resealed("sealed_subject"), _only_steps("authorised to withheld")),
    ),
    "dual_control_request": Rule(
        ("released_at", "released_by", "sealed_statement", "key_version"),
        (_only_resealed("sealed_statement"), _only_once("released_at", "released_by")),
    ),
}


def upgrade() -> None:
    """Let the database refuse from now on."""
    if _is_postgresql():
        op.execute(f"""
            CREATE FUNCTION snose_refuse() RETURNS trigger LANGUAGE plpgsql AS $$
            BEGIN
                RAISE EXCEPTION '%: %', TG_TABLE_NAME, TG_ARGV[0] USING ERRCODE = '{REFUSED}';
            END $$
        """)
    for table, rule in RULES.items():
        _refuse(table, "no_delete", "DELETE", "no row is ever deleted")
        if _is_postgresql():
            _refuse(table, "no_truncate", "TRUNCATE", "no row is ever deleted")
        else:
            _refuse_replacing(table, rule)
        if not rule.may_change:
            _refuse(table, "no_update", "UPDATE", "no row is ever changed")
            continue
        may = ", ".join(rule.may_change)
        _refuse(table, "fixed", "UPDATE", f"nothing changes but {may}", when=_any_fixed_differs(table, rule))
        for condition in rule.conditions:
            _refuse(table, condition.name, "UPDATE", condition.message, when=condition.refused_when)


def downgrade() -> None:
    """Take every refusal back."""
    if _is_postgresql():
        # The triggers are the only ones that call it, and go with it.
        op.execute("DROP FUNCTION snose_refuse() CASCADE")
        return
    for table, rule in RULES.items():
        updates = ("fixed", *(condition.name for condition in rule.conditions))
        for name in ("no_delete", "no_replace", *(updates if rule.may_change else ("no_update",))):
            op.execute(f'DROP TRIGGER "{table}_{name}"')


def _is_postgresql() -> bool:
    return op.get_bind().dialect.name == "postgresql"


def _refuse(table: str, name: str, act: str, message: str, when: str | None = None) -> None:
    trigger = f'"{table}_{name}"'
    if _is_postgresql():
        # Without a look at the rows the whole statement is refused, once.
        each, only = ("STATEMENT", "") if when is None else ("ROW", f"WHEN ({when})")
        op.execute(
            f'CREATE TRIGGER {trigger} BEFORE {act} ON "{table}" FOR EACH {each} {only} '
            f"EXECUTE FUNCTION snose_refuse('{message}')"
        )
        # Else whoever may set session_replication_role could go past it.
        op.execute(f'ALTER TABLE "{table}" ENABLE ALWAYS TRIGGER {trigger}')
        return
    # The same comparison in the spelling that every SQLite knows.
    only = "" if when is None else f"WHEN {when.replace('IS DISTINCT FROM', 'IS NOT')}"
    op.execute(
        f'CREATE TRIGGER {trigger} BEFORE {act} ON "{table}" {only} '
        f"BEGIN SELECT RAISE(ABORT, '{table}: {message}'); END"
    )


def _refuse_replacing(table: str, rule: Rule) -> None:
    """On SQLite, look for a row in the way of the new one: by any key, or by the rowid that an insert may name."""
    in_the_way = " OR ".join(
        f'EXISTS (SELECT 1 FROM "{table}" WHERE {_same(key)})'  # noqa: S608  # names of our own; DDL takes no parameters
        for key in (["rowid"], *_keys(table))
    )
    # A claim's ON CONFLICT DO NOTHING and a replacement look alike from here, and IGNORE is right for both: the row stands.
    action = "IGNORE" if rule.is_claimed else f"ABORT, '{table}: this row is there already'"
    op.execute(
        f'CREATE TRIGGER "{table}_no_replace" BEFORE INSERT ON "{table}" WHEN {in_the_way} '
        f"BEGIN SELECT RAISE({action}); END"
    )


def _any_fixed_differs(table: str, rule: Rule) -> str:
    columns = [column["name"] for column in sa.inspect(op.get_bind()).get_columns(table)]
    if unknown := set(rule.may_change) - set(columns):
        raise LookupError(f"{table} has no column {', '.join(sorted(unknown))}")
    fixed = [column for column in columns if column not in rule.may_change]
    if not _is_postgresql():
        fixed.append("rowid")
    return " OR ".join(_differs(column) for column in fixed)


def _same(columns: list[str]) -> str:
    return " AND ".join(f'"{column}" = NEW."{column}"' for column in columns)


def _keys(table: str) -> list[list[str]]:
    inspector = sa.inspect(op.get_bind())
    return [
        inspector.get_pk_constraint(table)["constrained_columns"],
        *(constraint["column_names"] for constraint in inspector.get_unique_constraints(table)),
    ]
