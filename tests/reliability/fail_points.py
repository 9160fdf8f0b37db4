"""Every instant at which the process can die while it answers one request, and what must be true afterwards (G2, T2).

    with Zygote(fail_points.__name__) as zygote:
        explorer = Explorer(zygote, folder)
        explorer.explore(Sent.by(client, "POST", path, ...), Moment.of(house, folder))

An instant lies before and after every statement and COPY, before and after COMMIT, around every write and sync of the file sink, in
the middle of its line, and before the answer is sent. At each of them a process forked for it ends as by ``kill -9``. Then: the
database holds all of the act or nothing of it, and the request sent again to a new process, twice, leaves exactly what it leaves
where nobody died. A state that was seen before is not asked again, unless ``at_every_instant``: what is there decides what follows.
"""

import base64
import hashlib
import os
import shutil
import sqlite3
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager, redirect_stderr
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import wraps
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final, Self
from unittest.mock import patch

import psycopg
from httpx2 import Response
from psycopg import sql
from sqlalchemy import Boolean, Date, Integer, Text, event, make_url
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app import verifier
from app.services import audited, keeper
from app.services.checkpoints import LogState
from app.services.exports import export_lines
from app.settings import Settings
from app.storage import answers, sink, studies, tables
from app.storage.answers import NewAnswer
from tests.databases import administer
from tests.harness import House, SeededEntropy, TickingClock
from tests.inprocess import InProcessClient
from tests.reliability.records import check_tables
from tests.reliability.zygote import Finished, Json, Zygote

DEAD: Final = 137
"""How the shell tells of a process that was killed with -9."""
LATER: Final = timedelta(seconds=10)
"""After which the client asks again: it has waited, and its second proof is still good."""
KEY: Final = "asked again"
_WORDS: Final = frozenset(
    f"{table.name}.{column.name}"
    for table in tables.metadata.tables.values()
    for column in table.columns
    if isinstance(column.type, Integer | Boolean | Date | Text)
)
"""What may be the same whatever is drawn: numbers and words. An identifier may be so by chance alone."""
_ANEW: Final = frozenset({"envelope.content"})
"""Where the library of ciphers draws by itself, so that it is another one each time: the encryption to a recipient."""
Contents = Mapping[str, str]
"""For each table the digest of its rows, and for each of its columns that of its values in whatever order."""


# -- what is sent, and to what -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sent:
    """One request, as it can be sent again."""

    method: str
    path: str
    headers: tuple[tuple[str, str], ...]
    content: bytes

    @classmethod
    def by(
        cls,
        client: InProcessClient,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str] | None = None,
        key: str | None = None,
        **body: Any,  # noqa: ANN401  # as the client takes it: json, data or content
    ) -> Self:
        """Return the request that a client would send, with an Idempotency-Key if one is given."""
        keyed = {**(headers or {}), **({"Idempotency-Key": key} if key is not None else {})}
        made = client.build_request(method, path, headers=keyed, **body)
        return cls(method, path, tuple(made.headers.multi_items()), made.read())

    def told(self) -> Json:
        content = base64.b64encode(self.content).decode()
        return {"method": self.method, "path": self.path, "headers": self.headers, "content": content}


@dataclass(frozen=True)
class Moment:
    """Everything that a process of the service stands on, kept at one moment: database, sink, settings and time."""

    settings: Mapping[str, Json]
    now: datetime
    database: str
    """A copy that nobody is connected to: the path of a SQLite file, the name of a PostgreSQL database."""
    sink: bytes
    url: str

    @classmethod
    def of(cls, house: House, folder: Path) -> Self:
        """Keep how a house stands, in which nobody acts just now."""
        url = house.settings.url()
        house.deployment.database.engine.dispose()
        if url.startswith("sqlite"):
            kept = str(folder / "moment.sqlite")
            shutil.copyfile(str(make_url(url).database), kept)
        else:
            kept = f"{make_url(url).database}_moment"
            _administer(url, *_copied(kept, str(make_url(url).database)))
        sunk = house.settings.checkpoint_file
        return cls(
            house.settings.model_dump(mode="json"),
            house.clock.now,
            kept,
            sunk.read_bytes() if sunk.exists() else b"",
            url,
        )

    def put(self, folder: Path) -> "Place":
        """Return a place of the same contents, in which a process can do as it likes."""
        sunk = folder / "sink.jsonl"
        sunk.write_bytes(self.sink)
        if self.url.startswith("sqlite"):
            path = folder / "place.sqlite"
            path.with_name(f"{path.name}-journal").unlink(missing_ok=True)
            shutil.copyfile(self.database, path)
            url = f"sqlite:///{path}"
        else:
            named = make_url(self.url).set(database=f"{make_url(self.url).database}_place")
            url = named.render_as_string(hide_password=False)
            _administer(self.url, *_copied(str(named.database), self.database))
        return Place({**self.settings, "database_url": url, "checkpoint_file": str(sunk)}, url, sunk)

    def forget(self) -> None:
        """Drop the databases that were made of it."""
        if not self.url.startswith("sqlite"):
            place = f"{make_url(self.url).database}_place"
            _administer(self.url, *(_dropped(name) for name in (place, self.database)))


