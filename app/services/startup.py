"""From a database and a key provider to a running deployment; and the making of a new one."""

from dataclasses import dataclass, field
from typing import Final
from uuid import UUID

import structlog

from app.domain.entropy import Entropy
from app.domain.words import Mode
from app.errors import AlreadyExists, KeyUnavailable, SealBroken, UnsafeSetting
from app.identity.passwords import Passwords
from app.sealing.providers import KeyProvider
from app.sealing.ring import KeyRing
from app.sealing.signing import SigningKeys
from app.services.checkpoints import CheckpointKeeper
from app.services.commitments import CommitmentKeeper
from app.services.context import Clock, Deployment, Limits, SystemEntropy, system_clock
from app.services.desk import EmergencyDesk
from app.services.noise import NoiseMeter
from app.services.postoffice import PostOffice
from app.services.providers import Providers
from app.services.witnessing import WitnessKeeper
from app.storage import keys, migrate, studies
from app.storage.database import Database
from app.storage.keys import DeploymentRecord, SigningKeyRecord
from app.storage.mail_client import MailClient
from app.storage.provider_client import ProviderClient
from app.storage.sink import FileSink
from app.storage.webhook_client import WebhookClient
from app.storage.witness_client import WitnessClient

_log: Final = structlog.get_logger("snose.startup")


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a deployment stands on; tests hand in a frozen clock and seeded entropy."""

    database: Database
    provider: KeyProvider
    sink: FileSink
    limits: Limits
    clock: Clock = system_clock
    list_entropy: Entropy = field(default_factory=SystemEntropy)
    entropy: Entropy = field(default_factory=SystemEntropy)
    witness: tuple[WitnessClient, str] | None = None
    """The witness of the logs, and its verification key."""
    desk: EmergencyDesk | None = None
    """The emergency desk, where code-break envelopes are made."""
    mail: MailClient | None = None
    """The mail server by which notices leave, where one is named."""
    issuers: ProviderClient = field(default_factory=lambda: ProviderClient(may_stay_here=False))
    """By which outside issuers are asked for their keys."""


def create_deployment(around: Surroundings, mode: Mode, *, is_demo: bool = False) -> DeploymentRecord:
    """Make the identity and the keys of a new deployment; raise ``AlreadyExists`` when the database has one."""
    deployment_id = UUID(bytes=around.entropy.draw("deployment id", 16), version=4)
    with around.database.transaction() as tx:
        if keys.find_deployment(tx) is not None:
            message = "This database belongs to a deployment already."
            raise AlreadyExists(message)
        secret = around.entropy.draw("deployment secret", 32)
        wrapped = KeyRing.create_secret(around.provider, str(deployment_id), mode, secret)
        record = DeploymentRecord(deployment_id, mode, is_demo, wrapped)
        now = around.clock()
        keys.add_deployment(tx, record, now)
        ring = KeyRing(around.provider, str(deployment_id), mode, wrapped, around.entropy)
        signing = SigningKeys(ring, key_name(record))
        public_key, wrapped_key = signing.new_signing_key(1, around.entropy.draw("signing key", 32))
        keys.add_signing_key(tx, SigningKeyRecord(1, public_key, wrapped_key, None), now)
    return record


def what_is_in(database: Database) -> str:
    """Return what a database holds: ``empty``, ``demo`` (of `snose demo`, in mode test), or ``other``."""
    with database.transaction() as tx:
        names = migrate.table_names(tx)
        if not names:
            return "empty"
        if migrate.current(tx) != migrate.head():
            return "other"
        record = keys.find_deployment(tx)
    # A demo that was stopped between its migration and its first key holds tables and no row.
    demo = record is None or (record.is_demo and record.mode is Mode.TEST)
    return "demo" if demo else "other"


def key_name(record: DeploymentRecord) -> str:
    """Return the name under which the deployment signs."""
    return f"snose/{record.deployment_id}"


def unseal(around: Surroundings, mode: Mode) -> Deployment:
    """Return the running deployment.

    Raises ``KeyUnavailable`` when the provider does not open the deployment's secret, ``UnsafeSetting`` for a database without
    deployment, of another mode, or with a schema that is not of this release.
    """
    with around.database.transaction() as tx:
        if not migrate.is_served(tx):
            message = "The schema of the database is not of this release. Run: snose migrate"
            raise UnsafeSetting(message)
        record = keys.find_deployment(tx)
        if record is None:
            message = "The database has no deployment yet. Run: snose init"
            raise UnsafeSetting(message)
        if record.mode is not mode:
            message = f"The database is of a {record.mode} deployment and the setting says {mode}."
            raise UnsafeSetting(message)
        signing_keys = keys.list_signing_keys(tx)
        known = studies.list_studies(tx)
        study_keys = [
            (study.study_code, version, wrapped)
            for study in known
            for version, wrapped in studies.list_study_keys(tx, study.study_id)
        ]
    ring = KeyRing(around.provider, str(record.deployment_id), mode, record.wrapped_secret, around.entropy)
    for study_code, version, wrapped in study_keys:
        try:
            ring.add_study_key(study_code, version, wrapped)
        except SealBroken:
            # The other studies go on, their code breaks above all; this one is refused at each request.
            _log.error("study key damaged", version=version)
    for study in known:
        ring.retire_study_keys(study.study_code, study.min_key_version)
    signing = SigningKeys(ring, key_name(record))
    for key in signing_keys:
        try:
            signing.add_signing_key(key.version, key.wrapped)
        except SealBroken:
            # A provider that answers garbage of the right length is found out here (rule F2).
            message = "The keys of this deployment do not open with the secret that the key provider gave."
            raise KeyUnavailable(message) from None
    checkpoints = CheckpointKeeper(signing, around.sink, ring)
    witness = None
    if around.witness is not None:
        witness = WitnessKeeper(*around.witness, key_name(record), checkpoints, around.database, around.clock)
        witness.ask_at_start()
    checkpoints.compare(around.database)
    return Deployment(
        deployment_id=record.deployment_id,
        mode=mode,
        database=around.database,
        ring=ring,
        signing=signing,
        passwords=Passwords(mode, around.entropy, around.limits.hashing_places),
        clock=around.clock,
        list_entropy=around.list_entropy,
        entropy=around.entropy,
        checkpoints=checkpoints,
        commitments=CommitmentKeeper(record.deployment_id, ring, signing),
        noise=NoiseMeter(),
        limits=around.limits,
        witness=witness,
        desk=around.desk,
        office=PostOffice(around.mail, WebhookClient(may_stay_here=mode is Mode.TEST)),
        providers=Providers(around.issuers, around.limits.provider_places),
    )
