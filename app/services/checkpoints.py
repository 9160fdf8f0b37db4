"""Checkpoints of the logs: signed, written to the file sink, and compared with the database (`custody.md`, "The trail")."""

import base64
import hmac
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from threading import Event, Lock
from typing import Any, Final

from app.domain.encoding import encode
from app.domain.merkle import Frontier, check_inclusion, inclusion_nodes, inclusion_proof, leaf_hash
from app.domain.notes import Checkpoint, NoteMalformed, parse_checkpoint, parse_verification_key, split_note
from app.errors import AuditUnavailable, IntegrityBroken, RollbackSuspected, TrailForked
from app.sealing.notes import verify_note
from app.sealing.ring import KeyRing
from app.sealing.signing import SigningKeys
from app.storage import trail
from app.storage.database import Database, Transaction
from app.storage.sink import FileSink, SunkCheckpoint
from app.storage.trail import Entry, Head, Lookup

INTERVAL: Final = timedelta(seconds=60)
"""How often every grown log gets a checkpoint, and how long acts go on while none can be written."""

SMALLER: Final = "smaller"
"""The log is shorter than somebody outside the database saw it: an older state was put back."""
FORKED: Final = "forked"
"""The log has another history than somebody outside the database saw."""
ALTERED: Final = "altered"
"""The end of the log does not carry the service's own seal: somebody else wrote it."""


@dataclass(frozen=True, slots=True)
class LogState:
    """A log after a committed entry."""

    origin: str
    frontier: Frontier


@dataclass(frozen=True, slots=True)
class Suspicion:
    """A log that does not continue what its highest checkpoint outside the database says."""

    origin: str
    held_size: int
    kind: str
    """``smaller``, ``forked`` or ``altered``."""


def _size_in(held: Mapping[str, SunkCheckpoint], origin: str) -> int:
    return held[origin].size if origin in held else -1


def log_name(origin: str) -> str:
    """Return the name that all segments of a log share."""
    return origin.partition("~")[0]


def segment_number(origin: str) -> int:
    """Return which segment of its log an origin names: 1, and then what stands behind the tilde."""
    return int(origin.partition("~")[2] or 1)


def origin_of(name: str, segment: int) -> str:
    """Return the origin line of a segment of a log: the log's name, from the second one on with the number behind a tilde."""
    return name if segment == 1 else f"{name}~{segment}"


def head_mac(ring: KeyRing, origin: str, frontier: Frontier, last_at: datetime) -> bytes:
    """Return the service's own seal of the end of a log (`custody.md`, "The trail")."""
    return ring.mac("log-head", _sealed_head(origin, frontier, last_at))


def check_head(ring: KeyRing, origin: str, frontier: Frontier, last_at: datetime, mac: bytes) -> None:
    """Return when the end of a log carries the service's own seal; raise ``TrailForked`` when somebody else wrote it."""
    try:
        ring.check_mac("log-head", _sealed_head(origin, frontier, last_at), mac)
    except IntegrityBroken:
        raise TrailForked from None


def lookup_mac(ring: KeyRing, origin: str, index: int, leaf: bytes, lookup: Lookup) -> bytes:
    """Return the service's own seal of the columns by which an entry is found, bound to the entry and its place."""
    return ring.mac("trail-lookup", _sealed_lookup(origin, index, leaf, lookup))


def check_lookup(ring: KeyRing, origin: str, entry: Entry) -> None:
    """Return when an entry is found by what it was stored under; raise ``IntegrityBroken`` when a column was changed since.

    Whoever changes one could hide an entry from those who look for it, or show it at another site (rule E4).
    """
    message = _sealed_lookup(origin, entry.log_index, entry.leaf_hash, entry.lookup)
    try:
        ring.check_mac("trail-lookup", message, entry.lookup_mac)
    except IntegrityBroken:
        changed = f"Entry {entry.log_index} of the trail is stored under another action, actor, subject, site or time."
        raise IntegrityBroken(changed) from None


def body_of(entry: Entry) -> Mapping[str, Any]:
    """Return what an entry says; raise ``IntegrityBroken`` when its text does not have the hash it was stored under."""
    if not hmac.compare_digest(leaf_hash(entry.body), entry.leaf_hash):
        message = "An entry of the trail does not have the hash under which it was stored."
        raise IntegrityBroken(message)
    body: Mapping[str, Any] = json.loads(entry.body)
    return body


def is_found(ring: KeyRing, origin: str, entry: Entry) -> bool:
    """Return whether an entry is found by what it was stored under."""
    try:
        check_lookup(ring, origin, entry)
    except IntegrityBroken:
        return False
    return True


