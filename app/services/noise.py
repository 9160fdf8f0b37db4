"""Unauthenticated noise: counted by network and minute, entered off the request path, and bounded (rule E1)."""

from collections import Counter
from collections.abc import Mapping
from threading import Lock
from typing import Final

_QUOTA: Final = 1000


class NoiseMeter:
    """Counts of refused anonymous requests that have not been entered yet."""

    def __init__(self) -> None:
        """Begin at nothing."""
        self._lock = Lock()
        self._counts: Counter[str] = Counter()

    def count(self, network: str) -> None:
        """Count one refused request; past the quota of networks all further ones are counted together."""
        with self._lock:
            known = network in self._counts or len(self._counts) < _QUOTA
            self._counts[network if known else "other"] += 1

    def take(self) -> Mapping[str, int]:
        """Return what was counted since the last call, by network."""
        with self._lock:
            counts, self._counts = self._counts, Counter()
        return counts
