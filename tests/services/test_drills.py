"""Code-break drills: practised before a site is activated and every year, timed, and far from every live subject."""

from datetime import datetime, timedelta
from typing import Final

import pytest
from sqlalchemy import func, select

from app.domain.drills import ARM_CODE, ONE_GO, PERIOD, dummy_site, is_dummy, is_overdue, seconds_to_reveal
from app.domain.words import subject_key
from app.errors import Invalid
from app.storage import tables
from tests.harness import BEGINNING, STUDY, Caller, House, Json, drill, expect
from tests.running_study import TREATMENTS, RunningStudy, S, allocation_of, running_study

BODY: Final = {"subject_id": "DRILL-01", "reason_code": "overdose"}
BREAK: Final = {"subject_id": "01-0001", "reason_code": "overdose"}
LIVE: Final = ("allocation", "code_break", "kit", "kit_assignment", "slot", "stratum", "subject_flag", "envelope")


def live(study: RunningStudy) -> list[Json]:
    """Return everything that stands of subjects, slots and kits."""
    with study.house.deployment.database.transaction() as tx:
        return [sorted(map(repr, tx.execute(select(tables.metadata.tables[name])).all())) for name in LIVE]


def listed(caller: Caller) -> Json:
    return expect(caller.get(f"{S}/drills", limit=500), 200)


class TestDrill:
    def test_on_a_dummy_subject(self, house: House) -> None:
        """The form and the steps of a code break; the answer is made up and says so, and nothing live is touched.

        [EUB-18, EUB-06]
        """
        study = running_study(house, subjects=1)
        before, doctor = live(study), study.investigator
        assert expect(doctor.post(f"{S}/drills", json=BODY), 401)["code"] == "step_up_required"
        house.clock.advance(seconds=20)
        answer = expect(doctor.post(f"{S}/drills", json={**BODY, "subject_id": " drill-01 "}, step_up=True), 201)
        assert (answer["subject_id"], answer["site_code"], answer["arm_code"]) == ("DRILL-01", "01", ARM_CODE)
        assert answer["treatment"].startswith("TEST DRILL")
        assert not any(word in str(answer) for arm in TREATMENTS.items() for word in arm)
        assert 20 <= answer["seconds_to_reveal"] < 60
        entry = house.trail(STUDY)[answer["receipt"]["log_index"]]
        assert (entry["action"], entry["outcome"], entry["actor"]) == ("drill:create", "done", doctor.username)
        assert entry["after"]["seconds_to_reveal"] == answer["seconds_to_reveal"]
        assert live(study) == before
        # The time begins anew with each drill, and in the closed study one can be done like a code break.
        study.set_status("closed")
        again = expect(doctor.post(f"{S}/drills", json=BODY, step_up=True), 201)
        assert again["seconds_to_reveal"] == 0

    def test_who_may_and_about_whom(self, house: House) -> None:
        """An investigator, at their own site, on its dummy subject and on nobody else. [EUB-18, USR-21, rule G2]"""
        study = running_study(house, subjects=1)
        elsewhere = study.person("investigator", site="02")
        before = len(listed(study.study_admin)["items"])
        tries: list[tuple[Caller, str, int]] = [
            (study.investigator, "01-0001", 422),
            (study.investigator, "DRILL-", 422),
            (study.investigator, "DRILL", 422),
            (study.investigator, "DRILL-02", 404),
            (study.investigator, "DRILL-77", 404),
            (elsewhere, "DRILL-01", 404),
            (study.people["pharmacist"], "DRILL-01", 403),
            (study.person("coordinator"), "DRILL-01", 403),
            (study.study_admin, "DRILL-01", 403),
            (study.person("safety_officer"), "DRILL-01", 403),
        ]
        for caller, subject, status in tries:
            expect(caller.post(f"{S}/drills", json={**BODY, "subject_id": subject}, step_up=True), status)
        expect(study.investigator.post(f"{S}/drills", json={**BODY, "kit_code": study.free_kit()}, step_up=True), 422)
        expect(study.investigator.post(f"{S}/drills", json={**BODY, "reason_code": "curiosity"}, step_up=True), 422)
        assert len(listed(study.study_admin)["items"]) == before

    def test_a_dummy_is_never_a_subject(self, house: House) -> None:
        """Nobody is allocated under its name, in any spelling, and a code break finds nobody. [EUB-18]"""
        study = running_study(house, subjects=0)
        for subject in ("DRILL-01", "drill-x", "\uff24rill-01"):
            answer = expect(study.investigator.post(f"{S}/allocations", json=allocation_of(subject)), 422)
            assert answer["errors"][0]["field"] == "subject_id"
        expect(study.investigator.post(f"{S}/allocations", json=allocation_of("DRILL01")), 201)
        body = {**BREAK, "subject_id": "DRILL-01"}
        expect(study.investigator.post(f"{S}/code-breaks", json=body, step_up=True), 404)

    def test_the_report(self, house: House) -> None:
        """Who did one, where, when and how fast; who has one to do, told and never in the way. [EUB-18, EUB-04, USR-21]"""
        study = running_study(house, subjects=1)
        elsewhere = study.person("investigator", site="02")
        drill(elsewhere, site="02")
        everybody = listed(study.study_admin)
        assert [one["site_code"] for one in everybody["items"]] == ["01", "01", "02"]
        assert listed(study.person("monitor")) == listed(study.person("inspector")) == everybody
        assert not any(one["overdue"] for one in everybody["people"])
        own = listed(elsewhere)
        assert {one["site_code"] for one in own["items"] + own["people"]} == {"02"}
        first = expect(study.study_admin.get(f"{S}/drills", limit=2), 200)
        rest = expect(study.study_admin.get(f"{S}/drills", limit=2, cursor=first["next_cursor"]), 200)
        assert first["items"] + rest["items"] == everybody["items"]
        assert rest["next_cursor"] is None
        for role in ("coordinator", "pharmacist", "statistician", "safety_officer"):
            expect(study.person(role).get(f"{S}/drills"), 403)
        house.clock.advance(days=366)
        drill(study.investigator)
        late = {one["username"]: one["overdue"] for one in listed(study.study_admin)["people"]}
        assert late.pop(study.investigator.username) is False
        assert set(late.values()) == {True}
        # Overdue blocks nothing: the other site's code can be broken as before.
        expect(study.investigator.post(f"{S}/code-breaks", json=BREAK, step_up=True), 201)


