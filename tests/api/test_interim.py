"""The interim door over HTTP: two people sign, the board alone reads, and nobody behind the data cut is opened."""

import csv
import io
import json
from base64 import b64encode
from collections.abc import Iterator
from datetime import timedelta
from typing import Any, Final

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from app.domain.words import StudyCode
from app.sealing.recipients import decrypt_with
from app.services import evidence, interim
from app.services.interim import interim_info
from tests.harness import STUDY, House, Json, expect
from tests.running_study import TREATMENTS, RunningStudy, S, execute, running_study, shared_running_study, tampering
from tests.security.test_code_break_faults import full_disk

INTERIMS: Final = f"{S}/interim-unblinding-requests"
BOARD: Final = X25519PrivateKey.generate()
KEY: Final = b64encode(BOARD.public_key().public_bytes_raw()).decode()


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def running(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStudy]:
    yield from shared_running_study(request, tmp_path_factory)


def settled(house: House) -> str:
    """Return a moment after all that was done, five minutes ago."""
    now = house.clock.now
    house.clock.advance(minutes=5)
    return now.isoformat()


def cut(running: RunningStudy, **changes: Json) -> dict[str, Any]:
    return {
        "data_cut_at": settled(running.house),
        "board": "Board statistician Okafor",
        "recipient_key": KEY,
        "meaning": "responsibility",
        **changes,
    }


def signing(wanted: Json, **changes: Json) -> dict[str, Any]:
    kept = {name: wanted[name] for name in ("data_cut_at", "recipient_key")}
    return {**kept, "meaning": "approval", **changes}


def ask(running: RunningStudy, wanted: Json) -> str:
    asked = expect(running.people["statistician"].post(INTERIMS, json=wanted, step_up=True), 201)
    return f"{INTERIMS}/{asked['request_id']}/release"


def opened(content: bytes) -> list[dict[str, str]]:
    """Return what the board reads."""
    own = b64encode(BOARD.private_bytes_raw()).decode()
    return list(csv.DictReader(io.StringIO(decrypt_with(own, content, interim_info(StudyCode(STUDY))).decode())))


def arm_of(running: RunningStudy, subject: str) -> str:
    body = {"subject_id": subject, "reason_code": "overdose"}
    return str(expect(running.investigator.post(f"{S}/code-breaks", json=body, step_up=True), 201)["arm_code"])


