"""What a test of the long form hands to `python -m tests.reliability`: how much of what it has done, and from which seed.

def test_killed(ground: Ground, kills: int, round_seed: int, tally: Tally) -> None:
    chance = random.Random(round_seed)              # another one in every round, told in the result
    ...                                             # one round: minutes at most, with a ground of its own
    tally(kills=kills, acknowledged=len(journal))   # counted by database, and only when the test passes
# and one line in parts.py: the file, and what all rounds together are to reach.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest

FILE: Final = "RELIABILITY_TALLY"
"""The environment variable that names the file of one round; without it nothing is written."""
SEED: Final = "RELIABILITY_SEED"
"""The environment variable with the seed of one round; without it the push form's, which is always the same."""

_SHORT: Final = 8_000
INTERRUPTED: Final[dict[str, Any]] = {"interrupted": True}
"""The line of a run that somebody ended."""
Tally = Callable[..., None]


@pytest.fixture
def tally(request: pytest.FixtureRequest) -> Tally:
    """Counts that the test adds by name, such as ``kills=20``; with the database's kind before the name where it has one."""
    values = getattr(request.node, "callspec", None)
    kind = "" if values is None else values.params.get("database_kind", "")

    def add(**counts: int) -> None:
        named = {f"{kind}.{name}" if kind else name: count for name, count in counts.items()}
        print(json.dumps(named))  # noqa: T201  # without the runner, this is where they are read
        _write({"test": request.node.nodeid, "counts": named})

    return add


@pytest.fixture
def round_seed() -> int:
    """The seed of this round; printed, so that a failure can be replayed with RELIABILITY_SEED."""
    seed = int(os.environ.get(SEED, "1"))
    print(f"{SEED}={seed}")  # noqa: T201  # pytest shows it with a failure
    return seed


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Tell how each test ended; a round's counts stand only for tests that passed."""
    if report.when == "call" or report.outcome != "passed":
        why = report.longrepr[2] if isinstance(report.longrepr, tuple) else _shortened(report.longreprtext)
        _write({"test": report.nodeid, "outcome": report.outcome, "seconds": report.duration, "why": why})


def _shortened(why: str) -> str:
    """Return the beginning, which says what differed, and the end, which says what was asked."""
    return why if len(why) <= _SHORT else f"{why[: _SHORT // 2]}\n…\n{why[-_SHORT // 2 :]}"


def pytest_keyboard_interrupt() -> None:
    """Tell that the round is none."""
    _write(INTERRUPTED)


def _write(line: dict[str, Any]) -> None:
    if path := os.environ.get(FILE):
        with Path(path).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
