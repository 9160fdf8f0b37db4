"""Consignments and kits, and which kit was given to whom. No query looks at an arm: it could not (rule B3)."""

from dataclasses import dataclass
from datetime import date, datetime
from typing import Final
from uuid import UUID

from sqlalchemy import bindparam, func, select, update

from app.domain.sealed import Sealed
from app.domain.words import ConsignmentCode, ConsignmentStatus, KitCode, KitStatus, SiteCode
from app.storage import tables
from app.storage.database import Transaction

_c = tables.consignment.c
_k = tables.kit.c
_ss = tables.site_stock.c


@dataclass(frozen=True, slots=True)
class SealedKit:
    """A kit as it is stored, with what names its place."""

    kit_id: UUID
    kit_code: KitCode
    consignment_id: UUID
    consignment_code: ConsignmentCode
    map_index: int
    sealed: Sealed


_LOCK_STOCK: Final = (
    select(_ss.site_code)
    .where(_ss.study_id == bindparam("study_id"), _ss.site_code == bindparam("site_code"))
    .with_for_update()
)
_ASSIGNABLE: Final = (
    select(_c.consignment_id)
    .where(
        _c.study_id == bindparam("study_id"),
        _c.site_code == bindparam("site_code"),
        _c.status == ConsignmentStatus.ASSIGNABLE,
        _c.unusable_from > bindparam("today"),
    )
    .order_by(_c.unusable_from, _c.consignment_id)
)
_IN_STOCK: Final = (
    select(_k.kit_id, _k.kit_code, _k.consignment_id, _c.consignment_code, _k.map_index, _k.sealed)
    .join_from(tables.kit, tables.consignment, (_c.study_id == _k.study_id) & (_c.consignment_id == _k.consignment_id))
    .where(
        _k.study_id == bindparam("study_id"),
        _k.consignment_id == bindparam("consignment_id"),
        # Written out, so that the partial index of kits in stock serves it.
        _k.status == KitStatus.IN_STOCK.value,
    )
    # An order that nobody can know beforehand, made where the rows are: what is read does not grow with the stock (rule B5).
    .order_by(func.hashuuidextended(_k.kit_id, bindparam("order")))
)
_SAMPLE: Final = _IN_STOCK.limit(bindparam("sample"))


def lock_stock(tx: Transaction, study_id: UUID, site_code: SiteCode) -> None:
    """Keep everybody else from changing the stock of a site until the transaction ends."""
    tx.execute(_LOCK_STOCK, {"study_id": study_id, "site_code": site_code})


def list_assignable_consignments(tx: Transaction, study_id: UUID, site_code: SiteCode, today: date) -> list[UUID]:
    """Return the site's assignable consignments that are usable today, the soonest-expiring first."""
    rows = tx.execute(_ASSIGNABLE, {"study_id": study_id, "site_code": site_code, "today": today})
    return [row.consignment_id for row in rows]


def record_withdrawal(tx: Transaction, study_id: UUID, consignment_id: UUID, at: datetime) -> None:
    """Withdraw a consignment as a whole; once withdrawn it stays so (rule B5)."""
    tx.execute(
        update(tables.consignment)
        .where(
            _c.study_id == study_id,
            _c.consignment_id == consignment_id,
            _c.status == ConsignmentStatus.ASSIGNABLE,
        )
        .values(status=ConsignmentStatus.WITHDRAWN, withdrawn_at=at)
    )


def list_in_stock(
    tx: Transaction, study_id: UUID, consignment_id: UUID, order: int, sample: int | None
) -> list[SealedKit]:
    """Return kits in stock of a consignment in the random order that ``order`` (64 bits, signed) stands for.

    The first ``sample`` of them, or all. Rows are not locked: a lock on candidates could be read by others (finding 5).
    """
    given = {"study_id": study_id, "consignment_id": consignment_id, "order": order}
    rows = tx.execute(_IN_STOCK, given) if sample is None else tx.execute(_SAMPLE, given | {"sample": sample})
    return [
        SealedKit(row.kit_id, row.kit_code, row.consignment_id, row.consignment_code, row.map_index, Sealed(row.sealed))
        for row in rows
    ]


def has_consignment(tx: Transaction, study_id: UUID, site_code: SiteCode, status: ConsignmentStatus) -> bool:
    """Return whether a site has a consignment of this status."""
    return (
        tx.execute(
            select(_c.consignment_id)
            .where(_c.study_id == study_id, _c.site_code == site_code, _c.status == status)
            .limit(1)
        ).first()
        is not None
    )
