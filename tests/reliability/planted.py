"""Builds with one fault each, of those that a trial of many hands meets; the model must find every one of them (T23).

``with PLANTED["a removed lock"](house):`` this house works without the lock of a site's stock.
"""

import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import date
from typing import Any, Final
from unittest.mock import patch
from uuid import UUID

from sqlalchemy import Connection, Executable, Select, select, text

from app.domain.words import KitCode, SiteCode, StratumCode
from app.services import audited, stock
from app.storage import database, kits, schedules, tables
from app.storage.database import CommitUncertain, Database, Transaction, TryAgain
from app.storage.kits import KitRow
from app.storage.schedules import SealedSlot
from tests.harness import House
from tests.reliability.machine import MEETING, Plant

_MOMENT: Final = 0.01
"""Seconds that pass where a lock was, so that two who come together meet behind it."""


@contextmanager
def slow_at_the_lock(_house: House) -> Iterator[None]:
    """An honest build that only takes its time once it has the lock: what the next one is compared with."""
    honest = kits.lock_stock

    def locked(tx: Transaction, study_id: UUID, site_code: SiteCode | None) -> None:
        honest(tx, study_id, site_code)
        time.sleep(_MOMENT)

    with patch.object(kits, "lock_stock", locked):
        yield


@contextmanager
def without_the_lock(house: House) -> Iterator[None]:
    """A build that takes no lock on a site's stock, nor on a kit; on SQLite, one that lets go of its lock at once."""

    def passed_by(_tx: Transaction, _study_id: UUID, _site_code: SiteCode | None) -> None:
        time.sleep(_MOMENT)

    def only_read(tx: Transaction, study_id: UUID, kit_code: KitCode) -> KitRow | None:
        found = kits.find_kit(tx, study_id, kit_code)
        # Both have read before either writes: what the lock is there against.
        MEETING.wait()
        return found

    with ExitStack() as stack:
        stack.enter_context(patch.object(kits, "lock_stock", passed_by))
        stack.enter_context(patch.object(kits, "lock_kit", only_read))
        if not house.deployment.database.is_postgresql:
            stack.enter_context(_begun_with_the_first_write())
        yield


@contextmanager
def _begun_with_the_first_write() -> Iterator[None]:
    """Begin as the driver does when it is left alone: what was read before may have changed (`app.storage.database`)."""
    opened, execute, commit = Transaction.__init__, Transaction.execute, database._commit

    def begin(tx: Transaction) -> None:
        if not tx.driver_connection.in_transaction:
            tx.connection.exec_driver_sql("BEGIN IMMEDIATE")

    def opens(tx: Transaction, connection: Connection) -> None:
        opened(tx, connection)
        connection.exec_driver_sql("COMMIT")

    def executes(tx: Transaction, statement: Executable, parameters: Any = None) -> Any:  # noqa: ANN401  # as they are
        if not isinstance(statement, Select):
            begin(tx)
        return execute(tx, statement, parameters)

    def commits(tx: Transaction) -> None:
        begin(tx)
        commit(tx)

    @contextmanager
    def transaction(self: Database) -> Iterator[Transaction]:
        with self._transaction() as tx:
            yield tx

    with (
        patch.object(Transaction, "__init__", opens),
        patch.object(Transaction, "execute", executes),
        patch.object(database, "_commit", commits),
        patch.object(Database, "transaction", transaction),
    ):
        yield


@contextmanager
def without_the_constraint(house: House) -> Iterator[None]:
    """A database in which two answers may stand under one key."""
    held = house.deployment.database
    with held.transaction() as tx:
        if held.is_postgresql:
            tx.execute(text("ALTER TABLE stored_answer DROP CONSTRAINT pk_stored_answer"))
        else:
            tx.execute(text("CREATE TABLE loose AS SELECT * FROM stored_answer"))
            tx.execute(text("DROP TABLE stored_answer"))
            tx.execute(text("ALTER TABLE loose RENAME TO stored_answer"))
    with patch.object(audited, "_FIRST_PAUSE", 0):
        yield


@contextmanager
def again_without_a_key(_house: House) -> Iterator[None]:
    """A build that does an act anew when its COMMIT went unheard, whether or not a key tells what became of it."""
    honest = audited._Door._attempt

    def attempted(door: Any, work: Any) -> Any:  # noqa: ANN401  # as they are
        try:
            return honest(door, work)
        except CommitUncertain:
            raise TryAgain from None

    with patch.object(audited._Door, "_attempt", attempted):
        yield


@contextmanager
def slots_given_back(_house: House) -> Iterator[None]:
    """A build that gives the slot of whoever was randomized in error to the next one."""
    honest = schedules.claim_slot

    def claimed(tx: Transaction, study_id: UUID, code: StratumCode) -> tuple[int, SealedSlot]:
        ordinal, slot = honest(tx, study_id, code)
        a, flag = tables.allocation.c, tables.subject_flag.c
        marked = tx.execute(
            select(a.ordinal)
            .join_from(tables.allocation, tables.subject_flag, a.subject_key == flag.subject_key)
            .where(a.stratum_id == slot.stratum_id, flag.kind == "error_mark")
        ).first()
        if marked is None:
            return ordinal, slot
        free = schedules.find_slot(tx, study_id, slot.stratum_id, marked.ordinal)
        assert free is not None
        return marked.ordinal, free

    with patch.object(schedules, "claim_slot", claimed), patch.object(audited, "_FIRST_PAUSE", 0):
        yield


@contextmanager
def expiry_unchecked(_house: House) -> Iterator[None]:
    """A build that draws kits without looking at the day."""

    def long_ago(_now: object, _zone: str) -> date:
        return date.min

    with patch.object(stock, "site_day", long_ago):
        yield


PLANTED: Final[Mapping[str, Plant]] = {
    "a removed lock": without_the_lock,
    "a removed unique constraint": without_the_constraint,
    "retry of a committed transaction": again_without_a_key,
    "a re-used slot": slots_given_back,
    "an unchecked expiry": expiry_unchecked,
}
