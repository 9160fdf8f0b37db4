"""Passwords: hashed with Argon2id (RFC 9106), compared at equal cost for known and unknown accounts."""

import re
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from threading import BoundedSemaphore
from typing import Final

from argon2 import PasswordHasher
from argon2.exceptions import VerificationError, VerifyMismatchError

from app.domain.entropy import Entropy
from app.domain.words import Mode
from app.errors import HashingBusy, IntegrityBroken, PasswordRefused, WrongCredentials

SHORTEST: Final = 12
LONGEST: Final = 128
_SHORTEST_NAME: Final = 3
_FEWEST_CHARACTERS: Final = 5
_SALT_LENGTH: Final = 16

# Each hash takes 64 MiB for a while. Two at a time bound the memory that strangers can make the service take.
_AT_ONCE: Final = 2
PLACES: Final = 4
"""How many may hash or wait for it at a time, unless it is said otherwise: half of the threads that a worker has by default."""
KEPT_PLACES: Final = 1
"""As many more, for those who have shown that they are no strangers."""
_LONGEST_WAIT: Final = 3.0

# Letters and digits that nobody confuses on paper; a one-time password is read aloud or typed from a sheet.
_ALPHABET: Final = "23456789ABCDEFGHJKMNPQRSTVWXYZ"
_GROUPS: Final = (4, 5)
_SPOKEN_GROUPS: Final = (3, 4)
"""How many groups of how many characters a code has that one person reads to another."""
# Bytes from here on are drawn again: they would make the first characters of the alphabet likelier (rule A4).
_FAIR_BYTES: Final = 256 - 256 % len(_ALPHABET)

# Of the passwords seen most in published leaks, those that are long enough to pass otherwise. The ends of a
# password that everybody adds (digits, an exclamation mark) are cut off before it is looked up as a stem.
_COMMON_WORDS: Final = """
abcd1234abcd abcdefghijkl abcdefghijklm adminadminadmin administrator administrators changemenow
changemeplease charliecharlie computercomputer correcthorsebatterystaple dragondragon football1234
footballfootball helloworldhello iloveyouiloveyou iloveyousomuch iloveyouforever internetinternet
letmeinletmein letmeinplease liverpoolfc1892 manchesterunited michaeljackson monkeymonkey mypasswordis
onetwothreefour passpasspass password1234 passwordpassword princessprincess q1w2e3r4t5y6 qazwsxedcrfv
qazwsxedcrfvtgb qwerty123456 qwertyqwerty qwertyuiop12 qwertyuiopas qwertyuiopasdfgh
qwertyuiopasdfghjklzxcvbnm qwerasdfzxcv sunshinesunshine superman1234 thisismypassword trustno1trustno1
unbelievable welcomewelcome whateverwhatever 1q2w3e4r5t6y 1q2w3e4r5t6y7u8i 1qaz2wsx3edc 1qaz2wsx3edc4rfv
12345678910 123456789012 1234567890123 12345678901234 123456789123 1234567891011 123456123456 123123123123
112233445566 0123456789ab 098765432109 987654321098 147258369147 111222333444 google123456
"""
_STEM_WORDS: Final = """
abc admin administrator baseball changeme dragon football iloveyou letmein login monkey mypassword
passw0rd password passwort princess qwerty qwertyuiop secret sunshine superman test trial user welcome
winter summer spring autumn study hospital doctor snose investigator coordinator pharmacist monitor
"""
_COMMON: Final = frozenset(_COMMON_WORDS.split())
_STEMS: Final = frozenset(_STEM_WORDS.split())
_ADDED: Final = "0123456789!?.,;:*#$%&+-_@"
"""What everybody adds before or behind a word that is too short."""
_REPEATED: Final = (2, 3, 4)
"""How often somebody writes a short word to make a long one of it."""


