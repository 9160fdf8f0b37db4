"""What a witness remembers, in a folder of its own: what it cosigned last of each log, the handovers of keys, what it refused.

A witness that forgets would cosign a second history. So its memory is on the disk before any cosignature leaves, it is
never begun anew by itself, and two processes never share it. Source: C2SP tlog-witness ("MUST persist").
"""

import fcntl
import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Final

from app.errors import AlreadyExists, AuditUnavailable, UnsafeSetting
from app.storage.sink import FileSink, SunkCheckpoint, parse_line

_MODE: Final = 0o600
_STATE: Final = "cosigned.jsonl"
_REFUSED: Final = "refused.jsonl"
_HANDOVERS: Final = "handovers.jsonl"
_MOST_REFUSED: Final = 4 * 2**20
"""Bytes of refused checkpoints that are kept: the first forks tell everything, and a thief must not fill the disk."""


class WitnessState:
    """The memory of one witness, held by one process until ``close``."""

    def __init__(self, folder: Path) -> None:
        """Take hold of the memory in a folder.

        Raises ``UnsafeSetting`` when there is none, when it cannot be read as it was written, and when another process has it.
        """
        self._folder = folder
        self._refused = FileSink(folder / _REFUSED)
        try:
            self._lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, _MODE)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            content = (folder / _STATE).read_bytes()
            handovers = folder / _HANDOVERS
            # None was kept yet, by this witness or by an earlier release of it.
            kept = handovers.read_text(encoding="utf-8") if handovers.exists() else ""
        except BlockingIOError:
            message = f"Another process is the witness of {folder}."
            raise UnsafeSetting(message) from None
        except OSError as error:
            message = (
                f"The memory of the witness in {folder} cannot be read: {error.strerror}. Restore it, or retire this "
                "witness and its key: with an empty memory it could cosign a second history."
            )
            raise UnsafeSetting(message) from None
        self._cosigned = self._parse(content)
        self._handovers = self._parse_handovers(kept)

    @staticmethod
    def create(folder: Path, private_key: str) -> None:
        """Make the folder with the key and an empty memory; raise ``AlreadyExists`` when there is one."""
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name, content in (("key", private_key), (_STATE, "")):
            try:
                descriptor = os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _MODE)
            except FileExistsError:
                message = f"There is a witness in {folder} already."
                raise AlreadyExists(message) from None
            _write(descriptor, content.encode())
        _keep_names(folder)

    @staticmethod
    def key_file(folder: Path) -> Path:
        """Return where the witness of a folder has its key."""
        return folder / "key"

    def close(self) -> None:
        """Let go of the memory."""
        os.close(self._lock)

    def find(self, origin: str) -> SunkCheckpoint | None:
        """Return the newest cosigned checkpoint of a log, or None."""
        return self._cosigned.get(origin)

    def list_of(self, name: str) -> list[SunkCheckpoint]:
        """Return the newest cosigned checkpoint of every log of a name, by origin; of all logs for the empty name."""
        return [one for origin, one in sorted(self._cosigned.items()) if not name or origin.startswith(f"{name}/")]

    def keep(self, checkpoint: SunkCheckpoint) -> None:
        """Return once the checkpoint is on the disk as the newest of its log; raise ``AuditUnavailable`` when it is not."""
        moved = {**self._cosigned, checkpoint.origin: checkpoint}
        self._replace(_STATE, _text(moved))
        self._cosigned = moved

    def handovers(self) -> list[str]:
        """Return the notes by which the keys of logs were handed over, in the order in which they were accepted."""
        return list(self._handovers)

    def keep_handover(self, note: str) -> None:
        """Return once a handover is on the disk behind those before it; raise ``AuditUnavailable`` when it is not."""
        longer = [*self._handovers, note]
        self._replace(_HANDOVERS, b"".join(json.dumps(one, ensure_ascii=False).encode() + b"\n" for one in longer))
        self._handovers = longer

    def keep_refused(self, checkpoint: SunkCheckpoint) -> None:
        """Keep what a log signed and the witness refused, as far as there is room: it may be the proof of a fork."""
        try:
            full = self._refused.path.stat().st_size > _MOST_REFUSED
        except OSError:
            full = False
        if not full:
            self._refused.append(checkpoint)

    def _replace(self, name: str, content: bytes) -> None:
        """Write a whole memory beside the old one and give it its name: a crash leaves one of the two, never a part."""
        written = self._folder / f"{name}.new"
        try:
            _write(os.open(written, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, _MODE), content)
            written.replace(self._folder / name)
            _keep_names(self._folder)
        except OSError:
            raise AuditUnavailable from None

    def _parse(self, content: bytes) -> Mapping[str, SunkCheckpoint]:
        found: dict[str, SunkCheckpoint] = {}
        for line in content.splitlines():
            checkpoint = parse_line(line)
            if checkpoint is None:
                raise UnsafeSetting(self._damaged())
            found[checkpoint.origin] = checkpoint
        return found

    def _parse_handovers(self, content: str) -> list[str]:
        try:
            found = [json.loads(line) for line in content.splitlines()]
        except ValueError:
            raise UnsafeSetting(self._damaged()) from None
        return [str(note) for note in found]

    def _damaged(self) -> str:
        return f"The memory of the witness in {self._folder} is damaged. Restore it, or retire this witness."


def _text(cosigned: Mapping[str, SunkCheckpoint]) -> bytes:
    return b"".join(json.dumps(asdict(one), ensure_ascii=False).encode() + b"\n" for one in cosigned.values())


def _write(descriptor: int, content: bytes) -> None:
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _keep_names(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
