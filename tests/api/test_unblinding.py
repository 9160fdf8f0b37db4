"""Code breaks, the safety door and the final unblinding, over HTTP."""

import csv
import io
import json
import subprocess
import sys
import zipfile
from base64 import b64encode
from collections.abc import Iterator
from datetime import datetime, timedelta
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from app.domain.codes import check_character
from app.domain.words import StudyCode
from app.sealing.recipients import decrypt_with
from app.services.unblinding import final_package_info
from tests.harness import STUDY, Caller, House, Json, expect, signed_as
from tests.running_study import TREATMENTS, RunningStudy, S, consignment, running_study, shared_running_study

UNKNOWN_KIT: Final = "22222222" + check_character("22222222")
BREAKS: Final = f"{S}/code-breaks"
SAFETY: Final = f"{S}/safety-unblindings"
FINAL: Final = f"{S}/final-unblinding-requests"
CHALLENGE: Final = (
    'Bearer error="insufficient_user_authentication", '
    'error_description="a fresh one-time code is needed", acr_values="mfa", max_age="300"'
)


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def running(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStudy]:
    yield from shared_running_study(request, tmp_path_factory)


def about(subject: str, reason: str = "overdose", **more: Json) -> dict[str, Json]:
    return {"subject_id": subject, "reason_code": reason, **more}


def break_code(caller: Caller, body: Json) -> dict[str, Any]:
    answer: dict[str, Any] = expect(caller.post(BREAKS, json=body, step_up=True), 201)
    return answer


def register_of(caller: Caller, code_break_id: str) -> dict[str, Any] | None:
    items = expect(caller.get(BREAKS, limit=500), 200)["items"]
    return next((item for item in items if item["code_break_id"] == code_break_id), None)


def after(moment: str, days: int) -> str:
    return (datetime.fromisoformat(moment) + timedelta(days)).isoformat()


def names_an_arm(text: str) -> bool:
    return any(word in text for pair in TREATMENTS.items() for word in pair)


