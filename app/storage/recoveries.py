"""Recoveries of lost second factors."""

from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

from sqlalchemy import Row, insert, select, update

from app.domain.sealed import Sealed
from app.storage import tables
from app.storage.database import Transaction

_r = tables.factor_recovery.c
_p = tables.principal.c


@dataclass(frozen=True, slots=True)
class Recovery:
    """A recovery as it is kept; its factor opens with the key ring only."""

    recovery_id: UUID
    principal_id: UUID
    name: str
    totp_secret: Sealed
    former_last_step: int | None
    """The last step of the lost factor that was used when it was said to be lost."""
    requested_at: datetime
    tries: int = 0
    confirmed_by: str | None = None
    confirmed_at: datetime | None = None
    identity_check: str | None = None
    confirmation_mac: bytes | None = None


_COLUMNS: Final = {"name": _p.name, "totp_secret": _r.sealed_totp_secret.label("totp_secret")}
_OPEN: Final = (
    select(*(_COLUMNS[name] if name in _COLUMNS else _r[name] for name in Recovery.__dataclass_fields__))
    .join_from(tables.factor_recovery, tables.principal, _p.principal_id == _r.principal_id)
    .where(_r.closed_at.is_(None))
)


def _recovery(row: Row[tuple[object, ...]]) -> Recovery:
    kept = row._asdict()
    return Recovery(**{**kept, "totp_secret": Sealed(str(kept["totp_secret"]))})


def add_recovery(tx: Transaction, recovery: Recovery, code_digest: bytes) -> None:
    """Record that somebody asks for the recovery of a second factor."""
    tx.execute(
        insert(tables.factor_recovery),
        {
            "recovery_id": recovery.recovery_id,
            "principal_id": recovery.principal_id,
            "code_digest": code_digest,
            "sealed_totp_secret": recovery.totp_secret.token,
            "former_last_step": recovery.former_last_step,
            "requested_at": recovery.requested_at,
            "tries": 0,
        },
    )


def hold_by_code(tx: Transaction, code_digest: bytes, since: datetime) -> Recovery | None:
    """Return the open recovery of a code, asked for since a moment, held until the transaction ends; None when there is none."""
    tx.execute(select(_r.recovery_id).where(_r.code_digest == code_digest).with_for_update())
    row = tx.execute(_OPEN.where(_r.code_digest == code_digest, _r.requested_at > since)).one_or_none()
    return _recovery(row) if row is not None else None


def find_recovery(tx: Transaction, recovery_id: UUID, since: datetime) -> Recovery | None:
    """Return a recovery that was asked for since a moment and is open."""
    row = tx.execute(_OPEN.where(_r.recovery_id == recovery_id, _r.requested_at > since)).one_or_none()
    return _recovery(row) if row is not None else None


def charge_try(tx: Transaction, recovery_id: UUID, most: int) -> bool:
    """Count a try to complete a recovery; return False when there were enough of them, or there is no such recovery."""
    charged = tx.execute(
        update(tables.factor_recovery).where(_r.recovery_id == recovery_id, _r.tries < most).values(tries=_r.tries + 1)
    )
    return charged.rowcount == 1


def record_confirmation(  # all that a confirmation says
    tx: Transaction, recovery_id: UUID, by: str, at: datetime, identity_check: str, mac: bytes
) -> None:
    """Record who has confirmed a recovery, and how identity was checked."""
    tx.execute(
        update(tables.factor_recovery)
        .where(_r.recovery_id == recovery_id)
        .values(confirmed_by=by, confirmed_at=at, identity_check=identity_check, confirmation_mac=mac)
    )


def close_all(tx: Transaction, principal_id: UUID, at: datetime) -> None:
    """Close every recovery of a person: one was completed, or the credentials are others by now."""
    tx.execute(
        update(tables.factor_recovery)
        .where(_r.principal_id == principal_id, _r.closed_at.is_(None))
        .values(closed_at=at)
    )
