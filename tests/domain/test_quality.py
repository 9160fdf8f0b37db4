"""The quality report: a right list passes, a wrong one does not, and the theory beside the figures is right."""

import json
from collections.abc import Callable, Iterable, Sequence
from itertools import permutations
from math import inf, sqrt

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.domain import quality
from app.domain.quality import QualityReport, Verdict, quality_report
from app.domain.schedules import (
    Fill,
    SlotPlan,
    Specification,
    generate_blocks,
    generate_stratum,
    slots_per_stratum,
    validate,
)
from app.domain.streams import Stream
from app.domain.words import ArmCode
from tests.domain.lists import exact_law, factor_of, seed_of, specification

Make = Callable[[Specification, Stream], Iterable[Sequence[str]]]


def report_on(spec: Specification, seed: int = 1) -> QualityReport:
    """Return the report on the list that the service makes."""
    validate(spec)
    slots = ((stratum, generate_stratum(spec, stratum, seed_of(seed))) for stratum in spec.strata)
    return quality_report(spec, slots)


def report_on_slots(spec: Specification, slots: Iterable[SlotPlan]) -> QualityReport:
    """Return the report on an unstratified list, whatever it holds."""
    return quality_report(spec, [(spec.strata[0], slots)])


def slots_of(*blocks: tuple[int, str]) -> list[SlotPlan]:
    """Return the slots of blocks that are given as (size, arms)."""
    slots: list[SlotPlan] = []
    for number, (size, arms) in enumerate(blocks):
        slots += [SlotPlan(len(slots) + place, ArmCode(arm), number, size) for place, arm in enumerate(arms)]
    return slots


def slots_with(spec: Specification, order: Callable[[Stream, list[str]], Sequence[str]]) -> list[SlotPlan]:
    """Return a list of right sizes whose blocks are put in order by another hand."""
    stream = Stream("another hand")
    blocks = generate_blocks(spec, spec.strata[0], seed_of(1))
    return slots_of(*[(block.block_size, "".join(order(stream, sorted(block.arm_codes)))) for block in blocks])


def failed(report: QualityReport) -> set[str]:
    return {verdict.name for verdict in report.verdicts if not verdict.passed}


def verdict(report: QualityReport, name: str) -> Verdict:
    return next(verdict for verdict in report.verdicts if verdict.name == name)


VERDICTS = ["order", "length", "blocks", "balance", "longest_run", "block_sizes", "orders", "runs", "predictability"]


class TestRightList:
    def test_real_trial(self) -> None:
        """The list of NCT03033277: 160 to 160, every verdict passed. [SEQ-14, A6]"""
        report = report_on(specification())
        assert report.passed
        assert report.slots == 320
        assert report.slots_by_arm == {"A": 160, "B": 160}
        assert [verdict.name for verdict in report.verdicts] == VERDICTS
        assert sum(figures.block_size * figures.blocks for figures in report.block_sizes) == 320
        assert report.strata[0].cut_blocks == 0
        assert verdict(report, "balance").figure == 0

    @given(
        ratios=st.lists(st.integers(1, 4), min_size=2, max_size=4),
        multiples=st.lists(st.integers(1, 4), min_size=1, max_size=3, unique=True),
        length=st.integers(1, 80),
        fill=st.sampled_from(Fill),
        levels=st.integers(1, 4),
        seed=st.integers(0, 10**9),
    )
    @settings(max_examples=100, suppress_health_check=[HealthCheck.too_slow], deadline=None)
    def test_random_specifications(
        self, ratios: list[int], multiples: list[int], length: int, fill: Fill, levels: int, seed: int
    ) -> None:
        """Whatever the specification and the seed, a right list passes: there is no shopping for seeds. [A6, SEQ-08]"""
        sizes = [sum(ratios) * multiple for multiple in multiples]
        spec = specification(
            ratios=ratios,
            sizes=sizes,
            length=max(sizes) * length if fill is Fill.EXACT else length,
            fill=fill,
            factors=[factor_of("clinic", *map(str, range(levels)))],
        )
        report = report_on(spec, seed)
        assert failed(report) == set()
        assert report.slots == levels * slots_per_stratum(spec, spec.strata[0])
        assert [figures.slots for figures in report.strata] == [slots_per_stratum(spec, spec.strata[0])] * levels

    @pytest.mark.parametrize("seed", range(3))
    def test_long_list(self, seed: int) -> None:
        """Twenty thousand slots: figures lie where theory says, well within the limits. [SEQ-04]"""
        report = report_on(specification(ratios=(2, 1), sizes=(3, 6, 9), weights=(1, 2, 1), length=19_998), seed)
        assert report.passed
        assert report.correct_guesses == pytest.approx(report.expected_correct_guesses, abs=0.01)
        assert report.runs == pytest.approx(report.expected_runs, rel=0.02)
        for figures in report.block_sizes:
            assert figures.blocks == pytest.approx(figures.expected, rel=0.1)

    def test_large_blocks(self) -> None:
        """Blocks too large to list their orders, or to play the guessing game through, are judged by the rest. [SEQ-14]"""
        report = report_on(specification(ratios=(1, 1, 1), sizes=(999,), length=2997))
        assert report.passed
        assert verdict(report, "orders").judged == 0
        assert verdict(report, "predictability").judged == 0
        assert verdict(report, "runs").judged == 3


