"""The recall door over HTTP: a lot is called back, and nobody who is blinded learns whose treatment it was."""

import base64
import csv
import io
import json
from dataclasses import replace
from typing import Any, Final
from uuid import UUID

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from sqlalchemy import text

from app.domain.words import SiteCode, StudyCode
from app.errors import IntegrityBroken
from app.sealing.recipients import decrypt_with
from app.services.recalls import recall_info
from app.storage import kits
from app.storage.database import Transaction
from tests.harness import STUDY, House, Json, expect, signed_as
from tests.running_study import TREATMENTS, RunningStudy, S, consignment, execute, running_study, value
from tests.security.test_code_break_faults import full_disk

RECALLS: Final = f"{S}/recalls"
CALL_BACKS: Final = f"{S}/sites/01/call-backs"
REASON: Final = {"reason": "Seal broken at release testing"}
OWN: Final = X25519PrivateKey.generate()
KEY: Final = base64.b64encode(OWN.public_key().public_bytes_raw()).decode()


def other_lots(study: RunningStudy, code: str) -> None:
    """Make a consignment of other lots than those of all others, still in the depot."""
    batches = [
        {"arm_code": arm, "lot": f"X-{number}", "expires_on": "2028-12-31", "count": 5}
        for number, arm in enumerate(TREATMENTS)
    ]
    body = {"consignment_code": code, "kits": batches}
    expect(study.people["supply_manager"].post(f"{S}/consignments", json=body, step_up=True), 201)


def send(study: RunningStudy, code: str) -> list[str]:
    """Send a consignment to the site, and return its codes."""
    expect(study.people["supply_manager"].post(f"{S}/consignments/{code}/dispatch", json={"site_code": "01"}), 200)
    query = "SELECT kit_code FROM kit JOIN consignment USING (study_id, consignment_id) WHERE consignment_code = :code"
    with study.house.deployment.database.transaction() as tx:
        return list(tx.execute(text(query), {"code": code}).scalars())


def receive(study: RunningStudy, code: str, codes: list[str]) -> Json:
    body = {"received": codes, "missing": []}
    return expect(study.people["pharmacist"].post(f"{S}/consignments/{code}/receipt", json=body), 200)


def recall(study: RunningStudy, **body: Json) -> dict[str, Any]:
    answer: dict[str, Any] = expect(
        study.people["supply_manager"].post(RECALLS, json={**REASON, **body}, step_up=True), 201
    )
    return answer


def to_do(study: RunningStudy) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = expect(study.people["pharmacist"].get(CALL_BACKS, limit=500), 200)["items"]
    return found


def told_of(said: Json) -> list[str]:
    """Return which words of a lot or an arm stand in what somebody was told."""
    words = ("L-0", "L-1", *(word for arm in TREATMENTS.items() for word in arm))
    return [word for word in words if word in json.dumps(said)]


