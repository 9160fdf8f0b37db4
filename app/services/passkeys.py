"""A person's passkeys: enrolled, listed and removed by the owner alone, and what they open.

Nobody else ever sees a key, so none that is here was seen by an administrator; a reset removes them all (USR-13, SIG-07).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from app.domain.words import Action
from app.errors import Conflict, NotAuthenticated, PasswordChangeRequired, SnoseError, WrongPasskey
from app.identity.passkeys import challenge_of, creation_options, credential_id_of, request_options, verified_new
from app.services import proofs
from app.services.audited import Act, audited
from app.services.context import RequestContext
from app.services.proofs import Purpose
from app.services.sessions import SignedIn, apart, begin_session
from app.storage import passkeys, people
from app.storage.database import Transaction
from app.storage.passkeys import Passkey

MOST: Final = 10
"""Passkeys of one person at a time."""

Response = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class OwnPasskey:
    """A passkey as its owner sees it."""

    passkey_id: UUID
    name: str
    created_at: datetime
    last_used_at: datetime | None


def challenge(ctx: RequestContext, request: bytes | None = None) -> Mapping[str, Any]:
    """Return what ``navigator.credentials.get()`` takes: for a sign-in, with a token for its step-up, or for one request.

    ``request`` is that one's digest. Nothing is kept and nobody is looked up, so nothing is entered. Raises ``PasskeysOff``, and
    ``NotAuthenticated`` for a request of nobody's.
    """

    def work(act: Act) -> Mapping[str, Any]:
        act.is_entered = False
        party = proofs.party_of(act.deployment)
        if request is not None and ctx.token_digest is None:
            raise NotAuthenticated
        purpose = Purpose.SIGN_IN if ctx.token_digest is None else Purpose.STEP_UP
        made = proofs.new_challenge(ctx, purpose if request is None else Purpose.REQUEST, request or b"")
        return request_options(party, made)

    return audited(ctx, Action.CHALLENGE_PASSKEY, work)


def sign_in(ctx: RequestContext, response: Response) -> SignedIn:
    """Return a session with a fresh second proof: the device is one component, what it has verified the other (SIG-01).

    However many strangers guess at the password, nobody waits here: there is nothing to guess (EUB-15). Raises ``WrongPasskey``,
    which is entered for a passkey that somebody has, and is noise else.
    """
    named = apart(ctx.deployment, lambda tx: _find_named(tx, response))

    def work(act: Act) -> SignedIn:
        # Before the lock nobody knew whose it is; it is looked for again under it.
        proofs.party_of(act.deployment)
        if named is None:
            raise WrongPasskey
        people.hold_credential(act.tx, named.principal_id)
        found = proofs.shown(ctx, act.tx, response, Purpose.SIGN_IN, act.now)
        proofs.claim(act.tx, ctx, found)
        end = act.now + act.deployment.limits.session_length
        return begin_session(act, named.principal_id, end, "mfa", named.passkey_id)

    target = {"passkey_id": str(named.passkey_id) if named is not None else "unknown"}
    on_refusal = _enter_failed_login if named is not None else None
    return audited(ctx, Action.SIGN_IN, work, target=target, on_refusal=on_refusal)


def step_up(ctx: RequestContext, response: Response) -> SignedIn:
    """Return a new session with a fresh second proof, as a one-time code gives; raise ``WrongPasskey``."""

    def work(act: Act) -> SignedIn:
        caller = act.principal
        if caller.must_change_password:
            raise PasswordChangeRequired
        people.hold_credential(act.tx, caller.principal_id)
        found = proofs.shown(ctx, act.tx, response, Purpose.STEP_UP, act.now)
        _refuse_changed(act)
        if found.passkey.principal_id != caller.principal_id:
            raise WrongPasskey
        proofs.claim(act.tx, ctx, found)
        people.forget_wrong_codes(act.tx, caller.principal_id, caller.sign_in_id)
        end = people.get_session_end(act.tx, caller.session_id)
        return begin_session(act, caller.principal_id, end, "mfa", found.passkey.passkey_id)

    return audited(ctx, Action.STEP_UP, work)


def begin(ctx: RequestContext) -> Mapping[str, Any]:
    """Return what ``navigator.credentials.create()`` takes; raise ``PasskeysOff``, ``Conflict`` for one too many."""

    def work(act: Act) -> Mapping[str, Any]:
        act.is_entered = False
        party, caller = proofs.party_of(act.deployment), act.principal
        standing = passkeys.list_passkeys(act.tx, caller.principal_id)
        _refuse_too_many(standing)
        known = [proofs.opened_key(act.deployment, one)[0] for one in standing]
        made = proofs.new_challenge(ctx, Purpose.ENROL)
        return creation_options(party, made, caller.principal_id.bytes, caller.name, caller.display_name, known)

    return audited(ctx, Action.BEGIN_PASSKEY, work)


def add(ctx: RequestContext, name: str, response: Response) -> OwnPasskey:
    """Return the passkey that the caller's device has made; raise ``Invalid``, ``AlreadyExists`` for one that ever was."""

    def work(act: Act) -> OwnPasskey:
        party, caller = proofs.party_of(act.deployment), act.principal
        try:
            challenged = challenge_of(response)
            proofs.issued_at(ctx, challenged, Purpose.ENROL, b"", act.now)
        except WrongPasskey:
            # What is wrong is what was sent, not who asks.
            challenged = b""
        made = verified_new(party, response, challenged)
        people.hold_credential(act.tx, caller.principal_id)
        _refuse_changed(act)
        _refuse_too_many(passkeys.list_passkeys(act.tx, caller.principal_id))
        passkey_id = act.deployment.new_id()
        sealed = proofs.sealed_key(act.deployment, passkey_id, caller.principal_id, made.credential_id, made.public_key)
        kept = Passkey(passkey_id, caller.principal_id, sealed, name, made.sign_count, None, None, act.now)
        passkeys.add_passkey(act.tx, kept, made.credential_id)
        act.note(target={"username": caller.name}, after={"passkey_id": str(passkey_id)})
        return _own(kept)

    return audited(ctx, Action.ADD_PASSKEY, work)


