"""How a session begins, by whatever one becomes known."""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, TypeVar
from uuid import UUID

from app.errors import DatabaseUnavailable
from app.identity.tokens import new_token, token_digest
from app.services.audited import Act
from app.services.context import Deployment
from app.storage import people
from app.storage.database import CommitUncertain, Transaction, TryAgain

T = TypeVar("T")

_ATTEMPTS: Final = 8


@dataclass(frozen=True, slots=True)
class SignedIn:
    """A new session. Danger: the token is shown once and kept nowhere."""

    access_token: str
    expires_in: int
    """Whole seconds."""
    acr: str
    auth_time: datetime
    device_secret: str | None = field(default=None, repr=False)
    """Where the device is to be remembered."""


def apart(deployment: Deployment, work: Callable[[Transaction], T]) -> T:
    """Return what a short transaction before the door gives; raise ``DatabaseUnavailable`` when it never gets its turn."""
    for _ in range(_ATTEMPTS):
        try:
            with deployment.database.transaction() as tx:
                return work(tx)
        except (TryAgain, CommitUncertain):
            # A try that was counted twice costs a delay at most.
            continue
    raise DatabaseUnavailable


def begin_session(  # who, how long, and by what
    act: Act,
    principal_id: UUID,
    end: datetime,
    acr: str,
    passkey_id: UUID | None = None,
    device_id: UUID | None = None,
    link_id: UUID | None = None,
    proof_at: datetime | None = None,
) -> SignedIn:
    """Return a new session of an account; ``acr`` says by what, its entry by which passkey or link, or from which known device.

    A proof was given now, or when an outside issuer says.
    """
    token = new_token(act.deployment.entropy)
    digest = token_digest(token)
    proof_at = proof_at or (act.now if acr == "mfa" else None)
    sign_in_id = act.caller.sign_in_id if act.caller is not None else None
    session_id = act.deployment.new_id()
    people.add_session(
        act.tx, session_id, digest, principal_id, act.now, end, proof_at, sign_in_id, link_id, device_id=device_id
    )
    # From here on it is known who acts, and the entry says so.
    idle_since = act.now - act.deployment.limits.session_idle
    act.caller = act.caller or people.find_principal(act.tx, digest, act.now, idle_since)
    named = {"passkey_id": passkey_id, "device_id": device_id, "link_id": link_id}
    by = {name: str(one) for name, one in named.items() if one is not None}
    act.note(after={"acr": acr, "expires_at": end.isoformat(timespec="seconds"), **by})
    return SignedIn(token, int((end - act.now).total_seconds()), acr, act.now)
