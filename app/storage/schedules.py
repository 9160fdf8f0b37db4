"""Allocation lists: what is known of each, their strata and slots."""

from uuid import UUID

from sqlalchemy import select

from app.domain.words import ScheduleStatus
from app.storage import tables
from app.storage.database import Transaction

_s = tables.schedule.c


def has_status(tx: Transaction, study_id: UUID, status: ScheduleStatus) -> bool:
    """Return whether any list of the study has this status."""
    return (
        tx.execute(select(_s.schedule_id).where(_s.study_id == study_id, _s.status == status).limit(1)).first()
        is not None
    )
