"""Generate or import, extend, approve, reject and activate an allocation list (rule A).

What blinded people read of a list is a type of its own, without a number of slots and without a block size (rules B1, B7).
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final
from uuid import UUID

import msgspec

from app.domain.contents import SALT_SIZE
from app.domain.encoding import canonical_json
from app.domain.imported_lists import LIST_FIELD, ImportedList, read_list
from app.domain.imports import refuse_faults
from app.domain.notes import list_commitment_text
from app.domain.quality import quality_report
from app.domain.schedules import (
    ALGORITHM,
    IMPORTED,
    SEED_SIZE,
    Fill,
    Specification,
    StratumLength,
    StratumSpec,
    enumerate_strata,
    generate_stratum,
    slots_per_stratum,
    validate,
    warnings,
)
from app.domain.sealed import Column, SealContext
from app.domain.signatures import RecordKind, SignatureShown
from app.domain.words import Action, Factor, Role, ScheduleStatus, SiteCode, StratumCode, StudyCode, StudyStatus
from app.errors import (
    CommitmentDiffers,
    GeneratorCannotApprove,
    IllegalTransition,
    Invalid,
    InvalidSpecification,
    StudyNotOpen,
)
from app.services import lists, pages
from app.services.audited import Act, audited
from app.services.context import RequestContext
from app.services.signatures import Content, sign, with_signatures
from app.storage import commitments, schedules, studies
from app.storage.schedules import NewSchedule, ScheduleHead

_GENERATED: Final = "generated"
_MOST_DIGITS: Final = 12
_STRATUM_FRAME: Final = 160
_REPORT_FRAME: Final = 16_384
"""A report is never longer than this says, whatever chance gave: what can be kept depends on the specification alone."""
_BLINDED: Final = frozenset(ScheduleHead.__dataclass_fields__) - {"slot_count"}
"""What of a list every role of the study may see."""
_READS_UNBLINDED: Final = frozenset({Role.STATISTICIAN, Role.LIST_APPROVER})


# -- what is asked for, and what is answered ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class WantedList:
    """What a statistician signs beside the study's definition (SEQ-01)."""

    block_sizes: tuple[int, ...]
    block_size_weights: tuple[int, ...] | None
    """None gives each size the same weight."""
    length_per_stratum: int | None
    lengths: tuple[StratumLength, ...] | None
    fill: Fill
    reason: str | None


@dataclass(frozen=True, slots=True)
class SentList:
    """A list as an independent statistician made it. Danger: holds every arm."""

    content: bytes = field(repr=False)
    """A CSV file (``app.domain.imported_lists``)."""
    digest: str
    """SHA-256 of the file, as the statistician computed it, in hexadecimal digits."""
    extends: UUID | None
    """The list that it is a segment of."""


@dataclass(frozen=True, slots=True)
class GeneratedSchedule:
    """A list just generated or imported, as its statistician sees it."""

    schedule_id: UUID
    list_id: UUID
    segment_number: int
    extends: UUID | None
    status: ScheduleStatus
    algorithm: str
    slots: int
    commitment: str
    warnings: tuple[str, ...]
    is_signed: bool = False
    signatures: tuple[SignatureShown, ...] = ()


@dataclass(frozen=True, slots=True)
class ScheduleSummary:
    """A list as every role of the study sees it."""

    schedule_id: UUID
    list_id: UUID
    segment_number: int
    origin: str
    status: ScheduleStatus
    algorithm: str
    commitment: str
    generated_at: datetime
    generated_by: str
    decided_at: datetime | None
    decided_by: str | None
    activated_at: datetime | None
    activated_by: str | None
    is_signed: bool = False
    signatures: tuple[SignatureShown, ...] = ()


@dataclass(frozen=True, slots=True)
class UnblindedScheduleSummary:
    """A list as statistician and approver see it. Danger: tells slots and block sizes (rule B7)."""

    schedule_id: UUID
    list_id: UUID
    segment_number: int
    origin: str
    status: ScheduleStatus
    algorithm: str
    commitment: str
    generated_at: datetime
    generated_by: str
    decided_at: datetime | None
    decided_by: str | None
    activated_at: datetime | None
    activated_by: str | None
    slots: int
    block_sizes: tuple[int, ...]
    is_signed: bool = False
    signatures: tuple[SignatureShown, ...] = ()


