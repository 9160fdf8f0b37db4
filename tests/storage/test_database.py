"""Transactions that are what they say, on both kinds of database, and answers without a value of a row in them."""

import sqlite3
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import psycopg
import pytest
from sqlalchemy import event, insert, select, text, update

from app.errors import DatabaseUnavailable, IntegrityBroken, UnsafeSetting
from app.storage.database import AlreadyThere, CommitUncertain, Database, Transaction, TryAgain
from app.storage.tables import metadata
from tests.storage.builders import a_row, fill

STRATUM: Final = metadata.tables["stratum"]
SITE_STOCK: Final = metadata.tables["site_stock"]
ON_SQLITE: Final = pytest.mark.parametrize("database_kind", ["sqlite"])
ON_POSTGRESQL: Final = pytest.mark.parametrize("database_kind", ["postgresql"])


@pytest.fixture
def database(migrated_database_url: str) -> Iterator[Database]:
    """A database with one row in each table."""
    opened = Database(migrated_database_url)
    with opened.transaction() as tx:
        fill(tx.connection)
    yield opened
    opened.close()


def take_next(tx: Transaction) -> int:
    """Look at a counter, then move it, as a slot is claimed."""
    allocated = int(tx.execute(select(STRATUM.c.allocated).with_for_update()).scalar_one())
    tx.execute(update(STRATUM), {"allocated": allocated + 1})
    return allocated


def run(database: Database, act: Callable[[Transaction], object]) -> None:
    with database.transaction() as tx:
        act(tx)


def allocated(database: Database) -> int:
    with database.transaction() as tx:
        return int(tx.execute(select(STRATUM.c.allocated)).scalar_one())


class TestTransaction:
    def test_end_of_the_block(self, database: Database) -> None:
        """What was done stands after the block, and for everyone. [ASG-05]"""
        with database.transaction() as tx:
            take_next(tx)
        assert allocated(database) == 2

    def test_error_in_the_block(self, database: Database) -> None:
        """Whatever is raised takes everything back. [ASG-05]"""

        def act(tx: Transaction) -> None:
            take_next(tx)
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            run(database, act)
        assert allocated(database) == 1

    def test_two_that_look_and_then_take(self, database: Database) -> None:
        """Looking first and taking then gives no slot to two. [ASG-09]"""

        def take_twenty(_: int) -> list[int]:
            taken = []
            for _ in range(20):
                with database.transaction() as tx:
                    taken.append(take_next(tx))
            return taken

        with ThreadPoolExecutor(2) as pool:
            first, second = pool.map(take_twenty, range(2))
        assert sorted(first + second) == list(range(1, 41))

    def test_error_that_was_passed_over(self, database: Database) -> None:
        """A transaction that met an error does not end as if it had been committed. [ASG-05]"""

        def act(tx: Transaction) -> None:
            take_next(tx)
            with pytest.raises(AlreadyThere):
                tx.execute(insert(STRATUM), a_row(STRATUM))

        with pytest.raises(DatabaseUnavailable):
            run(database, act)
        assert allocated(database) == 1

    def test_statement_after_an_error(self, database: Database) -> None:
        """After an error nothing more is done, on SQLite too, where it would be done outside. [ASG-05]"""

        def act(tx: Transaction) -> None:
            with pytest.raises(AlreadyThere):
                tx.execute(insert(STRATUM), a_row(STRATUM))
            take_next(tx)

        with pytest.raises(DatabaseUnavailable):
            run(database, act)
        assert allocated(database) == 1

    @pytest.mark.parametrize(
        ("database_kind", "statement"),
        [
            ("sqlite", "INSERT OR ROLLBACK INTO session SELECT * FROM session"),
            ("postgresql", "INSERT INTO session SELECT * FROM session"),
        ],
    )
    def test_transaction_that_the_database_gave_up(self, database: Database, statement: str) -> None:
        """COMMIT of what was rolled back before looks like success, and is none. [ASG-05]"""

        def act(tx: Transaction) -> None:
            take_next(tx)
            # By the driver's own connection, as bulk inserts go: `execute` hears nothing of it.
            with pytest.raises((sqlite3.Error, psycopg.Error)):
                tx.driver_connection.execute(statement)

        with pytest.raises(DatabaseUnavailable):
            run(database, act)
        assert allocated(database) == 1

    def test_rows_that_an_insert_put_in(self, database: Database) -> None:
        """The count of rows is there after an insert too; a claim is decided by it. [ASG-07]"""
        with database.transaction() as tx:
            site_code = {"site_code": "another"}
            assert tx.execute(insert(SITE_STOCK), a_row(SITE_STOCK, **site_code)).rowcount == 1
            again = text("INSERT INTO session SELECT * FROM session WHERE 1 = 0")
            assert tx.execute(again).rowcount == 0


