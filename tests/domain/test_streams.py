"""Streams of chance: what algorithm.md says of them, against a reference written as plainly as possible."""

import hashlib
import struct
from array import array
from collections import Counter
from collections.abc import Sequence
from itertools import permutations, product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.domain.encoding import encode
from app.domain.streams import Stream
from tests.domain.lists import ALPHA, chi_square_p, vectors

TOP = 2**32


class Reference:
    """The stream as algorithm.md words it: one word after the other, no haste."""

    def __init__(self, words: Sequence[int]) -> None:
        self.words = list(words)

    @classmethod
    def labelled(cls, *label: str | int | bytes) -> "Reference":
        return cls(struct.unpack(">20000I", hashlib.shake_256(encode(*label)).digest(80_000)))

    def below(self, n: int) -> int:
        while True:
            word = self.words.pop(0)
            if word < TOP // n * n:
                return word % n

    def shuffled(self, items: Sequence[int]) -> list[int]:
        order = list(items)
        for i in range(len(order) - 1, 0, -1):
            j = self.below(i + 1)
            order[i], order[j] = order[j], order[i]
        return order


def planted(*words: int) -> Stream:
    """Return a stream whose next words are known, to show what chance shows once in thousands of millions of words."""
    stream = Stream("planted")
    stream._words = array("I", words)
    return stream


class TestStream:
    def test_golden_vectors(self) -> None:
        """The integers of the published vectors come out, rejected words and all. [SEQ-06]"""
        streams = vectors()["streams"]
        assert len(streams) == 4
        for case in streams:
            stream = Stream(*case["label"])
            assert [stream.below(n) for n in case["below"]] == case["values"]

    @given(
        st.lists(
            st.one_of(
                st.integers(1, TOP),
                st.tuples(st.integers(1, TOP), st.integers(0, 40)),
                st.lists(st.integers(), max_size=30),
            ),
            max_size=30,
        )
    )
    def test_any_mixture_of_draws(self, acts: list[int | tuple[int, int] | list[int]]) -> None:
        """However the draws are mixed, each word is used once and in order. [SEQ-06]"""
        stream, reference = Stream("mixture", 7, b"\xff"), Reference.labelled("mixture", 7, b"\xff")
        for act in acts:
            if isinstance(act, int):
                assert stream.below(act) == reference.below(act)
            elif isinstance(act, tuple):
                n, count = act
                assert stream.many_below(n, count) == [reference.below(n) for _ in range(count)]
            else:
                assert stream.shuffled(act) == reference.shuffled(act)

    def test_words_that_must_be_rejected(self) -> None:
        """A word above the last full multiple of n is thrown away, one below it is kept. [rule A4]"""
        limit = TOP // 3 * 3
        assert planted(limit, 5).below(3) == 2
        assert planted(limit - 1, 5).below(3) == 2
        assert planted(limit - 1, 7).below(3) == (limit - 1) % 3
        words = [1, TOP - 1, 23, 45]
        assert planted(*words).many_below(10, 3) == [1, 3, 5]

    @pytest.mark.parametrize("place", range(5))
    def test_shuffle_that_meets_a_rejected_word(self, place: int) -> None:
        """The quick way through a shuffle gives what the plain one gives, also when a word is rejected. [rule A4]"""
        for high in (TOP - 1, TOP - 4, TOP - 5, TOP - 6, TOP - 7):
            words = [10, 21, 32, 43, 54, 65, 76, 87, 98, 109]
            words[place] = high
            assert planted(*words).shuffled(range(6)) == Reference(words).shuffled(range(6))

    def test_long_shuffle(self) -> None:
        """A shuffle may need more words than one squeeze of the sponge gives. [SEQ-06]"""
        assert Stream("long").shuffled(range(3000)) == Reference.labelled("long").shuffled(range(3000))

    def test_nothing_to_choose(self) -> None:
        """One order costs no word, one value costs one; both as the algorithm says. [SEQ-06]"""
        stream = Stream("nothing")
        assert stream.shuffled([]) == []
        assert stream.shuffled(["only"]) == ["only"]
        assert stream.below(TOP) == Reference.labelled("nothing").words[0]
        assert stream.below(1) == 0
        assert stream.below(TOP) == Reference.labelled("nothing").words[2]

    @pytest.mark.parametrize("n", [0, -1, TOP + 1])
    def test_impossible_range(self, n: int) -> None:
        """A range that words cannot cover is refused, never approximated. [rule A4]"""
        with pytest.raises(ValueError, match="cannot draw"):
            Stream("range").below(n)

    def test_labels_that_run_together(self) -> None:
        """Fields have lengths: no two labels are one, so no two strata share a stream. [SEQ-09]"""
        labels = [("ab", "c"), ("a", "bc"), ("abc",), ("abc", ""), ("", "abc"), ("a", "b", "c")]
        assert len({Stream(*label).below(TOP) for label in labels}) == len(labels)

    def test_shown(self) -> None:
        """A stream does not print its label, which holds a seed. [rule A6]"""
        assert "secret" not in repr(Stream("secret"))
        assert b"secret".hex() not in repr(Stream(b"secret"))

    @pytest.mark.parametrize("items", ["ABC", "ABCD", "ABCDE"])
    def test_every_order_is_equally_likely(self, items: str) -> None:
        """Chi-square over fixed seeds: a shuffle favours no order. [SEQ-04]"""
        stream = Stream("orders", items)
        orders = list(permutations(items))
        rounds = 100 * len(orders)
        seen = Counter(tuple(stream.shuffled(items)) for _ in range(rounds))
        assert chi_square_p(seen, dict.fromkeys(orders, 100.0)) > ALPHA

    def test_successive_draws_are_independent(self) -> None:
        """Chi-square over fixed seeds: a draw tells nothing of the next. [SEQ-04]"""
        stream = Stream("pairs")
        seen = Counter((stream.below(6), stream.below(6)) for _ in range(36 * 200))
        assert chi_square_p(seen, dict.fromkeys(product(range(6), repeat=2), 200.0)) > ALPHA
