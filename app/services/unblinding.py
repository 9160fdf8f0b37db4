"""Break the code of one subject, alone and at once; and the other doors: safety, and the end of the study (rule section D).

Only binding, slot and kits together say what a treatment is, and only when they agree with each other and with the words that were
signed: whatever disagrees gives no answer. No entry here has a field for an arm; the restricted parts have none either (rule E3).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Final, cast
from uuid import UUID

import structlog

from app.domain.code_breaks import late
from app.domain.drills import ONE_GO, seconds_to_reveal
from app.domain.encoding import encode
from app.domain.frequency import WATCHED, is_frequent
from app.domain.kits import STEPS, Step
from app.domain.notices import Notice, Topic
from app.domain.sealed import Column, SealContext
from app.domain.signatures import RecordKind, SignatureShown
from app.domain.studies import is_exempt
from app.domain.words import (
    Action,
    ArmCode,
    Impact,
    KitCode,
    ReasonCode,
    Role,
    SiteCode,
    StudyCode,
    StudyStatus,
    SubjectId,
    subject_key,
)
from app.errors import (
    AlreadyExists,
    DatabaseUnavailable,
    IllegalTransition,
    IntegrityBroken,
    Invalid,
    Missing,
    SecondPersonRequired,
    SnoseError,
    SubjectMismatch,
)
from app.sealing.recipients import encrypt_to
from app.services import pages
from app.services.aside import LONGEST_WAIT_MS, put_aside_broken
from app.services.audited import Act, Receipt, Unfinished, audited
from app.services.context import Deployment, RequestContext
from app.services.evidence import safety_context
from app.services.final_package import FinalPackage
from app.services.outbox import tell_of_break, tell_of_frequency, tell_once, wake_sender
from app.services.signatures import Content, code_break_content, request_content, sign, with_signatures
from app.services.treatments import Shown, contact_when_unavailable, open_kit_of_nobody, open_subject
from app.storage import allocations, dual_control, kits, trail, unblinding
from app.storage.allocations import SAFETY, SubjectFlag
from app.storage.database import LOCK_TIMEOUT_MS, Transaction, TryAgain
from app.storage.dual_control import DualControlRequest
from app.storage.kits import KitRow
from app.storage.unblinding import CodeBreakRecord, NewCodeBreak, SafetyUnblinding

_log: Final = structlog.get_logger("snose.unblinding")
_FINAL_UNBLINDING: Final = "final_unblinding"
"""The kind under which its requests stand among those that two people decide."""


# -- the code break ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class CodeBreakRequest:
    """One subject or one kit (rule D2); the own second factor was given before."""

    subject_id: str | None
    kit_code: KitCode | None
    reason_code: ReasonCode
    requested_by: str | None
    confirm_subject_id: str | None = None
    """Whom the caller believes it to be, where they wish to be sure (EUB-21)."""


@dataclass(frozen=True, slots=True)
class CodeBreak:
    """The answer to who broke the code, and to nobody else (rule D6). Danger: holds a treatment."""

    code_break_id: UUID
    subject_id: SubjectId | None
    arm_code: ArmCode = field(repr=False)
    treatment: str = field(repr=False)
    kit_codes: Sequence[KitCode]
    revealed_at: datetime
    receipt: Receipt | None = None


def break_code(ctx: RequestContext, study: StudyCode, wanted: CodeBreakRequest) -> CodeBreak:
    """Return one subject's treatment once its reveal is durably recorded; nothing but a missing proof stands before it.

    Raises ``Invalid`` for a safety officer who names no requester, ``Missing``, ``SubjectMismatch`` for another subject than the
    caller named to be sure, and ``RevealUnavailable`` with the back-up contact
    for whatever else keeps the answer from leaving.
    """
    with contact_when_unavailable(ctx) as contact:
        waiting = _Waiting()

        def work(act: Act) -> CodeBreak:
            contact.text = act.study.backup_contact or contact.text
            if act.decision.role is Role.SAFETY_OFFICER and not wanted.requested_by:
                message = "A safety officer names the clinician who asks for the code."
                raise Invalid(message, "requested_by")
            if wanted.kit_code is not None and wanted.subject_id is None:
                return _break(act, wanted, *_find_by_kit(act, wanted.kit_code, waiting))
            if wanted.subject_id is not None and wanted.kit_code is None:
                return _break(act, wanted, None, _find_subject(act, wanted.subject_id))
            message = "Name one subject or one kit, and not both."
            raise Invalid(message, "subject_id")

        def on_withheld(tx: Transaction, result: CodeBreak) -> None:
            unblinding.record_withheld_break(tx, study, result.code_break_id)

        try:
            return audited(ctx, Action.BREAK_CODE, work, study=study, on_withheld=on_withheld)
        finally:
            wake_sender(ctx.deployment)
            if waiting.is_over:
                _put_aside_apart(ctx)


@dataclass(slots=True)
class _Waiting:
    """Whether a code break has waited for the stock of a site: it does so once, and not for long (rule D5)."""

    is_over: bool = False


def _put_aside_apart(ctx: RequestContext) -> None:
    """Put the kit aside now that the break is done with; whatever hinders it keeps the answer from nobody."""
    try:
        put_aside_broken(ctx.deployment)
    except (SnoseError, TryAgain) as error:
        _log.warning("kit left to be put aside", kind=type(error).__name__)


def _find_subject(act: Act, subject_id: str) -> Shown:
    key = subject_key(subject_id)
    act.note(target={"subject_id": key}, subject_key=key)
    allocation = allocations.get_allocation(act.tx, act.study.study_id, key, act.decision.sites)
    act.note(site_code=allocation.site_code)
    return open_subject(act, allocation)


def _find_by_kit(act: Act, kit_code: KitCode, waiting: _Waiting) -> tuple[UUID, Shown]:
    """Return the kit and what is in it; with a kit in hand any investigator of the study may ask (rule D2).

    A kit of nobody's is put aside under the lock of its site's stock. When that lock cannot be had within a second the door runs
    this again, and then the treatment goes out without: the kit is put aside apart, as soon as the stock is free.
    """
    study_id = act.study.study_id
    act.note(target={"kit_code": kit_code})
    kit = kits.find_kit(act.tx, study_id, kit_code)
    if kit is None:
        raise Missing
    given = kits.find_assignment_by_kit(act.tx, study_id, kit.kit_id)
    is_locked = given is None and not waiting.is_over
    if is_locked:
        waiting.is_over = True
        act.tx.wait_for_locks(LONGEST_WAIT_MS)
        kits.lock_stock(act.tx, study_id, kit.site_code)
        kit = kits.lock_kit(act.tx, study_id, kit_code) or kit
        # Read again behind the locks: somebody may have been given it just now.
        given = kits.find_assignment_by_kit(act.tx, study_id, kit.kit_id)
        act.tx.wait_for_locks(LOCK_TIMEOUT_MS)
        waiting.is_over = False
    if given is None:
        act.note(site_code=kit.site_code)
        shown = open_kit_of_nobody(act, kit)
        _put_aside(act, kit, is_locked=is_locked)
        return kit.kit_id, shown
    allocation = allocations.get_allocation(act.tx, study_id, given.subject_key, None)
    act.note(
        target={"kit_code": kit_code, "subject_id": allocation.subject_key},
        subject_key=allocation.subject_key,
        site_code=allocation.site_code,
    )
    return kit.kit_id, open_subject(act, allocation)


def _put_aside(act: Act, kit: KitRow, *, is_locked: bool) -> None:
    """Quarantine a kit whose code is known now, wherever it was, so that nobody is ever given it (EUB-07).

    One that is not locked is somebody else's to change just now: the entry says that it is put aside later.
    """
    status = STEPS[Step.BREAK_CODE].get(kit.status, kit.status)
    if status is not kit.status:
        if not is_locked:
            act.note(before={"kit_status": kit.status}, after={"kit_status": kit.status, "put_aside": "later"})
            return
        kits.record_status(act.tx, act.study.study_id, kit.kit_id, status)
    act.note(before={"kit_status": kit.status}, after={"kit_status": status})


def _break(act: Act, wanted: CodeBreakRequest, kit_id: UUID | None, shown: Shown) -> CodeBreak:
    """Record the break and return the answer; it leaves when the entry is committed and under a checkpoint."""
    if wanted.confirm_subject_id is not None and subject_key(wanted.confirm_subject_id) != shown.subject_key:
        # Of a kit of nobody's too. Raised before anything is kept, so that nothing of it is spent, put aside or told.
        raise SubjectMismatch
    sites = act.decision.sites
    code_break = NewCodeBreak(
        act.deployment.new_id(),
        shown.subject_key,
        kit_id,
        shown.site_code,
        is_by_kit_code=kit_id is not None,
        is_own_site=sites is None or shown.site_code in sites,
        reason_code=wanted.reason_code,
        broken_at=act.now,
        broken_by=act.principal.name,
        # No code is broken but by a role.
        role=cast("Role", act.decision.role),
    )
    unblinding.add_code_break(act.tx, act.study.study_id, code_break)
    tell_of_break(act, code_break.code_break_id, shown.site_code, shown.subject_id)
    often = _frequent(act, shown.site_code)
    act.outcome = unblinding.AUTHORISED
    act.note(
        after={
            **(act.after or {}),
            "code_break_id": str(code_break.code_break_id),
            "reason_code": wanted.reason_code,
            "by_kit_code": code_break.is_by_kit_code,
            "own_site": code_break.is_own_site,
            # An expired password alerts and does not block (rule D1).
            **({"password_expired": True} if act.principal.password_expired else {}),
            # And so do a delegation that has ended and was not revoked, a training not on record, a factor just recovered.
            **_lapsed(act, shown.site_code),
            **often,
        },
        restricted={"requested_by": wanted.requested_by} if wanted.requested_by else None,
    )
    sign(act, RecordKind.CODE_BREAK, str(code_break.code_break_id), code_break_content(code_break))
    return CodeBreak(
        code_break.code_break_id, shown.subject_id, shown.arm_code, shown.treatment, shown.kit_codes, act.now
    )


def _frequent(act: Act, site_code: SiteCode | None) -> dict[str, Any]:
    """Return what is unusual in how often this person, or this site, breaks codes: told at once, and no hindrance (EUB-20).

    Counted beside the break: a count that cannot be had keeps the treatment from nobody.
    """
    person = act.principal.name
    try:
        with act.tx.dispensable():
            recent = unblinding.list_recent_breaks(act.tx, act.study.study_id, act.now - WATCHED)
    except (DatabaseUnavailable, IntegrityBroken) as error:
        _log.error("code breaks not counted", kind=type(error).__name__, request_id=act.ctx.request_id)
        return {}
    by_person = sum(one.broken_by == person for one in recent)
    at_site = sum(one.site_code == site_code for one in recent)
    if not is_frequent(by_person, at_site):
        return {}
    _log.warning(
        "frequent code breaks",
        study=act.study.study_code,
        site=site_code,
        by_person=by_person,
        at_site=at_site,
        request_id=act.ctx.request_id,
    )
    tell_of_frequency(act, site_code, by_person, at_site)
    return {"alert": "frequent_code_breaks", "by_person_in_a_day": by_person, "at_site_in_a_day": at_site}


def _lapsed(act: Act, site_code: SiteCode | None) -> dict[str, bool]:
    where = act.study.study_code, cast("Role", act.decision.role), site_code
    found = {
        "delegation_ended": act.principal.acts_after_end(*where),
        "training_missing": act.principal.acts_untrained(*where),
        "factor_recovered": act.principal.was_recovered_lately(act.now),
    }
    return {name: True for name, is_so in found.items() if is_so}


@dataclass(frozen=True, slots=True)
class Narrated:
    """That the narrative of a code break was given."""

    code_break_id: UUID
    narrated_at: datetime
    receipt: Receipt | None = None


def add_narrative(ctx: RequestContext, study: StudyCode, code_break_id: UUID, narrative: str) -> Narrated:
    """Keep what happened, told after the break by who broke the code, once (EUB-09); raises ``Missing``, ``AlreadyExists``."""

    def work(act: Act) -> Narrated:
        study_id = act.study.study_id
        act.note(target={"code_break_id": str(code_break_id)})
        found = unblinding.get_break_of(act.tx, study_id, code_break_id, act.principal.name)
        act.note(subject_key=found.subject_key, site_code=found.site_code)
        if not unblinding.record_narration(act.tx, study_id, code_break_id, act.now):
            message = "The narrative of this code break was given before; it stands as it is."
            raise AlreadyExists(message)
        act.note(restricted={"narrative": narrative})
        return Narrated(code_break_id, act.now)

    return audited(ctx, Action.ADD_NARRATIVE, work, study=study, answer_type=Narrated)


@dataclass(frozen=True, slots=True)
class Assessment:
    """What a code break means for the trial, and what is done that it does not happen needlessly again."""

    impact: Impact
    text: str
    corrective_action: str | None


@dataclass(frozen=True, slots=True)
class Assessed:
    """That the impact of a code break was assessed."""

    code_break_id: UUID
    impact: Impact
    assessed_at: datetime
    assessed_by: str
    receipt: Receipt | None = None


def assess_break(ctx: RequestContext, study: StudyCode, code_break_id: UUID, assessment: Assessment) -> Assessed:
    """Keep what a code break means for the trial, told once by somebody of its site or of the study (EUB-24).

    The words are in the restricted part of the entry, as those of a narrative are. Raises ``Missing``, ``AlreadyExists``.
    """

    def work(act: Act) -> Assessed:
        study_id, who = act.study.study_id, act.principal.name
        act.note(target={"code_break_id": str(code_break_id)})
        found = unblinding.get_break_at(act.tx, study_id, code_break_id, act.decision.sites)
        act.note(subject_key=found.subject_key, site_code=found.site_code)
        unblinding.add_assessment(act.tx, study_id, code_break_id, assessment.impact, act.now, who)
        act.note(
            after={"impact": assessment.impact},
            restricted={"assessment": assessment.text, "corrective_action": assessment.corrective_action},
        )
        return Assessed(code_break_id, assessment.impact, act.now, who)

    return audited(ctx, Action.ASSESS_BREAK, work, study=study, answer_type=Assessed)


def tell_late_breaks(deployment: Deployment) -> None:
    """Tell the receivers of a study's notices, once each, of the narratives and assessments that are overdue (EUB-09)."""
    now = deployment.clock()
    with deployment.database.transaction() as tx:
        waiting = unblinding.list_late_breaks(tx, now)
    for one in waiting:
        for what in late(one.broken_at, one.narrated_at, one.assessed_at, now):
            name = deployment.ring.mac("overdue code break", encode(one.study_code, str(one.code_break_id), what))
            about = {"site_code": one.site_code, "code_break_id": str(one.code_break_id), "overdue": what}
            notice = Notice(Topic.OVERDUE_BREAK, now, one.study_code, deployment.mode, about)
            tell_once(deployment, one.study_id, name, notice)


