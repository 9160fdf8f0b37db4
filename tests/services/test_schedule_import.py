"""Lists that an independent statistician made, from the import to the final package, on both databases (SEQ-16, rule A1)."""

import json
import subprocess
import sys
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any, Final
from zipfile import ZipFile

import msgspec
import pytest
from sqlalchemy import update

from app.domain.codes import draw_randomization_numbers
from app.domain.contents import SlotContents
from app.domain.schedules import IMPORTED
from app.domain.sealed import Column, SealContext
from app.domain.words import ArmCode
from app.errors import IntegrityBroken
from app.services.evidence import slot_place
from app.services.schedules import GeneratedSchedule
from app.storage import tables
from tests.harness import STUDY, Caller, House, Json, SeededEntropy, expect
from tests.memory import remembered
from tests.running_study import RunningStudy, S, import_of, running_study
from tests.services.list_builders import CODE, ListOffice, slots_of

HEADER: Final = "stratum_code,position,arm_code,block,block_size"
ARMS: Final = {"A": "CONTROL", "B": "HUCMSC"}
ORDER: Final = ("ABBA", "BA", "BBAA", "AB")
"""Twelve slots in four blocks, as somebody drew them."""
SPECIFICATION: Final[Mapping[str, Any]] = {"block_sizes": [2, 4], "length_per_stratum": 12, "fill": "exact"}
PATH: Final = f"{S}/schedules/imports"


def lines_of(order: tuple[str, ...] = ORDER) -> list[str]:
    slots = [(block, len(arms), ARMS[arm]) for block, arms in enumerate(order) for arm in arms]
    return [f",{position},{arm},{block},{size}" for position, (block, size, arm) in enumerate(slots)]


def file_of(lines: list[str]) -> str:
    return "\r\n".join([HEADER, *lines, ""])


def numbered(numbers: list[str]) -> str:
    lines = [f"{line},{number}" for line, number in zip(lines_of(), numbers, strict=True)]
    return "\r\n".join([f"{HEADER},randomization_number", *lines, ""])


def body(list_csv: str | None = None, **fields: Json) -> dict[str, Any]:
    """Return what a statistician hands in; ``fields`` beside or instead of the list."""
    specification = {**SPECIFICATION, **fields.pop("specification", {})}
    return import_of(file_of(lines_of()) if list_csv is None else list_csv, specification, **fields)


REFUSED: Final[list[tuple[Json, list[str]]]] = [
    (body(digest="0" * 64), ["digest"]),
    (body() | {"list_csv": file_of(lines_of()) + "\r\n"}, ["digest"]),
    (body(digest="ABC"), ["digest"]),
    (body(extends="1"), ["extends"]),
    (body(""), ["line 1"]),
    (body(file_of([*lines_of()[:3], *lines_of()[4:]])), ["line 5"]),
    (body(file_of([*lines_of(), lines_of()[-1]])), ["line 14"]),
    (body(file_of(lines_of(("AABB", "BA", "BBAA", "AA")))), ["line 12"]),
    (body(specification={"block_sizes": [2]}), ["line 2", "line 8"]),
    (body(specification={"block_sizes": [3]}), ["block_sizes"]),
]
"""What is handed in, and where its faults are named."""


@pytest.fixture
def office(house: House) -> ListOffice:
    """An unstratified study with two arms, 1:1."""
    return remembered(house, "list office", lambda: ListOffice(house))


def imported(office: ListOffice, sent: Json | None = None) -> Json:
    return expect(office.statistician.post(PATH, json=sent or body(), step_up=True), 201)


def made_of(answer: Json) -> GeneratedSchedule:
    """Return the list of an answer, as the builders name it."""
    return msgspec.convert(answer, GeneratedSchedule)


def decide(caller: Caller, made: Json, step: str, sent: Json = None, status: int = 200) -> Json:
    return expect(caller.post(f"{S}/schedules/{made['schedule_id']}/{step}", json=sent, step_up=True), status)


def approve(office: ListOffice, made: Json, status: int = 200) -> Json:
    approval = {"commitment": made["commitment"], "meaning": "approval"}
    return decide(office.approver, made, "approval", approval, status)


