"""Code breaks and safety unblindings: that they happened, never what they showed."""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, NamedTuple
from uuid import UUID

from sqlalchemy import ColumnElement, Row, ScalarSelect, and_, bindparam, case, func, insert, or_, select, true, update

from app.domain.code_breaks import ASSESSMENT_WITHIN, NARRATIVE_WITHIN, assessment_due_at, narrative_due_at
from app.domain.kits import STEPS, Step
from app.domain.sealed import Sealed
from app.domain.signatures import SignatureShown
from app.domain.words import (
    Impact,
    KitCode,
    KitStatus,
    Late,
    ReasonCode,
    Role,
    ScheduleStatus,
    SiteCode,
    StudyCode,
    SubjectId,
    SubjectKey,
)
from app.errors import AlreadyExists, Missing
from app.storage import tables
from app.storage.database import AlreadyThere, Transaction

_b = tables.code_break.c
_as = tables.code_break_assessment.c
_u = tables.safety_unblinding.c
_a = tables.allocation.c
_k = tables.kit.c
_ka = tables.kit_assignment.c
_s = tables.schedule.c
_st = tables.study.c

AUTHORISED: Final = "authorised"
WITHHELD: Final = "withheld"
SERVICE: Final = "service"
"""A code that the service broke."""
ENVELOPE: Final = "envelope"
"""A code that an envelope broke while the service was down, entered afterwards."""


# -- code breaks -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class NewCodeBreak:
    """A code break as it is recorded; ``subject_key`` is None for a kit that nobody was given."""

    code_break_id: UUID
    subject_key: SubjectKey | None
    kit_id: UUID | None
    site_code: SiteCode | None
    is_by_kit_code: bool
    is_own_site: bool
    reason_code: ReasonCode
    broken_at: datetime
    broken_by: str
    role: Role
    opened_by: str | None = None
    """Who opened an envelope while the service was down (EUB-05)."""


@dataclass(frozen=True, slots=True)
class CodeBreakRecord:
    """A line of the register: who broke whose code, when and why, and nothing of the treatment."""

    code_break_id: UUID
    subject_id: SubjectId | None
    kit_code: KitCode | None
    site_code: SiteCode | None
    reason_code: ReasonCode
    status: str
    broken_at: datetime
    broken_by: str
    role: Role
    by_kit_code: bool
    own_site: bool
    narrated_at: datetime | None
    assessed_at: datetime | None
    impact: Impact | None
    kind: str
    opened_by: str | None
    code_break: NewCodeBreak
    """As it was recorded: what was signed."""
    seconds_to_reveal: float | None = None
    """From the person's first request; none for an envelope."""
    overdue: tuple[Late, ...] = ()
    """What it still waits for although the time is over."""
    is_signed: bool = False
    signatures: tuple[SignatureShown, ...] = ()

    @property
    def narrative_due_at(self) -> datetime:
        """Return until when its narrative is given."""
        return narrative_due_at(self.broken_at)

    @property
    def assessment_due_at(self) -> datetime:
        """Return until when its impact is assessed."""
        return assessment_due_at(self.broken_at)


_GIVEN: Final = and_(_ka.study_id == _b.study_id, _ka.kit_id == _b.kit_id)
_WHOSE: Final = func.coalesce(_b.subject_key, _ka.subject_key)
"""The subject of a code break: known then, or who was being given the kit at that moment."""
_ASSESSED: Final = and_(_as.study_id == _b.study_id, _as.code_break_id == _b.code_break_id)
_REGISTER: Final = (
    select(
        _b.code_break_id,
        _a.subject_id,
        _k.kit_code,
        _b.site_code,
        _b.reason_code,
        _b.status,
        _b.broken_at,
        _b.broken_by,
        _b.role,
        _b.is_by_kit_code.label("by_kit_code"),
        _b.is_own_site.label("own_site"),
        _b.narrated_at,
        _as.assessed_at,
        _as.impact,
        case((_b.opened_by.is_(None), SERVICE), else_=ENVELOPE).label("kind"),
        _b.opened_by,
        _b.subject_key.label("asked_for"),
        _b.kit_id,
    )
    .select_from(tables.code_break)
    .outerjoin(tables.kit_assignment, _GIVEN)
    .outerjoin(tables.allocation, and_(_a.study_id == _b.study_id, _a.subject_key == _WHOSE))
    .outerjoin(tables.kit, and_(_k.study_id == _b.study_id, _k.kit_id == _b.kit_id))
    .outerjoin(tables.code_break_assessment, _ASSESSED)
)


