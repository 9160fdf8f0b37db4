"""Allocation lists: what is known of each, their strata and slots."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from typing import Any, Final, NamedTuple
from uuid import UUID

from sqlalchemy import Integer, Row, Text, bindparam, func, insert, select, update

from app.domain.sealed import Sealed
from app.domain.words import RandomizationNumber, ScheduleStatus, StratumCode
from app.errors import IllegalTransition, IntegrityBroken, ListUnavailable, Missing
from app.storage import tables
from app.storage.database import Transaction

_s = tables.schedule.c
_ss = tables.schedule_stratum.c
_st = tables.stratum.c
_sl = tables.slot.c

_SLOTS_AT_ONCE: Final = 8192
_LINES_AT_ONCE: Final = 1024
_STRATA_AT_ONCE: Final = 500
_COPY: Final = (
    "COPY slot (study_id, schedule_id, stratum_id, position, randomization_number, sealed, key_version) FROM STDIN"
)

# -- at use ------------------------------------------------------------------------------------------------------------


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


_CLAIM: Final = (
    update(tables.stratum)
    .where(_st.study_id == bindparam("of_study"), _st.stratum_code == bindparam("of_code"))
    .values(allocated=_st.allocated + 1)
    .returning(_st.stratum_id, _st.allocated)
)
_SLOT: Final = (
    select(
        _s.schedule_id,
        _s.list_id,
        _s.segment_number,
        _st.stratum_id,
        _st.stratum_code,
        _sl.position,
        _sl.randomization_number,
        _sl.sealed,
    )
    .select_from(tables.schedule_stratum)
    .join(tables.schedule, (_s.study_id == _ss.study_id) & (_s.schedule_id == _ss.schedule_id))
    .join(tables.stratum, (_st.study_id == _ss.study_id) & (_st.stratum_id == _ss.stratum_id))
    .join(
        tables.slot,
        (_sl.study_id == _ss.study_id) & (_sl.schedule_id == _ss.schedule_id) & (_sl.stratum_id == _ss.stratum_id),
    )
    .where(_ss.study_id == bindparam("study_id"), _ss.stratum_id == bindparam("stratum_id"))
)
_ORDINAL: Final = bindparam("ordinal", type_=Integer())
_FIND_SLOT: Final = _SLOT.where(
    _s.status == ScheduleStatus.ACTIVE,
    _ss.first_ordinal <= _ORDINAL,
    _ss.first_ordinal + _ss.slot_count > _ORDINAL,
    _sl.position == _ORDINAL - _ss.first_ordinal,
)
_claimed = _CLAIM.cte("claimed").c
# Materialized: by itself PostgreSQL may begin with the slots, and join each of the stratum's before it takes the one.
_place = (
    select(
        _s.schedule_id,
        _s.list_id,
        _s.segment_number,
        _claimed.stratum_id,
        _claimed.allocated,
        (_claimed.allocated - 1 - _ss.first_ordinal).label("position"),
    )
    .select_from(tables.schedule_stratum)
    .join(tables.schedule, (_s.study_id == _ss.study_id) & (_s.schedule_id == _ss.schedule_id))
    .where(
        _ss.study_id == bindparam("of_study"),
        _ss.stratum_id == _claimed.stratum_id,
        _s.status == ScheduleStatus.ACTIVE,
        _ss.first_ordinal < _claimed.allocated,
        _ss.first_ordinal + _ss.slot_count >= _claimed.allocated,
    )
    .cte("place")
    .prefix_with("MATERIALIZED")
    .c
)
_CLAIM_SLOT: Final = select(
    _place.schedule_id,
    _place.list_id,
    _place.segment_number,
    _place.stratum_id,
    bindparam("of_code", type_=Text()).label("stratum_code"),
    _sl.position,
    _sl.randomization_number,
    _sl.sealed,
    (_place.allocated - 1).label("ordinal"),
).where(
    _sl.study_id == bindparam("of_study"),
    _sl.schedule_id == _place.schedule_id,
    _sl.stratum_id == _place.stratum_id,
    _sl.position == _place.position,
)
_GET_SLOT: Final = _SLOT.where(_ss.schedule_id == bindparam("schedule_id"), _sl.position == bindparam("position"))


_PAGE_OF_SLOTS: Final = (
    select(_sl.position, _sl.randomization_number, _sl.sealed)
    .where(
        _sl.study_id == bindparam("study_id"),
        _sl.schedule_id == bindparam("schedule_id"),
        _sl.stratum_id == bindparam("stratum_id"),
        _sl.position > bindparam("position"),
    )
    .order_by(_sl.position)
    .limit(_SLOTS_AT_ONCE)
)


def _slot(row: Row[Any]) -> SealedSlot:
    return SealedSlot(
        row.schedule_id,
        row.list_id,
        row.segment_number,
        row.stratum_id,
        StratumCode(row.stratum_code),
        row.position,
        RandomizationNumber(row.randomization_number),
        Sealed(row.sealed),
    )


def claim_ordinal(tx: Transaction, study_id: UUID, stratum_code: StratumCode) -> tuple[UUID, int]:
    """Return the stratum and the ordinal of its next subject, counted from 0, and lock the stratum's row (rule C5).

    Raises ``ListUnavailable`` for a stratum that no list was ever made for.
    """
    row = tx.execute(_CLAIM, {"of_study": study_id, "of_code": stratum_code}).one_or_none()
    if row is None:
        raise ListUnavailable
    return row.stratum_id, row.allocated - 1


def find_slot(tx: Transaction, study_id: UUID, stratum_id: UUID, ordinal: int) -> SealedSlot | None:
    """Return the slot that the active segments hold for a claimed ordinal, or None past the end of all of them.

    Danger: call it in a later statement than ``claim_ordinal``; a joined read under the lock's own statement sees what stood
    before the wait (`custody.md`, "The one door").
    """
    row = tx.execute(_FIND_SLOT, {"study_id": study_id, "stratum_id": stratum_id, "ordinal": ordinal}).one_or_none()
    return None if row is None else _slot(row)


def claim_slot(tx: Transaction, study_id: UUID, stratum_code: StratumCode) -> tuple[int, SealedSlot]:
    """Return the ordinal of a stratum's next subject and its slot, and lock the stratum's row (rule C5).

    Raises ``ListUnavailable`` when no active list has a slot for it. Danger: the study must be held already, so that no list
    becomes active meanwhile; then all that is read beside the claim stands still, and one statement does for both
    (`custody.md`: read outside the locking CTE).
    """
    if tx.is_postgresql:
        row = tx.execute(_CLAIM_SLOT, {"of_study": study_id, "of_code": stratum_code}).one_or_none()
        if row is None:
            raise ListUnavailable
        return row.ordinal, _slot(row)
    stratum_id, ordinal = claim_ordinal(tx, study_id, stratum_code)
    slot = find_slot(tx, study_id, stratum_id, ordinal)
    if slot is None:
        raise ListUnavailable
    return ordinal, slot


def get_slot(tx: Transaction, study_id: UUID, schedule_id: UUID, stratum_id: UUID, position: int) -> SealedSlot:
    """Return a slot that an allocation names; raise ``IntegrityBroken`` when it is gone."""
    slot = find_slot_at(tx, study_id, schedule_id, stratum_id, position)
    if slot is None:
        raise IntegrityBroken
    return slot


def find_slot_at(
    tx: Transaction, study_id: UUID, schedule_id: UUID, stratum_id: UUID, position: int
) -> SealedSlot | None:
    """Return the slot at a position of a stratum, or None past its ends."""
    row = tx.execute(
        _GET_SLOT,
        {"study_id": study_id, "schedule_id": schedule_id, "stratum_id": stratum_id, "position": position},
    ).one_or_none()
    return None if row is None else _slot(row)


def has_status(tx: Transaction, study_id: UUID, status: ScheduleStatus) -> bool:
    """Return whether any list of the study has this status."""
    return (
        tx.execute(select(_s.schedule_id).where(_s.study_id == study_id, _s.status == status).limit(1)).first()
        is not None
    )


# -- what is known of a list -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ScheduleHead:
    """One segment of an allocation list as far as it is in clear.

    Danger: ``slot_count`` tells blinded people where a block may end (rule B7); it stays out of what they read.
    """

    schedule_id: UUID
    list_id: UUID
    segment_number: int
    status: ScheduleStatus
    origin: str
    algorithm: str
    slot_count: int
    commitment: str
    generated_at: datetime
    generated_by: str
    decided_at: datetime | None
    decided_by: str | None
    activated_at: datetime | None
    activated_by: str | None


@dataclass(frozen=True, slots=True)
class NewSchedule:
    """A segment just made, with what is sealed of it."""

    head: ScheduleHead
    sealed_specification: Sealed
    sealed_seed: Sealed
    sealed_quality_report: Sealed
    key_version: int


@dataclass(frozen=True, slots=True)
class NewStratum:
    """The slots that a segment holds for one stratum, and the root of the tree over them."""

    stratum_id: UUID
    tree_id: UUID
    slot_count: int
    root: bytes


class NewSlot(NamedTuple):
    """A slot to be stored; a list may hold millions, so it is as light as can be."""

    stratum_id: UUID
    position: int
    randomization_number: RandomizationNumber
    sealed: str


_HEAD: Final = select(*(_s[name] for name in ScheduleHead.__dataclass_fields__))


def _head(row: Row[Any]) -> ScheduleHead:
    values = {name: getattr(row, name) for name in ScheduleHead.__dataclass_fields__}
    return ScheduleHead(**(values | {"status": ScheduleStatus(values["status"])}))


def get_schedule(tx: Transaction, study_id: UUID, schedule_id: UUID) -> ScheduleHead:
    """Return a list of the study; raise ``Missing``."""
    row = tx.execute(_HEAD.where(_s.study_id == study_id, _s.schedule_id == schedule_id)).one_or_none()
    if row is None:
        raise Missing
    return _head(row)


def list_schedules(
    tx: Transaction,
    study_id: UUID,
    until: datetime,
    after: tuple[datetime, UUID] | None = None,
    limit: int | None = None,
) -> list[ScheduleHead]:
    """Return the lists made up to a time, oldest first; ``after`` is time and id of the last one already known."""
    statement = _HEAD.where(_s.study_id == study_id, _s.generated_at <= until)
    if after is not None:
        at, schedule_id = after
        statement = statement.where((_s.generated_at > at) | ((_s.generated_at == at) & (_s.schedule_id > schedule_id)))
    return [_head(row) for row in tx.execute(statement.order_by(_s.generated_at, _s.schedule_id).limit(limit))]


def list_active(tx: Transaction, study_id: UUID) -> frozenset[UUID]:
    """Return the ``list_id`` of what is active; never more than one list with its segments."""
    rows = tx.execute(select(_s.list_id).where(_s.study_id == study_id, _s.status == ScheduleStatus.ACTIVE))
    return frozenset(rows.scalars())


def count_slots(tx: Transaction, study_id: UUID) -> int:
    """Return how many slots all lists of the study hold together, those on record included."""
    statement = select(func.coalesce(func.sum(_s.slot_count), 0)).where(_s.study_id == study_id)
    count: int = tx.execute(statement).scalar_one()
    return count


def next_segment_number(tx: Transaction, study_id: UUID, list_id: UUID) -> int:
    """Return the number of the list's next segment; a rival who takes the same is refused by the unique constraint."""
    statement = select(func.max(_s.segment_number) + 1).where(_s.study_id == study_id, _s.list_id == list_id)
    number: int = tx.execute(statement).scalar_one()
    return number


