"""A seeded source of chance for the tests of credentials."""

import hashlib


class SeededEntropy:
    """A source of chance that gives the same bytes for the same seed, and keeps what it was asked for."""

    def __init__(self, seed: bytes = b"seed") -> None:
        self._seed = seed
        self.drawn: list[tuple[str, int]] = []

    def draw(self, purpose: str, size: int) -> bytes:
        self.drawn.append((purpose, size))
        label = b"|".join((self._seed, purpose.encode(), str(len(self.drawn)).encode()))
        return hashlib.shake_256(label).digest(size)


class GivenEntropy:
    """A source of chance that gives out what it was given, again and again."""

    def __init__(self, content: bytes) -> None:
        self._content = content

    def draw(self, purpose: str, size: int) -> bytes:
        drawn = (self._content * size)[:size]
        self._content = self._content[1:] + self._content[:1]
        return drawn
