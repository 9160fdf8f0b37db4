"""What happens to single kits: given to a subject, handed out, replaced, put aside, accounted for (KIT-03).

Sites see a code, a status, and whether the kit is usable; nothing here that they see depends on an arm (rules B1, B11). Every act
that changes stock locks the site's stock and then the kit (`custody.md`, lock order).
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from typing import Final

import structlog

from app.domain.contents import Binding
from app.domain.encoding import encode
from app.domain.kits import ReplacementReason, Step, is_usable, next_status, status_after_replacement
from app.domain.signatures import RecordKind, SignatureShown
from app.domain.words import (
    Action,
    ArmCode,
    ConsignmentCode,
    FurtherKits,
    KitCode,
    KitStatus,
    SiteCode,
    StudyCode,
    StudyStatus,
    SubjectId,
    SubjectKey,
    subject_key,
)
from app.errors import (
    AlreadyDispensed,
    IllegalTransition,
    IntegrityBroken,
    KitMismatch,
    Missing,
    ReplacementNeedsRelease,
    SiteInactive,
    StudyNotOpen,
)
from app.services import pages
from app.services.audited import Act, audited
from app.services.context import RequestContext
from app.services.enveloping import put_by, wake_writer
from app.services.evidence import (
    KitAssignmentPlace,
    OpenedKit,
    open_allocation,
    open_assigned_kit,
    seal_binding,
)
from app.services.signatures import sign, with_signatures
from app.services.stock import StockDraw, site_day
from app.storage import allocations, kits, studies
from app.storage.allocations import Allocation
from app.storage.kits import Assignment, KitAssignment, KitRow, Waiting

_BETWEEN_REPLACEMENTS: Final = timedelta(hours=24)
_VISITS_A_DAY: Final = 3
"""So many kits for visits a subject may have within 24 hours without a release."""
_STEPS: Final[Mapping[Action, Step]] = {
    Action.QUARANTINE_KIT: Step.QUARANTINE,
    Action.RETURN_KIT: Step.RETURN,
    Action.REPORT_LOSS: Step.REPORT_LOSS,
    Action.REPORT_DAMAGE: Step.REPORT_DAMAGE,
}
_log: Final = structlog.get_logger("snose.kits")


# -- reading ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class StockItem:
    """A kit of a site: its status, and whether it may be used."""

    kit_code: KitCode
    consignment_code: ConsignmentCode
    status: KitStatus
    usable: bool


@dataclass(frozen=True, slots=True)
class StockPage:
    """A page of a site's stock, and how many of all its kits have each status; arms are pooled (BLD-07)."""

    items: Sequence[StockItem]
    counts: Mapping[KitStatus, int]
    next_cursor: str | None


def read_stock(ctx: RequestContext, study: StudyCode, site_code: SiteCode, limit: int, cursor: str | None) -> StockPage:
    """Return the kits of a site in the order of their codes, of the consignments that were sent at the first page."""

    def work(act: Act) -> StockPage:
        act.note(target={"site_code": site_code})
        act.at_site(site_code)
        study_id = act.study.study_id
        today = site_day(act.now, studies.get_site(act.tx, study_id, site_code).timezone)
        after, until = None, act.now
        if cursor is not None:
            last, pinned = pages.decode(act, cursor)
            after, until = KitCode(last), datetime.fromisoformat(pinned)
        found = kits.list_at_site(act.tx, study_id, site_code, after, until, limit + 1)
        more = len(found) > limit
        found = found[:limit]
        return StockPage(
            [StockItem(kit.kit_code, kit.consignment_code, kit.status, _is_usable(kit, today)) for kit in found],
            kits.count_at_site(act.tx, study_id, site_code),
            pages.encode(act, [found[-1].kit_code, until.isoformat()]) if more else None,
        )

    return audited(ctx, Action.READ_STOCK, work, study=study)


