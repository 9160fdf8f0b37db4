"""Kits over HTTP: who may do what, what each answer holds, and what stays neutral."""

import csv
import json
from base64 import b64encode
from collections.abc import Callable
from io import StringIO
from itertools import product
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from httpx2 import Response

from app.domain.codes import draw_kit_codes
from app.domain.words import ConsignmentCode, StudyCode
from app.sealing.recipients import decrypt_with
from app.services.consignments import packing_list_info
from tests import supply
from tests.harness import STUDY, Caller, House, SeededEntropy, expect, signed_as
from tests.supply import ARMS, LATE, S, Trial

ARM_WORDS = ("CONTROL", "HUCMSC", "L-CONTROL", "L-HUCMSC", "placebo", "2028-12-31")
"""What would tell an arm, a lot or an expiry in the trial of these tests."""


def send(caller: Caller, path: str, content: bytes, media_type: str = "text/csv") -> Response:
    """Return the response to a body as it is, with a fresh proof."""
    headers = {"Authorization": f"Bearer {caller.elevated_token()}", "Content-Type": media_type}
    response: Response = caller.house.client.post(path, content=content, headers=headers)
    return response


def import_lines(count: int = 40, seed: int = 5) -> list[dict[str, str]]:
    """Return an import without fault."""
    entropy = SeededEntropy(seed)
    arms = [ARMS[byte & 1] for byte in entropy.draw("arms", count)]
    return [
        {"kit_code": code, "arm_code": arm, "lot": f"L-{arm}", "expires_on": LATE}
        for code, arm in zip(draw_kit_codes(entropy, count, ()), arms, strict=True)
    ]


