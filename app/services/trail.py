"""Read the trail, prove it, export it, and recover from a suspected rollback (rule section E).

What is answered comes from the bytes that were hashed; the columns beside them only find an entry again.
"""

import hmac
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any, Final, TypeVar, cast
from uuid import UUID

from app.domain.merkle import (
    check_consistency,
    check_inclusion,
    consistency_nodes,
    consistency_proof,
    inclusion_nodes,
    inclusion_proof,
    leaf_hash,
    restricted_hash,
)
from app.domain.sealed import Column, SealContext
from app.domain.signatures import RecordKind
from app.domain.words import Action, Role, StudyCode, SubjectKey, subject_key
from app.errors import DatabaseUnavailable, IllegalTransition, IntegrityBroken, Invalid, Missing, RollbackSuspected
from app.services import exports, pages
from app.services.audited import Act, Receipt, audited
from app.services.checkpoints import LogState, body_of, check_head, check_lookup, log_name, origin_of
from app.services.context import RequestContext
from app.services.exports import ExportPart
from app.services.signatures import sign
from app.storage import studies, trail
from app.storage.database import CommitUncertain, Transaction, TryAgain
from app.storage.studies import StudyHead
from app.storage.trail import Entry, EntryFilter, Head

T = TypeVar("T")

_WITHOUT_SUBJECTS: Final = frozenset({Role.STATISTICIAN, Role.LIST_APPROVER, Role.SUPPLY_MANAGER})
"""Who reads nothing about subjects before the final unblinding (rule B10)."""

_ABOUT_SUBJECTS: Final = frozenset(
    {
        Action.ALLOCATE,
        Action.READ_ALLOCATION,
        Action.LIST_ALLOCATIONS,
        Action.MARK_ERROR,
        Action.CORRECT_STRATA,
        Action.LINK_DUPLICATE,
        Action.BREAK_CODE,
        Action.ADD_NARRATIVE,
        Action.ASSESS_BREAK,
        Action.READ_CODE_BREAKS,
        Action.RECORD_ACCIDENT,
        Action.READ_ACCIDENTS,
        Action.REQUEST_THIRD_PARTY,
        Action.OPEN_FOR_THIRD_PARTY,
        Action.READ_THIRD_PARTY,
        Action.ENTER_OPENING,
        Action.READ_ENVELOPES,
        Action.UNBLIND_FOR_SAFETY,
        Action.READ_SAFETY_UNBLINDINGS,
        Action.READ_UNBLINDING_LOG,
        Action.READ_WORKLIST,
        Action.READ_CALL_BACKS,
        Action.READ_SUBJECT_KITS,
        Action.ASSIGN_KIT,
        Action.DISPENSE_KIT,
        Action.REPLACE_KIT,
        Action.READ_PREPARATION,
        Action.READ_DISCLOSURES,
    }
)
"""What is about subjects even where an entry names none: a refused request, a kit in nobody's hands."""

_OF_KITS: Final = frozenset(
    {
        Action.QUARANTINE_KIT,
        Action.RETURN_KIT,
        Action.REPORT_LOSS,
        Action.REPORT_DAMAGE,
        Action.RELEASE_KIT,
        Action.DESTROY_KIT,
    }
)
"""What is said of kits, mostly of those that subjects had: the safety officer may know why."""

_OF_STUDY: Final = frozenset({Action.SET_STUDY_STATUS, Action.REQUEST_INTERIM, Action.REQUEST_FINAL_UNBLINDING})
"""Why a study changed its status, and that its database is locked: text that may name subjects, so the safety officer's too."""

