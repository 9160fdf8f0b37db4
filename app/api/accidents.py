"""Accidental unblindings: that somebody came to know a treatment, never which (rule B1)."""

from typing import Annotated

from pydantic import ConfigDict, Field

from app.api.doors import Context, Door
from app.api.schemas import (
    Answer,
    Body,
    Cursor,
    Limit,
    Moment,
    Narrative,
    Page,
    ReceiptRead,
    RowId,
    StudyPath,
    SubjectField,
    Time,
)
from app.domain.words import Action, HowLearnt, StudyCode, WhoLearnt
from app.services import accidents

door = Door("Unblinding")

How = Annotated[HowLearnt, Field(strict=False, examples=["document"])]
Who = Annotated[
    list[Annotated[WhoLearnt, Field(strict=False)]], Field(min_length=1, max_length=20, examples=[["investigator"]])
]


class AccidentRequest(Body):
    """What happened; the narrative alone may tell more, and only the safety officer reads it (EUB-19)."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "subject_id": "01-0007",
                "happened_at": "2026-11-21T16:40:00+00:00",
                "how_learnt": "document",
                "who_learnt": ["investigator", "subject"],
                "narrative": "A letter of the laboratory lay open in the ward.",
            }
        }
    )

    subject_id: SubjectField
    happened_at: Annotated[Moment, Field(strict=False)]
    how_learnt: How
    who_learnt: Who
    narrative: Narrative

    def accident(self) -> accidents.Accident:
        """Return what happened in the service's words."""
        return accidents.Accident(self.subject_id, self.happened_at, self.how_learnt, self.who_learnt, self.narrative)


class AccidentRead(Answer):
    """A line of the register; it has no field that could hold a treatment."""

    accidental_unblinding_id: RowId
    subject_id: str
    site_code: str
    happened_at: Time
    how_learnt: How
    who_learnt: Who
    recorded_at: Time
    recorded_by: Annotated[str, Field(examples=["m.rossi"])]


class RecordedAccidentRead(AccidentRead):
    """The accident as it was recorded."""

    receipt: ReceiptRead | None


@door.post("/studies/{study}/accidental-unblindings", Action.RECORD_ACCIDENT, 201)
def record_accident(study: StudyPath, body: AccidentRequest, ctx: Context) -> RecordedAccidentRead:
    """Record that a treatment became known by accident."""
    return RecordedAccidentRead.of(accidents.record_accident(ctx, StudyCode(study), body.accident()))


@door.get("/studies/{study}/accidental-unblindings", Action.READ_ACCIDENTS)
def list_accidents(study: StudyPath, ctx: Context, limit: Limit = 100, cursor: Cursor = None) -> Page[AccidentRead]:
    """List accidental unblindings in the order in which they were recorded."""
    return Page[AccidentRead].of(accidents.list_accidents(ctx, StudyCode(study), limit, cursor))
