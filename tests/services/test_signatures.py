"""Electronic signatures: two components, a meaning, bound to the record (21 CFR 11.50, 11.70, 11.100, 11.200)."""

import base64
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

import pytest
from sqlalchemy import insert, select
from structlog.testing import capture_logs

from app.domain.signatures import Meaning, content_hash
from app.domain.words import Action, StudyCode
from app.policy import FRESH, SIGNING
from app.services import audited as door
from app.services.audited import Act
from app.services.context import RequestContext, token_digest_of
from app.storage import tables
from tests.harness import STUDY, Caller, House, Json, expect, signed_as
from tests.running_study import RunningStudy, S, execute, import_of, running_study, tampering, value
from tests.security.test_code_break_faults import full_disk

SPECIFICATION: Final = {"block_sizes": [2], "length_per_stratum": 2, "fill": "exact", "reason": "another"}
LIST_CSV: Final = "stratum_code,position,arm_code,block,block_size\r\n,0,HUCMSC,0,2\r\n,1,CONTROL,0,2\r\n"
REASON: Final = {"reason": "as it happened"}
MARK: Final = {"category": "ineligible", **REASON}
BREAK: Final = {"subject_id": "01-0001", "reason_code": "overdose"}
THIRD: Final = f"{S}/third-party-unblindings"
INTERIMS: Final = f"{S}/interim-unblinding-requests"
ELSEWHERE: Final = {Action.ENTER_OPENING, Action.SIGN_ACCESS_REVIEW}
"""Signed, and looked at where there are envelopes, and reviews (`test_envelopes.py`, `test_access_reviews.py`)."""


def rows(study: RunningStudy) -> list[Any]:
    """Return every signature as it is kept, in the order of time."""
    kept = tables.signature.c
    with study.house.deployment.database.transaction() as tx:
        return list(tx.execute(select(tables.signature).order_by(kept.signed_at, kept.signature_id)))


def break_of(study: RunningStudy, by: Caller | None = None) -> Json:
    """Return the newest line of the register."""
    return expect((by or study.investigator).get(f"{S}/code-breaks", limit=500), 200)["items"][-1]


def play(study: RunningStudy) -> None:
    """Do every act that is signed, but the one with an envelope; the study is set up already, and closed in the end."""
    people, schedules = study.people, f"{S}/schedules"
    statistician, supply = people["statistician"], people["supply_manager"]
    officer, inspector = study.person("safety_officer"), study.person("inspector")
    segment = {**SPECIFICATION, "reason": None}
    expect(statistician.post(f"{schedules}/{study.schedule_id}/segments", json=segment, step_up=True), 201)
    imported = import_of(LIST_CSV, SPECIFICATION)
    expect(statistician.post(f"{schedules}/imports", json=imported, step_up=True), 201)
    subject = f"{S}/subjects/01-0001"
    expect(study.investigator.post(f"{subject}/error-mark", json=MARK, step_up=True), 201)
    expect(study.investigator.post(f"{S}/code-breaks", json=BREAK, step_up=True), 201)
    body = {"subject_id": "01-0001", "reason": "SUSAR"}
    expect(officer.post(f"{S}/safety-unblindings", json=body, step_up=True), 201)
    open_elsewhere(study)
    requests = f"{S}/consignments/C1/packing-list-requests"
    asked = expect(supply.post(requests, step_up=True), 201)["request_id"]
    assert people["list_approver"].post(f"{requests}/{asked}/release", step_up=True).status_code == 200
    for act, status in (("release", "in_stock"), ("destruction", "destroyed")):
        kit = f"{S}/kits/{study.free_kit()}"
        expect(people["pharmacist"].post(f"{kit}/quarantine", json=REASON), 200)
        answer = expect(supply.post(f"{kit}/{act}", json=REASON, step_up=True), 200)
        assert (answer["status"], answer["is_signed"]) == (status, True)
    recall = expect(supply.post(f"{S}/recalls", json={"lot": "L-0", **REASON}, step_up=True), 201)
    assert recall["is_signed"]
    assert people["list_approver"].post(f"{S}/recalls/{recall['recall_id']}/release", step_up=True).status_code == 200
    assert inspector.get(f"{S}/trail/export", step_up=True).status_code == 200
    study.set_status("closed")
    final = f"{S}/final-unblinding-requests"
    locked = {"database_lock_statement": "locked"}
    asked = expect(statistician.post(final, json=locked, step_up=True), 201)
    assert asked["is_signed"]
    assert people["list_approver"].post(f"{final}/{asked['request_id']}/release", step_up=True).status_code == 200


