"""The one way to a transaction, on SQLite and on PostgreSQL, with the database's answers in our own words.

SQLite: the driver's own transaction handling hands one kit to two workers (it begins at the first write, not at the first read),
so it is switched off and every transaction begins with ``BEGIN IMMEDIATE``; one transaction at a time in the process, by a lock.
PostgreSQL: READ COMMITTED and row locks in the order of `custody.md`; unique constraints are the last line.
"""

import fcntl
import os
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import IO, Any, Final

import psycopg
from sqlalchemy import Connection, CursorResult, Engine, Executable, create_engine, event, make_url, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from app.errors import DatabaseUnavailable, IntegrityBroken, UnsafeSetting

LOCK_TIMEOUT_MS: Final = 5_000
"""How long a transaction waits for each lock, unless it says otherwise; on SQLite, for the one lock."""
COMMIT_LIMIT_SECONDS: Final = 10.0
"""How long a COMMIT may wait for a synchronous standby; then nobody can tell whether it will hold (rule C6)."""
_MISSED_FOR_SECONDS: Final = 60.0
"""How long a standby that was waited for in vain is taken to be away."""
_TRY_AGAIN_STATES: Final = frozenset({"40001", "40P01", "55P03"})
_NOT_REPLICATED: Final = "01000"
_CONNECTING: Final = {
    "connect_timeout": "5",
    # Of several hosts in the URL the primary, whichever it is now.
    "target_session_attrs": "read-write",
    # A server that vanished without a word, as machines do, is given up after half a minute; by default it takes two hours.
    "keepalives_idle": "10",
    "keepalives_interval": "5",
    "keepalives_count": "3",
    "tcp_user_timeout": "25000",
}
"""What libpq is told on PostgreSQL unless the URL says otherwise."""
# Else psycopg's cursor is closed before anybody can ask how many rows an INSERT ... ON CONFLICT DO NOTHING has put in.
_ROWCOUNT: Final = {"preserve_rowcount": True}
_UNIQUE_STATE: Final = "23505"
_REFUSED_STATE: Final = "SN001"
_UNIQUE_CODES: Final = frozenset(
    {sqlite3.SQLITE_CONSTRAINT_UNIQUE, sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY, sqlite3.SQLITE_CONSTRAINT_ROWID}
)


class TryAgain(Exception):  # an instruction to the one door, not an error that a caller sees
    """The transaction was rolled back and may be run again: serialization failure, deadlock, lock wait, busy."""


class CommitUncertain(Exception):  # likewise
    """COMMIT neither surely happened nor surely failed, or was not replicated (rule C6)."""


class AlreadyThere(Exception):  # likewise
    """A unique constraint, the last line of defence, refused the row."""


class Transaction:
    """An open transaction; what it writes is nothing until the block it belongs to ends."""

    def __init__(self, connection: Connection) -> None:
        """Wrap an open connection that has begun."""
        self.connection: Final = connection
        self.is_postgresql: Final = connection.dialect.name == "postgresql"
        self.is_broken = False

    def execute(
        self, statement: Executable, parameters: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None
    ) -> CursorResult[Any]:
        """Return the result of one statement.

        Raises ``TryAgain``, ``AlreadyThere``, ``IntegrityBroken`` for what a constraint or trigger refuses, or
        ``DatabaseUnavailable``. After any of them the transaction can only be rolled back, on SQLite too.
        """
        if self.is_broken:
            raise DatabaseUnavailable
        try:
            return self.connection.execute(statement, parameters)
        except DBAPIError as error:
            self.is_broken = True
            raise _in_our_words(error.orig) from None

    def wait_for_locks(self, milliseconds: int) -> None:
        """Wait no longer for each lock from now on; then ``TryAgain``. On SQLite whoever is here has the only lock already."""
        if self.is_postgresql:
            self.execute(text(f"SET LOCAL lock_timeout = {milliseconds:d}"))

    def settle(self) -> None:
        """Have COMMIT wait for the synchronous standby although nothing is written here (rule C6, PostgreSQL).

        A transaction that only reads waits for nobody, and may have read what a failover undoes: the wait of its COMMIT was
        cancelled. The order of the log does the rest: when this record is on the standby, so is all that was read before it.
        """
        if self.is_postgresql:
            self.execute(text("SELECT pg_logical_emit_message(true, 'snose', '')"))

    @contextmanager
    def dispensable(self) -> Iterator[None]:
        """Undo, when the block raises, only what it did itself: what came before stands, and the transaction can go on."""
        nested = self.connection.begin_nested()
        try:
            yield
        except BaseException:
            nested.rollback()
            self.is_broken = False
            raise
        nested.commit()

    @property
    def driver_connection(self) -> Any:  # noqa: ANN401  # psycopg's or sqlite3's own, for COPY and bulk inserts
        """The driver's own connection, inside this transaction."""
        return self.connection.connection.driver_connection


