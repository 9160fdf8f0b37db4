"""A reader of everything but the keys predicts no arm, and would predict it were any one defence not there (T13, rules B3 to B6).

The reader has every column of every row and where it lies, on SQLite and on PostgreSQL; what the server logs with
``log_statement=all``, how far the write-ahead log moved and what the statistics views say; every answer to blinded people with its
size, headers and time. Learnt on one study, asked about others; chance is what lies within four standard errors of a half.
"""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final

import psycopg
import pytest

from tests.databases import Postgres
from tests.envelopes import settings_in, writing_when_told
from tests.harness import house
from tests.security.conftest import Places
from tests.security.leak_game.games import GAMES, guess, moment
from tests.security.leak_game.guessing import DEVIATIONS
from tests.security.leak_game.keeping import Keeping
from tests.security.leak_game.leaks import LEAKS
from tests.security.leak_game.reader import Known, read
from tests.security.leak_game.world import Extent, play

PUSH: Final = Extent(sites=2, strata=4, slots=160, kits=160, allocations=80, per_arm=(8, 20))
FEW: Final = Extent(sites=1, strata=2, slots=80, kits=80, allocations=40, per_arm=(10, 20))
WITHOUT_SUBJECTS: Final = Extent(sites=1, strata=2, slots=60, kits=160, allocations=2, per_arm=(20, 30))
STORED: Final = replace(WITHOUT_SUBJECTS, kits=2_000)
CONTROL: Final = Extent(sites=3, strata=4, slots=2_400, kits=2_400, allocations=400, per_arm=(8, 30))
WHOLE: Final = Extent(sites=8, strata=8, slots=20_000, kits=10_000, allocations=4_800)
LEARNT: Final = replace(WHOLE, allocations=3_000)
SHORT: Final = Extent(sites=8, strata=8, slots=4_000, kits=2_000, allocations=700, per_arm=(6, 14), waits=30)
"""Small consignments, for which the sites wait long: only so are there refusals enough."""
ASKED: Final = {"asked-0": WHOLE, "asked-1": WHOLE, "asked-2": WHOLE, "asked-short": SHORT}
"""The studies that are asked about together: 4 SE <= 0.02 takes 13,400 things of two equal classes."""
ASKED_OF_REFUSALS: Final = {**ASKED, "asked-short-1": SHORT, "asked-short-2": SHORT}
BAR: Final = 0.9
"""What every planted leak must be told with."""
FOLDER: Final = "LEAK_GAME_FOLDER"
"""The environment variable that names the folder where a long form keeps what it has played, to go on from there."""

Play = Callable[..., Known]
Studies = Callable[..., tuple[Sequence[Known], Sequence[Known]]]


@pytest.fixture
def played(request: pytest.FixtureRequest, places: Places, tmp_path: Path) -> Play:
    """Plays a study in a house of its own, and reads it."""

    def one(kind: str, extent: Extent, leak: str | None, seed: str, progress: str = "") -> Known:
        folder = tmp_path / f"{leak or 'honest'}-{seed}".replace(" ", "-")
        folder.mkdir()
        with places(kind) as (url, _), LEAKS[leak]() if leak is not None else nullcontext():
            log = None if kind == "sqlite" else _logged(url, request.getfixturevalue("postgres"))
            chance = f"game {kind} {seed}"
            with (
                writing_when_told(),
                house(url, folder, seed=chance, list_seed=chance, **settings_in(folder)) as home,
            ):
                return read(play(home, url, log, extent, seed, progress))

    return one


