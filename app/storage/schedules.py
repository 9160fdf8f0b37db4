"""Allocation lists: what is known of each, their strata and slots."""

from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import select

from app.domain.sealed import Sealed
from app.domain.words import RandomizationNumber, ScheduleStatus, StratumCode
from app.storage import tables
from app.storage.database import Transaction

_s = tables.schedule.c


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


def has_status(tx: Transaction, study_id: UUID, status: ScheduleStatus) -> bool:
    """Return whether any list of the study has this status."""
    return (
        tx.execute(select(_s.schedule_id).where(_s.study_id == study_id, _s.status == status).limit(1)).first()
        is not None
    )
