"""Errors of the disk, injected into a running program: the n-th write or sync fails, as the kernel would have it.

service.prefix = strace(Injection("fdatasync", "EIO", 5), [database], out)
service.start()                                     # every fifth sync of a thread fails from now on
count(out)                                          # how many calls have failed so far, by strace's own output
"""

import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

ATTACHED_WITHIN_SECONDS: Final = 20.0


class Injection(NamedTuple):
    """Which call fails, how, and how often: each ``step``-th of a thread."""

    call: str
    error: str
    step: int


def strace(injection: Injection, files: Sequence[Path], out: Path) -> list[str]:
    """Return the words before a command by which its calls on some files fail; no other call is slowed down."""
    return [*_words(injection, files, out), "--seccomp-bpf"]


@contextmanager
def injecting(pid: int, injection: Injection, files: Sequence[Path], out: Path) -> Iterator[None]:
    """Have calls on some files fail in a process that runs, and in those that it starts."""
    tracer = subprocess.Popen([*_words(injection, files, out), "-p", str(pid)], stderr=subprocess.DEVNULL)
    try:
        _wait_until_traced(pid, tracer)
        yield
    finally:
        # At this signal it lets the process go on, untraced.
        tracer.send_signal(signal.SIGINT)
        tracer.wait()


def count(out: Path) -> int:
    """Return how many calls failed by strace's own output."""
    return out.read_bytes().count(b"(INJECTED)") if out.exists() else 0


def _words(injection: Injection, files: Sequence[Path], out: Path) -> list[str]:
    chosen = [part for file in files for part in ("-P", str(file))]
    inject = f"inject={injection.call}:error={injection.error}:when={injection.step}+{injection.step}"
    return ["strace", "-q", "-f", "-y", "-o", str(out), *chosen, "-e", f"trace={injection.call}", "-e", inject]


def _wait_until_traced(pid: int, tracer: "subprocess.Popen[bytes]") -> None:
    until = time.monotonic() + ATTACHED_WITHIN_SECONDS
    while time.monotonic() < until:
        assert tracer.poll() is None, "strace did not attach"
        tasks = Path(f"/proc/{pid}/task").glob("*/status")
        if all("TracerPid:\t0\n" not in task.read_text(encoding="ascii") for task in tasks):
            return
        time.sleep(0.01)
    message = "strace did not attach in time"
    raise AssertionError(message)
