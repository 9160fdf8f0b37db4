"""Who has opened or looked at a subject's record, as one report: complete, provable, blind, and for those who may know."""

import json
from collections.abc import Iterator, Sequence
from typing import Any, Final

import pytest
from sqlalchemy import Connection, event, select, text, update

from app.domain.merkle import check_inclusion
from app.domain.words import Action, StudyCode
from app.errors import RevealUnavailable
from app.services import keys, unblinding
from app.storage import tables
from tests.doors import Fault, context, failing, lift_triggers
from tests.harness import STUDY, Caller, expect
from tests.running_study import TREATMENTS, RunningStudy, S, consignment, shared_running_study, tampering
from tests.security.test_code_break_faults import full_disk

BREAKS: Final = f"{S}/code-breaks"
MANY_ENTRIES: Final = """
    WITH five AS (SELECT 0 AS n UNION ALL SELECT 1 UNION ALL SELECT 2 UNION ALL SELECT 3 UNION ALL SELECT 4)
    INSERT INTO trail_entry (study_id, segment, log_index, at, action, actor, subject_key, body, leaf_hash, lookup_mac)
    SELECT study_id, 99, log_index * 625 + a.n * 125 + b.n * 25 + c.n * 5 + d.n, at, 'subject_kits:read', actor,
        'somebody ' || CAST(log_index AS TEXT), body, leaf_hash, lookup_mac
    FROM trail_entry, five a, five b, five c, five d WHERE segment = 1 AND log_index < 30
"""


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def running(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStudy]:
    yield from shared_running_study(request, tmp_path_factory)


def path_of(subject: str) -> str:
    return f"{S}/subjects/{subject}/disclosures"


def report(caller: Caller, subject: str, section: str | None = None, limit: int = 500) -> list[dict[str, Any]]:
    """Return all lines of a report, page by page."""
    query: dict[str, Any] = {"limit": limit} | ({} if section is None else {"section": section})
    page = expect(caller.get(path_of(subject), **query), 200)
    items: list[dict[str, Any]] = page["items"]
    while page["next_cursor"] is not None:
        page = expect(caller.get(path_of(subject), **query, cursor=page["next_cursor"]), 200)
        items += page["items"]
    return items


def told(lines: Sequence[dict[str, Any]]) -> list[tuple[str, str, str]]:
    return [(line["action"], line["outcome"], line["learnt"]) for line in lines]


