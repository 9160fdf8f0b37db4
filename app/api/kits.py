"""Single kits at their site: given, handed out, replaced, put aside, accounted for."""

from datetime import date, datetime
from typing import Annotated

from pydantic import Field

from app.api.doors import Context, Door
from app.api.schemas import (
    Answer,
    Body,
    Code,
    Cursor,
    KitCodeField,
    KitPath,
    Limit,
    Page,
    Reason,
    Signed,
    SitePath,
    StudyPath,
    SubjectField,
    SubjectPath,
)
from app.domain.kits import ReplacementReason
from app.domain.words import Action, KitCode, SiteCode, StudyCode
from app.services import kits

door = Door("Kits")


class StockItemRead(Answer):
    """A kit of a site."""

    kit_code: str
    consignment_code: str
    status: str
    usable: bool


class StockRead(Page[StockItemRead]):
    """A page of a site's stock, all arms pooled."""

    counts: dict[str, int] = Field(
        description="how many kits of the site have each status", examples=[{"in_stock": 40}]
    )


class WaitingRead(Answer):
    """A kit that waits to be handed out."""

    subject_id: str
    kit_code: str
    assigned_at: datetime
    visit: str | None


class SubjectKitRead(Answer):
    """A kit of a subject."""

    kit_code: str
    status: str
    usable: bool
    assigned_at: datetime
    dispensed_at: datetime | None
    visit: str | None


class VisitRequest(Body):
    """The visit that the next kit is for: a code, because it stands in the public part of the entry (rule E3)."""

    visit: Annotated[Code, Field(examples=["V2"])]


class AssignedKitRead(Answer):
    """The kit that a subject was given."""

    subject_id: str
    kit_code: str
    status: str
    assigned_at: datetime
    visit: str | None
    replaces: str | None


class DispensationRequest(Body):
    """Who gets the kit, and what its label says."""

    subject_id: SubjectField
    scanned_code: KitCodeField


class DispensedKitRead(Answer):
    """A kit that was handed out."""

    subject_id: str
    kit_code: str
    status: str
    dispensed_at: datetime


class ReplacementRequest(Body):
    """Why a kit is replaced."""

    reason_code: Annotated[ReplacementReason, Field(strict=False)]
    reason: Reason


class ReplacementReleaseRead(Answer):
    """The leave to replace a kit now."""

    kit_code: str
    released_at: datetime


class ReasonRequest(Body):
    """Why a step is taken; kept in the restricted part of its entry."""

    reason: Reason


class KitStateRead(Answer):
    """A kit after a step."""

    kit_code: str
    status: str


class SignedKitStateRead(Signed):
    """A kit after a step of the supply manager's, and who signed for it."""

    kit_code: str
    status: str


class PreparationRead(Answer):
    """What to prepare for one subject: an unblinded answer."""

    subject_id: str
    kit_code: str
    arm_code: str
    treatment: str
    lot: str
    expires_on: date


@door.get("/studies/{study}/sites/{site}/kits", Action.READ_STOCK)
def read_stock(study: StudyPath, site: SitePath, ctx: Context, limit: Limit = 100, cursor: Cursor = None) -> StockRead:
    """Read the stock of a site by status."""
    return StockRead.of(kits.read_stock(ctx, StudyCode(study), SiteCode(site), limit, cursor))


@door.get("/studies/{study}/sites/{site}/worklist", Action.READ_WORKLIST)
def read_worklist(
    study: StudyPath, site: SitePath, ctx: Context, limit: Limit = 100, cursor: Cursor = None
) -> Page[WaitingRead]:
    """Read which kits wait to be handed out, the oldest first."""
    return Page[WaitingRead].of(kits.read_worklist(ctx, StudyCode(study), SiteCode(site), limit, cursor))


@door.get("/studies/{study}/subjects/{subject}/kits", Action.READ_SUBJECT_KITS)
def list_subject_kits(study: StudyPath, subject: SubjectPath, ctx: Context) -> Page[SubjectKitRead]:
    """List the kits of a subject."""
    found = kits.list_subject_kits(ctx, StudyCode(study), subject)
    return Page(items=[SubjectKitRead.of(kit) for kit in found], next_cursor=None)


