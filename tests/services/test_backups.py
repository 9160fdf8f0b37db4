"""A backup of the running service comes back whole, on both databases; and every way in which one does not is named.

(INT-04, INT-05, INT-07; T25, T34)
"""

import json
import os
import shutil
import sqlite3
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

import psycopg
import pytest
from psycopg import sql
from sqlalchemy import make_url, text

from app.domain.words import Mode, StudyCode
from app.errors import DatabaseUnavailable, IntegrityBroken, Invalid, UnsafeSetting
from app.sealing.providers import KeyFileProvider, KeyProvider
from app.services import backups, startup
from app.services.backups import Against, Restored
from app.services.context import Limits, SystemEntropy
from app.services.keys import rotate_signing_key
from app.storage import migrate, trail
from app.storage.backups import MANIFEST
from app.storage.database import Database, TryAgain
from app.storage.grants import grant_to
from app.storage.sink import FileSink
from tests import harness
from tests.databases import postgres_programs
from tests.harness import _ROOT_KEY, STUDY, House, expect
from tests.running_study import RunningStudy, S, allocation_of, running_study
from tests.services.test_escrow import grow_the_sink

NOW: Final = datetime(2026, 11, 23, 8, 0, tzinfo=UTC)


def silent(_done: int, _total: int) -> None:
    """Hear nothing."""


