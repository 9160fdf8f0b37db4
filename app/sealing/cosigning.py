"""The witness's key: cosignatures over the checkpoints of others' logs (C2SP tlog-cosignature, ``cosignature/v1``).

It is no key of the service and has nothing to do with its key ring. Who runs the witness keeps it in a file of its own.
"""

from base64 import b64encode
from pathlib import Path
from typing import Final, NoReturn

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from app.domain.notes import (
    COSIGNATURE,
    NoteMalformed,
    NoteSignature,
    VerificationKey,
    cosigned_text,
    note_text_to_sign,
    parse_signatures,
    parse_witness_key,
    unbase64,
)
from app.errors import IntegrityBroken, KeyUnavailable
from app.sealing.files import read_private_file

_MARK: Final = "PRIVATE+KEY+"
_LONGEST: Final = 1024
_TIME: Final = 8
_LATEST: Final = 2**63 - 1


class Cosigner:
    """The key under which one witness cosigns."""

    def __init__(self, name: str, seed: bytes) -> None:
        """Take the name that stands on every line, and 32 random bytes; raises NoteMalformed for a name that is none."""
        self._private = Ed25519PrivateKey.from_private_bytes(seed)
        self._key = VerificationKey(name, self._private.public_key().public_bytes_raw(), COSIGNATURE)
        parse_witness_key(self._key.text())

    def __repr__(self) -> str:
        return f"<Cosigner {self._key.name}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("The key of a witness is not pickled or copied.")

    @property
    def vkey(self) -> str:
        """Return the public key in the form of C2SP: what a log and a verifier are given."""
        return self._key.text()

    def cosign(self, text: str, seconds: int) -> NoteSignature:
        """Return the cosignature of a checkpoint's text, given at this time (POSIX seconds)."""
        signature = self._private.sign(note_text_to_sign(cosigned_text(text, seconds)))
        return NoteSignature(self._key.name, self._key.key_id, seconds.to_bytes(_TIME, "big") + signature)


def private_key_text(name: str, seed: bytes) -> str:
    """Return the line that a witness's key file holds: ``PRIVATE+KEY+name+hash+base64``.

    Danger: whoever reads it is the witness. Raises NoteMalformed for a name that a note cannot carry.
    """
    digest = parse_witness_key(Cosigner(name, seed).vkey).key_id.hex()
    return f"{_MARK}{name}+{digest}+{b64encode(COSIGNATURE + seed).decode()}\n"


def read_cosigner(path: Path) -> Cosigner:
    """Return the key of a file that only its owner can read.

    Raises ``KeyUnavailable`` for a file that is missing or holds something else, ``UnsafeSetting`` for one that others can read.
    """
    cosigner = _parse(read_private_file(path, "witness key file", _LONGEST))
    if cosigner is None:
        message = f"The file {path} is not the key file of a witness."
        raise KeyUnavailable(message)
    return cosigner


def _parse(content: bytes) -> Cosigner | None:
    try:
        name, _, encoded = content.decode().removesuffix("\n").removeprefix(_MARK).split("+", 2)
        seed = unbase64(encoded)[1:]
        # One spelling, so that a damaged file is never read as another key.
        return Cosigner(name, seed) if private_key_text(name, seed).encode() == content else None
    except ValueError:
        return None


def verify_cosignature(lines: str, vkey: str, text: str) -> tuple[NoteSignature, int]:
    """Return the line by which this witness cosigned a checkpoint's text, and when it did (POSIX seconds).

    Lines of other keys are passed over, as C2SP asks. Raises ``IntegrityBroken`` for a wrong cosignature, for none of this key
    and for what is not well formed.
    """
    try:
        key = parse_witness_key(vkey)
        signatures = parse_signatures(lines)
    except NoteMalformed:
        raise IntegrityBroken("A cosignature or the key of a witness is not well formed.") from None
    for line in signatures:
        if (line.name, line.key_id) == (key.name, key.key_id):
            return line, _verified_time(key, line, text)
    raise IntegrityBroken("A checkpoint is not cosigned by the witness.")


def _verified_time(key: VerificationKey, line: NoteSignature, text: str) -> int:
    seconds, signature = int.from_bytes(line.signature[:_TIME], "big"), line.signature[_TIME:]
    try:
        Ed25519PublicKey.from_public_bytes(key.public_key).verify(
            signature, note_text_to_sign(cosigned_text(text, seconds))
        )
    except (InvalidSignature, NoteMalformed):
        raise IntegrityBroken("A cosignature is not that of the witness.") from None
    if seconds > _LATEST:
        raise IntegrityBroken("A cosignature tells a time that no clock tells.")
    return seconds
