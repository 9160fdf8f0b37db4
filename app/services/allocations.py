"""Randomize a subject: slot, kit, entry and stored answer in one transaction (rule section C); and flag what went wrong."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from app.domain.contents import Binding
from app.domain.drills import is_dummy
from app.domain.encoding import canonical_json, encode
from app.domain.schedules import stratum_code
from app.domain.signatures import RecordKind, SignatureShown
from app.domain.words import (
    Action,
    Factor,
    KitCode,
    Mode,
    RandomizationNumber,
    SiteCode,
    StratumCode,
    StudyCode,
    StudyStatus,
    SubjectId,
    SubjectKey,
    subject_key,
    subject_spelling,
)
from app.errors import (
    AlreadyAllocated,
    IntegrityBroken,
    Invalid,
    InvalidStrata,
    KeyReused,
    Missing,
    NotConfirmed,
    SiteInactive,
    StudyNotOpen,
    SubjectIdUnavailable,
)
from app.services import pages
from app.services.audited import Act, Receipt, audited
from app.services.context import RequestContext
from app.services.enveloping import put_by, wake_writer
from app.services.evidence import AllocationPlace, KitAssignmentPlace, OpenedKit, open_slot, seal_binding
from app.services.signatures import Content, sign, with_signatures
from app.services.stock import StockDraw
from app.storage import allocations, kits, schedules, studies, trail
from app.storage.allocations import ACCIDENT, SAFETY, THIRD_PARTY_OPENING, Allocation, SubjectFlag
from app.storage.kits import KitAssignment

_ERROR_MARK: Final = "error_mark"
_STRATA_CORRECTION: Final = "strata_correction"
_DUPLICATE_LINK: Final = "duplicate_link"
_KINDS: Final = {
    Action.MARK_ERROR: _ERROR_MARK,
    Action.CORRECT_STRATA: _STRATA_CORRECTION,
    Action.LINK_DUPLICATE: _DUPLICATE_LINK,
}


@dataclass(frozen=True, slots=True)
class AllocationRequest:
    """What a client sends: a subject, a site, strata values and confirmations; never the state of the trial (rule C1)."""

    subject_id: str
    site_code: SiteCode
    strata: Mapping[str, str]
    consent_confirmed: bool
    eligibility_confirmed: bool
    reported_user: str | None


@dataclass(frozen=True, slots=True)
class Allocated:
    """The answer to an allocation: nothing in it depends on the arm."""

    study_code: StudyCode
    mode: Mode
    subject_id: SubjectId
    site_code: SiteCode
    randomization_number: RandomizationNumber
    kit_code: KitCode
    allocated_at: datetime
    receipt: Receipt | None = None


@dataclass(frozen=True, slots=True)
class ErrorMark:
    """That the subject was randomized in error, and who signed that."""

    flag: SubjectFlag
    category: str
    marked_at: datetime
    marked_by: str
    is_signed: bool = False
    signatures: tuple[SignatureShown, ...] = ()


@dataclass(frozen=True, slots=True)
class Flags:
    """What was said of the allocation since."""

    unblinded_at: datetime | None
    error_mark: ErrorMark | None
    duplicate_of: SubjectId | None
    accidentally_unblinded_at: datetime | None
    safety_unblinded_at: datetime | None


@dataclass(frozen=True, slots=True)
class AllocationRecord:
    """An allocation as its site reads it later."""

    study_code: StudyCode
    mode: Mode
    subject_id: SubjectId
    site_code: SiteCode
    randomization_number: RandomizationNumber
    kit_code: KitCode
    allocated_at: datetime
    current_kit_codes: Sequence[KitCode]
    flags: Flags
    strata_used: Mapping[str, str]
    strata_corrected: Mapping[str, str] | None
    receipt: Receipt | None


def allocate(ctx: RequestContext, study: StudyCode, wanted: AllocationRequest) -> Allocated:
    """Return the subject's allocation, committed and entered; the same request again gives the same answer (rule C4).

    Raises, before anything is used: ``NotConfirmed``, ``InvalidStrata``, ``Missing``, ``AlreadyAllocated``,
    ``SubjectIdUnavailable``, ``StudyNotOpen``, ``SiteInactive``, ``ListUnavailable`` and, last, ``StockInsufficient``.
    """
    draw = StockDraw()
    key = subject_key(wanted.subject_id)

    def work(act: Act) -> Allocated:
        act.note(
            target={"subject_id": key, "site_code": wanted.site_code},
            subject_key=key,
            site_code=wanted.site_code,
        )
        if is_dummy(key):
            message = "Identifiers that begin with DRILL- are kept for code-break drills."
            raise Invalid(message, "subject_id")
        _check_confirmations(act, wanted)
        code = _stratum(act, wanted)
        act.at_site(wanted.site_code)
        stored = _claim(act, key, wanted)
        if stored is not None:
            return stored
        standing = studies.hold_standing(act.tx, act.study.study_id, wanted.site_code)
        if standing.status is not StudyStatus.OPEN:
            raise StudyNotOpen
        if not standing.site_is_active:
            raise SiteInactive
        ordinal, slot = schedules.claim_slot(act.tx, act.study.study_id, code)
        arms = act.deployment.commitments.signed_arms(act.tx, act.study, slot.schedule_id)
        # The stock is looked at for every arm before the slot is opened: its answer cannot depend on the arm (rule B6).
        offered = draw.offer(act, wanted.site_code, standing.site_timezone, [arm.arm_code for arm in arms])
        contents = open_slot(act, slot)
        kit = offered[contents.arm_code]
        treatment = next(arm.treatment for arm in arms if arm.arm_code == contents.arm_code)
        allocation_id = act.deployment.new_id()
        place = AllocationPlace(
            allocation_id,
            key,
            slot.schedule_id,
            slot.stratum_id,
            slot.position,
            slot.randomization_number,
            kit.kit_id,
        )
        binding = Binding(contents.arm_code, treatment)
        sealed, key_version = seal_binding(act, place, binding)
        spelling = subject_spelling(wanted.subject_id)
        allocations.add_allocation(
            act.tx,
            act.study.study_id,
            Allocation(
                allocation_id,
                key,
                spelling,
                wanted.site_code,
                slot.stratum_id,
                ordinal,
                slot.schedule_id,
                slot.position,
                slot.randomization_number,
                dict(wanted.strata),
                act.principal.name,
                wanted.reported_user if act.principal.is_machine else None,
                act.now,
                sealed,
                key_version,
            ),
            _first_kit(act, key, kit, binding),
        )
        put_by(act, spelling, wanted.site_code, kit, treatment)
        act.note(
            after={
                "randomization_number": slot.randomization_number,
                "kit_code": kit.kit_code,
                "strata": dict(wanted.strata),
                "consent_confirmed": True,
                "eligibility_confirmed": True,
                "reported_user": wanted.reported_user if act.principal.is_machine else None,
            }
        )
        return Allocated(
            study,
            act.deployment.mode,
            spelling,
            wanted.site_code,
            slot.randomization_number,
            kit.kit_code,
            act.now,
        )

    allocated = audited(ctx, Action.ALLOCATE, work, study=study, answer_type=Allocated, on_refusal=draw.on_refusal)
    wake_writer(ctx.deployment)
    return allocated


def _factors(act: Act) -> tuple[Factor, ...]:
    """Return the factors of the study; read once a process, because the definition is kept from changing by trigger."""
    kept, study_id = act.deployment.factors, act.study.study_id
    if study_id not in kept:
        kept[study_id] = studies.list_factors(act.tx, study_id)
    return kept[study_id]


def _check_confirmations(act: Act, wanted: AllocationRequest) -> None:
    if not (wanted.consent_confirmed and wanted.eligibility_confirmed):
        raise NotConfirmed(field="consent_confirmed" if not wanted.consent_confirmed else "eligibility_confirmed")
    if act.principal.is_machine and not wanted.reported_user:
        message = "A machine names the person for whom it asks."
        raise Invalid(message, "reported_user")


def _stratum(act: Act, wanted: AllocationRequest) -> StratumCode:
    """Return the stratum that the values name; raise ``InvalidStrata`` (ASG-03)."""
    levels = _levels(_factors(act), wanted.strata)
    return stratum_code(wanted.site_code if act.study.stratify_by_site else None, levels)


def _levels(factors: Sequence[Factor], strata: Mapping[str, str]) -> list[tuple[str, str]]:
    known = {factor.factor_code: {level.level_code for level in factor.levels} for factor in factors}
    if strata.keys() != known.keys() or any(strata[code] not in levels for code, levels in known.items()):
        raise InvalidStrata(field="strata")
    return [(factor.factor_code, strata[factor.factor_code]) for factor in factors]


def _claim(act: Act, key: SubjectKey, wanted: AllocationRequest) -> Allocated | None:
    """Claim the subject, or return what was answered to the same subject, site and strata (rule C4)."""
    content = encode(key, wanted.site_code, canonical_json(wanted.strata))
    try:
        return act.claim(
            hashlib.sha256(encode("allocation", key)).digest(), hashlib.sha256(content).digest(), Allocated
        )
    except KeyReused:
        studies.get_site(act.tx, act.study.study_id, wanted.site_code)
        existing = allocations.find_allocation(act.tx, act.study.study_id, key)
        if existing is None:
            message = "A subject's claim has lost its allocation."
            raise IntegrityBroken(message) from None
        try:
            act.decision.role_unless_elsewhere(existing.site_code)
        except Missing:
            raise SubjectIdUnavailable from None
        raise AlreadyAllocated(
            location=f"/v1/studies/{act.study.study_code}/subjects/{existing.subject_id}/allocation"
        ) from None


def _first_kit(act: Act, key: SubjectKey, kit: OpenedKit, binding: Binding) -> KitAssignment:
    assignment_id = act.deployment.new_id()
    sealed, key_version = seal_binding(act, KitAssignmentPlace(assignment_id, key, kit.kit_id, kit.kit_code), binding)
    return KitAssignment(
        assignment_id=assignment_id,
        kit_id=kit.kit_id,
        subject_key=key,
        visit=None,
        replaces=None,
        assigned_at=act.now,
        assigned_by=act.principal.name,
        dispensed_at=None,
        dispensed_by=None,
        sealed_binding=sealed,
        key_version=key_version,
    )


# -- reading


def read_allocation(ctx: RequestContext, study: StudyCode, subject: str) -> AllocationRecord:
    """Return a subject's allocation with its kits and flags; raise ``Missing``."""
    key = subject_key(subject)

    def work(act: Act) -> AllocationRecord:
        act.note(target={"subject_id": key}, subject_key=key)
        allocation = allocations.get_allocation(act.tx, act.study.study_id, key, act.decision.sites)
        act.note(site_code=allocation.site_code)
        return _records(act, [allocation])[0]

    return audited(ctx, Action.READ_ALLOCATION, work, study=study)