@dataclass(frozen=True, slots=True)
class Worklist:
    """A page of what waits to be handed out."""

    items: Sequence[Waiting]
    next_cursor: str | None


def read_worklist(
    ctx: RequestContext, study: StudyCode, site_code: SiteCode, limit: int, cursor: str | None
) -> Worklist:
    """Return the kits of a site that were given to a subject and not handed out yet, the oldest first."""

    def work(act: Act) -> Worklist:
        act.note(target={"site_code": site_code})
        act.at_site(site_code)
        study_id = act.study.study_id
        studies.get_site(act.tx, study_id, site_code)
        after, until = None, act.now
        if cursor is not None:
            at, last, pinned = pages.decode(act, cursor)
            after, until = (datetime.fromisoformat(at), KitCode(last)), datetime.fromisoformat(pinned)
        found = kits.list_waiting(act.tx, study_id, site_code, after, until, limit + 1)
        more = len(found) > limit
        found = found[:limit]
        following = [found[-1].assigned_at.isoformat(), found[-1].kit_code, until.isoformat()] if more else []
        return Worklist(found, pages.encode(act, following) if more else None)

    return audited(ctx, Action.READ_WORKLIST, work, study=study)


@dataclass(frozen=True, slots=True)
class SubjectKit:
    """A kit of a subject as its site reads it."""

    kit_code: KitCode
    status: KitStatus
    usable: bool
    assigned_at: datetime
    dispensed_at: datetime | None
    visit: str | None


def list_subject_kits(ctx: RequestContext, study: StudyCode, subject: str) -> Sequence[SubjectKit]:
    """Return the kits that were given to a subject, the first one first; raise ``Missing``."""

    def work(act: Act) -> Sequence[SubjectKit]:
        allocation = _allocation(act, subject)
        today = _today(act, allocation)
        assigned = kits.list_assignments(act.tx, act.study.study_id, allocation.subject_key)
        return [
            SubjectKit(
                one.kit.kit_code,
                one.kit.status,
                _is_usable(one.kit, today),
                one.assigned_at,
                one.dispensed_at,
                one.visit,
            )
            for one in assigned
        ]

    return audited(ctx, Action.READ_SUBJECT_KITS, work, study=study)


def _allocation(act: Act, subject: str, **target: str) -> Allocation:
    """Return the allocation of a subject at a site of the caller's; raise ``Missing``, foreign like unknown (rule G2)."""
    key = subject_key(subject)
    act.note(target={**target, "subject_id": key}, subject_key=key)
    allocation = allocations.get_allocation(act.tx, act.study.study_id, key, act.decision.sites)
    act.note(site_code=allocation.site_code)
    return allocation


def _today(act: Act, allocation: Allocation) -> date:
    return site_day(act.now, studies.get_site(act.tx, act.study.study_id, allocation.site_code).timezone)


def _is_usable(kit: KitRow, today: date) -> bool:
    return is_usable(kit.status, kit.consignment_status, kit.unusable_from, today, is_recalled=kit.is_recalled)


# -- a kit for a subject -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class AssignedKit:
    """The kit that a subject was given; in whose place, if in any."""

    subject_id: SubjectId
    kit_code: KitCode
    status: KitStatus
    assigned_at: datetime
    visit: str | None
    replaces: KitCode | None


