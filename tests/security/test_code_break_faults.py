"""What may stand before an emergency code break, and what must not: every fault is really made, nothing is pretended.

Either the record of a reveal is durable and everything that is sealed agrees, or nothing is revealed and the back-up contact is
named (rule D4); and no status of the study, no limit and nobody's absence blocks it (rule D5).
"""

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from time import sleep
from typing import Any, Final

import psycopg
import pytest
from psycopg import sql
from sqlalchemy import make_url, text
from structlog.testing import capture_logs

from app.domain.merkle import leaf_hash
from app.domain.words import Action, KitCode, ReasonCode, SiteCode, StudyCode
from app.errors import RevealUnavailable
from app.services import unblinding
from app.services.aside import put_aside_broken
from app.services.checkpoints import LogState
from app.services.keeper import Keeper
from app.services.unblinding import CodeBreakRequest
from app.storage import kits, trail
from app.storage.database import Database
from tests import harness
from tests.databases import Postgres
from tests.doors import Fault, context, failing
from tests.harness import STUDY, STUDY_BODY, House, Json, expect
from tests.running_study import (
    TREATMENTS,
    RunningStudy,
    S,
    execute,
    running_study,
    shared_running_study,
    tampering,
    value,
)

BREAKS: Final = f"{S}/code-breaks"
STUDY_CONTACT: Final = STUDY_BODY["backup_contact"]
SETTINGS_CONTACT: Final = "Back-up desk, +86 10 5550 0199"


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def running(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStudy]:
    yield from shared_running_study(request, tmp_path_factory)


def about(subject: str) -> dict[str, str]:
    return {"subject_id": subject, "reason_code": "overdose"}


def send(running: RunningStudy, token: str, body: Json, path: str = BREAKS) -> Any:  # noqa: ANN401  # a response
    return running.house.send("POST", path, token=token, json=body)


def assert_unavailable(response: Any, contact: str = STUDY_CONTACT) -> None:  # noqa: ANN401  # a response
    """Assert that nothing was revealed and the back-up contact was named."""
    problem = expect(response, 503)
    assert problem["code"] == "reveal_unavailable"
    assert problem["backup_contact"] == contact
    assert not any(word in response.text for pair in TREATMENTS.items() for word in pair)
    assert "Audit-Checkpoint" not in response.headers


def outcomes(running: RunningStudy, since: int) -> list[str]:
    return [entry["outcome"] for entry in running.house.trail(STUDY)[since:]]


def how_many_wait(database: Database) -> int:
    """Return how many transactions of a PostgreSQL wait for a lock."""
    with database.transaction() as tx:
        return int(tx.execute(text("SELECT count(DISTINCT pid) FROM pg_locks WHERE NOT granted")).scalar_one())


def wait_for_the_log(database: Database, many: int) -> None:
    """Return once so many transactions of a PostgreSQL wait for the end of a log."""
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%FROM log%'"
    found = 0
    while found < many:
        sleep(0.01)
        with database.transaction() as tx:
            found = int(tx.execute(text(waiting)).scalar_one())


def size(running: RunningStudy) -> int:
    return len(running.house.trail(STUDY))


# -- the record cannot be made durable


@contextmanager
def full_disk(house: House) -> Iterator[None]:
    """The sink's disk is full: every write fails with ENOSPC, as the kernel's own full device has it."""
    sink = house.settings.checkpoint_file
    kept = sink.with_suffix(".kept")
    sink.rename(kept)
    sink.symlink_to("/dev/full")
    try:
        yield
    finally:
        sink.unlink()
        kept.rename(sink)