class TestRefusals:
    def test_texts(self, database: Database) -> None:
        """No answer of the database carries a value of a row into a message or a traceback. [BLD-10]"""
        secret = "arm-A-is-verum"
        table = metadata.tables["allocation"]

        def twice(tx: Transaction) -> None:
            row = a_row(table, subject_key=secret, randomization_number=secret, sealed_binding=secret)
            tx.execute(insert(table), row)

        def forbidden(tx: Transaction) -> None:
            tx.execute(update(table), {"subject_key": secret})

        def unknown(tx: Transaction) -> None:
            tx.execute(text("INSERT INTO nowhere VALUES (:value)"), {"value": secret})

        def empty(tx: Transaction) -> None:
            tx.execute(update(metadata.tables["kit"]), {"site_code": secret, "status": None})

        def by_the_driver(tx: Transaction) -> None:
            tx.driver_connection.execute(f"INSERT INTO nowhere VALUES ('{secret}')")  # noqa: S608  # a constant of the test

        expected: list[tuple[Callable[[Transaction], None], type[Exception]]] = [
            (twice, AlreadyThere),
            (forbidden, IntegrityBroken),
            (unknown, DatabaseUnavailable),
            (empty, IntegrityBroken),
            (by_the_driver, DatabaseUnavailable),
        ]
        for act, kind in expected:
            with pytest.raises(kind) as caught, database.transaction() as tx:
                act(tx)
            assert secret not in "".join(traceback.format_exception(caught.value)), act.__name__

    def test_name_of_the_constraint(self, database: Database, database_kind: str) -> None:
        """PostgreSQL's word for the unique constraint is kept; SQLite has none. [ASG-08]"""
        with pytest.raises(AlreadyThere) as caught, database.transaction() as tx:
            tx.execute(insert(STRATUM), a_row(STRATUM))
        assert str(caught.value) == ("pk_stratum" if database_kind == "postgresql" else "unique")

    def test_database_that_is_not_there(self, tmp_path: Path, database_kind: str) -> None:
        """No database is said in one word, whatever the driver says. [INT-03]"""
        urls = {
            "sqlite": f"sqlite:///{tmp_path}/nowhere/snose.sqlite",
            "postgresql": f"postgresql://postgres@/snose?host={tmp_path}",
        }
        database = Database(urls[database_kind])
        with pytest.raises(DatabaseUnavailable), database.transaction():
            pass
        database.close()

    @pytest.mark.parametrize(
        "url",
        ["sqlite://", "sqlite:///:memory:", "sqlite:///file::memory:?uri=true", "mysql+pymysql://root@host/snose"],
    )
    def test_unsafe_database(self, url: str) -> None:
        """A database that forgets with the process, or one of a kind that nobody tested, is refused. [INT-03]"""
        with pytest.raises(UnsafeSetting):
            Database(url)


