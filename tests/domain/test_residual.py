"""What is left to guess in a block, by hand (BLD-15, failures 12)."""

import pytest

from app.domain.residual import BlockSlot, Residual, residual
from app.domain.words import ArmCode


def block(arms: str, allocated: str, revealed: str) -> list[BlockSlot]:
    """Return slots from three words of one letter a slot; ``x`` says yes."""
    return [
        BlockSlot(ArmCode(arm), is_allocated=used == "x", is_revealed=known == "x")
        for arm, used, known in zip(arms, allocated, revealed, strict=True)
    ]


@pytest.mark.parametrize(
    ("arms", "allocated", "revealed", "expected"),
    [
        ("ABAB", "xxxx", "....", Residual(0, 4, 0.5, 0.5)),
        ("ABAB", "xxxx", "x...", Residual(1, 3, 0.5, 0.6667)),
        ("AABB", "xxxx", "xx..", Residual(2, 2, 0.5, 1.0)),
        ("ABAB", "xx..", "xx..", Residual(2, 0, 0.5, 0.5)),
        ("AABAAB", "xxxxxx", "..x...", Residual(1, 5, 0.6667, 0.8)),
        ("AB", "xx", "xx", Residual(2, 0, 0.5, 1.0)),
    ],
)
def test_by_hand(arms: str, allocated: str, revealed: str, expected: Residual) -> None:
    """Counts and chances are those that one works out on paper; not allocated slots of the block are left to guess too. [BLD-15]"""
    assert residual(block(arms, allocated, revealed)) == expected


def test_shows_no_arm() -> None:
    """A slot does not print its arm. [BLD-09]"""
    assert "HUCMSC" not in repr(BlockSlot(ArmCode("HUCMSC"), is_allocated=True, is_revealed=True))
