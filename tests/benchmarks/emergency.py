"""Emergency code breaks when everything else is down, while strangers guess at the password of whoever breaks them."""

import tempfile
import time
from pathlib import Path
from statistics import median

import httpx

from tests.alone import HANGING, alone
from tests.benchmarks.throughput import Size

_SUBJECTS = tuple(f"S-{number:02}" for number in range(20))


def measure_emergency(url: str, workers: int, size: Size) -> dict[str, float]:
    """Return the latencies of breaks by a passkey that signs each request; the subjects take turns."""
    seconds = []
    with (
        tempfile.TemporaryDirectory(prefix="snose-bench-") as folder,
        alone(Path(folder), url, workers, _SUBJECTS, HANGING) as person,
    ):
        person.sign_in_by_passkey()
        guesses = person.attack.heard.total()
        for number in range(size.lone_breaks):
            body, headers = person.signed_break(_SUBJECTS[number % len(_SUBJECTS)])
            begun = time.perf_counter()
            answer = person.send_break(body, headers)
            seconds.append(time.perf_counter() - begun)
            if answer.status_code != httpx.codes.CREATED:
                raise AssertionError(answer.text)
        guesses = person.attack.heard.total() - guesses
    seconds.sort()
    return {
        "breaks": len(seconds),
        "guesses_beside": guesses,
        "p50_ms": median(seconds) * 1000,
        "p99_ms": seconds[min(len(seconds) - 1, int(len(seconds) * 0.99))] * 1000,
        "longest_ms": seconds[-1] * 1000,
    }