def assign_kit(ctx: RequestContext, study: StudyCode, subject: str, visit: str) -> AssignedKit:
    """Return the subject's kit for a visit, of the same arm; the same request again gives the same kit (rules B5, B6, C4).

    Raises ``Missing``, ``StudyNotOpen`` (draft or closed: suspended stops allocations only), ``SiteInactive`` and, last,
    ``StockInsufficient``.
    """
    draw = StockDraw()
    # "v2" and "V2" are one visit, like two spellings of a subject.
    named = visit.casefold()

    def work(act: Act) -> AssignedKit:
        allocation = _allocation(act, subject, visit=visit)
        key = allocation.subject_key
        content = encode("kit", key, named)
        stored = act.claim(hashlib.sha256(content).digest(), hashlib.sha256(content).digest(), AssignedKit)
        if stored is not None:
            return stored
        given = kits.list_assignments(act.tx, act.study.study_id, key)
        binding = open_allocation(act, allocation, _first_kit(given).kit.kit_id)
        timezone = _require_supply(act, allocation.site_code)
        kits.lock_stock(act.tx, act.study.study_id, allocation.site_code)
        # Read again, now that nobody else can give this subject a kit: many asked for at once are no more than in order.
        _require_protocol(act, key)
        _require_right_to_more(act, kits.list_assignments(act.tx, act.study.study_id, key))
        kit = _drawn(act, draw, allocation, timezone, binding)
        _give(act, allocation, kit, binding, visit=visit, replaces=None)
        act.note(after={"kit_code": kit.kit_code})
        return AssignedKit(allocation.subject_id, kit.kit_code, KitStatus.ASSIGNED, act.now, visit, None)

    assigned = audited(ctx, Action.ASSIGN_KIT, work, study=study, answer_type=AssignedKit, on_refusal=draw.on_refusal)
    wake_writer(ctx.deployment)
    return assigned


def _first_kit(given: Sequence[Assignment]) -> Assignment:
    """Return the assignment that came with the allocation."""
    first = next((one for one in given if one.visit is None and one.replaces is None), None)
    if first is None:
        # An allocation is committed only together with its kit.
        raise IntegrityBroken
    return first


def _require_supply(act: Act, site_code: SiteCode) -> str:
    """Return the site's time zone; raise unless subjects there may be given kits now."""
    standing = studies.hold_standing(act.tx, act.study.study_id, site_code)
    if standing.status not in {StudyStatus.OPEN, StudyStatus.SUSPENDED}:
        raise StudyNotOpen
    if not standing.site_is_active:
        raise SiteInactive
    return standing.site_timezone


def _drawn(act: Act, draw: StockDraw, allocation: Allocation, timezone: str, binding: Binding) -> OpenedKit:
    """Return a kit of the subject's arm, drawn as for a new subject; raise ``StockInsufficient`` (rules B5, B6)."""
    arms = [arm.arm_code for arm in act.deployment.commitments.signed_arms(act.tx, act.study, allocation.schedule_id)]
    return draw.offer(act, allocation.site_code, timezone, arms)[binding.arm_code]


def _require_protocol(act: Act, key: SubjectKey) -> None:
    """Return unless the subject's code was broken and the protocol gives no kits then; raise ``IllegalTransition`` (EUB-14).

    Whoever may ask sees the flag of the subject anyway, and it says the same for every arm.
    """
    if act.study.further_kits_after_break is FurtherKits.ALLOWED:
        return
    if allocations.list_unblinded(act.tx, act.study.study_id, [key]):
        message = "The code of this subject was broken, and the protocol of this study gives no further kits then."
        raise IllegalTransition(message)


def _require_right_to_more(act: Act, given: Sequence[Assignment]) -> None:
    """Return when a subject may have another kit for a visit now; raise ``ReplacementNeedsRelease`` past a day's measure.

    Whoever could draw kits for one subject until the stock refuses would count one arm, and learn which subjects share it
    (rules B7, B9): so the supply manager releases what is more than a few a day, on the subject's newest kit.
    """
    recent = [one for one in given if one.visit is not None and one.assigned_at > act.now - _BETWEEN_REPLACEMENTS]
    newest = max(given, key=lambda one: one.assigned_at)
    if len(recent) >= _VISITS_A_DAY and not kits.has_replacement_release(act.tx, act.study.study_id, newest.kit.kit_id):
        message = f"More than {_VISITS_A_DAY} kits for visits of one subject within 24 hours need a release."
        raise ReplacementNeedsRelease(message)


