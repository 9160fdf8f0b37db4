"""Consignments of kits, from the supply manager to the pharmacist."""

from datetime import datetime
from typing import Annotated, Any, Final
from uuid import UUID

from fastapi import Depends, Request
from fastapi.exceptions import RequestValidationError
from pydantic import AfterValidator, Field, StringConstraints, TypeAdapter, ValidationError
from starlette.responses import Response

from app.api.doors import Context, Door
from app.api.schemas import Answer, Body, Code, CodePath, Day, IdPath, KitCodeField, SiteCodeField, StudyPath, Text
from app.domain.kits import IMPORT_HEADER, LARGEST_CONSIGNMENT, ImportLine, is_lot
from app.domain.words import Action, ArmCode, ConsignmentCode, KitCode, SiteCode, StudyCode
from app.services import consignments
from app.services.consignments import Batch

door = Door("Consignments")

IMPORT_TYPES: Final = ("application/json", "text/csv")


def _lot(text: str) -> str:
    if not is_lot(text):
        message = "must be printable ASCII and not begin with =, +, - or @"
        raise ValueError(message)
    return text


Lot = Annotated[
    str,
    AfterValidator(_lot),
    Field(
        min_length=1,
        max_length=40,
        description="printable ASCII characters, not beginning with =, +, - or @",
        examples=["L2607"],
    ),
]


class BatchField(Body):
    """So many kits of one product."""

    arm_code: Code
    lot: Lot
    expires_on: Annotated[Day, Field(examples=["2027-06-30"])]
    count: Annotated[int, Field(ge=1, le=LARGEST_CONSIGNMENT)]


class ConsignmentRequest(Body):
    """A consignment for which the service makes the kit codes; every arm of the study is in it."""

    consignment_code: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{1,40}$"), Field(examples=["C1"])]
    kits: Annotated[list[BatchField], Field(min_length=1, max_length=10_000)]

    def batches(self) -> list[Batch]:
        """Return the batches in the service's words."""
        return [Batch(ArmCode(kit.arm_code), kit.lot, kit.expires_on, kit.count) for kit in self.kits]


class KitImportField(Body):
    """A kit of an import; what is wrong with it is named together with all other faults."""

    kit_code: str
    arm_code: str
    lot: str
    expires_on: str


class ConsignmentRead(Answer):
    """A consignment just made, and what its kit map was committed to by."""

    consignment_code: str
    kit_count: int
    commitment: str = Field(description="root of the kit map, hexadecimal")


class PackingListBody(Body):
    """Who is to open the list, if it is to be encrypted."""

    recipient_key: Annotated[Text | None, Field(description="base64 of an X25519 public key (RFC 9180)")] = None


class PackingListRequestRead(Answer):
    """A request that waits for a second person."""

    request_id: UUID


class DispatchRequest(Body):
    """Where a consignment goes."""

    site_code: SiteCodeField


class DispatchRead(Answer):
    """A consignment on its way."""

    consignment_code: str
    site_code: str
    status: str
    kit_count: int
    dispatched_at: datetime


class ReceiptRequest(Body):
    """Codes that came, and codes that did not; the rest may follow."""

    received: Annotated[list[KitCodeField], Field(max_length=LARGEST_CONSIGNMENT, default_factory=list)]
    missing: Annotated[list[KitCodeField], Field(max_length=LARGEST_CONSIGNMENT, default_factory=list)]


class ConsignmentReceiptRead(Answer):
    """How far a consignment is received, all arms pooled."""

    consignment_code: str
    status: str = Field(description="dispatched while codes are open, then assignable; withdrawn once it is too low")
    received: int
    missing: int
    outstanding: int
    put_aside: list[str] = Field(description="codes of this receipt that stay aside: a code was broken by them")


_LINES: Final = TypeAdapter(list[KitImportField])
_EXAMPLE: Final = {"kit_code": "K7XQ4M2PF", "arm_code": "HUCMSC", "lot": "L2607", "expires_on": "2027-06-30"}
_IMPORT_BODY: Final[dict[str, Any]] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "type": "array",
                    "items": {
                        "type": "object",
                        "required": list(IMPORT_HEADER),
                        "additionalProperties": False,
                        "properties": {name: {"type": "string"} for name in IMPORT_HEADER},
                    },
                },
                "example": [_EXAMPLE],
            },
            "text/csv": {
                "schema": {"type": "string"},
                "example": f"{','.join(IMPORT_HEADER)}\r\n{','.join(_EXAMPLE.values())}\r\n",
            },
        },
    }
}