@dataclass(frozen=True, slots=True)
class CodeBreakPage:
    """A page of the register."""

    items: Sequence[CodeBreakRecord]
    next_cursor: str | None


def list_code_breaks(ctx: RequestContext, study: StudyCode, limit: int, cursor: str | None) -> CodeBreakPage:
    """Return code breaks in the order of time, without treatments, as many as stood there at the first page."""

    def work(act: Act) -> CodeBreakPage:
        after, until = pages.place_in_time(act, cursor)
        found = unblinding.list_code_breaks(act.tx, act.study.study_id, act.decision.sites, after, until, limit + 1)
        items = found[:limit]
        following = None
        if len(found) > limit:
            following = pages.cursor_in_time(act, items[-1].broken_at, items[-1].code_break_id, until)
        return CodeBreakPage(
            with_signatures(act, RecordKind.CODE_BREAK, _tracked(act, items), _signed_break), following
        )

    return audited(ctx, Action.READ_CODE_BREAKS, work, study=study)


def _tracked(act: Act, records: Sequence[CodeBreakRecord]) -> list[CodeBreakRecord]:
    """Return code breaks with what took its time, and with what is late."""
    return [
        replace(one, overdue=late(one.broken_at, one.narrated_at, one.assessed_at, act.now))
        for one in _timed(act, records)
    ]