@ON_SQLITE
class TestSqlite:
    def test_pragmas(self, database: Database) -> None:
        """Every connection has the settings that durability and foreign keys rest on. [INT-05]"""
        expected = {
            "journal_mode": "delete",
            "synchronous": 3,
            "foreign_keys": 1,
            "recursive_triggers": 1,
            "trusted_schema": 0,
            "cell_size_check": 1,
        }
        # The second connection of the pool as well as the first.
        with database.engine.connect() as one, database.engine.connect() as two:
            for connection in (one, two):
                driver = connection.connection.driver_connection
                assert isinstance(driver, sqlite3.Connection)
                found = {name: driver.execute(f"PRAGMA {name}").fetchone()[0] for name in expected}
                assert found == expected

    def test_begins_with_the_lock(self, database: Database) -> None:
        """The first thing a transaction does is to lock out other writers, before it looks. [ASG-09]"""
        other = sqlite3.connect(str(database.sqlite_file), timeout=0)
        with database.transaction(), pytest.raises(sqlite3.OperationalError, match="locked"):
            other.execute("BEGIN IMMEDIATE")
        other.close()

    def test_file_that_another_one_writes(self, database: Database) -> None:
        """A busy file is a reason to try again. [ASG-05]"""
        impatient = Database(database.engine.url.render_as_string())
        event.listen(impatient.engine, "connect", lambda driver, _: driver.execute("PRAGMA busy_timeout = 1"))
        with database.transaction(), pytest.raises(TryAgain), impatient.transaction():
            pass
        impatient.close()

    def test_commit_while_somebody_reads(self, database: Database) -> None:
        """A COMMIT that an open read holds up did surely not happen, and is tried again. [ASG-05]"""
        impatient = Database(database.engine.url.render_as_string())
        event.listen(impatient.engine, "connect", lambda driver, _: driver.execute("PRAGMA busy_timeout = 1"))
        reader = sqlite3.connect(str(database.sqlite_file), isolation_level=None)
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM stratum").fetchall()
        with pytest.raises(TryAgain), impatient.transaction() as tx:
            take_next(tx)
        reader.close()
        assert allocated(database) == 1
        impatient.close()

    def test_second_process(self, database: Database) -> None:
        """One process serves a SQLite file; a second one is refused until the first has gone. [INT-03]"""
        database.be_the_only_process()
        database.be_the_only_process()
        program = (
            "import sys; from app.storage.database import Database; from app.errors import UnsafeSetting\n"
            "try: Database(sys.argv[1]).be_the_only_process()\n"
            "except UnsafeSetting as error: print(error)\n"
            "else: print('served')"
        )

        def second() -> str:
            return subprocess.run(
                [sys.executable, "-c", program, database.engine.url.render_as_string()],
                cwd=Path(__file__).parents[2],
                capture_output=True,
                text=True,
                check=True,
            ).stdout

        assert second().startswith("Another process serves this SQLite database.")
        database.close()
        assert second() == "served\n"


@pytest.fixture
def owner(migrated_database_url: str) -> Iterator[psycopg.Connection]:
    """A connection beside the service's, which commits each statement."""
    with psycopg.connect(migrated_database_url, autocommit=True) as connection:
        yield connection


