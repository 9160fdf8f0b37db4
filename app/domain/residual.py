"""What revealed treatments tell about the rest of their block: how well the best guess could do (BLD-15, failures 12)."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from app.domain.words import ArmCode


@dataclass(frozen=True, slots=True)
class BlockSlot:
    """A slot of a block. Danger: holds an arm."""

    arm_code: ArmCode = field(repr=False)
    is_allocated: bool
    is_revealed: bool


@dataclass(frozen=True, slots=True)
class Residual:
    """What is left to guess in a block; it names no arm and no subject."""

    revealed: int
    hidden: int
    """Subjects of the block whose treatment was not revealed."""
    chance_before: float
    """How often the best guess about one of the block is right for somebody who knows its arms and none of its subjects'."""
    chance_after: float
    """The same about a hidden one, for somebody who knows every revealed treatment too; 1 is certainty."""


def residual(slots: Sequence[BlockSlot]) -> Residual:
    """Return what those who know all that was revealed in a block, and where it begins and ends, could guess of the rest."""
    revealed = sum(slot.is_revealed for slot in slots)
    hidden = sum(slot.is_allocated and not slot.is_revealed for slot in slots)
    left = [slot.arm_code for slot in slots if not slot.is_revealed]
    before = _best([slot.arm_code for slot in slots])
    return Residual(revealed, hidden, before, _best(left) if left else 1.0)


def _best(arms: Sequence[ArmCode]) -> float:
    return round(max(Counter(arms).values()) / len(arms), 4)
