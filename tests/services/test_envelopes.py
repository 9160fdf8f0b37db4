"""Code-break envelopes: the back-up that needs no service, from the kit given to the opening entered. [EUB-05, rule D5]"""

import io
import os
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from time import monotonic, sleep
from typing import Any, Final
from unittest.mock import patch

import pytest
import zxingcpp
from httpx2 import Response
from PIL import Image, ImageDraw
from pypdf import PdfReader
from structlog.testing import capture_logs

from app.domain.codes import check_character
from app.domain.envelopes import (
    CONTENT_SIZE,
    EnvelopeContent,
    EnvelopeHeader,
    in_groups,
    normalise_sheet_code,
    sheet_code,
    with_digest,
)
from app.domain.words import ConsignmentCode, KitCode, Mode, Role, SiteCode, StudyCode, SubjectId
from app.errors import SealBroken, UnsafeSetting
from app.sealing import envelopes as sealing
from app.sealing.envelopes import close_envelope, open_envelope
from app.sealing.recipients import decrypt_with
from app.services import enveloping, keeper, safety
from app.services.envelopes import sheets_info
from app.services.keeper import Keeper
from app.services.sheets import Sheet, sheets_pdf
from app.settings import Settings
from app.storage import envelopes
from app.storage.envelope_folder import EnvelopeFolder
from app.surroundings import surroundings
from tests.databases import Postgres
from tests.doors import Fault, failing
from tests.envelopes import DESK_PRIVATE, DESK_PUBLIC, OTHER_PRIVATE, OTHER_PUBLIC, SIZE, Desk, envelope_study
from tests.harness import STUDY, expect
from tests.running_study import TREATMENTS, RunningStudy, consignment
from tests.security.truth import open_kits

S: Final = f"/v1/studies/{STUDY}"
HEADER: Final = EnvelopeHeader(
    "3f0c9b5e-6f0e-4c5e-9a59-3d1c6a4f2b10", Mode.TEST, StudyCode("S-1"), KitCode("K7XQ4M2PF")
)
NONCE: Final = bytes(12)


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def running(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[RunningStudy, Desk]]:
    """One study for the whole module; each test gives kits of its own and puts right what it broke."""
    folder = tmp_path_factory.mktemp("envelopes")
    if request.param == "sqlite":
        copied = folder / "snose.sqlite"
        copied.write_bytes(Path(request.getfixturevalue("migrated_sqlite")).read_bytes())
        with envelope_study(f"sqlite:///{copied}", folder) as found:
            yield found
        return
    server: Postgres = request.getfixturevalue("postgres")
    template = request.getfixturevalue("migrated_postgres")
    with server.database(template=template) as url, envelope_study(url, folder) as found:
        yield found


@pytest.fixture
def study(running: tuple[RunningStudy, Desk]) -> RunningStudy:
    return running[0]


@pytest.fixture
def desk(running: tuple[RunningStudy, Desk]) -> Desk:
    return running[1]


def report(study: RunningStudy, role: Role = Role.MONITOR) -> dict[str, Any]:
    answer: dict[str, Any] = expect(study.person(role).get(f"{S}/envelopes"), 200)
    return answer


def of_site(study: RunningStudy) -> dict[str, Any]:
    (counts,) = report(study)["sites"]
    return dict(counts)


def concerns(desk: Desk) -> list[str]:
    """Return what `snose doctor` says of the envelopes."""
    around = surroundings(desk.house.settings, desk.house.clock)
    told = [one.what for one in safety.concerns(around, Mode.TEST)]
    around.database.close()
    return told


def sizes(files: list[Path]) -> set[int]:
    return {file.stat().st_size for file in files}