def _logged(url: str, server: Postgres) -> Path:
    """Have a server log every statement in this database, into an empty log; return the log."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f"ALTER DATABASE \"{connection.info.dbname}\" SET log_statement = 'all'")
    log = server.directory / "log"
    os.truncate(log, 0)
    return log


@pytest.fixture
def studies(played: Play) -> Studies:
    """Plays the two studies of a short form: the one to learn from, and the one to be asked about."""

    def both(kind: str, extent: Extent, leak: str | None = None) -> tuple[Sequence[Known], Sequence[Known]]:
        learnt, asked = (played(kind, extent, leak, seed) for seed in ("learnt", "asked-0"))
        return [learnt], [asked]

    return both


class TestPush:
    """The short form: a few hundred kits, wide limits, and the plainest of the leaks."""

    def test_nothing_is_told(self, studies: Studies) -> None:
        """No game is won on the service as it is. [BLD-05, BLD-10, BLD-11, T13]"""
        learnt, asked = studies("sqlite", PUSH)
        findings = {game: guess(game, learnt, asked) for game in GAMES}
        assert {game: finding.report() for game, finding in findings.items() if not finding.is_chance} == {}

    @pytest.mark.parametrize("leak", ["padding removed", "rows not shuffled"])
    def test_kits_as_they_are_stored(self, studies: Studies, leak: str) -> None:
        """A length, a place in the file or a serial number is an arm where nobody took care. [BLD-10, BLD-11, T13]"""
        learnt, asked = studies("sqlite", WITHOUT_SUBJECTS, leak)
        assert guess("kits", learnt, asked).is_caught(BAR)

    def test_first_match(self, studies: Studies) -> None:
        """What was passed over in a known order is of another arm. [BLD-06, T13]"""
        learnt, asked = studies("sqlite", FEW, "first match")
        assert guess("passed over", learnt, asked).is_caught(BAR)


BY_LEAK: Final = {
    "padding removed": ("sqlite", "kits", STORED),
    "rows not shuffled": ("sqlite", "kits", STORED),
    "serial ids": ("sqlite", "kits", STORED),
    "first match": ("sqlite", "passed over", CONTROL),
    "order in the log": ("postgresql", "passed over", CONTROL),
    "candidates locked": ("postgresql", "pairs of kits left", CONTROL),
    "mixed consignments": ("sqlite", "other consignments", replace(CONTROL, allocations=800)),
    "refusal of one arm": ("sqlite", "refused", CONTROL),
}
"""On which database a leak is planted, by which game it is caught, and how large the two studies are."""


@pytest.fixture(scope="module")
def keeping(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Keeping]:
    """Where the long form keeps what it has played; all its figures are one file below ``build`` whatever comes of it."""
    named = os.environ.get(FOLDER)
    keeping = Keeping(Path(named) if named else tmp_path_factory.mktemp("leak-game"))
    yield keeping
    build = request.config.rootpath / "build"
    build.mkdir(exist_ok=True)
    (build / "leak-game.json").write_text(json.dumps(keeping.report(), indent=1))


@pytest.mark.long
@pytest.mark.timeout(0)
class TestWhole:
    def test_nothing_is_told(self, played: Play, keeping: Keeping, database_kind: str) -> None:
        """20,000 slots and 10,000 kits in each of four studies, one short of them: tosses. [BLD-05, BLD-06, BLD-08, G11, T13]"""

        def study(seed: str, extent: Extent) -> Known:
            name = f"{database_kind} honest {seed}"
            return keeping.study(name, partial(played, database_kind, extent, None, seed, name))

        learnt = study("learnt", LEARNT)
        of_refusals = [study(seed, extent) for seed, extent in ASKED_OF_REFUSALS.items()]
        asked = of_refusals[: len(ASKED)]
        findings = {}
        for game in GAMES:
            about = of_refusals if game == "refused" else asked
            findings[game] = keeping.finding(f"{database_kind} honest {game}", partial(guess, game, [learnt], about))
        keeping.record(f"{database_kind} honest moment of a withdrawal", moment(asked))
        assert {game: found.report() for game, found in findings.items() if not found.is_chance} == {}
        assert {game: found.error for game, found in findings.items() if DEVIATIONS * found.error > 0.02} == {}

    @pytest.mark.parametrize("leak", BY_LEAK)
    def test_one_defence_taken_away(self, played: Play, keeping: Keeping, leak: str) -> None:
        """Each of the defences is needed: without it the game is won. [BLD-05, BLD-06, BLD-08, BLD-10, BLD-11, T13]"""
        kind, game, extent = BY_LEAK[leak]
        learnt, asked = (
            keeping.study(f"{kind} {leak} {seed}", partial(played, kind, extent, leak, seed))
            for seed in ("learnt", "asked-0")
        )
        finding = keeping.finding(f"{kind} {leak} {game}", partial(guess, game, [learnt], [asked]))
        assert finding.things >= 100
        assert finding.is_caught(BAR)

    def test_floor_of_one(self, played: Play, keeping: Keeping) -> None:
        """Where the last kit of an arm may go, a withdrawal tells the arm of all that is left, and of the last subject. [BLD-08]

        What the moment tells with the floor kept is a stated limit, and never certain.
        """
        honest, leaky = (
            moment(
                [
                    keeping.study(f"sqlite {name} {seed}", partial(played, "sqlite", CONTROL, leak, seed))
                    for seed in ("asked-0", "asked-1")
                ]
            )
            for name, leak in (("floor kept", None), ("floor of one", "floor of one"))
        )
        keeping.record("sqlite floor of one", {"floor kept": honest, "floor of one": leaky})
        chance = 0.5 / min(leaky["consignments"], honest["consignments"]) ** 0.5
        assert leaky["told for certain"] > BAR
        assert leaky["told for certain"] - honest["told for certain"] > DEVIATIONS * chance
        assert honest["told for certain"] < 0.1
