"""JWT access tokens of outside issuers (RFC 9068): what a token says of whom, once its issuer's own key has signed it.

Of a second proof it tells by `acr` and `auth_time` (RFC 9470). When a token was made (`iat`) is no such proof: an issuer makes new
ones for as long as its own session lasts.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from app.identity import jose
from app.identity.jose import LEEWAY, PublicKey, TokenRefused, Unverified

_TYPES: Final = frozenset({"at+jwt"})
_LONGEST_NAME: Final = 255


@dataclass(frozen=True, slots=True)
class Vouched:
    """Whom an issuer vouches for, until when, and when the second proof was given, if one was."""

    subject: str
    ends_at: datetime
    proof_at: datetime | None


@dataclass(frozen=True, slots=True)
class Demands:
    """What is asked of an issuer's word: which `acr` is a second proof, and to which groups of it one of must belong."""

    proof_acr_values: Sequence[str]
    groups_claim: str = "groups"
    groups: Sequence[str] = ()
    """None of them is needed where there are none."""


def read(token: str) -> Unverified:
    """Return a token of a form that could be meant; raise ``TokenRefused``."""
    return jose.parsed(token, _TYPES)


def issuer_of(token: Unverified) -> str:
    """Return whose it says to be; raise ``TokenRefused``. Danger: it is not verified yet."""
    return jose.text_of(token.claims, "iss", _LONGEST_NAME)


def subject_of(token: Unverified) -> str:
    """Return whom it says to be for; raise ``TokenRefused``. Danger: it is not verified yet."""
    return jose.text_of(token.claims, "sub", _LONGEST_NAME)


def verify(token: Unverified, keys: Sequence[PublicKey], audience: str, demands: Demands, now: datetime) -> Vouched:
    """Return what the issuer vouches for; raise ``TokenRefused`` for anything that is not as it should be."""
    jose.verify(token, keys)
    return vouched(token, audience, demands, now)


def vouched(token: Unverified, audience: str, demands: Demands, now: datetime) -> Vouched:
    """Return what a token says of whom, once it is verified; raise ``TokenRefused``."""
    claims = token.claims
    jose.check_audience(claims, frozenset({audience}))
    ends = jose.check_times(claims, now)
    if jose.time_of(claims, "iat") is None:
        raise TokenRefused("iat")
    if demands.groups:
        told = claims.get(demands.groups_claim)
        # One group alone is told as a text by some.
        groups = told if isinstance(told, list) else [told]
        if not any(group in demands.groups for group in groups if isinstance(group, str)):
            raise TokenRefused("groups")
    given = jose.time_of(claims, "auth_time")
    if given is not None and given > now.timestamp() + LEEWAY.total_seconds():
        raise TokenRefused("auth_time")
    acr = claims.get("acr")
    if acr is not None and not isinstance(acr, str):
        raise TokenRefused("acr")
    is_proven = given is not None and acr in demands.proof_acr_values
    proof_at = datetime.fromtimestamp(given, UTC) if is_proven and given is not None else None
    return Vouched(subject_of(token), datetime.fromtimestamp(ends, UTC) + LEEWAY, proof_at)