class TestMaking:
    def test_every_way_in_which_a_kit_is_given(self, study: RunningStudy, desk: Desk) -> None:
        """First kit, kit for a visit and replacement each have an envelope that tells the treatment. [EUB-05, EUB-10]"""
        pharmacist = study.people["pharmacist"]
        given = [study.new_subject() for _ in range(4)]
        subject = given[0]["subject_id"]
        visit = expect(pharmacist.post(f"{S}/subjects/{subject}/kits", json={"visit": "V2"}), 201)
        broken = {"reason_code": "damaged", "reason": "dropped"}
        other = expect(pharmacist.post(f"{S}/kits/{visit['kit_code']}/replacement", json=broken), 201)
        desk.write()
        truth = open_kits(desk.house.deployment, StudyCode(STUDY))
        arms = set()
        for answer in (*given, visit, other):
            content = desk.open(answer["kit_code"])
            arm = truth[answer["kit_code"]].arm_code
            arms.add(arm)
            assert content.treatment == TREATMENTS[arm]
            assert (content.subject_id, content.site_code) == (answer["subject_id"], "01")
            assert content.assigned_at == datetime.fromisoformat(answer.get("allocated_at") or answer["assigned_at"])
        assert arms == set(TREATMENTS)
        assert {file.stem for file in desk.files} >= {answer["kit_code"] for answer in (*given, visit, other)}

    def test_one_size_and_the_time_of_the_assignment(self, study: RunningStudy, desk: Desk) -> None:
        """Over both arms every file is as long as the others, readable by its owner alone, and as old as its kit. [BLD-10]"""
        given = [study.new_subject() for _ in range(3)]
        desk.write()
        assert sizes(desk.files) == {SIZE}
        for answer in given:
            content, file = desk.open(answer["kit_code"]), desk.file(answer["kit_code"])
            assert file.stat().st_mode & 0o777 == 0o600
            assert file.stat().st_mtime == pytest.approx(content.assigned_at.timestamp(), abs=1e-3)
        assert not list(desk.folder.rglob(".*.part"))

    def test_length_of_the_treatment_would_be_caught(self, study: RunningStudy, desk: Desk) -> None:
        """Without the padding the sizes would tell the arm, and the test above would see it. [planted leak]"""
        files = []
        with patch.object(sealing, "pad", lambda content, _length: content):
            for treatment in TREATMENTS.values():
                content = EnvelopeContent(
                    SiteCode("01"), study.allocations[0]["subject_id"], KitCode("K"), desk.house.clock(), treatment
                )
                files.append(close_envelope(DESK_PUBLIC, sheet_code(b"1"), HEADER, content.to_bytes(), NONCE))
        assert len({len(file) for file in files}) == len(TREATMENTS)

    def test_longest_content_fits(self) -> None:
        """The longest subject and treatment that the API takes are no hindrance to an allocation. [rule D5]"""
        longest = EnvelopeContent(
            SiteCode("x" * 10),
            SubjectId("\U0001f9ea" * 80),
            KitCode("K7XQ4M2PF"),
            datetime.max.replace(tzinfo=UTC),
            "\U0001f9ea" * 200,
        )
        assert len(longest.to_bytes()) < CONTENT_SIZE - 4


class TestTwoKeys:
    def test_desk_alone(self, study: RunningStudy, desk: Desk) -> None:
        """With the desk's key nothing opens: not without a code, not with the code of any other sheet. [issue 3, 8]"""
        given = [study.new_subject()["kit_code"] for _ in range(2)]
        desk.write()
        codes = {kit: desk.sheet(kit) for kit in study.kit_codes}
        assert len(set(codes.values())) == len(codes)
        for kit in given:
            file = desk.file(kit).read_bytes()
            for other, code in codes.items():
                if other != kit:
                    with pytest.raises(SealBroken, match=f"not the code of the sheet of kit {kit}"):
                        open_envelope(DESK_PRIVATE, code, file)
            inner = decrypt_with(DESK_PRIVATE, file[256:-32], file[:256])
            assert not any(word.encode() in inner for word in TREATMENTS.values())

    def test_paper_alone(self, study: RunningStudy, desk: Desk) -> None:
        """With every sheet of the study, and the key of another desk, nothing opens. [issue 3, 8]"""
        kit = study.new_subject()["kit_code"]
        desk.write()
        with pytest.raises(SealBroken, match="another desk"):
            open_envelope(OTHER_PRIVATE, desk.sheet(kit), desk.file(kit).read_bytes())

    @pytest.mark.parametrize("place", [0, 40, 255, 256, 300, 1500, SIZE - 40, SIZE - 1])
    def test_damaged(self, place: int) -> None:
        """One byte changed anywhere is told as damage, and not as a wrong key. [EUB-05]"""
        file = bytearray(close_envelope(DESK_PUBLIC, sheet_code(b"1"), HEADER, b"{}", NONCE))
        assert len(file) == SIZE
        file[place] ^= 1
        with pytest.raises(SealBroken, match="damaged"):
            open_envelope(DESK_PRIVATE, sheet_code(b"1"), bytes(file))

    def test_under_another_name(self) -> None:
        """Whoever relabels an envelope as another kit's, digest and all, has made one that opens nowhere. [CUS-10]"""
        file = close_envelope(DESK_PUBLIC, sheet_code(b"1"), HEADER, b"{}", NONCE)
        other = EnvelopeHeader(HEADER.deployment_id, Mode.TEST, HEADER.study_code, KitCode("K2XQ4M2PF"))
        with pytest.raises(SealBroken, match="another desk"):
            open_envelope(DESK_PRIVATE, sheet_code(b"1"), with_digest(other.to_bytes() + file[256:-32]))

    @pytest.mark.parametrize("header", [b"no JSON", b"{}", b'{"mode": "none"}', b"[]"])
    def test_of_another_form(self, header: bytes) -> None:
        """A file that is no envelope of this release is named as such. [EUB-05]"""
        with pytest.raises(SealBroken, match="of this release"):
            open_envelope(DESK_PRIVATE, sheet_code(b"1"), with_digest(header.ljust(256) + bytes(2124)))

    def test_content_of_another_form(self) -> None:
        """So is what is no content of one. [EUB-05]"""
        with pytest.raises(SealBroken, match="of this release"):
            EnvelopeContent.from_bytes(b"{}")


