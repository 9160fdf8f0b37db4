"""What is told after a code break, and by when (EUB-09, EUB-24): what is late is named, and stands in the way of nothing."""

from datetime import datetime, timedelta
from typing import Final

from app.domain.words import Late

NARRATIVE_WITHIN: Final = timedelta(days=1)
"""In which who broke the code tells what happened."""
ASSESSMENT_WITHIN: Final = timedelta(days=14)
"""In which somebody says what it means for the trial."""


def narrative_due_at(broken_at: datetime) -> datetime:
    """Return until when the narrative of a code break is given."""
    return broken_at + NARRATIVE_WITHIN


def assessment_due_at(broken_at: datetime) -> datetime:
    """Return until when the impact of a code break is assessed."""
    return broken_at + ASSESSMENT_WITHIN


def late(
    broken_at: datetime, narrated_at: datetime | None, assessed_at: datetime | None, now: datetime
) -> tuple[Late, ...]:
    """Return what a code break still waits for although its time is over."""
    found = []
    if narrated_at is None and narrative_due_at(broken_at) < now:
        found.append(Late.NARRATIVE)
    if assessed_at is None and assessment_due_at(broken_at) < now:
        found.append(Late.ASSESSMENT)
    return tuple(found)
