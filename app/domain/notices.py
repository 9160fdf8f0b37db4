"""Notices after a code break: what they say, and when one that could not be delivered is tried again (EUB-12, BLD-14)."""

import base64
import hmac
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from ipaddress import IPv4Address, IPv6Network, ip_address, ip_network
from typing import Final
from urllib.parse import urlsplit

from app.domain.encoding import canonical_json
from app.domain.words import Mode, StudyCode
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
    OVERDUE_BREAK = "code_break.overdue"
    ACCESS_REVIEW = "access_review.overdue"
    RECALL = "recall.started"
    FACTOR_RECOVERY = "second_factor.recovered"
    FREQUENT = "code_breaks.frequent"
    REFUSED = "signing.refused"


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
    about: Mapping[str, str | None]
    """Site, subject (None for a kit that nobody was given) and the id of what happened, as far as the topic has them."""

    def body(self) -> str:
        """Return it as the JSON that is kept, and sent to a webhook (Standard Webhooks: type, timestamp, data)."""
        data = {"study_code": self.study_code, "mode": self.mode, **self.about}
        return canonical_json({"type": self.topic, "timestamp": self.at.isoformat(), "data": data}).decode()


_WORDS: Final[Mapping[str, str]] = {
    Topic.CODE_BREAK: "The code of one subject was broken.",
    Topic.OVERDUE_BREAK: "What is told after a code break is overdue.",
    Topic.ACCESS_REVIEW: "The review of who has access to the study is overdue.",
    Topic.FREQUENT: "Codes are broken more often than usual, by one person or at one site; nothing was hindered.",
    Topic.RECALL: "Consignments are called back: each site finds its kits on its list of call-backs.",
    Topic.REFUSED: "Somebody tried to unblind, release or sign what they have no right to.",
    Topic.FACTOR_RECOVERY: "A lost second factor was recovered. If its owner knows nothing of it, have the account reset at once.",
}
_ENDINGS: Final[Mapping[str, str]] = {
    Topic.CODE_BREAK: "This notice holds no treatment; who needs it asks whoever broke the code. Do not answer it.",
    Topic.OVERDUE_BREAK: (
        "Who broke the code tells what happened; the site's investigator or a study administrator says what it means for the "
        "trial. This notice holds no treatment. Do not answer it."
    ),
    Topic.ACCESS_REVIEW: "A study administrator looks at it and signs. Do not answer this notice.",
    Topic.RECALL: "This notice holds no treatment. Do not answer it.",
    Topic.FREQUENT: "This notice holds no treatment. Do not answer it.",
    Topic.REFUSED: "It was refused; nothing was shown or changed. Every try is in the audit trail. Do not answer this notice.",
    Topic.FACTOR_RECOVERY: "Do not answer this notice.",
}
_NAMES: Final[Mapping[str, str]] = {
    "study_code": "Study",
    "mode": "Deployment",
    "site_code": "Site",
    "subject_id": "Subject",
    "code_break_id": "Code break",
    "overdue": "Overdue",
    "due_at": "Due",
    "recall_id": "Recall",
    "username": "Person",
    "confirmed_by": "Confirmed by",
    "action": "Tried",
    "by_person_in_a_day": "By this person, in 24 hours",
    "at_site_in_a_day": "At this site, in 24 hours",
}


def mail_subject(topic: str, study_code: str, mode: str) -> str:
    """Return the subject line of a notice's e-mail: no subject of the study stands in it, for it is shown on locked screens."""
    return f"{'[test] ' if mode == Mode.TEST else ''}{study_code}: {topic.split('.', 1)[0].replace('_', ' ')}"


def mail_text(topic: str, at: str, data: Mapping[str, str | None]) -> str:
    """Return the text of a notice's e-mail."""
    told = [f"{_NAMES[name]}: {value or '-'}" for name, value in data.items()]
    return "\n".join([_WORDS[topic], "", f"Time: {at}", *told, "", _ENDINGS[topic], ""])


