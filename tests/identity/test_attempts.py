"""How wrong tries slow down."""

from datetime import UTC, datetime, timedelta

import pytest

from app.errors import TooManyAttempts
from app.identity.attempts import Attempts, coded, coded_in_session, network_settles_at, refuse_network

NOON = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)


def delay_after(tries: int) -> float:
    """Return the seconds to wait after so many wrong tries, each made as soon as it is looked at."""
    attempts, now = Attempts(), NOON
    for _ in range(tries):
        now = max(now, attempts.blocked_until or now)
        attempts = attempts.charged(now)
    return ((attempts.blocked_until or now) - now).total_seconds()


def test_four_wrong_tries_cost_nothing_and_then_the_delay_doubles_up_to_thirty_seconds() -> None:
    """Attempts slow down exponentially after five and never lock for ever (USR-10, EUB-15)."""
    assert [delay_after(tries) for tries in range(1, 13)] == [0, 0, 0, 0, 1, 2, 4, 8, 16, 30, 30, 30]
    assert delay_after(1000) == 30


def test_a_try_during_the_delay_is_not_looked_at_and_says_how_long_to_wait() -> None:
    """The refusal names whole seconds, rounded up, and does not lengthen the delay (USR-10)."""
    attempts = Attempts(9, NOON + timedelta(seconds=7, milliseconds=1))
    with pytest.raises(TooManyAttempts) as refused:
        attempts.charged(NOON)
    assert refused.value.retry_after == 8
    assert attempts.charged(NOON + timedelta(seconds=8)).failed == 10


def test_a_right_try_is_given_back_and_leaves_the_wrong_ones_before_it() -> None:
    """A good password alone does not open new tries at the one-time code (D3, USR-10)."""
    charged = Attempts(6, NOON).charged(NOON)
    assert charged.given_back(NOON) == Attempts(6, NOON)
    assert Attempts().charged(NOON).given_back(NOON) == Attempts()


def test_wrong_tries_of_long_ago_count_no_more() -> None:
    """Typing errors of weeks do not add up to a delay (EUB-15)."""
    long_after = Attempts(40, NOON).charged(NOON + timedelta(minutes=15))
    assert long_after == Attempts(1, NOON + timedelta(minutes=15))
    assert Attempts(40, NOON).charged(NOON + timedelta(minutes=14)).failed == 41


@pytest.mark.parametrize("back", [timedelta(hours=1), timedelta(days=365)])
def test_a_clock_that_is_set_back_keeps_nobody_waiting(back: timedelta) -> None:
    """One wrong try before it, and the next is looked at; tries go on slowing down, from the new time on (USR-10, EUB-15)."""
    ahead = Attempts().charged(NOON + back)
    assert ahead.charged(NOON) == Attempts(2, NOON)
    assert Attempts(12, NOON + back).charged(NOON).blocked_until == NOON + timedelta(seconds=30)


def test_a_network_has_thirty_wrong_passwords_and_then_one_in_two_seconds() -> None:
    """Nobody waits longer than for the next one, however many come; a clock that was ahead keeps nobody out (USR-10, EUB-15)."""
    settled_at, looked_at, waits = None, 0, set()
    for second in range(60):
        now = NOON + timedelta(seconds=second)
        for _ in range(60):
            try:
                refuse_network(settled_at, now)
            except TooManyAttempts as refused:
                waits.add(refused.retry_after)
                break
            settled_at, looked_at = network_settles_at(settled_at, now), looked_at + 1
    assert looked_at == 30 + 29
    assert waits <= {1, 2}
    assert settled_at is not None
    # Of a network that has been quiet, as of one that nobody knows, all thirty are looked at; so after a clock was set back.
    for now in (settled_at, settled_at - timedelta(days=1)):
        refuse_network(settled_at, now)
        assert network_settles_at(settled_at, now) == now + timedelta(seconds=2)


def test_wrong_codes_come_to_an_end() -> None:
    """Ten in a sign-in, and a hundred in all (USR-10; G21)."""
    assert (coded(99), coded_in_session(9)) == (100, 10)
    for count, wrong in ((coded, 100), (coded_in_session, 10)):
        with pytest.raises(TooManyAttempts):
            count(wrong)