@dataclass(frozen=True, slots=True)
class SummaryPage:
    """Lists, oldest first, and where to go on."""

    items: Sequence[ScheduleSummary | UnblindedScheduleSummary]
    next_cursor: str | None


@dataclass(frozen=True, slots=True)
class EarlierList:
    """A list that was generated before, with the reason that was given for it (SEQ-08)."""

    schedule_id: UUID
    list_id: UUID
    segment_number: int
    status: ScheduleStatus
    commitment: str
    generated_at: datetime
    generated_by: str
    reason: str | None


@dataclass(frozen=True, slots=True)
class ReadQualityReport:
    """The unblinded report on a list. Danger: says much of the list."""

    schedule_id: UUID
    list_id: UUID
    segment_number: int
    status: ScheduleStatus
    commitment: str
    passed: bool
    report: dict[str, Any]
    warnings: tuple[str, ...]
    reason: str | None
    earlier: tuple[EarlierList, ...]


def _summaries(act: Act, heads: Sequence[ScheduleHead]) -> list[ScheduleSummary]:
    """Return lists as every role of the study sees them, with who signed them."""
    blinded = [ScheduleSummary(**{name: getattr(head, name) for name in _BLINDED}) for head in heads]
    return with_signatures(act, RecordKind.SCHEDULE, blinded, _signed_list)


def _summary(act: Act, schedule_id: UUID) -> ScheduleSummary:
    return _summaries(act, [schedules.get_schedule(act.tx, act.study.study_id, schedule_id)])[0]


def _signed_list(of: ScheduleSummary) -> tuple[str, Content]:
    """Return what is signed of a list at each of its steps; the commitment stands for its specification and every slot (SIG-04)."""
    return str(of.schedule_id), {
        "schedule_id": str(of.schedule_id),
        "list_id": str(of.list_id),
        "segment_number": of.segment_number,
        "origin": of.origin,
        "algorithm": of.algorithm,
        "commitment": of.commitment,
        "generated_at": of.generated_at.isoformat(timespec="microseconds"),
        "generated_by": of.generated_by,
    }


def _as_known(act: Act, heads: Sequence[ScheduleHead]) -> list[ScheduleSummary | UnblindedScheduleSummary]:
    """Return lists as the caller may know them: what the caller holds chooses the type (rule B1)."""
    blinded = _summaries(act, heads)
    if not act.principal.holds(act.study.study_code) & _READS_UNBLINDED:
        return list(blinded)
    return [_unblinded(act, head, summary) for head, summary in zip(heads, blinded, strict=True)]


def _unblinded(act: Act, head: ScheduleHead, blinded: ScheduleSummary) -> UnblindedScheduleSummary:
    kept = commitments.get_list_commitment(act.tx, act.study.study_id, head.schedule_id)
    spec = lists.open_specification(act, head.schedule_id, kept.sealed_specification)
    known = {name: getattr(blinded, name) for name in ScheduleSummary.__dataclass_fields__}
    return UnblindedScheduleSummary(**known, slots=head.slot_count, block_sizes=spec.block_sizes)


# -- generating --------------------------------------------------------------------------------------------------------


def generate_schedule(ctx: RequestContext, study: StudyCode, wanted: WantedList) -> GeneratedSchedule:
    """Return a new list, complete, sealed and committed to; it waits for its approval.

    Raises ``InvalidSpecification`` in the field's words, also for a second list without a reason (rules A1, A2).
    """

    def work(act: Act) -> GeneratedSchedule:
        return _make(act, wanted, _first_segment(act, wanted))

    return audited(ctx, Action.GENERATE_SCHEDULE, work, study=study, answer_type=GeneratedSchedule)


