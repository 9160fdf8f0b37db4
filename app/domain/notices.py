"""Notices after a code break: what they say, and when one that could not be delivered is tried again (EUB-12, BLD-14)."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final
from uuid import UUID

from app.domain.encoding import canonical_json
from app.domain.words import Mode, SiteCode, StudyCode, SubjectId
from app.errors import Invalid


class Channel(StrEnum):
    """The way to a receiver of notices."""

    CONTACT = "contact"
    """A person of the sponsor, by e-mail."""
    WEBHOOK = "webhook"
    """A machine, by HTTPS."""


class Topic(StrEnum):
    """What a notice is about."""

    CODE_BREAK = "code_break.recorded"


PAUSES: Final = (
    timedelta(seconds=5),
    timedelta(minutes=5),
    timedelta(minutes=30),
    timedelta(hours=2),
    timedelta(hours=5),
    timedelta(hours=10),
    timedelta(hours=14),
)
"""How long is waited after the first failure, the second and so on; whoever was away for a day and a half is not asked any more."""
_JITTER: Final = 0.2
_EMAIL: Final = re.compile(r"[A-Za-z0-9.!#$%&'*+/=?^_`{|}~-]{1,64}@[A-Za-z0-9-]{1,63}(?:\.[A-Za-z0-9-]{1,63})+")
_LONGEST_EMAIL: Final = 254


def next_try_at(failures: int, now: datetime, chance: bytes) -> datetime | None:
    """Return when to try again after so many failures, up to a fifth sooner or later by ``chance``; None when it is given up.

    Apart by chance, so that a receiver that comes back does not meet all that waited for it at one moment.
    """
    if failures > len(PAUSES):
        return None
    share = 1 - _JITTER + 2 * _JITTER * int.from_bytes(chance) / ((1 << 8 * len(chance)) - 1)
    return now + PAUSES[failures - 1] * share


@dataclass(frozen=True, slots=True)
class Notice:
    """What a receiver is told: that something happened, to whom and when. No field could hold a treatment, a kit or a reason."""

    topic: Topic
    at: datetime
    study_code: StudyCode
    mode: Mode
    site_code: SiteCode | None
    subject_id: SubjectId | None
    """None for a kit that nobody was given."""
    code_break_id: UUID

    def body(self) -> str:
        """Return it as the JSON that is kept, and sent to a webhook (Standard Webhooks: type, timestamp, data)."""
        data = {
            "study_code": self.study_code,
            "mode": self.mode,
            "site_code": self.site_code,
            "subject_id": self.subject_id,
            "code_break_id": str(self.code_break_id),
        }
        return canonical_json({"type": self.topic, "timestamp": self.at.isoformat(), "data": data}).decode()


_WORDS: Final[Mapping[str, str]] = {Topic.CODE_BREAK: "The code of one subject was broken."}
_NAMES: Final[Mapping[str, str]] = {
    "study_code": "Study",
    "mode": "Deployment",
    "site_code": "Site",
    "subject_id": "Subject",
    "code_break_id": "Code break",
}


def mail_subject(topic: str, study_code: str, mode: str) -> str:
    """Return the subject line of a notice's e-mail: no subject of the study stands in it, for it is shown on locked screens."""
    return f"{'[test] ' if mode == Mode.TEST else ''}{study_code}: {topic.split('.', 1)[0].replace('_', ' ')}"


def mail_text(topic: str, at: str, data: Mapping[str, str | None]) -> str:
    """Return the text of a notice's e-mail."""
    told = [f"{_NAMES[name]}: {value or '-'}" for name, value in data.items()]
    ending = "This notice holds no treatment; who needs it asks whoever broke the code. Do not answer it."
    return "\n".join([_WORDS[topic], "", f"Time: {at}", *told, "", ending, ""])


def check_email(address: str) -> str:
    """Return an address to which a mail can be sent; raise ``Invalid`` for what is none."""
    if len(address) > _LONGEST_EMAIL or not _EMAIL.fullmatch(address):
        message = "An e-mail address is of the form name@example.org, in ASCII."
        raise Invalid(message, "email")
    return address