def _timed(act: Act, records: Sequence[CodeBreakRecord]) -> list[CodeBreakRecord]:
    """Return code breaks with the time that each took from the person's first request (EUB-03).

    It is told from the trail when the register is read, so that nothing is looked up while somebody waits for a treatment.
    """
    by_service = [record for record in records if record.opened_by is None]
    if not by_service:
        return list(records)
    study_id, people = act.study.study_id, {record.broken_by for record in by_service}
    begin, end = by_service[0].broken_at - ONE_GO, by_service[-1].broken_at
    subjects = {key for record in by_service if (key := record.code_break.subject_key) is not None}
    tries = trail.list_tries(act.tx, study_id, Action.BREAK_CODE, people, subjects, begin, end)
    reveals = unblinding.list_break_times(act.tx, study_id, people, begin, end)

    def took(record: CodeBreakRecord) -> float:
        refused = [one.at for one in tries if one.actor == record.broken_by and one.outcome != unblinding.AUTHORISED]
        before = [at for who, at in reveals if who == record.broken_by]
        return seconds_to_reveal(record.broken_at, refused, before)

    return [
        replace(record, seconds_to_reveal=took(record)) if record.opened_by is None else record for record in records
    ]


def _signed_break(record: CodeBreakRecord) -> tuple[str, Content]:
    return str(record.code_break_id), code_break_content(record.code_break)