_OF_LISTS: Final = frozenset(
    {
        Action.GENERATE_SCHEDULE,
        Action.EXTEND_SCHEDULE,
        Action.IMPORT_SCHEDULE,
        Action.READ_QUALITY_REPORT,
        Action.APPROVE_SCHEDULE,
        Action.REJECT_SCHEDULE,
        Action.ACTIVATE_SCHEDULE,
        Action.CREATE_CONSIGNMENT,
        Action.START_RECALL,
        Action.DISPATCH_CONSIGNMENT,
        Action.RECEIVE_CONSIGNMENT,
    }
)
"""Whose restricted parts are the statistician's: specifications, quantities, reasons of lists (API, "Trail")."""

_SALT: Final = 32
_TRIES: Final = 8
_PAUSE: Final = 0.05


@dataclass(frozen=True, slots=True)
class TrailQuery:
    """Which entries a reader asks for; ``subject`` in any spelling, times aware, the end not included."""

    action: str | None = None
    actor: str | None = None
    subject: str | None = None
    begin: datetime | None = None
    end: datetime | None = None


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """The public part of an entry. ``index`` counts within a segment; there is a second one only after a suspicion."""

    index: int
    segment: int
    at: str
    actor: str
    role: str | None
    client: str | None
    action: str
    outcome: str
    target: Mapping[str, Any] | None
    before: Mapping[str, Any] | None
    after: Mapping[str, Any] | None
    request_id: str
    leaf_hash: str


@dataclass(frozen=True, slots=True)
class TrailPage:
    """A page of the trail."""

    items: Sequence[AuditEntry]
    next_cursor: str | None


@dataclass(frozen=True, slots=True)
class RestrictedPart:
    """The opened restricted part of one entry."""

    index: int
    segment: int
    part: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class InclusionProof:
    """That an entry stands in the log of this size; hashes as lower-case hexadecimal."""

    index: int
    size: int
    leaf_hash: str
    root: str
    proof: Sequence[str]
    checkpoint: str


@dataclass(frozen=True, slots=True)
class ConsistencyProof:
    """That the log of one size begins with all of an earlier one; hashes as lower-case hexadecimal."""

    from_size: int
    to_size: int
    from_root: str
    to_root: str
    proof: Sequence[str]
    checkpoint: str


@dataclass(frozen=True, slots=True)
class RecoveryStatement:
    """Which logs were given up, and at which size they were known outside the database."""

    declared_at: datetime
    logs: Sequence[Mapping[str, Any]]
    receipt: Receipt | None = None


# -- reading


def read_trail(ctx: RequestContext, study: StudyCode, wanted: TrailQuery, limit: int, cursor: str | None) -> TrailPage:
    """Return a page of the study's log in order: what the caller's role may see of it, as it stood at the first page."""

    def work(act: Act) -> TrailPage:
        return _read(act, act.study.study_id, wanted, limit, cursor)

    return audited(ctx, Action.READ_TRAIL, work, study=study)


def read_service_trail(ctx: RequestContext, wanted: TrailQuery, limit: int, cursor: str | None) -> TrailPage:
    """Return a page of the service's own log: accounts, sign-ins, keys, settings, checkpoints."""

    def work(act: Act) -> TrailPage:
        return _read(act, trail.SERVICE_LOG, wanted, limit, cursor)

    return audited(ctx, Action.READ_SERVICE_TRAIL, work)


def _read(act: Act, study_id: UUID, wanted: TrailQuery, limit: int, cursor: str | None) -> TrailPage:
    asked = _asked(wanted)
    said = [asked[name] for name in ("action", "actor", "subject", "from", "to")]
    after = (0, -1)
    if cursor is None:
        segments = trail.list_segments(act.tx, study_id)
        until = (segments[-1].segment, segments[-1].frontier.size) if segments else (0, 0)
        _note_reading(act, asked)
    else:
        segment, index, until_segment, until_size = pages.decode(act, cursor, said)
        after, until = (segment, index), (until_segment, until_size)
        # The reading of the trail is entered with its first page (rule E1).
        act.is_entered = False
    found = trail.list_entries(act.tx, study_id, _filter(act, wanted, asked), after, until, limit + 1)
    shown = found[:limit]
    log = act.deployment.origin(act.head.study_code if act.head is not None else None)
    for entry in shown:
        check_lookup(act.deployment.ring, origin_of(log, entry.segment), entry)
    following = None
    if len(found) > limit:
        following = pages.encode(act, [shown[-1].segment, shown[-1].log_index, *until], said)
    return TrailPage([_public(entry) for entry in shown], following)


