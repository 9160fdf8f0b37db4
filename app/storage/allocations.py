"""Allocations: which slot a subject has, and what was flagged since. Nothing here is ever deleted or done anew."""

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from sqlalchemy import Row, and_, bindparam, insert, or_, select, union

from app.domain import words
from app.domain.sealed import Sealed
from app.domain.words import KitCode, KitStatus, RandomizationNumber, SiteCode, SubjectId, SubjectKey
from app.errors import IntegrityBroken, Invalid, Missing
from app.storage import kits, tables
from app.storage.database import AlreadyThere, Transaction
from app.storage.kits import KitAssignment

_a = tables.allocation.c
_f = tables.subject_flag.c
_k = tables.kit.c
_ka = tables.kit_assignment.c
_b = tables.code_break.c

ACCIDENT: Final = "accidental_unblinding"
"""The kind of flag that says that a treatment became known by accident (EUB-19)."""
SAFETY: Final = "safety_unblinding"
"""That a treatment was opened for a safety report: kept only where the protocol has it shown (UNB-05)."""
THIRD_PARTY: Final = "third_party_unblinding"
"""That a physician was named who may learn the treatment."""
THIRD_PARTY_OPENING: Final = "third_party_opening"
"""That this physician opened it."""
THIRD_PARTY_WITHHELD: Final = "third_party_withheld"
"""That the answer of such an opening did not leave (rule D4)."""
_CURRENT: Final = (KitStatus.ASSIGNED, KitStatus.DISPENSED)


@dataclass(frozen=True, slots=True)
class Allocation:
    """A subject's allocation as it is stored: a place in a list, and a sealed binding."""

    allocation_id: UUID
    subject_key: SubjectKey
    subject_id: SubjectId
    site_code: SiteCode
    stratum_id: UUID
    ordinal: int
    schedule_id: UUID
    position: int
    randomization_number: RandomizationNumber
    strata_used: Mapping[str, str]
    allocated_by: str
    reported_user: str | None
    allocated_at: datetime
    sealed_binding: Sealed
    key_version: int


@dataclass(frozen=True, slots=True)
class SubjectFlag:
    """Something said of an allocation afterwards: kept beside it, never instead of it (rule C7)."""

    flag_id: UUID
    subject_key: SubjectKey
    kind: str
    detail: Mapping[str, Any]
    flagged_at: datetime
    flagged_by: str


@dataclass(frozen=True, slots=True)
class FlaggedSubject:
    """A flag, and whose it is."""

    flag: SubjectFlag
    subject_id: SubjectId
    site_code: SiteCode


@dataclass(frozen=True, slots=True)
class UsedSlot:
    """Which slot a subject has, and not who."""

    schedule_id: UUID
    stratum_id: UUID
    position: int


_ADD: Final = insert(tables.allocation)
_ADD_WITH_KIT: Final = kits.ASSIGN_AND_TAKE.add_cte(
    _ADD.values({column.name: bindparam(f"a_{column.name}", type_=column.type) for column in _a}).cte("allocated")
)
_ALLOCATION: Final = select(*(_a[name] for name in Allocation.__dataclass_fields__))
_FLAGGED: Final = select(
    *(_f[name] for name in SubjectFlag.__dataclass_fields__), _a.subject_id, _a.site_code
).join_from(tables.subject_flag, tables.allocation, and_(_a.study_id == _f.study_id, _a.subject_key == _f.subject_key))
_FIND: Final = _ALLOCATION.where(_a.study_id == bindparam("study_id"), _a.subject_key == bindparam("subject_key"))


def add_allocation(tx: Transaction, study_id: UUID, allocation: Allocation, first_kit: KitAssignment) -> None:
    """Record an allocation with the kit that comes with it.

    The unique constraints are the last line against a second one, or a used slot. Raises ``AlreadyThere`` when somebody else
    has the kit.
    """
    row = {"study_id": study_id} | {name: getattr(allocation, name) for name in Allocation.__dataclass_fields__}
    row["strata_used"] = json.dumps(allocation.strata_used)
    row["sealed_binding"] = allocation.sealed_binding.token
    if not tx.is_postgresql:
        tx.execute(_ADD, row)
        kits.record_assignment(tx, study_id, first_kit)
        return
    given = kits.assignment_row(study_id, first_kit)
    if tx.execute(_ADD_WITH_KIT, {f"a_{name}": value for name, value in row.items()} | given).rowcount != 1:
        raise AlreadyThere(kits.NOT_IN_STOCK)


