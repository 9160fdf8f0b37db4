"""A driver that fails by chance, at any statement and at COMMIT: what was told stands, and nothing happens twice.

The failures are real where they can be: a serialization failure or a deadlock is raised by the server, in the transaction, and a
connection is lost by being closed. One transaction in five is struck, once, at a place drawn by seed.
"""

import random
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from threading import Lock
from typing import Any, Final

import psycopg
import pytest
from psycopg import IsolationLevel
from psycopg.pq import TransactionStatus
from sqlalchemy import event

from app.domain.words import Action, StudyCode
from app.services import trail
from app.services.checkpoints import SMALLER, Suspicion
from app.services.readiness import is_ready
from app.storage import database
from app.storage.database import CommitUncertain, Database, Transaction
from tests.doors import Fault, FaultyDatabase, context, failing
from tests.harness import STUDY, House
from tests.reliability.records import check_export, check_tables
from tests.reliability.tally import Tally
from tests.running_study import RunningStudy, S, running_study

LONG: Final = (pytest.mark.long, pytest.mark.timeout(0))
SHARE: Final = 0.2
"""Of all transactions, how many are struck."""
LAST_STATEMENT: Final = 20
"""A transaction that has fewer is struck at its COMMIT."""
COMMIT: Final = 0
"""Stands for the COMMIT, where statements are counted."""
KINDS: Final = {"40001": "serialization_failure", "40P01": "deadlock_detected"}
LOST: Final = "connection lost"
AFTER: Final = "connection lost after COMMIT"
_TRIES: Final = 200
_BEFORE_STATEMENT: Final = (*KINDS, LOST)
_AT_COMMIT: Final = (*KINDS, LOST, AFTER)


@dataclass
class Chaos:
    """Who is struck, by what and where. With one client a seed gives the same run again."""

    seed: int
    share: float = SHARE
    isolation: IsolationLevel = IsolationLevel.READ_COMMITTED
    only: str | None = None
    """One kind, at COMMIT, instead of all."""
    struck: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._chance = random.Random(self.seed)
        self._lock = Lock()

    def plan(self) -> tuple[int, str] | None:
        """Return before which statement of its transaction, or at its COMMIT, and by what a connection is struck."""
        with self._lock:
            if self._chance.random() >= self.share:
                return None
            if self.only is not None or self._chance.random() < 0.5:
                return COMMIT, self.only or self._chance.choice(_AT_COMMIT)
            return self._chance.randrange(1, LAST_STATEMENT + 1), self._chance.choice(_BEFORE_STATEMENT)

    def note(self, place: str, kind: str) -> None:
        with self._lock:
            self.struck[f"{kind} at {place}"] += 1


class StruckConnection(psycopg.Connection[Any]):
    """A connection of the driver that fails as planned."""

    chaos: Chaos
    planned: tuple[int, str] | None = None
    statements = 0

    def before_statement(self) -> None:
        if self.info.transaction_status == TransactionStatus.IDLE:
            self.isolation_level = self.chaos.isolation
            self.planned, self.statements = self.chaos.plan(), 0
        self.statements += 1
        if self.planned is not None and self.statements == self.planned[0]:
            self._strike("a statement", self.planned[1])

    def commit(self) -> None:
        if self.planned is None or self.info.transaction_status == TransactionStatus.IDLE:
            super().commit()
            return
        kind = self.planned[1]
        if kind == AFTER:
            super().commit()
        self._strike("COMMIT", kind)

    def _strike(self, place: str, kind: str) -> None:
        self.planned = None
        self.chaos.note(place, kind)
        if kind in KINDS:
            # By the server: from here on the transaction can only be rolled back.
            raising = f"DO $$ BEGIN RAISE EXCEPTION USING ERRCODE = '{kind}'; END $$"
            psycopg.Cursor(self).execute(raising.encode())
        self.close()
        message = "the connection is lost"
        raise psycopg.OperationalError(message)


@contextmanager
def raging(house: House, chaos: Chaos) -> Iterator[None]:
    """Put the failing driver under a house for a while."""
    calm = house.deployment
    struck = Database(house.settings.url(), house.settings.threads)

    def connect(_dialect: object, _record: object, arguments: list[Any], options: dict[str, Any]) -> StruckConnection:
        connection: StruckConnection = StruckConnection.connect(*arguments, **options)
        connection.chaos = chaos
        return connection

    def before_statement(cursor: psycopg.Cursor[Any], *_: object) -> None:
        assert isinstance(cursor.connection, StruckConnection)
        cursor.connection.before_statement()

    event.listen(struck.engine, "do_connect", connect)
    for kind in ("do_execute", "do_execute_no_params", "do_executemany"):
        event.listen(struck.engine, kind, before_statement)
    house.app.state.deployment = replace(calm, database=struck)
    try:
        yield
    finally:
        house.app.state.deployment = calm
        struck.close()


def allocate_in_chaos(running: RunningStudy, chaos: Chaos, count: int, clients: int) -> dict[str, dict[str, Any]]:
    """Return what was told of so many subjects."""
    subjects = [f"01-{number:05}" for number in range(1, count + 1)]
    # Signed in before: the chaos is for the trial's own acts.
    running.investigator.token()
    with raging(running.house, chaos), ThreadPoolExecutor(clients) as asking:
        return dict(
            zip(subjects, asking.map(lambda subject: running.ask_until_told(subject, _TRIES), subjects), strict=True)
        )