class TestBreakCode:
    def test_own_subject(self, running: RunningStudy) -> None:
        """One subject, one reason, one proof: product and dose in the same answer, which nobody keeps. [EUB-01, 03, 10, BLD-13]"""
        allocated = running.new_subject()
        subject = allocated["subject_id"]
        response = running.investigator.post(BREAKS, json=about(subject), step_up=True)
        answer = expect(response, 201)
        assert set(answer) == {
            "code_break_id", "subject_id", "arm_code", "treatment", "kit_codes", "revealed_at", "receipt",
        }  # fmt: skip
        assert answer["subject_id"] == subject
        assert answer["treatment"] == TREATMENTS[answer["arm_code"]]
        assert answer["kit_codes"] == [allocated["kit_code"]]
        assert response.headers["Cache-Control"] == "no-store"
        entry = running.house.trail(STUDY)[answer["receipt"]["log_index"]]
        assert (entry["action"], entry["outcome"]) == ("code_break:create", "authorised")
        assert entry["target"] == {"subject_id": subject}
        assert entry["after"] == {
            "code_break_id": answer["code_break_id"],
            "reason_code": "overdose",
            "by_kit_code": False,
            "own_site": True,
            **signed_as(running.investigator, "responsibility"),
        }
        assert entry["restricted"] is None

    def test_everybody_else(self, running: RunningStudy) -> None:
        """Others see that a break happened, and when; never what it showed. The subject stays in the study. [EUB-13, 14, D6]"""
        subject = running.new_subject()["subject_id"]
        answer = break_code(running.investigator, about(subject))
        for role in ("monitor", "inspector", "coordinator", "pharmacist", "study_admin", "investigator"):
            caller = running.person(role)
            item = register_of(caller, answer["code_break_id"])
            assert item is not None
            assert item == {
                "code_break_id": answer["code_break_id"],
                "subject_id": subject,
                "kit_code": None,
                "site_code": "01",
                "reason_code": "overdose",
                "status": "authorised",
                "broken_at": answer["revealed_at"],
                "broken_by": running.investigator.username,
                "role": "investigator",
                "by_kit_code": False,
                "own_site": True,
                "narrated_at": None,
                "narrative_due_at": after(answer["revealed_at"], days=1),
                "assessed_at": None,
                "assessment_due_at": after(answer["revealed_at"], days=14),
                "impact": None,
                "overdue": [],
                "kind": "service",
                "opened_by": None,
                "is_signed": True,
                "signatures": item["signatures"],
                "seconds_to_reveal": 0.0,
            }
            read = expect(caller.get(f"{S}/subjects/{subject}/allocation"), 200)
            assert read["flags"]["unblinded_at"] == answer["revealed_at"]
            assert not names_an_arm(json.dumps(read))
        given = expect(running.investigator.post(f"{S}/subjects/{subject}/kits", json={"visit": "V2"}), 201)
        again = break_code(running.investigator, about(subject, "pregnancy_exposure"))
        assert again["arm_code"] == answer["arm_code"]
        assert again["kit_codes"] == [*answer["kit_codes"], given["kit_code"]]
        assert again["code_break_id"] != answer["code_break_id"]

    def test_by_kit_code(self, running: RunningStudy) -> None:
        """The number on the package is enough, in any spelling. [EUB-07]"""
        allocated = running.new_subject()
        code = allocated["kit_code"]
        spelt = f"{code[:3]}-{code[3:6]}-{code[6:]}".lower()
        answer = break_code(running.investigator, {"kit_code": spelt, "reason_code": "accidental_exposure"})
        assert answer["subject_id"] == allocated["subject_id"]
        item = register_of(running.investigator, answer["code_break_id"])
        assert item is not None
        assert (item["kit_code"], item["by_kit_code"], item["own_site"]) == (code, True, True)
        entry = running.house.trail(STUDY)[answer["receipt"]["log_index"]]
        assert entry["target"] == {"kit_code": code, "subject_id": allocated["subject_id"]}

    def test_from_another_site(self, running: RunningStudy) -> None:
        """A subject of another site is not there; with the kit in hand the break is flagged and not refused. [D2, USR-21]"""
        allocated = running.new_subject()
        other = running.person("investigator", "02")
        token = other.elevated_token()
        send = running.house.send
        unknown = expect(send("POST", BREAKS, token=token, json=about("01-9999")), 404)
        foreign = expect(send("POST", BREAKS, token=token, json=about(allocated["subject_id"])), 404)
        assert foreign | {"request_id": ""} == unknown | {"request_id": ""}
        body = {"kit_code": allocated["kit_code"], "reason_code": "overdose"}
        answer = expect(send("POST", BREAKS, token=token, json=body), 201)
        assert answer["treatment"] == TREATMENTS[answer["arm_code"]]
        item = register_of(running.investigator, answer["code_break_id"])
        assert item is not None
        assert item["own_site"] is False
        assert register_of(other, answer["code_break_id"]) is None

    def test_kit_that_nobody_was_given(self, running: RunningStudy) -> None:
        """A child found it: answered without subject, and the kit is never given to anybody. [EUB-07, D2]"""
        code = running.free_kit()
        running.kit_codes.remove(code)
        answer = break_code(running.investigator, {"kit_code": code, "reason_code": "accidental_exposure"})
        assert answer["subject_id"] is None
        assert answer["kit_codes"] == [code]
        assert answer["treatment"] == TREATMENTS[answer["arm_code"]]
        entry = running.house.trail(STUDY)[answer["receipt"]["log_index"]]
        assert (entry["before"], entry["after"]["kit_status"]) == ({"kit_status": "in_stock"}, "quarantined")
        assert entry["target"] == {"kit_code": code}
        again = break_code(running.investigator, {"kit_code": code, "reason_code": "overdose"})
        assert again["arm_code"] == answer["arm_code"]
        entry = running.house.trail(STUDY)[again["receipt"]["log_index"]]
        assert entry["before"] == {"kit_status": "quarantined"}

    def test_kit_in_the_depot(self, running: RunningStudy) -> None:
        """A kit that was lost on its way to any site is broken too; those who see the whole study see it. [EUB-07]"""
        code = consignment(running, "C-DEPOT", 4, received=False)[0]
        answer = break_code(running.investigator, {"kit_code": code, "reason_code": "accidental_exposure"})
        item = register_of(running.person("monitor"), answer["code_break_id"])
        assert item is not None
        assert (item["site_code"], item["subject_id"], item["own_site"]) == (None, None, False)
        assert register_of(running.investigator, answer["code_break_id"]) is None

    def test_requester(self, running: RunningStudy) -> None:
        """The safety officer acts for a clinician and names them; the name is in the restricted part. [EUB-08, EUB-17, D7]"""
        subject = running.new_subject()["subject_id"]
        officer = running.person("safety_officer")
        token = officer.elevated_token()
        refused = expect(running.house.send("POST", BREAKS, token=token, json=about(subject)), 422)
        assert [fault["field"] for fault in refused["errors"]] == ["requested_by"]
        body = about(subject, requested_by="Dr Wang, ward 3, called back at 0100")
        answer = expect(running.house.send("POST", BREAKS, token=token, json=body), 201)
        index = answer["receipt"]["log_index"]
        assert "Wang" not in json.dumps(running.house.trail(STUDY)[index])
        assert "Dr Wang, ward 3, called back at 0100" in json.dumps(running.restricted(index), ensure_ascii=False)

    @pytest.mark.parametrize(
        ("body", "fields"),
        [
            ({"reason_code": "overdose"}, ["subject_id"]),
            (about("01-0001", kit_code="22222222X"), None),
            ({"subject_id": ["01-0001", "01-0002"], "reason_code": "overdose"}, ["subject_id"]),
            ({"subject_id": "*", "reason_code": "overdose"}, ["subject_id"]),
            (about("01-0001", "curiosity"), ["reason_code"]),
            (about("01-0001", requested_by=""), ["requested_by"]),
            (about("01-0001", comment="none"), ["comment"]),
        ],
    )
    def test_not_one_subject(self, running: RunningStudy, body: Json, fields: list[str] | None) -> None:
        """One subject or one kit, and a reason of subject safety: everything else is 422 with the field named. [EUB-06, 23]"""
        problem = expect(running.investigator.post(BREAKS, json=body, step_up=True), 422)
        named = [fault["field"] for fault in problem["errors"]]
        assert named == (fields or ["kit_code"])

    def test_both_subject_and_kit(self, running: RunningStudy) -> None:
        """A subject and a kit might be two people's. [EUB-06]"""
        allocated = running.new_subject()
        body = about(allocated["subject_id"], kit_code=allocated["kit_code"])
        problem = expect(running.investigator.post(BREAKS, json=body, step_up=True), 422)
        assert [fault["field"] for fault in problem["errors"]] == ["subject_id"]

    def test_unknown_kit(self, running: RunningStudy) -> None:
        """A well-formed code of no kit is not there; the try is entered. [USR-21, EUB-22]"""
        expect(
            running.investigator.post(BREAKS, json={"kit_code": UNKNOWN_KIT, "reason_code": "overdose"}, step_up=True),
            404,
        )
        last = running.house.trail(STUDY)[-1]
        assert (last["outcome"], last["target"]) == ("denied", {"kit_code": UNKNOWN_KIT})

    def test_the_same_key_twice(self, running: RunningStudy) -> None:
        """A reveal ignores an Idempotency-Key: each look is a new event with its own proof. [C4, EUB-13]"""
        body, headers = about(running.new_subject()["subject_id"]), {"Idempotency-Key": "the same"}
        first = expect(running.investigator.post(BREAKS, json=body, step_up=True, headers=headers), 201)
        token = running.investigator.token()
        expect(running.house.send("POST", BREAKS, token=token, json=body, headers=headers), 401)
        second = expect(running.investigator.post(BREAKS, json=body, step_up=True, headers=headers), 201)
        assert first["code_break_id"] != second["code_break_id"]