class TestRecall:
    def test_a_lot_is_called_back(self, house: House) -> None:
        """Whole consignments are: each kit of theirs is unusable and on its site's list, of every arm alike.

        The list of the lot's own kits goes to a second unblinded person, once, encrypted. [UNB-01, UNB-08, B11, F3, SIG-09]
        """
        study = running_study(house, subjects=2)
        supply, pharmacist = study.people["supply_manager"], study.people["pharmacist"]
        other_lots(study, "C2")
        receive(study, "C2", send(study, "C2"))
        first, second = (one["kit_code"] for one in study.allocations)
        handed_out = {"subject_id": "01-0001", "scanned_code": first}
        expect(pharmacist.post(f"{S}/kits/{first}/dispensation", json=handed_out), 200)
        hook = {"url": "https://edc.example.org/hooks"}
        expect(study.study_admin.post(f"{S}/webhooks", json=hook), 201)
        started = recall(study, lot="L-0", recipient_key=KEY)
        assert (started["consignment_codes"], started["recalled_by"]) == (["C1"], supply.username)
        assert signed_as(supply, "responsibility").items() <= started["signatures"][0].items()
        entry = house.trail(STUDY)[started["receipt"]["log_index"]]
        assert (entry["action"], entry["outcome"]) == ("recall:create", "done")
        assert not told_of([started, entry])
        restricted = f"{S}/trail/{started['receipt']['log_index']}/restricted"
        part = expect(study.people["statistician"].get(restricted, step_up=True), 200)["part"]
        assert part == {"consignment_code": None, "lot": "L-0", **REASON}
        notice = json.loads(value(study, "SELECT body FROM notice"))
        assert (notice["type"], notice["data"]["recall_id"]) == ("recall.started", started["recall_id"])
        assert notice["data"].keys() == {"study_code", "mode", "recall_id"}
        # Both subjects alike, one of whom has the other arm or not; and all of the stock.
        listed = to_do(study)
        assert {one["kit_code"] for one in listed} == set(study.kit_codes)
        assert {(one["kit_code"], one["subject_id"], one["to_do"]) for one in listed if one["subject_id"]} == {
            (first, "01-0001", "call_back"),
            (second, "01-0002", "put_aside"),
        }
        stock = expect(pharmacist.get(f"{S}/sites/01/kits", limit=500), 200)["items"]
        assert {(one["consignment_code"], one["usable"]) for one in stock} == {("C1", False), ("C2", True)}
        late = {"subject_id": "01-0002", "scanned_code": second}
        refused = expect(pharmacist.post(f"{S}/kits/{second}/dispensation", json=late), 409)
        assert refused["code"] == "kit_mismatch"
        assert study.new_subject()["kit_code"] not in study.kit_codes
        expect(pharmacist.post(f"{S}/kits/{first}/return", json=REASON), 200)
        free = next(code for code in study.kit_codes if code not in {first, second})
        expect(pharmacist.post(f"{S}/kits/{free}/quarantine", json=REASON), 200)
        assert {one["kit_code"] for one in to_do(study)} == set(study.kit_codes) - {first, free}
        self.release(study, started)

    def release(self, study: RunningStudy, started: Json) -> None:
        """Have the list of the lot's kits released, and look at what everybody sees of it."""
        house, supply = study.house, study.people["supply_manager"]
        release = f"{RECALLS}/{started['recall_id']}/release"
        assert expect(supply.post(release, step_up=True), 409)["code"] == "second_person_required"
        approver = study.people["list_approver"]
        answer = approver.post(release, step_up=True)
        assert (answer.status_code, answer.headers["Cache-Control"]) == (200, "no-store")
        own = base64.b64encode(OWN.private_bytes_raw()).decode()
        opened = decrypt_with(own, answer.content, recall_info(StudyCode(STUDY))).decode()
        rows = list(csv.DictReader(io.StringIO(opened)))
        assert {(row["lot"], row["consignment_code"], row["site_code"]) for row in rows} == {("L-0", "C1", "01")}
        assert len(rows) == 10
        assert rows[0].keys() == {"kit_code", "consignment_code", "site_code", "arm_code", "lot", "expires_on"}
        assert expect(approver.post(release, step_up=True), 409)["code"] == "illegal_transition"
        entries = [one for one in house.trail(STUDY) if one["action"] == "recall:release"]
        assert [one["outcome"] for one in entries] == ["refused", "done", "refused"]
        assert not told_of(entries)
        assert "10" not in json.dumps(entries[1]["after"])
        log = expect(study.person("inspector").get(f"{S}/unblinding-log", limit=500), 200)["items"]
        assert [one["outcome"] for one in log if one["kind"] == "recall"] == ["refused", "done", "refused"]
        # What the report of a subject's record says of it: only where the kits may be the subject's.
        monitor = study.person("monitor")
        for subject, times in (("01-0001", 1), ("01-0003", 0)):
            report = expect(monitor.get(f"{S}/subjects/{subject}/disclosures", limit=500), 200)["items"]
            found = [one for one in report if one["action"] == "recall:create"]
            assert [one["learnt"] for one in found] == ["nothing_shown"] * times
            learnt = [one["learnt"] for one in report if one["action"] == "recall:release"]
            assert sorted(learnt) == ["refused"] * 2 + ["treatment"] * times
        # The register, as far as it concerns one's site.
        for role, site, codes in (
            ("monitor", None, ["C1"]),
            ("investigator", None, ["C1"]),
            ("pharmacist", "02", []),
            ("inspector", None, ["C1"]),
        ):
            (line,) = expect(study.person(role, site).get(RECALLS), 200)["items"]
            assert line["consignment_codes"] == codes
            assert (line["released_by"], line["is_signed"]) == (approver.username, True)
            assert not told_of(line)
        elsewhere = study.person("pharmacist", "02")
        assert expect(elsewhere.get(f"{S}/sites/02/call-backs"), 200)["items"] == []
        expect(elsewhere.get(CALL_BACKS), 404)

    def test_a_consignment_on_its_way_or_in_the_depot(self, house: House) -> None:
        """What comes in is put aside, what was not sent stays; a withheld list is entered, and one without a key is plain.

        [UNB-01, D4]
        """
        study = running_study(house, subjects=0)
        supply, approver = study.people["supply_manager"], study.people["list_approver"]
        for code in ("C2", "C3"):
            other_lots(study, code)
        codes = send(study, "C2")
        started = recall(study, lot="X-1")
        assert started["consignment_codes"] == ["C2", "C3"]
        assert {one["status"] for one in to_do(study)} == {"dispatched"}
        assert receive(study, "C2", codes)["status"] == "withdrawn"
        assert to_do(study) == []
        expect(supply.post(f"{S}/consignments/C3/dispatch", json={"site_code": "01"}), 409)
        assert study.new_subject()["kit_code"] in study.kit_codes
        again = recall(study, lot="X-0")
        assert again["consignment_codes"] == []
        release = f"{RECALLS}/{again['recall_id']}/release"
        with full_disk(house):
            expect(approver.post(release, step_up=True), 503)
        assert [one["outcome"] for one in house.trail(STUDY)[-2:]] == ["done", "withheld"]
        whole = recall(study, consignment_code="C1")
        answer = approver.post(f"{RECALLS}/{whole['recall_id']}/release", step_up=True)
        rows = list(csv.DictReader(io.StringIO(answer.text)))
        assert {row["kit_code"] for row in rows} == set(study.kit_codes)
        assert {row["lot"] for row in rows} == {"L-0", "L-1"}
        # The register and the list of a site, page by page.
        for caller, path in ((study.person("monitor"), RECALLS), (study.people["pharmacist"], CALL_BACKS)):
            every = expect(caller.get(path, limit=500), 200)["items"]
            page = expect(caller.get(path, limit=2), 200)
            seen: list[Json] = page["items"]
            while page["next_cursor"] is not None:
                page = expect(caller.get(path, limit=2, cursor=page["next_cursor"]), 200)
                seen += page["items"]
            assert seen == every
            assert len(seen) > 2

    def test_what_is_refused(self, house: House) -> None:
        """Neither or both named, an unknown one, one called back before, a key that is none, and who may not. [G1, G2, USR-02]"""
        study = running_study(house, subjects=0)
        supply = study.people["supply_manager"]
        small = base64.b64encode(bytes(32)).decode()
        faults: list[tuple[Json, int]] = [
            ({}, 422),
            ({"consignment_code": "C1", "lot": "L-0"}, 422),
            ({"consignment_code": "C9"}, 404),
            ({"lot": "L-9"}, 404),
            ({"lot": "=L"}, 422),
            ({"consignment_code": "C1", "recipient_key": small}, 422),
            ({"consignment_code": "C1", "reason": ""}, 422),
        ]
        for body, status in faults:
            expect(supply.post(RECALLS, json={**REASON, **body}, step_up=True), status)
            assert "L-9" not in json.dumps(house.trail(STUDY)[-1])
        assert to_do(study) == []
        body = {**REASON, "consignment_code": "C1"}
        expect(house.send("POST", RECALLS, token=supply.token(), json=body), 401)
        for role in ("list_approver", "pharmacist", "investigator", "statistician"):
            expect(study.person(role).post(RECALLS, json=body, step_up=True), 403)
        headers = {"Idempotency-Key": "one"}
        first = expect(supply.post(RECALLS, json=body, headers=headers, step_up=True), 201)
        assert expect(supply.post(RECALLS, json=body, headers=headers, step_up=True), 200) == first
        assert expect(supply.post(RECALLS, json=body, step_up=True), 409)["code"] == "illegal_transition"
        release = f"{RECALLS}/{first['recall_id']}/release"
        expect(study.person("list_approver").post(f"{RECALLS}/{house.deployment.new_id()}/release", step_up=True), 404)
        for role in ("pharmacist", "safety_officer", "statistician"):
            expect(study.person(role).post(release, step_up=True), 403)
        with pytest.raises(IntegrityBroken):
            execute(study, "UPDATE consignment SET recall_id = NULL")

    def test_one_that_is_sent_meanwhile(self, house: House, monkeypatch: pytest.MonkeyPatch) -> None:
        """Read again under its lock, it is at a site: the act begins anew, and locks that site's stock too. [UNB-01]"""
        study = running_study(house, subjects=0)
        stale, listed = list[bool](), kits.list_consignments

        def before_it_was_sent(*of: Any) -> Any:  # noqa: ANN401  # as it was called
            found = listed(*of)
            if not stale:
                stale.append(True)
                return [replace(one, site_code=None) for one in found]
            return found

        locks, lock = list[object](), kits.lock_stock

        def counted(tx: Transaction, study_id: UUID, site_code: SiteCode | None) -> None:
            locks.append(site_code)
            lock(tx, study_id, site_code)

        monkeypatch.setattr(kits, "list_consignments", before_it_was_sent)
        monkeypatch.setattr(kits, "lock_stock", counted)
        assert recall(study, consignment_code="C1")["consignment_codes"] == ["C1"]
        assert locks == ["01"]

    def test_each_consignment_that_holds_the_lot(self, house: House) -> None:
        """A second one of the same lots is called back with the first. [UNB-01, B11]"""
        study = running_study(house, subjects=0)
        consignment(study, "C2", 3)
        assert recall(study, lot="L-1")["consignment_codes"] == ["C1", "C2"]
