"""The whole trial, step by step, against a small pure model (T23)."""

import pytest

from tests.reliability.machine import STEPS_OF_A_TRIAL, Houses, play, trial_class
from tests.reliability.tally import Tally

LONG = (pytest.mark.long, pytest.mark.timeout(0))


@pytest.mark.parametrize(("trials", "steps"), [(2, 20), pytest.param(50, STEPS_OF_A_TRIAL, marks=LONG)])
def test_service_does_what_the_model_says(
    houses: Houses, trials: int, steps: int, round_seed: int, tally: Tally
) -> None:
    """Whole trials: every answer, the stock, the rows, the trail [C1-C8, B5-B11, D1-D6; T23, done when 4]"""
    kind = trial_class(houses)
    play(kind, trials, round_seed, steps)

    # Hypothesis begins with a trial in which everything drawn is 0, and ends one early that has drawn very much, for which it
    # may begin another. So the trials are at least as many as were asked for, and the steps that are missing are played too.
    assert kind.played["trials"] >= trials
    more = 0
    while (missing := trials * steps - kind.played["steps"]) > 0:
        more += 1
        assert more < trials, f"{missing} steps are not played"
        play(kind, 2 + missing // steps, round_seed + more, steps)
    tally(trials=kind.played["trials"], steps=kind.played["steps"], requests=kind.played["requests"])
