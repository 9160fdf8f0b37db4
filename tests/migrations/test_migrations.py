"""Up from nothing, down to nothing, equal to the model, and with every trigger at every step."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Final
from uuid import UUID

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, create_engine, insert, inspect, text, update
from sqlalchemy.exc import DBAPIError

from app.storage import migrate, triggers
from app.storage.database import Database
from app.storage.tables import metadata

ROOT: Final = Path(__file__).resolve().parents[2]
WITHOUT_TRIGGERS: Final = {
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


def revisions() -> list[str]:
    """Return every revision, the oldest first."""
    scripts = ScriptDirectory(str(ROOT / "migrations"))
    return [script.revision for script in reversed(list(scripts.walk_revisions()))]


def triggers_expected(kind: str) -> frozenset[str]:
    """Return the names of the triggers that stand from revision 0002 on."""
    return triggers.expected(is_postgresql=kind == "postgresql")


def triggers_of(connection: Connection) -> set[str]:
    """Return the names of the triggers that stand, and are on whatever a session sets."""
    if connection.dialect.name == "postgresql":
        rows = connection.execute(text("SELECT tgname, tgenabled FROM pg_trigger WHERE NOT tgisinternal")).all()
        assert {row.tgenabled for row in rows} <= {"A"}
        return {row.tgname for row in rows}
    return set(connection.scalars(text("SELECT name FROM sqlite_master WHERE type = 'trigger'")))


class TestUpgrade:
    def test_empty_database(self, database_url: str) -> None:
        """An empty database becomes what the model says, with nothing more or less. [INT-03]"""
        migrate.upgrade(database_url)
        engine = create_engine(database_url)
        with engine.connect() as connection:
            context = MigrationContext.configure(
                connection, opts={"compare_type": True, "compare_server_default": True}
            )
            assert compare_metadata(context, metadata) == []
            assert set(inspect(connection).get_table_names()) == {*metadata.tables, "alembic_version"}
        engine.dispose()

    def test_triggers_after_every_revision(self, database_url: str, database_kind: str) -> None:
        """From 0002 on the triggers stand after each step, up and down; none was dropped by the way. [AUD-02]"""
        engine = create_engine(database_url)
        steps = revisions()
        assert steps[:2] == ["0001", "0002"]
        for take, order in ((migrate.upgrade, steps), (migrate.downgrade, steps[-2::-1])):
            for revision in order:
                take(database_url, revision)
                with engine.connect() as connection:
                    there = inspect(connection).get_table_names()
                    standing = triggers.expected(is_postgresql=database_kind == "postgresql", tables=there)
                    expected = set() if revision == "0001" else standing
                    assert triggers_of(connection) == expected, revision
        engine.dispose()

    def test_every_table_has_its_rules(self) -> None:
        """A new table is guarded, or it is said here that it is not. [AUD-02]"""
        assert set(metadata.tables) == {*triggers.UPDATES, *WITHOUT_TRIGGERS}

    def test_from_another_folder(self, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """`snose migrate` needs no checkout to stand in. [INT-03]"""
        elsewhere = tmp_path / "elsewhere"
        elsewhere.mkdir()
        monkeypatch.chdir(elsewhere)
        migrate.upgrade(database_url)
        database = Database(database_url)
        with database.transaction() as tx:
            assert migrate.current(tx) == migrate.head() == revisions()[-1]
        database.close()

    def test_again(self, migrated_database_url: str) -> None:
        """A database that is up to date stays as it is. [INT-03]"""
        migrate.upgrade(migrated_database_url)
        database = Database(migrated_database_url)
        with database.transaction() as tx:
            assert migrate.current(tx) == migrate.head()
        database.close()

    def test_by_hand(self, database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """A developer's own `alembic upgrade head` does the same. [INT-03]"""
        monkeypatch.setenv("SNOSE_DATABASE_URL", database_url)
        command.upgrade(Config(ROOT / "alembic.ini"), "head")
        engine = create_engine(database_url)
        with engine.connect() as connection:
            assert {*metadata.tables} < set(inspect(connection).get_table_names())
        engine.dispose()

    def test_migration_that_fails(self, database_url: str) -> None:
        """A failed migration leaves those before it standing, and nothing of itself. [INT-03]"""
        migrate.upgrade(database_url, "0001")
        engine = create_engine(database_url)
        with engine.connect() as connection:
            # In the way of 0002, somewhere in its middle.
            connection.exec_driver_sql("ALTER TABLE kit RENAME COLUMN sealed TO hidden")
            connection.commit()
        with pytest.raises(LookupError, match="kit has no column sealed"):
            migrate.upgrade(database_url)
        with engine.connect() as connection:
            assert triggers_of(connection) == set()
            assert MigrationContext.configure(connection).get_current_revision() == "0001"
            connection.exec_driver_sql("ALTER TABLE kit RENAME COLUMN hidden TO sealed")
            connection.commit()
        engine.dispose()
        migrate.upgrade(database_url)

    @pytest.mark.parametrize("database_kind", ["sqlite"])
    def test_mode_of_a_new_file(self, database_url: str, tmp_path: Path) -> None:
        """A new SQLite file is for its owner alone. [CUS-04]"""
        migrate.upgrade(database_url)
        assert (tmp_path / "snose.sqlite").stat().st_mode & 0o777 == 0o600


class TestDowngrade:
    def test_to_nothing_and_up_again(self, database_url: str, database_kind: str) -> None:
        """Every migration can be taken back, and done again after. [INT-03]"""
        migrate.upgrade(database_url)
        migrate.downgrade(database_url, "base")
        engine = create_engine(database_url)
        with engine.connect() as connection:
            assert inspect(connection).get_table_names() == ["alembic_version"]
            if database_kind == "postgresql":
                with pytest.raises(DBAPIError):
                    connection.execute(text("SELECT 'snose_refuse()'::regprocedure"))
        engine.dispose()
        migrate.upgrade(database_url)
        with engine.connect() as connection:
            assert triggers_of(connection) == triggers_expected(database_kind)
        engine.dispose()

    def test_of_a_database_in_use(self, migrated_database_url: str) -> None:
        """A way back that would lose what is on record is refused; a demo's may be emptied. [INT-11, T24]"""
        database = Database(migrated_database_url)
        with database.transaction() as tx:
            made = {"deployment_id": UUID(int=1), "mode": "live", "wrapped_secret": "", "created_at": datetime.now(UTC)}
            tx.execute(insert(metadata.tables["deployment"]), {**made, "is_demo": False})
        with pytest.raises(RuntimeError, match="Restore a backup instead"):
            migrate.downgrade(migrated_database_url, "base")
        with database.transaction() as tx:
            assert migrate.current(tx) == "0001"
            tx.execute(update(metadata.tables["deployment"]).values(is_demo=True))
        database.close()
        migrate.downgrade(migrated_database_url, "base")
