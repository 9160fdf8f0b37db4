"""Walking over everything that lies under a study's key, so that a newer version of the key can seal it (rule F4).

Rows are locked as they are read, and those that somebody else holds at that moment are left for the next walk: so a rotation
waits for nobody, and can be part of no deadlock. The order is that of the primary key, which says nothing of an arm.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final
from uuid import UUID

from sqlalchemy import FromClause, Select, Table, and_, bindparam, func, literal, select, tuple_, update

from app.storage import tables
from app.storage.database import Transaction

_slot, _kit, _schedule, _stratum = tables.slot.c, tables.kit.c, tables.schedule.c, tables.stratum.c
_allocation, _assignment, _consignment = tables.allocation.c, tables.kit_assignment.c, tables.consignment.c
_entry, _part = tables.trail_entry.c, tables.trail_restricted.c


@dataclass(frozen=True, slots=True)
class _Walk:
    """How the rows of one table are read: its sealed columns, what else names their place, and where that stands."""

    table: Table
    sealed: tuple[str, ...]
    beside: tuple[Any, ...] = ()
    joined: FromClause | None = None

    @property
    def keys(self) -> list[str]:
        """Return the primary key beside the study."""
        return [column.name for column in self.table.primary_key if column.name != "study_id"]

    def rows(self, after: Sequence[object] | None) -> Select[Any]:
        """Return the query for the next rows of a study that lie under an older version of its key."""
        columns = self.table.c
        keys = [columns[name] for name in self.keys]
        sealed = [columns[name] for name in self.sealed]
        query = (
            select(*keys, *sealed, *self.beside)
            .select_from(self.table if self.joined is None else self.joined)
            .where(columns.study_id == bindparam("study_id"), columns.key_version < bindparam("version"))
            .order_by(*keys)
            .limit(bindparam("limit"))
            .with_for_update(of=self.table, skip_locked=True, key_share=True)
        )
        if after is None:
            return query
        place = [literal(value, column.type) for value, column in zip(after, keys, strict=True)]
        return query.where(tuple_(*keys) > tuple_(*place))


_WALKS: Final[Mapping[str, _Walk]] = {
    walk.table.name: walk
    for walk in (
        _Walk(
            tables.schedule,
            ("sealed_specification", "sealed_seed", "sealed_quality_report"),
            (_schedule.commitment,),
        ),
        _Walk(
            tables.slot,
            ("sealed",),
            (_schedule.list_id, _schedule.segment_number, _schedule.commitment_note, _stratum.stratum_code),
            tables.slot.join(
                tables.schedule,
                and_(_schedule.study_id == _slot.study_id, _schedule.schedule_id == _slot.schedule_id),
            ).join(tables.stratum, and_(_stratum.study_id == _slot.study_id, _stratum.stratum_id == _slot.stratum_id)),
        ),
        _Walk(
            tables.kit,
            ("sealed",),
            (_kit.kit_code, _kit.consignment_id, _kit.map_index, _consignment.consignment_code),
            tables.kit.join(
                tables.consignment,
                and_(_consignment.study_id == _kit.study_id, _consignment.consignment_id == _kit.consignment_id),
            ),
        ),
        _Walk(
            tables.allocation,
            ("sealed_binding",),
            (
                *(_allocation.subject_key, _allocation.schedule_id, _allocation.stratum_id),
                *(_allocation.position, _allocation.randomization_number, _assignment.kit_id),
            ),
            # The kit of the allocation itself: of no visit, and in no other kit's place.
            tables.allocation.join(
                tables.kit_assignment,
                and_(
                    _assignment.study_id == _allocation.study_id,
                    _assignment.subject_key == _allocation.subject_key,
                    _assignment.visit.is_(None),
                    _assignment.replaces.is_(None),
                ),
            ),
        ),
        _Walk(
            tables.kit_assignment,
            ("sealed_binding",),
            (_assignment.subject_key, _assignment.kit_id, _kit.kit_code),
            tables.kit_assignment.join(
                tables.kit, and_(_kit.study_id == _assignment.study_id, _kit.kit_id == _assignment.kit_id)
            ),
        ),
        _Walk(tables.safety_unblinding, ("sealed_subject",)),
        _Walk(tables.dual_control_request, ("sealed_statement",)),
        _Walk(
            tables.trail_restricted,
            ("sealed",),
            (_entry.body,),
            tables.trail_restricted.join(
                tables.trail_entry,
                and_(
                    _entry.study_id == _part.study_id,
                    _entry.segment == _part.segment,
                    _entry.log_index == _part.log_index,
                ),
            ),
        ),
    )
}

TABLES: Final = tuple(_WALKS)
"""Every table with a value under a study's key, in the order in which they are walked."""


@dataclass(frozen=True, slots=True)
class OlderRow:
    """A row that lies under an older version of its study's key."""

    place: tuple[Any, ...]
    """Its primary key beside the study: where a walk stands after it."""
    tokens: tuple[str, ...] = field(repr=False)
    """What its sealed columns hold, in the order of the table."""
    named: Mapping[str, Any]
    """Its key, and what else names its place."""


def count_older(tx: Transaction, study_id: UUID, version: int) -> dict[str, int]:
    """Return how many rows of each table lie under a version of the study's key below ``version``."""
    counted = {}
    for table, walk in _WALKS.items():
        columns = walk.table.c
        query = select(func.count()).where(columns.study_id == study_id, columns.key_version < version)
        counted[table] = int(tx.execute(query).scalar_one())
    return counted


def lock_older(  # what a page is asked by
    tx: Transaction, table: str, study_id: UUID, version: int, after: Sequence[object] | None, limit: int
) -> list[OlderRow]:
    """Return the next rows that lie under an older version, locked; those that somebody else holds are left out."""
    walk = _WALKS[table]
    found = tx.execute(walk.rows(after), {"study_id": study_id, "version": version, "limit": limit})
    rows = [dict(zip(found.keys(), row, strict=True)) for row in found.all()]
    return [
        OlderRow(tuple(row[name] for name in walk.keys), tuple(row[name] for name in walk.sealed), row) for row in rows
    ]


def record_resealed(
    tx: Transaction, table: str, study_id: UUID, version: int, rows: Sequence[tuple[OlderRow, Sequence[str]]]
) -> None:
    """Replace box and key version of rows that were locked in this transaction, and nothing else of them."""
    walk = _WALKS[table]
    columns = walk.table.c
    changing = (
        update(walk.table)
        .where(columns.study_id == study_id, *(columns[name] == bindparam(f"b_{name}") for name in walk.keys))
        .values({"key_version": version} | {name: bindparam(f"b_{name}") for name in walk.sealed})
    )
    tx.execute(
        changing,
        [
            {f"b_{name}": value for name, value in zip(walk.keys, row.place, strict=True)}
            | {f"b_{name}": token for name, token in zip(walk.sealed, tokens, strict=True)}
            for row, tokens in rows
        ],
    )
