"""Whether notes and messages bear the signatures of keys that count; needs public keys only.

The service and its witness verify alike, and the witness is not to import what holds the service's secrets.
"""

from base64 import b64decode
from collections.abc import Iterable
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from app.domain.notes import NoteMalformed, note_text_to_sign, parse_verification_key, split_note
from app.errors import IntegrityBroken

# Enough for every key and witness of a deployment; each further line would be one more verification for a
# stranger.
_MOST_SIGNATURES: Final = 16


def verify_signature(public_key: str, message: bytes, signature: bytes) -> None:
    """Raise ``IntegrityBroken`` unless the key (base64 of 32 bytes) signed ``message``."""
    try:
        content = b64decode(public_key, validate=True)
    except ValueError:
        content = b""
    _verify(content, message, signature)


def verify_note(note: str, vkeys: Iterable[str]) -> str:
    """Return the text of a note that at least one of the keys signed.

    As C2SP asks, lines of unknown keys are passed over and a wrong signature of a known key spoils the note.
    Raises ``IntegrityBroken`` for that, for a note without a known signature, and for what is not well
    formed.
    """
    text, _ = _verified(note, vkeys)
    return text


def verify_handover(note: str, old_vkey: str, new_vkey: str) -> str:
    """Return the text of a handover that both keys signed. Raises ``IntegrityBroken`` when one did not."""
    text, signers = _verified(note, [old_vkey, new_vkey])
    if signers != {old_vkey, new_vkey} or old_vkey == new_vkey:
        raise IntegrityBroken("A handover must be signed by the old and by the new key.")
    return text


def _verified(note: str, vkeys: Iterable[str]) -> tuple[str, set[str]]:
    """Return the text and those of the keys that signed it."""
    try:
        known = {(key.name, key.key_id): key for key in map(parse_verification_key, vkeys)}
        text, signatures = split_note(note)
        content = note_text_to_sign(text)
    except NoteMalformed:
        raise IntegrityBroken("A signed note or a public key is not well formed.") from None
    if len(signatures) > _MOST_SIGNATURES:
        raise IntegrityBroken("A signed note carries too many signatures.")
    signers = set()
    for name, key_id, signature in signatures:
        key = known.get((name, key_id))
        if key is not None:
            _verify(key.public_key, content, signature)
            signers.add(key.text())
    if not signers:
        raise IntegrityBroken("A note is not signed by a known key.")
    return text, signers


def _verify(public_key: bytes, message: bytes, signature: bytes) -> None:
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, message)
    except (InvalidSignature, ValueError):
        raise IntegrityBroken("A signature is not that of its key.") from None