class TestWrongList:
    def test_unbalanced_generator(self) -> None:
        """Tossing a coin for each slot keeps no ratio. [SEQ-03]"""
        spec = specification()
        slots = slots_with(spec, lambda stream, arms: ["AB"[stream.below(2)] for _ in arms])
        assert {"blocks", "balance"} <= failed(report_on_slots(spec, slots))

    def test_wrong_ratio(self) -> None:
        """Blocks of 1:1 are no blocks of 2:1. [SEQ-03]"""
        spec = specification(ratios=(2, 1), sizes=(6,), length=60)
        assert {"blocks", "balance"} <= failed(report_on_slots(spec, slots_of(*[(6, "ABABAB")] * 10)))

    def test_sorted_blocks(self) -> None:
        """Blocks in the order of the arms are in ratio, and no chance at all. [SEQ-04]"""
        spec = specification()
        found = failed(report_on_slots(spec, slots_with(spec, lambda _, arms: arms)))
        assert found == {"orders", "runs"}

    def test_alternation(self) -> None:
        """A B A B: every block in ratio, the guesser right in nearly all. [SEQ-04]"""
        spec = specification(length=3000)
        slots = slots_with(
            spec, lambda _, arms: [arm for pair in zip(arms, reversed(arms), strict=True) for arm in pair][: len(arms)]
        )
        assert {"orders", "runs", "predictability"} <= failed(report_on_slots(spec, slots))

    def test_biased_shuffle(self) -> None:
        """The well-known wrong shuffle, each place swapped with any, is caught by the count of orders. [SEQ-04]"""

        def naive(stream: Stream, arms: list[str]) -> list[str]:
            for place in range(len(arms)):
                other = stream.below(len(arms))
                arms[place], arms[other] = arms[other], arms[place]
            return arms

        spec = specification(sizes=(4,), length=60_000)
        assert "orders" in failed(report_on_slots(spec, slots_with(spec, naive)))

    def test_reversed(self) -> None:
        """The list from its end is not the list. [SEQ-11]"""
        spec = specification()
        slots = list(generate_stratum(spec, spec.strata[0], seed_of(1)))
        assert "order" in failed(report_on_slots(spec, reversed(slots)))

    def test_sorted_by_arm(self) -> None:
        """The whole list sorted, as it happened to a real trial, breaks every block. [SEQ-11, failure 19]"""
        spec = specification()
        slots = sorted(generate_stratum(spec, spec.strata[0], seed_of(1)), key=lambda slot: slot.arm_code)
        assert {"order", "blocks", "longest_run"} <= failed(report_on_slots(spec, slots))

    def test_small_sizes_too_often(self) -> None:
        """A list that never draws the largest size does not follow the stated weights. [SEQ-04]"""
        spec, other = specification(length=6000), specification(sizes=(4, 6), length=6000)
        slots = generate_stratum(other, other.strata[0], seed_of(1))
        assert failed(report_on_slots(spec, slots)) == {"block_sizes"}

    def test_foreign_block_size(self) -> None:
        """A size that the specification does not have is a fault, however balanced its block. [SEQ-03]"""
        spec = specification(sizes=(4, 6), length=20)
        report = report_on_slots(spec, slots_of((4, "ABAB"), (10, "ABABABABAB"), (6, "AABBAB")))
        assert "blocks" in failed(report)

    def test_one_block_with_two_sizes(self) -> None:
        """All slots of a block name one size. [SEQ-11]"""
        spec = specification(sizes=(4, 6), length=4)
        slots = slots_of((4, "ABAB"))
        assert "blocks" in failed(report_on_slots(spec, [*slots[:3], slots[3]._replace(block_size=6)]))

    def test_foreign_arm(self) -> None:
        """An arm that the specification does not have is a fault in the block and the balance. [SEQ-11]"""
        spec = specification(sizes=(4,), length=8)
        report = report_on_slots(spec, slots_of((4, "ABAB"), (4, "ABAX")))
        assert failed(report) == {"blocks", "balance"}
        assert report.slots_by_arm == {"A": 4, "B": 3, "X": 1}

    @pytest.mark.parametrize("fill", Fill)
    def test_missing_end(self, fill: Fill) -> None:
        """A list that ends early is too short; with overrun its last block is not cut where it must be. [SEQ-11]"""
        spec = specification(length=48, fill=fill)
        slots = list(generate_stratum(spec, spec.strata[0], seed_of(1)))
        assert {"length", "blocks"} <= failed(report_on_slots(spec, slots[:-1]))

    def test_slot_left_out(self) -> None:
        """A gap in the middle is a fault of order and of a block. [SEQ-11]"""
        spec = specification(length=48)
        slots = list(generate_stratum(spec, spec.strata[0], seed_of(1)))
        assert {"order", "length", "blocks"} <= failed(report_on_slots(spec, slots[:9] + slots[10:]))

    def test_cut_block_with_too_many_of_one_arm(self) -> None:
        """A cut block is the beginning of a block in ratio: it never holds more of an arm. [rule A3]"""
        spec = specification(sizes=(4,), length=3, fill=Fill.OVERRUN)
        assert failed(report_on_slots(spec, slots_of((4, "ABBA"), (4, "AAB")))) == set()
        assert failed(report_on_slots(spec, slots_of((4, "ABBA"), (4, "AAA")))) >= {"blocks"}

    def test_strata_missing_or_in_another_order(self) -> None:
        """The strata are those of the specification, in its order. [SEQ-11]"""
        spec = specification(length=48, factors=[factor_of("sex", "f", "m")])
        made = [(stratum, list(generate_stratum(spec, stratum, seed_of(1)))) for stratum in spec.strata]
        assert failed(quality_report(spec, made)) == set()
        assert failed(quality_report(spec, reversed(made))) == {"order"}
        assert failed(quality_report(spec, made[:1])) == {"order"}

    def test_empty(self) -> None:
        """No slots at all end in verdicts, not in an exception. [SEQ-11]"""
        spec = specification()
        assert {"length"} <= failed(report_on_slots(spec, []))
        assert failed(quality_report(spec, [])) == {"order"}