@pytest.fixture(autouse=True)
def _programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The programs of the server that the suite runs."""
    monkeypatch.setenv("PATH", f"{postgres_programs()}:{os.environ['PATH']}")


@pytest.fixture
def empty_url(request: pytest.FixtureRequest, database_kind: str, tmp_path: Path) -> Iterator[str]:
    """The URL of another empty database of the same kind."""
    if database_kind == "sqlite":
        yield f"sqlite:///{tmp_path / 'restored.sqlite'}"
        return
    with request.getfixturevalue("postgres").database() as url:
        yield url


def taken(house: House, folder: Path, tell: Callable[[int, int], None] = silent) -> Path:
    """Return the folder of a backup that is taken beside the running house."""
    database = Database(house.settings.url())
    try:
        place, _ = backups.back_up(database, folder, NOW, "snose 0.1.0", tell)
    finally:
        database.close()
    return place


def restored(url: str, folder: Path, against: Against | None = None, *, to_head: bool = False) -> Restored:
    return backups.restore(url, folder, against or Against(), SystemEntropy(), silent, to_head=to_head)


def provider_of(house: House) -> KeyProvider:
    return KeyFileProvider(house.settings.key_file, SystemEntropy())


def rehearsed(house: House, url: str, folder: Path) -> House:
    """Return the service of another machine, on a restored database, with copies of key and checkpoints."""
    folder.mkdir()
    for name in ("key_file", "checkpoint_file"):
        shutil.copy(getattr(house.settings, name), folder / name)
    overrides = {name: folder / name for name in ("key_file", "checkpoint_file")}
    settings = house.settings.model_copy(update={"database_url": url, **overrides})
    other = House(settings, house.clock, house.entropy, house.list_entropy)
    other.open()
    return other


class TestBackUp:
    def test_beside_the_running_service(self, house: House, empty_url: str, database_kind: str, tmp_path: Path) -> None:
        """Taken while the service works, restored whole: state, logs, keys; and the restored one randomizes nobody. [INT-04, 07]"""
        running = running_study(house, subjects=2)
        lost: list[dict[str, Any]] = []

        def go_on(done: int, total: int) -> None:
            # On PostgreSQL the dump has begun and has not ended; on SQLite so small a file is one step.
            if not lost and (done < total or database_kind == "sqlite"):
                lost.append(running.new_subject())

        place = taken(house, tmp_path, go_on)
        assert place.name == "snose-20261123T080000Z"
        assert len(lost) == 1
        member = json.loads((place / MANIFEST).read_bytes())["member"]["name"]
        assert {file.name for file in place.iterdir()} == {MANIFEST, member}
        assert {file.stat().st_mode & 0o777 for file in place.iterdir()} == {0o600}
        house.deployment.checkpoints.publish_all(house.deployment.database, house.clock())
        found = restored(empty_url, place, Against((house.settings.checkpoint_file,), provider_of(house)))
        assert found.faults == ()
        assert sum(log.lost for log in found.logs) >= 1
        assert any("Entries are missing here" in step for step in found.next)
        assert any("Only that opens randomization again" in step for step in found.next)
        self.check_shut(running, empty_url, tmp_path / "elsewhere")

    def check_shut(self, running: RunningStudy, url: str, folder: Path) -> None:
        """The restored service refuses to randomize, breaks codes, and goes on after a recovery statement."""
        other = rehearsed(running.house, url, folder)
        with other:
            token = {"Authorization": f"Bearer {running.investigator.token()}"}
            refused = other.client.post(f"{S}/allocations", json=allocation_of("01-0009"), headers=token)
            assert (refused.status_code, refused.json()["code"]) == (503, "rollback_suspected")

    @pytest.mark.parametrize("database_kind", ["sqlite"])
    def test_holds_no_key(self, house: House, tmp_path: Path) -> None:
        """Neither the root key nor the deployment's secret is in it, raw or in any spelling; it says so itself. [F1, CUS-05]"""
        running_study(house, subjects=1)
        place = taken(house, tmp_path / "backup")
        content = b"".join(file.read_bytes() for file in place.iterdir())
        secret = house.deployment.ring._deployment_secret.key
        for key in (_ROOT_KEY, secret):
            for spelling in (key, key.hex().encode(), b64encode(key)):
                assert spelling not in content
        assert any("key file" in words for words in json.loads((place / MANIFEST).read_bytes())["not_in_it"])

    @pytest.mark.parametrize("database_kind", ["sqlite"])
    def test_where_it_cannot_be(self, house: House, tmp_path: Path) -> None:
        """A place that is taken is left alone; a failure leaves nothing. [INT-04]"""
        house.register_study()
        place = taken(house, tmp_path / "one")
        with pytest.raises(UnsafeSetting, match="already"):
            taken(house, place / MANIFEST)
        before = sorted(entry.name for entry in tmp_path.iterdir())

        def fail(_done: int, _total: int) -> None:
            raise OSError(28, "No space left on device")

        with pytest.raises(UnsafeSetting, match="two cannot be written: No space left"):
            taken(house, tmp_path / "two", fail)
        assert sorted(entry.name for entry in tmp_path.iterdir()) == before

    @pytest.mark.parametrize("database_kind", ["sqlite"])
    def test_of_nothing(self, migrated_database_url: str, tmp_path: Path) -> None:
        """A database without deployment makes no backup that somebody would rely on."""
        for url in (migrated_database_url, f"sqlite:///{tmp_path / 'none.sqlite'}"):
            database = Database(url)
            with pytest.raises(UnsafeSetting, match=r"no (deployment|database)"):
                backups.back_up(database, tmp_path / "backup", NOW, "snose", silent)
            database.close()

    @pytest.mark.parametrize("database_kind", ["sqlite"])
    def test_on_a_full_disk(self, house: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Where the file would not fit nothing is begun. [T4]"""
        house.register_study()
        usage = shutil.disk_usage(tmp_path)
        monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage._replace(free=1000))
        with pytest.raises(UnsafeSetting, match="No space left"):
            taken(house, tmp_path / "backup")
        assert not (tmp_path / "backup").exists()

    @pytest.mark.parametrize("database_kind", ["sqlite"])
    def test_while_somebody_holds_it(self, house: House, tmp_path: Path) -> None:
        """A database that cannot be read now is told in words, and nothing is left."""
        house.register_study()

        def hold(_done: int, _total: int) -> None:
            raise TryAgain("busy")

        with pytest.raises(DatabaseUnavailable, match="again"):
            taken(house, tmp_path / "backup", hold)
        assert not (tmp_path / "backup").exists()


# -- what does not hold: one backup on SQLite, altered in a copy of each ---------------------------------------------


@dataclass(frozen=True)
class Kept:
    """A backup of a study under way, its key and its checkpoints; each test alters copies."""

    folder: Path
    key: Path
    sink: Path
    signed: dict[str, dict[str, Any]]
    """Further lines of a sink, by what they say."""

    def altered(self, folder: Path, *statements: str, manifest: dict[str, Any] | None = None) -> Path:
        """Return a copy in which an owner of the database has done something, with the hash that belongs to it."""
        copy = folder / "altered"
        shutil.copytree(self.folder, copy)
        member = copy / "database.sqlite"
        with closing(sqlite3.connect(member, isolation_level=None)) as connection:
            triggers = connection.execute("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'").fetchall()
            lifted = triggers if statements else []
            for name, _ in lifted:
                connection.execute(f"DROP TRIGGER {name}")
            for statement in statements:
                connection.execute(statement)
            for _, made in lifted:
                connection.execute(made)
        told = json.loads((copy / MANIFEST).read_bytes())
        content = member.read_bytes()
        told["member"] |= {"size": len(content), "sha256": sha256(content).hexdigest()}
        (copy / MANIFEST).write_text(json.dumps(told | (manifest or {})))
        return copy

    def against(self) -> Against:
        """Return what a restore is held against: the key and the checkpoints."""
        return Against((self.sink,), KeyFileProvider(self.key, SystemEntropy()))

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.sink.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def kept(migrated_sqlite: Path, tmp_path_factory: pytest.TempPathFactory) -> Kept:
    """The backup, taken after the last checkpoint of everything in it."""
    folder = tmp_path_factory.mktemp("kept")
    shutil.copyfile(migrated_sqlite, folder / "snose.sqlite")
    with harness.house(f"sqlite:///{folder / 'snose.sqlite'}", folder) as house:
        running_study(house, subjects=2)
        house.deployment.checkpoints.publish_all(house.deployment.database, house.clock())
        place = taken(house, folder / "backup")
        key, sink = shutil.copy(house.settings.key_file, folder), shutil.copy(house.settings.checkpoint_file, folder)
        with house.deployment.database.transaction() as tx:
            size = next(head.frontier.size for head in trail.list_heads(tx) if head.origin.endswith(STUDY))
        origin = house.deployment.origin(StudyCode(STUDY))
        signed = {
            "more": line(house, origin, size + 100),
            "forked": line(house, origin, size),
            "new log": line(house, house.deployment.origin(StudyCode("LATER")), 7),
        }
        rotate_signing_key(house.deployment)
        signed["by a later key"] = line(house, origin, size + 50)
        return Kept(place, Path(key), Path(sink), signed)


def line(house: House, origin: str, size: int) -> dict[str, Any]:
    """Return a line of a sink, signed by the newest key."""
    root = b64encode(bytes(32)).decode()
    note = house.deployment.signing.sign_note(f"{origin}\n{size}\n{root}\n")
    return {"origin": origin, "size": size, "root": root, "note": note, "at": house.clock().isoformat()}


@pytest.fixture
def url(tmp_path: Path) -> str:
    """The URL of a SQLite database that is not there yet."""
    return f"sqlite:///{tmp_path / 'restored.sqlite'}"


class TestRestore:
    def test_of_what_is_whole(self, kept: Kept, url: str, tmp_path: Path) -> None:
        """Nothing is wrong, nothing is missing; what comes next is said, with and without keys and checkpoints."""
        found = restored(url, kept.folder, kept.against())
        assert found.faults == ()
        assert [log.lost for log in found.logs] == [0, 0]
        assert {log.held for log in found.logs} == {log.size for log in found.logs}
        assert found.next[0] == "The checkpoint file knows of nothing that is missing here."
        bare = restored(f"sqlite:///{tmp_path / 'bare.sqlite'}", kept.folder)
        assert [log.held for log in bare.logs] == [None, None]
        assert "snose keys restore --escrow" in bare.next[0]
        assert "randomizes nobody" in bare.next[1]
        assert (tmp_path / "bare.sqlite").stat().st_mode & 0o777 == 0o600

    @pytest.mark.parametrize(
        "faults",
        [
            {
                "UPDATE trail_entry SET body = CAST('junk' AS BLOB) WHERE log_index = 3": "Entry 3 of {log} is missing, or another",
                "UPDATE trail_entry SET body = CAST('[1]' AS BLOB) WHERE log_index = 4": "Entry 4 of {log} is missing, or another",
                "UPDATE trail_entry SET leaf_hash = zeroblob(32) WHERE log_index = 5": "Entry 5 of {log} does not have the hash",
                "UPDATE trail_entry SET action = 'nothing' WHERE log_index = 6": "Entry 6 of {log} is stored under other words",
                "UPDATE trail_node SET hash = zeroblob(32) WHERE node_index = 1": "Stored hashes of {log} before entry",
                "UPDATE log SET mac = zeroblob(32)": "The end of {log} does not carry the service's own seal",
            },
            {
                "DELETE FROM trail_entry WHERE log_index = 5": "Entry 5 of {log} is missing",
                "UPDATE signing_key SET wrapped = 'v1.d1.AAAA.AAAA'": "Version 1 of the signing key does not open",
                "UPDATE study_key SET wrapped = 'v1.d1.AAAA.AAAA'": f"Version 1 of the key of study {STUDY}",
            },
            {
                "DELETE FROM trail_entry WHERE log_index > 5": "The end of {log} is not that of its 6 entries",
                "DELETE FROM kit": "Table kit has 0 rows, and had 20",
                "DELETE FROM study": "refer to what is not there",
            },
        ],
    )
    def test_of_what_was_altered(self, kept: Kept, url: str, tmp_path: Path, faults: dict[str, str]) -> None:
        """Whoever alters a database before its backup, or the backup with its manifest, is found out. [AUD-02, INT-05]"""
        found = restored(url, kept.altered(tmp_path, *faults), kept.against())
        log = kept.signed["more"]["origin"]
        for named in faults.values():
            assert named.format(log=log) in " ".join(found.faults), found.faults
        assert found.next[0].startswith("Do not serve from this database")

    def test_of_a_forgotten_trigger(self, kept: Kept, url: str, tmp_path: Path) -> None:
        """A trigger that an owner took away is named. [AUD-02]"""
        copy = kept.altered(tmp_path)
        with closing(sqlite3.connect(copy / "database.sqlite")) as connection:
            connection.execute("DROP TRIGGER trail_entry_no_delete")
        told = json.loads((copy / MANIFEST).read_bytes())
        content = (copy / "database.sqlite").read_bytes()
        told["member"] |= {"size": len(content), "sha256": sha256(content).hexdigest()}
        (copy / MANIFEST).write_text(json.dumps(told))
        assert restored(url, copy).faults == (
            "The trigger trail_entry_no_delete is gone: what it refuses could be done.",
        )

    def test_of_very_much(self, kept: Kept, url: str, tmp_path: Path) -> None:
        """A thousand faults are told by the first of them."""
        copy = kept.altered(tmp_path, "UPDATE trail_entry SET body = CAST('junk' AS BLOB)")
        assert len(restored(url, copy, kept.against()).faults) == backups._NAMED

    @pytest.mark.parametrize(
        ("manifest", "named"),
        [
            ({"deployment_id": "another"}, "Deployment, mode or schema"),
            ({"logs": []}, "The ends of the logs"),
            ({"rows": {"nothing": 1}}, "Table allocation has 2 rows, and had None"),
        ],
    )
    def test_of_another_moment(
        self, kept: Kept, url: str, tmp_path: Path, manifest: dict[str, Any], named: str
    ) -> None:
        """A manifest that says something else than the database is named, whichever was altered. [INT-05]"""
        assert named in " ".join(restored(url, kept.altered(tmp_path, manifest=manifest)).faults)

    def test_with_another_key(self, kept: Kept, url: str, tmp_path: Path) -> None:
        """A key that does not open it is found out now, and not on the day it is needed. [CUS-08]"""
        KeyFileProvider.create(tmp_path / "other", os.urandom(32))
        found = restored(url, kept.folder, Against((), KeyFileProvider(tmp_path / "other", SystemEntropy())))
        assert "does not open the secret" in found.faults[0]

    def test_is_damaged(self, kept: Kept, url: str, tmp_path: Path) -> None:
        """A bit, the manifest, or all of it is gone: said before anything is written. [INT-05]"""
        copy = kept.altered(tmp_path)
        content = bytearray((copy / "database.sqlite").read_bytes())
        content[len(content) // 2] ^= 1
        (copy / "database.sqlite").write_bytes(bytes(content))
        with pytest.raises(IntegrityBroken, match="Nothing was written"):
            restored(url, copy)
        (copy / "database.sqlite").unlink()
        with pytest.raises(UnsafeSetting, match=r"database.sqlite cannot be read"):
            restored(url, copy)
        (copy / MANIFEST).write_text("{}")
        with pytest.raises(Invalid, match="damaged"):
            restored(url, copy)
        (copy / MANIFEST).unlink()
        with pytest.raises(UnsafeSetting, match="Name the folder of a backup"):
            restored(url, copy)
        assert not (tmp_path / "restored.sqlite").exists()

    def test_over_something(self, kept: Kept, url: str, tmp_path: Path) -> None:
        """Nothing is ever restored over a database, nor beside a journal that would be played into it. [ASG-06]"""
        target = tmp_path / "restored.sqlite"
        for taken_name in ("restored.sqlite", "restored.sqlite-journal"):
            (tmp_path / taken_name).write_bytes(b"something")
            with pytest.raises(UnsafeSetting, match="empty database only"):
                restored(url, kept.folder)
            (tmp_path / taken_name).unlink()
        with pytest.raises(UnsafeSetting, match="no folder"):
            restored(f"sqlite:///{tmp_path / 'no' / 'such.sqlite'}", kept.folder)
        serving = Database(url)
        serving.be_the_only_process()
        with pytest.raises(UnsafeSetting, match="Another process"):
            restored(url, kept.folder)
        serving.close()
        assert not target.exists()

    def test_into_another_engine(self, kept: Kept) -> None:
        """A backup of SQLite is none for PostgreSQL."""
        with pytest.raises(UnsafeSetting, match="backup of sqlite"):
            restored("postgresql://nobody@127.0.0.1:1/none", kept.folder)


class TestAgainstCheckpoints:
    def with_lines(self, kept: Kept, folder: Path, *lines: dict[str, Any]) -> Against:
        """Return what a restore is held against when the sink holds more."""
        sink = folder / "sink.jsonl"
        sink.write_text(kept.sink.read_text() + "".join(json.dumps(line) + "\n" for line in lines))
        return replace(kept.against(), sinks=(sink,))

    def test_of_more(self, kept: Kept, url: str, tmp_path: Path) -> None:
        """What a checkpoint knows beyond the backup is counted, by log; a log of which the backup knows nothing, too. [INT-07]"""
        found = restored(url, kept.folder, self.with_lines(kept, tmp_path, kept.signed["more"], kept.signed["new log"]))
        assert found.faults == ()
        assert {log.origin.rpartition("/")[2]: log.lost for log in found.logs} == {"LATER": 7, STUDY: 100, "service": 0}
        told = " ".join(found.next)
        assert f"/{STUDY}, since 20" in told
        assert "/LATER, since its beginning" in told

    def test_of_more_by_a_later_key(self, kept: Kept, url: str, tmp_path: Path) -> None:
        """A backup older than a rotation of the signing key knows nothing of the new one, and is behind all the same. [INT-07]"""
        found = restored(url, kept.folder, self.with_lines(kept, tmp_path, kept.signed["by a later key"]))
        assert {log.lost for log in found.logs} == {0, 50}

    def test_of_another_history(self, kept: Kept, url: str, tmp_path: Path) -> None:
        """A log that had another root at a size that it has passed is forked. [E4]"""
        newest = max(line["size"] for line in kept.lines() if line["origin"] == kept.signed["forked"]["origin"])
        assert kept.signed["forked"]["size"] == newest
        found = restored(url, kept.folder, self.with_lines(kept, tmp_path, kept.signed["forked"]))
        assert "it was forked" in found.faults[0]

    def test_of_others(self, kept: Kept, url: str, tmp_path: Path) -> None:
        """Lines of another deployment, lines that nobody signed and torn lines prove nothing. [E4]"""
        more = kept.signed["more"]
        foreign = {name: str(value).replace("snose/", "other/") for name, value in more.items()} | {"size": 10**6}
        unsigned = more | {"note": "nothing", "size": 10**6}
        moved = more | {"size": 10**6}
        found = restored(url, kept.folder, self.with_lines(kept, tmp_path, foreign, unsigned, moved))
        assert [log.lost for log in found.logs] == [0, 0]

    @pytest.mark.parametrize("database_kind", ["sqlite"])
    def test_after_a_declared_loss(self, house: House, url: str, tmp_path: Path) -> None:
        """What was given up by a recovery statement is not missing anew in each later backup; a refused one gives up nothing."""
        house.register_study()
        statement = {"statement": "The backup of 08:00 was restored after a disk failure."}
        expect(house.admin.post("/v1/recovery-statements", json=statement, step_up=True), 409)
        grow_the_sink(house, house.deployment.origin(None))
        house.restart()
        expect(house.admin.post("/v1/recovery-statements", json=statement, step_up=True), 201)
        against = Against((house.settings.checkpoint_file,), provider_of(house))
        found = restored(url, taken(house, tmp_path / "backup"), against)
        assert found.faults == ()
        assert [log.lost for log in found.logs] == [0] * len(found.logs)


class TestSchemas:
    def old(self, url: str, folder: Path) -> Path:
        """Return a backup of a deployment whose schema is an older one."""
        migrate.upgrade(url, "0001")
        database = Database(url)
        KeyFileProvider.create(folder / "key", _ROOT_KEY)
        around = startup.Surroundings(
            database, KeyFileProvider(folder / "key", SystemEntropy()), FileSink(folder / "sink"), Limits()
        )
        startup.create_deployment(around, Mode.TEST)
        place, _ = backups.back_up(database, folder / "backup", NOW, "snose", silent)
        database.close()
        return place

    @pytest.mark.long
    def test_older_one(self, database_url: str, empty_url: str, tmp_path: Path) -> None:
        """An older schema is restored only where it is migrated too, and is as good as a new one then. [INT-11]"""
        place = self.old(database_url, tmp_path)
        with pytest.raises(UnsafeSetting, match="--migrate"):
            restored(empty_url, place)
        found = restored(empty_url, place, to_head=True)
        assert (found.revision, found.faults) == (migrate.head(), ())
        with pytest.raises(UnsafeSetting, match="empty"):
            restored(empty_url, place, to_head=True)

    def test_that_is_not_restored(self, kept: Kept, url: str, tmp_path: Path) -> None:
        """An older schema asks for a migration, and what a later release has made is not guessed at. [INT-11]"""
        older = kept.altered(tmp_path / "older", manifest={"schema_revision": "0001"})
        with pytest.raises(UnsafeSetting, match="--migrate"):
            restored(url, older)
        later = kept.altered(tmp_path / "later", manifest={"schema_revision": "9999"})
        for to_head in (True, False):
            with pytest.raises(UnsafeSetting, match="later release"):
                restored(url, later, to_head=to_head)

    @pytest.mark.parametrize("database_kind", ["postgresql"])
    def test_of_postgresql(self, house: House, empty_url: str, tmp_path: Path) -> None:
        """The service's role may make one; a trigger to be passed over, a rule never checked, an old server: named. [AUD-02]"""
        house.register_study()
        with house.deployment.database.transaction() as tx:
            tx.execute(text("ALTER TABLE kit ENABLE TRIGGER kit_no_delete"))
            tx.execute(text("ALTER TABLE arm DROP CONSTRAINT fk_arm_study"))
            constraint = "ADD CONSTRAINT fk_arm_study FOREIGN KEY (study_id) REFERENCES study NOT VALID"
            tx.execute(text(f"ALTER TABLE arm {constraint}"))
        place = tmp_path / "backup"
        with role_of_the_application(house) as serving:
            database = Database(serving)
            backups.back_up(database, place, NOW, "snose", silent)
            database.close()
        found = restored(empty_url, place)
        assert found.faults == (
            "The trigger kit_no_delete is gone: what it refuses could be done.",
            "Rows of arm refer to what is not there.",
        )
        told = json.loads((place / MANIFEST).read_bytes()) | {"engine_version": "99.1"}
        (place / MANIFEST).write_text(json.dumps(told))
        with psycopg.connect(empty_url) as owner:
            owner.execute("DROP SCHEMA public CASCADE")
            owner.execute("CREATE SCHEMA public")
        with pytest.raises(UnsafeSetting, match="PostgreSQL 99"):
            restored(empty_url, place)


@contextmanager
def role_of_the_application(house: House) -> Iterator[str]:
    """Give the URL of a role that may do what the service does, and nothing more."""
    name, owner = f"app_{os.urandom(6).hex()}", house.settings.url()
    with psycopg.connect(owner, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE ROLE {} LOGIN").format(sql.Identifier(name)))
        try:
            grant_to(owner, name)
            yield make_url(owner).set(username=name).render_as_string(hide_password=False)
        finally:
            connection.execute(sql.SQL("DROP OWNED BY {}").format(sql.Identifier(name)))
            connection.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(name)))
