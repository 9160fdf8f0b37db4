"""What is told after a code break is tracked, and late words are named; nothing waits for them (EUB-09, EUB-24)."""

import json
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any, Final

import pytest
from sqlalchemy import func, select

from app.domain.code_breaks import ASSESSMENT_WITHIN, NARRATIVE_WITHIN, late
from app.domain.notices import mail_text
from app.domain.words import Late
from app.services import safety
from app.services.keeper import Keeper
from app.services.startup import Surroundings
from app.services.unblinding import tell_late_breaks
from app.storage import notices, tables
from app.surroundings import surroundings
from tests.harness import BEGINNING, STUDY, Caller, House, Json, expect
from tests.running_study import TREATMENTS, RunningStudy, S, running_study

BREAKS: Final = f"{S}/code-breaks"
WORDS: Final = {
    "impact": "bias_possible",
    "assessment": "The ward knows.\nAll of it.",
    "corrective_action": "Told again.",
}


def break_code(caller: Caller, subject: str) -> str:
    body = {"subject_id": subject, "reason_code": "overdose"}
    return str(expect(caller.post(BREAKS, json=body, step_up=True), 201)["code_break_id"])


def at(code_break_id: str, what: str = "assessment") -> str:
    return f"{BREAKS}/{code_break_id}/{what}"


def line_of(caller: Caller, code_break_id: str) -> dict[str, Any]:
    items = expect(caller.get(BREAKS), 200)["items"]
    return next(item for item in items if item["code_break_id"] == code_break_id)


def told(house: House, workers: int = 1) -> list[Json]:
    """Return the notices of what is overdue after so many rounds of the keeper."""
    for _ in range(workers):
        Keeper(house.deployment).round()
    with house.deployment.database.transaction() as tx:
        bodies = [json.loads(body) for body in tx.execute(select(tables.notice.c.body)).scalars()]
    return [body for body in bodies if body["type"] == "code_break.overdue"]


def findings(house: House) -> list[str]:
    """Return what `snose doctor` says of code breaks."""
    around: Surroundings = surroundings(house.settings, house.clock)
    try:
        return [one.what for one in safety.concerns(around, house.settings.mode) if "wait for a" in one.what]
    finally:
        around.database.close()


def assessments(house: House) -> int:
    with house.deployment.database.transaction() as tx:
        return int(tx.execute(select(func.count()).select_from(tables.code_break_assessment)).scalar_one())


class TestAssessment:
    def test_once_by_site_or_study(self, house: House) -> None:
        """Entered with its words restricted, shown by its word; nobody else may, and not twice. [EUB-24, E3, USR-21, D6]"""
        study = running_study(house, subjects=2)
        first, second = (break_code(study.investigator, f"01-000{number}") for number in (1, 2))
        for role in ("coordinator", "monitor", "pharmacist", "safety_officer", "statistician", "inspector"):
            expect(study.person(role).post(at(first), json=WORDS), 403)
        expect(house.machine("edc_client").post(at(first), json=WORDS), 403)
        expect(study.person("investigator", "02").post(at(first), json=WORDS), 404)
        expect(study.study_admin.post(at("00000000-0000-4000-8000-000000000000"), json=WORDS), 404)
        expect(study.study_admin.post(f"/v1/studies/OTHER/code-breaks/{first}/assessment", json=WORDS), 404)
        wrong: list[dict[str, Json]] = [
            {"impact": "HUCMSC"},
            {"assessment": ""},
            {"assessment": "x" * 2001},
            {"assessment": "a\x00b"},
            {"assessment": "\U00020000" * 2000, "corrective_action": "\U00020000" * 1000},
            {"corrective_action": ""},
            {"corrective_action": "x" * 1001},
            {"arm_code": "HUCMSC"},
        ]
        for fields in wrong:
            expect(study.study_admin.post(at(first), json={**WORDS, **fields}), 422)
        assert assessments(house) == 0
        # Not who broke the code, and yet of its site.
        answer = expect(study.person("investigator", "01").post(at(first), json=WORDS), 201)
        by_admin = {"impact": "none", "assessment": "Nobody was told."}
        expect(study.study_admin.post(at(second), json=by_admin), 201)
        problem = expect(study.investigator.post(at(first), json=by_admin), 409)
        assert problem["code"] == "already_exists"
        entry = house.trail(STUDY)[answer["receipt"]["log_index"]]
        assert (entry["action"], entry["outcome"]) == ("code_break:assess", "done")
        assert (entry["target"], entry["after"]) == ({"code_break_id": first}, {"impact": "bias_possible"})
        assert study.restricted(answer["receipt"]["log_index"])["part"] == {
            "assessment": WORDS["assessment"],
            "corrective_action": WORDS["corrective_action"],
        }
        line = line_of(study.person("monitor"), first)
        assert (line["assessed_at"], line["impact"]) == (answer["assessed_at"], "bias_possible")
        assert answer["assessed_by"] == study.person("investigator", "01").username
        everywhere = json.dumps([house.trail(STUDY), line])
        assert "The ward knows" not in everywhere
        assert "Told again" not in everywhere
        report = expect(study.study_admin.get(f"{S}/subjects/01-0001/disclosures"), 200)
        assert ("code_break:assess", "record") in [(one["action"], one["learnt"]) for one in report["items"]]
        study.set_status("closed")
        assert expect(study.study_admin.post(at(first), json=by_admin), 409)["code"] == "already_exists"

    def test_two_at_once(self, house: House) -> None:
        """One of them stands, and all others are told so. [EUB-24]"""
        study = running_study(house, subjects=1)
        broken = break_code(study.investigator, "01-0001")
        study.study_admin.token()
        with ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(lambda _: study.study_admin.post(at(broken), json=WORDS), range(4)))
        assert sorted(answer.status_code for answer in answers) == [201, 409, 409, 409]
        assert assessments(house) == 1

    @pytest.mark.parametrize("database_kind", ["sqlite"])
    def test_a_repetition_gets_the_same_answer(self, house: House) -> None:
        """By its key. [C4]"""
        study = running_study(house, subjects=1)
        path = at(break_code(study.investigator, "01-0001"))
        headers = {"Idempotency-Key": "the-same-assessment"}
        answers = [study.study_admin.post(path, json=WORDS, headers=headers) for _ in range(2)]
        assert answers[0].json() == answers[1].json()
        assert assessments(house) == 1


