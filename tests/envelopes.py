"""A study under way whose deployment makes code-break envelopes, the desk beside it, and what a sheet of paper says.

with envelope_study(url, folder) as (study, desk):
    desk.write(study)                               # the keeper's round, when the test wants it
    desk.open(study.allocations[0]["kit_code"])     # as the emergency desk would
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from unittest.mock import patch

from sqlalchemy import select

from app.domain.envelopes import EnvelopeContent
from app.domain.words import KitCode, StudyCode
from app.sealing.envelopes import desk_keys, open_envelope
from app.services import keeper
from app.services.enveloping import sheet_code_of
from app.services.keeper import Keeper
from app.storage import tables
from tests import harness
from tests.harness import STUDY, House
from tests.running_study import RunningStudy, running_study

DESK_PRIVATE, DESK_PUBLIC = desk_keys(bytes(range(32)))
OTHER_PRIVATE, OTHER_PUBLIC = desk_keys(bytes(range(1, 33)))
SIZE: Final = 2412
"""Of every file."""
NEVER: Final = 3600.0
"""Seconds: the thread that writes lets the test say when."""


@contextmanager
def writing_when_told() -> Iterator[None]:
    """Have files written, and notices sent, when a test tells the keeper, instead of a moment after the act."""
    with patch.object(keeper, "_BREATH", NEVER):
        yield


@dataclass(frozen=True)
class Desk:
    """The folder of the envelopes, and the sheets that lie at the site."""

    house: House
    folder: Path

    @property
    def files(self) -> list[Path]:
        return sorted(self.folder.glob("*/*.envelope"))

    def file(self, kit_code: str) -> Path:
        return self.folder / STUDY / f"{kit_code}.envelope"

    def write(self) -> None:
        """Have the keeper do a round."""
        Keeper(self.house.deployment).envelope_round()

    def sheet(self, kit_code: str) -> str:
        """Return the code that is printed on the sheet of a kit."""
        kit = tables.kit.c
        with self.house.deployment.database.transaction() as tx:
            kit_id = tx.execute(select(kit.kit_id).where(kit.kit_code == kit_code)).scalar_one()
        return sheet_code_of(self.house.deployment, StudyCode(STUDY), kit_id, KitCode(kit_code))

    def open(self, kit_code: str) -> EnvelopeContent:
        """Return what the desk reads in the envelope of a kit."""
        _, opened = open_envelope(DESK_PRIVATE, self.sheet(kit_code), self.file(kit_code).read_bytes())
        return EnvelopeContent.from_bytes(opened)


def settings_in(folder: Path) -> dict[str, object]:
    """Return what turns envelopes on, with their folder made, and mail, which nobody sends."""
    outside = folder / "envelopes"
    outside.mkdir(exist_ok=True)
    mail = {"smtp_url": "smtp://127.0.0.1:9", "smtp_sender": "snose@example.org"}
    return {"envelope_folder": outside, "envelope_desk_key": DESK_PUBLIC, **mail}


@contextmanager
def envelope_study(
    url: str, folder: Path, kits_per_arm: int = 30, length: int = 60
) -> Iterator[tuple[RunningStudy, Desk]]:
    """Give a study under way and the desk."""
    with writing_when_told(), harness.house(url, folder, **settings_in(folder)) as house:
        yield running_study(house, 0, kits_per_arm, length), Desk(house, folder / "envelopes")
