"""What a machine client proves itself with, over time: secrets that follow each other, and public keys of its own.

A secret is followed by the next one and goes on opening for a while, so that the client's operator can change it without a gap.
What is revoked opens nothing from that moment, and the client's tokens end with it: whoever stole it may hold one (USR-06, USR-13).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from app.domain.words import Action
from app.errors import Conflict, IllegalTransition, Missing
from app.identity.jose import public_key
from app.identity.tokens import client_secret_digest, new_client_secret
from app.services.audited import Act, audited
from app.services.context import RequestContext
from app.storage import clients, people
from app.storage.clients import ClientKey, FormerSecret
from app.storage.people import Account, Credential

_MOST_AT_ONCE: Final = 5
"""Keys, or secrets, that open at the same time: enough for any change of them, and a bound on what a sign-in looks at."""
_FINGERPRINT: Final = 16


@dataclass(frozen=True, slots=True)
class IssuedSecret:
    """A new secret beside those before it. Danger: shown once."""

    client_id: str
    client_secret: str
    fingerprint: str


@dataclass(frozen=True, slots=True)
class SecretState:
    """A secret that opens now, known by the beginning of its SHA-256; ``ends_at`` is None for the newest one."""

    fingerprint: str
    issued_at: datetime
    ends_at: datetime | None


def issue_secret(ctx: RequestContext, client_id: str, overlap: timedelta) -> IssuedSecret:
    """Return a new secret; the one before it goes on opening for ``overlap``."""

    def work(act: Act) -> IssuedSecret:
        account, kept = _held(act, client_id)
        former = clients.list_former_secrets(act.tx, account.principal_id, act.now)
        if len(former) + 1 >= _MOST_AT_ONCE:
            message = f"The client has {len(former) + 1} secrets that open: revoke one, or wait until it ends."
            raise Conflict(message)
        secret = new_client_secret(act.deployment.entropy)
        digest = client_secret_digest(secret).hex()
        ends_at = act.now + overlap
        if kept.secret_hash:
            clients.add_former_secret(
                act.tx, account.principal_id, FormerSecret(kept.secret_hash, kept.secret_set_at, ends_at)
            )
        clients.record_secret(act.tx, account.principal_id, digest, act.now)
        issued = IssuedSecret(client_id, secret, _fingerprint(digest))
        act.note(after={"fingerprint": issued.fingerprint, "former_ends_at": ends_at.isoformat(timespec="seconds")})
        return issued

    return audited(ctx, Action.ISSUE_CLIENT_SECRET, work)


def list_secrets(ctx: RequestContext, client_id: str) -> Sequence[SecretState]:
    """Return the secrets that open now, the newest first; never a secret."""

    def work(act: Act) -> Sequence[SecretState]:
        act.note(target={"client_id": client_id})
        account = people.get_account(act.tx, client_id, is_machine=True)
        return _opening(act, people.hold_credential(act.tx, account.principal_id))

    return audited(ctx, Action.LIST_CLIENT_CREDENTIALS, work)


def revoke_secret(ctx: RequestContext, client_id: str, fingerprint: str) -> None:
    """End a secret and the client's tokens at once; raise ``Missing`` for one that opens nothing.

    The last one may go too: a client with a key needs none, and another may be given a new one.
    """

    def work(act: Act) -> None:
        account, kept = _held(act, client_id, {"fingerprint": fingerprint})
        former = clients.list_former_secrets(act.tx, account.principal_id, act.now)
        ended = [one for one in former if _fingerprint(one.secret_hash) == fingerprint]
        for one in ended:
            clients.end_former_secret(act.tx, account.principal_id, one.secret_hash, act.now)
        if kept.secret_hash and _fingerprint(kept.secret_hash) == fingerprint:
            clients.record_secret(act.tx, account.principal_id, "", act.now)
        elif not ended:
            raise Missing
        people.end_sessions(act.tx, account.principal_id, act.now)

    audited(ctx, Action.REVOKE_CLIENT_CREDENTIAL, work)


def add_key(ctx: RequestContext, client_id: str, jwk: Mapping[str, Any]) -> ClientKey:
    """Return the public key with which the client may sign from now on; raise ``Invalid``, ``AlreadyExists``, ``Conflict``."""

    def work(act: Act) -> ClientKey:
        # What is no key is told before whose it would be (rule G2).
        read = public_key(jwk)
        account, _kept = _held(act, client_id)
        act.note(target={"client_id": client_id, "key_id": read.thumbprint})
        holding = [key for key in clients.list_keys(act.tx, account.principal_id) if key.revoked_at is None]
        if len(holding) >= _MOST_AT_ONCE:
            message = f"The client has {len(holding)} keys: revoke one first."
            raise Conflict(message)
        key = ClientKey(read.thumbprint, read.algorithm, read.jwk, act.now, act.principal.name)
        clients.add_key(act.tx, account.principal_id, key)
        act.note(after={"algorithm": key.algorithm})
        return key

    return audited(ctx, Action.ADD_CLIENT_KEY, work, answer_type=ClientKey)


def list_keys(ctx: RequestContext, client_id: str) -> Sequence[ClientKey]:
    """Return every key that the client ever had, oldest first."""

    def work(act: Act) -> Sequence[ClientKey]:
        act.note(target={"client_id": client_id})
        return clients.list_keys(act.tx, people.get_account(act.tx, client_id, is_machine=True).principal_id)

    return audited(ctx, Action.LIST_CLIENT_CREDENTIALS, work)


def revoke_key(ctx: RequestContext, client_id: str, key_id: str) -> None:
    """End a key and the client's tokens at once; raise ``Missing`` for one that is not the client's or is revoked."""

    def work(act: Act) -> None:
        account, _kept = _held(act, client_id, {"key_id": key_id})
        clients.record_key_revocation(act.tx, account.principal_id, key_id, act.now, act.principal.name)
        people.end_sessions(act.tx, account.principal_id, act.now)

    audited(ctx, Action.REVOKE_CLIENT_CREDENTIAL, work)


def _held(act: Act, client_id: str, more: Mapping[str, str] | None = None) -> tuple[Account, Credential]:
    """Return a client with what it proves itself with, and keep others from changing that until the act ends."""
    act.note(target={"client_id": client_id, **(more or {})})
    account = people.get_account(act.tx, client_id, is_machine=True)
    kept = people.hold_credential(act.tx, account.principal_id)
    if not kept.is_active:
        message = "The client is switched off."
        raise IllegalTransition(message)
    return account, kept


def _opening(act: Act, kept: Credential) -> Sequence[SecretState]:
    newest = [SecretState(_fingerprint(kept.secret_hash), kept.secret_set_at, None)] if kept.secret_hash else []
    former = clients.list_former_secrets(act.tx, kept.principal_id, act.now)
    return [*newest, *(SecretState(_fingerprint(one.secret_hash), one.set_at, one.ends_at) for one in former)]


def _fingerprint(digest: str) -> str:
    """Return by what a secret is known; of 256 random bits it tells nothing, and its holder can compute it."""
    return digest[:_FINGERPRINT]
