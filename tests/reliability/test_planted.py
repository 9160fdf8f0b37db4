"""Builds with one fault each are told from an honest one by the model (T23)."""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Final

import pytest

from tests.reliability.machine import Houses, Plant, Trial, play, trial_class
from tests.reliability.model import Divergence, Enrolment
from tests.reliability.planted import PLANTED, slow_at_the_lock
from tests.reliability.tally import Tally

TRIALS_TO_FIND: Final = 60
"""Within so many trials every planted fault is found by chance."""


def enrolled(trial: Trial, level: str = "F") -> tuple[str, str]:
    """Return somebody new, and their kit."""
    name = f"S-{len(trial.model.subjects):02}"
    trial.do(trial.asked_to_enrol("edc", Enrolment(name, "01", level)))
    return name, trial.model.subjects[name.casefold()].first_kit


def dispense_twice_at_once(trial: Trial) -> None:
    name, kit = enrolled(trial)
    handed_out = trial.asked_to_dispense("pharmacist", kit, name)
    trial.do_both(handed_out, handed_out)


def enrol_twice(trial: Trial) -> None:
    name, _ = enrolled(trial)
    trial.do(trial.asked_to_enrol("edc", Enrolment(name, "01", "F")))


def dispense_unheard(trial: Trial) -> None:
    name, kit = enrolled(trial)
    trial.lose_sight_of_the_next_commit(is_committed=True)
    trial.do(trial.asked_to_dispense("pharmacist", kit, name))


def enrol_after_an_error(trial: Trial) -> None:
    name, _ = enrolled(trial, "M")
    trial.do(trial.asked_to_mark("doctor", name, "ineligible"))
    enrolled(trial, "M")


def enrol_when_all_has_expired(trial: Trial) -> None:
    trial.house.clock.advance(days=30)
    trial.do(trial.asked_to_enrol("edc", Enrolment("S-13", "01", "F")))


SHORTEST: Final[Mapping[str, tuple[Callable[[Trial], None], str]]] = {
    "a removed lock": (dispense_twice_at_once, "(503, 'integrity_failure'), the model (409, 'already_dispensed')"),
    "a removed unique constraint": (enrol_twice, "(409, 'already_exists'), the model (200, None)"),
    "retry of a committed transaction": (
        dispense_unheard,
        "(409, 'already_dispensed'), the model (503, 'outcome_unknown')",
    ),
    "a re-used slot": (enrol_after_an_error, "(409, 'already_exists'), the model (201, None)"),
    "an unchecked expiry": (enrol_when_all_has_expired, "(201, None), the model (409, 'stock_insufficient')"),
}
"""The shortest trial that meets each fault, and what gives it away; the database's last line holds where the lock does not."""


@contextmanager
def trial_of(houses: Houses, plant: Plant) -> Iterator[Trial]:
    trial = trial_class(houses, plant)()
    try:
        yield trial
    finally:
        trial.teardown()


class TestPlantedFaults:
    @pytest.mark.parametrize("fault", PLANTED)
    def test_is_found(self, houses: Houses, fault: str) -> None:
        """Each fault alone is found by the shortest trial that meets it. [done when 4; T23]"""
        shortest, told = SHORTEST[fault]

        with pytest.raises(Divergence, match=re.escape(told)), trial_of(houses, PLANTED[fault]) as trial:
            shortest(trial)

    def test_without_a_fault(self, houses: Houses) -> None:
        """All of it in a build without a fault, which only takes its time once it has the lock. [T23]"""
        with trial_of(houses, slow_at_the_lock) as trial:
            for shortest, _ in SHORTEST.values():
                shortest(trial)

    @pytest.mark.long
    @pytest.mark.timeout(0)
    @pytest.mark.parametrize("fault", PLANTED)
    def test_is_found_by_chance(self, houses: Houses, fault: str, round_seed: int, tally: Tally) -> None:
        """Each fault alone is found by trials as chance has them, within so many; those before it pass. [done when 4; T23]"""
        kind = trial_class(houses, PLANTED[fault])
        with pytest.raises(Divergence):
            play(kind, TRIALS_TO_FIND, round_seed)
        passed = kind.played["trials"]

        play(trial_class(houses, slow_at_the_lock), passed + 2, round_seed)
        tally(**{f"{fault.replace(' ', '_')}_found_after": passed + 1})
