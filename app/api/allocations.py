"""Allocations. No answer here has a field that could hold an arm (rule B1)."""

from typing import Annotated

from pydantic import ConfigDict, Field, StringConstraints

from app.api.doors import Context, Door
from app.api.schemas import (
    Answer,
    Body,
    Code,
    Cursor,
    Limit,
    Page,
    Reason,
    ReceiptRead,
    Signed,
    SiteCodeField,
    StudyPath,
    SubjectField,
    SubjectPath,
    Text,
    Time,
)
from app.domain.words import Action, ErrorCategory, SiteCode, StudyCode
from app.services import allocations

door = Door("Allocations")

Strata = Annotated[dict[Code, Code], Field(max_length=20, examples=[{}])]
Category = Annotated[ErrorCategory, Field(strict=False, examples=["ineligible"])]


class AllocationRequest(Body):
    """A subject to be randomized. The client sends no state: the server knows the next slot (rule C1)."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "subject_id": "01-0007",
                "site_code": "01",
                "strata": {},
                "consent_confirmed": True,
                "eligibility_confirmed": True,
                "reported_user": "nurse.li",
            }
        }
    )

    subject_id: SubjectField
    site_code: SiteCodeField
    strata: Strata
    consent_confirmed: bool
    eligibility_confirmed: bool
    reported_user: Annotated[Text, StringConstraints(max_length=80)] | None = None

    def request(self) -> allocations.AllocationRequest:
        """Return the request in the service's words."""
        return allocations.AllocationRequest(
            self.subject_id,
            SiteCode(self.site_code),
            self.strata,
            self.consent_confirmed,
            self.eligibility_confirmed,
            self.reported_user,
        )


class AllocationRead(Answer):
    """The allocation: what the site needs to fetch the kit."""

    study_code: Annotated[str, Field(examples=["NCT03033277"])]
    mode: Annotated[str, Field(examples=["test"])]
    subject_id: Annotated[str, Field(examples=["01-0007"])]
    site_code: Annotated[str, Field(examples=["01"])]
    randomization_number: Annotated[str, Field(examples=["R4K7QK"])]
    kit_code: Annotated[str, Field(examples=["K7XQ4M2PF"])]
    allocated_at: Annotated[Time, Field(examples=["2026-11-22T09:14:03+00:00"])]
    receipt: ReceiptRead | None


class ErrorMarkRead(Signed):
    """That the subject was randomized in error."""

    category: str
    marked_at: Time
    marked_by: str


class FlagsRead(Answer):
    """What was said of the allocation since."""

    unblinded_at: Time | None
    error_mark: ErrorMarkRead | None
    duplicate_of: str | None
    accidentally_unblinded_at: Time | None
    safety_unblinded_at: Time | None


class AllocationRecordRead(AllocationRead):
    """The allocation as it is read later."""

    current_kit_codes: list[str]
    flags: FlagsRead
    strata_used: dict[str, str]
    strata_corrected: dict[str, str] | None


class ErrorMarkRequest(Body):
    """Why the allocation was an error; it stays, and the slot stays used."""

    category: Category
    reason: Reason


class StrataCorrectionRequest(Body):
    """The right strata values; those used stay on record beside them."""

    strata: Strata
    reason: Reason


class DuplicateLinkRequest(Body):
    """Which other identifier is the same person."""

    duplicate_of: SubjectField
    reason: Reason


class FlagRead(Signed):
    """A flag that was set."""

    subject_id: str
    kind: str
    flagged_at: Time
    flagged_by: str
    receipt: ReceiptRead | None


@door.post("/studies/{study}/allocations", Action.ALLOCATE, 201)
def allocate(study: StudyPath, body: AllocationRequest, ctx: Context) -> AllocationRead:
    """Randomize a subject and assign the first kit."""
    return AllocationRead.of(allocations.allocate(ctx, StudyCode(study), body.request()))


@door.get("/studies/{study}/allocations", Action.LIST_ALLOCATIONS)
def list_allocations(
    study: StudyPath, ctx: Context, limit: Limit = 100, cursor: Cursor = None
) -> Page[AllocationRecordRead]:
    """List allocations in the order of time."""
    return Page[AllocationRecordRead].of(allocations.list_allocations(ctx, StudyCode(study), limit, cursor))


@door.get("/studies/{study}/subjects/{subject}/allocation", Action.READ_ALLOCATION)
def read_allocation(study: StudyPath, subject: SubjectPath, ctx: Context) -> AllocationRecordRead:
    """Read one subject's allocation, its kits and its flags."""
    return AllocationRecordRead.of(allocations.read_allocation(ctx, StudyCode(study), subject))


@door.post("/studies/{study}/subjects/{subject}/error-mark", Action.MARK_ERROR, 201)
def mark_error(study: StudyPath, subject: SubjectPath, body: ErrorMarkRequest, ctx: Context) -> FlagRead:
    """Mark an allocation as made in error; it stays as it is."""
    return FlagRead.of(allocations.mark_error(ctx, StudyCode(study), subject, body.category, body.reason))


@door.post("/studies/{study}/subjects/{subject}/strata-correction", Action.CORRECT_STRATA, 201)
def correct_strata(study: StudyPath, subject: SubjectPath, body: StrataCorrectionRequest, ctx: Context) -> FlagRead:
    """Record the right strata values beside those that were used."""
    return FlagRead.of(allocations.correct_strata(ctx, StudyCode(study), subject, body.strata, body.reason))


@door.post("/studies/{study}/subjects/{subject}/duplicate-link", Action.LINK_DUPLICATE, 201)
def link_duplicate(study: StudyPath, subject: SubjectPath, body: DuplicateLinkRequest, ctx: Context) -> FlagRead:
    """Link two identifiers that are one person; both allocations stay."""
    return FlagRead.of(allocations.link_duplicate(ctx, StudyCode(study), subject, body.duplicate_of, body.reason))
