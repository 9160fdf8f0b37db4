"""The trail: reading, restricted parts, checkpoints, proofs, the export, and the statement after a suspected rollback."""

from typing import Annotated, Any

from fastapi import Depends, Path, Query
from pydantic import Field
from starlette.responses import PlainTextResponse, StreamingResponse

from app.api.doors import Context, Door
from app.api.schemas import (
    Answer,
    Body,
    Cursor,
    Limit,
    Moment,
    Page,
    Reason,
    ReceiptRead,
    StudyPath,
    SubjectField,
    Time,
)
from app.domain.words import Action, StudyCode
from app.services import trail
from app.services.trail import TrailQuery

door = Door("Trail")

_LARGEST = 2**53 - 1

ActionFilter = Annotated[
    str | None,
    Query(pattern=r"^[a-z_]{1,40}:[a-z_]{1,40}$", description="entries of this action", examples=["trail:read"]),
]
ActorFilter = Annotated[
    str | None, Query(pattern=r"^[a-z0-9][a-z0-9._-]{0,39}$", description="entries of this person or client")
]
SubjectFilter = Annotated[SubjectField | None, Query(description="entries about this subject, in any spelling")]
FromFilter = Annotated[Moment | None, Query(alias="from", description="not before this time, with its offset")]
ToFilter = Annotated[Moment | None, Query(alias="to", description="before this time, with its offset")]
IndexPath = Annotated[int, Path(ge=0, le=_LARGEST, examples=[1841], description="the index of an entry")]
Segment = Annotated[
    int | None, Query(ge=1, le=_LARGEST, description="a segment of the log; the newest unless named", examples=[1])
]
FromSize = Annotated[int, Query(alias="from", ge=0, le=_LARGEST, description="an earlier size of the log")]
ToSize = Annotated[
    int | None, Query(alias="to", ge=0, le=_LARGEST, description="a later size; the present one unless named")
]


class AuditEntryRead(Answer):
    """The public part of an entry, as it was hashed."""

    index: int = Field(examples=[1841])
    segment: int = Field(examples=[1], description="2 and more only after a suspected rollback or fork")
    at: str = Field(examples=["2026-11-22T09:14:03.000000+00:00"])
    actor: str = Field(examples=["m.rossi"])
    role: str | None = Field(examples=["investigator"])
    client: str | None = Field(examples=[None])
    action: str = Field(examples=["allocation:create"])
    outcome: str = Field(examples=["done"])
    target: dict[str, Any] | None
    before: dict[str, Any] | None
    after: dict[str, Any] | None
    request_id: str
    leaf_hash: str


class RestrictedRead(Answer):
    """The restricted part of an entry."""

    index: int
    segment: int
    part: dict[str, Any]


class InclusionProofRead(Answer):
    """That an entry stands in the log; hashes are hexadecimal, the checkpoint is a signed note."""

    index: int
    size: int
    leaf_hash: str
    root: str
    proof: list[str]
    checkpoint: str


class ConsistencyProofRead(Answer):
    """That the log only grew."""

    from_size: int
    to_size: int
    from_root: str
    to_root: str
    proof: list[str]
    checkpoint: str


class RecoveryRequest(Body):
    """What was found out about the suspected rollback, and why the service may go on."""

    statement: Reason


class SuspectedLog(Answer):
    """A log that was given up, and the size at which it was known outside the database."""

    origin: str
    size: int
    kind: str


class RecoveryRead(Answer):
    """The logs that were given up; each goes on in a new segment."""

    declared_at: Time
    logs: list[SuspectedLog]
    receipt: ReceiptRead


def _asked(
    action: ActionFilter = None,
    actor: ActorFilter = None,
    subject: SubjectFilter = None,
    begin: FromFilter = None,
    end: ToFilter = None,
) -> TrailQuery:
    """Return the filters of a reading."""
    return TrailQuery(action, actor, subject, begin, end)


Asked = Annotated[TrailQuery, Depends(_asked)]


@door.get("/studies/{study}/trail", Action.READ_TRAIL)
def read_trail(
    study: StudyPath, ctx: Context, asked: Asked, limit: Limit = 100, cursor: Cursor = None
) -> Page[AuditEntryRead]:
    """Read the trail of the study: the public parts of its entries, in order."""
    return Page[AuditEntryRead].of(trail.read_trail(ctx, StudyCode(study), asked, limit, cursor))


@door.get("/trail", Action.READ_SERVICE_TRAIL)
def read_service_trail(ctx: Context, asked: Asked, limit: Limit = 100, cursor: Cursor = None) -> Page[AuditEntryRead]:
    """Read the service's own log: accounts, sign-ins, keys, settings."""
    return Page[AuditEntryRead].of(trail.read_service_trail(ctx, asked, limit, cursor))


@door.get("/studies/{study}/trail/checkpoint", Action.READ_CHECKPOINT, response_class=PlainTextResponse)
def read_checkpoint(study: StudyPath, ctx: Context) -> PlainTextResponse:
    """Read the signed checkpoint of the study's log."""
    return PlainTextResponse(trail.read_checkpoint(ctx, StudyCode(study)))


@door.get("/studies/{study}/trail/consistency", Action.READ_PROOF)
def prove_growth(
    study: StudyPath, ctx: Context, begin: FromSize, end: ToSize = None, segment: Segment = None
) -> ConsistencyProofRead:
    """Prove that the log of one size begins with all of an earlier one."""
    return ConsistencyProofRead.of(trail.prove_growth(ctx, StudyCode(study), begin, end, segment))


@door.get("/studies/{study}/trail/proofs/{index}", Action.READ_PROOF)
def prove_entry(study: StudyPath, index: IndexPath, ctx: Context, segment: Segment = None) -> InclusionProofRead:
    """Prove that an entry stands in the log."""
    return InclusionProofRead.of(trail.prove_entry(ctx, StudyCode(study), index, segment))


@door.get(
    "/studies/{study}/trail/export",
    Action.EXPORT_TRAIL,
    response_class=StreamingResponse,
    responses={
        200: {
            "description": "JSON Lines: a header for each segment, then its entries; the input of the offline verifier",
            "content": {"application/x-ndjson": {"schema": {"type": "string"}}},
        }
    },
)
def export_trail(study: StudyPath, ctx: Context) -> StreamingResponse:
    """Export the whole trail of the study for the offline verifier."""
    return StreamingResponse(trail.export_trail(ctx, StudyCode(study)), media_type="application/x-ndjson")


@door.get("/studies/{study}/trail/{index}/restricted", Action.READ_RESTRICTED)
def read_restricted(study: StudyPath, index: IndexPath, ctx: Context, segment: Segment = None) -> RestrictedRead:
    """Read the restricted part of an entry."""
    return RestrictedRead.of(trail.read_restricted(ctx, StudyCode(study), index, segment))


@door.post("/recovery-statements", Action.DECLARE_RECOVERY, 201)
def declare_recovery(body: RecoveryRequest, ctx: Context) -> RecoveryRead:
    """State that a suspected rollback was looked into, so that the service goes on."""
    return RecoveryRead.of(trail.declare_recovery(ctx, body.statement))
