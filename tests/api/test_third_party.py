"""The third party's door over HTTP: a named physician learns the treatment, who asked does not."""

import json
from collections.abc import Iterator
from typing import Any, Final

import pytest

from tests.harness import STUDY, Caller, Json, expect
from tests.running_study import TREATMENTS, RunningStudy, S, shared_running_study
from tests.security.test_code_break_faults import assert_unavailable, full_disk

ASKED: Final = f"{S}/third-party-unblindings"


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def running(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStudy]:
    yield from shared_running_study(request, tmp_path_factory)


def physician_of(running: RunningStudy) -> Caller:
    return running.person("treating_physician")


def about(running: RunningStudy, subject: str, **changes: Json) -> dict[str, Any]:
    named = physician_of(running).username
    return {"subject_id": subject, "physician": named, "reason_code": "overdose", **changes}


def ask(running: RunningStudy, subject: str) -> dict[str, Any]:
    answer: dict[str, Any] = expect(running.investigator.post(ASKED, json=about(running, subject), step_up=True), 201)
    return answer


def opening_of(asked: Json) -> str:
    return f"{ASKED}/{asked['third_party_unblinding_id']}/opening"


def names_an_arm(said: Json) -> bool:
    text = json.dumps(said)
    return any(word in text for pair in TREATMENTS.items() for word in pair)


def register_of(caller: Caller, asked: Json) -> dict[str, Any]:
    items = expect(caller.get(ASKED, limit=500), 200)["items"]
    return next(one for one in items if one["third_party_unblinding_id"] == asked["third_party_unblinding_id"])


