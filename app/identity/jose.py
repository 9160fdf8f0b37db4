"""What others have signed with keys of their own: public keys (RFC 7517) and JSON Web Tokens (RFC 7519), read strictly.

A token is looked at in the order of what it costs: its size, its form, its header, its signature, and only then what it claims.
Nothing of a header says where a key is to be found: the caller brings the keys, and each key has one algorithm.
"""

import json
import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from binascii import Error as NotBase64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from joserfc.errors import JoseError
from joserfc.jwk import ECKey, OKPKey, RSAKey
from joserfc.jws import JWSRegistry

from app.errors import Invalid, NotAuthenticated

LONGEST_TOKEN: Final = 8192
"""Characters; a longer one is not looked at."""
LEEWAY: Final = timedelta(seconds=30)
"""How far another's clock may differ from ours."""
ALGORITHMS: Final = frozenset({"ES256", "EdDSA", "PS256", "RS256"})
"""What a signature may be made with; a key has one of them, so that no signature is taken for another kind."""
RSA_ALGORITHMS: Final = ("PS256", "RS256")
"""What a key of RSA signs with when it does not say, and what it may say instead."""

_LONGEST_KEY: Final = 4096
_RSA_BITS: Final = range(2048, 4097)
# What a key of one of our algorithms consists of (RFC 7518, 6; RFC 8037, 2); everything else in it is left out.
_PARTS: Final[Mapping[str, tuple[str, ...]]] = {"EC": ("crv", "x", "y"), "OKP": ("crv", "x"), "RSA": ("n", "e")}
_PRIVATE: Final = frozenset({"d", "p", "q", "dp", "dq", "qi", "oth", "k"})
_EXPONENT: Final = b"\1\0\1"
_CURVE_BYTES: Final = 32
_NEW_NAMES: Final = {"EdDSA": "Ed25519"}
_OLD_NAMES: Final = {"Ed25519": "EdDSA"}
"""What RFC 9864 calls one of them; both names are read."""
_HEADER: Final = frozenset({"alg", "typ", "kid", "cty"})
_BASE64URL: Final = re.compile(r"[A-Za-z0-9_-]*")
_LATEST: Final = 253_402_300_799
"""The last second of the year 9999: what lies beyond is no time of a token."""

Key = ECKey | OKPKey | RSAKey


class TokenRefused(NotAuthenticated):
    """A token of somebody else's is not what it should be; ``why`` is one word for the entry, never for the caller."""

    def __init__(self, why: str) -> None:
        """Keep what did not fit, in one word of ours."""
        super().__init__()
        self.why = why


@dataclass(frozen=True, slots=True)
class PublicKey:
    """A public key with the one algorithm that it is used with."""

    thumbprint: str
    """RFC 7638, SHA-256 in base64url: its name, whoever computes it."""
    algorithm: str
    jwk: str
    """The key alone, as canonical JSON."""

    def key(self) -> Key:
        """Return it as the library takes it."""
        return _read(json.loads(self.jwk))[1]


def public_key(jwk: Mapping[str, Any], field: str = "jwk", rsa_algorithm: str = RSA_ALGORITHMS[0]) -> PublicKey:
    """Return the public key of a JWK: P-256, Ed25519, or RSA of 2048 to 4096 bits; raise ``Invalid``.

    It is used with the ``alg`` that it names; ``rsa_algorithm`` is that of a key of RSA that names none.
    """
    if len(json.dumps(jwk)) > _LONGEST_KEY:
        raise Invalid("The key is too long.", field)
    if _PRIVATE & jwk.keys():
        message = "This is a private key, and no secret any more: make a new pair, and send its public half alone."
        raise Invalid(message, field)
    kind = jwk.get("kty")
    parts = {name: jwk.get(name) for name in _PARTS.get(kind, ())} if isinstance(kind, str) else {}
    try:
        algorithms, key = _read({"kty": kind, **parts})
        canonical = json.dumps({"kty": kind, **parts}, sort_keys=True, separators=(",", ":"))
    except (JoseError, ValueError, TypeError, KeyError):
        raise Invalid("The key is none of P-256, Ed25519 or RSA, in the form of RFC 7517.", field) from None
    if jwk.get("use", "sig") != "sig" or jwk.get("key_ops", ["verify"]) != ["verify"]:
        raise Invalid("The key is not one for signatures.", field)
    named = str(jwk.get("alg", rsa_algorithm if kind == "RSA" else algorithms[0]))
    algorithm = _OLD_NAMES.get(named, named)
    if algorithm not in algorithms:
        raise Invalid(f"A key of this kind signs with {' or '.join(algorithms)} here, and names no other.", field)
    return PublicKey(key.thumbprint(), algorithm, canonical)


def public_keys(jwks: Sequence[Mapping[str, Any]], field: str = "jwks") -> Sequence[PublicKey]:
    """Return the keys of a set; raise ``Invalid`` for one that is none, and for one that would have two algorithms."""
    keys = [public_key(jwk, field) for jwk in jwks]
    if len({key.thumbprint for key in keys}) < len(set(keys)):
        raise Invalid("One key has one algorithm.", field)
    return keys


def _read(parts: dict[str, Any]) -> tuple[tuple[str, ...], Key]:
    """Return a key with the algorithms that it may name; raise ``ValueError`` or what the library does.

    A number has one spelling, so that one key has one thumbprint: as many bytes as the curve's, or none too many (RFC 7518, 6).
    """
    numbers = [_decoded(parts[name]) or b"\0" for name in _PARTS[parts["kty"]] if name != "crv"]
    if parts["kty"] == "RSA":
        rsa = RSAKey.import_key(parts)
        if rsa.public_key.key_size not in _RSA_BITS or numbers[1] != _EXPONENT or numbers[0][0] == 0:
            raise ValueError
        return RSA_ALGORITHMS, rsa
    if any(len(number) != _CURVE_BYTES for number in numbers):
        raise ValueError
    if parts["crv"] == "P-256":
        return ("ES256",), ECKey.import_key(parts)
    if parts["crv"] == "Ed25519":
        return ("EdDSA",), OKPKey.import_key(parts)
    raise ValueError