# -- safety ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SafetyReveal:
    """The answer to the safety officer, and to nobody else (UNB-02). Danger: holds a treatment."""

    safety_unblinding_id: UUID
    subject_id: SubjectId | None
    arm_code: ArmCode = field(repr=False)
    treatment: str = field(repr=False)
    kit_codes: Sequence[KitCode]
    revealed_at: datetime
    receipt: Receipt | None = None


def unblind_for_safety(
    ctx: RequestContext,
    study: StudyCode,
    subject_id: str,
    reason: str,
    event: str | None = None,
    *,
    despite_exemption: bool = False,
) -> SafetyReveal:
    """Return one subject's treatment for a safety report; others learn neither the subject nor how it went on (UNB-02, 03).

    Where the protocol says so, the allocation shows that it happened (UNB-05). Raises ``Missing``, ``Invalid`` for an event that is
    exempt by the protocol and on which nobody insists (UNB-04), and ``RevealUnavailable`` with the back-up contact.
    """
    with contact_when_unavailable(ctx) as contact:

        def work(act: Act) -> SafetyReveal:
            study_id = act.study.study_id
            contact.text = act.study.backup_contact or contact.text
            # Neither a target nor a key of the subject: whose case it was is the restricted part's alone (rule E3).
            allocation = allocations.get_allocation(act.tx, study_id, subject_key(subject_id), None)
            if event is not None and not despite_exemption and is_exempt(event, act.study.exempt_events):
                message = "The protocol exempts this event from systematic unblinding; say so to unblind all the same."
                raise Invalid(message, "despite_exemption")
            shown = open_subject(act, allocation)
            unblinding_id = act.deployment.new_id()
            ring = act.deployment.ring
            sealed = ring.seal(safety_context(act, unblinding_id), allocation.subject_id.encode())
            unblinding.add_safety_unblinding(
                act.tx,
                study_id,
                SafetyUnblinding(unblinding_id, sealed, unblinding.AUTHORISED, act.now, act.principal.name),
                ring.newest_version(act.study.study_code),
            )
            act.outcome = unblinding.AUTHORISED
            act.note(
                after={"safety_unblinding_id": str(unblinding_id)},
                restricted={
                    "subject_id": allocation.subject_key,
                    "reason": reason,
                    **({} if event is None else {"event": event}),
                },
            )
            if act.study.safety_unblinding_shown:
                flag_id = act.deployment.new_id()
                flag = SubjectFlag(flag_id, allocation.subject_key, SAFETY, {}, act.now, act.principal.name)
                allocations.add_flag(act.tx, study_id, flag)
            sign(
                act,
                RecordKind.SAFETY_UNBLINDING,
                str(unblinding_id),
                _safety_content(unblinding_id, act.now, act.principal.name),
            )
            return SafetyReveal(
                unblinding_id, shown.subject_id, shown.arm_code, shown.treatment, shown.kit_codes, act.now
            )

        def on_withheld(tx: Transaction, result: SafetyReveal) -> None:
            unblinding.record_withheld_unblinding(tx, study, result.safety_unblinding_id)

        return audited(ctx, Action.UNBLIND_FOR_SAFETY, work, study=study, on_withheld=on_withheld)