def _give(
    act: Act,
    allocation: Allocation,
    kit: OpenedKit,
    binding: Binding,
    *,
    visit: str | None,
    replaces: KitRow | None,
) -> None:
    assignment_id = act.deployment.new_id()
    place = KitAssignmentPlace(assignment_id, allocation.subject_key, kit.kit_id, kit.kit_code)
    sealed, key_version = seal_binding(act, place, binding)
    kits.record_assignment(
        act.tx,
        act.study.study_id,
        KitAssignment(
            assignment_id=assignment_id,
            kit_id=kit.kit_id,
            subject_key=allocation.subject_key,
            visit=visit,
            replaces=None if replaces is None else replaces.kit_id,
            assigned_at=act.now,
            assigned_by=act.principal.name,
            dispensed_at=None,
            dispensed_by=None,
            sealed_binding=sealed,
            key_version=key_version,
        ),
    )
    put_by(act, allocation.subject_id, allocation.site_code, kit, binding.treatment)


@dataclass(frozen=True, slots=True)
class DispensedKit:
    """A kit that was handed to its subject."""

    subject_id: SubjectId
    kit_code: KitCode
    status: KitStatus
    dispensed_at: datetime


def dispense_kit(
    ctx: RequestContext, study: StudyCode, kit_code: KitCode, subject: str, scanned_code: KitCode
) -> DispensedKit:
    """Return the kit, handed out after a second look at its label (KIT-14).

    Raises ``Missing`` for the subject, ``AlreadyDispensed``, and ``KitMismatch`` for everything else that may be wrong with the
    kit: one answer and one entry for all of it, so that nothing is learnt of another kit (rule B9).
    """

    def work(act: Act) -> DispensedKit:
        study_id = act.study.study_id
        allocation = _allocation(act, subject, kit_code=kit_code, scanned_code=scanned_code)
        today = _today(act, allocation)
        kits.lock_stock(act.tx, study_id, allocation.site_code)
        kit = kits.lock_kit(act.tx, study_id, kit_code)
        if kit is None or scanned_code != kit_code:
            raise KitMismatch
        assignment = kits.find_assignment_by_kit(act.tx, study_id, kit.kit_id)
        if assignment is None or assignment.subject_key != allocation.subject_key:
            raise KitMismatch
        if kit.status is KitStatus.DISPENSED:
            raise AlreadyDispensed
        if kit.status is not KitStatus.ASSIGNED or not _is_usable(kit, today):
            raise KitMismatch
        kits.record_dispensation(act.tx, study_id, assignment, act.now, act.principal.name)
        status = next_status(kit.status, Step.DISPENSE)
        act.note(before={"status": kit.status}, after={"status": status})
        return DispensedKit(allocation.subject_id, kit_code, status, act.now)

    return audited(ctx, Action.DISPENSE_KIT, work, study=study, answer_type=DispensedKit)