def _in_our_words(original: BaseException | None) -> Exception:
    """Return what a driver's error means to a transaction; its text may hold values of the row and is dropped."""
    if isinstance(original, psycopg.Error):
        return _of_postgresql(original)
    if isinstance(original, sqlite3.Error):
        return _of_sqlite(original)
    return DatabaseUnavailable()


def _of_postgresql(original: psycopg.Error) -> Exception:
    state = original.sqlstate
    if state in _TRY_AGAIN_STATES:
        return TryAgain(state)
    if state == _UNIQUE_STATE:
        return AlreadyThere(original.diag.constraint_name)
    if state == _REFUSED_STATE or isinstance(original, psycopg.IntegrityError):
        return IntegrityBroken()
    return DatabaseUnavailable()


def _of_sqlite(original: sqlite3.Error) -> Exception:
    # Errors of the module itself, such as the use of a closed connection, have no code of SQLite's.
    code = getattr(original, "sqlite_errorcode", sqlite3.SQLITE_ERROR)
    if code & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return TryAgain("busy")
    # The trigger against replacements looks before the unique constraint does, and says the same (revision 0002).
    if code in _UNIQUE_CODES or str(original).endswith("this row is there already"):
        return AlreadyThere("unique")
    if isinstance(original, sqlite3.IntegrityError):
        return IntegrityBroken()
    return DatabaseUnavailable()


class _Waiting:
    """A COMMIT that has been sent and not been answered."""

    def __init__(self, connection: psycopg.Connection) -> None:
        self.connection: Final = connection
        self.since: Final = time.monotonic()
        self.turn: Final = threading.Lock()
        self.is_over = False


class _CommitWatch:
    """Cancels what waits for a standby longer than the limit: PostgreSQL itself would let it wait for ever.

    No timeout of the server's interrupts that wait (finding 3), and with every thread in it nobody would be answered any more,
    nor, for a code break, told whom to call (rule D4). What is cancelled is answered with a warning: ``CommitUncertain``.
    """

    def __init__(self, limit: float) -> None:
        self._limit: Final = limit
        self._waiting: set[_Waiting] = set()
        self._missed_at = -_MISSED_FOR_SECONDS
        self._closed = threading.Event()
        self._starting = threading.Lock()
        self._thread: threading.Thread | None = None

    @contextmanager
    def over(self, connection: psycopg.Connection) -> Iterator[None]:
        """Watch over the COMMIT that is sent inside the block."""
        if self._thread is None:
            self._start()
        one = _Waiting(connection)
        self._waiting.add(one)
        try:
            yield
        finally:
            self._waiting.discard(one)
            # Whoever has the connection next is not to be hit by a cancel that is under way.
            with one.turn:
                one.is_over = True

    def _start(self) -> None:
        with self._starting:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="commits", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        while not self._closed.wait(self._limit / 20):
            for one in list(self._waiting):
                if time.monotonic() - one.since > self._patience():
                    with one.turn, suppress(psycopg.Error, OSError):
                        if not one.is_over:
                            self._missed_at = time.monotonic()
                            one.connection.cancel_safe(timeout=self._limit)

    def _patience(self) -> float:
        """Return how long a COMMIT may wait: less for a while after one has waited in vain.

        Whoever stands behind it, at the end of a log above all, would wait as long again, one after the other.
        """
        is_missed = time.monotonic() - self._missed_at < _MISSED_FOR_SECONDS
        return self._limit / 5 if is_missed else self._limit

    def close(self) -> None:
        """End the watch."""
        self._closed.set()