@door.post("/studies/{study}/subjects/{subject}/kits", Action.ASSIGN_KIT, 201)
def assign_kit(study: StudyPath, subject: SubjectPath, body: VisitRequest, ctx: Context) -> AssignedKitRead:
    """Give a subject the kit for a visit."""
    return AssignedKitRead.of(kits.assign_kit(ctx, StudyCode(study), subject, body.visit))


@door.post("/studies/{study}/kits/{kit_code}/dispensation", Action.DISPENSE_KIT)
def dispense_kit(study: StudyPath, kit_code: KitPath, body: DispensationRequest, ctx: Context) -> DispensedKitRead:
    """Hand a kit to its subject."""
    scanned = KitCode(body.scanned_code)
    return DispensedKitRead.of(kits.dispense_kit(ctx, StudyCode(study), KitCode(kit_code), body.subject_id, scanned))


@door.post("/studies/{study}/kits/{kit_code}/replacement", Action.REPLACE_KIT, 201)
def replace_kit(study: StudyPath, kit_code: KitPath, body: ReplacementRequest, ctx: Context) -> AssignedKitRead:
    """Give the subject another kit in the place of this one."""
    return AssignedKitRead.of(kits.replace_kit(ctx, StudyCode(study), KitCode(kit_code), body.reason_code, body.reason))


@door.post("/studies/{study}/kits/{kit_code}/replacement-release", Action.RELEASE_REPLACEMENT)
def release_replacement(study: StudyPath, kit_code: KitPath, ctx: Context) -> ReplacementReleaseRead:
    """Let a kit be replaced although its subject had a replacement within 24 hours."""
    return ReplacementReleaseRead.of(kits.release_replacement(ctx, StudyCode(study), KitCode(kit_code)))


@door.post("/studies/{study}/kits/{kit_code}/quarantine", Action.QUARANTINE_KIT)
def quarantine_kit(study: StudyPath, kit_code: KitPath, body: ReasonRequest, ctx: Context) -> KitStateRead:
    """Put a kit aside until the supply manager decides."""
    return KitStateRead.of(kits.quarantine_kit(ctx, StudyCode(study), KitCode(kit_code), body.reason))


@door.post("/studies/{study}/kits/{kit_code}/return", Action.RETURN_KIT)
def return_kit(study: StudyPath, kit_code: KitPath, body: ReasonRequest, ctx: Context) -> KitStateRead:
    """Take a kit back from its subject."""
    return KitStateRead.of(kits.return_kit(ctx, StudyCode(study), KitCode(kit_code), body.reason))


@door.post("/studies/{study}/kits/{kit_code}/loss", Action.REPORT_LOSS)
def report_loss(study: StudyPath, kit_code: KitPath, body: ReasonRequest, ctx: Context) -> KitStateRead:
    """Report a kit lost."""
    return KitStateRead.of(kits.report_loss(ctx, StudyCode(study), KitCode(kit_code), body.reason))


@door.post("/studies/{study}/kits/{kit_code}/damage", Action.REPORT_DAMAGE)
def report_damage(study: StudyPath, kit_code: KitPath, body: ReasonRequest, ctx: Context) -> KitStateRead:
    """Report a kit damaged."""
    return KitStateRead.of(kits.report_damage(ctx, StudyCode(study), KitCode(kit_code), body.reason))


@door.post("/studies/{study}/kits/{kit_code}/release", Action.RELEASE_KIT)
def release_kit(study: StudyPath, kit_code: KitPath, body: ReasonRequest, ctx: Context) -> SignedKitStateRead:
    """Release a kit from quarantine."""
    return SignedKitStateRead.of(kits.release_kit(ctx, StudyCode(study), KitCode(kit_code), body.reason))


@door.post("/studies/{study}/kits/{kit_code}/destruction", Action.DESTROY_KIT)
def destroy_kit(study: StudyPath, kit_code: KitPath, body: ReasonRequest, ctx: Context) -> SignedKitStateRead:
    """Destroy a kit."""
    return SignedKitStateRead.of(kits.destroy_kit(ctx, StudyCode(study), KitCode(kit_code), body.reason))


@door.get("/studies/{study}/subjects/{subject}/preparation", Action.READ_PREPARATION)
def read_preparation(study: StudyPath, subject: SubjectPath, ctx: Context) -> PreparationRead:
    """Read what to prepare for a subject: an unblinded read."""
    return PreparationRead.of(kits.read_preparation(ctx, StudyCode(study), subject))
