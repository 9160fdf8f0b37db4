"""The definition of a study, and what makes one impossible."""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from app.domain.words import Arm, Factor, FurtherKits, StudyCode
from app.errors import Invalid

MAX_ARMS: Final = 12
MAX_FACTORS: Final = 8
MAX_LEVELS: Final = 30
MAX_TEXT_BYTES: Final = 12_000
LOWEST_STOCK_FLOOR: Final = 2
"""Below two of each arm the last kit would tell the arm of the next subject (rule B6)."""


@dataclass(frozen=True, slots=True)
class StudyDefinition:
    """What a study administrator registers."""

    study_code: StudyCode
    title: str
    blinding: str
    planned_subjects: int
    stock_floor: int
    arms: tuple[Arm, ...]
    factors: tuple[Factor, ...]
    stratify_by_site: bool
    backup_contact: str
    further_kits_after_break: FurtherKits = FurtherKits.ALLOWED
    exempt_events: tuple[str, ...] = ()
    safety_unblinding_shown: bool = False


def check_definition(definition: StudyDefinition) -> None:
    """Raise ``Invalid`` with the reason in the field's words (rule A2)."""
    if not 2 <= len(definition.arms) <= MAX_ARMS:  # noqa: PLR2004  # a comparison needs two
        message = f"A study has 2 to {MAX_ARMS} arms."
        raise Invalid(message, "arms")
    _refuse_duplicates([arm.arm_code for arm in definition.arms], "arms", "arm codes")
    _refuse_duplicates([arm.label for arm in definition.arms], "arms", "arm labels")
    _refuse_duplicates([arm.treatment for arm in definition.arms], "arms", "treatments")
    if any(arm.ratio < 1 for arm in definition.arms):
        message = "Every arm has an allocation ratio of at least 1."
        raise Invalid(message, "arms")
    if definition.stock_floor < LOWEST_STOCK_FLOOR:
        message = f"The stock floor is at least {LOWEST_STOCK_FLOOR} kits of every arm."
        raise Invalid(message, "stock_floor")
    if len(definition.factors) > MAX_FACTORS:
        message = f"A study has at most {MAX_FACTORS} stratification factors."
        raise Invalid(message, "factors")
    _refuse_duplicates([factor.factor_code for factor in definition.factors], "factors", "factor codes")
    for factor in definition.factors:
        if factor.factor_code == "site":
            message = "The site is no factor; set stratify_by_site instead."
            raise Invalid(message, "factors")
        if not 2 <= len(factor.levels) <= MAX_LEVELS:  # noqa: PLR2004  # one level divides nothing
            message = f"A stratification factor has 2 to {MAX_LEVELS} levels."
            raise Invalid(message, "factors")
        _refuse_duplicates([level.level_code for level in factor.levels], "factors", "level codes")
    _refuse_duplicates(definition.exempt_events, "exempt_events", "exempt events")
    texts = [definition.title, definition.backup_contact, *definition.exempt_events]
    texts += [text for arm in definition.arms for text in (arm.label, arm.treatment)]
    texts += [level.label for factor in definition.factors for level in factor.levels]
    if sum(len(text.encode()) for text in texts) > MAX_TEXT_BYTES:
        message = f"The texts of a definition have at most {MAX_TEXT_BYTES} bytes together."
        raise Invalid(message, "title")


def is_exempt(event: str, exempt_events: Sequence[str]) -> bool:
    """Return whether an event is one of those exempt from systematic unblinding, in any spelling (UNB-04)."""
    return _folded(event) in {_folded(one) for one in exempt_events}


def _folded(event: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", event).casefold().split())


def _refuse_duplicates(words: Sequence[str], field: str, what: str) -> None:
    if len({word.casefold() for word in words}) != len(words):
        message = f"The {what} must differ from each other."
        raise Invalid(message, field)