def _allocation(row: Row[Any]) -> Allocation:
    if not _is_spelling_of(row.subject_id, row.subject_key):
        message = "The spelling of a subject is another subject's."
        raise IntegrityBroken(message)
    values = {name: getattr(row, name) for name in Allocation.__dataclass_fields__}
    try:
        values["strata_used"] = json.loads(row.strata_used)
    except ValueError:
        raise IntegrityBroken from None
    values["sealed_binding"] = Sealed(row.sealed_binding)
    return Allocation(**values)


def _is_spelling_of(subject_id: str, subject_key: str) -> bool:
    """Return whether a spelling belongs to its row: under another subject's an answer would be taken for that one's."""
    try:
        return words.subject_key(subject_id) == subject_key
    except Invalid:
        return False


def find_allocation(tx: Transaction, study_id: UUID, subject_key: SubjectKey) -> Allocation | None:
    """Return a subject's allocation, or None."""
    row = tx.execute(_FIND, {"study_id": study_id, "subject_key": subject_key}).one_or_none()
    return None if row is None else _allocation(row)


def get_allocation(
    tx: Transaction, study_id: UUID, subject_key: SubjectKey, sites: Collection[SiteCode] | None
) -> Allocation:
    """Return the allocation of a subject at one of the sites (None: any); raise ``Missing``, foreign like unknown (USR-21)."""
    query = _FIND if sites is None else _FIND.where(_a.site_code.in_(list(sites)))
    row = tx.execute(query, {"study_id": study_id, "subject_key": subject_key}).one_or_none()
    if row is None:
        raise Missing
    return _allocation(row)


def list_allocations(
    tx: Transaction,
    study_id: UUID,
    sites: Collection[SiteCode] | None,
    after: tuple[datetime, UUID] | None,
    until: datetime,
    limit: int,
) -> list[Allocation]:
    """Return allocations in the order of time, behind ``after`` and not later than ``until``."""
    query = _ALLOCATION.where(_a.study_id == study_id, _a.allocated_at <= until)
    if sites is not None:
        query = query.where(_a.site_code.in_(list(sites)))
    if after is not None:
        at, allocation_id = after
        query = query.where(or_(_a.allocated_at > at, and_(_a.allocated_at == at, _a.allocation_id > allocation_id)))
    rows = tx.execute(query.order_by(_a.allocated_at, _a.allocation_id).limit(limit))
    return [_allocation(row) for row in rows]


def list_kit_codes(
    tx: Transaction, study_id: UUID, subjects: Collection[SubjectKey]
) -> Mapping[SubjectKey, list[KitCode]]:
    """Return the kits that each subject has now, the first assigned first: assigned or dispensed, not replaced or returned."""
    rows = tx.execute(
        select(_ka.subject_key, _k.kit_code)
        .join_from(tables.kit_assignment, tables.kit, and_(_k.study_id == _ka.study_id, _k.kit_id == _ka.kit_id))
        .where(
            _ka.study_id == study_id,
            _ka.subject_key.in_(list(subjects)),
            _k.status.in_(_CURRENT),
        )
        .order_by(_ka.assigned_at, _ka.assignment_id)
    )
    codes: dict[SubjectKey, list[KitCode]] = {subject: [] for subject in subjects}
    for row in rows:
        codes[row.subject_key].append(row.kit_code)
    return codes


def add_flag(tx: Transaction, study_id: UUID, flag: SubjectFlag) -> None:
    """Record a flag."""
    row = {name: getattr(flag, name) for name in SubjectFlag.__dataclass_fields__}
    tx.execute(insert(tables.subject_flag), {"study_id": study_id} | row | {"detail": json.dumps(flag.detail)})


def list_flags(
    tx: Transaction, study_id: UUID, subjects: Collection[SubjectKey]
) -> Mapping[SubjectKey, list[SubjectFlag]]:
    """Return the flags of each subject, in the order of time."""
    rows = tx.execute(
        select(*(_f[name] for name in SubjectFlag.__dataclass_fields__))
        .where(_f.study_id == study_id, _f.subject_key.in_(list(subjects)))
        .order_by(_f.flagged_at, _f.flag_id)
    )
    flags: dict[SubjectKey, list[SubjectFlag]] = {subject: [] for subject in subjects}
    for row in rows:
        flags[row.subject_key].append(_flag(row))
    return flags


