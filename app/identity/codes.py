"""One-time codes of a person's own device (RFC 6238): six digits, SHA-1, steps of 30 seconds."""

import base64
import hmac
from datetime import datetime
from typing import Final

from pyotp import HOTP

from app.domain.entropy import Entropy
from app.errors import WrongOneTimeCode

STEP_SECONDS: Final = 30
DIGITS: Final = 6
# RFC 4226, 4, R6 recommends 160 bits.
_SECRET_LENGTH: Final = 20


def new_secret(entropy: Entropy) -> str:
    """Return a new secret in base32, 32 characters, as authenticator applications take it."""
    return base64.b32encode(entropy.draw("one_time_code_secret", _SECRET_LENGTH)).decode("ascii")


def step_at(at: datetime) -> int:
    """Return the number of the step that holds a moment. Raises ``ValueError`` for a time without a zone."""
    if at.tzinfo is None:
        raise ValueError("The time of a one-time code has a zone.")
    return int(at.timestamp()) // STEP_SECONDS


def code_of_step(secret: str, step: int) -> str:
    """Return the code that the person's own device shows during a step; for clients and tests, never for the service."""
    return HOTP(secret, digits=DIGITS).at(step)


def accepted_step(secret: str, code: str, at: datetime, last_step: int | None) -> int:
    """Return the step whose code this is: the current or the previous one, and later than the last one used.

    The caller stores it as the last step with the act that the code signs, so that each code works once (rule
    D3). Raises ``WrongOneTimeCode`` for a wrong, an old, a future and a used code alike.
    """
    current = step_at(at)
    given = code.encode("utf-8", "surrogatepass")
    generator = HOTP(secret, digits=DIGITS)
    accepted = None
    # Both steps are always compared, so that the time does not tell which one was near.
    for step in (current - 1, current):
        fits = hmac.compare_digest(generator.at(step).encode("ascii"), given)
        if fits and (last_step is None or step > last_step):
            accepted = step
    if accepted is None:
        raise WrongOneTimeCode
    return accepted
