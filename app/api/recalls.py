"""The recall door: consignments are called back as a whole, and answers to blinded people have no field for a lot."""

from typing import Annotated, Any, Final
from uuid import UUID

from pydantic import ConfigDict, Field, StringConstraints
from starlette.responses import Response

from app.api.consignments import Lot
from app.api.doors import Context, Door
from app.api.schemas import (
    Answer,
    Body,
    Cursor,
    IdPath,
    Limit,
    Page,
    Reason,
    ReceiptRead,
    RowId,
    Signed,
    SitePath,
    StudyPath,
    Time,
)
from app.api.unblinding import RecipientKey
from app.domain.words import Action, ConsignmentCode, SiteCode, StudyCode
from app.services import recalls

door = Door("Unblinding")

ConsignmentField = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{1,40}$"), Field(examples=["C1"])]
Consignments = Annotated[
    list[str],
    Field(examples=[["C1", "C2"]], description="called back as a whole, so that nothing tells whose treatment it was"),
]
PersonName = Annotated[str, Field(examples=["d.okoro"])]


class RecallRequest(Body):
    """One consignment, or one manufacturing lot instead: then every consignment that holds a kit of it."""

    model_config = ConfigDict(
        json_schema_extra={"example": {"consignment_code": "C1", "reason": "Seal of the outer box found broken."}}
    )

    consignment_code: ConsignmentField | None = None
    lot: Lot | None = None
    reason: Annotated[Reason, Field(examples=["Seal of the outer box found broken at release testing."])]
    recipient_key: RecipientKey | None = None

    def wanted(self) -> recalls.RecallWanted:
        """Return what is called back in the service's words."""
        code = None if self.consignment_code is None else ConsignmentCode(self.consignment_code)
        return recalls.RecallWanted(code, self.lot, self.reason, self.recipient_key)


class RecallRead(Signed):
    """What is called back from now on; it has no field that could hold a lot or an arm."""

    recall_id: RowId
    consignment_codes: Consignments
    recalled_at: Time
    recalled_by: PersonName
    receipt: ReceiptRead | None


class RecallRecordRead(Signed):
    """A line of the register; it has no field that could hold a lot or an arm."""

    recall_id: RowId
    consignment_codes: Consignments
    recalled_at: Time
    recalled_by: PersonName
    released_at: Time | None
    released_by: Annotated[str | None, Field(examples=["l.meyer"], description="who released the list of kits")]


class CallBackRead(Answer):
    """A kit that a site has to fetch back or to put aside."""

    kit_code: Annotated[str, Field(examples=["K7XQ4M2PF"])]
    consignment_code: Annotated[str, Field(examples=["C1"])]
    status: Annotated[str, Field(examples=["dispensed"])]
    subject_id: Annotated[str | None, Field(examples=["01-0007"], description="null for a kit that nobody was given")]
    to_do: Annotated[str, Field(examples=["call_back"], description="`call_back` from its subject, or `put_aside`")]


_BINARY: Final = {"schema": {"type": "string", "format": "binary"}}
_LIST: Final[dict[int | str, dict[str, Any]]] = {
    200: {
        "description": "The kits that the recall is about, once; encrypted (HPKE, RFC 9180) when it names a recipient_key",
        "content": {
            "text/csv": {
                "schema": {"type": "string"},
                "example": "kit_code,consignment_code,site_code,arm_code,lot,expires_on\r\n",
            },
            "application/octet-stream": _BINARY,
        },
    }
}


@door.post("/studies/{study}/recalls", Action.START_RECALL, 201)
def start_recall(study: StudyPath, body: RecallRequest, ctx: Context) -> RecallRead:
    """Call a consignment back, or all that hold a kit of a lot."""
    return RecallRead.of(recalls.start_recall(ctx, StudyCode(study), body.wanted()))


@door.get("/studies/{study}/recalls", Action.READ_RECALLS)
def list_recalls(study: StudyPath, ctx: Context, limit: Limit = 100, cursor: Cursor = None) -> Page[RecallRecordRead]:
    """List the recalls in the order of time."""
    return Page[RecallRecordRead].of(recalls.list_recalls(ctx, StudyCode(study), limit, cursor))


@door.post(
    "/studies/{study}/recalls/{request_id}/release", Action.RELEASE_RECALL, response_class=Response, responses=_LIST
)
def release_recall(study: StudyPath, request_id: IdPath, ctx: Context) -> Response:
    """Release the list of the kits that a recall is about, as the second person."""
    released = recalls.release_recall(ctx, StudyCode(study), UUID(request_id))
    headers = {"Content-Disposition": f'attachment; filename="{released.file_name}"'}
    return Response(released.content, 200, headers, released.media_type)


@door.get("/studies/{study}/sites/{site}/call-backs", Action.READ_CALL_BACKS)
def list_call_backs(
    study: StudyPath, site: SitePath, ctx: Context, limit: Limit = 100, cursor: Cursor = None
) -> Page[CallBackRead]:
    """List the kits that a site has to fetch back or to put aside."""
    return Page[CallBackRead].of(recalls.list_call_backs(ctx, StudyCode(study), SiteCode(site), limit, cursor))