class TestProof:
    def test_without_fresh_proof(self, running: RunningStudy) -> None:
        """The RFC 9470 challenge, and nothing of the treatment. [SIG-11, EUB-02, D3]"""
        body = about(running.new_subject()["subject_id"])
        response = running.investigator.post(BREAKS, json=body)
        problem = expect(response, 401)
        assert response.headers["WWW-Authenticate"] == CHALLENGE
        assert not names_an_arm(json.dumps(problem))
        last = running.house.trail(STUDY)[-1]
        assert (last["action"], last["outcome"]) == ("code_break:create", "denied")

    def test_stale_proof(self, running: RunningStudy) -> None:
        """A proof is good for 300 seconds and no longer. [D3]"""
        body = about(running.new_subject()["subject_id"])
        token = running.investigator.elevated_token()
        running.house.clock.advance(seconds=301)
        response = running.house.send("POST", BREAKS, token=token, json=body)
        assert response.status_code == 401
        assert response.headers["WWW-Authenticate"] == CHALLENGE

    def test_mistyped_subject(self, running: RunningStudy) -> None:
        """A mistyped subject does not cost the proof; the break does. [D3]"""
        subject = running.new_subject()["subject_id"]
        token = running.investigator.elevated_token()
        send = running.house.send
        expect(send("POST", BREAKS, token=token, json=about("01-99")), 404)
        expect(send("POST", BREAKS, token=token, json=about(subject)), 201)
        response = send("POST", BREAKS, token=token, json=about(subject))
        assert response.status_code == 401
        assert response.headers["WWW-Authenticate"] == CHALLENGE

    def test_machine_and_wrong_role(self, running: RunningStudy) -> None:
        """Machines can neither sign nor unblind, whatever they hold; neither can those without the right. [USR-15, EUB-22]"""
        body = about(running.new_subject()["subject_id"])
        expect(running.house.machine("edc_client").post(BREAKS, json=body), 403)
        for role in ("coordinator", "monitor", "statistician"):
            expect(running.person(role).post(BREAKS, json=body, step_up=True), 403)
        assert running.house.client.post(BREAKS, json=body).status_code == 401
        expect(running.investigator.post("/v1/studies/OTHER/code-breaks", json=body, step_up=True), 404)


