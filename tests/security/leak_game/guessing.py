"""How well columns of numbers tell one class from another: a scan of every column, and a classifier over the best of them.

Learnt on one study and examined on others, so that what is found was there to be found. The classifier is an additive one: each
column, cut into bins that hold equally many, gives the log-odds of its bin as learnt, and a logistic regression weighs the columns
that told most in learning. So a relation need not be a rising one to be seen.
"""

import random
from array import array
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import chain, compress
from math import exp, log, sqrt
from operator import mul
from statistics import NormalDist
from typing import Any, Final

Columns = Mapping[str, Sequence[float]]

UNKNOWN: Final = -1.0
DEVIATIONS: Final = 4
"""So many standard errors from a half are no chance."""
_BINS: Final = 16
_KEPT: Final = 40
"""How many columns the classifier weighs."""
_ROUNDS: Final = 4
_RATE: Final = 0.02


@dataclass(frozen=True)
class Examination:
    """Things of two classes, and everything known of each, by column."""

    columns: Columns
    labels: Sequence[int]
    clusters: Sequence[int]
    """What was decided together, such as the kits of one consignment: only different ones are independent."""

    @property
    def sizes(self) -> tuple[int, int]:
        """How many are of the first class, and how many of the second."""
        ones = sum(self.labels)
        return len(self.labels) - ones, ones


@dataclass(frozen=True)
class Finding:
    """What a reader makes of it: areas under the ROC curve, of which a half is chance and one is certainty."""

    things: int
    columns: int
    standard_error: float
    """Were every thing independent of the others."""
    classifier: float
    classifier_error: float
    best_column: str
    best: float
    best_error: float
    widest_column: str
    widest: float
    """The largest distance from a half over all columns, in standard errors."""
    limit: float
    """What ``widest`` stays under by chance, whatever the number of columns (Bonferroni, at the level of four deviations)."""

    @property
    def is_chance(self) -> bool:
        """Whether nothing was found."""
        told = ((self.classifier, self.classifier_error), (self.best, self.best_error))
        return all(abs(found - 0.5) < DEVIATIONS * error for found, error in told) and self.widest < self.limit

    @property
    def error(self) -> float:
        """The larger standard error of the two ways to guess, what goes together counted once."""
        return max(self.classifier_error, self.best_error)

    def is_caught(self, bar: float) -> bool:
        """Whether one of the two ways to guess is better than ``bar``, and that by no chance."""
        told = ((self.classifier, self.classifier_error), (self.best, self.best_error))
        return any(found > bar and found - 0.5 > DEVIATIONS * error for found, error in told)

    def report(self) -> dict[str, Any]:
        """Return the figures as JSON has them."""
        return {
            name: round(value, 4) if isinstance(value, float) else value for name, value in asdict(self).items()
        } | {"is_chance": self.is_chance}


_NOTHING: Final = Finding(0, 0, 0.5, 0.5, 0.5, "", 0.5, 0.5, "", 0.0, float(DEVIATIONS))
"""What is found where there was no guess to be made."""


def normalised(values: Sequence[float]) -> Sequence[float]:
    """Return the rank of every value among all, from 0 to 1, equal ones alike."""
    ordered = sorted(values)
    last = dict(zip(ordered, range(len(ordered)), strict=True))
    first = dict(zip(reversed(ordered), range(len(ordered) - 1, -1, -1), strict=True))
    share = 0.5 / max(1, len(ordered) - 1)
    ranks = {value: (first[value] + last[value]) * share for value in first}
    return array("d", map(ranks.__getitem__, values))


@dataclass(frozen=True)
class Sheet:
    """Things and what is known of each, column by column: a dictionary for each thing would take ten times the memory."""

    keys: Sequence[Any]
    columns: dict[str, Sequence[float]]
    at: dict[Any, int] = field(repr=False)

    @classmethod
    def of(cls, things: Mapping[Any, Mapping[str, float]]) -> "Sheet":
        """Return a sheet of things by their keys; what is not known of one is below everything that is."""
        keys = list(things)
        names = sorted({name for known in things.values() for name in known})
        columns: dict[str, Sequence[float]] = {}
        for name in names:
            columns[name] = array("d", (things[key].get(name, UNKNOWN) for key in keys))
        return cls(keys, columns, {key: at for at, key in enumerate(keys)})

    def __len__(self) -> int:
        return len(self.keys)

    def of_some(self, keys: Sequence[Any], begin: tuple[str, ...] = ("",)) -> dict[str, Sequence[float]]:
        """Return the columns with names that begin so, for some things in this order."""
        places = [self.at[key] for key in keys]
        return {
            name: array("d", (values[place] for place in places))
            for name, values in self.columns.items()
            if name.startswith(begin)
        }

    def value(self, key: Any, name: str) -> float:  # noqa: ANN401  # what the things are called by
        """Return one value."""
        return self.columns[name][self.at[key]]


