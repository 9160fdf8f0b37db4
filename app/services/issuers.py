"""Outside issuers of tokens, and whom their identities stand for here.

Whoever could name an issuer with a key of their own, and link one of its identities to somebody's account, would be that person. So
each of the two waits for another administrator; a link may be confirmed by the account's owner instead, with a fresh proof of their
own. To change an issuer's keys it is registered anew: when that is confirmed, it takes the place of the one before. An issuer that
changes its keys by itself is registered with the address at which it tells them.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final
from uuid import UUID

from app.domain.sealed import Sealed
from app.domain.sign_ins import come_back_together, is_redirect_uri
from app.domain.words import Action
from app.errors import AlreadyExists, IllegalTransition, Invalid, Missing, SecondPersonRequired
from app.identity import discovery
from app.identity.jose import public_keys
from app.services.audited import Act, audited
from app.services.context import RequestContext
from app.services.providers import secret_context
from app.storage import issuers, people
from app.storage.issuers import Issuer, Link

_MOST_KEYS: Final = 10


@dataclass(frozen=True, slots=True)
class NewClient:
    """As whom the service is known to an issuer, and where browsers come back to from there."""

    client_id: str
    client_secret: str | None = field(repr=False)
    redirect_uris: Sequence[str]


@dataclass(frozen=True, slots=True)
class NewIssuer:
    """What is registered of an issuer: its keys, or where they are, or, with neither, that it tells itself where."""

    issuer: str
    audience: str
    proof_acr_values: Sequence[str]
    jwks: Sequence[Mapping[str, Any]] | None
    jwks_uri: str | None
    required_groups: Sequence[str] = ()
    groups_claim: str | None = None
    client: NewClient | None = None
    """As whom the service signs people in there; None where it does not."""


def register_issuer(ctx: RequestContext, new: NewIssuer) -> Issuer:
    """Return an issuer that waits for another administrator; raise ``Invalid`` for keys or an address that cannot be used."""

    def work(act: Act) -> Issuer:
        act.note(target={"issuer": new.issuer})
        keys = [] if new.jwks is None else _keys(new.jwks)
        is_discovered = new.jwks is None and new.jwks_uri is None
        if new.jwks is None:
            _check_address(act, discovery.address_of(new.issuer) if is_discovered else new.jwks_uri or "", new)
        issuer_id, client = act.deployment.new_id(), new.client
        _check_client(new, is_discovered=is_discovered)
        if client is not None:
            _check_ways_back(act, new.issuer, client.redirect_uris)
        made = Issuer(
            issuer_id,
            new.issuer,
            new.audience,
            json.dumps(keys),
            json.dumps(list(new.proof_acr_values)),
            act.now,
            act.principal.name,
            new.jwks_uri,
            is_discovered,
            client.client_id if client is not None else None,
            _sealed_secret(act, issuer_id, client),
            json.dumps(list(client.redirect_uris)) if client is not None else None,
            new.groups_claim,
            json.dumps(list(new.required_groups)),
        )
        issuers.add_issuer(act.tx, made)
        told = [key["thumbprint"] for key in keys] if new.jwks is not None else new.jwks_uri or "discovery"
        after: dict[str, Any] = {"issuer_id": str(issuer_id), "audience": new.audience, "keys": told}
        if client is not None:
            after |= {"client_id": client.client_id, "redirect_uris": list(client.redirect_uris)}
        if new.required_groups:
            after |= {"required_groups": list(new.required_groups)}
        act.note(after=after)
        return made

    return audited(ctx, Action.REGISTER_ISSUER, work, answer_type=Issuer)


def confirm_issuer(ctx: RequestContext, issuer_id: UUID) -> Issuer:
    """Return the issuer, in force from now on in the place of any before it; raise ``SecondPersonRequired``."""

    def work(act: Act) -> Issuer:
        act.note(target={"issuer_id": str(issuer_id)})
        issuers.lock_identities(act.tx)
        kept = issuers.get_issuer(act.tx, issuer_id)
        _require_waiting(kept.confirmed_at is not None or kept.revoked_at is not None)
        _require_another(act, kept.requested_by)
        # Another one may have been confirmed meanwhile.
        _check_ways_back(act, kept.issuer, json.loads(kept.redirect_uris or "[]"))
        former = issuers.find_issuer(act.tx, kept.issuer)
        if former is not None:
            issuers.record_issuer(act.tx, former.issuer_id, "revoked", act.now, act.principal.name)
            # What the keys before these have signed is worth nothing any more.
            issuers.end_sessions(act.tx, act.now, issuer=kept.issuer)
        issuers.record_issuer(act.tx, issuer_id, "confirmed", act.now, act.principal.name)
        act.note(after={"issuer": kept.issuer, "former": str(former.issuer_id) if former is not None else None})
        return issuers.get_issuer(act.tx, issuer_id)

    return audited(ctx, Action.CONFIRM_ISSUER, work, answer_type=Issuer)


def list_issuers(ctx: RequestContext) -> Sequence[Issuer]:
    """Return every issuer that there ever was, oldest first."""
    return audited(ctx, Action.LIST_ISSUERS, lambda act: issuers.list_issuers(act.tx))


def revoke_issuer(ctx: RequestContext, issuer_id: UUID) -> None:
    """End an issuer, waiting or in force, and every session by it, at once; raise ``Missing``."""

    def work(act: Act) -> None:
        act.note(target={"issuer_id": str(issuer_id)})
        issuers.lock_identities(act.tx)
        kept = issuers.get_issuer(act.tx, issuer_id)
        if kept.revoked_at is not None:
            raise Missing
        issuers.record_issuer(act.tx, issuer_id, "revoked", act.now, act.principal.name)
        if kept.confirmed_at is not None:
            issuers.end_sessions(act.tx, act.now, issuer=kept.issuer)
        act.note(before={"issuer": kept.issuer})

    audited(ctx, Action.REVOKE_ISSUER, work)


def link_identity(ctx: RequestContext, issuer: str, subject: str, name: str, *, is_machine: bool) -> Link:
    """Return a link that stands for nothing until its owner, or another administrator, has confirmed it.

    Raises ``Missing`` for an account or an issuer that is not there, or not in force.
    """

    def work(act: Act) -> Link:
        target = {"client_id" if is_machine else "username": name, "issuer": issuer, "subject": subject}
        act.note(target=target)
        account = people.get_account(act.tx, name, is_machine=is_machine)
        if issuers.find_issuer(act.tx, issuer) is None:
            raise Missing
        made = Link(
            act.deployment.new_id(),
            issuer,
            subject,
            account.principal_id,
            account.name,
            account.is_machine,
            act.now,
            act.principal.name,
        )
        issuers.add_link(act.tx, made)
        act.note(after={"link_id": str(made.link_id)})
        return made

    return audited(ctx, Action.LINK_IDENTITY, work, answer_type=Link)


def confirm_identity(ctx: RequestContext, link_id: UUID) -> Link:
    """Return the link, in force by a second administrator's word; raise ``SecondPersonRequired``."""
    return _confirm(ctx, Action.CONFIRM_IDENTITY, link_id, lambda act, link: _require_another(act, link.requested_by))