def get_sealed_quality_report(tx: Transaction, study_id: UUID, schedule_id: UUID) -> Sealed:
    """Return the quality report of a list; raise ``Missing``."""
    statement = select(_s.sealed_quality_report).where(_s.study_id == study_id, _s.schedule_id == schedule_id)
    token = tx.execute(statement).scalar_one_or_none()
    if token is None:
        raise Missing
    return Sealed(token)


# -- a new list --------------------------------------------------------------------------------------------------------


def list_strata(tx: Transaction, study_id: UUID) -> dict[StratumCode, UUID]:
    """Return the strata of the study by their codes."""
    rows = tx.execute(select(_st.stratum_code, _st.stratum_id).where(_st.study_id == study_id))
    return {StratumCode(row.stratum_code): row.stratum_id for row in rows}


def add_strata(tx: Transaction, study_id: UUID, strata: Sequence[tuple[StratumCode, UUID]]) -> None:
    """Record strata that no list named before; nobody is allocated in them yet."""
    for start in range(0, len(strata), _STRATA_AT_ONCE):
        tx.execute(
            insert(tables.stratum),
            [
                {"study_id": study_id, "stratum_id": stratum_id, "stratum_code": code, "allocated": 0}
                for code, stratum_id in strata[start : start + _STRATA_AT_ONCE]
            ],
        )