def _asked(wanted: TrailQuery) -> dict[str, str | None]:
    """Return the filters in one spelling; raises ``Invalid`` for what is no subject identifier."""
    return {
        "action": wanted.action,
        "actor": wanted.actor,
        "subject": subject_key(wanted.subject) if wanted.subject is not None else None,
        "from": wanted.begin.isoformat() if wanted.begin is not None else None,
        "to": wanted.end.isoformat() if wanted.end is not None else None,
    }


def _note_reading(act: Act, asked: Mapping[str, str | None]) -> None:
    filters = {name: value for name, value in asked.items() if value is not None}
    subject = asked["subject"]
    act.note(target=filters or None, subject_key=SubjectKey(subject) if subject is not None else None)


def _filter(act: Act, wanted: TrailQuery, asked: Mapping[str, str | None]) -> EntryFilter:
    subject = asked["subject"]
    return EntryFilter(
        action=wanted.action,
        actor=wanted.actor,
        subject_key=SubjectKey(subject) if subject is not None else None,
        begin=wanted.begin,
        end=wanted.end,
        sites=act.decision.sites,
        actions_left_out=_ABOUT_SUBJECTS if act.decision.role in _WITHOUT_SUBJECTS else None,
    )


def _public(entry: Entry) -> AuditEntry:
    body = body_of(entry)
    return AuditEntry(
        body["index"],
        entry.segment,
        body["at"],
        body["actor"],
        body["role"],
        body["client"],
        body["action"],
        body["outcome"],
        body["target"],
        body["before"],
        body["after"],
        body["request_id"],
        entry.leaf_hash.hex(),
    )


# -- restricted parts


def read_restricted(ctx: RequestContext, study: StudyCode, index: int, segment: int | None) -> RestrictedPart:
    """Return the restricted part of an entry, compared with its salted hash in the tree (AUD-16).

    Raises ``Missing`` for an entry that has none, whose part was erased, or that is not of the caller's role;
    ``IntegrityBroken`` when the part is not the one that was entered.
    """

    def work(act: Act) -> RestrictedPart:
        act.note(target={"index": index, "segment": segment})
        head = _head(act, segment)
        act.note(target={"index": index, "segment": head.segment})
        entry = trail.find_entry(act.tx, head.study_id, head.segment, index)
        if entry is None:
            raise Missing
        body = body_of(entry)
        _prove(act, head, entry)
        if not _may_open(act, body):
            raise Missing
        _note_subject(act, body)
        sealed = trail.find_restricted(act.tx, head.study_id, head.segment, index)
        if body["restricted"] is None or sealed is None:
            raise Missing
        opened = act.deployment.ring.open(
            SealContext(Column.RESTRICTED, act.study.study_code, (head.segment, index)), sealed
        )
        salt, part = opened[:_SALT], opened[_SALT:]
        if not hmac.compare_digest(restricted_hash(salt, part).hex(), body["restricted"]):
            message = "A restricted part is not the one that was entered."
            raise IntegrityBroken(message)
        return RestrictedPart(index, head.segment, json.loads(part))

    return audited(ctx, Action.READ_RESTRICTED, work, study=study)


def _may_open(act: Act, body: Mapping[str, Any]) -> bool:
    roles = act.principal.holds(act.study.study_code)
    about_subject = body["action"] in _ABOUT_SUBJECTS | _OF_KITS | _OF_STUDY or "subject_id" in (body["target"] or {})
    return (Role.STATISTICIAN in roles and body["action"] in _OF_LISTS) or (
        Role.SAFETY_OFFICER in roles and about_subject
    )