def extend_schedule(ctx: RequestContext, study: StudyCode, schedule_id: UUID, wanted: WantedList) -> GeneratedSchedule:
    """Return a new segment of a list, with a seed of its own, for more subjects or for a new site (SEQ-17).

    It needs an approval of its own, and no position of an earlier segment changes. Raises ``IllegalTransition`` for a list that
    is neither approved nor active.
    """

    def work(act: Act) -> GeneratedSchedule:
        return _make(act, wanted, _next_segment(act, schedule_id))

    return audited(ctx, Action.EXTEND_SCHEDULE, work, study=study, answer_type=GeneratedSchedule)


def import_schedule(ctx: RequestContext, study: StudyCode, wanted: WantedList, sent: SentList) -> GeneratedSchedule:
    """Return a list that an independent statistician made, under the same custody as a generated one (rule A1, SEQ-16).

    It waits for its approval. Raises as ``generate_schedule`` and ``extend_schedule`` do; ``Invalid`` when the digest is not that
    of the list; ``FaultyImport`` with every fault of it, one that tells the arm included.
    """

    def work(act: Act) -> GeneratedSchedule:
        if hashlib.sha256(sent.content).hexdigest() != sent.digest:
            message = (
                "This is not the SHA-256 of the list that was sent. Compare the file with the one that it was made of."
            )
            raise Invalid(message, "digest")
        segment = _first_segment(act, wanted) if sent.extends is None else _next_segment(act, sent.extends)
        return _make(act, wanted, segment, sent)

    return audited(ctx, Action.IMPORT_SCHEDULE, work, study=study, answer_type=GeneratedSchedule)


@dataclass(frozen=True, slots=True)
class _Segment:
    """Which segment of which list is being made."""

    schedule_id: UUID
    list_id: UUID
    number: int
    extends: UUID | None


@dataclass(frozen=True, slots=True)
class _Kept:
    """What is sealed as the quality report: the report itself, what was warned of, and why the list was made."""

    report: dict[str, Any]
    warnings: tuple[str, ...]
    reason: str | None


def _first_segment(act: Act, wanted: WantedList) -> _Segment:
    others = schedules.list_schedules(act.tx, act.study.study_id, act.now, limit=1)
    if others and not wanted.reason:
        raise InvalidSpecification("The study has a list already: another one needs a reason.", "reason")
    schedule_id = act.deployment.new_id()
    return _Segment(schedule_id, schedule_id, 0, None)


def _next_segment(act: Act, schedule_id: UUID) -> _Segment:
    act.note(target={"schedule_id": str(schedule_id)})
    extended = schedules.get_schedule(act.tx, act.study.study_id, schedule_id)
    if extended.status not in (ScheduleStatus.APPROVED, ScheduleStatus.ACTIVE):
        message = f"A list that is {extended.status} cannot be extended; it must be approved first."
        raise IllegalTransition(message)
    number = schedules.next_segment_number(act.tx, act.study.study_id, extended.list_id)
    return _Segment(act.deployment.new_id(), extended.list_id, number, schedule_id)