def list_own(ctx: RequestContext) -> Sequence[OwnPasskey]:
    """Return the caller's passkeys, the oldest first; one's own account is not entered (rule E1)."""

    def work(act: Act) -> Sequence[OwnPasskey]:
        act.is_entered = False
        return [_own(one) for one in passkeys.list_passkeys(act.tx, act.principal.principal_id)]

    return audited(ctx, Action.LIST_PASSKEYS, work)


def remove(ctx: RequestContext, passkey_id: UUID) -> None:
    """Remove a passkey of the caller for ever, and end every other session: one may have begun by it. Raises ``Missing``."""

    def work(act: Act) -> None:
        caller = act.principal
        act.note(target={"username": caller.name, "passkey_id": str(passkey_id)})
        people.hold_credential(act.tx, caller.principal_id)
        passkeys.record_removed(act.tx, caller.principal_id, passkey_id, act.now)
        people.end_sessions(act.tx, caller.principal_id, act.now, but=caller.session_id)

    audited(ctx, Action.REMOVE_PASSKEY, work)


# -- inside ----------------------------------------------------------------------------------------------------------


def _find_named(tx: Transaction, response: Response) -> Passkey | None:
    try:
        return passkeys.find_passkey(tx, credential_id_of(response))
    except WrongPasskey:
        return None


def _enter_failed_login(_tx: Transaction, _error: SnoseError) -> None:
    """Ask the door to enter the refusal although nobody known is asking (rule E1)."""


def _refuse_changed(act: Act) -> None:
    """Raise ``NotAuthenticated`` when the session has ended, or the account was reset, while the credential was waited for."""
    digest = act.ctx.token_digest or b""
    caller = people.find_principal(act.tx, digest, act.now, act.now - act.deployment.limits.session_idle)
    if caller is None or caller.must_change_password:
        raise NotAuthenticated


def _refuse_too_many(standing: Sequence[Passkey]) -> None:
    if len(standing) >= MOST:
        message = f"You have {MOST} passkeys: remove one first."
        raise Conflict(message)


def _own(passkey: Passkey) -> OwnPasskey:
    return OwnPasskey(passkey.passkey_id, passkey.name, passkey.created_at, passkey.last_challenge_at)
