"""Plain builders for the tests of sealing: a seeded source of chance, a key file, a ring with its studies."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

from app.domain.sealed import Column, Place, SealContext
from app.domain.words import Mode, StudyCode
from app.sealing.providers import KeyFileProvider
from app.sealing.ring import KeyRing

STUDY = StudyCode("ASPECT-01")
OTHER_STUDY = StudyCode("ASPECT-02")
DEPLOYMENT = "7d0c4f0e-0a3f-4f6e-9a52-0c7a4a7d3b11"
PLACE: Place = ("0b51a3c2-5a8e-4b3b-8f0e-5f6f1f1c9d10", "site=012;sex=f", 17)
PLAINTEXT = b'{"arm":"A","block":4}'

NO_STUDY = (Column.ANSWER_SMALL, Column.ANSWER_LARGE, Column.TOTP, Column.RECOVERY, Column.PASSKEY, Column.ISSUER)


class SeededEntropy:
    """A source of chance that gives the same bytes for the same seed, independent ones for each purpose."""

    def __init__(self, seed: bytes = b"seed") -> None:
        self._seed = seed
        self._drawn: dict[str, int] = {}

    def draw(self, purpose: str, size: int) -> bytes:
        count = self._drawn[purpose] = self._drawn.get(purpose, 0) + 1
        label = b"|".join((self._seed, purpose.encode(), str(count).encode()))
        return hashlib.shake_256(label).digest(size)


def secret_of(name: str) -> bytes:
    """Return 32 bytes that belong to a name."""
    return hashlib.sha256(name.encode()).digest()


def key_file(folder: Path, name: str = "key", key: bytes | None = None) -> KeyFileProvider:
    """Return the provider of a key file, written when it is not there yet."""
    path = folder / name
    if not path.exists():
        KeyFileProvider.create(path, secret_of(name) if key is None else key)
    return KeyFileProvider(path, SeededEntropy(name.encode()))


def ring_of(
    folder: Path,
    *,
    deployment_id: str = DEPLOYMENT,
    mode: Mode = Mode.TEST,
    seeded_with: str = "deployment secret",
    studies: Iterable[tuple[StudyCode, int]] = ((STUDY, 1), (OTHER_STUDY, 1)),
    key_name: str = "study key",
    entropy_seed: bytes = b"ring",
) -> KeyRing:
    """Return a ring with a key for each (study, version); equal arguments give equal keys."""
    provider = key_file(folder)
    wrapped = KeyRing.create_secret(provider, deployment_id, mode, secret_of(seeded_with))
    ring = KeyRing(provider, deployment_id, mode, wrapped, SeededEntropy(entropy_seed))
    for study_code, version in studies:
        add_version(ring, study_code, version, key_name)
    return ring


def add_version(ring: KeyRing, study_code: StudyCode, version: int, key_name: str = "study key") -> None:
    """Give the ring one more key of a study."""
    key = secret_of(f"{key_name} {study_code} {version}")
    ring.add_study_key(study_code, version, ring.new_study_key(study_code, version, key))


def context_of(column: Column = Column.SLOT, study_code: StudyCode | None = STUDY, place: Place = PLACE) -> SealContext:
    """Return a place for a sealed value; columns of the deployment get no study."""
    return SealContext(column, None if column in NO_STUDY else study_code, place)
