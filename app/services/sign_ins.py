"""Sign-in of people at an OpenID provider: authorization code with PKCE (OpenID Connect Core 1.0, 3.1; RFC 7636, 9207, 9700).

A sign-in that has begun is kept nowhere. Its key, which the caller holds, says what was asked, sealed; `state`, `nonce` and the
verifier of PKCE are made anew from it each time, and without our own keys by nobody. So a code is worth nothing without the
key that it was asked with, in whoever's browser it lands, nor a key twice, at another provider or after ten minutes.

The provider is asked outside of any transaction and for a bounded time; what it answers is a stranger's until it is verified.
"""

import hashlib
import hmac
import json
from base64 import b64encode, urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Final
from urllib.parse import quote_plus, urlencode
from uuid import UUID

from app.domain.encoding import encode
from app.domain.sign_ins import is_registered
from app.domain.words import Action
from app.errors import Invalid, Missing, ProviderUnavailable, SignInRefused, SnoseError, TooManyAttempts
from app.identity import discovery, id_tokens
from app.identity.access_tokens import Vouched
from app.identity.discovery import Description
from app.identity.id_tokens import Expected
from app.identity.jose import TokenRefused
from app.services.audited import Act, audited
from app.services.context import Deployment, RequestContext
from app.services.providers import demands_of, secret_context
from app.services.sessions import SignedIn, apart, begin_session
from app.services.tries import put_to_network, refuse_noisy_network
from app.storage import clients, issuers, people
from app.storage.database import Transaction
from app.storage.issuers import Issuer, Link

LIFE: Final = timedelta(minutes=10)
FRESH: Final = timedelta(seconds=300)
"""How long ago a second proof may have been given there."""
_OK: Final = 200
_DOOR: Final = "sign-in at "
"""Apart from passwords, so that who guesses at these slows nobody here, where there is nothing to guess."""
_SALT_LENGTH: Final = 16


@dataclass(frozen=True, slots=True)
class Begun:
    """Where a person signs in, and what completes it. Danger: the key is shown once and kept nowhere."""

    authorization_url: str
    sign_in_key: str


@dataclass(frozen=True, slots=True)
class _Asked:
    """What a sign-in was begun with."""

    issuer: str
    issuer_id: str
    redirect_uri: str
    step_up: bool
    at: str
    salt: str

    def content(self) -> bytes:
        return json.dumps(asdict(self), sort_keys=True).encode()

    def secret(self, deployment: Deployment, purpose: str) -> str:
        """Return what stands for this sign-in alone, and cannot be made without our keys."""
        made = deployment.ring.mac("sign-in", encode(purpose, self.content()))
        return urlsafe_b64encode(made).rstrip(b"=").decode("ascii")


@dataclass(frozen=True, slots=True)
class _Back:
    """What a browser brought back."""

    code: str
    state: str
    issuer: str | None


@dataclass(frozen=True, slots=True)
class _Known:
    """Whom the provider has vouched for, and whose identity that is here, if anybody's."""

    issuer: Issuer
    vouched: Vouched
    link: Link | None


def begin(ctx: RequestContext, issuer: str, redirect_uri: str, *, step_up: bool) -> Begun:
    """Return where a person signs in; raise ``Missing``, ``Invalid``, and ``ProviderUnavailable`` when nobody says where.

    For a step-up a second proof is asked for, given anew. Nothing is kept and nobody is known, so nothing is entered.
    """
    begun = _begun(ctx, issuer, redirect_uri, step_up=step_up)

    def work(act: Act) -> Begun:
        act.is_entered = False
        if isinstance(begun, SnoseError):
            raise begun
        return begun

    return audited(ctx, Action.BEGIN_SIGN_IN, work)


