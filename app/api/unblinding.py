"""Code breaks and the other doors to a treatment. Answers that reveal and answers that do not are different types (rule B1)."""

from typing import Annotated, Any, Final, Literal
from uuid import UUID

from pydantic import ConfigDict, Field, StringConstraints
from starlette.responses import Response

from app.api.doors import Context, Door
from app.api.schemas import (
    Answer,
    Body,
    Cursor,
    IdPath,
    KitCodeField,
    Limit,
    Narrative,
    Page,
    Reason,
    ReceiptRead,
    RowId,
    Signed,
    StudyPath,
    SubjectField,
    Text,
    Time,
)
from app.domain.words import Action, Impact, KitCode, Late, ReasonCode, StudyCode
from app.services import unblinding

door = Door("Unblinding")


RecipientKey = Annotated[
    str,
    StringConstraints(min_length=44, max_length=44, pattern=r"^[A-Za-z0-9+/]{43}=$"),
    Field(description="base64 of the 32 bytes of an X25519 public key; the answer is then HPKE (RFC 9180)"),
]
Subject = Annotated[str, Field(examples=["01-0007"])]
ArmCode = Annotated[str, Field(examples=["HUCMSC"])]
Treatment = Annotated[str, Field(examples=["Hormone replacement therapy + HUC-MSCs transplantation"])]
KitCodes = Annotated[
    list[str], Field(examples=[["K7XQ4M2PF"]], description="every kit of the subject, the first one first")
]
Moment = Annotated[Time, Field(examples=["2026-11-22T09:14:03+00:00"])]
PersonName = Annotated[str, Field(examples=["dr.wang"])]
Status = Annotated[str, Field(examples=["authorised"], description="`withheld` when the answer could not leave")]
ReasonCodeField = Literal[
    "serious_adverse_event",
    "overdose",
    "pregnancy_exposure",
    "accidental_exposure",
    "urgent_treatment_decision",
    "other_safety",
]


class CodeBreakRequest(Body):
    """One subject, or one kit instead; reasons of subject safety only (EUB-06, EUB-07, EUB-23)."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "subject_id": "01-0007",
                "reason_code": "serious_adverse_event",
                "requested_by": "Dr on call, ward 3",
            }
        }
    )

    subject_id: SubjectField | None = None
    kit_code: KitCodeField | None = None
    reason_code: ReasonCodeField
    requested_by: (
        Annotated[Text, Field(description="required from a safety officer: who asks, and from where")] | None
    ) = None
    confirm_subject_id: SubjectField | None = Field(
        default=None, description="whom one believes it to be: for another one nothing is opened (409)"
    )

    def request(self) -> unblinding.CodeBreakRequest:
        """Return the request in the service's words."""
        return unblinding.CodeBreakRequest(
            self.subject_id,
            None if self.kit_code is None else KitCode(self.kit_code),
            ReasonCode(self.reason_code),
            self.requested_by,
            self.confirm_subject_id,
        )


class CodeBreakRead(Answer):
    """The treatment of one subject, for who broke the code and for nobody else (rule D6)."""

    code_break_id: RowId
    subject_id: Annotated[str | None, Field(examples=["01-0007"], description="null for a kit that nobody was given")]
    arm_code: ArmCode
    treatment: Treatment
    kit_codes: KitCodes
    revealed_at: Moment
    receipt: ReceiptRead | None


class NarrativeRequest(Body):
    """What happened, told after the break, once."""

    narrative: Narrative


class NarrativeRead(Answer):
    """That the narrative was given; its text is in the restricted part of the trail."""

    code_break_id: RowId
    narrated_at: Moment
    receipt: ReceiptRead | None