@dataclass(frozen=True, slots=True)
class SafetyRecord:
    """A line of the safety officer's register."""

    safety_unblinding_id: UUID
    subject_id: SubjectId
    status: str
    unblinded_at: datetime
    unblinded_by: str
    is_signed: bool = False
    signatures: tuple[SignatureShown, ...] = ()


def _safety_content(unblinding_id: UUID, at: datetime, by: str) -> Content:
    """Return what is signed of a safety unblinding; its subject is bound to it by its seal, and known to few (rule E3)."""
    return {
        "safety_unblinding_id": str(unblinding_id),
        "unblinded_at": at.isoformat(timespec="microseconds"),
        "unblinded_by": by,
    }


def _signed_safety(record: SafetyRecord) -> tuple[str, Content]:
    content = _safety_content(record.safety_unblinding_id, record.unblinded_at, record.unblinded_by)
    return str(record.safety_unblinding_id), content


@dataclass(frozen=True, slots=True)
class SafetyPage:
    """A page of the safety officer's register."""

    items: Sequence[SafetyRecord]
    next_cursor: str | None


def list_safety_unblindings(ctx: RequestContext, study: StudyCode, limit: int, cursor: str | None) -> SafetyPage:
    """Return safety unblindings with their subjects, without treatments, in the order of time."""

    def work(act: Act) -> SafetyPage:
        after, until = pages.place_in_time(act, cursor)
        found = unblinding.list_safety_unblindings(act.tx, act.study.study_id, after, until, limit + 1)
        items = found[:limit]
        following = None
        if len(found) > limit:
            following = pages.cursor_in_time(act, items[-1].unblinded_at, items[-1].safety_unblinding_id, until)
        records = [_safety_record(act, one) for one in items]
        return SafetyPage(with_signatures(act, RecordKind.SAFETY_UNBLINDING, records, _signed_safety), following)

    return audited(ctx, Action.READ_SAFETY_UNBLINDINGS, work, study=study)