class TestNarrative:
    def test_after_the_break(self, running: RunningStudy) -> None:
        """Told after, once, by who broke the code; free text is restricted. [EUB-09, E3]"""
        subject = running.new_subject()["subject_id"]
        answer = break_code(running.investigator, about(subject))
        path = f"{BREAKS}/{answer['code_break_id']}/narrative"
        text = {"narrative": "Seizure at home.\nThe ward had to know."}
        other = running.house.person("investigator")
        expect(other.post(path, json=text), 404)
        expect(running.investigator.post(f"{BREAKS}/{'0' * 8}-0000-4000-8000-{'0' * 12}/narrative", json=text), 404)
        told = expect(running.investigator.post(path, json=text), 201)
        item = register_of(running.investigator, answer["code_break_id"])
        assert item is not None
        assert item["narrated_at"] == told["narrated_at"]
        entry = running.house.trail(STUDY)[told["receipt"]["log_index"]]
        assert entry["target"] == {"code_break_id": answer["code_break_id"]}
        assert "Seizure" not in json.dumps(entry)
        assert "Seizure" in json.dumps(running.restricted(told["receipt"]["log_index"]))
        problem = expect(running.investigator.post(path, json=text), 409)
        assert problem["code"] == "already_exists"

    @pytest.mark.parametrize("text", ["", "x" * 2001, "a\x00b", "a\tb", 7])
    def test_text_that_is_none(self, running: RunningStudy, text: Json) -> None:
        """Empty, too long, control characters: 422. [G2]"""
        path = f"{BREAKS}/{'0' * 8}-0000-4000-8000-{'0' * 12}/narrative"
        expect(running.investigator.post(path, json={"narrative": text}), 422)

    def test_longest(self, running: RunningStudy) -> None:
        """2000 characters of any script fit the sealed part. [EUB-09]"""
        answer = break_code(running.investigator, about(running.new_subject()["subject_id"]))
        path = f"{BREAKS}/{answer['code_break_id']}/narrative"
        expect(running.investigator.post(path, json={"narrative": "\U00020000" * 2000}), 201)


