"""The life of the keys: wrapping, study keys and signing keys are renewed while the service runs (rule F4, CUS-08).

A rotation of a study's key has three parts, each of which may be cut off at any moment and gone on with later:

1. *begun*: a new version is made, entered, and seals from now on. The end of the study's log is told the version under its
   lock, and whoever comes there having sealed with an older one begins anew (``audited``): nothing more is committed under it.
2. *resealing*: each row is replaced in a short transaction, once what the new box opens to was compared with what the old one
   held, and with the committed leaf where there is one. Work is found by the key version of the rows, so nothing is remembered.
3. *retired*: when no row is left, older versions are refused for ever and what they were wrapped as is destroyed.
"""

import hashlib
import hmac
import json
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Final, TypeVar

from app.domain.contents import KitContents, SlotContents, SlotPlace
from app.domain.merkle import restricted_hash, salted_leaf, tree_root
from app.domain.notes import key_handover_text
from app.domain.sealed import Column, Place, SealContext, Sealed
from app.domain.words import Mode, StudyCode
from app.errors import (
    AlreadyExists,
    Conflict,
    DatabaseUnavailable,
    IntegrityBroken,
    KeyUnavailable,
    Missing,
    RollbackSuspected,
    UnsafeSetting,
)
from app.sealing.escrow import EscrowProvider
from app.sealing.escrow import escrow_secret as seal_escrow
from app.sealing.providers import KeyProvider
from app.sealing.ring import KeyRing
from app.services.audited import RESTORE_KEYS, enter_by_service
from app.services.checkpoints import LogState
from app.services.context import Deployment
from app.services.evidence import kit_place, slot_place
from app.services.startup import Surroundings, unseal
from app.storage import commitments, keys, resealing, studies
from app.storage.database import AlreadyThere, CommitUncertain, Transaction, TryAgain
from app.storage.keys import SigningKeyRecord
from app.storage.resealing import OlderRow
from app.storage.studies import StudyHead

BATCH: Final = 200
"""Rows of one transaction: what others wait for it is some tens of milliseconds."""

_ROTATE: Final = "key:rotate"
_ESCROW: Final = "key:escrow"
_ATTEMPTS: Final = 20
_PAUSE: Final = 0.05
_SALT: Final = 32

T = TypeVar("T")
Check = Callable[[Transaction, OlderRow, list[bytes]], None]
"""Returns when what the new boxes of a row open to is what was committed to."""
Tell = Callable[[int, int], None]
"""Hears how many rows lie under the newest version by now, of how many that did not at the beginning."""


# -- the wrapping of the deployment secret -----------------------------------------------------------------------------


def rewrap_secret(around: Surroundings, mode: Mode, to: KeyProvider) -> bool:
    """Have another provider, or another version of its key, wrap the deployment secret; no sealed value changes.

    Returns False when that had been done before: a run that was cut off after its COMMIT is simply repeated. What the old key
    wrapped is noise once it is destroyed, in every old backup too. Raises ``KeyUnavailable`` when a provider fails,
    ``UnsafeSetting`` for one that live mode refuses.
    """
    _refuse_weak(mode, to)
    try:
        deployment = unseal(around, mode)
    except KeyUnavailable as error:
        try:
            unseal(replace(around, provider=to), mode)
        except KeyUnavailable:
            raise error from None
        return False
    _refuse_suspected(deployment)
    _wrap_anew(deployment, around.provider, to, _ROTATE)
    return True


def _refuse_weak(mode: Mode, to: KeyProvider) -> None:
    if mode is Mode.LIVE and to.weakness is not None:
        raise UnsafeSetting(to.weakness)


def _wrap_anew(deployment: Deployment, provider: KeyProvider, to: KeyProvider, action: str) -> None:
    with deployment.database.transaction() as tx:
        record = keys.get_deployment(tx)
    renewed = KeyRing.rewrap_deployment_secret(
        provider, to, str(record.deployment_id), record.mode, record.wrapped_secret
    )

    def work(tx: Transaction) -> None:
        if not keys.replace_wrapped_secret(tx, record.wrapped_secret, renewed):
            raise Conflict("Somebody else has wrapped the deployment secret anew meanwhile.")

    kinds = {"from": _kind(provider), "to": _kind(to)}
    _enter(deployment, None, {"rotation": "wrapping", **kinds}, work, action)