class TestInterim:
    def test_board_reads_up_to_the_cut(self, running: RunningStudy) -> None:
        """The package holds who was allocated up to the cut, and nobody later; the board alone opens it. [UNB-06, F3, B10]"""
        for _ in range(4):
            running.new_subject()
        known = [one["subject_id"] for one in running.allocations]
        wanted = cut(running)
        later = running.new_subject()["subject_id"]
        path = ask(running, wanted)
        approver = running.people["list_approver"]
        response = approver.post(path, json=signing(wanted), step_up=True)
        assert response.status_code == 200
        assert response.headers["Cache-Control"] == "no-store"
        assert not any(word.encode() in response.content for pair in TREATMENTS.items() for word in pair)
        rows = opened(response.content)
        assert [row["subject_id"] for row in rows] == known
        assert later not in known
        assert rows[0]["arm_code"] == arm_of(running, known[0])
        assert {row["arm_code"] for row in rows} == set(TREATMENTS)
        wanted = cut(running, show="groups")
        groups = opened(approver.post(ask(running, wanted), json=signing(wanted), step_up=True).content)
        pairs = {(row["group"], arm["arm_code"]) for row, arm in zip(groups, rows, strict=False)}
        assert len(pairs) == 2
        assert {group for group, _ in pairs} == {"G1", "G2"}
        entry = running.house.trail(STUDY)[-1]
        assert (entry["action"], entry["outcome"]) == ("interim_unblinding:release", "done")
        assert not any(subject in json.dumps(entry) for subject in known)
        report = expect(running.person("monitor").get(f"{S}/subjects/{later}/disclosures", limit=500), 200)["items"]
        mine = expect(running.person("monitor").get(f"{S}/subjects/{known[0]}/disclosures", limit=500), 200)["items"]
        counted = [
            [one["learnt"] for one in items if one["action"] == "interim_unblinding:release"]
            for items in (report, mine)
        ]
        assert counted == [["treatment"], ["treatment", "treatment"]]

    def test_two_people(self, running: RunningStudy) -> None:
        """Another person signs the same cut and the same key, once; whatever differs is refused and costs nothing. [UNB-06, F3]"""
        house, wanted = running.house, cut(running)
        both = house.person("statistician")
        house.grant(both, "list_approver")
        own = expect(both.post(INTERIMS, json=wanted, step_up=True), 201)
        path = f"{INTERIMS}/{own['request_id']}/release"
        assert expect(both.post(path, json=signing(wanted), step_up=True), 409)["code"] == "second_person_required"
        approver = running.people["list_approver"]
        token = approver.elevated_token()
        other = b64encode(X25519PrivateKey.generate().public_key().public_bytes_raw()).decode()
        for change in ({"recipient_key": other}, {"data_cut_at": house.clock.now.isoformat()}):
            problem = expect(house.send("POST", path, token=token, json=signing(wanted, **change)), 422)
            assert [fault["field"] for fault in problem["errors"]] == [*change]
        assert house.send("POST", path, token=token, json=signing(wanted)).status_code == 200
        expect(house.send("POST", path, token=token, json=signing(wanted)), 401)
        problem = expect(approver.post(path, json=signing(wanted), step_up=True), 409)
        assert problem["code"] == "illegal_transition"
        nothing = f"{INTERIMS}/00000000-0000-4000-8000-000000000000/release"
        expect(approver.post(nothing, json=signing(wanted), step_up=True), 404)
        for caller in (running.people["statistician"], running.investigator, running.person("safety_officer")):
            expect(caller.post(path, json=signing(wanted), step_up=True), 403)
        expect(approver.post(INTERIMS, json=wanted, step_up=True), 403)

    def test_what_cannot_be_asked(self, running: RunningStudy) -> None:
        """A cut that could be changed still, no key, another meaning, no board: each is named, and nothing is kept. [G1, UNB-06]"""
        statistician = running.people["statistician"]
        before = expect(statistician.get(INTERIMS, limit=500), 200)["items"]
        faults: dict[str, Json] = {
            "data_cut_at": (running.house.clock.now + timedelta(minutes=3)).isoformat(),
            "recipient_key": b64encode(bytes(32)).decode(),
            "meaning": "approval",
            "board": "",
            "show": "both",
            "strata": {"COHORT": "A"},
        }
        for field, value in faults.items():
            problem = expect(statistician.post(INTERIMS, json=cut(running, **{field: value}), step_up=True), 422)
            assert [fault["field"] for fault in problem["errors"]] == [field]
        expect(statistician.post(INTERIMS, json=cut(running)), 401)
        assert expect(statistician.get(INTERIMS, limit=500), 200)["items"] == before

    def test_register(self, running: RunningStudy) -> None:
        """Who asked and released, for which board and when, page by page; nothing of a subject. [UNB-06, UNB-08]"""
        wanted = cut(running, show="groups")
        path = [ask(running, wanted) for _ in range(2)][-1]
        released = running.people["list_approver"].post(path, json=signing(wanted), step_up=True)
        assert released.status_code == 200
        inspector = running.person("inspector")
        whole = expect(inspector.get(INTERIMS, limit=500), 200)["items"]
        last = whole[-1]
        assert last == {
            "request_id": path.split("/")[-2],
            "data_cut_at": wanted["data_cut_at"],
            "show": "groups",
            "board": wanted["board"],
            "strata": {},
            "requested_at": last["requested_at"],
            "requested_by": running.people["statistician"].username,
            "released_at": last["released_at"],
            "released_by": running.people["list_approver"].username,
            "is_signed": True,
            "signatures": last["signatures"],
        }
        assert whole[-2]["released_at"] is None
        seen: list[Json] = []
        cursor: dict[str, Any] = {}
        while True:
            page = expect(inspector.get(INTERIMS, limit=1, **cursor), 200)
            seen += page["items"]
            if page["next_cursor"] is None:
                break
            cursor = {"cursor": page["next_cursor"]}
        assert seen == whole
        for role in ("investigator", "monitor", "supply_manager"):
            expect(running.person(role).get(INTERIMS), 403)

    def test_what_was_changed_or_cannot_be_recorded(self, running: RunningStudy) -> None:
        """A kit that is not the subject's any more stops it; a full disk withholds it. [SEQ-11, D4, CUS-10]"""
        approver = running.people["list_approver"]
        one = running.new_subject()["subject_id"]
        wanted = cut(running)
        path = ask(running, wanted)
        moved = "UPDATE kit_assignment SET subject_key = :new WHERE subject_key = :old"
        with tampering(running, "kit_assignment"):
            execute(running, moved, new="nobody", old=one)
            problem = expect(approver.post(path, json=signing(wanted), step_up=True), 503)
            execute(running, moved, new=one, old="nobody")
        assert problem["code"] == "integrity_failure"
        assert running.house.trail(STUDY)[-1]["outcome"] == "integrity"
        token = approver.elevated_token()
        with full_disk(running.house):
            expect(running.house.send("POST", path, token=token, json=signing(wanted)), 503)
        assert [entry["outcome"] for entry in running.house.trail(STUDY)[-2:]] == ["done", "withheld"]
        expect(approver.post(path, json=signing(wanted), step_up=True), 409)


