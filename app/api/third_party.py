"""The third party's door: who asks is answered by a type that could hold no treatment, who was named by another one (rule B1)."""

from typing import Annotated
from uuid import UUID

from pydantic import Field

from app.api.doors import Context, Door
from app.api.schemas import (
    Answer,
    Body,
    Cursor,
    IdPath,
    Limit,
    Page,
    ReceiptRead,
    RowId,
    Signed,
    StudyPath,
    SubjectField,
    Text,
    Time,
)
from app.api.unblinding import KitCodes, ReasonCodeField, Status, Treatment
from app.domain.words import Action, ReasonCode, StudyCode, Username
from app.services import third_party

door = Door("Unblinding")

Physician = Annotated[Text, Field(examples=["dr.okafor"], description="user name of a treating physician of the study")]
OpenUntil = Annotated[Time, Field(examples=["2026-11-23T09:14:03+00:00"])]


class ThirdPartyRequest(Body):
    """Whose treatment a physician is to learn, and which physician: who asks does not learn it."""

    subject_id: SubjectField
    physician: Physician
    reason_code: ReasonCodeField


class ThirdPartyRequestedRead(Signed):
    """What the physician needs to open it, with their own sign-in and second factor; it has no field for a treatment."""

    third_party_unblinding_id: RowId
    subject_id: str
    physician: Physician
    open_until: OpenUntil
    receipt: ReceiptRead | None


class ThirdPartyRead(Answer):
    """The treatment of one subject, for the named physician and for nobody else (rule D6)."""

    third_party_unblinding_id: RowId
    subject_id: str
    treatment: Treatment
    kit_codes: KitCodes
    revealed_at: Time
    receipt: ReceiptRead | None


class OpeningRead(Signed):
    """That the physician looked."""

    opened_at: Time
    status: Status


class ThirdPartyRecordRead(Signed):
    """A line of the register; it has no field that could hold a treatment."""

    third_party_unblinding_id: RowId
    subject_id: str
    site_code: str
    physician: Physician
    reason_code: Annotated[str, Field(examples=["serious_adverse_event"])]
    requested_at: Time
    requested_by: Annotated[str, Field(examples=["m.rossi"])]
    role: str
    openings: list[OpeningRead]


@door.post("/studies/{study}/third-party-unblindings", Action.REQUEST_THIRD_PARTY, 201)
def request_for_third_party(study: StudyPath, body: ThirdPartyRequest, ctx: Context) -> ThirdPartyRequestedRead:
    """Let a named physician learn one subject's treatment, without learning it oneself."""
    return ThirdPartyRequestedRead.of(
        third_party.request_for_third_party(
            ctx, StudyCode(study), body.subject_id, Username(body.physician), ReasonCode(body.reason_code)
        )
    )


@door.get("/studies/{study}/third-party-unblindings", Action.READ_THIRD_PARTY)
def list_third_party(
    study: StudyPath, ctx: Context, limit: Limit = 100, cursor: Cursor = None
) -> Page[ThirdPartyRecordRead]:
    """List the requests for third parties in the order of time, without treatments."""
    return Page[ThirdPartyRecordRead].of(third_party.list_third_party(ctx, StudyCode(study), limit, cursor))


@door.post("/studies/{study}/third-party-unblindings/{request_id}/opening", Action.OPEN_FOR_THIRD_PARTY, 201)
def open_for_third_party(study: StudyPath, request_id: IdPath, ctx: Context) -> ThirdPartyRead:
    """Reveal one subject's treatment to the physician who was named."""
    return ThirdPartyRead.of(third_party.open_for_third_party(ctx, StudyCode(study), UUID(request_id)))