def is_signed_by(held: SunkCheckpoint, vkeys: Iterable[str]) -> bool:
    """Return whether a line of a sink says what one of the keys signed."""
    try:
        text = verify_note(held.note, vkeys)
    except IntegrityBroken:
        return False
    return text == f"{held.origin}\n{held.size}\n{held.root}\n"


def is_signed_later(held: SunkCheckpoint, name: str, vkeys: Iterable[str]) -> bool:
    """Return whether a line of a sink bears the deployment's name beside the id of a key that is not on record here.

    As far as anybody can tell without that key, it was made later and this database is older than its handover.
    """
    known = {parse_verification_key(vkey).key_id for vkey in vkeys}
    try:
        text, signatures = split_note(held.note)
        said = parse_checkpoint(text)
    except NoteMalformed:
        return False
    signed_later = any(one.name == name and one.key_id not in known for one in signatures)
    return signed_later and (said.origin, said.size, base64.b64encode(said.root).decode()) == (
        held.origin,
        held.size,
        held.root,
    )


def _sealed_lookup(origin: str, index: int, leaf: bytes, lookup: Lookup) -> bytes:
    # What is absent is another thing than what is empty.
    optional = ("-" if word is None else f"={word}" for word in (lookup.subject_key, lookup.site_code))
    return encode(origin, index, leaf, lookup.at.isoformat(), lookup.action, lookup.actor, *optional)


def _sealed_head(origin: str, frontier: Frontier, last_at: datetime) -> bytes:
    return encode(origin, frontier.to_bytes(), last_at.isoformat())


