"""Grants that wait for a second service administrator; until then no grant of theirs stands anywhere else."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

from sqlalchemy import Row, insert, select, update

from app.domain.words import Role, SiteCode, StudyCode
from app.errors import Missing
from app.storage import tables
from app.storage.database import Transaction

LASTING: Final = timedelta(days=7)
"""How long a grant waits; what nobody has looked at for that long is asked for anew."""

_w = tables.pending_grant.c


@dataclass(frozen=True, slots=True)
class PendingGrant:
    """What one administrator has asked for, and whether it was confirmed or withdrawn."""

    grant_id: UUID
    role: Role
    study_code: StudyCode | None
    site_code: SiteCode | None
    starts_at: datetime | None
    ends_at: datetime | None
    needs_training: bool
    requested_at: datetime
    requested_by: str
    decided_at: datetime | None = None
    decided_by: str | None = None

    @property
    def expires_at(self) -> datetime:
        """Return until when it can be confirmed: a week, or to the end of what is to be given."""
        last = self.requested_at + LASTING
        return last if self.ends_at is None else min(last, self.ends_at)

    def is_open(self, now: datetime) -> bool:
        """Return whether it waits still."""
        return self.decided_at is None and now < self.expires_at


def add_pending(tx: Transaction, principal_id: UUID, asked: PendingGrant) -> None:
    """Record what is asked for an account."""
    row = {name: getattr(asked, name) for name in PendingGrant.__dataclass_fields__}
    tx.execute(insert(tables.pending_grant), {"principal_id": principal_id, **row})


_PENDING: Final = select(*(_w[name] for name in PendingGrant.__dataclass_fields__))


def get_pending(tx: Transaction, principal_id: UUID, grant_id: UUID) -> PendingGrant:
    """Return what was asked for an account under this id; raise ``Missing``."""
    row = tx.execute(_PENDING.where(_w.principal_id == principal_id, _w.grant_id == grant_id)).one_or_none()
    if row is None:
        raise Missing
    return _pending(row)


def list_pending(tx: Transaction, principal_id: UUID, now: datetime) -> list[PendingGrant]:
    """Return what waits for an account, in the order in which it was asked for."""
    query = _PENDING.where(_w.principal_id == principal_id, _w.decided_at.is_(None))
    found = [_pending(row) for row in tx.execute(query.order_by(_w.requested_at, _w.grant_id))]
    return [one for one in found if one.is_open(now)]


def record_decision(tx: Transaction, grant_id: UUID, at: datetime, by: str) -> None:
    """Close what was asked for, confirmed or withdrawn; its account is held."""
    tx.execute(update(tables.pending_grant).where(_w.grant_id == grant_id).values(decided_at=at, decided_by=by))


def _pending(row: Row[Any]) -> PendingGrant:
    values = row._asdict()
    return PendingGrant(**(values | {"role": Role(values["role"])}))
