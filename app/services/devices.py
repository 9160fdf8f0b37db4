"""Known devices: a place kept at the sign-in, while strangers guess at a name (USR-10, EUB-15; T20).

Who has signed in with password and second proof may have the device remembered: it keeps a random secret, and sends it along with
the next passwords. Those are counted apart from what others try, so that nobody waits behind strangers at a device of their own.
It is no factor: the password is asked for as ever, and a second proof wherever one is due.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from app.domain.words import Action
from app.errors import NotAuthenticated
from app.identity.tokens import device_digest, new_device_secret
from app.services.audited import Act, audited
from app.services.context import RequestContext
from app.storage import devices, people
from app.storage.database import Transaction
from app.storage.devices import Device

LIFE: Final = timedelta(days=90)
MOST: Final = 10
"""Devices of one person at a time; one more takes the place of the first remembered."""
MOST_WRONG: Final = 20
"""So many wrong passwords in a row, and a device is known no more: it may be in somebody else's hands."""


@dataclass(frozen=True, slots=True)
class OwnDevice:
    """A known device, as its owner sees it."""

    device_id: UUID
    remembered_at: datetime
    used_at: datetime | None
    expires_at: datetime


def remember(act: Act) -> str:
    """Return the secret of a new device of the caller, who has just given password and second proof. Danger: shown once."""
    caller, now = act.principal, act.now
    standing = devices.list_devices(act.tx, caller.principal_id, now)
    for one in standing[: max(0, len(standing) + 1 - MOST)]:
        devices.record_ended(act.tx, caller.principal_id, one.device_id, now)
    secret, device_id = new_device_secret(act.deployment.entropy), act.deployment.new_id()
    made = Device(device_id, caller.principal_id, caller.name, now, now + LIFE, None, 0)
    devices.add_device(act.tx, made, device_digest(secret))
    act.note(after={**(act.after or {}), "device_id": str(device_id)})
    return secret


def charge(ctx: RequestContext, tx: Transaction, name: str, secret: str) -> Device | None:
    """Return the device that somebody of this name signs in with, a try at the password counted; None where it is not known."""
    try:
        digest = device_digest(secret)
    except NotAuthenticated:
        return None
    now = ctx.now()
    found = devices.hold_device(tx, digest, now)
    if found is None or found.name != name:
        return None
    if found.wrong_passwords >= MOST_WRONG:
        devices.record_ended(tx, found.principal_id, found.device_id, now)
        return None
    devices.record_wrong_passwords(tx, found.device_id, found.wrong_passwords + 1)
    return found


def list_own(ctx: RequestContext) -> Sequence[OwnDevice]:
    """Return the caller's known devices, the first remembered first; one's own account is not entered (rule E1)."""

    def work(act: Act) -> Sequence[OwnDevice]:
        act.is_entered = False
        found = devices.list_devices(act.tx, act.principal.principal_id, act.now)
        return [OwnDevice(one.device_id, one.remembered_at, one.used_at, one.expires_at) for one in found]

    return audited(ctx, Action.LIST_DEVICES, work)


def end(ctx: RequestContext, device_id: UUID) -> None:
    """End a known device of the caller; raise ``Missing``. A thief of a session takes a convenience by it, and no way in."""

    def work(act: Act) -> None:
        act.note(target={"username": act.principal.name, "device_id": str(device_id)})
        people.hold_credential(act.tx, act.principal.principal_id)
        devices.record_ended(act.tx, act.principal.principal_id, device_id, act.now)

    audited(ctx, Action.END_DEVICE, work)
