"""Allocation lists: specification, approval, activation, and what each role may read of them."""

import hashlib
from datetime import datetime
from typing import Annotated, Any, Final, Literal
from uuid import UUID

from pydantic import AfterValidator, Field

from app.api.doors import Context, Door
from app.api.schemas import (
    Answer,
    Body,
    Code,
    Cursor,
    Id,
    IdPath,
    Limit,
    Page,
    Reason,
    Signed,
    SiteCodeField,
    StudyPath,
)
from app.domain.imported_lists import LIST_HEADER, NUMBERED_HEADER
from app.domain.schedules import Fill
from app.domain.words import Action, SiteCode, StudyCode
from app.services import schedules
from app.services.schedules import ScheduleSummary, SentList, UnblindedScheduleSummary, WantedList

door = Door("Allocation lists")

_ID: Final = "3f0c9b5e-6f0e-4c5e-9a59-3d1c6a4f2b10"
_COMMITMENT: Final = "9f2c6f0a1e5d4b7c8a93e6d2f1b0c4a79f2c6f0a1e5d4b7c8a93e6d2f1b0c4a7"
_LIST: Final = "".join(
    f"{line}\r\n"
    for line in (",".join(LIST_HEADER), ",0,HUCMSC,0,4", ",1,CONTROL,0,4", ",2,CONTROL,0,4", ",3,HUCMSC,0,4")
)
_REPORT: Final = {"passed": True, "slots": 320, "slots_by_arm": {"CONTROL": 160, "HUCMSC": 160}}

ScheduleId = Annotated[UUID, Field(examples=[_ID])]
Commitment = Annotated[str, Field(examples=[_COMMITMENT], description="root of the list in hexadecimal digits")]
PersonName = Annotated[str, Field(examples=["s.ito"])]


class LengthField(Body):
    """The length of one stratum."""

    site_code: Annotated[SiteCodeField | None, Field(description="only where the study stratifies by site")] = None
    strata: Annotated[dict[Code, Code], Field(default_factory=dict, examples=[{"sex": "f"}])]
    length: Annotated[int, Field(examples=[40], description="subjects that the stratum is planned for")]


class ScheduleRequest(Body):
    """The specification of a list, beside the study's definition. Signed by sending it with a fresh one-time code."""

    block_sizes: Annotated[list[int], Field(max_length=100, examples=[[4, 6, 8]])]
    block_size_weights: Annotated[
        list[int] | None, Field(max_length=100, examples=[[1, 1, 1]], description="1 for each size when left out")
    ] = None
    length_per_stratum: Annotated[int | None, Field(examples=[320])] = None
    lengths: Annotated[list[LengthField] | None, Field(description="instead of one length for all strata")] = None
    fill: Annotated[
        Literal["exact", "overrun"],
        Field(examples=["exact"], description="overrun adds the largest block to every stratum and cuts the last one"),
    ]
    reason: Annotated[Reason | None, Field(description="needed for a list after the first one")] = None

    def wanted(self) -> WantedList:
        """Return the specification in the domain's words."""
        return WantedList(
            tuple(self.block_sizes),
            None if self.block_size_weights is None else tuple(self.block_size_weights),
            self.length_per_stratum,
            None if self.lengths is None else tuple(_length(one) for one in self.lengths),
            Fill(self.fill),
            self.reason,
        )


def _length(field: LengthField) -> tuple[SiteCode | None, dict[str, str], int]:
    site_code = None if field.site_code is None else SiteCode(field.site_code)
    return site_code, dict(field.strata), field.length