def _kind(provider: KeyProvider) -> str:
    """Return what kind of provider it is, without paths and addresses."""
    return provider.name.partition(":")[0]


# -- escrow of the deployment secret -----------------------------------------------------------------------------------


def escrow_secret(around: Surroundings, mode: Mode, recipient_key: str) -> bytes:
    """Return the escrow of the deployment secret for an independent party, once it is entered who it is for (CUS-08, CUS-12).

    Whoever holds it, the recipient's private key and the database holds every list: rule F3 is kept by three people. Raises
    ``Invalid`` for a key that is none, ``KeyUnavailable``, ``RollbackSuspected``.
    """
    deployment = unseal(around, mode)
    _refuse_suspected(deployment)
    with around.database.transaction() as tx:
        record = keys.get_deployment(tx)
    escrow = seal_escrow(around.provider, str(record.deployment_id), mode, record.wrapped_secret, recipient_key)
    after = {"recipient_key": recipient_key, "digest": hashlib.sha256(escrow).hexdigest()}
    _enter(deployment, None, after, action=_ESCROW)
    return escrow


def restore_secret(around: Surroundings, mode: Mode, escrow: EscrowProvider, make: Callable[[], KeyProvider]) -> None:
    """Have a key provider wrap the deployment secret out of an escrow, so that the service unseals again (CUS-08).

    ``make`` is asked for the provider once the escrow has opened everything that it should: before that nothing is changed. It goes
    on under a suspected rollback too, because no code break works without a key. Raises ``KeyUnavailable``, ``UnsafeSetting``.
    """
    deployment = unseal(replace(around, provider=escrow), mode)
    to = make()
    _refuse_weak(mode, to)
    _wrap_anew(deployment, escrow, to, RESTORE_KEYS)


# -- signing keys ------------------------------------------------------------------------------------------------------


def rotate_signing_key(deployment: Deployment) -> int:
    """Return the version of a new signing key, handed over to by a note that the old one and it both sign.

    Running workers take it in with the next checkpoint, or with the first thing that it signed. The old one stays valid, so
    that what it has signed stays verifiable.
    """
    _refuse_suspected(deployment)
    signing = deployment.signing
    old = signing.newest_version
    version = old + 1
    public_key, wrapped = signing.new_signing_key(version, deployment.entropy.draw("signing key", 32))
    signing.add_signing_key(version, wrapped)
    new_key = signing.vkey(version)
    text = key_handover_text(str(deployment.deployment_id), signing.vkey(old), new_key)
    handover = signing.sign_handover(text, old, version)

    def work(tx: Transaction) -> None:
        keys.add_signing_key(tx, SigningKeyRecord(version, public_key, wrapped, handover), deployment.clock())

    after = {"rotation": "signing key", "version": version, "key": new_key.text(), "handover": handover}
    try:
        _enter(deployment, None, after, work)
    except AlreadyThere:
        raise AlreadyExists("Somebody else has made this version of the signing key. Run the command again.") from None
    return version


# -- study keys --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Rotated:
    """A rotation that has come to its end."""

    version: int
    rows: int
    """How many rows this run has sealed anew."""


def rotate_study_key(
    deployment: Deployment, study_code: StudyCode, tell: Tell = lambda _done, _total: None, batch: int = BATCH
) -> Rotated:
    """Seal everything of a study under a new version of its key and retire the older ones; goes on where a run was cut off.

    Raises ``Missing`` for a study that is not there, ``IntegrityBroken`` when a row does not open, or not to what was committed:
    such rows are left as they are, and older versions stay valid until somebody has looked.
    """
    _refuse_suspected(deployment)
    study = _begun(deployment, study_code)
    walk = _Walk(deployment, study, tell, batch)
    walk.reseal_all()
    if walk.broken:
        named = ", ".join(sorted({table for table, _ in walk.broken}))
        _enter(deployment, study, {"rotation": "study key", "version": study.key_version, "step": "stopped"})
        message = (
            f"{len(walk.broken)} rows ({named}) do not hold what was sealed or committed to. They were left as they are, "
            f"and the older versions of the key stay valid. All else lies under version {study.key_version}."
        )
        raise IntegrityBroken(message)
    least = study.key_version

    def retire(tx: Transaction) -> None:
        studies.retire_key_versions(tx, study.study_id, least)

    _enter(deployment, study, {"rotation": "study key", "version": least, "step": "retired"}, retire)
    deployment.ring.retire_study_keys(study_code, least)
    return Rotated(least, walk.done)


