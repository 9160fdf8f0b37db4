"""Consignments and kits, and which kit was given to whom. No query looks at an arm: it could not (rule B3)."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any, Final
from uuid import UUID

from sqlalchemy import Row, bindparam, func, insert, select, update

from app.domain.sealed import Sealed
from app.domain.words import ConsignmentCode, ConsignmentStatus, KitCode, KitStatus, SiteCode, SubjectKey
from app.errors import IntegrityBroken
from app.storage import tables
from app.storage.database import AlreadyThere, Transaction

_c = tables.consignment.c
_k = tables.kit.c
_ka = tables.kit_assignment.c
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
    return [_sealed_kit(row) for row in rows]


def _sealed_kit(row: Row[Any]) -> SealedKit:
    return SealedKit(
        row.kit_id, row.kit_code, row.consignment_id, row.consignment_code, row.map_index, Sealed(row.sealed)
    )


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


# -- which kit was given to whom ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class KitRow:
    """A kit with what decides whether it can be used: never its own date, always its consignment's (rule B11)."""

    kit_id: UUID
    kit_code: KitCode
    consignment_id: UUID
    consignment_code: ConsignmentCode
    consignment_status: ConsignmentStatus
    site_code: SiteCode | None
    status: KitStatus
    unusable_from: date


@dataclass(frozen=True, slots=True)
class KitAssignment:
    """A kit given to a subject, with the binding that says so under seal (rule C3)."""

    assignment_id: UUID
    kit_id: UUID
    subject_key: SubjectKey
    visit: str | None
    replaces: UUID | None
    assigned_at: datetime
    assigned_by: str
    dispensed_at: datetime | None
    dispensed_by: str | None
    sealed_binding: Sealed
    key_version: int


@dataclass(frozen=True, slots=True)
class Assignment:
    """A kit that was given to a subject, as it stands now."""

    assignment_id: UUID
    subject_key: SubjectKey
    visit: str | None
    replaces: UUID | None
    assigned_at: datetime
    dispensed_at: datetime | None
    sealed_binding: Sealed
    kit: KitRow


_OF_CONSIGNMENT: Final = (_c.study_id == _k.study_id) & (_c.consignment_id == _k.consignment_id)
_KIT_COLUMNS: Final = (
    _k.kit_id,
    _k.kit_code,
    _k.consignment_id,
    _c.consignment_code,
    _c.status.label("consignment_status"),
    _k.site_code,
    _k.status,
    _c.unusable_from,
)
_KIT: Final = (
    select(*_KIT_COLUMNS)
    .join_from(tables.kit, tables.consignment, _OF_CONSIGNMENT)
    .where(_k.study_id == bindparam("study_id"))
)
_FIND_KIT: Final = _KIT.where(_k.kit_code == bindparam("kit_code"))
_SEALED_KIT: Final = (
    select(_k.kit_id, _k.kit_code, _k.consignment_id, _c.consignment_code, _k.map_index, _k.sealed)
    .join_from(tables.kit, tables.consignment, _OF_CONSIGNMENT)
    .where(_k.study_id == bindparam("study_id"), _k.kit_id == bindparam("kit_id"))
)
_LOCK_KIT: Final = (
    select(_k.kit_id)
    .where(_k.study_id == bindparam("study_id"), _k.kit_code == bindparam("kit_code"))
    .with_for_update()
)
_ASSIGNMENT: Final = (
    select(
        _ka.assignment_id,
        _ka.subject_key,
        _ka.visit,
        _ka.replaces,
        _ka.assigned_at,
        _ka.dispensed_at,
        _ka.sealed_binding,
        *_KIT_COLUMNS,
    )
    .join_from(tables.kit_assignment, tables.kit, (_k.study_id == _ka.study_id) & (_k.kit_id == _ka.kit_id))
    .join(tables.consignment, _OF_CONSIGNMENT)
    .where(_ka.study_id == bindparam("study_id"))
)
_OF_SUBJECT: Final = _ASSIGNMENT.where(_ka.subject_key == bindparam("subject_key")).order_by(
    _ka.assigned_at, _ka.assignment_id
)
_OF_KIT: Final = _ASSIGNMENT.where(_ka.kit_id == bindparam("kit_id"))
_ASSIGN: Final = insert(tables.kit_assignment)
_TAKE: Final = (
    update(tables.kit)
    .where(
        _k.study_id == bindparam("of_study"),
        _k.kit_id == bindparam("of_kit"),
        _k.status == KitStatus.IN_STOCK.value,
    )
    .values(status=KitStatus.ASSIGNED.value)
)


