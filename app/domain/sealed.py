"""Values that nobody can read without the key ring, and the one place where each of them belongs."""

from dataclasses import dataclass
from enum import Enum
from typing import Final, NoReturn

from app.domain.words import StudyCode

LENGTH_PREFIX: Final = 4
"""Bytes of a padded plaintext that say how much of it is the plaintext."""

Place = tuple[str | int, ...]
"""What tells a row from all others: its id; schedule, segment, stratum, position as far as each applies."""


@dataclass(frozen=True, slots=True)
class Sealed:
    """A value nobody can read without the key ring: ``v1.<key id>.<nonce>.<box>``."""

    token: str

    def __repr__(self) -> str:
        return "<sealed>"

    def __reduce__(self) -> NoReturn:
        # A pickle outlives the transaction it was made in, and copies of rows are what B3 guards against.
        message = "A sealed value is not pickled or copied."
        raise TypeError(message)


class Column(Enum):
    """Every sealed column of the database: table, column, purpose of its field key, length of what is sealed.

    The length is that of the padded plaintext in bytes. It is one for the whole column, so that nothing can
    be told from the length of a stored value (rule B3); ``capacity`` is what of it a plaintext may fill.
    """

    SLOT = ("slot", "sealed", "slots", 128)
    SEED = ("schedule", "sealed_seed", "slots", 128)
    SPECIFICATION = ("schedule", "sealed_specification", "restricted", 262144)
    QUALITY = ("schedule", "sealed_quality_report", "restricted", 524288)
    KIT = ("kit", "sealed", "kits", 256)
    ALLOCATION_BINDING = ("allocation", "sealed_binding", "bindings", 1280)
    KIT_BINDING = ("kit_assignment", "sealed_binding", "bindings", 1280)
    RESTRICTED = ("trail_restricted", "sealed", "restricted", 8192)
    SAFETY_SUBJECT = ("safety_unblinding", "sealed_subject", "restricted", 256)
    REQUEST_TEXT = ("dual_control_request", "sealed_statement", "restricted", 4096)
    ANSWER_SMALL = ("stored_answer", "sealed_small", "answers", 1024)
    ANSWER_LARGE = ("stored_answer", "sealed_large", "answers", 32768)
    TOTP = ("credential", "sealed_totp_secret", "credentials", 64)
    RECOVERY = ("factor_recovery", "sealed_totp_secret", "credentials", 64)
    PASSKEY = ("passkey", "sealed_key", "credentials", 1024)
    ISSUER = ("issuer", "sealed_client_secret", "credentials", 512)

    def __init__(self, table: str, column: str, purpose: str, length: int) -> None:
        self.table = table
        self.column = column
        self.purpose = purpose
        self.length = length

    @property
    def capacity(self) -> int:
        """Return the most bytes that one value of this column can hold."""
        return self.length - LENGTH_PREFIX


_STUDY_KEYS_ONLY: Final = frozenset({"slots", "kits", "bindings"})
_DEPLOYMENT_KEY_ONLY: Final = frozenset({"answers", "credentials"})


@dataclass(frozen=True, slots=True)
class SealContext:
    """Where a sealed value belongs: it opens in this column, study and place and in no other (CUS-10).

    ``study_code`` is None for what is sealed under the deployment's key: stored answers, credentials, and
    restricted parts of the service's own log. Raises ``ValueError`` for a column that never lies under the
    key so chosen.
    """

    column: Column
    study_code: StudyCode | None
    place: Place

    def __post_init__(self) -> None:
        refuse_wrong_key(self.column, self.study_code)


def refuse_wrong_key(column: Column, study_code: StudyCode | None) -> None:
    """Raise ``ValueError`` where the column never lies under the study's, or under the deployment's, key.

    The list of one study hangs on that study's key alone; an answer or a credential belongs to no study.
    """
    if column.purpose in (_STUDY_KEYS_ONLY if study_code is None else _DEPLOYMENT_KEY_ONLY):
        owner = "deployment" if study_code is None else "study"
        message = f"{column.table}.{column.column} is never sealed under the key of a {owner}."
        raise ValueError(message)