class TestSheetCode:
    def test_is_read_as_people_write(self) -> None:
        """Groups, hyphens, blanks and small letters are all the same code. [EUB-05]"""
        code = sheet_code(bytes(32))
        assert len(code) == 28
        assert normalise_sheet_code(in_groups(code).lower()) == code
        assert normalise_sheet_code(f" {in_groups(code).replace('-', ' ')}\n") == code

    def test_with_a_slip_of_the_pen(self) -> None:
        """Every single character read wrongly is told before anything is tried. [EUB-05]"""
        code = sheet_code(bytes(32))
        for place in range(len(code)):
            wrong = "2" if code[place] != "2" else "3"
            with pytest.raises(SealBroken, match="Read it again"):
                normalise_sheet_code(code[:place] + wrong + code[place + 1 :])
        for text in ("", code[:-1], "é" * 28):
            with pytest.raises(SealBroken, match="Read it again"):
                normalise_sheet_code(text)


class TestFiles:
    def test_after_a_crash_between_commit_and_file(self, study: RunningStudy, desk: Desk) -> None:
        """What a process that was killed had not written, or written in part, the next one writes. [EUB-05]"""
        kit = study.new_subject()["kit_code"]
        assert not desk.file(kit).exists()
        desk.folder.joinpath(STUDY).mkdir(exist_ok=True)
        (desk.folder / STUDY / f".{kit}.part").write_bytes(b"half a fi" * 1000)
        assert of_site(study)["issued"] == of_site(study)["written"] + 1
        desk.write()
        assert desk.open(kit).kit_code == kit
        assert of_site(study)["issued"] == of_site(study)["written"]

    def test_is_written_again_without_harm(self, study: RunningStudy, desk: Desk) -> None:
        """Killed after the file and before its mark, a process leaves what the next one writes once more. [EUB-05]"""
        kit = study.new_subject()["kit_code"]
        deployment = desk.house.deployment
        with deployment.database.transaction() as tx:
            (one,) = envelopes.list_waiting(tx, 10)
        assert deployment.desk is not None
        enveloping._write(deployment, deployment.desk, one)
        before = desk.file(kit).read_bytes()
        desk.write()
        assert desk.file(kit).read_bytes() == before

    def test_folder_that_cannot_be_written(self, study: RunningStudy, desk: Desk) -> None:
        """Whatever hinders the files hinders no allocation and no code break; it is told everywhere. [rule D5, EUB-04]"""
        aside = desk.folder.rename(desk.folder.with_name("aside"))
        desk.folder.write_text("a file where a folder should be")
        kit = study.new_subject()["kit_code"]
        body = {"subject_id": study.allocations[-1]["subject_id"], "reason_code": "overdose"}
        expect(study.investigator.post(f"{S}/code-breaks", json=body, step_up=True), 201)
        desk.house.clock.advance(minutes=6)
        with capture_logs() as lines:
            desk.write()
        events = [line["event"] for line in lines]
        assert events[:2] == ["envelopes not written", "envelopes overdue"]
        assert "envelopes not put back" in events
        counts = of_site(study)
        assert counts["overdue"] == 1
        assert counts["missing"] == counts["written"] > 0
        told = concerns(desk)
        assert len(told) == 3
        assert "cannot be written" in told[0]
        assert "1 code-break envelopes have no file" in told[1]
        assert "are gone" in told[2]
        desk.folder.unlink()
        aside.rename(desk.folder)
        desk.write()
        assert desk.open(kit).kit_code == kit
        assert (of_site(study)["overdue"], of_site(study)["missing"]) == (0, 0)
        assert concerns(desk) == []

    def test_disk_that_takes_a_part(self, tmp_path: Path) -> None:
        """A file that the disk took in part never gets its name. [EUB-05]"""
        folder = EnvelopeFolder(tmp_path)
        with (
            patch.object(os, "write", lambda _descriptor, content: len(content) - 1),
            pytest.raises(OSError, match="part"),
        ):
            folder.write(StudyCode("S"), KitCode("K"), b"content", datetime(2026, 1, 1, tzinfo=UTC))
        assert not folder.file(StudyCode("S"), KitCode("K")).exists()

    def test_one_writer_at_a_time(self, study: RunningStudy, desk: Desk) -> None:
        """While another process writes, this one leaves the work to it, also that of putting back. [EUB-05]"""
        kit, other = (study.new_subject()["kit_code"] for _ in range(2))
        desk.write()
        third = study.new_subject()["kit_code"]
        desk.file(kit).unlink()
        with EnvelopeFolder(desk.folder).alone() as is_alone:
            assert is_alone
            desk.write()
        assert not desk.file(third).exists()
        assert not desk.file(kit).exists()
        desk.write()
        assert {desk.open(code).kit_code for code in (kit, other, third)} == {kit, other, third}

    def test_file_that_is_gone(self, study: RunningStudy, desk: Desk) -> None:
        """It is alarmed by log, metrics and report, put back as it was, and entered without telling which. [EUB-05, rule B10]"""
        kit = study.new_subject()["kit_code"]
        desk.write()
        before = desk.file(kit).read_bytes()
        desk.file(kit).unlink()
        assert report(study)["missing"] == [kit]
        assert of_site(study)["missing"] == 1
        with capture_logs() as lines:
            desk.write()
        assert [(line["event"], line.get("count")) for line in lines] == [("envelopes missing", 1)]
        assert enveloping._missing._value.get() == 1
        assert desk.file(kit).read_bytes() == before
        entry = desk.house.trail(STUDY, last=1)[0]
        assert (entry["action"], entry["actor"], entry["after"]) == ("envelope:put_back", "snose", {"count": 1})
        desk.write()
        assert enveloping._missing._value.get() == 0
        assert report(study)["missing"] == []

    def test_many_are_looked_for_in_turns(self, study: RunningStudy, desk: Desk) -> None:
        """A round looks for so many files, the next one for those behind them, and the first of them comes again. [EUB-05]"""
        kits = [study.new_subject()["kit_code"] for _ in range(3)]
        with patch.object(enveloping, "_LOOKED_AT", 2), patch.object(enveloping, "_AT_ONCE", 2):
            desk.write()
            for kit in kits:
                desk.file(kit).unlink()
            for _ in range(len(desk.files) + 4):
                desk.write()
        assert {desk.open(kit).kit_code for kit in kits} == set(kits)

    def test_is_written_in_a_moment(self, study: RunningStudy, desk: Desk) -> None:
        """Nobody has to wait for the next round: the making of an envelope wakes who writes it. [EUB-05]"""
        with patch.object(keeper, "_BREATH", 0.01):
            desk.house.restart()
            kit = study.new_subject()["kit_code"]
            until = monotonic() + 30
            while not desk.file(kit).exists():
                assert monotonic() < until, "the file was not written"
                sleep(0.01)
        assert desk.open(kit).kit_code == kit

    def test_database_that_is_down(self, desk: Desk) -> None:
        """A round that cannot read the outbox is told, and the next one tries again. [EUB-05]"""
        with failing(desk.house, Fault.DOWN, Fault.DOWN) as deployment, capture_logs() as lines:
            Keeper(deployment).envelope_round()
        assert [line["step"] for line in lines if line["event"] == "round failed"] == [
            "write_envelopes",
            "look_after_envelopes",
        ]


