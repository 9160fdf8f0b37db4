"""ID tokens (OpenID Connect Core 1.0, 3.1.3.7): that this person has just signed in there, and for this very sign-in here."""

import hashlib
import hmac
from base64 import urlsafe_b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from app.identity import access_tokens, jose
from app.identity.access_tokens import Demands, Vouched
from app.identity.jose import PublicKey, TokenRefused, Unverified

_TYPES: Final = frozenset({"", "jwt"})
_LONGEST: Final = 65_536
"""Characters: some tell every group of a person. It comes from the provider itself, not from a caller."""
# Some name a certificate of their key by its thumbprint; the key is found among those that we hold all the same.
_BESIDE: Final = frozenset({"x5t"})
_HASHES: Final = {"EdDSA": hashlib.sha512}


@dataclass(frozen=True, slots=True)
class Expected:
    """What the token must repeat of the sign-in that it is for."""

    issuer: str
    client_id: str
    nonce: str
    access_token: str | None


def read(token: str) -> Unverified:
    """Return a token of a form that could be meant; raise ``TokenRefused``."""
    return jose.parsed(token, _TYPES, _LONGEST, _BESIDE)


def verify(
    token: Unverified, keys: Sequence[PublicKey], expected: Expected, demands: Demands, now: datetime
) -> Vouched:
    """Return whom the issuer vouches for; raise ``TokenRefused`` for anything that is not as it should be."""
    key = jose.verify(token, keys)
    claims = token.claims
    if claims.get("iss") != expected.issuer:
        raise TokenRefused("iss")
    if claims.get("azp", expected.client_id) != expected.client_id:
        raise TokenRefused("azp")
    nonce = claims.get("nonce")
    if not isinstance(nonce, str) or not hmac.compare_digest(
        nonce.encode("utf-8", "surrogatepass"), expected.nonce.encode()
    ):
        raise TokenRefused("nonce")
    if "at_hash" in claims and claims["at_hash"] != _half_hash(key, expected.access_token or ""):
        raise TokenRefused("at_hash")
    return access_tokens.vouched(token, expected.client_id, demands, now)


def _half_hash(key: PublicKey, access_token: str) -> str:
    digest = _HASHES.get(key.algorithm, hashlib.sha256)(access_token.encode("utf-8", "surrogatepass")).digest()
    return urlsafe_b64encode(digest[: len(digest) // 2]).rstrip(b"=").decode("ascii")
