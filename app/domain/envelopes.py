"""The form of a code-break envelope: the back-up that needs no service (rule D5, EUB-05).

An envelope is one small file for each kit that was given to a subject, and a sheet of paper that lies with the kit at the site.

    file      header (256 bytes) | HPKE to the emergency desk | SHA-256 of all before (32 bytes): 2,444 bytes, always
    in HPKE   nonce | AES-256-GCM under a key that comes from the code on the paper
    in that   site, subject, kit, treatment and time, padded to one length

So the desk's key alone shows a box that needs the paper, and the paper alone shows nothing at all. The header names deployment,
mode, study and kit, which a site knows anyway, and both layers are bound to it. The digest at the end only tells damage from a
wrong key.

The sheets are one for each kit and not a pool at each site: a sheet then needs no register of who took which, it travels with its
kit, and its serial number is the code of the kit, which is random, checks itself and stands on the label already. Nothing on a
sheet depends on the arm.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

import msgspec

from app.domain.codes import ALPHABET, check_character, is_valid
from app.domain.encoding import canonical_json
from app.domain.words import KitCode, Mode, SiteCode, StudyCode, SubjectId
from app.errors import SealBroken

FORM: Final = "snose-envelope-1"
HEADER_SIZE: Final = 256
DIGEST_SIZE: Final = 32
CONTENT_SIZE: Final = 2048
"""Bytes of the padded content: more than the longest subject and treatment that the API takes."""
FILE_SUFFIX: Final = ".envelope"
SHEET_CODE_LENGTH: Final = 28
"""Twenty-seven characters of chance (132 bits) and one that checks them."""

_GROUP: Final = 4
_UNBIASED: Final = 240
"""The largest multiple of thirty that a byte can count."""


def sheet_code(material: bytes) -> str:
    """Return the code of a sheet from 256 secret bits: uniform over the alphabet of the kit codes, with a check character."""
    stream = hashlib.shake_256(material).digest(8 * SHEET_CODE_LENGTH)
    # A sixteenth of the bytes is passed over; that fewer than 27 of 224 are left has a chance below 2**-500.
    kept = [ALPHABET[byte % len(ALPHABET)] for byte in stream if byte < _UNBIASED]
    body = "".join(kept[: SHEET_CODE_LENGTH - 1])
    return body + check_character(body)


def in_groups(code: str) -> str:
    """Return a code as it is printed and read out: in groups of four."""
    return "-".join(code[at : at + _GROUP] for at in range(0, len(code), _GROUP))


def normalise_sheet_code(text: str) -> str:
    """Return the code that somebody read from a sheet, typed or scanned; hyphens, spaces and lower case allowed.

    Raises ``SealBroken`` for what is no such code, before anything is opened: a slip of the pen is told as one.
    """
    code = "".join(text.split()).replace("-", "").upper()
    if not text.isascii() or len(code) != SHEET_CODE_LENGTH or not is_valid(code):
        message = (
            "This is not the code of a sheet: it has 28 characters in seven groups, of which the last checks the others. "
            "Read it again."
        )
        raise SealBroken(message)
    return code


@dataclass(frozen=True, slots=True)
class EnvelopeHeader:
    """Which envelope it is, in clear: nothing that the site of the kit does not know."""

    deployment_id: str
    mode: Mode
    study_code: StudyCode
    kit_code: KitCode

    def to_bytes(self) -> bytes:
        """Return the header, filled with spaces to its one length."""
        text = canonical_json(
            {
                "form": FORM,
                "deployment": self.deployment_id,
                "mode": self.mode,
                "study": self.study_code,
                "kit": self.kit_code,
            }
        )
        return text.ljust(HEADER_SIZE - 1) + b"\n"

    @classmethod
    def from_bytes(cls, header: bytes) -> "EnvelopeHeader":
        """Return what ``to_bytes`` wrote; raise ``SealBroken`` for anything else."""
        try:
            said = msgspec.json.decode(header, type=Mapping[str, str])
            found = cls(said["deployment"], Mode(said["mode"]), StudyCode(said["study"]), KitCode(said["kit"]))
        except (msgspec.MsgspecError, KeyError, ValueError):
            found = None
        if found is None or found.to_bytes() != header:
            message = "This is not a code-break envelope of this release."
            raise SealBroken(message)
        return found


@dataclass(frozen=True, slots=True)
class EnvelopeContent:
    """What an envelope tells. Danger: holds a treatment."""

    site_code: SiteCode
    subject_id: SubjectId
    kit_code: KitCode
    assigned_at: datetime
    treatment: str = field(repr=False)

    def to_bytes(self) -> bytes:
        """Return what is sealed."""
        return msgspec.json.encode(self)

    @classmethod
    def from_bytes(cls, opened: bytes) -> "EnvelopeContent":
        """Return what ``to_bytes`` wrote; raise ``SealBroken`` for anything else."""
        try:
            return msgspec.json.decode(opened, type=cls)
        except msgspec.MsgspecError:
            message = "The envelope opened, and what is in it is not of this release."
            raise SealBroken(message) from None


def with_digest(envelope: bytes) -> bytes:
    """Return an envelope with the digest that ends it."""
    return envelope + hashlib.sha256(envelope).digest()


def without_digest(file: bytes) -> bytes:
    """Return an envelope without its digest; raise ``SealBroken`` for a file that is damaged, or none of ours."""
    envelope, digest = file[:-DIGEST_SIZE], file[-DIGEST_SIZE:]
    if len(envelope) <= HEADER_SIZE or hashlib.sha256(envelope).digest() != digest:
        message = "This file is damaged or is no code-break envelope. Fetch another copy of it."
        raise SealBroken(message)
    return envelope
