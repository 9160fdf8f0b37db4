"""Signatures of the deployment: versioned Ed25519 keys (RFC 8032) and signed notes (C2SP signed-note).

Old checkpoints stay verifiable for ever: a new key is made known by a handover, a note that the old and the
new key both sign. The form of notes and public keys is the domain's (``app.domain.notes``); here they are
signed, in ``app.sealing.notes`` verified.
"""

from base64 import b64encode
from collections.abc import Sequence
from typing import Final, NoReturn

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from app.domain.notes import NoteSignature, VerificationKey, join_note, note_text_to_sign
from app.errors import KeyUnavailable, SealBroken
from app.sealing.ring import KeyRing

_PURPOSE: Final = "signing-keys"


class SigningKeys:
    """Every signing key of the deployment under one name; the highest version signs.

    The name is that of the C2SP key (``snose/<deployment id>``). Raises ``NoteMalformed`` (a ``ValueError``)
    for a name or a text that a note cannot carry, ``KeyUnavailable`` when no key or not that version was
    taken in.
    """

    def __init__(self, ring: KeyRing, name: str) -> None:
        self._ring = ring
        self._name = name
        self._keys: dict[int, Ed25519PrivateKey] = {}

    def __repr__(self) -> str:
        return f"<SigningKeys {self._name}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("Signing keys are not pickled or copied.")

    @property
    def name(self) -> str:
        """Return the name that stands on every signature line."""
        return self._name

    @property
    def newest_version(self) -> int:
        """Return the version that signs."""
        if not self._keys:
            raise KeyUnavailable("No signing key is available.")
        return max(self._keys)

    def new_signing_key(self, version: int, private_seed: bytes) -> tuple[str, str]:
        """Return the public key (base64 of 32 bytes) and the wrapped private key made from 32 random bytes.

        It signs only after ``add_signing_key``. Raises ``ValueError`` for a seed of another length.
        """
        wrapped = self._ring.wrap_key(_PURPOSE, (self._name, version), private_seed)
        return b64encode(_public(Ed25519PrivateKey.from_private_bytes(private_seed))).decode(), wrapped

    def add_signing_key(self, version: int, wrapped: str) -> None:
        """Take in a wrapped key. Raises ``SealBroken`` when it is not this version of this name's key.

        So does another key of a version that is in use: what that one signed would seem forged.
        """
        seed = self._ring.unwrap_key(_PURPOSE, (self._name, version), wrapped)
        key = Ed25519PrivateKey.from_private_bytes(seed)
        if _public(self._keys.get(version, key)) != _public(key):
            raise SealBroken("Another signing key of this version is in use.")
        # A new mapping each time: requests of other threads go on reading the one they began with.
        self._keys = {**self._keys, version: key}

    def sign(self, message: bytes) -> bytes:
        """Return the newest key's 64-byte signature. ``message`` begins with a context line of its own."""
        return self._key(self.newest_version).sign(message)

    def sign_note(self, text: str) -> str:
        """Return ``text`` (lines, the last one ended) as a note signed by the newest key."""
        return self._signed(text, [self.newest_version])

    def sign_handover(self, text: str, old_version: int, new_version: int) -> str:
        """Return the statement that the new key follows the old one, signed by both."""
        return self._signed(text, [old_version, new_version])

    def vkey(self, version: int) -> VerificationKey:
        """Return one public key under its name; its ``text()`` is the form of C2SP, ``name+hash+base64``."""
        return VerificationKey(self._name, _public(self._key(version)))

    def vkeys(self) -> list[str]:
        """Return the public keys in the form of C2SP, oldest first: what a verifier is given."""
        return [self.vkey(version).text() for version in sorted(self._keys)]

    def _key(self, version: int) -> Ed25519PrivateKey:
        try:
            return self._keys[version]
        except KeyError:
            message = f"Version {version} of the signing key is not available."
            raise KeyUnavailable(message) from None

    def _signed(self, text: str, versions: Sequence[int]) -> str:
        content = note_text_to_sign(text)
        signatures = [
            NoteSignature(self._name, self.vkey(version).key_id, self._key(version).sign(content))
            for version in versions
        ]
        return join_note(text, signatures)


def _public(key: Ed25519PrivateKey) -> bytes:
    return key.public_key().public_bytes_raw()
