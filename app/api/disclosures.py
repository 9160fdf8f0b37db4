"""Access transparency: who has opened or looked at a subject's record, told from the trail."""

from typing import Annotated, Any

from fastapi import Query
from pydantic import Field

from app.api.doors import Context, Door
from app.api.schemas import Answer, Cursor, Limit, StudyPath, SubjectPath
from app.domain.disclosures import Learnt, Section
from app.domain.words import Action, StudyCode
from app.services import disclosures

door = Door("Trail")

SectionFilter = Annotated[Section | None, Query(description="lines of this section only")]


class DisclosureRead(Answer):
    """An entry of the trail, and what it means for the subject; it has no field that could hold a treatment."""

    section: Section = Field(
        examples=["subject"],
        description="`subject`: about this subject; `opened`: sealed values of many subjects at once, or of one who is not"
        " told to this reader; `keys`: use of the keys under which all is sealed; `lists`: a list in which it may stand",
    )
    at: str = Field(examples=["2026-11-22T09:14:03.000000+00:00"])
    actor: str = Field(examples=["m.rossi"])
    role: str | None = Field(examples=["investigator"])
    organisation: str | None = Field(examples=[None])
    client: str | None = Field(examples=[None])
    action: str = Field(examples=["code_break:create"])
    outcome: str = Field(examples=["authorised"])
    learnt: Learnt = Field(examples=["treatment"], description="what left the service by it")
    in_words: str = Field(examples=["opened the treatment by an emergency code break"])
    target: dict[str, Any] | None
    log: str = Field(examples=["snose/3f0c9b5e-6f0e-4c5e-9a59-3d1c6a4f2b10/NCT03033277"])
    index: int
    segment: int
    leaf_hash: str
    proof: str | None = Field(
        examples=["/v1/studies/NCT03033277/trail/proofs/1841?segment=1"],
        description="where the inclusion of the entry is proved; null for the service's own log",
    )


class DisclosureReportRead(Answer):
    """A page of one subject's report, section after section."""

    subject_id: str
    items: list[DisclosureRead]
    not_shown: list[str] = Field(description="what this reader is not shown, in plain words")
    next_cursor: str | None


@door.get("/studies/{study}/subjects/{subject}/disclosures", Action.READ_DISCLOSURES)
def read_disclosures(
    study: StudyPath,
    subject: SubjectPath,
    ctx: Context,
    section: SectionFilter = None,
    limit: Limit = 100,
    cursor: Cursor = None,
) -> DisclosureReportRead:
    """Report who has opened or looked at a subject's record, key use included."""
    return DisclosureReportRead.of(disclosures.read_disclosures(ctx, StudyCode(study), subject, section, limit, cursor))
