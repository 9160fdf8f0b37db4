"""One-time codes: RFC 6238 vectors, which steps are taken, each code once."""

import base64
import hmac
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone

import pytest

from app.errors import WrongOneTimeCode
from app.identity.codes import accepted_step, new_secret, step_at
from tests.identity.builders import SeededEntropy

SECRET = base64.b32encode(b"12345678901234567890").decode()
NOW = datetime(2026, 11, 22, 12, 0, 15, tzinfo=UTC)
STEP = int(NOW.timestamp()) // 30


def code_of(step: int, secret: str = SECRET) -> str:
    """Return the code of a step as RFC 4226, 5.3 writes it down, independent of the library."""
    mac = hmac.digest(base64.b32decode(secret), step.to_bytes(8, "big"), "sha1")
    offset = mac[-1] & 15
    return f"{(int.from_bytes(mac[offset : offset + 4], 'big') & 0x7FFFFFFF) % 10**6:06d}"


class TestAcceptedStep:
    @pytest.mark.parametrize(
        ("seconds", "code"),
        [
            (59, "287082"),
            (1111111109, "081804"),
            (1111111111, "050471"),
            (1234567890, "005924"),
            (2000000000, "279037"),
            (20000000000, "353130"),
        ],
    )
    def test_rfc_6238_vectors(self, seconds: int, code: str) -> None:
        """The published codes (their last six digits) are those of their time."""
        at = datetime.fromtimestamp(seconds, UTC)
        assert accepted_step(SECRET, code, at, None) == step_at(at) == seconds // 30

    @pytest.mark.parametrize(("shift", "accepted"), [(-3, False), (-2, False), (-1, True), (0, True), (1, False)])
    def test_steps_around_now(self, shift: int, accepted: bool) -> None:
        """The current and the previous step are taken, older and later ones are not. (rule D3)"""
        code = code_of(STEP + shift)
        if accepted:
            assert accepted_step(SECRET, code, NOW, None) == STEP + shift
        else:
            with pytest.raises(WrongOneTimeCode):
                accepted_step(SECRET, code, NOW, None)

    @pytest.mark.parametrize(
        ("last", "shift", "accepted"),
        [
            (0, 0, False),
            (0, -1, False),
            (-1, -1, False),
            (-1, 0, True),
            (-2, -1, True),
            (-2, 0, True),
            (1, 0, False),
        ],
    )
    def test_after_one_was_used(self, last: int, shift: int, accepted: bool) -> None:
        """A code works once, and none before it works after it. (rule D3, SIG-01)"""
        code = code_of(STEP + shift)
        if accepted:
            assert accepted_step(SECRET, code, NOW, STEP + last) == STEP + shift
        else:
            with pytest.raises(WrongOneTimeCode):
                accepted_step(SECRET, code, NOW, STEP + last)

    def test_one_code_for_two_steps(self) -> None:
        """Where two neighbouring steps share a code, the later one is used up, and so both."""
        # Searched for: the first such pair of this secret in 2026.
        step, code = 59061241, "963181"
        assert code_of(step) == code_of(step - 1) == code
        at = datetime.fromtimestamp(step * 30, UTC)
        assert accepted_step(SECRET, code, at, None) == accepted_step(SECRET, code, at, step - 1) == step
        with pytest.raises(WrongOneTimeCode):
            accepted_step(SECRET, code, at, step)

    @pytest.mark.parametrize(
        "mangle",
        [
            lambda code: code[:0],
            lambda code: code[:-1],
            lambda code: code + "0",
            lambda code: " " + code,
            lambda code: code + "\n",
            lambda code: code[:3] + " " + code[3:],
            lambda code: "".join(chr(0x660 + int(digit)) for digit in code),
            lambda code: "".join(chr(0xFF10 + int(digit)) for digit in code),
            lambda code: code[:-1] + "\ud800",
            lambda code: code[:-1] + str((int(code[-1]) + 1) % 10),
        ],
    )
    def test_something_else(self, mangle: Callable[[str], str]) -> None:
        """Only the six ASCII digits are the code; everything else is refused alike. (rule G2)"""
        with pytest.raises(WrongOneTimeCode) as refused:
            accepted_step(SECRET, mangle(code_of(STEP)), NOW, None)
        assert SECRET not in str(refused.value)
        assert code_of(STEP) not in str(refused.value)

    def test_other_secret(self) -> None:
        """Another person's device does not do."""
        with pytest.raises(WrongOneTimeCode):
            accepted_step(new_secret(SeededEntropy()), code_of(STEP), NOW, None)

    def test_time_in_another_zone(self) -> None:
        """The zone does not matter; a time without one is a fault of the program."""
        elsewhere = NOW.astimezone(timezone(timedelta(hours=9)))
        assert accepted_step(SECRET, code_of(STEP), elsewhere, None) == STEP
        with pytest.raises(ValueError, match="zone"):
            accepted_step(SECRET, code_of(STEP), NOW.replace(tzinfo=None), None)

    def test_edges_of_a_step(self) -> None:
        """A step lasts from its first to its last microsecond."""
        start = datetime.fromtimestamp(STEP * 30, UTC)
        assert step_at(start) == step_at(start + timedelta(seconds=30, microseconds=-1)) == STEP
        assert step_at(start - timedelta(microseconds=1)) == STEP - 1


class TestNewSecret:
    def test_form(self) -> None:
        """A secret is 160 bits from the injected source, in base32 without padding. (RFC 4226, R6)"""
        entropy = SeededEntropy()
        secret = new_secret(entropy)
        assert entropy.drawn == [("one_time_code_secret", 20)]
        assert len(secret) == 32
        assert len(base64.b32decode(secret)) == 20
        assert secret != new_secret(entropy)
