"""Code-break envelopes: sheets to print, openings to enter after an outage, and the reconciliation. No answer here tells an arm."""

from typing import Annotated, Any, Final

from pydantic import ConfigDict, Field
from starlette.responses import Response

from app.api.doors import Context, Door
from app.api.schemas import (
    Answer,
    Body,
    CodePath,
    KitCodeField,
    Moment,
    Reason,
    ReceiptRead,
    RowId,
    StudyPath,
    Text,
    Time,
)
from app.api.unblinding import ReasonCodeField, RecipientKey
from app.domain.words import Action, ConsignmentCode, KitCode, ReasonCode, StudyCode
from app.services import envelopes

door = Door("Code-break envelopes")

KitCodeRead = Annotated[str, Field(examples=["K7XQ4M2PF"])]
SiteCodeRead = Annotated[str, Field(examples=["01"])]
OpenedAt = Annotated[Time, Field(examples=["2026-11-22T09:14:03+00:00"])]
Opener = Annotated[str, Field(examples=["A. Okafor, emergency desk"])]
Count = Annotated[int, Field(examples=[0])]


class SheetsRequest(Body):
    """For whom the sheets are encrypted: whoever prints them."""

    recipient_key: RecipientKey


class OpeningRequest(Body):
    """What was written on the sheet when an envelope was opened; never the treatment."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "kit_code": "K7XQ4M2PF",
                "opened_at": "2026-11-22T09:14:03+00:00",
                "opened_by": "A. Okafor, emergency desk",
                "reason_code": "serious_adverse_event",
                "reason": "Service down since 08:50; ward 3 needed the treatment before sedation.",
            }
        }
    )

    kit_code: KitCodeField
    opened_at: Annotated[Moment, Field(strict=False)]
    opened_by: Text
    reason_code: ReasonCodeField
    reason: Reason

    def opening(self) -> envelopes.Opening:
        """Return the opening in the service's words."""
        return envelopes.Opening(
            KitCode(self.kit_code), self.opened_at, self.opened_by, ReasonCode(self.reason_code), self.reason
        )


class OpeningRead(Answer):
    """The opening as it stands in the register of the code breaks."""

    code_break_id: RowId
    kit_code: KitCodeRead
    subject_id: Annotated[str, Field(examples=["01-0007"])]
    opened_at: OpenedAt
    receipt: ReceiptRead | None


class SiteEnvelopesRead(Answer):
    """What became of the envelopes of a site, all arms pooled."""

    site_code: SiteCodeRead
    issued: Annotated[int, Field(examples=[12], description="one for each kit given")]
    written: Annotated[int, Field(examples=[12], description="files in the folder outside")]
    overdue: Annotated[Count, Field(description="without a file for more than five minutes")]
    missing: Annotated[Count, Field(description="written, and the file is gone")]
    opened: Annotated[int, Field(examples=[1], description="opened while the service was down, as entered afterwards")]
    without_sheet: Annotated[Count, Field(description="of kits whose sheets were never released")]


class OpenedRead(Answer):
    """An envelope that was opened."""

    kit_code: KitCodeRead
    site_code: SiteCodeRead
    opened_at: OpenedAt
    opened_by: Opener
    entered_by: Annotated[str, Field(examples=["k.sato"])]


class ReconciliationRead(Answer):
    """Issued, written, missing and opened envelopes of the sites that the caller may see."""

    is_on: Annotated[bool, Field(examples=[True], description="whether this deployment makes envelopes")]
    sites: list[SiteEnvelopesRead]
    missing: Annotated[list[str], Field(examples=[[]], description="kits of the first hundred files that are gone")]
    opened: list[OpenedRead]


_SHEETS: Final[dict[int | str, dict[str, Any]]] = {
    200: {
        "description": "The sheets as PDF, one page for each kit, encrypted (HPKE, RFC 9180)",
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }
}


@door.post(
    "/studies/{study}/consignments/{code}/sheets",
    Action.RELEASE_SHEETS,
    response_class=Response,
    responses=_SHEETS,
)
def release_sheets(study: StudyPath, code: CodePath, body: SheetsRequest, ctx: Context) -> Response:
    """Release the code-break sheets of a consignment, to be printed, sealed and sent with its kits."""
    released = envelopes.release_sheets(ctx, StudyCode(study), ConsignmentCode(code), body.recipient_key)
    headers = {"Content-Disposition": f'attachment; filename="{released.file_name}"'}
    return Response(released.content, 200, headers, "application/octet-stream")


@door.post("/studies/{study}/envelope-openings", Action.ENTER_OPENING, 201)
def enter_opening(study: StudyPath, body: OpeningRequest, ctx: Context) -> OpeningRead:
    """Enter that an envelope was opened while the service was down."""
    return OpeningRead.of(envelopes.enter_opening(ctx, StudyCode(study), body.opening()))


@door.get("/studies/{study}/envelopes", Action.READ_ENVELOPES)
def read_envelopes(study: StudyPath, ctx: Context) -> ReconciliationRead:
    """Read what became of the code-break envelopes."""
    return ReconciliationRead.of(envelopes.reconcile(ctx, StudyCode(study)))
