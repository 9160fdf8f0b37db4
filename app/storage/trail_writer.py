"""The writer of the trail; only `app.services.audited` may import it (import contract 6)."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

from sqlalchemy import BigInteger, Integer, LargeBinary, Text, Update, bindparam, func, insert, select, update
from sqlalchemy.dialects.postgresql import ARRAY

from app.domain.merkle import CompletedNode, Frontier
from app.domain.sealed import Sealed
from app.domain.words import SiteCode, SubjectKey
from app.errors import ProofInvalid
from app.storage import answers, tables
from app.storage.answers import NewAnswer
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
    key_version: int
    """Of the study's key, at the least; 1 for the service's own log."""


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
    lookup_mac: bytes


_log = tables.log.c
_e = tables.trail_entry.c
_HEADS: Final = (
    select(_log.segment, _log.origin, _log.size, _log.frontier, _log.last_at, _log.mac, _log.key_version)
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


def _append_at_once() -> Update:
    """Return the statement that does on PostgreSQL all that an append does; what there may be several of comes in arrays."""
    entry = _ADD_ENTRY.values({column.name: bindparam(f"e_{column.name}", type_=column.type) for column in _e})
    node = (
        func.unnest(
            bindparam("levels", type_=ARRAY(Integer())),
            bindparam("node_indexes", type_=ARRAY(BigInteger())),
            bindparam("hashes", type_=ARRAY(LargeBinary())),
        )
        .table_valued("level", "node_index", "hash")
        .render_derived(name="node")
    )
    restricted = (
        func.unnest(bindparam("restricted", type_=ARRAY(Text())), bindparam("key_versions", type_=ARRAY(Integer())))
        .table_valued("sealed", "key_version")
        .render_derived(name="restricted")
    )
    study_id, segment, log_index = (
        bindparam(f"e_{name}", type_=_e[name].type) for name in ("study_id", "segment", "log_index")
    )
    nodes = _ADD_NODES.from_select(
        ["study_id", "segment", "level", "node_index", "hash"],
        select(study_id, segment, node.c.level, node.c.node_index, node.c.hash),
    )
    parts = _ADD_RESTRICTED.from_select(
        ["study_id", "segment", "log_index", "sealed", "key_version"],
        select(study_id, segment, log_index, restricted.c.sealed, restricted.c.key_version),
    )
    return _MOVE_HEAD.add_cte(
        entry.cte("entry"), nodes.cte("nodes"), parts.cte("parts"), answers.STORE_ARRAYS.cte("answers")
    )


_APPEND: Final = _append_at_once()


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
    if frontier.size != row.size:
        mac = b""
    return LogHead(study_id, row.segment, row.origin, frontier, row.last_at, mac, row.key_version)


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
            "key_version": head.key_version,
        },
    )


def append(
    tx: Transaction,
    head: LogHead,
    entry: NewEntry,
    nodes: Sequence[CompletedNode],
    restricted: tuple[Sealed, int] | None,
    kept: Sequence[NewAnswer] = (),
) -> None:
    """Write an entry, the interior hashes that it completes, its restricted part and the moved head; and what was answered.

    On PostgreSQL it is one statement: everybody in the study waits behind the head, and each round trip is waited for by all.
    """
    row = {
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
        "lookup_mac": entry.lookup_mac,
    }
    moved = {
        "b_study_id": head.study_id,
        "b_segment": head.segment,
        "b_size": head.frontier.size,
        "b_frontier": head.frontier.to_bytes(),
        "b_last_at": head.last_at,
        "b_mac": head.mac,
    }
    if tx.is_postgresql:
        beside = {
            "levels": [node.level for node in nodes],
            "node_indexes": [node.index for node in nodes],
            "hashes": [node.hash for node in nodes],
            "restricted": [] if restricted is None else [restricted[0].token],
            "key_versions": [] if restricted is None else [restricted[1]],
        }
        as_entry = {f"e_{name}": value for name, value in row.items()}
        tx.execute(_APPEND, as_entry | moved | beside | answers.arrays(kept))
        return
    tx.execute(_ADD_ENTRY, row)
    of_log = {"study_id": head.study_id, "segment": head.segment}
    if nodes:
        tx.execute(
            _ADD_NODES,
            [of_log | {"level": node.level, "node_index": node.index, "hash": node.hash} for node in nodes],
        )
    if restricted is not None:
        sealed, key_version = restricted
        of_entry = of_log | {"log_index": entry.log_index}
        tx.execute(_ADD_RESTRICTED, of_entry | {"sealed": sealed.token, "key_version": key_version})
    tx.execute(_MOVE_HEAD, moved)
    answers.store(tx, kept)