def confirm_own_identity(ctx: RequestContext, link_id: UUID) -> Link:
    """Return the link, in force by the word of the account's owner; somebody else's is ``Missing``."""

    def require_own(act: Act, link: Link) -> None:
        if link.principal_id != act.principal.principal_id:
            raise Missing

    return _confirm(ctx, Action.CONFIRM_OWN_IDENTITY, link_id, require_own)


def list_identities(ctx: RequestContext) -> Sequence[Link]:
    """Return every link that there ever was, oldest first."""
    return audited(ctx, Action.LIST_IDENTITIES, lambda act: issuers.list_links(act.tx))


def read_own_identities(ctx: RequestContext) -> Sequence[Link]:
    """Return the links of the caller's own account, oldest first."""

    def work(act: Act) -> Sequence[Link]:
        return issuers.list_links(act.tx, act.principal.principal_id)

    return audited(ctx, Action.READ_OWN_IDENTITIES, work)


def end_identity(ctx: RequestContext, link_id: UUID) -> None:
    """End a link, waiting or in force, and its sessions, at once; raise ``Missing``."""

    def work(act: Act) -> None:
        act.note(target={"link_id": str(link_id)})
        link = issuers.get_link(act.tx, link_id)
        if link.ended_at is not None:
            raise Missing
        issuers.record_link(act.tx, link_id, "ended", act.now, act.principal.name)
        issuers.end_sessions(act.tx, act.now, link_id=link_id)
        act.note(before={"name": link.name, "issuer": link.issuer, "subject": link.subject})

    audited(ctx, Action.END_IDENTITY, work)


