"""Houses as they stood once: a test that begins where another began is given a copy, and need not play the beginning again.

Most tests about kits and subjects begin with a study under way, fifty requests long. ``remembered(house, key, begin)`` plays
``begin`` in the first new house of its kind and keeps what came of it: the database, the sink, the clock, how much chance was
drawn, and what ``begin`` returned. For the next new house it puts all that in place and answers what ``begin`` would have.
"""

import atexit
import copy
import shutil
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast
from uuid import uuid4

from psycopg import sql
from sqlalchemy import make_url

from tests.databases import administer, memory

if TYPE_CHECKING:
    from tests.harness import House, SeededEntropy

T = TypeVar("T")
_NOBODY: Final = object()
"""Stands in a kept answer where the house stood."""


@dataclass
class _Kept:
    """What is left of a house."""

    database: str
    """A copy: the path of a SQLite file, the name of a PostgreSQL database."""
    sink: bytes
    now: datetime
    drawn: tuple[dict[str, int], dict[str, int]]
    named: dict[str, int]
    told: Any


_kept: Final[dict[Hashable, _Kept]] = {}
NEW: Final = "new"
"""The key of a house in which nothing has happened."""


def knows_a_new(backend: str) -> bool:
    """Tell whether the next new house on this kind of database begins as a copy, so that it need not find a database."""
    return (backend, NEW) in _kept


def remembered(house: "House", key: Hashable, begin: Callable[[], T]) -> T:
    """Return what ``begin`` returns in a new house; in one that is not new, or is not like all others, it is played."""
    if not house.is_new:
        return begin()
    first = house.take_up()
    if _whole(house, key) in _kept:
        if first is None:
            house.leave()
    elif first is not None:
        first()
    return begun(house, key, begin)


def begun(house: "House", key: Hashable, begin: Callable[[], T]) -> T:
    """Return what ``begin`` returns, which leaves the house open; where that is kept the house, closed till now, becomes it."""
    whole = _whole(house, key)
    if whole not in _kept:
        answer = begin()
        _keep(house, whole, answer)
        return answer
    return cast("T", _become(house, _kept[whole]))


def _whole(house: "House", key: Hashable) -> Hashable:
    """Return the key with the kind of database."""
    return make_url(house.settings.url()).get_backend_name(), key


def _keep(house: "House", key: Hashable, answer: object) -> None:
    told = copy.deepcopy((answer, house.study_admins, house.admin), {id(house): _NOBODY})
    house.close()
    url = house.settings.url()
    if url.startswith("sqlite"):
        database = str(_folder() / f"{uuid4().hex}.sqlite")
        shutil.copyfile(str(make_url(url).database), database)
    else:
        database = f"kept_{uuid4().hex}"
        _on_server(url, _copied(database, str(make_url(url).database)))
    _kept[key] = _Kept(
        database,
        house.settings.checkpoint_file.read_bytes(),
        house.clock.now,
        (_seeded(house.entropy).drawn, _seeded(house.list_entropy).drawn),
        dict(house.named),
        told,
    )
    house.open()


def _become(house: "House", kept: _Kept) -> object:
    url = house.settings.url()
    database = str(make_url(url).database)
    if url.startswith("sqlite"):
        shutil.copyfile(kept.database, database)
    else:
        dropped = sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(database))
        _on_server(url, dropped, _copied(database, kept.database))
    house.settings.checkpoint_file.write_bytes(kept.sink)
    house.clock.advance(kept.now - house.clock.now)
    for entropy, drawn in zip((house.entropy, house.list_entropy), kept.drawn, strict=True):
        _seeded(entropy).go_on_from(drawn)
    house.named.clear()
    house.named.update(kept.named)
    answer, house.study_admins, house.admin = copy.deepcopy(kept.told, {id(_NOBODY): house})
    house.open()
    return answer


@cache
def _folder() -> Path:
    """Return where the copies of SQLite files lie as long as this process lives."""
    folder = TemporaryDirectory(prefix="snose-kept-", dir=memory())
    atexit.register(folder.cleanup)
    return Path(folder.name)


def _seeded(entropy: object) -> "SeededEntropy":
    """Return what only the houses that are like all others have."""
    return cast("SeededEntropy", entropy)


def _copied(database: str, template: str) -> sql.Composed:
    """Return the statement that copies a database, as the fixtures do it."""
    copying = sql.SQL("CREATE DATABASE {} TEMPLATE {} STRATEGY FILE_COPY")
    return copying.format(sql.Identifier(database), sql.Identifier(template))


def _on_server(url: str, *statements: sql.Composed) -> None:
    server = make_url(url).set(database="postgres", drivername="postgresql")
    administer(server.render_as_string(hide_password=False), *statements)
