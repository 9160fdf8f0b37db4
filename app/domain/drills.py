"""Code-break drills: the form and the steps of a code break, on a dummy subject that can be nobody (EUB-18)."""

from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Final

from app.domain.words import SiteCode, SubjectKey, subject_spelling
from app.errors import Invalid

_DUMMY: Final = "drill-"
PERIOD: Final = timedelta(days=365)
"""After so long a person has a drill to do again; it is told, and blocks nothing (rule D1)."""
ONE_GO: Final = timedelta(hours=1)
"""A refusal that is older belongs to another emergency."""
ARM_CODE: Final = "TEST-DRILL"
TREATMENT: Final = "TEST DRILL: no subject and no treatment. In an emergency, product and dose stand here."


def is_dummy(subject: SubjectKey) -> bool:
    """Return whether an identifier is kept for drills, so that no subject ever has it."""
    return subject.startswith(_DUMMY)


def dummy_site(subject_id: str) -> SiteCode:
    """Return the site whose dummy subject this is, such as ``DRILL-01``; raise ``Invalid`` for any other identifier."""
    spelling = subject_spelling(subject_id)
    site_code = spelling[len(_DUMMY) :]
    if not spelling.casefold().startswith(_DUMMY) or not site_code:
        message = "A drill is on the dummy subject of a site: DRILL- and the code of the site."
        raise Invalid(message, "subject_id")
    return SiteCode(site_code)


def is_overdue(last_drill_at: datetime | None, now: datetime) -> bool:
    """Return whether somebody who can break a code has the next drill to do."""
    return last_drill_at is None or now - last_drill_at > PERIOD


def seconds_to_reveal(
    revealed_at: datetime, asked_at: Iterable[datetime], revealed_before: Iterable[datetime]
) -> float:
    """Return how long it took from a person's first request to the reveal, in seconds.

    ``asked_at`` are the requests of this person that were refused, for want of the second proof above all; only those of this
    go count: within the hour, and after what the person was shown before.
    """
    begin = max([revealed_at - ONE_GO, *(at for at in revealed_before if at < revealed_at)])
    first = min((at for at in asked_at if begin < at <= revealed_at), default=revealed_at)
    return round((revealed_at - first).total_seconds(), 3)
