"""Hostile traffic: while it goes on the service answers, allocates and signs people in; afterwards it is whole.

No time is measured: what is asked is whether answers came *while* the abuse went on, and who was hung up on first. The guards are
looked at one by one beside the same server without them; the long form throws everything at a real service.
"""

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from threading import BoundedSemaphore
from typing import Any, Final, Literal

import anyio.to_thread
import pytest
import uvicorn
from argon2 import PasswordHasher
from starlette.types import Receive, Scope, Send

from app.api import doors
from app.api.connections import MOST_BESIDE_BODY, Patience
from app.cli.trial import Person, sleep_until_next_step
from app.identity.codes import code_of_step, step_at
from app.identity.passwords import PLACES
from tests.harness import STUDY, House
from tests.reliability import load
from tests.reliability.abuse import (
    ATTACKS,
    BURST,
    CLIENTS,
    Abuse,
    Attack,
    codes,
    going_on,
    is_hung_up,
    passwords,
    status_of,
)
from tests.reliability.load import Journal
from tests.reliability.records import check_records
from tests.reliability.service import SITES, OpenStudy, Service, Sponsor
from tests.reliability.test_kill import check_journal

PATIENCE: Final = 8.0
"""Seconds after which something that should have happened is called a failure; never a measure of anything."""
SHORT: Final = 0.2
ENDLESS: Final = 1_048_576


def until(happened: Callable[[], bool], patience: float = PATIENCE) -> None:
    """Wait for something; fail when it does not come."""
    begun = time.monotonic()
    while not happened():
        assert time.monotonic() - begun < patience, "it never happened"
        time.sleep(0.005)


# -- one guard at a time, beside the same server without it -----------------------------------------------------------


