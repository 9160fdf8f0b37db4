"""Outside issuers, and which of their identities stands for which account."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from sqlalchemy import Row, insert, select, update

from app.domain.sealed import Sealed
from app.errors import Missing
from app.storage import tables
from app.storage.database import Transaction

_i = tables.issuer.c
_l = tables.identity_link.c
_p = tables.principal.c
_s = tables.session.c


@dataclass(frozen=True, slots=True)
class Issuer:
    """Somebody else who signs tokens for us; in force from its confirmation until it is revoked."""

    issuer_id: UUID
    issuer: str
    audience: str
    jwks: str
    proof_acr_values: str
    requested_at: datetime
    requested_by: str
    jwks_uri: str | None = None
    """Where its keys are, when it was registered without them."""
    is_discovered: bool | None = None
    """Whether it says itself where they are."""
    client_id: str | None = None
    """As whom the service signs people in there; None where it does not."""
    sealed_client_secret: Sealed | None = None
    redirect_uris: str | None = None
    groups_claim: str | None = None
    required_groups: str | None = None
    confirmed_at: datetime | None = None
    confirmed_by: str | None = None
    revoked_at: datetime | None = None
    revoked_by: str | None = None


@dataclass(frozen=True, slots=True)
class Link:
    """An identity of an issuer's that stands for an account from its confirmation until it is ended."""

    link_id: UUID
    issuer: str
    subject: str
    principal_id: UUID
    name: str
    is_machine: bool
    requested_at: datetime
    requested_by: str
    confirmed_at: datetime | None = None
    confirmed_by: str | None = None
    ended_at: datetime | None = None
    ended_by: str | None = None


_ISSUER: Final = select(*(_i[name] for name in Issuer.__dataclass_fields__))
_LINK: Final = select(
    *(_p[name] if name in {"name", "is_machine"} else _l[name] for name in Link.__dataclass_fields__)
).join_from(tables.identity_link, tables.principal, _p.principal_id == _l.principal_id)


def _issuer(row: Row[Any]) -> Issuer:
    kept = {name: getattr(row, name) for name in Issuer.__dataclass_fields__}
    secret = kept["sealed_client_secret"]
    return Issuer(**kept | {"sealed_client_secret": Sealed(secret) if secret is not None else None})


def _link(row: Row[Any]) -> Link:
    return Link(**{name: getattr(row, name) for name in Link.__dataclass_fields__})


def add_issuer(tx: Transaction, issuer: Issuer) -> None:
    """Record an issuer that nobody has confirmed yet."""
    kept = {name: getattr(issuer, name) for name in Issuer.__dataclass_fields__}
    secret = issuer.sealed_client_secret
    tx.execute(insert(tables.issuer), {**kept, "sealed_client_secret": secret.token if secret is not None else None})


def list_issuers(tx: Transaction) -> Sequence[Issuer]:
    """Return every issuer that there ever was, oldest first."""
    return [_issuer(row) for row in tx.execute(_ISSUER.order_by(_i.requested_at, _i.issuer_id))]


def find_issuer(tx: Transaction, issuer: str) -> Issuer | None:
    """Return the issuer of this name that is in force: there is one at most."""
    in_force = _ISSUER.where(_i.issuer == issuer, _i.confirmed_at.is_not(None), _i.revoked_at.is_(None))
    row = tx.execute(in_force).one_or_none()
    return _issuer(row) if row is not None else None


def get_issuer(tx: Transaction, issuer_id: UUID) -> Issuer:
    """Return an issuer, held until the transaction ends; raise ``Missing``."""
    tx.execute(select(_i.issuer_id).where(_i.issuer_id == issuer_id).with_for_update())
    row = tx.execute(_ISSUER.where(_i.issuer_id == issuer_id)).one_or_none()
    if row is None:
        raise Missing
    return _issuer(row)


def record_issuer(tx: Transaction, issuer_id: UUID, step: str, at: datetime, by: str) -> None:
    """Record that an issuer is ``confirmed`` or ``revoked``."""
    tx.execute(update(tables.issuer).where(_i.issuer_id == issuer_id).values({f"{step}_at": at, f"{step}_by": by}))


def add_link(tx: Transaction, link: Link) -> None:
    """Record a link that nobody has confirmed yet."""
    kept = {name: getattr(link, name) for name in Link.__dataclass_fields__ if name not in {"name", "is_machine"}}
    tx.execute(insert(tables.identity_link), kept)


def find_link(tx: Transaction, issuer: str, subject: str) -> Link | None:
    """Return the link of an identity that is confirmed and not ended."""
    row = tx.execute(
        _LINK.where(_l.issuer == issuer, _l.subject == subject, _l.confirmed_at.is_not(None), _l.ended_at.is_(None))
    ).one_or_none()
    return _link(row) if row is not None else None


def get_link(tx: Transaction, link_id: UUID) -> Link:
    """Return a link, held until the transaction ends; raise ``Missing``."""
    tx.execute(select(_l.link_id).where(_l.link_id == link_id).with_for_update())
    row = tx.execute(_LINK.where(_l.link_id == link_id)).one_or_none()
    if row is None:
        raise Missing
    return _link(row)


def list_links(tx: Transaction, principal_id: UUID | None = None) -> Sequence[Link]:
    """Return the links of an account, or all, with those that have ended, oldest first."""
    query = _LINK if principal_id is None else _LINK.where(_l.principal_id == principal_id)
    return [_link(row) for row in tx.execute(query.order_by(_l.requested_at, _l.link_id))]


def record_link(tx: Transaction, link_id: UUID, step: str, at: datetime, by: str) -> None:
    """Record that a link is ``confirmed`` or ``ended``."""
    tx.execute(update(tables.identity_link).where(_l.link_id == link_id).values({f"{step}_at": at, f"{step}_by": by}))


def end_sessions(tx: Transaction, at: datetime, *, issuer: str | None = None, link_id: UUID | None = None) -> None:
    """End the sessions that were begun by the tokens of an issuer, or by a link."""
    links = select(_l.link_id).where(_l.issuer == issuer if link_id is None else _l.link_id == link_id)
    tx.execute(update(tables.session).where(_s.link_id.in_(links), _s.ended_at.is_(None)).values(ended_at=at))


def lock_identities(tx: Transaction) -> None:
    """Let one confirmation follow the other, of whatever: each looks at what the others have made."""
    # The one row that is there before any of them; a lock on the tables is not the application's to take.
    tx.execute(select(tables.deployment.c.deployment_id).with_for_update())


def is_known(tx: Transaction, token_digest: bytes) -> bool:
    """Return whether a token has begun a session, whatever became of it."""
    return tx.execute(select(_s.session_id).where(_s.token_digest == token_digest)).one_or_none() is not None
