"""Allocation lists: what is refused, what every list holds, that chance has the stated law, and that others make the same."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import combinations, product
from math import factorial, prod
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.domain import schedules
from app.domain.encoding import canonical_json
from app.domain.schedules import (
    ALGORITHM,
    LEAST_CHANCE_TO_FILL,
    MAX_SLOTS,
    MAX_STRATA,
    Fill,
    Specification,
    StratumLength,
    chance_to_fill,
    enumerate_strata,
    generate_blocks,
    generate_stratum,
    slots_per_stratum,
    stratum_code,
    validate,
    warnings,
)
from app.domain.streams import Stream
from app.domain.words import Arm, ArmCode, Factor, Level, SiteCode, StratumCode, StudyCode
from app.errors import InvalidSpecification
from tests.domain.lists import (
    ALPHA,
    arms_of,
    chi_square_p,
    exact_law,
    factor_of,
    list_text,
    second_implementation,
    seed_of,
    specification,
    vectors,
)


@st.composite
def specifications(draw: st.DrawFn) -> Specification:
    """Draw a specification that can be made: any ratios, sizes, weights, strata, both fills."""
    ratios = draw(st.lists(st.integers(1, 4), min_size=2, max_size=5))
    whole = sum(ratios)
    multiples = draw(st.lists(st.integers(1, 4), min_size=1, max_size=3, unique=True))
    sizes = [whole * multiple for multiple in multiples]
    weights = draw(st.lists(st.integers(1, 9), min_size=len(sizes), max_size=len(sizes)))
    fill = draw(st.sampled_from(Fill))
    factors = [factor_of(name, *"abc"[: draw(st.integers(1, 3))]) for name in ("sex", "age")[: draw(st.integers(0, 2))]]
    sites = draw(st.sampled_from([None, ["01"], ["01", "north-2"]]))
    # A sum of sizes can always be met; it is then refused or not by its chance.
    met = sum(size * draw(st.integers(0, 4)) for size in sizes) or sizes[0]
    length = met if fill is Fill.EXACT else draw(st.integers(1, 60))
    spec = specification(
        ratios=ratios, sizes=sizes, weights=weights, length=length, fill=fill, factors=factors, sites=sites
    )
    if fill is Fill.EXACT and chance_to_fill(sizes, weights, length) < LEAST_CHANCE_TO_FILL:
        return replace(spec, fill=Fill.OVERRUN)
    return spec


class TestGoldenVectors:
    def test_lists(self) -> None:
        """The published lists come out byte for byte. [SEQ-06]"""
        cases = vectors()["lists"]
        assert len(cases) == 11
        for case in cases:
            spec, seed = Specification.from_document(case["specification"]), bytes.fromhex(case["seed"])
            assert hashlib.sha256(list_text(spec, seed).encode()).hexdigest() == case["text_sha256"], case["name"]
            for stratum, expected in zip(spec.strata, case.get("strata", []), strict=False):
                blocks = [
                    [block.block_size, " ".join(block.arm_codes)] for block in generate_blocks(spec, stratum, seed)
                ]
                assert {"stratum_code": stratum.stratum_code, "blocks": blocks} == expected, case["name"]

    def test_real_trial(self) -> None:
        """The list of NCT03033277 holds 320 slots, 160 to each arm. [SEQ-03]"""
        case = vectors()["lists"][0]
        text = list_text(Specification.from_document(case["specification"]), bytes.fromhex(case["seed"]))
        assert Counter(line.split("\t")[2] for line in text.splitlines()) == {"A": 160, "B": 160}

    def test_small_example(self) -> None:
        """The example that algorithm.md works out by hand is what the service makes. [SEQ-06]"""
        spec = specification(study="DEMO-8", sizes=(2, 4), weights=(1, 2), length=10)
        blocks = list(generate_blocks(spec, spec.strata[0], bytes(range(32))))
        assert ["".join(block.arm_codes) for block in blocks] == ["AABB", "ABBA", "AB"]

    def test_second_implementation(self) -> None:
        """Another language, other code, the same bytes: golden vectors and sixty random specifications. [SEQ-06]"""
        known = vectors()
        cases = [
            (Specification.from_document(case["specification"]), bytes.fromhex(case["seed"])) for case in known["lists"]
        ]
        cases += [(spec, seed_of(number)) for number, spec in enumerate(some_specifications(60))]
        lists, streams = second_implementation(cases, known["streams"])
        assert streams == [case["values"] for case in known["streams"]]
        assert len(lists) == 71
        for (spec, seed), text in zip(cases, lists, strict=True):
            assert text == list_text(spec, seed)


def some_specifications(count: int) -> Iterator[Specification]:
    """Return ``count`` specifications drawn from a stream: the same ones in every run."""
    stream = Stream("specifications")
    for number in range(count):
        ratios = [1 + stream.below(3) for _ in range(2 + stream.below(3))]
        sizes = [sum(ratios) * multiple for multiple in stream.shuffled([1, 2, 3, 5])[: 1 + stream.below(3)]]
        weights = [1 + stream.below(9) for _ in sizes]
        factors = [factor_of("sex", "f", "m"), factor_of("age", "x", "y", "z")][: stream.below(3)]
        sites = [None, ["01"], ["01", "02", "zz-9"]][stream.below(3)]
        exact = chance_to_fill(sizes, weights, length := sum(sizes) * (1 + stream.below(4))) >= LEAST_CHANCE_TO_FILL
        fill = Fill.EXACT if exact and stream.below(2) else Fill.OVERRUN
        yield specification(
            ratios=ratios,
            sizes=sizes,
            weights=weights,
            length=length if fill is Fill.EXACT else 1 + stream.below(200),
            fill=fill,
            factors=factors,
            sites=sites,
            study=f"RANDOM-{number}",
            segment=stream.below(12),
        )


class TestEveryList:
    @given(specifications(), st.binary(min_size=32, max_size=32))
    @settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow], deadline=None)
    def test_blocks_hold_arms_in_ratio(self, spec: Specification, seed: bytes) -> None:
        """Every full block is exact, only the last of an overrun is cut, nothing is missing. [SEQ-03, rule A3]"""
        validate(spec)
        whole = sum(arm.ratio for arm in spec.arms)
        for stratum in spec.strata:
            blocks = list(generate_blocks(spec, stratum, seed))
            assert [block.block for block in blocks] == list(range(len(blocks)))
            assert {block.block_size for block in blocks} <= set(spec.block_sizes)
            assert sum(len(block.arm_codes) for block in blocks) == slots_per_stratum(spec, stratum)
            for block in blocks[:-1] if spec.fill is Fill.OVERRUN else blocks:
                assert Counter(block.arm_codes) == {
                    arm.arm_code: arm.ratio * block.block_size // whole for arm in spec.arms
                }
            last = blocks[-1]
            for arm in spec.arms:
                assert last.arm_codes.count(arm.arm_code) <= arm.ratio * last.block_size // whole
            slots = list(generate_stratum(spec, stratum, seed))
            assert [slot.position for slot in slots] == list(range(len(slots)))
            assert [(slot.arm_code, slot.block, slot.block_size) for slot in slots] == [
                (arm_code, block.block, block.block_size) for block in blocks for arm_code in block.arm_codes
            ]

    @given(specifications())
    @settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow], deadline=None)
    def test_document(self, spec: Specification) -> None:
        """A specification is its document, through JSON and back, with one canonical form. [SEQ-01, SEQ-11]"""
        document = json.loads(canonical_json(spec.document()))
        assert Specification.from_document(document) == spec
        assert canonical_json(Specification.from_document(document).document()) == canonical_json(spec.document())

    def test_overrun_lengths_tell_nothing(self) -> None:
        """With overrun every stratum of one length has one number of slots, whatever was drawn. [rule A3]"""
        spec = specification(
            fill=Fill.OVERRUN, length=20, factors=[factor_of("sex", "f", "m")], sites=["01", "02", "03"]
        )
        counts = {len(list(generate_stratum(spec, stratum, seed_of(1)))) for stratum in spec.strata}
        assert counts == {28}

    def test_block_by_block(self) -> None:
        """A block is shuffled when it is asked for: a list of ten million slots begins at once. [goals]"""
        spec = specification(sizes=(1000,), length=MAX_SLOTS)
        blocks = generate_blocks(spec, spec.strata[0], seed_of(1))
        assert next(blocks).block == 0
        assert next(blocks).block == 1

    @pytest.mark.parametrize("size", [0, 16, 31, 33])
    def test_seed_of_another_size(self, size: int) -> None:
        """A seed has 256 bits; a weaker one makes no list, and says so before the first slot is asked for. [SEQ-05]"""
        spec = specification()
        with pytest.raises(ValueError, match="32 bytes"):
            generate_stratum(spec, spec.strata[0], bytes(size))

    def test_never_validated(self) -> None:
        """A length that blocks cannot meet ends in a refusal, never in an endless search. [rule A3]"""
        spec = specification(length=7)
        with pytest.raises(InvalidSpecification):
            generate_blocks(spec, spec.strata[0], seed_of(1))

    def test_labels_do_not_enter(self) -> None:
        """Only what algorithm.md names decides: relabelled arms get the same sequence. [SEQ-06, rule B2]"""
        spec = specification(length=40)
        arms = (Arm(ArmCode("Z"), "Zed", "Other", 1), Arm(ArmCode("Y"), "Why", "Another", 1))
        renamed = list_text(replace(spec, arms=arms), seed_of(1)).replace("Z", "A").replace("Y", "B")
        assert renamed == list_text(spec, seed_of(1))


def edited(**changes: Any) -> Callable[[Specification], Specification]:  # noqa: ANN401  # any field has its own type
    return lambda spec: replace(spec, **changes)


def with_arm(**changes: Any) -> Callable[[Specification], Specification]:  # noqa: ANN401  # any field has its own type
    return lambda spec: replace(spec, arms=(spec.arms[0], replace(spec.arms[1], **changes)))


def with_stratum(**changes: Any) -> Callable[[Specification], Specification]:  # noqa: ANN401  # any field has its own type
    return lambda spec: replace(spec, strata=(replace(spec.strata[0], **changes), *spec.strata[1:]))


def with_factor(**changes: Any) -> Callable[[Specification], Specification]:  # noqa: ANN401  # any field has its own type
    return lambda spec: replace(spec, factors=(replace(spec.factors[0], **changes),))


STRATIFIED = specification(factors=[factor_of("sex", "f", "m")], sites=["01", "02"], length=24)
LEVEL = Level("f", "Female")

REFUSED: list[tuple[str, str, Callable[[Specification], Specification]]] = [
    ("algorithm", "algorithm is neither", edited(algorithm="snose-permuted-blocks-2")),
    ("study_code", "study code", edited(study_code=StudyCode("a b"))),
    ("study_code", "study code", edited(study_code=StudyCode("x" * 31))),
    ("study_code", "study code", edited(study_code=StudyCode("NCT03033277\n"))),
    ("segment_number", "negative", edited(segment_number=-1)),
    ("arms", "at least two arms", edited(arms=arms_of(1))),
    ("arms", "at least two arms", edited(arms=())),
    ("arms", "at most 20", edited(arms=arms_of(1, 1) * 11)),
    ("arms", "from 1 to 100", with_arm(ratio=0)),
    ("arms", "from 1 to 100", with_arm(ratio=-1)),
    ("arms", "from 1 to 100", with_arm(ratio=101)),
    ("arms", "'A' is there twice", with_arm(arm_code="A")),
    ("arms", "'a' is there twice", with_arm(arm_code="a")),
    ("arms", "'arm 1' is there twice", with_arm(label="arm 1")),
    ("arms", "arm code", with_arm(arm_code="")),
    ("arms", "arm code", with_arm(arm_code="x" * 21)),
    ("arms", "arm code", with_arm(arm_code="Ä")),
    ("arms", "label of an arm", with_arm(label=" ")),
    ("arms", "label of an arm", with_arm(label="x" * 201)),
    ("arms", "treatment", with_arm(treatment="")),
    ("arms", "treatment", with_arm(treatment="10 mg\x00")),
    ("arms", "treatment", with_arm(treatment="\ud800")),
    ("factors", "at most 10", edited(factors=tuple(factor_of(f"f{n}", "x") for n in range(11)))),
    ("factors", "'sex' is there twice", edited(factors=(factor_of("sex", "f"), factor_of("sex", "m")))),
    ("factors", "factor code", with_factor(factor_code="a=b")),
    ("factors", "called 'site'", with_factor(factor_code="Site")),
    ("factors", "label of a factor", with_factor(label="")),
    ("factors", "1 to 100 levels", with_factor(levels=())),
    ("factors", "1 to 100 levels", with_factor(levels=(LEVEL,) * 101)),
    ("factors", "level code 'f' is there twice", with_factor(levels=(LEVEL, LEVEL))),
    ("factors", "label of a level 'Female' is there twice", with_factor(levels=(LEVEL, Level("m", "Female")))),
    ("factors", "level code", with_factor(levels=(Level("a;b", "Female"),))),
    ("factors", "label of a level", with_factor(levels=(Level("f", "\n"),))),
    ("block_sizes", "1 to 10 block sizes", edited(block_sizes=(), block_size_weights=())),
    ("block_sizes", "1 to 10 block sizes", edited(block_sizes=tuple(range(2, 24, 2)))),
    ("block_sizes", "is there twice", edited(block_sizes=(4, 6, 4))),
    ("block_sizes", "from 1 to 1000", edited(block_sizes=(4, 0, 6))),
    ("block_sizes", "from 1 to 1000", edited(block_sizes=(4, -2, 6))),
    ("block_sizes", "from 1 to 1000", edited(block_sizes=(4, 1002, 6))),
    ("block_sizes", "block of 5 is no multiple of 2", edited(block_sizes=(4, 5, 6))),
    ("block_sizes", "block of 4 is no multiple of 3", with_arm(ratio=2)),
    ("block_size_weights", "one weight for each", edited(block_size_weights=(1, 1))),
    ("block_size_weights", "one weight for each", edited(block_size_weights=(1, 1, 1, 1))),
    ("block_size_weights", "from 1 to 1000", edited(block_size_weights=(1, 0, 1))),
    ("block_size_weights", "from 1 to 1000", edited(block_size_weights=(1, 1, 1001))),
    ("strata", "1 to 10000 strata", edited(strata=())),
    ("strata", "is there twice", edited(strata=STRATIFIED.strata + STRATIFIED.strata[:1])),
    ("strata", "strata overlap", with_stratum(levels=())),
    ("strata", "strata overlap", with_stratum(levels=(("sex", "f"), ("sex", "m")))),
    ("strata", "strata overlap", with_stratum(levels=(("age", "f"),))),
    ("strata", "level that its factor does not have", with_stratum(levels=(("sex", "x"),))),
    ("strata", "name a site", with_stratum(site_code=None)),
    ("strata", "name a site", edited(stratify_by_site=False)),
    ("strata", "site code", with_stratum(site_code="")),
    ("strata", "site code", with_stratum(site_code="x" * 11)),
    ("strata", "does not say its site", with_stratum(stratum_code="site=02;sex=m;")),
    ("length_per_stratum", "is empty", with_stratum(length=0)),
    ("length_per_stratum", "is empty", with_stratum(length=-24)),
    ("length_per_stratum", "more than", with_stratum(length=MAX_SLOTS)),
    ("length_per_stratum", "length of 25 exactly", with_stratum(length=25)),
    ("length_per_stratum", "chance of 0.00%", with_stratum(length=2)),
]


class TestValidate:
    def test_sound(self) -> None:
        """What the refusals below start from is accepted, and so is the real trial. [SEQ-02]"""
        validate(STRATIFIED)
        validate(specification())

    @pytest.mark.parametrize(("field", "words", "change"), REFUSED, ids=[f"{f}: {w}" for f, w, _ in REFUSED])
    def test_refused(self, field: str, words: str, change: Callable[[Specification], Specification]) -> None:
        """A bad specification is refused with the field and the reason. [SEQ-02, rule A2]"""
        with pytest.raises(InvalidSpecification) as refusal:
            validate(change(STRATIFIED))
        assert refusal.value.field == field
        assert words in refusal.value.message

    @pytest.mark.parametrize(
        ("sizes", "weights", "length", "accepted"),
        [
            ((4, 6, 8), (1, 1, 1), 2, False),  # no sum of sizes
            ((4, 6), (1, 1), 10_000, True),
            ((2, 1000), (1, 1000), 998, False),  # can be met, but never will be
            ((2, 1000), (99, 1), 2, True),
            ((998, 1000), (1, 1), 49_970, False),  # two lists in a thousand
            ((998, 1000), (1, 1), 2_994, True),
            ((6, 4), (99, 1), 4, True),  # exactly 1 %
            ((6, 4), (991, 9), 4, False),  # 0.9 %
        ],
    )
    def test_chance_to_fill(
        self, sizes: tuple[int, ...], weights: tuple[int, ...], length: int, accepted: bool
    ) -> None:
        """A list that would be drawn again and again is refused: below 1 % to fill. [rule A3]"""
        spec = specification(sizes=sizes, weights=weights, length=length)
        if accepted:
            validate(spec)
            return
        with pytest.raises(InvalidSpecification) as refusal:
            validate(spec)
        assert refusal.value.field == "length_per_stratum"
        validate(replace(spec, fill=Fill.OVERRUN))

    @given(specifications(), st.data())
    @settings(max_examples=80, suppress_health_check=[HealthCheck.too_slow], deadline=None)
    def test_random_faults(self, spec: Specification, data: st.DataObject) -> None:
        """Whatever the specification, each of these faults is refused, and named. [SEQ-02]"""
        whole = sum(arm.ratio for arm in spec.arms)
        other = data.draw(st.integers(1, 200).filter(lambda size: size % whole))
        faults = [
            ("arms", edited(arms=spec.arms[:1])),
            ("arms", edited(arms=(*spec.arms, spec.arms[0]))),
            ("arms", edited(arms=(replace(spec.arms[0], ratio=data.draw(st.integers(-9, 0))), *spec.arms[1:]))),
            ("block_sizes", edited(block_sizes=(other, *spec.block_sizes[1:]))),
            ("block_sizes", edited(block_sizes=(*spec.block_sizes, spec.block_sizes[0]))),
            ("block_size_weights", edited(block_size_weights=(*spec.block_size_weights, 1))),
            ("strata", edited(strata=(*spec.strata, spec.strata[-1]))),
            ("length_per_stratum", with_stratum(length=data.draw(st.integers(-9, 0)))),
        ]
        field, fault = data.draw(st.sampled_from(faults))
        with pytest.raises(InvalidSpecification) as refusal:
            validate(fault(spec))
        assert refusal.value.field == field


class TestFromDocument:
    @pytest.mark.parametrize(
        "change",
        [
            {"arms": "two"},
            {"block_sizes": [4, 6.5]},
            {"block_sizes": ["4"]},
            {"fill": "about"},
            {"mode": None},
            {"segment_number": True},
            {"surplus": 1},
            {"strata": [{"stratum_code": "", "site_code": None, "levels": [], "length": 8, "seed": "00"}]},
        ],
    )
    def test_other_shape(self, change: dict[str, Any]) -> None:
        """A document with a field too many, too few or of another type is no specification. [SEQ-11]"""
        with pytest.raises(InvalidSpecification) as refusal:
            Specification.from_document({**specification().document(), **change})
        assert refusal.value.field == "specification"

    @pytest.mark.parametrize("name", list(specification().document()))
    def test_missing_field(self, name: str) -> None:
        """Every field is needed. [SEQ-01]"""
        document = specification().document()
        del document[name]
        with pytest.raises(InvalidSpecification):
            Specification.from_document(document)


class TestEnumerateStrata:
    def test_definition_order(self) -> None:
        """Sites, then factors as defined, the last level turning fastest. [SEQ-01]"""
        factors = [factor_of("sex", "m", "f"), factor_of("age", "old", "young")]
        strata = enumerate_strata(factors, [SiteCode("02"), SiteCode("01")], 12)
        assert [stratum.stratum_code for stratum in strata] == [
            f"site={site};sex={sex};age={age}" for site in ("02", "01") for sex in "mf" for age in ("old", "young")
        ]
        assert {stratum.length for stratum in strata} == {12}

    def test_unstratified(self) -> None:
        """A study without factors has one stratum, without a name. [SEQ-01]"""
        (stratum,) = enumerate_strata([], None, 320)
        assert stratum == schedules.StratumSpec(StratumCode(""), None, (), 320)

    def test_length_of_each(self) -> None:
        """Lengths may differ by stratum and come in any order, and the levels in any order. [SEQ-01]"""
        factors = [factor_of("sex", "f", "m"), factor_of("age", "x")]
        lengths: list[StratumLength] = [(None, {"age": "x", "sex": "m"}, 8), (None, {"sex": "f", "age": "x"}, 12)]
        strata = enumerate_strata(factors, None, lengths)
        assert [(stratum.stratum_code, stratum.length) for stratum in strata] == [
            ("sex=f;age=x", 12),
            ("sex=m;age=x", 8),
        ]

    @pytest.mark.parametrize(
        ("words", "lengths"),
        [
            ("does not have", [("01", {"sex": "x"}, 8)]),
            ("does not have", [("01", {}, 8)]),
            ("does not have", [("01", {"sex": "f", "age": "x"}, 8)]),
            ("does not have", [("03", {"sex": "f"}, 8)]),
            ("does not have", [(None, {"sex": "f"}, 8)]),
            ("given twice", [("01", {"sex": "f"}, 8), ("01", {"sex": "f"}, 8)]),
            ("for 3 strata, such as 'site=01;sex=m'", [("01", {"sex": "f"}, 8)]),
            ("for 4 strata", []),
        ],
    )
    def test_wrong_lengths(self, words: str, lengths: list[StratumLength]) -> None:
        """Each stratum has one length: none too many, none twice, none missing. [SEQ-02]"""
        with pytest.raises(InvalidSpecification, match=words) as refusal:
            enumerate_strata([factor_of("sex", "f", "m")], [SiteCode("01"), SiteCode("02")], lengths)
        assert refusal.value.field == "lengths"

    @pytest.mark.parametrize(
        ("words", "factors", "sites"),
        [
            ("no stratum", [], []),
            ("no stratum", [factor_of("sex")], None),
            (f"more than {MAX_STRATA}", [factor_of(f"f{n}", *"0123456789") for n in range(10)], None),
        ],
    )
    def test_none_or_too_many(self, words: str, factors: list[Factor], sites: list[SiteCode] | None) -> None:
        """No stratum is no list, and ten thousand millions of them are counted before they are made. [SEQ-02]"""
        with pytest.raises(InvalidSpecification, match=words) as refusal:
            enumerate_strata(factors, sites, 8)
        assert refusal.value.field == "strata"

    def test_stratum_code(self) -> None:
        """A stratum's name is one text, built in one way. [SEQ-09]"""
        assert stratum_code(None, []) == ""
        assert stratum_code(SiteCode("01"), []) == "site=01"
        assert stratum_code(SiteCode("01"), [("sex", "f"), ("age", "x")]) == "site=01;sex=f;age=x"


