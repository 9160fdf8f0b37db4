"""The crash and fault suite in one command: rounds of each part, in turns, until what is asked for is reached.

    python -m tests.reliability [--hours 3] [--rounds N] [--seed N] [PART ...]
    python -m tests.reliability --quick [PART ...]         the short forms, once each, as every push runs them

Each part keeps one JSON under tests/reliability/results/ and goes on from there at the next start, at the same commit.
A round that fails is a violation: it is kept with its seed, and its part is left for this run. Exit status: 0 when every part
is complete, 1 after a violation, 3 when the time was over before.
"""

import argparse
import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from tests.reliability import tally
from tests.reliability.ledger import RESULTS, ROOT, Ledger, Round, read_round
from tests.reliability.parts import PARTS, ROUNDS, Part

UNFINISHED: Final = 3
_ENDS_WITHIN_SECONDS: Final = 60.0
_NO_TESTS: Final = 5
"""pytest's status where a part has no short form of its own."""


class Screen:
    """What one sees: a bar for each part on a terminal, a line for each round elsewhere."""

    def __init__(self, ledgers: Sequence[Ledger]) -> None:
        self._console = Console(width=None if sys.stdout.isatty() else 140, highlight=False)
        columns = (
            TextColumn("{task.description:<16}"),
            BarColumn(),
            TextColumn("{task.fields[told]}"),
            TimeElapsedColumn(),
        )
        self._progress = Progress(*columns, console=self._console, disable=not self._console.is_terminal)
        self._bars: dict[str, TaskID] = {
            one.part.name: self._progress.add_task(one.part.name, total=1.0, told="", start=False) for one in ledgers
        }
        for one in ledgers:
            self.show(one, Counter())

    def begin(self, ledger: Ledger) -> None:
        """Tell that a part's turn has come."""
        self._progress.start_task(self._bars[ledger.part.name])

    def show(self, ledger: Ledger, in_hand: Counter[str]) -> None:
        """Move a part's bar to what is reached, the round in hand included."""
        counts = ledger.counts + in_hand
        share = min(1.0, *(counts[name] / goal for name, goal in ledger.part.goals.items()))
        self._progress.update(self._bars[ledger.part.name], completed=share, told=_told(ledger.part, counts))

    def say(self, line: str) -> None:
        """Print one line above the bars."""
        self._console.print(line, markup=False)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()


def _told(part: Part, counts: Counter[str]) -> str:
    return ", ".join(f"{name} {counts[name]:,}/{goal:,}" for name, goal in part.goals.items())


def run_round(ledger: Ledger, seed: int, screen: Screen, *, is_long: bool) -> Round:
    """Return what one round of a part's tests came to; nothing of it is kept yet."""
    began, begun = datetime.now(UTC).isoformat(timespec="seconds"), time.monotonic()
    with tempfile.TemporaryDirectory(prefix="snose-reliability-") as folder:
        told, output = Path(folder, "tally"), Path(folder, "output")
        told.touch()
        command = [sys.executable, "-m", "pytest", "-q", "-m", "long" if is_long else "not long", *ledger.part.paths]
        if is_long and (complete := ledger.databases_done()):
            command += ["-k", f"not ({' or '.join(complete)})"]
        environment = {**os.environ, tally.FILE: str(told), tally.SEED: str(seed)}
        with (
            output.open("wb") as file,
            _ended(
                # In a session of its own: a Ctrl-C is for this process, which passes it on once.
                subprocess.Popen(
                    command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
                )
            ) as tests,
        ):
            try:
                is_stopped, status = False, _follow(tests, ledger, told, screen)
            except KeyboardInterrupt:
                is_stopped, status = True, None
        lines = _lines(told)
        # Somebody else may have ended the tests; their status alone would not tell that from a file that cannot be loaded.
        is_stopped = is_stopped or (status is not None and tally.INTERRUPTED in lines)
        done = read_round(lines, seed, began, time.monotonic() - begun, is_whole=not is_stopped)
        is_well = status == 0 or (status == _NO_TESTS and not is_long)
        if not is_stopped and not is_well and not done.violations:
            what = "hung" if status is None else f"pytest ended with status {status}"
            why = output.read_text(encoding="utf-8", errors="replace")[-4000:]
            done.violations.append({"test": what, "seed": seed, "why": why})
            del done.counts[ROUNDS]
    return done


def _follow(tests: "subprocess.Popen[bytes]", ledger: Ledger, told: Path, screen: Screen) -> int | None:
    """Show how far the tests are until they end; return their status, or None when they hang."""
    until = time.monotonic() + ledger.part.minutes * 60
    while tests.poll() is None and time.monotonic() < until:
        time.sleep(0.2)
        screen.show(ledger, sum((Counter(line.get("counts", {})) for line in _lines(told)), Counter()))
    return tests.poll()


