"""Backups of the whole database, and what is found when one is restored (INT-04, INT-05, INT-07; T34).

A backup needs no key and no pause, and holds no key. It enters nothing in the trail: on SQLite only the running service could, and
a backup must be had of a service that is down. A restore enters and signs nothing either, so that it can be rehearsed beside the
real thing; what was lost is declared at the restored service, by people (rule E4; README, "Recovery").
"""

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from app.domain.backups import MEMBERS, LogEnd, Manifest, Member, parse_manifest
from app.domain.entropy import Entropy
from app.domain.merkle import CompletedNode, Frontier, leaf_hash
from app.domain.notes import VerificationKey
from app.domain.words import Action
from app.errors import DatabaseUnavailable, IntegrityBroken, KeyUnavailable, SealBroken, TrailForked, UnsafeSetting
from app.sealing.providers import KeyProvider
from app.sealing.ring import KeyRing
from app.sealing.signing import SigningKeys
from app.services.checkpoints import check_head, is_found, is_signed_by, is_signed_later
from app.services.startup import key_name
from app.storage import backups, keys, migrate, studies, trail, triggers
from app.storage.backups import MANIFEST, State, Tell
from app.storage.database import Database, Transaction, TryAgain
from app.storage.keys import DeploymentRecord
from app.storage.sink import FileSink, SunkCheckpoint
from app.storage.trail import Entry, Head

_PAGE: Final = 500
_NAMED: Final = 20
"""Faults that are named one by one."""


# -- out ---------------------------------------------------------------------------------------------------------------


def back_up(database: Database, out: Path, now: datetime, product: str, tell: Tell) -> tuple[Path, Manifest]:
    """Return the folder of a new backup and its manifest, once both are on the disk; the service goes on meanwhile.

    ``out`` is a name that is not taken, or a folder in which a name is made of the time. Raises ``UnsafeSetting`` for a place that
    is taken, full or cannot be written, for a database without deployment, and where PostgreSQL's programs are missing;
    ``DatabaseUnavailable``; ``IntegrityBroken`` for a SQLite file that is damaged.
    """
    place = out / f"snose-{now:%Y%m%dT%H%M%SZ}" if out.is_dir() else out
    with backups.new_folder(place) as folder:
        try:
            member, state = backups.copy_out(database, folder, tell)
        except TryAgain:
            raise DatabaseUnavailable("Somebody holds the database. Run the command again.") from None
        engine = backups.kind_of(database)
        manifest = Manifest(
            snose_backup=1,
            product=product,
            deployment_id=state.deployment_id,
            mode=state.mode,
            engine=engine,
            engine_version=state.engine_version,
            schema_revision=str(state.revision),
            taken_at=now,
            logs=_ends(state),
            rows=state.rows,
            member=Member(MEMBERS[engine], *backups.digest_of(member)),
        )
        backups.write_file(folder / MANIFEST, manifest.text())
    return place, manifest


def _ends(state: State) -> tuple[LogEnd, ...]:
    return tuple(LogEnd(head.origin, head.frontier.size, _text(head.frontier)) for head in state.heads)


def _text(frontier: Frontier) -> str:
    return base64.b64encode(frontier.root()).decode()


# -- back in -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class LogFound:
    """A log as it came back."""

    origin: str
    size: int
    last_at: datetime | None
    """When its last entry was made; None for a log that is not there at all."""
    held: int | None
    """The largest size that a checkpoint kept elsewhere names; None when there is none."""

    @property
    def lost(self) -> int:
        """How many entries the backup does not hold, as far as the checkpoints tell."""
        return max(0, (self.held or 0) - self.size)


@dataclass(frozen=True, slots=True)
class Restored:
    """What was restored, everything that does not hold, and what comes next."""

    manifest: Manifest
    revision: str
    logs: tuple[LogFound, ...]
    faults: tuple[str, ...]
    next: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Against:
    """What a restored database is held against."""

    sinks: Sequence[Path] = ()
    """Files of checkpoints that were kept elsewhere."""
    provider: KeyProvider | None = None
    """What unwraps the deployment's secret: the key provider, or an escrow."""


