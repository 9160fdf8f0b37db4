"""The database itself refuses what no one may do, to the owner of the tables too (rules A9, E2)."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final
from uuid import UUID, uuid4

import psycopg
import pytest
from psycopg import sql
from sqlalchemy import (
    Connection,
    Executable,
    TextClause,
    UniqueConstraint,
    delete,
    insert,
    make_url,
    select,
    text,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DBAPIError

from app.errors import IntegrityBroken, UnsafeSetting
from app.storage import answers
from app.storage.database import AlreadyThere, Database, Transaction
from app.storage.grants import CHANGEABLE, LOCKED, grant_to
from app.storage.tables import metadata, stored_answer
from tests.storage.builders import NOON, a_row, another, fill, value_of

WITHOUT_RULES: Final = {
    *(
        "client_key",
        "credential",
        "factor_recovery",
        "former_secret",
        "identity_link",
        "issuer",
        "known_device",
        "passkey",
        "pending_grant",
    ),
    *("session", "sign_in_tries", "used_assertion"),
}
ON_SQLITE: Final = pytest.mark.parametrize("shared_database", ["sqlite"], indirect=True, scope="module")
ON_POSTGRESQL: Final = pytest.mark.parametrize("shared_database", ["postgresql"], indirect=True, scope="module")
GUARDED: Final = sorted(set(metadata.tables) - WITHOUT_RULES)
LATER: Final = NOON.replace(hour=13)
LATEST: Final = NOON.replace(hour=14)


@dataclass(frozen=True)
class Change:
    """A change of a standing row."""

    table: str
    to: dict[str, Any]
    standing: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        """Name the test."""
        return f"{self.table}-{'-'.join(f'{name}={value}' for name, value in self.to.items())}"


def rotated(table: str, *sealed: str) -> list[Change]:
    """Return the one way to reseal a row."""
    return [Change(table, dict.fromkeys(sealed, "resealed") | {"key_version": 2})]


def badly_rotated(table: str, *sealed: str) -> list[Change]:
    """Return the ways to reseal a row that are none."""
    resealed = dict.fromkeys(sealed, "resealed")
    changes = [
        Change(table, resealed),
        Change(table, {"key_version": 2}),
        Change(table, resealed | {"key_version": 0}),
    ]
    for left_out in sealed[1:]:
        some = {name: value for name, value in resealed.items() if name != left_out}
        changes.append(Change(table, some | {"key_version": 2}))
    return changes


SEALED: Final = {
    "trail_restricted": ("sealed",),
    "slot": ("sealed",),
    "kit": ("sealed",),
    "allocation": ("sealed_binding",),
    "kit_assignment": ("sealed_binding",),
    "schedule": ("sealed_specification", "sealed_seed", "sealed_quality_report"),
    "safety_unblinding": ("sealed_subject",),
    "dual_control_request": ("sealed_statement",),
}

ALLOWED: Final = [
    *(change for table, sealed in SEALED.items() for change in rotated(table, *sealed)),
    Change("log", {"size": 2, "frontier": b"grown", "last_at": LATER, "mac": b"new"}),
    Change("log", {"mac": b"re-keyed"}),
    Change("log", {"key_version": 2}),
    Change("stored_answer", {"sealed_small": "answer"}),
    Change("stored_answer", {"sealed_large": "answer"}),
    Change("deployment", {"wrapped_secret": "wrapped again"}),
    Change("signing_key", {"wrapped": "wrapped again"}),
    Change("principal", {"display_name": "Dr B", "email": "b@example.org", "is_active": False, "deactivated_at": NOON}),
    Change("role_grant", {"revoked_at": NOON, "revoked_by": "admin"}),
    Change(
        "study",
        {"title": "T", "planned_subjects": 5, "stock_floor": 2, "backup_contact": "C", "key_version": 2},
    ),
    Change("study", {"key_version": 3, "min_key_version": 3}),
    Change("study_key", {"wrapped": ""}),
    Change("study", {"status": "suspended", "is_frozen": True}),
    Change("study", {"status": "closed"}),
    Change("site", {"name": "St Mary", "timezone": "Europe/Paris", "is_active": True}),
    Change(
        "schedule",
        {"status": "approved", "commitment_note": "note", "decided_at": NOON, "decided_by": "approver"},
    ),
    Change("schedule", {"status": "rejected"}),
    Change(
        "schedule",
        {"status": "active", "activated_at": NOON, "activated_by": "admin"},
        {"status": "approved"},
    ),
    Change("schedule", {"status": "closed"}, {"status": "active"}),
    Change("stratum", {"allocated": 2}),
    Change("schedule_stratum", {"first_ordinal": 7}),
    Change(
        "consignment",
        {
            "site_code": "S1",
            "status": "assignable",
            "dispatched_at": NOON,
            "assignable_at": NOON,
            "withdrawn_at": NOON,
            "sheets_released_at": NOON,
            "recall_id": UUID(int=7),
        },
    ),
    Change("kit", {"status": "in_stock", "site_code": "S1"}),
    Change("kit_assignment", {"dispensed_at": NOON, "dispensed_by": "pharmacist"}),
    Change("envelope", {"written_at": NOON}),
    Change("notice_receiver", {"removed_at": NOON, "removed_by": "admin", "disabled_at": NOON}),
    Change("notice", {"failures": 2, "next_try_at": LATER}),
    Change("notice", {"delivered_at": NOON}),
    Change("notice", {"given_up_at": NOON}),
    Change("code_break", {"narrated_at": NOON}),
    Change("code_break", {"status": "withheld"}),
    Change("safety_unblinding", {"status": "withheld"}),
    Change("dual_control_request", {"released_at": NOON, "released_by": "second"}),
]

REFUSED: Final = [
    *(change for table, sealed in SEALED.items() for change in badly_rotated(table, *sealed)),
    Change("kit", {"status": "in_stock", "sealed": "another arm"}),
    Change("log", {"size": 0}),
    Change("log", {"key_version": 0}),
    Change("log", {"frontier": b"another"}),
    Change("log", {"size": 2, "last_at": NOON.replace(hour=11)}),
    Change("stored_answer", {"sealed_small": "other"}, {"sealed_small": "answer"}),
    Change("stored_answer", {"sealed_small": None}, {"sealed_small": "answer"}),
    Change("stored_answer", {"sealed_large": "other"}, {"sealed_large": "answer"}),
    Change("role_grant", {"revoked_at": None, "revoked_by": None}, {"revoked_at": NOON, "revoked_by": "a"}),
    Change("role_grant", {"starts_at": LATER}),
    Change("role_grant", {"ends_at": None}, {"ends_at": NOON}),
    Change("role_grant", {"revoked_at": LATER}, {"revoked_at": NOON, "revoked_by": "a"}),
    Change("role_grant", {"revoked_by": "another"}, {"revoked_at": NOON, "revoked_by": "a"}),
    Change("study", {"status": "open"}, {"status": "closed"}),
    Change("study", {"is_frozen": False}, {"is_frozen": True}),
    Change("study", {"key_version": 0}),
    Change("study", {"min_key_version": 2}),
    Change("study", {"key_version": 2, "min_key_version": 0}),
    Change("study_key", {"wrapped": "another key"}),
    Change("study_key", {"wrapped": "again"}, {"wrapped": ""}),
    Change("schedule", {"status": "active"}),
    Change("schedule", {"status": "generated"}, {"status": "approved"}),
    Change("schedule", {"status": "rejected"}, {"status": "approved"}),
    Change("schedule", {"status": "approved"}, {"status": "rejected"}),
    Change("schedule", {"status": "active"}, {"status": "rejected"}),
    Change("schedule", {"status": "approved"}, {"status": "active"}),
    Change("schedule", {"status": "closed"}, {"status": "approved"}),
    Change("schedule", {"status": "active"}, {"status": "closed"}),
    Change("schedule", {"commitment_note": "other"}, {"commitment_note": "note"}),
    Change("schedule", {"decided_at": LATER}, {"decided_at": NOON}),
    Change("schedule", {"decided_by": "other"}, {"decided_by": "approver"}),
    Change("schedule", {"activated_at": LATER}, {"activated_at": NOON}),
    Change("schedule", {"activated_by": None}, {"activated_by": "admin"}),
    Change("stratum", {"allocated": 0}),
    Change("stratum", {"allocated": 3}),
    Change("schedule_stratum", {"first_ordinal": 8}, {"first_ordinal": 7}),
    Change("kit_assignment", {"dispensed_at": LATEST}, {"dispensed_at": LATER}),
    Change("kit_assignment", {"dispensed_by": None}, {"dispensed_by": "pharmacist"}),
    Change("envelope", {"written_at": LATER}, {"written_at": NOON}),
    Change("notice_receiver", {"removed_at": None}, {"removed_at": NOON}),
    Change("notice_receiver", {"disabled_at": LATER}, {"disabled_at": NOON}),
    Change("notice", {"delivered_at": LATER}, {"delivered_at": NOON}),
    Change("notice", {"given_up_at": None}, {"given_up_at": NOON}),
    Change("code_break", {"narrated_at": None}, {"narrated_at": NOON}),
    Change("code_break", {"status": "authorised"}, {"status": "withheld"}),
    Change("code_break", {"status": "never"}),
    Change("safety_unblinding", {"status": "authorised"}, {"status": "withheld"}),
    Change("dual_control_request", {"released_at": LATER}, {"released_at": NOON}),
    Change("dual_control_request", {"released_by": "other"}, {"released_by": "second"}),
]


def refusal(connection: Connection, statement: Executable, values: dict[str, Any] | None = None) -> str | None:
    """Return what a trigger of ours says to a statement; None when the statement went through."""
    try:
        with connection.begin_nested():
            connection.execute(statement, values or {})
    except DBAPIError as error:
        original = error.orig
        if isinstance(original, psycopg.Error):
            assert original.sqlstate == "SN001", original
            return str(original.diag.message_primary)
        assert getattr(original, "sqlite_errorname", "") == "SQLITE_CONSTRAINT_TRIGGER", original
        return str(original)
    return None


def only_row(connection: Connection, name: str) -> dict[str, Any]:
    """Return the one row of a table."""
    return dict(connection.execute(select(metadata.tables[name])).mappings().one())


def statement(*parts: str) -> TextClause:
    """Return a statement that SQLAlchemy has no words for."""
    return text(" ".join(f'"{part}"' if part in metadata.tables else part for part in parts))


def only_rowid(connection: Connection, name: str) -> int:
    """Return SQLite's number of the one row of a table."""
    return int(connection.execute(statement("SELECT rowid FROM", name)).scalar_one())


