"""Signatures of the deployment: versioned Ed25519 keys (RFC 8032) and signed notes (C2SP signed-note).

Old checkpoints stay verifiable for ever: a new key is made known by a handover, a note that the old and the
new key both sign.
"""

import hashlib
from binascii import Error as NotBase64
from binascii import a2b_base64, b2a_base64
from collections.abc import Iterable, Sequence
from typing import Final, NoReturn

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from app.errors import IntegrityBroken, KeyUnavailable
from app.sealing.ring import KeyRing

_PURPOSE: Final = "signing-keys"
_ED25519: Final = b"\x01"
_KEY_HASH_LENGTH: Final = 4
_MOST_SIGNATURES: Final = 16
_FIRST_PRINTABLE: Final = " "


class SigningKeys:
    """Every signing key of the deployment under one name; the highest version signs.

    The name is that of the C2SP key (``snose/<deployment id>``). Raises ``ValueError`` for a name that a note
    cannot carry, and for a text that it cannot carry, in every method that takes one; ``KeyUnavailable`` when
    no key was taken in.
    """

    def __init__(self, ring: KeyRing, name: str) -> None:
        if not name or "+" in name or any(character.isspace() for character in name):
            message = "The name of a signing key has no space and no plus sign (C2SP signed-note)."
            raise ValueError(message)
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

    def new_signing_key(self, version: int, private_seed: bytes) -> tuple[str, str]:
        """Return the public key (base64 of 32 bytes) and the wrapped private key made from 32 random bytes.

        It signs only after ``add_signing_key``. Raises ``ValueError`` for a seed of another length.
        """
        wrapped = self._ring.wrap_key(_PURPOSE, (self._name, version), private_seed)
        return _base64(_raw(Ed25519PrivateKey.from_private_bytes(private_seed))), wrapped

    def add_signing_key(self, version: int, wrapped: str) -> None:
        """Take in a wrapped key. Raises ``SealBroken`` when it is not this version of this name's key."""
        seed = self._ring.unwrap_key(_PURPOSE, (self._name, version), wrapped)
        # A new mapping each time: requests of other threads go on reading the one they began with.
        self._keys = {**self._keys, version: Ed25519PrivateKey.from_private_bytes(seed)}

    @property
    def newest_version(self) -> int:
        """Return the version that signs."""
        if not self._keys:
            raise KeyUnavailable("No signing key is available.")
        return max(self._keys)

    def sign(self, message: bytes) -> bytes:
        """Return the newest key's 64-byte signature. ``message`` begins with a context line of its own."""
        return self._key(self.newest_version).sign(message)

    def sign_note(self, text: str) -> str:
        """Return ``text`` (lines, the last one ended) as a note signed by the newest key."""
        return self._signed(text, [self.newest_version])

    def sign_handover(self, text: str, old_version: int, new_version: int) -> str:
        """Return the statement that the new key follows the old one, signed by both."""
        if old_version == new_version:
            message = "A handover is between two keys."
            raise ValueError(message)
        return self._signed(text, [old_version, new_version])

    def vkey(self, version: int) -> str:
        """Return one public key in the form of C2SP: ``<name>+<hash>+<base64>``."""
        public = _raw(self._key(version))
        return f"{self._name}+{_key_hash(self._name, public).hex()}+{_base64(_ED25519 + public)}"

    def vkeys(self) -> list[str]:
        """Return the public keys in the form of C2SP, oldest first: what a verifier is given."""
        return [self.vkey(version) for version in sorted(self._keys)]

    def _key(self, version: int) -> Ed25519PrivateKey:
        try:
            return self._keys[version]
        except KeyError:
            message = f"Version {version} of the signing key is not available."
            raise KeyUnavailable(message) from None

    def _signed(self, text: str, versions: Sequence[int]) -> str:
        if not text.endswith("\n") or any(line and min(line) < _FIRST_PRINTABLE for line in text.split("\n")):
            message = "The text of a note is whole lines without control characters (C2SP signed-note)."
            raise ValueError(message)
        content = text.encode()
        lines = []
        for version in versions:
            key = self._key(version)
            signature = _key_hash(self._name, _raw(key)) + key.sign(content)
            lines.append(f"\N{EM DASH} {self._name} {_base64(signature)}\n")
        return f"{text}\n{''.join(lines)}"