class TestReport:
    def test_document(self) -> None:
        """The report is JSON, with what was found and what was expected. [SEQ-14]"""
        document = report_on(specification(fill=Fill.OVERRUN)).document()
        assert json.loads(json.dumps(document))["slots"] == 328
        assert document["passed"] is True
        assert document["mode"] == "test"

    def test_blinded(self) -> None:
        """Everyone else learns what passed; nothing in it depends on an arm, a block or their number. [SEQ-14, B1, B7]"""
        spec = specification(fill=Fill.OVERRUN, length=60)
        swap = str.maketrans("AB", "BA")
        slots = list(generate_stratum(spec, spec.strata[0], seed_of(1)))
        swapped = [slot._replace(arm_code=ArmCode(slot.arm_code.translate(swap))) for slot in slots]
        told = {report_on_slots(spec, slots).blinded(), report_on_slots(spec, swapped).blinded()}
        for other_sizes in ((4, 8), (2, 4, 6)):
            told.add(report_on(specification(fill=Fill.OVERRUN, length=60, sizes=other_sizes)).blinded())
        (blinded,) = told
        assert blinded == quality.BlindedQuality(
            passed=True, strata=1, verdicts=tuple((name, True) for name in VERDICTS)
        )

    def test_failed_verdict_shows_in_both(self) -> None:
        """What fails for the one fails for the other. [SEQ-14]"""
        spec = specification(length=12, sizes=(4, 6))
        report = report_on_slots(spec, slots_of((4, "AAAA"), (4, "BBBB"), (4, "ABAB")))
        assert not report.passed
        assert not report.blinded().passed
        assert dict(report.blinded().verdicts)["blocks"] is False


