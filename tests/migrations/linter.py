"""Holds every migration after a release to "expand, then contract": the release before it goes on serving while it runs.

A revision is judged by the statements that it really sends, on each database; so nothing hides behind a helper. A step that takes
away names the step that it follows up (``contracts: Final = "0003_from_0002"``), which must have been released before.
"""

import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from alembic import command
from alembic.config import Config
from alembic.script import Script, ScriptDirectory
from sqlalchemy import Engine, create_engine, event, inspect

ROOT: Final = Path(__file__).resolve().parents[2]
MIGRATIONS: Final = ROOT / "migrations"
_ID: Final = re.compile(r"(\d{4})_from_(\d{4})")
_FIRST: Final = frozenset({"0001", "0002"})
"""The revisions of the first release, which no release came before."""

_MUST_BE_NAMED: Final = "adds a column that every insert must name"
_T: Final = r"(?:ONLY )?(?:PUBLIC\.)?(?P<table>\w+)"
_FORBIDDEN: Final[Mapping[str, str]] = {
    rf"DROP TABLE (?:IF EXISTS )?{_T}": "drops a table",
    rf"ALTER TABLE {_T} DROP (?!CONSTRAINT)": "drops a column",
    rf"ALTER TABLE {_T} DROP CONSTRAINT": "drops a constraint",
    rf"ALTER TABLE {_T} RENAME": "renames",
    rf"ALTER TABLE {_T} ALTER (?:COLUMN )?\w+ (?:SET DATA )?TYPE": "changes a type",
    rf"ALTER TABLE {_T} ALTER (?:COLUMN )?\w+ SET NOT NULL": "forbids NULL",
    rf"ALTER TABLE {_T} ALTER (?:COLUMN )?\w+ DROP DEFAULT": "drops a default",
    rf"ALTER TABLE {_T} ADD (?:COLUMN )?(?!CONSTRAINT|COLUMN)\w+ (?=.*NOT NULL)(?!.*DEFAULT)": _MUST_BE_NAMED,
    rf"ALTER TABLE {_T} ADD (?:CONSTRAINT|UNIQUE|CHECK|FOREIGN)": "adds a constraint",
    rf"CREATE UNIQUE INDEX .*? ON {_T}": "adds a unique index",
    rf"(?:UPDATE|DELETE FROM|INSERT INTO|TRUNCATE(?: TABLE)?) {_T}": "changes rows",
}
"""What breaks a release that serves, by the statement it takes; in tables that this release knows."""


def own(folder: Path) -> Path:
    """Return a copy of the migrations to which a test adds some of its own."""
    copy = folder / "migrations"
    shutil.copytree(MIGRATIONS, copy, ignore=shutil.ignore_patterns("__pycache__"))
    return copy


def lint(url: str, released: str, migrations: Path = MIGRATIONS) -> list[str]:
    """Return what is wrong with the revisions after ``released``, once the database at ``url`` has taken them all."""
    engine = create_engine(url)
    take(engine, migrations, released)
    tables = frozenset(name.upper() for name in inspect(engine).get_table_names()) - {"ALEMBIC_VERSION"}
    found: list[str] = []
    for script in _later(released, migrations):
        with listening(engine) as statements:
            take(engine, migrations, script.revision)
        if not hasattr(script.module, "contracts"):
            said = [fault for statement in statements for fault in _of_statement(statement, tables)]
            said += _of_triggers(statements)
            found += [f"{script.revision}: {fault}" for fault in dict.fromkeys(said)]
    engine.dispose()
    return found


def lint_names(released: str, migrations: Path = MIGRATIONS) -> list[str]:
    """Return which revisions after ``released`` are called by a name that does not say whom they serve."""
    scripts = ScriptDirectory(str(migrations))
    known = [script.revision for script in scripts.walk_revisions("base", released)]
    return [f"{one.revision}: {fault}" for one in _later(released, migrations) for fault in _of_name(one, known)]


def _later(released: str, migrations: Path) -> list[Script]:
    scripts = ScriptDirectory(str(migrations))
    return [one for one in reversed(list(scripts.walk_revisions(released, "heads"))) if one.revision != released]


def take(engine: Engine, migrations: Path, revision: str) -> None:
    """Bring a database to a revision of a folder of migrations."""
    configuration = Config()
    configuration.set_main_option("script_location", str(migrations))
    with engine.connect() as connection:
        configuration.attributes["connection"] = connection
        command.upgrade(configuration, revision)


@contextmanager
def listening(engine: Engine) -> Iterator[list[str]]:
    """Give the statements that are sent, in capitals, without quotes and line breaks."""
    heard: list[str] = []

    def hear(_connection: object, _cursor: object, statement: str, *_more: Any) -> None:  # noqa: ANN401  # SQLAlchemy's own
        heard.append(re.sub(r"\s+", " ", statement.replace('"', "")).strip().upper())

    event.listen(engine, "before_cursor_execute", hear)
    try:
        yield heard
    finally:
        event.remove(engine, "before_cursor_execute", hear)


def _of_statement(statement: str, tables: frozenset[str]) -> Iterator[str]:
    for pattern, fault in _FORBIDDEN.items():
        match = re.match(pattern, statement)
        if match and match["table"] in tables:
            yield f"{fault} ({match['table'].lower()})"


def _of_triggers(statements: list[str]) -> Iterator[str]:
    """A refusal is taken away only to be made anew in the same transaction."""
    made = {match[1] for one in statements if (match := re.match(r"CREATE TRIGGER (\w+)", one))}
    for statement in statements:
        dropped = re.match(r"DROP TRIGGER (?:IF EXISTS )?(\w+)", statement)
        if (dropped and dropped[1] not in made) or statement.startswith("DROP FUNCTION"):
            yield "takes a refusal away"


def _of_name(script: Script, released: list[str]) -> Iterator[str]:
    """A revision says whom it serves: who served the one before, or, when it takes away, who knows what took its place."""
    named = _ID.fullmatch(script.revision)
    before = str(script.down_revision)
    if named is None:
        yield "is not called NNNN_from_NNNN"
        return
    number, least = named.groups()
    if int(number) != int(before[:4]) + 1:
        yield f"does not follow {before} in number"
    contracts = getattr(script.module, "contracts", None)
    if contracts is None:
        floor = before if before in _FIRST else before.partition("_from_")[2]
        if least != floor:
            yield f"only adds, and so serves whoever served {before}: it is called {number}_from_{floor}"
    elif contracts not in released:
        yield f"takes away what {contracts} replaced, which was not released before"
    elif least < contracts[:4]:
        yield f"takes away, and so serves from {contracts[:4]} on at the earliest"
