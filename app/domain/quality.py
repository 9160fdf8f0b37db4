"""The quality report of an allocation list: what was counted, what theory expects, verdicts by fixed limits.

Every limit is set before any list is made (rule A6): a right generator fails a verdict of chance with
probability 1e-6 at most, and a structural verdict never. A list inside the limits is no better and no worse
than another, so there is nothing to choose between lists by.

The theory, given the sizes of the blocks:

- full blocks are independent and each order of a block is equally likely, so every statistic that is a sum
  over blocks has an exact mean and variance, and Bernstein's inequality bounds its tails without any
  approximation;
- the number of blocks of each size follows independent draws conditioned on their sum (exact) or stopped when
  the sum is reached (overrun); mean and variance come from the renewal equations of the count, exactly.
  Bernstein's limit is used with them too; for conditioned draws it is no theorem, and the tests hold it
  against simulation.

One pass over the slots; nothing of a stratum is kept but counts.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import groupby, product
from math import factorial, gcd, inf, lcm, log, prod, sqrt
from operator import itemgetter
from typing import Any, Final, NamedTuple

from app.domain.codes import runs_moments
from app.domain.schedules import Fill, SlotPlan, Specification, StratumSpec, slots_per_stratum
from app.domain.words import Mode, StudyCode

FALSE_ALARM: Final = 1e-6
"""The probability with which a right generator may fail one verdict (rule A6)."""
MAX_ORDERS: Final = 5_000
"""Orders of a block are counted one by one for block sizes that have at most so many."""
MAX_STATES: Final = 20_000
"""The guessing game is worked out for block sizes that have at most so many states of play."""

# Beyond so many steps mean and variance of a count grow in a straight line, but for terms that vanish
# geometrically.
_RENEWAL_STEPS: Final = 4_096
_SLOPE_STEPS: Final = 1_024
_CACHED_SHAPES: Final = 65_536
_CACHED_THEORY: Final = 256
_ROUNDING: Final = 1e-9


@dataclass(frozen=True, slots=True)
class Verdict:
    """One question put to the list: passed when ``figure`` is within ``limit`` of ``expected``.

    ``judged`` says how many strata, blocks or slots were looked at.
    """

    name: str
    passed: bool
    figure: float
    expected: float
    limit: float
    judged: int


@dataclass(frozen=True, slots=True)
class StratumFigures:
    """What one stratum holds."""

    stratum_code: str
    slots: int
    full_blocks: int
    cut_blocks: int
    slots_by_arm: dict[str, int]


@dataclass(frozen=True, slots=True)
class BlockSizeFigures:
    """How often a block size was drawn, and how often the law makes it expected."""

    block_size: int
    blocks: int
    expected: float


@dataclass(frozen=True, slots=True)
class BlindedQuality:
    """What people who may not know the list are told of its quality (SEQ-14).

    There is no arm, no block and no number of slots in it: with overrun that number would tell the largest
    block (rule B7).
    """

    passed: bool
    strata: int
    verdicts: tuple[tuple[str, bool], ...]


@dataclass(frozen=True, slots=True)
class QualityReport:
    """The unblinded report for statistician and approver (SEQ-14).

    ``correct_guesses`` is the expected share of right guesses under the convergence strategy (Blackwell and
    Hodges 1957): always guess the arm that is furthest behind its ratio, among several one at random. Danger:
    says much of the list.
    """

    study_code: StudyCode
    mode: Mode
    list_id: str
    segment_number: int
    algorithm: str
    slots: int
    slots_by_arm: dict[str, int]
    strata: tuple[StratumFigures, ...]
    block_sizes: tuple[BlockSizeFigures, ...]
    runs: int
    expected_runs: float
    longest_run: int
    correct_guesses: float
    expected_correct_guesses: float
    verdicts: tuple[Verdict, ...]

    @property
    def passed(self) -> bool:
        """Whether every verdict passed."""
        return all(verdict.passed for verdict in self.verdicts)

    def document(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        return {"passed": self.passed, **asdict(self), "mode": self.mode.value}

    def blinded(self) -> BlindedQuality:
        """Return what may be told to everyone: passed or not, question by question."""
        verdicts = tuple((verdict.name, verdict.passed) for verdict in self.verdicts)
        return BlindedQuality(self.passed, len(self.strata), verdicts)


def quality_report(spec: Specification, strata: Iterable[tuple[StratumSpec, Iterable[SlotPlan]]]) -> QualityReport:
    """Return the report on a list, given stratum by stratum and slot by slot.

    ``spec`` must have passed ``validate``. Nothing about the slots is taken for granted: whatever is wrong
    with them ends in a verdict, never in an exception.
    """
    tally = _Tally(spec)
    figures = tuple(tally.add_stratum(stratum, slots) for stratum, slots in strata)
    by_arm: Counter[str] = Counter({arm.arm_code: 0 for arm in spec.arms})
    for stratum in figures:
        by_arm.update(stratum.slots_by_arm)
    if [stratum.stratum_code for stratum in figures] != [stratum.stratum_code for stratum in spec.strata]:
        tally.order_faults += 1
    slots, blocks = by_arm.total(), tally.sizes.total()
    largest_share = max(tally.shares[max(spec.block_sizes)].values())
    sizes, size_verdict = _judge_sizes(tally)
    guesses = _judge_guesses(tally)
    return QualityReport(
        study_code=spec.study_code,
        mode=spec.mode,
        list_id=spec.list_id,
        segment_number=spec.segment_number,
        algorithm=spec.algorithm,
        slots=slots,
        slots_by_arm=dict(by_arm),
        strata=figures,
        block_sizes=sizes,
        runs=tally.runs,
        expected_runs=tally.expected_runs,
        longest_run=tally.longest_run,
        correct_guesses=guesses.figure,
        expected_correct_guesses=guesses.expected,
        verdicts=(
            _verdict("order", slots, (tally.order_faults, 0, 0)),
            _verdict("length", len(figures), (tally.length_faults, 0, 0)),
            _verdict("blocks", blocks, (tally.block_faults, 0, 0)),
            # Whole blocks balance exactly; a cut one lacks at most the share that an arm has in the largest
            # block.
            _verdict("balance", len(figures), (tally.imbalance, 0, largest_share * (spec.fill is Fill.OVERRUN))),
            # Two neighbouring blocks can put all their slots of one arm side by side; no run spans a third.
            _verdict("longest_run", slots, (tally.longest_run, 0, 2 * largest_share)),
            size_verdict,
            _judge_orders(tally),
            _judge_runs(tally),
            guesses,
        ),
    )


# -- counting ------------------------------------------------------------------------------------------------


class _Shape(NamedTuple):
    """What the order of arms in one block shows by itself."""

    sound: bool
    runs: int
    first_run: int
    last_run: int
    longest_run: int
    guessed: float


class _Tally:
    """The counts of a list while its slots go by."""

    def __init__(self, spec: Specification) -> None:
        self.spec = spec
        self.ratios = {str(arm.arm_code): arm.ratio for arm in spec.arms}
        self.ratio_sum = sum(self.ratios.values())
        self.shares = {
            size: {arm: ratio * size // self.ratio_sum for arm, ratio in self.ratios.items()}
            for size in spec.block_sizes
        }
        self.possible_orders = {size: _orders(list(shares.values())) for size, shares in self.shares.items()}
        self.order_faults = 0
        self.length_faults = 0
        self.block_faults = 0
        self.imbalance = 0.0
        self.runs = 0
        self.expected_runs = 0.0
        self.longest_run = 0
        self.lengths: list[int] = []
        self.sizes: Counter[int] = Counter()
        # Of full blocks in ratio alone: how many, their orders (where there are few), runs within them, right
        # guesses.
        self.sound: Counter[int] = Counter()
        self.orders: dict[int, Counter[tuple[str, ...]]] = {size: Counter() for size in self.shares}
        self.runs_within: Counter[int] = Counter()
        self.guessed: dict[int, float] = dict.fromkeys(self.shares, 0.0)
        # Small blocks come again and again: each order is looked at once.
        self._shape = lru_cache(_CACHED_SHAPES)(self._shape_of)

    def add_stratum(self, stratum: StratumSpec, slots: Iterable[SlotPlan]) -> StratumFigures:
        """Return the figures of one stratum and count it in."""
        planned = slots_per_stratum(self.spec, stratum)
        by_arm: Counter[str] = Counter(dict.fromkeys(self.ratios, 0))
        position = full = cut = run = 0
        last = None
        for number, (block, group) in enumerate(groupby(slots, key=itemgetter(2))):
            positions, arms, _, sizes = zip(*group, strict=True)
            start, position = position, position + len(arms)
            self.order_faults += block != number or positions != tuple(range(start, position))
            size = sizes[0] if sizes.count(sizes[0]) == len(sizes) else 0
            shape = self._shape(size, arms)
            if size in self.shares:
                self.sizes[size] += 1
            if shape.sound:
                full += 1
                self._add_sound_block(size, arms, shape)
            elif self.spec.fill is Fill.OVERRUN and position == planned and self._is_cut(size, arms):
                cut += 1
            else:
                self.block_faults += 1
            by_arm.update(arms)
            joined = arms[0] == last
            self._expect_runs(size, len(arms), joins=start > 0)
            self.runs += shape.runs - joined
            first_run = shape.first_run + run * joined
            self.longest_run = max(self.longest_run, shape.longest_run, first_run)
            run = first_run if shape.runs == 1 else shape.last_run
            last = arms[-1]
        self.length_faults += position != planned
        self.lengths.append(planned)
        for arm in by_arm:
            ahead = by_arm[arm] - position * self.ratios.get(arm, 0) / self.ratio_sum
            self.imbalance = max(self.imbalance, abs(ahead))
        return StratumFigures(stratum.stratum_code, position, full, cut, dict(by_arm))

    def _add_sound_block(self, size: int, arms: tuple[str, ...], shape: _Shape) -> None:
        self.sound[size] += 1
        self.runs_within[size] += shape.runs
        self.guessed[size] += shape.guessed
        if self.possible_orders[size] <= MAX_ORDERS:
            self.orders[size][arms] += 1

    def _is_cut(self, size: int, arms: tuple[str, ...]) -> bool:
        """Return whether this can be the beginning of a full block."""
        shares = self.shares.get(size, {})
        return len(arms) < size and all(arms.count(arm) <= shares.get(arm, 0) for arm in set(arms))

    def _shape_of(self, size: int, arms: tuple[str, ...]) -> _Shape:
        sound = self.shares.get(size) == dict(Counter(arms))
        runs = [len(list(run)) for _, run in groupby(arms)]
        return _Shape(sound, len(runs), runs[0], runs[-1], max(runs), self._guess(arms) if sound else 0.0)

    def _guess(self, arms: tuple[str, ...]) -> float:
        """Return how many arms of a block the convergence strategy guesses, a tie counting as its chance.

        Arms are compared by slots so far over ratio. Before a block every arm has its ratio, so the count may
        begin anew.
        """
        common = lcm(*self.ratios.values())
        weight = {arm: common // ratio for arm, ratio in self.ratios.items()}
        so_far = dict.fromkeys(self.ratios, 0)
        guessed = 0.0
        for arm in arms:
            behind = min(so_far.values())
            if so_far[arm] == behind:
                guessed += 1 / list(so_far.values()).count(behind)
            so_far[arm] += weight[arm]
        return guessed

    def _expect_runs(self, size: int, count: int, *, joins: bool) -> None:
        """Add the runs that the first ``count`` slots of a block should have: one, and one at each change."""
        same = sum(share * (share - 1) for share in self.shares.get(size, {}).values()) / max(1, size * (size - 1))
        same_across = sum(ratio**2 for ratio in self.ratios.values()) / self.ratio_sum**2
        self.expected_runs += 1 + (count - 1) * (1 - same) - joins * same_across


def _orders(shares: Sequence[int]) -> int:
    """Return in how many orders a block can stand."""
    return factorial(sum(shares)) // prod(factorial(share) for share in shares)


# -- judging -------------------------------------------------------------------------------------------------


def _verdict(name: str, judged: int, *figures: tuple[float, float, float]) -> Verdict:
    """Return the verdict on that (figure, expected, limit) which is furthest out by its own limit."""

    def excess(triple: tuple[float, float, float]) -> float:
        figure, expected, limit = triple
        off = abs(figure - expected)
        # Sums of floats: what is equal on paper may differ in the last places.
        return 0.0 if off <= _ROUNDING * max(1.0, abs(expected)) else off / limit if limit else inf

    worst = max(figures, key=excess, default=(0.0, 0.0, 0.0))
    return Verdict(name, excess(worst) <= 1, *worst, judged)


def _limit(variance: float, step: float, questions: int = 1) -> float:
    """Return how far a sum may stray from its mean: further only with probability ``FALSE_ALARM``, two-sided.

    Bernstein's inequality for independent terms that stray by at most ``step``; ``questions`` share the
    probability.
    """
    nats = log(2 * questions / FALSE_ALARM)
    linear = step * nats / 3
    return linear + sqrt(linear**2 + 2 * variance * nats)


def _judge_sizes(tally: _Tally) -> tuple[tuple[BlockSizeFigures, ...], Verdict]:
    """Return the counts of block sizes beside the law of rule A3."""
    spec = tally.spec
    total = sum(spec.block_size_weights)
    chances = {size: weight / total for size, weight in zip(spec.block_sizes, spec.block_size_weights, strict=True)}
    mean_size = sum(size * chance for size, chance in chances.items())
    found, figures = [], []
    for size, chance in chances.items():
        moments = _count_moments(tuple(chances.items()), size, spec.fill, tuple(sorted(Counter(tally.lengths).items())))
        expected, variance = moments
        # One draw moves the count by itself and, through the length it uses up, the number of draws to come.
        step = max(abs((other == size) - chance * other / mean_size) for other in chances)
        limit = _limit(variance, step, len(chances)) if len(chances) > 1 else 0.0
        found.append(BlockSizeFigures(size, tally.sizes[size], expected))
        figures.append((tally.sizes[size], expected, limit))
    return tuple(found), _verdict("block_sizes", tally.sizes.total(), *figures)


def _count_moments(
    chances: Sequence[tuple[int, float]], counted: int, fill: Fill, lengths: Sequence[tuple[int, int]]
) -> tuple[float, float]:
    """Return mean and variance of the number of blocks of one size, over (slots, how many such strata).

    With ``hits[n]`` the probability that the draws meet n (for overrun: 1, they may pass it), ``first[n]``
    and ``second[n]`` the mean of the count and of its square on that event, conditioning on the first draw
    gives each of them as a sum over the sizes; divided by ``hits`` they are the moments under the law of rule
    A3.
    """
    step = gcd(*(size for size, _ in chances))
    steps = {slots: -(-slots // step) for slots, _ in lengths}
    reach = min(_RENEWAL_STEPS, max(steps.values(), default=0))
    past = 1.0 if fill is Fill.OVERRUN else 0.0
    hits, first, second = [1.0], [0.0], [0.0]
    for n in range(1, reach + 1):
        hit = one = two = 0.0
        for size, chance in chances:
            before = n - size // step
            known = before >= 0
            was_hit = hits[before] if known else past
            was_one, was_two = (first[before], second[before]) if known else (0.0, 0.0)
            hit += chance * was_hit
            one += chance * (was_one + was_hit * (size == counted))
            two += chance * (was_two + (2 * was_one + was_hit) * (size == counted))
        hits.append(hit)
        first.append(one)
        second.append(two)

    def at(n: int) -> tuple[float, float]:
        mean = first[n] / hits[n]
        return mean, max(0.0, second[n] / hits[n] - mean**2)

    mean = variance = 0.0
    for slots, strata in lengths:
        known_mean, known_variance = at(min(steps[slots], reach))
        beyond = steps[slots] - min(steps[slots], reach)
        if beyond:
            early_mean, early_variance = at(reach - _SLOPE_STEPS)
            known_mean += (known_mean - early_mean) * beyond / _SLOPE_STEPS
            known_variance += (known_variance - early_variance) * beyond / _SLOPE_STEPS
        mean += strata * known_mean
        variance += strata * known_variance
    return mean, variance


def _judge_orders(tally: _Tally) -> Verdict:
    """Return whether the orders of a block came equally often: the rarest and the commonest of each size.

    Of so many full blocks of one size each order is a binomial count.
    """
    judged = {size: tally.sound[size] for size, seen in tally.orders.items() if seen}
    questions = sum(tally.possible_orders[size] for size in judged)
    figures = []
    for size, blocks in judged.items():
        possible, seen = tally.possible_orders[size], tally.orders[size]
        limit = _limit(blocks / possible * (1 - 1 / possible), 1, questions)
        rarest = min(seen.values()) if len(seen) == possible else 0
        figures += [(count, blocks / possible, limit) for count in (rarest, max(seen.values()))]
    return _verdict("orders", sum(judged.values()), *figures)


def _judge_runs(tally: _Tally) -> Verdict:
    """Return whether full blocks have as many runs within them as random orders have."""
    expected = variance = step = 0.0
    for size, blocks in tally.sound.items():
        shares = list(tally.shares[size].values())
        mean, spread = runs_moments(shares)
        expected += blocks * mean
        variance += blocks * spread
        step = max(step, mean - len(shares), size - mean)
    return _verdict("runs", tally.sound.total(), (tally.runs_within.total(), expected, _limit(variance, step)))


def _judge_guesses(tally: _Tally) -> Verdict:
    """Return whether the convergence strategy guesses the share of slots that theory says."""
    guessed = expected = variance = step = 0.0
    slots = 0
    for size, blocks in tally.sound.items():
        moments = _guess_moments(tuple(tally.ratios.values()), size)
        if moments is None:
            continue
        mean, spread = moments
        slots += size * blocks
        guessed += tally.guessed[size]
        expected += blocks * mean
        variance += blocks * spread
        step = max(step, mean, size - mean)
    share = 1 / max(1, slots)
    figures = (guessed * share, expected * share, _limit(variance, step) * share)
    return _verdict("predictability", slots, figures)


@lru_cache(_CACHED_THEORY)
def _guess_moments(ratios: tuple[int, ...], size: int) -> tuple[float, float] | None:
    """Return mean and variance of the right guesses in a random block, or None for too large a game.

    A state says how many slots of each arm are past. The next arm has the chance of its slots left among all
    left, and what is still to be guessed has the moments of the state that follows.
    """
    shares = [ratio * size // sum(ratios) for ratio in ratios]
    if prod(share + 1 for share in shares) > MAX_STATES:
        return None
    common = lcm(*ratios)
    moments: dict[tuple[int, ...], tuple[float, float]] = {tuple(shares): (0.0, 0.0)}
    # From the end to the beginning: every state that follows was worked out before.
    for state in product(*(range(share, -1, -1) for share in shares)):
        left = size - sum(state)
        so_far = [past * common // ratio for past, ratio in zip(state, ratios, strict=True)]
        behind = min(so_far)
        first = second = 0.0
        for arm, past in enumerate(state):
            if past == shares[arm]:
                continue
            chance = (shares[arm] - past) / left
            gain = 1 / so_far.count(behind) if so_far[arm] == behind else 0.0
            then_first, then_second = moments[(*state[:arm], past + 1, *state[arm + 1 :])]
            first += chance * (gain + then_first)
            second += chance * (gain**2 + 2 * gain * then_first + then_second)
        moments[state] = (first, second)
    mean, square = moments[(0,) * len(shares)]
    return mean, square - mean**2