@dataclass(frozen=True, slots=True)
class AllocationPage:
    """A page of allocations."""

    items: Sequence[AllocationRecord]
    next_cursor: str | None


def list_allocations(ctx: RequestContext, study: StudyCode, limit: int, cursor: str | None) -> AllocationPage:
    """Return allocations in the order of time, as many as stood there at the first page."""

    def work(act: Act) -> AllocationPage:
        after, until = pages.place_in_time(act, cursor)
        found = allocations.list_allocations(act.tx, act.study.study_id, act.decision.sites, after, until, limit + 1)
        more = len(found) > limit
        found = found[:limit]
        following = pages.cursor_in_time(act, found[-1].allocated_at, found[-1].allocation_id, until) if more else None
        return AllocationPage(_records(act, found), following)

    return audited(ctx, Action.LIST_ALLOCATIONS, work, study=study)


def _records(act: Act, found: Sequence[Allocation]) -> list[AllocationRecord]:
    study_id = act.study.study_id
    subjects = [allocation.subject_key for allocation in found]
    codes = allocations.list_kit_codes(act.tx, study_id, subjects)
    first_codes = kits.list_first_kit_codes(act.tx, study_id, subjects)
    flags = allocations.list_flags(act.tx, study_id, subjects)
    unblinded = allocations.list_unblinded(act.tx, study_id, subjects)
    receipts = trail.list_receipts(act.tx, study_id, Action.ALLOCATE, subjects)
    marks = _marks(act, [flag for subject in subjects for flag in flags[subject] if flag.kind == _ERROR_MARK])
    records = []
    for allocation in found:
        key = allocation.subject_key
        latest = {flag.kind: flag for flag in flags[key]}
        correction, link = (latest.get(kind) for kind in (_STRATA_CORRECTION, _DUPLICATE_LINK))
        receipt = receipts.get(key)
        if key not in first_codes:
            message = "An allocation has lost its kit."
            raise IntegrityBroken(message)
        records.append(
            AllocationRecord(
                act.study.study_code,
                act.deployment.mode,
                allocation.subject_id,
                allocation.site_code,
                allocation.randomization_number,
                first_codes[key],
                allocation.allocated_at,
                codes[key],
                Flags(
                    _first_unblinded(unblinded.get(key), flags[key]),
                    marks.get(key),
                    None if link is None else link.detail["duplicate_of"],
                    min((_happened_at(flag) for flag in flags[key] if flag.kind == ACCIDENT), default=None),
                    min((flag.flagged_at for flag in flags[key] if flag.kind == SAFETY), default=None),
                ),
                allocation.strata_used,
                None if correction is None else correction.detail["strata"],
                None if receipt is None else Receipt(*receipt),
            )
        )
    return records


