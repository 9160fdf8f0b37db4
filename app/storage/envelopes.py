"""The outbox of the code-break envelopes, and what was opened while the service was down. Nothing here tells an arm."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from sqlalchemy import Row, and_, bindparam, func, insert, literal, select, tuple_, update

from app.domain.words import KitCode, SiteCode, StudyCode
from app.storage import tables
from app.storage.database import Transaction

_b = tables.code_break.c
_c = tables.consignment.c
_e = tables.envelope.c
_k = tables.kit.c
_st = tables.study.c

_ADD: Final = insert(tables.envelope)
_OF_KIT: Final = and_(_k.study_id == _e.study_id, _k.kit_id == _e.kit_id)
_FILES: Final = (
    select(_e.study_id, _e.kit_id, _st.study_code, _k.kit_code, _e.issued_at)
    .select_from(tables.envelope)
    .join(tables.kit, _OF_KIT)
    .join(tables.study, _st.study_id == _e.study_id)
)


def add_envelope(tx: Transaction, study_id: UUID, kit_id: UUID, content: bytes, at: datetime) -> None:
    """Keep a finished envelope until it is written, and after that for the day on which its file is missed."""
    tx.execute(_ADD, {"study_id": study_id, "kit_id": kit_id, "content": content, "issued_at": at, "written_at": None})


@dataclass(frozen=True, slots=True)
class EnvelopeFile:
    """Where the file of an envelope belongs."""

    study_id: UUID
    kit_id: UUID
    study_code: StudyCode
    kit_code: KitCode
    issued_at: datetime


def _file(row: Row[Any]) -> EnvelopeFile:
    return EnvelopeFile(row.study_id, row.kit_id, row.study_code, row.kit_code, row.issued_at)


def list_waiting(tx: Transaction, limit: int) -> list[EnvelopeFile]:
    """Return envelopes of any study that are not written yet."""
    query = _FILES.where(_e.written_at.is_(None)).order_by(_e.study_id, _e.kit_id).limit(limit)
    return [_file(row) for row in tx.execute(query)]


_WRITTEN: Final = (
    update(tables.envelope)
    .where(_e.study_id == bindparam("of_study"), _e.kit_id == bindparam("of_kit"), _e.written_at.is_(None))
    .values(written_at=bindparam("at"))
)


def record_written(tx: Transaction, files: Sequence[EnvelopeFile], at: datetime) -> None:
    """Say of envelopes that their files are durable."""
    tx.execute(_WRITTEN, [{"of_study": one.study_id, "of_kit": one.kit_id, "at": at} for one in files])


def list_written(tx: Transaction, after: tuple[UUID, UUID] | None, limit: int) -> list[EnvelopeFile]:
    """Return envelopes of any study whose files should be there, behind a place."""
    query = _FILES.where(_e.written_at.is_not(None)).order_by(_e.study_id, _e.kit_id).limit(limit)
    if after is not None:
        place = [literal(value, _e.kit_id.type) for value in after]
        query = query.where(tuple_(_e.study_id, _e.kit_id) > tuple_(*place))
    return [_file(row) for row in tx.execute(query)]


def get_content(tx: Transaction, one: EnvelopeFile) -> bytes:
    """Return what the file of an envelope holds."""
    query = select(_e.content).where(_e.study_id == one.study_id, _e.kit_id == one.kit_id)
    return bytes(tx.execute(query).scalar_one())


@dataclass(frozen=True, slots=True)
class Backlog:
    """How many envelopes are not written yet, and since when the oldest of them."""

    waiting: int
    oldest: datetime | None


def get_backlog(tx: Transaction) -> Backlog:
    """Return what is not written yet, of all studies."""
    query = select(func.count().label("waiting"), func.min(_e.issued_at).label("oldest"))
    row = tx.execute(query.where(_e.written_at.is_(None))).one()
    return Backlog(row.waiting, row.oldest)


# -- reconciliation ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class IssuedEnvelope:
    """An envelope as the reconciliation counts it."""

    kit_code: KitCode
    site_code: SiteCode
    issued_at: datetime
    written_at: datetime | None
    has_sheet: bool


def list_issued(tx: Transaction, study_id: UUID, sites: Collection[SiteCode] | None) -> list[IssuedEnvelope]:
    """Return the envelopes of kits at some sites (None: all) in the order of time."""
    query = (
        select(
            _k.kit_code,
            _k.site_code,
            _e.issued_at,
            _e.written_at,
            _c.sheets_released_at.is_not(None).label("has_sheet"),
        )
        .select_from(tables.envelope)
        .join(tables.kit, _OF_KIT)
        .join(tables.consignment, and_(_c.study_id == _k.study_id, _c.consignment_id == _k.consignment_id))
        .where(_e.study_id == study_id)
    )
    if sites is not None:
        query = query.where(_k.site_code.in_(list(sites)))
    return [
        IssuedEnvelope(row.kit_code, row.site_code, row.issued_at, row.written_at, row.has_sheet)
        for row in tx.execute(query.order_by(_e.issued_at, _k.kit_code))
    ]


@dataclass(frozen=True, slots=True)
class OpenedEnvelope:
    """An envelope that was opened while the service was down, as it was entered afterwards."""

    kit_code: KitCode
    site_code: SiteCode
    opened_at: datetime
    opened_by: str
    entered_by: str


def list_opened(tx: Transaction, study_id: UUID, sites: Collection[SiteCode] | None) -> list[OpenedEnvelope]:
    """Return every opening that was entered for kits at some sites (None: all), the first one first."""
    query = (
        select(
            _k.kit_code,
            _b.site_code,
            _b.broken_at.label("opened_at"),
            _b.opened_by,
            _b.broken_by.label("entered_by"),
        )
        .select_from(tables.code_break)
        .join(tables.kit, and_(_k.study_id == _b.study_id, _k.kit_id == _b.kit_id))
        .where(_b.study_id == study_id, _b.opened_by.is_not(None))
    )
    if sites is not None:
        query = query.where(_b.site_code.in_(list(sites)))
    return [
        OpenedEnvelope(row.kit_code, row.site_code, row.opened_at, row.opened_by, row.entered_by)
        for row in tx.execute(query.order_by(_b.broken_at, _b.code_break_id))
    ]


def find_issue(tx: Transaction, study_id: UUID, kit_id: UUID) -> datetime | None:
    """Return when the envelope of a kit was made; None when it has none."""
    return tx.execute(select(_e.issued_at).where(_e.study_id == study_id, _e.kit_id == kit_id)).scalar_one_or_none()


def was_opened(tx: Transaction, study_id: UUID, kit_id: UUID) -> bool:
    """Return whether the opening of a kit's envelope was entered; asked behind the lock of the kit."""
    query = select(_b.code_break_id).where(_b.study_id == study_id, _b.kit_id == kit_id, _b.opened_by.is_not(None))
    return tx.execute(query.limit(1)).first() is not None


# -- sheets ------------------------------------------------------------------------------------------------------------


def list_kits(tx: Transaction, study_id: UUID, consignment_id: UUID) -> Mapping[KitCode, UUID]:
    """Return the kits of a consignment by code, in the order of the codes."""
    query = (
        select(_k.kit_code, _k.kit_id)
        .where(_k.study_id == study_id, _k.consignment_id == consignment_id)
        .order_by(_k.kit_code)
    )
    return {row.kit_code: row.kit_id for row in tx.execute(query)}


def get_sheets_released(tx: Transaction, study_id: UUID, consignment_id: UUID) -> datetime | None:
    """Return when the sheets of a consignment were released; None while they were not."""
    query = select(_c.sheets_released_at).where(_c.study_id == study_id, _c.consignment_id == consignment_id)
    released: datetime | None = tx.execute(query).scalar_one()
    return released


def record_sheets_released(tx: Transaction, study_id: UUID, consignment_id: UUID, at: datetime) -> None:
    """Say that the sheets of a consignment, which is locked, were released."""
    tx.execute(
        update(tables.consignment)
        .where(_c.study_id == study_id, _c.consignment_id == consignment_id)
        .values(sheets_released_at=at)
    )
