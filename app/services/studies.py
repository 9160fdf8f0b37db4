"""Register a study, add and activate its sites, open, suspend and close it."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from typing import Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from app.domain.signatures import RecordKind, SignatureShown
from app.domain.studies import StudyDefinition, check_definition
from app.domain.words import (
    Action,
    Arm,
    Factor,
    FurtherKits,
    Mode,
    Role,
    ScheduleStatus,
    SiteCode,
    StudyCode,
    StudyStatus,
)
from app.errors import Forbidden, IllegalTransition, Invalid, SiteNotReady
from app.services.audited import Act, audited
from app.services.context import RequestContext
from app.services.signatures import Content, sign, with_signatures
from app.services.stock import holds_floor
from app.storage import drills, people, schedules, studies
from app.storage.studies import Definition, Site, StudyHead

_ABLE_TO_BREAK: Final = 2
"""So many people at a site can break a code, and have practised it, before it is activated (EUB-16, EUB-18)."""


@dataclass(frozen=True, slots=True)
class RegisteredStudy:
    """A study as its people see it."""

    study_code: StudyCode
    title: str
    blinding: str
    mode: Mode
    status: StudyStatus
    planned_subjects: int
    stock_floor: int
    arms: tuple[Arm, ...]
    factors: tuple[Factor, ...]
    stratify_by_site: bool
    backup_contact: str
    registered_at: datetime
    further_kits_after_break: FurtherKits = FurtherKits.ALLOWED
    exempt_events: tuple[str, ...] = ()
    safety_unblinding_shown: bool = False
    is_signed: bool = False
    signatures: tuple[SignatureShown, ...] = ()


def _registered(mode: Mode, head: StudyHead, definition: Definition) -> RegisteredStudy:
    return RegisteredStudy(
        head.study_code,
        definition.title,
        definition.blinding,
        mode,
        head.status,
        definition.planned_subjects,
        head.stock_floor,
        definition.arms,
        definition.factors,
        head.stratify_by_site,
        head.backup_contact,
        definition.registered_at,
        head.further_kits_after_break,
        head.exempt_events,
        head.safety_unblinding_shown,
    )


def _signed_study(study: RegisteredStudy) -> tuple[str, Content]:
    """Return what is signed of a study: its definition, and the status that it was given."""
    return study.study_code, {
        "study_code": study.study_code,
        "title": study.title,
        "blinding": study.blinding,
        "mode": study.mode,
        "status": study.status,
        "planned_subjects": study.planned_subjects,
        "stock_floor": study.stock_floor,
        "arms": [asdict(arm) for arm in study.arms],
        "factors": [asdict(factor) for factor in study.factors],
        "stratify_by_site": study.stratify_by_site,
        "backup_contact": study.backup_contact,
    }


def _signed_site(site: Site) -> tuple[str, Content]:
    """Return what is signed of a site when it is activated."""
    return site.site_code, {
        "site_code": site.site_code,
        "name": site.name,
        "timezone": site.timezone,
        "is_active": site.is_active,
        "added_at": site.added_at.isoformat(timespec="microseconds"),
    }


def register_study(ctx: RequestContext, wanted: StudyDefinition) -> RegisteredStudy:
    """Return the new study, in draft, with a key of its own.

    The grants that stand already are entered with it: its log begins here (`custody.md`, "The trail").
    """

    def work(act: Act) -> RegisteredStudy:
        if Role.STUDY_ADMIN not in act.principal.holds(wanted.study_code):
            raise Forbidden
        check_definition(wanted)
        deployment = act.deployment
        head = StudyHead(
            deployment.new_id(),
            wanted.study_code,
            StudyStatus.DRAFT,
            1,
            wanted.backup_contact,
            wanted.stock_floor,
            wanted.stratify_by_site,
            is_frozen=False,
            further_kits_after_break=wanted.further_kits_after_break,
            exempt_events=wanted.exempt_events,
            safety_unblinding_shown=wanted.safety_unblinding_shown,
        )
        wrapped = deployment.ring.new_study_key(wanted.study_code, 1, deployment.entropy.draw("study key", 32))
        definition = Definition(
            wanted.title, wanted.blinding, wanted.planned_subjects, act.now, wanted.arms, wanted.factors
        )
        studies.add_study(act.tx, head, definition, wrapped)
        act.head = head
        standing = people.list_holders(act.tx, wanted.study_code)
        act.note(
            target={"study_code": wanted.study_code},
            after={
                "mode": deployment.mode,
                "status": head.status,
                "planned_subjects": wanted.planned_subjects,
                "stock_floor": wanted.stock_floor,
                "further_kits_after_break": wanted.further_kits_after_break,
                "safety_unblinding_shown": wanted.safety_unblinding_shown,
                "standing_grants": [
                    {"name": holder.name, "role": holder.role, "site_code": holder.site_code} for holder in standing
                ],
            },
        )
        return _registered(deployment.mode, head, definition)

    return audited(ctx, Action.REGISTER_STUDY, work, answer_type=RegisteredStudy)


def read_study(ctx: RequestContext, study: StudyCode) -> RegisteredStudy:
    """Return the study's definition and status."""

    def work(act: Act) -> RegisteredStudy:
        found = _registered(act.deployment.mode, act.study, studies.get_definition(act.tx, act.study.study_id))
        return with_signatures(act, RecordKind.STUDY, [found], _signed_study)[0]

    return audited(ctx, Action.READ_STUDY, work, study=study)


