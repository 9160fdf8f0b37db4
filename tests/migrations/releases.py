"""What each release has left: a backup on either database, made by that release, that every later one must take up.

    python -m tests.migrations.releases 0.1.0

writes ``released/0.1.0`` from a study under way, as the release's own code makes it, once and for all when it is released; until
then the present one is made anew after each change of the schema. The key is that of the tests' houses and stands in no file.
"""

import hashlib
import json
import lzma
import os
import shutil
import sys
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from app.domain.backups import MEMBERS, Engine, parse_manifest
from app.services import backups
from app.storage import migrate
from app.storage.backups import MANIFEST
from app.storage.database import Database
from tests import harness
from tests.databases import postgres_programs, postgres_server
from tests.harness import House
from tests.running_study import S, running_study

ROOT: Final = Path(__file__).resolve().parents[2]
FOLDER: Final = Path(__file__).parent / "released"
RELEASES: Final = sorted(
    (path.name for path in FOLDER.glob("*.*.*")), key=lambda name: tuple(int(number) for number in name.split("."))
)
SINK: Final = "checkpoints.jsonl"
EXPECTED: Final = "expected.json"
FROZEN: Final = "migrations.json"


@dataclass(frozen=True)
class Release:
    """What a release has left of one engine."""

    version: str
    engine: Engine

    @property
    def folder(self) -> Path:
        """Where it lies."""
        return FOLDER / self.version / self.engine

    @property
    def expected(self) -> dict[str, Any]:
        """What must come out of it."""
        found: dict[str, Any] = json.loads((self.folder / EXPECTED).read_bytes())
        return found

    def backup(self, folder: Path) -> Path:
        """Return the backup, as the release's command wrote it."""
        place = folder / "backup"
        place.mkdir()
        shutil.copy(self.folder / MANIFEST, place)
        member = MEMBERS[self.engine]
        (place / member).write_bytes(lzma.decompress((self.folder / f"{member}.xz").read_bytes()))
        return place


def newest_revision() -> str:
    """Return the schema of the newest release."""
    return parse_manifest((FOLDER / RELEASES[-1] / "sqlite" / MANIFEST).read_bytes()).schema_revision


def make(house: House, release: Release) -> None:
    """Write what a release leaves, from a house in which nothing has happened yet."""
    running = running_study(house, subjects=3)
    people = {role: running.person(role) for role in ("investigator", "inspector")}
    body = {"subject_id": "01-0001", "reason_code": "overdose"}
    broken = harness.expect(running.investigator.post(f"{S}/code-breaks", json=body, step_up=True), 201)
    house.deployment.checkpoints.publish_all(house.deployment.database, house.clock())
    release.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as spare:
        database = Database(house.settings.url())
        now = datetime(2026, 11, 23, tzinfo=UTC)
        place, manifest = backups.back_up(database, Path(spare) / "backup", now, f"snose {release.version}", _silent)
        database.close()
        shutil.copyfile(place / MANIFEST, release.folder / MANIFEST)
        member = manifest.member.name
        (release.folder / f"{member}.xz").write_bytes(lzma.compress((place / member).read_bytes(), preset=9))
    shutil.copyfile(house.settings.checkpoint_file, release.folder / SINK)
    expected = {
        "now": house.clock.now.isoformat(),
        "treatment": broken["treatment"],
        "people": {
            role: [caller.username, caller.password, caller.totp_secret] for role, caller in sorted(people.items())
        },
        # What the release itself has given to the next subject.
        "next": running.new_subject()["randomization_number"],
    }
    (release.folder / EXPECTED).write_text(json.dumps(expected, indent=2) + "\n", encoding="utf-8")


def _silent(_done: int, _total: int) -> None:
    """Tell nobody."""


def digests_of_migrations() -> dict[str, str]:
    """Return the SHA-256 of every migration, by file: a released one is never edited."""
    files = sorted((ROOT / "migrations" / "versions").glob("*.py"))
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def main(version: str) -> None:
    """Write the present release's folder."""
    (FOLDER / version).mkdir(parents=True, exist_ok=True)
    (FOLDER / version / FROZEN).write_text(json.dumps(digests_of_migrations(), indent=2) + "\n", encoding="utf-8")
    os.environ["PATH"] = f"{postgres_programs()}:{os.environ['PATH']}"
    with tempfile.TemporaryDirectory() as spare, postgres_server() as server, server.database() as url:
        folder = Path(spare)
        urls: dict[Engine, str] = {"sqlite": f"sqlite:///{folder / 'snose.sqlite'}", "postgresql": url}
        for engine, at in urls.items():
            migrate.upgrade(at)
            with harness.house(at, folder, seed=f"release {version}") as house:
                make(house, Release(version, engine))


if __name__ == "__main__":
    main(sys.argv[1])
