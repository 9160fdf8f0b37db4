"""Guards around a code break that stand before nothing: who it is about, and how often it happens."""

import json
from typing import Any, Final

import pytest
from structlog.testing import capture_logs

from app.errors import DatabaseUnavailable
from app.storage import unblinding
from tests.harness import STUDY, House, Json, expect
from tests.running_study import RunningStudy, S, running_study, value

BREAKS: Final = f"{S}/code-breaks"
BREAK: Final = {"reason_code": "overdose"}


def broken(study: RunningStudy, **body: Json) -> dict[str, Any]:
    answer: dict[str, Any] = expect(study.investigator.post(BREAKS, json={**BREAK, **body}, step_up=True), 201)
    return answer


class TestWrongSubject:
    def test_whom_one_names_to_be_sure(self, house: House) -> None:
        """Another subject than the one confirmed: nothing is opened, kept or spent, and it is entered; the echo says who it was.

        Nobody has to confirm, and no other person takes part. [EUB-21, D2, EUB-02]
        """
        study = running_study(house, subjects=2)
        first, second = (one["kit_code"] for one in study.allocations)
        free = study.free_kit()
        token = study.investigator.elevated_token()
        mistaken: list[dict[str, str]] = [
            {"subject_id": "01-0002", "confirm_subject_id": "01-0001"},
            {"kit_code": second, "confirm_subject_id": "01-0001"},
            {"kit_code": free, "confirm_subject_id": "01-0001"},
            {"kit_code": second, "confirm_subject_id": "01-0099"},
        ]
        for body in mistaken:
            problem = expect(house.send("POST", BREAKS, token=token, json={**BREAK, **body}), 409)
            assert problem["code"] == "subject_mismatch"
            assert not {"arm_code", "treatment", "subject_id"} & problem.keys()
            entry = house.trail(STUDY)[-1]
            assert (entry["action"], entry["outcome"]) == ("code_break:create", "refused")
            assert entry["after"] == {"code": "subject_mismatch"}
        assert value(study, "SELECT count(*) FROM code_break") == 0
        assert value(study, "SELECT status FROM kit WHERE kit_code = :code", code=free) == "in_stock"
        # The same proof is still good, in any spelling of the subject.
        right = {**BREAK, "kit_code": first, "confirm_subject_id": " 01-0001 "}
        assert expect(house.send("POST", BREAKS, token=token, json=right), 201)["subject_id"] == "01-0001"
        assert broken(study, subject_id="01-0002")["subject_id"] == "01-0002"
        expect(study.investigator.post(BREAKS, json={**BREAK, "subject_id": "01-0002", "confirm_subject_id": "?"}), 401)


class TestFrequency:
    def test_more_than_usual(self, house: House) -> None:
        """The fourth of one person in a day is told in the log, the entry and once by a notice; none is refused. [EUB-20, N07]"""
        study = running_study(house, subjects=1)
        expect(study.study_admin.post(f"{S}/webhooks", json={"url": "https://edc.example.org/hooks"}), 201)
        counts: list[int] = []
        entry: dict[str, Any] = {}
        for _ in range(5):
            with capture_logs() as logs:
                index = broken(study, subject_id="01-0001")["receipt"]["log_index"]
            counts.append(len([line for line in logs if line["event"] == "frequent code breaks"]))
            entry = house.trail(STUDY)[index]
            assert ("alert" in entry["after"]) == bool(counts[-1])
        assert counts == [0, 0, 0, 1, 1]
        assert entry["after"]["alert"] == "frequent_code_breaks"
        assert (entry["after"]["by_person_in_a_day"], entry["after"]["at_site_in_a_day"]) == (5, 5)
        query = "SELECT body FROM notice WHERE body LIKE '%code_breaks.frequent%'"
        told = json.loads(value(study, query))
        assert told["data"] == {
            "study_code": STUDY,
            "mode": "test",
            "site_code": "01",
            "by_person_in_a_day": "4",
            "at_site_in_a_day": "4",
        }
        # Another person at the same site: the sixth there.
        other = house.person("investigator")
        expect(other.post(BREAKS, json={**BREAK, "subject_id": "01-0001"}, step_up=True), 201)
        last = house.trail(STUDY)[-1]["after"]
        assert (last["by_person_in_a_day"], last["at_site_in_a_day"]) == (1, 6)
        house.clock.advance(hours=25)
        broken(study, subject_id="01-0001")
        assert "alert" not in house.trail(STUDY)[-1]["after"]

    def test_a_count_that_cannot_be_had(self, house: House, monkeypatch: pytest.MonkeyPatch) -> None:
        """It keeps the treatment from nobody. [EUB-20, D1]"""
        study = running_study(house, subjects=1)

        def fails(*_: object) -> None:
            raise DatabaseUnavailable

        monkeypatch.setattr(unblinding, "list_recent_breaks", fails)
        with capture_logs() as logs:
            assert broken(study, subject_id="01-0001")["treatment"]
        assert "code breaks not counted" in [line["event"] for line in logs]
