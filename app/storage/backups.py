"""Copies of a whole database while the service runs, and their way back into an empty one.

SQLite is copied by its own online backup, PostgreSQL by its own programs inside one exported snapshot. Nobody is stopped: no lock
of ours is taken, and on SQLite a writer comes first as long as the copy can wait.
"""

import errno
import hashlib
import os
import re
import shutil
import sqlite3
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from psycopg.conninfo import make_conninfo
from sqlalchemy import Engine, func, select, table, text
from sqlalchemy.exc import DBAPIError

from app.domain.backups import MEMBERS
from app.domain.backups import Engine as Kind
from app.domain.words import Mode
from app.errors import DatabaseUnavailable, IntegrityBroken, UnsafeSetting
from app.storage import migrate, tables, trail
from app.storage.database import Database, Transaction
from app.storage.trail import Head

Tell = Callable[[int, int], None]
"""Hears how much is done, of how much: pages of SQLite, tables of PostgreSQL."""

MANIFEST: Final = "manifest.json"
_FILE_MODE: Final = 0o600
_FOLDER_MODE: Final = 0o700
_BLOCK: Final = 1 << 20

STEPS: Final = (2_048, 16_384, 131_072, -1)
"""Pages that are copied between two looks at who waits; each try takes more at once, and the last one all."""
_BUSY_SECONDS: Final = 30.0
_PAUSE: Final = 0.02

_ROOM: Final = 1 << 20
"""Bytes that a copy takes beside the pages."""

_DUMPED: Final = re.compile(rb"pg_dump: dumping contents of table ")
_RESTORED: Final = re.compile(rb"pg_restore: processing data for table ")
_SAID: Final = re.compile(rb"pg_(?:dump|restore): (?:error: |fatal: )(.*)")
_VERSION: Final = re.compile(r"\(PostgreSQL\) ([0-9]+)")


# -- what a database holds ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class State:
    """What a database holds at one moment, as far as every release can read it."""

    revision: str | None
    deployment_id: str
    mode: Mode
    engine_version: str
    heads: list[Head]
    rows: dict[str, int]


def read_state(tx: Transaction) -> State:
    """Return what the database holds; raise ``UnsafeSetting`` for one without deployment."""
    names = migrate.table_names(tx)
    of = tables.deployment.c
    row = tx.execute(select(of.deployment_id, of.mode)).one_or_none() if tables.deployment.name in names else None
    if row is None:
        raise UnsafeSetting("The database holds no deployment.")
    return State(
        migrate.current(tx),
        str(row.deployment_id),
        Mode(row.mode),
        _engine_version(tx),
        trail.list_heads(tx),
        {name: tx.execute(select(func.count()).select_from(table(name))).scalar_one() for name in sorted(names)},
    )


def _engine_version(tx: Transaction) -> str:
    if not tx.is_postgresql:
        return sqlite3.sqlite_version
    return str(tx.execute(text("SHOW server_version")).scalar_one()).split(" ")[0]


def kind_of(database: Database) -> Kind:
    """Return which engine a database is of."""
    return "postgresql" if database.is_postgresql else "sqlite"


# -- a folder that is there whole or not at all ------------------------------------------------------------------------


@contextmanager
def new_folder(place: Path) -> Iterator[Path]:
    """Give a folder that is called ``place`` once everything in it is on the disk, and is gone when anything fails.

    Raises ``UnsafeSetting`` for a place that is taken, or that cannot be written.
    """
    if place.exists():
        raise UnsafeSetting(f"There is something at {place} already; a backup is never written over another.")
    with _told_of(place):
        beside = Path(tempfile.mkdtemp(prefix=f".{place.name}.", suffix=".part", dir=place.absolute().parent))
        try:
            yield beside
            for file in beside.iterdir():
                _sync(file)
            _sync(beside)
            beside.rename(place)
            _sync(place.absolute().parent)
        finally:
            # Renamed, it is not there any more.
            shutil.rmtree(beside, ignore_errors=True)