def replace_kit(
    ctx: RequestContext, study: StudyCode, kit_code: KitCode, reason_code: ReplacementReason, reason: str
) -> AssignedKit:
    """Return the kit that stands in another one's place, silently of the same arm (rule B9, KIT-10).

    The same request again gives the same kit. Raises ``Missing``, ``IllegalTransition`` for a kit that belongs to nobody or was
    replaced, ``ReplacementNeedsRelease`` for the second within 24 hours, and what ``assign_kit`` raises.
    """
    draw = StockDraw()

    def work(act: Act) -> AssignedKit:
        study_id = act.study.study_id
        site_code = _own_site(act, kit_code)
        allocation, given = _holder(act, kit_code)
        content = encode("replacement", kit_code, reason_code)
        stored = act.claim(hashlib.sha256(content).digest(), hashlib.sha256(content).digest(), AssignedKit)
        if stored is not None:
            return stored
        binding = open_allocation(act, allocation, _first_kit(given).kit.kit_id)
        timezone = _require_supply(act, site_code)
        kits.lock_stock(act.tx, study_id, site_code)
        kits.lock_kit(act.tx, study_id, kit_code)
        # Read again, now that nobody else can replace any kit of this subject.
        given = kits.list_assignments(act.tx, study_id, allocation.subject_key)
        old = next(one for one in given if one.kit.kit_code == kit_code)
        _require_protocol(act, allocation.subject_key)
        _require_right_to_replace(act, given, old)
        status = status_after_replacement(old.kit.status, reason_code)
        kit = _drawn(act, draw, allocation, timezone, binding)
        kits.record_status(act.tx, study_id, old.kit.kit_id, status)
        _give(act, allocation, kit, binding, visit=old.visit, replaces=old.kit)
        act.note(
            before={"status": old.kit.status},
            after={"status": status, "reason_code": reason_code, "replaced_by": kit.kit_code},
            restricted={"reason": reason},
        )
        return AssignedKit(allocation.subject_id, kit.kit_code, KitStatus.ASSIGNED, act.now, old.visit, kit_code)

    assigned = audited(ctx, Action.REPLACE_KIT, work, study=study, answer_type=AssignedKit, on_refusal=draw.on_refusal)
    wake_writer(ctx.deployment)
    return assigned


def _own_site(act: Act, kit_code: KitCode) -> SiteCode:
    """Return the site of a kit, which is the caller's; raise ``Missing`` for unknown, unsent and foreign kits alike."""
    act.note(target={"kit_code": kit_code})
    kit = kits.find_kit(act.tx, act.study.study_id, kit_code)
    if kit is None or kit.site_code is None:
        raise Missing
    act.at_site(kit.site_code)
    return kit.site_code


def _holder(act: Act, kit_code: KitCode) -> tuple[Allocation, Sequence[Assignment]]:
    """Return the subject who was given a kit, and all kits of that subject; raise ``IllegalTransition`` when nobody was."""
    study_id = act.study.study_id
    kit = kits.find_kit(act.tx, study_id, kit_code)
    assignment = None if kit is None else kits.find_assignment_by_kit(act.tx, study_id, kit.kit_id)
    allocation = None if assignment is None else allocations.find_allocation(act.tx, study_id, assignment.subject_key)
    if allocation is None:
        message = "This kit was given to nobody, so nothing can stand in its place."
        raise IllegalTransition(message)
    act.note(target={"kit_code": kit_code, "subject_id": allocation.subject_key}, subject_key=allocation.subject_key)
    return allocation, kits.list_assignments(act.tx, study_id, allocation.subject_key)


def _require_right_to_replace(act: Act, given: Sequence[Assignment], old: Assignment) -> None:
    """Return when a kit may be replaced now: once, and without a release only when the last replacement is a day ago."""
    if any(one.replaces == old.kit.kit_id for one in given):
        message = "This kit was replaced before."
        raise IllegalTransition(message)
    recent = act.now - _BETWEEN_REPLACEMENTS
    was_replaced_just_now = any(one.replaces is not None and one.assigned_at > recent for one in given)
    if was_replaced_just_now and not kits.has_replacement_release(act.tx, act.study.study_id, old.kit.kit_id):
        raise ReplacementNeedsRelease


@dataclass(frozen=True, slots=True)
class ReplacementRelease:
    """The leave to replace a kit now; it names no subject (rule B9)."""

    kit_code: KitCode
    released_at: datetime


def release_replacement(ctx: RequestContext, study: StudyCode, kit_code: KitCode) -> ReplacementRelease:
    """Return the leave to replace a kit although its subject had a replacement just now.

    Raises ``Missing``, and ``AlreadyExists`` for a kit that was released. Nothing tells whether the kit belongs to anybody.
    """

    def work(act: Act) -> ReplacementRelease:
        act.note(target={"kit_code": kit_code})
        kit = kits.find_kit(act.tx, act.study.study_id, kit_code)
        if kit is None:
            raise Missing
        act.note(site_code=kit.site_code)
        kits.add_replacement_release(act.tx, act.study.study_id, kit.kit_id, act.now, act.principal.name)
        return ReplacementRelease(kit_code, act.now)

    return audited(ctx, Action.RELEASE_REPLACEMENT, work, study=study, answer_type=ReplacementRelease)


