"""How often codes are broken before somebody is told that it is often: by one person, at one site, in a day (EUB-20)."""

from datetime import timedelta
from typing import Final

WATCHED: Final = timedelta(hours=24)
"""So far back is counted."""
USUAL_BY_PERSON: Final = 3
USUAL_AT_SITE: Final = 5
"""A code break is rare; a service sees more of them in a day after an incident, and then somebody knows of it."""


def is_frequent(by_person: int, at_site: int) -> bool:
    """Return whether so many code breaks in a day, the newest one included, are more than usual."""
    return by_person > USUAL_BY_PERSON or at_site > USUAL_AT_SITE