def restore(
    url: str, folder: Path, against: Against, entropy: Entropy, tell: Tell, *, to_head: bool = False
) -> Restored:
    """Return what was found in an empty database once a backup was restored into it.

    Before anything is written the hashes are checked, and that this release knows the schema; an older one is migrated where
    ``to_head`` says so. Raises ``UnsafeSetting`` for a database that is not empty or of another engine, and as ``back_up`` does;
    ``Invalid`` and ``IntegrityBroken`` for a damaged backup.
    """
    manifest = parse_manifest(backups.read_file(folder / MANIFEST))
    member = folder / manifest.member.name
    if backups.digest_of(member) != (manifest.member.size, manifest.member.sha256):
        raise IntegrityBroken(
            f"{member} does not have the hash of its manifest: the backup is damaged. Nothing was written."
        )
    _refuse_schema(manifest.schema_revision, to_head=to_head)
    database = Database(url)
    try:
        if backups.kind_of(database) != manifest.engine:
            raise UnsafeSetting(
                f"This is a backup of {manifest.engine}, and the database is another. Nothing was written."
            )
        backups.refuse_what_is_taken(database)
        database.be_the_only_process()
        backups.copy_in(database, member, len(manifest.rows), manifest.engine_version, tell)
        with database.transaction() as tx:
            faults = _against_manifest(tx, manifest)
        if to_head:
            migrate.upgrade(url)
        with database.transaction() as tx:
            found = _Look(tx, against, entropy)
            found.look()
            revision = str(migrate.current(tx))
    finally:
        database.close()
    faults += found.faults
    logs = tuple(found.logs)
    steps = _steps(manifest, logs, against, whole=not faults)
    return Restored(manifest, revision, logs, tuple(faults[:_NAMED]), tuple(steps))


def _refuse_schema(revision: str, *, to_head: bool) -> None:
    if migrate.serves(migrate.head(), revision) or (to_head and revision in migrate.known()):
        return
    if revision in migrate.known():
        raise UnsafeSetting(
            f"The backup is of the older schema {revision}, and this release has {migrate.head()}. Run the command again with "
            "--migrate, or with the release that made the backup. Nothing was written."
        )
    raise UnsafeSetting(
        f"The backup is of a later release: its schema {revision} is not known here. Nothing was written."
    )


def _against_manifest(tx: Transaction, manifest: Manifest) -> list[str]:
    """Return what is other than at the moment of the backup."""
    state = backups.read_state(tx)
    faults = []
    if (state.deployment_id, state.mode, state.revision) != (
        manifest.deployment_id,
        manifest.mode,
        manifest.schema_revision,
    ):
        faults.append("Deployment, mode or schema are not those of the manifest.")
    faults += [
        f"Table {name} has {state.rows.get(name)} rows, and had {manifest.rows.get(name)}."
        for name in sorted(state.rows.keys() | manifest.rows.keys())
        if state.rows.get(name) != manifest.rows.get(name)
    ]
    if _ends(state) != manifest.logs:
        faults.append("The ends of the logs are not those of the manifest.")
    return faults


