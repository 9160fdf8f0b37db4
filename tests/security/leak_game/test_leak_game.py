"""A reader of everything but the keys predicts no arm, and would predict it were any one defence not there (T13, rules B3 to B6).

The reader has every column of every row and where it lies, on SQLite and on PostgreSQL; what the server logs with
``log_statement=all``, how far the write-ahead log moved and what the statistics views say; every answer to blinded people with its
size, headers and time. Learnt on one study, asked about others; chance is what lies within four standard errors of a half.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Final

import psycopg
import pytest

from tests.databases import Postgres
from tests.harness import house
from tests.security.conftest import Places
from tests.security.leak_game.games import GAMES, guess, moment
from tests.security.leak_game.guessing import DEVIATIONS
from tests.security.leak_game.leaks import LEAKS
from tests.security.leak_game.reader import Known, read
from tests.security.leak_game.world import Extent, play

PUSH: Final = Extent(sites=2, strata=4, slots=240, kits=260, allocations=100, per_arm=(8, 20))
WITHOUT_SUBJECTS: Final = Extent(sites=1, strata=2, slots=60, kits=200, allocations=2, per_arm=(20, 30))
CONTROL: Final = Extent(sites=3, strata=4, slots=2400, kits=2400, allocations=1200, per_arm=(10, 24))
WHOLE: Final = Extent(sites=8, strata=4, slots=20_000, kits=10_000, allocations=7_200)

Studies = Callable[..., tuple[Sequence[Known], Sequence[Known]]]


@pytest.fixture
def studies(request: pytest.FixtureRequest, places: Places, tmp_path: Path) -> Studies:
    """Plays studies in one house, and reads them: those to learn from, and those to be asked about."""

    def played(
        kind: str, extent: Extent, leak: str | None = None, asked: int = 1, progress: str = ""
    ) -> tuple[Sequence[Known], Sequence[Known]]:
        folder = tmp_path / (leak or "honest").replace(" ", "-")
        folder.mkdir()
        with places(kind) as (url, _), LEAKS[leak]() if leak is not None else nullcontext():
            log = None if kind == "sqlite" else _logged(url, request.getfixturevalue("postgres"))
            with house(url, folder, seed=f"game {kind}", list_seed=f"game {kind}") as home:
                seeds = ["learnt", *(f"asked-{number}" for number in range(asked))]
                found = [read(one) for one in play(home, url, log, extent, seeds, progress)]
        return found[:1], found[1:]

    return played


def _logged(url: str, server: Postgres) -> Path:
    """Have a server log every statement in this database; return its log."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f"ALTER DATABASE \"{connection.info.dbname}\" SET log_statement = 'all'")
    return server.directory / "log"


class TestPush:
    """The short form: a few hundred kits, wide limits, and the plainest of the leaks."""

    def test_nothing_is_told(self, studies: Studies) -> None:
        """No game is won on the service as it is. [BLD-05, BLD-10, BLD-11, T13]"""
        learnt, asked = studies("sqlite", PUSH)
        findings = {game: guess(game, learnt, asked) for game in GAMES if game != "refused"}
        assert {game: finding.report() for game, finding in findings.items() if not finding.is_chance} == {}

    @pytest.mark.parametrize("leak", ["padding removed", "rows not shuffled"])
    def test_kits_as_they_are_stored(self, studies: Studies, leak: str) -> None:
        """A length, a place in the file or a serial number is an arm where nobody took care. [BLD-10, BLD-11, T13]"""
        learnt, asked = studies("sqlite", WITHOUT_SUBJECTS, leak)
        finding = guess("kits", learnt, asked)
        assert finding.caught > 0.9
        assert not finding.is_chance

    def test_first_match(self, studies: Studies) -> None:
        """What was passed over in a known order is of another arm. [BLD-06, T13]"""
        learnt, asked = studies("sqlite", PUSH, "first match")
        assert guess("passed over", learnt, asked).caught > 0.9


