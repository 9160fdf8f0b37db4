"""A list that an independent statistician made: read, and held to its specification line by line (rule A1, SEQ-16).

It comes as a CSV file, one line a slot, in the order of the list: strata as the specification has them, positions and blocks
counted from 0 within their stratum. What is wrong in itself or out of order is named with its line; a list without such faults is
then looked at stratum by stratum and block by block, and one without those, as a whole: what stands in it by chance must look so.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from statistics import median
from typing import Final, NamedTuple

from app.domain.codes import RANDOMIZATION_NUMBER_LENGTH, RUNS_TEST_LIMIT, codes_tell, is_valid, runs_test_p
from app.domain.imports import Fault, Line, read_table, refuse_faults
from app.domain.quality import QualityReport, quality_report
from app.domain.schedules import BlockPlan, Fill, SlotPlan, Specification, slots_per_stratum
from app.domain.words import ArmCode, RandomizationNumber, StratumCode

LIST_HEADER: Final = ("stratum_code", "position", "arm_code", "block", "block_size")
NUMBERED_HEADER: Final = (*LIST_HEADER, "randomization_number")
LIST_FIELD: Final = "list_csv"

_WHOLE: Final = re.compile(r"0|[1-9][0-9]{0,8}")
_LIST: Final = "list"


@dataclass(frozen=True, slots=True)
class ImportedList:
    """A list that is what its specification says. Danger: holds every arm."""

    blocks: Mapping[StratumCode, Sequence[BlockPlan]] = field(repr=False)
    numbers: Mapping[RandomizationNumber, str] = field(repr=False)
    """Randomization numbers in the order of the list, with the place of each in the file; none where the service draws them."""
    report: QualityReport = field(repr=False)


class _Slot(NamedTuple):
    """A line that is sound in itself."""

    place: str
    stratum_code: str
    position: int
    arm_code: str
    block: int
    block_size: int


def read_list(content: bytes, spec: Specification) -> ImportedList:
    """Return the list of a CSV file; ``spec`` must have passed ``validate``.

    The header is ``LIST_HEADER``, with or without ``randomization_number``. Raises ``FaultyImport`` with every fault: it is
    refused whole.
    """
    header, lines = read_table(content, (LIST_HEADER, NUMBERED_HEADER), LIST_FIELD)
    reader = _Reader(spec)
    for line in lines:
        reader.take(line)
    refuse_faults(reader.faults, LIST_FIELD)
    by_stratum = {
        StratumCode(code): list(slots) for code, slots in groupby(reader.slots, key=lambda one: one.stratum_code)
    }
    refuse_faults(list(_stratum_faults(spec, by_stratum)), LIST_FIELD)
    plans = ((stratum, _plans(by_stratum[stratum.stratum_code])) for stratum in spec.strata)
    report = quality_report(spec, plans)
    arms = [slot.arm_code for slot in reader.slots]
    numbers = reader.numbers if header == NUMBERED_HEADER else {}
    refuse_faults([*_chance_faults(report), *_number_faults(list(numbers), arms)], LIST_FIELD)
    return ImportedList({code: list(_blocks(slots)) for code, slots in by_stratum.items()}, numbers, report)


# -- line by line ------------------------------------------------------------------------------------------------------


class _Reader:
    """Takes the lines in order, and notes what is wrong with each by itself and after the one before it."""

    def __init__(self, spec: Specification) -> None:
        self._strata = {str(stratum.stratum_code): ordinal for ordinal, stratum in enumerate(spec.strata)}
        self._arms = {str(arm.arm_code) for arm in spec.arms}
        self._places: dict[tuple[str, int], str] = {}
        # None after a line that cannot be followed: of one wrong line the next is not named too.
        self._last: _Slot | None = _Slot("", "", -1, "", -1, 0)
        self.slots: list[_Slot] = []
        self.numbers: dict[RandomizationNumber, str] = {}
        self.faults: list[Fault] = []

    def take(self, line: Line) -> None:
        """Take the next line."""
        place, cells = line
        stratum_code, position, arm_code, block, block_size = cells[: len(LIST_HEADER)]
        faults = [*self._wrong_words(stratum_code, arm_code), *self._wrong_numbers(place, cells[len(LIST_HEADER) :])]
        last, self._last = self._last, None
        if not all(map(_WHOLE.fullmatch, (position, block, block_size))):
            faults.append("position, block and block_size are whole numbers from 0.")
        elif stratum_code in self._strata:
            slot = _Slot(place, stratum_code, int(position), arm_code, int(block), int(block_size))
            self.slots.append(slot)
            misplaced = self._misplaced(slot, last)
            if misplaced is None:
                self._places[stratum_code, slot.position] = place
                self._last = slot
            else:
                faults.append(misplaced)
        self.faults += [(place, sentence) for sentence in faults]

    def _wrong_words(self, stratum_code: str, arm_code: str) -> Iterator[str]:
        if stratum_code not in self._strata:
            yield "The specification has no such stratum."
        if arm_code not in self._arms:
            yield "The study has no such arm."

    def _wrong_numbers(self, place: str, numbers: Sequence[str]) -> Iterator[str]:
        for number in numbers:
            if len(number) != RANDOMIZATION_NUMBER_LENGTH or not is_valid(number):
                yield "A randomization number has six characters, of which the last checks the others."
            elif number in self.numbers:
                yield f"The randomization number stands already at {self.numbers[RandomizationNumber(number)]}."
            else:
                self.numbers[RandomizationNumber(number)] = place

    def _misplaced(self, slot: _Slot, last: _Slot | None) -> str | None:
        """Return why a line does not follow the one before it; after one that was wrong any line may stand."""
        stands_at = self._places.get((slot.stratum_code, slot.position))
        if stands_at is not None:
            return f"The slot stands already at {stands_at}."
        if last is None:
            return None
        follows = _misplaced_next if slot.stratum_code == last.stratum_code else self._misplaced_first
        return follows(slot, last)

    def _misplaced_first(self, slot: _Slot, last: _Slot) -> str | None:
        if self._strata[slot.stratum_code] != self._strata.get(last.stratum_code, -1) + 1:
            return "The strata stand together, in the order of the specification."
        if (slot.position, slot.block) != (0, 0):
            return "A stratum begins with position 0 in block 0."
        return None


def _misplaced_next(slot: _Slot, last: _Slot) -> str | None:
    if slot.position != last.position + 1:
        return f"Position {last.position + 1} comes here."
    if slot.block not in {last.block, last.block + 1}:
        return f"Block {last.block + 1} begins here, or the block before goes on."
    if slot.block == last.block and slot.block_size != last.block_size:
        return "The line before names another size of this block."
    return None


# -- strata and blocks -------------------------------------------------------------------------------------------------


def _stratum_faults(spec: Specification, by_stratum: Mapping[StratumCode, Sequence[_Slot]]) -> Iterator[Fault]:
    shares = {
        size: {str(arm.arm_code): arm.ratio * size // sum(arm.ratio for arm in spec.arms) for arm in spec.arms}
        for size in spec.block_sizes
    }
    for stratum in spec.strata:
        slots = by_stratum.get(stratum.stratum_code, ())
        wanted = slots_per_stratum(spec, stratum)
        if len(slots) != wanted:
            sentence = (
                f"The stratum '{stratum.stratum_code}' has {len(slots)} slots; by its specification it has {wanted}."
            )
            yield _LIST, sentence
        for _, block in groupby(slots, key=lambda one: one.block):
            held = list(block)
            # Only an overrun's last block is cut: its length tells nothing of where it would have ended (rule A3).
            may_be_cut = spec.fill is Fill.OVERRUN and held[-1].position == wanted - 1
            fault = _block_fault(held, shares, may_be_cut=may_be_cut)
            if fault is not None:
                yield held[0].place, fault


def _block_fault(slots: Sequence[_Slot], shares: Mapping[int, Mapping[str, int]], *, may_be_cut: bool) -> str | None:
    share = shares.get(slots[0].block_size)
    if share is None:
        return "The block that begins here is of no size that the specification has."
    by_arm = Counter(slot.arm_code for slot in slots)
    is_cut = may_be_cut and len(slots) < slots[0].block_size
    if len(slots) != slots[0].block_size and not is_cut:
        return "The block that begins here has not as many lines as its size says."
    if any(count > share[arm] for arm, count in by_arm.items()):
        return "The block that begins here does not hold each arm in its ratio."
    return None


def _blocks(slots: Sequence[_Slot]) -> Iterator[BlockPlan]:
    for number, group in groupby(slots, key=lambda one: one.block):
        block = list(group)
        yield BlockPlan(number, block[0].block_size, tuple(ArmCode(slot.arm_code) for slot in block))


def _plans(slots: Sequence[_Slot]) -> Iterator[SlotPlan]:
    return (SlotPlan(slot.position, ArmCode(slot.arm_code), slot.block, slot.block_size) for slot in slots)


# -- the list as a whole -----------------------------------------------------------------------------------------------


def _chance_faults(report: QualityReport) -> Iterator[Fault]:
    """Give the verdicts outside their limits: arms in their order tell the next one where blocks do not look like chance."""
    for verdict in report.verdicts:
        if not verdict.passed:
            sentence = f"The order does not look like chance: the verdict '{verdict.name}' on it is outside its limit."
            yield _LIST, sentence


def _number_faults(numbers: Sequence[RandomizationNumber], arms: Sequence[str]) -> Iterator[Fault]:
    """Give what randomization numbers tell, of the arm or of the place in the list (rule B4)."""
    if not numbers:
        return
    if codes_tell(numbers, arms):
        yield _LIST, "The randomization numbers tell the arm: in their order the arms do not alternate as by chance."
    values = {number: value for value, number in enumerate(sorted(numbers))}
    middle = median(values.values())
    if runs_test_p(["low" if values[number] < middle else "high" for number in numbers]) < RUNS_TEST_LIMIT:
        yield (
            _LIST,
            "The randomization numbers tell the order of the list: low and high ones do not alternate as by chance.",
        )