@dataclass(frozen=True)
class Place:
    """Where a process works."""

    settings: Mapping[str, Json]
    url: str
    sink: Path

    def state(self) -> "State":
        """Return all that a new process would find here."""
        return State(contents(self.url), hashlib.sha256(self.sink.read_bytes()).hexdigest())


@dataclass(frozen=True)
class State:
    """What stands in the database and in the sink."""

    contents: Contents
    sink: str


def contents(url: str) -> Contents:
    """Return what stands in every table; read by the driver alone, because it is asked for after each death."""
    found: dict[str, str] = {}
    with closing(_connected(url)) as connection:
        for name, table in tables.metadata.tables.items():
            columns = ", ".join(f'"{column.name}"' for column in table.columns if f"{name}.{column.name}" not in _ANEW)
            cursor = connection.execute(f'SELECT {columns} FROM "{name}"')  # noqa: S608  # the names are the schema's own
            rows = [tuple(map(repr, row)) for row in cursor.fetchall()]
            found[name] = _digest(map("|".join, rows))
            for place, column in enumerate(cursor.description or ()):
                found[f"{name}.{column[0]}"] = _digest(row[place] for row in rows)
    return found


def _connected(url: str) -> Any:  # noqa: ANN401  # either driver's connection
    if url.startswith("sqlite"):
        return sqlite3.connect(str(make_url(url).database))
    return psycopg.connect(url)


def _digest(values: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(sorted(values)).encode()).hexdigest()


def _copied(database: str, template: str) -> tuple[sql.Composed, sql.Composed]:
    copying = sql.SQL("CREATE DATABASE {} TEMPLATE {} STRATEGY FILE_COPY")
    return _dropped(database), copying.format(sql.Identifier(database), sql.Identifier(template))


def _dropped(database: str) -> sql.Composed:
    return sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(database))


def _administer(url: str, *statements: sql.Composed) -> None:
    server = make_url(url).set(database="postgres", drivername="postgresql")
    administer(server.render_as_string(hide_password=False), *statements)


# -- in the child: the instants ------------------------------------------------------------------------------------------


@dataclass
class Instants:
    """Counts what a process has come through, and ends it at one of them."""

    at: int | None
    names: list[str] = field(default_factory=list)

    def passed(self, name: str, last_act: Callable[[], object] = lambda: None) -> None:
        """Come through one more instant; at the one that was told the process does its last act and is no more."""
        self.names.append(name)
        if len(self.names) == self.at:
            last_act()
            os._exit(DEAD)


def _count(house: House, instants: Instants) -> None:
    """Have every instant of a service counted from now on; nothing of it is taken back, for the process is a child's."""
    engine = house.deployment.database.engine
    event.listen(engine, "before_cursor_execute", lambda *of: instants.passed(f"before {_verb(of[2])}"))
    event.listen(engine, "after_cursor_execute", lambda *of: instants.passed(f"after {_verb(of[2])}"))
    commit = engine.dialect.do_commit

    def counted_commit(connection: Any) -> None:  # noqa: ANN401  # either driver's
        instants.passed("before COMMIT")
        commit(connection)
        instants.passed("after COMMIT")

    vars(engine.dialect)["do_commit"] = counted_commit
    copy = psycopg.Cursor.copy

    @contextmanager
    @wraps(copy)
    def counted_copy(*arguments: Any, **options: Any) -> Iterator[Any]:  # noqa: ANN401  # as psycopg has it
        instants.passed("before COPY")
        with copy(*arguments, **options) as copying:
            yield copying
            instants.passed("in COPY")
        instants.passed("after COPY")

    psycopg.Cursor.copy = counted_copy  # type: ignore[method-assign]  # COPY is no statement that SQLAlchemy hears
    vars(sink)["os"] = _counted_files(instants)
    house.client._in_process._asgi.app = _counted_answer(house.app, instants)