def keys_of(name: str) -> list[tuple[str, ...]]:
    """Return every key of a table, the primary one first."""
    table = metadata.tables[name]
    unique = [tuple(c.columns.keys()) for c in table.constraints if isinstance(c, UniqueConstraint)]
    return [tuple(table.primary_key.columns.keys()), *unique]


def rival(name: str, key: tuple[str, ...]) -> dict[str, Any]:
    """Return a row that differs from the standing one in everything but a key."""
    columns = metadata.tables[name].columns
    return {
        column.name: value_of(column) if column.name in key else another(column, value_of(column)) for column in columns
    }


@pytest.mark.parametrize("name", GUARDED)
class TestEveryTable:
    def test_delete(self, connection: Connection, name: str) -> None:
        """A row is never deleted. [AUD-02, ASG-10]"""
        fill(connection)
        assert refusal(connection, delete(metadata.tables[name])) == f"{name}: no row is ever deleted"
        assert len(connection.execute(select(metadata.tables[name])).all()) == 1

    @ON_POSTGRESQL
    def test_truncate(self, connection: Connection, name: str) -> None:
        """TRUNCATE, which fires no delete trigger, is refused for itself. [AUD-02]"""
        fill(connection)
        message = refusal(connection, statement("TRUNCATE", name, "CASCADE"))
        assert message is not None
        assert message.endswith(": no row is ever deleted")

    def test_columns_that_never_change(self, connection: Connection, name: str) -> None:
        """Each column that no rule leaves open refuses every other value. [SEQ-17, AUD-02]"""
        fill(connection)
        table = metadata.tables[name]
        fixed = [column for column in table.columns if column.name not in CHANGEABLE.get(name, ())]
        for column in fixed:
            message = refusal(connection, update(table).values({column.name: another(column, value_of(column))}))
            assert message is not None, f"{name}.{column.name} was changed"
            assert message.startswith(f"{name}: ")

    def test_row_that_changes_its_key_on_conflict(self, connection: Connection, name: str) -> None:
        """An upsert changes no more than an update may. [AUD-02]"""
        fill(connection)
        table = metadata.tables[name]
        dialect = postgresql if connection.dialect.name == "postgresql" else sqlite
        key = table.primary_key.columns.keys()
        changed = {c.name: another(c, value_of(c)) for c in table.columns if c.name in key}
        before = only_row(connection, name)
        message = refusal(
            connection,
            dialect.insert(table).values(a_row(table)).on_conflict_do_update(index_elements=key, set_=changed),
        )
        assert message is not None or (name == "stored_answer" and connection.dialect.name == "sqlite")
        assert only_row(connection, name) == before

    @ON_SQLITE
    def test_replacing_insert(self, connection: Connection, name: str) -> None:
        """INSERT OR REPLACE, which fires no delete trigger, takes no row away by any of its keys. [AUD-02]"""
        connection.exec_driver_sql("PRAGMA recursive_triggers=OFF")
        fill(connection)
        before = only_row(connection, name)
        table = metadata.tables[name]
        for key in keys_of(name):
            message = refusal(connection, insert(table).prefix_with("OR REPLACE"), rival(name, key))
            assert message == (None if name == "stored_answer" else f"{name}: this row is there already"), key
            assert only_row(connection, name) == before

    @ON_SQLITE
    def test_replacing_insert_by_rowid(self, connection: Connection, name: str) -> None:
        """Nor by SQLite's hidden row number, whatever the keys of the new row are. [AUD-02]"""
        fill(connection)
        before = only_row(connection, name)
        columns = ", ".join(f'"{column}"' for column in before)
        taken = only_rowid(connection, name)
        # The key differs and the number is that of the standing row: signing_key's key is its number.
        key = {column for key in keys_of(name) for column in key if name != "signing_key"}
        others = ", ".join(
            f"'{column}'" if column in key and column != "study_id" else f'"{column}"' for column in before
        )
        message = refusal(
            connection,
            statement("INSERT OR REPLACE INTO", name, f"(rowid, {columns}) SELECT {taken}, {others} FROM", name),
        )
        assert message == (None if name == "stored_answer" else f"{name}: this row is there already")
        assert only_row(connection, name) == before

    @ON_SQLITE
    def test_replacing_update_by_rowid(self, connection: Connection, name: str) -> None:
        """No row takes the hidden number, and so the place, of another one. [AUD-02]"""
        fill(connection)
        message = refusal(connection, statement("UPDATE OR REPLACE", name, "SET rowid = rowid + 1"))
        assert message is not None
        assert message.startswith(f"{name}: ")


