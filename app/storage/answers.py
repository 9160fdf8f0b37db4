"""Stored answers: what was answered to a key, so that a repeated request gives it again and does nothing (rule C4)."""

from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

from sqlalchemy import bindparam, select, update
from sqlalchemy.dialects import postgresql, sqlite

from app.domain.sealed import Sealed
from app.storage import tables
from app.storage.database import Transaction

_a = tables.stored_answer.c


@dataclass(frozen=True, slots=True)
class StoredAnswer:
    """What stands under a key: a small or a large sealed answer (one length for each column)."""

    small: Sealed | None
    large: Sealed | None


_CLAIM: Final = {
    True: postgresql.insert(tables.stored_answer).on_conflict_do_nothing(),
    False: sqlite.insert(tables.stored_answer).on_conflict_do_nothing(),
}
_FIND: Final = select(_a.sealed_small, _a.sealed_large).where(
    _a.study_id == bindparam("study_id"), _a.scope == bindparam("scope")
)
_STORE: Final = (
    update(tables.stored_answer)
    .where(_a.study_id == bindparam("b_study_id"), _a.scope == bindparam("b_scope"))
    .values(sealed_small=bindparam("b_small"), sealed_large=bindparam("b_large"))
)


def claim(tx: Transaction, study_id: UUID, scope: bytes, at: datetime) -> StoredAnswer | None:
    """Claim a key for this transaction and return None, or return the answer that stands under it.

    Waits for another transaction that has claimed the key and has not ended yet; raises ``TryAgain`` past the lock limit.
    """
    claimed = tx.execute(_CLAIM[tx.is_postgresql], {"study_id": study_id, "scope": scope, "claimed_at": at}).rowcount
    if claimed == 1:
        return None
    row = tx.execute(_FIND, {"study_id": study_id, "scope": scope}).one()
    return StoredAnswer(
        Sealed(row.sealed_small) if row.sealed_small is not None else None,
        Sealed(row.sealed_large) if row.sealed_large is not None else None,
    )


def store(tx: Transaction, study_id: UUID, scope: bytes, answer: StoredAnswer) -> None:
    """Put the answer under a key that this transaction has claimed."""
    tx.execute(
        _STORE,
        {
            "b_study_id": study_id,
            "b_scope": scope,
            "b_small": answer.small.token if answer.small is not None else None,
            "b_large": answer.large.token if answer.large is not None else None,
        },
    )