class TestTheory:
    def test_known_predictability(self) -> None:
        """The convergence strategy guesses 17/24 of blocks of four, 1:1. [Blackwell and Hodges 1957]"""
        moments = quality._guess_moments((1, 1), 4)
        assert moments is not None
        assert moments[0] / 4 == pytest.approx(17 / 24)

    @pytest.mark.parametrize(
        ("ratios", "size"), [((1, 1), 2), ((1, 1), 6), ((2, 1), 6), ((1, 1, 1), 6), ((3, 2), 5), ((1, 2, 1), 4)]
    )
    def test_guesses_by_listing(self, ratios: tuple[int, ...], size: int) -> None:
        """Mean and variance of the right guesses are those over all orders of the block. [SEQ-14]"""
        spec = specification(ratios=ratios, sizes=(size,), length=size)
        arms = "".join(arm.arm_code * (arm.ratio * size // sum(ratios)) for arm in spec.arms)
        orders = ["".join(order) for order in sorted(set(permutations(arms)))]
        scores = [verdict(report_on_slots(spec, slots_of((size, order))), "predictability").figure for order in orders]
        mean = sum(scores) / len(scores)
        variance = sum((score - mean) ** 2 for score in scores) / len(scores)
        assert quality._guess_moments(ratios, size) == pytest.approx((mean * size, variance * size**2))

    def test_guessing_by_hand(self) -> None:
        """A A B B at 1:1: half a guess, then B, B, B: the first misses, the others hit. [SEQ-14]"""
        spec = specification(sizes=(4,), length=4)
        assert verdict(report_on_slots(spec, slots_of((4, "AABB"))), "predictability").figure * 4 == 2.5
        assert verdict(report_on_slots(spec, slots_of((4, "ABBA"))), "predictability").figure * 4 == 3.0

    @pytest.mark.parametrize("counted", [4, 6, 8])
    def test_sizes_by_listing(self, counted: int) -> None:
        """Mean and variance of a size's count are those of the exact law, over strata of two lengths. [rule A3]"""
        chances, mean, variance = ((4, 0.5), (6, 1 / 3), (8, 1 / 6)), 0.0, 0.0
        for length, strata in ((20, 3), (26, 2)):
            law = exact_law((4, 6, 8), (3, 2, 1), length)
            first = sum(chance * sequence.count(counted) for sequence, chance in law.items())
            second = sum(chance * sequence.count(counted) ** 2 for sequence, chance in law.items())
            mean, variance = mean + strata * first, variance + strata * (second - first**2)
        found = quality._count_moments(chances, counted, Fill.EXACT, ((20, 3), (26, 2)))
        assert found == pytest.approx((mean, variance))

    def test_sizes_of_an_overrun(self) -> None:
        """With overrun the draws stop when they cover the slots: five of the small or fewer. [rule A3]"""
        # Slots 8, sizes 4 and 6 with 1/2 each: 44, 46, 64, 66 stop after two draws.
        assert quality._count_moments(((4, 0.5), (6, 0.5)), 4, Fill.OVERRUN, ((8, 1),)) == pytest.approx((1.0, 0.5))
        # Slots 9: 44 needs a third draw: 444, 446, and 46, 64, 66.
        mean = 3 / 8 + 2 / 8 + 1 / 4 + 1 / 4
        second = 9 / 8 + 4 / 8 + 1 / 4 + 1 / 4
        assert quality._count_moments(((4, 0.5), (6, 0.5)), 4, Fill.OVERRUN, ((9, 1),)) == pytest.approx(
            (mean, second - mean**2)
        )

    @pytest.mark.parametrize("fill", Fill)
    def test_long_lists_by_straight_line(self, fill: Fill, monkeypatch: pytest.MonkeyPatch) -> None:
        """The straight line beyond 4,096 steps is the recursion itself, carried on. [SEQ-14]"""
        chances = ((4, 0.2), (6, 0.5), (8, 0.3))
        line = quality._count_moments(chances, 6, fill, ((19_998, 1), (320, 2)))
        monkeypatch.setattr(quality, "_RENEWAL_STEPS", 20_000)
        assert line == pytest.approx(quality._count_moments(chances, 6, fill, ((19_998, 1), (320, 2))))

    def test_no_list(self) -> None:
        """Without a stratum nothing is expected. [SEQ-14]"""
        assert quality._count_moments(((4, 1.0),), 4, Fill.EXACT, ()) == (0.0, 0.0)

    def test_limit(self) -> None:
        """The limit is where Bernstein's bound on both tails is the false alarm, shared by the questions. [A6]"""
        for variance, step, questions in ((100.0, 1.0, 1), (0.0, 2.0, 1), (3.5, 4.0, 96)):
            limit = quality._limit(variance, step, questions)
            bound = 2 * 2.718281828459045 ** (-(limit**2) / (2 * (variance + step * limit / 3)))
            assert bound * questions == pytest.approx(quality.FALSE_ALARM)

    @pytest.mark.parametrize(
        ("figures", "passed", "worst"),
        [
            ([(5, 3, 2)], True, 5),
            ([(5.01, 3, 2)], False, 5.01),
            ([(1, 1, 0), (4, 3, 2)], True, 4),
            ([(1, 0, 0), (9, 3, 2)], False, 1),
            ([(0.1 + 0.2, 0.3, 0)], True, 0.1 + 0.2),
            ([], True, 0.0),
        ],
    )
    def test_verdict(self, figures: list[tuple[float, float, float]], passed: bool, worst: float) -> None:
        """The figure furthest out decides; without room a deviation is infinitely far out, rounding is none. [A6]"""
        found = quality._verdict("name", 7, *figures)
        assert (found.passed, found.figure, found.judged) == (passed, worst, 7)
        assert found.limit < inf

    @pytest.mark.parametrize(("length", "fill"), [(48, Fill.EXACT), (40, Fill.OVERRUN), (320, Fill.EXACT)])
    def test_simulated_sizes(self, length: int, fill: Fill) -> None:
        """Six hundred lists: the counts have the computed mean and variance, and no limit is approached. [A6]"""
        spec = specification(sizes=(4, 6, 8), weights=(3, 2, 1), length=length, fill=fill)
        chances = ((4, 0.5), (6, 1 / 3), (8, 1 / 6))
        slots = slots_per_stratum(spec, spec.strata[0])
        counts = [
            [block.block_size for block in generate_blocks(spec, spec.strata[0], seed_of(number))]
            for number in range(600)
        ]
        for size, _ in chances:
            mean, variance = quality._count_moments(chances, size, fill, ((slots, 1),))
            found = [sizes.count(size) for sizes in counts]
            assert abs(sum(found) / 600 - mean) < 4 * sqrt(variance / 600)
            assert sum((count - mean) ** 2 for count in found) / 600 == pytest.approx(variance, rel=0.25)
            assert max(abs(count - mean) for count in found) < quality._limit(variance, 1, 3)

    def test_simulated_runs(self) -> None:
        """Expected runs of a whole list, cut blocks and seams between blocks included, are the mean of many. [SEQ-14]"""
        spec = specification(ratios=(2, 1), sizes=(3, 6), length=20, fill=Fill.OVERRUN)
        reports = [report_on(spec, seed) for seed in range(1500)]
        excess = [report.runs - report.expected_runs for report in reports]
        mean = sum(excess) / 1500
        assert abs(mean) < 4 * sqrt(sum((value - mean) ** 2 for value in excess) / 1500 / 1500)

    def test_longest_run_across_blocks(self) -> None:
        """Runs go on from block to block: B A A | A A B has one of four, and one that fills blocks would be seen. [SEQ-14]"""
        spec = specification(sizes=(4,), length=12)
        report = report_on_slots(spec, slots_of((4, "BBAA"), (4, "AABB"), (4, "BABA")))
        assert (report.longest_run, report.runs) == (4, 6)
        report = report_on_slots(spec, slots_of((4, "BBAA"), (4, "AAAA"), (4, "ABBB")))
        assert (report.longest_run, report.runs) == (7, 3)
        assert {"longest_run", "blocks", "balance"} <= failed(report)
