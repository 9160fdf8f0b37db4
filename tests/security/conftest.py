"""Deployments for what the security tests compare, dump and tamper with: several in one test, each on a database of its own."""

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import psycopg
import pytest

from tests.databases import Postgres

Place = tuple[str, Path]
"""The URL of a migrated, empty database, and a folder for the files beside it."""
Places = Callable[[str], AbstractContextManager[Place]]


def _fast_folder() -> str | None:
    # A folder in memory where the machine has one: these tests are about what is written, not about whether it survives.
    memory = Path("/dev/shm")  # noqa: S108  # only chosen; the folder in it is made by mkdtemp
    return str(memory) if memory.is_dir() else None


@pytest.fixture(scope="session")
def places(request: pytest.FixtureRequest) -> Places:
    """Gives a new place for a deployment, by the kind of database."""

    @contextmanager
    def place(kind: str) -> Iterator[Place]:
        folder = Path(tempfile.mkdtemp(prefix="snose-", dir=_fast_folder()))
        try:
            if kind == "sqlite":
                copied = folder / "snose.sqlite"
                shutil.copyfile(request.getfixturevalue("migrated_sqlite"), copied)
                yield f"sqlite:///{copied}", folder
            else:
                server: Postgres = request.getfixturevalue("postgres")
                with server.database(template=request.getfixturevalue("migrated_postgres")) as url:
                    with psycopg.connect(url, autocommit=True) as connection:
                        database = connection.info.dbname
                        connection.execute(f'ALTER DATABASE "{database}" SET synchronous_commit = off')
                    yield url, folder
        finally:
            shutil.rmtree(folder)

    return place
