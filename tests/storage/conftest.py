"""An empty migrated database that many tests share, because each of them rolls back what it did."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from shutil import copyfile

import pytest
from sqlalchemy import Connection

from app.storage.database import Database


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def shared_database(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    """A database with every table and no row, on both kinds in turn."""
    with ExitStack() as stack:
        if request.param == "sqlite":
            template: Path = request.getfixturevalue("migrated_sqlite")
            copied = tmp_path_factory.mktemp("shared") / "snose.sqlite"
            copyfile(template, copied)
            url = f"sqlite:///{copied}"
        else:
            server = request.getfixturevalue("postgres")
            url = stack.enter_context(server.database(template=request.getfixturevalue("migrated_postgres")))
        database = Database(url)
        stack.callback(database.close)
        yield database


@pytest.fixture
def connection(shared_database: Database) -> Iterator[Connection]:
    """A connection of the owner of the tables; what was done on it is rolled back."""
    with shared_database.engine.connect() as opened:
        yield opened