def gathered(parts: Sequence[Columns]) -> dict[str, Sequence[float]]:
    """Return the columns of things of several studies, each as its rank within its study; those that all of them have."""
    names = sorted(set.intersection(*(set(part) for part in parts)))
    return {name: array("d", chain(*(normalised(part[name]) for part in parts))) for name in names}


def area(values: Sequence[float], labels: Sequence[int]) -> float:
    """Return how often a thing of the second class has the greater value; equal values count half (Mann and Whitney 1947)."""
    return _area_of_ranks(normalised(values), labels)


def _area_of_ranks(ranks: Sequence[float], labels: Sequence[int]) -> float:
    ones = sum(labels)
    total = sum(compress(ranks, labels)) * (len(labels) - 1) + ones
    return (total - ones * (ones + 1) / 2) / (ones * (len(labels) - ones))


def standard_error(first: int, second: int) -> float:
    """Return that of the area where there is nothing to find; ties make it smaller."""
    return sqrt((first + second + 1) / (12 * first * second))


def measured(values: Sequence[float], asked: Examination) -> tuple[float, float]:
    """Return the area and its standard error, which is larger where things of one cluster go together.

    Each rank counts from the mean of its own class (DeLong 1988): what the column tells is no part of the error.
    """
    ranks, (zeros, ones) = normalised(values), asked.sizes
    second = sum(compress(ranks, asked.labels)) / ones
    first = (sum(ranks) - second * ones) / zeros
    shares: defaultdict[int, float] = defaultdict(float)
    for rank, label, cluster in zip(ranks, asked.labels, asked.clusters, strict=True):
        shares[cluster] += (rank - second) / ones if label else (first - rank) / zeros
    error = sqrt(sum(share * share for share in shares.values()))
    return _area_of_ranks(ranks, asked.labels), max(error, standard_error(zeros, ones))


def examine(learnt: Examination, asked: Examination) -> Finding:
    """Return what can be told of one study by what was learnt of another."""
    if not learnt.labels or not asked.labels:
        return _NOTHING
    # What never varied while learning, or is not there any more, cannot be learnt from.
    common = set(asked.columns)
    scored = [
        (bins.weight, name, bins)
        for name in learnt.columns
        if name in common
        for bins in (_Bins(learnt.columns[name], learnt.labels),)
        if bins.varies
    ]
    scored.sort(key=lambda one: (-one[0], one[1]))
    kept, names = scored[:_KEPT], [name for _, name, _ in scored]
    classifier, classifier_error = measured(_classified(kept, learnt, asked), asked)
    before = {name: area(learnt.columns[name], learnt.labels) for _, name, _ in kept}
    best_column = max(before, key=lambda name: abs(before[name] - 0.5), default="")
    found = {name: measured(asked.columns[name], asked) for name in names}
    widths = {name: abs(told - 0.5) / error for name, (told, error) in found.items()}
    widest = max(widths, key=widths.__getitem__, default="")
    best, best_error = found.get(best_column, (0.5, standard_error(*asked.sizes)))
    return Finding(
        len(asked.labels),
        len(names),
        standard_error(*asked.sizes),
        classifier,
        classifier_error,
        best_column,
        _towards(before.get(best_column, 0.5), best),
        best_error,
        widest,
        widths.get(widest, 0.0),
        NormalDist().inv_cdf(1 - NormalDist().cdf(-DEVIATIONS) / max(1, len(names))),
    )


def _towards(learnt: float, found: float) -> float:
    return found if learnt >= 0.5 else 1 - found


@dataclass(slots=True)
class Tally:
    """How often it was right to guess by an order, how often wrong, among things that were decided together."""

    right: float = 0.0
    wrong: float = 0.0
    guesses: int = 0

    def add(self, right: float, wrong: float) -> None:
        """Count one more guess, by the chance that it was right and the chance that it was wrong."""
        self.right += right
        self.wrong += wrong
        self.guesses += 1


Told = Mapping[str, Mapping[str, Tally]]
"""For each order, and for what was decided together, how it was to guess by it."""


def follow(learnt: Told, asked: Told) -> Finding:
    """Return what can be told by an order in which things come: the one that told most in learning, and the way it did."""
    before = {order: _share(found) for order, found in learnt.items() if order in asked}
    if not before:
        return _NOTHING
    after = {order: _share(asked[order]) for order in before}
    best = max(before, key=lambda order: abs(before[order][0] - 0.5) * sqrt(before[order][2]))
    right, error, things = after[best]
    widths = {order: abs(share - 0.5) / error for order, (share, error, _) in after.items()}
    widest = max(widths, key=widths.__getitem__)
    told = _towards(before[best][0], right)
    limit = NormalDist().inv_cdf(1 - NormalDist().cdf(-DEVIATIONS) / len(widths))
    plain = 0.5 / sqrt(things)
    return Finding(things, len(widths), plain, told, error, best, told, error, widest, widths[widest], limit)


