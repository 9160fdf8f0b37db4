"""`snose doctor` names each unsafe setting and how to mend it; what it names is what the server says. (INT-03, G22, BLD-13)"""

import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import psycopg
import pytest
from sqlalchemy import make_url, text

from app.domain.words import Mode
from app.sealing.providers import KeyFileProvider
from app.services import safety, startup
from app.services.context import Limits, SystemEntropy
from app.services.desk import EmergencyDesk
from app.services.startup import Surroundings
from app.storage import grants, migrate, server
from app.storage.database import Database
from app.storage.envelope_folder import EnvelopeFolder
from app.storage.server import Server
from app.storage.sink import FileSink, SunkCheckpoint
from tests.databases import PostgresServer, postgres_server
from tests.doors import lift_triggers

NOW: Final = datetime(2026, 11, 23, 8, 0, tzinfo=UTC)
SAFE: Final = {
    "fsync": "on",
    "full_page_writes": "on",
    "synchronous_commit": "on",
    "synchronous_standby_names": "",
    "wal_level": "replica",
    "log_statement": "ddl",
    "log_min_duration_statement": "-1",
    "log_min_duration_sample": "-1",
    "log_transaction_sample_rate": "0",
    "log_parameter_max_length": "-1",
    "log_parameter_max_length_on_error": "0",
}


@pytest.fixture
def around(migrated_database_url: str, tmp_path: Path) -> Iterator[Surroundings]:
    """What a new deployment stands on."""
    for name in ("evidence", "keys"):
        (tmp_path / name).mkdir()
    KeyFileProvider.create(tmp_path / "keys" / "key", os.urandom(32))
    database = Database(migrated_database_url)
    made = Surroundings(
        database,
        KeyFileProvider(tmp_path / "keys" / "key", SystemEntropy()),
        FileSink(tmp_path / "evidence" / "checkpoints.jsonl"),
        Limits(backup_contact="Desk"),
        lambda: NOW,
    )
    startup.create_deployment(made, Mode.LIVE)
    yield made
    database.close()


def weak(around: Surroundings, url_file: Path | None = None) -> str:
    return " ".join(f"{one.what} {one.mend}" for one in safety.weaknesses(around, url_file))


def at(**settings: str) -> Server:
    return Server(SAFE | settings, None, is_encrypted=False, is_superuser=False, may_bypass=False)


class TestByWhatItIsSetTo:
    def test_safe(self) -> None:
        """A server that is as it should be has no finding."""
        assert safety._of_role_and_commit(at()) == []
        assert safety._of_role_and_commit(None) == []
        assert safety._of_log(SAFE) == []
        assert safety._of_network(at()) == []

    @pytest.mark.parametrize(
        ("settings", "named"),
        [
            ({"fsync": "off"}, "fsync=off"),
            ({"full_page_writes": "off"}, "full_page_writes=off"),
            ({"synchronous_commit": "off"}, "synchronous_commit=off"),
            ({"synchronous_commit": "local", "synchronous_standby_names": "b"}, "synchronous_commit=local"),
        ],
    )
    def test_that_loses_what_was_acknowledged(self, settings: dict[str, str], named: str) -> None:
        """Refused in live mode, with the statement that mends it. [custody: transactions]"""
        (found,) = safety._of_role_and_commit(at(**settings))
        assert named in found.what
        assert f"ALTER SYSTEM SET {named.partition('=')[0]} = on" in found.mend

    def test_that_is_local_and_has_no_standby(self) -> None:
        """Without a standby `local` is as durable as `on`."""
        assert safety._of_role_and_commit(at(synchronous_commit="local")) == []

    @pytest.mark.parametrize(("is_superuser", "named"), [(True, "superuser"), (False, "role may")])
    def test_role(self, is_superuser: bool, named: str) -> None:
        """Who could change the trail does not serve. [AUD-02]"""
        (found,) = safety._of_role_and_commit(replace(at(), is_superuser=is_superuser, may_bypass=True))
        assert named in found.what
        assert "--app-role" in found.mend

    @pytest.mark.parametrize(
        ("settings", "named"),
        [
            ({"log_statement": "all"}, "(log_statement)"),
            ({"log_statement": "mod", "log_min_duration_sample": "5"}, "(log_statement, log_min_duration_sample)"),
            ({"log_min_duration_statement": "0"}, "(log_min_duration_statement)"),
            ({"log_transaction_sample_rate": "0.1"}, "(log_transaction_sample_rate)"),
            ({"log_parameter_max_length_on_error": "-1"}, "statements that fail"),
        ],
    )
    def test_log(self, settings: dict[str, str], named: str) -> None:
        """Values of statements do not belong into a server's log: subjects, and the names of the arms. [BLD-13]"""
        (found,) = safety._of_log(SAFE | settings)
        assert named in found.what
        assert "log_parameter_max_length" in found.mend
        assert (
            safety._of_log(
                SAFE | settings | {"log_parameter_max_length": "0", "log_parameter_max_length_on_error": "0"}
            )
            == []
        )

    @pytest.mark.parametrize(
        ("server", "named"),
        [
            (replace(at(), address="10.1.2.3"), "10.1.2.3 is spoken to without TLS"),
            (at(wal_level="minimal"), "wal_level=minimal"),
            (at(synchronous_commit="remote_write", synchronous_standby_names="b"), "remote_write"),
        ],
    )
    def test_network(self, server: Server, named: str) -> None:
        """No TLS to another machine, no standby possible, a standby that may lose: each is named."""
        (found,) = safety._of_network(server)
        assert named in found.what
        assert safety._of_network(replace(at(), address="10.1.2.3", is_encrypted=True)) == []