class Server:
    """uvicorn as the service runs it, in a thread, before an application that reads, answers late or answers much."""

    def __init__(self, protocol: Any, **more: Any) -> None:  # noqa: ANN401  # as uvicorn takes them
        self.may_answer = threading.Event()
        config = uvicorn.Config(
            self._answer,
            host="127.0.0.1",
            port=0,
            interface="asgi3",
            loop="uvloop",
            http=protocol,
            ws="none",
            lifespan="off",
            log_level="critical",
            timeout_graceful_shutdown=1,
            **more,
        )
        self._server = uvicorn.Server(config)
        self._socket = config.bind_socket()
        self.port: int = self._socket.getsockname()[1]
        self._thread = threading.Thread(target=self._server.run, args=([self._socket],))
        self._thread.start()
        until(lambda: self._server.started)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/late":
            await anyio.to_thread.run_sync(self.may_answer.wait)
        elif scope["path"] != "/early":
            while (message := await receive()).get("more_body"):
                pass
            if message["type"] == "http.disconnect":
                return
        body = bytes(32 * ENDLESS if scope["path"] == "/much" else 2)
        headers = [(b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    @property
    def held(self) -> int:
        """How many connections it holds."""
        return len(self._server.server_state.connections)

    def connect(self, sent: bytes = b"") -> socket.socket:
        """Return a new connection that has sent something."""
        opened = socket.create_connection(("127.0.0.1", self.port), PATIENCE)
        opened.sendall(sent)
        return opened

    def stop(self) -> None:
        """End it."""
        self.may_answer.set()
        self._server.should_exit = True
        self._server.force_exit = True
        self._thread.join()
        self._socket.close()


@contextmanager
def serving(protocol: Any, **more: Any) -> Iterator[Server]:  # noqa: ANN401  # as uvicorn takes them
    """Give a server."""
    server = Server(protocol, **more)
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="module")
def without_guard() -> Iterator[Server]:
    """What uvicorn does by itself."""
    with serving("httptools") as server:
        yield server


POST: Final = b"POST / HTTP/1.1\r\nHost: x\r\n"
SLOW: Final = {
    "nothing at all": (b"", b""),
    "a head byte by byte": (b"GET / HTTP/1.1\r\nX: ", b"a"),
    "a body byte by byte": (POST + b"Content-Length: 100000\r\n\r\n", b"a"),
    "chunks byte by byte": (POST + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\na\r\n"),
    "a body whose length is a lie": (POST + b"Content-Length: 100\r\n\r\n{}", b""),
    "a body without end after the answer": (
        b"POST /early HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"1\r\na\r\n",
    ),
    "an answer that is not taken": (b"GET /much HTTP/1.1\r\nHost: x\r\n\r\n", b""),
}


@pytest.fixture(scope="module")
def impatient() -> Iterator[Server]:
    """A server whose patience is short."""
    with serving(Patience(SHORT, 512).connection()) as server:
        yield server


@pytest.mark.parametrize("case", SLOW)
def test_a_slow_client_is_hung_up_on(impatient: Server, without_guard: Server, case: str) -> None:
    """However it is slow; uvicorn by itself would wait for ever (T21)."""
    begin, drop = SLOW[case]
    with impatient.connect() as guarded, without_guard.connect() as unguarded:
        for slow in (guarded, unguarded):
            # What is not taken shall not fit into the buffers of the machine.
            slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            slow.sendall(begin)
        until(lambda: without_guard.held == 1)

        def is_over() -> bool:
            for slow in (guarded, unguarded):
                with suppress(ConnectionError):
                    slow.sendall(drop)
            return not impatient.held

        until(is_over)
        assert without_guard.held == 1
    until(lambda: without_guard.held == 0)


def test_whoever_is_served_is_waited_for(impatient: Server) -> None:
    """The service takes its own time for an answer, and that is not the client's fault (T21)."""
    impatient.may_answer.clear()
    with impatient.connect(b"GET /late HTTP/1.1\r\nHost: x\r\n\r\n") as waiting, impatient.connect() as silent:
        until(lambda: impatient.held == 2)
        until(lambda: is_hung_up(silent))
        impatient.may_answer.set()
        assert status_of(waiting) == b"200"


GROWING: Final = {
    "a path": (b"GET /", b"a" * 65_536),
    "a header": (b"GET / HTTP/1.1\r\nX: ", b"a" * 65_536),
    "headers": (b"GET / HTTP/1.1\r\n", b"X: a\r\n" * 10_000),
    "a trailer": (POST + b"Transfer-Encoding: chunked\r\n\r\n0\r\nX: ", b"a" * 65_536),
    "trailers": (POST + b"Transfer-Encoding: chunked\r\n\r\n0\r\n", b"X: a\r\n" * 10_000),
    "what is said of a chunk": (POST + b"Transfer-Encoding: chunked\r\n\r\n1;", b"a" * 65_536),
}


@pytest.fixture(scope="module")
def patient() -> Iterator[Server]:
    """A server that has all the time."""
    with serving(Patience(600, 512).connection()) as server:
        yield server


@pytest.mark.parametrize("case", GROWING)
def test_what_grows_without_end_beside_a_body_is_cut(patient: Server, without_guard: Server, case: str) -> None:
    """A worker keeps no more than its limit of it; uvicorn by itself keeps it all (T21)."""
    begin, more = GROWING[case]

    def taken_by(server: Server) -> int:
        """Return how much it took before it hung up, or all there was."""
        with server.connect(begin) as connected, server.connect() as other:
            for count in range(0, ENDLESS, len(more)):
                if is_hung_up(connected):
                    return count
                with suppress(ConnectionError):
                    connected.sendall(more)
                # An answer to somebody else shows that what was sent has been looked at.
                other.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
                assert status_of(other) == b"200"
        return ENDLESS

    assert taken_by(patient) <= 4 * MOST_BESIDE_BODY
    assert taken_by(without_guard) == ENDLESS


def test_what_is_large_and_honest_passes(patient: Server) -> None:
    """A whole list, in one piece or in small chunks, and many requests one after the other over one connection."""
    body = b"a" * 16_777_216
    chunks = b"".join(b"%x\r\n%b\r\n" % (4096, b"a" * 4096) for _ in range(1024)) + b"0\r\n\r\n"
    with patient.connect() as connected:
        for _ in range(3):
            connected.sendall(POST + b"Content-Length: %d\r\n\r\n" % len(body) + body)
            assert status_of(connected) == b"200"
            connected.sendall(POST + b"Transfer-Encoding: chunked\r\n\r\n" + chunks)
            assert status_of(connected) == b"200"
        for _ in range(300):
            connected.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 1000 + b"\r\n\r\n")
            assert status_of(connected) == b"200"


def test_a_full_house_hangs_up_on_whoever_was_waited_for_longest() -> None:
    """A newcomer with a request is answered, and so is whoever is being served; uvicorn's own limit refuses both (D1, T21)."""
    asked = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
    with serving(Patience(600, 6).connection()) as server:
        with server.connect(b"GET /late HTTP/1.1\r\nHost: x\r\n\r\n") as served, server.connect(asked) as kept_alive:
            assert status_of(kept_alive) == b"200"
            silent = [server.connect() for _ in range(20)]
            with server.connect(asked) as newcomer:
                assert status_of(newcomer) == b"200"
            until(lambda: server.held <= 6)
            until(lambda: is_hung_up(kept_alive))
            until(lambda: is_hung_up(silent[0]))
            server.may_answer.set()
            assert status_of(served) == b"200"
        for connected in silent:
            connected.close()
    with serving("httptools", limit_concurrency=6) as server:
        silent = [server.connect() for _ in range(20)]
        with server.connect(asked) as newcomer:
            assert status_of(newcomer) == b"503"
        for connected in silent:
            connected.close()


# -- bodies and passwords ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("database_kind", ["sqlite"])
class TestRoomForBodies:
    def test_is_bounded_and_given_back(self, house: House, monkeypatch: pytest.MonkeyPatch) -> None:
        """Strangers' large bodies fill a bounded room; whatever is small is read all the same (G2, T21)."""
        path, large = f"/v1/studies/{STUDY}/schedules/imports", {"list_csv": "a" * 200_000}
        monkeypatch.setattr(doors.Share, "_left", 300_000)
        # One after the other: each gives back what it took.
        assert [house.send("POST", path, json=large).status_code for _ in range(3)] == [401] * 3
        assert doors.Share._left == 300_000
        other = doors.Share()
        other.take(150_000)
        refused = house.send("POST", path, json=large)
        assert refused.status_code == 413
        assert "little later" in refused.json()["detail"]
        assert house.send("POST", path, json={}).status_code == 401
        other.give_back()
        assert house.send("POST", path, json=large).status_code == 401


class WaitingHasher(PasswordHasher):
    """Takes as long as the test wants."""

    def __init__(self) -> None:
        super().__init__()
        self.may_go_on = threading.Event()

    def verify(self, hash: str | bytes, password: str | bytes) -> Literal[True]:  # noqa: A002  # as the library names it
        """Wait, and find it right."""
        assert self.may_go_on.wait(PATIENCE)
        return True


@pytest.mark.parametrize("database_kind", ["sqlite"])
class TestThreads:
    """Whoever tries passwords takes some of a worker's threads, and never the last."""

    def beside_strangers(self, house: House, places: int) -> bool:
        """Return whether a request is served while strangers who sign in are waited for, with so many places for them."""
        passwords, hasher = house.deployment.passwords, WaitingHasher()
        passwords._places = BoundedSemaphore(places)
        passwords._hasher, passwords._longest_wait = hasher, PATIENCE
        portal = house.client._in_process.portal
        assert portal is not None
        limiter = portal.call(anyio.to_thread.current_default_thread_limiter)
        waited_for = min(places, house.settings.threads)

        def sign_in(number: int) -> int:
            body = {"username": f"stranger{number}", "password": "whatever it may be"}
            return house.send("POST", "/v1/sessions", json=body).status_code

        with ThreadPoolExecutor(32) as pool:
            strangers = [pool.submit(sign_in, number) for number in range(30)]
            until(lambda: limiter.borrowed_tokens == waited_for and sum(one.done() for one in strangers) in {0, 26})
            # Nobody's turn comes any more, before the test wants it.
            beside = pool.submit(house.send, "GET", "/readyz")
            until(lambda: beside.done() or portal.call(limiter.statistics).tasks_waiting > len(strangers) - waited_for)
            is_served = beside.done()
            hasher.may_go_on.set()
        assert {one.result() for one in strangers} <= {401, 503}
        return is_served

    def test_are_left_for_everybody_else(self, house: House) -> None:
        """Half of them, as the settings say; with a place for each thread everything would wait for strangers (D1, T21)."""
        assert house.deployment.limits.hashing_places == PLACES == house.settings.threads // 2
        assert self.beside_strangers(house, PLACES)

    def test_without_the_bound_everybody_waits(self, house: House) -> None:
        """The negative control: ten places for eight threads, as it once was."""
        assert not self.beside_strangers(house, 10)


# -- everything at a real service ---------------------------------------------------------------------------------------

MOST_MEGABYTES: Final = 160
"""How much more memory a worker may have after an attack than before any: the room for bodies in all its forms."""


@dataclass
class Siege:
    """A real service with a study under way, and those who work in it meanwhile."""

    service: Service
    sponsor: Sponsor
    study: OpenStudy
    journal: Journal
    subjects: int = 0
    rests: int = 0
    """Megabytes of the largest worker before anything happened."""

    def work(self, attack: Attack, clients: int = CLIENTS, at_least: int = 0, *, with_code: bool = False) -> Abuse:
        """Have everybody at work while an attack goes on, and return what came of the attack."""
        with going_on(self.service.port, attack, clients) as abuse:
            self.allocate(40)
            self.look()
            self.break_a_code(with_code=with_code)
            done = max(abuse.done, at_least)
            # It is still going on: what was asked for came meanwhile.
            until(lambda: abuse.done > done, patience=600)
        self.look()
        grown = max(map(_megabytes, self.service.worker_pids())) - self.rests
        assert grown <= MOST_MEGABYTES, f"{grown} MB more than at rest"
        return abuse

    def allocate(self, count: int) -> None:
        """Have clients allocate, and keep what they were told; one that is turned away or hung up on asks again."""
        names = [f"S-{number:05}" for number in range(self.subjects, self.subjects + count)]
        self.subjects += count
        requests = load.requests_for(self.study, names, keyed=True)
        outcome = load.run(self.service.port, requests, 4, journal=self.journal)
        assert len(outcome.answers) == count

    def look(self) -> None:
        """Ask on a new connection each time whether the service lives."""
        asked = b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        for _ in range(20):
            received = b""
            while not received:
                with (
                    suppress(OSError),
                    socket.create_connection(("127.0.0.1", self.service.port), PATIENCE) as connected,
                ):
                    connected.sendall(asked)
                    received = connected.makefile("rb").read()
            assert received.startswith(b"HTTP/1.1 200 "), received

    def break_a_code(self, person: Person | None = None, *, with_code: bool = False) -> None:
        """Have somebody, the first investigator unless another is named, sign in, prove it, and break a code."""
        person = person or self.sponsor.investigators[0]
        signing_in = {"username": person.username, "password": person.password}
        if with_code:
            signing_in["otp"] = _code_of(person)
        token = self._post("/v1/sessions", "", signing_in)["access_token"]
        proven = self._post("/v1/sessions/step-up", token, {"otp": _code_of(person)})["access_token"]
        body = {"subject_id": f"S-{self.subjects - 1:05}", "reason_code": "serious_adverse_event"}
        revealed = self._post(f"/v1/studies/{self.study.code}/code-breaks", proven, body)
        assert revealed["treatment"] in {"Product A", "Product B"}

    def _post(self, path: str, token: str, body: Mapping[str, str]) -> Any:  # noqa: ANN401  # whatever JSON holds
        """Return what is answered; a connection that was hung up on is made again, and a refusal fails the test."""
        while True:
            connection = load.Connection(self.service.port)
            try:
                answer = connection.post(path, token, json.dumps(body).encode())
            except OSError:
                continue
            finally:
                connection.close()
            assert answer.status in {200, 201}, (path, answer)
            return json.loads(answer.body)


def _code_of(person: Person) -> str:
    """Return a one-time code of a person's device that was not used yet; waits for the next one when it must."""
    if step_at(datetime.now(UTC)) <= person.last_step:
        sleep_until_next_step(datetime.now(UTC))
    person.last_step = step_at(datetime.now(UTC))
    return code_of_step(person.totp_secret, person.last_step)


def _megabytes(pid: int) -> int:
    """Return the memory of a process that is not swapped out."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    return int(status.partition("VmRSS:")[2].split()[0]) // 1024


@pytest.fixture
def siege(database_kind: str, database_url: str, tmp_path: Path) -> Iterator[Siege]:
    """A real service, two workers on PostgreSQL and one on SQLite, with little patience and few connections."""
    few = {"SNOSE_RECEIVE_SECONDS": "3", "SNOSE_CONNECTIONS": "200"}
    with Service(tmp_path, database_url, 2 if database_kind == "postgresql" else 1, **few) as service:
        issued = service.create()
        service.start()
        sponsor = Sponsor(service, issued)
        study = sponsor.open_study("SIEGE", SITES, 80, 60)
        begun = Siege(service, sponsor, study, Journal(tmp_path / "journal.jsonl"))
        begun.allocate(80)
        begun.rests = max(map(_megabytes, service.worker_pids()))
        yield begun
        # Nobody of all that came changed what was acknowledged, and the service is whole.
        known = check_journal(check_records(service, study, tmp_path), begun.journal)
        assert len(known) == begun.subjects
        sponsor.close()


@pytest.mark.long
@pytest.mark.timeout(0)
class TestSiege:
    """Whoever attacks, subjects are allocated, people sign in and break codes, and a worker's memory is bounded (T20, T21)."""

    @pytest.mark.parametrize("name", ATTACKS)
    def test_of_strangers(self, siege: Siege, name: str) -> None:
        """One attack after the other is a test of its own; each begins with a service that was just started (T21)."""
        siege.work(ATTACKS[name])

    def test_ten_thousand_requests_in_one_burst(self, siege: Siege) -> None:
        """Over 64 connections at once (T21)."""
        siege.work(ATTACKS["wrong tokens"], 64, BURST)

    def test_passwords_of_everybody(self, siege: Siege) -> None:
        """Names that nobody has keep the hashing busy without end; whoever shows a code has a place (T21)."""
        abuse = siege.work(passwords("stranger{}", "first.admin"), 32, BURST, with_code=True)
        assert abuse.answers[b"503"] > 0

    def test_passwords_at_one_name(self, siege: Siege) -> None:
        """10,000 wrong ones from 5,000 addresses and in all spellings: at most 100 are looked at, and its owner signs in (T20)."""
        name = siege.sponsor.investigators[0].username
        abuse = siege.work(passwords(name, name.upper(), f"  {name.title()} "), 32, BURST, with_code=True)
        assert abuse.answers[b"429"] > 0
        assert abuse.answers[b"401"] <= 100

    def test_codes_by_a_thief_of_a_session(self, siege: Siege) -> None:
        """The owner changes the password, which ends the thief's session, and breaks a code (USR-13, EUB-15; T20)."""
        person = siege.sponsor.investigators[0]
        signing_in = {"username": person.username, "password": person.password}
        stolen = siege._post("/v1/sessions", "", signing_in)["access_token"]
        with going_on(siege.service.port, codes(stolen)) as abuse:
            siege.allocate(40)
            until(lambda: abuse.answers.get(b"429", 0) > 100, patience=600)
            token = siege._post("/v1/sessions", "", signing_in)["access_token"]
            new = f"{person.password}, and a new one"
            siege._post("/v1/me/password", token, {"current": person.password, "new": new})
            person.password = new
            looked_at = abuse.answers[b"401"]
            until(lambda: abuse.answers[b"401"] > looked_at + 100, patience=600)
            # The last of the thief's tries that was looked at was half a minute ago at most, when the next code has come.
            sleep_until_next_step(datetime.now(UTC))
            sleep_until_next_step(datetime.now(UTC))
            siege.break_a_code(person)
