"""Clients as EDC systems are: each a thread with one kept-alive connection, keys, retries, and a journal that outlives a crash.

The connection is a plain socket, because a library's client would take as much of the machine as the service it measures.
"""

import json
import os
import random
import socket
import threading
import time
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Final, NamedTuple

from tests.reliability.service import OpenStudy

_TIMEOUT_SECONDS: Final = 30.0
_PAUSE_SECONDS: Final = 0.05


class Request(NamedTuple):
    """An allocation that a client asks for."""

    study: str
    subject: str
    token: str
    content: bytes
    key: str | None


class Answer(NamedTuple):
    """What came back."""

    status: int
    is_replayed: bool
    body: bytes
    begun: float
    """On the monotonic clock, as ``seconds`` are."""
    seconds: float


class Connection:
    """One kept-alive connection to the service; opened when it is first used, and again after it was lost."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._socket: socket.socket | None = None
        self._rest = b""

    def post(self, path: str, token: str, content: bytes, key: str | None = None) -> Answer:
        """Return the answer to one POST; raises ``OSError`` when the connection was lost before it came whole."""
        keyed = f"Idempotency-Key: {key}\r\n" if key is not None else ""
        head = f"{keyed}Content-Type: application/json\r\nContent-Length: {len(content)}\r\n"
        return self._ask("POST", path, token, head, content)

    def get(self, path: str, token: str) -> Answer:
        """Return the answer to one GET; raises ``OSError`` like ``post``."""
        return self._ask("GET", path, token, "", b"")

    def _ask(self, method: str, path: str, token: str, more: str, content: bytes) -> Answer:
        if self._socket is None:
            self._socket = socket.create_connection(("127.0.0.1", self._port), _TIMEOUT_SECONDS)
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._rest = b""
        begun = time.monotonic()
        head = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {token}\r\n{more}\r\n"
        try:
            self._socket.sendall(head.encode() + content)
            status, headers, body = self._receive(self._socket)
        except OSError:
            self.close()
            raise
        is_replayed = b"idempotency-replayed: true" in headers
        return Answer(status, is_replayed, body, begun, time.monotonic() - begun)

    def _receive(self, connected: socket.socket) -> tuple[int, bytes, bytes]:
        received = self._rest
        while (end := received.find(b"\r\n\r\n")) < 0:
            received += _more(connected)
        headers = received[:end].lower()
        begin = headers.index(b"content-length:") + len(b"content-length:")
        size = int(headers[begin : headers.find(b"\r\n", begin) if b"\r\n" in headers[begin:] else None])
        whole = end + 4 + size
        while len(received) < whole:
            received += _more(connected)
        self._rest = received[whole:]
        return int(headers[9:12]), headers, received[end + 4 : whole]

    @property
    def local_port(self) -> int:
        """The port at this end of an open connection."""
        assert self._socket is not None, "nothing was asked yet"
        return int(self._socket.getsockname()[1])

    def close(self) -> None:
        """Hang up."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def _more(connected: socket.socket) -> bytes:
    received = connected.recv(65536)
    if not received:
        message = "the service hung up"
        raise ConnectionError(message)
    return received


class Journal:
    """What the clients know, one line for each acknowledged request, on the disk before anything else is asked."""

    def __init__(self, path: Path) -> None:
        path.touch()
        self.path = path
        self.count = 0
        self._lock = threading.Lock()

    def acknowledged(self, request: Request, answer: Answer) -> None:
        """Keep an answer for good."""
        line = {"study": request.study, "subject": request.subject, "body": answer.body.decode()}
        with self._lock, self.path.open("ab") as file:
            file.write(json.dumps(line).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
            self.count += 1

    def lines(self) -> Iterator[dict[str, Any]]:
        """Give what was kept."""
        with self.path.open("rb") as file:
            for line in file:
                yield json.loads(line)


@dataclass
class Outcome:
    """What the clients of a run saw."""

    seconds: float = 0.0
    answers: list[tuple[Request, Answer]] = field(default_factory=list)

    @property
    def rate(self) -> float:
        """Answers in a second."""
        return len(self.answers) / self.seconds

    def percentile(self, percent: float) -> float:
        """Return the latency in seconds that so many percent of the answers stayed under."""
        latencies = sorted(answer.seconds for _, answer in self.answers)
        return latencies[min(len(latencies) - 1, int(len(latencies) * percent / 100))]


def requests_for(study: OpenStudy, subjects: Sequence[str], *, keyed: bool = False) -> list[Request]:
    """Return one request for each subject; the sites take turns. ``keyed``: each with an Idempotency-Key of its own."""
    return [
        Request(
            study.code,
            subject,
            study.token,
            json.dumps(study.body(subject, number)).encode(),
            f"key-{study.code}-{subject}" if keyed else None,
        )
        for number, subject in enumerate(subjects)
    ]


def twice_at_random(requests: Sequence[Request], seed: int) -> list[Request]:
    """Return every request twice: some twins side by side, so that they meet in the service, the others anywhere."""
    chance = random.Random(seed)
    shuffled = list(requests)
    chance.shuffle(shuffled)
    doubled: list[Request] = []
    later: list[Request] = []
    for request in shuffled:
        doubled.append(request)
        (doubled if chance.random() < 0.5 else later).append(request)
    for request in later:
        doubled.insert(chance.randrange(len(doubled) + 1), request)
    return doubled


def run(
    port: int,
    requests: Sequence[Request],
    clients: int,
    *,
    journal: Journal | None = None,
    is_over: Callable[[], bool] = lambda: False,
    expected: Container[int] = (200, 201),
) -> Outcome:
    """Send the requests by so many clients and return what they saw; any status but the expected ones fails.

    With a journal a client that lost its connection, or was told to try later, asks again with the same key until it is
    answered or ``is_over()``; what it has is in the journal first. Without one, a lost connection ends the run.
    """
    waiting: SimpleQueue[Request | None] = SimpleQueue()
    for request in (*requests, *[None] * clients):
        waiting.put(request)
    outcomes = [Outcome() for _ in range(clients)]
    failures: list[Exception] = []

    def work(outcome: Outcome) -> None:
        connection = Connection(port)
        try:
            while (request := waiting.get()) is not None:
                answer = _ask(connection, request, expected, journal is not None, is_over)
                if answer is None:
                    return
                if journal is not None:
                    journal.acknowledged(request, answer)
                outcome.answers.append((request, answer))
        except (OSError, AssertionError) as error:
            failures.append(error)
        finally:
            connection.close()

    threads = [threading.Thread(target=work, args=(outcome,)) for outcome in outcomes]
    begun = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - begun
    if failures:
        raise failures[0]
    return Outcome(seconds, [answer for outcome in outcomes for answer in outcome.answers])


def _ask(
    connection: Connection, request: Request, expected: Container[int], is_patient: bool, is_over: Callable[[], bool]
) -> Answer | None:
    path = f"/v1/studies/{request.study}/allocations"
    while True:
        try:
            answer = connection.post(path, request.token, request.content, request.key)
        except OSError:
            if not is_patient:
                raise
        else:
            if answer.status in expected:
                return answer
            assert is_patient, (answer.status, answer.body)
            assert answer.status == 503 or b'"in_progress"' in answer.body, (answer.status, answer.body)
        if is_over():
            return None
        time.sleep(_PAUSE_SECONDS)
