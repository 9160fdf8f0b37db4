"""Kit codes and randomization numbers: their form, their check character, their chance; and the runs test of imports."""

from collections import Counter
from collections.abc import Container
from itertools import pairwise, permutations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from app.domain.codes import (
    ALPHABET,
    KIT_CODE_LENGTH,
    RANDOMIZATION_NUMBER_LENGTH,
    RUNS_TEST_LIMIT,
    check_character,
    draw_kit_codes,
    draw_randomization_numbers,
    is_valid,
    normalise_kit_code,
    runs_moments,
    runs_test_p,
)
from app.domain.streams import Stream
from app.errors import InvalidCode
from tests.domain.lists import ALPHA, chi_square_p


class Seeded:
    """A source of bytes that a seed determines; counts what each purpose drew."""

    def __init__(self, seed: int = 0) -> None:
        self.stream = Stream("entropy of a test", seed)
        self.drawn: Counter[str] = Counter()

    def draw(self, purpose: str, size: int) -> bytes:
        self.drawn[purpose] += size
        return bytes(self.stream.many_below(256, size))


class Scripted:
    """A source that gives the bytes it was told."""

    def __init__(self, *answers: bytes) -> None:
        self.answers = list(answers)

    def draw(self, purpose: str, size: int) -> bytes:
        return self.answers.pop(0)


def iso7064_check(body: str, alphabet: str) -> str:
    """Return the check character of any hybrid system of ISO 7064, written from the standard for the tests alone."""
    modulus = len(alphabet)
    product = modulus
    for character in body:
        total = (product + alphabet.index(character)) % modulus
        product = (total or modulus) * 2 % (modulus + 1)
    return alphabet[(modulus + 1 - product) % modulus]


class TestCheckCharacter:
    def test_published_examples(self) -> None:
        """The form of the reference gives the standard's own examples, MOD 11,10 and MOD 37,36. [ISO 7064]"""
        assert iso7064_check("0794", "0123456789") == "5"
        assert iso7064_check("A12425GABC1234002", "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ") == "M"

    @given(st.text(ALPHABET, min_size=1, max_size=12))
    def test_against_the_standard(self, body: str) -> None:
        """Our tables are MOD 31,30 of that form. [ISO 7064, BLD-04]"""
        assert check_character(body) == iso7064_check(body, ALPHABET)
        assert is_valid(body + check_character(body))

    def test_golden_codes(self) -> None:
        """Codes on labels stay valid for ever. [BLD-04]"""
        bodies = ("22222222", "23456789", "ZZZZZZZZ", "HYPERCAM", "ABCDE")
        assert [check_character(body) for body in bodies] == ["A", "Z", "R", "Y", "8"]

    def test_every_wrong_character_is_caught(self) -> None:
        """No single substitution gives another valid code. [ASG-13]"""
        substitutions = 0
        for code in draw_kit_codes(Seeded(1), 200, ()):
            for place in range(KIT_CODE_LENGTH):
                for other in ALPHABET.replace(code[place], ""):
                    substitutions += 1
                    assert not is_valid(code[:place] + other + code[place + 1 :])
        assert substitutions == 200 * 9 * 29

    def test_swapped_neighbours_are_nearly_always_caught(self) -> None:
        """At least 99.5 % of swapped neighbours are caught. [ASG-13]"""
        swaps = missed = 0
        for code in draw_kit_codes(Seeded(2), 2000, ()):
            for place, (one, other) in enumerate(pairwise(code)):
                if one != other:
                    swaps += 1
                    missed += is_valid(code[:place] + other + one + code[place + 2 :])
        assert swaps > 15_000
        assert missed / swaps < 0.005

    @pytest.mark.parametrize("code", ["", "2", "A", "0OIL1U", "abcdef", "22222222 "])
    def test_no_code(self, code: str) -> None:
        """What is not in the alphabet, or too short to be checked, is not valid. [BLD-04]"""
        assert not is_valid(code)