def open_elsewhere(study: RunningStudy) -> tuple[Json, Json]:
    """Show the first subject to a physician, and everybody to a board; return what was answered to who asked for it."""
    people, physician = study.people, study.person("treating_physician")
    asked = expect(study.investigator.post(THIRD, json={**BREAK, "physician": physician.username}, step_up=True), 201)
    opening = f"{THIRD}/{asked['third_party_unblinding_id']}/opening"
    expect(physician.post(opening, step_up=True), 201)
    key = base64.b64encode(bytes([9, *bytes(31)])).decode()
    body = {"data_cut_at": study.house.clock.now.isoformat(), "recipient_key": key}
    study.house.clock.advance(minutes=5)
    wanted = {**body, "board": "The board", "meaning": "responsibility"}
    interim = expect(people["statistician"].post(INTERIMS, json=wanted, step_up=True), 201)
    release = f"{INTERIMS}/{interim['request_id']}/release"
    approved = people["list_approver"].post(release, json={**body, "meaning": "approval"}, step_up=True)
    assert approved.status_code == 200
    return asked, interim


class TestSigning:
    def test_every_act_that_is_signed(self, house: House) -> None:
        """Each leaves one signature, of its caller, its meaning and both components; its entry tells who and what.

        [SIG-01, SIG-02, SIG-03, SIG-06, SIG-08, SIG-09, SIG-11]
        """
        study = running_study(house, subjects=1)
        play(study)
        told = [entry for entry in house.trail(STUDY) if "printed_name" in (entry["after"] or {})]
        assert {entry["action"] for entry in told} == SIGNING.keys() - ELSEWHERE
        kept = rows(study)
        assert len(kept) == len(told)
        for entry, row in zip(told, kept, strict=True):
            assert entry["after"]["meaning"] == row.meaning == SIGNING[Action(entry["action"])]
            assert entry["after"]["printed_name"] == row.printed_name == f"Person {entry['actor']}"
            assert (entry["actor"], entry["role"]) == (row.username, row.role)
            assert timedelta(0) <= row.signed_at - row.proved_at <= FRESH
        sessions = tables.session.c
        with house.deployment.database.transaction() as tx:
            proofs = {
                row.session_id: row.proof_at for row in tx.execute(select(sessions.session_id, sessions.proof_at))
            }
        assert all(proofs[row.session_id] == row.proved_at for row in kept)
        assert len({row.signature_id for row in kept}) == len(kept)

    def test_nobody_signs_without_the_second_proof(self, house: House) -> None:
        """A bearer token alone is no signature: nothing is signed, the try is entered and told at once.

        [SIG-01, SIG-02, SIG-10, SIG-12]
        """
        study = running_study(house, subjects=1)
        machine, before = house.machine("edc_client"), len(rows(study))
        tries: list[tuple[Caller, str, Json, str]] = [
            (study.people["statistician"], "schedules", {**SPECIFICATION}, "schedule:generate"),
            (study.investigator, "code-breaks", BREAK, "code_break:create"),
            (study.investigator, "subjects/01-0001/error-mark", MARK, "allocation:mark_error"),
            (study.study_admin, "status", {"status": "closed", **REASON}, "study:set_status"),
            (machine, "code-breaks", BREAK, "code_break:create"),
        ]
        for caller, path, body, action in tries:
            with capture_logs() as logs:
                answer = caller.post(f"{S}/{path}", json=body)
            refused = (403, "forbidden") if caller is machine else (401, "step_up_required")
            assert (answer.status_code, answer.json()["code"]) == refused
            entry = house.trail(STUDY)[-1]
            assert (entry["action"], entry["outcome"]) == (action, "denied")
            alarms = [line for line in logs if line["event"] == "signing refused"]
            # Who gave no proof yet is asked for one, which is how a client begins (RFC 9470).
            assert len(alarms) == (caller is machine)
            for alarm in alarms:
                assert (alarm["action"], alarm["code"], alarm["log_level"]) == (action, refused[1], "warning")
                assert alarm["request_id"] == entry["request_id"]
        for failure in ("spent", "stale"):
            token = study.investigator.elevated_token()
            if failure == "spent":
                expect(house.send("POST", f"{S}/code-breaks", token=token, json=BREAK), 201)
                before += 1
            else:
                house.clock.advance(FRESH + timedelta(seconds=1))
            with capture_logs() as logs:
                expect(house.send("POST", f"{S}/code-breaks", token=token, json=BREAK), 401)
            assert [line["code"] for line in logs if line["event"] == "signing refused"] == ["step_up_required"]
        with capture_logs() as logs:
            foreign = {"Snose-Passkey": "e30"}
            headers = {**foreign, "Authorization": f"Bearer {study.investigator.token()}"}
            expect(study.investigator.post(f"{S}/code-breaks", json=BREAK, headers=headers), 401)
        assert [line["code"] for line in logs if line["event"] == "signing refused"] == ["step_up_required"]
        with capture_logs() as logs:
            wrong = house.send("POST", "/v1/sessions/step-up", token=study.investigator.token(), json={"otp": "000000"})
        assert wrong.status_code == 401
        assert [line["code"] for line in logs if line["event"] == "signing refused"] == [wrong.json()["code"]]
        with capture_logs() as logs:
            # A mistake that is none of signing is no alarm.
            expect(study.investigator.post(f"{S}/code-breaks", json={**BREAK, "subject_id": "x"}, step_up=True), 404)
        assert "signing refused" not in [line["event"] for line in logs]
        assert len(rows(study)) == before

    def test_what_is_rolled_back_is_not_signed(self, house: House) -> None:
        """A signature is written with its act or not at all; a replayed answer signs nothing anew. [SIG-04, C4]"""
        study = running_study(house, subjects=1)
        headers = {"Idempotency-Key": "one"}
        path = f"{S}/subjects/01-0001/error-mark"
        first = expect(study.investigator.post(path, json=MARK, headers=headers, step_up=True), 201)
        signed = len(rows(study))
        assert expect(study.investigator.post(path, json=MARK, headers=headers, step_up=True), 200) == first
        assert [one["meaning"] for one in first["signatures"]] == ["authorship"]
        body = {"status": "open", **REASON}
        expect(study.study_admin.post(f"{S}/status", json=body, step_up=True), 409)
        assert len(rows(study)) == signed
        token = study.investigator.elevated_token()
        with full_disk(house):
            expect(house.send("POST", f"{S}/code-breaks", token=token, json=BREAK), 503)
        line = break_of(study)
        assert (line["status"], line["is_signed"]) == ("withheld", True)
        assert len(rows(study)) == signed + 1

    def test_an_act_that_should_sign_and_does_not(self, house: House, monkeypatch: pytest.MonkeyPatch) -> None:
        """The door lets none through, whatever a use case forgets; the build without the check does. [SIG-09]"""
        study = running_study(house, subjects=0)
        digest = token_digest_of(study.study_admin.elevated_token())

        def forgotten() -> str:
            ctx = RequestContext(house.deployment, Action.SET_STUDY_STATUS, digest, "request", "unknown")
            return door.audited(ctx, Action.SET_STUDY_STATUS, lambda _: "suspended", study=StudyCode(STUDY))

        with pytest.raises(RuntimeError, match="nothing was signed"):
            forgotten()
        monkeypatch.setattr("app.policy.SIGNING", {})
        assert forgotten() == "suspended"