def _flag(row: Row[Any]) -> SubjectFlag:
    return SubjectFlag(row.flag_id, row.subject_key, row.kind, json.loads(row.detail), row.flagged_at, row.flagged_by)


def list_flagged(
    tx: Transaction,
    study_id: UUID,
    kind: str,
    sites: Collection[SiteCode] | None,
    after: tuple[datetime, UUID] | None,
    until: datetime,
    limit: int,
) -> list[FlaggedSubject]:
    """Return the flags of a kind at the sites (None: all) in the order of time, behind ``after`` and not later than ``until``."""
    query = _FLAGGED.where(_f.study_id == study_id, _f.kind == kind, _f.flagged_at <= until)
    if sites is not None:
        query = query.where(_a.site_code.in_(list(sites)))
    if after is not None:
        at, flag_id = after
        query = query.where(or_(_f.flagged_at > at, and_(_f.flagged_at == at, _f.flag_id > flag_id)))
    rows = tx.execute(query.order_by(_f.flagged_at, _f.flag_id).limit(limit))
    return [FlaggedSubject(_flag(row), row.subject_id, row.site_code) for row in rows]


def get_flagged(tx: Transaction, study_id: UUID, kind: str, flag_id: UUID) -> FlaggedSubject:
    """Return one flag of a kind, and whose it is; raise ``Missing``."""
    row = tx.execute(_FLAGGED.where(_f.study_id == study_id, _f.kind == kind, _f.flag_id == flag_id)).one_or_none()
    if row is None:
        raise Missing
    return FlaggedSubject(_flag(row), row.subject_id, row.site_code)


def list_unblinded(tx: Transaction, study_id: UUID, subjects: Collection[SubjectKey]) -> Mapping[SubjectKey, datetime]:
    """Return when the code of each subject was first broken, withheld answers included (rule D4).

    Also by a kit that belonged to nobody when its code was broken: it was being assigned to the subject at that moment.
    """
    by_name = select(_b.subject_key, _b.broken_at).where(_b.study_id == study_id, _b.subject_key.in_(list(subjects)))
    by_kit = (
        select(_ka.subject_key, _b.broken_at)
        .join_from(tables.code_break, tables.kit_assignment, and_(_ka.study_id == _b.study_id, _ka.kit_id == _b.kit_id))
        .where(_b.study_id == study_id, _b.subject_key.is_(None), _ka.subject_key.in_(list(subjects)))
    )
    first: dict[SubjectKey, datetime] = {}
    for query in (by_name, by_kit):
        for row in tx.execute(query):
            first[row.subject_key] = min(row.broken_at, first.get(row.subject_key, row.broken_at))
    return first


def list_revealed_slots(tx: Transaction, study_id: UUID) -> frozenset[UsedSlot]:
    """Return the slots of subjects whose treatment became known: by a code break, to a third party, or by accident."""
    broken = select(_b.subject_key).where(_b.study_id == study_id, _b.subject_key.is_not(None))
    by_kit = (
        select(_ka.subject_key)
        .join_from(tables.code_break, tables.kit_assignment, and_(_ka.study_id == _b.study_id, _ka.kit_id == _b.kit_id))
        .where(_b.study_id == study_id, _b.subject_key.is_(None))
    )
    flagged = select(_f.subject_key).where(_f.study_id == study_id, _f.kind.in_([ACCIDENT, THIRD_PARTY_OPENING]))
    rows = tx.execute(
        select(_a.schedule_id, _a.stratum_id, _a.position).where(
            _a.study_id == study_id, _a.subject_key.in_(union(broken, by_kit, flagged))
        )
    )
    return frozenset(UsedSlot(row.schedule_id, row.stratum_id, row.position) for row in rows)


def list_used_positions(
    tx: Transaction, study_id: UUID, schedule_id: UUID, stratum_id: UUID, positions: Collection[int]
) -> frozenset[int]:
    """Return which of the positions of a stratum have a subject."""
    rows = tx.execute(
        select(_a.position).where(
            _a.study_id == study_id,
            _a.schedule_id == schedule_id,
            _a.stratum_id == stratum_id,
            _a.position.in_(list(positions)),
        )
    )
    return frozenset(row.position for row in rows)
