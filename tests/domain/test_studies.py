"""What makes the definition of a study impossible."""

from dataclasses import replace

import pytest

from app.domain.studies import StudyDefinition, check_definition
from app.domain.words import Arm, ArmCode, Factor, Level, StudyCode
from app.errors import Invalid


def arm(code: str = "ACTIVE", ratio: int = 1, **fields: str) -> Arm:
    return Arm(ArmCode(code), fields.get("label", f"Label {code}"), fields.get("treatment", f"Dose {code}"), ratio)


def factor(code: str = "age", levels: int = 2) -> Factor:
    return Factor(code, f"Factor {code}", tuple(Level(f"l{number}", f"Level {number}") for number in range(levels)))


DEFINITION = StudyDefinition(
    StudyCode("S1"),
    "A study",
    "double",
    40,
    3,
    (arm("ACTIVE"), arm("PLACEBO")),
    (factor(),),
    stratify_by_site=False,
    backup_contact="Desk",
)


class TestCheckDefinition:
    def test_possible(self) -> None:
        """Two arms, a factor of two levels, a floor of three."""
        check_definition(DEFINITION)

    @pytest.mark.parametrize(
        ("changed", "field"),
        [
            (replace(DEFINITION, arms=(arm(),)), "arms"),
            (replace(DEFINITION, arms=tuple(arm(f"A{n}") for n in range(13))), "arms"),
            (replace(DEFINITION, arms=(arm("A"), arm("a"))), "arms"),
            (replace(DEFINITION, arms=(arm("A", label="same"), arm("B", label="same"))), "arms"),
            (replace(DEFINITION, arms=(arm("A", treatment="same"), arm("B", treatment="same"))), "arms"),
            (replace(DEFINITION, arms=(arm("A", ratio=0), arm("B"))), "arms"),
            (replace(DEFINITION, stock_floor=1), "stock_floor"),
            (replace(DEFINITION, factors=tuple(factor(f"f{n}") for n in range(9))), "factors"),
            (replace(DEFINITION, factors=(factor(), factor())), "factors"),
            (replace(DEFINITION, factors=(factor("site"),)), "factors"),
            (replace(DEFINITION, factors=(factor(levels=1),)), "factors"),
            (replace(DEFINITION, factors=(factor(levels=31),)), "factors"),
            (
                replace(DEFINITION, factors=(Factor("f", "F", (Level("a", "x"), Level("A", "y"))),)),
                "factors",
            ),
            (replace(DEFINITION, title="t" * 12_001), "title"),
        ],
    )
    def test_impossible(self, changed: StudyDefinition, field: str) -> None:
        """Each impossible definition is refused with its field named. [SEQ-02, rules A2, B6]"""
        with pytest.raises(Invalid) as refused:
            check_definition(changed)
        assert refused.value.field == field
