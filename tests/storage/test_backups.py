"""SQLite is copied while others write; a folder is there whole or not at all; PostgreSQL's programs are found or named."""

import errno
import resource
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from app.errors import DatabaseUnavailable, IntegrityBroken, UnsafeSetting
from app.storage import backups
from app.storage.database import Database
from tests.databases import postgres_programs

PAGES = 400


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A database in which two tables always hold the same sum, on some hundred pages."""
    path = tmp_path / "source.sqlite"
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(
            "CREATE TABLE one (n INTEGER, filling BLOB); CREATE TABLE filler (filling BLOB);"
            "CREATE TABLE two (n INTEGER, filling BLOB)"
        )
        for table in ("one", "filler", "two"):
            rows = [(0, bytes(1000))] * PAGES if table != "filler" else [(bytes(1000),)] * PAGES
            marks = "?, ?" if table != "filler" else "?"
            connection.executemany(f"INSERT INTO {table} VALUES ({marks})", rows)  # noqa: S608  # a name of our own
        connection.commit()
    return path


def write(path: Path) -> None:
    """Change the first and the last pages in one transaction."""
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("UPDATE one SET n = n + 1")
        connection.execute("UPDATE two SET n = n + 1")
        connection.commit()


def sums(path: Path) -> tuple[int, int]:
    with closing(sqlite3.connect(path)) as connection:
        one, two = (connection.execute(f"SELECT sum(n) FROM {table}").fetchone()[0] for table in ("one", "two"))  # noqa: S608  # likewise
        return one, two


def keep_nothing(_done: int, _total: int) -> None:
    """Hear nothing."""


class TestCopyOfSqlite:
    def test_while_somebody_writes(self, source: Path, tmp_path: Path) -> None:
        """Writers come first, as long as there is a smaller step; the last step takes one moment as a whole. [INT-04]"""
        target = tmp_path / "copy.sqlite"
        told: list[tuple[int, int]] = []

        def overtake(done: int, total: int) -> None:
            told.append((done, total))
            if done < total:
                write(source)

        backups.copy_sqlite(source, target, overtake, steps=(20, 100, -1))
        before, after = sums(target)
        # One write for each of the two tries that were overtaken; the third try took everything at once.
        assert before == after == 2 * PAGES
        assert told[-1][0] == told[-1][1]
        assert [done for done, total in told if done < total] == [20, 100]

    def test_would_be_torn_without(self, source: Path, tmp_path: Path) -> None:
        """The same writer under a copy of bytes: the two tables disagree, so the test above can fail."""
        target = tmp_path / "copy.sqlite"
        content = source.read_bytes()
        half = len(content) // 2
        write(source)
        target.write_bytes(content[:half] + source.read_bytes()[half:])
        before, after = sums(target)
        assert before != after

    def test_readers_and_writers_go_on(self, source: Path, tmp_path: Path) -> None:
        """Whoever writes between two steps does not wait for the copy. [rule E1; custody: transactions]"""
        with closing(sqlite3.connect(source, timeout=0)) as writer:

            def at_once(done: int, total: int) -> None:
                if done < total:
                    writer.execute("INSERT INTO one VALUES (0, x'00')")
                    writer.commit()

            backups.copy_sqlite(source, tmp_path / "copy.sqlite", at_once, steps=(20, -1))

    def test_of_what_is_damaged(self, tmp_path: Path) -> None:
        """A file that is no database, or is damaged, makes no backup. [INT-05]"""
        path = tmp_path / "damaged.sqlite"
        path.write_bytes(b"no database at all" * 1000)
        with pytest.raises(IntegrityBroken, match="damaged"):
            backups.copy_sqlite(path, tmp_path / "copy.sqlite", keep_nothing)

    def test_while_somebody_holds_it(self, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A writer that never ends is told of, and not waited for for ever."""
        monkeypatch.setattr(backups, "_BUSY_SECONDS", 0.05)
        with closing(sqlite3.connect(source, isolation_level=None)) as writer:
            writer.execute("BEGIN EXCLUSIVE")
            with pytest.raises(DatabaseUnavailable, match="too long"):
                backups.copy_sqlite(source, tmp_path / "copy.sqlite", keep_nothing)

    def test_on_a_full_disk(self, source: Path, tmp_path: Path) -> None:
        """What SQLite calls an error of writing is a disk that takes no more. [T4]"""
        with no_room(100_000), pytest.raises(OSError, match="space") as refused:
            backups.copy_sqlite(source, tmp_path / "copy.sqlite", keep_nothing)
        assert refused.value.errno == errno.ENOSPC