def _make(act: Act, wanted: WantedList, segment: _Segment, sent: SentList | None = None) -> GeneratedSchedule:
    """Make the list from its specification, or from what was sent, and store it whole (rules A1 to A5)."""
    if act.study.status is StudyStatus.CLOSED:
        raise StudyNotOpen("The study is closed; no list can be made for it.")
    study_id, deployment = act.study.study_id, act.deployment
    spec, advice = _specify(act, wanted, segment, ALGORITHM if sent is None else IMPORTED)
    used = lists.UsedNumbers()
    for number in schedules.list_randomization_numbers(act.tx, study_id):
        used.take(number)
    imported = None if sent is None else _read(sent, spec, used)
    # The only draw from the entropy of lists: all that chance decides about arms follows from it (rule A4).
    seed = deployment.list_entropy.draw("seed", SEED_SIZE) if imported is None else b""
    salt = deployment.entropy.draw("salt", SALT_SIZE)
    maker = lists.ListMaker(act, spec, segment.schedule_id, _strata_of(act, spec), seed, used, imported)
    slots = maker.store()
    if imported is None:
        report = quality_report(spec, ((stratum, generate_stratum(spec, stratum, seed)) for stratum in spec.strata))
    else:
        report = imported.report
    head = ScheduleHead(
        schedule_id=segment.schedule_id,
        list_id=segment.list_id,
        segment_number=segment.number,
        status=ScheduleStatus.GENERATED,
        origin=_GENERATED if sent is None else IMPORTED,
        algorithm=spec.algorithm,
        slot_count=slots,
        commitment=lists.commitment_of(spec, salt, [stratum.root for stratum in maker.strata]),
        generated_at=act.now,
        generated_by=act.principal.name,
        decided_at=None,
        decided_by=None,
        activated_at=None,
        activated_by=None,
    )
    kept = _Kept(report.document(), advice, wanted.reason)
    schedules.add_schedule(act.tx, study_id, _sealed(act, head, spec, seed + salt, kept), maker.strata)
    _note_made(act, head, spec, kept, segment.extends, sent)
    generated = GeneratedSchedule(
        head.schedule_id,
        head.list_id,
        head.segment_number,
        segment.extends,
        head.status,
        head.algorithm,
        slots,
        head.commitment,
        advice,
    )
    record_id, content = _signed_list(_summary(act, head.schedule_id))
    sign(act, RecordKind.SCHEDULE, record_id, content)
    return with_signatures(act, RecordKind.SCHEDULE, [generated], lambda _: (record_id, content))[0]


def _read(sent: SentList, spec: Specification, used: lists.UsedNumbers) -> ImportedList:
    """Return the list that was sent; raise ``FaultyImport``, also for a randomization number that another list of the study has."""
    imported = read_list(sent.content, spec)
    faults = [
        (place, "Another list of the study has this randomization number.")
        for number, place in imported.numbers.items()
        if not used.take(number)
    ]
    refuse_faults(faults, LIST_FIELD)
    return imported


def _specify(act: Act, wanted: WantedList, segment: _Segment, algorithm: str) -> tuple[Specification, tuple[str, ...]]:
    """Return the specification, and what the statistician is warned of; raise ``InvalidSpecification``."""
    study = act.study
    definition = studies.get_definition(act.tx, study.study_id)
    sites = [site.site_code for site in studies.list_sites(act.tx, study.study_id)]
    strata = _strata_wanted(definition.factors, sites if study.stratify_by_site else None, wanted, segment)
    spec = Specification(
        study_code=study.study_code,
        mode=act.deployment.mode,
        list_id=str(segment.list_id),
        segment_number=segment.number,
        algorithm=algorithm,
        arms=definition.arms,
        factors=definition.factors,
        stratify_by_site=study.stratify_by_site,
        block_sizes=wanted.block_sizes,
        block_size_weights=wanted.block_size_weights or (1,) * len(wanted.block_sizes),
        fill=wanted.fill,
        strata=strata,
    )
    validate(spec)
    _refuse_too_large(spec, schedules.count_slots(act.tx, study.study_id))
    # An extension is not meant for all planned subjects: its own lengths are what it is judged by.
    planned = definition.planned_subjects if segment.number == 0 else None
    return spec, warnings(spec, len(sites), planned)


def _strata_wanted(
    factors: Sequence[Factor], sites: Sequence[SiteCode] | None, wanted: WantedList, segment: _Segment
) -> tuple[StratumSpec, ...]:
    """Return the strata with their lengths: all of the study, or in an extension those that are named."""
    if (wanted.length_per_stratum is None) == (wanted.lengths is None):
        raise InvalidSpecification("Give one length_per_stratum for all strata, or lengths for each.", "lengths")
    if wanted.lengths is None:
        return enumerate_strata(factors, sites, wanted.length_per_stratum or 0)
    if segment.number == 0:
        return enumerate_strata(factors, sites, wanted.lengths)
    named = {(site, frozenset(levels.items())) for site, levels, _ in wanted.lengths}
    if not named:
        raise InvalidSpecification("An extension names at least one stratum.", "lengths")
    everything = enumerate_strata(factors, sites, 0)
    others = [
        (stratum.site_code, dict(stratum.levels), 0)
        for stratum in everything
        if (stratum.site_code, frozenset(stratum.levels)) not in named
    ]
    strata = enumerate_strata(factors, sites, [*wanted.lengths, *others])
    return tuple(stratum for stratum in strata if (stratum.site_code, frozenset(stratum.levels)) in named)


