"""What travels: strict bodies that refuse unknown keys, and answers made from what the services return.

Blinded and unblinded answers are different types; a blinded type has no field that could hold an arm (rule B1).
"""

import re
from datetime import UTC, date, datetime
from typing import Annotated, Final, Generic, Self, TypeVar
from uuid import UUID

from fastapi import Path, Query
from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    StringConstraints,
)

from app.domain.codes import normalise_kit_code
from app.domain.kits import parse_day
from app.domain.words import subject_key
from app.errors import Invalid

T = TypeVar("T")


def _printable(text: str) -> str:
    """Refuse control characters: PostgreSQL cannot hold NUL, and a log line must stay one line."""
    if not text.isprintable():
        message = "must hold printable characters only"
        raise ValueError(message)
    return text


def _printable_lines(text: str) -> str:
    """Refuse control characters but line feeds; PostgreSQL cannot hold NUL."""
    if not all(line.isprintable() for line in text.split("\n")):
        message = "must hold printable characters and line feeds only"
        raise ValueError(message)
    return text


def _subject(text: str) -> str:
    try:
        subject_key(text)
    except Invalid as error:
        raise ValueError(error.message) from None
    return text


def _kit_code(text: str) -> str:
    try:
        return normalise_kit_code(text)
    except Invalid as error:
        raise ValueError(error.message) from None


def _in_utc(moment: datetime) -> datetime:
    """Return a moment in UTC; near the ends of the calendar an offset can lead out of it."""
    try:
        return moment.astimezone(UTC)
    except OverflowError:
        message = "must be a moment between the years 1 and 9999 in UTC"
        raise ValueError(message) from None


_MOMENT: Final = re.compile(r"\d{4}-\d\d-\d\d[Tt ].+")


def _written_moment(text: object) -> object:
    """Refuse what is no text that begins with a day and a time: a number would be taken for seconds since 1970."""
    if not isinstance(text, str) or _MOMENT.fullmatch(text) is None:
        message = "must be a moment such as 2026-11-22T09:14:03+00:00"
        raise ValueError(message)
    return text


def _day(text: object) -> date:
    day = parse_day(text) if isinstance(text, str) else None
    if day is None:
        message = "must be a day such as 2027-06-30"
        raise ValueError(message)
    return day


STUDY_CODE: Final = re.compile(r"[A-Za-z0-9_-]{1,30}")
Text = Annotated[str, StringConstraints(min_length=1, max_length=200), AfterValidator(_printable)]
Reason = Annotated[str, StringConstraints(min_length=1, max_length=1000), AfterValidator(_printable)]
Narrative = Annotated[
    str,
    StringConstraints(min_length=1, max_length=2000),
    AfterValidator(_printable_lines),
    Field(examples=["Seizure at home; the emergency ward needed to know before sedation."]),
]
Code = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{1,20}$")]
SiteCodeField = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{1,10}$")]
StudyCodeField = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{1,30}$")]
SubjectField = Annotated[str, StringConstraints(min_length=1, max_length=80), AfterValidator(_subject)]
KitCodeField = Annotated[str, StringConstraints(min_length=9, max_length=20), AfterValidator(_kit_code)]

StudyPath = Annotated[str, Path(pattern=r"^[A-Za-z0-9_-]{1,30}$", examples=["NCT03033277"])]
SitePath = Annotated[str, Path(pattern=r"^[A-Za-z0-9_-]{1,10}$", examples=["01"])]
SubjectPath = Annotated[str, Path(min_length=1, max_length=80, examples=["01-0007"]), AfterValidator(_subject)]
KitPath = Annotated[str, Path(min_length=9, max_length=20, examples=["K7XQ4M2PF"]), AfterValidator(_kit_code)]
CodePath = Annotated[str, Path(pattern=r"^[A-Za-z0-9_-]{1,40}$")]
_ID: Final = r"^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$"
Id = Annotated[str, StringConstraints(pattern=_ID)]
IdPath = Annotated[
    str,
    Path(
        pattern=_ID,
        examples=["3f0c9b5e-6f0e-4c5e-9a59-3d1c6a4f2b10"],
    ),
]
RowId = Annotated[UUID, Field(examples=["3f0c9b5e-6f0e-4c5e-9a59-3d1c6a4f2b10"])]
Limit = Annotated[int, Query(ge=1, le=500, description="how many items at most")]
Cursor = Annotated[str | None, Query(max_length=400, pattern=r"^[A-Za-z0-9_.-]+$", description="where to go on")]

Moment = Annotated[AwareDatetime, BeforeValidator(_written_moment), AfterValidator(_in_utc)]
"""A moment that a caller names, with its offset."""
Day = Annotated[date, BeforeValidator(_day)]
"""A day of the calendar that a caller names."""

Time = Annotated[datetime, PlainSerializer(datetime.isoformat, return_type=str, when_used="json")]
"""ISO 8601 in UTC, with the offset written out."""


class Body(BaseModel):
    """A request body: unknown keys and loose types are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Answer(BaseModel):
    """An answer, made from what a service returns."""

    model_config = ConfigDict(frozen=True, from_attributes=True)

    @classmethod
    def of(cls, result: object) -> Self:
        """Return the answer that a service's result is to the caller."""
        return cls.model_validate(result)


class Page(Answer, Generic[T]):
    """A page of a list; ``next_cursor`` is null on the last."""

    items: list[T]
    next_cursor: str | None


class ReceiptRead(Answer):
    """Where the act stands in the trail."""

    log_index: int = Field(examples=[1841])
    leaf_hash: str = Field(examples=["9f2c6f0a1e"])


class SignatureRead(Answer):
    """Who signed a record, when and as what (21 CFR 11.50)."""

    printed_name: str = Field(examples=["Dr Wang Li"])
    username: str = Field(examples=["dr.wang"])
    role: str = Field(examples=["investigator"])
    signed_at: Time = Field(examples=["2026-11-22T09:14:03+00:00"])
    meaning: str = Field(examples=["responsibility"])
    stands: bool = Field(description="false when the record was changed since, or the signature is not the one given")


class Signed(Answer):
    """A record that is signed; one that was changed since counts as unsigned, and keeps its signatures."""

    is_signed: bool
    signatures: list[SignatureRead]


class FieldFault(BaseModel):
    """One field, and what it should be."""

    field: str
    message: str


class Problem(BaseModel):
    """An RFC 9457 problem."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    request_id: str
    advice: str | None = None
    errors: list[FieldFault] | None = None
    backup_contact: str | None = None
    location: str | None = None