def list_randomization_numbers(tx: Transaction, study_id: UUID) -> Iterator[RandomizationNumber]:
    """Yield every randomization number of the study, read in pages: an open cursor would block SQLite's COMMIT."""
    last = RandomizationNumber("")
    while True:
        statement = select(_sl.randomization_number).where(_sl.study_id == study_id, _sl.randomization_number > last)
        page = tx.execute(statement.order_by(_sl.randomization_number).limit(_SLOTS_AT_ONCE)).scalars().all()
        yield from map(RandomizationNumber, page)
        if len(page) < _SLOTS_AT_ONCE:
            return
        last = RandomizationNumber(page[-1])


def add_slots(tx: Transaction, study_id: UUID, schedule_id: UUID, key_version: int, slots: Iterator[NewSlot]) -> int:
    """Record slots as they are made and return how many they were; holds no more than a batch.

    On PostgreSQL by COPY, so that the server stores while the next slots are being sealed. Danger: what makes the slots
    cannot use this transaction meanwhile.
    """
    count = 0
    if not tx.is_postgresql:
        while batch := list(islice(slots, _SLOTS_AT_ONCE)):
            of_list = {"study_id": study_id, "schedule_id": schedule_id, "key_version": key_version}
            tx.execute(insert(tables.slot), [slot._asdict() | of_list for slot in batch])
            count += len(batch)
        return count
    before, after = f"{study_id}\t{schedule_id}\t", f"\t{key_version}\n"
    with tx.driver_connection.cursor() as cursor, cursor.copy(_COPY) as copy:
        while batch := list(islice(slots, _LINES_AT_ONCE)):
            # Nothing needs escaping: ids, numbers and tokens are made of letters, digits, '.', '-' and '_'.
            lines = [f"{before}{stratum}\t{place}\t{number}\t{token}{after}" for stratum, place, number, token in batch]
            copy.write("".join(lines))
            count += len(batch)
    return count


