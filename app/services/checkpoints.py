"""Checkpoints of the logs: signed, written to the file sink, and compared with the database (`custody.md`, "The trail")."""

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from threading import Lock
from typing import Final

from app.domain.encoding import encode
from app.domain.merkle import Frontier
from app.domain.notes import Checkpoint
from app.errors import AuditUnavailable, IntegrityBroken, TrailForked
from app.sealing.ring import KeyRing
from app.sealing.signing import SigningKeys, verify_note
from app.storage import trail
from app.storage.database import Database
from app.storage.sink import FileSink, SunkCheckpoint

INTERVAL: Final = timedelta(seconds=60)
"""How often every grown log gets a checkpoint, and how long acts go on while none can be written."""


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
    """``smaller`` or ``forked``."""


def head_mac(ring: KeyRing, origin: str, frontier: Frontier, last_at: datetime) -> bytes:
    """Return the service's own seal of the end of a log (`custody.md`, "The trail")."""
    return ring.mac("log-head", _sealed_head(origin, frontier, last_at))


def check_head(ring: KeyRing, origin: str, frontier: Frontier, last_at: datetime, mac: bytes) -> None:
    """Return when the end of a log carries the service's own seal; raise ``TrailForked`` when somebody else wrote it."""
    try:
        ring.check_mac("log-head", _sealed_head(origin, frontier, last_at), mac)
    except IntegrityBroken:
        raise TrailForked from None


def _sealed_head(origin: str, frontier: Frontier, last_at: datetime) -> bytes:
    return encode(origin, frontier.to_bytes(), last_at.isoformat())


class CheckpointKeeper:
    """Signs and keeps checkpoints, and knows whether the trail can be made durable now."""

    def __init__(self, signing: SigningKeys, sink: FileSink) -> None:
        """Begin with the belief that the sink can be written; the first checkpoint will tell."""
        self._signing = signing
        self._sink = sink
        self._lock = Lock()
        self._failing_since: datetime | None = None
        self.suspicions: Mapping[str, Suspicion] = {}
        """By origin: the logs that are older than, or other than, what the sink holds, until a recovery statement."""

    def header(self, state: LogState) -> str:
        """Return ``<size> <root> <signature>`` for a client to keep."""
        root = base64.b64encode(state.frontier.root()).decode()
        note = self._note(state)
        return f"{state.frontier.size} {root} {note.rstrip().rsplit(' ', 1)[1]}"

    def note(self, state: LogState) -> str:
        """Return the signed checkpoint of a committed state."""
        return self._note(state)

    def held(self, origin: str) -> str | None:
        """Return the newest checkpoint of a log that the sink holds and this deployment signed; None without one."""
        found = self._sink.highest().get(origin)
        return found.note if found is not None and self._is_ours(found) else None

    def publish(self, state: LogState, at: datetime) -> None:
        """Return once the checkpoint of a committed state is in the sink; raise ``AuditUnavailable`` when it is not."""
        checkpoint = SunkCheckpoint(
            state.origin,
            state.frontier.size,
            base64.b64encode(state.frontier.root()).decode(),
            self._note(state),
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

    @property
    def is_failing(self) -> bool:
        """Whether the last checkpoint could not be written."""
        return self._failing_since is not None

    def has_failed_too_long(self, now: datetime) -> bool:
        """Return whether no checkpoint could be written for an interval, so that ordinary acts must stop too."""
        since = self._failing_since
        return since is not None and now - since >= INTERVAL

    def publish_all(self, database: Database, at: datetime) -> None:
        """Write a checkpoint of every log that has grown since its last one; raises ``AuditUnavailable``."""
        held = self._sink.highest()
        with database.transaction() as tx:
            states = [LogState(head.origin, head.frontier) for head in trail.list_heads(tx)]
        for state in states:
            known = held.get(state.origin)
            if state.frontier.size and (known is None or known.size < state.frontier.size):
                self.publish(state, at)
        if self._failing_since is not None and states:
            self.publish(states[0], at)

    def compare(self, database: Database) -> None:
        """Compare every log with its highest checkpoint in the sink; sets ``suspicions`` (INT-07).

        Smaller than a checkpoint is a rollback; of another root at that size, a fork; without the log, both. What a signed
        recovery statement has named is no suspicion any more.
        """
        found: dict[str, Suspicion] = {}
        for origin, held in self._sink.highest().items():
            if not self._is_ours(held):
                continue
            with database.transaction() as tx:
                root = trail.find_root(tx, origin, held.size)
                recovered = trail.has_recovery_statement(tx, origin, held.size)
            if not recovered and (root is None or base64.b64encode(root).decode() != held.root):
                found[origin] = Suspicion(origin, held.size, "smaller" if root is None else "forked")
        self.suspicions = found

    def _is_ours(self, held: SunkCheckpoint) -> bool:
        """Whether a line of the sink is what this deployment signed: another's proves nothing about this one."""
        try:
            text = verify_note(held.note, self._signing.vkeys())
        except IntegrityBroken:
            return False
        return text == f"{held.origin}\n{held.size}\n{held.root}\n"

    def _note(self, state: LogState) -> str:
        return self._signing.sign_note(Checkpoint(state.origin, state.frontier.size, state.frontier.root()).text())
