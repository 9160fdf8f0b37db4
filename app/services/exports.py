"""The whole log of a study as JSON Lines: what leaves for the offline verifier, alone or in a final package.

Each segment begins with a header (origin, size, signed checkpoint, verification keys, handovers) and goes on with one line an
entry: the stored bytes of its public body, and its leaf hash. The form is written down in ``app/domain/evidence.md``.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from app.domain.encoding import canonical_json
from app.domain.notes import Checkpoint, parse_checkpoint, split_note
from app.sealing.ring import KeyRing
from app.services.checkpoints import LogState, check_head, is_found
from app.services.context import Deployment
from app.storage import keys, trail
from app.storage.database import Transaction
from app.storage.studies import StudyHead
from app.storage.trail import Head

PAGE: Final = 500
"""Entries that are read at once: an export holds no reader open and no log in memory."""

_MARK: Final = b',"lookup":"altered"'


@dataclass(frozen=True, slots=True)
class ExportPart:
    """One segment of a log: its header, and how many of its entries follow."""

    study_id: UUID
    segment: int
    origin: str
    size: int
    header: bytes


def export_parts(
    deployment: Deployment, tx: Transaction, study: StudyHead, size: int | None = None
) -> list[ExportPart]:
    """Return the segments of the study's log; ``size`` pins the newest one, which else is taken as it is committed now.

    Danger: a header may leave only after a clean COMMIT of an entry behind everything that it covers (`custody.md`, "The
    trail"). Raises ``TrailForked`` when the end of the log does not carry the service's own seal and no checkpoint of it is
    held elsewhere, ``ProofInvalid`` when hashes are missing.
    """
    handovers = [key.handover for key in keys.list_signing_keys(tx) if key.handover is not None]
    *given_up, newest = trail.list_segments(tx, study.study_id)
    parts = [_given_up(deployment, head, handovers) for head in given_up]
    check_head(deployment.ring, newest.origin, newest.frontier, newest.last_at, newest.mac)
    pinned = newest.frontier.size if size is None else size
    note = deployment.checkpoints.sign(Checkpoint(newest.origin, pinned, trail.get_root(tx, newest, pinned)))
    return [*parts, _part(deployment, newest, pinned, note, handovers)]


def export_page(tx: Transaction, part: ExportPart, begin: int, ring: KeyRing) -> list[bytes]:
    """Return the lines of the entries from index ``begin`` on, ``PAGE`` of them at most.

    An entry whose look-up columns were changed is marked, so that the verifier names it: what it says is still the truth, but it
    was hidden from somebody who looked for it (rule E4).
    """
    return [
        b'{"body":%b,"leaf_hash":"%b"%b}\n'
        % (entry.body, entry.leaf_hash.hex().encode(), b"" if is_found(ring, part.origin, entry) else _MARK)
        for entry in trail.list_lines(tx, part.study_id, part.segment, begin, min(begin + PAGE, part.size))
    ]


def export_lines(deployment: Deployment, tx: Transaction, study: StudyHead, size: int | None = None) -> Iterator[bytes]:
    """Give every line of the study's log, all read in one transaction; size, danger and errors as with ``export_parts``."""
    for part in export_parts(deployment, tx, study, size):
        yield part.header
        for begin in range(0, part.size, PAGE):
            yield from export_page(tx, part, begin, deployment.ring)


def _given_up(deployment: Deployment, head: Head, handovers: list[str]) -> ExportPart:
    """Return a segment that was given up after a suspicion, as it was last vouched for outside the database.

    A fresh signature over what stands there now would make a whole out of what is not: the verifier is to see the difference.
    """
    held = deployment.checkpoints.held().get(head.origin)
    if held is not None:
        return _part(deployment, head, head.frontier.size, held.note, handovers)
    check_head(deployment.ring, head.origin, head.frontier, head.last_at, head.mac)
    note = deployment.checkpoints.note(LogState(head.origin, head.frontier))
    return _part(deployment, head, head.frontier.size, note, handovers)


def _part(deployment: Deployment, head: Head, size: int, note: str, handovers: list[str]) -> ExportPart:
    header = {
        "snose_trail_export": 1,
        "origin": head.origin,
        "size": parse_checkpoint(split_note(note).text).size,
        "checkpoint": note,
        "keys": deployment.signing.vkeys(),
        "handovers": handovers,
    }
    return ExportPart(head.study_id, head.segment, head.origin, size, canonical_json(header) + b"\n")