class TestOpening:
    def opened(self, desk: Desk, kit_code: str, **changes: object) -> dict[str, object]:
        return {
            "kit_code": kit_code,
            "opened_at": desk.house.clock.now.isoformat(),
            "opened_by": "A. Okafor, emergency desk",
            "reason_code": "serious_adverse_event",
            "reason": "Service down; sedation could not wait",
            **changes,
        }

    def test_is_a_code_break_from_then_on(self, study: RunningStudy, desk: Desk) -> None:
        """The subject is flagged since the opening, the register names who opened it, and nobody told a treatment. [EUB-13]"""
        given = study.new_subject()
        desk.write()
        opened_at = desk.house.clock.now
        desk.house.clock.advance(minutes=40)
        officer = study.person(Role.SAFETY_OFFICER)
        body = self.opened(desk, given["kit_code"], opened_at=opened_at.isoformat())
        answer = expect(officer.post(f"{S}/envelope-openings", json=body, step_up=True), 201)
        assert (answer["subject_id"], answer["opened_at"]) == (given["subject_id"], opened_at.isoformat())
        entry = desk.house.trail(STUDY, last=1)[0]
        assert (entry["action"], entry["actor"]) == ("envelope:enter_opening", officer.username)
        assert entry["target"] == {"kit_code": given["kit_code"], "subject_id": given["subject_id"]}
        assert entry["after"]["opened_by"] == "A. Okafor, emergency desk"
        assert study.restricted(answer["receipt"]["log_index"])["part"]["reason"] == body["reason"]
        read = expect(study.investigator.get(f"{S}/subjects/{given['subject_id']}/allocation"), 200)
        assert read["flags"]["unblinded_at"] == opened_at.isoformat()
        line = next(
            one
            for one in expect(study.investigator.get(f"{S}/code-breaks"), 200)["items"]
            if one["code_break_id"] == answer["code_break_id"]
        )
        assert (line["kind"], line["opened_by"], line["kit_code"]) == (
            "envelope",
            "A. Okafor, emergency desk",
            given["kit_code"],
        )
        assert line["broken_by"] == officer.username
        assert [one["meaning"] for one in line["signatures"]] == ["authorship"]
        assert line["is_signed"]
        (found,) = (one for one in report(study)["opened"] if one["kit_code"] == given["kit_code"])
        assert (found["opened_by"], found["entered_by"]) == ("A. Okafor, emergency desk", officer.username)
        again = study.study_admin.post(f"{S}/envelope-openings", json=body, step_up=True)
        assert expect(again, 409)["code"] == "already_exists"
        told = expect(
            officer.post(f"{S}/code-breaks/{answer['code_break_id']}/narrative", json={"narrative": "n"}), 201
        )
        assert told["code_break_id"] == answer["code_break_id"]

    def test_is_entered_by_the_study_admin_too(self, study: RunningStudy, desk: Desk) -> None:
        """A blinded person can enter it, because nothing of the treatment is asked or answered; once by one key. [EUB-05]"""
        kit = study.new_subject()["kit_code"]
        body, key = self.opened(desk, kit), {"Idempotency-Key": "opening"}
        first = study.study_admin.post(f"{S}/envelope-openings", json=body, step_up=True, headers=key)
        again = study.study_admin.post(f"{S}/envelope-openings", json=body, step_up=True, headers=key)
        assert expect(again, 200) == expect(first, 201)

    @pytest.mark.parametrize("minutes", [-60 * 24, 60])
    def test_at_a_time_that_cannot_be(self, study: RunningStudy, desk: Desk, minutes: int) -> None:
        """Not before the kit was given, and not tomorrow. [EUB-08]"""
        kit = study.new_subject()["kit_code"]
        when = (desk.house.clock.now + timedelta(minutes=minutes)).isoformat()
        body = self.opened(desk, kit, opened_at=when)
        refused = study.study_admin.post(f"{S}/envelope-openings", json=body, step_up=True)
        assert expect(refused, 422)["errors"][0]["field"] == "opened_at"

    def test_of_what_has_no_envelope(self, study: RunningStudy, desk: Desk) -> None:
        """A kit of nobody's and a kit that is nowhere are the same 404. [USR-21]"""
        for kit in (study.free_kit(), "K7XQ4M2PF"[:8] + check_character("K7XQ4M2P")):
            refused = study.study_admin.post(f"{S}/envelope-openings", json=self.opened(desk, kit), step_up=True)
            assert expect(refused, 404)["code"] == "not_found"