def add_code_break(tx: Transaction, study_id: UUID, code_break: NewCodeBreak) -> None:
    """Record a code break that is authorised."""
    row = {name: getattr(code_break, name) for name in NewCodeBreak.__dataclass_fields__}
    tx.execute(insert(tables.code_break), {"study_id": study_id, "status": AUTHORISED} | row)


def record_withheld_break(tx: Transaction, study_code: StudyCode, code_break_id: UUID) -> None:
    """Say of a code break that its answer did not leave (rule D4)."""
    tx.execute(
        update(tables.code_break)
        .where(_b.study_id == _id_of(study_code), _b.code_break_id == code_break_id)
        .values(status=WITHHELD)
    )


def _id_of(study_code: StudyCode) -> ScalarSelect[UUID]:
    return select(_st.study_id).where(_st.study_code == study_code).scalar_subquery()


def list_code_breaks(
    tx: Transaction,
    study_id: UUID,
    sites: Collection[SiteCode] | None,
    after: tuple[datetime, UUID] | None,
    until: datetime,
    limit: int,
) -> list[CodeBreakRecord]:
    """Return code breaks of the sites (None: all) in the order of time, behind ``after`` and not later than ``until``."""
    query = _REGISTER.where(_b.study_id == study_id, _b.broken_at <= until)
    if sites is not None:
        query = query.where(_b.site_code.in_(list(sites)))
    if after is not None:
        at, code_break_id = after
        query = query.where(or_(_b.broken_at > at, and_(_b.broken_at == at, _b.code_break_id > code_break_id)))
    rows = tx.execute(query.order_by(_b.broken_at, _b.code_break_id).limit(limit))
    return [_code_break(row) for row in rows]


def _code_break(row: Row[Any]) -> CodeBreakRecord:
    code_break = NewCodeBreak(
        row.code_break_id,
        row.asked_for,
        row.kit_id,
        row.site_code,
        is_by_kit_code=row.by_kit_code,
        is_own_site=row.own_site,
        reason_code=ReasonCode(row.reason_code),
        broken_at=row.broken_at,
        broken_by=row.broken_by,
        role=Role(row.role),
        opened_by=row.opened_by,
    )
    return CodeBreakRecord(
        row.code_break_id,
        row.subject_id,
        row.kit_code,
        row.site_code,
        code_break.reason_code,
        row.status,
        row.broken_at,
        row.broken_by,
        code_break.role,
        row.by_kit_code,
        row.own_site,
        row.narrated_at,
        row.assessed_at,
        None if row.impact is None else Impact(row.impact),
        row.kind,
        row.opened_by,
        code_break,
    )


def list_break_times(
    tx: Transaction, study_id: UUID, people: Collection[str], begin: datetime, end: datetime
) -> list[tuple[str, datetime]]:
    """Return when which of some people broke a code by the service, between two moments."""
    rows = tx.execute(
        select(_b.broken_by, _b.broken_at).where(
            _b.study_id == study_id,
            _b.broken_by.in_(list(people)),
            _b.broken_at >= begin,
            _b.broken_at <= end,
            _b.opened_by.is_(None),
        )
    )
    return [(row.broken_by, row.broken_at) for row in rows]


class RecentBreak(NamedTuple):
    """By whom and where a code was broken."""

    broken_by: str
    site_code: SiteCode | None


_RECENT: Final = (
    select(_b.broken_by, _b.site_code)
    .where(_b.study_id == bindparam("study_id"), _b.broken_at >= bindparam("since"))
    .order_by(_b.broken_at.desc())
    .limit(1000)
)


def list_recent_breaks(tx: Transaction, study_id: UUID, since: datetime) -> list[RecentBreak]:
    """Return by whom and where codes were broken since a moment; of very many, the newest thousand."""
    rows = tx.execute(_RECENT, {"study_id": study_id, "since": since})
    return [RecentBreak(row.broken_by, row.site_code) for row in rows]


