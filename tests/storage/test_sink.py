"""The file sink keeps checkpoints where no restore of the database can reach them, or says that it cannot."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from app.errors import AuditUnavailable
from app.storage.sink import FileSink, SunkCheckpoint

ORIGIN: Final = "snose/d/STUDY"
WRITER: Final = """
import sys
from pathlib import Path
from app.storage.sink import FileSink, SunkCheckpoint
sink = FileSink(Path(sys.argv[1]))
for size in range(int(sys.argv[3])):
    sink.append(SunkCheckpoint(sys.argv[2], size, "root", "note " * 400, "2027-03-01T12:00:00+00:00"))
"""
LIMITED: Final = """
import resource, sys
from pathlib import Path
from app.errors import AuditUnavailable
from app.storage.sink import FileSink, SunkCheckpoint
limit = int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
try:
    FileSink(Path(sys.argv[1])).append(SunkCheckpoint("o", 7, "root", "n" * 200, "at"))
except AuditUnavailable:
    print("refused")
"""


def a_checkpoint(size: int = 1, origin: str = ORIGIN, note: str = "note\n\n— key sig\n") -> SunkCheckpoint:
    return SunkCheckpoint(origin, size, "cm9vdA==", note, "2027-03-01T12:00:00.000000+00:00")


def run_in_another_process(program: str, *arguments: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", program, *arguments],
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


class TestAppend:
    def test_checkpoints_in_the_order_of_writing(self, tmp_path: Path) -> None:
        """What was written is read again, one JSON object a line, for the owner's eyes alone. [AUD-18]"""
        sink = FileSink(tmp_path / "sink")
        written = [a_checkpoint(1), a_checkpoint(3), a_checkpoint(2, origin="snose/d/service")]
        for checkpoint in written:
            sink.append(checkpoint)
        assert list(FileSink(sink.path).checkpoints()) == written
        lines = sink.path.read_text(encoding="utf-8").splitlines()
        assert [json.loads(line)["size"] for line in lines] == [1, 3, 2]
        assert sink.path.stat().st_mode & 0o777 == 0o600

    @pytest.mark.parametrize("kept", [1, 20, -1])
    def test_after_a_torn_line(self, tmp_path: Path, kept: int) -> None:
        """A line that a crash cut off is lost alone, and none after it. [AUD-18, INT-07]"""
        sink = FileSink(tmp_path / "sink")
        sink.append(a_checkpoint(1))
        whole = sink.path.read_bytes()
        sink.path.write_bytes(whole + whole[:kept])
        sink.append(a_checkpoint(2))
        sizes = [checkpoint.size for checkpoint in sink.checkpoints()]
        # Only the line's end was missing in the last case: the checkpoint in it is whole.
        assert sizes == ([1, 1, 2] if kept == -1 else [1, 2])

    def test_writers_in_two_processes(self, tmp_path: Path) -> None:
        """Replicas that share a sink tear none of each other's lines. [AUD-18]"""
        path, each = tmp_path / "sink", 60
        writers = [run_in_another_process(WRITER, str(path), origin, str(each)) for origin in ("a", "b")]
        for writer in writers:
            _, complaint = writer.communicate(timeout=60)
            assert writer.returncode == 0, complaint
        found = list(FileSink(path).checkpoints())
        for origin in ("a", "b"):
            assert [c.size for c in found if c.origin == origin] == list(range(each))
        assert len(path.read_bytes().splitlines()) == 2 * each

    def test_path_that_cannot_be_written(self, tmp_path: Path) -> None:
        """Without a sink there is no quiet success: a missing folder and a folder in the way are refused. [EUB-11]"""
        for path in (tmp_path / "nowhere" / "sink", tmp_path):
            with pytest.raises(AuditUnavailable):
                FileSink(path).append(a_checkpoint())

    @pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no device that is always full")
    def test_full_disk(self) -> None:
        """No space left is no checkpoint. [EUB-11]"""
        with pytest.raises(AuditUnavailable):
            FileSink(Path("/dev/full")).append(a_checkpoint())

    @pytest.mark.parametrize("room", [0, 50])
    def test_disk_that_fills_within_the_line(self, tmp_path: Path, room: int) -> None:
        """A checkpoint that was written in part does not count, and the next one is whole. [EUB-11, INT-07]"""
        sink = FileSink(tmp_path / "sink")
        sink.append(a_checkpoint(1))
        before = sink.path.stat().st_size
        limited = run_in_another_process(LIMITED, str(sink.path), str(before + room))
        said, complaint = limited.communicate(timeout=60)
        assert said == "refused\n", complaint
        assert sink.path.stat().st_size == before + room
        sink.append(a_checkpoint(8))
        assert [checkpoint.size for checkpoint in sink.checkpoints()] == [1, 8]


class TestRead:
    def test_sink_that_was_never_written(self, tmp_path: Path) -> None:
        """Before the first checkpoint there is none, and that is no error. [AUD-18]"""
        assert FileSink(tmp_path / "sink").highest() == {}

    def test_highest_of_each_log(self, tmp_path: Path) -> None:
        """The largest checkpoint of each log is what the database must reach, whatever was written last. [INT-07]"""
        sink = FileSink(tmp_path / "sink")
        for checkpoint in (a_checkpoint(5), a_checkpoint(9), a_checkpoint(7), a_checkpoint(2, origin="other")):
            sink.append(checkpoint)
        assert sink.highest() == {ORIGIN: a_checkpoint(9), "other": a_checkpoint(2, origin="other")}

    def test_lines_that_are_no_checkpoints(self, tmp_path: Path) -> None:
        """What somebody else wrote into the file hides no checkpoint. [AUD-18]"""
        sink = FileSink(tmp_path / "sink")
        with sink.path.open("wb") as file:
            file.write(b"\xff\xfe\n[]\n7\n{}\n\n")
            file.write(b'{"origin":"o","size":Infinity,"root":"r","note":"n","at":"a"}\n')
            file.write(b'{"origin":"o","size":null,"root":"r","note":"n","at":"a"}\n')
            file.write(b"[" * 100_000 + b"\n")
        sink.append(a_checkpoint(4))
        assert [checkpoint.size for checkpoint in sink.checkpoints()] == [4]

    def test_file_that_cannot_be_read(self, tmp_path: Path) -> None:
        """A sink that is there and does not open is not taken for an empty one. [INT-07]"""
        with pytest.raises(AuditUnavailable):
            FileSink(tmp_path).highest()
        if os.geteuid() != 0:
            unreadable = tmp_path / "sink"
            unreadable.touch(mode=0o000)
            with pytest.raises(AuditUnavailable):
                FileSink(unreadable).highest()