BY_LEAK: Final = {
    "padding removed": ("sqlite", "kits"),
    "rows not shuffled": ("sqlite", "kits"),
    "serial ids": ("sqlite", "kits"),
    "first match": ("sqlite", "passed over"),
    "order in the log": ("postgresql", "passed over"),
    "candidates locked": ("postgresql", "pairs of kits left"),
    "mixed consignments": ("sqlite", "other consignments"),
    "refusal of one arm": ("sqlite", "refused"),
}
"""On which database a leak is planted, and by which game it is caught."""
BAR: Final = {"refusal of one arm": 0.75}
"""Where even a shortage of one arm can turn into one of the other between two parcels; 0.9 for all other leaks."""
TO_THE_HUNDREDTH: Final = ("kits", "slots", "allocations", "pairs of subjects", "pairs of kits as made")
"""The games with so many questions that four standard errors are two hundredths."""


@pytest.fixture
def report(request: pytest.FixtureRequest) -> Iterator[dict[str, Any]]:
    """The figures of a test, kept as JSON below ``build`` whatever comes of it."""
    figures: dict[str, Any] = {}
    yield figures
    folder = request.config.rootpath / "build" / "leak-game"
    folder.mkdir(parents=True, exist_ok=True)
    name = "".join(letter if letter.isalnum() else "-" for letter in request.node.name)
    (folder / f"{name}.json").write_text(json.dumps(figures, indent=1))


@pytest.mark.long
@pytest.mark.timeout(0)
class TestWhole:
    def test_nothing_is_told(self, studies: Studies, database_kind: str, report: dict[str, Any]) -> None:
        """20,000 slots and 10,000 kits in each of three studies: every game is a toss. [BLD-05, BLD-06, BLD-08, G11, T13]"""
        learnt, asked = studies(database_kind, WHOLE, asked=2, progress=database_kind)
        report["studies"] = [
            {
                "seed": known.played.study,
                "slots": len(known.slots),
                "kits": len(known.kits),
                "draws": len(known.played.draws),
                "withdrawn": len(known.withdrawn),
                "requests": dict(known.played.counts),
            }
            for known in (*learnt, *asked)
        ]
        findings = {}
        for game in GAMES:
            findings[game] = guess(game, learnt, asked)
            report[game] = findings[game].report()
        report["the moment of a withdrawal (a stated limit)"] = moment(asked)
        assert {game: report[game] for game, finding in findings.items() if not finding.is_chance} == {}
        assert {
            game: finding.standard_error
            for game, finding in findings.items()
            if game in TO_THE_HUNDREDTH and DEVIATIONS * finding.standard_error > 0.02
        } == {}

    @pytest.mark.parametrize("leak", BY_LEAK)
    def test_one_defence_taken_away(self, studies: Studies, leak: str, report: dict[str, Any]) -> None:
        """Each of the defences is needed: without it the game is won. [BLD-05, BLD-06, BLD-08, BLD-10, BLD-11, T13]"""
        kind, game = BY_LEAK[leak]
        learnt, asked = studies(kind, CONTROL, leak)
        finding = guess(game, learnt, asked)
        report |= {"leak": leak, "database": kind, "game": game, **finding.report()}
        assert finding.caught > BAR.get(leak, 0.9)
        assert not finding.is_chance

    def test_floor_of_one(self, studies: Studies, report: dict[str, Any]) -> None:
        """Where the last kit of an arm may go, a withdrawal tells the arm of all that is left, and of the last subject. [BLD-08]

        What the moment tells with the floor kept is a stated limit, and never certain.
        """
        _, honest = studies("sqlite", CONTROL)
        _, leaky = studies("sqlite", CONTROL, "floor of one")
        report |= {"floor kept": moment(honest), "floor of one": moment(leaky)}
        assert moment(leaky)["told for certain"] > 0.9
        assert moment(honest)["told for certain"] < 0.1