def add_schedule(tx: Transaction, study_id: UUID, schedule: NewSchedule, strata: Sequence[NewStratum]) -> None:
    """Record a list whose slots are stored, with its strata in the order of the specification."""
    head = schedule.head
    row = {name: getattr(head, name) for name in ScheduleHead.__dataclass_fields__}
    row |= {
        "study_id": study_id,
        "sealed_specification": schedule.sealed_specification.token,
        "sealed_seed": schedule.sealed_seed.token,
        "sealed_quality_report": schedule.sealed_quality_report.token,
        "key_version": schedule.key_version,
    }
    tx.execute(insert(tables.schedule), row)
    rows = [
        {
            "study_id": study_id,
            "schedule_id": head.schedule_id,
            "stratum_id": stratum.stratum_id,
            "ordinal": ordinal,
            "tree_id": stratum.tree_id,
            "slot_count": stratum.slot_count,
            "root": stratum.root,
        }
        for ordinal, stratum in enumerate(strata)
    ]
    for start in range(0, len(rows), _STRATA_AT_ONCE):
        tx.execute(insert(tables.schedule_stratum), rows[start : start + _STRATA_AT_ONCE])


def list_slots(
    tx: Transaction, study_id: UUID, schedule_id: UUID, stratum_id: UUID
) -> Iterator[tuple[int, RandomizationNumber, str]]:
    """Yield position, randomization number and sealed token of a stratum's slots, in order, read in pages.

    Whatever rows there are, gaps and strangers among them: the caller compares. A page is read to its end before the first
    slot of it is given, because an open cursor would block SQLite's COMMIT.
    """
    position = -1
    while True:
        place = {"study_id": study_id, "schedule_id": schedule_id, "stratum_id": stratum_id, "position": position}
        page = tx.execute(_PAGE_OF_SLOTS, place).all()
        for row in page:
            yield row.position, RandomizationNumber(row.randomization_number), row.sealed
        if len(page) < _SLOTS_AT_ONCE:
            return
        position = page[-1].position


