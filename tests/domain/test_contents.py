"""What lies inside sealed values."""

from datetime import date

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.domain.contents import Binding, KitContents, SlotContents, SlotPlace
from app.domain.encoding import canonical_json, encode
from app.domain.merkle import salted_leaf
from app.domain.words import (
    ArmCode,
    ConsignmentCode,
    KitCode,
    Mode,
    RandomizationNumber,
    StratumCode,
    StudyCode,
)
from app.errors import SealBroken

SALT = bytes(range(32))
codes = st.from_regex(r"[A-Za-z0-9_-]{1,20}", fullmatch=True)


class TestEncoding:
    @given(st.lists(st.one_of(st.text(), st.integers(), st.binary())), st.lists(st.text()))
    def test_no_two_lists_of_fields_are_one(self, fields: list[str | int | bytes], others: list[str]) -> None:
        """Fields give the same bytes only when their contents are the same. [A8, CUS-10]"""

        def contents(values: list[str | int | bytes]) -> list[bytes]:
            return [value if isinstance(value, bytes) else str(value).encode() for value in values]

        def safe(values: list[str | int | bytes]) -> bool:
            return all(not isinstance(value, str) or value.isprintable() for value in values)

        if safe(fields) and safe([*others]):
            assert (encode(*fields) == encode(*others)) == (contents(fields) == contents([*others]))

    def test_canonical_json(self) -> None:
        """Keys are sorted and nothing is spaced. [RFC 8785]"""
        assert canonical_json({"b": [1, None], "a": "é"}) == '{"a":"é","b":[1,null]}'.encode()


class TestSlotContents:
    @given(codes, st.integers(0, 2**32 - 1), st.integers(1, 1000))
    def test_round_trip(self, arm: str, block: int, size: int) -> None:
        """What was sealed is what is opened."""
        contents = SlotContents(ArmCode(arm), block, size, RandomizationNumber("R4K7QK"), SALT)
        assert SlotContents.from_bytes(contents.to_bytes()) == contents

    def test_leaf_names_everything(self) -> None:
        """The leaf is over study, mode, list, segment, stratum, position, arm, block, size and number, salted. [A8]"""
        place = SlotPlace(StudyCode("S"), Mode.TEST, "list", 0, StratumCode("site=01"), 7)
        contents = SlotContents(ArmCode("A"), 1, 4, RandomizationNumber("R4K7QK"), SALT)
        content = encode("slot", "S", "test", "list", 0, "site=01", 7, "A", 1, 4, "R4K7QK")
        assert contents.leaf(place) == salted_leaf(SALT, content)

    def test_prints_no_arm(self) -> None:
        """The repr tells neither arm nor block. [BLD-13]"""
        shown = repr(SlotContents(ArmCode("HUCMSC"), 77, 88, RandomizationNumber("R4K7QK"), SALT))
        assert not any(word in shown for word in ("HUCMSC", "77", "88"))


class TestKitContents:
    def test_round_trip_and_leaf(self) -> None:
        """What was sealed is what is opened, and the leaf is over code, arm, lot and expiry, salted. [A8]"""
        contents = KitContents(ArmCode("A"), "Lot 7/ü", date(2028, 2, 29), SALT)
        assert KitContents.from_bytes(contents.to_bytes()) == contents
        leaf = contents.leaf(StudyCode("S"), Mode.TEST, ConsignmentCode("C1"), KitCode("K7XQ4M2PF"))
        assert leaf == salted_leaf(SALT, encode("kit", "S", "test", "C1", "K7XQ4M2PF", "A", "Lot 7/ü", "2028-02-29"))
        assert "Lot" not in repr(contents)


class TestBinding:
    def test_round_trip(self) -> None:
        """Arm and treatment words come back as they were bound. [C3]"""
        binding = Binding(ArmCode("A"), "Hormone replacement therapy + ü")
        assert Binding.from_bytes(binding.to_bytes()) == binding
        assert "Hormone" not in repr(binding)

    @pytest.mark.parametrize("opened", [b"", b"{}", b'["A"]', b'["A",1]', b'["A","b","c"]', b"\xff"])
    def test_anything_else(self, opened: bytes) -> None:
        """What is no binding is refused, never guessed at. [D4]"""
        with pytest.raises(SealBroken):
            Binding.from_bytes(opened)
