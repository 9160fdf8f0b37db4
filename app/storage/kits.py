"""Consignments and kits, and which kit was given to whom. No query looks at an arm: it could not (rule B3)."""

import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from itertools import islice
from typing import Any, Final, NamedTuple, TypeVar
from uuid import UUID

from sqlalchemy import (
    ColumnElement,
    Integer,
    Row,
    Text,
    any_,
    bindparam,
    case,
    cast,
    func,
    insert,
    literal_column,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import ARRAY

from app.domain.kits import TO_DO_IN_RECALL
from app.domain.sealed import Sealed
from app.domain.words import ConsignmentCode, ConsignmentStatus, KitCode, KitStatus, SiteCode, SubjectId, SubjectKey
from app.errors import AlreadyExists, IntegrityBroken, Missing
from app.storage import tables
from app.storage.database import AlreadyThere, Transaction

T = TypeVar("T")

_a = tables.allocation.c
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


class Assignable(NamedTuple):
    """A consignment that may be drawn from, and how many kits its kit map has, used ones included."""

    consignment_id: UUID
    consignment_code: ConsignmentCode
    kit_count: int


_LOCK_STOCK: Final = (
    select(_ss.site_code)
    .where(_ss.study_id == bindparam("study_id"), _ss.site_code == bindparam("site_code"))
    .with_for_update()
)
_ASSIGNABLE: Final = (
    select(_c.consignment_id, _c.consignment_code, _c.kit_count)
    .where(
        _c.study_id == bindparam("study_id"),
        _c.site_code == bindparam("site_code"),
        _c.status == ConsignmentStatus.ASSIGNABLE,
        _c.unusable_from > bindparam("today"),
    )
    .order_by(_c.unusable_from, _c.consignment_id)
)
_IN_STOCK: Final = select(_k.kit_id, _k.kit_code, _k.map_index, _k.sealed).where(
    _k.study_id == bindparam("study_id"),
    _k.consignment_id == bindparam("consignment_id"),
    # Written out, so that the partial index of kits in stock serves a prepared statement too.
    _k.status == literal_column(f"'{KitStatus.IN_STOCK.value}'"),
)
_AT_PLACES: Final = {
    # As one word: as a list, each of some hundred places would be put into form twice, in half of the statement's time.
    True: _IN_STOCK.where(_k.map_index == any_(cast(bindparam("places", type_=Text()), ARRAY(Integer())))),
    False: _IN_STOCK.where(
        _k.map_index.in_(select(func.json_each(bindparam("places", type_=Text())).table_valued("value").c.value))
    ),
}


def lock_stock(tx: Transaction, study_id: UUID, site_code: SiteCode | None) -> None:
    """Keep everybody else from changing the stock of a site until the transaction ends; a kit at no site has no stock to keep."""
    tx.execute(_LOCK_STOCK, {"study_id": study_id, "site_code": site_code})


def list_assignable_consignments(tx: Transaction, study_id: UUID, site_code: SiteCode, today: date) -> list[Assignable]:
    """Return the site's assignable consignments that are usable today, the soonest-expiring first."""
    rows = tx.execute(_ASSIGNABLE, {"study_id": study_id, "site_code": site_code, "today": today})
    return [Assignable(row.consignment_id, row.consignment_code, row.kit_count) for row in rows]


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


def list_in_stock(tx: Transaction, study_id: UUID, consignment: Assignable) -> list[SealedKit]:
    """Return every kit in stock of a consignment, in no order that is fit to choose by (rule B5).

    Rows are not locked: a lock on candidates could be read by others (finding 5).
    """
    rows = tx.execute(_IN_STOCK, {"study_id": study_id, "consignment_id": consignment.consignment_id})
    return [_sealed_kit(row, consignment) for row in rows]


def list_at_places(tx: Transaction, study_id: UUID, consignment: Assignable, places: Sequence[int]) -> list[SealedKit]:
    """Return those kits at places of a consignment's kit map that are in stock, in the order of the places.

    By index: what is read does not grow with the stock, and rows are not locked.
    """
    rows = tx.execute(
        _AT_PLACES[tx.is_postgresql],
        {
            "study_id": study_id,
            "consignment_id": consignment.consignment_id,
            "places": f"{{{','.join(map(str, places))}}}" if tx.is_postgresql else json.dumps(list(places)),
        },
    )
    found = {row.map_index: _sealed_kit(row, consignment) for row in rows}
    return [found[place] for place in places if place in found]


def _sealed_kit(row: Row[Any], of: Row[Any] | Assignable) -> SealedKit:
    return SealedKit(
        row.kit_id, row.kit_code, of.consignment_id, of.consignment_code, row.map_index, Sealed(row.sealed)
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
    is_recalled: bool
    """Whether its consignment was called back: then nothing of it is used any more."""


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
    _c.recall_id,
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
_GIVEN: Final = {column.name: bindparam(f"k_{column.name}", type_=column.type) for column in _ka}
_ASSIGN: Final = insert(tables.kit_assignment).values(_GIVEN)
_TAKE: Final = (
    update(tables.kit)
    .where(
        _k.study_id == bindparam("k_study_id"),
        _k.kit_id == bindparam("k_kit_id"),
        _k.status == KitStatus.IN_STOCK.value,
    )
    .values(status=KitStatus.ASSIGNED.value)
)
ASSIGN_AND_TAKE: Final = insert(tables.kit_assignment).from_select(
    list(_GIVEN), select(*_GIVEN.values()).select_from(_TAKE.returning(_k.kit_id).cte("taken"))
)
"""Gives a kit to a subject where it is still in stock, in one statement; PostgreSQL only."""
NOT_IN_STOCK: Final = "the kit is not in stock any more"


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
        row.recall_id is not None,
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
    return _sealed_kit(row, row)


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
    row = assignment_row(study_id, assignment)
    if tx.is_postgresql:
        is_taken = tx.execute(ASSIGN_AND_TAKE, row).rowcount == 1
    else:
        tx.execute(_ASSIGN, row)
        is_taken = tx.execute(_TAKE, row).rowcount == 1
    if not is_taken:
        raise AlreadyThere(NOT_IN_STOCK)


def assignment_row(study_id: UUID, assignment: KitAssignment) -> dict[str, Any]:
    """Return the parameters of ``ASSIGN_AND_TAKE``."""
    row = {f"k_{name}": getattr(assignment, name) for name in KitAssignment.__dataclass_fields__}
    return row | {"k_study_id": study_id, "k_sealed_binding": assignment.sealed_binding.token}


# -- consignments ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Consignment:
    """A consignment as far as it is in clear: one date stands for all its kits (rule B11)."""

    consignment_id: UUID
    consignment_code: ConsignmentCode
    site_code: SiteCode | None
    status: ConsignmentStatus
    kit_count: int
    unusable_from: date
    recall_id: UUID | None


@dataclass(frozen=True, slots=True)
class NewConsignment:
    """A consignment that was just made, with what was committed to."""

    consignment_id: UUID
    consignment_code: ConsignmentCode
    origin: str
    kit_count: int
    unusable_from: date
    commitment: str
    commitment_note: str
    map_root: bytes
    created_at: datetime
    created_by: str


class NewKit(NamedTuple):
    """A kit to be stored; a consignment may hold 200,000, so it is as light as can be."""

    kit_id: UUID
    kit_code: KitCode
    map_index: int
    sealed: str


_CODES_AT_ONCE: Final = 500
_KITS_AT_ONCE: Final = 4096
_COPY: Final = (
    "COPY kit (study_id, kit_id, kit_code, consignment_id, map_index, status, sealed, key_version) FROM STDIN"
)
_CONSIGNMENT: Final = select(*(_c[name] for name in Consignment.__dataclass_fields__)).where(
    _c.study_id == bindparam("study_id"), _c.consignment_code == bindparam("consignment_code")
)


def find_consignment(tx: Transaction, study_id: UUID, consignment_code: ConsignmentCode) -> Consignment | None:
    """Return a consignment by its code, or None."""
    row = tx.execute(_CONSIGNMENT, {"study_id": study_id, "consignment_code": consignment_code}).one_or_none()
    return None if row is None else _consignment(row)


def lock_consignment(tx: Transaction, study_id: UUID, consignment_code: ConsignmentCode) -> Consignment:
    """Return a consignment that nobody else changes until the transaction ends; raise ``Missing``."""
    wanted = {"study_id": study_id, "consignment_code": consignment_code}
    row = tx.execute(_CONSIGNMENT.with_for_update(), wanted).one_or_none()
    if row is None:
        raise Missing
    return _consignment(row)


def _consignment(row: Row[Any]) -> Consignment:
    values = {name: getattr(row, name) for name in Consignment.__dataclass_fields__}
    return Consignment(**(values | {"status": ConsignmentStatus(row.status)}))


def list_consignments(tx: Transaction, study_id: UUID) -> list[Consignment]:
    """Return every consignment of a study in the order of their codes."""
    query = select(*(_c[name] for name in Consignment.__dataclass_fields__)).where(_c.study_id == study_id)
    return [_consignment(row) for row in tx.execute(query.order_by(_c.consignment_code))]


def record_recall(
    tx: Transaction, study_id: UUID, consignment_codes: Sequence[ConsignmentCode], recall_id: UUID, at: datetime
) -> None:
    """Call consignments back that are locked, each as a whole and for ever; what was not withdrawn before is so from now on."""
    tx.execute(
        update(tables.consignment)
        .where(_c.study_id == study_id, _c.consignment_code.in_(consignment_codes))
        .values(
            recall_id=recall_id,
            status=ConsignmentStatus.WITHDRAWN.value,
            withdrawn_at=func.coalesce(_c.withdrawn_at, at),
        )
    )


def list_known_codes(tx: Transaction, study_id: UUID, kit_codes: Iterable[KitCode]) -> set[KitCode]:
    """Return those of the codes that a kit of the study has already."""
    known: set[KitCode] = set()
    for some in _batches(kit_codes, _CODES_AT_ONCE):
        known.update(tx.execute(select(_k.kit_code).where(_k.study_id == study_id, _k.kit_code.in_(some))).scalars())
    return known


def add_consignment(
    tx: Transaction, study_id: UUID, consignment: NewConsignment, kits: Iterable[NewKit], key_version: int
) -> None:
    """Record a consignment with its kits, in the order given: a shuffled one, so that it tells nothing (rule B3).

    Raises ``AlreadyThere`` for a consignment or kit code that a rival has taken meanwhile.
    """
    row = {name: getattr(consignment, name) for name in NewConsignment.__dataclass_fields__}
    tx.execute(insert(tables.consignment), row | {"study_id": study_id, "status": ConsignmentStatus.REGISTERED.value})
    of_all = {
        "study_id": study_id,
        "consignment_id": consignment.consignment_id,
        "status": KitStatus.REGISTERED.value,
        "key_version": key_version,
    }
    if not tx.is_postgresql:
        for some in _batches(kits, _KITS_AT_ONCE):
            tx.execute(insert(tables.kit), [kit._asdict() | of_all for kit in some])
        return
    after = f"\t{KitStatus.REGISTERED.value}\t"
    with tx.driver_connection.cursor() as cursor, cursor.copy(_COPY) as copy:
        for some in _batches(kits, _KITS_AT_ONCE):
            # Nothing needs escaping: ids, codes and tokens are made of letters, digits, '.', '-' and '_'.
            copy.write(
                "".join(
                    f"{study_id}\t{kit_id}\t{code}\t{consignment.consignment_id}\t{index}{after}{token}\t{key_version}\n"
                    for kit_id, code, index, token in some
                )
            )


def record_dispatch(tx: Transaction, study_id: UUID, consignment_id: UUID, site_code: SiteCode, at: datetime) -> None:
    """Send a registered consignment to a site; what was put aside before stays aside, and belongs to the site too."""
    tx.execute(
        update(tables.consignment)
        .where(_c.study_id == study_id, _c.consignment_id == consignment_id)
        .values(site_code=site_code, status=ConsignmentStatus.DISPATCHED.value, dispatched_at=at)
    )
    tx.execute(
        update(tables.kit)
        .where(_k.study_id == study_id, _k.consignment_id == consignment_id)
        .values(
            site_code=site_code,
            status=case(
                (_k.status == KitStatus.REGISTERED.value, KitStatus.DISPATCHED.value),
                else_=_k.status,
            ),
        )
    )


def record_assignable(tx: Transaction, study_id: UUID, consignment_id: UUID, at: datetime) -> None:
    """Let a consignment be drawn from, as a whole (rule B6)."""
    tx.execute(
        update(tables.consignment)
        .where(_c.study_id == study_id, _c.consignment_id == consignment_id)
        .values(status=ConsignmentStatus.ASSIGNABLE.value, assignable_at=at)
    )


def list_statuses(
    tx: Transaction, study_id: UUID, consignment_id: UUID, kit_codes: Iterable[KitCode]
) -> dict[KitCode, KitStatus]:
    """Return the status of those of the codes that are in the consignment."""
    statuses: dict[KitCode, KitStatus] = {}
    for some in _batches(kit_codes, _CODES_AT_ONCE):
        rows = tx.execute(
            select(_k.kit_code, _k.status).where(
                _k.study_id == study_id, _k.consignment_id == consignment_id, _k.kit_code.in_(some)
            )
        )
        statuses.update({row.kit_code: KitStatus(row.status) for row in rows})
    return statuses


def record_statuses(tx: Transaction, study_id: UUID, kit_codes: Iterable[KitCode], status: KitStatus) -> None:
    """Set the status of kits whose site's stock is locked."""
    for some in _batches(kit_codes, _CODES_AT_ONCE):
        tx.execute(update(tables.kit).where(_k.study_id == study_id, _k.kit_code.in_(some)).values(status=status.value))


def count_in_consignment(tx: Transaction, study_id: UUID, consignment_id: UUID) -> dict[KitStatus, int]:
    """Return how many kits of a consignment have each status."""
    return _counts(tx, (_k.study_id == study_id) & (_k.consignment_id == consignment_id))


def count_at_site(tx: Transaction, study_id: UUID, site_code: SiteCode) -> dict[KitStatus, int]:
    """Return how many kits of a site have each status, all consignments pooled."""
    return _counts(tx, (_k.study_id == study_id) & (_k.site_code == site_code))


def _counts(tx: Transaction, where: ColumnElement[bool]) -> dict[KitStatus, int]:
    rows = tx.execute(select(_k.status, func.count().label("kits")).where(where).group_by(_k.status))
    found = {row.status: row.kits for row in rows}
    return {status: found[status] for status in KitStatus if status in found}


def list_sealed_kits(tx: Transaction, study_id: UUID, consignment_id: UUID) -> Iterator[SealedKit]:
    """Yield every kit of a consignment in the order of its kit map, read in pages.

    A page is read to its end before its first kit is given: an open cursor would block SQLite's COMMIT.
    """
    last = -1
    while True:
        page = tx.execute(
            _SEALED_KITS, {"study_id": study_id, "consignment_id": consignment_id, "map_index": last}
        ).all()
        yield from map(_sealed_kit, page, page)
        if len(page) < _KITS_AT_ONCE:
            return
        last = page[-1].map_index


_SEALED_KITS: Final = (
    select(_k.kit_id, _k.kit_code, _k.consignment_id, _c.consignment_code, _k.map_index, _k.sealed)
    .join_from(tables.kit, tables.consignment, _OF_CONSIGNMENT)
    .where(
        _k.study_id == bindparam("study_id"),
        _k.consignment_id == bindparam("consignment_id"),
        _k.map_index > bindparam("map_index"),
    )
    .order_by(_k.map_index)
    .limit(_KITS_AT_ONCE)
)


def _batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    remaining = iter(items)
    while some := list(islice(remaining, size)):
        yield some


# -- what a site sees --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Waiting:
    """A kit that was given to a subject and not handed out yet."""

    subject_id: SubjectId
    kit_code: KitCode
    assigned_at: datetime
    visit: str | None


def list_at_site(
    tx: Transaction, study_id: UUID, site_code: SiteCode, after: KitCode | None, until: datetime, limit: int
) -> list[KitRow]:
    """Return kits of a site in the order of their codes, behind ``after``, of consignments sent until a time."""
    query = _KIT.where(_k.site_code == site_code, _c.dispatched_at <= until)
    if after is not None:
        query = query.where(_k.kit_code > after)
    rows = tx.execute(query.order_by(_k.kit_code).limit(limit), {"study_id": study_id})
    return [_kit(row) for row in rows]


def list_waiting(
    tx: Transaction,
    study_id: UUID,
    site_code: SiteCode,
    after: tuple[datetime, KitCode] | None,
    until: datetime,
    limit: int,
) -> list[Waiting]:
    """Return kits assigned and not yet dispensed, the oldest first, behind ``after``, assigned until a time."""
    query = (
        select(_a.subject_id, _k.kit_code, _ka.assigned_at, _ka.visit)
        .join_from(tables.kit, tables.kit_assignment, (_ka.study_id == _k.study_id) & (_ka.kit_id == _k.kit_id))
        .join(tables.allocation, (_a.study_id == _ka.study_id) & (_a.subject_key == _ka.subject_key))
        .where(
            _k.study_id == study_id,
            _k.site_code == site_code,
            # Written out for its partial index, as above.
            _k.status == literal_column(f"'{KitStatus.ASSIGNED.value}'"),
            _ka.assigned_at <= until,
        )
    )
    if after is not None:
        at, kit_code = after
        query = query.where((_ka.assigned_at > at) | ((_ka.assigned_at == at) & (_k.kit_code > kit_code)))
    rows = tx.execute(query.order_by(_ka.assigned_at, _k.kit_code).limit(limit))
    return [Waiting(row.subject_id, row.kit_code, row.assigned_at, row.visit) for row in rows]


class Recalled(NamedTuple):
    """A kit of a recalled consignment, and whose it is."""

    kit_code: KitCode
    consignment_code: ConsignmentCode
    status: KitStatus
    subject_id: SubjectId | None


def list_recalled(
    tx: Transaction, study_id: UUID, site_code: SiteCode, after: KitCode | None, limit: int
) -> list[Recalled]:
    """Return the kits of a site that are called back and neither back nor put aside, in the order of their codes."""
    query = (
        select(_k.kit_code, _c.consignment_code, _k.status, _a.subject_id)
        .join_from(tables.kit, tables.consignment, _OF_CONSIGNMENT)
        .outerjoin(tables.kit_assignment, (_ka.study_id == _k.study_id) & (_ka.kit_id == _k.kit_id))
        .outerjoin(tables.allocation, (_a.study_id == _ka.study_id) & (_a.subject_key == _ka.subject_key))
        .where(
            _k.study_id == study_id,
            _k.site_code == site_code,
            _c.recall_id.is_not(None),
            _k.status.in_([status.value for status in TO_DO_IN_RECALL]),
        )
    )
    if after is not None:
        query = query.where(_k.kit_code > after)
    rows = tx.execute(query.order_by(_k.kit_code).limit(limit))
    return [Recalled(row.kit_code, row.consignment_code, KitStatus(row.status), row.subject_id) for row in rows]


# -- single steps ------------------------------------------------------------------------------------------------------


def record_status(tx: Transaction, study_id: UUID, kit_id: UUID, status: KitStatus) -> None:
    """Set the status of a kit that is locked."""
    tx.execute(_SET_STATUS, {"of_study": study_id, "of_kit": kit_id, "to_status": status.value})


def record_dispensation(tx: Transaction, study_id: UUID, assignment: Assignment, at: datetime, by: str) -> None:
    """Hand an assigned kit, which is locked, to its subject."""
    record_status(tx, study_id, assignment.kit.kit_id, KitStatus.DISPENSED)
    tx.execute(
        update(tables.kit_assignment)
        .where(_ka.study_id == study_id, _ka.assignment_id == assignment.assignment_id)
        .values(dispensed_at=at, dispensed_by=by)
    )


def add_replacement_release(tx: Transaction, study_id: UUID, kit_id: UUID, at: datetime, by: str) -> None:
    """Let a kit be replaced although its subject had a replacement just now (rule B9); raise ``AlreadyExists``."""
    try:
        tx.execute(
            insert(tables.replacement_release),
            {"study_id": study_id, "kit_id": kit_id, "released_at": at, "released_by": by},
        )
    except AlreadyThere:
        message = "The replacement of this kit was released already."
        raise AlreadyExists(message) from None


def has_replacement_release(tx: Transaction, study_id: UUID, kit_id: UUID) -> bool:
    """Return whether the replacement of a kit was released; it is replaced once, so the release serves once."""
    release = tables.replacement_release.c
    query = select(release.kit_id).where(release.study_id == study_id, release.kit_id == kit_id)
    return tx.execute(query).first() is not None


def was_broken(tx: Transaction, study_id: UUID, kit_id: UUID) -> bool:
    """Return whether the code was broken by this kit, before anybody was given it (rule D2)."""
    broken = tables.code_break.c
    query = select(broken.code_break_id).where(
        broken.study_id == study_id, broken.kit_id == kit_id, broken.subject_key.is_(None)
    )
    return tx.execute(query.limit(1)).first() is not None


_SET_STATUS: Final = (
    update(tables.kit)
    .where(_k.study_id == bindparam("of_study"), _k.kit_id == bindparam("of_kit"))
    .values(status=bindparam("to_status"))
)
