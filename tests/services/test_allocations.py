"""Allocating a subject: once, in order, with everything in one transaction, and flagged but never undone."""

import json
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import select, text

from app.domain.words import ErrorCategory, Role
from app.storage import tables
from tests.harness import STUDY, Caller, House, Json, SeededEntropy, expect, signed_as
from tests.running_study import RunningStudy, S, execute, running_study, tampering

PATH = f"{S}/allocations"


def request(subject_id: str = "01-0100", **fields: Json) -> dict[str, Json]:
    return {
        "subject_id": subject_id,
        "site_code": "01",
        "strata": {},
        "consent_confirmed": True,
        "eligibility_confirmed": True,
        **fields,
    }


def used(study: RunningStudy) -> tuple[int, int, int]:
    """Return what an allocation uses up: slots, allocations, kits that are assigned."""
    with study.house.deployment.database.transaction() as tx:
        return (
            tx.execute(text("SELECT coalesce(sum(allocated), 0) FROM stratum")).scalar_one(),
            tx.execute(text("SELECT count(*) FROM allocation")).scalar_one(),
            tx.execute(text("SELECT count(*) FROM kit WHERE status <> 'in_stock'")).scalar_one(),
        )


class TestAllocate:
    def test_answer_and_entry(self, house: House) -> None:
        """The flat answer of the contract, with the receipt of its entry; the entry tells no arm. [ASG-03, ASG-05, ASG-17]"""
        study = running_study(house, subjects=0)
        answer = expect(study.investigator.post(PATH, json=request(" 01-0100 ")), 201)
        assert list(answer) == [
            "study_code",
            "mode",
            "subject_id",
            "site_code",
            "randomization_number",
            "kit_code",
            "allocated_at",
            "receipt",
        ]
        assert answer["subject_id"] == "01-0100"
        assert answer["allocated_at"].endswith("+00:00")
        entry = house.trail(STUDY)[answer["receipt"]["log_index"]]
        assert entry["after"]["kit_code"] == answer["kit_code"]
        assert entry["target"]["subject_id"] == "01-0100"
        assert not any(word in str(entry) for word in ("HUCMSC", "PLACEBO"))

    def test_headers(self, house: House) -> None:
        """The answer may not be kept by others, and carries a signed checkpoint. [BLD-13, custody: trail]"""
        response = running_study(house, subjects=0).investigator.post(PATH, json=request())
        assert response.headers["Cache-Control"] == "private, no-cache"
        size, root, signature = response.headers["Audit-Checkpoint"].split(" ")
        assert int(size) == response.json()["receipt"]["log_index"] + 1
        assert root
        assert signature

    def test_list_order_without_gap(self, house: House) -> None:
        """Subjects get the slots of their stratum in list order, the first from the first. [ASG-04, ASG-09]"""
        study = running_study(house, subjects=5)
        with house.deployment.database.transaction() as tx:
            rows = tx.execute(
                select(tables.allocation.c.ordinal, tables.allocation.c.position).order_by(
                    tables.allocation.c.allocated_at
                )
            ).all()
        assert [(row.ordinal, row.position) for row in rows] == [(n, n) for n in range(5)]
        assert len({allocation["kit_code"] for allocation in study.allocations}) == 5

    @pytest.mark.parametrize("again", ["01-0100", " 01-0100", "01-0100 "])
    def test_same_request_again(self, house: House, again: str) -> None:
        """Same subject, site and strata: the stored answer, nothing more used, the replay entered. [ASG-07, ASG-08]"""
        study = running_study(house, subjects=0)
        first = study.investigator.post(PATH, json=request())
        before = used(study)
        second = study.investigator.post(PATH, json=request(again))
        assert second.status_code == 200
        assert second.headers["Idempotency-Replayed"] == "true"
        assert second.content == first.content
        assert used(study) == before
        assert house.trail(STUDY)[-1]["outcome"] == "replayed"

    def test_same_request_by_another(self, house: House) -> None:
        """Anyone who may read the subject gets the same answer to the same request. [rule C4]"""
        study = running_study(house, subjects=0)
        first = study.investigator.post(PATH, json=request())
        machine = house.machine(Role.EDC_CLIENT)
        second = machine.post(PATH, json=request(reported_user="nurse.li"))
        assert (second.status_code, second.content) == (200, first.content)

    def test_other_data_for_the_subject(self, house: House) -> None:
        """Other data for an allocated subject is a conflict, with a link only where the caller may read it. [ASG-07, G2]"""
        study = running_study(house, subjects=0)
        expect(study.investigator.post(PATH, json=request()), 201)
        elsewhere = house.person(Role.INVESTIGATOR, site="02")
        problem = expect(elsewhere.post(PATH, json=request(site_code="02")), 409)
        assert problem["code"] == "subject_id_unavailable"
        assert "location" not in problem
        machine = house.machine(Role.EDC_CLIENT)
        problem = expect(machine.post(PATH, json=request(site_code="02", reported_user="x")), 409)
        assert problem["code"] == "already_allocated"
        assert problem["location"] == f"{S}/subjects/01-0100/allocation"

    @pytest.mark.parametrize("field", ["consent_confirmed", "eligibility_confirmed"])
    def test_not_confirmed(self, house: House, field: str) -> None:
        """Without consent and eligibility nothing is used; the refusal is entered. [ASG-02, ASG-14]"""
        study = running_study(house, subjects=0)
        before = used(study)
        problem = expect(study.investigator.post(PATH, json={**request(), field: False}), 422)
        assert (problem["code"], problem["errors"][0]["field"]) == ("not_confirmed", field)
        assert used(study) == before
        entry = house.trail(STUDY)[-1]
        assert (entry["outcome"], entry["after"]["code"]) == ("refused", "not_confirmed")

    @pytest.mark.parametrize("strata", [{"age": "old"}, {"site": "01"}])
    def test_invalid_strata(self, house: House, strata: dict[str, str]) -> None:
        """Values that are not the study's are refused, the site among them. [ASG-03]"""
        study = running_study(house, subjects=0)
        assert expect(study.investigator.post(PATH, json=request(strata=strata)), 422)["code"] == "invalid_strata"

    def test_unknown_site(self, house: House) -> None:
        """A site that is none, or not the caller's, is not found. [ASG-01, USR-21]"""
        study = running_study(house, subjects=0)
        for caller, site in ((study.investigator, "02"), (house.machine(Role.EDC_CLIENT), "77")):
            body = request(site_code=site, reported_user="nurse.li")
            assert expect(caller.post(PATH, json=body), 404)["code"] == "not_found"

    def test_inactive_site(self, house: House) -> None:
        """Nobody is randomized at a site that is not active. [ASG-01]"""
        running_study(house, subjects=0)
        investigator = house.person(Role.INVESTIGATOR, site="02")
        assert expect(investigator.post(PATH, json=request(site_code="02")), 409)["code"] == "site_inactive"

    def test_suspended(self, house: House) -> None:
        """A suspended study randomizes nobody, and a repeated request still gives the stored answer. [ASG-01, C4]"""
        study = running_study(house, subjects=1)
        study.set_status("suspended")
        assert expect(study.investigator.post(PATH, json=request()), 409)["code"] == "study_not_open"
        assert study.investigator.post(PATH, json=request("01-0001")).status_code == 200

    def test_machine_names_the_person(self, house: House) -> None:
        """A machine must name the person for whom it asks; the name is in the entry. [USR-15, C2]"""
        running_study(house, subjects=0)
        machine = house.machine(Role.EDC_CLIENT)
        assert expect(machine.post(PATH, json=request()), 422)["errors"][0]["field"] == "reported_user"
        expect(machine.post(PATH, json=request(reported_user="nurse.li")), 201)
        entry = house.trail(STUDY)[-1]
        assert (entry["actor"], entry["after"]["reported_user"]) == (machine.client_id, "nurse.li")

    def test_reported_user_of_a_person_is_ignored(self, house: House) -> None:
        """A person acts in their own name. [api.md]"""
        study = running_study(house, subjects=0)
        expect(study.investigator.post(PATH, json=request(reported_user="somebody.else")), 201)
        assert house.trail(STUDY)[-1]["after"]["reported_user"] is None

    def test_exhausted_list(self, house: House) -> None:
        """An exhausted list is one neutral refusal, and nothing is used. [ASG-15]"""
        study = running_study(house, subjects=4, length=4)
        before = used(study)
        assert expect(study.investigator.post(PATH, json=request()), 409)["code"] == "list_unavailable"
        assert used(study) == before

    def test_low_stock_uses_no_slot(self, house: House) -> None:
        """Below the floor of any arm there is one refusal, and no slot is used. [BLD-08, ASG-16]"""
        study = running_study(house, subjects=0, kits_per_arm=3, length=12)
        study.allocate("01-0001")
        before = used(study)
        assert expect(study.investigator.post(PATH, json=request()), 409)["code"] == "stock_insufficient"
        assert used(study) == before

    def test_two_at_once(self, house: House) -> None:
        """Many at once: one allocation a subject, slots in order, no kit twice, duplicates answered the same. [ASG-08, ASG-09]"""
        study = running_study(house, subjects=0, kits_per_arm=14, length=12)
        study.investigator.token()

        def ask(number: int) -> tuple[int, bytes]:
            response = study.investigator.post(PATH, json=request(f"01-{number % 8:04d}"))
            return number % 8, response.content if response.status_code in {200, 201} else b""

        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(ask, range(24)))
        assert all(content for _, content in answers)
        assert len(dict(answers)) == 8
        assert len(set(answers)) == 8
        slots, allocations, kits = used(study)
        assert (slots, allocations, kits) == (8, 8, 8)
        outcomes = Counter(entry["outcome"] for entry in house.trail(STUDY) if entry["action"] == "allocation:create")
        assert outcomes == {"done": 8, "replayed": 16}

    def test_draws_nothing_from_the_list(self, house: House) -> None:
        """Assigning a subject draws nothing from an allocation stream. [SEQ-10, rule A5]"""
        study = running_study(house, subjects=0)
        lists = house.deployment.list_entropy
        assert isinstance(lists, SeededEntropy)
        drawn = lists.drawn
        study.allocate("01-0001")
        assert lists.drawn == drawn == {"seed": 1}


