"""An older database under a newer sink: found at start and by the keeper, shut but for code breaks, opened by a statement.

Threat test T25. The database is put back to an earlier state as a storage administrator would do it: the file is copied on SQLite,
the database is made anew from a copy on PostgreSQL. The sink of checkpoints is kept.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from psycopg import sql
from sqlalchemy import insert, update

from app.domain.encoding import canonical_json
from app.domain.merkle import leaf_hash
from app.domain.words import Action
from app.services.checkpoints import INTERVAL
from app.services.keeper import Keeper
from app.services.keys import rotate_signing_key
from app.storage import tables
from tests import harness, supply
from tests.databases import Postgres
from tests.harness import STUDY, House, expect
from tests.supply import S, Trial
from tests.witnesses import WitnessAtWork, new_folder

BREAK = {"reason_code": "serious_adverse_event"}
STATEMENT = {"statement": "The backup of 08:00 was restored after a disk failure; the EDC system was compared."}
VERIFIER = Path(__file__).parents[2] / "app" / "verifier.py"


class Snapshot:
    """A database that can be put back to where it stood."""

    def __init__(self, house: House, server: Postgres | None, folder: Path) -> None:
        self._house = house
        self._server = server
        url = house.settings.url()
        self._name = url.partition("@/")[2].partition("?")[0]
        self._file = Path(url.removeprefix("sqlite:///"))
        self._copy = folder / "older.sqlite"
        self._older: str | None = None

    def take(self) -> None:
        if self._server is None:
            with self._house.deployment.database.transaction():
                shutil.copyfile(self._file, self._copy)
        else:
            self._house.deployment.database.engine.dispose()
            self._older = self._server.create_database(self._name)

    def put_back(self) -> None:
        self._house.deployment.database.engine.dispose()
        if self._server is None:
            shutil.copyfile(self._copy, self._file)
            return
        assert self._older is not None
        copied = self._server.create_database(self._older)
        self._server.drop_database(self._name)
        rename = sql.SQL("ALTER DATABASE {} RENAME TO {}")
        self._server._execute(rename.format(sql.Identifier(copied), sql.Identifier(self._name)))

    def forget(self) -> None:
        if self._server is not None and self._older is not None:
            self._server.drop_database(self._older)


@pytest.fixture
def house(migrated_database_url: str, tmp_path: Path) -> Iterator[House]:
    """A deployment with a study in draft."""
    with harness.house(migrated_database_url, tmp_path) as opened:
        opened.register_study()
        yield opened


@pytest.fixture
def snapshot(request: pytest.FixtureRequest, house: House, database_kind: str, tmp_path: Path) -> Iterator[Snapshot]:
    """The database of the deployment, to be put back."""
    server = None if database_kind == "sqlite" else request.getfixturevalue("postgres")
    taken = Snapshot(house, server, tmp_path)
    yield taken
    taken.forget()


def add_site(house: House, code: str) -> int:
    """Return the status of an ordinary act in the study."""
    body = {"site_code": code, "name": f"Hospital {code}", "timezone": "Asia/Shanghai"}
    return house.study_admins[STUDY].post(f"{S}/sites", json=body).status_code


def is_ready(house: House) -> bool:
    return house.client.get("/readyz").status_code == 200


def segments(house: House, study: str | None = STUDY) -> list[str]:
    """Return the names of the segments of a log, without what they have in common."""
    return sorted({entry["log"].rpartition("/")[2] for entry in house.trail(study)})


def kinds(house: House) -> set[str]:
    return {suspicion.kind for suspicion in house.deployment.checkpoints.suspicions.values()}


def keep_round(house: House) -> None:
    Keeper(house.deployment).round()


def export(house: House, folder: Path) -> subprocess.CompletedProcess[str]:
    """Return what the offline verifier says to the study's export and the sink."""
    path = folder / "trail.jsonl"
    path.write_bytes(house.person("inspector").get(f"{S}/trail/export", step_up=True).content)
    command = [sys.executable, str(VERIFIER), "trail", str(path), "--sink", str(house.settings.checkpoint_file)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


class TestRollbackOfARunningTrial:
    @pytest.mark.parametrize("restarted", [True, False])
    def test_randomization_stays_shut_and_code_breaks_go_on(
        self,
        request: pytest.FixtureRequest,
        migrated_database_url: str,
        database_kind: str,
        tmp_path: Path,
        restarted: bool,
    ) -> None:
        """What was used since the backup is not used again; a treatment can be had; a statement opens again. [INT-07, T25]"""
        with harness.house(migrated_database_url, tmp_path) as house:
            trial = supply.trial(house)
            server = None if database_kind == "sqlite" else request.getfixturevalue("postgres")
            snapshot = Snapshot(house, server, tmp_path)
            trial.allocate("01-0001")
            house.study_admins[STUDY].elevated_token()
            snapshot.take()
            lost = trial.allocate("01-0002")
            keep_round(house)
            house.deployment.database.engine.dispose()
            if restarted:
                house.close()
                snapshot.put_back()
                house.open()
                assert kinds(house) == {"smaller"}
            else:
                snapshot.put_back()
            self.check_shut(trial)
            broken = trial.investigator.post(f"{S}/code-breaks", json={**BREAK, "subject_id": "01-0001"}, step_up=True)
            assert expect(broken, 201)["treatment"]
            entry = trial.entries(Action.BREAK_CODE)[-1]
            assert entry["log"].endswith(f"{STUDY}~2")
            first = next(one for one in house.trail(STUDY) if one["log"] == entry["log"])
            assert first["index"] == 0
            assert first["after"]["suspected_fork_of_segment"] == 1
            self.check_shut(trial)
            key = {"Idempotency-Key": "one"}
            answer = house.admin.post("/v1/recovery-statements", json=STATEMENT, step_up=True, headers=key)
            declared = expect(answer, 201)
            assert {log["kind"] for log in declared["logs"]} == {"smaller"}
            again = house.admin.post("/v1/recovery-statements", json=STATEMENT, step_up=True, headers=key)
            assert expect(again, 200) == declared
            # Who stated it is the inspector's to read; the text, like all free text, stands apart (rule E3).
            said = expect(trial.another("inspector").get("/v1/trail", action="recovery:declare"), 200)["items"]
            assert (said[0]["actor"], set(said[0]["after"])) == ("admin", {"logs"})
            assert STATEMENT["statement"].encode() not in b"".join(house.bodies())
            assert is_ready(house)
            assert trial.allocate("01-0003")["randomization_number"] == lost["randomization_number"]
            house.restart()
            assert is_ready(house)
            assert segments(house) == [STUDY, f"{STUDY}~2"]
            told = export(house, tmp_path)
            assert told.returncode == 1
            assert "truncated" in told.stdout
            assert f"{STUDY}~2: vouched" in told.stdout
            snapshot.forget()

    def check_shut(self, trial: Trial) -> None:
        refused = trial.post_allocation("01-0009")
        assert (refused.status_code, refused.json()["code"]) == (503, "rollback_suspected")
        assert not is_ready(trial.house)
        assert trial.entries(Action.ALLOCATE)[-1]["outcome"] == "refused"


class TestSuspicion:
    def test_by_the_keeper(self, house: House, snapshot: Snapshot) -> None:
        """A database that was put back under a running service is found at the next round. [INT-07]"""
        snapshot.take()
        assert add_site(house, "02") == 201
        keep_round(house)
        snapshot.put_back()
        assert is_ready(house)
        keep_round(house)
        assert kinds(house) == {"smaller"}
        assert not is_ready(house)
        assert add_site(house, "03") == 503

    def test_of_another_history(self, house: House, snapshot: Snapshot) -> None:
        """A log that has grown beyond the checkpoint by another way is a fork. [INT-07, E4]"""
        sink, aside = house.settings.checkpoint_file, house.settings.checkpoint_file.with_suffix(".aside")
        snapshot.take()
        add_site(house, "02")
        house.close()
        shutil.copyfile(sink, aside)
        snapshot.put_back()
        # The sink of another machine: here nobody knows yet.
        sink.unlink()
        house.open()
        for code in ("03", "04", "05"):
            assert add_site(house, code) == 201
        house.close()
        shutil.copyfile(aside, sink)
        house.open()
        assert "forked" in kinds(house)
        assert house.study_admins[STUDY].get(f"{S}/trail/checkpoint").status_code == 503

    def test_to_before_a_rotation_of_the_signing_key(self, house: House, snapshot: Snapshot) -> None:
        """Checkpoints that only a lost key has signed count too: else a rotation would hide a rollback to before it. [INT-07]"""
        keep_round(house)
        snapshot.take()
        rotate_signing_key(house.deployment)
        assert add_site(house, "02") == 201
        keep_round(house)
        assert is_ready(house)
        house.close()
        sink = house.settings.checkpoint_file
        # A checkpoint stands a second time where a witness has cosigned it.
        sink.write_text(sink.read_text(encoding="utf-8") * 2, encoding="utf-8")
        snapshot.put_back()
        house.open()
        assert kinds(house) == {"smaller"}
        assert add_site(house, "03") == 503
        expect(house.admin.post("/v1/recovery-statements", json=STATEMENT, step_up=True), 201)
        assert is_ready(house)

    def test_of_nothing_but_a_torn_line(self, house: House) -> None:
        """A crash that tore off the last line of the sink, and lines of other deployments, raise none. [AUD-02]"""
        keep_round(house)
        house.close()
        sink = house.settings.checkpoint_file
        last = json.loads(sink.read_text(encoding="utf-8").splitlines()[-1])
        foreign = {**last, "size": 10**6, "note": last["note"].replace("snose", "other")}
        lines = json.dumps(foreign, ensure_ascii=False) + "\n" + json.dumps(last, ensure_ascii=False)[:80]
        with sink.open("a", encoding="utf-8") as file:
            file.write(lines)
        house.open()
        assert is_ready(house)
        keep_round(house)
        assert is_ready(house)

    def test_of_nothing_needs_no_statement(self, house: House) -> None:
        """409 when there is nothing to recover from."""
        answer = house.admin.post("/v1/recovery-statements", json=STATEMENT, step_up=True)
        assert expect(answer, 409)["code"] == "illegal_transition"

    def test_is_not_lifted_by_rows_put_into_the_table(self, house: House, snapshot: Snapshot) -> None:
        """A statement counts only where it is proved to the sealed end of the log. [AUD-02]"""
        snapshot.take()
        add_site(house, "02")
        house.close()
        snapshot.put_back()
        house.open()
        assert kinds(house) == {"smaller"}
        logs = [{"origin": origin, "size": 10**6} for origin in house.deployment.checkpoints.suspicions]
        size = len(house.trail())
        for index in (size, size + 7):
            plant_statement(house, index, logs)
        house.deployment.checkpoints.compare(house.deployment.database)
        assert kinds(house) == {"smaller"}

    def test_of_a_study_that_is_gone(self, house: House, snapshot: Snapshot) -> None:
        """A study registered again after its registration was rolled back does not take the old log's name. [E4]"""
        house.grant(house.study_admins[STUDY], "study_admin", "SECOND")
        snapshot.take()
        body = {**harness.STUDY_BODY, "study_code": "SECOND"}
        expect(house.study_admins[STUDY].post("/v1/studies", json=body), 201)
        keep_round(house)
        house.close()
        snapshot.put_back()
        house.open()
        assert house.study_admins[STUDY].post("/v1/studies", json=body).status_code == 503
        expect(house.admin.post("/v1/recovery-statements", json=STATEMENT, step_up=True), 201)
        expect(house.study_admins[STUDY].post("/v1/studies", json=body), 201)
        assert segments(house, "SECOND") == ["SECOND~2"]
        house.restart()
        assert is_ready(house)

    def test_of_a_rollback_to_before_a_rollback(self, house: House, snapshot: Snapshot) -> None:
        """Segments that are lost too leave their names taken: the next one has a new name. [E4]"""
        snapshot.take()
        add_site(house, "02")
        for segment in (2, 3):
            house.close()
            snapshot.put_back()
            house.open()
            expect(house.admin.post("/v1/recovery-statements", json=STATEMENT, step_up=True), 201)
            assert add_site(house, f"1{segment}") == 201
            assert segments(house) == [STUDY, f"{STUDY}~{segment}"]
        house.restart()
        assert is_ready(house)


class TestHeadThatIsNotOurs:
    @pytest.mark.parametrize("junk", [False, True])
    def test_stops_everything_but_what_is_open(self, house: House, junk: bool) -> None:
        """A head without the service's own seal shuts the log until a statement; a new segment names it. [AUD-02]"""
        alter_head(house, junk=junk)
        assert add_site(house, "02") == 503
        entry = house.trail(STUDY)[-1]
        assert (entry["outcome"], entry["after"]["code"]) == ("integrity", "trail_forked")
        assert entry["log"].endswith("~2")
        assert entry["after"]["suspected_fork_of_segment"] == 1
        assert not is_ready(house)
        house.restart()
        assert kinds(house) == {"altered"}
        assert add_site(house, "02") == 503
        expect(house.admin.post("/v1/recovery-statements", json=STATEMENT, step_up=True), 201)
        assert add_site(house, "02") == 201
        assert segments(house) == [STUDY, f"{STUDY}~2"]
        house.restart()
        assert is_ready(house)

    def test_of_the_service_log(self, house: House) -> None:
        """Sign-ins and statements go on in a new segment; everything else of every study stops. [AUD-02]"""
        add_site(house, "02")
        alter_head(house, service=True)
        house.admin.forget_token()
        house.admin.token()
        assert segments(house, None) == ["service", "service~2"]
        assert add_site(house, "03") == 503
        expect(house.admin.post("/v1/recovery-statements", json=STATEMENT, step_up=True), 201)
        assert add_site(house, "03") == 201


def alter_head(house: House, *, junk: bool = False, service: bool = False) -> None:
    """Write to the head of a log as somebody with the database's password would."""
    log = tables.log
    with house.deployment.database.transaction() as tx:
        which = log.c.study_id == tables.SERVICE_LOG if service else log.c.study_id != tables.SERVICE_LOG
        values: dict[str, Any] = {"size": 99, "frontier": b"junk"} if junk else {"mac": bytes(32)}
        tx.execute(update(log).where(which).values(values))


def plant_statement(house: House, index: int, logs: list[dict[str, Any]]) -> None:
    """Put a statement into the service's log without the service."""
    body = {**house.trail()[-1], "index": index, "action": Action.DECLARE_RECOVERY, "after": {"logs": logs}}
    content = canonical_json(body)
    with house.deployment.database.transaction() as tx:
        tx.execute(
            insert(tables.trail_entry),
            {
                "study_id": tables.SERVICE_LOG,
                "segment": 1,
                "log_index": index,
                "at": house.clock(),
                "action": Action.DECLARE_RECOVERY,
                "actor": "admin",
                "subject_key": None,
                "site_code": None,
                "body": content,
                "leaf_hash": leaf_hash(content),
                "lookup_mac": bytes(32),
            },
        )


class TestRollbackWithItsSink:
    """Whoever restores the database restores the file beside it too; the witness has seen both. [INT-07, T25]"""

    @pytest.fixture
    def witness(self, house: House, tmp_path: Path) -> Iterator[WitnessAtWork]:
        vkey = new_folder(tmp_path / "witness")
        with WitnessAtWork(tmp_path / "witness", house.deployment.signing.vkeys()) as working:
            house.restart(witness_url=working.url, witness_key=vkey)
            yield working
            house.restart(witness_url=None, witness_key=None)

    @pytest.mark.parametrize("restarted", [True, False])
    def test_is_found_by_the_witness(
        self, house: House, snapshot: Snapshot, witness: WitnessAtWork, restarted: bool
    ) -> None:
        """Found at the start, or an interval later; shut until a statement, which the witness does not undo."""
        sink, aside = house.settings.checkpoint_file, house.settings.checkpoint_file.with_suffix(".aside")
        house.admin.elevated_token()
        keep_round(house)
        with still(house):
            snapshot.take()
        shutil.copyfile(sink, aside)
        assert add_site(house, "02") == 201
        send_round(house)
        if restarted:
            house.close()
            snapshot.put_back()
            shutil.copyfile(aside, sink)
            house.open()
        else:
            with still(house):
                snapshot.put_back()
                shutil.copyfile(aside, sink)
                # This process remembers by itself; what is shown here is what a witness tells.
                house.deployment.checkpoints._seen.clear()
            send_round(house)
        assert kinds(house) == {"smaller"}
        assert not is_ready(house)
        assert add_site(house, "03") == 503
        expect(house.admin.post("/v1/recovery-statements", json=STATEMENT, step_up=True), 201)
        assert add_site(house, "03") == 201
        assert segments(house) == [STUDY, f"{STUDY}~2"]
        send_round(house)
        assert kinds(house) == set()
        held = {one.origin: one.size for one in witness.state.list_of("")}
        assert any(origin.endswith("~2") for origin in held)
        assert is_ready(house)
        house.restart()
        assert is_ready(house)

    def test_goes_on_while_the_witness_is_away(self, house: House, snapshot: Snapshot, witness: WitnessAtWork) -> None:
        """An absent witness stops no start (rule D4); it is found as soon as it is back."""
        sink, aside = house.settings.checkpoint_file, house.settings.checkpoint_file.with_suffix(".aside")
        keep_round(house)
        with still(house):
            snapshot.take()
        shutil.copyfile(sink, aside)
        assert add_site(house, "02") == 201
        send_round(house)
        house.close()
        witness.stop()
        snapshot.put_back()
        shutil.copyfile(aside, sink)
        house.open()
        assert kinds(house) == set()
        assert add_site(house, "03") == 201
        witness.start()
        send_round(house)
        assert kinds(house) & {"smaller", "forked"}
        assert add_site(house, "04") == 503


@contextmanager
def still(house: House) -> Iterator[None]:
    """Keep the thread that speaks to the witness out of the database: one with a session in it is not copied."""
    assert house.deployment.witness is not None
    with house.deployment.witness.turn:
        yield


def send_round(house: House) -> None:
    """Have checkpoints written and sent, and the witness asked, an interval later."""
    house.clock.advance(INTERVAL)
    keeper = Keeper(house.deployment)
    keeper.round()
    keeper.witness_round()