# -- its life ----------------------------------------------------------------------------------------------------------


def record_approval(tx: Transaction, study_id: UUID, schedule_id: UUID, note: str, at: datetime, by: str) -> None:
    """Approve a generated list under its signed commitment; raise ``IllegalTransition`` when it was decided meanwhile."""
    decided = {"commitment_note": note, "decided_at": at, "decided_by": by}
    _step(tx, study_id, schedule_id, ScheduleStatus.GENERATED, ScheduleStatus.APPROVED, decided)


def record_rejection(tx: Transaction, study_id: UUID, schedule_id: UUID, at: datetime, by: str) -> None:
    """Reject a generated list, which stays on record; raise ``IllegalTransition`` when it was decided meanwhile."""
    decided = {"decided_at": at, "decided_by": by}
    _step(tx, study_id, schedule_id, ScheduleStatus.GENERATED, ScheduleStatus.REJECTED, decided)


def record_activation(tx: Transaction, study_id: UUID, schedule_id: UUID, at: datetime, by: str) -> None:
    """Activate an approved list: in each stratum its slots follow those of the segments that are active already.

    Danger: the study's row must be locked, or two segments could take the same ordinals. Raises ``IllegalTransition`` when it
    was activated meanwhile.
    """
    earlier = tables.schedule_stratum.alias("earlier")
    its_schedule = tables.schedule.alias("its_schedule")
    slots_before = (
        select(func.coalesce(func.sum(earlier.c.slot_count), 0))
        .join(
            its_schedule,
            (its_schedule.c.study_id == earlier.c.study_id) & (its_schedule.c.schedule_id == earlier.c.schedule_id),
        )
        .where(
            earlier.c.study_id == _ss.study_id,
            earlier.c.stratum_id == _ss.stratum_id,
            its_schedule.c.status == ScheduleStatus.ACTIVE,
        )
        .scalar_subquery()
    )
    tx.execute(
        update(tables.schedule_stratum)
        .where(_ss.study_id == study_id, _ss.schedule_id == schedule_id)
        .values(first_ordinal=slots_before)
    )
    activated = {"activated_at": at, "activated_by": by}
    _step(tx, study_id, schedule_id, ScheduleStatus.APPROVED, ScheduleStatus.ACTIVE, activated)


def record_closing(tx: Transaction, study_id: UUID) -> list[UUID]:
    """Close every active list of a study and return which they were, in order; no slot of them is given out any more.

    Danger: the study's row must be locked, so that nobody allocates from one or activates one meanwhile.
    """
    closed = tx.execute(
        update(tables.schedule)
        .where(_s.study_id == study_id, _s.status == ScheduleStatus.ACTIVE)
        .values(status=ScheduleStatus.CLOSED)
        .returning(_s.schedule_id)
    )
    return sorted(closed.scalars())


def _step(
    tx: Transaction,
    study_id: UUID,
    schedule_id: UUID,
    present: ScheduleStatus,
    wanted: ScheduleStatus,
    values: Mapping[str, object],
) -> None:
    found = tx.execute(
        update(tables.schedule)
        .where(_s.study_id == study_id, _s.schedule_id == schedule_id, _s.status == present)
        .values(status=wanted, **values)
    )
    if found.rowcount != 1:
        message = f"The list is not {present}."
        raise IllegalTransition(message)