class TestFurtherKits:
    def test_many_in_a_day_need_a_release(self, house: House) -> None:
        """Nobody drains the stock of one arm through one subject: past a day's measure a release is needed. [B7, B9, BLD-16]"""
        study = running_study(house, subjects=1, kits_per_arm=12)
        path = f"{S}/subjects/01-0001/kits"
        given = [
            expect(study.investigator.post(path, json={"visit": visit}), 201)["kit_code"]
            for visit in ("V1", "V2", "V3")
        ]
        refused = expect(study.investigator.post(path, json={"visit": "V4"}), 409)
        assert refused["code"] == "replacement_needs_release"
        release = f"{S}/kits/{given[-1]}/replacement-release"
        assert (
            study.people["supply_manager"].post(release, json={"reason": "Long trip."}, step_up=True).status_code < 300
        )
        expect(study.investigator.post(path, json={"visit": "V4"}), 201)
        assert study.investigator.post(path, json={"visit": "V5"}).status_code == 409
        house.clock.advance(hours=25)
        expect(study.investigator.post(path, json={"visit": "V5"}), 201)

    def test_many_at_once_are_no_more_than_in_order(self, house: House) -> None:
        """Asked for at the same instant, a subject's visits get a day's measure and not one kit more [B7, B9, BLD-16]"""
        study = running_study(house, subjects=1, kits_per_arm=12)
        path = f"{S}/subjects/01-0001/kits"
        study.investigator.token()
        with ThreadPoolExecutor(8) as hands:
            answers = list(hands.map(lambda at: study.investigator.post(path, json={"visit": f"V{at}"}), range(8)))
        assert Counter(answer.status_code for answer in answers) == {201: 3, 409: 5}
        refused = {answer.json()["code"] for answer in answers if answer.status_code == 409}
        assert refused == {"replacement_needs_release"}
        assert used(study)[2] == 4


