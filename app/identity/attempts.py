"""Wrong tries slow down, and never lock out for ever (USR-10, EUB-15).

A try is counted before it is looked at, so that many at once are no more guesses than one after the other; the right one is
given back. Passwords and one-time codes have a count each. Anybody can guess at a password, and must not hold up its owner's code
before an emergency (rule D1); a code is guessed at by whoever has a session, and no good password opens new tries at it.
"""

import math
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from app.errors import TooManyAttempts

FREE_TRIES: Final = 5
"""The first delay follows this many wrong tries."""
LONGEST_DELAY: Final = timedelta(seconds=30)
FORGOTTEN_AFTER: Final = timedelta(minutes=15)
"""Wrong tries older than this count no more, so that typing errors of weeks do not add up."""

MOST_GUESSES: Final = 80
"""So many wrong tries at a password are looked at until it is known or another one; its owner has other ways in by then."""
ALARMS: Final = frozenset({20, 40, MOST_GUESSES})
"""The numbers of guesses at which the service's log says so."""
MOST_SHOWN: Final = 20
"""So many more in a row beside a one-time code that is right: of a million guesses at that, two are, and strangers try often."""

MOST_CODES: Final = 100
"""So many wrong codes in a row are looked at for whoever has a session or the password.

Two of a million codes are right at a time, so all of them together give somebody without the device one chance in 5,000, and those
of one session one in 50,000. The delays alone would leave a password's thief 2,880 guesses a day: an even chance in four months.
"""
MOST_CODES_IN_SESSION: Final = 10
"""Who has stolen a session alone, and not the password, is at an end here, and keeps nobody from the own codes."""
MOST_CODES_ON_DEVICE: Final = 20
"""So many in a row are counted apart, where a session began from a known device: no stranger uses those up."""
CODE_ALARMS: Final = frozenset({20, 40, 80, MOST_CODES})
"""The numbers of wrong codes at which the service's log says so."""


NETWORK_BURST: Final = 30
"""So many wrong passwords from one network are looked at without a pause, at whatever names: a hospital has one address for all."""
NETWORK_PAUSE: Final = timedelta(seconds=2)
"""And then one in so long. What was right is not counted, so that who mistypes slows nobody but the own name."""
_NETWORK_FULL: Final = NETWORK_BURST * NETWORK_PAUSE


def refuse_network(settled_at: datetime | None, now: datetime) -> None:
    """Raise ``TooManyAttempts`` while too many wrong passwords came from a network; at ``settled_at`` all are forgotten."""
    wait = _owed(settled_at, now) + NETWORK_PAUSE - _NETWORK_FULL
    if wait > timedelta():
        message = "Too many wrong passwords from your network: wait, or use a known device, a passkey or a one-time code as otp."
        raise TooManyAttempts(message, math.ceil(wait.total_seconds()))


def network_settles_at(settled_at: datetime | None, now: datetime) -> datetime:
    """Return when the wrong passwords of a network are all forgotten, with one more."""
    return now + _owed(settled_at, now) + NETWORK_PAUSE


def _owed(settled_at: datetime | None, now: datetime) -> timedelta:
    owed = settled_at - now if settled_at is not None else timedelta()
    # What lies further ahead was set while the clock was ahead, which was set back.
    return owed if timedelta() < owed <= _NETWORK_FULL + LONGEST_DELAY else timedelta()


def coded(wrong: int) -> int:
    """Return the wrong codes in a row with one more; raise ``TooManyAttempts`` when there were enough of them."""
    if wrong >= MOST_CODES:
        message = "Too many wrong codes: use a passkey, sign in from a known device, or have the second factor recovered or reset."
        raise TooManyAttempts(message, int(LONGEST_DELAY.total_seconds()))
    return wrong + 1


def coded_in_session(wrong: int) -> int:
    """Return the wrong codes of one session in a row with one more; raise ``TooManyAttempts`` when there were enough of them."""
    if wrong >= MOST_CODES_IN_SESSION:
        message = "Too many wrong codes in this session: sign in again."
        raise TooManyAttempts(message, 1)
    return wrong + 1


def guessed(guesses: int) -> int:
    """Return the guesses with one more; raise ``TooManyAttempts`` when there were enough of them for ever (USR-10)."""
    if guesses >= MOST_GUESSES:
        message = "Too many wrong passwords: sign in from a known device, by passkey, or with a one-time code beside the password."
        raise TooManyAttempts(message, int(LONGEST_DELAY.total_seconds()))
    return guesses + 1


@dataclass(frozen=True, slots=True)
class Attempts:
    """The wrong tries at one proof; ``blocked_until`` is the moment from which the next one is looked at."""

    failed: int = 0
    blocked_until: datetime | None = None

    def charged(self, now: datetime) -> "Attempts":
        """Return the count with one more try in it; raise ``TooManyAttempts`` while none is looked at."""
        failed = self.failed
        if self.blocked_until is not None:
            # Nobody waits longer than the longest delay: a moment beyond it was set while the clock was ahead, which was set back.
            if now < self.blocked_until <= now + LONGEST_DELAY:
                message = "Wrong tries slow down. The account is not locked."
                raise TooManyAttempts(message, math.ceil((self.blocked_until - now).total_seconds()))
            if now - self.blocked_until >= FORGOTTEN_AFTER:
                failed = 0
        failed += 1
        # From the fifth on: 1, 2, 4, 8, 16 and then 30 seconds.
        delay = timedelta(seconds=2 ** min(failed - FREE_TRIES, 5)) if failed >= FREE_TRIES else timedelta()
        return Attempts(failed, now + min(delay, LONGEST_DELAY))

    def given_back(self, now: datetime) -> "Attempts":
        """Return the count without the last try, which was right, and with nothing to wait for."""
        return Attempts(self.failed - 1, now) if self.failed > 1 else Attempts()
