"""The second sink: checkpoints sent to a witness, its cosignatures kept, and what it has seen held against the database.

Nobody waits for the witness. What the file sink holds is sent by a thread of its own, after each privileged act and every
interval; a witness that refuses or is absent is told by the service's output, entered, and after a while told by /readyz, and
withholds nothing (rule D4). Source: C2SP tlog-witness and tlog-cosignature.
"""

import base64
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime, timedelta
from threading import Event, Lock, Thread
from typing import Final

from app.domain.merkle import check_consistency, consistency_nodes, consistency_proof
from app.domain.notes import (
    Checkpoint,
    NoteMalformed,
    NoteSignature,
    join_note,
    parse_checkpoint,
    parse_size,
    split_note,
)
from app.domain.witnessing import ACCEPTED, Submission
from app.errors import IntegrityBroken
from app.sealing.cosigning import verify_cosignature
from app.services.checkpoints import INTERVAL, CheckpointKeeper, log_name
from app.storage import keys, trail
from app.storage.database import Database
from app.storage.sink import SunkCheckpoint
from app.storage.trail import Head
from app.storage.witness_client import Answer, WitnessClient, WitnessSilent

PATIENCE: Final = 5 * INTERVAL
"""How long a witness may be absent or refuse before /readyz tells it."""
AT_START: Final = timedelta(seconds=10)
"""How long a start waits for what the witness has seen; it goes on without."""

SILENT: Final = "silent"
"""The witness cannot be reached, or gives no answer that is one."""
REFUSED: Final = "refused"
"""The witness does not cosign: it knows no key of ours, or another history."""
FALSE: Final = "false"
"""The witness answers with a cosignature that is not its own."""

_OK: Final = 200
_CONFLICT: Final = 409
_KEY_UNKNOWN: Final = 403
_STEPS: Final = 3
"""Requests for one checkpoint: with what we believe, with what the witness said, and once more beside another worker."""


class _Trouble(Exception):
    """The witness does not cosign; it stays in this module."""

    def __init__(self, kind: str) -> None:
        super().__init__(kind)
        self.kind = kind