class TestOneSubject:
    def test_every_access_stands_there_once(self, running: RunningStudy) -> None:
        """Each kind of access by each kind of reader, in order, and nothing about anybody else. [E1, AUD-10, BLD-20]"""
        allocated, other = running.new_subject(), running.new_subject()
        subject, kit = allocated["subject_id"], allocated["kit_code"]
        at, mine = f"{S}/subjects/{subject}", running.investigator
        pharmacist, officer = running.people["pharmacist"], running.person("safety_officer")
        expect(running.person("monitor").get(f"{at}/allocation"), 200)
        expect(pharmacist.get(f"{at}/kits"), 200)
        expect(pharmacist.post(f"{at}/kits", json={"visit": "V2"}), 201)
        scan = {"subject_id": subject, "scanned_code": kit}
        expect(pharmacist.post(f"{S}/kits/{kit}/dispensation", json=scan), 200)
        expect(pharmacist.post(f"{S}/kits/{kit}/return", json={"reason": "Brought back"}), 200)
        mark = {"category": "ineligible", "reason": "Found out later"}
        made = expect(mine.post(f"{at}/error-mark", json=mark, step_up=True), 201)
        body = {"subject_id": subject, "reason_code": "overdose"}
        broken = expect(mine.post(BREAKS, json=body, step_up=True), 201)
        expect(mine.post(f"{BREAKS}/{broken['code_break_id']}/narrative", json={"narrative": "A fit."}), 201)
        expect(running.person("investigator", "02").post(BREAKS, json=body, step_up=True), 404)
        expect(running.person("unblinded_pharmacist").get(f"{at}/preparation", step_up=True), 200)
        expect(running.person("monitor").get(f"{S}/trail", subject=subject), 200)
        expect(officer.get(f"{S}/trail/{made['receipt']['log_index']}/restricted", step_up=True), 200)
        expect(running.people["supply_manager"].get(f"{at}/allocation"), 403)
        report(running.person("monitor"), subject)

        lines = report(running.person("inspector"), subject, "subject")
        assert told(lines) == [
            ("allocation:create", "done", "record"),
            ("allocation:read", "done", "record"),
            ("subject_kits:read", "done", "record"),
            ("kit:assign", "done", "record"),
            ("kit:dispense", "done", "record"),
            ("kit:return", "done", "record"),
            ("allocation:mark_error", "done", "record"),
            ("code_break:create", "authorised", "treatment"),
            ("code_break:add_narrative", "done", "record"),
            ("code_break:create", "denied", "refused"),
            ("preparation:read", "done", "treatment"),
            ("trail:read", "done", "record"),
            ("trail:read_restricted", "done", "record"),
            ("disclosures:read", "done", "record"),
        ]
        who = {line["action"]: (line["actor"], line["role"]) for line in lines if line["outcome"] == "done"}
        assert who["allocation:read"] == (running.person("monitor").username, "monitor")
        assert who["kit:dispense"] == (pharmacist.username, "pharmacist")
        assert {line["section"] for line in lines} == {"subject"}
        assert told(report(running.person("inspector"), other["subject_id"], "subject")) == [
            ("allocation:create", "done", "record")
        ]

    def test_is_what_stands_in_the_log(self, running: RunningStudy) -> None:
        """Each line is an entry, and its proof leads to the signed end of the log. [E4, AUD-18]"""
        subject = running.new_subject()["subject_id"]
        inspector = running.person("inspector")
        expect(inspector.get(f"{S}/subjects/{subject}/allocation"), 200)
        expect(inspector.get(f"{S}/allocations"), 200)
        entries = running.house.trail(STUDY)
        lines = [line for line in report(inspector, subject) if line["proof"] is not None]
        assert {line["section"] for line in lines} >= {"subject", "opened", "lists"}
        for line in lines[:4]:
            entry = entries[line["index"]]
            names = ("log", "at", "actor", "role", "organisation", "client", "action", "outcome", "target", "index")
            assert {name: line[name] for name in names} == {name: entry[name] for name in names}
            path, _, query = line["proof"].partition("?")
            proof = expect(inspector.get(path, segment=query.removeprefix("segment=")), 200)
            assert proof["leaf_hash"] == line["leaf_hash"]
            steps = [bytes.fromhex(step) for step in proof["proof"]]
            check_inclusion(
                line["index"], proof["size"], bytes.fromhex(line["leaf_hash"]), steps, bytes.fromhex(proof["root"])
            )

    def test_answer_that_did_not_leave(self, running: RunningStudy) -> None:
        """What was withheld is not told as seen, neither in its own entry nor in the one before it. [D4]"""
        subject = running.new_subject()["subject_id"]
        body, token = {"subject_id": subject, "reason_code": "overdose"}, running.investigator.elevated_token()
        with full_disk(running.house):
            expect(running.house.send("POST", BREAKS, token=token, json=body), 503)
        expect(running.investigator.post(BREAKS, json=body, step_up=True), 201)
        lines = report(running.person("monitor"), subject, "subject")
        assert told(lines)[1:] == [
            ("code_break:create", "authorised", "nothing_shown"),
            ("code_break:create", "withheld", "nothing_shown"),
            ("code_break:create", "authorised", "treatment"),
        ]

    def test_in_pages(self, running: RunningStudy) -> None:
        """Pages of any size are one report, as it stood at the first page, entered once; a cursor is its reader's. [E1]"""
        subject = running.new_subject()["subject_id"]
        monitor, inspector = running.person("monitor"), running.person("inspector")
        for _ in range(3):
            expect(inspector.get(f"{S}/subjects/{subject}/allocation"), 200)
        count = len(running.house.trail(STUDY))
        whole = report(inspector, subject)
        paged = report(inspector, subject, limit=3)
        assert [line for line in paged if line["index"] < count or line["log"] != whole[0]["log"]] == whole
        assert len(running.house.trail(STUDY)) == count + 2
        first = expect(inspector.get(path_of(subject), limit=2), 200)
        expect(inspector.get(f"{S}/subjects/{subject}/allocation"), 200)
        rest = expect(inspector.get(path_of(subject), limit=500, cursor=first["next_cursor"]), 200)
        assert len([line for line in rest["items"] if line["action"] == "allocation:read"]) == 2
        cursor = first["next_cursor"]
        expect(monitor.get(path_of(subject), cursor=cursor), 422)
        expect(inspector.get(path_of(subject), cursor=cursor, section="subject"), 422)

    def test_of_nobody(self, running: RunningStudy) -> None:
        """A subject that was never allocated is not there; what is no subject, and no section, is named. [G2]"""
        inspector = running.person("inspector")
        expect(inspector.get(path_of("01-7777")), 404)
        expect(inspector.get(path_of("a!b")), 422)
        expect(inspector.get(path_of("01-7777"), section="arms"), 422)
        assert running.house.trail(STUDY)[-1]["outcome"] == "refused"

    def test_entry_hidden_from_its_seekers(self, running: RunningStudy) -> None:
        """An entry that was put under another subject is not shown there: 503, and entered. [E4]"""
        subject, other = running.new_subject()["subject_id"], running.new_subject()["subject_id"]
        with tampering(running, "trail_entry"):
            self.put(running, subject, other)
            problem = expect(running.person("inspector").get(path_of(other)), 503)
            self.put(running, subject, subject)
        assert problem["code"] == "integrity_failure"
        assert running.house.trail(STUDY)[-1]["outcome"] == "integrity"

    def put(self, running: RunningStudy, subject: str, under: str) -> None:
        """Put the entry of a subject's allocation under another subject, as the owner of the database can."""
        entry = tables.trail_entry.c
        where = (entry.action == "allocation:create") & entry.subject_key.is_not(None)
        with running.house.deployment.database.transaction() as tx:
            for row in tx.execute(
                select(entry.study_id, entry.segment, entry.log_index, entry.body).where(where)
            ).all():
                if json.loads(row.body)["target"]["subject_id"] == subject:
                    place = (entry.study_id == row.study_id) & (entry.segment == row.segment)
                    place &= entry.log_index == row.log_index
                    tx.execute(update(tables.trail_entry).where(place).values(subject_key=under))