def complete(ctx: RequestContext, sign_in_key: str, code: str, state: str, issuer: str | None) -> SignedIn:
    """Return a session of whom the provider vouches for; with a second proof when it was given there just now.

    Raises ``SignInRefused`` and ``ProviderUnavailable``, each entered with one word of why; a key that is none of ours is noise,
    and so is ``TooManyAttempts`` for a network from which too many were refused.
    """
    asked = _opened(ctx.deployment, sign_in_key)
    if asked is not None:
        # Whoever begins sign-ins only to fail with them neither fills the log nor has the provider asked without end.
        try:
            apart(ctx.deployment, lambda tx: refuse_noisy_network(ctx, tx, _DOOR))
        except TooManyAttempts:
            ctx.deployment.noise.count(ctx.network)
            raise
    known = TokenRefused("key") if asked is None else _known(ctx, asked, _Back(code, state, issuer))
    link = known.link if isinstance(known, _Known) else None
    target = {"username": link.name if link is not None else "unknown"}
    if asked is not None:
        target |= {"issuer": asked.issuer}
    if isinstance(known, _Known):
        target |= {"subject": known.vouched.subject}

    def work(act: Act) -> SignedIn:
        if isinstance(known, ProviderUnavailable | TokenRefused):
            act.lasting = {"why": known.why}
            raise known if isinstance(known, ProviderUnavailable) else SignInRefused
        account_id, link_id = _held(act, known)
        end = act.now + act.deployment.limits.session_length
        proof_at = known.vouched.proof_at
        is_fresh = proof_at is not None and act.now - proof_at <= FRESH
        return begin_session(
            act,
            account_id,
            end,
            "mfa" if is_fresh else "pwd",
            link_id=link_id,
            proof_at=proof_at if is_fresh else None,
        )

    def enter(tx: Transaction, error: SnoseError) -> None:
        if isinstance(error, SignInRefused):
            put_to_network(ctx, tx, _DOOR)

    on_refusal = enter if asked is not None else None
    return audited(ctx, Action.SIGN_IN, work, target=target, on_refusal=on_refusal)


# -- inside ----------------------------------------------------------------------------------------------------------


def _begun(ctx: RequestContext, name: str, redirect_uri: str, *, step_up: bool) -> Begun | SnoseError:
    deployment = ctx.deployment
    issuer = apart(deployment, lambda tx: issuers.find_issuer(tx, name))
    if issuer is None or issuer.client_id is None:
        return Missing("Nobody signs in here by an issuer of this name.")
    if not is_registered(redirect_uri, json.loads(issuer.redirect_uris or "[]")):
        return Invalid("This is none of the addresses registered for the issuer.", "redirect_uri")
    proofs = json.loads(issuer.proof_acr_values)
    if step_up and not proofs:
        return Invalid("No acr of this issuer means a second proof: step up with a factor of your own.", "step_up")
    try:
        told = deployment.providers.description(issuer, ctx.now())
        endpoint = _address(deployment, told.authorization_endpoint)
    except ProviderUnavailable as error:
        return error
    salt = deployment.entropy.draw("sign-in", _SALT_LENGTH).hex()
    asked = _Asked(name, str(issuer.issuer_id), redirect_uri, step_up, ctx.now().isoformat(), salt)
    verifier = hashlib.sha256(asked.secret(deployment, "verifier").encode()).digest()
    parameters = {
        "response_type": "code",
        "client_id": issuer.client_id,
        "redirect_uri": redirect_uri,
        "scope": "openid",
        "state": asked.secret(deployment, "state"),
        "nonce": asked.secret(deployment, "nonce"),
        "code_challenge": urlsafe_b64encode(verifier).rstrip(b"=").decode("ascii"),
        "code_challenge_method": "S256",
    }
    if step_up:
        # Given anew, and told when: a session there that goes on is no proof (RFC 9470).
        fresh = str(int(FRESH.total_seconds()))
        parameters |= {"acr_values": " ".join(proofs), "max_age": fresh, "prompt": "login"}
    mark = "&" if "?" in endpoint else "?"
    key = f"{urlsafe_b64encode(asked.content()).decode('ascii')}.{asked.secret(deployment, 'key')}"
    return Begun(f"{endpoint}{mark}{urlencode(parameters)}", key)


def _opened(deployment: Deployment, sign_in_key: str) -> _Asked | None:
    """Return what was asked with a key; None for one that is not ours."""
    content, _, seal = sign_in_key.partition(".")
    try:
        asked = _Asked(**json.loads(urlsafe_b64decode(content)))
        is_ours = hmac.compare_digest(asked.secret(deployment, "key").encode(), seal.encode("utf-8", "surrogatepass"))
    except (ValueError, TypeError, RecursionError):
        return None
    return asked if is_ours else None


def _known(ctx: RequestContext, asked: _Asked, back: _Back) -> _Known | TokenRefused | ProviderUnavailable:
    try:
        return _exchanged(ctx, asked, back)
    except (TokenRefused, ProviderUnavailable) as error:
        return error