def _keys(jwks: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    if not 0 < len(jwks) <= _MOST_KEYS:
        message = f"An issuer has 1 to {_MOST_KEYS} keys."
        raise Invalid(message, "jwks")
    return [asdict(key) for key in public_keys(jwks)]


def _check_address(act: Act, url: str, new: NewIssuer) -> None:
    """Raise ``Invalid`` for what has not the form of an address; nobody is asked within an act."""
    if not act.deployment.providers.client.is_address(url):
        message = "Keys are read at https://host/path, without user, password or fragment."
        raise Invalid(message, "issuer" if new.jwks_uri is None else "jwks_uri")


def _check_client(new: NewIssuer, *, is_discovered: bool) -> None:
    """Raise ``Invalid`` for a client of an issuer that does not say where one signs in, and for no way back from there."""
    if new.client is None:
        return
    if not is_discovered:
        message = "People sign in at an issuer that describes itself: register it with discovery."
        raise Invalid(message, "sign_in")
    if not all(is_redirect_uri(uri) for uri in new.client.redirect_uris):
        message = (
            "A redirect_uri is https://host/path, or http://127.0.0.1/path for a program on its user's own machine."
        )
        raise Invalid(message, "sign_in.redirect_uris")


def _check_ways_back(act: Act, issuer: str, redirect_uris: Sequence[str]) -> None:
    """Raise ``Invalid`` for a way back that is another issuer's, waiting or in force: each has its own (RFC 9700, 4.4.2)."""
    for other in issuers.list_issuers(act.tx):
        is_another = other.issuer != issuer and other.revoked_at is None
        if is_another and come_back_together(redirect_uris, json.loads(other.redirect_uris or "[]")):
            message = "A redirect_uri is another issuer's: give each a path of its own, so that none is brought another's codes."
            raise Invalid(message, "sign_in.redirect_uris")


def _sealed_secret(act: Act, issuer_id: UUID, client: NewClient | None) -> Sealed | None:
    if client is None or client.client_secret is None:
        return None
    return act.deployment.ring.seal(secret_context(issuer_id), client.client_secret.encode())


def _confirm(ctx: RequestContext, action: Action, link_id: UUID, may: Callable[[Act, Link], None]) -> Link:
    def work(act: Act) -> Link:
        act.note(target={"link_id": str(link_id)})
        issuers.lock_identities(act.tx)
        link = issuers.get_link(act.tx, link_id)
        may(act, link)
        _require_waiting(link.confirmed_at is not None or link.ended_at is not None)
        if issuers.find_link(act.tx, link.issuer, link.subject) is not None:
            message = "This identity stands for an account already; end that link first."
            raise AlreadyExists(message)
        issuers.record_link(act.tx, link_id, "confirmed", act.now, act.principal.name)
        act.note(after={"name": link.name, "issuer": link.issuer, "subject": link.subject})
        return issuers.get_link(act.tx, link_id)

    return audited(ctx, action, work, answer_type=Link)


def _require_another(act: Act, requested_by: str) -> None:
    if act.principal.name == requested_by:
        raise SecondPersonRequired


def _require_waiting(is_decided: bool) -> None:  # the one thing that is asked
    if is_decided:
        message = "This waits for nobody: it was confirmed, or has ended."
        raise IllegalTransition(message)
