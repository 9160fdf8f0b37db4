"""Data of every release, from the first one on, is taken up by this one: restored, migrated, verified, and gone on with.

(INT-11, T24; "upgrade is one command")
"""

import json
import os
import shutil
import subprocess
import sys
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from app.domain.words import Mode
from app.sealing.providers import KeyFileProvider
from app.services import backups
from app.services.backups import Against
from app.services.context import SystemEntropy
from app.settings import Settings
from app.storage import migrate
from tests.databases import postgres_programs
from tests.harness import _ROOT_KEY, Caller, House, SeededEntropy, TickingClock, expect
from tests.migrations.releases import FOLDER, FROZEN, RELEASES, SINK, Release, digests_of_migrations
from tests.running_study import S, allocation_of

VERIFIER = Path(__file__).parents[2] / "app" / "verifier.py"


@pytest.fixture
def release(version: str, database_kind: str) -> Release:
    """What a release has left of one kind of database."""
    return Release(version, "sqlite" if database_kind == "sqlite" else "postgresql")


@pytest.mark.parametrize("version", RELEASES)
def test_is_taken_up(release: Release, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its trail verifies, its keys open, a code break shows what it showed, and the next slot is the right one. [INT-11]"""
    monkeypatch.setenv("PATH", f"{postgres_programs()}:{os.environ['PATH']}")
    key, sink = tmp_path / "key", tmp_path / SINK
    KeyFileProvider.create(key, _ROOT_KEY)
    shutil.copyfile(release.folder / SINK, sink)
    found = backups.restore(
        database_url,
        release.backup(tmp_path),
        Against((sink,), KeyFileProvider(key, SystemEntropy())),
        SystemEntropy(),
        lambda _done, _total: None,
        to_head=True,
    )
    assert (found.faults, found.revision) == ((), migrate.head())
    assert [log.lost for log in found.logs] == [0, 0]
    expected = release.expected
    settings = Settings(
        mode=Mode.TEST, database_url=database_url, key_file=key, checkpoint_file=sink, backup_contact="Desk"
    )
    clock = TickingClock(datetime.fromisoformat(expected["now"]) + timedelta(hours=1))
    house = House(settings, clock, SeededEntropy("later"), SeededEntropy("later lists"))
    house.open()
    with house:
        people = {role: Caller(house, *credentials) for role, credentials in expected["people"].items()}
        check_goes_on(people["investigator"], expected["treatment"], expected["next"])
        exported = tmp_path / "trail.jsonl"
        exported.write_bytes(people["inspector"].get(f"{S}/trail/export", step_up=True).content)
    verified = subprocess.run(
        [sys.executable, str(VERIFIER), "trail", str(exported), "--sink", str(sink)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert verified.returncode == 0, verified.stdout


def check_goes_on(investigator: Caller, treatment: str, randomization_number: str) -> None:
    """The study goes on where the release left it."""
    body = {"subject_id": "01-0001", "reason_code": "overdose"}
    broken = expect(investigator.post(f"{S}/code-breaks", json=body, step_up=True), 201)
    assert broken["treatment"] == treatment
    allocated = expect(investigator.post(f"{S}/allocations", json=allocation_of("01-0004")), 201)
    assert allocated["randomization_number"] == randomization_number


@pytest.mark.parametrize("version", RELEASES)
def test_its_migrations_stand(version: str) -> None:
    """A migration that was released is never edited: databases have taken it as it was. [INT-11]"""
    frozen = json.loads((FOLDER / version / FROZEN).read_bytes())
    now = digests_of_migrations()
    assert {name: now.get(name) for name in frozen} == frozen
