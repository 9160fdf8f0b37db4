"""What machine clients prove themselves with besides the secret of their credential: public keys, and secrets that end."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

from sqlalchemy import insert, select, update
from sqlalchemy.dialects import postgresql, sqlite

from app.errors import AlreadyExists, Missing
from app.storage import tables
from app.storage.database import AlreadyThere, Transaction

_CLAIM: Final = {
    True: postgresql.insert(tables.used_assertion).on_conflict_do_nothing(),
    False: sqlite.insert(tables.used_assertion).on_conflict_do_nothing(),
}
_c = tables.credential.c
_f = tables.former_secret.c
_k = tables.client_key.c


@dataclass(frozen=True, slots=True)
class ClientKey:
    """A public key of a client."""

    key_id: str
    algorithm: str
    public_jwk: str
    added_at: datetime
    added_by: str
    revoked_at: datetime | None = None
    revoked_by: str | None = None


@dataclass(frozen=True, slots=True)
class FormerSecret:
    """A secret that a newer one has followed, as its digest."""

    secret_hash: str
    set_at: datetime
    ends_at: datetime


def add_key(tx: Transaction, principal_id: UUID, key: ClientKey) -> None:
    """Record a key; raise ``AlreadyExists`` for one that any client ever had: it shows which of them has signed."""
    try:
        tx.execute(
            insert(tables.client_key),
            {
                "key_id": key.key_id,
                "principal_id": principal_id,
                "algorithm": key.algorithm,
                "public_jwk": key.public_jwk,
                "added_at": key.added_at,
                "added_by": key.added_by,
            },
        )
    except AlreadyThere:
        message = (
            "This key is in use or was once; each client makes a pair of its own, and a revoked one is not used again."
        )
        raise AlreadyExists(message) from None


_KEYS: Final = select(*(_k[name] for name in ClientKey.__dataclass_fields__))


def list_keys(tx: Transaction, principal_id: UUID) -> list[ClientKey]:
    """Return the keys of a client, the revoked ones too, oldest first."""
    rows = tx.execute(_KEYS.where(_k.principal_id == principal_id).order_by(_k.added_at, _k.key_id))
    return [
        ClientKey(row.key_id, row.algorithm, row.public_jwk, row.added_at, row.added_by, row.revoked_at, row.revoked_by)
        for row in rows
    ]


def record_key_revocation(tx: Transaction, principal_id: UUID, key_id: str, at: datetime, by: str) -> None:
    """Revoke a key; raise ``Missing`` when it is not one of the client that holds."""
    revoked = tx.execute(
        update(tables.client_key)
        .where(_k.key_id == key_id, _k.principal_id == principal_id, _k.revoked_at.is_(None))
        .values(revoked_at=at, revoked_by=by)
    )
    if revoked.rowcount != 1:
        raise Missing


def list_former_secrets(tx: Transaction, principal_id: UUID, now: datetime) -> Sequence[FormerSecret]:
    """Return the secrets before the present one that still open, the newest first."""
    rows = tx.execute(
        select(_f.secret_hash, _f.set_at, _f.ends_at)
        .where(_f.principal_id == principal_id, _f.ends_at > now)
        .order_by(_f.set_at.desc(), _f.secret_hash)
    )
    return [FormerSecret(row.secret_hash, row.set_at, row.ends_at) for row in rows]


def add_former_secret(tx: Transaction, principal_id: UUID, secret: FormerSecret) -> None:
    """Let a secret open until it ends."""
    tx.execute(
        insert(tables.former_secret),
        {
            "principal_id": principal_id,
            "secret_hash": secret.secret_hash,
            "set_at": secret.set_at,
            "ends_at": secret.ends_at,
        },
    )


def end_former_secret(tx: Transaction, principal_id: UUID, secret_hash: str, at: datetime) -> None:
    """Let a former secret open nothing from now on."""
    tx.execute(
        update(tables.former_secret)
        .where(_f.principal_id == principal_id, _f.secret_hash == secret_hash)
        .values(ends_at=at)
    )


def record_secret(tx: Transaction, principal_id: UUID, secret_hash: str, at: datetime) -> None:
    """Replace the secret of a client; the empty one opens nothing."""
    tx.execute(
        update(tables.credential)
        .where(_c.principal_id == principal_id)
        .values(secret_hash=secret_hash, secret_set_at=at)
    )


def claim_assertion(tx: Transaction, digest: bytes, at: datetime) -> bool:
    """Use up an assertion; return False when it was used before."""
    return tx.execute(_CLAIM[tx.is_postgresql], {"digest": digest, "used_at": at}).rowcount == 1