class TestReadiness:
    def test_a_site_needs_two_who_have_done_it(self, house: House, monkeypatch: pytest.MonkeyPatch) -> None:
        """Activation names who has the drill still to do; another site's drill does not count. [EUB-16, EUB-18]"""
        study = running_study(house, subjects=0)
        path = f"{S}/sites/02/activation"
        one, two = (house.person("investigator", site="02") for _ in range(2))

        def missing() -> str:
            return str(expect(study.study_admin.post(path, step_up=True), 409)["detail"])

        assert f"drill by each of two people there (to do: {one.username}, {two.username})" in missing()
        drill(one, one, site="02")
        assert f"(to do: {two.username})" in missing()
        house.grant(study.investigator, "investigator", site="02")
        assert f"(to do: {study.investigator.username}, {two.username})" in missing()
        drill(two, site="02")
        assert "drill" not in missing()
        # Whoever may break no code any more does not count, however often they have practised.
        expect(house.admin.delete(f"/v1/people/{two.username}/grants/{two.grant_ids[0]}"), 204)
        assert f"(to do: {study.investigator.username})" in missing()
        # The build that counts nobody's drills opens the site without.
        monkeypatch.setattr("app.services.studies._ABLE_TO_BREAK", 0)
        assert "drill" not in missing()


class TestTime:
    def test_of_a_real_code_break(self, house: House) -> None:
        """From that person's first request, the challenge included, to the reveal; shown in the register. [EUB-03, EUB-18]"""
        study = running_study(house, subjects=2)
        doctor = study.investigator
        other = study.person("investigator", site="02")
        expect(doctor.post(f"{S}/code-breaks", json=BREAK), 401)
        house.clock.advance(seconds=40)
        expect(other.post(f"{S}/code-breaks", json=BREAK), 401)
        expect(doctor.post(f"{S}/code-breaks", json=BREAK, step_up=True), 201)
        expect(doctor.post(f"{S}/code-breaks", json={**BREAK, "subject_id": "01-0002"}, step_up=True), 201)
        items = expect(doctor.get(f"{S}/code-breaks"), 200)["items"]
        assert 40 <= items[0]["seconds_to_reveal"] < 80
        assert items[1]["seconds_to_reveal"] == 0
        # A page that begins with the second says the same of it.
        page = expect(doctor.get(f"{S}/code-breaks", limit=1), 200)
        page = expect(doctor.get(f"{S}/code-breaks", limit=1, cursor=page["next_cursor"]), 200)
        assert page["items"] == items[1:]

    @pytest.mark.parametrize(
        ("asked", "before", "expected"),
        [
            ([], [], 0.0),
            ([-30], [], 30.0),
            ([-30, -90, -10], [], 90.0),
            ([-90, -10], [-60], 10.0),
            ([-90, -10], [-60, 0], 10.0),
            ([-90, 10], [-60], 0.0),
            ([-3601, -5], [], 5.0),
            ([-3600.0], [], 0.0),
            ([-3599.5], [], 3599.5),
        ],
    )
    def test_from_the_first_request_of_this_go(self, asked: list[float], before: list[float], expected: float) -> None:
        """What was shown before ends a go, and so does an hour; what comes later is of another. [EUB-18]"""

        def at(seconds: float) -> datetime:
            return BEGINNING + timedelta(seconds=seconds)

        assert seconds_to_reveal(BEGINNING, map(at, asked), map(at, before)) == expected
        assert timedelta(hours=1) == ONE_GO


class TestWords:
    def test_dummies(self) -> None:
        """The reserved form, in any spelling; the code of a site keeps its letters. [EUB-18]"""
        assert dummy_site("DRILL-01") == "01"
        assert dummy_site(" drill-Ab_c ") == "Ab_c"
        assert is_dummy(subject_key("Drill-9"))
        assert not is_dummy(subject_key("DRILLS-9"))
        for other in ("01-0001", "DRILL-", "DRILL"):
            with pytest.raises(Invalid):
                dummy_site(other)

    def test_overdue(self) -> None:
        """Never done, or longer ago than a year. [EUB-18]"""
        assert is_overdue(None, BEGINNING)
        assert not is_overdue(BEGINNING, BEGINNING + PERIOD)
        assert is_overdue(BEGINNING, BEGINNING + PERIOD + timedelta(seconds=1))


def test_a_drill_twice_with_one_key(house: House) -> None:
    """It is recorded once, and answered twice. [C4]"""
    study = running_study(house, subjects=0)
    headers = {"Idempotency-Key": "one"}
    first = expect(study.investigator.post(f"{S}/drills", json=BODY, headers=headers, step_up=True), 201)
    assert expect(study.investigator.post(f"{S}/drills", json=BODY, headers=headers, step_up=True), 200) == first
    with house.deployment.database.transaction() as tx:
        count = tx.execute(select(func.count()).select_from(tables.drill)).scalar_one()
    assert count == 3
