"""Bring a database to the schema of this release, or tell how far it is.

The name of a revision says which releases can serve it: ``0007_from_0004`` is the seventh, and every release that knows the fourth
can go on. A step that only adds (expand) keeps the floor of the one before; one that takes away (contract) raises it. So the
database is migrated while the previous release still serves, and tests/migrations holds every revision to its name.
"""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Final

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Connection, inspect
from sqlalchemy.exc import DBAPIError

from app.errors import DatabaseUnavailable
from app.storage.database import Database, Transaction

_SERVED: Final = "_from_"
_PACKAGE = Path(__file__).resolve().parent.parent


def _configuration(connection: Connection | None = None) -> Config:
    """Return Alembic's configuration, which the wheel carries inside the package and a checkout beside it."""
    home = _PACKAGE if (_PACKAGE / "migrations").is_dir() else _PACKAGE.parent
    configuration = Config(home / "alembic.ini")
    configuration.set_main_option("script_location", str(home / "migrations"))
    configuration.attributes["connection"] = connection
    return configuration


@cache
def head() -> str:
    """Return the newest revision that this release knows; looked up once, because every probe of readiness asks."""
    return str(ScriptDirectory.from_config(_configuration()).get_current_head())


@cache
def known() -> tuple[str, ...]:
    """Return the revisions that this release knows, the oldest first."""
    scripts = ScriptDirectory.from_config(_configuration())
    return tuple(script.revision for script in reversed(list(scripts.walk_revisions())))


def current(tx: Transaction) -> str | None:
    """Return the revision of the database; None for an empty one."""
    return MigrationContext.configure(tx.connection).get_current_revision()


def is_served(tx: Transaction) -> bool:
    """Return whether this release can serve the database: its schema is the newest known here, or a later one that only adds."""
    found = current(tx)
    return found is not None and serves(head(), found)


def serves(newest: str, found: str) -> bool:
    """Return whether a release whose newest revision is ``newest`` can serve a database of the revision ``found``."""
    if found == newest:
        return True
    number, _, least = found.partition(_SERVED)
    return bool(least) and least <= newest.partition(_SERVED)[0] < number


def table_names(tx: Transaction) -> list[str]:
    """Return the tables that are there, ours or not."""
    return inspect(tx.connection).get_table_names()


def upgrade(url: str, revision: str = "head") -> None:
    """Bring the database at ``url`` to ``revision``, each migration in a transaction of its own.

    Raises ``DatabaseUnavailable`` when one fails, which is rolled back.
    """
    _run(url, lambda configuration: command.upgrade(configuration, revision))


def downgrade(url: str, revision: str) -> None:
    """Take the database at ``url`` back to ``revision``."""
    _run(url, lambda configuration: command.downgrade(configuration, revision))


def _run(url: str, step: Callable[[Config], None]) -> None:
    database = Database(url)
    try:
        if database.sqlite_file is not None:
            database.sqlite_file.touch(mode=0o600, exist_ok=True)
        with database.engine.connect() as connection:
            step(_configuration(connection))
    except DBAPIError as error:
        # What the driver says may hold values of a row (BLD-13): its name and the state of the database must do.
        state = getattr(error.orig, "sqlstate", None) or getattr(error.orig, "sqlite_errorname", None) or "no state"
        message = (
            f"The migration failed and was rolled back ({type(error.orig).__name__}, {state}). "
            "The database stands as the last finished revision left it; its own log says more."
        )
        raise DatabaseUnavailable(message) from None
    except CommandError:
        message = "The database or the command names a revision that this release does not know."
        raise DatabaseUnavailable(message) from None
    finally:
        database.close()
