"""The interim door: signed by two people, encrypted for an independent board; its register names no subject (UNB-06)."""

from typing import Annotated, Any, Final, Literal
from uuid import UUID

from pydantic import Field
from starlette.responses import Response

from app.api.doors import Context, Door
from app.api.schemas import (
    Body,
    Code,
    Cursor,
    IdPath,
    Limit,
    Moment,
    Page,
    ReceiptRead,
    RowId,
    Signed,
    StudyPath,
    Text,
    Time,
)
from app.api.unblinding import RecipientKey
from app.domain.words import Action, StudyCode
from app.services import interim
from app.services.interim import Shown

door = Door("Unblinding")

DataCut = Annotated[Moment, Field(strict=False, examples=["2026-11-22T08:00:00+00:00"])]
Board = Annotated[Text, Field(examples=["Independent data monitoring committee, statistician A. Okafor"])]
Key = Annotated[RecipientKey, Field(examples=["j0DFrbaPJWJK5bIU6nZ6bslNgp09e14a0bpvPiE4KF8="])]


Cohort = Annotated[
    dict[Code, Code],
    Field(
        max_length=20,
        examples=[{}],
        description="levels of stratification factors: only who was allocated with all of them; everybody, if none is named",
    ),
]


class InterimRequest(Body):
    """For which board, up to which moment, and the board's own key: nobody else can open the package."""

    data_cut_at: DataCut
    show: Annotated[Shown, Field(strict=False, examples=["groups"])] = Shown.ARMS
    board: Board
    strata: Cohort = Field(default_factory=dict)
    recipient_key: Key
    meaning: Literal["responsibility"]

    def wanted(self) -> interim.InterimWanted:
        """Return what is asked for in the service's words."""
        return interim.InterimWanted(self.data_cut_at, self.show, self.board, self.recipient_key, self.strata)


class InterimRequestedRead(Signed):
    """A request that waits for another unblinded person."""

    request_id: RowId
    data_cut_at: Time
    requested_at: Time
    requested_by: Annotated[str, Field(examples=["s.ito"])]
    receipt: ReceiptRead | None


class InterimRelease(Body):
    """What the second person signs: the same cut and part, and the key as they have it from the board themselves."""

    data_cut_at: DataCut
    strata: Cohort = Field(default_factory=dict)
    recipient_key: Key
    meaning: Literal["approval"]


class InterimRecordRead(Signed):
    """A line of the register; it has no field that could hold a subject or a treatment."""

    request_id: RowId
    data_cut_at: Time
    show: str = Field(examples=["groups"])
    board: Board
    strata: Annotated[dict[str, str], Field(examples=[{}])]
    requested_at: Time
    requested_by: Annotated[str, Field(examples=["s.ito"])]
    released_at: Time | None
    released_by: Annotated[str | None, Field(examples=["l.meyer"])]


_PACKAGE: Final[dict[int | str, dict[str, Any]]] = {
    200: {
        "description": "The allocations up to the data cut, CSV, encrypted to the board's key",
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }
}


@door.post("/studies/{study}/interim-unblinding-requests", Action.REQUEST_INTERIM, 201)
def request_interim(study: StudyPath, body: InterimRequest, ctx: Context) -> InterimRequestedRead:
    """Ask for the allocations up to a data cut, for an independent board."""
    return InterimRequestedRead.of(interim.request_interim(ctx, StudyCode(study), body.wanted()))


@door.get("/studies/{study}/interim-unblinding-requests", Action.READ_INTERIMS)
def list_interims(study: StudyPath, ctx: Context, limit: Limit = 100, cursor: Cursor = None) -> Page[InterimRecordRead]:
    """List the interim requests in the order of time."""
    return Page[InterimRecordRead].of(interim.list_interims(ctx, StudyCode(study), limit, cursor))


@door.post(
    "/studies/{study}/interim-unblinding-requests/{request_id}/release",
    Action.RELEASE_INTERIM,
    response_class=Response,
    responses=_PACKAGE,
)
def release_interim(study: StudyPath, request_id: IdPath, body: InterimRelease, ctx: Context) -> Response:
    """Release an interim package as the second person, once."""
    package = interim.release_interim(
        ctx, StudyCode(study), UUID(request_id), body.data_cut_at, body.recipient_key, body.strata
    )
    headers = {"Content-Disposition": f'attachment; filename="{package.file_name}"'}
    return Response(package.content, 200, headers, "application/octet-stream")