def _refuse_too_large(spec: Specification, slots_before: int) -> None:
    """Refuse what could not be kept: a text longer than its column, or more slots than there are numbers to give."""
    document = len(canonical_json(spec.document()))
    figures = sum(len(arm.arm_code) + _MOST_DIGITS for arm in spec.arms)
    report = _REPORT_FRAME + sum(len(stratum.stratum_code) + figures + _STRATUM_FRAME for stratum in spec.strata)
    if document > Column.SPECIFICATION.capacity or report > Column.QUALITY.capacity:
        raise InvalidSpecification("The list has more strata than one list can hold; divide it by sites.", "lengths")
    slots = sum(slots_per_stratum(spec, stratum) for stratum in spec.strata)
    if slots_before + slots > lists.MOST_NUMBERS:
        message = f"The lists of a study have at most {lists.MOST_NUMBERS} slots together, those on record included."
        raise InvalidSpecification(message, "length_per_stratum")


def _strata_of(act: Act, spec: Specification) -> dict[StratumCode, UUID]:
    """Return the ids of the strata, those that no list named before included."""
    known = schedules.list_strata(act.tx, act.study.study_id)
    new = {
        stratum.stratum_code: act.deployment.new_id() for stratum in spec.strata if stratum.stratum_code not in known
    }
    schedules.add_strata(act.tx, act.study.study_id, list(new.items()))
    return known | new


def _sealed(act: Act, head: ScheduleHead, spec: Specification, secrets: bytes, kept: _Kept) -> NewSchedule:
    ring, study_code, place = act.deployment.ring, act.study.study_code, lists.place_of(head.schedule_id)
    return NewSchedule(
        head,
        ring.seal(SealContext(Column.SPECIFICATION, study_code, place), canonical_json(spec.document())),
        ring.seal(SealContext(Column.SEED, study_code, place), secrets),
        ring.seal(SealContext(Column.QUALITY, study_code, place), msgspec.json.encode(kept)),
        ring.newest_version(study_code),
    )


def _note_made(
    act: Act, head: ScheduleHead, spec: Specification, kept: _Kept, extends: UUID | None, sent: SentList | None
) -> None:
    """Say in public what every role may know, and in the restricted part what block sizes and lengths are (rules B7, E3).

    Lengths by stratum can be thousands; they stand in the specification, which the commitment covers.
    """
    lengths = [stratum.length for stratum in spec.strata]
    act.note(
        target={"schedule_id": str(head.schedule_id)},
        after={
            "status": head.status,
            "origin": head.origin,
            "list_id": str(head.list_id),
            "segment_number": head.segment_number,
            "extends": None if extends is None else str(extends),
            "algorithm": head.algorithm,
            "commitment": head.commitment,
        },
        restricted={
            "block_sizes": list(spec.block_sizes),
            "block_size_weights": list(spec.block_size_weights),
            "fill": spec.fill,
            "strata": len(spec.strata),
            "shortest_length": min(lengths),
            "longest_length": max(lengths),
            "slots": head.slot_count,
            "reason": kept.reason,
            # Not in public: whoever tries which short list gives a digest has found the list.
            "digest": None if sent is None else sent.digest,
            "quality": {verdict["name"]: verdict["passed"] for verdict in kept.report["verdicts"]},
        },
    )


# -- reading -----------------------------------------------------------------------------------------------------------


