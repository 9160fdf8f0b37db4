"""Who knew what, when: what an entry of the trail says that somebody learnt of a subject, in one word and in plain ones.

Nothing here knows an arm, and nothing could: it is told from the public parts of entries, which hold none (rule E3).
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import Any, Final, NamedTuple

from app.domain.words import Action


class Section(StrEnum):
    """What a line of the report is about."""

    SUBJECT = "subject"
    """This subject by name."""
    OPENED = "opened"
    """Sealed values of many subjects at once, this one's among them; and one subject's who is not told to the reader."""
    KEYS = "keys"
    """The keys under which everything is sealed."""
    LISTS = "lists"
    """A list in which the record may stand."""


class Learnt(StrEnum):
    """What left the service."""

    TREATMENT = "treatment"
    RECORD = "record"
    DESIGN = "list_design"
    """Block sizes, balance, quantities; no subject's treatment."""
    SEALED = "nothing_shown"
    """Sealed values were made, checked or sealed anew, and none was shown."""
    KEYS = "keys"
    """What opens everything, for the holder of the key that it was encrypted to."""
    REFUSED = "refused"
    UNTOLD = "subject_not_told"
    """One subject's, and which one the reader may not know."""


class Told(NamedTuple):
    """What somebody learnt, and how it is said."""

    learnt: Learnt
    in_words: str


REVEALING: Final = frozenset(
    {
        Action.BREAK_CODE,
        Action.UNBLIND_FOR_SAFETY,
        Action.OPEN_FOR_THIRD_PARTY,
        Action.READ_PREPARATION,
        Action.RELEASE_PACKING_LIST,
        Action.RELEASE_RECALL,
        Action.RELEASE_INTERIM,
        Action.RELEASE_FINAL_UNBLINDING,
    }
)
"""After whose entry a second one may say that the answer was withheld (rule D4)."""

DID_NOT_LEAVE: Final = frozenset({"withheld", "unknown"})
"""The outcomes of that second entry."""

_REFUSALS: Final[Mapping[str, str]] = {
    "denied": "was refused",
    "refused": "was refused",
    "integrity": "was refused, because what is sealed did not agree",
}

_OF_SUBJECT: Final[Mapping[str, Told]] = {
    Action.ALLOCATE: Told(Learnt.RECORD, "randomized the subject and was shown the kit code, not the treatment"),
    Action.READ_ALLOCATION: Told(Learnt.RECORD, "looked at the record"),
    Action.MARK_ERROR: Told(Learnt.RECORD, "marked the record as an error"),
    Action.CORRECT_STRATA: Told(Learnt.RECORD, "corrected the strata of the record"),
    Action.LINK_DUPLICATE: Told(Learnt.RECORD, "linked the record with another subject's"),
    Action.BREAK_CODE: Told(Learnt.TREATMENT, "opened the treatment by an emergency code break"),
    Action.ENTER_OPENING: Told(
        Learnt.TREATMENT, "entered that the code-break envelope was opened while the service was down"
    ),
    Action.ADD_NARRATIVE: Told(Learnt.RECORD, "told what happened around a code break"),
    Action.ASSESS_BREAK: Told(Learnt.RECORD, "told what a code break means for the trial, without the treatment"),
    Action.RECORD_ACCIDENT: Told(Learnt.RECORD, "recorded that the treatment had become known by accident"),
    Action.REQUEST_THIRD_PARTY: Told(Learnt.RECORD, "let a named physician open the treatment, and was not shown it"),
    Action.OPEN_FOR_THIRD_PARTY: Told(Learnt.TREATMENT, "opened the treatment as the physician who was named"),
    Action.READ_SUBJECT_KITS: Told(Learnt.RECORD, "looked at the subject's kits"),
    Action.ASSIGN_KIT: Told(Learnt.RECORD, "had a kit assigned to the subject"),
    Action.DISPENSE_KIT: Told(Learnt.RECORD, "dispensed a kit to the subject"),
    Action.REPLACE_KIT: Told(Learnt.RECORD, "had a kit of the subject replaced"),
    Action.QUARANTINE_KIT: Told(Learnt.RECORD, "put a kit of the subject aside"),
    Action.RETURN_KIT: Told(Learnt.RECORD, "took a kit of the subject back"),
    Action.REPORT_LOSS: Told(Learnt.RECORD, "reported a kit of the subject as lost"),
    Action.REPORT_DAMAGE: Told(Learnt.RECORD, "reported a kit of the subject as damaged"),
    Action.READ_PREPARATION: Told(Learnt.TREATMENT, "opened the treatment to prepare it"),
    Action.READ_TRAIL: Told(Learnt.RECORD, "read the trail of the subject"),
    Action.READ_RESTRICTED: Told(Learnt.RECORD, "read the restricted part of an entry about the subject"),
    Action.READ_DISCLOSURES: Told(Learnt.RECORD, "read this report"),
}