def _first_unblinded(broken_at: datetime | None, flags: Sequence[SubjectFlag]) -> datetime | None:
    """Return when somebody first opened the treatment at the emergency or the third party's door, withheld answers included."""
    opened = [flag.flagged_at for flag in flags if flag.kind == THIRD_PARTY_OPENING]
    return min([*opened, *([] if broken_at is None else [broken_at])], default=None)


def _happened_at(accident: SubjectFlag) -> datetime:
    return datetime.fromisoformat(accident.detail["happened_at"])


def _marks(act: Act, flags: Sequence[SubjectFlag]) -> dict[SubjectKey, ErrorMark]:
    """Return the newest error mark of each subject that has one."""
    latest = {flag.subject_key: flag for flag in flags}
    marks = [ErrorMark(flag, flag.detail["category"], flag.flagged_at, flag.flagged_by) for flag in latest.values()]
    signed = with_signatures(act, RecordKind.ERROR_MARK, marks, lambda mark: _signed_mark(mark.flag))
    return {mark.flag.subject_key: mark for mark in signed}


def _signed_mark(flag: SubjectFlag) -> tuple[str, Content]:
    """Return what is signed of an error mark; its reason lies in the restricted part of its entry."""
    return str(flag.flag_id), {
        "flag_id": str(flag.flag_id),
        "subject": flag.subject_key,
        "category": flag.detail["category"],
        "marked_at": flag.flagged_at.isoformat(timespec="microseconds"),
        "marked_by": flag.flagged_by,
    }