def _safety_record(act: Act, kept: SafetyUnblinding) -> SafetyRecord:
    subject = act.deployment.ring.open(safety_context(act, kept.safety_unblinding_id), kept.sealed_subject)
    return SafetyRecord(
        kept.safety_unblinding_id,
        SubjectId(subject.decode()),
        kept.status,
        kept.unblinded_at,
        kept.unblinded_by,
    )


# -- the end of the study ----------------------------------------------------------------------------------------------


def final_package_info(study: StudyCode) -> bytes:
    """Return what an encrypted final package is bound to; its recipient needs it to open it (RFC 9180, ``info``)."""
    return f"snose/v1/final-package\n{study}".encode()


@dataclass(frozen=True, slots=True)
class FinalRequested:
    """A request that waits for its second person."""

    request_id: UUID
    requested_at: datetime
    requested_by: str
    receipt: Receipt | None = None
    is_signed: bool = False
    signatures: tuple[SignatureShown, ...] = ()


def request_final_unblinding(
    ctx: RequestContext, study: StudyCode, database_lock_statement: str, recipient_key: str | None
) -> FinalRequested:
    """Return the request for the final package of a closed study, with the attested database lock (UNB-07).

    Raises ``IllegalTransition`` while the study is not closed, ``Invalid`` for a ``recipient_key`` that is none.
    """

    def work(act: Act) -> FinalRequested:
        if recipient_key is not None:
            # A key that is none would be found out when the package is there already.
            encrypt_to(recipient_key, b"", b"")
        act.note(target={"study_code": study})
        if act.study.status is not StudyStatus.CLOSED:
            message = f"The study is {act.study.status}; the final unblinding needs a closed one."
            raise IllegalTransition(message)
        request_id = act.deployment.new_id()
        ring = act.deployment.ring
        context = SealContext(Column.REQUEST_TEXT, study, (str(request_id),))
        request = DualControlRequest(
            request_id,
            _FINAL_UNBLINDING,
            None,
            recipient_key,
            ring.seal(context, database_lock_statement.encode()),
            ring.newest_version(study),
            act.now,
            act.principal.name,
        )
        dual_control.add_request(act.tx, act.study.study_id, request)
        act.note(
            target={"request_id": str(request_id)},
            after={"encrypted": recipient_key is not None},
            restricted={"database_lock_statement": database_lock_statement},
        )
        record_id, content = str(request_id), request_content(request)
        sign(act, RecordKind.FINAL_UNBLINDING, record_id, content)
        requested = FinalRequested(request_id, act.now, act.principal.name)
        return with_signatures(act, RecordKind.FINAL_UNBLINDING, [requested], lambda _: (record_id, content))[0]

    return audited(ctx, Action.REQUEST_FINAL_UNBLINDING, work, study=study, answer_type=FinalRequested)


