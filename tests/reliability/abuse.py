"""Hostile clients: each does one bad thing again and again until it is told that it is over. Loopback only, bounded in number.

Each has networks of its own: Linux lets a client on loopback be anybody in 127.0.0.0/8.
"""

import json
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Final

CLIENTS: Final = 16
HELD: Final = 300
"""Connections that a slow client holds at a time: more than the service of these tests has for all."""
BURST: Final = 10_000
_PAUSE_SECONDS: Final = 0.1
_TIMEOUT_SECONDS: Final = 10.0
SESSIONS: Final = b"POST /v1/sessions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
IMPORTS: Final = b"POST /v1/studies/S/schedules/imports HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"


@dataclass
class Abuse:
    """What goes on, and how much of it was done so far."""

    port: int
    over: threading.Event = field(default_factory=threading.Event)
    done: int = 0
    answers: dict[bytes, int] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def count(self, answer: bytes = b"") -> None:
        """Count one thing done, and what was answered, if anything was."""
        with self._lock:
            self.done += 1
            if answer:
                self.answers[answer] = self.answers.get(answer, 0) + 1

    def connect(self, network: int = 0) -> socket.socket:
        """Return a connection from an address in some network."""
        source = (f"127.{1 + network % 200}.{network // 200}.1", 0)
        return socket.create_connection(("127.0.0.1", self.port), _TIMEOUT_SECONDS, source)


Attack = Callable[[Abuse, int], None]
"""One hostile client; the number says which."""


@contextmanager
def going_on(port: int, attack: Attack, clients: int = CLIENTS) -> Iterator[Abuse]:
    """Have so many hostile clients at work inside the block; the block begins when they are."""
    abuse = Abuse(port)

    def work(number: int) -> None:
        while not abuse.over.is_set():
            with suppress(OSError):
                attack(abuse, number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    try:
        while abuse.done < clients:
            time.sleep(0.01)
        yield abuse
    finally:
        abuse.over.set()
        for thread in threads:
            thread.join()


def _drip(head: bytes, drop: bytes) -> Attack:
    """Return a client who holds its share of connections and sends a drop on each now and then."""

    def attack(abuse: Abuse, number: int) -> None:
        held: list[socket.socket] = []
        try:
            while not abuse.over.is_set():
                while len(held) < HELD // CLIENTS:
                    held.append(abuse.connect(number))
                    held[-1].sendall(head)
                    abuse.count()
                for connected in list(held):
                    if not _is_heard(connected, drop):
                        connected.close()
                        held.remove(connected)
                abuse.over.wait(_PAUSE_SECONDS)
        finally:
            for connected in held:
                connected.close()

    return attack


def is_hung_up(connected: socket.socket) -> bool:
    """Return whether the other side has ended a connection; what it has said is read and forgotten. Waits for nothing."""
    looking = select.poll()
    looking.register(connected, select.POLLIN)
    try:
        return bool(looking.poll(0)) and connected.recv(65_536) == b""
    except OSError:
        return True


def _is_heard(connected: socket.socket, drop: bytes) -> bool:
    """Send a drop; return whether the other side is still there."""
    with suppress(OSError):
        connected.sendall(drop)
    return not is_hung_up(connected)


def _send(*requests: bytes) -> Attack:
    """Return a client who sends requests in turn, each on a connection that is kept while the service keeps it."""

    def attack(abuse: Abuse, number: int) -> None:
        with abuse.connect(number) as connected:
            turn = number
            while not abuse.over.is_set():
                turn += 1
                connected.sendall(requests[turn % len(requests)])
                abuse.count(status_of(connected))

    return attack


def status_of(connected: socket.socket) -> bytes:
    """Return the status of the next answer, once it has come whole."""
    received = b""
    while b"\r\n\r\n" not in received:
        part = connected.recv(65_536)
        if not part:
            raise ConnectionError
        received += part
    head, _, body = received.partition(b"\r\n\r\n")
    size = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0] or 0)
    while len(body) < size:
        body += connected.recv(65_536)
    return head[9:12]


def _with_body(head: bytes, body: bytes) -> bytes:
    return head + b"Content-Length: %d\r\n\r\n" % len(body) + body


def _endless_chunks(abuse: Abuse, number: int) -> None:
    with abuse.connect(number) as connected:
        connected.sendall(SESSIONS + b"Transfer-Encoding: chunked\r\n\r\n")
        abuse.count()
        while not abuse.over.is_set():
            connected.sendall(b"10000\r\n" + b" " * 65_536 + b"\r\n")


def _unread_answers(abuse: Abuse, number: int) -> None:
    with abuse.connect(number) as connected:
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connected.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n" * 50)
        abuse.count()
        while not abuse.over.wait(_PAUSE_SECONDS):
            connected.sendall(b"\r\n")


def passwords(*names: str) -> Attack:
    """Return a stranger in a network of its own for each try, who goes through names and passwords."""

    def attack(abuse: Abuse, number: int) -> None:
        turn = abuse.done
        name = names[turn % len(names)].format(turn)
        body = json.dumps({"username": name, "password": f"guess number {turn}", "otp": f"{turn % 1_000_000:06}"})
        with abuse.connect(turn % 5000 + number) as connected:
            connected.sendall(_with_body(SESSIONS, body.encode()))
            abuse.count(status_of(connected))

    return attack


def codes(token: str) -> Attack:
    """Return a thief of a session who goes through one-time codes."""

    def attack(abuse: Abuse, number: int) -> None:
        head = SESSIONS.replace(b"/sessions", b"/sessions/step-up") + f"Authorization: Bearer {token}\r\n".encode()
        _send(*(_with_body(head, json.dumps({"otp": f"{code:06}"}).encode()) for code in range(100)))(abuse, number)

    return attack


_DEEP: Final = (
    b"[" * 1_000_000,
    b'{"a":' * 200_000,
    b"[" * 500_000 + b"]" * 500_000,
    b"[" + b"[]," * 300_000 + b"[]]",
    b"1" * 1_000_000,
    b'{"username":"' + b"\\u0041" * 170_000 + b'"}',
)
ATTACKS: Final[Mapping[str, Attack]] = {
    "silence": _drip(b"", b""),
    "heads byte by byte": _drip(b"GET /livez HTTP/1.1\r\nX: ", b"a"),
    "bodies byte by byte": _drip(SESSIONS + b"Content-Length: 1000000\r\n\r\n", b" "),
    "half of a large body": _drip(IMPORTS + b"Content-Length: 16000000\r\n\r\n" + b" " * 600_000, b" "),
    "lengths that are lies": _drip(SESSIONS + b"Content-Length: 100\r\n\r\n{}", b""),
    "chunks without end": _endless_chunks,
    "answers that are not read": _unread_answers,
    "a body that is too large": _send(_with_body(SESSIONS, b" " * 1_048_577)),
    "large bodies of strangers": _send(_with_body(IMPORTS, b'{"list_csv": "' + b"a" * 16_000_000 + b'"}')),
    "deep and wide JSON": _send(*(_with_body(SESSIONS, body) for body in _DEEP)),
    "wrong tokens": _send(
        b"GET /v1/me HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer snose_" + b"A" * 43 + b"\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n",
        _with_body(SESSIONS, b"{}"),
    ),
}
"""What needs to know nothing of anybody."""
