"""`private_key_jwt`: a machine client shows by a signature of its own that it is who it says (RFC 7523, 3).

The client keeps its private key; the service holds the public one, so that a reader of the database, or of a request, has
nothing to sign in with. Each assertion is taken once.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from app.errors import WrongCredentials
from app.identity import jose
from app.identity.jose import PublicKey, TokenRefused, Unverified

TYPE: Final = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
LONGEST_LIFE: Final = timedelta(minutes=5)
_TYPES: Final = frozenset({"", "jwt", "client-authentication+jwt"})
_LONGEST_ID: Final = 200


@dataclass(frozen=True, slots=True)
class Assertion:
    """What a client has shown."""

    thumbprint: str
    """The key that signed."""
    token_id: str
    """Its own name, by which it is known when it comes again."""


def read(text: str) -> Unverified:
    """Return an assertion that is not verified yet; raise ``WrongCredentials``."""
    try:
        return jose.parsed(text, _TYPES)
    except TokenRefused:
        raise WrongCredentials from None


def client_of(assertion: Unverified) -> str:
    """Return which client it says to be of. Danger: it is not verified yet."""
    name = assertion.claims.get("sub")
    return name if isinstance(name, str) else ""


def verify(
    assertion: Unverified, client_id: str, keys: Sequence[PublicKey], audiences: frozenset[str], now: datetime
) -> Assertion:
    """Return what the client has shown with one of its keys; raise ``WrongCredentials`` for anything less."""
    try:
        return _shown(assertion, client_id, keys, audiences, now)
    except TokenRefused:
        raise WrongCredentials from None


def _shown(
    assertion: Unverified, client_id: str, keys: Sequence[PublicKey], audiences: frozenset[str], now: datetime
) -> Assertion:
    key = jose.verify(assertion, keys)
    claims = assertion.claims
    for name in ("iss", "sub"):
        if jose.text_of(claims, name, _LONGEST_ID) != client_id:
            raise TokenRefused(name)
    jose.check_audience(claims, audiences)
    if jose.check_times(claims, now) > (now + LONGEST_LIFE).timestamp():
        raise TokenRefused("exp")
    return Assertion(key.thumbprint, jose.text_of(claims, "jti", _LONGEST_ID))