@dataclass(frozen=True, slots=True)
class ReleasedPackage:
    """The final package as it leaves. Danger: holds every arm."""

    content: bytes = field(repr=False)
    media_type: str
    file_name: str


@dataclass(slots=True)
class _Release(Unfinished):
    """What was released: the documents, opened, and for whom."""

    study: StudyCode
    package: FinalPackage = field(repr=False)
    recipient_key: str | None
    content: bytes = field(default=b"", repr=False)

    def finish(self) -> None:
        """Make the package whole: its trail holds the entry of its own release."""
        content = self.package.complete()
        if self.recipient_key is not None:
            content = encrypt_to(self.recipient_key, content, final_package_info(self.study))
        self.content = content


def release_final_unblinding(ctx: RequestContext, study: StudyCode, request_id: UUID) -> ReleasedPackage:
    """Return the final package of the study, released once by another person than who asked for it (rule F3, UNB-07).

    Raises ``Missing``, ``SecondPersonRequired``, ``IllegalTransition`` for a request that was released before, and
    ``IntegrityBroken`` when something does not open in its place.
    """

    def work(act: Act) -> _Release:
        study_id = act.study.study_id
        act.note(target={"request_id": str(request_id)})
        request = dual_control.lock_request(act.tx, study_id, _FINAL_UNBLINDING, request_id)
        if request.requested_by == act.principal.name:
            raise SecondPersonRequired
        if request.released_at is not None:
            message = "This request was released before; another copy needs a new request."
            raise IllegalTransition(message)
        dual_control.record_release(act.tx, study_id, request_id, act.now, act.principal.name)
        act.note(after={"requested_by": request.requested_by, "encrypted": request.recipient_key is not None})
        sign(act, RecordKind.FINAL_UNBLINDING, str(request_id), request_content(request))
        return _Release(study, FinalPackage(act), request.recipient_key)

    released = audited(ctx, Action.RELEASE_FINAL_UNBLINDING, work, study=study, on_withheld=_nothing_to_mark)
    if released.recipient_key is None:
        return ReleasedPackage(released.content, "application/zip", f"{study}-final.zip")
    return ReleasedPackage(released.content, "application/octet-stream", f"{study}-final.zip.hpke")


def _nothing_to_mark(_tx: Transaction, _result: _Release) -> None:
    """A withheld package is entered as withheld; the request is spent, and a new one gives another copy."""