# -- putting aside, and accounting ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class KitState:
    """A kit after a step."""

    kit_code: KitCode
    status: KitStatus


@dataclass(frozen=True, slots=True)
class SignedKitState:
    """A kit after a step of the supply manager's, and who signed for it."""

    kit_code: KitCode
    status: KitStatus
    is_signed: bool = False
    signatures: tuple[SignatureShown, ...] = ()


def quarantine_kit(ctx: RequestContext, study: StudyCode, kit_code: KitCode, reason: str) -> KitState:
    """Return the kit, put aside at once until the supply manager decides (KIT-05, 06)."""
    return _at_site(ctx, Action.QUARANTINE_KIT, study, kit_code, reason)


def return_kit(ctx: RequestContext, study: StudyCode, kit_code: KitCode, reason: str) -> KitState:
    """Return the kit, back from its subject and never dispensed again (KIT-11)."""
    return _at_site(ctx, Action.RETURN_KIT, study, kit_code, reason)


def report_loss(ctx: RequestContext, study: StudyCode, kit_code: KitCode, reason: str) -> KitState:
    """Return the kit, lost."""
    return _at_site(ctx, Action.REPORT_LOSS, study, kit_code, reason)


def report_damage(ctx: RequestContext, study: StudyCode, kit_code: KitCode, reason: str) -> KitState:
    """Return the kit, damaged."""
    return _at_site(ctx, Action.REPORT_DAMAGE, study, kit_code, reason)


def _at_site(ctx: RequestContext, action: Action, study: StudyCode, kit_code: KitCode, reason: str) -> KitState:
    """Return a kit of the caller's site after a step; raise ``Missing`` or ``IllegalTransition``.

    Putting aside what nobody was given alerts the supply manager: done often enough it would show a floor (rule B6).
    """
    alerts: list[SiteCode] = []

    def work(act: Act) -> KitState:
        alerts.clear()
        study_id = act.study.study_id
        site_code = _own_site(act, kit_code)
        kit = _any_kit(act, kit_code)
        assignment = kits.find_assignment_by_kit(act.tx, study_id, kit.kit_id)
        status = next_status(kit.status, _STEPS[action])
        kits.record_status(act.tx, study_id, kit.kit_id, status)
        if assignment is None:
            alerts.append(site_code)
        else:
            act.note(subject_key=assignment.subject_key)
        act.note(
            before={"status": kit.status},
            after={"status": status, **({"alert": "supply_manager"} if assignment is None else {})},
            restricted={"reason": reason},
        )
        return KitState(kit_code, status)

    state = audited(ctx, action, work, study=study, answer_type=KitState)
    for site_code in alerts:
        _log.warning("unassigned kit put aside", study=study, site=site_code)
    return state


def release_kit(ctx: RequestContext, study: StudyCode, kit_code: KitCode, reason: str) -> SignedKitState:
    """Return the kit, out of quarantine to where it was: stock, or its subject (KIT-05).

    A consignment that was withdrawn stays so. Raises ``Missing``, ``IllegalTransition`` also for a kit by which a code was broken:
    somebody at the site knows its arm.
    """

    def work(act: Act) -> SignedKitState:
        kit = _any_kit(act, kit_code)
        if kits.was_broken(act.tx, act.study.study_id, kit.kit_id):
            message = "The code was broken by this kit. It can only be destroyed."
            raise IllegalTransition(message)
        assignment = kits.find_assignment_by_kit(act.tx, act.study.study_id, kit.kit_id)
        step = Step.RELEASE_TO_STOCK if assignment is None else Step.RELEASE_TO_SUBJECT
        return _step(act, kit, step, reason)

    return audited(ctx, Action.RELEASE_KIT, work, study=study, answer_type=SignedKitState)


