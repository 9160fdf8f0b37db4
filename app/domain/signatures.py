"""Electronic signatures: who signed which record, when and as what, bound to what the record says (21 CFR 11.50, 11.70).

A record's content, as it is signed, holds what never changes in its life and nothing that depends on an arm: its hash lies in clear
beside it (rule B3). What lies under seal is bound to its record by the seal.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

from app.domain.encoding import canonical_json, encode
from app.domain.words import Role


class Meaning(StrEnum):
    """What a signature says of its record; the list is fixed (SIG-08)."""

    AUTHORSHIP = "authorship"
    REVIEW = "review"
    APPROVAL = "approval"
    RESPONSIBILITY = "responsibility"


class RecordKind(StrEnum):
    """What can be signed."""

    SCHEDULE = "schedule"
    STUDY = "study"
    SITE = "site"
    CODE_BREAK = "code_break"
    SAFETY_UNBLINDING = "safety_unblinding"
    THIRD_PARTY_REQUEST = "third_party_request"
    THIRD_PARTY_OPENING = "third_party_opening"
    INTERIM_UNBLINDING = "interim_unblinding"
    FINAL_UNBLINDING = "final_unblinding"
    RECALL = "recall"
    PACKING_LIST = "packing_list"
    TRAIL_EXPORT = "trail_export"
    ERROR_MARK = "error_mark"
    KIT_RELEASE = "kit_release"
    KIT_DESTRUCTION = "kit_destruction"
    ACCESS_REVIEW = "access_review"


@dataclass(frozen=True, slots=True)
class Signature:
    """A signature as it is kept, with both of its components: the session, and the second proof given in it (SIG-01)."""

    signature_id: UUID
    record_kind: RecordKind
    record_id: str
    content_hash: bytes
    meaning: Meaning
    printed_name: str
    """As the signer was called at that moment."""
    username: str
    role: Role
    signed_at: datetime
    session_id: UUID
    proved_at: datetime

    def message(self) -> bytes:
        """Return what its seal is made over: all of it, so that it fits no other record, person or moment (SIG-04)."""
        return encode(
            str(self.signature_id),
            self.record_kind,
            self.record_id,
            self.content_hash,
            self.meaning,
            self.printed_name,
            self.username,
            self.role,
            self.signed_at.isoformat(timespec="microseconds"),
            str(self.session_id),
            self.proved_at.isoformat(timespec="microseconds"),
        )


@dataclass(frozen=True, slots=True)
class SignatureShown:
    """A signature as it is shown wherever its record is (21 CFR 11.50)."""

    printed_name: str
    username: str
    role: Role
    signed_at: datetime
    meaning: Meaning
    stands: bool
    """Whether it is the one that was given, and the record still says what was signed."""


def content_hash(content: Mapping[str, Any]) -> bytes:
    """Return the SHA-256 of a record's content in canonical JSON."""
    return hashlib.sha256(canonical_json(content)).digest()