class TestNormaliseKitCode:
    def test_as_printed_and_as_typed(self) -> None:
        """Hyphens and lower case are how people read and type. [ASG-13]"""
        for code in draw_kit_codes(Seeded(3), 20, ()):
            assert normalise_kit_code(code) == code
            assert normalise_kit_code(f"{code[:3]}-{code[3:6]}-{code[6:]}".lower()) == code

    @given(st.text(max_size=14))
    @example("\N{LATIN SMALL LETTER SHARP S}2222222")
    @example("\N{LATIN SMALL LETTER LONG S}22222222")
    @example("\x00" * 9)
    @example("\N{FULLWIDTH DIGIT TWO}" * 9)
    def test_anything_else(self, text: str) -> None:
        """Everything that is no kit code is refused in one way, which repeats nothing of it. [rule G1]"""
        with pytest.raises(InvalidCode) as refusal:
            normalise_kit_code(text)
        assert refusal.value.field == "kit_code"
        assert refusal.value.message == "A kit code has nine characters, of which the last checks the others."

    def test_valid_code_of_another_length(self) -> None:
        """A randomization number is no kit code. [BLD-04]"""
        with pytest.raises(InvalidCode):
            normalise_kit_code(draw_randomization_numbers(Seeded(4), 1, ())[0])

    def test_long_s_is_no_s(self) -> None:
        """Letters that upper case would turn into ours are foreign all the same. [rule G1]"""
        code = next(code for code in draw_kit_codes(Seeded(5), 200, ()) if "S" in code)
        with pytest.raises(InvalidCode):
            normalise_kit_code(code.replace("S", "\N{LATIN SMALL LETTER LONG S}"))


