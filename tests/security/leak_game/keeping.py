"""What was played and what was found, kept in a folder: a long form that was cut off goes on where it stood."""

import json
import pickle
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.security.leak_game.guessing import Finding
from tests.security.leak_game.reader import Known


class Keeping:
    """A folder of played studies and of findings, each made once."""

    def __init__(self, folder: Path) -> None:
        """Keep things in ``folder``, which is made."""
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def study(self, name: str, play: Callable[[], Known]) -> Known:
        """Return what is known of a study, played now unless it was before."""
        path = self._folder / f"{_file(name)}.study"
        if path.exists():
            found = pickle.loads(path.read_bytes())  # noqa: S301  # a file of this test's own making, in its own folder
            assert isinstance(found, Known)
            return found
        begun = time.monotonic()
        known = play()
        _write(path, pickle.dumps(known, pickle.HIGHEST_PROTOCOL))
        self.record(
            f"study {name}",
            {
                "slots": len(known.slots),
                "kits": len(known.kits),
                "allocations": len(known.allocated),
                "kits given": len(known.draws),
                "withdrawn": len(known.withdrawn),
                "requests": dict(known.counts),
                "seconds": round(time.monotonic() - begun),
            },
        )
        return known

    def finding(self, name: str, guess: Callable[[], Finding]) -> Finding:
        """Return what a game has found, played now unless it was before."""
        path = self._path(name)
        if path.exists():
            return Finding(**json.loads(path.read_text())["finding"])
        begun = time.monotonic()
        finding = guess()
        figures = {**finding.report(), "seconds": round(time.monotonic() - begun), "finding": asdict(finding)}
        self.record(name, figures)
        return finding

    def record(self, name: str, figures: dict[str, Any]) -> None:
        """Keep figures under a name."""
        _write(self._path(name), json.dumps(figures, indent=1).encode())

    def report(self) -> dict[str, Any]:
        """Return all figures that are kept, by name."""
        found = {path.stem: json.loads(path.read_text()) for path in sorted(self._folder.glob("*.json"))}
        for figures in found.values():
            figures.pop("finding", None)
        return found

    def _path(self, name: str) -> Path:
        return self._folder / f"{_file(name)}.json"


def _file(name: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in name)


def _write(path: Path, content: bytes) -> None:
    """Write a file that is there as a whole or not at all."""
    beside = path.with_suffix(".part")
    beside.write_bytes(content)
    beside.replace(path)
