"""Notes and checkpoints: the texts that are signed, and how text and signatures travel together.

Sources: C2SP signed-note, tlog-checkpoint and tlog-cosignature. Signing and verifying is the work of the keeper of the secrets;
here are bytes only. The texts of commitments, handovers and packages begin with a context line each, so that no
signature serves for another purpose.
"""

import base64
import binascii
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

ED25519: Final = b"\x01"
"""The signature type of a plain Ed25519 key in a signed note."""
COSIGNATURE: Final = b"\x04"
"""The signature type of a witness's key: an Ed25519 signature with the time at which it was given."""

KEY_ID_SIZE: Final = 4
_HASH_SIZE: Final = 32
_PUBLIC_KEY_SIZE: Final = 32
_SIGNATURE_MARK: Final = "\u2014 "
_KEY_NAME: Final = re.compile(r"[^\s+]+")
_SIZE: Final = re.compile(r"0|[1-9][0-9]{0,18}")
_CONTROL: Final = re.compile(r"[\x00-\x09\x0b-\x1f]")


class NoteMalformed(ValueError):  # named for the situation, like the tree of app.errors
    """What should be a note, a checkpoint or a verification key is not in its form."""


# -- checkpoints -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The state of one log: its origin line, its size in entries and its tree hash."""

    origin: str
    size: int
    root: bytes

    def text(self) -> str:
        """Return the three lines that are signed."""
        return f"{self.origin}\n{self.size}\n{base64.b64encode(self.root).decode()}\n"


def parse_checkpoint(text: str) -> Checkpoint:
    """Return the checkpoint whose ``text()`` this is; raises NoteMalformed, also for extension lines."""
    match text.split("\n"):
        case [origin, size, root, ""] if origin:
            checkpoint = Checkpoint(origin, parse_size(size), unbase64(root))
        case _:
            raise NoteMalformed("a checkpoint has three lines: origin, size and root")
    if len(checkpoint.root) != _HASH_SIZE:
        raise NoteMalformed("the root of a checkpoint has 32 bytes")
    return checkpoint


def parse_size(text: str) -> int:
    """Return the size of a log from its one spelling; raises NoteMalformed."""
    if not _SIZE.fullmatch(text):
        raise NoteMalformed("the size of a log is a whole number without leading zeros")
    return int(text)


def cosigned_text(text: str, seconds: int) -> str:
    """Return what a witness signs of a checkpoint's text at a time in POSIX seconds (C2SP tlog-cosignature, ``cosignature/v1``)."""
    return f"cosignature/v1\ntime {seconds}\n{text}"


# -- signed notes ------------------------------------------------------------------------------------------------------


class NoteSignature(NamedTuple):
    """One signature line: the name of the key, its id, and the signature itself."""

    name: str
    key_id: bytes
    signature: bytes


class SignedNote(NamedTuple):
    """A note taken apart: the text that was signed, with its last line feed, and the signatures."""

    text: str
    signatures: tuple[NoteSignature, ...]


def note_text_to_sign(text: str) -> bytes:
    """Return the bytes that are signed; raises NoteMalformed for a text that a note cannot carry."""
    if not text.endswith("\n") or _CONTROL.search(text):
        raise NoteMalformed("the text of a note ends with a line feed and has no other control character")
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise NoteMalformed("the text of a note is valid Unicode") from None


def join_note(text: str, signatures: Sequence[NoteSignature]) -> str:
    """Return the signed note; raises NoteMalformed without a signature or with a bad text or name."""
    note_text_to_sign(text)
    if not signatures:
        raise NoteMalformed("a signed note carries at least one signature")
    return f"{text}\n{signature_lines(signatures)}"


def signature_lines(signatures: Sequence[NoteSignature]) -> str:
    """Return the signature lines without their text, as a witness answers them; raises NoteMalformed for a bad name."""
    for signature in signatures:
        _check_name(signature.name)
    return "".join(
        f"{_SIGNATURE_MARK}{name} {base64.b64encode(key_id + signature).decode()}\n"
        for name, key_id, signature in signatures
    )


def split_note(note: str) -> SignedNote:
    """Return the text and the signatures of a signed note, none of them verified; raises NoteMalformed."""
    head, blank, tail = note.rpartition("\n\n")
    if not blank or not tail.endswith("\n"):
        raise NoteMalformed("a signed note has a blank line between text and signatures, and ends with a line feed")
    text = head + "\n"
    note_text_to_sign(text)
    return SignedNote(text, parse_signatures(tail))


def parse_signatures(lines: str) -> tuple[NoteSignature, ...]:
    """Return the signatures of lines that stand without their text, as a witness answers them; raises NoteMalformed."""
    if not lines.endswith("\n"):
        raise NoteMalformed("each signature line ends with a line feed")
    return tuple(_parse_signature(line) for line in lines[:-1].split("\n"))


