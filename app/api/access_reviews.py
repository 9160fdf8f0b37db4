"""Access reviews: who holds what, and the sign-off that it was looked at."""

from typing import Annotated
from uuid import UUID

from pydantic import Field, StringConstraints

from app.api.doors import Context, Door
from app.api.schemas import Answer, Body, Cursor, Id, Limit, Page, ReceiptRead, RowId, Signed, StudyPath, Time
from app.domain.access_reviews import Decision, TrainingState, Verdict, WhyRevoke
from app.domain.words import Action, StudyCode
from app.services import access_reviews

door = Door("Access reviews")

Username = Annotated[str, Field(examples=["m.rossi"], description="a machine's client id")]
ContentHash = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Grantee = Annotated[str, Field(examples=["Dr Maria Rossi"])]
RoleName = Annotated[str, Field(examples=["investigator"])]
Machine = Annotated[bool, Field(examples=[False])]
_MOST: int = 20_000


class AccessRead(Answer):
    """A grant that nobody has revoked, its training, and when its holder was last here."""

    grant_id: RowId
    username: Annotated[Username, Field(validation_alias="name")]
    display_name: Grantee
    is_machine: Machine
    role: RoleName
    site_code: str | None
    granted_at: Time
    granted_by: Annotated[str, Field(examples=["admin"])]
    starts_at: Annotated[Time | None, Field(examples=[None])]
    ends_at: Annotated[Time | None, Field(examples=[None])]
    training: Annotated[TrainingState, Field(examples=["valid"])]
    last_sign_in_at: Annotated[Time | None, Field(examples=["2026-11-22T08:59:40+00:00"])]
    last_used_at: Annotated[Time | None, Field(examples=["2026-11-22T09:14:03+00:00"], description="to the minute")]


class CurrentAccessRead(Answer):
    """Who holds what now, the service's administrators too; ``content_hash`` goes into the sign-off."""

    content_hash: ContentHash
    last_reviewed_at: Annotated[Time | None, Field(examples=[None])]
    due_at: Annotated[Time, Field(examples=["2027-05-21T09:14:03+00:00"])]
    is_overdue: Annotated[bool, Field(examples=[False])]
    items: list[AccessRead]


class DecisionField(Body):
    """What is said of one grant."""

    grant_id: Id
    verdict: Annotated[Verdict, Field(strict=False, examples=["keep"])]
    reason: Annotated[
        WhyRevoke | None, Field(strict=False, examples=[None], description="of a grant that is to be revoked")
    ] = None


class ReviewRequest(Body):
    """A decision for each grant that was looked at."""

    content_hash: ContentHash
    decisions: Annotated[list[DecisionField], Field(max_length=_MOST)]


class ReviewedRead(Answer):
    """A grant as it was looked at, and what was said of it."""

    grant_id: RowId
    username: Username
    display_name: Grantee
    is_machine: Machine
    role: RoleName
    site_code: str | None
    verdict: Annotated[Verdict, Field(examples=["keep"])]
    reason: Annotated[WhyRevoke | None, Field(examples=[None])]


class ReviewItemRead(Signed):
    """A review that was signed."""

    review_id: RowId
    reviewed_at: Time
    reviewed_by: Annotated[str, Field(examples=["a.lund"])]
    content_hash: ContentHash
    items: list[ReviewedRead]


class ReviewRead(ReviewItemRead):
    """The review, signed."""

    receipt: ReceiptRead | None


class OutstandingRead(Answer):
    """When a study's review is due, and what the newest one wants revoked and is not yet."""

    study_code: str
    last_reviewed_at: Annotated[Time | None, Field(examples=[None])]
    due_at: Annotated[Time, Field(examples=["2027-05-21T09:14:03+00:00"])]
    is_overdue: Annotated[bool, Field(examples=[False])]
    to_revoke: list[ReviewedRead]


@door.get("/studies/{study}/access-reviews/current", Action.READ_ACCESS_REVIEWS)
def read_current_access(study: StudyPath, ctx: Context) -> CurrentAccessRead:
    """Read who holds which role now, and when they were last here."""
    return CurrentAccessRead.of(access_reviews.read_current(ctx, StudyCode(study)))


@door.post("/studies/{study}/access-reviews", Action.SIGN_ACCESS_REVIEW, 201)
def sign_access_review(study: StudyPath, body: ReviewRequest, ctx: Context) -> ReviewRead:
    """Sign that the access of everybody was looked at, and say what is to be revoked."""
    decisions = [Decision(UUID(one.grant_id), one.verdict, one.reason) for one in body.decisions]
    return ReviewRead.of(access_reviews.sign_review(ctx, StudyCode(study), body.content_hash, decisions))


@door.get("/studies/{study}/access-reviews", Action.READ_ACCESS_REVIEWS)
def list_access_reviews(
    study: StudyPath, ctx: Context, limit: Limit = 100, cursor: Cursor = None
) -> Page[ReviewItemRead]:
    """Read the register of access reviews."""
    return Page[ReviewItemRead].of(access_reviews.list_reviews(ctx, StudyCode(study), limit, cursor))


@door.get("/access-reviews", Action.LIST_OUTSTANDING_REVIEWS)
def list_outstanding_reviews(ctx: Context) -> Page[OutstandingRead]:
    """List when each study's review is due, and which grants are to be revoked."""
    found = access_reviews.list_outstanding(ctx)
    return Page(items=[OutstandingRead.of(one) for one in found], next_cursor=None)
