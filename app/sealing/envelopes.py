"""Closing and opening code-break envelopes: two boxes, one inside the other, and two keys that nobody keeps together (rule D5).

The inner box is AES-256-GCM under a key that HKDF-SHA-256 (RFC 5869) makes of the code on the paper, the outer one HPKE (RFC
9180) to the emergency desk. Both are bound to the header of the file. A code serves one envelope only. That the code is inside
and the desk outside is chosen so that a sheet alone, which has passed through many hands, opens nothing that could be tried
offline.
"""

from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from app.domain.encoding import encode
from app.domain.envelopes import CONTENT_SIZE, FORM, HEADER_SIZE, EnvelopeHeader, with_digest, without_digest
from app.errors import SealBroken
from app.sealing.envelope import KEY_LENGTH, NONCE_LENGTH, pad, unpad
from app.sealing.recipients import decrypt_with, encrypt_to, key_text


def close_envelope(desk_key: str, code: str, header: EnvelopeHeader, content: bytes, nonce: bytes) -> bytes:
    """Return the file of an envelope, whose size is one for all; ``nonce`` is 12 random bytes.

    Raises ``Invalid`` for a public key of the desk that is none, ``ValueError`` for content that does not fit.
    """
    clear = header.to_bytes()
    inner = nonce + _cipher(code, clear).encrypt(nonce, pad(content, CONTENT_SIZE), clear)
    return with_digest(clear + encrypt_to(desk_key, inner, clear))


def open_envelope(private_key: str, code: str, file: bytes) -> tuple[EnvelopeHeader, bytes]:
    """Return what an envelope says, to whoever has the desk's private key and the code on the kit's sheet.

    Raises ``SealBroken`` for a damaged file, the key of another desk, and the code of another sheet, each in its own words.
    """
    envelope = without_digest(file)
    clear = envelope[:HEADER_SIZE]
    header = EnvelopeHeader.from_bytes(clear)
    try:
        inner = decrypt_with(private_key, envelope[HEADER_SIZE:], clear)
    except SealBroken:
        raise SealBroken("This envelope was closed for another desk: its key does not open it.") from None
    nonce, box = inner[:NONCE_LENGTH], inner[NONCE_LENGTH:]
    try:
        return header, unpad(_cipher(code, clear).decrypt(nonce, box, clear))
    except InvalidTag:
        message = f"This is not the code of the sheet of kit {header.kit_code}. Nothing was opened."
        raise SealBroken(message) from None


def desk_keys(secret: bytes) -> tuple[str, str]:
    """Return the private and the public key of a desk, from 32 random bytes, as base64."""
    private = X25519PrivateKey.from_private_bytes(secret)
    return key_text(secret), key_text(private.public_key().public_bytes_raw())


_INFO: Final = f"snose/v1/{FORM}/paper"


def _cipher(code: str, header: bytes) -> AESGCM:
    key = HKDF(algorithm=SHA256(), length=KEY_LENGTH, salt=None, info=encode(_INFO, header)).derive(code.encode())
    return AESGCM(key)