class TestRules:
    @pytest.mark.parametrize("change", ALLOWED, ids=str)
    def test_change_that_belongs_to_the_life_of_a_row(self, connection: Connection, change: Change) -> None:
        """The triggers stand in the way of nothing that the trial needs. [SEQ-17, CUS-08]"""
        fill(connection, **{change.table: change.standing})
        assert refusal(connection, update(metadata.tables[change.table]), change.to) is None
        row = only_row(connection, change.table)
        assert {name: row[name] for name in change.to} == change.to

    @pytest.mark.parametrize("change", REFUSED, ids=str)
    def test_change_that_rewrites_what_was(self, connection: Connection, change: Change) -> None:
        """A column that may change goes one way only. [SEQ-17, SEQ-18, CUS-01, AUD-02]"""
        fill(connection, **{change.table: change.standing})
        before = only_row(connection, change.table)
        message = refusal(connection, update(metadata.tables[change.table]), change.to)
        assert message is not None
        assert message.startswith(f"{change.table}: ")
        assert only_row(connection, change.table) == before

    def test_open_columns_are_all_shown_to_change(self) -> None:
        """What the application's role may change is what the triggers let change, no more and no less. [AUD-02]"""
        shown: dict[str, set[str]] = {}
        for change in ALLOWED:
            shown.setdefault(change.table, set()).update(change.to)
        assert shown == {name: set(columns) for name, columns in CHANGEABLE.items() if name in GUARDED}

    @ON_POSTGRESQL
    def test_rules_hold_for_replicated_writes(self, connection: Connection) -> None:
        """Nor does a session that plays the part of a replica get past a trigger. [AUD-02]"""
        fill(connection)
        connection.exec_driver_sql("SET LOCAL session_replication_role = replica")
        message = refusal(connection, delete(metadata.tables["trail_entry"]))
        assert message == "trail_entry: no row is ever deleted"


