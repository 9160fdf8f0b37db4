"""The unblinding log. No answer here has a field that could hold a treatment (rule B1)."""

from typing import Annotated, Any

from pydantic import Field
from starlette.responses import Response

from app.api.doors import Context, Door
from app.api.schemas import Answer, Cursor, Limit, Page, StudyPath
from app.domain.words import Action, StudyCode
from app.services import unblinding_log

door = Door("Unblinding")


class LogLineRead(Answer):
    """One act that could unblind; `withheld` where the answer did not leave, `denied` and `refused` where nothing was opened."""

    index: int
    segment: int
    at: Annotated[str, Field(examples=["2026-11-22T09:14:03.000000+00:00"])]
    kind: Annotated[str, Field(examples=["emergency"])]
    outcome: Annotated[str, Field(examples=["authorised"])]
    actor: Annotated[str, Field(examples=["m.rossi"])]
    role: str | None
    target: Annotated[dict[str, Any] | None, Field(examples=[{"subject_id": "01-0007"}])]
    purpose: Annotated[dict[str, Any], Field(examples=[{"reason_code": "overdose"}])]
    who_learns: Annotated[str, Field(examples=["who broke the code"])]
    stays_blinded: Annotated[str, Field(examples=["everybody else"])]
    safeguards: Annotated[str, Field(examples=["own second factor"])]
    leaf_hash: str


@door.get("/studies/{study}/unblinding-log", Action.READ_UNBLINDING_LOG)
def read_unblinding_log(study: StudyPath, ctx: Context, limit: Limit = 100, cursor: Cursor = None) -> Page[LogLineRead]:
    """List every act that could unblind, in the order of the trail."""
    return Page[LogLineRead].of(unblinding_log.read_unblinding_log(ctx, StudyCode(study), limit, cursor))


@door.get(
    "/studies/{study}/unblinding-log/export",
    Action.READ_UNBLINDING_LOG,
    response_class=Response,
    responses={
        200: {
            "description": "The whole log",
            "content": {"text/csv": {"schema": {"type": "string"}, "example": "index,segment,at,kind,outcome\r\n"}},
        }
    },
)
def export_unblinding_log(study: StudyPath, ctx: Context) -> Response:
    """Export the unblinding log as CSV."""
    content = unblinding_log.export_unblinding_log(ctx, StudyCode(study))
    headers = {"Content-Disposition": f'attachment; filename="{study}-unblinding-log.csv"'}
    return Response(content, 200, headers, "text/csv; charset=utf-8")
