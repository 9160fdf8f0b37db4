"""Requests that a second person must release: packing lists and the final unblinding (rule F3)."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from sqlalchemy import Row, and_, bindparam, insert, or_, select, update

from app.domain.sealed import Sealed
from app.errors import Missing
from app.storage import tables
from app.storage.database import Transaction

_r = tables.dual_control_request.c


@dataclass(frozen=True, slots=True)
class DualControlRequest:
    """What one person asked for, and whether another one has released it."""

    request_id: UUID
    kind: str
    consignment_id: UUID | None
    recipient_key: str | None
    sealed_statement: Sealed
    key_version: int
    requested_at: datetime
    requested_by: str
    released_at: datetime | None = None
    released_by: str | None = None


_REQUESTS: Final = select(*(_r[name] for name in DualControlRequest.__dataclass_fields__))
_REQUEST: Final = _REQUESTS.where(
    _r.study_id == bindparam("study_id"),
    _r.request_id == bindparam("request_id"),
    _r.kind == bindparam("kind"),
).with_for_update()


def add_request(tx: Transaction, study_id: UUID, request: DualControlRequest) -> None:
    """Record a request."""
    row = {name: getattr(request, name) for name in DualControlRequest.__dataclass_fields__}
    row["sealed_statement"] = request.sealed_statement.token
    tx.execute(insert(tables.dual_control_request), {"study_id": study_id} | row)


def lock_request(tx: Transaction, study_id: UUID, kind: str, request_id: UUID) -> DualControlRequest:
    """Return a request that nobody else releases until the transaction ends; raise ``Missing``."""
    wanted = {"study_id": study_id, "request_id": request_id, "kind": kind}
    row = tx.execute(_REQUEST, wanted).one_or_none()
    if row is None:
        raise Missing
    return _request(row)


def _request(row: Row[Any]) -> DualControlRequest:
    values = {name: getattr(row, name) for name in DualControlRequest.__dataclass_fields__}
    return DualControlRequest(**(values | {"sealed_statement": Sealed(row.sealed_statement)}))


def list_requests(
    tx: Transaction, study_id: UUID, kind: str, after: tuple[datetime, UUID] | None, until: datetime, limit: int
) -> list[DualControlRequest]:
    """Return the requests of a kind in the order of time, behind ``after`` and not later than ``until``."""
    query = _REQUESTS.where(_r.study_id == study_id, _r.kind == kind, _r.requested_at <= until)
    if after is not None:
        at, last_id = after
        query = query.where(or_(_r.requested_at > at, and_(_r.requested_at == at, _r.request_id > last_id)))
    rows = tx.execute(query.order_by(_r.requested_at, _r.request_id).limit(limit))
    return [_request(row) for row in rows]


def record_release(tx: Transaction, study_id: UUID, request_id: UUID, at: datetime, by: str) -> None:
    """Release a request that was locked and found open."""
    tx.execute(
        update(tables.dual_control_request)
        .where(_r.study_id == study_id, _r.request_id == request_id)
        .values(released_at=at, released_by=by)
    )