class TestManySubjects:
    def test_who_opened_many_at_once(self, running: RunningStudy) -> None:
        """The packing list of the subject's own kits is there, another's is not; so are list, approval and report. [F3, BLD-20]"""
        subject = running.new_subject()["subject_id"]
        consignment(running, "C-OTHER", 3, received=False)
        manager, second = running.people["supply_manager"], running.people["statistician"]
        for code in ("C1", "C-OTHER"):
            requests = f"{S}/consignments/{code}/packing-list-requests"
            asked = expect(manager.post(requests, step_up=True), 201)
            assert second.post(f"{requests}/{asked['request_id']}/release", step_up=True).status_code == 200
        schedule = f"{S}/schedules/{running.schedule_id}"
        expect(running.people["list_approver"].get(f"{schedule}/quality-report"), 200)
        made = next(one for one in running.house.trail(STUDY) if one["action"] == "schedule:generate")
        expect(second.get(f"{S}/trail/{made['index']}/restricted", step_up=True), 200)

        lines = report(running.person("inspector"), subject, "opened")
        opened = told(lines)
        for expected in (
            ("schedule:generate", "done", "nothing_shown"),
            ("schedule:approve", "done", "nothing_shown"),
            ("consignment:create", "done", "nothing_shown"),
            ("packing_list:release", "done", "treatment"),
            ("quality_report:read", "done", "list_design"),
            ("trail:read_restricted", "done", "list_design"),
        ):
            assert opened.count(expected) == 1, expected
        [released] = [line for line in lines if line["action"] == "packing_list:release"]
        assert (released["actor"], released["target"]["consignment_code"]) == (second.username, "C1")

    def test_kit_of_nobody(self, running: RunningStudy) -> None:
        """A code that was broken by a kit found is in the report of no subject. [D2, EUB-07]"""
        subject, code = running.new_subject()["subject_id"], running.free_kit()
        running.kit_codes.remove(code)
        body = {"kit_code": code, "reason_code": "accidental_exposure"}
        expect(running.investigator.post(BREAKS, json=body, step_up=True), 201)
        assert "code_break:create" not in {line["action"] for line in report(running.person("monitor"), subject)}

    def test_lists_in_which_it_may_stand(self, running: RunningStudy) -> None:
        """Who read lists is there too, in a section of its own. [E1]"""
        subject = running.new_subject()["subject_id"]
        inspector = running.person("inspector")
        before = len(report(inspector, subject, "lists"))
        expect(running.person("monitor").get(f"{S}/allocations"), 200)
        expect(running.people["pharmacist"].get(f"{S}/sites/01/worklist"), 200)
        lines = report(inspector, subject, "lists")[before:]
        assert told(lines) == [("allocation:list", "done", "record"), ("worklist:read", "done", "record")]

    def test_use_of_keys(self, running: RunningStudy) -> None:
        """Renewed keys are told; those of the whole deployment to who reads the service's log, the others hear of them. [AUD-14]"""
        subject = running.new_subject()["subject_id"]
        keys.rotate_study_key(running.house.deployment, StudyCode(STUDY))
        keys.rotate_signing_key(running.house.deployment)
        inspector, monitor = running.person("inspector"), running.person("monitor")
        of_inspector, of_monitor = (report(who, subject, "keys") for who in (inspector, monitor))
        assert told(of_monitor) == [("key:rotate", "done", "nothing_shown")] * len(of_monitor)
        assert of_inspector[: len(of_monitor)] == of_monitor
        assert {line["actor"] for line in of_inspector} == {"snose"}
        [of_service] = of_inspector[len(of_monitor) :]
        assert (of_service["log"], of_service["proof"]) == (running.house.deployment.origin(None), None)
        assert expect(inspector.get(path_of(subject)), 200)["not_shown"] == []
        [said] = expect(monitor.get(path_of(subject)), 200)["not_shown"]
        assert "service's own log" in said