@dataclass(frozen=True, slots=True)
class Unverified:
    """A token that has the form of one, and whose signature nobody has looked at. Danger: believe nothing of it."""

    text: str
    header: Mapping[str, Any]
    claims: Mapping[str, Any]


def parsed(
    token: str, types: frozenset[str], longest: int = LONGEST_TOKEN, beside: frozenset[str] = frozenset()
) -> Unverified:
    """Return a token of a form that could be meant, not verified; raise ``TokenRefused``.

    Three parts in base64url of one spelling, two JSON objects without a name twice, an algorithm of ours, one of ``types`` as
    ``typ`` (in small letters, without ``application/``), and nothing in the header that asks for more, but what stands ``beside``
    and is not read.
    """
    if len(token) > longest:
        raise TokenRefused("size")
    parts = token.split(".")
    if len(parts) != 3:  # noqa: PLR2004  # header, claims, signature
        raise TokenRefused("form")
    header, claims, signature = (_decoded(part) for part in parts)
    if not header or not claims or not signature:
        raise TokenRefused("form")
    head = json_object(header)
    algorithm = head.get("alg")
    if not isinstance(algorithm, str) or _OLD_NAMES.get(algorithm, algorithm) not in ALGORITHMS:
        raise TokenRefused("alg")
    # `jwk`, `jku`, `x5c`, `x5u` would name a key, `crit`, `b64` and `zip` another way of reading.
    if head.keys() - _HEADER - beside or not isinstance(head.get("kid", ""), str) or "cty" in head:
        raise TokenRefused("header")
    kind = head.get("typ", "")
    if not isinstance(kind, str) or kind.lower().removeprefix("application/") not in types:
        raise TokenRefused("typ")
    return Unverified(token, head, json_object(claims))


def verify(token: Unverified, keys: Sequence[PublicKey]) -> PublicKey:
    """Return which of the keys has signed; raise ``TokenRefused`` when none has. Each is used with its own algorithm alone."""
    content, _, signature = token.text.rpartition(".")
    named = _OLD_NAMES.get(token.header["alg"], token.header["alg"])
    for key in keys:
        if key.algorithm == named and _has_signed(key, content.encode("ascii"), _decoded(signature) or b""):
            return key
    raise TokenRefused("signature")


def _has_signed(key: PublicKey, content: bytes, signature: bytes) -> bool:
    # The library's algorithm itself: its reader of tokens would read anew, and differently, what was read strictly here.
    algorithm = JWSRegistry.algorithms[_NEW_NAMES.get(key.algorithm, key.algorithm)]
    try:
        return bool(algorithm.verify(content, signature, key.key()))
    except (JoseError, ValueError):
        return False


def time_of(claims: Mapping[str, Any], name: str) -> float | None:
    """Return a NumericDate in seconds, None where it is missing; raise ``TokenRefused`` for what is no time."""
    value = claims.get(name)
    if value is None and name not in claims:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= _LATEST:
        raise TokenRefused(name)
    return float(value)


def text_of(claims: Mapping[str, Any], name: str, longest: int) -> str:
    """Return a claim that is a text of 1 to so many printable characters; raise ``TokenRefused``."""
    value = claims.get(name)
    if not isinstance(value, str) or not 0 < len(value) <= longest or not value.isprintable():
        raise TokenRefused(name)
    return value


def check_audience(claims: Mapping[str, Any], accepted: frozenset[str]) -> None:
    """Raise ``TokenRefused`` unless the token is for us and nobody else: whoever else it is for could hand it on to us."""
    audience = claims.get("aud")
    named = audience if isinstance(audience, list) else [audience]
    if len(named) != 1 or not isinstance(named[0], str) or named[0] not in accepted:
        raise TokenRefused("aud")


def check_times(claims: Mapping[str, Any], now: datetime) -> float:
    """Return when the token ends, in seconds; raise ``TokenRefused`` when it has ended, or has not begun."""
    at, leeway = now.timestamp(), LEEWAY.total_seconds()
    ends = time_of(claims, "exp")
    if ends is None or ends + leeway <= at:
        raise TokenRefused("exp")
    for name in ("nbf", "iat"):
        begins = time_of(claims, name)
        if begins is not None and begins > at + leeway:
            raise TokenRefused(name)
    return ends


def _decoded(part: str) -> bytes | None:
    """Return the bytes of base64url without padding; None for any other spelling."""
    if not _BASE64URL.fullmatch(part):
        return None
    try:
        content = urlsafe_b64decode(part + "=" * (-len(part) % 4))
    except (NotBase64, ValueError):
        return None
    return content if urlsafe_b64encode(content).rstrip(b"=").decode("ascii") == part else None


def json_object(content: bytes) -> Mapping[str, Any]:
    """Return the one JSON object that the bytes are, without a name twice; raise ``TokenRefused``."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        members = dict(pairs)
        if len(members) != len(pairs):
            raise ValueError
        return members

    def refuse(_name: str) -> float:
        raise ValueError

    try:
        value = json.loads(content.decode(), object_pairs_hook=once, parse_constant=refuse)
    except (ValueError, RecursionError):
        raise TokenRefused("json") from None
    if not isinstance(value, dict):
        raise TokenRefused("json")
    return value
