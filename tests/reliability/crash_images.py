"""What a power cut leaves of SQLite's files: all that was synced, and of the rest whatever the disk happened to have written.

    operations = recorded(folder, told)                 # a real service allocates under strace, which tells every write and sync
    for image in images(operations, base, 2000, Random(7)):
        image.put(folder)                               # database and journal as a disk might hold them after the cut
        image.acknowledged                              # the subjects whose answers had left before it

A write that was not followed by a sync of its file may be there, or not, or by sectors; a name that was made or removed may be so
only after a sync of the folder. That is less than any file system promises, and all that SQLite asks for.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Final, NamedTuple

from tests.reliability import fail_points
from tests.reliability.zygote import Json

SECTOR: Final = 512
BESIDE: Final = ("-journal", "-wal")
"""What SQLite keeps beside its database; a write-ahead log only where the production's settings were not used."""
_LINE: Final = re.compile(r"\d+ +(\w+)\((.*)\) += (-?\d+)")
_WRITE: Final = re.compile(r'\d+<([^>]*)>, "((?:\\x[0-9a-f]{2})*)", \d+(?:, (\d+))?')
_ON: Final = re.compile(r'\d+<([^>]*)>(?:, (\d+))?|"([^"]*)"')


class Operation(NamedTuple):
    """One thing that the process did: write, truncate, sync, unlink, or have an answer leave."""

    kind: str
    file: str
    """How the name goes on behind that of the database; ``/`` is the folder."""
    offset: int = 0
    data: bytes = b""


def why_not() -> str | None:
    """Return why a process cannot be looked at here; None where it can."""
    if shutil.which("strace") is None:
        return "strace is not installed; it tells the calls of a running process, and makes them fail"
    if os.geteuid() != 0:
        return "only root may attach strace to a process that keeps its memory from others"
    return None


# -- recording -----------------------------------------------------------------------------------------------------------


def recorded(folder: Path, told: Mapping[str, Json]) -> list[Operation]:
    """Return what a service did with its database, and when its answers left, while it was asked as told."""
    database, answered, out = Path(told["database"]), folder / "answered", folder / "strace"
    answered.touch()
    asked = folder / "told.json"
    asked.write_text(json.dumps({**told, "answered": str(answered)}), encoding="utf-8")
    files = [database, *(Path(f"{database}{end}") for end in BESIDE), database.parent, answered]
    subprocess.run(
        ["strace", "-f", "-q", "-y", "-xx", "-s", "70000", "--seccomp-bpf", "-o", str(out)]
        + [part for file in files for part in ("-P", str(file))]
        + ["-e", "trace=pwrite64,write,ftruncate,fdatasync,fsync,unlink", sys.executable, "-m", __name__, str(asked)],
        check=True,
        cwd=Path(__file__).resolve().parents[2],
    )
    return list(_read(out, database, answered))


def _read(out: Path, database: Path, answered: Path) -> Iterator[Operation]:
    names = {str(database): "", str(database.parent): "/"} | {f"{database}{end}": end for end in BESIDE}
    with out.open(encoding="ascii") as file:
        for line in file:
            assert "unfinished" not in line, "two threads at once, which one client does not cause"
            if (match := _LINE.match(line)) is None or match[3] == "-1":
                continue
            call, arguments = match[1], match[2]
            if call in {"write", "pwrite64"}:
                written = _WRITE.fullmatch(arguments)
                assert written is not None, line[:200]
                path, data = _text(written[1]), _bytes(written[2])
                assert len(data) == int(match[3])
                if path == str(answered):
                    yield Operation("answer", "", data=data)
                elif path in names:
                    yield Operation("write", names[path], int(written[3] or 0), data)
                continue
            on = _ON.match(arguments)
            assert on is not None, line[:200]
            path = _text(on[1] or on[3])
            if path in names:
                kind = {"ftruncate": "truncate", "unlink": "unlink"}.get(call, "sync")
                yield Operation(kind, names[path], int(on[2] or 0))


def _bytes(escaped: str) -> bytes:
    return bytes.fromhex(escaped.replace("\\x", ""))


def _text(escaped: str) -> str:
    return _bytes(escaped).decode() if escaped.startswith("\\x") else escaped


