"""The allocation list: its specification, what makes one unusable, and the permuted blocks it gives (rule A).

Values in, values out: the seed comes in as bytes, and a slot goes out before the next block is shuffled.
The algorithm is written down byte by byte in algorithm.md.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from itertools import chain, product, repeat
from math import gcd, prod
from typing import Any, Final, NamedTuple, TypeAlias

import msgspec

from app.domain.streams import Stream
from app.domain.words import Arm, ArmCode, Factor, Mode, SiteCode, StratumCode, StudyCode
from app.errors import InvalidSpecification

ALGORITHM: Final = "snose-permuted-blocks-1"
IMPORTED: Final = "imported"
"""Stands in the place of the algorithm, and says where a list comes from, when an independent statistician made it (rule A1)."""
SEED_SIZE: Final = 32
"""Bytes of a seed: 256 bits (rule A4, SEQ-05)."""

MAX_ARMS: Final = 20
MAX_RATIO: Final = 100
MAX_FACTORS: Final = 10
MAX_LEVELS: Final = 100
MAX_STRATA: Final = 10_000
MAX_BLOCK_SIZE: Final = 1000
MAX_BLOCK_SIZES: Final = 10
MAX_WEIGHT: Final = 1000
MAX_SLOTS: Final = 10_000_000
"""Of a whole list, and so of a stratum."""
MAX_TEXT: Final = 200
"""Characters of a label or treatment."""

LEAST_CHANCE_TO_FILL: Final = 0.01
"""Rule A3: below it the blocks hardly ever add up to the length."""
SMALL_BLOCK_SIZE: Final = 8
"""A fixed block up to this size is easily counted along by one site (rule A11)."""
LEAST_BLOCKS_PER_STRATUM: Final = 2
"""With fewer blocks to a stratum, a quarter of the subjects may stand in incomplete ones (SEQ-13)."""

# At a chance to fill of 1 % so many failures in a row have a probability below 1e-43: only a specification
# that was never validated gets here, and it must not keep a worker for ever.
_FILL_ATTEMPTS: Final = 10_000
_SETTLED: Final = 1e-14

_CODE: Final = re.compile(r"[A-Za-z0-9_-]{1,20}")
_SITE_CODE: Final = re.compile(r"[A-Za-z0-9_-]{1,10}")
_STUDY_CODE: Final = re.compile(r"[A-Za-z0-9_-]{1,30}")

StratumLength: TypeAlias = tuple[SiteCode | None, Mapping[str, str], int]
"""Site, level code by factor code, and length of one stratum."""


class Fill(StrEnum):
    """How blocks meet the length: exactly, or past it with the last block cut (rule A3)."""

    EXACT = "exact"
    OVERRUN = "overrun"


@dataclass(frozen=True, slots=True)
class StratumSpec:
    """One cell of the stratification, with the number of subjects it is planned for."""

    stratum_code: StratumCode
    site_code: SiteCode | None
    levels: tuple[tuple[str, str], ...]
    length: int


@dataclass(frozen=True, slots=True)
class Specification:
    """Everything that, with the seed, determines one segment of an allocation list (SEQ-01)."""

    study_code: StudyCode
    mode: Mode
    list_id: str
    segment_number: int
    algorithm: str
    arms: tuple[Arm, ...]
    factors: tuple[Factor, ...]
    stratify_by_site: bool
    block_sizes: tuple[int, ...]
    block_size_weights: tuple[int, ...]
    fill: Fill
    strata: tuple[StratumSpec, ...]

    def document(self) -> dict[str, Any]:
        """Return the specification as JSON values; its leaf commits to their canonical form (rule A8)."""
        return {
            "study_code": self.study_code,
            "mode": self.mode.value,
            "list_id": self.list_id,
            "segment_number": self.segment_number,
            "algorithm": self.algorithm,
            "arms": [
                {"arm_code": arm.arm_code, "label": arm.label, "treatment": arm.treatment, "ratio": arm.ratio}
                for arm in self.arms
            ],
            "factors": [
                {
                    "factor_code": factor.factor_code,
                    "label": factor.label,
                    "levels": [{"level_code": level.level_code, "label": level.label} for level in factor.levels],
                }
                for factor in self.factors
            ],
            "stratify_by_site": self.stratify_by_site,
            "block_sizes": list(self.block_sizes),
            "block_size_weights": list(self.block_size_weights),
            "fill": self.fill.value,
            "strata": [
                {
                    "stratum_code": stratum.stratum_code,
                    "site_code": stratum.site_code,
                    "levels": [list(pair) for pair in stratum.levels],
                    "length": stratum.length,
                }
                for stratum in self.strata
            ],
        }

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> "Specification":
        """Return the specification that gave ``document``.

        Raises ``InvalidSpecification`` unless the document holds exactly its fields, no fewer and no others.
        """
        try:
            specification = msgspec.convert(document, cls)
        except msgspec.ValidationError as error:
            raise InvalidSpecification(f"The document is no specification: {error}.", "specification") from error
        if specification.document() != document:
            raise InvalidSpecification("The document holds fields that no specification has.", "specification")
        return specification


class BlockPlan(NamedTuple):
    """One block as it will be used; the last one of an overrun is cut and has fewer arms than its size.

    Danger: holds arms; it goes nowhere but into a seal, a commitment or a quality report.
    """

    block: int
    block_size: int
    arm_codes: tuple[ArmCode, ...]


class SlotPlan(NamedTuple):
    """One slot; position and block count from 0 within the stratum of the segment.

    Danger: holds an arm; it goes nowhere but into a seal, a commitment or a quality report.
    """

    position: int
    arm_code: ArmCode
    block: int
    block_size: int


# -- strata --------------------------------------------------------------------------------------------------


def stratum_code(site_code: SiteCode | None, levels: Sequence[tuple[str, str]]) -> StratumCode:
    """Return the text that names a stratum, such as ``site=01;sex=f``; empty in an unstratified study."""
    site = [] if site_code is None else [("site", str(site_code))]
    return StratumCode(";".join(f"{factor}={level}" for factor, level in [*site, *levels]))


def enumerate_strata(
    factors: Sequence[Factor], site_codes: Sequence[SiteCode] | None, lengths: int | Sequence[StratumLength]
) -> tuple[StratumSpec, ...]:
    """Return every stratum of the factors, by site where ``site_codes`` is given, in definition order.

    ``lengths`` is one length for all or one entry for each stratum, in any order. Raises
    ``InvalidSpecification`` for an entry that names no stratum, a stratum named twice or left out, no site at
    all, or more than 10,000 strata.
    """
    sites: Sequence[SiteCode | None] = [None] if site_codes is None else site_codes
    count = len(sites) * prod(len(factor.levels) for factor in factors)
    _require(count > 0, "There is no stratum: sites or levels are missing.", "strata")
    _require(count <= MAX_STRATA, f"{count} strata are more than {MAX_STRATA}.", "strata")
    choices = [[(factor.factor_code, level.level_code) for level in factor.levels] for factor in factors]
    cells = {stratum_code(site, levels): (site, levels) for site in sites for levels in product(*choices)}
    length_of = dict.fromkeys(cells, lengths) if isinstance(lengths, int) else _named_lengths(factors, cells, lengths)
    return tuple(StratumSpec(code, site, levels, length_of[code]) for code, (site, levels) in cells.items())


def _named_lengths(
    factors: Sequence[Factor], cells: Mapping[StratumCode, object], lengths: Sequence[StratumLength]
) -> dict[StratumCode, int]:
    """Return the length of every cell from entries that must name each cell once."""
    named: dict[StratumCode, int] = {}
    for site, levels, length in lengths:
        known = levels.keys() == {factor.factor_code for factor in factors}
        pairs = [(factor.factor_code, levels[factor.factor_code]) for factor in factors] if known else []
        code = stratum_code(site, pairs)
        _require(
            known and code in cells,
            "A length is given for a stratum that the study does not have.",
            "lengths",
        )
        _require(code not in named, f"The stratum '{code}' is given twice.", "lengths")
        named[code] = length
    missing = [code for code in cells if code not in named]
    _require(
        not missing,
        f"No length is given for {len(missing)} strata, such as '{''.join(missing[:1])}'.",
        "lengths",
    )
    return named


def slots_per_stratum(spec: Specification, stratum: StratumSpec) -> int:
    """Return how many slots the list holds for a stratum.

    For overrun it is the length and the largest block, so that the number tells nothing of where the last
    block ends (rule A3).
    """
    return stratum.length if spec.fill is Fill.EXACT else stratum.length + max(spec.block_sizes)


# -- what is refused -----------------------------------------------------------------------------------------


def validate(spec: Specification) -> None:
    """Return only when the list can be made (rules A2, A3, SEQ-02).

    Raises ``InvalidSpecification`` with the field and the reason, in the field's words.
    """
    known = spec.algorithm in {ALGORITHM, IMPORTED}
    _require(known, f"The algorithm is neither '{ALGORITHM}' nor '{IMPORTED}'.", "algorithm")
    _require_code(_STUDY_CODE, spec.study_code, "study_code", "study code")
    _require(spec.segment_number >= 0, "The segment number is negative.", "segment_number")
    _validate_arms(spec.arms)
    _validate_factors(spec.factors)
    _validate_blocks(spec)
    _validate_strata(spec)
    _validate_lengths(spec)


def _require(condition: bool, message: str, field: str) -> None:
    if not condition:
        raise InvalidSpecification(message, field)


def _require_code(form: re.Pattern[str], code: str, field: str, what: str) -> None:
    _require(
        bool(form.fullmatch(code)),
        f"A {what} has other characters than letters, digits, '-' and '_', or too many.",
        field,
    )


def _require_text(text: str, field: str, what: str) -> None:
    # A control character or half a surrogate pair has no place on a label, and cannot be hashed as JSON (rule
    # G1).
    sound = bool(text.strip()) and len(text) <= MAX_TEXT and text.isprintable()
    _require(sound, f"A {what} needs 1 to {MAX_TEXT} printable characters.", field)


def _require_distinct(words: Sequence[str], field: str, what: str) -> None:
    # Spellings that differ in case only would be mistaken for each other by people.
    folded = [word.casefold() for word in words]
    twice = [word for place, word in enumerate(words) if word.casefold() in folded[:place]]
    _require(not twice, f"The {what} '{''.join(twice[:1])}' is there twice.", field)


def _validate_arms(arms: Sequence[Arm]) -> None:
    _require(len(arms) > 1, "A list needs at least two arms.", "arms")
    _require(len(arms) <= MAX_ARMS, f"A list has at most {MAX_ARMS} arms.", "arms")
    for arm in arms:
        _require_code(_CODE, arm.arm_code, "arms", "arm code")
        _require_text(arm.label, "arms", "label of an arm")
        _require_text(arm.treatment, "arms", "treatment")
        _require(
            1 <= arm.ratio <= MAX_RATIO,
            f"The ratio of an arm is a whole number from 1 to {MAX_RATIO}.",
            "arms",
        )
    _require_distinct([arm.arm_code for arm in arms], "arms", "arm code")
    _require_distinct([arm.label for arm in arms], "arms", "label")


def _validate_factors(factors: Sequence[Factor]) -> None:
    _require(len(factors) <= MAX_FACTORS, f"A list has at most {MAX_FACTORS} stratification factors.", "factors")
    _require_distinct([factor.factor_code for factor in factors], "factors", "factor code")
    for factor in factors:
        _require_code(_CODE, factor.factor_code, "factors", "factor code")
        # The word stands for the site in the names of strata.
        _require(factor.factor_code.casefold() != "site", "A factor cannot be called 'site'.", "factors")
        _require_text(factor.label, "factors", "label of a factor")
        _require(1 <= len(factor.levels) <= MAX_LEVELS, f"A factor has 1 to {MAX_LEVELS} levels.", "factors")
        _require_distinct([level.level_code for level in factor.levels], "factors", "level code")
        _require_distinct([level.label for level in factor.levels], "factors", "label of a level")
        for level in factor.levels:
            _require_code(_CODE, level.level_code, "factors", "level code")
            _require_text(level.label, "factors", "label of a level")


def _validate_blocks(spec: Specification) -> None:
    sizes, weights = spec.block_sizes, spec.block_size_weights
    ratio_sum = sum(arm.ratio for arm in spec.arms)
    _require(1 <= len(sizes) <= MAX_BLOCK_SIZES, f"A list has 1 to {MAX_BLOCK_SIZES} block sizes.", "block_sizes")
    _require(len(set(sizes)) == len(sizes), "A block size is there twice.", "block_sizes")
    for size in sizes:
        _require(
            1 <= size <= MAX_BLOCK_SIZE,
            f"A block size is a whole number from 1 to {MAX_BLOCK_SIZE}.",
            "block_sizes",
        )
        message = f"A block of {size} is no multiple of {ratio_sum}, the sum of the ratios."
        _require(size % ratio_sum == 0, message, "block_sizes")
    _require(len(weights) == len(sizes), "There must be one weight for each block size.", "block_size_weights")
    sound = all(1 <= weight <= MAX_WEIGHT for weight in weights)
    _require(sound, f"A weight is a whole number from 1 to {MAX_WEIGHT}.", "block_size_weights")


def _validate_strata(spec: Specification) -> None:
    _require(1 <= len(spec.strata) <= MAX_STRATA, f"A list has 1 to {MAX_STRATA} strata.", "strata")
    levels = {factor.factor_code: {level.level_code for level in factor.levels} for factor in spec.factors}
    for stratum in spec.strata:
        complete = [factor for factor, _ in stratum.levels] == list(levels)
        _require(
            complete,
            "A stratum needs one level of every factor, in order; otherwise strata overlap.",
            "strata",
        )
        known = all(level in levels[factor] for factor, level in stratum.levels)
        _require(known, "A stratum has a level that its factor does not have.", "strata")
        by_site = (stratum.site_code is not None) == spec.stratify_by_site
        _require(by_site, "Strata name a site if, and only if, the study stratifies by site.", "strata")
        if stratum.site_code is not None:
            _require_code(_SITE_CODE, stratum.site_code, "strata", "site code")
        named = stratum.stratum_code == stratum_code(stratum.site_code, stratum.levels)
        _require(named, "A stratum code does not say its site and levels.", "strata")
    _require_distinct([stratum.stratum_code for stratum in spec.strata], "strata", "stratum")


def _validate_lengths(spec: Specification) -> None:
    field = "length_per_stratum"
    lengths = {stratum.length for stratum in spec.strata}
    _require(min(lengths) > 0, "A stratum is empty: its length must be at least 1.", field)
    slots = sum(slots_per_stratum(spec, stratum) for stratum in spec.strata)
    _require(slots <= MAX_SLOTS, f"{slots} slots are more than the {MAX_SLOTS} of the largest list.", field)
    if spec.fill is Fill.OVERRUN:
        return
    step = gcd(*spec.block_sizes)
    for length in sorted(lengths):
        message = f"Blocks cannot fill a length of {length} exactly: each block size is a multiple of {step}."
        _require(length % step == 0, message, field)
    for length, chance in _chances_to_fill(spec.block_sizes, spec.block_size_weights, lengths).items():
        message = (
            f"Blocks drawn by their weights fill a length of {length} exactly with a chance of {chance:.2%}; "
            f"it must be {LEAST_CHANCE_TO_FILL:.0%} or more. Choose another length, other sizes or 'overrun'."
        )
        _require(chance >= LEAST_CHANCE_TO_FILL, message, field)


def chance_to_fill(sizes: Sequence[int], weights: Sequence[int], length: int) -> float:
    """Return the probability that independent draws of sizes, added up, meet ``length`` (rule A3).

    It obeys the renewal equation ``u(n) = sum of p(size) * u(n - size)`` with ``u(0) = 1`` (Feller, volume I,
    chapter XIII).
    """
    return _chances_to_fill(sizes, weights, {length})[length]


def _chances_to_fill(sizes: Sequence[int], weights: Sequence[int], lengths: set[int]) -> dict[int, float]:
    """Return the chance to fill for each of the lengths, in one walk to the longest of them."""
    step = gcd(*sizes)
    total = sum(weights)
    jumps = [(-(size // step), weight / total) for size, weight in zip(sizes, weights, strict=True)]
    reach = max(sizes) // step
    wanted = {length // step for length in lengths if length % step == 0}
    found: dict[int, float] = {}
    window = [0.0] * (reach - 1) + [1.0]
    for n in range(max(wanted, default=-1) + 1):
        if n:
            window.append(sum(probability * window[back] for back, probability in jumps))
        if n in wanted:
            found[n] = window[-1]
        if len(window) >= 2 * reach:
            del window[:-reach]
            # Every later value is a mean of values of this window, so it lies between them: no need to walk
            # on.
            if max(window) - min(window) < _SETTLED:
                break
    return {length: 0.0 if length % step else found.get(length // step, window[-1]) for length in sorted(lengths)}


# -- what is warned of ---------------------------------------------------------------------------------------


def warnings(spec: Specification, site_count: int, planned_subjects: int | None = None) -> tuple[str, ...]:
    """Return what a statistician should think about again, as sentences; none of it is refused.

    Rule A11, SEQ-12, SEQ-13. ``planned_subjects`` is the study's figure; without it the sum of the lengths
    stands for it.
    """
    found: list[str] = []
    # A list stratified by site is followed by each site alone, however many there are.
    one_site = site_count == 1 or spec.stratify_by_site
    if len(spec.block_sizes) == 1 and spec.block_sizes[0] <= SMALL_BLOCK_SIZE and one_site:
        found.append(
            f"One fixed block size of {spec.block_sizes[0]} within one site is predictable: whoever "
            "counts or guesses past allocations can foretell the end of each block. Use several block sizes."
        )
    weighted = sum(size * weight for size, weight in zip(spec.block_sizes, spec.block_size_weights, strict=True))
    mean_block = weighted / sum(spec.block_size_weights)
    planned = sum(stratum.length for stratum in spec.strata) if planned_subjects is None else planned_subjects
    blocks = planned / len(spec.strata) / mean_block
    if len(spec.strata) > 1 and blocks < LEAST_BLOCKS_PER_STRATUM:
        found.append(
            f"{planned} subjects in {len(spec.strata)} strata fill {blocks:.1f} blocks of each on "
            "average: many blocks will stay incomplete, and the arms may differ in number. "
            "Use fewer strata or smaller blocks."
        )
    return tuple(found)


# -- generation ----------------------------------------------------------------------------------------------


def generate_blocks(spec: Specification, stratum: StratumSpec, seed: bytes) -> Iterator[BlockPlan]:
    """Return the blocks of a stratum in order, each shuffled when it is asked for (rules A3, A4).

    ``spec`` must have passed ``validate``. Raises ``ValueError`` for a seed that is not 32 bytes, at once,
    and ``InvalidSpecification`` when sizes do not meet the length.
    """
    if len(seed) != SEED_SIZE:
        raise ValueError(f"a seed has {SEED_SIZE} bytes")
    # The label is unlike for any two strata, segments, studies and lists (which have a seed each): no stream
    # is shared (SEQ-09).
    stream = Stream(ALGORITHM, seed, spec.study_code, spec.segment_number, stratum.stratum_code)
    slots = slots_per_stratum(spec, stratum)
    return _shuffle_blocks(spec.arms, _draw_sizes(spec, stream, slots), slots, stream)


def generate_stratum(spec: Specification, stratum: StratumSpec, seed: bytes) -> Iterator[SlotPlan]:
    """Return the slots of a stratum in order; as ``generate_blocks``, slot by slot."""
    return chain.from_iterable(_number_slots(generate_blocks(spec, stratum, seed)))


def _draw_sizes(spec: Specification, stream: Stream, slots: int) -> list[int]:
    """Return the sizes of all blocks, drawn before the first shuffle."""
    # One entry for each unit of weight: the draw is the index.
    table = [
        size for size, weight in zip(spec.block_sizes, spec.block_size_weights, strict=True) for _ in range(weight)
    ]
    largest = max(table)
    for _ in range(_FILL_ATTEMPTS):
        sizes: list[int] = []
        total = 0
        while total < slots:
            # So many blocks are needed at the least, whatever their sizes: drawn together they are the same
            # draws, faster.
            needed = -((total - slots) // largest)
            drawn = [table[unit] for unit in stream.many_below(len(table), needed)]
            sizes += drawn
            total += sum(drawn)
        # All are discarded, never the last one only: so the law is that of independent draws, given their sum
        # (rule A3).
        if total == slots or spec.fill is Fill.OVERRUN:
            return sizes
    raise InvalidSpecification("The blocks do not fill the length exactly.", "length_per_stratum")


def _shuffle_blocks(arms: Sequence[Arm], sizes: Sequence[int], slots: int, stream: Stream) -> Iterator[BlockPlan]:
    ratio_sum = sum(arm.ratio for arm in arms)
    unshuffled = {
        size: [arm.arm_code for arm in arms for _ in range(arm.ratio * size // ratio_sum)] for size in set(sizes)
    }
    left = slots
    for block, size in enumerate(sizes):
        # The whole block is shuffled before it is cut: each start of each order stays equally likely.
        arm_codes = stream.shuffled(unshuffled[size])
        yield BlockPlan(block, size, tuple(arm_codes[:left]))
        left -= size


# A slot is made for each of a million subjects: the tuple's own constructor does without a call of Python
# code for each.
_NEW_SLOT: Final[Callable[[tuple[int, ArmCode, int, int]], SlotPlan]] = partial(tuple.__new__, SlotPlan)


def _number_slots(blocks: Iterator[BlockPlan]) -> Iterator[Iterator[SlotPlan]]:
    position = 0
    for block, size, arm_codes in blocks:
        end = position + len(arm_codes)
        yield map(_NEW_SLOT, zip(range(position, end), arm_codes, repeat(block), repeat(size), strict=False))
        position = end
