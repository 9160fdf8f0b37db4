"""The unblinding log: what each act that can unblind is, who learns by it, who stays blinded, and what guards it (UNB-08).

It is told from the public parts of entries, which hold no treatment (rule E3); nothing here knows an arm, and nothing could.
"""

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from app.domain.words import Action


class Unblinding(NamedTuple):
    """A kind of unblinding, in words."""

    kind: str
    who_learns: str
    stays_blinded: str
    safeguards: str


_OWN_FACTOR: Final = "own second factor; entered and under a checkpoint before the answer"
_TWO_PEOPLE: Final = "two people, each with a second factor; entered and under a checkpoint before the answer"
_ALL_OTHERS: Final = "everybody else"

UNBLINDINGS: Final[Mapping[str, Unblinding]] = {
    Action.BREAK_CODE: Unblinding("emergency", "who broke the code", _ALL_OTHERS, _OWN_FACTOR),
    Action.ENTER_OPENING: Unblinding(
        "emergency_envelope",
        "who opened the envelope while the service was down",
        "everybody else, whoever entered it included",
        "the desk's key and the code of the kit's sheet, kept apart",
    ),
    Action.UNBLIND_FOR_SAFETY: Unblinding(
        "safety", "the safety officer", "everybody else; whose it was, the safety officer alone knows", _OWN_FACTOR
    ),
    Action.OPEN_FOR_THIRD_PARTY: Unblinding(
        "third_party", "the physician who was named", "everybody else, whoever asked included", _OWN_FACTOR
    ),
    Action.RECORD_ACCIDENT: Unblinding(
        "accidental", "as recorded in who_learnt", _ALL_OTHERS, "none: recorded, not performed"
    ),
    Action.RELEASE_INTERIM: Unblinding(
        "interim",
        "the board that holds the key",
        "everybody else, whoever asked and whoever released included",
        f"{_TWO_PEOPLE}; encrypted to the board's key; nobody after the data cut is opened",
    ),
    Action.RELEASE_FINAL_UNBLINDING: Unblinding(
        "final",
        "who released the package, or who holds the key that it was encrypted to",
        "whoever is not given the package",
        f"{_TWO_PEOPLE}; the study closed and the database lock attested",
    ),
    Action.RELEASE_PACKING_LIST: Unblinding(
        "packing_list",
        "who released the list, or who holds the key that it was encrypted to",
        "everybody else; it names kits and no subjects",
        _TWO_PEOPLE,
    ),
    Action.RELEASE_RECALL: Unblinding(
        "recall",
        "who released the list of kits, or who holds the key that it was encrypted to",
        "everybody else, sites included: whole consignments are called back; the list names kits and no subjects",
        _TWO_PEOPLE,
    ),
    Action.READ_PREPARATION: Unblinding("preparation", "the unblinded pharmacist", _ALL_OTHERS, _OWN_FACTOR),
}
"""Acts by which a treatment becomes known; an index finds their entries, and knows them by these words."""

_PURPOSES: Final = ("reason_code", "how_learnt", "show", "data_cut_at", "who_learnt", "physician")


def purpose_of(after: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return what an entry says of the purpose of its act."""
    return {name: after[name] for name in _PURPOSES if name in after} if after else {}