@contextmanager
def _told_of(place: Path) -> Iterator[None]:
    """Have a disk that is full, away or read-only told in one plain sentence."""
    try:
        yield
    except OSError as error:
        raise UnsafeSetting(f"{place} cannot be written: {error.strerror}. Nothing was left there.") from None


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_file(path: Path, content: bytes) -> None:
    """Write a new file for its owner alone. Raises ``OSError``."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _FILE_MODE), "wb") as file:
        file.write(content)


def read_file(path: Path) -> bytes:
    """Return what a file of a backup holds; raise ``UnsafeSetting`` when it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise UnsafeSetting(f"{path} cannot be read: {error.strerror}. Name the folder of a backup.") from None


def digest_of(path: Path) -> tuple[int, str]:
    """Return size and SHA-256 of a file; raise ``UnsafeSetting`` when it cannot be read."""
    digest, size = hashlib.sha256(), 0
    try:
        with path.open("rb") as file:
            while block := file.read(_BLOCK):
                digest.update(block)
                size += len(block)
    except OSError as error:
        raise UnsafeSetting(f"{path} cannot be read: {error.strerror}.") from None
    return size, digest.hexdigest()


# -- out ---------------------------------------------------------------------------------------------------------------


def copy_out(database: Database, folder: Path, tell: Tell) -> tuple[Path, State]:
    """Return the file that holds everything of a database at one moment, and what it held then.

    Raises ``UnsafeSetting`` for a database without deployment or a missing program, ``DatabaseUnavailable``,
    ``IntegrityBroken`` when SQLite finds its own file damaged, ``OSError`` when the disk is full.
    """
    target = folder / MEMBERS[kind_of(database)]
    source = database.sqlite_file
    if source is None:
        return target, _dump(database, target, tell)
    if not source.exists():
        raise UnsafeSetting(f"There is no database at {source}.")
    if shutil.disk_usage(folder).free < source.stat().st_size + _ROOM:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    write_file(target, b"")
    copy_sqlite(source, target, tell)
    copied = Database(f"sqlite:///{target}")
    try:
        with copied.transaction() as tx:
            _check_sqlite(tx)
            return target, read_state(tx)
    finally:
        copied.close()


class _Overtaken(Exception):
    """Somebody wrote meanwhile, and the copy began anew."""


def copy_sqlite(source: Path, target: Path, tell: Tell, steps: Sequence[int] = STEPS) -> None:
    """Return once ``target`` holds every page of ``source`` as they were at one moment; ``steps`` as ``STEPS``, the last all.

    Raises as ``copy_out``.
    """
    # mode=rw: what a crash left half done is rolled back first, which a reader without the right to write could not.
    try:
        with (
            closing(
                sqlite3.connect(f"{source.as_uri()}?mode=rw", uri=True, isolation_level=None, timeout=_PAUSE)
            ) as old,
            closing(sqlite3.connect(target, isolation_level=None)) as new,
        ):
            # The copy is synced as a whole; until then it is nothing that anybody trusts.
            new.execute("PRAGMA synchronous=OFF")
            for pages in steps:
                try:
                    old.backup(new, pages=pages, progress=_watch(tell), sleep=_PAUSE)
                except _Overtaken:
                    continue
                return
    except sqlite3.Error as error:
        raise _of_copying(error) from None


def _watch(tell: Tell) -> Callable[[int, int, int], None]:
    """Return what SQLite tells after each step: it goes on, it waits for a writer, or it began anew because of one."""
    least: int | None = None
    busy_since: float | None = None

    def heard(status: int, remaining: int, total: int) -> None:
        nonlocal least, busy_since
        if status not in {sqlite3.SQLITE_OK, sqlite3.SQLITE_DONE}:
            busy_since = busy_since or time.monotonic()
            if time.monotonic() - busy_since > _BUSY_SECONDS:
                raise DatabaseUnavailable("Somebody has held the database for too long. Run the command again.")
            return
        busy_since = None
        if least is not None and remaining >= least:
            raise _Overtaken
        least = remaining
        tell(total - remaining, total)

    return heard


