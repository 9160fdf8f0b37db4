"""Accidental unblinding: recorded, not performed (EUB-19). Nothing here opens anything, and no field could hold a treatment.

It is a flag of the subject's, like an error mark: kept beside the allocation, never undone. The narrative, in which somebody may
tell what they should not know, is in the restricted part of the entry alone (rule E3).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from app.domain.words import Action, HowLearnt, SiteCode, StudyCode, SubjectId, WhoLearnt, subject_key
from app.errors import Invalid
from app.services import pages
from app.services.audited import Act, Receipt, audited
from app.services.context import RequestContext
from app.storage import allocations
from app.storage.allocations import ACCIDENT, FlaggedSubject, SubjectFlag


@dataclass(frozen=True, slots=True)
class Accident:
    """What is told of an accidental unblinding."""

    subject_id: str
    happened_at: datetime
    how_learnt: HowLearnt
    who_learnt: Sequence[WhoLearnt]
    narrative: str


@dataclass(frozen=True, slots=True)
class AccidentRecord:
    """A line of the register."""

    accidental_unblinding_id: UUID
    subject_id: SubjectId
    site_code: SiteCode
    happened_at: datetime
    how_learnt: HowLearnt
    who_learnt: Sequence[WhoLearnt]
    recorded_at: datetime
    recorded_by: str
    receipt: Receipt | None = None


def record_accident(ctx: RequestContext, study: StudyCode, accident: Accident) -> AccidentRecord:
    """Return the record that a subject's treatment became known by accident; the subject is flagged and stays in the study.

    Raises ``Missing`` for a subject that is not the caller's, ``Invalid`` for a moment still to come. A moment before the
    allocation is none too early: somebody may have looked into a kit that was given to the subject later.
    """
    key = subject_key(accident.subject_id)

    def work(act: Act) -> AccidentRecord:
        study_id = act.study.study_id
        act.note(target={"subject_id": key}, subject_key=key)
        allocation = allocations.get_allocation(act.tx, study_id, key, act.decision.sites)
        act.note(site_code=allocation.site_code)
        if accident.happened_at > act.now:
            message = "What is still to come is not recorded."
            raise Invalid(message, "happened_at")
        detail = {
            "happened_at": accident.happened_at.isoformat(),
            "how_learnt": accident.how_learnt,
            "who_learnt": sorted(set(accident.who_learnt)),
        }
        flag = SubjectFlag(act.deployment.new_id(), key, ACCIDENT, detail, act.now, act.principal.name)
        allocations.add_flag(act.tx, study_id, flag)
        act.note(
            after={"accidental_unblinding_id": str(flag.flag_id), **detail},
            restricted={"narrative": accident.narrative},
        )
        return _record(FlaggedSubject(flag, allocation.subject_id, allocation.site_code))

    return audited(ctx, Action.RECORD_ACCIDENT, work, study=study, answer_type=AccidentRecord)


@dataclass(frozen=True, slots=True)
class AccidentPage:
    """A page of the register."""

    items: Sequence[AccidentRecord]
    next_cursor: str | None


def list_accidents(ctx: RequestContext, study: StudyCode, limit: int, cursor: str | None) -> AccidentPage:
    """Return accidental unblindings in the order in which they were recorded, as many as stood there at the first page."""

    def work(act: Act) -> AccidentPage:
        after, until = pages.place_in_time(act, cursor)
        found = allocations.list_flagged(
            act.tx, act.study.study_id, ACCIDENT, act.decision.sites, after, until, limit + 1
        )
        items = [_record(one) for one in found[:limit]]
        following = None
        if len(found) > limit:
            last = items[-1]
            following = pages.cursor_in_time(act, last.recorded_at, last.accidental_unblinding_id, until)
        return AccidentPage(items, following)

    return audited(ctx, Action.READ_ACCIDENTS, work, study=study)


def _record(flagged: FlaggedSubject) -> AccidentRecord:
    flag = flagged.flag
    return AccidentRecord(
        flag.flag_id,
        flagged.subject_id,
        flagged.site_code,
        datetime.fromisoformat(flag.detail["happened_at"]),
        HowLearnt(flag.detail["how_learnt"]),
        [WhoLearnt(who) for who in flag.detail["who_learnt"]],
        flag.flagged_at,
        flag.flagged_by,
    )