class TestInTheServicesWords:
    def test_second_insert_of_a_key(self, connection: Connection) -> None:
        """The trigger against replacements does not hide what a unique constraint says. [ASG-08]"""
        fill(connection)
        table = metadata.tables["allocation"]
        with pytest.raises(AlreadyThere):
            Transaction(connection).execute(insert(table), a_row(table))

    def test_forbidden_change(self, connection: Connection) -> None:
        """A refused change is a broken rule and no rival's row: it is not tried again. [AUD-02]"""
        fill(connection)
        with pytest.raises(IntegrityBroken):
            Transaction(connection).execute(delete(metadata.tables["trail_entry"]))

    def test_claim_of_a_claimed_key(self, connection: Connection) -> None:
        """The claim of a key that is there gives the answer under it and neither fails nor takes it away. [ASG-07]"""
        tx = Transaction(connection)
        study_id, scope = uuid4(), b"\x07" * 32
        assert answers.claim(tx, study_id, scope, NOON) is None
        tx.execute(update(stored_answer).values(sealed_small="v1.k.n.b"))
        found = answers.claim(tx, study_id, scope, LATER)
        assert found is not None
        assert found.small is not None
        assert found.small.token == "v1.k.n.b"
        assert only_row(connection, "stored_answer")["claimed_at"] == NOON