def destroy_kit(ctx: RequestContext, study: StudyCode, kit_code: KitCode, reason: str) -> SignedKitState:
    """Return the kit, destroyed on the supply manager's word (KIT-12); raise ``Missing`` or ``IllegalTransition``."""

    def work(act: Act) -> SignedKitState:
        return _step(act, _any_kit(act, kit_code), Step.DESTROY, reason)

    return audited(ctx, Action.DESTROY_KIT, work, study=study, answer_type=SignedKitState)


def _any_kit(act: Act, kit_code: KitCode) -> KitRow:
    """Return a kit of any site, locked with its site's stock; raise ``Missing``."""
    study_id = act.study.study_id
    act.note(target={"kit_code": kit_code})
    kit = kits.find_kit(act.tx, study_id, kit_code)
    if kit is not None and kit.site_code is not None:
        act.note(site_code=kit.site_code)
        kits.lock_stock(act.tx, study_id, kit.site_code)
    kit = kits.lock_kit(act.tx, study_id, kit_code)
    if kit is None:
        raise Missing
    return kit


def _step(act: Act, kit: KitRow, step: Step, reason: str) -> SignedKitState:
    # The entry names no subject: the supply manager, whose act it is, reads nothing about subjects (rule B10).
    status = next_status(kit.status, step)
    kits.record_status(act.tx, act.study.study_id, kit.kit_id, status)
    act.note(before={"status": kit.status}, after={"status": status}, restricted={"reason": reason})
    kind = RecordKind.KIT_DESTRUCTION if step is Step.DESTROY else RecordKind.KIT_RELEASE
    content = {"kit_code": kit.kit_code, "consignment_code": kit.consignment_code, "status": status}
    sign(act, kind, str(kit.kit_id), content)
    return with_signatures(act, kind, [SignedKitState(kit.kit_code, status)], lambda _: (str(kit.kit_id), content))[0]


# -- preparation -----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Preparation:
    """What to prepare for one subject. Danger: an unblinded answer."""

    subject_id: SubjectId
    kit_code: KitCode
    arm_code: ArmCode = field(repr=False)
    treatment: str = field(repr=False)
    lot: str = field(repr=False)
    expires_on: date = field(repr=False)


def read_preparation(ctx: RequestContext, study: StudyCode, subject: str) -> Preparation:
    """Return what to prepare for a subject from the newest kit that it has; the entry holds nothing of the arm (rule E3).

    Raises ``Missing``, ``KitMismatch`` for a subject without a usable kit, and ``IntegrityBroken`` unless slot, bindings and kit
    say the same.
    """

    def work(act: Act) -> Preparation:
        allocation = _allocation(act, subject)
        today = _today(act, allocation)
        given = kits.list_assignments(act.tx, act.study.study_id, allocation.subject_key)
        current = next((one for one in reversed(given) if _is_usable(one.kit, today)), None)
        if current is None:
            message = "The subject has no usable kit."
            raise KitMismatch(message)
        bound = open_allocation(act, allocation, _first_kit(given).kit.kit_id)
        kit, binding = open_assigned_kit(act, current)
        if binding != bound:
            raise IntegrityBroken
        act.note(after={"kit_code": kit.kit_code})
        return Preparation(
            allocation.subject_id, kit.kit_code, kit.arm_code, binding.treatment, kit.lot, kit.expires_on
        )

    return audited(ctx, Action.READ_PREPARATION, work, study=study, on_withheld=_nothing_to_mark)


def _nothing_to_mark(_tx: object, _result: Preparation) -> None:
    """A withheld answer is entered as withheld; nothing else was changed."""