class AssessmentRequest(Body):
    """What a code break means for the trial, told once.

    The word is shown in the register. The texts are in the restricted part of the trail, which the safety officer alone reads; even
    so they name no treatment, for their authors may be blinded, and are to stay so.
    """

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "impact": "none",
                "assessment": "Nobody but the treating physician was told; the subject stays in the analysis.",
                "corrective_action": "The ward was told when a code break is needed.",
            }
        }
    )

    impact: Annotated[Impact, Field(strict=False, examples=["none"])]
    assessment: Annotated[
        Narrative, Field(description="holds no treatment", examples=["Nobody but the treating physician was told."])
    ]
    corrective_action: (
        Annotated[
            Reason, Field(description="holds no treatment", examples=["The ward was told when a code break is needed."])
        ]
        | None
    ) = None

    def words(self) -> unblinding.Assessment:
        """Return it in the service's words."""
        return unblinding.Assessment(self.impact, self.assessment, self.corrective_action)


class AssessmentRead(Answer):
    """That the impact was assessed; the texts are in the restricted part of the trail."""

    code_break_id: RowId
    impact: Annotated[Impact, Field(examples=["none"])]
    assessed_at: Moment
    assessed_by: PersonName
    receipt: ReceiptRead | None


class CodeBreakRecordRead(Signed):
    """A line of the register; it has no field that could hold a treatment."""

    code_break_id: RowId
    subject_id: Subject | None
    kit_code: Annotated[str | None, Field(examples=["K7XQ4M2PF"], description="the kit by whose code it was asked")]
    site_code: Annotated[str | None, Field(examples=["01"])]
    reason_code: Annotated[str, Field(examples=["serious_adverse_event"])]
    status: Status
    broken_at: Moment
    broken_by: PersonName
    role: Annotated[str, Field(examples=["investigator"])]
    by_kit_code: Annotated[bool, Field(examples=[False])]
    own_site: Annotated[bool, Field(examples=[True])]
    narrated_at: Moment | None
    narrative_due_at: Moment
    assessed_at: Moment | None
    assessment_due_at: Moment
    impact: Annotated[Impact | None, Field(examples=["none"])]
    overdue: Annotated[list[Late], Field(examples=[["assessment"]], description="what is late; it blocks nothing")]
    kind: Annotated[
        str,
        Field(examples=["service"], description="`envelope`: opened while the service was down, entered afterwards"),
    ]
    opened_by: Annotated[str | None, Field(examples=[None], description="who opened the envelope")]
    seconds_to_reveal: Annotated[
        float | None,
        Field(examples=[41.5], description="from this person's first request, challenged or not, within the hour"),
    ]


class SafetyUnblindingRequest(Body):
    """The subject of a suspected unexpected serious adverse reaction, and the case it is about."""

    subject_id: SubjectField
    reason: Annotated[Reason, Field(examples=["SUSAR 2026-0113"])]
    event: (
        Annotated[Text, Field(examples=["Pulmonary embolism"], description="the reaction, in the protocol's words")]
        | None
    ) = None
    despite_exemption: Annotated[
        bool, Field(description="unblind although the protocol exempts this event from systematic unblinding")
    ] = False


class SafetyUnblindingRead(Answer):
    """The treatment of one subject, for the safety officer and for nobody else (UNB-02)."""

    safety_unblinding_id: RowId
    subject_id: Subject
    arm_code: ArmCode
    treatment: Treatment
    kit_codes: KitCodes
    revealed_at: Moment
    receipt: ReceiptRead | None


class SafetyRecordRead(Signed):
    """A line of the safety officer's register, without treatment."""

    safety_unblinding_id: RowId
    subject_id: Subject
    status: Status
    unblinded_at: Moment
    unblinded_by: PersonName


class FinalUnblindingRequest(Body):
    """The attestation that the database is locked (UNB-07), and for whom the package is encrypted."""

    database_lock_statement: Annotated[Reason, Field(examples=["Database locked on 2027-03-01, query count 0."])]
    recipient_key: RecipientKey | None = None


class FinalUnblindingRead(Signed):
    """A request that waits for a list approver."""

    request_id: RowId
    requested_at: Moment
    requested_by: PersonName
    receipt: ReceiptRead | None


