"""Making a deployment, unsealing it, and the settings that live mode refuses."""

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import text
from structlog.testing import capture_logs

from app.domain.words import Mode
from app.errors import AlreadyExists, KeyUnavailable, UnsafeSetting
from app.sealing.providers import KeyFileProvider
from app.sealing.vault import TokenFile, VaultTransitProvider
from app.services import readiness, safety, startup
from app.services.context import Limits, SystemEntropy, system_clock, token_digest_of
from app.services.startup import Surroundings
from app.storage import migrate
from app.storage.database import Database
from app.storage.sink import FileSink
from tests.doors import lift_triggers
from tests.harness import STUDY, House, expect


@pytest.fixture
def around(migrated_database_url: str, tmp_path: Path) -> Iterator[Surroundings]:
    """What a new deployment stands on, nothing of it unsafe."""
    evidence = tmp_path / "evidence"
    evidence.mkdir()
    KeyFileProvider.create(tmp_path / "key", os.urandom(32))
    database = Database(migrated_database_url)
    if database.sqlite_file is not None:
        database.sqlite_file.chmod(0o600)
    yield Surroundings(
        database,
        KeyFileProvider(tmp_path / "key", SystemEntropy()),
        FileSink(evidence / "checkpoints.jsonl"),
        Limits(backup_contact="Desk"),
    )
    database.close()


def found(around: Surroundings, plain_host: str | None = None) -> str:
    return " ".join(one.what for one in safety.findings(around, plain_host))


class TestCreateDeployment:
    def test_once(self, around: Surroundings) -> None:
        """A database belongs to one deployment for ever. [rule A10]"""
        startup.create_deployment(around, Mode.TEST)
        with pytest.raises(AlreadyExists):
            startup.create_deployment(around, Mode.LIVE)

    def test_what_is_in(self, around: Surroundings, migrated_database_url: str) -> None:
        """Only an empty database, or one of an earlier demo, may be emptied again. [api.md: snose demo]"""
        assert startup.what_is_in(around.database) == "demo"
        migrate.downgrade(migrated_database_url, "base")
        with around.database.transaction() as tx:
            tx.execute(text("DROP TABLE alembic_version"))
        assert startup.what_is_in(around.database) == "empty"
        with around.database.transaction() as tx:
            tx.execute(text("CREATE TABLE somebody_elses (id INTEGER)"))
        assert startup.what_is_in(around.database) == "other"
        migrate.upgrade(migrated_database_url)
        startup.create_deployment(around, Mode.TEST)
        assert startup.what_is_in(around.database) == "other"

    def test_demo(self, around: Surroundings) -> None:
        """A demo's database says that it is one."""
        startup.create_deployment(around, Mode.TEST, is_demo=True)
        assert startup.what_is_in(around.database) == "demo"


class TestUnseal:
    def test_signs_with_its_key(self, around: Surroundings) -> None:
        """The running deployment has the identity and the key that were made."""
        record = startup.create_deployment(around, Mode.TEST)
        deployment = startup.unseal(around, Mode.TEST)
        assert deployment.deployment_id == record.deployment_id
        assert deployment.signing.name == startup.key_name(record)
        assert readiness.is_ready(deployment)

    def test_without_deployment(self, around: Surroundings) -> None:
        """A database without deployment is told by name. [INT-03]"""
        with pytest.raises(UnsafeSetting, match="snose init"):
            startup.unseal(around, Mode.TEST)

    def test_of_another_mode(self, around: Surroundings) -> None:
        """Test and live do not mix. [SEQ-15, ASG-24, rule A10]"""
        startup.create_deployment(around, Mode.TEST)
        with pytest.raises(UnsafeSetting, match="test deployment"):
            startup.unseal(around, Mode.LIVE)

    def test_of_another_schema(self, around: Surroundings, migrated_database_url: str) -> None:
        """A schema of another release is not served. [INT-11]"""
        migrate.downgrade(migrated_database_url, "0001")
        with pytest.raises(UnsafeSetting, match="snose migrate"):
            startup.unseal(around, Mode.TEST)

    def test_with_another_key(self, around: Surroundings, tmp_path: Path) -> None:
        """Another key file opens nothing: the service stays sealed. [rule F2, CUS-05]"""
        startup.create_deployment(around, Mode.TEST)
        KeyFileProvider.create(tmp_path / "other", os.urandom(32))
        with pytest.raises(KeyUnavailable):
            startup.unseal(replace(around, provider=KeyFileProvider(tmp_path / "other", SystemEntropy())), Mode.TEST)

    def test_damaged_study_key(self, house: House) -> None:
        """One study's damaged key leaves the others served; that study's acts are refused, and told why. [rules D4, F3]"""
        house.register_study()
        house.register_study("OTHER")
        with house.deployment.database.transaction() as tx:
            query = text(
                "SELECT wrapped FROM study_key k JOIN study s ON s.study_id = k.study_id WHERE study_code = :of"
            )
            foreign = tx.execute(query, {"of": "OTHER"}).scalar_one()
            lift_triggers(tx, "study_key")
            swap = "UPDATE study_key SET wrapped = :key WHERE study_id = (SELECT study_id FROM study WHERE study_code = :of)"
            tx.execute(text(swap), {"key": foreign, "of": STUDY})
        with capture_logs() as logs:
            house.restart()
        assert [line["version"] for line in logs if line["event"] == "study key damaged"] == [1]
        assert house.study_admins["OTHER"].get("/v1/studies/OTHER").status_code == 200
        refused = expect(house.study_admins[STUDY].get(f"/v1/studies/{STUDY}"), 503)
        assert refused["code"] == "integrity_failure"