def _verb(statement: str) -> str:
    return " ".join(statement.split()[:3])


def _counted_files(instants: Instants) -> SimpleNamespace:
    def write(descriptor: int, data: bytes) -> int:
        instants.passed("before the sink's line")
        instants.passed("in the sink's line", lambda: os.write(descriptor, data[: len(data) // 2]))
        written = os.write(descriptor, data)
        instants.passed("after the sink's line")
        return written

    def fsync(descriptor: int) -> None:
        os.fsync(descriptor)
        instants.passed("after the sink's sync")

    return SimpleNamespace(**{**vars(os), "write": write, "fsync": fsync})


def _counted_answer(app: ASGIApp, instants: Instants) -> ASGIApp:
    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        async def counted_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                instants.passed("before the answer")
            await send(message)

        await app(scope, receive, counted_send)

    return answer


# -- in the child: builds with a fault -----------------------------------------------------------------------------------


@contextmanager
def sound() -> Iterator[None]:
    """The build as it is."""
    yield


@contextmanager
def answer_apart() -> Iterator[None]:
    """A build that keeps its answer in a transaction of its own, once the act is committed."""
    append, attempt = audited._Composed.append_to, audited._Door._attempt
    waiting: list[NewAnswer] = []

    def append_without(composed: audited._Composed, tx: Any, kept: Any = ()) -> None:  # noqa: ANN401  # as they are
        waiting.extend(kept)
        append(composed, tx)

    def attempt_then_store(door: audited._Door, work: Any) -> tuple[Any, list[LogState]]:  # noqa: ANN401  # as it is
        done = attempt(door, work)
        with door.ctx.deployment.database.transaction() as tx:
            answers.store(tx, waiting)
        waiting.clear()
        return done

    with (
        patch.object(audited._Composed, "append_to", append_without),
        patch.object(audited._Door, "_attempt", attempt_then_store),
    ):
        yield


@contextmanager
def entry_apart() -> Iterator[None]:
    """A build that enters in a transaction of its own, once the act is committed."""
    append, attempt = audited._Composed.append_to, audited._Door._attempt
    waiting: list[audited._Composed] = []

    def append_later(composed: audited._Composed, tx: Any, kept: Any = ()) -> None:  # noqa: ANN401  # as they are
        waiting.append(composed)
        answers.store(tx, kept)

    def attempt_then_enter(door: audited._Door, work: Any) -> tuple[Any, list[LogState]]:  # noqa: ANN401  # as it is
        done = attempt(door, work)
        with door.ctx.deployment.database.transaction() as tx:
            for composed in waiting:
                append(composed, tx)
        waiting.clear()
        return done

    with (
        patch.object(audited._Composed, "append_to", append_later),
        patch.object(audited._Door, "_attempt", attempt_then_enter),
    ):
        yield


BUILDS: Final = {build.__name__: build for build in (sound, answer_apart, entry_apart)}


# -- in the child: the jobs ----------------------------------------------------------------------------------------------


@contextmanager
def _opened(told: Mapping[str, Json]) -> Iterator[House]:
    """Give the service as a new process on what is there; it is left open, as a killed one is, but by the zygote itself."""
    settings = Settings.model_validate(told["settings"])
    clock = TickingClock(datetime.fromisoformat(told["now"]))
    house = House(settings, clock, SeededEntropy(told["seed"]), SeededEntropy(f"{told['seed']} lists"))
    with BUILDS[told["build"]](), patch.object(keeper, "_BREATH", 3600.0):
        house.open()
        yield house
        if told.get("is_left"):
            house.leave()


def _ask(house: House, told: Json) -> Json:
    response: Response = house.client.request(
        told["method"],
        told["path"],
        content=base64.b64decode(told["content"]),
        headers=[(name, value) for name, value in told["headers"] if name != "content-length"],
    )
    is_replayed = response.headers.get("Idempotency-Replayed") == "true"
    return {"status": response.status_code, "is_replayed": is_replayed, "body": response.text}


def attempt(told: Mapping[str, Json]) -> Json:
    """Answer one request, or die at the instant told; says what was answered, and every instant that was come through."""
    with _opened(told) as house:
        instants = Instants(told["at"])
        if not told.get("is_left"):
            _count(house, instants)
        answer = _ask(house, told["request"])
        return {"answer": answer, "instants": instants.names}


def again(told: Mapping[str, Json]) -> Json:
    """Answer the request twice more as a new process; says what was answered, what stood after each, and what is wrong."""
    with _opened(told) as house:
        wrong = _violations(house, told)
        given, states = [], []
        for _ in range(2):
            given.append(_ask(house, told["request"]))
            states.append(contents(house.settings.url()))
        wrong += _violations(house, told)
        return {"answers": given, "contents": states, "wrong": wrong}


def _violations(house: House, told: Mapping[str, Json]) -> list[str]:
    """Return what is inconsistent in the records, and what the offline verifier says of the exports against the sink."""
    if told["is_suspected"]:
        return []
    found = [repr(suspicion) for suspicion in house.deployment.checkpoints.suspicions.values()]
    database = house.deployment.database
    with database.transaction() as tx:
        known = studies.list_studies(tx)
        exports = {study.study_code: b"".join(export_lines(house.deployment, tx, study)) for study in known}
    for code, export in exports.items():
        try:
            check_tables(database, code, only_assigned=False)
        except AssertionError:
            found.append(traceback.format_exc())
        file = Path(told["settings"]["checkpoint_file"]).with_suffix(".export")
        file.write_bytes(export)
        said = StringIO()
        with redirect_stderr(StringIO()):
            status = verifier.main(["trail", str(file), "--sink", told["settings"]["checkpoint_file"]], said)
        if status != 0:
            found.append(said.getvalue())
    return found


# -- the exploration -----------------------------------------------------------------------------------------------------


class Violated(AssertionError):
    """A death at one instant of one request has left something that must not be; the text says which, and what."""


@dataclass
class Explored:
    """What became of one request."""

    answer: Json
    instants: list[str]
    deaths: int = 0
    retries: int = 0
    beside: set[str] = field(default_factory=set)
    """The tables in which something stood between two transactions of the request."""
    is_new_act: bool = False
    """Whether the request sent again changes anything again, as a sign-in does."""


@dataclass
class Explorer:
    """Dies at the instants of requests, and looks at what is left."""

    zygote: Zygote
    folder: Path
    build: str = "sound"
    is_suspected: bool = False
    """Whether the records are known to be inconsistent, as where somebody states how that came."""
    at_every_instant: bool = False
    """Whether the request is sent again after every death, and not only where a state is met for the first time."""

    def explore(
        self, sent: Sent, moment: Moment, *, chosen: Callable[[list[str]], Iterable[int]] | None = None
    ) -> Explored:
        """Return what was found at the chosen instants of a request, or at all; raise ``Violated``."""
        place = moment.put(self.folder)
        before = place.state()
        self.zygote.run("attempt", self._told(place, sent, moment.now, at=None, is_left=True))
        place = moment.put(self.folder)
        whole = self.zygote.fork("attempt", self._told(place, sent, moment.now, at=None)).said
        explored = Explored(whole["answer"], whole["instants"])
        after = place.state()
        reference = self._reference(sent, moment, whole["answer"], after)
        explored.is_new_act = reference.is_new_act
        seen: set[int] = set()
        is_fresh = False
        for at in chosen(explored.instants) if chosen is not None else range(1, len(explored.instants) + 1):
            if not is_fresh:
                place = moment.put(self.folder)
            died = self.zygote.fork("attempt", self._told(place, sent, moment.now, at=at))
            explored.deaths += 1
            found = place.state()
            is_done, touched = reference.check_atomic(before, after, found, explored, at, died)
            explored.beside |= {name.partition(".")[0] for name in touched}
            state = hash((tuple(found.contents.items()), found.sink))
            is_fresh = found == before
            if self.at_every_instant or state not in seen:
                seen.add(state)
                is_fresh = False
                explored.retries += 1
                told = self._told(place, sent, moment.now + LATER, at=None, seed=f"again {at}")
                asked = self.zygote.fork("again", told)
                reference.check_again(asked, explored, at, is_done=is_done, touched=touched)
        return explored

    def _reference(self, sent: Sent, moment: Moment, answer: Json, after: State) -> "Reference":
        """Return what a request leaves where nobody dies: by another play, which differs from the first in all chance."""
        place = moment.put(self.folder)
        # At the time at which it is sent again elsewhere: what tells the time is not steady.
        first = self._told(place, sent, moment.now + LATER, at=None, seed="other")
        self.zygote.fork("attempt", first)
        once = place.state().contents
        # What is consistent is asked after each death; here it is how the answers and the tables go on.
        told = {**self._told(place, sent, moment.now + 2 * LATER, at=None, seed="other again"), "is_suspected": True}
        finished = self.zygote.fork("again", told)
        if finished.exit_code != 0:
            raise Violated(f"{sent.method} {sent.path} without any death: {finished}")
        twice, thrice = finished.said["contents"]
        steady = {name for name in _WORDS if once.get(name) == after.contents.get(name)}
        return Reference(answer, finished.said["answers"], (once, twice, thrice), steady)

    def _told(
        self, place: Place, sent: Sent, now: datetime, *, at: int | None, seed: str = "one", is_left: bool = False
    ) -> Json:
        return {
            "settings": place.settings,
            "now": now.isoformat(),
            "seed": seed,
            "build": self.build,
            "is_suspected": self.is_suspected,
            "request": sent.told(),
            "at": at,
            "is_left": is_left,
        }


_OF_THE_TRAIL: Final = ("log", "trail_entry", "trail_node", "trail_restricted")


@dataclass(frozen=True)
class Reference:
    """What a request leaves where nobody dies: sent once, sent twice, sent three times."""

    answer: Json
    again: Json
    contents: tuple[Contents, Contents, Contents]
    steady: set[str]
    """What does not hang on chance or on the time."""

    @property
    def is_new_act(self) -> bool:
        """Whether the second request changes more than the trail, which tells that it came."""
        once, twice, _ = self.contents
        return any(name.partition(".")[0] not in _OF_THE_TRAIL for name in _differing(once, twice))

    def check_atomic(
        self, before: State, after: State, found: State, explored: Explored, at: int, died: Finished
    ) -> tuple[bool, set[str]]:
        """Return whether the act is done, and what was written beside it: nothing before COMMIT, and all of it after the last.

        What is done in a transaction of its own before the act, such as the counting of tries, stands between the two.
        """
        where = f"death {at} of {len(explored.instants)}, {explored.instants[at - 1]!r}"
        if died.exit_code != DEAD:
            raise Violated(f"{where}: the process ended with {died.exit_code}")
        commits = explored.instants[:at].count("after COMMIT")
        touched = set(_differing(found.contents, before.contents))
        if commits == 0 and touched:
            raise Violated(f"{where}: there before COMMIT: {sorted(touched)}")
        missing = _differing(found.contents, after.contents)
        if missing and commits == explored.instants.count("after COMMIT"):
            raise Violated(f"{where}: not as it should be after COMMIT: {missing}")
        # Behind the act's own COMMIT there may be others, of what is only read for the answer.
        return (False, touched) if commits == 0 or missing else (True, set())

    def check_again(self, asked: Finished, explored: Explored, at: int, *, is_done: bool, touched: set[str]) -> None:
        """The request sent again leaves what it leaves where nobody died, and is answered alike."""
        where = f"after death {at} of {len(explored.instants)}, {explored.instants[at - 1]!r}"
        if asked.exit_code != 0:
            raise Violated(f"{where}: the new process ended with {asked.exit_code}")
        if asked.said["wrong"]:
            raise Violated(f"{where}: {'; '.join(asked.said['wrong'])}")
        expected = self.again if is_done else [self.answer, *self.again]
        for answer, wanted in zip(asked.said["answers"], expected, strict=False):
            if (answer["status"], answer["is_replayed"]) != (wanted["status"], wanted["is_replayed"]):
                raise Violated(f"{where}: {answer} instead of {wanted}")
        first = asked.said["answers"][0]
        if is_done and first["is_replayed"] and first["body"] != explored.answer["body"]:
            raise Violated(f"{where}: the stored answer is another one")
        for found, wanted in zip(asked.said["contents"], self.contents[is_done:], strict=False):
            if wrong := set(_differing(found, wanted)) & self.steady - touched:
                raise Violated(f"{where}: the request sent again leaves something else in {sorted(wrong)}")


def _differing(one: Contents, other: Contents) -> list[str]:
    return [name for name in one if one[name] != other[name]]
