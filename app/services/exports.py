"""The whole log of a study as JSON Lines: what leaves for the offline verifier, alone or in a final package.

Each segment begins with a header (origin, size, signed checkpoint, verification keys, handovers) and goes on with one line an
entry: the stored bytes of its public body, and its leaf hash. The form is written down in ``app/domain/evidence.md``.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from app.domain.encoding import canonical_json
from app.domain.notes import parse_checkpoint, split_note
from app.services.checkpoints import LogState, check_head
from app.services.context import Deployment
from app.storage import keys, trail
from app.storage.database import Transaction
from app.storage.studies import StudyHead
from app.storage.trail import Head

PAGE: Final = 500
"""Entries that are read at once: an export holds no reader open and no log in memory."""


@dataclass(frozen=True, slots=True)
class ExportPart:
    """One segment of a log at the size that its checkpoint covers."""

    study_id: UUID
    segment: int
    size: int
    """How many entries stand in the database: more or fewer than the checkpoint says only after tampering."""
    header: bytes


def export_parts(deployment: Deployment, tx: Transaction, study: StudyHead) -> list[ExportPart]:
    """Return the segments of the study's log, pinned at the size committed now.

    Danger: the headers may leave only after a clean COMMIT of the transaction (`custody.md`, "The trail"). Raises
    ``TrailForked`` when the end of the log does not carry the service's own seal and no checkpoint of it is held elsewhere.
    """
    handovers = [key.handover for key in keys.list_signing_keys(tx) if key.handover is not None]
    segments = trail.list_segments(tx, study.study_id)
    return [_part(deployment, head, handovers, is_newest=head.segment == segments[-1].segment) for head in segments]


def export_page(tx: Transaction, part: ExportPart, begin: int) -> list[bytes]:
    """Return the lines of the entries from index ``begin`` on, ``PAGE`` of them at most."""
    return [
        b'{"body":%b,"leaf_hash":"%b"}\n' % (entry.body, entry.leaf_hash.hex().encode())
        for entry in trail.list_lines(tx, part.study_id, part.segment, begin, min(begin + PAGE, part.size))
    ]


def export_lines(deployment: Deployment, tx: Transaction, study: StudyHead) -> Iterator[bytes]:
    """Give every line of the study's log at the size committed now, within one transaction.

    Danger and errors are those of ``export_parts``.
    """
    for part in export_parts(deployment, tx, study):
        yield part.header
        for begin in range(0, part.size, PAGE):
            yield from export_page(tx, part, begin)


def _part(deployment: Deployment, head: Head, handovers: list[str], *, is_newest: bool) -> ExportPart:
    note = _checkpoint(deployment, head, is_newest=is_newest)
    header = {
        "snose_trail_export": 1,
        "origin": head.origin,
        "size": parse_checkpoint(split_note(note).text).size,
        "checkpoint": note,
        "keys": deployment.signing.vkeys(),
        "handovers": handovers,
    }
    return ExportPart(head.study_id, head.segment, head.frontier.size, canonical_json(header) + b"\n")


def _checkpoint(deployment: Deployment, head: Head, *, is_newest: bool) -> str:
    """Return the note that an export of this segment is held against."""
    # A segment that was given up after a suspected rollback or fork is shown as it was last vouched for outside the database:
    # a fresh signature over what stands there now would make a whole out of what is not.
    held = None if is_newest else deployment.checkpoints.held(head.origin)
    if held is not None:
        return held
    check_head(deployment.ring, head.origin, head.frontier, head.last_at, head.mac)
    return deployment.checkpoints.note(LogState(head.origin, head.frontier))