class Passwords:
    """Hashes and verifies passwords at the cost of the deployment's mode.

    Live: 3 passes over 64 MiB in 4 lanes (RFC 9106's second choice). Only a test deployment takes less (rule
    A10).
    """

    def __init__(self, mode: Mode, entropy: Entropy, places: int = PLACES) -> None:
        self._entropy = entropy
        if mode is Mode.LIVE:
            self._hasher = PasswordHasher(time_cost=3, memory_cost=64 * 1024, parallelism=4)
        else:
            self._hasher = PasswordHasher(time_cost=1, memory_cost=1024, parallelism=1)
        self._places = BoundedSemaphore(places)
        self._kept_places = BoundedSemaphore(KEPT_PLACES)
        self._turn = BoundedSemaphore(_AT_ONCE)
        self._longest_wait = _LONGEST_WAIT
        # Nobody's password: what an unknown account is compared with, so that both take the same time.
        self._nobody = self.hash(entropy.draw("password", 32).hex())

    @contextmanager
    def place(self, *, is_known: bool = False) -> Iterator[None]:
        """Hold one of the few places of those who hash or wait for it; raise ``HashingBusy`` at once when all are taken.

        Whoever serves requests takes one first: threads that wait for strangers' passwords would be missing at the code breaks
        (rule D1). Strangers who take all places leave one to somebody known.
        """
        places = self._places
        if not places.acquire(blocking=False):
            places = self._kept_places
            if not is_known or not places.acquire(blocking=False):
                raise HashingBusy
        try:
            yield
        finally:
            places.release()

    @contextmanager
    def _own_turn(self) -> Iterator[None]:
        if not self._turn.acquire(timeout=self._longest_wait):
            raise HashingBusy
        try:
            yield
        finally:
            self._turn.release()

    def hash(self, password: str) -> str:
        """Return the salted hash in PHC form, with its costs. ``refuse_weak`` asks the rules.

        Raises ``HashingBusy`` when no turn comes within three seconds.
        """
        salt = self._entropy.draw("password_salt", _SALT_LENGTH)
        with self._own_turn():
            return self._hasher.hash(_bytes(password), salt=salt)

    def verify(self, password: str, stored_hash: str | None) -> None:
        """Raise ``WrongCredentials`` unless this is the password of the hash; None is an unknown account.

        An unknown account costs as much as a known one and is refused in the same words (USR-10). Raises
        ``IntegrityBroken`` when what is stored is no hash, and ``HashingBusy`` when no turn comes within three seconds.
        """
        try:
            with self._own_turn():
                self._hasher.verify(self._nobody if stored_hash is None else stored_hash, _bytes(password))
        except VerifyMismatchError:
            raise WrongCredentials from None
        except (VerificationError, ValueError):
            raise IntegrityBroken("The stored hash of a password is damaged.") from None
        if stored_hash is None:
            raise WrongCredentials


def refuse_weak(password: str, username: str, field: str = "new") -> None:
    """Raise ``PasswordRefused`` for a new password that is short, long, common or like the name.

    Length counts, no mixture of kinds of characters is asked for, and none ends by the calendar (NIST SP
    800-63B, USR-11).
    """
    folded = _normal(password).casefold()
    compact = folded.replace(" ", "")
    stem = compact.strip(_ADDED)
    if not SHORTEST <= len(password) <= LONGEST:
        raise PasswordRefused(f"A password has {SHORTEST} to {LONGEST} characters.", field)
    if any(unicodedata.category(character) == "Cs" for character in password):
        raise PasswordRefused("A password is made of characters that can be written.", field)
    if len(set(compact)) < _FEWEST_CHARACTERS:
        raise PasswordRefused(f"A password has at least {_FEWEST_CHARACTERS} different characters.", field)
    if any(word in known for word in (compact, stem, *_halves(compact)) for known in (_COMMON, _STEMS, _leaked())):
        raise PasswordRefused("This password is one of those that everybody tries first.", field)
    name = _normal(username).casefold()
    if len(name) >= _SHORTEST_NAME and name in folded:
        raise PasswordRefused("A password does not hold the user name.", field)


def _halves(compact: str) -> Iterator[str]:
    """Give the shorter words that this is nothing but repetitions of."""
    for times in _REPEATED:
        word = compact[: len(compact) // times]
        if word * times == compact:
            yield word


@cache
def _leaked() -> frozenset[str]:
    """Return the 30,000 passwords seen most in published leaks, and what they are without what everybody adds.

    Read when the first new password is looked at.
    """
    from zxcvbn.frequency_lists import FREQUENCY_LISTS  # noqa: PLC0415  # some megabytes, which most processes never need

    words = frozenset(FREQUENCY_LISTS["passwords"])
    return words | {stem for word in words if (stem := word.strip(_ADDED))}


def issued_password(entropy: Entropy) -> str:
    """Return a one-time password of 98 random bits in four groups, to be replaced at the first sign-in."""
    return _in_groups(entropy, "issued_password", *_GROUPS)


def spoken_code(entropy: Entropy) -> str:
    """Return a code of 58 random bits in three groups, which one person reads to another: good once, and not for long."""
    return _in_groups(entropy, "spoken_code", *_SPOKEN_GROUPS)


def as_spoken(code: str) -> bytes:
    """Return a code as it is compared, however it was written down."""
    return _bytes(re.sub(r"[\s-]", "", code).upper())


def _in_groups(entropy: Entropy, purpose: str, groups: int, length: int) -> str:
    characters: list[str] = []
    while len(characters) < groups * length:
        drawn = entropy.draw(purpose, 2 * groups * length)
        characters += [_ALPHABET[byte % len(_ALPHABET)] for byte in drawn if byte < _FAIR_BYTES]
    return "-".join("".join(characters[start : start + length]) for start in range(0, groups * length, length))


def _normal(text: str) -> str:
    # One keyboard writes an accented letter as one character, another as two (NIST SP 800-63B).
    return unicodedata.normalize("NFKC", text)


def _bytes(password: str) -> bytes:
    # A lone surrogate in a request is a wrong password, not a fault of the service (rule G2).
    return _normal(password).encode("utf-8", "surrogatepass")
