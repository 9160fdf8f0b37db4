"""Where chance enters: a source that the composition root injects and a test double can replace."""

from typing import Protocol


class Entropy(Protocol):
    """A source of unpredictable bytes; in production the operating system's generator (rule A4)."""

    def draw(self, purpose: str, size: int) -> bytes:
        """Return ``size`` fresh bytes; ``purpose`` lets a double keep independent streams apart."""