def ask(told: Mapping[str, Json]) -> None:
    """Ask a service for one act after the other, and write down each answer when it has left; this is what is recorded."""
    descriptor = os.open(told["answered"], os.O_WRONLY | os.O_APPEND)
    with fail_points._opened({**told, "build": "sound", "is_left": True}) as house:
        # The pool has one connection as long as one request is asked at a time.
        with closing(house.deployment.database.engine.raw_connection()) as connection:
            for pragma in told["pragmas"]:
                connection.cursor().execute(f"PRAGMA {pragma}")
        for subject, request in told["requests"].items():
            answer = fail_points._ask(house, request)
            assert answer["status"] == 201, answer
            os.write(descriptor, subject.encode())


# -- cutting the power ---------------------------------------------------------------------------------------------------


@dataclass
class _File:
    """A file as the disk holds it for sure, and what was written to it since its last sync."""

    content: bytearray = field(default_factory=bytearray)
    pending: list[Operation] = field(default_factory=list)

    def sync(self) -> None:
        for operation in self.pending:
            _apply(self.content, operation)
        self.pending.clear()

    def left(self, chance: Random) -> bytes:
        """Return what a cut leaves."""
        content = bytearray(self.content)
        # Nothing of it, all of it, or each sector as it comes.
        share = chance.choice((0.0, 0.3, 0.7, 1.0))
        for operation in self.pending:
            if operation.kind == "truncate":
                if chance.random() < share:
                    _apply(content, operation)
                continue
            for at in range(0, len(operation.data), SECTOR):
                if chance.random() < share:
                    part = operation.data[at : at + SECTOR]
                    _apply(content, operation._replace(offset=operation.offset + at, data=part))
        return bytes(content)


def _apply(content: bytearray, operation: Operation) -> None:
    if operation.kind == "truncate":
        del content[operation.offset :]
        return
    end = operation.offset + len(operation.data)
    if len(content) < end:
        content.extend(bytes(end - len(content)))
    content[operation.offset : end] = operation.data


@dataclass
class _Disk:
    """The files of a database by name, as the processes see them and as the folder on the disk has them."""

    names: dict[str, _File]
    kept_names: dict[str, _File]
    pending: list[tuple[str, _File | None]] = field(default_factory=list)
    """Names that were made, or removed (None), since the folder was synced."""

    def do(self, operation: Operation) -> None:
        if operation.kind == "unlink":
            self.names.pop(operation.file, None)
            self.pending.append((operation.file, None))
        elif operation.kind == "sync" and operation.file == "/":
            for name, file in self.pending:
                self._name(self.kept_names, name, file)
            self.pending.clear()
        elif operation.kind == "sync":
            if operation.file in self.names:
                self.names[operation.file].sync()
        else:
            if operation.file not in self.names:
                self.names[operation.file] = _File()
                self.pending.append((operation.file, self.names[operation.file]))
            self.names[operation.file].pending.append(operation)

    @staticmethod
    def _name(names: dict[str, _File], name: str, file: _File | None) -> None:
        if file is None:
            names.pop(name, None)
        else:
            names[name] = file

    def left(self, chance: Random) -> dict[str, bytes]:
        """Return the files that a cut leaves."""
        names = dict(self.kept_names)
        # A folder's changes reach the disk in their order.
        for name, file in self.pending[: chance.randint(0, len(self.pending))]:
            self._name(names, name, file)
        return {name: file.left(chance) for name, file in names.items()}


@dataclass(frozen=True)
class Image:
    """What is left after a cut."""

    at: int
    """How many operations were done before."""
    files: Mapping[str, bytes]
    acknowledged: frozenset[str]

    def put(self, database: Path) -> None:
        """Lay the files where a process will find them."""
        for end in ("", *BESIDE, "-shm"):
            path = Path(f"{database}{end}")
            path.unlink(missing_ok=True)
            if end in self.files:
                path.write_bytes(self.files[end])


def images(operations: Sequence[Operation], base: bytes, many: int, chance: Random) -> Iterator[Image]:
    """Give so many images, of cuts spread over all operations."""
    file = _File(bytearray(base))
    disk = _Disk({"": file}, {"": file})
    acknowledged: set[str] = set()
    given = 0
    for at, operation in enumerate(operations, start=1):
        if operation.kind == "answer":
            acknowledged.add(operation.data.decode())
        else:
            disk.do(operation)
        while given * len(operations) < at * many:
            given += 1
            yield Image(at, disk.left(chance), frozenset(acknowledged))


if __name__ == "__main__":
    ask(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