class TestRead:
    def test_lost_allocation(self, house: House) -> None:
        """Where an allocation was cut out of the database, its subject is not allocated anew. [C4, C7]"""
        study = running_study(house, subjects=1)
        with tampering(study, "kit_assignment", "allocation"):
            execute(study, "DELETE FROM kit_assignment", "DELETE FROM allocation")
        body = request("01-0001", site_code="02", reported_user="nurse.li")
        assert expect(house.machine().post(PATH, json=body), 503)["code"] == "integrity_failure"
        assert used(study)[1] == 0

    def test_lost_kit(self, house: House) -> None:
        """An allocation whose kit is gone from the database is told as what it is, never a fault of ours. [G2, CUS-10]"""
        study = running_study(house, subjects=1)
        with tampering(study, "kit_assignment"):
            execute(study, "DELETE FROM kit_assignment")
        problem = expect(study.investigator.get(f"{S}/subjects/01-0001/allocation"), 503)
        assert problem["code"] == "integrity_failure"

    def test_record(self, house: House) -> None:
        """The same object as was answered, with current kits, flags and strata. [EXP-01]"""
        study = running_study(house, subjects=1)
        answered = study.allocations[0]
        record = expect(study.investigator.get(f"{S}/subjects/01-0001/allocation"), 200)
        assert {name: record[name] for name in answered} == answered
        assert record["current_kit_codes"] == [answered["kit_code"]]
        assert set(record["flags"]) == {
            "unblinded_at",
            "error_mark",
            "duplicate_of",
            "accidentally_unblinded_at",
            "safety_unblinded_at",
        }
        assert set(record["flags"].values()) == {None}
        assert (record["strata_used"], record["strata_corrected"]) == ({}, None)
        assert study.investigator.get(f"{S}/subjects/01-9999/allocation").status_code == 404

    def test_pages_are_pinned(self, house: House) -> None:
        """Pages hold what stood there at the first one, each subject once; the list is entered once. [api.md, E1]"""
        study = running_study(house, subjects=3)
        monitor = house.person(Role.MONITOR)
        first = expect(monitor.get(PATH, limit=2), 200)
        study.allocate("01-0004")
        second = expect(monitor.get(PATH, limit=2, cursor=first["next_cursor"]), 200)
        assert [item["subject_id"] for item in first["items"] + second["items"]] == ["01-0001", "01-0002", "01-0003"]
        assert second["next_cursor"] is None
        entries = [entry for entry in house.trail(STUDY) if entry["action"] == "allocation:list"]
        assert len(entries) == 1

    def test_own_site_only(self, house: House) -> None:
        """A site reads its own subjects. [USR-03]"""
        running_study(house, subjects=1)
        other = house.person(Role.COORDINATOR, site="02")
        assert expect(other.get(PATH), 200)["items"] == []
        assert other.get(f"{S}/subjects/01-0001/allocation").status_code == 404