def check_email(address: str) -> str:
    """Return an address to which a mail can be sent; raise ``Invalid`` for what is none."""
    if len(address) > _LONGEST_EMAIL or not _EMAIL.fullmatch(address):
        message = "An e-mail address is of the form name@example.org, in ASCII."
        raise Invalid(message, "email")
    return address


# -- webhooks ----------------------------------------------------------------------------------------------------------

_LONGEST_URL: Final = 500
_OUTSIDE: Final = IPv6Network("2000::/3")
_NOT_OUTSIDE: Final = tuple(
    # Teredo and its neighbours, documentation (two), 6to4: what is in them, or comes out of them, may be anywhere.
    IPv6Network(one)
    for one in ("2001::/23", "2001:db8::/32", "3fff::/20", "2002::/16")
)
_PRIVATE: Final = tuple(ip_network(one) for one in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7"))
"""Where a hospital has its own machines; what else is not public, this machine or its neighbours on the wire, is nobody's."""


def webhook_secret(key: bytes) -> str:
    """Return a key as its receiver gets it (Standard Webhooks)."""
    return f"whsec_{base64.b64encode(key).decode()}"


def webhook_headers(key: bytes, message_id: str, at: datetime, body: str) -> Mapping[str, str]:
    """Return the headers by which a receiver knows who sends, when and what (Standard Webhooks, ``v1``)."""
    moment = str(int(at.timestamp()))
    mac = hmac.digest(key, f"{message_id}.{moment}.{body}".encode(), "sha256")
    signature = f"v1,{base64.b64encode(mac).decode()}"
    return {"webhook-id": message_id, "webhook-timestamp": moment, "webhook-signature": signature}


def may_be_sent_to(address: str, *, may_stay_here: bool) -> bool:
    """Return whether an address is of the public network, or of this machine where that is wanted; never one in between."""
    try:
        ip = ip_address(address)
    except ValueError:
        return False
    if ip.is_loopback:
        return may_stay_here
    if isinstance(ip, IPv4Address):
        return ip.is_global and not ip.is_multicast
    return ip.is_global and ip in _OUTSIDE and not any(ip in network for network in _NOT_OUTSIDE)


def may_be_asked(host: str, address: str, *, inside: frozenset[str], may_stay_here: bool) -> bool:
    """Return whether a host may be asked at an address: outside, or in a private network if the operator names the host."""
    if may_be_sent_to(address, may_stay_here=may_stay_here):
        return True
    return host in inside and _is_number(address) and any(ip_address(address) in network for network in _PRIVATE)


def is_address(url: str, *, may_stay_here: bool) -> bool:
    """Return whether a URL is one that we may go to: HTTPS, or plain HTTP to this machine where that is wanted."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        return False
    is_here = may_stay_here and host in {"127.0.0.1", "::1"}
    is_plain = all("!" <= character <= "~" for character in url) and len(url) <= _LONGEST_URL
    is_known = parts.scheme in ({"https", "http"} if is_here else {"https"})
    return is_known and bool(host) and is_plain and port != 0 and not set("@\\#") & set(url)


def check_url(url: str, *, may_stay_here: bool) -> str:
    """Return a URL to which notices can be posted; raise ``Invalid`` for any other.

    What a name turns into is looked at when something is sent.
    """
    if not is_address(url, may_stay_here=may_stay_here):
        message = (
            f"A webhook is https://host/path, of at most {_LONGEST_URL} characters, without user, password or fragment."
        )
        raise Invalid(message, "url")
    host = urlsplit(url).hostname or ""
    if _is_number(host) and not may_be_sent_to(host, may_stay_here=may_stay_here):
        message = "This address is not of the public network."
        raise Invalid(message, "url")
    return url


def _is_number(host: str) -> bool:
    """Return whether a host is an address; one that only looks like it is looked at again when it is resolved."""
    try:
        ip_address(host)
    except ValueError:
        return False
    return True
