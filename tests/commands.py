"""The `snose` command as an operator runs it, in a process of its own: started anew, or forked from one that has it loaded.

    snose(folder, "init", "--username", "root", SNOSE_MODE="test").returncode

To load a command takes a second, to fork one a tenth of that. ``snose_anew`` is for what starts processes itself, or runs long.
"""

import atexit
import os
import subprocess
import sys
import traceback
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from tempfile import TemporaryFile
from typing import Final

import structlog

import app.cli.backup
import app.cli.demo
import app.cli.keys
import app.cli.migrating
import app.cli.operating
import app.cli.serving
import app.cli.sign_in  # noqa: F401  # loaded for those that are forked, like the others
from app.cli import main
from tests.reliability.zygote import Json, Zygote

ROOT: Final = Path(__file__).parent.parent


def snose_anew(folder: Path, *arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    """Run the command as an operator does, in a folder that holds nothing of ours."""
    return subprocess.run(
        [sys.executable, "-m", "app.cli", *arguments],
        cwd=folder,
        env=_environment(environment),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def snose(folder: Path, *arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    """Run a short command so, without the time to load it."""
    told = {"folder": str(folder), "arguments": arguments, "environment": _environment(environment)}
    finished = _zygote().fork("command", told)
    assert finished.exit_code == 0, f"{arguments} died of {finished.exit_code}"
    returncode, stdout, stderr = finished.said
    return subprocess.CompletedProcess(["snose", *arguments], returncode, stdout, stderr)


def _environment(given: Mapping[str, str]) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("SNOSE_")}
    return {**inherited, "PYTHONPATH": str(ROOT), **given}


@cache
def _zygote() -> Zygote:
    zygote = Zygote(__name__)
    zygote.__enter__()
    atexit.register(zygote.__exit__, None, None, None)
    return zygote


# -- inside the child --------------------------------------------------------------------------------------------------


def command(told: Mapping[str, Json]) -> tuple[int, str, str]:
    """Return the exit status of the command, and what it wrote to its standard output and error."""
    os.chdir(told["folder"])
    os.environ.clear()
    os.environ.update(told["environment"])
    sys.argv = ["snose", *told["arguments"]]
    structlog.reset_defaults()
    with TemporaryFile() as stdout, TemporaryFile() as stderr:
        os.dup2(stdout.fileno(), 1)
        os.dup2(stderr.fileno(), 2)
        status = _status()
        sys.stdout.flush()
        sys.stderr.flush()
        return status, _written(stdout.fileno()), _written(stderr.fileno())


def _status() -> int:
    """Run the command to its end, as Python does: 0, the status it asks for, or 1 and a traceback."""
    try:
        main()
    except SystemExit as asked:
        return asked.code if isinstance(asked.code, int) else int(asked.code is not None)
    except BaseException:  # noqa: BLE001  # whatever it is, Python would say it so
        traceback.print_exc()
        return 1
    return 0


def _written(descriptor: int) -> str:
    return os.pread(descriptor, os.fstat(descriptor).st_size, 0).decode()
