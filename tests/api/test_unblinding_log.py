"""The unblinding log over HTTP: every kind of unblinding in one list, without a treatment, found by an index of its own."""

import csv
import io
import json
from collections.abc import Iterator
from typing import Any, Final

import pytest

from app.domain.unblinding_log import UNBLINDINGS
from app.storage import tables
from app.storage.trail import list_unblindings
from tests.harness import STUDY, Json, expect
from tests.running_study import TREATMENTS, RunningStudy, S, shared_running_study
from tests.storage.test_plans import sent_by

LOG: Final = f"{S}/unblinding-log"


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def running(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStudy]:
    yield from shared_running_study(request, tmp_path_factory)


def unblind_by_many_doors(running: RunningStudy) -> str:
    """Go through the doors of single subjects, refused ones too; return whose case the safety unblinding was."""
    broken, safety, third, accident = (running.new_subject()["subject_id"] for _ in range(4))
    officer, physician = running.person("safety_officer"), running.person("treating_physician")
    body: dict[str, Any] = {"subject_id": broken, "reason_code": "overdose"}
    expect(running.person("monitor").post(f"{S}/code-breaks", json=body, step_up=True), 403)
    expect(running.investigator.post(f"{S}/code-breaks", json=body, step_up=True), 201)
    body = {"subject_id": safety, "reason": "SUSAR"}
    expect(officer.post(f"{S}/safety-unblindings", json=body, step_up=True), 201)
    body = {"subject_id": third, "physician": physician.username, "reason_code": "overdose"}
    asked = expect(running.investigator.post(f"{S}/third-party-unblindings", json=body, step_up=True), 201)
    path = f"{S}/third-party-unblindings/{asked['third_party_unblinding_id']}/opening"
    expect(physician.post(path, step_up=True), 201)
    body = {
        "subject_id": accident,
        "happened_at": running.house.clock.now.isoformat(),
        "how_learnt": "document",
        "who_learnt": ["monitor"],
        "narrative": "The letter said HUCMSC",
    }
    expect(running.investigator.post(f"{S}/accidental-unblindings", json=body), 201)
    return str(safety)


class TestLog:
    def test_every_kind_and_no_treatment(self, running: RunningStudy) -> None:
        """Who, when, to which purpose, who stays blinded; whose safety unblinding it was is told to nobody here. [UNB-08, E3]"""
        safety = unblind_by_many_doors(running)
        inspector = running.person("inspector")
        response = inspector.get(LOG, limit=500)
        items = expect(response, 200)["items"]
        told = [(item["kind"], item["outcome"]) for item in items[-5:]]
        assert told == [
            ("emergency", "denied"),
            ("emergency", "authorised"),
            ("safety", "authorised"),
            ("third_party", "authorised"),
            ("accidental", "done"),
        ]
        assert items[-1]["purpose"] == {"how_learnt": "document", "who_learnt": ["monitor"]}
        assert items[-4]["purpose"] == {"reason_code": "overdose"}
        assert items[-2]["actor"] == running.person("treating_physician").username
        assert all(item["stays_blinded"] and item["safeguards"] and item["who_learns"] for item in items)
        exported = inspector.get(f"{LOG}/export")
        assert exported.status_code == 200
        lines = list(csv.DictReader(io.StringIO(exported.text)))
        assert [(line["segment"], line["index"]) for line in lines] == [
            (str(item["segment"]), str(item["index"])) for item in items
        ]
        assert [*lines[0], "leaf_hash"] == list(items[0])
        for text in (response.text, exported.text):
            assert not any(word in text for pair in TREATMENTS.items() for word in pair)
            assert safety not in text
        trail = running.house.trail(STUDY)
        assert [trail[item["index"]]["action"] for item in items[-2:]] == [
            "third_party_unblinding:open",
            "accidental_unblinding:record",
        ]
        assert trail[-1]["action"] == "unblinding_log:read"

    def test_page_by_page(self, running: RunningStudy) -> None:
        """Pages give each act once; what comes later is on none of them, and only the first page is entered. [E1]"""
        unblind_by_many_doors(running)
        admin = running.study_admin
        whole = expect(admin.get(LOG, limit=500), 200)["items"]
        page = expect(admin.get(LOG, limit=2), 200)
        unblind_by_many_doors(running)
        before = len(running.house.trail(STUDY))
        seen: list[Json] = page["items"]
        while page["next_cursor"] is not None:
            page = expect(admin.get(LOG, limit=2, cursor=page["next_cursor"]), 200)
            seen += page["items"]
        assert seen == whole
        assert len(running.house.trail(STUDY)) == before
        for role in ("investigator", "monitor", "statistician", "safety_officer"):
            expect(running.person(role).get(LOG), 403)
            expect(running.person(role).get(f"{LOG}/export"), 403)

    def test_found_by_its_index(self, running: RunningStudy) -> None:
        """A page costs what it shows, however long the trail is; the index knows the acts that the log knows. [UNB-08]"""
        assert set(json.loads(f"[{tables.UNBLINDING.split('(')[1][:-1]}]".replace("'", '"'))) == set(UNBLINDINGS)
        database = running.house.deployment.database
        with sent_by(database) as statements, database.transaction() as tx:
            list_unblindings(tx, tables.SERVICE_LOG, (0, -1), (1, 5), 10)
        (said,) = [one for one in statements if "trail_entry" in one[0]]
        plan = "EXPLAIN QUERY PLAN" if not database.is_postgresql else "EXPLAIN"
        with database.engine.connect() as connection:
            if database.is_postgresql:
                connection.exec_driver_sql("SET LOCAL enable_seqscan = off")
            lines = connection.exec_driver_sql(f"{plan} {said[0]}", said[1]).all()
            connection.rollback()
        assert "ix_trail_entry_unblinding" in str(lines)
