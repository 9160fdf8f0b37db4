"""A service and a sponsor for each test: workers as each database takes them."""

import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests import harness
from tests.databases import Postgres
from tests.harness import House
from tests.memory import knows_a_new
from tests.reliability.machine import Houses
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


@pytest.fixture
def houses(request: pytest.FixtureRequest, database_kind: str, tmp_path_factory: pytest.TempPathFactory) -> Houses:
    """Gives a new house each time, and leaves nothing of it."""

    @contextmanager
    def new() -> Iterator[House]:
        folder = tmp_path_factory.mktemp("trial")
        with ExitStack() as stack:
            stack.callback(shutil.rmtree, folder)
            path = folder / "snose.sqlite"
            url = f"sqlite:///{path}"
            if database_kind == "postgresql":
                server: Postgres = request.getfixturevalue("postgres")
                template = request.getfixturevalue("migrated_postgres")
                url = stack.enter_context(server.named() if knows_a_new(database_kind) else server.database(template))
            elif not knows_a_new(database_kind):
                shutil.copyfile(request.getfixturevalue("migrated_sqlite"), path)
            yield stack.enter_context(harness.house(url, folder))

    return new
