"""Codes that say nothing: kit codes, randomization numbers, and a test for imported codes that do tell."""

from collections import Counter
from collections.abc import Container, Mapping, Sequence
from itertools import pairwise
from math import comb, erfc, sqrt
from typing import Final, cast

from app.domain.entropy import Entropy
from app.domain.words import KitCode, RandomizationNumber
from app.errors import InvalidCode

ALPHABET: Final = "23456789ABCDEFGHJKMNPQRSTVWXYZ"
"""Thirty characters that are not mistaken for each other: no 0, 1, I, L, O, U."""
KIT_CODE_LENGTH: Final = 9
RANDOMIZATION_NUMBER_LENGTH: Final = 6
RUNS_TEST_LIMIT: Final = 1e-6
"""An import whose p-value is below this is refused: its codes or its order tell the arm (rule B4)."""

_BASE: Final = len(ALPHABET)
_VALUE: Final = {character: value for value, character in enumerate(ALPHABET)}
# Bytes from 240 up are thrown away: 240 is the largest multiple of 30 that a byte can count, so the rest is
# unbiased.
_UNBIASED: Final = 256 - 256 % _BASE
_TO_ALPHABET: Final = bytes(ord(ALPHABET[byte % _BASE]) for byte in range(256))
_REJECTED: Final = bytes(range(_UNBIASED, 256))
_BATCH: Final = 100_000
_EXACT_RUNS: Final = 200


def _next_product(product: int, value: int) -> int:
    """Return the state of ISO 7064's hybrid system after one more character."""
    return ((product + value) % _BASE or _BASE) * 2 % (_BASE + 1)


# What one character does to the state, as tables: a million codes pass through here in one consignment of a
# large trial.
_STEP: Final[tuple[Mapping[str, int], ...]] = tuple(
    {character: _next_product(product, value) for character, value in _VALUE.items()} for product in range(_BASE + 1)
)
_CHECK: Final = tuple(ALPHABET[(1 - product) % _BASE] for product in range(_BASE + 1))


def check_character(body: str) -> str:
    """Return the character that completes ``body`` (ISO 7064, hybrid system MOD 31,30, over ``ALPHABET``).

    It catches every single substitution and all but about 0.3 % of swapped neighbours. Raises ``KeyError``
    for a character outside the alphabet.
    """
    product = _BASE
    for character in body:
        product = _STEP[product][character]
    return _CHECK[product]


def is_valid(code: str) -> bool:
    """Return whether ``code`` is in the alphabet and ends in its check character."""
    return len(code) > 1 and all(character in _VALUE for character in code) and check_character(code[:-1]) == code[-1]


def normalise_kit_code(text: str) -> KitCode:
    """Return the kit code that a person read, typed or scanned, hyphens and lower case allowed.

    Raises ``InvalidCode`` for a wrong form or a wrong check character. Nothing is looked up: the answer is
    the same whether the kit exists or not, and whose it is (ASG-13).
    """
    code = text.replace("-", "").upper()
    # Upper case lengthens some letters of other scripts into ones of the alphabet, so the text itself must be
    # ASCII.
    if not text.isascii() or len(code) != KIT_CODE_LENGTH or not is_valid(code):
        raise InvalidCode("A kit code has nine characters, of which the last checks the others.", "kit_code")
    return KitCode(code)


def draw_kit_codes(entropy: Entropy, count: int, taken: Container[str]) -> list[KitCode]:
    """Return ``count`` new kit codes, new to each other and to ``taken``, in random order (rule B4)."""
    return cast("list[KitCode]", _draw(entropy, "kit-code", KIT_CODE_LENGTH, count, taken))


def draw_randomization_numbers(entropy: Entropy, count: int, taken: Container[str]) -> list[RandomizationNumber]:
    """Return ``count`` new randomization numbers, different from each other and from ``taken``.

    Rules B4 and A4, BLD-04. Their chance is the service's own, apart from the allocation streams (rule A4).
    """
    drawn = _draw(entropy, "randomization-number", RANDOMIZATION_NUMBER_LENGTH, count, taken)
    return cast("list[RandomizationNumber]", drawn)