class TestOverdue:
    def test_is_told_and_blocks_nothing(self, house: House, monkeypatch: pytest.MonkeyPatch) -> None:
        """In the register, by `snose doctor`, and once by a notice, without treatment; until it is there. [EUB-09, D5, BLD-14]"""
        study = running_study(house, subjects=3)
        admin, doctor = study.study_admin, study.investigator
        # Nobody listens there; what is put into the outbox is looked at.
        house.restart(smtp_url="smtp://127.0.0.1:9", smtp_sender="snose@hospital.example.org")
        expect(admin.post(f"{S}/contacts", json={"email": "breaks@sponsor.example.org"}), 201)
        broken = break_code(doctor, "01-0001")
        in_time = break_code(doctor, "01-0002")
        expect(doctor.post(at(in_time, "narrative"), json={"narrative": "A child."}), 201)
        expect(doctor.post(at(in_time), json=WORDS), 201)
        house.clock.advance(hours=23)
        assert (line_of(doctor, broken)["overdue"], told(house, 2), findings(house)) == ([], [], [])
        house.clock.advance(hours=2)
        assert line_of(doctor, broken)["overdue"] == ["narrative"]
        assert findings(house) == [f"1 code breaks of {STUDY} wait for a narrative or an assessment that is overdue."]
        # As of two workers.
        [notice] = told(house, 2)
        assert notice["data"] == {
            "study_code": STUDY,
            "mode": "test",
            "site_code": "01",
            "code_break_id": broken,
            "overdue": "narrative",
        }
        mail = mail_text(notice["type"], notice["timestamp"], notice["data"])
        assert mail.startswith("What is told after a code break is overdue.")
        assert "Overdue: narrative" in mail
        assert not any(word in mail for pair in TREATMENTS.items() for word in pair)
        self._nothing_waits(house, study)
        expect(doctor.post(at(broken, "narrative"), json={"narrative": "A fit."}), 201)
        house.clock.advance(days=12)
        assert line_of(doctor, broken)["overdue"] == []
        house.clock.advance(days=1)
        assert line_of(doctor, broken)["overdue"] == ["assessment"]
        assert sorted(one["data"]["overdue"] for one in told(house, 2)) == ["assessment", "narrative"]
        # Another worker that is at it in the same moment: the outbox has it already.
        monkeypatch.setattr(notices, "is_posted", lambda *_: False)
        tell_late_breaks(house.deployment)
        assert len(told(house)) == 2
        expect(admin.post(at(broken), json=WORDS), 201)
        assert (line_of(doctor, broken)["overdue"], findings(house)) == ([], [])
        assert line_of(doctor, in_time)["overdue"] == []

    def _nothing_waits(self, house: House, study: RunningStudy) -> None:
        """Break another code while one waits, and have all told of it at once."""
        another = break_code(study.investigator, "01-0003")
        expect(study.investigator.post(at(another, "narrative"), json={"narrative": "A fall."}), 201)
        expect(study.study_admin.post(at(another), json=WORDS), 201)
        assert line_of(study.investigator, another)["overdue"] == []
        assert len(told(house)) == 1

    @pytest.mark.parametrize("database_kind", ["sqlite"])
    def test_doctor_without_a_database(self, house: House) -> None:
        """What is wrong with the database itself is told elsewhere, and hides nothing else."""
        house.settings = house.settings.model_copy(update={"database_url": "sqlite:////nowhere/at/all.db"})
        assert findings(house) == []

    def test_late(self) -> None:
        """At the moment it is due, something is not late yet; after it, it is. [EUB-09]"""
        moment = timedelta(microseconds=1)
        then = BEGINNING + ASSESSMENT_WITHIN
        assert late(BEGINNING, None, None, BEGINNING + NARRATIVE_WITHIN) == ()
        assert late(BEGINNING, None, None, BEGINNING + NARRATIVE_WITHIN + moment) == (Late.NARRATIVE,)
        assert late(BEGINNING, None, None, then + moment) == (Late.NARRATIVE, Late.ASSESSMENT)
        assert late(BEGINNING, then, None, then) == ()
        assert late(BEGINNING, then, None, then + moment) == (Late.ASSESSMENT,)
        assert late(BEGINNING, then, then, then + moment) == ()
