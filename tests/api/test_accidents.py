"""Accidental unblindings over HTTP: recorded and flagged, without a treatment, and performed by nobody."""

import json
from collections.abc import Iterator
from typing import Any, Final

import pytest

from tests.harness import STUDY, Caller, Json, expect
from tests.running_study import TREATMENTS, RunningStudy, S, shared_running_study

ACCIDENTS: Final = f"{S}/accidental-unblindings"
NARRATIVE: Final = "The letter said HUCMSC.\nIt lay open in the ward."


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def running(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStudy]:
    yield from shared_running_study(request, tmp_path_factory)


def accident(running: RunningStudy, subject: str, **changes: Json) -> dict[str, Any]:
    return {
        "subject_id": subject,
        "happened_at": running.house.clock.now.isoformat(),
        "how_learnt": "document",
        "who_learnt": ["subject", "investigator", "subject"],
        "narrative": NARRATIVE,
        **changes,
    }


def flag_of(caller: Caller, subject: str) -> str | None:
    read = expect(caller.get(f"{S}/subjects/{subject}/allocation"), 200)
    return (
        None if read["flags"]["accidentally_unblinded_at"] is None else str(read["flags"]["accidentally_unblinded_at"])
    )


class TestRecord:
    def test_everybody_sees_that_it_happened_and_nobody_what(self, running: RunningStudy) -> None:
        """The subject is flagged and stays in the study; the narrative is restricted. [EUB-14, EUB-19, E3, UNB-01]"""
        subject, other = (running.new_subject()["subject_id"] for _ in range(2))
        body = accident(running, f" {subject} ")
        answer = expect(running.investigator.post(ACCIDENTS, json=body), 201)
        receipt = answer.pop("receipt")
        assert answer == {
            "accidental_unblinding_id": answer["accidental_unblinding_id"],
            "subject_id": subject,
            "site_code": "01",
            "happened_at": body["happened_at"],
            "how_learnt": "document",
            "who_learnt": ["investigator", "subject"],
            "recorded_at": answer["recorded_at"],
            "recorded_by": running.investigator.username,
        }
        later = accident(running, subject, who_learnt=["monitor"], how_learnt="system")
        again = expect(running.person("pharmacist").post(ACCIDENTS, json=later), 201)
        for role in ("study_admin", "monitor", "inspector", "coordinator", "pharmacist", "safety_officer"):
            caller = running.person(role)
            items = expect(caller.get(ACCIDENTS, limit=500), 200)["items"]
            assert [item for item in items if item["subject_id"] == subject] == [
                answer,
                {name: value for name, value in again.items() if name != "receipt"},
            ]
            if role != "safety_officer":
                assert flag_of(caller, subject) == body["happened_at"]
                assert flag_of(caller, other) is None
        entry = running.house.trail(STUDY)[receipt["log_index"]]
        assert (entry["action"], entry["outcome"]) == ("accidental_unblinding:record", "done")
        assert entry["target"] == {"subject_id": subject}
        assert not any(word in json.dumps([entry, answer]) for pair in TREATMENTS.items() for word in pair)
        assert "HUCMSC" in json.dumps(running.restricted(receipt["log_index"]))
        expect(running.investigator.post(f"{S}/subjects/{subject}/kits", json={"visit": "V2"}), 201)

    def test_who_may_not(self, running: RunningStudy) -> None:
        """No role of the list records or reads it, no machine records it, and another site's subject is not there. [B10, USR-21]"""
        body = accident(running, running.new_subject()["subject_id"])
        for role in ("statistician", "list_approver", "supply_manager"):
            expect(running.person(role).post(ACCIDENTS, json=body), 403)
            expect(running.person(role).get(ACCIDENTS), 403)
        for role in ("inspector", "safety_officer"):
            expect(running.person(role).post(ACCIDENTS, json=body), 403)
        expect(running.house.machine("edc_client").post(ACCIDENTS, json=body), 403)
        expect(running.investigator.post(ACCIDENTS, json=body), 201)
        elsewhere = running.person("coordinator", "02")
        foreign = expect(elsewhere.post(ACCIDENTS, json=body), 404)
        unknown = expect(elsewhere.post(ACCIDENTS, json=accident(running, "01-9999")), 404)
        assert foreign | {"request_id": ""} == unknown | {"request_id": ""}
        assert expect(elsewhere.get(ACCIDENTS), 200)["items"] == []
        assert running.house.trail(STUDY)[-2]["outcome"] == "denied"

    def test_what_is_no_accident(self, running: RunningStudy) -> None:
        """Each faulty field is named, and nothing is recorded: no field holds a treatment, none is of another time. [G1, EUB-19]"""
        subject = running.new_subject()["subject_id"]
        faults: dict[str, Json] = {
            "happened_at": "2126-11-22T00:00:00+00:00",
            "how_learnt": "laboratory_result",
            "who_learnt": [],
            "who_learnt.0": ["Dr Wang"],
            "narrative": "a\x00b",
            "treatment": "HUCMSC",
            "subject_id": "..",
        }
        for field, value in faults.items():
            body = accident(running, subject, **{field.partition(".")[0]: value})
            problem = expect(running.investigator.post(ACCIDENTS, json=body), 422)
            assert [fault["field"] for fault in problem["errors"]] == [field]
        body = accident(running, subject, happened_at="2026-11-22T00:00:00")
        expect(running.investigator.post(ACCIDENTS, json=body), 422)
        assert flag_of(running.investigator, subject) is None

    def test_the_same_key_twice(self, running: RunningStudy) -> None:
        """Sent again with its key it is one accident; other content under the key is refused. [C4]"""
        subject, headers = running.new_subject()["subject_id"], {"Idempotency-Key": "one accident"}
        body = accident(running, subject)
        first = expect(running.investigator.post(ACCIDENTS, json=body, headers=headers), 201)
        again = running.investigator.post(ACCIDENTS, json=body, headers=headers)
        assert (again.status_code, again.json()) == (200, first)
        expect(running.investigator.post(ACCIDENTS, json=body | {"how_learnt": "other"}, headers=headers), 422)
        items = expect(running.investigator.get(ACCIDENTS, limit=500), 200)["items"]
        assert [item["subject_id"] for item in items].count(subject) == 1


class TestRegister:
    def test_page_by_page(self, running: RunningStudy) -> None:
        """Pages give each accident once, in the order in which they were recorded; only the first page is entered. [E1]"""
        for _ in range(2):
            body = accident(running, running.new_subject()["subject_id"])
            expect(running.study_admin.post(ACCIDENTS, json=body), 201)
        monitor = running.person("monitor")
        whole = expect(monitor.get(ACCIDENTS, limit=500), 200)["items"]
        before = len(running.house.trail(STUDY))
        seen: list[Json] = []
        cursor: dict[str, Any] = {}
        while True:
            page = expect(monitor.get(ACCIDENTS, limit=1, **cursor), 200)
            seen += page["items"]
            if page["next_cursor"] is None:
                break
            cursor = {"cursor": page["next_cursor"]}
        assert seen == whole
        assert len(running.house.trail(STUDY)) == before + 1
        expect(running.person("inspector").get(ACCIDENTS, **cursor), 422)