def verify(package: Path, house: House) -> Json:
    key = house.deployment.signing.vkeys()[0]
    command = [sys.executable, "-I", str(files("app") / "verifier.py"), "package", str(package), "--json", "--key", key]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=False).stdout)


def final_package(running: RunningStudy, folder: Path) -> Path:
    """Close a study and return its final package."""
    running.set_status("closed")
    final, statement = f"{S}/final-unblinding-requests", {"database_lock_statement": "Locked."}
    asked = expect(running.people["statistician"].post(final, json=statement, step_up=True), 201)
    released = running.people["list_approver"].post(f"{final}/{asked['request_id']}/release", step_up=True)
    assert released.status_code == 200
    package = folder / "final.zip"
    package.write_bytes(released.content)
    return package


class TestImport:
    def test_from_the_import_to_the_final_package(self, house: House, tmp_path: Path) -> None:
        """Subjects get the arms of the file in its order; the verifier says what cannot be computed, and confirms all else.

        [SEQ-16, A1, A8, E4]
        """
        running = running_study(house, subjects=4, list_csv=file_of(lines_of()))
        package = final_package(running, tmp_path)
        report = verify(package, house)
        assert report["findings"] == []
        assert (report["facts"]["lists"], report["facts"]["lists_not_recomputable"]) == (1, 1)
        with ZipFile(package) as archive:
            (row,) = json.loads(archive.read("schedules.json"))["schedules"]
            allocations = json.loads(archive.read("allocations.json"))["allocations"]
        assert (row["origin"], row["seed"], row["specification"]["algorithm"]) == (IMPORTED, None, IMPORTED)
        by_subject = {one["subject_id"]: one["binding"]["arm_code"] for one in allocations}
        assert [by_subject[f"01-{number:04}"] for number in range(1, 5)] == [ARMS[arm] for arm in ORDER[0]]

    def test_the_answer_and_the_trail(self, office: ListOffice) -> None:
        """Marked as imported for everybody; its digest, sizes and reason in the restricted part. [A1, E3]"""
        sent = body()
        made = imported(office, sent)
        assert (made["algorithm"], made["slots"], made["status"]) == (IMPORTED, 12, "generated")
        entry = office.house.trail(STUDY)[-1]
        assert (entry["action"], entry["role"], entry["outcome"]) == ("schedule:import", "statistician", "done")
        assert entry["after"]["origin"] == IMPORTED
        assert sent["digest"] not in json.dumps(entry)
        restricted = expect(office.statistician.get(f"{S}/trail/{entry['index']}/restricted", step_up=True), 200)
        assert restricted["part"]["digest"] == sent["digest"]
        told = expect(office.approver.get(f"{S}/schedules/{made['schedule_id']}"), 200)
        assert (told["origin"], told["block_sizes"]) == (IMPORTED, [2, 4])
        report = expect(office.approver.get(f"{S}/schedules/{made['schedule_id']}/quality-report"), 200)
        assert report["passed"]
        assert report["report"]["slots_by_arm"] == {"CONTROL": 6, "HUCMSC": 6}

    def test_no_seed_is_drawn_or_kept(self, office: ListOffice) -> None:
        """Nothing of an imported list hangs on our chance; what is sealed has the length of any other. [A4, B3]"""
        generated = office.generate()
        drawn = dict(office.house.list_entropy.drawn)  # type: ignore[attr-defined]  # the harness's own
        made = imported(office, body(specification={"reason": "made elsewhere"}))
        assert office.house.list_entropy.drawn == drawn  # type: ignore[attr-defined]  # the same
        rows = {str(row["schedule_id"]): row for row in office.rows(tables.schedule)}
        one, other = rows[str(generated.schedule_id)], rows[made["schedule_id"]]
        for name in ("sealed_seed", "sealed_specification", "sealed_quality_report"):
            assert len(one[name]) == len(other[name])

    def test_its_own_numbers(self, office: ListOffice) -> None:
        """They are the ones that are used; a number of another list is refused with its line. [B4, BLD-04]"""
        numbers = [str(one) for one in draw_randomization_numbers(SeededEntropy(3), 12, frozenset())]
        made = imported(office, body(numbered(numbers)))
        found = [row["randomization_number"] for row in slots_of(office, made_of(made))]
        assert found == numbers
        again = body(numbered(numbers), specification={"reason": "another one"})
        problem = expect(office.statistician.post(PATH, json=again, step_up=True), 422)
        assert problem["code"] == "faulty_import"
        assert [fault["field"] for fault in problem["errors"]] == [f"line {number}" for number in range(2, 14)]

    def test_custody_is_that_of_a_generated_list(self, office: ListOffice) -> None:
        """Two people, one active list, a segment with an approval of its own, a reason for a second one. [A1, A7, SEQ-17]"""
        made = imported(office)
        both = office.house.person("statistician")
        office.house.grant(both, "list_approver")
        own = expect(both.post(PATH, json=body(specification={"reason": "mine"}), step_up=True), 201)
        approval = {"commitment": own["commitment"], "meaning": "approval"}
        assert decide(both, own, "approval", approval, 409)["code"] == "generator_cannot_approve"
        expect(office.statistician.post(PATH, json=body(), step_up=True), 422)
        expect(office.statistician.post(PATH, json=body(extends=made["schedule_id"]), step_up=True), 409)
        approve(office, made)
        decide(office.study_admin, made, "activation")
        longer = imported(office, body(extends=made["schedule_id"]))
        assert (longer["segment_number"], longer["extends"], longer["list_id"]) == (
            1,
            made["schedule_id"],
            made["list_id"],
        )
        approve(office, longer)
        decide(office.study_admin, longer, "activation")

    def test_refused_whole(self, office: ListOffice) -> None:
        """Another digest, or a fault anywhere: it is named, entered as refused, and nothing is stored. [SEQ-16, G1]"""
        for sent, fields in REFUSED:
            problem = expect(office.statistician.post(PATH, json=sent, step_up=True), 422)
            assert [fault["field"] for fault in problem["errors"]] == fields
            entry = office.house.trail(STUDY, last=1)[-1]
            assert (entry["action"], entry["outcome"]) == ("schedule:import", "refused")
        assert office.rows(tables.schedule) == []
        assert office.rows(tables.slot) == []

    def test_after_the_end(self, office: ListOffice) -> None:
        """A closed study gets no list, wherever it comes from. [D5]"""
        with office.tampering(tables.study) as tx:
            tx.execute(update(tables.study).values(status="closed"))
        problem = expect(office.statistician.post(PATH, json=body(), step_up=True), 409)
        assert problem["code"] == "study_not_open"

    def test_a_slot_sealed_anew(self, office: ListOffice) -> None:
        """Somebody with the keys changes an arm: no seed tells, the commitment does, at approval. [A8, SEQ-11]"""
        made = imported(office)
        row = slots_of(office, made_of(made))[5]
        inside = office.opened(row)
        arm = ArmCode(next(code for code in ARMS.values() if code != inside.arm_code))
        changed = SlotContents(arm, inside.block, inside.block_size, inside.randomization_number, inside.salt)
        place = SealContext(Column.SLOT, CODE, slot_place(row["schedule_id"], row["stratum_id"], 5))
        token = office.house.deployment.ring.seal(place, changed.to_bytes()).token
        with office.tampering(tables.slot) as tx:
            tx.execute(update(tables.slot).where(tables.slot.c.position == 5).values(sealed=token))
        assert approve(office, made, 503)["code"] == IntegrityBroken.code

    def test_said_to_be_generated(self, office: ListOffice) -> None:
        """What a list is said to be in clear is what its sealed specification says. [A1, CUS-10]"""
        made = imported(office)
        for said in ({"origin": "generated"}, {"origin": IMPORTED, "algorithm": "snose-permuted-blocks-1"}):
            with office.tampering(tables.schedule) as tx:
                tx.execute(update(tables.schedule).values(said))
            assert approve(office, made, 503)["code"] == IntegrityBroken.code