@dataclass(slots=True)
class _Look:
    """One look at everything in a restored database that can be held against something."""

    tx: Transaction
    against: Against
    entropy: Entropy
    faults: list[str] = field(default_factory=list)
    logs: list[LogFound] = field(default_factory=list)
    given_up: dict[str, int] = field(default_factory=dict)
    """By origin: up to which size an earlier loss was declared."""
    ring: KeyRing | None = None
    name: str = ""
    vkeys: list[str] = field(default_factory=list)

    def look(self) -> None:
        """Find what does not hold, and how far behind the logs are."""
        for name in triggers.list_missing(self.tx):
            self._fault(f"The trigger {name} is gone: what it refuses could be done.")
        for name in backups.list_broken_references(self.tx):
            self._fault(f"Rows of {name} refer to what is not there.")
        record = keys.get_deployment(self.tx)
        self.name = key_name(record)
        self.vkeys = [
            VerificationKey(self.name, base64.b64decode(key.public_key)).text()
            for key in keys.list_signing_keys(self.tx)
        ]
        if self.against.provider is not None:
            self._open_keys(record, self.against.provider)
        held = self._held()
        heads = trail.list_heads(self.tx)
        roots = {head.origin: self._walk(head, held.get(head.origin, {})) for head in heads}
        for head in heads:
            self._compare(head, held.pop(head.origin, {}), roots[head.origin])
        for origin, lines in sorted(held.items()):
            # A log of which the backup knows nothing.
            self._note(LogFound(origin, 0, None, self._newest(lines)))

    def _open_keys(self, record: DeploymentRecord, provider: KeyProvider) -> None:
        try:
            ring = KeyRing(provider, str(record.deployment_id), record.mode, record.wrapped_secret, self.entropy)
        except (KeyUnavailable, UnsafeSetting) as error:
            self._fault(error.message)
            return
        signing = SigningKeys(ring, self.name)
        for key in keys.list_signing_keys(self.tx):
            try:
                signing.add_signing_key(key.version, key.wrapped)
            except SealBroken:
                self._fault(f"Version {key.version} of the signing key does not open.")
        for study in studies.list_studies(self.tx):
            for version, wrapped in studies.list_study_keys(self.tx, study.study_id):
                try:
                    ring.add_study_key(study.study_code, version, wrapped)
                except SealBroken:
                    self._fault(f"Version {version} of the key of study {study.study_code} does not open.")
        self.ring = ring

    def _fault(self, sentence: str) -> None:
        if len(self.faults) < _NAMED:
            self.faults.append(sentence)

    # -- the logs against themselves

    def _walk(self, head: Head, held: Mapping[int, SunkCheckpoint]) -> dict[int, str]:
        """Fold a log anew out of what its entries say, as the offline verifier does; return its roots at the sizes held."""
        frontier = Frontier()
        roots: dict[int, str] = {}
        while page := trail.list_lines(self.tx, head.study_id, head.segment, frontier.size, frontier.size + _PAGE):
            nodes: list[CompletedNode] = []
            for entry in page:
                self._read(head, entry, frontier.size)
                frontier, completed = frontier.append(leaf_hash(entry.body))
                nodes += completed
                if frontier.size in held:
                    roots[frontier.size] = _text(frontier)
            stored = trail.find_nodes(
                self.tx, head.study_id, head.segment, [(node.level, node.index) for node in nodes]
            )
            if any(stored.get((node.level, node.index)) != node.hash for node in nodes):
                self._fault(
                    f"Stored hashes of {head.origin} before entry {frontier.size} are not those of its entries."
                )
        if frontier != head.frontier:
            self._fault(f"The end of {head.origin} is not that of its {frontier.size} entries.")
        if self.ring is not None:
            try:
                check_head(self.ring, head.origin, head.frontier, head.last_at, head.mac)
            except TrailForked:
                self._fault(f"The end of {head.origin} does not carry the service's own seal.")
        return roots

    def _read(self, head: Head, entry: Entry, index: int) -> None:
        """Note what is wrong with one entry, and what an earlier loss it declares."""
        body = _parsed(entry.body)
        if (entry.log_index, body.get("index"), body.get("log")) != (index, index, head.origin):
            self._fault(f"Entry {index} of {head.origin} is missing, or another stands in its place.")
        elif entry.leaf_hash != leaf_hash(entry.body):
            self._fault(f"Entry {index} of {head.origin} does not have the hash under which it was stored.")
        elif self.ring is not None and not is_found(self.ring, head.origin, entry):
            self._fault(f"Entry {index} of {head.origin} is stored under other words than were sealed.")
        elif (head.study_id, entry.lookup.action) == (trail.SERVICE_LOG, Action.DECLARE_RECOVERY):
            for log in _declared(body):
                self.given_up[log["origin"]] = max(log["size"], self.given_up.get(log["origin"], -1))

    # -- the logs against what was kept elsewhere

    def _held(self) -> dict[str, dict[int, SunkCheckpoint]]:
        """Return, by origin and size, what the sinks hold of this deployment; signatures are looked at where it matters."""
        found: dict[str, dict[int, SunkCheckpoint]] = {}
        for path in self.against.sinks:
            for one in FileSink(path).checkpoints():
                if one.origin.startswith(f"{self.name}/"):
                    found.setdefault(one.origin, {})[one.size] = one
        return found

    def _newest(self, held: Mapping[int, SunkCheckpoint]) -> int | None:
        """Return the largest size that is signed by this deployment, also by a key that was made after the backup."""
        return next((size for size in sorted(held, reverse=True) if self._is_ours(held[size])), None)

    def _is_ours(self, held: SunkCheckpoint) -> bool:
        return is_signed_by(held, self.vkeys) or is_signed_later(held, self.name, self.vkeys)

    def _compare(self, head: Head, held: Mapping[int, SunkCheckpoint], roots: Mapping[int, str]) -> None:
        """Hold a log against the newest checkpoint that it reaches, and note how far the newest of all is ahead."""
        size = head.frontier.size
        reached = (one for one in sorted(held, reverse=True) if one <= size and is_signed_by(held[one], self.vkeys))
        within = next(reached, -1)
        if within > self.given_up.get(head.origin, -1) and held[within].root != roots.get(within):
            self._fault(f"{head.origin} has another history than its checkpoint of size {within}: it was forked.")
        self._note(LogFound(head.origin, size, head.last_at, self._newest(held)))

    def _note(self, found: LogFound) -> None:
        """Keep what was found of a log; what was declared lost before is not lost anew."""
        declared = (found.held or 0) <= self.given_up.get(found.origin, -1)
        self.logs.append(replace(found, held=None) if declared else found)