class TestRegister:
    def test_page_by_page(self, running: RunningStudy) -> None:
        """Pages give each break once, in the order of time; only the first one is entered. [E1]"""
        for _ in range(2):
            break_code(running.investigator, about(running.new_subject()["subject_id"]))
        monitor = running.person("monitor")
        whole = expect(monitor.get(BREAKS, limit=500), 200)
        assert whole["next_cursor"] is None
        before = len(running.house.trail(STUDY))
        seen: list[str] = []
        cursor: dict[str, Any] = {}
        while True:
            page = expect(monitor.get(BREAKS, limit=1, **cursor), 200)
            seen += [item["code_break_id"] for item in page["items"]]
            if page["next_cursor"] is None:
                break
            cursor = {"cursor": page["next_cursor"]}
        assert seen == [item["code_break_id"] for item in whole["items"]]
        assert len(running.house.trail(STUDY)) == before + 1
        expect(running.person("inspector").get(BREAKS, limit=1, **cursor), 422)

    def test_who_may_not(self, running: RunningStudy) -> None:
        """The list's people read nothing about subjects. [B10]"""
        for role in ("statistician", "list_approver", "supply_manager"):
            expect(running.person(role).get(BREAKS), 403)


class TestSafety:
    def test_one_subject(self, running: RunningStudy) -> None:
        """The safety officer alone learns the treatment, and that and whose case it was. [UNB-01, 02, 03]"""
        allocated = running.new_subject()
        subject = allocated["subject_id"]
        officer = running.person("safety_officer")
        body = {"subject_id": subject, "reason": "SUSAR 2026-0113"}
        expect(officer.post(SAFETY, json=body), 401)
        token = officer.elevated_token()
        response = running.house.send("POST", SAFETY, token=token, json=body)
        answer = expect(response, 201)
        assert response.headers["Cache-Control"] == "no-store"
        assert answer["subject_id"] == subject
        assert answer["treatment"] == TREATMENTS[answer["arm_code"]]
        assert answer["kit_codes"] == [allocated["kit_code"]]
        expect(running.house.send("POST", SAFETY, token=token, json=body), 401)
        entry = running.house.trail(STUDY)[answer["receipt"]["log_index"]]
        assert entry["target"] is None
        assert entry["after"] == {
            "safety_unblinding_id": answer["safety_unblinding_id"],
            **signed_as(officer, "responsibility"),
        }
        assert subject not in json.dumps(entry)
        part = json.dumps(running.restricted(answer["receipt"]["log_index"]))
        assert subject in part
        assert "SUSAR 2026-0113" in part
        # No flag, no register and no trail of others' tells of it.
        read = expect(running.investigator.get(f"{S}/subjects/{subject}/allocation"), 200)
        assert read["flags"]["unblinded_at"] is None
        items = expect(running.investigator.get(BREAKS, limit=500), 200)["items"]
        assert subject not in [item["subject_id"] for item in items]
        about_subject = expect(running.person("monitor").get(f"{S}/trail", subject=subject), 200)["items"]
        assert {item["action"] for item in about_subject} <= {"allocation:create", "allocation:read"}

    def test_register(self, running: RunningStudy) -> None:
        """A register of its own, for its own role, without treatments; the reading is entered. [UNB-02, UNB-08]"""
        officer = running.person("safety_officer")
        made = [
            expect(officer.post(SAFETY, json={"subject_id": subject, "reason": "SUSAR"}, step_up=True), 201)
            for subject in (running.new_subject()["subject_id"], running.new_subject()["subject_id"])
        ]
        response = officer.get(SAFETY, limit=500)
        items = expect(response, 200)["items"]
        assert response.headers["Cache-Control"] == "no-store"
        assert running.house.trail(STUDY)[-1]["action"] == "safety_unblinding:list"
        assert not names_an_arm(response.text)
        assert [item["subject_id"] for item in items[-2:]] == [answer["subject_id"] for answer in made]
        assert items[-1] == {
            "safety_unblinding_id": made[-1]["safety_unblinding_id"],
            "subject_id": made[-1]["subject_id"],
            "status": "authorised",
            "unblinded_at": made[-1]["revealed_at"],
            "unblinded_by": officer.username,
            "is_signed": True,
            "signatures": items[-1]["signatures"],
        }
        seen: list[Json] = []
        cursor: dict[str, Any] = {}
        while True:
            page = expect(officer.get(SAFETY, limit=1, **cursor), 200)
            seen += page["items"]
            if page["next_cursor"] is None:
                break
            cursor = {"cursor": page["next_cursor"]}
        assert seen == items
        for role in ("investigator", "monitor", "inspector", "statistician"):
            expect(running.person(role).get(SAFETY), 403)

    def test_unknown_subject(self, running: RunningStudy) -> None:
        """Not even a wrong identifier stands in the public trail. [E3]"""
        officer = running.person("safety_officer")
        body = {"subject_id": "01-7777", "reason": "SUSAR"}
        expect(officer.post(SAFETY, json=body, step_up=True), 404)
        last = running.house.trail(STUDY)[-1]
        assert (last["action"], last["outcome"]) == ("safety_unblinding:create", "denied")
        assert "7777" not in json.dumps(last)

    def test_others(self, running: RunningStudy) -> None:
        """Investigators have the emergency door only. [UNB-01]"""
        body = {"subject_id": "01-0001", "reason": "SUSAR"}
        expect(running.investigator.post(SAFETY, json=body, step_up=True), 403)


