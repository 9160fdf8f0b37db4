"""Who is told of code breaks, and the outbox of what they are told. Nothing here tells an arm."""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from sqlalchemy import Row, and_, case, func, insert, literal, select, update

from app.domain.notices import Channel
from app.domain.words import StudyCode
from app.errors import Missing
from app.storage import tables
from app.storage.database import Transaction

_r = tables.notice_receiver.c
_n = tables.notice.c
_st = tables.study.c

_OF_RECEIVER: Final = and_(_n.study_id == _r.study_id, _n.receiver_id == _r.receiver_id)
_IS_WAITING: Final = and_(_n.delivered_at.is_(None), _n.given_up_at.is_(None))


# -- receivers ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class NewReceiver:
    """A receiver as it is recorded."""

    receiver_id: UUID
    channel: Channel
    address: str
    added_at: datetime
    added_by: str


@dataclass(frozen=True, slots=True)
class Receiver:
    """A receiver, and what became of its notices."""

    receiver_id: UUID
    channel: Channel
    address: str
    added_at: datetime
    added_by: str
    removed_at: datetime | None
    disabled_at: datetime | None
    delivered: int
    waiting: int
    given_up: int


def lock_receivers(tx: Transaction, study_id: UUID) -> None:
    """Keep everybody else from changing the receivers of a study; no code break waits for it.

    A lock that lets rows refer to the study, as that of a code break does.
    """
    tx.execute(select(_st.study_id).where(_st.study_id == study_id).with_for_update(key_share=True))


def add_receiver(tx: Transaction, study_id: UUID, receiver: NewReceiver) -> None:
    """Record a receiver."""
    row = {name: getattr(receiver, name) for name in NewReceiver.__dataclass_fields__}
    tx.execute(insert(tables.notice_receiver), {"study_id": study_id} | row)


def list_receivers(tx: Transaction, study_id: UUID, channel: Channel) -> list[Receiver]:
    """Return the receivers of a study by one channel, the first one first, and those that were removed."""
    query = (
        select(
            _r.receiver_id,
            _r.channel,
            _r.address,
            _r.added_at,
            _r.added_by,
            _r.removed_at,
            _r.disabled_at,
            func.count(_n.delivered_at).label("delivered"),
            func.count(case((and_(_n.notice_id.is_not(None), _IS_WAITING), 1))).label("waiting"),
            func.count(_n.given_up_at).label("given_up"),
        )
        .select_from(tables.notice_receiver)
        .outerjoin(tables.notice, _OF_RECEIVER)
        .where(_r.study_id == study_id, _r.channel == channel)
        .group_by(*tables.notice_receiver.primary_key.columns)
        .order_by(_r.added_at, _r.receiver_id)
    )
    return [_receiver(row) for row in tx.execute(query)]


def _receiver(row: Row[Any]) -> Receiver:
    values = {name: getattr(row, name) for name in Receiver.__dataclass_fields__}
    return Receiver(**(values | {"channel": Channel(values["channel"])}))


def record_removal(tx: Transaction, study_id: UUID, channel: Channel, receiver_id: UUID, at: datetime, by: str) -> None:
    """Tell a receiver nothing any more; raise ``Missing`` for one that is not there, or not by this channel."""
    told = tx.execute(
        update(tables.notice_receiver)
        .where(
            _r.study_id == study_id,
            _r.receiver_id == receiver_id,
            _r.channel == channel,
            _r.removed_at.is_(None),
        )
        .values(removed_at=at, removed_by=by)
    )
    if told.rowcount != 1:
        raise Missing


def record_disabled(tx: Transaction, study_id: UUID, receiver_id: UUID, at: datetime) -> None:
    """Say of a receiver that it wants no more."""
    tx.execute(
        update(tables.notice_receiver)
        .where(_r.study_id == study_id, _r.receiver_id == receiver_id, _r.disabled_at.is_(None))
        .values(disabled_at=at)
    )


# -- the outbox --------------------------------------------------------------------------------------------------------