def _of_copying(error: sqlite3.Error) -> Exception:
    """Return a full disk as what it is: SQLite says so, or that it could not write."""
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR)
    if code in {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_WRITE}:
        return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    if code in {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}:
        return IntegrityBroken(_DAMAGED)
    return DatabaseUnavailable("The database file cannot be copied.")


_DAMAGED: Final = "SQLite finds the database file damaged. Keep it, and restore the newest backup that was good."


def _check_sqlite(tx: Transaction) -> None:
    if tx.execute(text("PRAGMA integrity_check")).scalars().all() != ["ok"]:
        raise IntegrityBroken(_DAMAGED)


def _dump(database: Database, target: Path, tell: Tell) -> State:
    """Dump inside a snapshot in which everything else is read too, so that the manifest is of the very same moment."""
    with _snapshot(database.engine) as tx:
        state = read_state(tx)
        snapshot = tx.execute(text("SELECT pg_export_snapshot()")).scalar_one()
        program = _program("pg_dump", _major(state.engine_version))
        write_file(target, b"")
        arguments = ["--format=custom", f"--snapshot={snapshot}", f"--file={target}"]
        _run([program, *arguments], database.engine, _address(tx), _DUMPED, len(state.rows), tell)
    return state


@contextmanager
def _snapshot(engine: Engine) -> Iterator[Transaction]:
    try:
        with (
            engine.connect().execution_options(
                isolation_level="REPEATABLE READ", postgresql_readonly=True
            ) as connection,
            connection.begin(),
        ):
            # It waits for pg_dump, however long that takes.
            connection.execute(text("SET LOCAL idle_in_transaction_session_timeout = 0"))
            yield Transaction(connection)
    except DBAPIError:
        raise DatabaseUnavailable from None


def _program(name: str, server: int) -> str:
    """Return where a program of PostgreSQL is; raise ``UnsafeSetting`` when it is not there or older than the server."""
    found = shutil.which(name)
    advice = (
        f"Install PostgreSQL's client programs of version {server} or later (Debian: postgresql-client-{server}) "
        "and put their folder first in PATH."
    )
    if found is None:
        raise UnsafeSetting(f"There is no {name} here. {advice}")
    said = subprocess.run([found, "--version"], capture_output=True, text=True, check=False).stdout  # noqa: S603  # PostgreSQL's own program, without a shell
    version = _VERSION.search(said)
    if version is None or int(version.group(1)) < server:
        raise UnsafeSetting(f"The server is PostgreSQL {server}, and {found} is not of that version or later. {advice}")
    return found


def _major(version: str) -> int:
    return int(version.partition(".")[0])


def _address(tx: Transaction) -> dict[str, str]:
    """Return the server that a transaction is at: a URL may name several, and a snapshot is known to one."""
    info = tx.driver_connection.info
    return {"host": info.host, "port": str(info.port)}


def _run(
    command: Sequence[str], engine: Engine, at: Mapping[str, str], mark: re.Pattern[bytes], total: int, tell: Tell
) -> None:
    """Return once a program of PostgreSQL has done its work; raise ``DatabaseUnavailable`` with what it said, values left out."""
    _, words = engine.dialect.create_connect_args(engine.url)
    words.update(at)
    password = words.pop("password", None)
    # Everybody on the machine can read a command line; so a password goes by the environment.
    environment = os.environ | {"LC_ALL": "C"} | ({} if password is None else {"PGPASSWORD": str(password)})
    done, said = 0, "it gave no reason"
    with subprocess.Popen(  # noqa: S603  # PostgreSQL's own program, without a shell
        [*command, "--verbose", "--no-password", f"--dbname={make_conninfo(**_plain(words))}"],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    ) as running:
        for line in running.stderr or ():
            if mark.match(line):
                done += 1
                tell(done, total)
            # The lines behind an error may hold values of a row; its first line does not.
            if complaint := _SAID.match(line):
                said = complaint.group(1).decode(errors="replace").strip()
    if running.returncode:
        raise DatabaseUnavailable(f"{Path(command[0]).name} failed: {said}.")
    tell(total, total)