def closed_study(house: House) -> RunningStudy:
    """A study with an extension, a list that was rejected, visits, a replaced kit, a broken code: and closed."""
    running = running_study(house, subjects=4, length=4)
    statistician, approver = running.people["statistician"], running.people["list_approver"]
    more = {"block_sizes": [2], "block_size_weights": [1], "length_per_stratum": 4, "fill": "exact", "reason": "more"}
    path = f"{S}/schedules/{running.schedule_id}/segments"
    extension = expect(statistician.post(path, json=more, step_up=True), 201)
    schedule = f"{S}/schedules/{extension['schedule_id']}"
    approval = {"commitment": extension["commitment"], "meaning": "approval"}
    expect(approver.post(f"{schedule}/approval", json=approval, step_up=True), 200)
    expect(running.study_admin.post(f"{schedule}/activation", step_up=True), 200)
    rejected = expect(statistician.post(f"{S}/schedules", json=more, step_up=True), 201)
    path = f"{S}/schedules/{rejected['schedule_id']}/rejection"
    expect(approver.post(path, json={"reason": "not needed"}, step_up=True), 200)
    running.new_subject()
    running.allocate("Åsa 7")
    pharmacist = running.people["pharmacist"]
    first = running.allocations[0]
    expect(running.investigator.post(f"{S}/subjects/01-0001/kits", json={"visit": "V2"}), 201)
    body = {"subject_id": "01-0001", "scanned_code": first["kit_code"]}
    expect(pharmacist.post(f"{S}/kits/{first['kit_code']}/dispensation", json=body), 200)
    body = {"reason_code": "damaged", "reason": "broken seal"}
    expect(pharmacist.post(f"{S}/kits/{first['kit_code']}/replacement", json=body), 201)
    expect(running.investigator.post(BREAKS, json=about("01-0002"), step_up=True), 201)
    running.set_status("closed")
    return running


def verify(package: Path, *more: str) -> Json:
    """Return what the offline verifier, a process of its own, says of a package that is all right."""
    command = [sys.executable, "-I", str(files("app") / "verifier.py"), "package", str(package), "--json", *more]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)


