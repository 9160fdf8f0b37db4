"""The file sink: signed checkpoints outside the database, one JSON object a line, appended under a lock and fsynced (rule D4).

It is what a restored, truncated or forked database cannot take along.
"""

import fcntl
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from app.errors import AuditUnavailable

_MODE: Final = 0o600


@dataclass(frozen=True, slots=True)
class SunkCheckpoint:
    """A checkpoint as the sink holds it."""

    origin: str
    size: int
    root: str
    """Base64."""
    note: str
    at: str


class FileSink:
    """An append-only file of checkpoints; several processes may share it."""

    def __init__(self, path: Path) -> None:
        """Name the file; it is made at the first checkpoint, and its folder must be there."""
        self.path: Final = path
        self._name_is_kept = False

    def append(self, checkpoint: SunkCheckpoint) -> None:
        """Return once the checkpoint is on the disk; raise ``AuditUnavailable`` when it is not.

        A torn line of an earlier failure is closed off first, so that no later line is lost with it.
        """
        line = json.dumps(
            {name: getattr(checkpoint, name) for name in SunkCheckpoint.__dataclass_fields__},
            ensure_ascii=False,
        )
        try:
            descriptor = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, _MODE)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                end = os.fstat(descriptor).st_size
                torn = end > 0 and os.pread(descriptor, 1, end - 1) != b"\n"
                data = (b"\n" if torn else b"") + line.encode() + b"\n"
                if os.write(descriptor, data) != len(data):
                    raise AuditUnavailable
                os.fsync(descriptor)
                self._keep_name()
            finally:
                os.close(descriptor)
        except OSError:
            raise AuditUnavailable from None

    def _keep_name(self) -> None:
        """Make the file's name durable too, once: after a power cut the bytes of a new file are lost without it."""
        if self._name_is_kept:
            return
        folder = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
        self._name_is_kept = True

    def checkpoints(self) -> Iterator[SunkCheckpoint]:
        """Give the checkpoints in the order of writing; torn lines of a crash are passed over.

        Raises ``AuditUnavailable`` when the file is there and cannot be read.
        """
        try:
            with self.path.open("rb") as file:
                for line in file:
                    checkpoint = parse_line(line)
                    if checkpoint is not None:
                        yield checkpoint
        except FileNotFoundError:
            return
        except OSError:
            raise AuditUnavailable from None

    def highest(self) -> dict[str, SunkCheckpoint]:
        """Return the largest checkpoint of each log, by origin; of equal ones the last, which a witness has cosigned."""
        found: dict[str, SunkCheckpoint] = {}
        for checkpoint in self.checkpoints():
            known = found.get(checkpoint.origin)
            if known is None or checkpoint.size >= known.size:
                found[checkpoint.origin] = checkpoint
        return found


def parse_line(line: bytes) -> SunkCheckpoint | None:
    """Return the checkpoint of a line, or None when it is none."""
    try:
        value = json.loads(line)
        return SunkCheckpoint(
            str(value["origin"]), int(value["size"]), str(value["root"]), str(value["note"]), str(value["at"])
        )
    # What somebody else wrote there must not keep the service from reading the rest.
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None
