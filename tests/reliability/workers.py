"""Connections that are kept open to every worker of a service, and what each of them is answered while something is changed.

with Callers(service) as callers:
    outcome = callers.ask_during(lambda: probe, change)   # changed while all of them ask, and asked on after
    assert outcome.passed_before == len(callers.connections) and outcome.passed_after == 0
"""

import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Final, NamedTuple, Self

from tests.reliability.load import Connection
from tests.reliability.service import Service

EACH: Final = 4
"""So many connections are kept to each worker at least."""
_MOST: Final = 300
"""Never so many are needed: the workers take from one queue, each when it is free."""
AFTER: Final = 3
"""So often each connection asks on, once the change was answered."""
_GUARD_SECONDS: Final = 120.0


class Probe(NamedTuple):
    """One request, and how it is answered to whoever is let in: by policy alone, and nothing is done."""

    method: str
    path: str
    token: str
    passing: int
    refused: int


class Outcome(NamedTuple):
    """How often whom was let in, before the change was asked for and after it was answered."""

    passed_before: int
    passed_after: int
    refused_after: int
    others: frozenset[int]
    """What else was answered at any time."""


class Callers:
    """Kept connections, of which every worker has its share."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self.connections: list[Connection] = []

    def __enter__(self) -> Self:
        pids = self._service.worker_pids()
        assert len(pids) == self._service.settings().workers, "not every worker is there"
        while len(self.connections) < _MOST:
            made = Connection(self._service.port)
            made.get("/livez", "")
            self.connections.append(made)
            shares = Counter(_worker_of(pids, self._service.port, [one.local_port for one in self.connections]))
            if all(shares[pid] >= EACH for pid in pids):
                return self
        message = f"of {_MOST} connections some worker has less than {EACH}"
        raise AssertionError(message)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for connection in self.connections:
            connection.close()

    def ask_during(self, probe: Callable[[], Probe], change: Callable[[], None]) -> Outcome:
        """Return what all connections are answered, each without a pause, while ``change`` is made.

        It is made once each of them was let in, and all go on until each has asked some more since it was answered.
        """
        seen: list[list[tuple[float, int]]] = [[] for _ in self.connections]
        changed = threading.Event()
        faults: list[BaseException] = []
        answered_at = float("inf")

        def ask(connection: Connection, answers: list[tuple[float, int]]) -> None:
            left = AFTER
            try:
                while left:
                    asked = probe()
                    left -= changed.is_set()
                    begun = time.monotonic()
                    answers.append((begun, _status(connection, asked)))
            except BaseException as error:  # noqa: BLE001  # told by the one who waits
                faults.append(error)

        threads = [threading.Thread(target=ask, args=each) for each in zip(self.connections, seen, strict=True)]
        for thread in threads:
            thread.start()
        until = time.monotonic() + _GUARD_SECONDS
        try:
            while not all(seen) and not faults and time.monotonic() < until:
                time.sleep(0.002)
            change()
            answered_at = time.monotonic()
        finally:
            changed.set()
            for thread in threads:
                thread.join()
        assert faults == []
        passing, refused = (getattr(probe(), name) for name in ("passing", "refused"))
        after = [status for answers in seen for begun, status in answers if begun > answered_at]
        return Outcome(
            passed_before=sum(answers[0][1] == passing for answers in seen),
            passed_after=after.count(passing),
            refused_after=after.count(refused),
            others=frozenset(status for answers in seen for _, status in answers) - {passing, refused},
        )


def _status(connection: Connection, probe: Probe) -> int:
    if probe.method == "GET":
        return connection.get(probe.path, probe.token).status
    return connection.post(probe.path, probe.token, b"{}").status


def _worker_of(pids: Sequence[int], port: int, clients: Sequence[int]) -> list[int]:
    """Return which worker holds the other end of each connection, as the kernel lists them."""
    owners: dict[str, int] = {}
    for pid in pids:
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(OSError):
                if named := re.fullmatch(r"socket:\[(\d+)\]", str(descriptor.readlink())):
                    owners[named[1]] = pid
    found: dict[int, int] = {}
    for line in Path(f"/proc/{pids[0]}/net/tcp").read_text(encoding="ascii").splitlines()[1:]:
        fields = line.split()
        here, there = (int(field.rpartition(":")[2], 16) for field in fields[1:3])
        if here == port and fields[9] in owners:
            found[there] = owners[fields[9]]
    return [found[client] for client in clients if client in found]
