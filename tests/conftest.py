"""The database fixtures: every test that touches a database runs on SQLite and on a real PostgreSQL.

One PostgreSQL server serves the whole run. Alone, the run starts it when a test first asks for it; under
pytest-xdist the controller starts it and hands its folder to the workers. Whoever started it stops it.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from xdist.workermanage import WorkerController

from app.storage import migrate
from tests import harness
from tests.databases import Postgres, memory, postgres_server
from tests.harness import House
from tests.memory import knows_a_new

pytest_plugins = ["tests.reliability.tally"]
EXIT_STACK = pytest.StashKey[ExitStack]()
SERVER_DIRECTORY = pytest.StashKey[Path]()
WORKER_INPUT = "snose_postgres"
LONG_ONES = ("tests", "security", "reliability")
"""The folders of tests that take seconds each."""
PLAYS = frozenset(
    {
        "test_canaries",
        "test_canaries_of_a_process",
        "test_cli",
        "test_dump",
        "test_tampering",
        "test_twins",
        "test_verifier",
    }
)
"""The modules of whole plays, beside those in ``reliability``: measured, they take half as long again."""


def pytest_configure(config: pytest.Config) -> None:
    """Keep what must be ended with the run."""
    config.stash[EXIT_STACK] = ExitStack()
    if (shared := memory()) is not None:
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(shared))
    # The commands that tests start, a hundred times and more, need not compile the service each time.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Have the tests of whole plays and processes come first: at the end no process waits for a long one of another.

    Coverage does not see the plays: what only they reach has no test of its own.
    """
    items.sort(key=lambda item: item.path.parent.name not in LONG_ONES)
    for item in items:
        if item.path.parent.name == "reliability" or item.path.stem in PLAYS:
            item.add_marker("no_cover")


def pytest_unconfigure(config: pytest.Config) -> None:
    """Stop the server, after a failure too."""
    config.stash[EXIT_STACK].close()


def pytest_configure_node(node: WorkerController) -> None:
    """Tell a pytest-xdist worker where the one server is, started before the first worker."""
    node.workerinput[WORKER_INPUT] = str(_server_directory(node.config))


def _server_directory(config: pytest.Config) -> Path:
    if SERVER_DIRECTORY not in config.stash:
        config.stash[SERVER_DIRECTORY] = config.stash[EXIT_STACK].enter_context(postgres_server()).directory
    return config.stash[SERVER_DIRECTORY]


@pytest.fixture(scope="session")
def postgres(request: pytest.FixtureRequest) -> Postgres:
    """The running PostgreSQL server of this test run."""
    given: dict[str, str] = getattr(request.config, "workerinput", {})
    return Postgres(Path(given[WORKER_INPUT]) if WORKER_INPUT in given else _server_directory(request.config))


@pytest.fixture(params=["sqlite", "postgresql"])
def database_kind(request: pytest.FixtureRequest) -> str:
    """The kind of database that this run of the test is about."""
    kind: str = request.param
    return kind


@pytest.fixture
def database_url(request: pytest.FixtureRequest, database_kind: str, tmp_path: Path) -> Iterator[str]:
    """The URL of an empty database, without a table."""
    if database_kind == "sqlite":
        yield f"sqlite:///{tmp_path / 'snose.sqlite'}"
        return
    # Asked for by name, so that a run on SQLite alone starts no server.
    server: Postgres = request.getfixturevalue("postgres")
    with server.database() as url:
        yield url


@pytest.fixture
def migrated_database_url(request: pytest.FixtureRequest, database_kind: str, tmp_path: Path) -> Iterator[str]:
    """The URL of a database with every table and no row: a copy of one that was migrated once."""
    if database_kind == "sqlite":
        copied = tmp_path / "snose.sqlite"
        shutil.copyfile(request.getfixturevalue("migrated_sqlite"), copied)
        yield f"sqlite:///{copied}"
        return
    server: Postgres = request.getfixturevalue("postgres")
    with server.database(template=request.getfixturevalue("migrated_postgres")) as url:
        yield url


@pytest.fixture
def house(request: pytest.FixtureRequest, database_kind: str, tmp_path: Path) -> Iterator[House]:
    """A new deployment with its first service admin, begun when the test first asks it for anything."""
    with ExitStack() as stack:
        if not knows_a_new(database_kind):
            url = request.getfixturevalue("migrated_database_url")
        elif database_kind == "sqlite":
            url = f"sqlite:///{tmp_path / 'snose.sqlite'}"
        else:
            server: Postgres = request.getfixturevalue("postgres")
            url = stack.enter_context(server.named())
        yield stack.enter_context(harness.house(url, tmp_path))


@pytest.fixture(scope="session")
def migrated_sqlite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The SQLite file that the tests copy."""
    path = tmp_path_factory.mktemp("template") / "snose.sqlite"
    migrate.upgrade(f"sqlite:///{path}")
    return path


@pytest.fixture(scope="session")
def migrated_postgres(postgres: Postgres) -> Iterator[str]:
    """The name of the PostgreSQL database that the tests copy."""
    name = postgres.create_database()
    migrate.upgrade(postgres.url_for(name))
    yield name
    postgres.drop_database(name)
