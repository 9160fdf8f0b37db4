"""Access reviews: what is looked at, and what was signed for."""

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import and_, func, insert, or_, select

from app.domain.access_reviews import Access, TrainingState
from app.domain.words import Role, StudyCode, StudyStatus
from app.storage import tables
from app.storage.database import Transaction
from app.storage.people import is_trained

_a = tables.access_review.c
_g = tables.role_grant.c
_p = tables.principal.c
_s = tables.session.c
_st = tables.study.c


@dataclass(frozen=True, slots=True)
class ReviewRecord:
    """A review that was signed."""

    review_id: UUID
    reviewed_at: datetime
    reviewed_by: str
    content_hash: str
    lines: str
    """JSON: each grant with what was said of it."""


@dataclass(frozen=True, slots=True)
class ReviewState:
    """A study, and its newest review."""

    study_id: UUID
    study_code: StudyCode
    registered_at: datetime
    reviewed_at: datetime | None


def list_access(tx: Transaction, study_code: StudyCode, now: datetime) -> list[Access]:
    """Return every grant in a study that nobody has revoked, those of the service's administrators too, in a fixed order.

    One whose time is over still opens a code break (rule D1), so it is among them; an account that is switched off opens nothing.
    """
    seen = (
        select(
            _s.principal_id,
            func.max(_s.issued_at).label("last_sign_in_at"),
            func.max(func.coalesce(_s.used_at, _s.issued_at)).label("last_used_at"),
        )
        .group_by(_s.principal_id)
        .subquery()
    )
    query = (
        select(
            *_g,
            _p.name,
            _p.display_name,
            _p.is_machine,
            seen.c.last_sign_in_at,
            seen.c.last_used_at,
            is_trained(now, now.date()).label("is_trained"),
        )
        .join_from(tables.role_grant, tables.principal, _p.principal_id == _g.principal_id)
        .outerjoin(seen, seen.c.principal_id == _g.principal_id)
        .where(
            or_(_g.study_code == study_code, _g.role == Role.SERVICE_ADMIN),
            _g.revoked_at.is_(None),
            _p.is_active,
        )
        .order_by(_p.name, _g.granted_at, _g.grant_id)
    )
    return [
        Access(
            row.grant_id,
            row.name,
            row.display_name,
            row.is_machine,
            Role(row.role),
            row.site_code,
            row.granted_at,
            row.granted_by,
            row.starts_at,
            row.ends_at,
            _training(needs=bool(row.needs_training), has=bool(row.is_trained)),
            row.last_sign_in_at,
            row.last_used_at,
        )
        for row in tx.execute(query)
    ]


def _training(*, needs: bool, has: bool) -> TrainingState:
    if not needs:
        return TrainingState.NOT_ASKED
    return TrainingState.VALID if has else TrainingState.MISSING


def add_review(tx: Transaction, study_id: UUID, review: ReviewRecord) -> None:
    """Record a review."""
    row = {name: getattr(review, name) for name in ReviewRecord.__dataclass_fields__}
    tx.execute(insert(tables.access_review), {"study_id": study_id, **row})


def list_reviews(
    tx: Transaction, study_id: UUID, after: tuple[datetime, UUID] | None, until: datetime, limit: int
) -> list[ReviewRecord]:
    """Return the reviews of a study in the order of time, behind ``after`` and not later than ``until``."""
    query = select(*(_a[name] for name in ReviewRecord.__dataclass_fields__)).where(
        _a.study_id == study_id, _a.reviewed_at <= until
    )
    if after is not None:
        at, review_id = after
        query = query.where(or_(_a.reviewed_at > at, and_(_a.reviewed_at == at, _a.review_id > review_id)))
    rows = tx.execute(query.order_by(_a.reviewed_at, _a.review_id).limit(limit))
    return [ReviewRecord(**row._asdict()) for row in rows]


def list_states(tx: Transaction, study_code: StudyCode | None = None) -> list[ReviewState]:
    """Return every study that is not closed, or one, with the time of its newest review, in the order of their codes."""
    query = (
        select(_st.study_id, _st.study_code, _st.registered_at, func.max(_a.reviewed_at).label("reviewed_at"))
        .outerjoin_from(tables.study, tables.access_review, _a.study_id == _st.study_id)
        .group_by(_st.study_id, _st.study_code, _st.registered_at)
        .order_by(_st.study_code)
    )
    chosen = _st.status != StudyStatus.CLOSED if study_code is None else _st.study_code == study_code
    return [ReviewState(**row._asdict()) for row in tx.execute(query.where(chosen))]


def find_newest(tx: Transaction, study_id: UUID) -> ReviewRecord | None:
    """Return the newest review of a study; None when there was none."""
    query = select(*(_a[name] for name in ReviewRecord.__dataclass_fields__)).where(_a.study_id == study_id)
    row = tx.execute(query.order_by(_a.reviewed_at.desc(), _a.review_id.desc()).limit(1)).one_or_none()
    return ReviewRecord(**row._asdict()) if row is not None else None


def list_standing(tx: Transaction) -> set[UUID]:
    """Return the ids of all grants that nobody has revoked, of accounts that are not switched off."""
    rows = tx.execute(
        select(_g.grant_id)
        .join_from(tables.role_grant, tables.principal, _p.principal_id == _g.principal_id)
        .where(_g.revoked_at.is_(None), _p.is_active)
    )
    return {row.grant_id for row in rows}