class WitnessKeeper:
    """Keeps one deployment's logs before one witness."""

    def __init__(  # each part of a deployment that it stands between
        self,
        client: WitnessClient,
        vkey: str,
        name: str,
        checkpoints: CheckpointKeeper,
        database: Database,
        clock: Callable[[], datetime],
    ) -> None:
        """Begin with the belief that the witness answers; ``name`` is that of the deployment's signing keys."""
        self._client = client
        self._vkey = vkey
        self._name = name
        self._checkpoints = checkpoints
        self._database = database
        self._clock = clock
        self._asked_at: datetime | None = None
        self._missed_since: datetime | None = None
        self.trouble: str | None = None
        """``silent``, ``refused`` or ``false`` since the last time that all was cosigned."""
        self.told: str | None = None
        """What of it is entered."""
        self.turn: Final = Lock()
        """One round at a time."""

    @property
    def witness(self) -> str:
        """The name of the witness."""
        return self._vkey.partition("+")[0]

    def has_missed_too_long(self, now: datetime) -> bool:
        """Return whether nothing was cosigned for so long that /readyz should tell."""
        return self._missed_since is not None and now - self._missed_since >= PATIENCE

    def ask_at_start(self) -> None:
        """Learn what the witness has seen before anything is done; a witness that does not answer in time is asked again later."""
        asking = Thread(target=self._ask_alone, name="witness at start", daemon=True)
        asking.start()
        asking.join(AT_START.total_seconds())

    def round(self) -> None:
        """Ask what the witness has seen, once an interval, and send it every checkpoint of the sink that it has not cosigned.

        Raises what database and file sink raise; what the witness does wrong is told by ``trouble``.
        """
        try:
            if self._asked_at is None or self._clock() - self._asked_at >= INTERVAL:
                self._ask()
                self._checkpoints.look()
                self._checkpoints.compare(self._database)
            for checkpoint, head in self._outstanding():
                self._send(checkpoint, head)
        except WitnessSilent:
            self._note(SILENT)
        except _Trouble as trouble:
            self._note(trouble.kind)
        else:
            self.trouble = self._missed_since = None

    def _note(self, trouble: str) -> None:
        self.trouble = trouble
        self._missed_since = self._missed_since or self._clock()

    def _ask_alone(self) -> None:
        # What goes wrong here goes wrong in the first round too, which tells it.
        with suppress(WitnessSilent, _Trouble):
            self._ask()

    def _ask(self) -> None:
        """Learn the newest checkpoints that the witness has cosigned of this deployment's logs.

        Its cosignature is enough: a key that signed after the back-up that was restored is unknown here, and not to the witness.
        """
        for one in self._client.checkpoints(self._name):
            try:
                text = split_note(one.note).text
                checkpoint = parse_checkpoint(text)
            except NoteMalformed:
                raise _Trouble(FALSE) from None
            self._cosignature(one.note.removeprefix(f"{text}\n"), text)
            if checkpoint.origin.startswith(f"{self._name}/"):
                self._checkpoints.learn(checkpoint)
        self._asked_at = self._clock()

    def _cosignature(self, lines: str, text: str) -> NoteSignature:
        try:
            line, _ = verify_cosignature(lines, self._vkey, text)
        except IntegrityBroken:
            raise _Trouble(FALSE) from None
        return line

    def _outstanding(self) -> list[tuple[SunkCheckpoint, Head]]:
        """Return what the sink holds and the witness has not cosigned, with the end of its log.

        Of each log only the newest segment counts, and none that is suspected: an earlier one was given up.
        """
        keeper = self._checkpoints
        latest, seen = keeper.latest(), keeper.witnessed
        with self._database.transaction() as tx:
            heads = trail.list_heads(tx)
        newest = {log_name(head.origin): head for head in sorted(heads, key=lambda head: head.segment)}
        return [
            (latest[head.origin], head)
            for head in newest.values()
            if head.origin in latest
            and head.origin not in keeper.suspicions
            and (head.origin not in seen or seen[head.origin].size < latest[head.origin].size)
        ]

    def _send(self, checkpoint: SunkCheckpoint, head: Head) -> None:
        """Have one checkpoint cosigned, and keep the cosignature beside it in the sink."""
        new = Checkpoint(checkpoint.origin, checkpoint.size, base64.b64decode(checkpoint.root))
        seen = self._checkpoints.witnessed.get(new.origin)
        old = seen.size if seen is not None else 0
        for _ in range(_STEPS):
            submission = Submission(old, self._proof(head, old, new), checkpoint.note)
            answer = self._client.add_checkpoint(submission.text())
            if answer.status == _OK:
                text, signatures = split_note(checkpoint.note)
                note = join_note(text, [*signatures, self._cosignature(answer.text, text)])
                # First the sink: what could not be kept is asked for again.
                self._checkpoints.keep_cosigned(checkpoint, note)
                self._checkpoints.learn(new)
                return
            if answer.status == _KEY_UNKNOWN and self._hand_over():
                continue
            stands_at = _size_of(answer)
            if stands_at is None or not old < stands_at <= new.size:
                break
            old = stands_at
        # It may have seen more of the log, from another worker or before a restore, or another history: then it can show it.
        self._ask()
        self._checkpoints.compare(self._database)
        seen = self._checkpoints.witnessed.get(new.origin)
        if seen is None or seen.size < new.size or new.origin in self._checkpoints.suspicions:
            raise _Trouble(REFUSED)

    def _hand_over(self) -> bool:
        """Tell the witness which key follows which; return whether it learnt of one that it did not know."""
        with self._database.transaction() as tx:
            handovers = [key.handover for key in keys.list_signing_keys(tx) if key.handover is not None]
        answers = [self._client.add_handover(note) for note in handovers]
        return any(answer == Answer(_OK, ACCEPTED) for answer in answers)

    def _proof(self, head: Head, old: int, new: Checkpoint) -> tuple[bytes, ...]:
        """Return the proof of growth, checked before it leaves; raise ``ProofInvalid`` when the stored hashes give none."""
        with self._database.transaction() as tx:
            nodes = trail.find_nodes(tx, head.study_id, head.segment, consistency_nodes(old, new.size))
            old_root = trail.get_root(tx, head, old)
        proof = consistency_proof(old, new.size, nodes)
        check_consistency(old, new.size, old_root, new.root, proof)
        return proof


def _size_of(answer: Answer) -> int | None:
    """Return where the witness says to stand, when that is why it refused."""
    if answer.status != _CONFLICT:
        return None
    try:
        return parse_size(answer.text.removesuffix("\n"))
    except NoteMalformed:
        return None


def wait_for_work(keeper: CheckpointKeeper, stopped: Event) -> bool:
    """Return once there is a checkpoint to be sent or an interval is over: True, or False when the service stops."""
    keeper.published.wait(INTERVAL.total_seconds())
    keeper.published.clear()
    return not stopped.is_set()
