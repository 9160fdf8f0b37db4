"""The host's clock jumps: forward, back, every second, over midnight, a leap second and the change to summer time.

What must hold whatever it does: a one-time code and a second proof serve once, nobody is kept from being allocated but by a rule,
the trail's times never go back, and the slots are handed out in order.
"""

import itertools
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Final
from zoneinfo import ZoneInfo

import pytest
import time_machine

from app.services.context import system_clock
from tests import harness
from tests.harness import BEGINNING, STUDY, House, TickingClock, expect
from tests.reliability.records import check_tables
from tests.running_study import RunningStudy, S, running_study

LONG: Final = (pytest.mark.long, pytest.mark.timeout(0))
HOUR: Final = timedelta(hours=1)
YEAR: Final = timedelta(days=365)
SECOND: Final = timedelta(seconds=1)
EXPIRY: Final = date(2027, 12, 31)
"""Of the kits of `running_study`, from the beginning of this day on at the site."""
SITE_ZONE: Final = ZoneInfo("Asia/Shanghai")
MIDNIGHT: Final = datetime(2027, 12, 31, tzinfo=SITE_ZONE).astimezone(UTC)
SEED: Final = 8


@dataclass(frozen=True)
class Scenario:
    """When it begins, and by how much the clock jumps between one act and the next."""

    name: str
    jumps: tuple[timedelta, ...]
    begin: datetime = BEGINNING
    zone: str = "UTC"
    """That of the host."""


def at_random(number: int) -> tuple[timedelta, ...]:
    chance = Random(SEED + number)
    return tuple(timedelta(seconds=chance.choice((-1, 1)) * 10 ** chance.uniform(-1, 6.5)) for _ in range(4))


SCENARIOS: Final = (
    Scenario("a year back", (-YEAR,)),
    Scenario("an hour back", (-HOUR,)),
    Scenario("seconds on and back", (SECOND, -SECOND) * 3),
    Scenario("midnight at the site, when kits expire", (2 * SECOND, -4 * SECOND, 6 * SECOND), MIDNIGHT - 2 * SECOND),
    Scenario("a year on", (YEAR,)),
    Scenario("a leap second told twice", (-SECOND, SECOND), datetime(2027, 6, 30, 23, 59, 59, tzinfo=UTC)),
    Scenario("a year on and back again", (YEAR, -YEAR)),
    Scenario("a year back and on again", (-YEAR, YEAR)),
    Scenario("an hour on", (HOUR,)),
    Scenario("an hour on and back", (HOUR, -HOUR, HOUR)),
    Scenario("back by the life of a proof", (timedelta(seconds=-301), timedelta(seconds=301))),
    Scenario("back by one step of a code", (timedelta(seconds=-30), timedelta(seconds=30))),
    Scenario("back by two steps of a code", (timedelta(seconds=-60), timedelta(seconds=60))),
    Scenario("a second back each time", (-SECOND,) * 6),
    Scenario("a day back each time", (timedelta(days=-1),) * 4),
    Scenario(
        "into summer time", (2 * SECOND, HOUR, -HOUR), datetime(2027, 3, 28, 0, 59, 59, tzinfo=UTC), "Europe/Berlin"
    ),
    Scenario(
        "out of summer time", (2 * SECOND, HOUR, -HOUR), datetime(2027, 10, 31, 0, 59, 59, tzinfo=UTC), "Europe/Berlin"
    ),
    Scenario("midnight in UTC", (2 * SECOND, -4 * SECOND), datetime(2027, 1, 1, tzinfo=UTC) - SECOND),
    Scenario("at random", at_random(0)),
    Scenario("at random again", at_random(1)),
)
SHORT: Final = SCENARIOS[:4]