class TestSinkFull:
    def test_break_by_subject(self, running: RunningStudy) -> None:
        """Committed and not under a checkpoint: withheld, flagged as broken, and the proof is spent. [EUB-11, D3, D4]"""
        subject = running.new_subject()["subject_id"]
        token = running.investigator.elevated_token()
        since = size(running)
        with full_disk(running.house):
            assert_unavailable(send(running, token, about(subject)))
        assert outcomes(running, since) == ["authorised", "withheld"]
        first, second = running.house.trail(STUDY)[since:]
        assert second["after"] == first["after"]
        assert send(running, token, about(subject)).status_code == 401
        items = expect(running.investigator.get(BREAKS, limit=500), 200)["items"]
        item = next(item for item in items if item["subject_id"] == subject)
        assert item["status"] == "withheld"
        read = expect(running.investigator.get(f"{S}/subjects/{subject}/allocation"), 200)
        assert read["flags"]["unblinded_at"] == item["broken_at"]
        expect(running.investigator.post(BREAKS, json=about(subject), step_up=True), 201)

    def test_break_of_a_kit_of_nobody(self, running: RunningStudy) -> None:
        """A kit found is put aside whether its answer leaves or not. [EUB-07, EUB-11]"""
        code = running.free_kit()
        running.kit_codes.remove(code)
        token = running.investigator.elevated_token()
        with full_disk(running.house):
            assert_unavailable(send(running, token, {"kit_code": code, "reason_code": "overdose"}))
        assert value(running, "SELECT status FROM kit WHERE kit_code = :code", code=code) == "quarantined"

    def test_safety_unblinding(self, running: RunningStudy) -> None:
        """The safety officer's register says it too. [UNB-02, D4]"""
        subject = running.new_subject()["subject_id"]
        officer = running.person("safety_officer")
        token = officer.elevated_token()
        path = f"{S}/safety-unblindings"
        with full_disk(running.house):
            assert_unavailable(send(running, token, {"subject_id": subject, "reason": "SUSAR"}, path))
        items = expect(officer.get(path, limit=500), 200)["items"]
        assert (items[-1]["subject_id"], items[-1]["status"]) == (subject, "withheld")
        assert subject not in json.dumps(running.house.trail(STUDY)[-3:])


@contextmanager
def failing_commit(running: RunningStudy, kind: str) -> Iterator[None]:
    """COMMIT fails once a code break was written: a constraint that is looked at only then, or a backend that dies of it."""
    if kind == "sqlite":
        made = (
            "CREATE TABLE fault (study_id CHAR(32) REFERENCES study (study_id) DEFERRABLE INITIALLY DEFERRED)",
            "CREATE TRIGGER fault_at_commit AFTER INSERT ON code_break BEGIN INSERT INTO fault VALUES ('nobody'); END",
        )
        undone = ("DROP TRIGGER fault_at_commit", "DROP TABLE fault")
    else:
        what = "RAISE EXCEPTION 'fault'" if kind == "constraint" else "PERFORM pg_terminate_backend(pg_backend_pid())"
        made = (
            f"CREATE FUNCTION fault() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {what}; RETURN NULL; END $$",
            """CREATE CONSTRAINT TRIGGER fault_at_commit AFTER INSERT ON code_break
               DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION fault()""",
        )
        undone = ("DROP TRIGGER fault_at_commit ON code_break", "DROP FUNCTION fault")
    execute(running, *made)
    try:
        yield
    finally:
        execute(running, *undone)


class TestDatabaseFails:
    @pytest.mark.parametrize("kind", ["constraint", "killed"])
    def test_at_commit(self, running: RunningStudy, kind: str) -> None:
        """COMMIT fails, or the backend is killed in it: nothing revealed, nothing kept, the proof still good. [EUB-11, C6]"""
        if not running.house.deployment.database.is_postgresql:
            kind = "sqlite"
        subject = running.new_subject()["subject_id"]
        token = running.investigator.elevated_token()
        since = size(running)
        with failing_commit(running, kind):
            assert_unavailable(send(running, token, about(subject)))
        assert "authorised" not in outcomes(running, since)
        items = expect(running.investigator.get(BREAKS, limit=500), 200)["items"]
        assert subject not in [item["subject_id"] for item in items]
        expect(send(running, token, about(subject)), 201)

    def test_down(self, running: RunningStudy, request: pytest.FixtureRequest) -> None:
        """The database is gone: the contact of the settings, known without it. [D4, EUB-05]"""
        subject = running.new_subject()["subject_id"]
        token = running.investigator.elevated_token()
        database = running.house.deployment.database
        if database.is_postgresql:
            with nobody_connects(
                request.getfixturevalue("postgres"), str(make_url(running.house.settings.url()).database)
            ):
                assert_unavailable(send(running, token, about(subject)), SETTINGS_CONTACT)
        else:
            file = database.sqlite_file
            assert file is not None
            moved = file.with_suffix(".moved")
            database.engine.dispose()
            file.rename(moved)
            file.mkdir()
            try:
                assert_unavailable(send(running, token, about(subject)), SETTINGS_CONTACT)
            finally:
                file.rmdir()
                moved.rename(file)
        expect(send(running, token, about(subject)), 201)