def list_schedules(ctx: RequestContext, study: StudyCode, limit: int, cursor: str | None) -> SummaryPage:
    """Return a page of the study's lists as the caller may know them, oldest first."""

    def work(act: Act) -> SummaryPage:
        until, after = act.now, None
        if cursor is not None:
            pinned, at, last = pages.decode(act, cursor)
            until, after = datetime.fromisoformat(pinned), (datetime.fromisoformat(at), UUID(last))
        found = schedules.list_schedules(act.tx, act.study.study_id, until, after, limit + 1)
        items = found[:limit]
        more = None
        if len(found) > limit:
            last_one = items[-1]
            more = pages.encode(act, [until.isoformat(), last_one.generated_at.isoformat(), str(last_one.schedule_id)])
        return SummaryPage(_as_known(act, items), more)

    return audited(ctx, Action.READ_SCHEDULES, work, study=study)


def read_schedule(
    ctx: RequestContext, study: StudyCode, schedule_id: UUID
) -> ScheduleSummary | UnblindedScheduleSummary:
    """Return a list as the caller may know it; raise ``Missing``."""

    def work(act: Act) -> ScheduleSummary | UnblindedScheduleSummary:
        return _as_known(act, [schedules.get_schedule(act.tx, act.study.study_id, schedule_id)])[0]

    return audited(ctx, Action.READ_SCHEDULES, work, study=study, target={"schedule_id": str(schedule_id)})


def read_quality_report(ctx: RequestContext, study: StudyCode, schedule_id: UUID) -> ReadQualityReport:
    """Return the unblinded report on a list, with the earlier lists of the study and the reasons given for them (rule A1)."""

    def work(act: Act) -> ReadQualityReport:
        head = schedules.get_schedule(act.tx, act.study.study_id, schedule_id)
        kept = _open_report(act, schedule_id)
        before = schedules.list_schedules(act.tx, act.study.study_id, head.generated_at)
        return ReadQualityReport(
            head.schedule_id,
            head.list_id,
            head.segment_number,
            head.status,
            head.commitment,
            kept.report["passed"],
            kept.report,
            kept.warnings,
            kept.reason,
            tuple(_earlier(act, other) for other in before if other.schedule_id != schedule_id),
        )

    return audited(ctx, Action.READ_QUALITY_REPORT, work, study=study, target={"schedule_id": str(schedule_id)})


def _earlier(act: Act, head: ScheduleHead) -> EarlierList:
    return EarlierList(
        head.schedule_id,
        head.list_id,
        head.segment_number,
        head.status,
        head.commitment,
        head.generated_at,
        head.generated_by,
        _open_report(act, head.schedule_id).reason,
    )


def _open_report(act: Act, schedule_id: UUID) -> _Kept:
    sealed = schedules.get_sealed_quality_report(act.tx, act.study.study_id, schedule_id)
    context = SealContext(Column.QUALITY, act.study.study_code, lists.place_of(schedule_id))
    return msgspec.json.decode(act.deployment.ring.open(context, sealed), type=_Kept)


# -- deciding ----------------------------------------------------------------------------------------------------------


def approve_schedule(ctx: RequestContext, study: StudyCode, schedule_id: UUID, commitment: str) -> ScheduleSummary:
    """Return the approved list, its commitment signed and the study's definition frozen (rules A7 to A9).

    Every slot is compared with what the seed gives before anything is signed (SEQ-11). Raises ``IllegalTransition``, also for a
    verdict outside its limit, ``GeneratorCannotApprove``, ``CommitmentDiffers``, ``IntegrityBroken``.
    """

    def work(act: Act) -> ScheduleSummary:
        study_id, deployment = act.study.study_id, act.deployment
        head = schedules.get_schedule(act.tx, study_id, schedule_id)
        _require_status(head, ScheduleStatus.GENERATED, "approved")
        if head.generated_by == act.principal.name:
            raise GeneratorCannotApprove
        if commitment != head.commitment:
            raise CommitmentDiffers
        if not _open_report(act, schedule_id).report["passed"]:
            message = (
                "The quality report has a verdict outside its limit. Such a list is rejected, and stays on record."
            )
            raise IllegalTransition(message)
        # Nothing is locked while the list is looked through, which for a long one takes a while: its slots cannot change.
        lists.check_list(act, head)
        text = list_commitment_text(
            str(deployment.deployment_id), study, str(schedule_id), bytes.fromhex(head.commitment)
        )
        note = deployment.signing.sign_note(text)
        studies.record_freeze(act.tx, study_id)
        schedules.record_approval(act.tx, study_id, schedule_id, note, act.now, act.principal.name)
        act.note(
            before={"status": head.status},
            after={
                "status": ScheduleStatus.APPROVED,
                "commitment": head.commitment,
                "signature": note,
            },
        )
        sign(act, RecordKind.SCHEDULE, *_signed_list(_summary(act, schedule_id)))
        return _summary(act, schedule_id)

    return audited(
        ctx,
        Action.APPROVE_SCHEDULE,
        work,
        study=study,
        target={"schedule_id": str(schedule_id)},
        answer_type=ScheduleSummary,
    )