def add_notice(  # what, to whom and when
    tx: Transaction,
    study_id: UUID,
    notice_id: UUID,
    body: str,
    at: datetime,
    channels: Collection[Channel] = tuple(Channel),
) -> None:
    """Put a notice into the outbox for each receiver by these channels that the study has at this moment, in one statement."""
    posted = select(
        _r.study_id,
        literal(notice_id, _n.notice_id.type),
        _r.receiver_id,
        literal(body, _n.body.type),
        literal(at, _n.posted_at.type),
        literal(0, _n.failures.type),
        literal(at, _n.next_try_at.type),
    ).where(
        _r.study_id == study_id,
        _r.channel.in_(channels),
        _r.removed_at.is_(None),
        _r.disabled_at.is_(None),
    )
    columns = ["study_id", "notice_id", "receiver_id", "body", "posted_at", "failures", "next_try_at"]
    tx.execute(insert(tables.notice).from_select(columns, posted))


def is_posted(tx: Transaction, study_id: UUID, notice_id: UUID) -> bool:
    """Return whether a notice of this id was put into the outbox, for any receiver."""
    return (
        tx.execute(select(_n.receiver_id).where(_n.study_id == study_id, _n.notice_id == notice_id)).first() is not None
    )


def find_next_try(tx: Transaction) -> datetime | None:
    """Return when the next notice of any study is due; None when none waits."""
    query = select(_n.study_id, _n.next_try_at).where(_IS_WAITING).order_by(_n.next_try_at).limit(1)
    row = tx.execute(query).first()
    return None if row is None else row.next_try_at


@dataclass(frozen=True, slots=True)
class DueNotice:
    """A notice that is to be sent now, by whoever has claimed it."""

    study_id: UUID
    study_code: StudyCode
    notice_id: UUID
    receiver_id: UUID
    channel: Channel
    address: str
    body: str
    failures: int
    is_wanted: bool
    """Whether its receiver is there still."""


def claim_due(tx: Transaction, now: datetime, until: datetime) -> DueNotice | None:
    """Return a notice that is due, and keep the others from it until then; None when there is none.

    Another worker may be looking as well, and takes another notice (SKIP LOCKED): in what order notices leave says nothing.
    """
    query = (
        select(
            _n.study_id,
            _st.study_code,
            _n.notice_id,
            _n.receiver_id,
            _r.channel,
            _r.address,
            _n.body,
            _n.failures,
            and_(_r.removed_at.is_(None), _r.disabled_at.is_(None)).label("is_wanted"),
        )
        .select_from(tables.notice)
        .join(tables.notice_receiver, _OF_RECEIVER)
        .join(tables.study, _st.study_id == _n.study_id)
        .where(_IS_WAITING, _n.next_try_at <= now)
        .order_by(_n.next_try_at, _n.notice_id, _n.receiver_id)
        .limit(1)
        .with_for_update(of=tables.notice, skip_locked=True, key_share=True)
    )
    row = tx.execute(query).one_or_none()
    if row is None:
        return None
    values = {name: getattr(row, name) for name in DueNotice.__dataclass_fields__}
    due = DueNotice(**(values | {"channel": Channel(values["channel"]), "is_wanted": bool(values["is_wanted"])}))
    _change(tx, due, next_try_at=until)
    return due


def record_delivered(tx: Transaction, due: DueNotice, at: datetime) -> None:
    """Say that a notice has arrived."""
    _change(tx, due, delivered_at=at)


def record_failure(tx: Transaction, due: DueNotice, next_try_at: datetime) -> None:
    """Say that a notice has not arrived, and when it is tried again."""
    _change(tx, due, failures=due.failures + 1, next_try_at=next_try_at)


def record_given_up(tx: Transaction, due: DueNotice, at: datetime) -> bool:
    """Say that a notice is not tried any more; return False when that, or its arrival, was said before."""
    return _change(tx, due, failures=due.failures + 1, given_up_at=at)


def _change(tx: Transaction, due: DueNotice, **values: object) -> bool:
    # Whoever held it too long may come behind somebody who has sent it meanwhile: what is on record stands.
    changed = tx.execute(
        update(tables.notice)
        .where(
            _n.study_id == due.study_id,
            _n.notice_id == due.notice_id,
            _n.receiver_id == due.receiver_id,
            _n.failures == due.failures,
            _IS_WAITING,
        )
        .values(**values)
    )
    return changed.rowcount == 1