class TestDraw:
    def test_form(self) -> None:
        """Fixed form, safe alphabet, check character, no two alike. [BLD-04, rule B4]"""
        kits = draw_kit_codes(Seeded(6), 5000, ())
        numbers = draw_randomization_numbers(Seeded(6), 5000, ())
        for codes, length in ((kits, KIT_CODE_LENGTH), (numbers, RANDOMIZATION_NUMBER_LENGTH)):
            assert len(codes) == len(set(codes)) == 5000
            assert all(len(code) == length and is_valid(code) for code in codes)

    def test_own_chance(self) -> None:
        """Kit codes and randomization numbers draw for purposes of their own. [SEQ-09, rule A4]"""
        entropy = Seeded()
        draw_kit_codes(entropy, 1, ())
        draw_randomization_numbers(entropy, 1, ())
        assert set(entropy.drawn) == {"kit-code", "randomization-number"}

    @pytest.mark.parametrize("place", range(KIT_CODE_LENGTH))
    def test_every_character_is_equally_likely(self, place: int) -> None:
        """Chi-square over a fixed seed, place by place: bytes are rejected, not folded. [BLD-04]"""
        seen = Counter(code[place] for code in draw_kit_codes(Seeded(7), 6000, ()))
        assert chi_square_p(seen, dict.fromkeys(ALPHABET, 200.0)) > ALPHA

    def test_folded_bytes_are_noticed(self) -> None:
        """Negative control: taking every byte modulo 30 favours sixteen characters, and the same test says so."""
        drawn = Seeded(7).draw("either", 64_000)
        kept = [byte for byte in drawn if byte < 240][:57_000]
        folded = Counter(byte % 30 for byte in drawn[:57_000])
        assert chi_square_p(Counter(byte % 30 for byte in kept), dict.fromkeys(range(30), 1900.0)) > ALPHA
        assert chi_square_p(folded, dict.fromkeys(range(30), 1900.0)) < ALPHA

    def test_order_tells_nothing(self) -> None:
        """Codes come in random order, neither rising nor falling. [rule B4]"""
        codes = draw_kit_codes(Seeded(8), 5000, ())
        rising = sum(one < other for one, other in pairwise(codes))
        # The number of rises in a random order has the mean (n - 1)/2 and the variance (n + 1)/12.
        assert abs(rising - 2499.5) < 4 * (5001 / 12) ** 0.5

    def test_taken_codes(self) -> None:
        """A code that exists is never given again, in a batch or across batches. [BLD-04]"""
        first = bytes(range(8))
        codes = draw_kit_codes(Scripted(first * 3, first, bytes(8)), 2, ())
        assert codes == ["23456789" + check_character("23456789"), "22222222" + check_character("22222222")]
        again = draw_kit_codes(Scripted(first, bytes(8)), 1, {codes[0]})
        assert again == [codes[1]]

    def test_rejected_bytes(self) -> None:
        """Bytes of 240 and above are thrown away; what is left over of a draw is not used. [rule B4]"""
        drawn = draw_kit_codes(Scripted(bytes([240, 255, 0, 29, 30, 239, 0, 241, 0, 0, 0])), 1, ())
        assert drawn == ["2Z2Z2222" + check_character("2Z2Z2222")]

    @pytest.mark.parametrize("count", [0, 1, 2, 16, 100_001])
    def test_count(self, count: int) -> None:
        """So many are drawn as are asked for. [KIT-01]"""
        taken: Container[str] = frozenset()
        assert len(draw_randomization_numbers(Seeded(9), count, taken)) == count

    def test_no_gaps_left(self) -> None:
        """Codes without gaps between them could be counted along, so so many are refused. [rule B4]"""
        with pytest.raises(ValueError, match="too few gaps"):
            draw_randomization_numbers(Scripted(), 30**5 // 2 + 1, ())


def runs_p_by_listing(labels: str) -> float:
    """Return the p-value by listing every order, for the tests alone."""

    def runs(order: tuple[str, ...] | str) -> int:
        return 1 + sum(one != other for one, other in pairwise(order))

    all_runs = [runs(order) for order in set(permutations(labels))]
    fewer = sum(count <= runs(labels) for count in all_runs)
    more = sum(count >= runs(labels) for count in all_runs)
    return min(1.0, 2 * min(fewer, more) / len(all_runs))


class TestRunsTest:
    @pytest.mark.parametrize(
        "labels", ["AB", "AAB", "ABAB", "AABB", "AAABBB", "ABABABAB", "ABC", "AABBCC", "ABCABC", "AABCCB"]
    )
    def test_small_sequences(self, labels: str) -> None:
        """Exact: the p-value is the share of all orders, for any number of labels. [BLD-04]"""
        assert runs_test_p(labels) == pytest.approx(runs_p_by_listing(labels))

    @pytest.mark.parametrize("labels", ["", "A", "AAAA", "A" * 300, "ABCDEFG"])
    def test_nothing_to_tell(self, labels: str) -> None:
        """One label cannot be told by any order, nor can labels that never repeat. [BLD-04]"""
        assert runs_test_p(labels) == 1.0

    @pytest.mark.parametrize(
        "labels",
        [
            "A" * 30 + "B" * 30,
            "AB" * 30,
            "ABC" * 20,
            "A" * 150 + "B" * 150,
            "AB" * 150,
            "ABCD" * 80,
            "A" * 20 + "B" * 20 + "C" * 20,
        ],
    )
    def test_order_that_tells_the_arm(self, labels: str) -> None:
        """Kits sorted by arm, or alternating, are refused. [BLD-04, failures 1 and 2]"""
        assert runs_test_p(labels) < RUNS_TEST_LIMIT

    @pytest.mark.parametrize("labels", ["AB" * 30, "ABC" * 30, "AB" * 200, "AAB" * 200, "ABCD" * 100])
    def test_random_orders(self, labels: str) -> None:
        """Random orders pass, and their p-values are spread as p-values are. [BLD-04]"""
        stream = Stream("runs", labels)
        found = [runs_test_p(stream.shuffled(labels)) for _ in range(200)]
        assert min(found) > RUNS_TEST_LIMIT
        # A p-value of a discrete statistic is at or below x with a probability of x at most: 20 expected, 4 sd allowed.
        assert sum(p <= 0.1 for p in found) <= 20 + 4 * 18**0.5
        assert max(found) > 0.5

    def test_exact_and_approximate_agree(self) -> None:
        """Where exact counting ends, the normal approximation carries on without a step. [BLD-04]"""
        stream = Stream("seam")
        for _ in range(20):
            order = stream.shuffled("AB" * 100)
            exact, approximate = runs_test_p(order), runs_test_p([*order, order[-1]])
            assert approximate == pytest.approx(exact, abs=0.12)

    def test_single_odd_one_in_a_long_sequence(self) -> None:
        """One label but for one package: the order can hardly tell. [BLD-04]"""
        assert runs_test_p("A" * 150 + "B" + "A" * 150) > RUNS_TEST_LIMIT
        assert runs_test_p("B" + "A" * 300) > RUNS_TEST_LIMIT

    @pytest.mark.parametrize("labels", ["AABB", "AAABB", "AABBC", "ABCD", "AAABBC"])
    def test_moments(self, labels: str) -> None:
        """Mean and variance of the number of runs are those of all orders. [SEQ-14]"""
        orders = set(permutations(labels))
        runs = [1 + sum(one != other for one, other in pairwise(order)) for order in orders]
        mean = sum(runs) / len(runs)
        variance = sum((count - mean) ** 2 for count in runs) / len(runs)
        assert runs_moments(list(Counter(labels).values())) == pytest.approx((mean, variance))