class Database:
    """The records of one deployment, by SQLAlchemy URL."""

    def __init__(self, url: str, pool_size: int = 8) -> None:
        """Open lazily; nothing is sent before the first transaction.

        Raises ``UnsafeSetting`` for an engine that is neither SQLite nor PostgreSQL.
        """
        self._url = make_url(url)
        backend = self._url.get_backend_name()
        if backend not in {"sqlite", "postgresql"}:
            message = "The database must be SQLite or PostgreSQL."
            raise UnsafeSetting(message)
        self.is_postgresql: Final = backend == "postgresql"
        self._one_at_a_time = threading.Lock()
        self._watch: Final = _CommitWatch(COMMIT_LIMIT_SECONDS) if self.is_postgresql else None
        self._process_lock: IO[str] | None = None
        self.engine: Final = self._postgresql(pool_size) if self.is_postgresql else self._sqlite()

    def _postgresql(self, pool_size: int) -> Engine:
        engine = create_engine(
            self._url,
            isolation_level="READ COMMITTED",
            pool_size=pool_size,
            max_overflow=0,
            pool_timeout=10,
            pool_use_lifo=True,
            hide_parameters=True,
            execution_options=_ROWCOUNT,
            connect_args={
                **{name: value for name, value in _CONNECTING.items() if name not in self._url.query},
                "options": f"-c lock_timeout={LOCK_TIMEOUT_MS}",
            },
        )

        @event.listens_for(engine, "connect")
        def hear_notices(connection: psycopg.Connection, record: Any) -> None:  # noqa: ANN401  # SQLAlchemy's signature
            notices: list[str] = []
            record.info["notices"] = notices
            connection.add_notice_handler(lambda notice: notices.append(notice.sqlstate or ""))

        return engine

    def _sqlite(self) -> Engine:
        path = self._url.database
        if not path or path.startswith((":memory:", "file:")):
            message = "SQLite needs a file: a database in memory loses every allocation with the process."
            raise UnsafeSetting(message)
        engine = create_engine(
            self._url,
            pool_size=1,
            max_overflow=4,
            hide_parameters=True,
            execution_options=_ROWCOUNT,
            connect_args={"check_same_thread": False, "timeout": LOCK_TIMEOUT_MS / 1000},
        )

        @event.listens_for(engine, "connect")
        def prepare(connection: sqlite3.Connection, _record: object) -> None:
            connection.isolation_level = None
            for pragma in (
                "journal_mode=DELETE",
                "synchronous=EXTRA",
                "foreign_keys=ON",
                "recursive_triggers=ON",
                "trusted_schema=OFF",
                "cell_size_check=ON",
            ):
                connection.execute(f"PRAGMA {pragma}")

        @event.listens_for(engine, "begin")
        def begin(connection: Connection) -> None:
            connection.exec_driver_sql("BEGIN IMMEDIATE")

        return engine

    @property
    def sqlite_file(self) -> Path | None:
        """The database's file on SQLite."""
        return None if self.is_postgresql else Path(str(self._url.database)).absolute()

    @contextmanager
    def transaction(self) -> Iterator[Transaction]:
        """Give a transaction that commits when the block ends and rolls back when it raises.

        Raises ``DatabaseUnavailable`` when none can be had or when an error in it was passed over, ``TryAgain`` when
        another process holds SQLite's file, ``CommitUncertain`` when COMMIT failed or was not replicated.
        """
        if self.is_postgresql:
            with self._transaction() as tx:
                yield tx
        else:
            with self._one_at_a_time, self._transaction() as tx:
                yield tx

    @contextmanager
    def _transaction(self) -> Iterator[Transaction]:
        try:
            connection = self.engine.connect()
        except (DBAPIError, PoolTimeout):
            raise DatabaseUnavailable from None
        try:
            connection.begin()
            tx = Transaction(connection)
            yield tx
            with self._watch_over(tx):
                _commit(tx)
        except DBAPIError as error:
            _abandon(connection)
            raise _in_our_words(error.orig) from None
        # From the driver's own connection: COPY and bulk inserts.
        except (psycopg.Error, sqlite3.Error) as error:
            _abandon(connection)
            raise _in_our_words(error) from None
        except BaseException:
            _abandon(connection)
            raise
        else:
            connection.close()

    def _watch_over(self, tx: Transaction) -> AbstractContextManager[None]:
        if self._watch is None or tx.is_broken:
            return nullcontext()
        return self._watch.over(tx.driver_connection)

    def be_the_only_process(self) -> None:
        """Hold the database file for this process for good; raise ``UnsafeSetting`` when another one has it (SQLite)."""
        path = self.sqlite_file
        if path is None or self._process_lock is not None:
            return
        lock = open(f"{path}.lock", "a", encoding="utf-8")  # noqa: SIM115, PTH123  # held as long as the process lives
        os.fchmod(lock.fileno(), 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.close()
            message = "Another process serves this SQLite database. Stop it first, or use PostgreSQL."
            raise UnsafeSetting(message) from None
        self._process_lock = lock

    def close(self) -> None:
        """Close every connection and let go of the file."""
        self.engine.dispose()
        if self._watch is not None:
            self._watch.close()
        if self._process_lock is not None:
            self._process_lock.close()
            self._process_lock = None


def _was_rolled_back(tx: Transaction) -> bool:
    """Tell whether the database has given the transaction up.

    It then answers COMMIT with a rollback (PostgreSQL), or the driver sends none (SQLite), and both look like success.
    """
    driver = tx.driver_connection
    if tx.is_postgresql:
        return bool(driver.info.transaction_status == psycopg.pq.TransactionStatus.INERROR)
    return not driver.in_transaction


def _commit(tx: Transaction) -> None:
    if tx.is_broken or _was_rolled_back(tx):
        raise DatabaseUnavailable
    connection = tx.connection
    notices: list[str] = connection.info.get("notices", [])
    # What earlier statements said is none of COMMIT's business.
    notices.clear()
    try:
        connection.commit()
    except DBAPIError as error:
        meaning = _in_our_words(error.orig)
        # A busy COMMIT on SQLite and a serialization failure were surely rolled back; all else may have happened (finding 3).
        if isinstance(meaning, TryAgain):
            raise meaning from None
        raise CommitUncertain from None
    if _NOT_REPLICATED in notices:
        raise CommitUncertain


def _abandon(connection: Connection) -> None:
    """Roll back and give the connection back; a broken one is thrown away, and its own complaint hides nothing."""
    try:
        connection.rollback()
        connection.close()
    except DBAPIError:
        connection.invalidate()
        connection.close()
