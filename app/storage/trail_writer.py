"""The writer of the trail; only `app.services.audited` may import it (import contract 6)."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

from sqlalchemy import bindparam, insert, select, update

from app.domain.merkle import CompletedNode, Frontier
from app.domain.sealed import Sealed
from app.domain.words import SiteCode, SubjectKey
from app.errors import ProofInvalid
from app.storage import tables
from app.storage.database import Transaction


@dataclass(frozen=True, slots=True)
class LogHead:
    """The end of a log: what the next entry continues."""

    study_id: UUID
    segment: int
    origin: str
    frontier: Frontier
    last_at: datetime
    mac: bytes


@dataclass(frozen=True, slots=True)
class NewEntry:
    """One entry as it is stored: the bytes that were hashed, and the columns that find it again."""

    log_index: int
    at: datetime
    action: str
    actor: str
    subject_key: SubjectKey | None
    site_code: SiteCode | None
    body: bytes
    leaf_hash: bytes


_log = tables.log.c
_HEADS: Final = (
    select(_log.segment, _log.origin, _log.frontier, _log.last_at, _log.mac)
    .where(_log.study_id == bindparam("study_id"))
    .order_by(_log.segment.desc())
    .limit(1)
)
_LOCK_HEAD: Final = _HEADS.with_for_update()
_MOVE_HEAD: Final = (
    update(tables.log)
    .where(_log.study_id == bindparam("b_study_id"), _log.segment == bindparam("b_segment"))
    .values(
        size=bindparam("b_size"),
        frontier=bindparam("b_frontier"),
        last_at=bindparam("b_last_at"),
        mac=bindparam("b_mac"),
    )
)
_ADD_ENTRY: Final = insert(tables.trail_entry)
_ADD_NODES: Final = insert(tables.trail_node)
_ADD_RESTRICTED: Final = insert(tables.trail_restricted)


def lock_head(tx: Transaction, study_id: UUID) -> LogHead | None:
    """Return the end of a log, locked until the transaction ends; None when the log was never opened."""
    row = tx.execute(_LOCK_HEAD, {"study_id": study_id}).one_or_none()
    if row is None:
        return None
    try:
        frontier, mac = Frontier.from_bytes(row.frontier), row.mac
    except ProofInvalid:
        # What is no end of a log carries no seal either: the door finds it broken, and code breaks go on in a new segment.
        frontier, mac = Frontier(), b""
    return LogHead(study_id, row.segment, row.origin, frontier, row.last_at, mac)


def open_log(tx: Transaction, head: LogHead) -> None:
    """Begin a log, or a new segment of one, with its sealed empty head."""
    tx.execute(
        insert(tables.log),
        {
            "study_id": head.study_id,
            "segment": head.segment,
            "origin": head.origin,
            "size": head.frontier.size,
            "frontier": head.frontier.to_bytes(),
            "last_at": head.last_at,
            "mac": head.mac,
        },
    )


def append(
    tx: Transaction,
    head: LogHead,
    entry: NewEntry,
    nodes: Sequence[CompletedNode],
    restricted: tuple[Sealed, int] | None,
) -> None:
    """Write an entry, the interior hashes that it completes, its restricted part and the moved head."""
    tx.execute(
        _ADD_ENTRY,
        {
            "study_id": head.study_id,
            "segment": head.segment,
            "log_index": entry.log_index,
            "at": entry.at,
            "action": entry.action,
            "actor": entry.actor,
            "subject_key": entry.subject_key,
            "site_code": entry.site_code,
            "body": entry.body,
            "leaf_hash": entry.leaf_hash,
        },
    )
    if nodes:
        tx.execute(
            _ADD_NODES,
            [
                {
                    "study_id": head.study_id,
                    "segment": head.segment,
                    "level": node.level,
                    "node_index": node.index,
                    "hash": node.hash,
                }
                for node in nodes
            ],
        )
    if restricted is not None:
        sealed, key_version = restricted
        tx.execute(
            _ADD_RESTRICTED,
            {
                "study_id": head.study_id,
                "segment": head.segment,
                "log_index": entry.log_index,
                "sealed": sealed.token,
                "key_version": key_version,
            },
        )
    tx.execute(
        _MOVE_HEAD,
        {
            "b_study_id": head.study_id,
            "b_segment": head.segment,
            "b_size": head.frontier.size,
            "b_frontier": head.frontier.to_bytes(),
            "b_last_at": head.last_at,
            "b_mac": head.mac,
        },
    )