def _parse_signature(line: str) -> NoteSignature:
    name, space, encoded = line.removeprefix(_SIGNATURE_MARK).partition(" ")
    if not line.startswith(_SIGNATURE_MARK) or not space:
        raise NoteMalformed("a signature line is a dash, the name of the key and the signature")
    _check_name(name)
    signed = unbase64(encoded)
    if len(signed) <= KEY_ID_SIZE:
        raise NoteMalformed("a signature line holds a key id and a signature")
    return NoteSignature(name, signed[:KEY_ID_SIZE], signed[KEY_ID_SIZE:])


# -- verification keys -------------------------------------------------------------------------------------------------


class VerificationKey(NamedTuple):
    """A named Ed25519 public key, and what it signs: notes, or as a witness their checkpoints."""

    name: str
    public_key: bytes
    kind: bytes = ED25519

    @property
    def key_id(self) -> bytes:
        """The four bytes by which signature lines name the key."""
        return key_id(self.name, self.public_key, self.kind)

    def text(self) -> str:
        """Return the form in which people hand the key on: ``name+hash+base64``."""
        encoded = base64.b64encode(self.kind + self.public_key).decode()
        return f"{self.name}+{self.key_id.hex()}+{encoded}"


def key_id(name: str, public_key: bytes, kind: bytes = ED25519) -> bytes:
    """Return the id of an Ed25519 key in notes: the first 4 bytes of SHA-256(name ‖ 0x0A ‖ kind ‖ public key)."""
    return hashlib.sha256(name.encode() + b"\n" + kind + public_key).digest()[:KEY_ID_SIZE]


def parse_verification_key(text: str) -> VerificationKey:
    """Return the key that ``name+hash+base64`` tells; raises NoteMalformed, also when the hash is not the key's."""
    return _parse_key(text, ED25519)


def parse_witness_key(text: str) -> VerificationKey:
    """Return the key by which a witness cosigns, told in the same form; raises NoteMalformed, also for a key of another kind."""
    return _parse_key(text, COSIGNATURE)


def _parse_key(text: str, kind: bytes) -> VerificationKey:
    # Base64 may hold a plus sign, a name and a hash may not: split from the left.
    match text.split("+", 2):
        case [name, digest, encoded]:
            _check_name(name)
            content = unbase64(encoded)
        case _:
            raise NoteMalformed("a verification key has three parts: name+hash+base64")
    key = VerificationKey(name, content[1:], kind)
    if content[:1] != kind or len(key.public_key) != _PUBLIC_KEY_SIZE:
        raise NoteMalformed("the key is not an Ed25519 verification key of this use")
    if key.key_id.hex() != digest:
        raise NoteMalformed("the hash in the verification key is not that of its name and key")
    return key


def _check_name(name: str) -> None:
    if not _KEY_NAME.fullmatch(name):
        raise NoteMalformed("the name of a key is not empty and has neither space nor plus sign")


def unbase64(encoded: str) -> bytes:
    """Return the decoded bytes of the one spelling that base64 gives them; raises NoteMalformed."""
    try:
        decoded = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        raise NoteMalformed("what should be base64 is not") from None
    if base64.b64encode(decoded).decode() != encoded:
        raise NoteMalformed("base64 has one spelling, and this is another")
    return decoded


# -- the texts that snose signs ----------------------------------------------------------------------------------------


def list_commitment_text(deployment_id: str, study_code: str, schedule_id: str, root: bytes) -> str:
    """Return what the approver's signature stands for: this list, in this study (rule A8)."""
    return _text("list-commitment", deployment_id, study_code, schedule_id, base64.b64encode(root).decode())


def kit_commitment_text(deployment_id: str, study_code: str, consignment_code: str, root: bytes) -> str:
    """Return the text that commits to the kit map of a consignment (rule A8)."""
    return _text("kit-commitment", deployment_id, study_code, consignment_code, base64.b64encode(root).decode())


def key_handover_text(deployment_id: str, old: VerificationKey, new: VerificationKey) -> str:
    """Return the text by which one signing key follows another; signed by both."""
    return _text("key-handover", deployment_id, old.text(), new.text())


def parse_key_handover(text: str) -> tuple[VerificationKey, VerificationKey]:
    """Return the old and the new key of a handover between keys of one deployment; raises NoteMalformed."""
    match text.split("\n"):
        case [_, _, old, new, ""]:
            keys = parse_verification_key(old), parse_verification_key(new)
        case _:
            raise NoteMalformed("a handover has four lines: its purpose, the deployment, the old and the new key")
    name = keys[0].name
    if keys[1].name != name or text != key_handover_text(name.removeprefix("snose/"), *keys):
        raise NoteMalformed("a handover is one of the keys of one deployment")
    return keys


def final_package_text(deployment_id: str, study_code: str, manifest: bytes) -> str:
    """Return the text that signs a final package through the SHA-256 of its manifest."""
    digest = base64.b64encode(hashlib.sha256(manifest).digest()).decode()
    return _text("final-package", deployment_id, study_code, digest)


def _text(purpose: str, *lines: str) -> str:
    if any("\n" in line for line in lines):
        raise NoteMalformed("a line of a signed text holds no line feed")
    return "\n".join((f"snose/v1/{purpose}", *lines, ""))