def check_told(running: RunningStudy, told: dict[str, dict[str, Any]]) -> None:
    """Everything told is there as it was told, nothing else, and lists, kits and trail are whole."""
    found = check_tables(running.house.deployment.database, STUDY)
    kept = {row.subject_id: row._asdict() for row in found}
    assert kept.keys() == told.keys()
    for subject, body in told.items():
        assert body["randomization_number"] == kept[subject]["randomization_number"]
        assert body["kit_code"] == kept[subject]["kit_code"]


@pytest.mark.parametrize("database_kind", ["postgresql"])
@pytest.mark.parametrize(
    ("count", "clients", "isolation"),
    [
        (100, 2, IsolationLevel.READ_COMMITTED),
        pytest.param(2_000, 4, IsolationLevel.READ_COMMITTED, marks=LONG),
        pytest.param(500, 4, IsolationLevel.SERIALIZABLE, marks=LONG),
    ],
)
def test_allocations_in_chaos(
    house: House, count: int, clients: int, isolation: IsolationLevel, round_seed: int, tally: Tally
) -> None:
    """Every subject is allocated once, in order, and told the truth, whatever the driver reports [C3, C5, C6; T33]"""
    # Kits for a list of which one arm leads, beside the floor.
    running = running_study(house, subjects=0, kits_per_arm=count // 2 + 20, length=count + count % 2)
    inspector = running.person("inspector")
    chaos = Chaos(round_seed, isolation=isolation)
    told = allocate_in_chaos(running, chaos, count, clients)
    check_told(running, told)
    places = {f"{kind} at a statement" for kind in _BEFORE_STATEMENT} | {f"{kind} at COMMIT" for kind in _AT_COMMIT}
    assert chaos.struck.keys() == places
    export = inspector.get(f"{S}/trail/export", step_up=True)
    sink = house.settings.checkpoint_file
    check_export(export.content, sink, sink.parent)
    tally(allocations=count, struck=chaos.struck.total())


@pytest.mark.long
@pytest.mark.parametrize("database_kind", ["postgresql"])
def test_build_that_believes_in_its_commit(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control: where an unheard COMMIT is taken for done, what was told is not there [C6; T33]"""
    running = running_study(house, subjects=0)
    commit = database._commit

    def believe(tx: Transaction) -> None:
        try:
            commit(tx)
        except CommitUncertain:
            return

    monkeypatch.setattr(database, "_commit", believe)
    told = allocate_in_chaos(running, Chaos(1, share=1.0, only=LOST), 1, 1)
    monkeypatch.undo()
    with pytest.raises(AssertionError):
        check_told(running, told)


@pytest.mark.long
@pytest.mark.parametrize("database_kind", ["postgresql"])
def test_build_that_does_it_again(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control: a retry that does not look whether its COMMIT was heard elsewhere is told off by the last line [C6]"""
    running = running_study(house, subjects=0)
    monkeypatch.setattr("app.services.audited.Act.claim", lambda *_: None)
    with pytest.raises(AssertionError, match="already_exists"):
        allocate_in_chaos(running, Chaos(1, share=1.0, only=AFTER), 1, 1)


class TestConnectionLostAtTheEndOfAReading:
    """A transaction that wrote nothing was neither done nor undone: it is read again, or told as "not now", never as a fault."""

    def test_readiness(self, house: House) -> None:
        """Not ready, and no fault [G2, C6]"""
        with failing(house, Fault.LOST) as deployment:
            assert not is_ready(deployment)
            assert is_ready(deployment)

    def test_export(self, house: House) -> None:
        """The export's head and each page are read again; nothing is missing [G2, E4]"""
        inspector = running_study(house, subjects=1).person("inspector")
        with failing(house, Fault.NONE, Fault.LOST, Fault.NONE, Fault.LOST) as deployment:
            asked = context(house, Action.EXPORT_TRAIL, inspector, elevated=True, method="GET", deployment=deployment)
            export = b"".join(trail.export_trail(asked, StudyCode(STUDY)))
            assert isinstance(deployment.database, FaultyDatabase)
            assert deployment.database.faults == []
        sink = house.settings.checkpoint_file
        check_export(export, sink, sink.parent)

    def test_comparison_after_a_recovery_statement(self, house: House) -> None:
        """What was declared and committed is answered; the next comparison opens the service again [G2, INT-07]"""
        keeper, origin = house.deployment.checkpoints, house.deployment.origin(None)
        keeper._suspect(Suspicion(origin, len(house.trail()), SMALLER))
        with failing(house, Fault.NONE, Fault.LOST) as deployment:
            asked = context(house, Action.DECLARE_RECOVERY, house.admin, elevated=True, deployment=deployment)
            declared = trail.declare_recovery(asked, "The rehearsal of a lost connection.")
        assert [log["origin"] for log in declared.logs] == [origin]
        keeper.compare(house.deployment.database)
        assert keeper.suspicions == {}