class TestPlaces:
    def test_of_the_files(self, around: Surroundings, tmp_path: Path) -> None:
        """One disk for both, the key beside the database, a password that others may read: each is named. [INT-03, INT-04]"""
        url_file = tmp_path / "url"
        url_file.write_text("postgresql://...")
        url_file.chmod(0o644)
        assert "Others may read the file with the database URL" in weak(around, url_file)
        url_file.chmod(0o600)
        assert "Others may read" not in weak(around, url_file)
        assert "Others may read" not in weak(around, tmp_path / "none")
        is_sqlite = around.database.sqlite_file is not None
        assert ("on the same disk" in weak(around)) is is_sqlite
        assert "The key file lies beside" not in weak(around)
        beside = replace(around, provider=KeyFileProvider(tmp_path / "key", SystemEntropy()))
        assert ("The key file lies beside" in weak(beside)) is is_sqlite
        away = replace(around, sink=FileSink(tmp_path / "none" / "checkpoints.jsonl"))
        assert "on the same disk" not in weak(away)

    @pytest.mark.parametrize("database_kind", ["sqlite"])
    def test_room(self, around: Surroundings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Head-room is kept for code breaks: too little of it is told for each place. [D5]"""
        usage = shutil.disk_usage(tmp_path)
        (tmp_path / "envelopes").mkdir()
        with_desk = replace(around, desk=EmergencyDesk("", EnvelopeFolder(tmp_path / "envelopes")))
        monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage._replace(free=safety.ROOM))
        assert "little room" not in weak(with_desk)
        monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage._replace(free=safety.ROOM - 1))
        told = weak(with_desk)
        places = ("the database", "the checkpoint file", "the code-break envelopes")
        assert all(f"little room left for {place}:" in told for place in places)

    @pytest.mark.parametrize("database_kind", ["sqlite"])
    def test_clock(self, around: Surroundings) -> None:
        """A clock that stands before the newest checkpoint is told; lines that tell no time are passed over. [T8]"""
        for moment, is_told in (
            ("no time", False),
            ("2026-11-23T08:05:00+00:00", False),
            ("2026-11-23T08:05:01+00:00", True),
        ):
            around.sink.append(SunkCheckpoint("origin", 1, "", "", moment))
            assert ("Set the clock by a time server" in weak(around)) is is_told
        around.sink.path.unlink()
        around.sink.path.mkdir()
        assert "Set the clock" not in weak(around)


class TestByTheDatabase:
    def test_missing_trigger(self, around: Surroundings) -> None:
        """A refusal that an owner took away is named, and live mode does not start without it. [AUD-02]"""
        with around.database.transaction() as tx:
            lift_triggers(tx, "kit")
        assert "The trigger kit_no_delete is gone" in " ".join(one.what for one in safety.findings(around, None))

    def test_that_is_away_or_empty(self, around: Surroundings, database_url: str, tmp_path: Path) -> None:
        """A database that cannot be used, or has no schema yet, is told among the findings alone."""
        for url in (f"sqlite:///{tmp_path / 'no' / 'such.db'}", f"sqlite:///{tmp_path / 'empty.db'}"):
            assert safety._of_server(replace(around, database=Database(url))) == []

    @pytest.mark.parametrize("database_kind", ["postgresql"])
    def test_what_is_set_for_one_database(self, around: Surroundings, migrated_database_url: str) -> None:
        """The server is asked, not a file: what is set for this database or role alone is seen too. [BLD-13]"""
        assert "values into its log" not in weak(around)
        alter(around, "log_statement = 'all'")
        assert "(log_statement)" in weak(around)
        alter(around, "log_parameter_max_length = 0")
        assert "values into its log" not in weak(around)

    @pytest.mark.parametrize("database_kind", ["postgresql"])
    def test_role_of_the_application(self, around: Surroundings, migrated_database_url: str) -> None:
        """The role that `snose migrate --app-role` makes right has no finding; one that owns any table has. [AUD-02]"""
        name = f"app_{os.urandom(6).hex()}"
        with psycopg.connect(migrated_database_url, autocommit=True) as owner:
            owner.execute(f'CREATE ROLE "{name}" LOGIN')
            try:
                grants.grant_to(migrated_database_url, name)
                serving = Database(
                    make_url(migrated_database_url).set(username=name).render_as_string(hide_password=False)
                )
                assert powers(serving) == (False, False)
                owner.execute(f'ALTER TABLE kit OWNER TO "{name}"')
                assert powers(serving) == (False, True)
                serving.close()
                owner.execute("ALTER TABLE kit OWNER TO postgres")
                owner.execute(f'REASSIGN OWNED BY "{name}" TO postgres')
                owner.execute(f'DROP OWNED BY "{name}"')
            finally:
                owner.execute(f'DROP ROLE "{name}"')


def alter(around: Surroundings, setting: str) -> None:
    """Set something for this database alone, as new connections will have it."""
    with around.database.transaction() as tx:
        name = tx.execute(text("SELECT current_database()")).scalar_one()
        tx.execute(text(f'ALTER DATABASE "{name}" SET {setting}'))
    around.database.close()


def powers(database: Database) -> tuple[bool, bool]:
    with database.transaction() as tx:
        seen = server.look_at_server(tx)
    assert seen is not None
    return seen.is_superuser, seen.may_bypass


@pytest.fixture(scope="module")
def own_server() -> Iterator[PostgresServer]:
    """A server whose settings no other test sees."""
    with postgres_server() as started:
        yield started


@pytest.mark.long
@pytest.mark.timeout(0)
class TestOnAServerOfItsOwn:
    @pytest.mark.parametrize(
        ("setting", "named"),
        [
            # Not fsync: for the test's server the command line has the last word on it.
            ("full_page_writes = off", "full_page_writes=off"),
            ("log_statement = 'all'", "(log_statement)"),
            ("log_min_duration_statement = 0", "(log_min_duration_statement)"),
            ("log_parameter_max_length_on_error = -1", "statements that fail"),
            ("wal_level = minimal", "wal_level=minimal"),
        ],
    )
    def test_each_is_named_and_mended(
        self, own_server: PostgresServer, tmp_path: Path, setting: str, named: str
    ) -> None:
        """Set on the whole server, named, mended by the very statement that is told, and gone. [INT-03, G22]"""
        with own_server.database() as url:
            migrate.upgrade(url)
            database = Database(url)
            made = Surroundings(database, _Anything(), FileSink(tmp_path / "sink"), Limits(backup_contact="Desk"))
            system(own_server, f"ALTER SYSTEM SET {setting}")
            (found,) = [one for one in everything(made) if named in one.what]
            database.close()
            system(own_server, *statements(found.mend))
            assert not [one for one in everything(made) if named in one.what]
            database.close()
            system(own_server, "ALTER SYSTEM RESET ALL")


class _Anything:
    """A key provider that nobody asks."""

    name = "anything"
    weakness = None

    def wrap(self, secret: bytes, context: bytes) -> str:
        raise AssertionError

    def unwrap(self, wrapped: str, context: bytes) -> bytes:
        raise AssertionError


def everything(around: Surroundings) -> list[safety.Finding]:
    return [*safety.findings(around, None), *safety.weaknesses(around)]


def statements(mend: str) -> list[str]:
    """Return the statement that an advice tells."""
    return [part.strip() for part in mend.partition(": ")[2].split(";") if part.strip().startswith("ALTER")]


def system(on: PostgresServer, *told: str) -> None:
    """Set something for the whole server, and start it anew, which every setting needs at most."""
    with psycopg.connect(on.url_for("postgres"), autocommit=True) as connection:
        for one in (*told, "ALTER SYSTEM SET max_wal_senders = 0"):
            connection.execute(one)
    on.stop()
    on.start()