class TestFinalUnblinding:
    def test_two_people(self, house: House, tmp_path: Path) -> None:
        """Attested, released by another person, once; the verifier joins subject, slot, kit and arm. [UNB-07, CUS-06, A8]"""
        running = closed_study(house)
        statistician, approver = running.people["statistician"], running.people["list_approver"]
        both = house.person("statistician")
        house.grant(both, "list_approver")
        statement = {"database_lock_statement": "Database locked on 2027-03-01."}
        expect(statistician.post(FINAL, json=statement), 401)
        expect(running.investigator.post(FINAL, json=statement, step_up=True), 403)
        own = expect(both.post(FINAL, json=statement, step_up=True), 201)
        problem = expect(both.post(f"{FINAL}/{own['request_id']}/release", step_up=True), 409)
        assert problem["code"] == "second_person_required"
        asked = expect(statistician.post(FINAL, json=statement, step_up=True), 201)
        entry = house.trail(STUDY)[asked["receipt"]["log_index"]]
        assert entry["restricted"] is not None
        assert "locked" not in json.dumps(entry)
        path = f"{FINAL}/{asked['request_id']}/release"
        expect(approver.post(path), 401)
        expect(statistician.post(path, step_up=True), 403)
        expect(approver.post(f"{FINAL}/{'0' * 8}-0000-4000-8000-{'0' * 12}/release", step_up=True), 404)
        response = approver.post(path, step_up=True)
        assert response.status_code == 200
        assert response.headers["Content-Type"] == "application/zip"
        assert response.headers["Cache-Control"] == "no-store"
        package = tmp_path / "final.zip"
        package.write_bytes(response.content)
        key = house.deployment.signing.vkeys()[0]
        report = verify(package, "--sink", str(house.settings.checkpoint_file), "--key", key)
        assert report["facts"] | {"entries": 0} == report["facts"] | {
            "entries": 0,
            "allocations": 6,
            "lists": 3,
            "slots": 12,
        }
        assert report["facts"]["kits_assigned"] == 8
        problem = expect(approver.post(path, step_up=True), 409)
        assert problem["code"] == "illegal_transition"
        with zipfile.ZipFile(package) as archive:
            rows = list(csv.DictReader(io.StringIO(archive.read("list.csv").decode())))
            trail = archive.read("trail.jsonl").decode()
        assert {row["treatment"] for row in rows} == set(TREATMENTS.values())
        assert '"final_unblinding:release"' in trail
        assert not names_an_arm(trail)
        answer = break_code(running.investigator, about("01-0003"))
        assert answer["arm_code"] == next(row["arm_code"] for row in rows if row["subject_id"] == "01-0003")

    def test_encrypted(self, house: House, tmp_path: Path) -> None:
        """For the holder of a key: only they can open it; a key that is none is found out at the request. [UNB-08, CUS-06]"""
        running = closed_study(house)
        statistician, approver = running.people["statistician"], running.people["list_approver"]
        statement = {"database_lock_statement": "Locked."}
        expect(statistician.post(FINAL, json=statement | {"recipient_key": "AAAA"}, step_up=True), 422)
        weak = b64encode(bytes(32)).decode()
        problem = expect(statistician.post(FINAL, json=statement | {"recipient_key": weak}, step_up=True), 422)
        assert [fault["field"] for fault in problem["errors"]] == ["recipient_key"]
        private = X25519PrivateKey.generate()
        public = b64encode(private.public_key().public_bytes_raw()).decode()
        asked = expect(statistician.post(FINAL, json=statement | {"recipient_key": public}, step_up=True), 201)
        response = approver.post(f"{FINAL}/{asked['request_id']}/release", step_up=True)
        assert response.status_code == 200
        assert response.headers["Content-Type"] == "application/octet-stream"
        own = b64encode(private.private_bytes_raw()).decode()
        package = tmp_path / "final.zip"
        package.write_bytes(decrypt_with(own, response.content, final_package_info(StudyCode(STUDY))))
        verify(package)

    def test_study_not_closed(self, running: RunningStudy) -> None:
        """Before the end there is no opening in bulk, whoever asks. [UNB-07]"""
        body = {"database_lock_statement": "Locked."}
        problem = expect(running.people["statistician"].post(FINAL, json=body, step_up=True), 409)
        assert problem["code"] == "illegal_transition"
        assert running.house.trail(STUDY)[-1]["outcome"] == "refused"