class TestThirdParty:
    def test_physician_learns_and_nobody_else_does(self, running: RunningStudy) -> None:
        """The answer to who asks holds no treatment in any form; the physician's own proof opens it. [UNB-01, D6, EUB-13, B1]"""
        allocated = running.new_subject()
        subject, physician = allocated["subject_id"], physician_of(running)
        asked = ask(running, subject)
        assert set(asked) == {
            "third_party_unblinding_id", "subject_id", "physician", "open_until", "receipt", "is_signed", "signatures",
        }  # fmt: skip
        assert not names_an_arm(asked)
        read = expect(running.investigator.get(f"{S}/subjects/{subject}/allocation"), 200)
        assert read["flags"]["unblinded_at"] is None
        expect(physician.post(opening_of(asked)), 401)
        token = physician.elevated_token()
        response = running.house.send("POST", opening_of(asked), token=token)
        answer = expect(response, 201)
        assert response.headers["Cache-Control"] == "no-store"
        assert set(answer) == {
            "third_party_unblinding_id", "subject_id", "treatment", "kit_codes", "revealed_at", "receipt",
        }  # fmt: skip
        broken = {"subject_id": running.new_subject()["subject_id"], "reason_code": "overdose"}
        expect(running.investigator.post(f"{S}/code-breaks", json=broken, step_up=True), 201)
        broken["subject_id"] = subject
        truth = expect(running.investigator.post(f"{S}/code-breaks", json=broken, step_up=True), 201)
        assert (answer["treatment"], answer["kit_codes"]) == (truth["treatment"], [allocated["kit_code"]])
        # The proof is spent; looking again is a new event.
        expect(running.house.send("POST", opening_of(asked), token=token), 401)
        expect(physician.post(opening_of(asked), step_up=True), 201)
        for role in ("study_admin", "monitor", "inspector", "coordinator", "pharmacist", "safety_officer"):
            item = register_of(running.person(role), asked)
            assert [one["status"] for one in item.pop("openings")] == ["authorised", "authorised"]
            assert item == {
                "third_party_unblinding_id": asked["third_party_unblinding_id"],
                "subject_id": subject,
                "site_code": "01",
                "physician": physician.username,
                "reason_code": "overdose",
                "requested_at": item["requested_at"],
                "requested_by": running.investigator.username,
                "role": "investigator",
                "is_signed": True,
                "signatures": asked["signatures"],
            }
        read = expect(running.investigator.get(f"{S}/subjects/{subject}/allocation"), 200)
        assert read["flags"]["unblinded_at"] == answer["revealed_at"]
        entry = running.house.trail(STUDY)[answer["receipt"]["log_index"]]
        assert (entry["action"], entry["outcome"]) == ("third_party_unblinding:open", "authorised")
        assert not names_an_arm(entry)
        report = expect(running.person("monitor").get(f"{S}/subjects/{subject}/disclosures", limit=500), 200)["items"]
        told = [one["learnt"] for one in report if one["action"] == "third_party_unblinding:open"]
        assert told.count("treatment") == 2
        assert [one["learnt"] for one in report if one["action"] == "third_party_unblinding:request"] == ["record"]

    def test_who_may_not(self, running: RunningStudy) -> None:
        """Neither who asked, nor another physician, nor the list's people, nor another site. [USR-21]"""
        subject = running.new_subject()["subject_id"]
        asked = ask(running, subject)
        expect(running.investigator.post(ASKED, json=about(running, subject)), 401)
        nothing = f"{ASKED}/00000000-0000-4000-8000-000000000000/opening"
        another = running.house.person("treating_physician")
        foreign = expect(another.post(opening_of(asked), step_up=True), 404)
        assert subject not in json.dumps(running.house.trail(STUDY)[-1])
        unknown = expect(another.post(nothing, step_up=True), 404)
        assert foreign | {"request_id": ""} == unknown | {"request_id": ""}
        for role in ("investigator", "monitor", "safety_officer", "statistician"):
            expect(running.person(role).post(opening_of(asked), step_up=True), 403)
        for role in ("coordinator", "statistician", "treating_physician"):
            expect(running.person(role).post(ASKED, json=about(running, subject), step_up=True), 403)
        expect(physician_of(running).get(ASKED), 403)
        elsewhere = running.person("investigator", "02")
        expect(elsewhere.post(ASKED, json=about(running, subject), step_up=True), 404)
        assert expect(elsewhere.get(ASKED), 200)["items"] == []

    def test_who_is_no_physician(self, running: RunningStudy) -> None:
        """One names somebody who holds the role now, in this study, and not oneself. [UNB-01, USR-06]"""
        house, subject = running.house, running.new_subject()["subject_id"]
        gone, elsewhere = house.person("treating_physician"), house.person("treating_physician", study="OTHER")
        asked = expect(
            running.investigator.post(ASKED, json=about(running, subject, physician=gone.username), step_up=True), 201
        )
        expect(house.admin.delete(f"/v1/people/{gone.username}/grants/{gone.grant_ids[0]}"), 204)
        expect(gone.post(opening_of(asked), step_up=True), 404)
        for name in (gone.username, elsewhere.username, "nobody"):
            body = about(running, subject, physician=name)
            expect(running.investigator.post(ASKED, json=body, step_up=True), 404)
        officer = house.person("safety_officer")
        house.grant(officer, "treating_physician")
        expect(officer.post(ASKED, json=about(running, subject, physician=officer.username), step_up=True), 409)
        expect(officer.post(ASKED, json=about(running, subject), step_up=True), 201)
        assert (
            len([one for one in expect(officer.get(ASKED, limit=500), 200)["items"] if one["subject_id"] == subject])
            == 2
        )

    def test_after_a_day(self, running: RunningStudy) -> None:
        """A request is good for a day; then somebody who sees the subject asks anew. [D6]"""
        asked = ask(running, running.new_subject()["subject_id"])
        running.house.clock.advance(seconds=24 * 3600 + 1)
        problem = expect(physician_of(running).post(opening_of(asked), step_up=True), 409)
        assert problem["code"] == "illegal_transition"
        assert register_of(running.investigator, asked)["openings"] == []

    def test_the_same_key_twice(self, running: RunningStudy) -> None:
        """A request sent again with its key is one; an opening ignores a key. [C4]"""
        body, headers = about(running, running.new_subject()["subject_id"]), {"Idempotency-Key": "one request"}
        first = expect(running.investigator.post(ASKED, json=body, step_up=True, headers=headers), 201)
        assert expect(running.investigator.post(ASKED, json=body, step_up=True, headers=headers), 200) == first
        for _ in range(2):
            expect(physician_of(running).post(opening_of(first), step_up=True, headers=headers), 201)
        assert len(register_of(running.investigator, first)["openings"]) == 2

    def test_withheld(self, running: RunningStudy) -> None:
        """The sink's disk is full: nothing leaves but the contact; the register and the flag show it. [D4, EUB-11]"""
        subject = running.new_subject()["subject_id"]
        asked, token = ask(running, subject), physician_of(running).elevated_token()
        with full_disk(running.house):
            assert_unavailable(running.house.send("POST", opening_of(asked), token=token))
        assert [entry["outcome"] for entry in running.house.trail(STUDY)[-2:]] == ["authorised", "withheld"]
        item = register_of(running.investigator, asked)
        assert [one["status"] for one in item["openings"]] == ["withheld"]
        read = expect(running.investigator.get(f"{S}/subjects/{subject}/allocation"), 200)
        assert read["flags"]["unblinded_at"] == item["openings"][0]["opened_at"]

    def test_page_by_page(self, running: RunningStudy) -> None:
        """Pages give each request once, in the order of time. [E1]"""
        for _ in range(2):
            ask(running, running.new_subject()["subject_id"])
        monitor = running.person("monitor")
        whole = expect(monitor.get(ASKED, limit=500), 200)["items"]
        seen: list[Json] = []
        cursor: dict[str, Any] = {}
        while True:
            page = expect(monitor.get(ASKED, limit=1, **cursor), 200)
            seen += page["items"]
            if page["next_cursor"] is None:
                break
            cursor = {"cursor": page["next_cursor"]}
        assert seen == whole
