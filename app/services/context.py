"""What every use case is handed: the running deployment, and who asks by which request."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from uuid import UUID

from app.domain.entropy import Entropy
from app.domain.words import Action, Factor, Mode, StudyCode
from app.identity.passkeys import RelyingParty
from app.identity.passwords import PLACES, Passwords
from app.identity.tokens import outside_digest, token_digest
from app.sealing.ring import KeyRing
from app.sealing.signing import SigningKeys
from app.services.checkpoints import CheckpointKeeper
from app.services.commitments import CommitmentKeeper
from app.services.desk import EmergencyDesk
from app.services.noise import NoiseMeter
from app.services.postoffice import PostOffice
from app.services.providers import Providers
from app.services.witnessing import WitnessKeeper
from app.storage.database import Database

Clock = Callable[[], datetime]
"""Gives the present time, aware and in UTC."""


class SystemEntropy:
    """The operating system's generator, the only source of chance in production (rule A4)."""

    def draw(self, purpose: str, size: int) -> bytes:  # noqa: ARG002  # the purpose is for test doubles
        """Return ``size`` fresh bytes."""
        return os.urandom(size)


def system_clock() -> datetime:
    """Return the present time of the host."""
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class Limits:
    """The settings that a use case needs to know."""

    session_length: timedelta = timedelta(hours=8)
    session_idle: timedelta = timedelta(minutes=15)
    machine_token_length: timedelta = timedelta(minutes=30)
    password_max_age: timedelta | None = None
    second_factor_required: bool = False
    """Whether a password alone opens no more than its owner's account (USR-09)."""
    two_person_grants: bool = False
    """Whether a right to unblind is given by two service administrators."""
    access_review_period: timedelta = timedelta(days=180)
    """How long after an access review the next one is due."""
    hashing_places: int = PLACES
    """How many strangers may be busy with a password at a time; half of the threads, so that the rest are free for all else."""
    provider_places: int = 2
    """How many requests may wait for outside issuers at a time; a quarter of the threads."""
    backup_contact: str = ""
    """What is answered when even the database is down (rule D4)."""
    public_url: str = "http://127.0.0.1:8000"
    """Where callers reach the service: never taken from a request, whose sender could write anything there."""
    relying_party: RelyingParty | None = None
    """For whom devices keep passkeys; None where there are none."""

    def audiences(self) -> frozenset[str]:
        """Return as whom an assertion of a machine client may address the service (RFC 7523, 3)."""
        return frozenset({self.public_url, f"{self.public_url}/oauth2/token"})


@dataclass(frozen=True, slots=True)
class Deployment:
    """A running, unsealed deployment."""

    deployment_id: UUID
    mode: Mode
    database: Database
    ring: KeyRing
    signing: SigningKeys
    passwords: Passwords
    clock: Clock
    list_entropy: Entropy
    """Where the seeds of allocation lists come from, and nothing else (rule A4)."""
    entropy: Entropy
    checkpoints: CheckpointKeeper
    commitments: CommitmentKeeper
    noise: NoiseMeter
    limits: Limits
    providers: Providers
    """The outside issuers that are asked for their keys."""
    factors: dict[UUID, tuple[Factor, ...]] = field(default_factory=dict)
    """Stratification factors by study, as they were read; they never change."""
    samples: dict[UUID, int] = field(default_factory=dict)
    """How many kits of a consignment are looked at, where the usual sample was once too small or nearly so."""
    stock_shares: dict[UUID, float] = field(default_factory=dict)
    """Which share of a consignment's kits was in stock when last looked at."""
    witness: WitnessKeeper | None = None
    """Who keeps the logs before a witness, where the settings name one."""
    desk: EmergencyDesk | None = None
    """For whom code-break envelopes are closed, where the settings name a folder and a key."""
    office: PostOffice = field(default_factory=PostOffice)
    """By which means notices leave."""

    def new_id(self) -> UUID:
        """Return a random row id (UUIDv4): it tells neither order nor time (rule B3)."""
        return UUID(bytes=self.entropy.draw("row id", 16), version=4)

    def origin(self, study_code: StudyCode | None) -> str:
        """Return the name of a log, as its checkpoints carry it."""
        return f"snose/{self.deployment_id}/{study_code or 'service'}"


@dataclass(slots=True)
class RequestContext:
    """One request: who says to be asking, for what, and what goes back beside the answer."""

    deployment: Deployment
    action: Action
    token_digest: bytes | None
    request_id: str
    network: str
    """The caller's address, shortened to its network."""
    method: str = "GET"
    path: str = ""
    idempotency_key: str | None = None
    fingerprint: bytes = b""
    """SHA-256 of the request body."""
    signed: Mapping[str, Any] | None = None
    """What a passkey has signed for this one request, where the caller sent that along."""
    request_digest: bytes = b""
    """What the passkey must have signed: method, path and body."""
    outside_token: str | None = None
    """A token of an outside issuer, as it came; nobody has looked at it."""
    replayed: bool = field(default=False, init=False)
    checkpoint: str | None = field(default=None, init=False)
    """``<size> <root> <signature>`` of the log after this act, for the header ``Audit-Checkpoint``."""

    def now(self) -> datetime:
        """Return the present time, aware and in UTC."""
        return self.deployment.clock()


def token_digest_of(token: str) -> bytes:
    """Return the digest under which a bearer token is known; raise ``NotAuthenticated`` for what cannot be one."""
    return outside_digest(token) if "." in token else token_digest(token)


SEALED_MESSAGE: Final = "The service has no access to its keys and answers health checks only."
