"""Stored answers: what was answered to a key, so that a repeated request gives it again and does nothing (rule C4)."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from sqlalchemy import LargeBinary, Text, Uuid, bindparam, func, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.dialects.postgresql import ARRAY

from app.domain.sealed import Sealed
from app.storage import tables
from app.storage.database import Transaction

_a = tables.stored_answer.c


@dataclass(frozen=True, slots=True)
class StoredAnswer:
    """What stands under a key: a small or a large sealed answer (one length for each column)."""

    small: Sealed | None
    large: Sealed | None


@dataclass(frozen=True, slots=True)
class NewAnswer:
    """An answer to be put under a key."""

    study_id: UUID
    scope: bytes
    answer: StoredAnswer


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
_given = (
    func.unnest(
        bindparam("answer_studies", type_=ARRAY(Uuid())),
        bindparam("answer_scopes", type_=ARRAY(LargeBinary())),
        bindparam("answers_small", type_=ARRAY(Text())),
        bindparam("answers_large", type_=ARRAY(Text())),
    )
    .table_valued("study_id", "scope", "small", "large")
    .render_derived(name="given")
).c
STORE_ARRAYS: Final = (
    update(tables.stored_answer)
    .where(_a.study_id == _given.study_id, _a.scope == _given.scope)
    .values(sealed_small=_given.small, sealed_large=_given.large)
)
"""Stores any number of answers in one statement; PostgreSQL only."""


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


def store(tx: Transaction, kept: Sequence[NewAnswer]) -> None:
    """Put answers under keys that this transaction has claimed."""
    if tx.is_postgresql:
        if kept:
            tx.execute(STORE_ARRAYS, arrays(kept))
        return
    for one in kept:
        tx.execute(
            _STORE,
            {
                "b_study_id": one.study_id,
                "b_scope": one.scope,
                "b_small": _token(one.answer.small),
                "b_large": _token(one.answer.large),
            },
        )


def arrays(kept: Sequence[NewAnswer]) -> dict[str, list[Any]]:
    """Return the parameters of ``STORE_ARRAYS``."""
    return {
        "answer_studies": [one.study_id for one in kept],
        "answer_scopes": [one.scope for one in kept],
        "answers_small": [_token(one.answer.small) for one in kept],
        "answers_large": [_token(one.answer.large) for one in kept],
    }


def _token(sealed: Sealed | None) -> str | None:
    return None if sealed is None else sealed.token
