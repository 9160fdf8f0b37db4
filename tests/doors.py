"""Passing the one door without HTTP: contexts of callers, and a database whose transactions fail as a test says."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import Enum, auto
from typing import Final

from sqlalchemy import text

from app.domain.words import Action
from app.errors import DatabaseUnavailable
from app.identity.tokens import token_digest
from app.services.audited import Receipt
from app.services.context import Deployment, RequestContext
from app.storage.database import AlreadyThere, CommitUncertain, Database, Transaction, TryAgain
from tests.harness import Caller, House

NETWORK: Final = "192.0.2.0/24"


@dataclass(frozen=True, slots=True)
class Made:
    """An answer with a receipt."""

    word: str
    receipt: Receipt | None = None


class Fault(Enum):
    """What becomes of a transaction."""

    NONE = auto()
    AGAIN = auto()
    """A serialization failure: rolled back."""
    RIVAL = auto()
    """A unique constraint held: rolled back."""
    DOWN = auto()
    """The database does not answer."""
    LOST = auto()
    """COMMIT failed, and did not happen; nobody can tell."""
    UNHEARD = auto()
    """COMMIT happened, and its answer was lost."""


class FaultyDatabase(Database):
    """The same records, with one fault of the script for each transaction, and none when the script has ended."""

    def __init__(self, url: str, faults: list[Fault]) -> None:
        super().__init__(url)
        self.faults = faults

    @contextmanager
    def transaction(self) -> Iterator[Transaction]:
        fault = self.faults.pop(0) if self.faults else Fault.NONE
        if fault is Fault.DOWN:
            raise DatabaseUnavailable
        with super().transaction() as tx:
            yield tx
            if fault is Fault.AGAIN:
                raise TryAgain
            if fault is Fault.RIVAL:
                raise AlreadyThere
            if fault is Fault.LOST:
                raise CommitUncertain
        if fault is Fault.UNHEARD:
            raise CommitUncertain


@contextmanager
def failing(house: House, *faults: Fault) -> Iterator[Deployment]:
    """Give the running deployment on a database whose next transactions fail like this."""
    database = FaultyDatabase(house.settings.url(), list(faults))
    try:
        yield replace(house.deployment, database=database)
    finally:
        database.close()


def context(
    house: House,
    action: Action,
    caller: Caller | None = None,
    *,
    key: str | None = None,
    body: bytes = b"{}",
    method: str = "POST",
    elevated: bool = False,
    deployment: Deployment | None = None,
) -> RequestContext:
    """Return a request of this caller for this action, as the API makes it."""
    token = None if caller is None else caller.elevated_token() if elevated else caller.token()
    return RequestContext(
        deployment or house.deployment,
        action,
        None if token is None else token_digest(token),
        "0123456789abcdef",
        NETWORK,
        method,
        "/v1/test",
        key,
        hashlib.sha256(body).digest(),
    )


def lift_triggers(tx: Transaction, table: str) -> None:
    """Do what the owner of the database can do, and the service never does: stop the triggers of a table."""
    if tx.is_postgresql:
        tx.execute(text(f"ALTER TABLE {table} DISABLE TRIGGER ALL"))
        return
    found = text("SELECT name FROM sqlite_master WHERE type = 'trigger' AND tbl_name = :table")
    for name in tx.execute(found, {"table": table}).scalars().all():
        tx.execute(text(f'DROP TRIGGER "{name}"'))
