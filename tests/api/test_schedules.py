"""Allocation lists over HTTP: statuses, exact answers, and what each role may read."""

from collections.abc import Mapping
from typing import Any
from uuid import uuid4

import pytest

from app.domain.schedules import ALGORITHM
from tests.harness import STUDY, Caller, House, Json, expect
from tests.memory import remembered

PATH = f"/v1/studies/{STUDY}/schedules"
SPECIFICATION: Mapping[str, Any] = {
    "block_sizes": [4, 6, 8],
    "block_size_weights": [1, 1, 1],
    "length_per_stratum": 320,
    "fill": "exact",
}
BLINDED = {
    "schedule_id",
    "list_id",
    "segment_number",
    "origin",
    "status",
    "algorithm",
    "commitment",
    "generated_at",
    "generated_by",
    "decided_at",
    "decided_by",
    "activated_at",
    "activated_by",
    "is_signed",
    "signatures",
}


@pytest.fixture
def statistician(house: House) -> Caller:
    """The statistician of a registered study."""

    def begin() -> Caller:
        house.register_study()
        return house.person("statistician")

    return remembered(house, "statistician", begin)


def generate(statistician: Caller, **fields: Json) -> Json:
    return expect(statistician.post(PATH, json={**SPECIFICATION, **fields}, step_up=True), 201)


def approve(approver: Caller, made: Json) -> Json:
    body = {"commitment": made["commitment"], "meaning": "approval"}
    return expect(approver.post(f"{PATH}/{made['schedule_id']}/approval", json=body, step_up=True), 200)


class TestGenerating:
    def test_the_answer(self, house: House, statistician: Caller) -> None:
        """The statistician learns what was made, and the checkpoint of it. [SEQ-01, api]"""
        response = statistician.post(PATH, json=dict(SPECIFICATION), step_up=True)
        made = expect(response, 201)
        assert made == {
            "schedule_id": made["schedule_id"],
            "list_id": made["schedule_id"],
            "segment_number": 0,
            "extends": None,
            "status": "generated",
            "algorithm": ALGORITHM,
            "slots": 320,
            "commitment": made["commitment"],
            "warnings": [],
            "is_signed": True,
            "signatures": made["signatures"],
        }
        assert bytes.fromhex(made["commitment"]).hex() == made["commitment"]
        assert response.headers["cache-control"] == "no-store"
        assert response.headers["audit-checkpoint"].split()[0] == str(len(house.trail(STUDY)))

    def test_lengths_by_stratum(self, house: House) -> None:
        """Instead of one length, one for each stratum; weights may be left out. [SEQ-01]"""
        house.register_study(sites=("01", "02"), stratify_by_site=True)
        lengths = [{"site_code": "02", "length": 8}, {"site_code": "01", "strata": {}, "length": 4}]
        body = {"block_sizes": [4], "lengths": lengths, "fill": "exact"}
        made = expect(house.person("statistician").post(PATH, json=body, step_up=True), 201)
        assert made["slots"] == 12
        assert len(made["warnings"]) == 1

    @pytest.mark.parametrize(
        ("fields", "field"),
        [
            ({"block_sizes": [5]}, "block_sizes"),
            ({"block_sizes": ["4"]}, "block_sizes.0"),
            ({"block_sizes": None}, "block_sizes"),
            ({"block_size_weights": [1, 1]}, "block_size_weights"),
            ({"length_per_stratum": 319}, "length_per_stratum"),
            ({"length_per_stratum": 10**30}, "length_per_stratum"),
            ({"length_per_stratum": 3.5}, "length_per_stratum"),
            ({"length_per_stratum": None}, "lengths"),
            ({"lengths": [{"length": 320}]}, "lengths"),
            ({"length_per_stratum": None, "lengths": [{"site_code": "/", "length": 320}]}, "lengths.0.site_code"),
            ({"length_per_stratum": None, "lengths": [{"site_code": "01", "length": 320}]}, "lengths"),
            ({"fill": "random"}, "fill"),
            ({"seed": "00"}, "seed"),
            ({"reason": ""}, "reason"),
        ],
    )
    def test_an_invalid_specification(self, statistician: Caller, fields: Mapping[str, Any], field: str) -> None:
        """The field is named, a seed of the caller's has none, and nothing is stored. [SEQ-02, SEQ-05]"""
        problem = expect(statistician.post(PATH, json={**SPECIFICATION, **fields}, step_up=True), 422)
        assert [fault["field"] for fault in problem["errors"]] == [field]
        assert expect(statistician.get(PATH), 200) == {"items": [], "next_cursor": None}

    def test_a_second_list(self, statistician: Caller) -> None:
        """It needs a reason. [SEQ-08]"""
        generate(statistician)
        problem = expect(statistician.post(PATH, json=dict(SPECIFICATION), step_up=True), 422)
        assert (problem["code"], problem["errors"][0]["field"]) == ("invalid_specification", "reason")
        generate(statistician, reason="protocol amendment 1")

    def test_without_a_fresh_proof(self, statistician: Caller) -> None:
        """The specification is signed, so it needs the second factor. [SIG-01]"""
        assert expect(statistician.post(PATH, json=dict(SPECIFICATION)), 401)["code"] == "step_up_required"