def _note_subject(act: Act, body: Mapping[str, Any]) -> None:
    subject = (body["target"] or {}).get("subject_id")
    if subject is not None:
        act.note(subject_key=subject_key(subject))


# -- checkpoints and proofs


def read_checkpoint(ctx: RequestContext, study: StudyCode) -> str:
    """Return the signed checkpoint of the log as it is committed now (C2SP tlog-checkpoint)."""

    def work(act: Act) -> str:
        return _note(act, _head(act, None))

    return audited(ctx, Action.READ_CHECKPOINT, work, study=study)


def prove_entry(ctx: RequestContext, study: StudyCode, index: int, segment: int | None) -> InclusionProof:
    """Return the proof that an entry stands in the log (RFC 6962, 2.1.1), checked before it leaves; raise ``Missing``."""

    def work(act: Act) -> InclusionProof:
        head = _head(act, segment)
        entry = trail.find_entry(act.tx, head.study_id, head.segment, index)
        if entry is None or index >= head.frontier.size:
            raise Missing
        proof = _prove(act, head, entry)
        return InclusionProof(
            index,
            head.frontier.size,
            entry.leaf_hash.hex(),
            head.frontier.root().hex(),
            [step.hex() for step in proof],
            _note(act, head),
        )

    return audited(ctx, Action.READ_PROOF, work, study=study)


def prove_growth(
    ctx: RequestContext, study: StudyCode, from_size: int, to_size: int | None, segment: int | None
) -> ConsistencyProof:
    """Return the proof that the log only grew (RFC 6962, 2.1.2), checked before it leaves; to its present size unless named.

    Raises ``Invalid`` when the sizes are not in order, ``Missing`` beyond the size of the log.
    """

    def work(act: Act) -> ConsistencyProof:
        head = _head(act, segment)
        to = to_size if to_size is not None else head.frontier.size
        if to > head.frontier.size:
            raise Missing
        if from_size > to:
            message = "A log does not grow to a smaller size."
            raise Invalid(message, "from")
        nodes = trail.find_nodes(act.tx, head.study_id, head.segment, consistency_nodes(from_size, to))
        proof = consistency_proof(from_size, to, nodes)
        old, new = (trail.get_root(act.tx, head, size) for size in (from_size, to))
        check_consistency(from_size, to, old, new, proof)
        return ConsistencyProof(from_size, to, old.hex(), new.hex(), [step.hex() for step in proof], _note(act, head))

    return audited(ctx, Action.READ_PROOF, work, study=study)


def _head(act: Act, segment: int | None) -> Head:
    """Return the end of a segment, the newest one unless named; raises ``Missing``, and what its seal or a suspicion says."""
    segments = trail.list_segments(act.tx, act.study.study_id)
    head = next((one for one in reversed(segments) if segment in (None, one.segment)), None)
    if head is None:
        raise Missing
    keeper = act.deployment.checkpoints
    if head.origin in keeper.suspicions:
        # A fresh signature would vouch for what may be another history than the one that was signed before.
        raise RollbackSuspected
    # Only the seal is looked at: this head was read without a lock, and beside a commit of just now it may be the one before.
    check_head(act.deployment.ring, head.origin, head.frontier, head.last_at, head.mac)
    return head


def _note(act: Act, head: Head) -> str:
    return act.deployment.checkpoints.note(LogState(head.origin, head.frontier))


def _prove(act: Act, head: Head, entry: Entry) -> tuple[bytes, ...]:
    """Return the audit path of an entry to the sealed end of its log; raise ``ProofInvalid`` when it does not lead there."""
    size = head.frontier.size
    if entry.log_index >= size:
        raise Missing
    nodes = trail.find_nodes(act.tx, head.study_id, head.segment, inclusion_nodes(entry.log_index, size))
    proof = inclusion_proof(entry.log_index, size, nodes)
    check_inclusion(entry.log_index, size, leaf_hash(entry.body), proof, head.frontier.root())
    return proof