class TestReport:
    def test_shows_a_site_its_own(self, study: RunningStudy, desk: Desk) -> None:
        """A pharmacist reads of the own site, and of another one nothing. [USR-21]"""
        study.new_subject()
        desk.write()
        assert [one["site_code"] for one in report(study, Role.PHARMACIST)["sites"]] == ["01"]
        elsewhere = desk.house.person(Role.PHARMACIST, site="02")
        answer = expect(elsewhere.get(f"{S}/envelopes"), 200)
        assert answer == {"is_on": True, "sites": [], "missing": [], "opened": []}


class TestSheets:
    def pages(self, study: RunningStudy, content: bytes, code: str) -> list[str]:
        opened = decrypt_with(DESK_PRIVATE, content, sheets_info(StudyCode(STUDY), ConsignmentCode(code)))
        return [page.extract_text() for page in PdfReader(io.BytesIO(opened)).pages]

    def released(self, study: RunningStudy, code: str, **body: object) -> Response:
        return study.people["supply_manager"].post(
            f"{S}/consignments/{code}/sheets", json={"recipient_key": DESK_PUBLIC, **body}, step_up=True
        )

    def test_one_page_for_each_kit(self, study: RunningStudy, desk: Desk) -> None:
        """Released encrypted, once the kits are on their way: every kit's number and code, and not a word of an arm. [EUB-05]"""
        kit = study.new_subject()["kit_code"]
        assert of_site(study)["without_sheet"] == of_site(study)["issued"]
        answer = self.released(study, "C1")
        assert answer.status_code == 200, answer.text
        assert answer.headers["Cache-Control"] == "no-store"
        pages = self.pages(study, answer.content, "C1")
        assert len(pages) == len(study.kit_codes)
        for page, code in zip(pages, study.kit_codes, strict=True):
            assert f"CODE-BREAK SHEET No. {code}" in page
            assert in_groups(desk.sheet(code)) in page
            assert "Site 01" in page
            assert not any(word in page for arm, treatment in TREATMENTS.items() for word in (arm, treatment))
        assert of_site(study)["without_sheet"] == 0
        entry = desk.house.trail(STUDY, last=4)
        assert [one["after"] for one in entry if one["action"] == "envelope:release_sheets"] == [
            {"kit_count": len(pages), "encrypted": True, "anew": False}
        ]
        desk.write()
        assert desk.open(kit).kit_code == kit
        assert expect(self.released(study, "C1"), 409)["code"] == "illegal_transition"

    def test_anew_while_in_the_depot(self, study: RunningStudy) -> None:
        """Sheets that got lost before the kits left are printed again, and that is entered. [EUB-05]"""
        codes = consignment(study, "C-depot", 3, received=False)
        first, second = (self.released(study, "C-depot") for _ in range(2))
        assert self.pages(study, first.content, "C-depot") == self.pages(study, second.content, "C-depot")
        assert "Site ____" in self.pages(study, first.content, "C-depot")[0]
        assert len(codes) == len(self.pages(study, second.content, "C-depot"))
        assert study.house.trail(STUDY, last=1)[0]["after"] == {
            "kit_count": len(codes),
            "encrypted": True,
            "anew": True,
        }

    def test_refusals(self, study: RunningStudy) -> None:
        """No such consignment, no key, and more kits than anybody prints. [rule G1]"""
        assert self.released(study, "NONE").status_code == 404
        assert self.released(study, "C1", recipient_key="A" * 43 + "=").status_code == 422
        consignment(study, "C-large", 501, received=False)
        assert expect(self.released(study, "C-large"), 409)["code"] == "illegal_transition"

    def test_where_no_envelopes_are_made(self, study: RunningStudy, desk: Desk) -> None:
        """There is nothing to print, the report says that it is off, and a kit is given without an envelope. [EUB-05]"""
        issued = of_site(study)["issued"]
        desk.house.restart(envelope_folder=None, envelope_desk_key=None)
        assert expect(self.released(study, "C-depot"), 409)["code"] == "illegal_transition"
        study.new_subject()
        Keeper(desk.house.deployment).envelope_round()
        told = report(study)
        assert (told["is_on"], told["sites"][0]["issued"]) == (False, issued)
        desk.house.restart(envelope_folder=desk.folder, envelope_desk_key=DESK_PUBLIC)

    def test_same_bytes_for_the_same_kits(self) -> None:
        """The file tells neither when nor where it was made; a contact in another script is left to the protocol. [EUB-05]"""
        sheets = [Sheet(KitCode("K7XQ4M2PF"), sheet_code(bytes(32)))]
        given = (StudyCode("S"), Mode.LIVE, ConsignmentCode("C"), SiteCode("01"))
        assert sheets_pdf(*given, "急 +86", sheets) == sheets_pdf(*given, "急 +86", sheets)
        text = PdfReader(io.BytesIO(sheets_pdf(*given, "", sheets))).pages[0].extract_text()
        assert "see the trial protocol" in text
        assert "TEST" not in text
        test = sheets_pdf(given[0], Mode.TEST, *given[2:], "", sheets)
        assert "TEST, NOT FOR PATIENTS" in PdfReader(io.BytesIO(test)).pages[0].extract_text()

    def test_is_read_by_a_scanner(self) -> None:
        """The drawn code, seen as a picture, says the code. [EUB-05]"""
        code = sheet_code(bytes(32))
        pdf = sheets_pdf(StudyCode("S"), Mode.TEST, ConsignmentCode("C"), None, "", [Sheet(KitCode("K7XQ4M2PF"), code)])
        drawn = PdfReader(io.BytesIO(pdf)).pages[0].get_contents()
        assert drawn is not None
        picture = Image.new("L", (2400, 3400), 255)
        pen = ImageDraw.Draw(picture)
        for found in re.finditer(rb"([\d.]+) ([\d.]+) ([\d.]+) (-?[\d.]+) re f", drawn.get_data()):
            x, y, width, height = (float(number) for number in found.groups())
            pen.rectangle((4 * x, 4 * (842 - y), 4 * (x + width), 4 * (842 - y - height)), 0)
        assert [one.text for one in zxingcpp.read_barcodes(picture)] == [code]