def _parsed(body: bytes) -> Mapping[str, Any]:
    """Return what an entry says; nothing for what is no entry, which is then named as one in the wrong place."""
    try:
        said = json.loads(body)
    except ValueError:
        return {}
    return said if isinstance(said, dict) else {}


def _declared(body: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the logs that a recovery statement has given up; none for a statement that was refused."""
    return list(body["after"]["logs"]) if body["outcome"] == "done" else []


# -- what comes next ---------------------------------------------------------------------------------------------------


def _steps(manifest: Manifest, logs: Sequence[LogFound], against: Against, *, whole: bool) -> list[str]:
    """Return what is to be done now, in order, in plain words."""
    if not whole:
        return [
            "Do not serve from this database. Keep it and the backup, find out what happened, and try an older backup."
        ]
    steps = []
    if manifest.engine == "postgresql":
        steps.append("A backup holds no grants. As the owner run: snose migrate --app-role ROLE")
    if against.provider is None:
        steps.append(
            "Give the service its key file or its way to Vault; when that is lost: snose keys restore --escrow FILE "
            "--recipient-key FILE"
        )
    steps += [
        *_of_the_loss(logs, against),
        "Run snose doctor, then snose serve with the old SNOSE_CHECKPOINT_FILE, never a new one.",
    ]
    if _behind(logs):
        steps.append(
            "Ask the EDC system and the sites what was answered since the backup; then a service administrator declares it "
            'to the running service (README, "Recovery"). Only that opens randomization again.'
        )
    return steps


def _of_the_loss(logs: Sequence[LogFound], against: Against) -> list[str]:
    if not against.sinks:
        unknown = (
            "No checkpoint file was held against it. The service does so at its start: where entries are missing, "
        )
        return [f"{unknown}it randomizes nobody."]
    behind = _behind(logs)
    if not behind:
        return ["The checkpoint file knows of nothing that is missing here."]
    return [
        "Entries are missing here that the checkpoint file knows of: "
        + ", ".join(f"{log.lost} of {log.origin}, since {_moment(log.last_at)}" for log in behind)
        + ". What was allocated, given or opened then is not in this database: the service will randomize nobody, and break codes."
    ]


def _behind(logs: Sequence[LogFound]) -> list[LogFound]:
    return [log for log in logs if log.lost]


def _moment(at: datetime | None) -> str:
    return "its beginning" if at is None else f"{at:%Y-%m-%d %H:%M:%S} UTC"
