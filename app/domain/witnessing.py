"""What a log sends to a witness, and when the witness may cosign it (C2SP tlog-witness).

A witness remembers the largest checkpoint of each log and cosigns another only when that one continues it. So whoever
holds the log's signing key and its database still cannot show two people two histories, nor an older one, without that
the witness's next refusal, or its own record, tells.
"""

import base64
from dataclasses import dataclass
from typing import Final

from app.domain.merkle import EMPTY_ROOT, HASH_SIZE, check_consistency
from app.domain.notes import Checkpoint, NoteMalformed, parse_checkpoint, parse_size, unbase64

LONGEST_PROOF: Final = 63
"""Lines that a proof of growth may have: more than any tree is high."""


ACCEPTED: Final = "accepted\n"
"""What a witness answers to a handover of a log's key that it did not know before."""


class Stale(Exception):  # named for the situation, like the tree of app.errors
    """The log's step does not begin where the witness stands, which is at ``size``."""

    def __init__(self, size: int) -> None:
        super().__init__(f"the witness stands at {size}")
        self.size = size


@dataclass(frozen=True, slots=True)
class Submission:
    """A log's request: from which size on the proof leads, the proof of growth, and the signed checkpoint."""

    old_size: int
    proof: tuple[bytes, ...]
    note: str

    def text(self) -> str:
        """Return the body of the request."""
        lines = "".join(f"{base64.b64encode(step).decode()}\n" for step in self.proof)
        return f"old {self.old_size}\n{lines}\n{self.note}"


def parse_submission(text: str) -> Submission:
    """Return the request whose ``text()`` this is, nothing of it verified; raises NoteMalformed."""
    head, blank, note = text.partition("\n\n")
    old, *steps = head.split("\n")
    if not blank or not old.startswith("old ") or len(steps) > LONGEST_PROOF:
        raise NoteMalformed("a request is a line with the old size, at most 63 lines of proof, a blank line and a note")
    proof = tuple(unbase64(step) for step in steps)
    if any(len(step) != HASH_SIZE for step in proof):
        raise NoteMalformed("a line of proof holds a hash of 32 bytes")
    return Submission(parse_size(old.removeprefix("old ")), proof, note)


def parse_extended_checkpoint(text: str) -> Checkpoint:
    """Return the checkpoint of a text that may have extension lines, of which a witness says nothing; raises NoteMalformed."""
    lines = text.split("\n")
    extension = lines[3:-1]
    if not all(extension):
        raise NoteMalformed("an extension line is not empty")
    return parse_checkpoint("\n".join([*lines[:3], lines[-1]]))


def check_step(held: Checkpoint | None, submission: Submission, new: Checkpoint) -> None:
    """Return when the new checkpoint continues the one that the witness holds of the log, or the empty log.

    Raises NoteMalformed for a step backwards, ``Stale`` when it does not begin where the witness stands or changes what
    stands there, ``ProofInvalid`` when the proof of growth does not hold.
    """
    old = held if held is not None else Checkpoint(new.origin, 0, EMPTY_ROOT)
    if submission.old_size > new.size:
        raise NoteMalformed("the old size is not larger than that of the checkpoint")
    if submission.old_size != old.size:
        raise Stale(old.size)
    if new.size == old.size and new.root != old.root:
        raise Stale(old.size)
    check_consistency(old.size, new.size, old.root, new.root, submission.proof)
