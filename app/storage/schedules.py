"""Allocation lists: what is known of each, their strata and slots."""

from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

from sqlalchemy import Integer, Row, bindparam, select, update

from app.domain.sealed import Sealed
from app.domain.words import RandomizationNumber, ScheduleStatus, StratumCode
from app.errors import IntegrityBroken, ListUnavailable
from app.storage import tables
from app.storage.database import Transaction

_s = tables.schedule.c
_ss = tables.schedule_stratum.c
_st = tables.stratum.c
_sl = tables.slot.c


# -- at use ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SealedSlot:
    """A slot as it is stored, with what names its place."""

    schedule_id: UUID
    list_id: UUID
    segment_number: int
    stratum_id: UUID
    stratum_code: StratumCode
    position: int
    randomization_number: RandomizationNumber
    sealed: Sealed


_CLAIM: Final = (
    update(tables.stratum)
    .where(_st.study_id == bindparam("of_study"), _st.stratum_code == bindparam("of_code"))
    .values(allocated=_st.allocated + 1)
    .returning(_st.stratum_id, _st.allocated)
)
_SLOT: Final = (
    select(
        _s.schedule_id,
        _s.list_id,
        _s.segment_number,
        _st.stratum_id,
        _st.stratum_code,
        _sl.position,
        _sl.randomization_number,
        _sl.sealed,
    )
    .select_from(tables.schedule_stratum)
    .join(tables.schedule, (_s.study_id == _ss.study_id) & (_s.schedule_id == _ss.schedule_id))
    .join(tables.stratum, (_st.study_id == _ss.study_id) & (_st.stratum_id == _ss.stratum_id))
    .join(
        tables.slot,
        (_sl.study_id == _ss.study_id) & (_sl.schedule_id == _ss.schedule_id) & (_sl.stratum_id == _ss.stratum_id),
    )
    .where(_ss.study_id == bindparam("study_id"), _ss.stratum_id == bindparam("stratum_id"))
)
_ORDINAL: Final = bindparam("ordinal", type_=Integer())
_FIND_SLOT: Final = _SLOT.where(
    _s.status == ScheduleStatus.ACTIVE,
    _ss.first_ordinal <= _ORDINAL,
    _ss.first_ordinal + _ss.slot_count > _ORDINAL,
    _sl.position == _ORDINAL - _ss.first_ordinal,
)
_GET_SLOT: Final = _SLOT.where(_ss.schedule_id == bindparam("schedule_id"), _sl.position == bindparam("position"))


def _slot(row: Row[Any]) -> SealedSlot:
    return SealedSlot(
        row.schedule_id,
        row.list_id,
        row.segment_number,
        row.stratum_id,
        StratumCode(row.stratum_code),
        row.position,
        RandomizationNumber(row.randomization_number),
        Sealed(row.sealed),
    )


def claim_ordinal(tx: Transaction, study_id: UUID, stratum_code: StratumCode) -> tuple[UUID, int]:
    """Return the stratum and the ordinal of its next subject, counted from 0, and lock the stratum's row (rule C5).

    Raises ``ListUnavailable`` for a stratum that no list was ever made for.
    """
    row = tx.execute(_CLAIM, {"of_study": study_id, "of_code": stratum_code}).one_or_none()
    if row is None:
        raise ListUnavailable
    return row.stratum_id, row.allocated - 1


def find_slot(tx: Transaction, study_id: UUID, stratum_id: UUID, ordinal: int) -> SealedSlot | None:
    """Return the slot that the active segments hold for a claimed ordinal, or None past the end of all of them.

    Danger: call it in a later statement than ``claim_ordinal``; a joined read under the lock's own statement sees what stood
    before the wait (`custody.md`, "The one door").
    """
    row = tx.execute(_FIND_SLOT, {"study_id": study_id, "stratum_id": stratum_id, "ordinal": ordinal}).one_or_none()
    return None if row is None else _slot(row)


def get_slot(tx: Transaction, study_id: UUID, schedule_id: UUID, stratum_id: UUID, position: int) -> SealedSlot:
    """Return a slot that an allocation names; raise ``IntegrityBroken`` when it is gone."""
    row = tx.execute(
        _GET_SLOT,
        {"study_id": study_id, "schedule_id": schedule_id, "stratum_id": stratum_id, "position": position},
    ).one_or_none()
    if row is None:
        raise IntegrityBroken
    return _slot(row)


def has_status(tx: Transaction, study_id: UUID, status: ScheduleStatus) -> bool:
    """Return whether any list of the study has this status."""
    return (
        tx.execute(select(_s.schedule_id).where(_s.study_id == study_id, _s.status == status).limit(1)).first()
        is not None
    )