async def import_source(request: Request) -> bytes | list[ImportLine]:
    """Return the body of an import: a CSV file as it came, or the lines of a JSON array."""
    content = await request.body()
    if request.headers.get("content-type", "").split(";")[0].strip().lower() == "text/csv":
        return content
    try:
        kits = _LINES.validate_json(content, strict=True)
    except ValidationError as error:
        # Told like any other wrong body, after the caller's right was looked at (rule G2).
        faults = error.errors(include_url=False, include_context=False, include_input=False)
        raise RequestValidationError([{**fault, "loc": ("body", *fault["loc"])} for fault in faults]) from None
    return [
        ImportLine(f"kits.{index}", kit.kit_code, kit.arm_code, kit.lot, kit.expires_on)
        for index, kit in enumerate(kits)
    ]


ImportSource = Annotated[bytes | list[ImportLine], Depends(import_source)]


@door.post("/studies/{study}/consignments", Action.CREATE_CONSIGNMENT, 201)
def create_consignment(study: StudyPath, body: ConsignmentRequest, ctx: Context) -> ConsignmentRead:
    """Make a consignment; the service makes the kit codes."""
    code = ConsignmentCode(body.consignment_code)
    return ConsignmentRead.of(consignments.create_consignment(ctx, StudyCode(study), code, body.batches()))


@door.post(
    "/studies/{study}/consignments/{code}/kits",
    Action.CREATE_CONSIGNMENT,
    201,
    media_types=IMPORT_TYPES,
    openapi_extra=_IMPORT_BODY,
)
def import_consignment(study: StudyPath, code: CodePath, source: ImportSource, ctx: Context) -> ConsignmentRead:
    """Make a consignment from an import of kits, as JSON or CSV; refused whole, with every fault named."""
    return ConsignmentRead.of(consignments.import_consignment(ctx, StudyCode(study), ConsignmentCode(code), source))


@door.post("/studies/{study}/consignments/{code}/packing-list-requests", Action.REQUEST_PACKING_LIST, 201)
def request_packing_list(
    study: StudyPath, code: CodePath, ctx: Context, body: PackingListBody | None = None
) -> PackingListRequestRead:
    """Ask for the packing list of a consignment; another unblinded person releases it."""
    key = (body or PackingListBody()).recipient_key
    return PackingListRequestRead.of(
        consignments.request_packing_list(ctx, StudyCode(study), ConsignmentCode(code), key)
    )


@door.post(
    "/studies/{study}/consignments/{code}/packing-list-requests/{request_id}/release",
    Action.RELEASE_PACKING_LIST,
    response_class=Response,
    openapi_extra={
        "responses": {
            "200": {
                "description": "The packing list, once; encrypted (HPKE, RFC 9180) when the request names a recipient_key",
                "content": {
                    "text/csv": {"schema": {"type": "string"}, "example": f"{','.join(IMPORT_HEADER)}\r\n"},
                    "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
                },
            }
        }
    },
)
def release_packing_list(study: StudyPath, code: CodePath, request_id: IdPath, ctx: Context) -> Response:
    """Release a packing list that another person asked for, and get it."""
    released = consignments.release_packing_list(ctx, StudyCode(study), ConsignmentCode(code), UUID(request_id))
    headers = {"Content-Disposition": f'attachment; filename="{released.file_name}"'}
    return Response(released.content, media_type=released.media_type, headers=headers)


@door.post("/studies/{study}/consignments/{code}/dispatch", Action.DISPATCH_CONSIGNMENT)
def dispatch_consignment(study: StudyPath, code: CodePath, body: DispatchRequest, ctx: Context) -> DispatchRead:
    """Send a consignment to a site."""
    return DispatchRead.of(
        consignments.dispatch_consignment(ctx, StudyCode(study), ConsignmentCode(code), SiteCode(body.site_code))
    )


@door.post("/studies/{study}/consignments/{code}/receipt", Action.RECEIVE_CONSIGNMENT)
def receive_consignment(study: StudyPath, code: CodePath, body: ReceiptRequest, ctx: Context) -> ConsignmentReceiptRead:
    """Receive a consignment, at once or in parts."""
    received, missing = ([KitCode(kit) for kit in kits] for kits in (body.received, body.missing))
    return ConsignmentReceiptRead.of(
        consignments.receive_consignment(ctx, StudyCode(study), ConsignmentCode(code), received, missing)
    )
