"""What was committed to: signed notes, roots, and the tiles of hashes under them."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from sqlalchemy import insert, select

from app.domain.merkle import Tile
from app.domain.sealed import Sealed
from app.errors import IntegrityBroken
from app.storage import tables
from app.storage.database import Transaction

_s = tables.schedule.c
_ss = tables.schedule_stratum.c
_c = tables.consignment.c
_t = tables.commitment_tile.c
_ROWS_AT_ONCE: Final = 256


@dataclass(frozen=True, slots=True)
class CommittedStratum:
    """One stratum's part of a commitment."""

    stratum_id: UUID
    tree_id: UUID
    slot_count: int
    root: bytes


@dataclass(frozen=True, slots=True)
class ListCommitment:
    """What the commitment of a list is made of."""

    note: str | None
    sealed_specification: Sealed
    sealed_seed: Sealed
    strata: tuple[CommittedStratum, ...]


@dataclass(frozen=True, slots=True)
class KitCommitment:
    """The commitment of a consignment's kit map."""

    consignment_code: str
    note: str
    root: bytes
    kit_count: int


def get_list_commitment(tx: Transaction, study_id: UUID, schedule_id: UUID) -> ListCommitment:
    """Return what the commitment of a list that is there is made of, strata in order."""
    row = tx.execute(
        select(_s.commitment_note, _s.sealed_specification, _s.sealed_seed).where(
            _s.study_id == study_id, _s.schedule_id == schedule_id
        )
    ).one_or_none()
    if row is None:
        raise IntegrityBroken
    strata = tx.execute(
        select(_ss.stratum_id, _ss.tree_id, _ss.slot_count, _ss.root)
        .where(_ss.study_id == study_id, _ss.schedule_id == schedule_id)
        .order_by(_ss.ordinal)
    )
    return ListCommitment(
        row.commitment_note,
        Sealed(row.sealed_specification),
        Sealed(row.sealed_seed),
        tuple(CommittedStratum(row.stratum_id, row.tree_id, row.slot_count, row.root) for row in strata),
    )


def get_kit_commitment(tx: Transaction, study_id: UUID, consignment_id: UUID) -> KitCommitment:
    """Return the commitment of a consignment that is there."""
    row = tx.execute(
        select(_c.consignment_code, _c.commitment_note, _c.map_root, _c.kit_count).where(
            _c.study_id == study_id, _c.consignment_id == consignment_id
        )
    ).one_or_none()
    if row is None:
        raise IntegrityBroken
    return KitCommitment(row.consignment_code, row.commitment_note, row.map_root, row.kit_count)


def get_tile(tx: Transaction, study_id: UUID, tree_id: UUID, level: int, tile_index: int) -> bytes:
    """Return the hashes of a tile as stored, not yet verified; raise ``IntegrityBroken`` when it is gone."""
    hashes = tx.execute(
        select(_t.hashes).where(
            _t.study_id == study_id, _t.tree_id == tree_id, _t.level == level, _t.tile_index == tile_index
        )
    ).scalar_one_or_none()
    if hashes is None:
        raise IntegrityBroken
    return bytes(hashes)


def add_tiles(tx: Transaction, study_id: UUID, tree_id: UUID, tiles: Iterable[Tile]) -> None:
    """Record the tiles of a tree; holds no more than a batch."""
    rows: list[dict[str, object]] = []
    for tile in tiles:
        rows.append(
            {
                "study_id": study_id,
                "tree_id": tree_id,
                "level": tile.level,
                "tile_index": tile.index,
                "hashes": tile.hashes,
            }
        )
        if len(rows) == _ROWS_AT_ONCE:
            tx.execute(insert(tables.commitment_tile), rows)
            rows = []
    if rows:
        tx.execute(insert(tables.commitment_tile), rows)