class HostClock(TickingClock):
    """The clock of the host as the service reads it, which time-machine sets."""

    def __init__(self, traveller: time_machine.Traveller) -> None:
        super().__init__()
        self._traveller = traveller

    def __call__(self) -> datetime:
        with self._lock:
            self._traveller.shift(timedelta(milliseconds=1))
            return system_clock()

    @property
    def now(self) -> datetime:
        return system_clock()

    def advance(self, by: timedelta | None = None, **amount: float) -> None:
        with self._lock:
            self._traveller.shift(by if by is not None else timedelta(**amount))


@pytest.fixture
def host_zone(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scenario]:
    """A scenario, in the time zone of its host."""
    scenario: Scenario = request.param
    monkeypatch.setenv("TZ", scenario.zone)
    time.tzset()
    yield scenario
    monkeypatch.undo()
    time.tzset()


def of(scenarios: tuple[Scenario, ...], *marks: pytest.MarkDecorator) -> list[object]:
    return [pytest.param(scenario, id=scenario.name, marks=marks) for scenario in scenarios]


@pytest.mark.parametrize("database_kind", ["sqlite", pytest.param("postgresql", marks=LONG)])
@pytest.mark.parametrize("host_zone", [*of(SHORT), *of(SCENARIOS[len(SHORT) :], *LONG)], indirect=True)
def test_clock_of_the_harness(house: House, host_zone: Scenario) -> None:
    """No code or proof serves twice, nobody waits but by rule, times and slots in order [D3, C1, C5, B11, E1; T8]"""
    play(host_zone, house)


@pytest.mark.long
@pytest.mark.timeout(0)
@pytest.mark.parametrize("host_zone", of(SCENARIOS), indirect=True)
def test_clock_of_the_host(migrated_database_url: str, tmp_path: Path, host_zone: Scenario) -> None:
    """The same by the clock that a deployment really reads [D3, C1, C5, B11, E1; T8]"""
    with ExitStack() as stack:
        traveller = stack.enter_context(time_machine.travel(BEGINNING, tick=False))
        clock = HostClock(traveller)
        play(host_zone, stack.enter_context(harness.house(migrated_database_url, tmp_path, clock=clock)))


def play(scenario: Scenario, house: House) -> None:
    """Have codes, proofs and allocations tried before and after every jump."""
    study = running_study(house, subjects=1)
    doctor = study.investigator
    house.clock.advance(scenario.begin - house.clock.now)
    doctor.forget_token()
    # One code, and one proof by it; both are tried again at every moment there is.
    code = doctor.code()
    first = house.send("POST", "/v1/sessions/step-up", token=doctor.token(), json={"otp": code})
    token = expect(first, 201)["access_token"]
    reveals = 0
    for number, jump in enumerate((timedelta(0), *scenario.jumps), start=2):
        house.clock.advance(jump)
        doctor.forget_token()
        repeated = house.send("POST", "/v1/sessions/step-up", token=doctor.token(), json={"otp": code})
        assert repeated.status_code in {401, 429}, "a code served twice"
        broken = house.send("POST", f"{S}/code-breaks", token=token, json=about(study))
        assert broken.status_code in {201, 401}
        reveals += broken.status_code == 201
        allocate(study, number)
    assert reveals == 1, "a proof served twice"
    check(house)


def about(study: RunningStudy) -> dict[str, str]:
    return {"subject_id": "01-0001", "reason_code": "overdose"}


def allocate(study: RunningStudy, number: int) -> None:
    """Allocate a new subject, unless every kit has expired at the site."""
    response = study.ask(f"01-{number:04}")
    if study.house.clock.now.astimezone(SITE_ZONE).date() >= EXPIRY:
        assert expect(response, 409)["code"] == "stock_insufficient"
    else:
        expect(response, 201)


def check(house: House) -> None:
    """Entries and slots are in order."""
    for log in (STUDY, None):
        times = [datetime.fromisoformat(entry["at"]) for entry in house.trail(log)]
        assert all(earlier <= later for earlier, later in itertools.pairwise(times))
    check_tables(house.deployment.database, STUDY, only_assigned=False)
    assert house.deployment.checkpoints.suspicions == {}