class TestWhoReadsWhat:
    @pytest.mark.parametrize(
        "role",
        [
            "study_admin",
            "investigator",
            "coordinator",
            "pharmacist",
            "monitor",
            "inspector",
            "edc_client",
            "supply_manager",
            "unblinded_pharmacist",
            "safety_officer",
        ],
    )
    def test_no_slots_and_no_blocks(self, house: House, statistician: Caller, role: str) -> None:
        """Every other role reads a type that has no field for slots or block sizes, in both calls. [BLD-03, SEQ-14]"""
        made = generate(statistician)
        reader = house.machine(role) if role == "edc_client" else house.person(role)
        one = expect(reader.get(f"{PATH}/{made['schedule_id']}"), 200)
        page = expect(reader.get(PATH), 200)
        assert one.keys() == BLINDED
        assert page == {"items": [one], "next_cursor": None}
        assert expect(reader.get(f"{PATH}/{made['schedule_id']}/quality-report"), 403)["code"] == "forbidden"

    @pytest.mark.parametrize("role", ["statistician", "list_approver"])
    def test_slots_and_block_sizes(self, house: House, statistician: Caller, role: str) -> None:
        """Statistician and approver read both. [api]"""
        made = generate(statistician)
        reader = house.person(role)
        one = expect(reader.get(f"{PATH}/{made['schedule_id']}"), 200)
        assert one.keys() == BLINDED | {"slots", "block_sizes"}
        assert (one["slots"], one["block_sizes"]) == (320, [4, 6, 8])
        assert expect(reader.get(PATH), 200)["items"] == [one]

    def test_somebody_with_two_unblinded_roles(self, house: House, statistician: Caller) -> None:
        """What is held besides does not blind a statistician."""
        made = generate(statistician)
        house.grant(statistician, "safety_officer")
        assert "slots" in expect(statistician.get(f"{PATH}/{made['schedule_id']}"), 200)

    def test_a_trail_without_blocks(self, house: House, statistician: Caller) -> None:
        """The public part of every step is the same, whatever block sizes and lengths were signed. [BLD-03, B7]"""
        approver = house.person("list_approver")
        made = generate(statistician)
        approve(approver, made)
        other = generate(statistician, block_sizes=[2], block_size_weights=[1], length_per_stratum=10, reason="other")
        approve(approver, other)
        entries = [
            entry for entry in house.trail(STUDY) if entry["action"] in ("schedule:generate", "schedule:approve")
        ]
        differing = {"commitment", "signature", "list_id"}
        told = [
            (entry["action"], {name: value for name, value in entry["after"].items() if name not in differing})
            for entry in entries
        ]
        assert told[:2] == told[2:]

    def test_the_quality_report(self, house: House, statistician: Caller) -> None:
        """Balance, blocks, runs, predictability and verdicts, with the earlier lists; never cached, and entered. [SEQ-14]"""
        first = generate(statistician)
        second = generate(statistician, reason="protocol amendment 1")
        approver = house.person("list_approver")
        response = approver.get(f"{PATH}/{second['schedule_id']}/quality-report")
        report = expect(response, 200)
        assert response.headers["cache-control"] == "no-store"
        assert report["passed"] is True
        assert report["reason"] == "protocol amendment 1"
        assert [(one["schedule_id"], one["reason"]) for one in report["earlier"]] == [(first["schedule_id"], None)]
        assert report["report"]["slots_by_arm"] == {"CONTROL": 160, "HUCMSC": 160}
        assert {one["name"] for one in report["report"]["verdicts"]} >= {
            "balance",
            "block_sizes",
            "runs",
            "predictability",
        }
        entry = house.trail(STUDY)[-1]
        assert (entry["action"], entry["outcome"]) == ("quality_report:read", "done")
        assert entry["target"] == {"schedule_id": second["schedule_id"]}

    def test_pages(self, house: House, statistician: Caller) -> None:
        """Lists come oldest first, a page at a time, and what is made meanwhile is no part of the round. [api]"""
        made = [generate(statistician, reason=f"list {number}")["schedule_id"] for number in range(3)]
        first = expect(statistician.get(PATH, limit=2), 200)
        generate(statistician, reason="meanwhile")
        second = expect(statistician.get(PATH, limit=2, cursor=first["next_cursor"]), 200)
        assert [one["schedule_id"] for one in first["items"] + second["items"]] == made
        assert second["next_cursor"] is None
        monitor = house.person("monitor")
        assert expect(monitor.get(PATH, cursor=first["next_cursor"]), 422)["errors"][0]["field"] == "cursor"