class TestBlindness:
    def test_safety_unblinding(self, running: RunningStudy) -> None:
        """Only the safety officer is told whose it was; all others read the same lines about everybody. [E3, D7, UNB-02, 03]"""
        subject, other = running.new_subject()["subject_id"], running.new_subject()["subject_id"]
        officer, monitor = running.person("safety_officer"), running.person("monitor")
        body = {"subject_id": subject, "reason": "SUSAR"}
        expect(officer.post(f"{S}/safety-unblindings", json=body, step_up=True), 201)
        expect(officer.post(f"{S}/safety-unblindings", json=body | {"subject_id": "01-9999"}, step_up=True), 404)
        of_this, of_other = (report(officer, one, "opened") for one in (subject, other))
        mine = ("safety_unblinding:create", "authorised", "treatment")
        refused = ("safety_unblinding:create", "denied", "refused")
        assert [line for line in told(of_this) if line[0] == mine[0]] == [mine, refused]
        assert [line for line in told(of_other) if line[0] == mine[0]] == [refused]
        for reader in ("monitor", "inspector", "study_admin"):
            caller = running.person(reader)
            about_this, about_other = (report(caller, one, "opened") for one in (subject, other))
            assert about_other == about_this
            assert ("safety_unblinding:create", "authorised", "subject_not_told") in told(about_this)
            assert ("disclosures:read", "done", "subject_not_told") in told(about_this)
        assert "disclosures:read" in [line["action"] for line in report(monitor, other, "subject")]

    def test_safety_unblinding_that_nobody_can_tell_of(self, running: RunningStudy) -> None:
        """A COMMIT that was lost left no register: the line stands there as withheld, and as nobody's. [C6, D4]"""
        subject, officer = running.new_subject()["subject_id"], running.person("safety_officer")
        before = len(report(officer, subject, "opened"))
        with failing(running.house, Fault.LOST) as deployment:
            ctx = context(running.house, Action.UNBLIND_FOR_SAFETY, officer, elevated=True, deployment=deployment)
            with pytest.raises(RevealUnavailable):
                unblinding.unblind_for_safety(ctx, StudyCode(STUDY), subject, "SUSAR")
        lines = report(officer, subject, "opened")[before:]
        assert ("safety_unblinding:create", "unknown", "nothing_shown") in told(lines)

    def test_reading_of_the_safety_officer(self, running: RunningStudy) -> None:
        """Which report the officer asked for is no hint to who reads the public trail; the officer can open it. [E3, UNB-03]"""
        subject = running.new_subject()["subject_id"]
        officer = running.person("safety_officer")
        expect(officer.get(path_of(subject)), 200)
        entry = running.house.trail(STUDY)[-1]
        assert (entry["action"], entry["outcome"], entry["target"]) == ("disclosures:read", "done", None)
        assert subject not in json.dumps(entry)
        assert running.restricted(entry["index"])["part"] == {"subject_id": subject}
        expect(officer.get(path_of("01-8888")), 404)
        assert "01-8888" not in json.dumps(running.house.trail(STUDY)[-1])

    def test_holds_no_treatment(self, running: RunningStudy) -> None:
        """Not even of a subject whose code was broken, and no cache keeps it. [B1, BLD-13, E3]"""
        subject = running.new_subject()["subject_id"]
        body = {"subject_id": subject, "reason_code": "overdose"}
        expect(running.investigator.post(BREAKS, json=body, step_up=True), 201)
        for role in ("inspector", "monitor", "study_admin", "safety_officer"):
            response = running.person(role).get(path_of(subject), limit=500)
            assert expect(response, 200)["items"]
            assert not any(word in response.text for pair in TREATMENTS.items() for word in pair)
            assert response.headers["Cache-Control"] == "no-store"

    @pytest.mark.parametrize(
        "role", ["investigator", "coordinator", "pharmacist", "statistician", "list_approver", "supply_manager"]
    )
    def test_without_right(self, running: RunningStudy, role: str) -> None:
        """Nobody at a site, and nobody who must know nothing of subjects: refused, and entered. [B10, E3]"""
        subject = running.new_subject()["subject_id"]
        expect(running.person(role).get(path_of(subject)), 403)
        entry = running.house.trail(STUDY)[-1]
        assert (entry["action"], entry["outcome"], entry["target"]) == ("disclosures:read", "denied", None)


