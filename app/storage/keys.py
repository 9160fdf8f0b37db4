"""The deployment's identity and its wrapped keys; the database holds no key in clear (rule F1)."""

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import insert, select, update

from app.domain.words import Mode
from app.errors import Missing
from app.storage import tables
from app.storage.database import Transaction

_d = tables.deployment.c
_k = tables.signing_key.c


@dataclass(frozen=True, slots=True)
class DeploymentRecord:
    """Which deployment this database belongs to."""

    deployment_id: UUID
    mode: Mode
    is_demo: bool
    """Made by `snose demo`: only such a database may be emptied again."""
    wrapped_secret: str


@dataclass(frozen=True, slots=True)
class SigningKeyRecord:
    """A signing key, its private half wrapped; ``handover`` is signed by the key before it and by itself."""

    version: int
    public_key: str
    wrapped: str
    handover: str | None


def find_deployment(tx: Transaction) -> DeploymentRecord | None:
    """Return the deployment's record; None before ``snose init``."""
    row = tx.execute(select(_d.deployment_id, _d.mode, _d.is_demo, _d.wrapped_secret)).one_or_none()
    return None if row is None else DeploymentRecord(row.deployment_id, Mode(row.mode), row.is_demo, row.wrapped_secret)


def get_deployment(tx: Transaction) -> DeploymentRecord:
    """Return the deployment's record; raise ``Missing`` before ``snose init``."""
    record = find_deployment(tx)
    if record is None:
        raise Missing
    return record


def add_deployment(tx: Transaction, record: DeploymentRecord, at: datetime) -> None:
    """Record the deployment."""
    tx.execute(
        insert(tables.deployment),
        {
            "deployment_id": record.deployment_id,
            "mode": record.mode,
            "is_demo": record.is_demo,
            "wrapped_secret": record.wrapped_secret,
            "created_at": at,
        },
    )


def replace_wrapped_secret(tx: Transaction, before: str, after: str) -> bool:
    """Replace the wrapping of the deployment secret, which stays the same (rule F4); return False when it changed meanwhile."""
    replaced = tx.execute(update(tables.deployment).where(_d.wrapped_secret == before).values(wrapped_secret=after))
    return replaced.rowcount == 1


def add_signing_key(tx: Transaction, key: SigningKeyRecord, at: datetime) -> None:
    """Record a signing key."""
    tx.execute(
        insert(tables.signing_key),
        {
            "version": key.version,
            "public_key": key.public_key,
            "wrapped": key.wrapped,
            "handover": key.handover,
            "created_at": at,
        },
    )


def list_signing_keys(tx: Transaction) -> list[SigningKeyRecord]:
    """Return the signing keys, the oldest first."""
    rows = tx.execute(select(_k.version, _k.public_key, _k.wrapped, _k.handover).order_by(_k.version))
    return [SigningKeyRecord(row.version, row.public_key, row.wrapped, row.handover) for row in rows]