def _kit(row: Row[Any]) -> KitRow:
    return KitRow(
        row.kit_id,
        row.kit_code,
        row.consignment_id,
        row.consignment_code,
        ConsignmentStatus(row.consignment_status),
        row.site_code,
        KitStatus(row.status),
        row.unusable_from,
    )


def _assignment(row: Row[Any]) -> Assignment:
    return Assignment(
        row.assignment_id,
        row.subject_key,
        row.visit,
        row.replaces,
        row.assigned_at,
        row.dispensed_at,
        Sealed(row.sealed_binding),
        _kit(row),
    )


def find_kit(tx: Transaction, study_id: UUID, kit_code: KitCode) -> KitRow | None:
    """Return a kit by its code, or None."""
    row = tx.execute(_FIND_KIT, {"study_id": study_id, "kit_code": kit_code}).one_or_none()
    return None if row is None else _kit(row)


def lock_kit(tx: Transaction, study_id: UUID, kit_code: KitCode) -> KitRow | None:
    """Return a kit that nobody else changes until the transaction ends, or None.

    Locked first and read in a later statement: a join under the lock would show what stood before the wait (`custody.md`).
    """
    tx.execute(_LOCK_KIT, {"study_id": study_id, "kit_code": kit_code})
    return find_kit(tx, study_id, kit_code)


def get_sealed_kit(tx: Transaction, study_id: UUID, kit_id: UUID) -> SealedKit:
    """Return a kit that is there as it is stored; raise ``IntegrityBroken`` when it is gone."""
    row = tx.execute(_SEALED_KIT, {"study_id": study_id, "kit_id": kit_id}).one_or_none()
    if row is None:
        raise IntegrityBroken
    return _sealed_kit(row)


def list_assignments(tx: Transaction, study_id: UUID, subject_key: SubjectKey) -> list[Assignment]:
    """Return the kits that were given to a subject, the first one first."""
    rows = tx.execute(_OF_SUBJECT, {"study_id": study_id, "subject_key": subject_key})
    return [_assignment(row) for row in rows]


def find_assignment_by_kit(tx: Transaction, study_id: UUID, kit_id: UUID) -> Assignment | None:
    """Return to whom a kit was given, or None while it belongs to nobody."""
    row = tx.execute(_OF_KIT, {"study_id": study_id, "kit_id": kit_id}).one_or_none()
    return None if row is None else _assignment(row)


def list_first_kit_codes(
    tx: Transaction, study_id: UUID, subjects: Collection[SubjectKey]
) -> Mapping[SubjectKey, KitCode]:
    """Return the kit that came with each subject's allocation: of no visit, and in no other kit's place."""
    rows = tx.execute(
        select(_ka.subject_key, _k.kit_code)
        .join_from(tables.kit_assignment, tables.kit, (_k.study_id == _ka.study_id) & (_k.kit_id == _ka.kit_id))
        .where(
            _ka.study_id == study_id,
            _ka.subject_key.in_(list(subjects)),
            _ka.visit.is_(None),
            _ka.replaces.is_(None),
        )
    )
    return {row.subject_key: row.kit_code for row in rows}


def record_assignment(tx: Transaction, study_id: UUID, assignment: KitAssignment) -> None:
    """Give a kit in stock to a subject.

    Raises ``AlreadyThere`` when somebody else has it: the site's stock is locked before it is drawn, so this is the last line.
    """
    tx.execute(
        _ASSIGN,
        {"study_id": study_id}
        | {name: getattr(assignment, name) for name in KitAssignment.__dataclass_fields__}
        | {"sealed_binding": assignment.sealed_binding.token},
    )
    if tx.execute(_TAKE, {"of_study": study_id, "of_kit": assignment.kit_id}).rowcount != 1:
        message = "the kit is not in stock any more"
        raise AlreadyThere(message)