_BINARY: Final = {"schema": {"type": "string", "format": "binary"}}
_PACKAGE: Final[dict[int | str, dict[str, Any]]] = {
    200: {
        "description": "The final package, the input of the offline verifier",
        "content": {"application/zip": _BINARY, "application/octet-stream": _BINARY},
    }
}


@door.post("/studies/{study}/code-breaks", Action.BREAK_CODE, 201)
def break_code(study: StudyPath, body: CodeBreakRequest, ctx: Context) -> CodeBreakRead:
    """Reveal one subject's treatment in an emergency."""
    return CodeBreakRead.of(unblinding.break_code(ctx, StudyCode(study), body.request()))


@door.get("/studies/{study}/code-breaks", Action.READ_CODE_BREAKS)
def list_code_breaks(
    study: StudyPath, ctx: Context, limit: Limit = 100, cursor: Cursor = None
) -> Page[CodeBreakRecordRead]:
    """List code breaks in the order of time, without treatments."""
    return Page[CodeBreakRecordRead].of(unblinding.list_code_breaks(ctx, StudyCode(study), limit, cursor))


@door.post("/studies/{study}/code-breaks/{code_break_id}/narrative", Action.ADD_NARRATIVE, 201)
def add_narrative(study: StudyPath, code_break_id: IdPath, body: NarrativeRequest, ctx: Context) -> NarrativeRead:
    """Tell what happened, after a code break of one's own."""
    return NarrativeRead.of(unblinding.add_narrative(ctx, StudyCode(study), UUID(code_break_id), body.narrative))


@door.post("/studies/{study}/code-breaks/{code_break_id}/assessment", Action.ASSESS_BREAK, 201)
def assess_break(study: StudyPath, code_break_id: IdPath, body: AssessmentRequest, ctx: Context) -> AssessmentRead:
    """Say what a code break means for the trial, without a treatment."""
    return AssessmentRead.of(unblinding.assess_break(ctx, StudyCode(study), UUID(code_break_id), body.words()))


@door.post("/studies/{study}/safety-unblindings", Action.UNBLIND_FOR_SAFETY, 201)
def unblind_for_safety(study: StudyPath, body: SafetyUnblindingRequest, ctx: Context) -> SafetyUnblindingRead:
    """Reveal one subject's treatment for a safety report."""
    return SafetyUnblindingRead.of(
        unblinding.unblind_for_safety(
            ctx, StudyCode(study), body.subject_id, body.reason, body.event, despite_exemption=body.despite_exemption
        )
    )


@door.get("/studies/{study}/safety-unblindings", Action.READ_SAFETY_UNBLINDINGS)
def list_safety_unblindings(
    study: StudyPath, ctx: Context, limit: Limit = 100, cursor: Cursor = None
) -> Page[SafetyRecordRead]:
    """List safety unblindings with their subjects, without treatments."""
    return Page[SafetyRecordRead].of(unblinding.list_safety_unblindings(ctx, StudyCode(study), limit, cursor))


@door.post("/studies/{study}/final-unblinding-requests", Action.REQUEST_FINAL_UNBLINDING, 201)
def request_final_unblinding(study: StudyPath, body: FinalUnblindingRequest, ctx: Context) -> FinalUnblindingRead:
    """Ask for the final unblinding of a closed study."""
    return FinalUnblindingRead.of(
        unblinding.request_final_unblinding(ctx, StudyCode(study), body.database_lock_statement, body.recipient_key)
    )


@door.post(
    "/studies/{study}/final-unblinding-requests/{request_id}/release",
    Action.RELEASE_FINAL_UNBLINDING,
    response_class=Response,
    responses=_PACKAGE,
)
def release_final_unblinding(study: StudyPath, request_id: IdPath, ctx: Context) -> Response:
    """Release the final package as the second person, once."""
    package = unblinding.release_final_unblinding(ctx, StudyCode(study), UUID(request_id))
    headers = {"Content-Disposition": f'attachment; filename="{package.file_name}"'}
    return Response(package.content, 200, headers, package.media_type)
