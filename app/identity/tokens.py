"""Opaque bearer tokens and the secrets of machine clients: 256 random bits, kept as SHA-256 only.

A token says nothing, so it can be revoked at once (USR-06). Of a random 256-bit value a plain digest is
enough: there is nothing to guess, and a reader of the database cannot sign in with it (rule F1).
"""

import hashlib
import hmac
import re
from base64 import urlsafe_b64encode
from typing import Final

from app.domain.entropy import Entropy
from app.errors import NotAuthenticated, WrongCredentials
from app.identity.jose import LONGEST_TOKEN

# The prefixes let scanners of repositories and logs find what should not be there.
_TOKEN: Final = "snose_"  # a prefix, not a secret
_CLIENT_SECRET: Final = "snose_client_"  # a prefix, not a secret
_DEVICE: Final = "snose_device_"  # a prefix, not a secret
_LENGTH: Final = 32
# 256 bits are 43 characters, the last of which carries four bits: one token has one spelling.
_RANDOM_PART: Final = re.compile(r"[A-Za-z0-9_-]{42}[AEIMQUYcgkosw048]")
# What an unknown client's secret is compared with.
_NOBODY: Final = bytes(_LENGTH)


def new_token(entropy: Entropy) -> str:
    """Return a new access token: ``snose_`` and 256 random bits in base64url."""
    return _TOKEN + _random_part(entropy, "token")


def token_digest(token: str) -> bytes:
    """Return the 32 bytes under which a token is stored and found.

    Raises ``NotAuthenticated`` for what cannot be a token, so that garbage costs no look into the database.
    """
    if not _is_formed(token, _TOKEN):
        raise NotAuthenticated
    return hashlib.sha256(token.encode("ascii")).digest()


def outside_digest(token: str) -> bytes:
    """Return the 32 bytes under which a session by an outside token is found; raise ``NotAuthenticated`` for a long one."""
    if len(token) > LONGEST_TOKEN or not token.isascii():
        raise NotAuthenticated
    return hashlib.sha256(token.encode("ascii")).digest()


def new_device_secret(entropy: Entropy) -> str:
    """Return a new secret of a known device: ``snose_device_`` and 256 random bits in base64url."""
    return _DEVICE + _random_part(entropy, "device_secret")


def device_digest(secret: str) -> bytes:
    """Return the 32 bytes under which a device is stored and found; raise ``NotAuthenticated`` for what cannot be a secret."""
    if not _is_formed(secret, _DEVICE):
        raise NotAuthenticated
    return hashlib.sha256(secret.encode("ascii")).digest()


def new_client_secret(entropy: Entropy) -> str:
    """Return a new secret of a machine client: ``snose_client_`` and 256 random bits in base64url."""
    return _CLIENT_SECRET + _random_part(entropy, "client_secret")


def client_secret_digest(secret: str) -> bytes:
    """Return the 32 bytes as which a client's secret is stored. Raises ``WrongCredentials``."""
    if not _is_formed(secret, _CLIENT_SECRET):
        raise WrongCredentials
    return hashlib.sha256(secret.encode("ascii")).digest()


def verify_client_secret(secret: str, stored_digest: bytes | None) -> None:
    """Raise ``WrongCredentials`` unless this is the secret of the digest; None is an unknown client."""
    fits = hmac.compare_digest(client_secret_digest(secret), stored_digest or _NOBODY)
    if stored_digest is None or not fits:
        raise WrongCredentials


def _random_part(entropy: Entropy, purpose: str) -> str:
    return urlsafe_b64encode(entropy.draw(purpose, _LENGTH)).rstrip(b"=").decode("ascii")


def _is_formed(text: str, prefix: str) -> bool:
    return text.startswith(prefix) and _RANDOM_PART.fullmatch(text, len(prefix)) is not None