class TestFindings:
    def test_nothing_unsafe(self, around: Surroundings) -> None:
        """A deployment that is made as it should be has no finding, but for the owner's role on PostgreSQL. [rule F2]"""
        startup.create_deployment(around, Mode.LIVE)
        superuser = "The service's database role is a superuser: it may change the trail and everything else."
        expected = superuser if around.database.is_postgresql else ""
        assert found(around) == expected
        if not expected:
            safety.refuse_unsafe(around, None)
            with pytest.raises(UnsafeSetting, match="plain HTTP"):
                safety.refuse_unsafe(around, "every address")

    @pytest.mark.parametrize(
        ("spoil", "named"),
        [
            (lambda around: replace(around, limits=Limits()), "no back-up contact"),
            (lambda around: replace(around, sink=FileSink(Path("/nowhere/sink"))), "no audit sink"),
        ],
    )
    def test_unsafe_setting(
        self, around: Surroundings, spoil: Callable[[Surroundings], Surroundings], named: str
    ) -> None:
        """Each unsafe setting is named, and live mode refuses to start with it. [INT-03, G22]"""
        startup.create_deployment(around, Mode.LIVE)
        spoilt = spoil(around)
        assert named in found(spoilt)
        with pytest.raises(UnsafeSetting, match=named):
            safety.refuse_unsafe(spoilt, None)

    def test_plain_http_to_the_key_provider(self, around: Surroundings, tmp_path: Path) -> None:
        """A key provider that is spoken to in plain HTTP is named, and nothing is sent there to find out more. [F2]"""
        startup.create_deployment(around, Mode.LIVE)
        vault = VaultTransitProvider("http://vault.example.org:8200", TokenFile(tmp_path / "no-token"))
        assert "http://vault.example.org:8200 is spoken to in plain HTTP" in found(replace(around, provider=vault))

    def test_plain_http(self, around: Surroundings) -> None:
        """Plain HTTP that leaves the machine is named. [INT-03]"""
        startup.create_deployment(around, Mode.LIVE)
        assert "0.0.0.0" in found(around, "0.0.0.0")  # noqa: S104  # the very setting that is refused

    def test_no_deployment_and_no_schema(self, around: Surroundings, migrated_database_url: str) -> None:
        """What comes first is named first: the schema, then the deployment."""
        assert "no deployment" in found(around)
        migrate.downgrade(migrated_database_url, "base")
        assert "schema" in found(around)

    def test_key_that_does_not_open(self, around: Surroundings, tmp_path: Path) -> None:
        """A key file that others may read, or that is another's, is named. [rule F2]"""
        startup.create_deployment(around, Mode.LIVE)
        (tmp_path / "key").chmod(0o644)
        with pytest.raises(UnsafeSetting):
            safety.refuse_unsafe(around, None)
        (tmp_path / "key").chmod(0o600)
        KeyFileProvider.create(tmp_path / "other", os.urandom(32))
        other = replace(around, provider=KeyFileProvider(tmp_path / "other", SystemEntropy()))
        assert len(safety.findings(other, None)) > len(safety.findings(around, None))

    def test_files_of_sqlite(self, around: Surroundings, tmp_path: Path) -> None:
        """A database file that others may read, or that lies beside its checkpoints, is named. [INT-03, INT-04]"""
        if around.database.sqlite_file is None:
            return
        startup.create_deployment(around, Mode.LIVE)
        around.database.sqlite_file.chmod(0o644)
        assert "Others may read the database file" in found(around)
        beside = replace(around, sink=FileSink(tmp_path / "checkpoints.jsonl"))
        assert "beside the database" in found(beside)

    def test_database_that_is_away(self, around: Surroundings, tmp_path: Path) -> None:
        """A database that cannot be used is named. [INT-03]"""
        gone = replace(around, database=Database(f"sqlite:///{tmp_path / 'no' / 'such' / 'folder.db'}"))
        assert "cannot be used" in found(gone)

    def test_unsafe_server(self, around: Surroundings) -> None:
        """PostgreSQL that acknowledges what a crash loses is refused. [custody: transactions]"""
        if not around.database.is_postgresql:
            return
        startup.create_deployment(around, Mode.LIVE)
        with around.database.transaction() as tx:
            name = tx.execute(text("SELECT current_database()")).scalar_one()
            tx.execute(text(f'ALTER DATABASE "{name}" SET synchronous_commit = off'))
        around.database.close()
        assert "synchronous_commit=off" in found(around)


class TestContext:
    def test_system_clock_is_aware(self) -> None:
        """Times are aware and in UTC. [AUD-05]"""
        offset = system_clock().utcoffset()
        assert offset is not None
        assert not offset

    def test_token_digest(self) -> None:
        """A token is known by its digest only. [T19]"""
        token = "snose_" + "A" * 43
        assert token_digest_of(token) == token_digest_of(token)
        assert len(token_digest_of(token)) == 32

    def test_readiness_without_database(self, house: House) -> None:
        """A database that is away is not ready."""
        assert readiness.is_ready(house.deployment)
        assert not readiness.is_ready(None)