def add_site(ctx: RequestContext, study: StudyCode, site_code: SiteCode, name: str, timezone: str) -> Site:
    """Return the new site, not active yet; raise ``AlreadyExists``, or ``Invalid`` for an unknown time zone."""

    def work(act: Act) -> Site:
        try:
            ZoneInfo(timezone)
        except (ZoneInfoNotFoundError, ValueError, OSError):
            message = "The time zone must be a name of the IANA database, such as Asia/Shanghai."
            raise Invalid(message, "timezone") from None
        site = Site(site_code, name, timezone, is_active=False, added_at=act.now)
        studies.add_site(act.tx, act.study.study_id, site)
        act.note(target={"site_code": site_code}, after={"name": name, "timezone": timezone}, site_code=site_code)
        return site

    return audited(ctx, Action.ADD_SITE, work, study=study, answer_type=Site)


def list_sites(ctx: RequestContext, study: StudyCode) -> Sequence[Site]:
    """Return the sites of the study."""

    def work(act: Act) -> Sequence[Site]:
        sites = studies.list_sites(act.tx, act.study.study_id)
        return with_signatures(act, RecordKind.SITE, sites, _signed_site)

    return audited(ctx, Action.LIST_SITES, work, study=study)


def activate_site(ctx: RequestContext, study: StudyCode, site_code: SiteCode) -> Site:
    """Return the active site; raise ``SiteNotReady`` with everything that is missing (EUB-16)."""

    def work(act: Act) -> Site:
        study_id = act.study.study_id
        act.note(target={"site_code": site_code}, site_code=site_code)
        site = studies.get_site(act.tx, study_id, site_code)
        missing = []
        able = [who for _, who in people.list_able_to_break(act.tx, study, act.now, site_code)]
        if len(able) < _ABLE_TO_BREAK:
            missing.append("two investigators there with a password and a second factor of their own")
        drilled = drills.list_last_drills(act.tx, study_id)
        to_do = [who for who in able if (site_code, who) not in drilled]
        if len(able) - len(to_do) < _ABLE_TO_BREAK:
            names = f" (to do: {', '.join(to_do)})" if to_do else ""
            missing.append(f"a code-break drill by each of two people there{names}")
        if not schedules.has_status(act.tx, study_id, ScheduleStatus.ACTIVE):
            missing.append("an active allocation list")
        arms = [arm.arm_code for arm in studies.list_arms(act.tx, study_id)]
        if not holds_floor(act, site_code, site.timezone, arms):
            missing.append("a consignment with kits of every arm to the floor, received in full")
        if not act.study.backup_contact:
            missing.append("a back-up contact for code breaks")
        if missing:
            raise SiteNotReady("Missing: " + "; ".join(missing) + ".")
        if site.is_active:
            message = "The site is active already."
            raise IllegalTransition(message)
        studies.record_site_activation(act.tx, study_id, site_code)
        act.note(before={"is_active": False}, after={"is_active": True})
        active = replace(site, is_active=True)
        sign(act, RecordKind.SITE, *_signed_site(active))
        return with_signatures(act, RecordKind.SITE, [active], _signed_site)[0]

    return audited(ctx, Action.ACTIVATE_SITE, work, study=study, answer_type=Site)


_STEPS = {
    (StudyStatus.DRAFT, StudyStatus.OPEN),
    (StudyStatus.OPEN, StudyStatus.SUSPENDED),
    (StudyStatus.SUSPENDED, StudyStatus.OPEN),
    (StudyStatus.OPEN, StudyStatus.CLOSED),
    (StudyStatus.SUSPENDED, StudyStatus.CLOSED),
}


def set_study_status(ctx: RequestContext, study: StudyCode, status: StudyStatus, reason: str) -> RegisteredStudy:
    """Return the study in its new status; raise ``IllegalTransition``.

    Closed is for ever, for the lists that were active too (rule A7); code breaks go on.
    """

    def work(act: Act) -> RegisteredStudy:
        study_id = act.study.study_id
        present = studies.lock_study(act.tx, study_id)
        act.note(target={"study_code": study}, before={"status": present}, after={"status": status})
        if (present, status) not in _STEPS:
            message = f"A study that is {present} cannot become {status}."
            raise IllegalTransition(message)
        studies.record_status(act.tx, study_id, status)
        if status is StudyStatus.CLOSED:
            closed = schedules.record_closing(act.tx, study_id)
            act.note(after={"status": status, "closed_schedules": [str(one) for one in closed]})
        act.note(restricted={"reason": reason})
        head = studies.find_study(act.tx, study)
        found = _registered(act.deployment.mode, head or act.study, studies.get_definition(act.tx, study_id))
        sign(act, RecordKind.STUDY, *_signed_study(found))
        return with_signatures(act, RecordKind.STUDY, [found], _signed_study)[0]

    return audited(ctx, Action.SET_STUDY_STATUS, work, study=study, answer_type=RegisteredStudy)
