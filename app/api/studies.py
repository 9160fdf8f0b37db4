"""Studies and their sites."""

from typing import Annotated, Literal

from pydantic import Field

from app.api.doors import Context, Door
from app.api.schemas import (
    Answer,
    Body,
    Code,
    Page,
    Reason,
    Signed,
    SiteCodeField,
    SitePath,
    StudyCodeField,
    StudyPath,
    Text,
    Time,
)
from app.domain.studies import StudyDefinition
from app.domain.words import Action, Arm, ArmCode, Factor, FurtherKits, Level, SiteCode, StudyCode, StudyStatus
from app.services import studies

door = Door("Studies and sites")

Treatment = Annotated[Text, Field(description="clinically usable words: product and dose (EUB-10)")]


class ArmField(Body):
    """A treatment group."""

    arm_code: Code
    label: Text
    treatment: Treatment
    ratio: Annotated[int, Field(ge=1, le=100)]


class LevelField(Body):
    """A value of a factor."""

    level_code: Code
    label: Text


class FactorField(Body):
    """A stratification factor."""

    factor_code: Code
    label: Text
    levels: Annotated[list[LevelField], Field(min_length=1, max_length=100)]


class StudyRequest(Body):
    """The definition of a study. Block sizes are no part of it: they belong to the list, which blinded people cannot read."""

    study_code: StudyCodeField
    title: Text
    blinding: Literal["double"]
    planned_subjects: Annotated[int, Field(ge=1, le=1_000_000)]
    stock_floor: Annotated[int, Field(ge=1, le=1000)] = 3
    arms: Annotated[list[ArmField], Field(min_length=1, max_length=100)]
    factors: Annotated[list[FactorField], Field(max_length=100, default_factory=list)]
    stratify_by_site: bool = False
    backup_contact: Text
    further_kits_after_break: Annotated[
        Literal["allowed", "refused"],
        Field(description="whether a subject whose code was broken may be given further kits, as the protocol says"),
    ] = "allowed"
    exempt_events: Annotated[
        list[Text],
        Field(
            max_length=50,
            default_factory=list,
            examples=[["Hot flush"]],
            description="events of the disease itself, for which nobody is unblinded as a matter of course",
        ),
    ]
    safety_unblinding_shown: Annotated[
        bool,
        Field(
            description="whether an allocation shows when its subject was unblinded for a safety report, never what it showed"
        ),
    ] = False

    def definition(self) -> StudyDefinition:
        """Return the definition in the domain's words."""
        return StudyDefinition(
            StudyCode(self.study_code),
            self.title,
            self.blinding,
            self.planned_subjects,
            self.stock_floor,
            tuple(Arm(ArmCode(arm.arm_code), arm.label, arm.treatment, arm.ratio) for arm in self.arms),
            tuple(
                Factor(
                    factor.factor_code,
                    factor.label,
                    tuple(Level(level.level_code, level.label) for level in factor.levels),
                )
                for factor in self.factors
            ),
            self.stratify_by_site,
            self.backup_contact,
            FurtherKits(self.further_kits_after_break),
            tuple(self.exempt_events),
            self.safety_unblinding_shown,
        )


class ArmRead(Answer):
    """A treatment group of the definition."""

    arm_code: str
    label: str
    treatment: str
    ratio: int


class LevelRead(Answer):
    """A value of a factor."""

    level_code: str
    label: str


class FactorRead(Answer):
    """A stratification factor."""

    factor_code: str
    label: str
    levels: list[LevelRead]


class StudyRead(Signed):
    """A study."""

    study_code: str
    title: str
    blinding: str
    mode: str
    status: str
    planned_subjects: int
    stock_floor: int
    arms: list[ArmRead]
    factors: list[FactorRead]
    stratify_by_site: bool
    backup_contact: str
    registered_at: Time
    further_kits_after_break: Annotated[str, Field(examples=["allowed"])]
    exempt_events: Annotated[list[str], Field(examples=[["Hot flush"]])]
    safety_unblinding_shown: Annotated[bool, Field(examples=[False])]


class SiteRequest(Body):
    """A centre and the zone in which its days begin and end."""

    site_code: SiteCodeField
    name: Text
    timezone: Annotated[Text, Field(examples=["Asia/Shanghai"])]


class SiteRead(Signed):
    """A centre."""

    site_code: str
    name: str
    timezone: str
    is_active: bool
    added_at: Time


class StatusRequest(Body):
    """The next status of a study."""

    status: Annotated[Literal["open", "suspended", "closed"], Field()]
    reason: Reason


@door.post("/studies", Action.REGISTER_STUDY, 201)
def register_study(body: StudyRequest, ctx: Context) -> StudyRead:
    """Register a study with its arms and stratification factors."""
    return StudyRead.of(studies.register_study(ctx, body.definition()))


@door.get("/studies/{study}", Action.READ_STUDY)
def read_study(study: StudyPath, ctx: Context) -> StudyRead:
    """Read a study's definition and status."""
    return StudyRead.of(studies.read_study(ctx, StudyCode(study)))


@door.post("/studies/{study}/sites", Action.ADD_SITE, 201)
def add_site(study: StudyPath, body: SiteRequest, ctx: Context) -> SiteRead:
    """Add a site to the study."""
    return SiteRead.of(studies.add_site(ctx, StudyCode(study), SiteCode(body.site_code), body.name, body.timezone))


@door.get("/studies/{study}/sites", Action.LIST_SITES)
def list_sites(study: StudyPath, ctx: Context) -> Page[SiteRead]:
    """List the sites of the study."""
    sites = studies.list_sites(ctx, StudyCode(study))
    return Page(items=[SiteRead.of(site) for site in sites], next_cursor=None)


@door.post("/studies/{study}/sites/{site}/activation", Action.ACTIVATE_SITE)
def activate_site(study: StudyPath, site: SitePath, ctx: Context) -> SiteRead:
    """Activate a site that is ready."""
    return SiteRead.of(studies.activate_site(ctx, StudyCode(study), SiteCode(site)))


@door.post("/studies/{study}/status", Action.SET_STUDY_STATUS)
def set_study_status(study: StudyPath, body: StatusRequest, ctx: Context) -> StudyRead:
    """Open, suspend or close the study."""
    return StudyRead.of(studies.set_study_status(ctx, StudyCode(study), StudyStatus(body.status), body.reason))