def _begun(deployment: Deployment, study_code: StudyCode) -> StudyHead:
    """Return the study with the new version of its key: made now, or by a run that was cut off."""
    study = _again(partial(_find, deployment, study_code))
    if study.min_key_version < study.key_version:
        return study
    version = study.key_version + 1
    wrapped = deployment.ring.new_study_key(study_code, version, deployment.entropy.draw("study key", 32))

    def begin(tx: Transaction) -> None:
        if not studies.begin_key_version(tx, study.study_id, version, wrapped):
            raise AlreadyThere

    # Another run may have been first; both go on with its version, because each leaves to the other what it holds.
    with suppress(AlreadyThere):
        _enter(deployment, study, {"rotation": "study key", "version": version, "step": "begun"}, begin)
    return _again(partial(_find, deployment, study_code))


def _find(deployment: Deployment, study_code: StudyCode) -> StudyHead:
    with deployment.database.transaction() as tx:
        study = studies.find_study(tx, study_code)
        if study is None:
            raise Missing(f"There is no study {study_code}.")
        for version, wrapped in studies.list_study_keys(tx, study.study_id):
            deployment.ring.add_study_key(study_code, version, wrapped)
    return study


@dataclass(slots=True)
class _Walk:
    """One run over the rows of a study."""

    deployment: Deployment
    study: StudyHead
    tell: Tell
    batch: int
    done: int = 0
    total: int = 0
    broken: set[tuple[str, tuple[Any, ...]]] = field(default_factory=set)

    def reseal_all(self) -> None:
        """Return when no row lies under an older version but the broken ones; raise ``DatabaseUnavailable`` when some stay held."""
        self.total = _again(self._left)
        for _ in range(_ATTEMPTS):
            self.tell(self.done, self.total)
            self.broken.clear()
            for table in resealing.TABLES:
                self._reseal(table)
            if _again(self._left) == len(self.broken):
                return
            # Somebody held them just now.
            time.sleep(_PAUSE)
        raise DatabaseUnavailable("Some rows stay locked by somebody else. Run the command again.")

    def _left(self) -> int:
        with self.deployment.database.transaction() as tx:
            return sum(resealing.count_older(tx, self.study.study_id, self.study.key_version).values())

    def _reseal(self, table: str) -> None:
        place: tuple[Any, ...] | None = None
        while True:
            page = _again(partial(self._reseal_page, table, place))
            if not page:
                return
            place = page[-1].place
            self.tell(self.done, self.total)

    def _reseal_page(self, table: str, after: tuple[Any, ...] | None) -> list[OlderRow]:
        study = self.study
        with self.deployment.database.transaction() as tx:
            page = resealing.lock_older(tx, table, study.study_id, study.key_version, after, self.batch)
            renewed = []
            broken = []
            for row in page:
                try:
                    renewed.append((row, self._resealed(tx, table, row)))
                except (IntegrityBroken, ArithmeticError, LookupError, TypeError, ValueError):
                    # Also what opens and is nothing that we wrote.
                    broken.append(row)
            if renewed:
                resealing.record_resealed(tx, table, study.study_id, study.key_version, renewed)
        self.done += len(renewed)
        self.broken |= {(table, row.place) for row in broken}
        return page

    def _resealed(self, tx: Transaction, table: str, row: OlderRow) -> list[str]:
        """Return the new boxes of a row; raise unless they open to what the old ones held, and to what was committed to."""
        ring = self.deployment.ring
        contexts = list(_contexts(self.study, table, row))
        renewed = [ring.reseal(context, Sealed(token)) for context, token in zip(contexts, row.tokens, strict=True)]
        check = self._check_of(table)
        if check is not None:
            check(tx, row, [ring.open(context, box) for context, box in zip(contexts, renewed, strict=True)])
        return [box.token for box in renewed]

    # -- what was committed to

    def _check_of(self, table: str) -> Check | None:
        checks: dict[str, Check] = {
            "schedule": self._check_schedule,
            "slot": self._check_slot,
            "kit": self._check_kit,
            "trail_restricted": self._check_restricted,
        }
        return checks.get(table)

    def _check_schedule(self, tx: Transaction, row: OlderRow, opened: list[bytes]) -> None:
        specification, secrets, _ = opened
        kept = commitments.get_list_commitment(tx, self.study.study_id, row.named["schedule_id"])
        leaves = [salted_leaf(secrets[-_SALT:], specification), *(stratum.root for stratum in kept.strata)]
        if tree_root(leaves).hex() != row.named["commitment"]:
            raise IntegrityBroken

    def _check_slot(self, tx: Transaction, row: OlderRow, opened: list[bytes]) -> None:
        named, study, deployment = row.named, self.study, self.deployment
        contents = SlotContents.from_bytes(opened[0])
        if named["commitment_note"] is None:
            # Nothing was signed of a list that nobody has approved.
            return
        place = SlotPlace(
            study.study_code,
            deployment.mode,
            str(named["list_id"]),
            named["segment_number"],
            named["stratum_code"],
            named["position"],
        )
        leaf = contents.leaf(place)
        deployment.commitments.prove_slot(tx, study, named["schedule_id"], named["stratum_id"], named["position"], leaf)

    def _check_kit(self, tx: Transaction, row: OlderRow, opened: list[bytes]) -> None:
        named, study, deployment = row.named, self.study, self.deployment
        contents = KitContents.from_bytes(opened[0])
        leaf = contents.leaf(study.study_code, deployment.mode, named["consignment_code"], named["kit_code"])
        deployment.commitments.prove_kit(tx, study, named["consignment_id"], named["map_index"], leaf)

    def _check_restricted(self, _tx: Transaction, row: OlderRow, opened: list[bytes]) -> None:
        salt, part = opened[0][:_SALT], opened[0][_SALT:]
        if not hmac.compare_digest(restricted_hash(salt, part).hex(), str(json.loads(row.named["body"])["restricted"])):
            raise IntegrityBroken


