"""A service and a sponsor for each test: workers as each database takes them."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.reliability.service import SITES, OpenStudy, Service, Sponsor


@dataclass
class Ground:
    """A running service with its sponsor."""

    service: Service
    sponsor: Sponsor
    folder: Path

    def open_study(self, subjects: int) -> OpenStudy:
        """Return a study of eight sites and strata with room and kits for so many subjects."""
        at_site = -(-subjects // len(SITES))
        # Kits for a site where one arm leads, beside the floor.
        return self.sponsor.open_study("LOAD", SITES, at_site + 8, at_site // 2 + 16)


@pytest.fixture
def ground(database_kind: str, database_url: str, tmp_path: Path) -> Iterator[Ground]:
    """A real service: two workers on PostgreSQL, one on SQLite."""
    with Service(tmp_path, database_url, 2 if database_kind == "postgresql" else 1) as service:
        issued = service.create()
        service.start()
        sponsor = Sponsor(service, issued)
        yield Ground(service, sponsor, tmp_path)
        sponsor.close()
