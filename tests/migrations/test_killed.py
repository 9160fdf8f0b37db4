"""kill -9 inside `snose migrate`: whole revisions or none, and the same command goes on. (T24, INT-11)"""

import os
import signal
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Final

import pytest
from sqlalchemy import Engine, NullPool, create_engine, event, inspect

from app.storage import migrate, triggers
from app.storage.database import Database
from app.storage.tables import metadata
from tests.migrations import linter
from tests.migrations.test_migrations import triggers_of
from tests.reliability.tally import Tally

POINTS: Final = (110,)
"""For a push: inside the second revision."""


def migrated_until(url: str, point: int, upgrade: Callable[[str], None] = migrate.upgrade) -> bool:
    """Return whether a process that migrates was killed before its ``point``-th statement or COMMIT; else it came to its end."""
    child = os.fork()
    if child == 0:
        left = point

        def count(*_told: object) -> None:
            nonlocal left
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

        event.listen(Engine, "before_cursor_execute", count)
        event.listen(Engine, "commit", count)
        try:
            upgrade(url)
        except BaseException:  # noqa: BLE001  # a child never goes on as a second test run
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return True
    assert os.waitstatus_to_exitcode(status) == 0
    return False


@cache
def tables_of(revision: str) -> set[str]:
    """Return the tables of a revision that was never disturbed."""
    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite:///{folder}/snose.sqlite"
        migrate.upgrade(url, revision)
        engine = create_engine(url, poolclass=NullPool)
        return set(inspect(engine).get_table_names()) - {"alembic_version"}


def check_whole(url: str) -> None:
    """No revision is there by half."""
    engine = create_engine(url, poolclass=NullPool)
    with engine.connect() as connection:
        tables = set(inspect(connection).get_table_names()) - {"alembic_version"}
        standing = triggers_of(connection)
    database = Database(url)
    with database.transaction() as tx:
        reached = migrate.current(tx)
    database.close()
    assert tables == (set() if reached is None else tables_of(reached)), reached
    assert bool(standing) is (reached not in {None, "0001"})


def check_goes_on(url: str) -> None:
    """The same command, run again, comes to its end."""
    migrate.upgrade(url)
    database = Database(url)
    with database.transaction() as tx:
        assert migrate.current(tx) == migrate.head()
        assert triggers.list_missing(tx) == []
    database.close()


@pytest.mark.parametrize("database_kind", ["postgresql"])
@pytest.mark.parametrize("point", POINTS)
def test_killed_inside(database_url: str, point: int) -> None:
    """Killed at a statement: what was finished stands, nothing stands by half, and it is resumed. [T24]"""
    assert migrated_until(database_url, point)
    check_whole(database_url)
    check_goes_on(database_url)


@pytest.mark.long
@pytest.mark.parametrize("database_kind", ["postgresql"])
def test_without_a_transaction(database_url: str, tmp_path: Path) -> None:
    """The negative control: of a migration that commits as it goes, a kill leaves a half, and the same look finds it."""
    migrations = linter.own(tmp_path)

    def upgrade(url: str) -> None:
        engine = create_engine(url, isolation_level="AUTOCOMMIT")
        linter.take(engine, migrations, migrate.head())

    assert migrated_until(database_url, 60, upgrade)
    with pytest.raises(AssertionError):
        check_whole(database_url)


@pytest.mark.long
@pytest.mark.timeout(0)
@pytest.mark.parametrize("kills", [5])
def test_killed_at_every_point(
    request: pytest.FixtureRequest,
    database_kind: str,
    tmp_path_factory: pytest.TempPathFactory,
    tally: Tally,
    kills: int,
) -> None:
    """Every statement and every COMMIT is a point to be killed at; each run is killed up to five times on its way. [T24]"""
    point = killed = 0
    going_on = True
    while going_on:
        point += 1
        if database_kind == "sqlite":
            url = f"sqlite:///{tmp_path_factory.mktemp('killed') / 'snose.sqlite'}"
            going_on = _killed_often(url, point, kills)
        else:
            with request.getfixturevalue("postgres").database() as url:
                going_on = _killed_often(url, point, kills)
        killed += going_on
    assert killed > len(metadata.tables)
    tally(points=killed)


def _killed_often(url: str, point: int, kills: int) -> bool:
    if not migrated_until(url, point):
        return False
    check_whole(url)
    for again in range(1, kills):
        if not migrated_until(url, point + again):
            break
        check_whole(url)
    check_goes_on(url)
    return True