class TestInALongLog:
    def test_reads_no_more_than_it_shows(self, running: RunningStudy) -> None:
        """Among many entries those of one subject, and those of many, are found by their indexes. [goals]"""
        subject = running.new_subject()["subject_id"]
        database = running.house.deployment.database
        with database.transaction() as tx:
            lift_triggers(tx, "trail_entry")
            tx.execute(text(MANY_ENTRIES))
        statements: list[tuple[str, Any]] = []

        def listen(
            _connection: Connection,
            _cursor: object,
            statement: str,
            parameters: object,
            _context: object,
            _many: object,
        ) -> None:
            if "FROM trail_entry" in statement and "ORDER BY" in statement:
                statements.append((statement, parameters))

        with database.transaction() as tx:
            tx.execute(text("ANALYZE trail_entry" if database.is_postgresql else "SELECT 1"))
        event.listen(database.engine, "before_cursor_execute", listen)
        try:
            expect(running.person("inspector").get(path_of(subject), limit=5), 200)
            expect(running.person("inspector").get(path_of(subject), limit=5, section="keys"), 200)
        finally:
            event.remove(database.engine, "before_cursor_execute", listen)
        assert len(statements) >= 2
        plan_of = "EXPLAIN " if database.is_postgresql else "EXPLAIN QUERY PLAN "
        for statement, parameters in statements:
            with database.engine.connect() as connection:
                plan = connection.exec_driver_sql(plan_of + statement, parameters).all()
            said = "\n".join(str(row) for row in plan)
            assert "ix_trail_entry_subject" in said or "ix_trail_entry_of_nobody" in said, said
