"""Files that hold a secret: made for their owner alone, and read only when nobody else can (rule F2)."""

import os
import stat
from pathlib import Path
from typing import Final

from app.errors import KeyUnavailable, UnsafeSetting

_OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO


def read_private_file(path: Path, what: str, longest: int) -> bytes:
    """Return the content of a file, its first ``longest`` bytes; ``what`` is what the operator calls it, such as ``key file``.

    Raises ``KeyUnavailable`` when it cannot be read, ``UnsafeSetting`` for one that others can read, write or run, and for what
    is no regular file.
    """
    try:
        # Without O_NONBLOCK a pipe put in the file's place would hold up the start for ever.
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        message = f"The {what} {path} cannot be read: {error.strerror}."
        raise KeyUnavailable(message) from None
    try:
        # The opened file is asked, not the path: between two looks at a path it can become another file.
        _refuse_unsafe(path, what, os.fstat(handle).st_mode)
        return os.read(handle, longest)
    finally:
        os.close(handle)


def create_private_file(path: Path, what: str, content: bytes) -> None:
    """Write a new file (mode 0600) and make it durable; an existing one is never overwritten.

    Raises ``UnsafeSetting`` then, ``KeyUnavailable`` when it cannot be written.
    """
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        # The name of the file is durable only with its folder.
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except FileExistsError:
        message = f"There is a file at {path} already; {what} is never overwritten."
        raise UnsafeSetting(message) from None
    except OSError as error:
        message = f"The file {path} cannot be written: {error.strerror}."
        raise KeyUnavailable(message) from None


def _refuse_unsafe(path: Path, what: str, mode: int) -> None:
    if not stat.S_ISREG(mode):
        message = f"The {what} {path} is not a regular file."
        raise UnsafeSetting(message)
    if mode & _OTHERS:
        message = (
            f"The {what} {path} is open to others (mode {stat.S_IMODE(mode):04o}); "
            "let only its owner read it (mode 0600)."
        )
        raise UnsafeSetting(message)