@contextmanager
def _ended(tests: "subprocess.Popen[bytes]") -> Iterator["subprocess.Popen[bytes]"]:
    """Give the running tests, and leave none behind: they are asked to end first, because they have servers to stop."""
    try:
        yield tests
    finally:
        if tests.poll() is None:
            tests.send_signal(signal.SIGINT)
            try:
                tests.wait(_ENDS_WITHIN_SECONDS)
            except subprocess.TimeoutExpired:
                tests.kill()
                tests.wait()


def _lines(path: Path) -> list[dict[str, Any]]:
    whole, _, _ = path.read_text(encoding="utf-8").rpartition("\n")
    return [json.loads(line) for line in whole.splitlines()]


def run_long(ledgers: Sequence[Ledger], screen: Screen, until: float, rounds: int | None, seed: int | None) -> None:
    """Run rounds in turns until every part is complete, was in one violation, or the time is over."""
    waiting = deque((ledger, 0) for ledger in ledgers if ledger.share < 1)
    while waiting:
        ledger, done_here = waiting.popleft()
        # A round is not begun that would hardly end in time: what it had done would be lost.
        usual = max((one["seconds"] for one in ledger.rounds), default=0.0)
        if time.monotonic() + usual > until:
            screen.say(f"{ledger.part.name}: no time for another round")
            continue
        screen.begin(ledger)
        before = ledger.share
        done = run_round(ledger, secrets.randbits(32) if seed is None else seed, screen, is_long=True)
        ledger.add(done)
        screen.show(ledger, Counter())
        screen.say(f"{ledger.part.name}: {_told(ledger.part, ledger.counts)}; {done.seconds:.0f} s, seed {done.seed}")
        _say_what_is_wrong(screen, ledger.part, done)
        if not done.is_whole:
            raise KeyboardInterrupt
        # A round that is skipped, or that counts nothing, would be run for ever.
        goes_on = ledger.share > before and not done.violations and rounds != done_here + 1 and seed is None
        if goes_on and ledger.share < 1:
            waiting.append((ledger, done_here + 1))


def _say_what_is_wrong(screen: Screen, part: Part, done: Round) -> None:
    for violation in done.violations:
        screen.say(f"{part.name}: VIOLATION with seed {done.seed} in {violation['test']}\n{violation['why']}")
    for test, why in done.skipped.items():
        screen.say(f"{part.name}: skipped {test}: {why}")


def main(arguments: Sequence[str]) -> int:
    """Run what is asked for and return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.reliability", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "parts", nargs="*", metavar="PART", help=f"all when left out: {', '.join(p.name for p in PARTS)}"
    )
    parser.add_argument("--quick", action="store_true", help="the short forms, once each; nothing is kept")
    parser.add_argument("--hours", type=float, default=3.0, help="after which no round begins (3)")
    parser.add_argument("--rounds", type=int, help="of each part at most, in this run")
    parser.add_argument("--seed", type=int, help="replay one round of each part with this seed")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where the results are kept")
    chosen = parser.parse_args(arguments)
    if unknown := set(chosen.parts) - {part.name for part in PARTS}:
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    # Ended like by Ctrl-C: the tests in hand stop their servers.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    ledgers = [Ledger(part, chosen.results) for part in PARTS if not chosen.parts or part.name in chosen.parts]
    with Screen(ledgers) as screen:
        if chosen.quick:
            return _run_quick(ledgers, screen)
        until = time.monotonic() + chosen.hours * 3600
        run_long(ledgers, screen, until, chosen.rounds, chosen.seed)
        for ledger in ledgers:
            state = (
                "complete" if ledger.is_complete else f"{len(ledger.violations)} violations, {ledger.share:.0%} done"
            )
            screen.say(f"{ledger.part.name}: {state}: {_told(ledger.part, ledger.counts)}")
    if any(ledger.violations for ledger in ledgers):
        return 1
    return 0 if all(ledger.is_complete for ledger in ledgers) else UNFINISHED


def _run_quick(ledgers: Sequence[Ledger], screen: Screen) -> int:
    is_well = True
    for ledger in ledgers:
        screen.begin(ledger)
        done = run_round(ledger, 1, screen, is_long=False)
        if not done.is_whole:
            raise KeyboardInterrupt
        _say_what_is_wrong(screen, ledger.part, done)
        ended = "failed" if done.violations else "passed" if done.counts[ROUNDS] else "has no short form that could run"
        screen.say(f"{ledger.part.name}: {ended}; {done.seconds:.0f} s")
        is_well = is_well and not done.violations
    return 0 if is_well else 1


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit("stopped; the next start goes on after the last test that passed")
