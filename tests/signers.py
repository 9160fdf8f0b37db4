"""Key pairs of others, and the tokens that they sign: machine clients, and issuers outside the house.

``Signer("ES256")`` has a pair of its own (``EdDSA``, ``PS256``, ``RS256`` likewise); ``jwk`` is its public half,
``sign(claims)`` a token.
``forged(header, claims, signature)`` puts three parts together as they are, signed or not.
"""

import json
from base64 import urlsafe_b64encode
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, Final

from joserfc.jwk import ECKey, OKPKey, RSAKey
from joserfc.jws import JWSRegistry

Claims = Mapping[str, Any]
Key = ECKey | OKPKey | RSAKey
_MADE: Final[Mapping[str, Callable[[], Key]]] = {
    "ES256": lambda: ECKey.generate_key("P-256"),
    "EdDSA": lambda: OKPKey.generate_key("Ed25519"),
    "PS256": lambda: RSAKey.generate_key(2048),
    "RS256": lambda: RSAKey.generate_key(2048),
}


@cache
def signer(algorithm: str, name: str = "") -> "Signer":
    """Return the same pair for the same name: a pair of RSA takes its time."""
    return Signer(algorithm)


class Signer:
    def __init__(self, algorithm: str) -> None:
        self.algorithm = algorithm
        self.key = _MADE[algorithm]()

    @classmethod
    def of(cls, algorithm: str, key: Key) -> "Signer":
        """Return one that signs otherwise with the same pair."""
        made = cls.__new__(cls)
        made.algorithm, made.key = algorithm, key
        return made

    @property
    def jwk(self) -> dict[str, Any]:
        return dict(self.key.as_dict(private=False))

    @property
    def key_id(self) -> str:
        return str(self.key.thumbprint())

    def sign(self, claims: Claims | bytes, header: Claims | None = None, algorithm: str | None = None) -> str:
        """Return a token with this header beside ``alg``; ``algorithm`` is said instead of the key's own."""
        payload = claims if isinstance(claims, bytes) else json.dumps(claims).encode()
        content = f"{encoded({'alg': algorithm or self.algorithm, **(header or {})})}.{encoded(payload)}"
        used = "Ed25519" if self.algorithm == "EdDSA" else self.algorithm
        return f"{content}.{encoded(JWSRegistry.algorithms[used].sign(content.encode(), self.key))}"


def encoded(part: bytes | Claims) -> str:
    content = part if isinstance(part, bytes) else json.dumps(part).encode()
    return urlsafe_b64encode(content).rstrip(b"=").decode()


def forged(header: bytes | Claims, claims: bytes | Claims, signature: bytes = b"\x01" * 64) -> str:
    return ".".join((encoded(header), encoded(claims), encoded(signature)))