class TestSettings:
    @pytest.mark.parametrize(
        "fields",
        [
            {"envelope_folder": Path("x")},
            {"envelope_desk_key": DESK_PUBLIC},
            {"envelope_folder": Path("x"), "envelope_desk_key": "no key"},
        ],
    )
    def test_half_said(self, tmp_path: Path, fields: dict[str, Any]) -> None:
        """One without the other, or a key that is none, is refused with the setting's name. [INT-03]"""
        settings = Settings(
            mode=Mode.TEST,
            key_file=tmp_path / "key",
            checkpoint_file=tmp_path / "c",
            database_url=f"sqlite:///{tmp_path}/x",
            **fields,
        )
        with pytest.raises(UnsafeSetting, match="SNOSE_ENVELOPE_"):
            surroundings(settings)

    def test_without_envelopes(self, tmp_path: Path) -> None:
        """In live mode `snose doctor` says that there is no back-up; the start is not refused for it. [rule D5]"""
        around = surroundings(
            Settings(key_file=tmp_path / "key", checkpoint_file=tmp_path / "c", database_url=f"sqlite:///{tmp_path}/x")
        )
        (told,) = safety.concerns(around, Mode.LIVE)
        assert "No code-break envelopes are made" in told.what
        assert safety.concerns(around, Mode.TEST) == []

    def test_database_that_is_not_there(self, tmp_path: Path) -> None:
        """A database that cannot be asked is told among the findings, and not twice. [INT-03]"""
        settings = Settings(
            key_file=tmp_path / "key",
            checkpoint_file=tmp_path / "c",
            database_url="sqlite:////nowhere/x",
            envelope_folder=tmp_path,
            envelope_desk_key=OTHER_PUBLIC,
        )
        assert safety.concerns(surroundings(settings), Mode.LIVE) == []