def verify_signature(public_key: str, message: bytes, signature: bytes) -> None:
    """Raise ``IntegrityBroken`` unless the key (base64 of 32 bytes) signed ``message``."""
    _verify(_unbase64(public_key), message, signature)


def verify_note(note: str, vkeys: Iterable[str]) -> str:
    """Return the text of a note that at least one of the keys signed.

    As C2SP asks, lines of unknown keys are passed over and a wrong signature of a known key spoils the note.
    Raises ``IntegrityBroken`` for that, for a note without a known signature and for one that is not well
    formed.
    """
    text, _ = _verified(note, vkeys)
    return text


def verify_handover(note: str, old_vkey: str, new_vkey: str) -> str:
    """Return the text of a handover that both keys signed. Raises ``IntegrityBroken`` when one did not."""
    text, signers = _verified(note, [old_vkey, new_vkey])
    if signers != {old_vkey, new_vkey} or old_vkey == new_vkey:
        raise IntegrityBroken("A handover must be signed by the old and the new key.")
    return text


def _verified(note: str, vkeys: Iterable[str]) -> tuple[str, set[str]]:
    """Return the text and the keys that signed it."""
    known = {}
    for vkey in vkeys:
        name, key_hash, public = _read_vkey(vkey)
        known[name, key_hash] = (vkey, public)
    # The text may hold empty lines of its own; the signatures follow the last one.
    text, parted, block = note.rpartition("\n\n")
    text += "\n"
    lines = block.split("\n")
    if not parted or lines.pop() or not 1 <= len(lines) <= _MOST_SIGNATURES:
        raise IntegrityBroken("A signed note is not well formed.")
    signers = set()
    for line in lines:
        name, signature = _read_signature_line(line)
        vkey, public = known.get((name, signature[:_KEY_HASH_LENGTH]), ("", b""))
        if vkey:
            _verify(public, text.encode("utf-8", "surrogatepass"), signature[_KEY_HASH_LENGTH:])
            signers.add(vkey)
    if not signers:
        raise IntegrityBroken("A note is not signed by a known key.")
    return text, signers


def _verify(public: bytes, message: bytes, signature: bytes) -> None:
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, message)
    except (InvalidSignature, ValueError):
        raise IntegrityBroken("A signature is not that of its key.") from None


def _read_vkey(vkey: str) -> tuple[str, bytes, bytes]:
    name, _, rest = vkey.partition("+")
    key_hash, _, encoded = rest.partition("+")
    content = _unbase64(encoded)
    if not name or content[:1] != _ED25519 or _key_hash(name, content[1:]).hex() != key_hash:
        raise IntegrityBroken("A public key is not well formed.")
    return name, bytes.fromhex(key_hash), content[1:]


def _read_signature_line(line: str) -> tuple[str, bytes]:
    dash, _, rest = line.partition(" ")
    name, _, encoded = rest.partition(" ")
    signature = _unbase64(encoded)
    if dash != "\N{EM DASH}" or not name or len(signature) <= _KEY_HASH_LENGTH:
        raise IntegrityBroken("A signature line is not well formed.")
    return name, signature


def _key_hash(name: str, public: bytes) -> bytes:
    return hashlib.sha256(name.encode() + b"\n" + _ED25519 + public).digest()[:_KEY_HASH_LENGTH]


def _raw(key: Ed25519PrivateKey) -> bytes:
    return key.public_key().public_bytes_raw()


def _base64(content: bytes) -> str:
    return b2a_base64(content, newline=False).decode("ascii")


def _unbase64(text: str) -> bytes:
    try:
        content = a2b_base64(text.encode("ascii"), strict_mode=True)
    except (NotBase64, UnicodeEncodeError):
        raise IntegrityBroken("A key or a signature is not base64.") from None
    if _base64(content) != text:
        raise IntegrityBroken("A key or a signature is not base64.")
    return content
