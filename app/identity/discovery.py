"""What an OpenID provider tells of itself: its description (OpenID Connect Discovery 1.0) and its keys (RFC 7517), read strictly.

What a provider holds beside, keys for ciphers or of other kinds, is passed over: only what is used need be right.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from app.errors import Invalid, ProviderUnavailable
from app.identity.jose import RSA_ALGORITHMS, PublicKey, TokenRefused, json_object, public_key

_MOST_KEYS: Final = 50
# What may be said of a key beside it, and that nobody here reads: its certificates, above all, are longer than it.
_BESIDE: Final = frozenset({"x5c", "x5t", "x5t#S256", "x5u"})


@dataclass(frozen=True, slots=True)
class Description:
    """Where a provider keeps its keys, and how one signs in there."""

    jwks_uri: str
    rsa_algorithm: str = RSA_ALGORITHMS[0]
    """What a key of RSA signs with that does not say."""
    authorization_endpoint: str | None = None
    token_endpoint: str | None = None
    is_secret_posted: bool = False
    """Whether a client shows its secret in the form and not in a header."""
    names_itself: bool = False
    """Whether it names itself in what a browser brings back (RFC 9207)."""


@dataclass(frozen=True, slots=True)
class NamedKey:
    """A public key with the name that tokens call it by, if it has one."""

    key_id: str | None
    key: PublicKey


def address_of(issuer: str) -> str:
    """Return where an issuer describes itself (OpenID Connect Discovery 1.0, 4)."""
    return f"{issuer.removesuffix('/')}/.well-known/openid-configuration"


def description(content: bytes, issuer: str) -> Description:
    """Return what an issuer says of itself; raise ``ProviderUnavailable`` when it is of another one, or none."""
    told = document(content)
    if told.get("issuer") != issuer:
        # Whoever answers for an issuer of another name would sign for it (OpenID Connect Discovery 1.0, 4.3).
        raise ProviderUnavailable("issuer")
    jwks_uri = _text(told, "jwks_uri")
    if jwks_uri is None:
        raise ProviderUnavailable("description")
    signed = told.get("id_token_signing_alg_values_supported")
    # Some name no algorithm with a key, but only one here.
    named = [one for one in RSA_ALGORITHMS if isinstance(signed, list) and one in signed]
    methods = told.get("token_endpoint_auth_methods_supported")
    return Description(
        jwks_uri,
        named[0] if len(named) == 1 else RSA_ALGORITHMS[0],
        _text(told, "authorization_endpoint"),
        _text(told, "token_endpoint"),
        isinstance(methods, list) and "client_secret_post" in methods and "client_secret_basic" not in methods,
        told.get("authorization_response_iss_parameter_supported") is True,
    )


def keys(content: bytes, rsa_algorithm: str = RSA_ALGORITHMS[0]) -> Sequence[NamedKey]:
    """Return the keys of a set that sign as we read it, each once; raise ``ProviderUnavailable`` when there is none."""
    told = document(content).get("keys")
    if not isinstance(told, list) or len(told) > _MOST_KEYS:
        raise ProviderUnavailable("keys")
    found: dict[str, NamedKey] = {}
    for jwk in told:
        read = _key(jwk, rsa_algorithm)
        if read is not None:
            # A key that stands there with two algorithms is used with the first: never with both.
            found.setdefault(read.key.thumbprint, read)
    if not found:
        raise ProviderUnavailable("keys")
    return list(found.values())


def _key(jwk: object, rsa_algorithm: str) -> NamedKey | None:
    if not isinstance(jwk, Mapping):
        return None
    key_id = jwk.get("kid")
    try:
        read = public_key({name: jwk[name] for name in jwk if name not in _BESIDE}, "jwks", rsa_algorithm)
    except Invalid:
        return None
    return NamedKey(key_id if isinstance(key_id, str) else None, read)


def _text(told: Mapping[str, Any], name: str) -> str | None:
    value = told.get(name)
    return value if isinstance(value, str) else None


def document(content: bytes) -> Mapping[str, Any]:
    """Return the JSON object that a provider has answered with; raise ``ProviderUnavailable`` for anything else."""
    try:
        return json_object(content)
    except TokenRefused:
        raise ProviderUnavailable("form") from None
