"""Unauthenticated noise: counted by network and minute, entered off the request path, and bounded (rule E1)."""

from collections import Counter
from collections.abc import Mapping
from threading import Lock
from typing import Final

QUOTA: Final = 100
"""Networks that are told apart within an interval, and so the most entries that noise can cause in it."""

OTHER: Final = "other"
"""All further networks together."""


class NoiseMeter:
    """Counts of refused anonymous requests that have not been entered yet."""

    def __init__(self) -> None:
        """Begin at nothing."""
        self._lock = Lock()
        self._counts: Counter[str] = Counter()

    def count(self, network: str) -> None:
        """Count one refused request; past the quota of networks all further ones are counted together."""
        self.give_back({network: 1})

    def take(self) -> Mapping[str, int]:
        """Return what was counted since the last call, by network."""
        with self._lock:
            counts, self._counts = self._counts, Counter()
        return counts

    def give_back(self, counts: Mapping[str, int]) -> None:
        """Count again what was taken and could not be entered."""
        with self._lock:
            for network, count in counts.items():
                known = network in self._counts or len(self._counts) < QUOTA
                self._counts[network if known else OTHER] += count