def _plain(words: Mapping[str, Any]) -> dict[str, Any]:
    """Return what libpq is told of a connection: all but what only the Python driver knows."""
    return {name: value for name, value in words.items() if name in _LIBPQ}


_LIBPQ: Final = frozenset(
    {
        *("host", "hostaddr", "port", "dbname", "user", "passfile", "connect_timeout", "target_session_attrs"),
        *("sslmode", "sslcert", "sslkey", "sslrootcert", "sslcrl", "sslnegotiation", "channel_binding", "service"),
        *("gssencmode", "krbsrvname", "require_auth", "sslcertmode", "ssl_min_protocol_version"),
    }
)


# -- back in -----------------------------------------------------------------------------------------------------------


def refuse_what_is_taken(database: Database) -> None:
    """Raise ``UnsafeSetting`` unless a database is empty, so that nothing is ever restored over something."""
    file = database.sqlite_file
    if file is not None:
        left = [Path(f"{file}{end}") for end in ("-journal", "-wal", "-shm")]
        # A journal that lies there would be played into what is restored.
        taken = next((one for one in left if one.exists()), None)
        if taken is None and file.exists() and file.stat().st_size:
            taken = file
        if taken is not None:
            raise UnsafeSetting(
                f"There is something at {taken} already; a backup is restored into an empty database only."
            )
        if not file.parent.is_dir():
            raise UnsafeSetting(f"There is no folder {file.parent}.")
        return
    with database.transaction() as tx:
        if tx.execute(_TAKEN).scalar_one():
            raise UnsafeSetting(
                "The database is not empty; a backup is restored into an empty one only. Nothing was changed."
            )


_TAKEN: Final = text("""
    SELECT EXISTS (
        SELECT FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
        WHERE n.nspname NOT IN ('pg_catalog', 'information_schema') AND n.nspname NOT LIKE 'pg\\_t%'
        AND NOT EXISTS (SELECT FROM pg_depend AS d WHERE d.objid = c.oid AND d.deptype = 'e')
    )
""")
"""Whether there is any relation but the system's own and those of extensions."""


def copy_in(database: Database, member: Path, rows: int, engine_version: str, tell: Tell) -> None:
    """Return once an empty database holds what a backup holds, all of it or nothing.

    Raises ``UnsafeSetting`` for a missing program, a server older than the dump, or a disk that is full;
    ``DatabaseUnavailable`` when the program fails.
    """
    target = database.sqlite_file
    if target is not None:
        _put_in_place(member, target, tell)
        return
    with database.transaction() as tx:
        server, at = _major(_engine_version(tx)), _address(tx)
    if server < _major(engine_version):
        raise UnsafeSetting(f"The backup was made of PostgreSQL {_major(engine_version)}, and the server is {server}.")
    command = [
        _program("pg_restore", server),
        *("--single-transaction", "--exit-on-error", "--no-owner", "--no-privileges", str(member)),
    ]
    _run(command, database.engine, at, _RESTORED, rows, tell)


def _put_in_place(member: Path, target: Path, tell: Tell) -> None:
    size = member.stat().st_size
    beside = target.with_name(f".{target.name}.part")
    with _told_of(target):
        try:
            descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, _FILE_MODE)
            with member.open("rb") as source, os.fdopen(descriptor, "wb") as copy:
                while block := source.read(_BLOCK):
                    copy.write(block)
                    tell(copy.tell(), size)
            _sync(beside)
            beside.rename(target)
            _sync(target.parent)
        finally:
            beside.unlink(missing_ok=True)


def list_broken_references(tx: Transaction) -> list[str]:
    """Return the tables with rows that refer to rows which are not there, or with such a rule that was never checked."""
    if tx.is_postgresql:
        unchecked = text("SELECT DISTINCT CAST(conrelid AS regclass)::text FROM pg_constraint WHERE NOT convalidated")
        return sorted(tx.execute(unchecked).scalars())
    _check_sqlite(tx)
    return sorted({row[0] for row in tx.execute(text("PRAGMA foreign_key_check"))})
