"""The folder of the code-break envelopes, outside the database and meant to be copied further: one file for each kit given.

A file is written beside its place, fsynced, renamed and its name fsynced, so that there is a whole one or none. Its time is that
of the assignment and not of the writing, so that the order of a batch says nothing. One writer at a time: the lock is the
system's own and ends with the process that holds it.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Final

from app.domain.envelopes import FILE_SUFFIX
from app.domain.words import KitCode, StudyCode

_FILE_MODE: Final = 0o600
_FOLDER_MODE: Final = 0o700
_LOCK: Final = ".writing"


class EnvelopeFolder:
    """A folder with one folder for each study."""

    def __init__(self, path: Path) -> None:
        """Name the folder; it must be there, because one that is made on the wrong disk would be no back-up."""
        self.path: Final = path

    @contextmanager
    def alone(self) -> Iterator[bool]:
        """Give whether this is the only writer now; the others leave the work to it. Raises ``OSError``."""
        descriptor = os.open(self.path / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, _FILE_MODE)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
            else:
                yield True
        finally:
            os.close(descriptor)

    def file(self, study_code: StudyCode, kit_code: KitCode) -> Path:
        """Return where the envelope of a kit lies."""
        return self.path / study_code / f"{kit_code}{FILE_SUFFIX}"

    def write(self, study_code: StudyCode, kit_code: KitCode, content: bytes, at: datetime) -> None:
        """Put an envelope in its place, durable under its name; the same one again changes nothing. Raises ``OSError``."""
        place = self.file(study_code, kit_code)
        if not place.parent.is_dir():
            place.parent.mkdir(_FOLDER_MODE)
            _sync_folder(self.path)
        beside = place.with_name(f".{kit_code}.part")
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, _FILE_MODE)
        try:
            # Of a full disk the system may take a part of it.
            if os.write(descriptor, content) != len(content):
                message = "The disk took a part of an envelope only."
                raise OSError(message)
            os.utime(descriptor, (at.timestamp(), at.timestamp()))
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        beside.rename(place)
        _sync_folder(place.parent)

    def kit_codes(self, study_code: StudyCode) -> frozenset[str]:
        """Return the kits whose envelopes lie in the folder of a study; none where it cannot be read, which is as bad."""
        try:
            names = [entry.name for entry in (self.path / study_code).iterdir()]
        except OSError:
            return frozenset()
        return frozenset(name.removesuffix(FILE_SUFFIX) for name in names if name.endswith(FILE_SUFFIX))

    def is_writable(self) -> bool:
        """Return whether envelopes could be put there now."""
        return self.path.is_dir() and os.access(self.path, os.W_OK | os.X_OK)


def _sync_folder(path: Path) -> None:
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
