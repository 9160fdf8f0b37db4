"""Code-break drills: the form of a code break, on the dummy subject of a site."""

from typing import Annotated
from uuid import UUID

from pydantic import ConfigDict, Field

from app.api.doors import Context, Door
from app.api.schemas import Answer, Body, Cursor, Limit, ReceiptRead, StudyPath, SubjectField, Time
from app.api.unblinding import ReasonCodeField
from app.domain.drills import ARM_CODE, TREATMENT
from app.domain.words import Action, ReasonCode, StudyCode
from app.services import drills

door = Door("Drills")

DrillId = Annotated[UUID, Field(examples=["3f0c9b5e-6f0e-4c5e-9a59-3d1c6a4f2b10"])]
Dummy = Annotated[str, Field(examples=["DRILL-01"])]
Moment = Annotated[Time, Field(examples=["2026-11-22T09:14:03+00:00"])]
Person = Annotated[str, Field(examples=["m.rossi"])]
Seconds = Annotated[
    float, Field(examples=[41.5], description="from the first request, challenged or not, to the answer")
]


class DrillRequest(Body):
    """The body of a code break, about the dummy subject of one's site: DRILL- and the code of the site."""

    model_config = ConfigDict(json_schema_extra={"example": {"subject_id": "DRILL-01", "reason_code": "overdose"}})

    subject_id: SubjectField
    reason_code: ReasonCodeField


class DrillRead(Answer):
    """What a code break would answer; arm and treatment are made up and say so."""

    drill_id: DrillId
    subject_id: Dummy
    site_code: str
    arm_code: Annotated[str, Field(examples=[ARM_CODE])]
    treatment: Annotated[str, Field(examples=[TREATMENT])]
    kit_codes: Annotated[list[str], Field(examples=[[]])]
    revealed_at: Moment
    seconds_to_reveal: Seconds
    receipt: ReceiptRead | None


class DrillRecordRead(Answer):
    """A drill that was done."""

    drill_id: DrillId
    site_code: str
    username: Person
    revealed_at: Moment
    seconds_to_reveal: Seconds


class ReadinessRead(Answer):
    """Somebody who can break a code at a site; overdue is who has practised it there never, or not for a year."""

    site_code: str
    username: Person
    last_drill_at: Moment | None
    overdue: Annotated[bool, Field(examples=[False])]


class DrillsRead(Answer):
    """A page of drills, and who has one to do; ``next_cursor`` is null on the last."""

    items: list[DrillRecordRead]
    people: list[ReadinessRead]
    next_cursor: str | None


@door.post("/studies/{study}/drills", Action.DRILL, 201)
def drill(study: StudyPath, body: DrillRequest, ctx: Context) -> DrillRead:
    """Practise a code break on the dummy subject of one's site."""
    return DrillRead.of(drills.drill(ctx, StudyCode(study), body.subject_id, ReasonCode(body.reason_code)))


@door.get("/studies/{study}/drills", Action.READ_DRILLS)
def list_drills(study: StudyPath, ctx: Context, limit: Limit = 100, cursor: Cursor = None) -> DrillsRead:
    """List drills in the order of time, and who has one to do."""
    return DrillsRead.of(drills.list_drills(ctx, StudyCode(study), limit, cursor))