@dataclass(frozen=True)
class Forgery:
    """What an owner of the database does to a signature of another record, or to one of this."""

    name: str
    change: Callable[[dict[str, Any], Json], dict[str, Any]]


FORGERIES: Final = [
    Forgery("of another record", lambda _, line: {"record_id": line["code_break_id"]}),
    Forgery(
        "of another record, with the content of this one",
        lambda row, line: {"record_id": line["code_break_id"], "content_hash": row["own_hash"]},
    ),
    Forgery("of another person", lambda _, line: {"record_id": line["code_break_id"], "printed_name": "Dr Who"}),
    Forgery("of another meaning", lambda _, line: {"record_id": line["code_break_id"], "meaning": "review"}),
]


class TestShowing:
    def test_wherever_the_record_is_shown(self, house: House) -> None:
        """Printed name, username, role, time with its offset, and meaning; on lists, sites, studies, breaks and marks.

        [SIG-03, EUB-08]
        """
        study = running_study(house, subjects=1)
        monitor = study.person("monitor")
        before = expect(monitor.get(f"{S}/subjects/01-0001/allocation"), 200)["flags"]["error_mark"]
        expect(study.investigator.post(f"{S}/subjects/01-0001/error-mark", json=MARK, step_up=True), 201)
        expect(study.investigator.post(f"{S}/code-breaks", json=BREAK, step_up=True), 201)
        sites = expect(monitor.get(f"{S}/sites"), 200)["items"]
        mark = expect(monitor.get(f"{S}/subjects/01-0001/allocation"), 200)["flags"]["error_mark"]
        shown: list[tuple[Json, list[tuple[Caller, str]]]] = [
            (break_of(study, monitor), [(study.investigator, "responsibility")]),
            (mark, [(study.investigator, "authorship")]),
            (sites[0], [(study.study_admin, "responsibility")]),
            (expect(monitor.get(S), 200), [(study.study_admin, "responsibility")]),
            (
                expect(monitor.get(f"{S}/schedules"), 200)["items"][0],
                [
                    (study.people["statistician"], "authorship"),
                    (study.people["list_approver"], "approval"),
                    (study.study_admin, "responsibility"),
                ],
            ),
        ]
        assert before is None
        assert (sites[1]["is_signed"], sites[1]["signatures"]) == (False, [])
        for record, signed in shown:
            assert record["is_signed"]
            assert len(record["signatures"]) == len(signed)
            for one, (caller, meaning) in zip(record["signatures"], signed, strict=True):
                assert one.keys() == {"printed_name", "username", "role", "signed_at", "meaning", "stands"}
                assert signed_as(caller, meaning).items() <= one.items()
                assert one["username"] == caller.username
                assert one["signed_at"].endswith("+00:00")
                assert one["stands"]

    def test_of_a_safety_unblinding(self, house: House) -> None:
        """Its signature is shown in its own register alone, and what is signed of it tells no subject. [UNB-02, SIG-03, E3]"""
        study = running_study(house, subjects=1)
        officer = study.person("safety_officer")
        body = {"subject_id": "01-0001", "reason": "SUSAR"}
        expect(officer.post(f"{S}/safety-unblindings", json=body, step_up=True), 201)
        (line,) = expect(officer.get(f"{S}/safety-unblindings"), 200)["items"]
        assert line["is_signed"]
        assert signed_as(officer, "responsibility").items() <= line["signatures"][0].items()
        content = {
            "safety_unblinding_id": line["safety_unblinding_id"],
            "unblinded_at": rows(study)[-1].signed_at.isoformat(timespec="microseconds"),
            "unblinded_by": officer.username,
        }
        assert rows(study)[-1].content_hash == content_hash(content)
        for reader in ("monitor", "inspector", "study_admin", "investigator"):
            caller = study.person(reader) if reader != "study_admin" else study.study_admin
            for path in ("code-breaks", "allocations", "sites", "schedules"):
                assert officer.username not in caller.get(f"{S}/{path}").text
        expect(study.person("monitor").get(f"{S}/safety-unblindings"), 403)

    def test_of_the_doors_where_somebody_else_looks(self, house: House) -> None:
        """Who names a physician, each look of the physician's, and both people of an interim sign; the register shows it.

        One that is another person's, or for another key than was signed, is unsigned.

        [SIG-03, SIG-05, SIG-09, UNB-06]
        """
        study = running_study(house, subjects=1)
        asked, interim = open_elsewhere(study)
        inspector, physician = study.person("inspector"), study.person("treating_physician")
        for answer, signer in ((asked, study.investigator), (interim, study.people["statistician"])):
            assert answer["is_signed"]
            assert signed_as(signer, "responsibility").items() <= answer["signatures"][0].items()
        (line,) = expect(inspector.get(THIRD), 200)["items"]
        (look,) = line["openings"]
        for record, signer in ((line, study.investigator), (look, physician)):
            assert record["is_signed"]
            (one,) = record["signatures"]
            assert signed_as(signer, "responsibility").items() <= one.items()
        (line,) = expect(inspector.get(INTERIMS), 200)["items"]
        assert line["is_signed"]
        signers = (("statistician", "responsibility"), ("list_approver", "approval"))
        for one, (role, meaning) in zip(line["signatures"], signers, strict=True):
            assert signed_as(study.people[role], meaning).items() <= one.items()
        forged = (
            (
                "subject_flag",
                "UPDATE subject_flag SET flagged_by = 'somebody' WHERE kind = 'third_party_unblinding'",
                THIRD,
            ),
            ("dual_control_request", "UPDATE dual_control_request SET recipient_key = 'another'", INTERIMS),
        )
        for table, statement, path in forged:
            with tampering(study, table):
                execute(study, statement)
                (line,) = expect(inspector.get(path), 200)["items"]
                assert not line["is_signed"]
                assert not any(one["stands"] for one in line["signatures"])

    def test_a_record_that_changed_is_unsigned(self, house: House) -> None:
        """It shows as unsigned, the old signature is kept, and what it said is signed again when it says so again. [SIG-05]"""
        study = running_study(house, subjects=1)
        expect(study.investigator.post(f"{S}/code-breaks", json=BREAK, step_up=True), 201)
        signed = break_of(study)
        update = "UPDATE code_break SET reason_code = :reason"
        with tampering(study, "code_break"):
            execute(study, update, reason="other_safety")
            changed = break_of(study)
            execute(study, update, reason="overdose")
        assert (signed["is_signed"], changed["is_signed"]) == (True, False)
        assert changed["signatures"] == [{**one, "stands": False} for one in signed["signatures"]]
        assert break_of(study) == signed
        # The study itself: each status is signed, and an earlier one stands no more.
        study.set_status("suspended")
        found = expect(study.study_admin.get(S), 200)
        assert found["is_signed"]
        assert [one["stands"] for one in found["signatures"]] == [False, True]
        execute(study, "UPDATE site SET name = 'Another clinic' WHERE site_code = '01'")
        site = expect(study.study_admin.get(f"{S}/sites"), 200)["items"][0]
        assert (site["is_signed"], [one["stands"] for one in site["signatures"]]) == (False, [False])

    def test_a_name_is_printed_as_it_was(self, house: House) -> None:
        """Who is called otherwise later has signed under the name of then, and still as the same person. [SIG-03, SIG-06]"""
        study = running_study(house, subjects=0)
        before = expect(study.study_admin.get(S), 200)
        execute(
            study, "UPDATE principal SET display_name = 'Dr Married' WHERE name = :who", who=study.study_admin.username
        )
        assert expect(study.study_admin.get(S), 200) == before
        study.set_status("suspended")
        names = [one["printed_name"] for one in expect(study.study_admin.get(S), 200)["signatures"]]
        assert names == [before["signatures"][0]["printed_name"], "Dr Married"]

    def test_a_signature_fits_no_other_record(self, house: House, monkeypatch: pytest.MonkeyPatch) -> None:
        """Copied to another record, in another name or with another meaning by an owner of the database, it stands nowhere.

        The build that does not look at the seal takes the second of them for genuine. [SIG-04, SIG-06, SIG-07]
        """
        study = running_study(house, subjects=2)
        for subject in ("01-0001", "01-0002"):
            expect(
                study.investigator.post(f"{S}/code-breaks", json={**BREAK, "subject_id": subject}, step_up=True), 201
            )
        *_, other, own = rows(study)
        line = break_of(study)
        study_id = value(study, "SELECT study_id FROM study")
        for forgery in FORGERIES:
            row = dict(other._mapping) | {"signature_id": house.deployment.new_id()}
            row |= forgery.change({"own_hash": own.content_hash}, line)
            assert row["study_id"] in {study_id, other.study_id}
            with house.deployment.database.transaction() as tx:
                tx.execute(insert(tables.signature), row)
        shown = break_of(study)["signatures"]
        assert [one["stands"] for one in sorted(shown, key=lambda one: not one["stands"])] == [True] + [False] * 4
        with monkeypatch.context() as patch:
            patch.setattr(type(house.deployment.ring), "check_mac", lambda *_: None)
            assert sum(one["stands"] for one in break_of(study)["signatures"]) == 2

    def test_what_a_signature_is_made_over(self, house: House) -> None:
        """No two signatures of a deployment have one seal, although two acts may sign the same record. [SIG-04]"""
        study = running_study(house, subjects=0)
        kept = rows(study)
        assert len({row.mac for row in kept}) == len(kept) >= 5
        assert len({row.content_hash for row in kept if row.record_kind == "schedule"}) == 1


def test_the_meaning_of_an_act_that_is_not_signed(house: House) -> None:
    """There is none: the fixed list has no word for it. [SIG-08]"""
    study = running_study(house, subjects=0)

    def work(act: Act) -> None:
        with pytest.raises(KeyError):
            _ = act.meaning

    digest = token_digest_of(study.study_admin.token())
    ctx = RequestContext(house.deployment, Action.READ_STUDY, digest, "request", "unknown")
    door.audited(ctx, Action.READ_STUDY, work, study=StudyCode(STUDY))
    assert [action for action, meaning in SIGNING.items() if meaning is Meaning.REVIEW] == [Action.SIGN_ACCESS_REVIEW]
