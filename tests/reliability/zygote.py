"""A process with one thread that has everything loaded: each job runs in a child forked from it, which may die as it likes.

    with Zygote("tests.reliability.fail_points") as zygote:
        zygote.fork("attempt", {...})                       # Finished(exit_code=137, said=None)

Forking from the tests' own process would copy the locks that its other threads hold; starting a new Python for each death would
take a second each time.
"""

import gc
import importlib
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final, NamedTuple, Self

import structlog

Json = Any
"""What a job is told and what it answers: anything that JSON holds."""
Job = Callable[[Mapping[str, Json]], Json]

HANGS_AFTER_SECONDS: Final = 60
"""A guard, never a measurement: a child that is still there then is ended by the kernel."""


class Finished(NamedTuple):
    """How a child ended, and what it said before."""

    exit_code: int
    """Negative for the signal that ended it."""
    said: Json


class Zygote:
    """The process that children are forked from, as those who want the children see it."""

    def __init__(self, module: str) -> None:
        """Name the module whose functions are the jobs."""
        self._module = module

    def fork(self, job: str, told: Mapping[str, Json]) -> Finished:
        """Return how a child that does a job has ended."""
        return self._ask(job, told, is_forked=True)

    def run(self, job: str, told: Mapping[str, Json]) -> Json:
        """Return what a job says that is done in the process itself, so that later children have learnt what it took."""
        return self._ask(job, told, is_forked=False).said

    def _ask(self, job: str, told: Mapping[str, Json], *, is_forked: bool) -> Finished:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"job": job, "told": told, "is_forked": is_forked}).encode() + b"\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, "the zygote has ended; what it said is in the captured output"
        return Finished(*json.loads(line))

    def __enter__(self) -> Self:
        root = Path(__file__).resolve().parents[2]
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__, self._module], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=root
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._process.communicate()


# -- inside ------------------------------------------------------------------------------------------------------------


def _serve(module: str) -> None:
    """Do one job after another until nobody asks any more."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    jobs = vars(importlib.import_module(module))
    answers = os.fdopen(os.dup(1), "wb")
    # What the service prints is for the captured output; only answers go where they are waited for.
    os.dup2(2, 1)
    for line in sys.stdin.buffer:
        asked = json.loads(line)
        job: Job = jobs[asked["job"]]
        finished = _in_child(job, asked["told"]) if asked["is_forked"] else Finished(0, job(asked["told"]))
        answers.write(json.dumps(finished).encode() + b"\n")
        answers.flush()


def _in_child(job: Job, told: Mapping[str, Json]) -> Finished:
    # What is there now is for all children alike: nobody looks through it for garbage, which would copy every page of it.
    gc.freeze()
    # Those of a service that has just ended here need a moment.
    until = time.monotonic() + HANGS_AFTER_SECONDS
    while (threads := len(list(Path("/proc/self/task").iterdir()))) > 1 and time.monotonic() < until:
        time.sleep(0.001)
    assert threads == 1, f"a fork would copy the locks of {threads} threads"
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        exit_code = 1
        try:
            signal.alarm(HANGS_AFTER_SECONDS)
            with os.fdopen(writing, "wb") as answer:
                answer.write(json.dumps(job(told)).encode())
            exit_code = 0
        except BaseException:  # noqa: BLE001  # a child that goes on behind its job would be a second zygote
            sys.excepthook(*sys.exc_info())
        finally:
            sys.stderr.flush()
            # As a killed process goes: nothing is closed, nothing is written that was not written before.
            os._exit(exit_code)
    os.close(writing)
    with os.fdopen(reading, "rb") as answer:
        said = answer.read()
    _, status = os.waitpid(child, 0)
    return Finished(os.waitstatus_to_exitcode(status), json.loads(said) if said else None)


if __name__ == "__main__":
    _serve(sys.argv[1])
