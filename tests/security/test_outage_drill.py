"""The outage drill: service stopped, envelope opened offline, break entered later, and the count agrees. [issue 3, 8; T34]"""

import io
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
from pypdf import PdfReader
from typer.testing import CliRunner

from app.cli.envelope import command
from app.domain.words import ConsignmentCode, Role, StudyCode
from app.errors import SealBroken, SnoseError, UnsafeSetting
from app.sealing.envelopes import open_envelope
from app.sealing.recipients import decrypt_with
from app.services.envelopes import sheets_info
from tests.envelopes import DESK_PRIVATE, DESK_PUBLIC
from tests.reliability.service import ARMS, OpenStudy, Service, Sponsor

ROOT: Final = Path(__file__).parents[2]
STUDY: Final = "DRILL"
SUBJECTS: Final = 4
TWO_MINUTES: Final = timedelta(minutes=2)
FILES_WITHIN_SECONDS: Final = 60.0
SHEET: Final = re.compile(r"Code of kit (\w+)\s+((?:\w{4}-){6}\w{4})")
OPENED_BY: Final = "A. Okafor, emergency desk"


@dataclass
class Ground:
    """A service with its study, the desk's key, the folder, and the sheets as they came out of the printer."""

    service: Service
    sponsor: Sponsor
    study: OpenStudy
    folder: Path
    key: Path
    sheets: Mapping[str, str]
    given: Mapping[str, str]
    """Kit by subject."""

    def ask(self, role: Role, path: str) -> Any:  # noqa: ANN401  # whatever JSON holds
        trial = self.study.trial
        return trial.ask(trial.who(role), "GET", f"/v1/studies/{STUDY}{path}").json()

    def file(self, kit: str) -> Path:
        return self.folder / STUDY / f"{kit}.envelope"

    def wait_for_files(self, *kits: str) -> None:
        until = time.monotonic() + FILES_WITHIN_SECONDS
        while not all(self.file(kit).exists() for kit in kits):
            assert time.monotonic() < until, "the files were not written"
            time.sleep(0.05)

    def report_once_written(self) -> Any:  # noqa: ANN401  # whatever JSON holds
        """Return the reconciliation once every file is marked as written: a moment after it is there."""
        until = time.monotonic() + FILES_WITHIN_SECONDS
        while True:
            report = self.ask(Role.INSPECTOR, "/envelopes")
            if all(site["written"] == site["issued"] for site in report["sites"]):
                return report
            assert time.monotonic() < until, report
            time.sleep(0.2)

    def desk(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        """Run the desk's tool as on a machine that knows nothing of the service."""
        return subprocess.run(
            [sys.executable, "-m", "app.cli", "envelope", *arguments],
            cwd=ROOT,
            env={},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )


@pytest.fixture(
    scope="module",
    params=["sqlite", pytest.param("postgresql", marks=[pytest.mark.long, pytest.mark.timeout(0)])],
)
def ground(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    """Four subjects allocated at a real service, their files written, their sheets printed."""
    folder = tmp_path_factory.mktemp("drill")
    outside = folder / "outside"
    outside.mkdir()
    key = folder / "desk.key"
    more = {"SNOSE_ENVELOPE_FOLDER": str(outside), "SNOSE_ENVELOPE_DESK_KEY": DESK_PUBLIC}
    if request.param == "sqlite":
        yield from begun(Service(folder, f"sqlite:///{folder}/snose.sqlite", 1, **more), outside, key)
        return
    with request.getfixturevalue("postgres").database() as url:
        yield from begun(Service(folder, url, 2, **more), outside, key)


def begun(service: Service, outside: Path, key: Path) -> Iterator[Ground]:
    key.write_text(DESK_PRIVATE)
    key.chmod(0o600)
    with service:
        issued = service.create()
        service.start()
        sponsor = Sponsor(service, issued)
        study = sponsor.open_study(STUDY, ("01",), 8, 8)
        trial = study.trial
        sheets = {"recipient_key": DESK_PUBLIC}
        path = f"/v1/studies/{STUDY}/consignments/01-0/sheets"
        printed = trial.ask(trial.who(Role.SUPPLY_MANAGER), "POST", path, sheets, step_up=True).content
        pdf = decrypt_with(DESK_PRIVATE, printed, sheets_info(StudyCode(STUDY), ConsignmentCode("01-0")))
        pages = [page.extract_text() for page in PdfReader(io.BytesIO(pdf)).pages]
        found = [SHEET.search(page) for page in pages]
        given = {}
        for number in range(SUBJECTS):
            subject = f"01-{number:04}"
            given[subject] = allocate(service, study, subject)
        ground = Ground(
            service,
            sponsor,
            study,
            outside,
            key,
            {one.group(1): one.group(2) for one in found if one is not None},
            given,
        )
        ground.wait_for_files(*given.values())
        yield ground
        sponsor.close()


def allocate(service: Service, study: OpenStudy, subject: str) -> str:
    """Return the kit that a new subject was given."""
    path, headers = f"{service.base_url}/v1/studies/{STUDY}/allocations", {"Authorization": f"Bearer {study.token}"}
    answer = httpx.post(path, json=study.body(subject, 0), headers=headers, trust_env=False)
    return str(answer.raise_for_status().json()["kit_code"])


class TestDrill:
    def test_open_offline_and_enter_later(self, ground: Ground) -> None:
        """Killed, opened, started, entered: one opened, none missing, the same treatment; under two minutes. [Done 8]

        The last kit was given in the moment before: its envelope is written by whoever comes next.
        """
        subject, kit = next(iter(ground.given.items()))
        assert len(ground.sheets) == 2 * 8
        begun_at = time.monotonic()
        last = allocate(ground.service, ground.study, "01-last")
        ground.service.kill()
        with pytest.raises(httpx.TransportError):
            httpx.get(f"{ground.service.base_url}/livez", trust_env=False)
        arguments = ("open", str(ground.file(kit)), "--desk-key", str(ground.key), "--code", ground.sheets[kit])
        opened = ground.desk(*arguments, "--opened-by", OPENED_BY, "--json")
        offline = time.monotonic() - begun_at
        assert opened.returncode == 0, opened.stderr
        told = json.loads(opened.stdout)
        assert (told["subject_id"], told["kit_code"], told["site_code"]) == (subject, kit, "01")
        (line,) = ground.key.with_name("desk.key.opened.jsonl").read_text().splitlines()
        assert json.loads(line)["kit_code"] == kit
        assert told["treatment"] not in line
        ground.service.start()
        ground.wait_for_files(last)
        trial = ground.study.trial
        entry = {name: told[name] for name in ("kit_code", "opened_at", "opened_by")}
        # The tool tells whole seconds; the kit of this drill was given in the same one perhaps.
        entry["opened_at"] = max(entry["opened_at"], told["assigned_at"])
        entry |= {"reason_code": "serious_adverse_event", "reason": "Drill"}
        path = f"/v1/studies/{STUDY}/envelope-openings"
        trial.ask(trial.who(Role.STUDY_ADMIN), "POST", path, entry, step_up=True)
        report = ground.report_once_written()
        elapsed = time.monotonic() - begun_at
        assert [(one["kit_code"], one["opened_by"]) for one in report["opened"]] == [(kit, OPENED_BY)]
        assert report["sites"] == [
            {
                "site_code": "01",
                "issued": SUBJECTS + 1,
                "written": SUBJECTS + 1,
                "overdue": 0,
                "missing": 0,
                "opened": 1,
                "without_sheet": 0,
            }
        ]
        flags = ground.ask(Role.INVESTIGATOR, f"/subjects/{subject}/allocation")["flags"]
        assert flags["unblinded_at"] is not None
        breaking = {"subject_id": subject, "reason_code": "serious_adverse_event"}
        shown = trial.ask(
            trial.who(Role.INVESTIGATOR), "POST", f"/v1/studies/{STUDY}/code-breaks", breaking, step_up=True
        ).json()
        assert shown["treatment"] == told["treatment"]
        assert told["treatment"] in {arm["treatment"] for arm in ARMS}
        sys.stdout.write(f"opened offline after {offline:.1f} s, reconciled after {elapsed:.1f} s\n")
        assert timedelta(seconds=elapsed) < TWO_MINUTES

    @pytest.mark.skipif(shutil.which("curl") is None, reason="the README's commands use curl")
    def test_as_the_readme_has_it(self, ground: Ground, tmp_path: Path) -> None:
        """The commands of the README, as they stand, with nothing but what they name. [Done 8]"""
        offline, later = readme_blocks()
        kit = list(ground.given.values())[1]
        trial = ground.study.trial
        tools = tmp_path / "bin"
        tools.mkdir()
        (tools / "snose").write_text(f'#!/bin/sh\ncd "{ROOT}" && exec "{sys.executable}" -m app.cli "$@"\n')
        (tools / "snose").chmod(0o755)
        named = {
            "PATH": f"{tools}:{os.environ['PATH']}",
            "no_proxy": "*",
            "FOLDER": str(ground.folder),
            "STUDY": STUDY,
            "KIT": kit,
            "SHEET": ground.sheets[kit],
            "DESK_KEY": str(ground.key),
            "OPENED_BY": OPENED_BY,
        }
        text = run(offline, named)
        assert f"kit {kit}" in text
        assert "TREATMENT: Product" in text
        opened_at = trial.now().isoformat()
        assert f"POST /v1/studies/{STUDY}/envelope-openings" in text
        token = trial._token(trial.who(Role.STUDY_ADMIN), step_up=True)
        answers = run(later, named | {"URL": ground.service.base_url, "TOKEN": token, "OPENED_AT": opened_at})
        entered, report = map(json.loads, answers.splitlines())
        assert entered["kit_code"] == kit
        assert kit in {one["kit_code"] for one in report["opened"]}


class TestOneKeyAlone:
    def test_desk_without_a_code(self, ground: Ground) -> None:
        """Asked for the code and given none, the tool ends without a word of the treatment. [Done 8]"""
        kit = next(iter(ground.given.values()))
        failed = CliRunner().invoke(command, ["open", str(ground.file(kit)), "--desk-key", str(ground.key)], input="")
        assert failed.exit_code != 0
        assert "Product" not in failed.output

    def test_desk_with_every_other_sheet(self, ground: Ground) -> None:
        """With the desk's key and all the other sheets, none of the envelopes opens. [Done 8]"""
        for kit in ground.given.values():
            for other, code in ground.sheets.items():
                if other != kit:
                    with pytest.raises(SealBroken):
                        open_envelope(DESK_PRIVATE, code.replace("-", ""), ground.file(kit).read_bytes())

    def test_what_goes_wrong_is_one_sentence(self, ground: Ground, tmp_path: Path) -> None:
        """Another sheet, a slip, another desk, a damaged or absent file, a key open to others: each said plainly. [Done 8]"""
        first, second = list(ground.given.values())[:2]
        file, code = ground.file(first), ground.sheets[first]
        other_key = tmp_path / "other.key"
        made = CliRunner().invoke(command, ["keys", "--desk-key", str(other_key), "--json"])
        assert len(json.loads(made.stdout)["key"]) == 44
        assert other_key.stat().st_mode & 0o777 == 0o600
        damaged = tmp_path / "damaged.envelope"
        damaged.write_bytes(file.read_bytes()[:-1] + b"\0")
        open_key = tmp_path / "open.key"
        open_key.write_text(DESK_PRIVATE)
        open_key.chmod(0o644)
        for envelope, key, sheet, said in (
            (file, ground.key, ground.sheets[second], "not the code of the sheet of kit"),
            (file, ground.key, code[:-1] + ("2" if code[-1] != "2" else "3"), "Read it again"),
            (file, other_key, code, "another desk"),
            (damaged, ground.key, code, "damaged"),
            (tmp_path / "none", ground.key, code, "cannot be read"),
            (file, open_key, code, "open to others"),
        ):
            failed = CliRunner().invoke(command, ["open", str(envelope), "--desk-key", str(key), "--code", sheet])
            assert failed.output == ""
            assert isinstance(failed.exception, SnoseError)
            assert said in failed.exception.message
            assert "\n" not in failed.exception.message
        again = CliRunner().invoke(command, ["keys", "--desk-key", str(other_key)])
        assert isinstance(again.exception, UnsafeSetting)

    def test_record_that_cannot_be_kept(self, ground: Ground, tmp_path: Path) -> None:
        """The treatment is told all the same, with the advice to write the opening down. [rule D5]"""
        kit = next(iter(ground.given.values()))
        key = tmp_path / "desk.key"
        key.write_text(DESK_PRIVATE)
        key.chmod(0o600)
        key.with_name("desk.key.opened.jsonl").mkdir()
        arguments = ["open", str(ground.file(kit)), "--desk-key", str(key), "--code", ground.sheets[kit]]
        opened = CliRunner().invoke(command, arguments)
        assert opened.exit_code == 0
        assert "TREATMENT: Product" in opened.stdout
        assert "Write it down" in opened.stderr


def readme_blocks() -> tuple[str, str]:
    """Return the commands of the README's outage: those without the service, and those after it."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    chapter = text.split("**Outage.**", 1)[1].split("**Health.**", 1)[0]
    offline, later = re.findall(r"^```sh\n(.*?)^```", chapter, re.MULTILINE | re.DOTALL)
    return offline, later


def run(commands: str, environment: Mapping[str, str]) -> str:
    done = subprocess.run(
        ["/bin/bash", "-euo", "pipefail", "-c", commands],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