@pytest.fixture
def role(request: pytest.FixtureRequest, shared_database: Database) -> Iterator[str]:
    """A role of the application, with its rights in the shared PostgreSQL database."""
    name = f"app {uuid4().hex}"
    owner = owner_of(shared_database)
    try:
        owner.execute(sql.SQL("CREATE ROLE {} LOGIN").format(sql.Identifier(name)))
        grant_to(url_of(shared_database), name)
        yield name
    finally:
        shared_database.engine.dispose()
        owner.execute(sql.SQL("DROP OWNED BY {}").format(sql.Identifier(name)))
        owner.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(name)))
        owner.close()


def url_of(database: Database) -> str:
    """Return the owner's URL."""
    return database.engine.url.render_as_string(hide_password=False)


def owner_of(database: Database) -> psycopg.Connection:
    """Return a connection of the owner that commits each statement."""
    return psycopg.connect(url_of(database).replace("+psycopg", ""), autocommit=True)


@pytest.fixture
def application(shared_database: Database, role: str) -> Iterator[Database]:
    """The database as the application's role sees it."""
    database = Database(make_url(url_of(shared_database)).set(username=role).render_as_string())
    yield database
    database.close()


FORBIDDEN_TO_THE_ROLE: Final = [
    "UPDATE trail_entry SET actor = 'nobody'",
    "DELETE FROM trail_entry",
    "TRUNCATE trail_entry",
    "UPDATE allocation SET subject_key = 'other'",
    "UPDATE slot SET position = 0",
    "DELETE FROM session",
    "ALTER TABLE trail_entry DISABLE TRIGGER ALL",
    "DROP TRIGGER trail_entry_no_delete ON trail_entry",
    "CREATE OR REPLACE FUNCTION snose_refuse() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'",
    "CREATE RULE silent AS ON DELETE TO trail_entry DO INSTEAD NOTHING",
    "ALTER TABLE trail_entry OWNER TO current_user",
    "CREATE TABLE beside (n int)",
    "SET session_replication_role = replica",
    "UPDATE alembic_version SET version_num = '0001'",
]