class TestItsLife:
    def test_from_generation_to_use(self, house: House, statistician: Caller) -> None:
        """Approval by signature, activation, and a segment with a life of its own. [CUS-01, SEQ-17]"""
        approver, admin = house.person("list_approver"), house.study_admins[STUDY]
        made = generate(statistician)
        approved = approve(approver, made)
        assert approved.keys() == BLINDED
        assert (approved["status"], approved["decided_by"]) == ("approved", approver.username)
        address = f"{PATH}/{made['schedule_id']}"
        active = expect(admin.post(f"{address}/activation", step_up=True), 200)
        assert (active["status"], active["activated_by"]) == ("active", admin.username)
        segment = expect(statistician.post(f"{address}/segments", json=dict(SPECIFICATION), step_up=True), 201)
        assert (segment["segment_number"], segment["list_id"], segment["extends"]) == (
            1,
            made["schedule_id"],
            made["schedule_id"],
        )
        approve(approver, segment)
        assert (
            expect(admin.post(f"{PATH}/{segment['schedule_id']}/activation", step_up=True), 200)["status"] == "active"
        )

    def test_refused_steps(self, house: House, statistician: Caller) -> None:
        """Each conflict has a code of its own. [CUS-01, CUS-02]"""
        approver, admin = house.person("list_approver"), house.study_admins[STUDY]
        house.grant(statistician, "list_approver")
        made = generate(statistician)
        address = f"{PATH}/{made['schedule_id']}"
        body = {"commitment": made["commitment"], "meaning": "approval"}

        def refused(caller: Caller, step: str, json: Json = None) -> str:
            return str(expect(caller.post(f"{address}/{step}", json=json, step_up=True), 409)["code"])

        assert refused(admin, "activation") == "illegal_transition"
        assert refused(statistician, "approval", body) == "generator_cannot_approve"
        assert refused(approver, "approval", {**body, "commitment": "0" * 64}) == "commitment_differs"
        rejected = expect(approver.post(f"{address}/rejection", json={"reason": "too short"}, step_up=True), 200)
        assert rejected["status"] == "rejected"
        assert refused(approver, "approval", body) == "illegal_transition"
        assert refused(statistician, "segments", dict(SPECIFICATION)) == "illegal_transition"

    @pytest.mark.parametrize(
        "body",
        [{}, {"commitment": "00"}, {"commitment": "0" * 64, "meaning": "review"}, {"commitment": "0" * 64}],
    )
    def test_an_incomplete_signature(self, house: House, statistician: Caller, body: Mapping[str, Any]) -> None:
        """A signature names the commitment and its meaning. [SIG-05]"""
        made = generate(statistician)
        approver = house.person("list_approver")
        expect(approver.post(f"{PATH}/{made['schedule_id']}/approval", json=dict(body), step_up=True), 422)

    def test_no_such_list(self, house: House, statistician: Caller) -> None:
        """An unknown id is a 404 in every call. [G2]"""
        approver, admin = house.person("list_approver"), house.study_admins[STUDY]
        address = f"{PATH}/{uuid4()}"
        body = {"commitment": "0" * 64, "meaning": "approval"}
        expect(approver.get(address), 404)
        expect(approver.get(f"{address}/quality-report"), 404)
        expect(approver.post(f"{address}/approval", json=body, step_up=True), 404)
        expect(approver.post(f"{address}/rejection", json={"reason": "none"}, step_up=True), 404)
        expect(admin.post(f"{address}/activation", step_up=True), 404)
        expect(statistician.post(f"{address}/segments", json=dict(SPECIFICATION), step_up=True), 404)

    def test_who_may_not(self, house: House, statistician: Caller) -> None:
        """Each step belongs to one role. [CUS-02, USR-02]"""
        approver, admin = house.person("list_approver"), house.study_admins[STUDY]
        made = generate(statistician)
        address = f"{PATH}/{made['schedule_id']}"
        body = {"commitment": made["commitment"], "meaning": "approval"}
        for caller in (approver, admin):
            expect(caller.post(PATH, json=dict(SPECIFICATION), step_up=True), 403)
            expect(caller.post(f"{address}/segments", json=dict(SPECIFICATION), step_up=True), 403)
        for caller in (statistician, admin):
            expect(caller.post(f"{address}/approval", json=body, step_up=True), 403)
            expect(caller.post(f"{address}/rejection", json={"reason": "no"}, step_up=True), 403)
        for caller in (statistician, approver):
            expect(caller.post(f"{address}/activation", step_up=True), 403)
