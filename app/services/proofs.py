"""What a passkey has signed, as a proof: of a sign-in, of a step-up, or of one request and no other.

A challenge is kept nowhere. It holds the moment at which it was given and a seal over that and over what it is for: nothing, a
session, or a session with method, path and body of a request. So it is good for that alone, for five minutes, and there is nothing
to clean up. A passkey answers challenges in the order in which they were given, each once, like the steps of one-time codes.
"""

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Final
from uuid import UUID

from app.domain.encoding import encode
from app.domain.sealed import Column, SealContext, Sealed
from app.errors import IntegrityBroken, PasskeysOff, WrongPasskey
from app.identity.passkeys import RelyingParty, challenge_of, credential_id_of, refuse_other_owner, verified_count
from app.services.context import Deployment, RequestContext
from app.storage import passkeys
from app.storage.database import Transaction
from app.storage.passkeys import Passkey

CHALLENGE_LIFE: Final = timedelta(minutes=5)
_EPOCH: Final = datetime.fromisoformat("1970-01-01T00:00:00+00:00")
_AT_LENGTH: Final = 8
_NONCE_LENGTH: Final = 16
_GIVEN_LENGTH: Final = _AT_LENGTH + _NONCE_LENGTH


class Purpose(StrEnum):
    """What a challenge is for; one that was given for something else is none."""

    SIGN_IN = "sign in"
    STEP_UP = "step up"
    REQUEST = "request"
    ENROL = "enrol"


@dataclass(frozen=True, slots=True)
class Shown:
    """A passkey that has signed, and what is to be kept of it when the act is done."""

    passkey: Passkey
    issued_at: datetime
    sign_count: int


def party_of(deployment: Deployment) -> RelyingParty:
    """Return for whom devices keep their keys; raise ``PasskeysOff`` where the settings name nobody."""
    party = deployment.limits.relying_party
    if party is None:
        raise PasskeysOff
    return party


def new_challenge(ctx: RequestContext, purpose: Purpose, request: bytes = b"") -> bytes:
    """Return a challenge for this session, or for nobody's yet; ``request`` is the digest of the one that it is for."""
    microseconds = (ctx.now() - _EPOCH) // timedelta(microseconds=1)
    given = microseconds.to_bytes(_AT_LENGTH, "big") + ctx.deployment.entropy.draw("challenge", _NONCE_LENGTH)
    return given + _seal(ctx, purpose, request, given)


def issued_at(ctx: RequestContext, challenge: bytes, purpose: Purpose, request: bytes, now: datetime) -> datetime:
    """Return when this service gave this challenge for this; raise ``WrongPasskey`` when it did not, or too long ago."""
    given, seal = challenge[:_GIVEN_LENGTH], challenge[_GIVEN_LENGTH:]
    if not hmac.compare_digest(_seal(ctx, purpose, request, given), seal):
        raise WrongPasskey
    at = _EPOCH + timedelta(microseconds=int.from_bytes(given[:_AT_LENGTH], "big"))
    if not timedelta(0) <= now - at <= CHALLENGE_LIFE:
        raise WrongPasskey
    return at


def shown(  # who, what and when, and what was signed
    ctx: RequestContext,
    tx: Transaction,
    response: Mapping[str, Any],
    purpose: Purpose,
    now: datetime,
    request: bytes = b"",
) -> Shown:
    """Return the passkey that has signed a challenge of ours; raise ``WrongPasskey``. ``claim`` uses it up."""
    party = party_of(ctx.deployment)
    challenge = challenge_of(response)
    at = issued_at(ctx, challenge, purpose, request, now)
    passkey = passkeys.find_passkey(tx, credential_id_of(response))
    if passkey is None or not _is_due(passkey, at, ctx.request_id):
        raise WrongPasskey
    # What was counted by this very request, whose COMMIT went unheard, is not held against it.
    counted = passkey.sign_count if passkey.last_request != ctx.request_id else 0
    credential_id, public_key = opened_key(ctx.deployment, passkey)
    if not hmac.compare_digest(credential_id, credential_id_of(response)):
        raise IntegrityBroken
    refuse_other_owner(response, passkey.principal_id.bytes)
    return Shown(passkey, at, verified_count(party, response, challenge, public_key, counted))


def shown_for_request(
    ctx: RequestContext, tx: Transaction, signed: Mapping[str, Any], principal_id: UUID, now: datetime
) -> Shown | None:
    """Return the caller's own passkey that has signed this very request; None when none has."""
    try:
        found = shown(ctx, tx, signed, Purpose.REQUEST, now, ctx.request_digest)
    except (WrongPasskey, PasskeysOff):
        return None
    return found if found.passkey.principal_id == principal_id else None


def claim(tx: Transaction, ctx: RequestContext, found: Shown) -> None:
    """Use a signature up with the act that it is for; raise ``WrongPasskey`` when a rival, or a removal, came before."""
    if not passkeys.claim_challenge(tx, found.passkey.passkey_id, found.issued_at, ctx.request_id, found.sign_count):
        raise WrongPasskey


def sealed_key(
    deployment: Deployment, passkey_id: UUID, principal_id: UUID, credential_id: bytes, key: bytes
) -> Sealed:
    """Return a public key with the id of its credential, sealed for this person: nobody can plant one in the database."""
    context = _key_context(passkey_id, principal_id)
    return deployment.ring.seal(context, len(credential_id).to_bytes(2, "big") + credential_id + key)


def opened_key(deployment: Deployment, passkey: Passkey) -> tuple[bytes, bytes]:
    """Return credential id and public key of a passkey; raise ``SealBroken`` for one that was planted."""
    opened = deployment.ring.open(_key_context(passkey.passkey_id, passkey.principal_id), passkey.sealed_key)
    end = 2 + int.from_bytes(opened[:2], "big")
    return opened[2:end], opened[end:]


def _key_context(passkey_id: UUID, principal_id: UUID) -> SealContext:
    return SealContext(Column.PASSKEY, None, (str(principal_id), str(passkey_id)))


def _is_due(passkey: Passkey, at: datetime, request_id: str) -> bool:
    last = passkey.last_challenge_at
    return last is None or last < at or (last == at and passkey.last_request == request_id)


def _seal(ctx: RequestContext, purpose: Purpose, request: bytes, given: bytes) -> bytes:
    # Of a sign-in there is no session yet; a token that was sent along, perhaps one that has ended, means nothing.
    session = b"" if purpose is Purpose.SIGN_IN else ctx.token_digest or b""
    return ctx.deployment.ring.mac("passkey challenge", encode(purpose, session, request, given))


def request_digest(method: str, target: str, content: bytes) -> bytes:
    """Return what stands for one request: its method, its path with its query, and its body in canonical form."""
    return hashlib.sha256(encode(method, target, content)).digest()