@ON_POSTGRESQL
class TestApplicationsRole:
    def test_rights(self, shared_database: Database, role: str) -> None:
        """The role reads and inserts, changes the open columns alone, and deletes nothing. [AUD-02, USR-17]"""
        with owner_of(shared_database) as owner:
            for table in metadata.sorted_tables:
                named = {"role": role, "table": f'"{table.name}"'}
                rights = {
                    right
                    for right in ("SELECT", "INSERT", "DELETE", "TRUNCATE", "REFERENCES", "TRIGGER", "MAINTAIN")
                    if owner.execute(
                        "SELECT has_table_privilege(%(role)s, %(table)s, %(right)s)", named | {"right": right}
                    ).fetchone()
                    == (True,)
                }
                assert rights == {"SELECT", "INSERT"}, table.name
                columns = {
                    column
                    for column in (each.name for each in table.columns)
                    if owner.execute(
                        "SELECT has_column_privilege(%(role)s, %(table)s, %(column)s, 'UPDATE')",
                        named | {"column": column},
                    ).fetchone()
                    == (True,)
                }
                assert columns == {*CHANGEABLE.get(table.name, ()), *LOCKED.get(table.name, ())}, table.name

    @pytest.mark.parametrize("statement", FORBIDDEN_TO_THE_ROLE)
    def test_forbidden_act(self, application: Database, statement: str) -> None:
        """Entries are out of its reach, and so are the triggers over them. [AUD-02, USR-17]"""
        with application.engine.connect() as connection:
            with pytest.raises(DBAPIError) as caught:
                connection.execute(text(statement))
            assert getattr(caught.value.orig, "sqlstate", None) == "42501"

    def test_daily_work(self, application: Database) -> None:
        """With these rights every row can be inserted, locked and changed as the trial needs. [ASG-05]"""
        with application.engine.connect() as connection:
            fill(connection)
            for table in metadata.sorted_tables:
                if {*CHANGEABLE.get(table.name, ()), *LOCKED.get(table.name, ())}:
                    assert len(connection.execute(select(table).with_for_update()).all()) == 1
            for change in ALLOWED:
                if not change.standing:
                    nested = connection.begin_nested()
                    connection.execute(update(metadata.tables[change.table]), change.to)
                    nested.rollback()

    def test_granted_again(self, shared_database: Database, role: str) -> None:
        """A right given by hand goes with the next grant. [USR-17]"""
        with owner_of(shared_database) as owner:
            owner.execute(sql.SQL("GRANT DELETE ON trail_entry TO {}").format(sql.Identifier(role)))
            owner.execute(sql.SQL("GRANT UPDATE (body) ON trail_entry TO {}").format(sql.Identifier(role)))
            grant_to(url_of(shared_database), role)
            for question in (
                "SELECT has_table_privilege(%s, 'trail_entry', 'DELETE')",
                "SELECT has_column_privilege(%s, 'trail_entry', 'body', 'UPDATE')",
            ):
                assert owner.execute(question, [role]).fetchone() == (False,)

    def test_owner_is_no_role_of_the_application(self, shared_database: Database) -> None:
        """A role that could switch the triggers off gets no rights as if it were harmless. [AUD-02]"""
        with pytest.raises(UnsafeSetting, match="could switch the triggers off"):
            grant_to(url_of(shared_database), "postgres")

    def test_member_of_the_owner(self, shared_database: Database, role: str) -> None:
        """Nor does one that can become the owner. [AUD-02]"""
        with owner_of(shared_database) as owner:
            owner.execute(sql.SQL("GRANT postgres TO {}").format(sql.Identifier(role)))
            with pytest.raises(UnsafeSetting, match="could switch the triggers off"):
                grant_to(url_of(shared_database), role)

    def test_unknown_role(self, shared_database: Database) -> None:
        """A role that is not there is named. [INT-03]"""
        with pytest.raises(UnsafeSetting, match="has no role nobody here"):
            grant_to(url_of(shared_database), "nobody here")


@ON_SQLITE
def test_role_on_sqlite(shared_database: Database) -> None:
    """A database without roles says so. [INT-03]"""
    with pytest.raises(UnsafeSetting, match="SQLite has no roles"):
        grant_to(url_of(shared_database), "snose_app")