_OPENED: Final[Mapping[str, Told]] = {
    Action.GENERATE_SCHEDULE: Told(Learnt.SEALED, "had a list made under seal"),
    Action.EXTEND_SCHEDULE: Told(Learnt.SEALED, "had a list extended under seal"),
    Action.IMPORT_SCHEDULE: Told(Learnt.TREATMENT, "brought in a list made outside, and so knows it"),
    Action.READ_QUALITY_REPORT: Told(Learnt.DESIGN, "read the quality report of a list"),
    Action.READ_RESIDUAL: Told(
        Learnt.DESIGN, "read what the treatments that became known tell about the rest of their blocks"
    ),
    Action.APPROVE_SCHEDULE: Told(Learnt.SEALED, "checked and signed a list without being shown its sequence"),
    Action.CREATE_CONSIGNMENT: Told(Learnt.SEALED, "had the kits made under seal that the subject's came from"),
    Action.RELEASE_PACKING_LIST: Told(
        Learnt.TREATMENT, "received the packing list, which tells the treatment in the subject's kits"
    ),
    Action.START_RECALL: Told(
        Learnt.SEALED, "called consignments back, for which the service may have opened kits in memory"
    ),
    Action.RELEASE_RECALL: Told(
        Learnt.TREATMENT, "received the list of recalled kits, which tells the treatment in those that are on it"
    ),
    Action.RELEASE_SHEETS: Told(
        Learnt.SEALED, "received the codes of the code-break envelopes, which open none without the desk's key"
    ),
    Action.RELEASE_INTERIM: Told(
        Learnt.TREATMENT,
        "released an interim package, which tells the treatment of everybody of its part up to the data cut",
    ),
    Action.RELEASE_FINAL_UNBLINDING: Told(
        Learnt.TREATMENT, "received the final package, which tells the treatment of every subject"
    ),
    Action.UNBLIND_FOR_SAFETY: Told(Learnt.TREATMENT, "opened the treatment for a safety report"),
    Action.BREAK_CODE: Told(Learnt.TREATMENT, "opened the treatment by the code of a kit that the subject was given"),
    Action.READ_RESTRICTED: Told(Learnt.DESIGN, "read the restricted part of an entry that names no subject"),
    Action.READ_DISCLOSURES: Told(Learnt.UNTOLD, "read such a report; this reader is not told of which subject"),
}

_UNTOLD: Final = Told(
    Learnt.UNTOLD, "opened one subject's treatment for a safety report; this reader is not told whose"
)
_IMPORTED: Final = Told(Learnt.TREATMENT, "brought in from outside what tells the treatment, and so knows it")
_KEYS: Final[Mapping[str, Told]] = {
    Action.ROTATE_KEYS: Told(Learnt.SEALED, "had what is sealed, or its keys, renewed by the service"),
    "key:escrow": Told(Learnt.KEYS, "had the secret of the deployment encrypted for the holder of an escrow key"),
    "key:restore": Told(Learnt.SEALED, "had the secret of the deployment put back out of its escrow"),
}
_LISTED: Final = Told(Learnt.RECORD, "read a list in which the record may stand")
_TOUCHED: Final = Told(Learnt.RECORD, "did something with the record")

OPENING: Final = frozenset(_OPENED)
"""Actions of the section ``OPENED``."""

KEY_USE: Final = frozenset(_KEYS)
"""Actions of the section ``KEYS``."""

ABOUT_SUBJECT: Final = frozenset(_OF_SUBJECT)
"""Actions that have words of their own in the section ``SUBJECT``; any other one is there too, with general words."""

LISTING: Final = frozenset(
    {
        Action.LIST_ALLOCATIONS,
        Action.READ_WORKLIST,
        Action.READ_CALL_BACKS,
        Action.READ_CODE_BREAKS,
        Action.READ_ACCIDENTS,
        Action.READ_UNBLINDING_LOG,
        Action.READ_THIRD_PARTY,
        Action.READ_ENVELOPES,
        Action.READ_SAFETY_UNBLINDINGS,
        Action.READ_TRAIL,
        Action.EXPORT_TRAIL,
    }
)
"""Actions of the section ``LISTS``."""


def told(
    section: Section, action: str, outcome: str, after: Mapping[str, Any] | None, *, did_leave: bool, is_told: bool
) -> Told:
    """Return what somebody learnt by an act.

    ``did_leave`` says that no second entry withheld the answer, ``is_told`` that the reader may know whose treatment it was.
    """
    if outcome in _REFUSALS:
        return Told(Learnt.REFUSED, _REFUSALS[outcome])
    if outcome in DID_NOT_LEAVE or not did_leave:
        return Told(Learnt.SEALED, "was shown nothing: the answer was withheld")
    said = after or {}
    known = _known(section, action, said)
    if action == Action.UNBLIND_FOR_SAFETY and not is_told:
        known = _UNTOLD
    if said.get("encrypted"):
        return Told(known.learnt, f"{known.in_words}, encrypted for the holder of a key")
    return known


def _known(section: Section, action: str, after: Mapping[str, Any]) -> Told:
    if section is Section.SUBJECT:
        return _OF_SUBJECT.get(action, _TOUCHED)
    if section is Section.KEYS:
        return _KEYS[action]
    if section is Section.LISTS:
        return _LISTED
    return _IMPORTED if after.get("origin") == "imported" else _OPENED[action]