def _share(found: Mapping[str, Tally]) -> tuple[float, float, int]:
    """Return how many guesses of all were right, the standard error of that (by clusters), and how many there were."""
    guesses = sum(tally.guesses for tally in found.values())
    count = sum(tally.right + tally.wrong for tally in found.values())
    share = sum(tally.right for tally in found.values()) / count
    spread = sqrt(sum((tally.right - share * (tally.right + tally.wrong)) ** 2 for tally in found.values())) / count
    return share, max(spread, 0.5 / sqrt(guesses)), guesses


class _Bins:
    """The log-odds of the second class in each bin of a column, as learnt."""

    def __init__(self, values: Sequence[float], labels: Sequence[int]) -> None:
        ordered = sorted(values)
        self.varies = ordered[0] != ordered[-1]
        """Whether the column holds more than one value."""
        distinct = sorted(set(values))
        if len(distinct) > _BINS:
            distinct = sorted({ordered[len(ordered) * cut // _BINS] for cut in range(_BINS)})
        self._edges = distinct[1:]
        counts = [[1.0, 1.0] for _ in range(len(self._edges) + 1)]
        for value, label in zip(values, labels, strict=True):
            counts[bisect_right(self._edges, value)][label] += 1
        zeros, ones = len(labels) - sum(labels), sum(labels)
        self._odds = [log(one / ones) - log(zero / zeros) for zero, one in counts]
        self.weight = sum((zero + one) * odds * odds for (zero, one), odds in zip(counts, self._odds, strict=True))

    def odds(self, values: Sequence[float]) -> list[float]:
        """Return the log-odds of every value."""
        return [self._odds[bisect_right(self._edges, value)] for value in values]


def _classified(kept: Sequence[tuple[float, str, _Bins]], learnt: Examination, asked: Examination) -> list[float]:
    rows = [[*row, 1.0] for row in zip(*(bins.odds(learnt.columns[name]) for _, name, bins in kept), strict=True)]
    weights = _regression(rows, learnt.labels)
    columns = (bins.odds(asked.columns[name]) for _, name, bins in kept)
    return [sum(map(mul, weights, row)) for row in zip(*columns, strict=True)] if kept else [0.0] * len(asked.labels)


def _regression(rows: Sequence[Sequence[float]], labels: Sequence[int]) -> list[float]:
    """Return the weights of a logistic regression, by gradient steps in a seeded order."""
    weights = [0.0] * (len(rows[0]) if rows else 0)
    order = list(range(len(rows)))
    chance = random.Random(1)
    for _ in range(_ROUNDS):
        chance.shuffle(order)
        for at in order:
            row = rows[at]
            step = _RATE * (labels[at] - _sigmoid(sum(map(mul, weights, row))))
            weights = [weight + step * value for weight, value in zip(weights, row, strict=True)]
    return weights


def _sigmoid(value: float) -> float:
    return 1 / (1 + exp(-max(-30.0, min(30.0, value))))


def compared(anchors: Columns, ones: Sequence[int], others: Sequence[int]) -> dict[str, Callable[[], Sequence[float]]]:
    """Return columns about pairs of things, made when they are asked for: how far apart, on one side, alike."""

    def apart(values: Sequence[float]) -> Callable[[], Sequence[float]]:
        return lambda: array("d", (abs(values[a] - values[b]) for a, b in zip(ones, others, strict=True)))

    def together(values: Sequence[float]) -> Callable[[], Sequence[float]]:
        return lambda: array("d", ((values[a] - 0.5) * (values[b] - 0.5) for a, b in zip(ones, others, strict=True)))

    def equal(values: Sequence[float]) -> Callable[[], Sequence[float]]:
        return lambda: array("d", (float(values[a] == values[b]) for a, b in zip(ones, others, strict=True)))

    made: dict[str, Callable[[], Sequence[float]]] = {}
    for name, values in anchors.items():
        made |= {
            f"{name} apart": apart(values),
            f"{name} together": together(values),
            f"{name} equal": equal(values),
        }
    return made


class Lazily(Mapping[str, Sequence[float]]):
    """Columns that are made each time they are asked for: all at once would not fit into memory."""

    def __init__(self, made: Mapping[str, Callable[[], Sequence[float]]]) -> None:
        self._made = made

    def __getitem__(self, name: str) -> Sequence[float]:
        return self._made[name]()

    def __iter__(self) -> Iterator[str]:
        return iter(self._made)

    def __len__(self) -> int:
        return len(self._made)