@ON_POSTGRESQL
class TestPostgresql:
    def test_alone(self, database: Database) -> None:
        """On PostgreSQL replicas share the database: being the only process asks for nothing. [INT-03]"""
        assert database.sqlite_file is None
        database.be_the_only_process()

    def test_lock_that_is_not_had_in_time(self, database: Database) -> None:
        """55P03 is a reason to try again. [ASG-05]"""

        def act(tx: Transaction) -> None:
            tx.execute(text("SET LOCAL lock_timeout = '20ms'"))
            take_next(tx)

        with database.transaction() as holder:
            holder.execute(select(STRATUM).with_for_update())
            with pytest.raises(TryAgain, match="55P03"):
                run(database, act)

    def test_lock_limit(self, database: Database) -> None:
        """No transaction waits for ever for a lock. [ASG-05]"""
        with database.transaction() as tx:
            assert tx.execute(text("SHOW lock_timeout")).scalar_one() == "5s"

    def test_deadlock(self, database: Database) -> None:
        """40P01 is a reason to try again, and the other one goes on. [ASG-05]"""
        both = threading.Barrier(2, timeout=30)
        tables = [STRATUM, metadata.tables["site_stock"]]

        def lock(order: int) -> str:
            try:
                with database.transaction() as tx:
                    tx.execute(text("SET LOCAL deadlock_timeout = '50ms'"))
                    tx.execute(select(tables[order]).with_for_update())
                    both.wait()
                    tx.execute(select(tables[1 - order]).with_for_update())
            except TryAgain as again:
                return str(again)
            return "done"

        with ThreadPoolExecutor(2) as pool:
            assert sorted(pool.map(lock, range(2))) == ["40P01", "done"]

    def test_serialization_failure(self, database: Database) -> None:
        """40001 is a reason to try again. [ASG-05]"""

        def act(tx: Transaction) -> None:
            tx.execute(text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ"))
            tx.execute(select(STRATUM.c.allocated))
            with database.transaction() as rival:
                take_next(rival)
            take_next(tx)

        with pytest.raises(TryAgain, match="40001"):
            run(database, act)
        assert allocated(database) == 2

    def test_serialization_failure_at_commit(self, database: Database) -> None:
        """A COMMIT that the database refuses for a rival's sake did surely not happen. [ASG-05]"""

        def act(tx: Transaction) -> None:
            tx.execute(text("SET TRANSACTION ISOLATION LEVEL SERIALIZABLE"))
            tx.execute(select(STRATUM.c.allocated))
            with database.transaction() as rival:
                rival.execute(text("SET TRANSACTION ISOLATION LEVEL SERIALIZABLE"))
                rival.execute(text("SELECT is_active FROM site"))
                tx.execute(text("UPDATE site SET is_active = true"))
                take_next(rival)

        with pytest.raises(TryAgain, match="40001"):
            run(database, act)
        assert allocated(database) == 2

    def test_backend_that_ends_before_commit(self, database: Database, owner: psycopg.Connection) -> None:
        """A COMMIT without an answer is neither done nor undone, and is said to be so. [ASG-05]"""

        def act(tx: Transaction) -> None:
            take_next(tx)
            pid = tx.execute(text("SELECT pg_backend_pid()")).scalar_one()
            owner.execute("SELECT pg_terminate_backend(%s, 10000)", [pid])

        with pytest.raises(CommitUncertain):
            run(database, act)
        assert allocated(database) == 1

    def test_backend_that_ends_before_a_statement(self, database: Database, owner: psycopg.Connection) -> None:
        """Before COMMIT was sent nothing can have happened. [ASG-05]"""

        def act(tx: Transaction) -> None:
            pid = tx.execute(text("SELECT pg_backend_pid()")).scalar_one()
            owner.execute("SELECT pg_terminate_backend(%s, 10000)", [pid])
            take_next(tx)

        with pytest.raises(DatabaseUnavailable):
            run(database, act)
        assert allocated(database) == 1

    def test_commit_that_was_not_replicated(self, database: Database, owner: psycopg.Connection) -> None:
        """A warning 01000 at COMMIT is no success: it is how PostgreSQL says "not replicated". [ASG-05]"""
        owner.execute("""
            CREATE FUNCTION warn() RETURNS trigger LANGUAGE plpgsql AS $$
            BEGIN RAISE WARNING 'canceling wait for synchronous replication' USING ERRCODE = '01000'; RETURN NULL; END $$
        """)
        owner.execute(
            "CREATE CONSTRAINT TRIGGER warn AFTER UPDATE ON stratum DEFERRABLE INITIALLY DEFERRED "
            "FOR EACH ROW EXECUTE FUNCTION warn()"
        )

        def act(tx: Transaction) -> None:
            take_next(tx)

        with pytest.raises(CommitUncertain):
            run(database, act)
        assert allocated(database) == 2

    def test_warning_before_commit(self, database: Database) -> None:
        """A warning of an earlier statement says nothing about the COMMIT. [ASG-05]"""
        with database.transaction() as tx:
            tx.execute(text("DO $$ BEGIN RAISE WARNING 'anything' USING ERRCODE = '01000'; END $$"))
            take_next(tx)
        assert allocated(database) == 2