class TestUnheardCommit:
    """COMMIT was sent and its answer was lost: nothing is shown, so nothing may stand there as shown."""

    def broken(self, running: RunningStudy, fault: Fault, subject: str) -> None:
        with failing(running.house, fault) as deployment:
            ctx = context(running.house, Action.BREAK_CODE, running.investigator, elevated=True, deployment=deployment)
            wanted = CodeBreakRequest(subject, None, ReasonCode.OVERDOSE, None)
            with pytest.raises(RevealUnavailable):
                unblinding.break_code(ctx, StudyCode(STUDY), wanted)

    def test_that_happened(self, running: RunningStudy) -> None:
        """Committed, or committed and not replicated: register and trail say that the answer was withheld. [D4, C6, EUB-11]"""
        subject = running.new_subject()["subject_id"]
        since = size(running)
        self.broken(running, Fault.UNHEARD, subject)
        assert outcomes(running, since) == ["authorised", "unknown"]
        first, second = running.house.trail(STUDY)[since:]
        assert second["after"] == {**first["after"], "code": "outcome_unknown"}
        items = expect(running.investigator.get(BREAKS, limit=500), 200)["items"]
        assert [item["status"] for item in items if item["subject_id"] == subject] == ["withheld"]

    def test_that_did_not_happen(self, running: RunningStudy) -> None:
        """There is no break to mark: the entry tells it, the register stays as it was. [D4, C6]"""
        subject = running.new_subject()["subject_id"]
        since = size(running)
        self.broken(running, Fault.LOST, subject)
        assert outcomes(running, since) == ["unknown"]
        items = expect(running.investigator.get(BREAKS, limit=500), 200)["items"]
        assert subject not in [item["subject_id"] for item in items]

    def test_of_a_safety_unblinding(self, running: RunningStudy) -> None:
        """The safety officer's register says it too, and nobody else's log tells whose it was. [UNB-02, D4, E3]"""
        subject = running.new_subject()["subject_id"]
        officer = running.person("safety_officer")
        since = size(running)
        with failing(running.house, Fault.UNHEARD) as deployment:
            ctx = context(running.house, Action.UNBLIND_FOR_SAFETY, officer, elevated=True, deployment=deployment)
            with pytest.raises(RevealUnavailable):
                unblinding.unblind_for_safety(ctx, StudyCode(STUDY), subject, "SUSAR")
        assert subject not in json.dumps(running.house.trail(STUDY)[since:])
        items = expect(officer.get(f"{S}/safety-unblindings", limit=500), 200)["items"]
        assert (items[-1]["subject_id"], items[-1]["status"]) == (subject, "withheld")


@contextmanager
def nobody_connects(server: Postgres, database: str) -> Iterator[None]:
    name = sql.Identifier(database)
    with psycopg.connect(server.url_for("postgres"), autocommit=True) as connection:
        connection.execute(sql.SQL("ALTER DATABASE {} WITH ALLOW_CONNECTIONS false").format(name))
        connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", (database,))
        try:
            yield
        finally:
            connection.execute(sql.SQL("ALTER DATABASE {} WITH ALLOW_CONNECTIONS true").format(name))


# -- what is stored does not agree


def swapped(running: RunningStudy, table: str, column: str, key: str, one: object, other: object) -> Callable[[], None]:
    """Exchange a column of two rows; returns what exchanges them again."""

    def exchange() -> None:
        query = f"SELECT {column} FROM {table} WHERE {key} = :key"  # noqa: S608  # names of our own
        first, second = (value(running, query, key=row) for row in (one, other))
        change = f"UPDATE {table} SET {column} = :value WHERE {key} = :key"  # noqa: S608  # names of our own
        # In between nobody has it, because some of these columns are unique.
        for row, new in ((one, "between"), (other, first), (one, second)):
            execute(running, change, value=new, key=row)

    exchange()
    return exchange


