"""Access reviews: who holds what is looked at every so often, and signed for (USR-07; E6(R3) 4.3.8, 21 CFR 11.300(b))."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from uuid import UUID

from app.domain.encoding import canonical_json
from app.domain.words import Role, SiteCode
from app.errors import Invalid


class Verdict(StrEnum):
    """What a reviewer says of a grant."""

    KEEP = "keep"
    REVOKE = "revoke"


class WhyRevoke(StrEnum):
    """Why a grant is to be revoked."""

    LEFT = "left"
    NOT_NEEDED = "not_needed"
    NOT_USED = "not_used"
    NOT_QUALIFIED = "not_qualified"
    GRANTED_IN_ERROR = "granted_in_error"


class TrainingState(StrEnum):
    """Whether the training that a grant waits for is there."""

    NOT_ASKED = "not_asked"
    VALID = "valid"
    MISSING = "missing"


@dataclass(frozen=True, slots=True)
class Access:
    """A grant that somebody has, as it is looked at, and when its holder was last here."""

    grant_id: UUID
    name: str
    display_name: str
    is_machine: bool
    role: Role
    site_code: SiteCode | None
    granted_at: datetime
    granted_by: str
    starts_at: datetime | None
    ends_at: datetime | None
    training: TrainingState
    last_sign_in_at: datetime | None
    last_used_at: datetime | None


@dataclass(frozen=True, slots=True)
class Decision:
    """What is said of one grant."""

    grant_id: UUID
    verdict: Verdict
    reason: WhyRevoke | None = None


def hash_of(present: Sequence[Access]) -> str:
    """Return what a sign-off is bound to: the grants as they stand, and not who was here since, which changes all the time."""
    lines = [
        {
            "grant_id": str(one.grant_id),
            "name": one.name,
            "role": one.role,
            "site_code": one.site_code,
            "starts_at": None if one.starts_at is None else one.starts_at.isoformat(),
            "ends_at": None if one.ends_at is None else one.ends_at.isoformat(),
            "training": one.training,
        }
        for one in present
    ]
    return hashlib.sha256(canonical_json({"grants": lines})).hexdigest()


def check_decisions(present: Sequence[Access], decisions: Sequence[Decision]) -> None:
    """Raise ``Invalid`` unless each grant is decided once, with a reason where it is to be revoked and nowhere else."""
    if sorted(str(one.grant_id) for one in present) != sorted(str(one.grant_id) for one in decisions):
        message = "Each grant of the review is decided once, and nothing else is."
        raise Invalid(message, "decisions")
    if any((one.reason is None) == (one.verdict is Verdict.REVOKE) for one in decisions):
        message = "A grant that is to be revoked has a reason; one that is kept has none."
        raise Invalid(message, "decisions")


def due_at(last: datetime | None, registered_at: datetime, period: timedelta) -> datetime:
    """Return when the next review is due: so long after the last one, or after the study was registered."""
    return (last or registered_at) + period


def reviewed_line(access: Access, decision: Decision) -> Mapping[str, str | bool | None]:
    """Return a line of the register: the grant as it was looked at, and what was said of it."""
    return {
        "grant_id": str(access.grant_id),
        "username": access.name,
        "display_name": access.display_name,
        "is_machine": access.is_machine,
        "role": access.role,
        "site_code": access.site_code,
        "verdict": decision.verdict,
        "reason": decision.reason,
    }
