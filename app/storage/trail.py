"""Reading the logs: heads, entries, the hashes that proofs are made of, restricted parts."""

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from sqlalchemy import Row, and_, or_, select, text, tuple_

from app.domain.merkle import Frontier, Place, root_from_nodes, root_nodes
from app.domain.sealed import Sealed
from app.domain.words import Action, SiteCode, SubjectKey
from app.errors import ProofInvalid
from app.storage import tables
from app.storage.database import Transaction

SERVICE_LOG: Final = tables.SERVICE_LOG
"""Stands where a study's id stands, for the service's own log."""

_l = tables.log.c
_e = tables.trail_entry.c
_n = tables.trail_node.c
_r = tables.trail_restricted.c


@dataclass(frozen=True, slots=True)
class Head:
    """The end of a log as a reader sees it."""

    study_id: UUID
    segment: int
    origin: str
    frontier: Frontier
    last_at: datetime
    mac: bytes


@dataclass(frozen=True, slots=True)
class Lookup:
    """The columns by which an entry is found."""

    at: datetime
    action: str
    actor: str
    subject_key: SubjectKey | None
    site_code: SiteCode | None


@dataclass(frozen=True, slots=True)
class Entry:
    """A stored entry: the bytes that were hashed, their hash, and by what it is found, under the service's own seal."""

    segment: int
    log_index: int
    body: bytes
    leaf_hash: bytes
    lookup: Lookup
    lookup_mac: bytes


@dataclass(frozen=True, slots=True)
class EntryFilter:
    """Which entries a reader asks for, and may see."""

    action: str | None = None
    actor: str | None = None
    subject_key: SubjectKey | None = None
    begin: datetime | None = None
    end: datetime | None = None
    sites: Collection[SiteCode] | None = None
    """Entries of these sites, and those that concern neither a site nor a subject; None for all."""
    actions_left_out: Collection[Action] | None = None
    """With it, neither entries of these actions nor any about a subject."""
    names_no_subject: bool = False
    """With it, no entry about a subject."""


_ENTRY: Final = (
    *(_e.segment, _e.log_index, _e.body, _e.leaf_hash, _e.lookup_mac),
    *(_e.at, _e.action, _e.actor, _e.subject_key, _e.site_code),
)


def _entry(row: Row[Any]) -> Entry:
    lookup = Lookup(row.at, row.action, row.actor, row.subject_key, row.site_code)
    return Entry(row.segment, row.log_index, row.body, row.leaf_hash, lookup, row.lookup_mac)


def _head(row: Row[Any]) -> Head:
    try:
        frontier, mac = Frontier.from_bytes(row.frontier), row.mac
    except ProofInvalid:
        # What is no end of a log carries no seal either. Who looks at the seal finds it broken, and code breaks go on.
        frontier, mac = Frontier(), b""
    if frontier.size != row.size:
        mac = b""
    return Head(row.study_id, row.segment, row.origin, frontier, row.last_at, mac)


_HEADS: Final = select(_l.study_id, _l.segment, _l.origin, _l.size, _l.frontier, _l.last_at, _l.mac)


def list_heads(tx: Transaction) -> list[Head]:
    """Return the end of every log and segment, by origin."""
    return [_head(row) for row in tx.execute(_HEADS.order_by(_l.origin))]


def list_segments(tx: Transaction, study_id: UUID) -> list[Head]:
    """Return the ends of the segments of one log; the last is the one that grows."""
    return [_head(row) for row in tx.execute(_HEADS.where(_l.study_id == study_id).order_by(_l.segment))]


def find_nodes(tx: Transaction, study_id: UUID, segment: int, places: Collection[Place]) -> Mapping[Place, bytes]:
    """Return the stored hashes at the places asked for, one query for leaves and one for interior nodes."""
    leaves = [index for level, index in places if level == 0]
    interior = [(level, index) for level, index in places if level > 0]
    found: dict[Place, bytes] = {}
    if leaves:
        for row in tx.execute(
            select(_e.log_index, _e.leaf_hash).where(
                _e.study_id == study_id, _e.segment == segment, _e.log_index.in_(leaves)
            )
        ):
            found[0, row.log_index] = row.leaf_hash
    if interior:
        for row in tx.execute(
            select(_n.level, _n.node_index, _n.hash).where(
                _n.study_id == study_id,
                _n.segment == segment,
                tuple_(_n.level, _n.node_index).in_(interior),
            )
        ):
            found[row.level, row.node_index] = row.hash
    return found


def find_root(tx: Transaction, origin: str, size: int) -> bytes | None:
    """Return the root that a log had at a size, from its stored hashes; None when it is not that long or does not exist."""
    row = tx.execute(_HEADS.where(_l.origin == origin)).one_or_none()
    if row is None:
        return None
    head = _head(row)
    if head.frontier.size < size:
        return None
    try:
        return get_root(tx, head, size)
    except ProofInvalid:
        return None


def get_root(tx: Transaction, head: Head, size: int) -> bytes:
    """Return the root that a segment had at a size, from its stored hashes; raise ``ProofInvalid`` when one is missing."""
    return root_from_nodes(size, find_nodes(tx, head.study_id, head.segment, root_nodes(size)))


def list_service_segments(tx: Transaction) -> list[Head]:
    """Return the ends of the segments of the service's own log."""
    return list_segments(tx, tables.SERVICE_LOG)


def list_recovery_statements(tx: Transaction) -> list[Entry]:
    """Return what stands under the action of a recovery statement in the service's own log, in order."""
    return list_entries_of_action(tx, tables.SERVICE_LOG, Action.DECLARE_RECOVERY)