class TestChanceToFill:
    @pytest.mark.parametrize(
        ("sizes", "weights"),
        [((4, 6, 8), (1, 1, 1)), ((2, 4), (1, 2)), ((3, 9, 6), (5, 1, 2)), ((6,), (7,)), ((4, 10), (9, 1))],
    )
    def test_small_lengths(self, sizes: tuple[int, ...], weights: tuple[int, ...]) -> None:
        """The renewal recursion is the sum over all sequences of draws. [rule A3]"""
        for length in range(1, 31):
            listed = sum(
                prod(weights[sizes.index(size)] / sum(weights) for size in sequence)
                for count in range(1, length // min(sizes) + 1)
                for sequence in product(sizes, repeat=count)
                if sum(sequence) == length
            )
            assert chance_to_fill(sizes, weights, length) == pytest.approx(listed, abs=1e-12)

    def test_long_lists(self) -> None:
        """For long lists it is the step over the mean size (renewal theorem). [rule A3]"""
        assert chance_to_fill((4, 6, 8), (1, 1, 1), 1_000_000) == pytest.approx(2 / 6)
        assert chance_to_fill((3, 9), (3, 1), 9_999_999) == pytest.approx(3 / 4.5)
        assert chance_to_fill((1000,), (1,), 10_000_000) == 1.0
        assert chance_to_fill((4, 6, 8), (1, 1, 1), 999_999) == 0.0

    def test_simulation(self) -> None:
        """One list in so many is filled at the first attempt. [rule A3]"""
        stream = Stream("filling")
        met = 0
        for _ in range(4000):
            total = 0
            while total < 20:
                total += (4, 6, 8)[stream.below(3)]
            met += total == 20
        chance = chance_to_fill((4, 6, 8), (1, 1, 1), 20)
        assert abs(met - 4000 * chance) < 4 * (4000 * chance * (1 - chance)) ** 0.5


def sizes_drawn(spec: Specification, seeds: int) -> Counter[tuple[int, ...]]:
    """Count the sequences of block sizes that so many seeds give."""
    return Counter(
        tuple(block.block_size for block in generate_blocks(spec, spec.strata[0], seed_of(number)))
        for number in range(seeds)
    )


def sizes_that_still_fit(spec: Specification, seeds: int) -> Counter[tuple[int, ...]]:
    """Count the same for the wrong law that rule A3 names: each draw is made among the sizes that still fit."""
    seen: Counter[tuple[int, ...]] = Counter()
    for number in range(seeds):
        stream = Stream("the wrong law", number)
        left, drawn = spec.strata[0].length, list[int]()
        while left:
            fitting = [
                size
                for size, weight in zip(spec.block_sizes, spec.block_size_weights, strict=True)
                for _ in range(weight)
                if left - size == 0 or left - size >= min(spec.block_sizes)
            ]
            drawn.append(fitting[stream.below(len(fitting))])
            left -= drawn[-1]
        seen[tuple(drawn)] += 1
    return seen


SIZE_LAWS = [((4, 6, 8), (1, 1, 1), 24), ((4, 6, 8), (3, 2, 1), 20), ((2, 4), (1, 2), 14)]


class TestLaw:
    @pytest.mark.parametrize(("sizes", "weights", "length"), SIZE_LAWS)
    def test_block_sizes(self, sizes: tuple[int, ...], weights: tuple[int, ...], length: int) -> None:
        """Sizes are independent draws, given their sum: chi-square over fixed seeds, every sequence. [SEQ-04, rule A3]"""
        seen = sizes_drawn(specification(sizes=sizes, weights=weights, length=length), 4000)
        expected = {sequence: 4000 * chance for sequence, chance in exact_law(sizes, weights, length).items()}
        assert chi_square_p(seen, expected) > ALPHA

    @pytest.mark.parametrize(("sizes", "weights", "length"), SIZE_LAWS)
    def test_draws_among_sizes_that_still_fit_are_noticed(
        self, sizes: tuple[int, ...], weights: tuple[int, ...], length: int
    ) -> None:
        """Negative control: the law that rule A3 warns of fails the very test that ours passes."""
        seen = sizes_that_still_fit(specification(sizes=sizes, weights=weights, length=length), 4000)
        expected = {sequence: 4000 * chance for sequence, chance in exact_law(sizes, weights, length).items()}
        assert chi_square_p(seen, expected) < ALPHA

    def test_block_sizes_of_an_overrun(self) -> None:
        """With overrun sizes are independent draws until the slots are covered. [SEQ-04, rule A3]"""
        spec = specification(sizes=(4, 6), weights=(2, 1), length=8, fill=Fill.OVERRUN)
        expected: dict[tuple[int, ...], float] = {}
        for count in (3, 4):
            for sequence in product((4, 6), repeat=count):
                if sum(sequence[:-1]) < 14 <= sum(sequence):
                    expected[sequence] = 4000 * prod({4: 2 / 3, 6: 1 / 3}[size] for size in sequence)
        assert sum(expected.values()) == pytest.approx(4000)
        assert chi_square_p(sizes_drawn(spec, 4000), expected) > ALPHA

    @pytest.mark.parametrize(
        ("ratios", "size"),
        [((1, 1), 4), ((1, 1), 6), ((2, 1), 6), ((3, 1), 4), ((1, 1, 1), 3), ((2, 1, 1), 4), ((1, 2, 2), 5)],
    )
    @pytest.mark.parametrize("place", [0, 2])
    def test_orders_of_a_block(self, ratios: tuple[int, ...], size: int, place: int) -> None:
        """Every order of a block is equally likely, unequal ratios too: chi-square over fixed seeds. [SEQ-04]"""
        spec = specification(ratios=ratios, sizes=(size,), length=3 * size, study=f"ORDERS-{place}")
        shares = [ratio * size // sum(ratios) for ratio in ratios]
        possible = factorial(size) // prod(factorial(share) for share in shares)
        seeds = 50 * possible
        seen: Counter[tuple[str, ...]] = Counter()
        for number in range(seeds):
            seen[tuple(list(generate_blocks(spec, spec.strata[0], seed_of(number)))[place].arm_codes)] += 1
        orders = {
            order
            for order in product("ABCDEFGH"[: len(ratios)], repeat=size)
            if [order.count(arm) for arm in "ABCDEFGH"[: len(ratios)]] == shares
        }
        assert len(orders) == possible
        assert chi_square_p(seen, dict.fromkeys(orders, 50.0)) > ALPHA

    def test_cut_block(self) -> None:
        """What is left of a cut block is the beginning of a random order. [SEQ-04, rule A3]"""
        spec = specification(ratios=(2, 1), sizes=(6,), length=2, fill=Fill.OVERRUN)
        seen = Counter(
            list(generate_blocks(spec, spec.strata[0], seed_of(number)))[-1].arm_codes for number in range(3000)
        )
        # Two slots of a block with four A and two B.
        expected = {("A", "A"): 12 / 30, ("A", "B"): 8 / 30, ("B", "A"): 8 / 30, ("B", "B"): 2 / 30}
        assert chi_square_p(seen, {order: 3000 * chance for order, chance in expected.items()}) > ALPHA

    def test_size_and_order_are_independent(self) -> None:
        """The first arm tells nothing of the size of its block. [SEQ-04]"""
        spec = specification(sizes=(4, 6), length=60, fill=Fill.OVERRUN)
        seen = Counter(
            (block.block_size, block.arm_codes[0])
            for block in (next(generate_blocks(spec, spec.strata[0], seed_of(number))) for number in range(4000))
        )
        assert chi_square_p(seen, dict.fromkeys(product((4, 6), "AB"), 1000.0)) > ALPHA


class TestSubStreams:
    def lists(self) -> list[str]:
        """Return lists of one length that differ in one field of the label, or in the seed, alone."""
        factors, sites = [factor_of("sex", "f", "m")], ["01", "02", "03", "04"]
        specs = [
            (specification(study=study, segment=segment, factors=factors, sites=sites, length=240), seed_of(seed))
            for study, segment, seed in (("S", 0, 1), ("S", 1, 1), ("S", 11, 1), ("T", 0, 1), ("S", 0, 2))
        ]
        return [
            "".join(slot.arm_code for slot in generate_stratum(spec, stratum, seed))
            for spec, seed in specs
            for stratum in spec.strata
        ]

    def test_no_two_are_alike(self) -> None:
        """Strata, segments, studies and lists share no stream. [SEQ-09]"""
        lists = self.lists()
        assert len(lists) == len(set(lists)) == 40

    def test_no_two_are_correlated(self) -> None:
        """Pair by pair, lists agree in half of their slots; nor are they shifts of each other. [SEQ-09]"""
        lists = self.lists()
        scores = []
        for shift in (0, 1, 4):
            for one, other in combinations(lists, 2):
                pairs = list(zip(one[shift:], other, strict=False))
                agree = sum(a == b for a, b in pairs)
                scores.append((agree - len(pairs) / 2) / (len(pairs) / 4) ** 0.5)
        # 2,340 scores, each nearly standard normal: the largest is below 5, their mean near 0.
        assert max(abs(score) for score in scores) < 5
        assert abs(sum(scores) / len(scores)) < 0.1


class TestWarnings:
    @pytest.mark.parametrize(
        ("sizes", "sites", "site_count", "warned"),
        [
            ((4,), None, 1, True),
            ((8,), None, 1, True),
            ((4,), None, 5, False),
            ((4,), ["01", "02"], 2, True),
            ((4, 6), None, 1, False),
            ((10,), None, 1, False),
        ],
    )
    def test_small_fixed_block(self, sizes: list[int], sites: list[str] | None, site_count: int, warned: bool) -> None:
        """One small fixed size that one site can follow is warned of; several sizes are not. [SEQ-12, rule A11]"""
        found = warnings(specification(sizes=sizes, sites=sites, length=120), site_count)
        assert any("predictable" in sentence for sentence in found) is warned

    @pytest.mark.parametrize(
        ("levels", "planned", "warned"),
        [(1, 4, False), (2, 24, False), (2, 23, True), (20, 320, False), (40, 320, True)],
    )
    def test_over_stratification(self, levels: int, planned: int, warned: bool) -> None:
        """Fewer than two blocks to a stratum on average are warned of. [SEQ-13]"""
        spec = specification(factors=[factor_of("clinic", *map(str, range(levels)))], length=120)
        if levels == 20:
            spec = replace(spec, block_sizes=(8,), block_size_weights=(1,))
        found = warnings(spec, 7, planned)
        assert any("incomplete" in sentence for sentence in found) is warned

    def test_planned_subjects_unknown(self) -> None:
        """Without the study's figure the lengths stand for it. [SEQ-13]"""
        factors = [factor_of("sex", "f", "m")]
        assert warnings(specification(factors=factors, length=12), 7) == ()
        assert len(warnings(specification(factors=factors, length=8), 7)) == 1

    def test_threshold_is_about_a_quarter(self) -> None:
        """Simulation: at the threshold a quarter of the subjects stands in incomplete blocks, far from it few. [SEQ-13]"""
        shares = {}
        for blocks_per_stratum in (1, schedules.LEAST_BLOCKS_PER_STRATUM, 12):
            stream = Stream("filling strata", blocks_per_stratum)
            incomplete = total = 0
            for _ in range(100):
                strata = [0] * 20
                for _ in range(20 * 6 * blocks_per_stratum):
                    strata[stream.below(20)] += 1
                total += sum(strata)
                incomplete += sum(count % 6 for count in strata)
            shares[blocks_per_stratum] = incomplete / total
        assert shares[1] > 0.35
        assert 0.18 < shares[2] < 0.28
        assert shares[12] < 0.05


def test_algorithm_page() -> None:
    """The page for independent implementers bears the id of the algorithm that lists carry. [SEQ-06]"""
    assert vectors()["algorithm"] == ALGORITHM
