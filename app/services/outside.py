"""Tokens of outside issuers, before the door: the first time that one comes, a session begins by it, which is entered.

From then on it is a session like every other: grants are the local ones, and whatever ends a session ends this one at once
(USR-06). The keys of an issuer are here, or are asked for outside of any transaction and for a bounded time
(`app.services.providers`); what is open to everybody, a sign-in above all, asks nobody (rule D5).
"""

from typing import Final

from app.domain.words import Action
from app.errors import DatabaseUnavailable, Missing, RollbackSuspected, TrailForked
from app.identity import access_tokens
from app.identity.jose import TokenRefused, Unverified
from app.services.audited import enter_by_service, is_public
from app.services.context import RequestContext
from app.services.providers import demands_of
from app.storage import issuers, people
from app.storage.database import AlreadyThere, CommitUncertain, Transaction, TryAgain

_ATTEMPTS: Final = 8


def admit(ctx: RequestContext) -> None:
    """Begin the session of an outside token that was not seen before; whoever it does not stand for stays nobody.

    Raises ``ProviderUnavailable`` when nobody can say whose it is because its issuer does not answer.
    """
    if ctx.outside_token is None or ctx.token_digest is None or is_public(ctx.action):
        return None
    try:
        token = access_tokens.read(ctx.outside_token)
        for _ in range(_ATTEMPTS):
            try:
                return _begin(ctx, token, ctx.token_digest)
            except (AlreadyThere, TryAgain, CommitUncertain, TrailForked, RollbackSuspected):
                # A rival began it, or nobody knows: the next look tells. A broken log is followed by a new segment.
                continue
    except (TokenRefused, Missing):
        return None
    raise DatabaseUnavailable


def _begin(ctx: RequestContext, token: Unverified, digest: bytes) -> None:
    deployment, now = ctx.deployment, ctx.now()
    with deployment.database.transaction() as tx:
        if issuers.is_known(tx, digest):
            return
        issuer = issuers.find_issuer(tx, access_tokens.issuer_of(token))
    if issuer is None:
        raise TokenRefused("iss")
    keys = deployment.providers.keys(issuer, token.header.get("kid"), now)
    vouched = access_tokens.verify(token, keys, issuer.audience, demands_of(issuer), now)
    with deployment.database.transaction() as tx:
        link = issuers.find_link(tx, issuer.issuer, vouched.subject)
    if link is None:
        raise TokenRefused("sub")

    def work(tx: Transaction) -> None:
        # Read again where nobody changes it meanwhile: what was revoked while the token was looked at begins nothing.
        is_in_force = issuers.get_issuer(tx, issuer.issuer_id).revoked_at is None
        kept = issuers.get_link(tx, link.link_id)
        account = people.get_account(tx, kept.name, is_machine=kept.is_machine)
        if not is_in_force or kept.ended_at is not None or not account.is_active:
            raise Missing
        proof_at = None if kept.is_machine else vouched.proof_at
        people.add_session(
            tx,
            deployment.new_id(),
            digest,
            kept.principal_id,
            now,
            min(vouched.ends_at, now + length),
            proof_at,
            link_id=kept.link_id,
        )

    length = deployment.limits.machine_token_length if link.is_machine else deployment.limits.session_length
    enter_by_service(
        deployment,
        Action.ISSUE_TOKEN if link.is_machine else Action.SIGN_IN,
        target={"client_id" if link.is_machine else "username": link.name},
        after={"issuer": link.issuer, "subject": link.subject, "link_id": str(link.link_id)},
        work=work,
        actor=link.name,
    )
