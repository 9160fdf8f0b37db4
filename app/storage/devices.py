"""Known devices: what a person has signed in with before, by password and second proof."""

from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

from sqlalchemy import Row, insert, select, update

from app.errors import Missing
from app.storage import tables
from app.storage.database import Transaction

_d = tables.known_device.c
_p = tables.principal.c


@dataclass(frozen=True, slots=True)
class Device:
    """A device of a person; only a digest of its secret is kept."""

    device_id: UUID
    principal_id: UUID
    name: str
    """The user name of whose it is."""
    remembered_at: datetime
    expires_at: datetime
    used_at: datetime | None
    wrong_passwords: int


_DEVICE: Final = (
    select(*(_p.name if name == "name" else _d[name] for name in Device.__dataclass_fields__))
    .join_from(tables.known_device, tables.principal, _p.principal_id == _d.principal_id)
    .where(_d.ended_at.is_(None), _p.is_active)
)


def _device(row: Row[tuple[object, ...]]) -> Device:
    return Device(**row._asdict())


def add_device(tx: Transaction, device: Device, secret_digest: bytes) -> None:
    """Record a device."""
    kept = {name: getattr(device, name) for name in Device.__dataclass_fields__ if name != "name"}
    tx.execute(insert(tables.known_device), {**kept, "secret_digest": secret_digest})


def hold_device(tx: Transaction, secret_digest: bytes, now: datetime) -> Device | None:
    """Return the device of a secret, held until the transaction ends; None for one that is unknown or over."""
    tx.execute(select(_d.device_id).where(_d.secret_digest == secret_digest).with_for_update())
    row = tx.execute(_DEVICE.where(_d.secret_digest == secret_digest, _d.expires_at > now)).one_or_none()
    return _device(row) if row is not None else None


def list_devices(tx: Transaction, principal_id: UUID, now: datetime) -> list[Device]:
    """Return the devices of a person that are not over, the first remembered first."""
    rows = tx.execute(
        _DEVICE.where(_d.principal_id == principal_id, _d.expires_at > now).order_by(_d.remembered_at, _d.device_id)
    )
    return [_device(row) for row in rows]


def record_wrong_passwords(tx: Transaction, device_id: UUID, wrong: int) -> None:
    """Keep how many wrong passwords were tried with a device in a row."""
    tx.execute(update(tables.known_device).where(_d.device_id == device_id).values(wrong_passwords=wrong))


def record_wrong_codes(tx: Transaction, device_id: UUID, wrong: int) -> None:
    """Keep how many wrong one-time codes were tried in sessions from a device in a row."""
    tx.execute(update(tables.known_device).where(_d.device_id == device_id).values(wrong_codes=wrong))


def record_use(tx: Transaction, device_id: UUID, at: datetime) -> bool:
    """Note that somebody signed in with a device, with the right password; return False when it is over by now."""
    used = tx.execute(
        update(tables.known_device)
        .where(_d.device_id == device_id, _d.ended_at.is_(None))
        .values(used_at=at, wrong_passwords=0)
    )
    return used.rowcount == 1


def record_ended(tx: Transaction, principal_id: UUID, device_id: UUID, at: datetime) -> None:
    """End a device of a person; raise ``Missing`` when there is none that goes on."""
    ended = tx.execute(
        update(tables.known_device)
        .where(_d.device_id == device_id, _d.principal_id == principal_id, _d.ended_at.is_(None))
        .values(ended_at=at)
    )
    if ended.rowcount != 1:
        raise Missing


def record_all_ended(tx: Transaction, principal_id: UUID, at: datetime) -> None:
    """End every device of a person: the credentials that it was remembered by are void."""
    tx.execute(
        update(tables.known_device).where(_d.principal_id == principal_id, _d.ended_at.is_(None)).values(ended_at=at)
    )
