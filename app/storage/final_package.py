"""What the final package is made of, read in short pages: an open cursor would keep SQLite from committing (`custody.md`)."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any, Final
from uuid import UUID

from sqlalchemy import Row, and_, select

from app.domain.sealed import Sealed
from app.domain.words import Action, ConsignmentCode, KitCode, RandomizationNumber, SiteCode, SubjectKey
from app.storage import tables
from app.storage.database import Transaction
from app.storage.kits import KitAssignment

_a = tables.allocation.c
_c = tables.consignment.c
_k = tables.kit.c
_ka = tables.kit_assignment.c
_e = tables.trail_entry.c

_PAGE: Final = 500
"""Subjects at once: each is a parameter of the queries about kits and entries."""


@dataclass(frozen=True, slots=True)
class Consignment:
    """A consignment with its commitment."""

    consignment_id: UUID
    consignment_code: ConsignmentCode
    unusable_from: date
    commitment: str
    commitment_note: str


@dataclass(frozen=True, slots=True)
class AllocatedSubject:
    """An allocation as far as its evidence needs it."""

    allocation_id: UUID
    subject_key: SubjectKey
    site_code: SiteCode
    schedule_id: UUID
    stratum_id: UUID
    position: int
    randomization_number: RandomizationNumber
    strata_used: str
    """JSON as it is stored."""
    allocated_by: str
    reported_user: str | None
    allocated_at: datetime
    sealed_binding: Sealed


@dataclass(frozen=True, slots=True)
class GivenKit:
    """A kit assignment together with the code of its kit."""

    kit_code: KitCode
    assignment: KitAssignment


@dataclass(frozen=True, slots=True)
class PlacedEntry:
    """Where an entry stands, and the bytes that were hashed."""

    segment: int
    log_index: int
    body: bytes


def list_consignments(tx: Transaction, study_id: UUID) -> list[Consignment]:
    """Return every consignment of a study by its code."""
    rows = tx.execute(
        select(*(_c[name] for name in Consignment.__dataclass_fields__))
        .where(_c.study_id == study_id)
        .order_by(_c.consignment_code)
    )
    return [Consignment(**{name: getattr(row, name) for name in Consignment.__dataclass_fields__}) for row in rows]


def walk_allocations(tx: Transaction, study_id: UUID) -> Iterator[Sequence[AllocatedSubject]]:
    """Give every allocation, a page at a time, in the order of their random ids: its key serves each page."""
    query = select(*(_a[name] for name in AllocatedSubject.__dataclass_fields__)).where(_a.study_id == study_id)
    following = query
    while True:
        rows = tx.execute(following.order_by(_a.allocation_id).limit(_PAGE)).all()
        yield [_subject(row) for row in rows]
        if len(rows) < _PAGE:
            return
        following = query.where(_a.allocation_id > rows[-1].allocation_id)


def _subject(row: Row[Any]) -> AllocatedSubject:
    values = {name: getattr(row, name) for name in AllocatedSubject.__dataclass_fields__}
    return AllocatedSubject(**(values | {"sealed_binding": Sealed(values["sealed_binding"])}))


def list_given_kits(
    tx: Transaction, study_id: UUID, subjects: Collection[SubjectKey]
) -> Mapping[SubjectKey, list[GivenKit]]:
    """Return the kits that were ever given to each subject, the first one first."""
    rows = tx.execute(
        select(_k.kit_code, *(_ka[name] for name in KitAssignment.__dataclass_fields__))
        .join_from(tables.kit_assignment, tables.kit, and_(_k.study_id == _ka.study_id, _k.kit_id == _ka.kit_id))
        .where(_ka.study_id == study_id, _ka.subject_key.in_(list(subjects)))
        .order_by(_ka.assigned_at, _ka.assignment_id)
    )
    given: dict[SubjectKey, list[GivenKit]] = {subject: [] for subject in subjects}
    for row in rows:
        values = {name: getattr(row, name) for name in KitAssignment.__dataclass_fields__}
        assignment = KitAssignment(**(values | {"sealed_binding": Sealed(values["sealed_binding"])}))
        given[assignment.subject_key].append(GivenKit(KitCode(row.kit_code), assignment))
    return given


def list_allocation_entries(
    tx: Transaction, study_id: UUID, subjects: Collection[SubjectKey]
) -> Mapping[SubjectKey, list[PlacedEntry]]:
    """Return every entry about allocating each subject, refusals and replays included."""
    rows = tx.execute(
        select(_e.subject_key, _e.segment, _e.log_index, _e.body)
        .where(_e.study_id == study_id, _e.subject_key.in_(list(subjects)), _e.action == Action.ALLOCATE)
        .order_by(_e.segment, _e.log_index)
    )
    entries: dict[SubjectKey, list[PlacedEntry]] = {subject: [] for subject in subjects}
    for row in rows:
        entries[row.subject_key].append(PlacedEntry(row.segment, row.log_index, bytes(row.body)))
    return entries
