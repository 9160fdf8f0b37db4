"""The machine is gone: from a backup, an escrow and what is kept elsewhere to a service that goes on, on both databases. (T34)

Kept elsewhere are the backup, the checkpoint file, the escrow with its recipient's key, and the emergency desk's folder.
"""

import io
import json
import os
import re
import shutil
import subprocess
import sys
import time
from base64 import b64encode
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from pypdf import PdfReader
from typer.testing import CliRunner

from app.cli.envelope import command as desk_command
from app.domain.words import ConsignmentCode, Role, StudyCode
from app.sealing.recipients import decrypt_with
from app.services.envelopes import sheets_info
from tests.databases import postgres_programs
from tests.envelopes import DESK_PRIVATE, DESK_PUBLIC
from tests.reliability.service import OpenStudy, Service, Sponsor
from tests.reliability.tally import Tally
from tests.security.test_outage_drill import SHEET

ROOT: Final = Path(__file__).parents[2]
VERIFIER: Final = ROOT / "app" / "verifier.py"
STUDY: Final = "DRILL"
PATH: Final = f"/v1/studies/{STUDY}"
SUBJECTS: Final = 6
LOST: Final = 2
TEN_MINUTES: Final = 600.0
FILES_WITHIN_SECONDS: Final = 60.0


COMMANDS: Final = """\
snose restore "$BACKUP" --sink "$SINK" --escrow "$ESCROW" --recipient-key "$RECIPIENT_KEY"
snose keys restore --escrow "$ESCROW" --recipient-key "$RECIPIENT_KEY"
"""
"""What an operator types on the new machine, set by the environment like every command."""


@dataclass
class Elsewhere:
    """What is not on the machine that is lost."""

    folder: Path

    @property
    def backup(self) -> Path:
        return self.folder / "backup"

    @property
    def escrow(self) -> Path:
        return self.folder / "escrow.json"

    @property
    def recipient_key(self) -> Path:
        return self.folder / "recipient.key"

    @property
    def sink(self) -> Path:
        return self.folder / "checkpoints.jsonl"

    @property
    def envelopes(self) -> Path:
        return self.folder / "envelopes"


