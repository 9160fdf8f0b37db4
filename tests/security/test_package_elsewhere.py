"""The final package of the demo, verified in another place by one file and one library. [Done 9, AUD-18]"""

import importlib.util
import os
import random
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parents[2]
PACKAGE: Final = "snose-demo-final-package.zip"
CHANGES: Final = 6
"""Bytes that are changed in each file of the package, one at a time."""
# Without the environment's libraries, and with a folder that holds `cryptography` and what it is made of.
ALONE: Final = "import runpy, sys; sys.path.append(sys.argv[1]); del sys.argv[:2]; runpy.run_path(sys.argv[0], run_name='__main__')"


def place_elsewhere(folder: Path) -> Path:
    """Return a folder with the verifier and the only library that it needs."""
    libraries = folder / "libraries"
    libraries.mkdir(parents=True)
    for name in ("cryptography", "cffi", "_cffi_backend"):
        found = importlib.util.find_spec(name)
        if found is not None and found.origin is not None:
            origin = Path(found.origin)
            origin = origin.parent if origin.name == "__init__.py" else origin
            (libraries / origin.name).symlink_to(origin)
    (folder / "verifier.py").write_bytes((ROOT / "app" / "verifier.py").read_bytes())
    return folder


def verify(folder: Path, package: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [
            sys.executable,
            *("-I", "-S", "-c", ALONE),
            *(str(folder / "libraries"), str(folder / "verifier.py"), "package", str(package)),
        ],
        cwd=folder,
        env={},
        capture_output=True,
        text=True,
        check=False,
    )


def with_changed_byte(package: Path, member: str, chance: random.Random, to: Path) -> Path:
    """Write the package with one byte of one of its files changed."""
    with zipfile.ZipFile(package) as archive, zipfile.ZipFile(to, "w") as made:
        for name in archive.namelist():
            content = bytearray(archive.read(name))
            if name == member:
                content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
            made.writestr(name, bytes(content))
    return to


@pytest.mark.long
@pytest.mark.timeout(0)
def test_one_changed_byte_anywhere(tmp_path: Path) -> None:
    """All confirmed as it is; after a change of one byte in any of its files it says what, and in which file."""
    demo = tmp_path / "demo"
    demo.mkdir()
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("SNOSE_")}
    subprocess.run(
        [sys.executable, "-m", "app.cli", "demo", "--exit", "--subjects", "24", "--data", str(demo)],
        cwd=tmp_path,
        env={**inherited, "PYTHONPATH": str(ROOT)},
        check=True,
        capture_output=True,
    )
    elsewhere = place_elsewhere(tmp_path / "elsewhere")
    package = elsewhere / PACKAGE
    package.write_bytes((demo / PACKAGE).read_bytes())

    whole = verify(elsewhere, package)

    assert whole.returncode == 0, whole.stdout + whole.stderr
    assert whole.stdout.endswith("VERIFIED\n")
    for fact in ("allocations: 24", "vouched for up to size"):
        assert fact in whole.stdout
    with zipfile.ZipFile(package) as archive:
        members = archive.namelist()
    assert {"trail.jsonl", "schedules.json", "kits.json", "allocations.json", "list.csv", "keys.json"} < set(members)
    chance = random.Random(11)
    for member in members:
        for _ in range(CHANGES):
            changed = with_changed_byte(package, member, chance, elsewhere / "changed.zip")
            told = verify(elsewhere, changed)
            assert told.returncode == 1, (member, told.stdout, told.stderr)
            assert re.search(r"^first difference \[\w+\]: .+", told.stdout, re.MULTILINE), member
            stem = member.partition(".")[0]
            assert stem in told.stdout, (member, told.stdout)
