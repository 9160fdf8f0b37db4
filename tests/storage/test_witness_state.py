"""A witness remembers: on the disk before it answers, whole or as before, and for one process alone. [AUD-18]"""

import json
import resource
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from app.errors import AlreadyExists, AuditUnavailable, UnsafeSetting
from app.storage import witness_state
from app.storage.sink import SunkCheckpoint
from app.storage.witness_state import WitnessState

ONE: Final = SunkCheckpoint("snose/d1/A", 3, "cm9vdA==", "note\n\n\u2014 key sig\n", "2027-03-01T12:00:00+00:00")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder of a new witness."""
    WitnessState.create(tmp_path / "w", "PRIVATE+KEY+...\n")
    return tmp_path / "w"


@pytest.fixture
def state(folder: Path) -> Iterator[WitnessState]:
    """Its memory, taken hold of."""
    opened = WitnessState(folder)
    yield opened
    opened.close()


def larger(size: int, origin: str = ONE.origin) -> SunkCheckpoint:
    return SunkCheckpoint(origin, size, ONE.root, ONE.note, ONE.at)


class TestMemory:
    def test_outlives_the_process(self, folder: Path) -> None:
        """The newest of each log, by whoever opens it next."""
        opened = WitnessState(folder)
        assert opened.find(ONE.origin) is None
        for one in (ONE, larger(9), larger(1, "snose/d2/A"), larger(2, "snose/d1x/A")):
            opened.keep(one)
        opened.close()
        again = WitnessState(folder)
        assert again.find(ONE.origin) == larger(9)
        assert again.list_of("snose/d1") == [larger(9)]
        assert [one.origin for one in again.list_of("")] == ["snose/d1/A", "snose/d1x/A", "snose/d2/A"]
        again.close()

    def test_is_for_the_owner_alone(self, folder: Path, state: WitnessState) -> None:
        """Key and memory have mode 0600, in a folder of 0700."""
        state.keep(ONE)
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}

    def test_that_cannot_be_written(self, folder: Path, state: WitnessState) -> None:
        """What is not on the disk is not remembered: the next request is judged by what is."""
        state.keep(ONE)
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
        try:
            with pytest.raises(AuditUnavailable):
                state.keep(larger(9))
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert state.find(ONE.origin) == ONE
        assert json.loads((folder / "cosigned.jsonl").read_text())["size"] == 3

    def test_half_written(self, folder: Path) -> None:
        """What a crash left beside the memory is not the memory."""
        opened = WitnessState(folder)
        opened.keep(ONE)
        opened.close()
        (folder / "cosigned.jsonl.new").write_text('{"origin": "snose')
        again = WitnessState(folder)
        assert again.find(ONE.origin) == ONE
        again.keep(larger(4))
        assert again.find(ONE.origin) == larger(4)
        again.close()

    @pytest.mark.parametrize("content", [b"junk\n", b'{"origin": "snose\n', b"\n"])
    def test_damaged(self, folder: Path, content: bytes) -> None:
        """A witness that cannot read its memory does not begin with half of it."""
        with (folder / "cosigned.jsonl").open("ab") as file:
            file.write(content)
        with pytest.raises(UnsafeSetting, match="damaged"):
            WitnessState(folder)

    def test_lost(self, folder: Path, tmp_path: Path) -> None:
        """A witness whose memory is lost is retired, not begun anew."""
        (folder / "cosigned.jsonl").unlink()
        for place in (folder, tmp_path / "nowhere"):
            with pytest.raises(UnsafeSetting, match="retire"):
                WitnessState(place)

    def test_of_two_processes(self, folder: Path, state: WitnessState) -> None:
        """Two that share a memory could cosign two histories."""
        program = (
            "import sys; from pathlib import Path; from app.storage.witness_state import WitnessState; "
            "WitnessState(Path(sys.argv[1]))"
        )
        other = subprocess.run(
            [sys.executable, "-c", program, str(folder)],
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
            check=False,
        )
        assert "Another process is the witness" in other.stderr

    def test_is_made_once(self, folder: Path) -> None:
        """A key and a memory are never overwritten."""
        with pytest.raises(AlreadyExists):
            WitnessState.create(folder, "another\n")
        assert WitnessState.key_file(folder).read_text() == "PRIVATE+KEY+...\n"


class TestRefused:
    def test_are_kept(self, folder: Path, state: WitnessState) -> None:
        """What a log signed and the witness refused may prove a fork."""
        state.keep_refused(ONE)
        state.keep_refused(larger(4))
        assert len((folder / "refused.jsonl").read_text().splitlines()) == 2

    def test_up_to_a_measure(self, folder: Path, state: WitnessState, monkeypatch: pytest.MonkeyPatch) -> None:
        """A thief of a log's key does not fill the disk."""
        monkeypatch.setattr(witness_state, "_MOST_REFUSED", 100)
        for size in range(5):
            state.keep_refused(larger(size))
        assert len((folder / "refused.jsonl").read_text().splitlines()) == 1
        assert (folder / "refused.jsonl").stat().st_size > 100
