"""Practise the code break, before the first subject and once a year: timed, reported, and far from every live subject (EUB-18)."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from app.domain.drills import ARM_CODE, ONE_GO, TREATMENT, dummy_site, is_overdue, seconds_to_reveal
from app.domain.words import Action, KitCode, ReasonCode, SiteCode, StudyCode, SubjectId, Username
from app.services import pages
from app.services.audited import Act, Receipt, audited
from app.services.context import RequestContext
from app.storage import drills, people, studies, trail
from app.storage.drills import DrillRecord


@dataclass(frozen=True, slots=True)
class Drill:
    """What a code break would answer, about nobody: its arm and its treatment are made up and say so."""

    drill_id: UUID
    subject_id: SubjectId
    site_code: SiteCode
    arm_code: str
    treatment: str
    kit_codes: Sequence[KitCode]
    revealed_at: datetime
    seconds_to_reveal: float
    receipt: Receipt | None = None


def drill(ctx: RequestContext, study: StudyCode, subject_id: str, reason_code: ReasonCode) -> Drill:
    """Return the made-up treatment of a site's dummy subject, once the drill is recorded; nothing live is touched.

    In a study of any status. Raises ``Invalid`` for any other subject, ``Missing`` for a site that is not the caller's.
    """

    def work(act: Act) -> Drill:
        study_id, who = act.study.study_id, Username(act.principal.name)
        site_code = dummy_site(subject_id)
        # The dummy is no subject: who reads nothing about subjects may read of it.
        act.note(target={"site_code": site_code})
        act.at_site(site_code)
        studies.get_site(act.tx, study_id, site_code)
        asked = trail.list_tries(act.tx, study_id, Action.DRILL, [who], [], act.now - ONE_GO, act.now)
        refused = [one.at for one in asked if one.outcome != "done"]
        took = seconds_to_reveal(act.now, refused, [one.at for one in asked if one.outcome == "done"])
        done = DrillRecord(act.deployment.new_id(), site_code, who, act.now, took)
        drills.add_drill(act.tx, study_id, done)
        act.note(after={"drill_id": str(done.drill_id), "reason_code": reason_code, "seconds_to_reveal": took})
        return Drill(done.drill_id, SubjectId(f"DRILL-{site_code}"), site_code, ARM_CODE, TREATMENT, (), act.now, took)

    return audited(ctx, Action.DRILL, work, study=study, answer_type=Drill)


@dataclass(frozen=True, slots=True)
class Readiness:
    """Somebody who can break a code at a site, and when they last practised it there."""

    site_code: SiteCode
    username: Username
    last_drill_at: datetime | None
    overdue: bool


@dataclass(frozen=True, slots=True)
class DrillPage:
    """A page of the drills that were done, and who has one to do."""

    items: Sequence[DrillRecord]
    people: Sequence[Readiness]
    next_cursor: str | None


def list_drills(ctx: RequestContext, study: StudyCode, limit: int, cursor: str | None) -> DrillPage:
    """Return drills in the order of time, as many as stood there at the first page, and how ready people are now."""

    def work(act: Act) -> DrillPage:
        study_id, sites = act.study.study_id, act.decision.sites
        after, until = pages.place_in_time(act, cursor)
        found = drills.list_drills(act.tx, study_id, sites, after, until, limit + 1)
        items, following = found[:limit], None
        if len(found) > limit:
            following = pages.cursor_in_time(act, items[-1].revealed_at, items[-1].drill_id, until)
        last = drills.list_last_drills(act.tx, study_id)
        able = people.list_able_to_break(act.tx, study, act.now)
        ready = [
            Readiness(site, who, last.get((site, who)), is_overdue(last.get((site, who)), act.now))
            for site, who in able
            if sites is None or site in sites
        ]
        return DrillPage(items, ready, following)

    return audited(ctx, Action.READ_DRILLS, work, study=study)