def _as_file(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        message = "must hold characters only that UTF-8 has"
        raise ValueError(message) from None
    return text


class ScheduleImport(Body):
    """A list that an independent statistician made, with its specification. Signed by sending it with a fresh one-time code."""

    specification: ScheduleRequest
    extends: Annotated[Id | None, Field(description="the list that it is a segment of")] = None
    list_csv: Annotated[
        str,
        AfterValidator(_as_file),
        Field(
            examples=[_LIST],
            description=(
                f"a CSV file, one line a slot in order, with the header {','.join(LIST_HEADER)} or"
                f" {','.join(NUMBERED_HEADER)}; positions and blocks count from 0 within their stratum, whose code is"
                " like site=01;sex=f, or empty in an unstratified study"
            ),
        ),
    ]
    digest: Annotated[
        str,
        Field(
            pattern=r"^[0-9a-f]{64}$",
            examples=[hashlib.sha256(_LIST.encode()).hexdigest()],
            description="SHA-256 of the bytes of that file, as its maker computed it",
        ),
    ]

    def sent(self) -> SentList:
        """Return the list in the service's words."""
        extends = None if self.extends is None else UUID(self.extends)
        return SentList(self.list_csv.encode(), self.digest, extends)


class ApprovalRequest(Body):
    """The approver's signature on the commitment of a list."""

    commitment: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$", examples=[_COMMITMENT])]
    meaning: Annotated[Literal["approval"], Field(examples=["approval"])]


class RejectionRequest(Body):
    """Why a list is rejected."""

    reason: Reason


class GeneratedScheduleRead(Signed):
    """A list just generated."""

    schedule_id: ScheduleId
    list_id: ScheduleId
    segment_number: Annotated[int, Field(examples=[0])]
    extends: Annotated[UUID | None, Field(examples=[None])]
    status: Annotated[str, Field(examples=["generated"])]
    algorithm: Annotated[str, Field(examples=["snose-permuted-blocks-1"])]
    slots: Annotated[int, Field(examples=[320])]
    commitment: Commitment
    warnings: Annotated[list[str], Field(examples=[[]])]


class ScheduleRead(Signed):
    """A list as every role of the study sees it."""

    schedule_id: ScheduleId
    list_id: ScheduleId
    segment_number: Annotated[int, Field(examples=[0])]
    origin: Annotated[str, Field(examples=["generated"])]
    status: Annotated[str, Field(examples=["approved"])]
    algorithm: Annotated[str, Field(examples=["snose-permuted-blocks-1"])]
    commitment: Commitment
    generated_at: datetime
    generated_by: PersonName
    decided_at: datetime | None
    decided_by: PersonName | None
    activated_at: datetime | None
    activated_by: PersonName | None


class UnblindedScheduleRead(Signed):
    """A list as statistician and approver see it."""

    schedule_id: ScheduleId
    list_id: ScheduleId
    segment_number: Annotated[int, Field(examples=[0])]
    origin: Annotated[str, Field(examples=["generated"])]
    status: Annotated[str, Field(examples=["approved"])]
    algorithm: Annotated[str, Field(examples=["snose-permuted-blocks-1"])]
    commitment: Commitment
    generated_at: datetime
    generated_by: PersonName
    decided_at: datetime | None
    decided_by: PersonName | None
    activated_at: datetime | None
    activated_by: PersonName | None
    slots: Annotated[int, Field(examples=[320])]
    block_sizes: Annotated[list[int], Field(examples=[[4, 6, 8]])]


class EarlierListRead(Answer):
    """A list that was generated before, with the reason given for it."""

    schedule_id: ScheduleId
    list_id: ScheduleId
    segment_number: Annotated[int, Field(examples=[0])]
    status: Annotated[str, Field(examples=["rejected"])]
    commitment: Commitment
    generated_at: datetime
    generated_by: PersonName
    reason: Annotated[str | None, Field(examples=[None])]


class QualityReportRead(Answer):
    """The unblinded report on a list."""

    schedule_id: ScheduleId
    list_id: ScheduleId
    segment_number: Annotated[int, Field(examples=[0])]
    status: Annotated[str, Field(examples=["generated"])]
    commitment: Commitment
    passed: bool
    report: Annotated[
        dict[str, Any],
        Field(
            examples=[_REPORT],
            description="balance, blocks, runs, predictability, and a verdict on each by fixed limits",
        ),
    ]
    warnings: Annotated[list[str], Field(examples=[[]])]
    reason: Annotated[str | None, Field(examples=[None])]
    earlier: list[EarlierListRead]


_READ_AS: Final[dict[type, type[ScheduleRead | UnblindedScheduleRead]]] = {
    ScheduleSummary: ScheduleRead,
    UnblindedScheduleSummary: UnblindedScheduleRead,
}
"""One answer for each type that the service gives: the blinded one has no field that could hold more (rule B1)."""


def _read(summary: ScheduleSummary | UnblindedScheduleSummary) -> ScheduleRead | UnblindedScheduleRead:
    return _READ_AS[type(summary)].of(summary)


@door.post("/studies/{study}/schedules", Action.GENERATE_SCHEDULE, 201)
def generate_schedule(study: StudyPath, body: ScheduleRequest, ctx: Context) -> GeneratedScheduleRead:
    """Sign a specification and generate the allocation list."""
    return GeneratedScheduleRead.of(schedules.generate_schedule(ctx, StudyCode(study), body.wanted()))


@door.post("/studies/{study}/schedules/{schedule_id}/segments", Action.EXTEND_SCHEDULE, 201)
def extend_schedule(
    study: StudyPath, schedule_id: IdPath, body: ScheduleRequest, ctx: Context
) -> GeneratedScheduleRead:
    """Extend a list by a segment with a seed and an approval of its own."""
    wanted = body.wanted()
    return GeneratedScheduleRead.of(schedules.extend_schedule(ctx, StudyCode(study), UUID(schedule_id), wanted))


@door.post("/studies/{study}/schedules/imports", Action.IMPORT_SCHEDULE, 201)
def import_schedule(study: StudyPath, body: ScheduleImport, ctx: Context) -> GeneratedScheduleRead:
    """Import a list that an independent statistician made; refused whole, with every fault named."""
    wanted = body.specification.wanted()
    return GeneratedScheduleRead.of(schedules.import_schedule(ctx, StudyCode(study), wanted, body.sent()))


@door.get("/studies/{study}/schedules", Action.READ_SCHEDULES)
def list_schedules(
    study: StudyPath, ctx: Context, limit: Limit = 100, cursor: Cursor = None
) -> Page[ScheduleRead | UnblindedScheduleRead]:
    """List the allocation lists of the study."""
    page = schedules.list_schedules(ctx, StudyCode(study), limit, cursor)
    return Page(items=[_read(summary) for summary in page.items], next_cursor=page.next_cursor)


@door.get("/studies/{study}/schedules/{schedule_id}", Action.READ_SCHEDULES)
def read_schedule(study: StudyPath, schedule_id: IdPath, ctx: Context) -> ScheduleRead | UnblindedScheduleRead:
    """Read what the caller's role may know of an allocation list."""
    return _read(schedules.read_schedule(ctx, StudyCode(study), UUID(schedule_id)))


@door.get("/studies/{study}/schedules/{schedule_id}/quality-report", Action.READ_QUALITY_REPORT)
def read_quality_report(study: StudyPath, schedule_id: IdPath, ctx: Context) -> QualityReportRead:
    """Read the quality report of a list; an unblinded read."""
    return QualityReportRead.of(schedules.read_quality_report(ctx, StudyCode(study), UUID(schedule_id)))


@door.post("/studies/{study}/schedules/{schedule_id}/approval", Action.APPROVE_SCHEDULE)
def approve_schedule(study: StudyPath, schedule_id: IdPath, body: ApprovalRequest, ctx: Context) -> ScheduleRead:
    """Approve a list by signing its commitment."""
    return ScheduleRead.of(schedules.approve_schedule(ctx, StudyCode(study), UUID(schedule_id), body.commitment))


@door.post("/studies/{study}/schedules/{schedule_id}/rejection", Action.REJECT_SCHEDULE)
def reject_schedule(study: StudyPath, schedule_id: IdPath, body: RejectionRequest, ctx: Context) -> ScheduleRead:
    """Reject a list, which stays on record."""
    return ScheduleRead.of(schedules.reject_schedule(ctx, StudyCode(study), UUID(schedule_id), body.reason))


@door.post("/studies/{study}/schedules/{schedule_id}/activation", Action.ACTIVATE_SCHEDULE)
def activate_schedule(study: StudyPath, schedule_id: IdPath, ctx: Context) -> ScheduleRead:
    """Activate an approved list."""
    return ScheduleRead.of(schedules.activate_schedule(ctx, StudyCode(study), UUID(schedule_id)))