@contextmanager
def no_room(size: int) -> Iterator[None]:
    """Let no file grow beyond a size, as a full disk would not."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def fill(place: Path) -> None:
    with backups.new_folder(place) as folder:
        backups.write_file(folder / "half", b"half")
        raise OSError(errno.ENOSPC, "No space left on device")


class TestNewFolder:
    def test_is_whole_or_nothing(self, tmp_path: Path) -> None:
        """What fails in the middle leaves nothing under the name, nor beside it; what is taken is left alone."""
        place = tmp_path / "backup"
        with pytest.raises(UnsafeSetting, match="No space left"):
            fill(place)
        assert list(tmp_path.iterdir()) == []
        with backups.new_folder(place) as folder:
            backups.write_file(folder / "whole", b"whole")
            assert not place.exists()
        assert [file.name for file in place.iterdir()] == ["whole"]
        assert [entry.stat().st_mode & 0o777 for entry in (place, place / "whole")] == [0o700, 0o600]
        with pytest.raises(UnsafeSetting, match="already"), backups.new_folder(place):
            pass
        with pytest.raises(UnsafeSetting, match="No such file"), backups.new_folder(tmp_path / "no" / "such"):
            pass


class TestPrograms:
    def test_missing_or_too_old(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Without a program of the server's version there is a sentence with the name of the package. [INT-04]"""
        monkeypatch.setenv("PATH", str(tmp_path))
        with pytest.raises(UnsafeSetting, match=r"no pg_dump here.*postgresql-client-18"):
            backups._program("pg_dump", 18)
        old = tmp_path / "pg_dump"
        old.write_text("#!/bin/sh\necho 'pg_dump (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)'\n")
        old.chmod(0o755)
        with pytest.raises(UnsafeSetting, match=r"server is PostgreSQL 18.*postgresql-client-18"):
            backups._program("pg_dump", 18)
        assert backups._program("pg_dump", 15) == str(old)

    def test_that_fails(self, tmp_path: Path) -> None:
        """What a program says is passed on; a password stands in no command line, and no value of a row in the sentence."""
        seen = tmp_path / "seen"
        program = tmp_path / "pg_dump"
        program.write_text(
            f'#!/bin/sh\nprintf "%s\\n" "$*" "$PGPASSWORD" > {seen}\n'
            "echo 'pg_dump: error: query failed: could not read' >&2\necho 'DETAIL:  Key (secret)=(canary)' >&2\nexit 1\n"
        )
        program.chmod(0o755)
        database = Database("postgresql://somebody:pass word@10.0.0.1,10.0.0.2/nothing?sslmode=disable")
        at = {"host": "10.0.0.2", "port": "5433"}
        with pytest.raises(DatabaseUnavailable, match=r"pg_dump failed: query failed: could not read\.$"):
            backups._run([str(program)], database.engine, at, backups._DUMPED, 1, keep_nothing)
        arguments, password = seen.read_text().splitlines()
        assert password == "pass word"
        assert "pass word" not in arguments
        assert "user=somebody" in arguments
        # Of several servers the one that knows the snapshot.
        assert {"--dbname=host=10.0.0.2", "port=5433"} <= set(arguments.split())
        assert "lock_timeout" not in arguments

    def test_of_the_suite(self) -> None:
        """The suite has its own programs, of the server's version."""
        assert (postgres_programs() / "pg_restore").exists()
