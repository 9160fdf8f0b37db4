"""Lists that an independent statistician made: read, and refused whole with every fault named."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.domain.codes import ALPHABET, check_character, draw_randomization_numbers
from app.domain.imported_lists import LIST_HEADER, NUMBERED_HEADER, read_list
from app.domain.quality import quality_report
from app.domain.schedules import IMPORTED, Fill, Specification, generate_blocks, generate_stratum, validate
from app.errors import FaultyImport, InvalidSpecification
from tests.domain.lists import factor_of, seed_of, specification
from tests.harness import SeededEntropy

Lines = list[str]


def wanted(**fields: object) -> Specification:
    """Return the specification that an import is held to."""
    spec = replace(specification(**fields), algorithm=IMPORTED)  # type: ignore[arg-type]  # the fields of the builder, whichever
    validate(spec)
    return spec


def lines_of(spec: Specification, seed: int = 1, numbers: Sequence[str] | None = None) -> Lines:
    """Return a list as some program of a statistician writes it."""
    slots = [
        f"{stratum.stratum_code},{slot.position},{slot.arm_code},{slot.block},{slot.block_size}"
        for stratum in spec.strata
        for slot in generate_stratum(spec, stratum, seed_of(seed))
    ]
    return slots if numbers is None else [f"{slot},{number}" for slot, number in zip(slots, numbers, strict=True)]


def file_of(lines: Lines, header: Sequence[str] = LIST_HEADER) -> bytes:
    return "\n".join([",".join(header), *lines, ""]).encode()


def faults_of(lines: Lines, spec: Specification, header: Sequence[str] = LIST_HEADER) -> list[tuple[str, str]]:
    """Return what is wrong with a list."""
    with pytest.raises(FaultyImport) as refused:
        read_list(file_of(lines, header), spec)
    assert refused.value.field == "list_csv"
    return list(refused.value.faults)


def numbers_for(count: int) -> list[str]:
    return list(draw_randomization_numbers(SeededEntropy(7), count, frozenset()))


SEX = factor_of("sex", "f", "m")


class TestWhole:
    @pytest.mark.parametrize("fill", list(Fill))
    def test_as_it_was_made(self, fill: Fill) -> None:
        """Every block in its place, by stratum; the report is that of the same slots. [SEQ-16, SEQ-14]"""
        spec = wanted(ratios=(2, 1), sizes=(3, 6), length=30, fill=fill, factors=[SEX])
        read = read_list(file_of(lines_of(spec)), spec)
        made = {stratum.stratum_code: list(generate_blocks(spec, stratum, seed_of(1))) for stratum in spec.strata}
        assert read.blocks == made
        plans = ((stratum, generate_stratum(spec, stratum, seed_of(1))) for stratum in spec.strata)
        assert read.report == quality_report(spec, plans)
        assert dict(read.numbers) == {}

    def test_with_numbers(self) -> None:
        """Its own randomization numbers are taken, in the order of the list, each with its line. [SEQ-16, B4]"""
        spec = wanted(length=48)
        numbers = numbers_for(48)
        read = read_list(file_of(lines_of(spec, numbers=numbers), NUMBERED_HEADER), spec)
        assert list(read.numbers) == numbers
        assert list(read.numbers.values()) == [f"line {number}" for number in range(2, 50)]

    def test_it_never_prints_itself(self) -> None:
        """No arm in a repr. [SEQ-07]"""
        spec = wanted(length=48)
        assert repr(read_list(file_of(lines_of(spec)), spec)) == "ImportedList()"

    def test_an_algorithm_of_nobody(self) -> None:
        """A list is either made by the algorithm or imported. [SEQ-01]"""
        with pytest.raises(InvalidSpecification, match="neither"):
            validate(replace(specification(), algorithm="mine"))


def replaced(at: int, old: str, new: str) -> Callable[[Lines], Lines]:
    """Return what changes the words of one line."""

    def change(lines: Lines) -> Lines:
        assert old in lines[at]
        return [*lines[:at], lines[at].replace(old, new, 1), *lines[at + 1 :]]

    return change


def swapped(lines: Lines) -> Lines:
    return [*lines[:5], lines[6], lines[5], *lines[7:]]


class TestLines:
    @pytest.mark.parametrize(
        ("change", "places", "words"),
        [
            (replaced(0, "sex=f", "sex=x"), ["line 2"], "no such stratum"),
            (replaced(0, ",B,", ",Z,"), ["line 2"], "no such arm"),
            (replaced(3, ",3,", ",+3,"), ["line 5"], "whole numbers"),
            (replaced(3, ",3,", ",03,"), ["line 5"], "whole numbers"),
            (replaced(0, ",0,", ",1,"), ["line 2"], "begins with position 0"),
            (replaced(2, ",2,", ",4,"), ["line 4"], "Position 2 comes here"),
            (replaced(5, ",1,4", ",0,4"), ["line 7"], "Block 2 begins here, or"),
            (replaced(6, ",1,4", ",1,8"), ["line 8"], "another size of this block"),
            (swapped, ["line 7", "line 9"], "Position 5 comes here"),
            (lambda lines: [*lines[:5], *lines[6:]], ["line 7"], "Position 5 comes here"),
            (lambda lines: [*lines[:5], lines[4], *lines[5:]], ["line 7"], "stands already at line 6"),
            (lambda lines: [*lines[24:], *lines[:24]], ["line 2", "line 26"], "in the order of the specification"),
            (lambda lines: [*lines[:24], *lines[25:]], ["line 26"], "begins with position 0 in block 0"),
        ],
    )
    def test_a_wrong_line_is_named(self, change: Callable[[Lines], Lines], places: list[str], words: str) -> None:
        """Malformed, unknown, unsorted, left out or there twice: its line, and no more than what cannot follow it. [SEQ-16]"""
        spec = wanted(length=24, sizes=[4], factors=[SEX])
        found = faults_of(change(lines_of(spec, seed=5)), spec)
        assert [place for place, _ in found] == places
        assert words in " ".join(sentence for _, sentence in found)

    def test_one_wrong_line_in_a_thousand(self) -> None:
        """It alone is named; the next ones are not. [SEQ-16]"""
        spec = wanted(length=1000)
        lines = lines_of(spec)
        lines[617] = lines[617].replace(",617,", ",,")
        assert [place for place, _ in faults_of(lines, spec)] == ["line 619"]

    def test_numbers(self) -> None:
        """A wrong check character and a number that stands twice, each with its line. [B4]"""
        spec, numbers = wanted(length=48), numbers_for(48)
        numbers[3] = numbers[3][:-1] + ("2" if numbers[3][-1] != "2" else "3")
        numbers[9] = numbers[0]
        numbers[12] = numbers[12].lower()
        numbers[20] = numbers[20] + numbers[20]
        found = faults_of(lines_of(spec, numbers=numbers), spec, NUMBERED_HEADER)
        assert [place for place, _ in found] == ["line 5", "line 11", "line 14", "line 22"]
        assert "stands already at line 2" in found[1][1]

    def test_another_header(self) -> None:
        """The header says whether there are numbers, and nothing else. [SEQ-16]"""
        spec = wanted(length=48)
        found = faults_of(lines_of(spec), spec, ["stratum", *LIST_HEADER[1:]])
        assert found[0][0] == "line 1"
        assert ",".join(NUMBERED_HEADER) in found[0][1]

    @given(st.binary(max_size=200))
    def test_any_bytes_are_read_or_refused(self, content: bytes) -> None:
        """Nothing that is sent is a fault of the service. [G2]"""
        spec = wanted(length=48)
        for sent in (content, file_of([]) + content):
            with pytest.raises(FaultyImport):
                read_list(sent, spec)


class TestBlocks:
    @pytest.mark.parametrize("fill", list(Fill))
    def test_a_stratum_of_another_length(self, fill: Fill) -> None:
        """Too few slots, and a stratum that is not there. [SEQ-16]"""
        spec = wanted(length=24, sizes=[4], factors=[SEX], fill=fill)
        found = faults_of(lines_of(spec)[:20], spec)
        assert [place for place, _ in found] == ["list", "list"]
        assert "has 20 slots" in found[0][1]
        assert "'sex=m' has 0 slots" in found[1][1]

    def test_an_incomplete_block(self) -> None:
        """Every block of an exact list is whole. [A3]"""
        spec = wanted(length=8, sizes=[4, 8])
        lines = [f",{at},{'AABB'[at % 4]},0,4" for at in range(3)]
        lines += [f",{at},{'AB'[at % 2]},1,8" for at in range(3, 8)]
        found = faults_of(lines, spec)
        assert found == [
            (place, "The block that begins here has not as many lines as its size says.")
            for place in ("line 2", "line 5")
        ]

    def test_an_overrun_is_cut_at_its_end_alone(self) -> None:
        """The last block may be the beginning of one, and no other. [A3]"""
        spec = wanted(length=8, sizes=[4, 8], fill=Fill.OVERRUN)
        sizes = [8, 8]
        lines = [f",{at},{'AB'[at % 2]},{at // 8},{sizes[at // 8]}" for at in range(16)]
        read_list(file_of(lines), spec)
        cut = [f",{at},{'AB'[at % 2]},{(at + 2) // 6},8" for at in range(16)]
        assert [place for place, _ in faults_of(cut, spec)] == ["line 2", "line 6"]
        lopsided = [*lines[:-6], *(f",{at},A,1,8" for at in range(10, 16))]
        assert "in its ratio" in faults_of(lopsided, spec)[0][1]

    def test_a_size_that_was_not_planned(self) -> None:
        """Sizes are those of the specification. [A3]"""
        spec = wanted(length=12, sizes=[4])
        lines = [f",{at},{'AB'[at % 2]},{at // 6},6" for at in range(12)]
        found = faults_of(lines, spec)
        assert [place for place, _ in found] == ["line 2", "line 8"]
        assert "no size that the specification has" in found[0][1]

    def test_a_wrong_arm_in_a_thousand(self) -> None:
        """The block that it unbalances is named, and it alone. [A3]"""
        spec = wanted(length=1000, sizes=[4])
        lines = lines_of(spec)
        lines[617] = lines[617].replace(",A,", ",?,").replace(",B,", ",A,").replace(",?,", ",B,")
        assert faults_of(lines, spec) == [
            ("line 618", "The block that begins here does not hold each arm in its ratio.")
        ]


def number_of(body: str) -> str:
    return body + check_character(body)


def by_arm(place: int) -> Callable[[int, str], str]:
    """Return numbers of which one character tells the arm."""

    def number(at: int, arm: str) -> str:
        drawn = list(numbers_for(400)[at][:5])
        drawn[place] = ALPHABET[2 * (ALPHABET.index(drawn[place]) // 2) + (arm == "B")]
        return number_of("".join(drawn))

    return number


class TestTelling:
    @pytest.mark.parametrize("place", [0, 2, 4])
    def test_numbers_that_tell_the_arm(self, place: int) -> None:
        """By their first character, or by the oddness of another one. [B4, failures 1 and 2]"""
        spec = wanted(length=400)
        lines, number = lines_of(spec), by_arm(place)
        numbers = [number(at, line.split(",")[2]) for at, line in enumerate(lines)]
        assert len(set(numbers)) == 400
        found = faults_of([f"{line},{one}" for line, one in zip(lines, numbers, strict=True)], spec, NUMBERED_HEADER)
        assert [place for place, _ in found] == ["list"]
        assert "tell the arm" in found[0][1]

    def test_numbers_that_tell_the_order(self) -> None:
        """Numbers that rise with the list say what comes next to what. [B4]"""
        spec = wanted(length=60)
        found = faults_of(lines_of(spec, numbers=sorted(numbers_for(60))), spec, NUMBERED_HEADER)
        assert "tell the order of the list" in found[0][1]

    def test_an_order_that_is_no_chance(self) -> None:
        """Block after block in one order: whoever knows one knows all. [SEQ-04, B4]"""
        spec = wanted(length=400, sizes=[4])
        lines = [f",{at},{'AABB'[at % 4]},{at // 4},4" for at in range(400)]
        found = faults_of(lines, spec)
        assert {place for place, _ in found} == {"list"}
        assert "'orders'" in " ".join(sentence for _, sentence in found)
