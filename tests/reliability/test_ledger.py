"""The results of the long form say what was reached, at which commit, and nothing more."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.reliability import ledger
from tests.reliability.ledger import ROOT, Ledger, Round, read_round
from tests.reliability.parts import PARTS, Part

PART = Part("kills", ("tests/reliability/test_kill.py",), {"postgresql.kills": 40, "sqlite.kills": 20})


def lines(outcome: str, counts: dict[str, int]) -> list[dict[str, Any]]:
    """What one test writes while it runs, and the line of how it ended."""
    return [{"test": "t", "counts": counts}, {"test": "t", "outcome": outcome, "seconds": 1.0, "why": "because"}]


def a_round(counts: dict[str, int], outcome: str = "passed") -> Round:
    return read_round(lines(outcome, counts), 7, "2026-11-23T00:00:00+00:00", 1.0)


def test_next_start_goes_on_where_the_last_one_stopped(tmp_path: Path) -> None:
    """Counts of one commit add up over the starts, until every goal is reached [done when 7]"""
    Ledger(PART, tmp_path, "one").add(a_round({"postgresql.kills": 20, "sqlite.kills": 20}))
    second = Ledger(PART, tmp_path, "one")
    assert (second.share, second.is_complete, second.databases_done()) == (0.5, False, ["sqlite"])
    second.add(a_round({"postgresql.kills": 20}))
    third = Ledger(PART, tmp_path, "one")
    assert (third.is_complete, third.databases_done(), len(third.rounds)) == (True, [], 2)


def test_two_runs_of_a_part_side_by_side_keep_what_both_have_done(tmp_path: Path) -> None:
    """A run that keeps a round adds it to what the other has kept meanwhile [done when 7]"""
    runs = [Ledger(PART, tmp_path, "one") for _ in range(2)]
    for run in (*runs, *runs):
        run.add(a_round({"postgresql.kills": 10}))
    kept = Ledger(PART, tmp_path, "one")
    assert (kept.counts["postgresql.kills"], len(kept.rounds)) == (40, 4)
    assert runs[1].counts == kept.counts


def test_counts_of_another_commit_stand_apart(tmp_path: Path) -> None:
    """What was reached with other code is told and not added [done when 7]"""
    Ledger(PART, tmp_path, "one").add(a_round({"postgresql.kills": 40}))
    Ledger(PART, tmp_path, "two").add(a_round({"postgresql.kills": 1}))
    kept = json.loads((tmp_path / "kills.json").read_text())
    assert (kept["commit"], kept["reached"]["postgresql.kills"]) == ("two", 1)
    assert [(one["commit"], one["reached"]["postgresql.kills"]) for one in kept["earlier_commits"]] == [("one", 40)]


def test_what_was_changed_and_not_committed_never_adds_up(tmp_path: Path) -> None:
    """The same words stand for other code at the next start [done when 7]"""
    for _ in range(2):
        Ledger(PART, tmp_path, "one with changes").add(a_round({"postgresql.kills": 20}))
    assert Ledger(PART, tmp_path, "one with changes").counts == {}
    kept = json.loads((tmp_path / "kills.json").read_text())
    assert kept["reached"]["postgresql.kills"] == 20


@pytest.mark.skipif(shutil.which("git") is None, reason="nobody commits on a machine without git")
def test_what_changed_beside_a_part_leaves_its_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A part's state is the service, what its tests stand on and the tests themselves; nobody else's tests [done when 7]"""
    monkeypatch.setattr(ledger, "ROOT", tmp_path)
    monkeypatch.setattr(ledger, "BELOW", tmp_path / "tests/reliability")

    def state_after(*changed: str) -> str:
        for path in changed:
            file = tmp_path / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(file.read_text() + "more\n" if file.exists() else "")
        git = ["git", "-c", "user.name=t", "-c", "user.email=t@localhost"]
        for command in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "a change"]):
            subprocess.run([*git, *command], cwd=tmp_path, check=True)
        return ledger.tested_commit("tests/reliability/test_kill.py::test_one")

    shared = ("app/doors.py", "migrations/0001.py", "constraints.txt", "tests/reliability/load.py")
    begun = state_after(*shared, "tests/reliability/test_kill.py")
    assert state_after("README.md", "tests/reliability/test_model.py", "tests/reliability/results/kills.json") == begun
    states = [begun, *(state_after(path) for path in (*shared, "tests/reliability/test_kill.py"))]
    assert len(set(states)) == len(states)
    (tmp_path / "app/doors.py").write_text("not committed")
    assert ledger.tested_commit("tests/reliability/test_kill.py").endswith(ledger.CHANGED)


def test_violation_stays_and_its_test_counts_nothing(tmp_path: Path) -> None:
    """A failed round is kept with its seed; the part is not complete whatever else is reached [done when 7]"""
    kept = Ledger(PART, tmp_path, "one")
    kept.add(a_round({"postgresql.kills": 40, "sqlite.kills": 20}, "failed"))
    assert kept.counts == {}
    kept.add(a_round({"postgresql.kills": 40, "sqlite.kills": 20}))
    again = Ledger(PART, tmp_path, "one")
    assert (again.share, again.is_complete) == (1, False)
    assert again.violations == [{"test": "t", "seed": 7, "why": "because"}]


def test_skipped_or_cut_off_counts_nothing() -> None:
    """Where a test could not run, or was not heard to end, nothing was shown [done when 7]"""
    skipped = a_round({"postgresql.kills": 40}, "skipped")
    assert (skipped.counts, skipped.skipped) == ({}, {"t": "because"})
    ended, hanging = lines("passed", {"postgresql.kills": 40}), {"test": "u", "counts": {"sqlite.kills": 5}}
    cut_off = read_round([*ended, hanging], 7, "", 1.0, is_whole=False)
    assert cut_off.counts == {"postgresql.kills": 40}


def test_every_part_names_tests_that_are_there() -> None:
    """A part without its file would never be complete."""
    assert len({part.file_name for part in PARTS}) == len(PARTS)
    for part in PARTS:
        for path in part.paths:
            assert (ROOT / path.partition("::")[0]).exists(), path