class CheckpointKeeper:
    """Signs and keeps checkpoints, and knows whether the trail can be made durable now."""

    def __init__(self, signing: SigningKeys, sink: FileSink, ring: KeyRing) -> None:
        """Begin with the belief that the sink can be written; the first checkpoint will tell."""
        self._signing = signing
        self._sink = sink
        self._ring = ring
        self._lock = Lock()
        self._failing_since: datetime | None = None
        self._seen: dict[str, LogState] = {}
        self._latest: dict[str, SunkCheckpoint] = {}
        self.published: Final = Event()
        """Set whenever a checkpoint went into the sink: a witness may want it."""
        self.witnessed: Mapping[str, Checkpoint] = {}
        """By origin: the largest checkpoint that the witness has cosigned, as far as this process knows."""
        self.suspicions: Mapping[str, Suspicion] = {}
        """By origin: the logs that are older than, or other than, what is known of them, until a recovery statement."""

    def header(self, state: LogState) -> str:
        """Return ``<size> <root> <signature>`` for a client to keep."""
        root = base64.b64encode(state.frontier.root()).decode()
        note = self.note(state)
        return f"{state.frontier.size} {root} {note.rstrip().rsplit(' ', 1)[1]}"

    def note(self, state: LogState) -> str:
        """Return the signed checkpoint of a committed state."""
        return self.sign(Checkpoint(state.origin, state.frontier.size, state.frontier.root()))

    def sign(self, checkpoint: Checkpoint) -> str:
        """Return the signed note of a checkpoint. Danger: two signed histories of one log are a fork for ever."""
        return self._signing.sign_note(checkpoint.text())

    def held(self) -> dict[str, SunkCheckpoint]:
        """Return, by origin, the highest checkpoint that the sink holds and this deployment signed.

        What somebody else wrote there proves nothing, and hides nothing either.
        """
        held, _ = self._held_and_later()
        return held

    def _held_and_later(self) -> tuple[dict[str, SunkCheckpoint], dict[str, SunkCheckpoint]]:
        """Return what the sink holds that a known key signed, and what stands above it under a key that was made later."""
        highest = self._sink.highest()
        held = {origin: one for origin, one in highest.items() if self._is_ours(one)}
        later: dict[str, SunkCheckpoint] = {}
        foreign = highest.keys() - held.keys()
        if foreign:
            for one in self._sink.checkpoints():
                if one.origin in foreign:
                    of_its_kind = held if self._is_ours(one) else later if self._is_later(one) else {}
                    known = of_its_kind.get(one.origin)
                    if known is None or known.size < one.size:
                        of_its_kind[one.origin] = one
        return held, later

    def highest_segment(self, name: str) -> int:
        """Return the number of the last segment of a log that the sink or the witness knows; 0 when they know none."""
        held, later = self._held_and_later()
        known = {*held, *later, *self.witnessed}
        return max((segment_number(origin) for origin in known if log_name(origin) == name), default=0)

    def publish(self, state: LogState, at: datetime) -> None:
        """Return once the checkpoint of a committed state is in the sink; raise ``AuditUnavailable`` when it is not."""
        checkpoint = SunkCheckpoint(
            state.origin,
            state.frontier.size,
            base64.b64encode(state.frontier.root()).decode(),
            self.note(state),
            at.isoformat(),
        )
        try:
            self._sink.append(checkpoint)
        except AuditUnavailable:
            with self._lock:
                self._failing_since = self._failing_since or at
            raise
        with self._lock:
            self._failing_since = None
            self._latest[state.origin] = checkpoint
        self.published.set()

    @property
    def is_failing(self) -> bool:
        """Whether the last checkpoint could not be written."""
        return self._failing_since is not None

    def has_failed_too_long(self, now: datetime) -> bool:
        """Return whether no checkpoint could be written for an interval, so that ordinary acts must stop too."""
        since = self._failing_since
        return since is not None and now - since >= INTERVAL

    def grown(self, database: Database) -> list[LogState]:
        """Return the logs that have grown since their last checkpoint, as they are on a synchronous standby too (rule C6).

        A log under suspicion is not among them: its checkpoint would become the highest one, and hide what the sink holds
        against it.
        """
        held = self.held()
        with database.transaction() as tx:
            heads = trail.list_heads(tx)
            # A checkpoint of what a failover undoes would make a rollback out of it.
            tx.settle()
        return [
            LogState(head.origin, head.frontier)
            for head in heads
            if head.origin not in self.suspicions
            and head.frontier.size
            and (head.origin not in held or held[head.origin].size < head.frontier.size)
        ]

    def publish_all(self, database: Database, at: datetime) -> None:
        """Write a checkpoint of every log that has grown since its last one; raises ``AuditUnavailable``."""
        for state in self.grown(database):
            self.publish(state, at)
        if self.is_failing:
            # Nothing has grown, so nothing was tried: the last checkpoint once more tells whether the sink works again.
            with self._lock:
                seen = [state for state in self._seen.values() if state.origin not in self.suspicions]
            for state in seen[:1]:
                self.publish(state, at)

    # -- the witness ---------------------------------------------------------------------------------------------------

    def latest(self) -> Mapping[str, SunkCheckpoint]:
        """Return, by origin, the newest checkpoint of the sink, as far as this process wrote it or looked."""
        with self._lock:
            return dict(self._latest)

    def look(self) -> None:
        """Take up what the sink holds of earlier and of other processes."""
        held = self.held()
        with self._lock:
            newer = {one.origin: one for one in self._latest.values() if one.size > _size_in(held, one.origin)}
            self._latest = {**held, **newer}

    def keep_cosigned(self, checkpoint: SunkCheckpoint, note: str) -> None:
        """Write a checkpoint with its cosignature beside the one without; raise ``AuditUnavailable`` when it cannot be."""
        self._sink.append(replace(checkpoint, note=note))

    def learn(self, checkpoint: Checkpoint) -> None:
        """Remember what the witness has cosigned: the log must go on from it, whatever the sink holds."""
        with self._lock:
            known = self.witnessed.get(checkpoint.origin)
            if known is None or known.size < checkpoint.size:
                self.witnessed = {**self.witnessed, checkpoint.origin: checkpoint}

    # -- what does not continue ----------------------------------------------------------------------------------------

    def saw(self, state: LogState) -> None:
        """Remember a state that was committed: from now on a shorter log is a rollback, whatever the sink holds yet."""
        with self._lock:
            known = self._seen.get(state.origin)
            if known is None or known.frontier.size < state.frontier.size:
                self._seen[state.origin] = state

    def check_continues(self, origin: str, frontier: Frontier, last_at: datetime, mac: bytes) -> None:
        """Return when a log may simply go on from this end, or begin to suspect it.

        Raises ``RollbackSuspected`` when it is shorter than this process saw it committed, ``TrailForked`` when it does not
        carry the service's own seal.
        """
        seen = self._seen.get(origin)
        known = seen.frontier.size if seen is not None else 0
        try:
            check_head(self._ring, origin, frontier, last_at, mac)
        except TrailForked:
            self._suspect(Suspicion(origin, max(known, frontier.size), ALTERED))
            raise
        if frontier.size < known:
            self._suspect(Suspicion(origin, known, SMALLER))
            raise RollbackSuspected

    def suspicion_of(self, name: str) -> Suspicion | None:
        """Return why a log must not simply go on; when several of its segments are suspected, the last of them."""
        found = [suspicion for origin, suspicion in self.suspicions.items() if log_name(origin) == name]
        return max(found, key=lambda suspicion: segment_number(suspicion.origin), default=None)

    def compare(self, database: Database) -> None:
        """Compare every log with what is known of it outside the database; sets ``suspicions`` (INT-07).

        Smaller than a checkpoint is a rollback; of another root at that size, a fork; without the service's own seal at its
        end, written by somebody else. What a recovery statement has named is no suspicion any more.
        """
        known = self._known()
        with database.transaction() as tx:
            ends = trail.list_heads(tx)
        found = {suspicion.origin: suspicion for head in ends if (suspicion := self._altered(head)) is not None}
        for origin, states in known.items():
            for size, root in states:
                with database.transaction() as tx:
                    stored = trail.find_root(tx, origin, size)
                if stored != root:
                    earlier = found.get(origin)
                    kind = SMALLER if stored is None else FORKED
                    # An end that is not ours explains whatever else is wrong; a statement names the largest size known.
                    found[origin] = (
                        Suspicion(origin, size, kind)
                        if earlier is None
                        else Suspicion(origin, max(size, earlier.held_size), earlier.kind)
                    )
        if found:
            with database.transaction() as tx:
                recovered = self._recovered(tx)
            found = {
                origin: suspicion
                for origin, suspicion in found.items()
                if suspicion.held_size > recovered.get(origin, -1)
            }
        with self._lock:
            self.suspicions = found

    def _suspect(self, suspicion: Suspicion) -> None:
        with self._lock:
            self.suspicions = {**self.suspicions, suspicion.origin: suspicion}

    def _known(self) -> dict[str, list[tuple[int, bytes]]]:
        """Return, by origin, the sizes and roots that a log must have: of the sinks, and of this process' own memory."""
        known: dict[str, list[tuple[int, bytes]]] = {}
        # A database that was put back to before a rotation of the signing key does not know the key of the newest checkpoints.
        # One that has the entries below such a checkpoint goes on: another worker may have rotated just now.
        for checkpoints in self._held_and_later():
            for held in checkpoints.values():
                known.setdefault(held.origin, []).append((held.size, base64.b64decode(held.root)))
        with self._lock:
            seen = list(self._seen.values())
            cosigned = list(self.witnessed.values())
        for one in cosigned:
            known.setdefault(one.origin, []).append((one.size, one.root))
        for state in seen:
            known.setdefault(state.origin, []).append((state.frontier.size, state.frontier.root()))
        # The largest last: it is the one that a suspicion names.
        return {origin: sorted(states) for origin, states in known.items()}

    def _altered(self, head: Head) -> Suspicion | None:
        try:
            check_head(self._ring, head.origin, head.frontier, head.last_at, head.mac)
        except TrailForked:
            return Suspicion(head.origin, head.frontier.size, ALTERED)
        return None

    def _recovered(self, tx: Transaction) -> dict[str, int]:
        """Return, by origin, the largest size that recovery statements in the service's own log name.

        What is known up to that size is given up; somebody who saw more raises the suspicion anew. Each statement is proved to
        the sealed end of its segment: a row that somebody put into the table is none.
        """
        named: dict[str, int] = {}
        heads = {head.segment: head for head in trail.list_service_segments(tx) if self._altered(head) is None}
        for entry in trail.list_recovery_statements(tx):
            head = heads.get(entry.segment)
            if head is None or entry.log_index >= head.frontier.size:
                continue
            places = inclusion_nodes(entry.log_index, head.frontier.size)
            nodes = trail.find_nodes(tx, head.study_id, head.segment, places)
            try:
                proof = inclusion_proof(entry.log_index, head.frontier.size, nodes)
                check_inclusion(entry.log_index, head.frontier.size, leaf_hash(entry.body), proof, head.frontier.root())
            except IntegrityBroken:
                continue
            body = json.loads(entry.body)
            if body["outcome"] == "done":
                for log in body["after"]["logs"]:
                    named[log["origin"]] = max(log["size"], named.get(log["origin"], -1))
        return named

    def _is_ours(self, held: SunkCheckpoint) -> bool:
        """Whether a line of the sink is what this deployment signed: another's proves nothing about this one."""
        return is_signed_by(held, self._signing.vkeys())

    def _is_later(self, held: SunkCheckpoint) -> bool:
        return is_signed_later(held, self._signing.name, self._signing.vkeys())