def list_entries(
    tx: Transaction,
    study_id: UUID,
    wanted: EntryFilter,
    after: tuple[int, int],
    until: tuple[int, int],
    limit: int,
) -> list[Entry]:
    """Return entries in order, those behind the place ``after`` (segment, index) and before ``until``."""
    query = select(*_ENTRY).where(
        _e.study_id == study_id,
        or_(_e.segment > after[0], and_(_e.segment == after[0], _e.log_index > after[1])),
        or_(_e.segment < until[0], and_(_e.segment == until[0], _e.log_index < until[1])),
    )
    if wanted.action is not None:
        query = query.where(_e.action == wanted.action)
    if wanted.actor is not None:
        query = query.where(_e.actor == wanted.actor)
    if wanted.subject_key is not None:
        query = query.where(_e.subject_key == wanted.subject_key)
    if wanted.begin is not None:
        query = query.where(_e.at >= wanted.begin)
    if wanted.end is not None:
        query = query.where(_e.at < wanted.end)
    if wanted.sites is not None:
        nowhere = and_(_e.site_code.is_(None), _e.subject_key.is_(None))
        query = query.where(or_(nowhere, _e.site_code.in_(list(wanted.sites))))
    if wanted.actions_left_out is not None:
        query = query.where(_e.subject_key.is_(None), _e.action.not_in(list(wanted.actions_left_out)))
    if wanted.names_no_subject:
        query = query.where(_e.subject_key.is_(None))
    rows = tx.execute(query.order_by(_e.segment, _e.log_index).limit(limit))
    return [_entry(row) for row in rows]


def list_unblindings(
    tx: Transaction, study_id: UUID, after: tuple[int, int], until: tuple[int, int], limit: int
) -> list[Entry]:
    """Return the entries of acts that can unblind in order, those behind the place ``after`` and before ``until``."""
    rows = tx.execute(
        select(*_ENTRY)
        .where(
            _e.study_id == study_id,
            text(tables.UNBLINDING),
            or_(_e.segment > after[0], and_(_e.segment == after[0], _e.log_index > after[1])),
            or_(_e.segment < until[0], and_(_e.segment == until[0], _e.log_index < until[1])),
        )
        .order_by(_e.segment, _e.log_index)
        .limit(limit)
    )
    return [_entry(row) for row in rows]


def find_entry(tx: Transaction, study_id: UUID, segment: int, log_index: int) -> Entry | None:
    """Return one entry, or None."""
    row = tx.execute(
        select(*_ENTRY).where(_e.study_id == study_id, _e.segment == segment, _e.log_index == log_index)
    ).one_or_none()
    return None if row is None else _entry(row)


def list_entries_of_action(
    tx: Transaction, study_id: UUID, action: Action, subject_key: SubjectKey | None = None
) -> list[Entry]:
    """Return the entries of one action, in order."""
    query = select(*_ENTRY).where(_e.study_id == study_id, _e.action == action)
    if subject_key is not None:
        query = query.where(_e.subject_key == subject_key)
    rows = tx.execute(query.order_by(_e.segment, _e.log_index))
    return [_entry(row) for row in rows]


def list_receipts(
    tx: Transaction, study_id: UUID, action: Action, subjects: Collection[SubjectKey]
) -> Mapping[SubjectKey, tuple[int, str]]:
    """Return index and leaf hash of the first entry of an action that was done for each subject."""
    rows = tx.execute(
        select(_e.subject_key, _e.log_index, _e.leaf_hash, _e.body)
        .where(_e.study_id == study_id, _e.subject_key.in_(list(subjects)), _e.action == action)
        .order_by(_e.segment.desc(), _e.log_index.desc())
    )
    return {
        row.subject_key: (row.log_index, row.leaf_hash.hex())
        for row in rows
        if json.loads(row.body)["outcome"] == "done"
    }


@dataclass(frozen=True, slots=True)
class Try:
    """That somebody asked for something, and what came of it."""

    at: datetime
    actor: str
    outcome: str


def list_tries(
    tx: Transaction,
    study_id: UUID,
    action: Action,
    actors: Collection[str],
    subjects: Collection[SubjectKey],
    begin: datetime,
    end: datetime,
) -> list[Try]:
    """Return who asked for an action between two moments, both included: about one of some subjects, or before one was named."""
    whose = or_(_e.subject_key.is_(None), _e.subject_key.in_(list(subjects)))
    rows = tx.execute(
        select(_e.at, _e.actor, _e.body)
        .where(_e.study_id == study_id, _e.action == action, whose, _e.actor.in_(list(actors)))
        .where(_e.at >= begin, _e.at <= end)
        .order_by(_e.segment, _e.log_index)
    )
    return [Try(row.at, row.actor, json.loads(row.body)["outcome"]) for row in rows]


def find_restricted(tx: Transaction, study_id: UUID, segment: int, log_index: int) -> Sealed | None:
    """Return the sealed restricted part of an entry, or None when it has none or it was erased."""
    token = tx.execute(
        select(_r.sealed).where(_r.study_id == study_id, _r.segment == segment, _r.log_index == log_index)
    ).scalar_one_or_none()
    return None if token is None else Sealed(token)


def list_lines(tx: Transaction, study_id: UUID, segment: int, begin: int, end: int) -> list[Entry]:
    """Return the entries of a segment from ``begin`` until before ``end``, in order.

    A list, not a cursor: with SQLite's rollback journal a reader that is still open blocks every COMMIT (`custody.md`).
    """
    rows = tx.execute(
        select(*_ENTRY)
        .where(
            _e.study_id == study_id,
            _e.segment == segment,
            _e.log_index >= begin,
            _e.log_index < end,
        )
        .order_by(_e.log_index)
    )
    return [_entry(row) for row in rows]
