"""The residual-inference report, for the unblinded statistician alone: it tells blocks (rule B7)."""

from typing import Annotated

from pydantic import Field

from app.api.doors import Context, Door
from app.api.schemas import Answer, RowId, StudyPath
from app.domain.words import Action, StudyCode
from app.services import residual

door = Door("Unblinding")

Chance = Annotated[float, Field(examples=[0.6667], ge=0, le=1)]


class BlockReportRead(Answer):
    """A block in which a treatment became known, and how well its hidden subjects' could be guessed; 1 is certainty."""

    schedule_id: RowId
    stratum_code: Annotated[str, Field(examples=[""])]
    block: Annotated[int, Field(examples=[3])]
    block_size: Annotated[int, Field(examples=[4])]
    revealed: Annotated[int, Field(examples=[1])]
    hidden: Annotated[int, Field(examples=[2])]
    chance_before: Annotated[float, Field(examples=[0.5])]
    chance_after: Chance


class ResidualReportRead(Answer):
    """Every block in which a treatment became known; no arm and no subject."""

    items: list[BlockReportRead]


@door.get("/studies/{study}/residual-inference", Action.READ_RESIDUAL)
def read_residual(study: StudyPath, ctx: Context) -> ResidualReportRead:
    """Tell what the treatments that became known tell about the rest of their blocks."""
    return ResidualReportRead.of(residual.read_residual(ctx, StudyCode(study)))