@dataclass(frozen=True, slots=True)
class KitToPutAside:
    """A kit of nobody's by which a code was broken, and which is not put aside yet."""

    study_id: UUID
    study_code: StudyCode
    kit_id: UUID
    kit_code: KitCode
    site_code: SiteCode | None
    status: KitStatus


def list_to_put_aside(tx: Transaction) -> list[KitToPutAside]:
    """Return the kits of all studies that a code break could not put aside itself, in the order of their codes (EUB-07)."""
    waiting = [status for status, aside in STEPS[Step.BREAK_CODE].items() if status is not aside]
    rows = tx.execute(
        select(_k.study_id, _st.study_code, _k.kit_id, _k.kit_code, _k.site_code, _k.status)
        .distinct()
        .select_from(tables.code_break)
        .join(tables.kit, and_(_k.study_id == _b.study_id, _k.kit_id == _b.kit_id))
        .join(tables.study, _st.study_id == _b.study_id)
        .outerjoin(tables.kit_assignment, and_(_ka.study_id == _k.study_id, _ka.kit_id == _k.kit_id))
        .where(_b.subject_key.is_(None), _k.status.in_(waiting), _ka.kit_id.is_(None))
        .order_by(_k.kit_code)
    )
    return [
        KitToPutAside(row.study_id, row.study_code, row.kit_id, row.kit_code, row.site_code, KitStatus(row.status))
        for row in rows
    ]


@dataclass(frozen=True, slots=True)
class NarratedBreak:
    """What the entry of a narrative or an assessment says of its code break."""

    subject_key: SubjectKey | None
    site_code: SiteCode | None


def get_break_of(tx: Transaction, study_id: UUID, code_break_id: UUID, broken_by: str) -> NarratedBreak:
    """Return a code break of this person; raise ``Missing`` for one of somebody else, as for none."""
    return _get_break(tx, study_id, code_break_id, _b.broken_by == broken_by)


def get_break_at(
    tx: Transaction, study_id: UUID, code_break_id: UUID, sites: Collection[SiteCode] | None
) -> NarratedBreak:
    """Return a code break of these sites (None: of all); raise ``Missing`` for one of another, as for none."""
    return _get_break(tx, study_id, code_break_id, true() if sites is None else _b.site_code.in_(list(sites)))


def _get_break(tx: Transaction, study_id: UUID, code_break_id: UUID, is_theirs: ColumnElement[bool]) -> NarratedBreak:
    row = tx.execute(
        select(_WHOSE.label("subject_key"), _b.site_code)
        .select_from(tables.code_break)
        .outerjoin(tables.kit_assignment, _GIVEN)
        .where(_b.study_id == study_id, _b.code_break_id == code_break_id, is_theirs)
    ).one_or_none()
    if row is None:
        raise Missing
    return NarratedBreak(row.subject_key, row.site_code)


def record_narration(tx: Transaction, study_id: UUID, code_break_id: UUID, at: datetime) -> bool:
    """Say when the narrative of a code break was given; return False when that was said before."""
    told = tx.execute(
        update(tables.code_break)
        .where(_b.study_id == study_id, _b.code_break_id == code_break_id, _b.narrated_at.is_(None))
        .values(narrated_at=at)
    )
    return told.rowcount == 1


def add_assessment(tx: Transaction, study_id: UUID, code_break_id: UUID, impact: Impact, at: datetime, by: str) -> None:
    """Record what a code break means for the trial; raise ``AlreadyExists`` when that was said before."""
    row = {"code_break_id": code_break_id, "assessed_at": at, "assessed_by": by, "impact": impact}
    try:
        tx.execute(insert(tables.code_break_assessment), {"study_id": study_id, **row})
    except AlreadyThere:
        message = "The impact of this code break was assessed before; the assessment stands as it is."
        raise AlreadyExists(message) from None