_COLUMNS: Final[dict[str, tuple[Column, ...]]] = {
    "schedule": (Column.SPECIFICATION, Column.SEED, Column.QUALITY),
    "slot": (Column.SLOT,),
    "kit": (Column.KIT,),
    "allocation": (Column.ALLOCATION_BINDING,),
    "kit_assignment": (Column.KIT_BINDING,),
    "safety_unblinding": (Column.SAFETY_SUBJECT,),
    "dual_control_request": (Column.REQUEST_TEXT,),
    "trail_restricted": (Column.RESTRICTED,),
}


def _contexts(study: StudyHead, table: str, row: OlderRow) -> Iterator[SealContext]:
    """Give where each sealed column of a row belongs, in the words of the use case that sealed it."""
    place = _place(table, row)
    return (SealContext(column, study.study_code, place) for column in _COLUMNS[table])


def _place(table: str, row: OlderRow) -> Place:
    named = row.named
    if table == "slot":
        return slot_place(*row.place)
    if table == "kit":
        return kit_place(named["consignment_id"], named["kit_id"], named["kit_code"])
    if table == "allocation":
        return (
            str(named["allocation_id"]),
            named["subject_key"],
            str(named["schedule_id"]),
            str(named["stratum_id"]),
            named["position"],
            named["randomization_number"],
            str(named["kit_id"]),
        )
    if table == "kit_assignment":
        return str(named["assignment_id"]), named["subject_key"], str(named["kit_id"]), named["kit_code"]
    if table == "trail_restricted":
        return row.place
    return (str(row.place[0]),)


# -- inside ------------------------------------------------------------------------------------------------------------


def _refuse_suspected(deployment: Deployment) -> None:
    """Raise ``RollbackSuspected`` while any log does not continue what is known of it: nothing is sealed anew on sand."""
    if deployment.checkpoints.suspicions:
        raise RollbackSuspected("The database may have been rolled back: no key is touched until a recovery statement.")


def _enter(
    deployment: Deployment,
    study: StudyHead | None,
    after: dict[str, Any],
    work: Callable[[Transaction], None] | None = None,
    action: str = _ROTATE,
) -> None:
    """Do what is done in one transaction with its entry, and return once the checkpoint is in the sink: keys are privileged."""
    state: LogState = _again(lambda: enter_by_service(deployment, action, study=study, after=after, work=work))
    deployment.checkpoints.publish(state, deployment.clock())


def _again(work: Callable[[], T]) -> T:
    """Return what work returns, run again while others are in the way; raise ``DatabaseUnavailable`` when they stay."""
    for _ in range(_ATTEMPTS):
        try:
            return work()
        except TryAgain:
            time.sleep(_PAUSE)
        except CommitUncertain:
            break
    raise DatabaseUnavailable("The database did not answer clearly. Run the command again: it goes on where it was.")