def _exchanged(ctx: RequestContext, asked: _Asked, back: _Back) -> _Known:
    deployment, now = ctx.deployment, ctx.now()
    if not timedelta(0) <= now - datetime.fromisoformat(asked.at) <= LIFE:
        raise TokenRefused("expired")
    if not hmac.compare_digest(back.state.encode("utf-8", "surrogatepass"), asked.secret(deployment, "state").encode()):
        raise TokenRefused("state")
    issuer = apart(deployment, lambda tx: issuers.find_issuer(tx, asked.issuer))
    if issuer is None or str(issuer.issuer_id) != asked.issuer_id:
        raise TokenRefused("issuer")
    told = deployment.providers.description(issuer, now)
    # Else an answer of one provider could be handed to another (RFC 9207).
    if back.issuer != issuer.issuer and (back.issuer is not None or told.names_itself):
        raise TokenRefused("iss")
    used = hashlib.sha256(encode("sign-in", asked.content())).digest()
    if not apart(deployment, lambda tx: clients.claim_assertion(tx, used, now)):
        raise TokenRefused("used")
    id_token, access_token = _redeemed(deployment, issuer, told, asked, back.code)
    token = id_tokens.read(id_token)
    keys = deployment.providers.keys(issuer, token.header.get("kid"), now)
    expected = Expected(issuer.issuer, issuer.client_id or "", asked.secret(deployment, "nonce"), access_token)
    vouched = id_tokens.verify(token, keys, expected, demands_of(issuer), ctx.now())
    if asked.step_up and (vouched.proof_at is None or ctx.now() - vouched.proof_at > FRESH):
        raise TokenRefused("acr")
    return _Known(issuer, vouched, apart(deployment, lambda tx: issuers.find_link(tx, issuer.issuer, vouched.subject)))


def _redeemed(
    deployment: Deployment, issuer: Issuer, told: Description, asked: _Asked, code: str
) -> tuple[str, str | None]:
    """Return the tokens that the provider gives for a code: the one that says who it is, and the other."""
    form = {
        "grant_type": "authorization_code",
        "code": code,
        "redirect_uri": asked.redirect_uri,
        "client_id": issuer.client_id or "",
        "code_verifier": asked.secret(deployment, "verifier"),
    }
    headers: dict[str, str] = {}
    if issuer.sealed_client_secret is not None:
        secret = deployment.ring.open(secret_context(issuer.issuer_id), issuer.sealed_client_secret).decode()
        if told.is_secret_posted:
            form |= {"client_secret": secret}
        else:
            pair = f"{quote_plus(form.pop('client_id'))}:{quote_plus(secret)}"
            headers = {"Authorization": f"Basic {b64encode(pair.encode()).decode('ascii')}"}
    said = deployment.providers.post(_address(deployment, told.token_endpoint), form, headers)
    answer = discovery.document(said.content)
    if said.status != _OK:
        if answer.get("error") == "invalid_grant":
            raise TokenRefused("code")
        message = f"http_{said.status}"
        raise ProviderUnavailable(message)
    id_token = _text(answer, "id_token")
    if id_token is None:
        raise TokenRefused("id_token")
    return id_token, _text(answer, "access_token")


def _text(answer: Mapping[str, object], name: str) -> str | None:
    value = answer.get(name)
    return value if isinstance(value, str) else None


def _address(deployment: Deployment, url: str | None) -> str:
    """Return an address that a provider has named for signing in; a browser is sent to no other kind either."""
    if url is None or not deployment.providers.client.is_address(url):
        message = "description"
        raise ProviderUnavailable(message)
    return url


def _held(act: Act, known: _Known) -> tuple[UUID, UUID]:
    """Return account and link, held until the session has begun; raise ``SignInRefused`` for what was revoked meanwhile."""
    why = "unknown"
    if known.link is not None:
        # Read again where nobody changes it meanwhile: what was revoked while the provider was asked begins nothing.
        is_in_force = issuers.get_issuer(act.tx, known.issuer.issuer_id).revoked_at is None
        kept = issuers.get_link(act.tx, known.link.link_id)
        account = people.get_account(act.tx, kept.name, is_machine=kept.is_machine)
        if is_in_force and kept.ended_at is None and account.is_active and not kept.is_machine:
            return kept.principal_id, kept.link_id
        why = "machine" if kept.is_machine else "revoked"
    act.lasting = {"why": why}
    raise SignInRefused