def reject_schedule(ctx: RequestContext, study: StudyCode, schedule_id: UUID, reason: str) -> ScheduleSummary:
    """Return the rejected list, which stays on record with its report (SEQ-08); raise ``IllegalTransition``."""

    def work(act: Act) -> ScheduleSummary:
        study_id = act.study.study_id
        head = schedules.get_schedule(act.tx, study_id, schedule_id)
        _require_status(head, ScheduleStatus.GENERATED, "rejected")
        schedules.record_rejection(act.tx, study_id, schedule_id, act.now, act.principal.name)
        act.note(
            before={"status": head.status},
            after={"status": ScheduleStatus.REJECTED, "commitment": head.commitment},
            restricted={"reason": reason},
        )
        return _summary(act, schedule_id)

    return audited(
        ctx,
        Action.REJECT_SCHEDULE,
        work,
        study=study,
        target={"schedule_id": str(schedule_id)},
        answer_type=ScheduleSummary,
    )


def activate_schedule(ctx: RequestContext, study: StudyCode, schedule_id: UUID) -> ScheduleSummary:
    """Return the active list: from now on subjects are allocated from it, after the segments that are active already.

    It is looked through once more (SEQ-11). Raises ``IllegalTransition`` unless it is approved and, as a first list, the only
    active one, or as a segment, of the list that is active.
    """

    def work(act: Act) -> ScheduleSummary:
        study_id = act.study.study_id
        head = schedules.get_schedule(act.tx, study_id, schedule_id)
        _require_status(head, ScheduleStatus.APPROVED, "activated")
        lists.check_list(act, head)
        act.deployment.commitments.verify_list(act.tx, act.study, schedule_id)
        # Whoever allocates holds the study's row in share mode, so this also keeps every stratum from moving meanwhile.
        if studies.lock_study(act.tx, study_id) is StudyStatus.CLOSED:
            raise StudyNotOpen("The study is closed; no list can be activated in it.")
        active = schedules.list_active(act.tx, study_id)
        if head.segment_number == 0 and active:
            raise IllegalTransition("A list of the study is active already; it can be extended by a segment.")
        if head.segment_number > 0 and head.list_id not in active:
            raise IllegalTransition("The list that this segment extends is not active.")
        schedules.record_activation(act.tx, study_id, schedule_id, act.now, act.principal.name)
        act.note(
            before={"status": head.status},
            after={"status": ScheduleStatus.ACTIVE, "commitment": head.commitment},
        )
        sign(act, RecordKind.SCHEDULE, *_signed_list(_summary(act, schedule_id)))
        return _summary(act, schedule_id)

    return audited(
        ctx,
        Action.ACTIVATE_SCHEDULE,
        work,
        study=study,
        target={"schedule_id": str(schedule_id)},
        answer_type=ScheduleSummary,
    )


def _require_status(head: ScheduleHead, status: ScheduleStatus, what: str) -> None:
    """Raise ``IllegalTransition`` unless the list stands where this step begins (CUS-01)."""
    if head.status is not status:
        message = f"A list that is {head.status} cannot be {what}."
        raise IllegalTransition(message)