class TestFlags:
    def flagged(self, caller: Caller, subject: str = "01-0001") -> dict[str, Any]:
        record: dict[str, Any] = expect(caller.get(f"{S}/subjects/{subject}/allocation"), 200)
        return record

    def test_error_mark(self, house: House) -> None:
        """Randomized in error is marked with category and reason; the allocation and its slot stay. [ASG-10, C7]"""
        study = running_study(house, subjects=1)
        before = used(study)
        path = f"{S}/subjects/01-0001/error-mark"
        body = {"category": "ineligible", "reason": "canary"}
        assert expect(study.investigator.post(path, json=body), 401)["code"] == "step_up_required"
        expect(study.investigator.post(path, json=body, step_up=True), 201)
        record = self.flagged(study.investigator)
        assert record["flags"]["error_mark"]["category"] == "ineligible"
        assert record["kit_code"] == study.allocations[0]["kit_code"]
        assert used(study) == before
        assert not any(b"canary" in entry for entry in house.bodies())

    @pytest.mark.parametrize("category", ["she_got_placebo", "Ineligible", "", None])
    def test_error_mark_of_no_category(self, house: House, category: object) -> None:
        """The category stands in the public part of the trail, so it is one of those there are; the field is named. [ASG-10, E3]"""
        study = running_study(house, subjects=1)
        body = {"category": category, "reason": "canary"}
        problem = expect(study.investigator.post(f"{S}/subjects/01-0001/error-mark", json=body, step_up=True), 422)
        assert [fault["field"] for fault in problem["errors"]] == ["category"]
        assert "placebo" not in json.dumps(house.trail(STUDY)[-1])
        for known in ErrorCategory:
            body = {"category": known, "reason": "canary"}
            expect(study.investigator.post(f"{S}/subjects/01-0001/error-mark", json=body, step_up=True), 201)
            assert house.trail(STUDY)[-1]["after"] == {"category": known, **signed_as(study.investigator, "authorship")}

    def test_strata_correction(self, house: House) -> None:
        """The right values stand beside those used. [ASG-11]"""
        factors = [
            {
                "factor_code": "age",
                "label": "Age",
                "levels": [{"level_code": "young", "label": "< 35"}, {"level_code": "older", "label": ">= 35"}],
            }
        ]
        study = running_study(house, subjects=0, factors=factors)
        expect(study.investigator.post(PATH, json=request("01-0001", strata={"age": "young"})), 201)
        path = f"{S}/subjects/01-0001/strata-correction"
        wrong = {"strata": {"age": "ancient"}, "reason": "typed wrongly"}
        assert expect(study.investigator.post(path, json=wrong), 422)["code"] == "invalid_strata"
        expect(study.investigator.post(path, json={**wrong, "strata": {"age": "older"}}), 201)
        record = self.flagged(study.investigator)
        assert (record["strata_used"], record["strata_corrected"]) == ({"age": "young"}, {"age": "older"})

    def test_duplicate_link(self, house: House) -> None:
        """One person under two identifiers: both allocations stay, linked. [ASG-12]"""
        study = running_study(house, subjects=2)
        path = f"{S}/subjects/01-0002/duplicate-link"
        body = {"duplicate_of": "01-0001", "reason": "same person"}
        expect(study.investigator.post(path, json=body), 201)
        assert self.flagged(study.investigator, "01-0002")["flags"]["duplicate_of"] == "01-0001"
        assert self.flagged(study.investigator)["flags"]["duplicate_of"] is None
        # Of itself is no value at all, whether or not there is such a subject (rule G2).
        for subject in ("01-0002", "01-9999"):
            own = {"duplicate_of": subject, "reason": "itself"}
            answer = study.investigator.post(f"{S}/subjects/{subject}/duplicate-link", json=own)
            assert expect(answer, 422)["errors"][0]["field"] == "duplicate_of"
        unknown = {"duplicate_of": "01-9999", "reason": "nobody"}
        assert study.investigator.post(path, json=unknown).status_code == 404
