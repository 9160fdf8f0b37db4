"""A witness on loopback, in this process: real HTTP, real files, and a clock that a test may stop."""

import socket
import time
from collections.abc import Sequence
from pathlib import Path
from threading import Thread
from types import TracebackType
from typing import Final, Self

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send

from app.domain.merkle import Frontier, leaf_hash
from app.domain.notes import Checkpoint, NoteSignature, VerificationKey, join_note, note_text_to_sign
from app.domain.witnessing import Submission
from app.sealing.cosigning import private_key_text, read_cosigner
from app.storage.witness_state import WitnessState
from app.witness import Witness, create_witness
from tests.security.evidence_builders import Signer

NAME: Final = "witness.example.org/w1"
SEED: Final = bytes(range(32))
NOW: Final = 1_795_338_843


def new_folder(folder: Path, name: str = NAME, seed: bytes = SEED) -> str:
    """Make key and memory of a witness, and return its verification key."""
    WitnessState.create(folder, private_key_text(name, seed))
    return read_cosigner(WitnessState.key_file(folder)).vkey


class Log:
    """A log that signs its checkpoints; ``other`` gives it another history from an entry on."""

    def __init__(self, signer: Signer, origin: str, other: int | None = None) -> None:
        self.signer = signer
        self.origin = origin
        self.leaves = [leaf_hash(b"%d%b" % (n, b"x" if other is not None and n >= other else b"")) for n in range(400)]

    def root(self, size: int) -> bytes:
        frontier = Frontier()
        for leaf in self.leaves[:size]:
            frontier, _ = frontier.append(leaf)
        return frontier.root()

    def checkpoint(self, size: int) -> Checkpoint:
        return Checkpoint(self.origin, size, self.root(size))

    def note(self, size: int) -> str:
        return self.signer.note(self.checkpoint(size).text())

    def proof(self, old: int, new: int) -> tuple[bytes, ...]:
        """Return the proof of growth by the recursion of RFC 6962, 2.1.2: another way than the service's."""

        def tree(begin: int, end: int) -> bytes:
            frontier = Frontier()
            for leaf in self.leaves[begin:end]:
                frontier, _ = frontier.append(leaf)
            return frontier.root()

        def sub(m: int, begin: int, end: int, *, whole: bool) -> tuple[bytes, ...]:
            if m == end - begin:
                return () if whole else (tree(begin, end),)
            k = 1
            while k * 2 < end - begin:
                k *= 2
            if m <= k:
                return (*sub(m, begin, begin + k, whole=whole), tree(begin + k, end))
            return (*sub(m - k, begin + k, end, whole=False), tree(begin, begin + k))

        return sub(old, 0, new, whole=True) if old else ()

    def request(self, old: int, new: int) -> bytes:
        return Submission(old, self.proof(old, new), self.note(new)).text().encode()


class Served:
    """An application that answers on a port of loopback until it is stopped."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self.port = 0
        self._server: uvicorn.Server | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Begin to answer, at the port of before when it was stopped."""
        self._socket = socket.create_server(("127.0.0.1", self.port))
        self.port = self._socket.getsockname()[1]
        config = uvicorn.Config(self._app, log_level="critical", access_log=False, lifespan="off", interface="asgi3")
        self._server = uvicorn.Server(config)
        self._thread = Thread(target=self._server.run, args=([self._socket],), daemon=True)
        self._thread.start()
        while not self._server.started:
            time.sleep(0.005)

    def stop(self) -> None:
        """Answer no more; once is enough."""
        if self._server is not None:
            self._server.should_exit = True
            self._thread.join()
            self._socket.close()
            self._server = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()


class WitnessAtWork(Served):
    """A witness of the logs whose keys it is given."""

    def __init__(self, folder: Path, logs: Sequence[str]) -> None:
        self._folder = folder
        self._logs = logs
        self._cosigner = read_cosigner(WitnessState.key_file(folder))
        self.vkey = self._cosigner.vkey
        super().__init__(self._answer)

    def start(self) -> None:
        self.state = WitnessState(self._folder)
        self._witness = create_witness(Witness(self._cosigner, self._logs, self.state, time.time))
        super().start()

    def stop(self) -> None:
        if self._server is not None:
            super().stop()
            self.state.close()

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._witness(scope, receive, send)


def two_signatures(text: str, *signers: Signer) -> str:
    """Return a note that several keys signed."""
    return join_note(text, [signer.line(text) for signer in signers])


def stranger_line(text: str) -> NoteSignature:
    """Return a line of a key that nobody knows."""
    key = VerificationKey("somebody.else", bytes(32))
    return NoteSignature(key.name, key.key_id, bytes(64) + note_text_to_sign(text)[:1])