# -- what went wrong: kept and flagged, never undone (rule C7)


@dataclass(frozen=True, slots=True)
class Flagged:
    """A flag that was set."""

    subject_id: SubjectId
    kind: str
    flagged_at: datetime
    flagged_by: str
    receipt: Receipt | None = None
    is_signed: bool = False
    signatures: tuple[SignatureShown, ...] = ()


def mark_error(ctx: RequestContext, study: StudyCode, subject: str, category: str, reason: str) -> Flagged:
    """Return the mark that a subject was randomized in error; the allocation stays, and so does its slot (ASG-10)."""
    return _flag(ctx, Action.MARK_ERROR, study, subject, reason, {"category": category})


def correct_strata(
    ctx: RequestContext, study: StudyCode, subject: str, strata: Mapping[str, str], reason: str
) -> Flagged:
    """Return the correction: the right values are kept beside those that were used (ASG-11)."""
    return _flag(
        ctx,
        Action.CORRECT_STRATA,
        study,
        subject,
        reason,
        {"strata": strata},
        corrected=strata,
    )


def link_duplicate(ctx: RequestContext, study: StudyCode, subject: str, duplicate_of: str, reason: str) -> Flagged:
    """Return the link between two identifiers of one person; both allocations stay, the earlier is primary (ASG-12)."""
    return _flag(
        ctx,
        Action.LINK_DUPLICATE,
        study,
        subject,
        reason,
        {},
        duplicate_of=duplicate_of,
    )


def _flag(
    ctx: RequestContext,
    action: Action,
    study: StudyCode,
    subject: str,
    reason: str,
    detail: Mapping[str, str | Mapping[str, str]],
    *,
    corrected: Mapping[str, str] | None = None,
    duplicate_of: str | None = None,
) -> Flagged:
    key, kind = subject_key(subject), _KINDS[action]

    def work(act: Act) -> Flagged:
        study_id = act.study.study_id
        act.note(target={"subject_id": key}, subject_key=key)
        kept = detail
        if corrected is not None:
            _levels(_factors(act), corrected)
        if duplicate_of is not None and subject_key(duplicate_of) == key:
            message = "A subject is not its own duplicate."
            raise Invalid(message, "duplicate_of")
        allocation = allocations.get_allocation(act.tx, study_id, key, act.decision.sites)
        act.note(site_code=allocation.site_code)
        if duplicate_of is not None:
            other = allocations.get_allocation(act.tx, study_id, subject_key(duplicate_of), act.decision.sites)
            kept = {"duplicate_of": other.subject_id}
        flag = SubjectFlag(act.deployment.new_id(), key, kind, kept, act.now, act.principal.name)
        allocations.add_flag(act.tx, study_id, flag)
        act.note(after=kept, restricted={"reason": reason})
        flagged = Flagged(allocation.subject_id, kind, act.now, act.principal.name)
        if action is not Action.MARK_ERROR:
            return flagged
        sign(act, RecordKind.ERROR_MARK, *_signed_mark(flag))
        return with_signatures(act, RecordKind.ERROR_MARK, [flagged], lambda _: _signed_mark(flag))[0]

    return audited(ctx, action, work, study=study, answer_type=Flagged)