ROW_OF: Final = {
    "allocation": ("allocation_id", "SELECT allocation_id FROM allocation WHERE subject_key = :subject"),
    "kit_assignment": ("assignment_id", "SELECT assignment_id FROM kit_assignment WHERE subject_key = :subject"),
    "kit": ("kit_id", "SELECT kit_id FROM kit_assignment WHERE subject_key = :subject"),
    "slot": ("randomization_number", "SELECT randomization_number FROM allocation WHERE subject_key = :subject"),
}
"""What names a subject's row of each table."""


class TestDisagreement:
    """Two subjects of different arms; something of theirs is exchanged in the database, or a bit of it is flipped."""

    @pytest.fixture
    def pair(self, running: RunningStudy) -> tuple[Json, Json]:
        """Two subjects with different arms, and what was answered when their code was broken."""
        found: dict[str, Json] = {}
        while len(found) < 2:
            allocated = running.new_subject()
            broken = expect(running.investigator.post(BREAKS, json=about(allocated["subject_id"]), step_up=True), 201)
            found[broken["arm_code"]] = broken
        one, other = found.values()
        return one, other

    def refused(self, running: RunningStudy, subject: str, undo: Callable[[], None]) -> None:
        """Assert that the break is refused and entered as a matter of integrity, and works again when all is undone."""
        token = running.investigator.elevated_token()
        since = size(running)
        assert_unavailable(send(running, token, about(subject)))
        assert outcomes(running, since) == ["integrity"]
        undo()
        expect(send(running, token, about(subject)), 201)

    @pytest.mark.parametrize(
        ("table", "column"),
        [
            ("allocation", "sealed_binding"),
            ("allocation", "subject_key"),
            ("allocation", "randomization_number"),
            ("kit_assignment", "sealed_binding"),
            ("kit_assignment", "subject_key"),
            ("kit", "sealed"),
            ("kit", "kit_code"),
            ("slot", "sealed"),
        ],
    )
    def test_exchanged(self, running: RunningStudy, pair: tuple[Json, Json], table: str, column: str) -> None:
        """Two subjects' rows exchanged: neither gets the other's treatment. [D4, CUS-10, T9]"""
        key, query = ROW_OF[table]
        subjects = [answer["subject_id"] for answer in pair]
        one, other = (value(running, query, subject=subject) for subject in subjects)
        with tampering(running, table):
            undo = swapped(running, table, column, key, one, other)
            self.refused(running, subjects[0], undo)

    @pytest.mark.parametrize("what", ["allocation", "slot", "kit", "kit_assignment"])
    def test_flipped(self, running: RunningStudy, what: str) -> None:
        """One character of a sealed value changed. [CUS-10, T9]"""
        subject = running.new_subject()["subject_id"]
        column = "sealed" if what in {"slot", "kit"} else "sealed_binding"
        key, query = ROW_OF[what]
        row = value(running, query, subject=subject)
        kept = value(running, f"SELECT {column} FROM {what} WHERE {key} = :row", row=row)  # noqa: S608  # names of our own
        flipped = kept[:-9] + ("A" if kept[-9] != "A" else "B") + kept[-8:]
        change = f"UPDATE {what} SET {column} = :value WHERE {key} = :row"  # noqa: S608  # names of our own
        with tampering(running, what):
            execute(running, change, value=flipped, row=row)
            self.refused(running, subject, lambda: execute(running, change, value=kept, row=row))

    def test_words_of_the_treatment(self, running: RunningStudy) -> None:
        """The texts of two arms exchanged in the definition: a physician would give the wrong antidote. [EUB-10, D4]"""
        subject = running.new_subject()["subject_id"]
        one, other = TREATMENTS
        with tampering(running, "arm"):
            undo = swapped(running, "arm", "treatment", "arm_code", one, other)
            token = running.investigator.elevated_token()
            since = size(running)
            free = running.free_kit()
            assert_unavailable(send(running, token, {"kit_code": free, "reason_code": "overdose"}))
            assert outcomes(running, since) == ["integrity"]
            self.refused(running, subject, undo)
        assert value(running, "SELECT status FROM kit WHERE kit_code = :code", code=free) == "in_stock"

    def test_signature(self, running: RunningStudy) -> None:
        """The approver's signature is gone: nothing proves the slot any more. [A8, SEQ-11]"""
        subject = running.new_subject()["subject_id"]
        kept = value(running, "SELECT commitment_note FROM schedule")
        with tampering(running, "schedule"):
            execute(running, "UPDATE schedule SET commitment_note = 'none'")
            self.refused(
                running, subject, lambda: execute(running, "UPDATE schedule SET commitment_note = :kept", kept=kept)
            )

    def test_kit_taken_away(self, running: RunningStudy) -> None:
        """The row that gave the subject its kit now names a visit, so no kit came with the allocation. [C3, D4]"""
        subject = running.new_subject()["subject_id"]
        change = "UPDATE kit_assignment SET visit = :visit WHERE subject_key = :subject"
        with tampering(running, "kit_assignment"):
            execute(running, change, visit="V9", subject=subject)
            self.refused(running, subject, lambda: execute(running, change, visit=None, subject=subject))