class TestPart:
    def test_one_cohort_and_no_other(self, house: House, monkeypatch: pytest.MonkeyPatch) -> None:
        """Who is of another part is neither in the package nor opened for it, and their reports do not name it. [UNB-10, F3]"""
        levels = [{"level_code": code, "label": f"Cohort {code}"} for code in "AB"]
        factors = [{"factor_code": "COHORT", "label": "Cohort", "levels": levels}]
        study = running_study(house, subjects=0, factors=factors)
        cohorts = {f"01-000{number}": "AABBA"[number - 1] for number in range(1, 6)}
        for subject, cohort in cohorts.items():
            study.allocate(subject, {"COHORT": cohort})
        approver, monitor = study.people["list_approver"], study.person("monitor")
        for strata in ({"SITE": "01"}, {"COHORT": "C"}, {"COHORT": "A", "SEX": "f"}):
            problem = expect(
                study.people["statistician"].post(INTERIMS, json=cut(study, strata=strata), step_up=True), 422
            )
            assert [fault["field"] for fault in problem["errors"]] == ["strata"]
        wanted = cut(study, strata={"COHORT": "A"})
        path = ask(study, wanted)
        for other in ({}, {"COHORT": "B"}):
            problem = expect(approver.post(path, json=signing(wanted, strata=other), step_up=True), 422)
            assert [fault["field"] for fault in problem["errors"]] == ["strata"]
        opened_for: list[str] = []
        open_one = evidence.open_allocation

        def watched(act: Any, allocation: Any, kit_id: Any) -> Any:  # noqa: ANN401  # as it is called
            opened_for.append(allocation.subject_id)
            return open_one(act, allocation, kit_id)

        monkeypatch.setattr(interim, "open_allocation", watched)
        released = approver.post(path, json=signing(wanted, strata={"COHORT": "A"}), step_up=True)
        assert released.status_code == 200
        theirs = [subject for subject, cohort in cohorts.items() if cohort == "A"]
        rows = opened(released.content)
        assert [row["subject_id"] for row in rows] == opened_for == theirs
        assert house.trail(STUDY)[-1]["after"]["strata"] == {"COHORT": "A"}
        assert expect(study.person("inspector").get(INTERIMS), 200)["items"][-1]["strata"] == {"COHORT": "A"}
        for subject, cohort in cohorts.items():
            report = expect(monitor.get(f"{S}/subjects/{subject}/disclosures", limit=500), 200)["items"]
            named = [
                one for one in report if one["action"] == "interim_unblinding:release" and one["learnt"] == "treatment"
            ]
            assert len(named) == (cohort == "A"), subject
        # Everybody is still opened where no part is named, as ever.
        wanted = cut(study)
        assert len(opened(approver.post(ask(study, wanted), json=signing(wanted), step_up=True).content)) == len(
            cohorts
        )

    def test_a_build_that_forgets_the_part(self, house: House, monkeypatch: pytest.MonkeyPatch) -> None:
        """Negative control: then the board would read of another cohort. [UNB-10]"""
        levels = [{"level_code": code, "label": f"Cohort {code}"} for code in "AB"]
        study = running_study(
            house, subjects=0, factors=[{"factor_code": "COHORT", "label": "Cohort", "levels": levels}]
        )
        for subject, cohort in (("01-0001", "A"), ("01-0002", "B")):
            study.allocate(subject, {"COHORT": cohort})
        monkeypatch.setattr(interim, "is_of_part", lambda *_: True)
        wanted = cut(study, strata={"COHORT": "A"})
        released = study.people["list_approver"].post(
            ask(study, wanted), json=signing(wanted, strata=wanted["strata"]), step_up=True
        )
        assert len(opened(released.content)) == 2