def snose(service: Service, *arguments: str) -> dict[str, Any]:
    """Return what a command of the operator says."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("SNOSE_")}
    path = f"{postgres_programs()}:{os.environ['PATH']}"
    done = subprocess.run(
        [sys.executable, "-m", "app.cli", *arguments, "--json"],
        env={**inherited, "PATH": path, "PYTHONPATH": str(ROOT), **service.environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def run(service: Service, elsewhere: Elsewhere, folder: Path) -> str:
    """Return what the commands say on the new machine."""
    tools = folder / "bin"
    tools.mkdir()
    (tools / "snose").write_text(f'#!/bin/sh\ncd "{ROOT}" && exec "{sys.executable}" -m app.cli "$@"\n')
    (tools / "snose").chmod(0o755)
    kept = {
        "BACKUP": str(elsewhere.backup),
        "SINK": str(elsewhere.sink),
        "ESCROW": str(elsewhere.escrow),
        "RECIPIENT_KEY": str(elsewhere.recipient_key),
    }
    path = f"{tools}:{postgres_programs()}:{os.environ['PATH']}"
    done = subprocess.run(
        ["/bin/bash", "-euo", "pipefail", "-c", COMMANDS],
        env={"PATH": path, **service.environment, **kept},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def urls(request: pytest.FixtureRequest, database_kind: str, tmp_path: Path) -> Iterator[tuple[str, str]]:
    """The database that is lost, and the empty one of the new machine."""
    for name in ("lost", "new"):
        (tmp_path / name).mkdir()
    if database_kind == "sqlite":
        yield f"sqlite:///{tmp_path / 'lost' / 'snose.sqlite'}", f"sqlite:///{tmp_path / 'new' / 'snose.sqlite'}"
        return
    server = request.getfixturevalue("postgres")
    with server.database() as lost, server.database() as new:
        yield lost, new


@pytest.mark.long
@pytest.mark.timeout(0)
def test_restore_drill(urls: tuple[str, str], database_kind: str, tmp_path: Path, tally: Tally) -> None:
    """Restored, verified, shut, declared, going on at the right slot; codes are broken, envelopes opened. [T34, INT-05, INT-07]"""
    elsewhere = Elsewhere(tmp_path / "elsewhere")
    elsewhere.envelopes.mkdir(parents=True)
    workers = 2 if database_kind == "postgresql" else 1
    more = {"SNOSE_ENVELOPE_FOLDER": str(elsewhere.envelopes), "SNOSE_ENVELOPE_DESK_KEY": DESK_PUBLIC}
    with Service(tmp_path / "lost", urls[0], workers, **more) as service:
        issued = service.create()
        export_escrow(service, elsewhere)
        service.start()
        sponsor = Sponsor(service, issued)
        study = sponsor.open_study(STUDY, ("01",), 24, 24)
        sheets = printed_sheets(study)
        given = {subject: allocate(study, service, subject) for subject in subjects(SUBJECTS)}
        assert snose(service, "backup", str(elsewhere.backup))["manifest"]["rows"]["allocation"] == SUBJECTS
        lost = [allocate(study, service, f"01-lost-{number}") for number in range(LOST)]
        wait_for_files(elsewhere, [one["kit_code"] for one in given.values()])
        service.stop()
        shutil.copy(service.sink, elsewhere.sink)
    shutil.rmtree(tmp_path / "lost")
    begun = time.monotonic()
    treatments = opened_offline(elsewhere, sheets, given)
    on_new_machine = {**more, "SNOSE_PORT": str(service.port)}
    with Service(tmp_path / "new", urls[1], workers, **on_new_machine) as new:
        new.port = service.port
        shutil.copy(elsewhere.sink, new.sink)
        said = run(new, elsewhere, tmp_path)
        assert "Everything that was looked at holds." in said
        assert re.search(rf"Entries are missing here .* [1-9]\d* of \S+/{STUDY}, since", said)
        new.start(until="/livez")
        goes_on(new, sponsor, study, lost[0]["randomization_number"], treatments)
        check_trail(study, elsewhere, tmp_path)
    sponsor.close()
    elapsed = time.monotonic() - begun
    assert elapsed < TEN_MINUTES
    tally(drills=1, seconds=round(elapsed))


def subjects(count: int) -> list[str]:
    return [f"01-{number:04}" for number in range(count)]


def export_escrow(service: Service, elsewhere: Elsewhere) -> None:
    private = X25519PrivateKey.generate()
    elsewhere.recipient_key.touch(mode=0o600)
    elsewhere.recipient_key.write_text(b64encode(private.private_bytes_raw()).decode())
    public = b64encode(private.public_key().public_bytes_raw()).decode()
    snose(service, "keys", "escrow", "--to", public, "--out", str(elsewhere.escrow))


def allocate(study: OpenStudy, service: Service, subject: str, expected: int = 201) -> dict[str, Any]:
    headers = {"Authorization": f"Bearer {study.token}"}
    url = f"{service.base_url}{PATH}/allocations"
    answer = httpx.post(url, json=study.body(subject, 0), headers=headers, trust_env=False)
    assert answer.status_code == expected, answer.text
    told: dict[str, Any] = answer.json()
    return told


def printed_sheets(study: OpenStudy) -> Mapping[str, str]:
    """Return the code on the sheet of each kit."""
    trial = study.trial
    path = f"{PATH}/consignments/01-0/sheets"
    sealed = trial.ask(
        trial.who(Role.SUPPLY_MANAGER), "POST", path, {"recipient_key": DESK_PUBLIC}, step_up=True
    ).content
    pdf = decrypt_with(DESK_PRIVATE, sealed, sheets_info(StudyCode(STUDY), ConsignmentCode("01-0")))
    found = [SHEET.search(page.extract_text()) for page in PdfReader(io.BytesIO(pdf)).pages]
    return {one.group(1): one.group(2) for one in found if one is not None}


def wait_for_files(elsewhere: Elsewhere, kits: list[str]) -> None:
    until = time.monotonic() + FILES_WITHIN_SECONDS
    while not all((elsewhere.envelopes / STUDY / f"{kit}.envelope").exists() for kit in kits):
        assert time.monotonic() < until, "the files were not written"
        time.sleep(0.05)


def opened_offline(
    elsewhere: Elsewhere, sheets: Mapping[str, str], given: Mapping[str, dict[str, Any]]
) -> dict[str, str]:
    """Return the treatments of three subjects, read while no service is there."""
    key = elsewhere.folder / "desk.key"
    key.touch(mode=0o600)
    key.write_text(DESK_PRIVATE)
    found = {}
    for subject, allocation in list(given.items())[:3]:
        kit = allocation["kit_code"]
        file = elsewhere.envelopes / STUDY / f"{kit}.envelope"
        arguments = ["open", str(file), "--desk-key", str(key), "--code", sheets[kit], "--json"]
        opened = CliRunner().invoke(desk_command, arguments)
        assert opened.exit_code == 0, opened.output
        told = json.loads(opened.stdout)
        assert told["subject_id"] == subject
        found[subject] = told["treatment"]
    return found


def goes_on(new: Service, sponsor: Sponsor, study: OpenStudy, lost: str, treatments: Mapping[str, str]) -> None:
    """Shut until a statement, code breaks excepted; then the next slot is the first one that was lost with the machine."""
    trial = study.trial
    assert allocate(study, new, "01-9001", 503)["code"] == "rollback_suspected"
    # One of the three: each break takes a proof of its own, and each proof the next half minute.
    subject, treatment = next(iter(treatments.items()))
    asked = {"subject_id": subject, "reason_code": "serious_adverse_event"}
    broken = trial.ask(trial.who(Role.INVESTIGATOR), "POST", f"{PATH}/code-breaks", asked, step_up=True).json()
    assert broken["treatment"] == treatment
    statement = {"statement": "The machine was lost; the backup was restored, the EDC system compared."}
    trial.ask(sponsor._admin, "POST", "/v1/recovery-statements", statement, step_up=True)
    assert allocate(study, new, "01-9002")["randomization_number"] == lost


def check_trail(study: OpenStudy, elsewhere: Elsewhere, folder: Path) -> None:
    """The offline verifier finds what was lost, and vouches for everything since."""
    trial = study.trial
    export = folder / "trail.jsonl"
    export.write_bytes(trial.ask(trial.who(Role.INSPECTOR), "GET", f"{PATH}/trail/export", step_up=True).content)
    command = [sys.executable, str(VERIFIER), "trail", str(export), "--sink", str(elsewhere.sink)]
    told = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    assert "truncated" in told
    assert f"{STUDY}~2: vouched" in told