# -- what must not stand in the way


class TestNothingBlocks:
    def test_study_suspended(self, running: RunningStudy) -> None:
        """Suspended stops allocations only. [EUB-04, D5]"""
        subject = running.new_subject()["subject_id"]
        running.set_status("suspended")
        expect(running.investigator.post(BREAKS, json=about(subject), step_up=True), 201)
        running.set_status("open")

    def test_site_inactive(self, running: RunningStudy) -> None:
        """A site that was closed still has its subjects. [EUB-04, D5]"""
        subject = running.new_subject()["subject_id"]
        execute(running, "UPDATE site SET is_active = :active WHERE site_code = '01'", active=False)
        expect(running.investigator.post(BREAKS, json=about(subject), step_up=True), 201)
        execute(running, "UPDATE site SET is_active = :active WHERE site_code = '01'", active=True)

    def test_stock_held_by_somebody(self, running: RunningStudy) -> None:
        """The treatment goes out while another transaction keeps the site's stock; the kit is put aside later. [D5, EUB-07]"""
        database = running.house.deployment.database
        if not database.is_postgresql:
            pytest.skip("SQLite has one writer: nobody holds the stock beside a code break")
        code = running.free_kit()
        running.kit_codes.remove(code)
        status = "SELECT status FROM kit WHERE kit_code = :code"
        study_id = value(running, "SELECT study_id FROM study WHERE study_code = :code", code=STUDY)
        token = running.investigator.elevated_token()
        since = size(running)
        with database.transaction() as holder:
            kits.lock_stock(holder, study_id, SiteCode("01"))
            answer = expect(send(running, token, {"kit_code": code, "reason_code": "overdose"}), 201)
        assert answer["treatment"] == TREATMENTS[answer["arm_code"]]
        entry = running.house.trail(STUDY)[since]
        assert (entry["before"], entry["after"]["kit_status"]) == ({"kit_status": "in_stock"}, "in_stock")
        assert entry["after"]["put_aside"] == "later"
        assert (size(running), value(running, status, code=code)) == (since + 1, "in_stock")
        keeper = Keeper(running.house.deployment)
        keeper.round()
        assert value(running, status, code=code) == "quarantined"
        [aside] = running.house.trail(STUDY)[since + 1 :]
        assert (aside["action"], aside["actor"], aside["target"]) == ("kit:put_aside", "snose", {"kit_code": code})
        assert aside["after"] == {"kit_status": "quarantined", "alert": "supply_manager"}
        keeper.round()
        assert size(running) == since + 2

    def test_kit_held_by_somebody(self, running: RunningStudy) -> None:
        """The same where the stock is free and only the kit is not. [D5, EUB-07]"""
        database = running.house.deployment.database
        if not database.is_postgresql:
            pytest.skip("SQLite has one writer: nobody holds a kit beside a code break")
        code = running.free_kit()
        running.kit_codes.remove(code)
        study_id = value(running, "SELECT study_id FROM study WHERE study_code = :code", code=STUDY)
        token = running.investigator.elevated_token()
        with database.transaction() as holder:
            kits.lock_kit(holder, study_id, KitCode(code))
            expect(send(running, token, {"kit_code": code, "reason_code": "overdose"}), 201)
        Keeper(running.house.deployment).round()
        assert value(running, "SELECT status FROM kit WHERE kit_code = :code", code=code) == "quarantined"

    def test_kit_that_is_being_assigned(self, running: RunningStudy) -> None:
        """The break knows no subject yet, and the record of who is given the kit is flagged all the same. [D5, D6, EUB-14]"""
        database = running.house.deployment.database
        if not database.is_postgresql:
            pytest.skip("SQLite has one writer: nobody assigns a kit beside a code break")
        in_stock = "SELECT kit_code FROM kit WHERE status = 'in_stock'"
        token, since = running.investigator.elevated_token(), size(running)
        with ThreadPoolExecutor(2) as pool:
            with database.transaction() as holder:
                # Who allocates has chosen its kit and waits for the log; who breaks the code has looked whose the kit is.
                holder.execute(text("SELECT size FROM log ORDER BY origin FOR UPDATE"))
                allocating = pool.submit(running.new_subject)
                wait_for_the_log(database, 1)
                with database.transaction() as tx:
                    free = set(tx.execute(text(f"{in_stock} FOR UPDATE SKIP LOCKED")).scalars())
                    [code] = set(tx.execute(text(in_stock)).scalars()) - free
                breaking = pool.submit(send, running, token, {"kit_code": code, "reason_code": "overdose"})
                wait_for_the_log(database, 2)
            allocated, answer = allocating.result(), expect(breaking.result(), 201)
        subject = allocated["subject_id"]
        assert (allocated["kit_code"], answer["subject_id"]) == (code, None)
        read = expect(running.investigator.get(f"{S}/subjects/{subject}/allocation"), 200)
        assert read["flags"]["unblinded_at"] == answer["revealed_at"]
        items = expect(running.investigator.get(BREAKS, limit=500), 200)["items"]
        [item] = [item for item in items if item["code_break_id"] == answer["code_break_id"]]
        assert (item["subject_id"], item["kit_code"]) == (subject, code)
        narrative = f"{BREAKS}/{answer['code_break_id']}/narrative"
        expect(running.investigator.post(narrative, json={"narrative": "A child."}), 201)
        about_it = f"{S}/subjects/{subject}/disclosures"
        lines = expect(running.person("monitor").get(about_it, limit=500), 200)["items"]
        told = {(line["section"], line["action"], line["learnt"]) for line in lines if line["index"] >= since}
        assert ("opened", "code_break:create", "treatment") in told
        assert ("subject", "code_break:add_narrative", "record") in told
        again = expect(running.investigator.post(BREAKS, json=about(subject), step_up=True), 201)
        read = expect(running.investigator.get(f"{S}/subjects/{subject}/allocation"), 200)
        assert answer["revealed_at"] == read["flags"]["unblinded_at"] < again["revealed_at"]

    def test_put_aside_by_two_at_once(self, running: RunningStudy) -> None:
        """Two workers find the same kit: one puts it aside, the other sees that it is done. [D5, EUB-07]"""
        database = running.house.deployment.database
        if not database.is_postgresql:
            pytest.skip("SQLite has one writer: nobody holds the stock beside a code break")
        study_id = value(running, "SELECT study_id FROM study WHERE study_code = :code", code=STUDY)
        with ThreadPoolExecutor(2) as pool, database.transaction() as holder:
            kits.lock_stock(holder, study_id, SiteCode("01"))
            code = self.broken_kit(running)
            since = size(running)
            workers = [pool.submit(put_aside_broken, running.house.deployment) for _ in range(2)]
            # Within the second for which they wait; where the machine is too slow for that, the keeper comes again.
            while sum(worker.done() for worker in workers) == 0 and how_many_wait(database) < 2:
                sleep(0.01)
        for worker in workers:
            worker.result()
        Keeper(running.house.deployment).round()
        assert [one["target"] for one in running.house.trail(STUDY)[since:] if one["action"] == "kit:put_aside"] == [
            {"kit_code": code}
        ]

    def test_put_aside_without_database(self, running: RunningStudy) -> None:
        """The database goes once the break is durable: its answer goes out all the same, and the keeper does the rest. [D5]"""
        database = running.house.deployment.database
        if not database.is_postgresql:
            pytest.skip("SQLite has one writer: nobody holds the stock beside a code break")
        study_id = value(running, "SELECT study_id FROM study WHERE study_code = :code", code=STUDY)
        code = running.free_kit()
        running.kit_codes.remove(code)
        wanted = CodeBreakRequest(None, KitCode(code), ReasonCode.OVERDOSE, None)
        # Once with the stock held, once without it, and then what follows the break.
        with failing(running.house, Fault.NONE, Fault.NONE, Fault.DOWN) as deployment, capture_logs() as logs:
            ctx = context(running.house, Action.BREAK_CODE, running.investigator, elevated=True, deployment=deployment)
            with database.transaction() as holder:
                kits.lock_stock(holder, study_id, SiteCode("01"))
                shown = unblinding.break_code(ctx, StudyCode(STUDY), wanted)
        assert shown.treatment in TREATMENTS.values()
        left = [log["kind"] for log in logs if log["event"] == "kit left to be put aside"]
        assert left == ["DatabaseUnavailable"]
        Keeper(running.house.deployment).round()
        assert value(running, "SELECT status FROM kit WHERE kit_code = :code", code=code) == "quarantined"

    def broken_kit(self, running: RunningStudy) -> str:
        """Break the code of a kit of nobody's whose stock is held by somebody; return the kit's code."""
        code = running.free_kit()
        running.kit_codes.remove(code)
        token = running.investigator.elevated_token()
        expect(send(running, token, {"kit_code": code, "reason_code": "overdose"}), 201)
        return code

    def test_two_at_once_with_one_proof(self, running: RunningStudy) -> None:
        """One proof, two breaks at the same moment: one treatment. [D3]"""
        subjects = [running.new_subject()["subject_id"] for _ in range(2)]
        for _ in range(3):
            token = running.investigator.elevated_token()
            with ThreadPoolExecutor(2) as pool:
                answers = list(pool.map(lambda subject: send(running, token, about(subject)), subjects))  # noqa: B023  # the pool ends with the round
            assert sorted(answer.status_code for answer in answers) == [201, 401]
            refused = next(answer for answer in answers if answer.status_code == 401)
            assert "insufficient_user_authentication" in refused.headers["WWW-Authenticate"]

    def test_the_end(self, migrated_database_url: str, tmp_path: Path) -> None:
        """List exhausted, password expired, everybody switched off, study closed, rollback suspected: it works. [EUB-02, 04, D1]"""
        with harness.house(migrated_database_url, tmp_path, password_max_age_days=90) as house:
            running = running_study(house, subjects=4, length=4)
            body = {"subject_id": "01-0005", "site_code": "01", "strata": {}}
            confirmed = {"consent_confirmed": True, "eligibility_confirmed": True}
            problem = expect(running.investigator.post(f"{S}/allocations", json=body | confirmed), 409)
            assert problem["code"] == "list_unavailable"
            expect(running.investigator.post(BREAKS, json=about("01-0001"), step_up=True), 201)
            running.set_status("closed")
            people = expect(house.admin.get("/v1/people", limit=500), 200)["items"]
            # The last administrator cannot be switched off; nothing that it could do stands in the way.
            for person in people:
                if person["username"] not in {running.investigator.username, house.admin.username}:
                    expect(house.admin.post(f"/v1/people/{person['username']}/deactivation"), 200)
            house.clock.advance(days=91)
            expired = running.investigator.get(BREAKS)
            assert expect(expired, 403)["code"] == "password_change_required"
            answer = expect(running.investigator.post(BREAKS, json=about("01-0002"), step_up=True), 201)
            assert answer["treatment"] == TREATMENTS[answer["arm_code"]]
            assert house.trail(STUDY)[-1]["after"]["password_expired"] is True
            suspect_rollback(house)
            answer = expect(running.investigator.post(BREAKS, json=about("01-0003"), step_up=True), 201)
            assert answer["treatment"] == TREATMENTS[answer["arm_code"]]
            assert house.trail(STUDY)[-1]["log"].endswith("~2")


def suspect_rollback(house: House) -> None:
    """Leave a checkpoint in the sink of entries that the database does not have any more, and look at both."""
    keeper = house.deployment.checkpoints
    with house.deployment.database.transaction() as tx:
        head = next(head for head in trail.list_heads(tx) if head.origin.endswith(STUDY))
    frontier, _ = head.frontier.append(leaf_hash(b"an entry that was restored away"))
    keeper.publish(LogState(head.origin, frontier), house.clock())
    keeper.compare(house.deployment.database)
    assert keeper.suspicions
