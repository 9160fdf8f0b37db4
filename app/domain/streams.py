"""Chance as a value: a stream that a label names and SHAKE-256 expands (rule A4, algorithm.md)."""

import hashlib
import struct
from array import array
from collections.abc import Sequence
from typing import Final, TypeVar

from app.domain.encoding import encode

T = TypeVar("T")

_WORD_SIZE: Final = 4
_WORDS: Final = 2 ** (8 * _WORD_SIZE)
_FIRST_SQUEEZE: Final = 1024


class Stream:
    """The integers and shuffles that one label gives, for ever the same on every machine (SEQ-06).

    The label's fields are encoded with lengths, so that two labels never run together, and absorbed by
    SHAKE-256 (FIPS 202). The output is read as 4-byte big-endian words, each used once. A stream whose label
    holds a secret seed is as secret as the seed; it does not show either of them.
    """

    __slots__ = ("_next", "_sponge", "_squeezed", "_words")

    def __init__(self, *label: str | int | bytes) -> None:
        self._sponge = hashlib.shake_256(encode(*label))
        self._squeezed = 0
        self._words = array("I")
        self._next = 0

    def below(self, n: int) -> int:
        """Return the next integer of 0 to ``n - 1``, each equally likely, by rejection sampling.

        Raises ``ValueError`` unless 1 <= n <= 2**32.
        """
        if not 1 <= n <= _WORDS:
            raise ValueError(f"cannot draw below {n}")
        accepted = _WORDS - _WORDS % n
        while True:
            if self._next == len(self._words):
                self._squeeze()
            word = self._words[self._next]
            self._next += 1
            if word < accepted:
                return word % n

    def many_below(self, n: int, count: int) -> list[int]:
        """Return what ``count`` calls of ``below(n)`` would, faster."""
        self._fill(count)
        words = self._words[self._next : self._next + count]
        if max(words, default=0) >= _WORDS - _WORDS % n:
            return [self.below(n) for _ in range(count)]
        self._next += count
        return [word % n for word in words]

    def shuffled(self, items: Sequence[T]) -> list[T]:
        """Return the items in an order drawn from the stream, each equally likely (Fisher-Yates)."""
        order = list(items)
        left = len(order)
        if left <= 1:
            return order
        self._fill(left - 1)
        start = self._next
        words = self._words[start : start + left - 1]
        # At or below this bound no draw of this shuffle rejects a word, so the words can be taken in one
        # slice. The other path gives the same for any words and is needed about once in 2**32 / left**2
        # shuffles.
        if max(words) <= _WORDS - left:
            self._next = start + left - 1
            for word in words:
                drawn = word % left
                left -= 1
                order[left], order[drawn] = order[drawn], order[left]
            return order
        for last in range(left - 1, 0, -1):
            drawn = self.below(last + 1)
            order[last], order[drawn] = order[drawn], order[last]
        return order

    def _fill(self, count: int) -> None:
        """Have ``count`` unused words at hand."""
        while len(self._words) - self._next < count:
            self._squeeze()

    def _squeeze(self) -> None:
        # hashlib gives the output from its beginning only: doubling keeps the work proportional to what is
        # used.
        length = max(_FIRST_SQUEEZE, 2 * self._squeezed)
        output = self._sponge.digest(length)[self._squeezed :]
        self._words = self._words[self._next :] + array("I", struct.unpack(f">{len(output) // _WORD_SIZE}I", output))
        self._next = 0
        self._squeezed = length
