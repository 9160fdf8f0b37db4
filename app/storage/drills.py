"""Code-break drills: who did one, where and when."""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import and_, func, insert, or_, select

from app.domain.words import SiteCode, Username
from app.storage import tables
from app.storage.database import Transaction

_d = tables.drill.c


@dataclass(frozen=True, slots=True)
class DrillRecord:
    """A drill that was done."""

    drill_id: UUID
    site_code: SiteCode
    username: Username
    revealed_at: datetime
    seconds_to_reveal: float


def add_drill(tx: Transaction, study_id: UUID, drill: DrillRecord) -> None:
    """Record a drill."""
    row = {name: getattr(drill, name) for name in ("drill_id", "site_code", "username", "revealed_at")}
    row |= {"study_id": study_id, "reveal_ms": round(drill.seconds_to_reveal * 1000)}
    tx.execute(insert(tables.drill), row)


def list_drills(
    tx: Transaction,
    study_id: UUID,
    sites: Collection[SiteCode] | None,
    after: tuple[datetime, UUID] | None,
    until: datetime,
    limit: int,
) -> list[DrillRecord]:
    """Return drills of the sites (None: all) in the order of time, behind ``after`` and not later than ``until``."""
    query = select(_d.drill_id, _d.site_code, _d.username, _d.revealed_at, _d.reveal_ms).where(
        _d.study_id == study_id, _d.revealed_at <= until
    )
    if sites is not None:
        query = query.where(_d.site_code.in_(list(sites)))
    if after is not None:
        at, drill_id = after
        query = query.where(or_(_d.revealed_at > at, and_(_d.revealed_at == at, _d.drill_id > drill_id)))
    rows = tx.execute(query.order_by(_d.revealed_at, _d.drill_id).limit(limit))
    return [
        DrillRecord(row.drill_id, row.site_code, row.username, row.revealed_at, row.reveal_ms / 1000) for row in rows
    ]


def list_last_drills(tx: Transaction, study_id: UUID) -> dict[tuple[SiteCode, Username], datetime]:
    """Return when each person did the last drill at each site."""
    rows = tx.execute(
        select(_d.site_code, _d.username, func.max(_d.revealed_at).label("last_at"))
        .where(_d.study_id == study_id)
        .group_by(_d.site_code, _d.username)
    )
    return {(row.site_code, row.username): row.last_at for row in rows}
