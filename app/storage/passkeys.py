"""Passkeys: what is kept of people's keys on devices of their own."""

import hashlib
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

from sqlalchemy import and_, insert, or_, select, update

from app.domain.sealed import Sealed
from app.errors import AlreadyExists, Missing
from app.storage import tables
from app.storage.database import Transaction

_k = tables.passkey.c
_p = tables.principal.c
_c = tables.credential.c


@dataclass(frozen=True, slots=True)
class Passkey:
    """A passkey as it is kept; its key opens with the key ring only."""

    passkey_id: UUID
    principal_id: UUID
    sealed_key: Sealed
    name: str
    sign_count: int
    last_challenge_at: datetime | None
    last_request: str | None
    created_at: datetime


_PASSKEY: Final = (
    select(*(_k[name] for name in Passkey.__dataclass_fields__))
    .join(tables.principal, _p.principal_id == _k.principal_id)
    .join(tables.credential, _c.principal_id == _k.principal_id)
    .where(_k.removed_at.is_(None), _p.is_active, _c.must_change.is_(False))
)
"""Those that may be used: of active people, none of whose factors somebody else has seen since."""


def find_passkey(tx: Transaction, credential_id: bytes) -> Passkey | None:
    """Return the usable passkey of this credential id; None for one that is unknown, removed or of somebody switched off."""
    row = tx.execute(_PASSKEY.where(_k.credential_digest == _digest(credential_id))).one_or_none()
    return _passkey(row._asdict()) if row is not None else None


def list_passkeys(tx: Transaction, principal_id: UUID) -> list[Passkey]:
    """Return the usable passkeys of a person, the oldest first."""
    rows = tx.execute(_PASSKEY.where(_k.principal_id == principal_id).order_by(_k.created_at, _k.passkey_id))
    return [_passkey(row._asdict()) for row in rows]


def add_passkey(tx: Transaction, passkey: Passkey, credential_id: bytes) -> None:
    """Record a passkey; raise ``AlreadyExists`` for a credential id that was ever used, by whomever."""
    digest = _digest(credential_id)
    if tx.execute(select(_k.passkey_id).where(_k.credential_digest == digest)).first() is not None:
        message = "This passkey is enrolled, or was once; have the device make another one."
        raise AlreadyExists(message)
    values = {name: getattr(passkey, name) for name in Passkey.__dataclass_fields__}
    tx.execute(
        insert(tables.passkey),
        {**values, "sealed_key": passkey.sealed_key.token, "credential_digest": digest},
    )


def claim_challenge(  # all that one signature says
    tx: Transaction, passkey_id: UUID, issued_at: datetime, request: str, sign_count: int
) -> bool:
    """Use up a challenge with all before it; return False when it, or a later one, was used by another request (rule D3)."""
    claimed = tx.execute(
        update(tables.passkey)
        .where(
            _k.passkey_id == passkey_id,
            _k.removed_at.is_(None),
            or_(
                and_(
                    or_(_k.last_challenge_at.is_(None), _k.last_challenge_at < issued_at),
                    or_(_k.sign_count < sign_count, _k.sign_count + sign_count == 0),
                ),
                # The same request whose COMMIT went unheard.
                and_(_k.last_challenge_at == issued_at, _k.last_request == request, _k.sign_count == sign_count),
            ),
        )
        .values(last_challenge_at=issued_at, last_request=request, sign_count=sign_count)
    )
    return claimed.rowcount == 1


def record_removed(tx: Transaction, principal_id: UUID, passkey_id: UUID, at: datetime) -> None:
    """Remove a passkey of a person for ever; raise ``Missing`` when there is none that stands."""
    removed = tx.execute(
        update(tables.passkey)
        .where(_k.passkey_id == passkey_id, _k.principal_id == principal_id, _k.removed_at.is_(None))
        .values(removed_at=at)
    )
    if removed.rowcount != 1:
        raise Missing


def record_all_removed(tx: Transaction, principal_id: UUID, at: datetime) -> None:
    """Remove every passkey of a person, as after a loss (USR-13)."""
    tx.execute(
        update(tables.passkey).where(_k.principal_id == principal_id, _k.removed_at.is_(None)).values(removed_at=at)
    )


def _digest(credential_id: bytes) -> bytes:
    return hashlib.sha256(credential_id).digest()


def _passkey(row: dict[str, object]) -> Passkey:
    return Passkey(**{**row, "sealed_key": Sealed(str(row["sealed_key"]))})  # type: ignore[arg-type]  # as the table has them