@dataclass(frozen=True, slots=True)
class LateBreak:
    """A code break for whose narrative or assessment the time is over."""

    study_id: UUID
    study_code: StudyCode
    code_break_id: UUID
    site_code: SiteCode | None
    broken_at: datetime
    narrated_at: datetime | None
    assessed_at: datetime | None


def list_late_breaks(tx: Transaction, now: datetime) -> list[LateBreak]:
    """Return the code breaks of all studies that still wait for what is overdue, by study and in the order of time."""
    rows = tx.execute(
        select(
            _b.study_id,
            _st.study_code,
            _b.code_break_id,
            _b.site_code,
            _b.broken_at,
            _b.narrated_at,
            _as.assessed_at,
        )
        .select_from(tables.code_break)
        .join(tables.study, _st.study_id == _b.study_id)
        .outerjoin(tables.code_break_assessment, _ASSESSED)
        .where(
            or_(
                and_(_b.narrated_at.is_(None), _b.broken_at < now - NARRATIVE_WITHIN),
                and_(_as.assessed_at.is_(None), _b.broken_at < now - ASSESSMENT_WITHIN),
            )
        )
        .order_by(_st.study_code, _b.broken_at, _b.code_break_id)
    )
    return [LateBreak(**row._asdict()) for row in rows]


def list_signed_schedules(tx: Transaction, study_id: UUID) -> list[UUID]:
    """Return the lists whose commitment was signed: what the words of a treatment are held against."""
    rows = tx.execute(
        select(_s.schedule_id)
        .where(
            _s.study_id == study_id,
            _s.status.in_([ScheduleStatus.APPROVED, ScheduleStatus.ACTIVE, ScheduleStatus.CLOSED]),
        )
        .order_by(_s.schedule_id)
    )
    return [row.schedule_id for row in rows]


# -- safety unblindings ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SafetyUnblinding:
    """A safety unblinding as it is stored: whose it was lies under seal."""

    safety_unblinding_id: UUID
    sealed_subject: Sealed
    status: str
    unblinded_at: datetime
    unblinded_by: str


def add_safety_unblinding(tx: Transaction, study_id: UUID, unblinding: SafetyUnblinding, key_version: int) -> None:
    """Record a safety unblinding."""
    row = {name: getattr(unblinding, name) for name in SafetyUnblinding.__dataclass_fields__}
    row |= {"study_id": study_id, "sealed_subject": unblinding.sealed_subject.token, "key_version": key_version}
    tx.execute(insert(tables.safety_unblinding), row)


def record_withheld_unblinding(tx: Transaction, study_code: StudyCode, safety_unblinding_id: UUID) -> None:
    """Say of a safety unblinding that its answer did not leave."""
    tx.execute(
        update(tables.safety_unblinding)
        .where(_u.study_id == _id_of(study_code), _u.safety_unblinding_id == safety_unblinding_id)
        .values(status=WITHHELD)
    )


def find_safety_subject(tx: Transaction, study_id: UUID, safety_unblinding_id: UUID) -> Sealed | None:
    """Return whose treatment a safety unblinding opened, under seal; None when it is not in the register."""
    token = tx.execute(
        select(_u.sealed_subject).where(_u.study_id == study_id, _u.safety_unblinding_id == safety_unblinding_id)
    ).scalar_one_or_none()
    return None if token is None else Sealed(token)


def list_safety_unblindings(
    tx: Transaction, study_id: UUID, after: tuple[datetime, UUID] | None, until: datetime, limit: int
) -> list[SafetyUnblinding]:
    """Return safety unblindings in the order of time, behind ``after`` and not later than ``until``."""
    query = select(*(_u[name] for name in SafetyUnblinding.__dataclass_fields__)).where(
        _u.study_id == study_id, _u.unblinded_at <= until
    )
    if after is not None:
        at, last_id = after
        query = query.where(or_(_u.unblinded_at > at, and_(_u.unblinded_at == at, _u.safety_unblinding_id > last_id)))
    rows = tx.execute(query.order_by(_u.unblinded_at, _u.safety_unblinding_id).limit(limit))
    return [
        SafetyUnblinding(
            row.safety_unblinding_id, Sealed(row.sealed_subject), row.status, row.unblinded_at, row.unblinded_by
        )
        for row in rows
    ]