def as_csv(lines: list[dict[str, str]]) -> bytes:
    text = StringIO()
    writer = csv.DictWriter(text, ["kit_code", "arm_code", "lot", "expires_on"], lineterminator="\r\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue().encode()


def dispense(caller: Caller, subject: str, kit_code: str, scanned: str | None = None) -> Response:
    """Return the response to handing out a kit."""
    body = {"subject_id": subject, "scanned_code": scanned or kit_code}
    return caller.post(f"{S}/kits/{kit_code}/dispensation", json=body)


def free_kit(trial: Trial, code: str = "C1") -> str:
    """Return a kit in stock."""
    return next(kit for kit, status in trial.statuses(code).items() if status == "in_stock")


class TestImport:
    def test_json_and_csv_make_the_same_kits(self, house: House) -> None:
        """Also with a byte order mark; once made, the consignment exists [api.md]"""
        trial = supply.trial(house, per_arm=3)
        path, lines = f"{S}/consignments", import_lines()
        made = expect(trial.supply_manager.post(f"{path}/C2/kits", json=lines, step_up=True), 201)
        assert (made["consignment_code"], made["kit_count"], len(made["commitment"])) == ("C2", 40, 64)
        assert trial.arms_of("C2") == dict(sorted((line["kit_code"], line["arm_code"]) for line in lines))
        others = import_lines(seed=6)
        expect(send(trial.supply_manager, f"{path}/C3/kits", b"\xef\xbb\xbf" + as_csv(others)), 201)
        assert trial.arms_of("C3") == dict(sorted((line["kit_code"], line["arm_code"]) for line in others))
        again = trial.supply_manager.post(f"{path}/C2/kits", json=import_lines(seed=7), step_up=True)
        assert expect(again, 409)["code"] == "already_exists"
        assert trial.entries("consignment:create")[-1]["after"] == {"code": "already_exists"}
        # What is wrong in itself is said before that (rule G2).
        other = [{"arm_code": "NEITHER", "lot": "L-1", "expires_on": "2027-12-31", "count": 1}]
        body = {"consignment_code": "C2", "kits": other}
        wrong = trial.supply_manager.post(path, json=body, step_up=True)
        assert expect(wrong, 422)["errors"][0]["field"] == "kits.0.arm_code"
        faulty = [{**lines[0], "arm_code": "NEITHER"}]
        expect(trial.supply_manager.post(f"{path}/C2/kits", json=faulty, step_up=True), 422)
        body["kits"] = [{**other[0], "arm_code": arm} for arm in ("CONTROL", "HUCMSC")]
        expect(trial.supply_manager.post(path, json=body, step_up=True), 409)

    def test_one_wrong_line_in_a_thousand(self, house: House) -> None:
        """Nothing is stored, and the line is named in the sentence and in the list of faults [G1]"""
        trial = supply.trial(house, per_arm=3)
        lines = import_lines(1000)
        code = lines[612]["kit_code"]
        lines[612]["kit_code"] = code[:-1] + ("2" if code[-1] != "2" else "3")
        answer = expect(send(trial.supply_manager, f"{S}/consignments/C2/kits", as_csv(lines)), 422)
        assert answer["code"] == "faulty_import"
        assert [fault["field"] for fault in answer["errors"]] == ["line 614"]
        assert answer["detail"].startswith("line 614: ")
        answer = expect(trial.supply_manager.post(f"{S}/consignments/C2/kits", json=lines, step_up=True), 422)
        assert [fault["field"] for fault in answer["errors"]] == ["kits.612"]
        lines[612]["kit_code"] = code
        expect(send(trial.supply_manager, f"{S}/consignments/C2/kits", as_csv(lines)), 201)

    def test_what_is_refused_whole(self, house: House) -> None:
        """Codes of the study, an order that tells, another form, another media type [B4, G2]"""
        trial = supply.trial(house, per_arm=3)
        path, lines = f"{S}/consignments/C2/kits", import_lines()
        known = [{**lines[0], "kit_code": free_kit(trial)}, *lines[1:]]
        answer = expect(trial.supply_manager.post(path, json=known, step_up=True), 422)
        assert [fault["field"] for fault in answer["errors"]] == ["kits.0"]
        in_order = sorted(lines, key=lambda line: line["arm_code"])
        answer = expect(trial.supply_manager.post(path, json=in_order, step_up=True), 422)
        assert "order of the lines" in answer["detail"]
        for body, status, where in [
            ([{**lines[0], "size": "1"}], 422, "0.size"),
            ([{"kit_code": lines[0]["kit_code"]}], 422, "0.arm_code"),
            ({}, 422, "body"),
            ([], 422, "kits"),
        ]:
            answer = expect(trial.supply_manager.post(path, json=body, step_up=True), status)
            assert where in [fault["field"] for fault in answer["errors"]]
        expect(send(trial.supply_manager, path, b"", "text/csv"), 422)
        expect(send(trial.supply_manager, path, b"<kits/>", "application/xml"), 415)
        expect(trial.pharmacist.post(path, json=lines), 403)
        assert trial.entries("consignment:create")[-1]["outcome"] == "denied"


class TestCreate:
    @pytest.mark.parametrize(
        ("change", "where"),
        [
            ({"arm_code": "OTHER"}, "kits.0.arm_code"),
            ({"lot": "=1+1"}, "kits.0.lot"),
            ({"expires_on": "2027-02-29"}, "kits.0.expires_on"),
            ({"expires_on": 1798761600}, "kits.0.expires_on"),
            ({"count": 0}, "kits.0.count"),
            ({"count": 200_000}, "kits"),
            ({"arm_code": ARMS[1]}, "kits"),
        ],
    )
    def test_wrong_values(self, house: House, change: dict[str, Any], where: str) -> None:
        """The field is named, and an arm without kits is refused [G1, B6]"""
        house.register_study()
        manager = house.person("supply_manager")
        kits = [{"arm_code": arm, "lot": "L", "expires_on": LATE, "count": 3} for arm in ARMS]
        kits[0] |= change
        body = {"consignment_code": "C1", "kits": kits}
        answer = expect(manager.post(f"{S}/consignments", json=body, step_up=True), 422)
        assert [fault["field"] for fault in answer["errors"]] == [where]


class TestPackingList:
    def test_two_people_get_it_once(self, house: House) -> None:
        """Asked by one, released by another unblinded person, as CSV that no cache keeps, and once [F3, CUS-06]"""
        trial = supply.trial(house, per_arm=5)
        requests = f"{S}/consignments/C1/packing-list-requests"
        asked = expect(trial.supply_manager.post(requests, step_up=True), 201)
        path = f"{requests}/{asked['request_id']}/release"
        same = expect(trial.supply_manager.post(path, step_up=True), 409)
        assert same["code"] == "second_person_required"
        assert expect(trial.statistician.post(path), 401)["code"] == "step_up_required"
        expect(trial.pharmacist.post(path), 403)
        released = trial.statistician.post(path, step_up=True)
        assert released.status_code == 200
        assert released.headers["content-type"].startswith("text/csv")
        assert released.headers["cache-control"] == "no-store"
        rows = list(csv.reader(StringIO(released.text)))
        arms = trial.arms_of("C1")
        assert rows[0] == ["kit_code", "arm_code", "lot", "expires_on"]
        assert rows[1:] == [[code, arm, f"L-{arm}", LATE] for code, arm in arms.items()]
        assert expect(trial.list_approver.post(path, step_up=True), 409)["code"] == "illegal_transition"
        entry = next(one for one in trial.entries("packing_list:release") if one["outcome"] == "done")
        assert entry["after"] == {"kit_count": 10, "encrypted": False, **signed_as(trial.statistician, "approval")}
        assert not any(word in json.dumps(trial.entries("packing_list:release")) for word in ARM_WORDS)

    def test_encrypted_to_a_recipient(self, house: House) -> None:
        """Nobody but the holder of the key reads it; a key that is none is refused at once [F3]"""
        trial = supply.trial(house, per_arm=3)
        key = X25519PrivateKey.generate()
        public, private = (
            b64encode(raw).decode() for raw in (key.public_key().public_bytes_raw(), key.private_bytes_raw())
        )
        requests = f"{S}/consignments/C1/packing-list-requests"
        wrong = trial.supply_manager.post(requests, json={"recipient_key": "AAAA"}, step_up=True)
        assert [fault["field"] for fault in expect(wrong, 422)["errors"]] == ["recipient_key"]
        asked = expect(trial.supply_manager.post(requests, json={"recipient_key": public}, step_up=True), 201)
        released = trial.list_approver.post(f"{requests}/{asked['request_id']}/release", step_up=True)
        assert released.headers["content-type"] == "application/octet-stream"
        assert not any(word.encode() in released.content for word in ARM_WORDS)
        info = packing_list_info(StudyCode(STUDY), ConsignmentCode("C1"))
        assert b",CONTROL," in decrypt_with(private, released.content, info)

    def test_unknown_requests_and_consignments(self, house: House) -> None:
        """A request of another consignment is none of this one [G2]"""
        trial = supply.trial(house, per_arm=3)
        trial.create("C2", 3)
        asked = expect(trial.supply_manager.post(f"{S}/consignments/C2/packing-list-requests", step_up=True), 201)
        for code, request_id in (
            ("C1", asked["request_id"]),
            ("C2", "3f0c9b5e-6f0e-4c5e-9a59-3d1c6a4f2b10"),
            ("C9", asked["request_id"]),
        ):
            path = f"{S}/consignments/{code}/packing-list-requests/{request_id}/release"
            expect(trial.statistician.post(path, step_up=True), 404)
        expect(trial.supply_manager.post(f"{S}/consignments/C9/packing-list-requests", step_up=True), 404)


class TestReceipt:
    def test_in_parts(self, house: House) -> None:
        """Assignable as a whole with the last code; nothing of it is usable before; counts are pooled [B6]"""
        trial = supply.trial(house, per_arm=3)
        trial.create("C2", 5)
        codes = list(trial.arms_of("C2"))
        trial.dispatch("C2")
        again = trial.supply_manager.post(f"{S}/consignments/C2/dispatch", json={"site_code": "01"})
        assert expect(again, 409)["code"] == "illegal_transition"
        assert trial.receive("C2", codes[:4]) == {
            "consignment_code": "C2",
            "status": "dispatched",
            "received": 4,
            "missing": 0,
            "outstanding": 6,
            "put_aside": [],
        }
        assert not any(kit["usable"] for kit in trial.site_kits() if kit["consignment_code"] == "C2")
        assert trial.receive("C2", [], codes[4:6])["missing"] == 2
        # Found in the same parcel while others are still open: received like them.
        assert trial.receive("C2", [codes[4]])["received"] == 5
        done = trial.receive("C2", [code.lower() for code in codes[6:]])
        assert (done["status"], done["received"], done["missing"], done["outstanding"]) == ("assignable", 9, 1, 0)
        assert sum(kit["usable"] for kit in trial.site_kits() if kit["consignment_code"] == "C2") == 9
        # Found later: put aside, because a kit that joins one by one would tell its arm.
        late = trial.receive("C2", [codes[5]])
        assert (late["received"], late["missing"]) == (10, 0)
        assert trial.statuses("C2")[codes[5]] == "quarantined"
        assert trial.entries("consignment:receive")[-1]["after"]["alert"] == "supply_manager"

    def test_is_taken_whole_or_not_at_all(self, house: House) -> None:
        """Unknown and foreign codes are one refusal; a code received before is another, and nothing of either is taken [B6, G2]"""
        trial = supply.trial(house, per_arm=3)
        trial.create("C2", 3)
        codes = list(trial.arms_of("C2"))
        trial.dispatch("C2")
        path = f"{S}/consignments/C2/receipt"
        foreign = next(iter(trial.arms_of("C1")))
        unknown = draw_kit_codes(SeededEntropy("unknown"), 1, ())[0]
        answers = [
            expect(trial.pharmacist.post(path, json={"received": [*codes[:2], code], "missing": []}), 409)
            for code in (foreign, unknown)
        ]
        assert {answer["code"] for answer in answers} == {"kit_mismatch"}
        assert answers[0]["detail"] == answers[1]["detail"]
        assert set(trial.statuses("C2").values()) == {"dispatched"}
        trial.receive("C2", codes[:2])
        refused = trial.pharmacist.post(path, json={"received": codes[1:3], "missing": []})
        assert expect(refused, 409)["code"] == "illegal_transition"
        assert trial.statuses("C2")[codes[2]] == "dispatched"
        for body in ({}, {"received": [codes[2]], "missing": [codes[2]]}, {"received": [codes[2], codes[2].lower()]}):
            expect(trial.pharmacist.post(path, json=body), 422)

    @pytest.mark.parametrize("when", ["registered", "dispatched", "missing"])
    def test_of_a_kit_by_which_a_code_was_broken(self, house: House, when: str) -> None:
        """It stays aside and is named; the others are received, whichever arm it is of [EUB-07, B1, B6]"""
        trial = supply.trial(house, per_arm=3)
        told = []
        for number, arm in enumerate(ARMS):
            consignment = f"D{number}"
            trial.create(consignment, 4)
            arms = trial.arms_of(consignment)
            found = next(code for code in arms if arms[code] == arm)
            if when != "registered":
                trial.dispatch(consignment)
            if when == "missing":
                trial.receive(consignment, [], [found])
            broken = {"kit_code": found, "reason_code": "accidental_exposure"}
            expect(trial.investigator.post(f"{S}/code-breaks", json=broken, step_up=True), 201)
            if when == "registered":
                trial.dispatch(consignment)
            rest = [code for code in arms if code != found]
            answer = trial.receive(consignment, [found, *rest[:5]])
            assert answer.pop("consignment_code") == consignment
            assert answer.pop("put_aside") == [found]
            assert answer == {"status": "dispatched", "received": 6, "missing": 0, "outstanding": 2}
            entry = trial.entries("consignment:receive")[-1]["after"]
            assert entry.pop("put_aside") == [found]
            assert sorted(entry.pop("received")) == sorted(rest[:5])
            assert entry == {"status": "dispatched", "missing": [], "outstanding": 2, "alert": "supply_manager"}
            assert trial.receive(consignment, rest[5:], [found])["status"] == "assignable"
            assert trial.statuses(consignment)[found] == "quarantined"
            # What was received before is still no receipt.
            body = {"received": [found, rest[0]]}
            refused = trial.pharmacist.post(f"{S}/consignments/{consignment}/receipt", json=body)
            assert expect(refused, 409)["code"] == "illegal_transition"
            told.append((answer, entry))
        assert told[0] == told[1]

    def test_of_another_site_or_not_sent(self, house: House) -> None:
        """Unknown, not sent and sent elsewhere are the same 404 [G2, USR-21]"""
        trial = supply.trial(house, per_arm=3, sites=("01", "02"))
        trial.create("C2", 3)
        trial.create("C3", 3)
        trial.dispatch("C3", "02")
        for code in ("C2", "C3", "C9"):
            body = {"received": [free_kit(trial)]}
            expect(trial.pharmacist.post(f"{S}/consignments/{code}/receipt", json=body), 404)
        expect(trial.supply_manager.post(f"{S}/consignments/C2/dispatch", json={"site_code": "99"}), 404)
        expect(trial.supply_manager.post(f"{S}/consignments/C9/dispatch", json={"site_code": "01"}), 404)


class TestDispensation:
    def test_once_to_its_subject(self, house: House) -> None:
        """Well formed in any spelling; the second time it is said that it was done [KIT-14]"""
        trial = supply.trial(house)
        code = trial.allocate("01-0001")["kit_code"]
        typed = f"{code[:3].lower()}-{code[3:6]}-{code[6:]}"
        answer = expect(dispense(trial.pharmacist, " 01-0001", typed, code), 200)
        assert set(answer) == {"subject_id", "kit_code", "status", "dispensed_at"}
        assert (answer["subject_id"], answer["kit_code"], answer["status"]) == ("01-0001", code, "dispensed")
        assert expect(dispense(trial.pharmacist, "01-0001", code), 409)["code"] == "already_dispensed"
        [kit] = expect(trial.investigator.get(f"{S}/subjects/01-0001/kits"), 200)["items"]
        assert (kit["status"], kit["dispensed_at"]) == ("dispensed", answer["dispensed_at"])

    def test_every_wrong_kit_is_one_answer(self, house: House) -> None:
        """Unknown, foreign, unassigned, another subject's of either arm, expired, returned, and two codes that differ [B9, ASG-13]

        Answers and public entries are equal but for what the caller typed.
        """
        trial = supply.trial(house, per_arm=10, sites=("01", "02"))
        other = trial.another("pharmacist", "02")
        trial.stock("C2", site="02", by=other)
        mine = trial.allocate("01-0001")["kit_code"]
        arms = trial.arms_of("C1")
        by_arm: dict[bool, str] = {}
        number = 2
        while len(by_arm) < 2:
            code = trial.allocate(f"01-{number:04}")["kit_code"]
            by_arm[arms[code] == arms[mine]] = code
            number += 1
        aside = trial.allocate("01-0099")["kit_code"]
        expect(trial.pharmacist.post(f"{S}/kits/{aside}/quarantine", json={"reason": "Warm."}), 200)
        cases = [
            ("01-0001", draw_kit_codes(SeededEntropy("unknown"), 1, ())[0], None),
            ("01-0001", free_kit(trial, "C2"), None),
            ("01-0001", free_kit(trial), None),
            ("01-0001", by_arm[True], None),
            ("01-0001", by_arm[False], None),
            ("01-0001", mine, by_arm[True]),
            ("01-0099", aside, None),
        ]
        answers = [dispense(trial.pharmacist, *case) for case in cases]
        house.clock.advance(days=1000)
        answers.append(dispense(trial.pharmacist, "01-0001", mine))
        bodies = [{k: v for k, v in expect(answer, 409).items() if k != "request_id"} for answer in answers]
        assert bodies[0]["code"] == "kit_mismatch"
        assert all(body == bodies[0] for body in bodies)
        assert len({answer.headers["content-length"] for answer in answers}) == 1
        entries = trial.entries("kit:dispense")
        assert len(entries) == len(cases) + 1
        for entry in entries:
            assert entry["after"] == {"code": "kit_mismatch"}
            assert set(entry["target"]) == {"kit_code", "scanned_code", "subject_id"}
            assert (entry["before"], entry["restricted"]) == (None, None)

    def test_what_is_no_code_and_who_is_no_subject(self, house: House) -> None:
        """Bad form is 422; unknown and foreign subjects are the same 404 [G2, api.md]"""
        trial = supply.trial(house, sites=("01", "02"))
        code = trial.allocate("01-0001")["kit_code"]
        wrong = code[:-1] + ("2" if code[-1] != "2" else "3")
        assert expect(dispense(trial.pharmacist, "01-0001", wrong), 422)
        assert expect(dispense(trial.pharmacist, "01-0001", code, "K0"), 422)
        elsewhere = trial.another("pharmacist", "02")
        answers = [dispense(trial.pharmacist, "01-0002", code), dispense(elsewhere, "01-0001", code)]
        one, two = ({k: v for k, v in expect(answer, 404).items() if k != "request_id"} for answer in answers)
        assert one == two


class TestNextKit:
    def test_the_same_visit_is_the_same_kit(self, house: House) -> None:
        """In any spelling, from anyone who may; another visit is another kit of the same arm [C4, BLD-16]"""
        trial = supply.trial(house)
        arms = trial.arms_of("C1")
        first = trial.allocate("01-0001")["kit_code"]
        path = f"{S}/subjects/01-0001/kits"
        second = expect(trial.investigator.post(path, json={"visit": "V2"}), 201)
        again = house.machine().post(path, json={"visit": "v2"})
        assert (again.status_code, again.headers["Idempotency-Replayed"], again.json()) == (200, "true", second)
        third = expect(trial.pharmacist.post(path, json={"visit": "V3"}), 201)
        assert len({first, second["kit_code"], third["kit_code"]}) == 3
        assert arms[first] == arms[second["kit_code"]] == arms[third["kit_code"]]
        items = expect(trial.pharmacist.get(path), 200)["items"]
        assert [item["visit"] for item in items] == [None, "V2", "V3"]
        waiting = expect(trial.pharmacist.get(f"{S}/sites/01/worklist"), 200)["items"]
        assert [item["kit_code"] for item in waiting] == [item["kit_code"] for item in items]

    @pytest.mark.parametrize(
        "visit", ["she got the placebo", "V 2", " V2", "V2\u00a0", "", "x" * 21, "Wöche2", 2, None]
    )
    def test_a_visit_is_a_code(self, house: House, visit: object) -> None:
        """It stands in the public part of the trail, where free text could say anything; the field is named [E3, G2]"""
        trial = supply.trial(house, per_arm=3)
        trial.allocate("01-0001")
        problem = expect(trial.pharmacist.post(f"{S}/subjects/01-0001/kits", json={"visit": visit}), 422)
        assert [fault["field"] for fault in problem["errors"]] == ["visit"]
        assert "placebo" not in json.dumps(house.trail(STUDY)[-1])

    def test_study_and_site_must_allow_it(self, house: House) -> None:
        """Suspended stops allocations only; closed stops kits too, and handing out goes on [api.md]"""
        trial = supply.trial(house)
        code = trial.allocate("01-0001")["kit_code"]
        path = f"{S}/subjects/01-0001/kits"

        def become(status: str) -> None:
            body = {"status": status, "reason": "Decided by the board."}
            expect(trial.study_admin.post(f"{S}/status", json=body, step_up=True), 200)

        become("suspended")
        expect(trial.pharmacist.post(path, json={"visit": "V2"}), 201)
        become("closed")
        assert expect(trial.pharmacist.post(path, json={"visit": "V3"}), 409)["code"] == "study_not_open"
        body = {"reason_code": "lost", "reason": "On the way home."}
        assert expect(trial.pharmacist.post(f"{S}/kits/{code}/replacement", json=body), 409)["code"] == "study_not_open"
        expect(trial.pharmacist.post(path, json={"visit": "v2"}), 200)
        expect(dispense(trial.pharmacist, "01-0001", code), 200)


class TestPages:
    def test_stock_in_the_order_of_codes(self, house: House) -> None:
        """Every kit once, whatever came since the first page; a cursor of another list is refused [api.md]"""
        trial = supply.trial(house, per_arm=6)
        path, seen = f"{S}/sites/01/kits", []
        page = expect(trial.pharmacist.get(path, limit=5), 200)
        assert set(page) == {"items", "counts", "next_cursor"}
        assert page["counts"] == {"in_stock": 12}
        trial.stock("C2")
        while True:
            seen += [kit["kit_code"] for kit in page["items"]]
            if page["next_cursor"] is None:
                break
            page = expect(trial.pharmacist.get(path, limit=5, cursor=page["next_cursor"]), 200)
        assert seen == list(trial.arms_of("C1"))
        expect(trial.pharmacist.get(f"{S}/sites/01/worklist", cursor="WyJhIl0.AAAA"), 422)

    def test_worklist_oldest_first(self, house: House) -> None:
        """Page by page; what was handed out is gone, what came later is not in it [api.md]"""
        trial = supply.trial(house)
        codes = [trial.allocate(f"01-{number}")["kit_code"] for number in range(5)]
        expect(dispense(trial.pharmacist, "01-1", codes.pop(1)), 200)
        path = f"{S}/sites/01/worklist"
        page = expect(trial.pharmacist.get(path, limit=3), 200)
        assert set(page["items"][0]) == {"subject_id", "kit_code", "assigned_at", "visit"}
        trial.allocate("01-9")
        rest = expect(trial.pharmacist.get(path, limit=3, cursor=page["next_cursor"]), 200)
        assert [item["kit_code"] for item in page["items"] + rest["items"]] == codes
        assert rest["next_cursor"] is None


class TestBlinding:
    def test_no_answer_at_a_site_holds_what_would_tell(self, house: House) -> None:
        """The fields are these and no others, and no arm, lot or expiry is in any of them [B1, B11, BLD-07]"""
        trial = supply.trial(house)
        code = trial.allocate("01-0001")["kit_code"]
        answers: list[Response] = [
            trial.pharmacist.get(f"{S}/sites/01/kits"),
            trial.pharmacist.get(f"{S}/sites/01/worklist"),
            trial.pharmacist.get(f"{S}/subjects/01-0001/kits"),
            trial.pharmacist.post(f"{S}/subjects/01-0001/kits", json={"visit": "V2"}),
            dispense(trial.pharmacist, "01-0001", code),
            trial.pharmacist.post(f"{S}/kits/{code}/return", json={"reason": "Study drug stopped."}),
            trial.pharmacist.post(f"{S}/kits/{free_kit(trial)}/damage", json={"reason": "Dropped."}),
        ]
        told = [expect(answer, answer.status_code) for answer in answers]
        assert all(answer.status_code < 300 for answer in answers)
        assert set(told[0]["items"][0]) == {"kit_code", "consignment_code", "status", "usable"}
        assert set(told[2]["items"][0]) == {"kit_code", "status", "usable", "assigned_at", "dispensed_at", "visit"}
        assert set(told[3]) == {"subject_id", "kit_code", "status", "assigned_at", "visit", "replaces"}
        assert set(told[5]) == set(told[6]) == {"kit_code", "status"}
        for answer in answers:
            assert not any(word in answer.text for word in ARM_WORDS)
            assert answer.headers["cache-control"] == "private, no-cache"
        for entry in house.trail(STUDY):
            assert not any(word in json.dumps([entry["target"], entry["before"]]) for word in ARM_WORDS)
            assert not any(word in json.dumps(entry["after"]) for word in ARM_WORDS[:5])


class TestPreparation:
    def test_the_unblinded_pharmacist_of_the_site(self, house: House) -> None:
        """Arm, treatment and lot of the kit that the subject has; each look spends a proof and no entry has the arm [B10, D3]"""
        trial = supply.trial(house, sites=("01", "02"))
        preparer = trial.another("unblinded_pharmacist", "01")
        first = trial.allocate("01-0001")["kit_code"]
        arm = trial.arms_of("C1")[first]
        path = f"{S}/subjects/01-0001/preparation"
        answer = preparer.get(path, step_up=True)
        assert answer.headers["cache-control"] == "no-store"
        told = expect(answer, 200)
        assert set(told) == {"subject_id", "kit_code", "arm_code", "treatment", "lot", "expires_on"}
        assert (told["kit_code"], told["arm_code"], told["lot"], told["expires_on"]) == (first, arm, f"L-{arm}", LATE)
        assert told["treatment"].startswith("Hormone replacement therapy + ")
        entry = trial.entries("preparation:read")[-1]
        assert (entry["target"], entry["after"]) == ({"subject_id": "01-0001"}, {"kit_code": first})
        body = {"reason_code": "damaged", "reason": "Dropped."}
        second = expect(trial.pharmacist.post(f"{S}/kits/{first}/replacement", json=body), 201)["kit_code"]
        assert expect(preparer.get(path, step_up=True), 200)["kit_code"] == second
        expect(preparer.get(path), 401)
        expect(trial.pharmacist.get(path), 403)
        expect(trial.another("unblinded_pharmacist", "02").get(path, step_up=True), 404)
        expect(trial.pharmacist.post(f"{S}/kits/{second}/loss", json={"reason": "Gone."}), 200)
        assert expect(preparer.get(path, step_up=True), 409)["code"] == "kit_mismatch"


Call = Callable[[Caller], Response]


class TestWho:
    def test_each_call_by_each_wrong_role(self, house: House) -> None:
        """No right is 403, also for those of other sides of the blind; nothing happens [USR-02, B10]"""
        trial = supply.trial(house)
        code = trial.allocate("01-0001")["kit_code"]
        free = free_kit(trial)
        callers = {
            "pharmacist": trial.pharmacist,
            "investigator": trial.investigator,
            "supply_manager": trial.supply_manager,
            "study_admin": trial.study_admin,
            "statistician": trial.statistician,
            "monitor": trial.another("monitor"),
        }
        reason = {"reason": "Because."}
        calls: dict[str, tuple[set[str], Call]] = {
            "consignments": ({"supply_manager"}, lambda who: who.post(f"{S}/consignments", json=CONSIGNMENT)),
            "dispatch": (
                {"supply_manager"},
                lambda who: who.post(f"{S}/consignments/C1/dispatch", json={"site_code": "01"}),
            ),
            "receipt": (
                {"pharmacist"},
                lambda who: who.post(f"{S}/consignments/C1/receipt", json={"received": [free]}),
            ),
            "stock": ({"pharmacist"}, lambda who: who.get(f"{S}/sites/01/kits")),
            "worklist": ({"pharmacist"}, lambda who: who.get(f"{S}/sites/01/worklist")),
            "kits": ({"pharmacist", "investigator"}, lambda who: who.get(f"{S}/subjects/01-0001/kits")),
            "dispensation": ({"pharmacist"}, lambda who: dispense(who, "01-0001", free)),
            "replacement": (
                {"pharmacist"},
                lambda who: who.post(f"{S}/kits/{free}/replacement", json={**reason, "reason_code": "lost"}),
            ),
            "quarantine": ({"pharmacist"}, lambda who: who.post(f"{S}/kits/{NOBODYS}/quarantine", json=reason)),
            "return": ({"pharmacist"}, lambda who: who.post(f"{S}/kits/{code}/return", json=reason)),
            "release": ({"supply_manager"}, lambda who: who.post(f"{S}/kits/{free}/release", json=reason)),
            "destruction": ({"supply_manager"}, lambda who: who.post(f"{S}/kits/{free}/destruction", json=reason)),
            "replacement-release": ({"supply_manager"}, lambda who: who.post(f"{S}/kits/{free}/replacement-release")),
        }
        before = trial.statuses("C1")
        for (name, (allowed, call)), (role, caller) in product(calls.items(), callers.items()):
            status = call(caller).status_code
            assert (status == 403) == (role not in allowed), (name, role, status)
            # Where a fresh proof is needed, the token of these calls has none.
            assert status != 401 or role == "supply_manager"
        assert trial.statuses("C1") == before

    def test_kits_of_other_sites_and_unknown_ones(self, house: House) -> None:
        """One 404 for both, at the site's own acts and for the supply manager's unknown ones [G2, USR-21]"""
        trial = supply.trial(house, sites=("01", "02"))
        elsewhere = trial.another("pharmacist", "02")
        kit, unknown = free_kit(trial), NOBODYS
        reason = {"reason": "Because."}
        for action in ("quarantine", "return", "loss", "damage"):
            for caller, code in ((elsewhere, kit), (trial.pharmacist, unknown)):
                expect(caller.post(f"{S}/kits/{code}/{action}", json=reason), 404)
        for action in ("release", "destruction", "replacement-release"):
            body = None if action == "replacement-release" else reason
            expect(trial.supply_manager.post(f"{S}/kits/{unknown}/{action}", json=body, step_up=True), 404)
        for path in ("sites/01/kits", "sites/01/worklist", "sites/99/kits"):
            expect(elsewhere.get(f"{S}/{path}"), 404)
        expect(elsewhere.post(f"{S}/kits/{kit}/replacement", json={**reason, "reason_code": "lost"}), 404)
        expect(elsewhere.get(f"{S}/subjects/01-0001/kits"), 404)


NOBODYS = str(draw_kit_codes(SeededEntropy("nobody's"), 1, ())[0])
CONSIGNMENT = {
    "consignment_code": "C9",
    "kits": [{"arm_code": arm, "lot": "L", "expires_on": LATE, "count": 3} for arm in ARMS],
}


class TestDocumentation:
    def test_the_import_takes_both_forms(self, house: House) -> None:
        """JSON and CSV are documented with an example each, and the packing list with both of its forms [api.md]"""
        paths = house.client.get("/openapi.json").json()["paths"]
        taken = paths["/v1/studies/{study}/consignments/{code}/kits"]["post"]["requestBody"]["content"]
        assert set(taken) == {"application/json", "text/csv"}
        assert all("example" in form for form in taken.values())
        release = paths["/v1/studies/{study}/consignments/{code}/packing-list-requests/{request_id}/release"]["post"]
        assert {"text/csv", "application/octet-stream"} <= set(release["responses"]["200"]["content"])
