"""Encryption to somebody outside: packing lists, final packages, sheets and envelopes for the owner of a key (RFC 9180)."""

from binascii import Error as NotBase64
from binascii import a2b_base64, b2a_base64
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite

from app.errors import Invalid, SealBroken

_SUITE: Final = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)
_KEY_LENGTH: Final = 32


def encrypt_to(recipient_public_key: str, plaintext: bytes, info: bytes) -> bytes:
    """Return ``plaintext`` for the holder of one X25519 key: encapsulated key (32 bytes), ciphertext, tag.

    The key is the base64 of its 32 bytes; ``info`` names what is sent and must be known to the recipient.
    HPKE in base mode, DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, AES-256-GCM (RFC 9180). The library draws the
    ephemeral key itself: it goes to the recipient and nowhere into the deployment. Raises ``Invalid`` for a
    key that is none.
    """
    try:
        return _SUITE.encrypt(plaintext, X25519PublicKey.from_public_bytes(_key(recipient_public_key)), info)
    except ValueError:
        # Also points of small order, with which everybody would know the shared secret (RFC 7748, 6.1).
        message = "recipient_key is the base64 of the 32 bytes of an X25519 public key."
        raise Invalid(message, "recipient_key") from None


def decrypt_with(private_key: str, ciphertext: bytes, info: bytes) -> bytes:
    """Return what ``encrypt_to`` was given, for whoever holds the private key (base64 of its 32 bytes).

    Raises ``Invalid`` for a key that is none, ``SealBroken`` when key, ciphertext and ``info`` do not belong
    together.
    """
    try:
        private = X25519PrivateKey.from_private_bytes(_key(private_key))
    except ValueError:
        message = "The private key is the base64 of the 32 bytes of an X25519 private key."
        raise Invalid(message, "private_key") from None
    try:
        return _SUITE.decrypt(ciphertext, private, info)
    except InvalidTag:
        raise SealBroken("This was not encrypted to this key, or not for this purpose.") from None


def key_text(key: bytes) -> str:
    """Return a key as it is written: the base64 of its 32 bytes."""
    return b2a_base64(key, newline=False).decode("ascii")


def _key(text: str) -> bytes:
    try:
        key = a2b_base64(text.encode("ascii"), strict_mode=True)
    except (NotBase64, UnicodeEncodeError):
        key = b""
    if len(key) != _KEY_LENGTH:
        raise ValueError(_KEY_LENGTH)
    return key