# -- the export


def export_trail(ctx: RequestContext, study: StudyCode) -> Iterator[bytes]:
    """Return the lines of the whole log, the entry of this very export being the last one.

    It is entered, committed and under a checkpoint in the sink before the first line leaves. Each page is read in a short
    transaction of its own: an export of a million entries stops nobody. A stream that breaks off is seen by the verifier, because
    the header comes first and says how many entries follow.
    """

    def work(act: Act) -> _Export:
        # It has no row of its own: the request is what its entry names it by.
        exported = {
            "study_code": study,
            "exported_at": act.now.isoformat(timespec="microseconds"),
            "exported_by": act.principal.name,
        }
        sign(act, RecordKind.TRAIL_EXPORT, ctx.request_id, exported)
        return _Export(act.study)

    export = audited(ctx, Action.EXPORT_TRAIL, work, study=study)
    receipt = cast("Receipt", export.receipt)
    parts = _read_apart(ctx, lambda tx: exports.export_parts(ctx.deployment, tx, export.study, receipt.log_index + 1))
    return _stream(ctx, parts)


@dataclass(frozen=True, slots=True)
class _Export:
    """What is to be exported, and where it was entered."""

    study: StudyHead
    receipt: Receipt | None = None


def _stream(ctx: RequestContext, parts: Sequence[ExportPart]) -> Iterator[bytes]:
    for part in parts:
        yield part.header
        for begin in range(0, part.size, exports.PAGE):
            page: list[bytes] = _read_apart(
                ctx, partial(exports.export_page, part=part, begin=begin, ring=ctx.deployment.ring)
            )
            yield b"".join(page)


def _read_apart(ctx: RequestContext, read: Callable[[Transaction], list[T]]) -> list[T]:
    """Return what is read in a short transaction of its own; raise ``DatabaseUnavailable`` when none can be had."""
    for _ in range(_TRIES):
        try:
            with ctx.deployment.database.transaction() as tx:
                return read(tx)
        # What was only read, behind a connection that was lost at the end, is read again.
        except (TryAgain, CommitUncertain):
            time.sleep(_PAUSE)
    raise DatabaseUnavailable


# -- after a suspected rollback


def declare_recovery(ctx: RequestContext, statement: str) -> RecoveryStatement:
    """Return the logs that were given up, each of which goes on in a new segment that names the suspicion (INT-07).

    Raises ``IllegalTransition`` when nothing is suspected. The statement is signed by the caller's fresh second proof, and by the
    checkpoint that is written before the answer. It stands in the restricted part of its entry, like all free text (rule E3).
    """

    def work(act: Act) -> RecoveryStatement:
        suspicions = sorted(act.deployment.checkpoints.suspicions.values(), key=lambda one: one.origin)
        if not suspicions:
            message = "No log is suspected to have been rolled back or forked."
            raise IllegalTransition(message)
        logs = [{"origin": one.origin, "size": one.held_size, "kind": one.kind} for one in suspicions]
        suspected = {log_name(one.origin) for one in suspicions}
        for head in studies.list_studies(act.tx):
            if act.deployment.origin(head.study_code) in suspected:
                # Its log goes on in a new segment at once: what is suspected is never appended to.
                named = [log for log in logs if log_name(str(log["origin"])) == act.deployment.origin(head.study_code)]
                act.note_in(head, {"logs": named})
        act.note(after={"logs": logs}, restricted={"statement": statement})
        return RecoveryStatement(act.now, logs)

    declared = audited(ctx, Action.DECLARE_RECOVERY, work, answer_type=RecoveryStatement)
    # It is declared and durable; when the comparison cannot be had now, the keeper's next one opens the service again.
    with suppress(TryAgain, DatabaseUnavailable, CommitUncertain):
        ctx.deployment.checkpoints.compare(ctx.deployment.database)
    return declared
