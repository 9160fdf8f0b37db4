"""The form of a sealed value: padding to one length, AES-256-GCM, and one spelling as text.

    v1.<key id>.<nonce>.<box>

``v1`` names the whole suite, so there is no algorithm to negotiate down. The nonce is 96 random bits, the box
is ciphertext and tag (NIST SP 800-38D), both in base64url without padding. Random nonces allow 2**32 values
under one key (SP 800-38D, 8.3); a field key of one study stays far below.

AES-GCM does not commit to its key: who holds two keys can make one box that both open. The zeros after the
plaintext are checked, which leaves such a box a chance of 2**-8 for each unused byte, and whoever holds two
keys can seal what they like anyway.
"""

from binascii import Error as NotBase64
from binascii import a2b_base64, b2a_base64
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from app.domain.sealed import LENGTH_PREFIX
from app.errors import SealBroken

SUITE: Final = "v1"
NONCE_LENGTH: Final = 12
KEY_LENGTH: Final = 32
TAG_LENGTH: Final = 16

# Twelve bytes are sixteen characters without a rest, so nonce and box are written and read in one go.
_NONCE_CHARACTERS: Final = 16
_PARTS: Final = 4
_TO_URL: Final = bytes.maketrans(b"+/", b"-_")
_FROM_URL: Final = bytes.maketrans(b"-_", b"+/")


def pad(plaintext: bytes, length: int) -> bytes:
    """Return ``plaintext`` behind its length, filled with zeros to exactly ``length`` bytes (rule B3).

    Raises ``ValueError`` when it does not fit; the message holds the two lengths and nothing of the
    plaintext.
    """
    size = len(plaintext)
    if size + LENGTH_PREFIX > length:
        message = f"{size} bytes do not fit: a value of this column holds {length - LENGTH_PREFIX}."
        raise ValueError(message)
    return (size.to_bytes(LENGTH_PREFIX, "big") + plaintext).ljust(length, b"\0")


def unpad(padded: bytes) -> bytes:
    """Return what ``pad`` was given. Raises ``SealBroken`` for an impossible length or bytes not zero."""
    end = LENGTH_PREFIX + int.from_bytes(padded[:LENGTH_PREFIX], "big")
    if end > len(padded) or padded.count(0, end) != len(padded) - end:
        raise SealBroken("The padding of a sealed value is not that of this service.")
    return padded[LENGTH_PREFIX:end]


def write_token(key_id: str, nonce: bytes, box: bytes) -> str:
    """Return the text of a sealed value."""
    text = b2a_base64(nonce + box, newline=False).translate(_TO_URL).rstrip(b"=").decode("ascii")
    return f"{SUITE}.{key_id}.{text[:_NONCE_CHARACTERS]}.{text[_NONCE_CHARACTERS:]}"


def read_token(token: str) -> tuple[str, bytes, bytes]:
    """Return key id, nonce and box. Raises ``SealBroken`` for any spelling but that of ``write_token``."""
    parts = token.split(".")
    if len(parts) == _PARTS:
        _, key_id, nonce_text, box_text = parts
        try:
            text = (nonce_text + box_text).encode("ascii").translate(_FROM_URL)
            content = a2b_base64(text + b"=" * (-len(text) % 4))
        except (UnicodeEncodeError, NotBase64):
            raise SealBroken("A sealed value is not well formed.") from None
        nonce, box = content[:NONCE_LENGTH], content[NONCE_LENGTH:]
        # Base64 has spare bits, and decoders forgive; writing it anew leaves one spelling for one value.
        if len(box) >= TAG_LENGTH and write_token(key_id, nonce, box) == token:
            return key_id, nonce, box
    raise SealBroken("A sealed value is not well formed.")


def open_box(cipher: AESGCM, nonce: bytes, box: bytes, associated: bytes) -> bytes:
    """Return the padded plaintext. Raises ``SealBroken`` when key, box and place do not belong together."""
    try:
        return cipher.decrypt(nonce, box, associated)
    except InvalidTag:
        raise SealBroken("A sealed value does not open in this place.") from None