def _draw(entropy: Entropy, purpose: str, length: int, count: int, taken: Container[str]) -> list[str]:
    """Return ``count`` new codes; raises ``ValueError`` where so many would leave no gaps between them."""
    body = length - 1
    if count > _BASE**body // 2:
        raise ValueError(f"{count} codes of {length} characters would leave too few gaps")
    codes: dict[str, None] = {}
    while len(codes) < count:
        missing = min(count - len(codes), _BATCH)
        # A sixteenth of the bytes is rejected; the spare ones save a second, tiny draw.
        entropy_bytes = entropy.draw(purpose, missing * body * 16 // 15 + 64)
        characters = entropy_bytes.translate(_TO_ALPHABET, _REJECTED).decode("ascii")
        for start in range(0, min(len(characters) // body, missing) * body, body):
            text = characters[start : start + body]
            code = text + check_character(text)
            if code not in taken:
                codes[code] = None
    return list(codes)


def codes_tell(codes: Sequence[str], labels: Sequence[str]) -> bool:
    """Return whether codes of one length tell their labels: in the order of the codes the labels do not alternate as by chance.

    A code may tell by any of its characters, so the order is that of the codes read from each character on, around the end.
    """
    return any(
        runs_test_p(
            [label for _, label in sorted(zip((code[turn:] + code[:turn] for code in codes), labels, strict=True))]
        )
        < RUNS_TEST_LIMIT
        for turn in range(max(map(len, codes), default=0))
    )


def runs_test_p(labels: Sequence[str]) -> float:
    """Return the p-value of the runs test: how surprising the number of runs is in a random order.

    Two-sided. Wald and Wolfowitz (1940) for two labels, in the form for any number of labels (Barton and David 1957).
    Exact, by counting orders, where no order has more than 200 runs; beyond that the normal approximation with the exact
    mean and variance and a continuity correction of one half (good while no label is very rare). 1.0 where there is
    nothing to tell (fewer than two different labels, or all different).
    """
    counts = sorted(Counter(labels).values())
    if len(counts) <= 1 or counts[-1] == 1:
        return 1.0
    runs = 1 + sum(one != other for one, other in pairwise(labels))
    # The commonest label is cut by each of the others at most once.
    most = min(len(labels), 2 * sum(counts[:-1]) + 1)
    if most <= _EXACT_RUNS:
        return _exact_runs_p(counts, runs, most)
    mean, variance = runs_moments(counts)
    z = max(0.0, abs(runs - mean) - 0.5) / sqrt(variance)
    return erfc(z / sqrt(2))


def runs_moments(counts: Sequence[int]) -> tuple[float, float]:
    """Return mean and variance of the number of runs when things of these ``counts`` stand in random order.

    Exact for any number of kinds (Barton and David 1957). Needs at least two things.
    """
    n = sum(counts)
    squares = sum(count**2 for count in counts)
    cubes = sum(count**3 for count in counts)
    mean = n + 1 - squares / n
    variance = (squares * (squares + n * (n + 1)) - 2 * n * cubes - n**3) / (n**2 * (n - 1))
    return mean, variance


def _exact_runs_p(counts: Sequence[int], runs: int, most: int) -> float:
    """Return the two-sided p-value, twice the smaller tail, by counting the orders that have each number of runs."""
    n = sum(counts)
    # pieces[t]: ways to cut each label's things into pieces and to line up all t pieces; equal neighbours allowed.
    pieces = {0: 1}
    for count in counts:
        grown: dict[int, int] = {}
        for total, ways in pieces.items():
            for cut in range(1, min(count, most - total) + 1):
                lined_up = ways * comb(total + cut, cut) * comb(count - 1, cut - 1)
                grown[total + cut] = grown.get(total + cut, 0) + lined_up
        pieces = grown
    # An order of r runs was met once for each choice of t - r further cuts among its n - r places inside runs.
    orders: dict[int, int] = {}
    for total in sorted(pieces):
        met = sum(number * comb(n - r, total - r) for r, number in orders.items())
        orders[total] = pieces[total] - met
    fewer = sum(number for r, number in orders.items() if r <= runs)
    more = sum(number for r, number in orders.items() if r >= runs)
    return min(1.0, 2 * min(fewer, more) / sum(orders.values()))
