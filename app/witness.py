"""The witness: a small service beside and apart from the service, with a key and a memory of its own (C2SP tlog-witness).

It cosigns a log's checkpoint only when it continues the last one that it cosigned, so a log that was rolled back or
forked, by whoever holds its signing key too, gets no further cosignature and is told by the one it has. It knows no
secret of any trial: a checkpoint is a size and a hash. Best run by somebody else, on another machine.

    POST /add-checkpoint            the request of C2SP tlog-witness, answered with a cosignature line
    POST /add-handover              a note by which the key of a log hands over to the next one, signed by both
    GET  /checkpoints?name=NAME     the newest cosigned checkpoint of each log of a name, as JSON Lines like the file sink's
    GET  /livez                     the process answers
"""

from base64 import b64encode
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from datetime import UTC, datetime
from json import dumps
from threading import Lock
from typing import Final

import structlog
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from app.domain.notes import (
    Checkpoint,
    NoteMalformed,
    NoteSignature,
    SignedNote,
    VerificationKey,
    join_note,
    parse_key_handover,
    parse_verification_key,
    signature_lines,
    split_note,
)
from app.domain.witnessing import ACCEPTED, Stale, Submission, check_step, parse_extended_checkpoint, parse_submission
from app.errors import AuditUnavailable, IntegrityBroken, ProofInvalid, UnsafeSetting
from app.sealing.cosigning import Cosigner
from app.sealing.notes import verify_handover, verify_note
from app.storage.sink import SunkCheckpoint
from app.storage.witness_state import WitnessState

Seconds = Callable[[], float]
"""Gives the present time in POSIX seconds."""

_LARGEST: Final = 64 * 1024
_MOST_HANDOVERS: Final = 1_000
"""More keys than any deployment has; a thief who makes new ones must not fill the disk."""
_TOO_LARGE: Final = "the request is too large"
_SIZE_TYPE: Final = "text/x.tlog.size"
_LINES_TYPE: Final = "application/jsonl"
_log: Final = structlog.get_logger("snose.witness")


class Witness:
    """Decides about one checkpoint after the other; what it cosigned is on the disk before it answers."""

    def __init__(self, cosigner: Cosigner, vkeys: Sequence[str], state: WitnessState, clock: Seconds) -> None:
        """Take the logs' verification keys: a key speaks for every log whose origin begins with its name.

        So do those that they handed over to, which the memory holds. Raises NoteMalformed for what is no verification key, and
        ``UnsafeSetting`` when a handover in the memory is none.
        """
        self._cosigner = cosigner
        self._keys: dict[str, list[str]] = {}
        for vkey in vkeys:
            self._keys.setdefault(parse_verification_key(vkey).name, []).append(vkey)
        self._successors: dict[str, str] = {}
        self._state = state
        for note in state.handovers():
            try:
                self._follow(*_handed_over(note))
            except (NoteMalformed, IntegrityBroken):
                message = "The memory of the witness holds a handover that is none. Restore it, or retire this witness."
                raise UnsafeSetting(message) from None
        self._clock = clock
        # One at a time from the look at the memory to the new memory: else a slower request would roll it back.
        self._turn = Lock()

    def add_checkpoint(self, body: bytes) -> Response:
        """Return the cosignature of the checkpoint that a log sends, or the refusal that C2SP names for what is wrong."""
        try:
            submission = parse_submission(body.decode())
            submitted = split_note(submission.note)
            new = parse_extended_checkpoint(submitted.text)
        except (NoteMalformed, UnicodeDecodeError) as error:
            return _refusal(400, f"{error}")
        keys = self._keys.get(new.origin) or self._keys.get(new.origin.rpartition("/")[0])
        if keys is None:
            return _refusal(404, "no key of this log is known here")
        try:
            verify_note(submission.note, keys)
        except IntegrityBroken:
            return _refusal(403, "the checkpoint is not signed by a key of this log")
        with self._turn:
            return self._decide(submission, submitted, new, keys)

    def add_handover(self, body: bytes) -> Response:
        """Return 200 when a log's newest key has handed over to the one that the note names, now or before.

        403 when the key that hands over is not known here or did not sign, or the new one did not; 409 when that key has handed
        over to another one: whoever stole it cannot have a second successor.
        """
        try:
            old, new = _handed_over(note := body.decode())
        except (NoteMalformed, UnicodeDecodeError) as error:
            return _refusal(400, f"{error}")
        except IntegrityBroken:
            return _refusal(403, "the handover is not signed by the old and by the new key")
        if old.text() not in self._keys.get(old.name, []):
            return _refusal(403, "the key that hands over is not known here")
        with self._turn:
            successor = self._successors.get(old.text())
            return self._take_in(note, old, new) if successor is None else _again(old, new, successor)

    def _take_in(self, note: str, old: VerificationKey, new: VerificationKey) -> Response:
        if len(self._successors) >= _MOST_HANDOVERS:
            return _refusal(503, "the memory of the witness is full of handovers")
        try:
            self._state.keep_handover(note)
        except AuditUnavailable:
            return _refusal(503, "the memory of the witness cannot be written")
        self._follow(old, new)
        return PlainTextResponse(ACCEPTED)

    def _follow(self, old: VerificationKey, new: VerificationKey) -> None:
        # A new list, because those who verify read the old one without the turn. The old key goes on to count: what it signed last
        # may be sent after the handover, and a fork is refused whoever signs it.
        known = self._keys.get(old.name, [])
        self._keys[old.name] = known if new.text() in known else [*known, new.text()]
        self._successors[old.text()] = new.text()

    def checkpoints(self, name: str) -> Response:
        """Return the newest cosigned checkpoint of each log of a name."""
        lines = [dumps(asdict(one), ensure_ascii=False) + "\n" for one in self._state.list_of(name)]
        return PlainTextResponse("".join(lines), media_type=_LINES_TYPE)

    def _decide(self, submission: Submission, submitted: SignedNote, new: Checkpoint, keys: Sequence[str]) -> Response:
        try:
            check_step(_checkpoint(self._state.find(new.origin)), submission, new)
        except NoteMalformed as error:
            return _refusal(400, f"{error}")
        except Stale as stale:
            if submission.old_size == new.size == stale.size:
                self._note_refused(new, submitted, keys)
            return PlainTextResponse(f"{stale.size}\n", 409, media_type=_SIZE_TYPE)
        except ProofInvalid:
            self._note_refused(new, submitted, keys)
            return _refusal(422, "the checkpoint does not continue the one that was cosigned before")
        return self._cosign(new, submitted, keys)

    def _cosign(self, new: Checkpoint, submitted: SignedNote, keys: Sequence[str]) -> Response:
        seconds = int(self._clock())
        line = self._cosigner.cosign(submitted.text, seconds)
        try:
            self._state.keep(self._line(new, submitted, keys, [line], seconds))
        except AuditUnavailable:
            return _refusal(503, "the memory of the witness cannot be written")
        return PlainTextResponse(signature_lines([line]))

    def _note_refused(self, new: Checkpoint, submitted: SignedNote, keys: Sequence[str]) -> None:
        _log.error("refused", origin=new.origin, size=new.size)
        with suppress(AuditUnavailable):
            self._state.keep_refused(self._line(new, submitted, keys, [], int(self._clock())))

    def _line(
        self,
        new: Checkpoint,
        submitted: SignedNote,
        keys: Sequence[str],
        lines: Sequence[NoteSignature],
        seconds: int,
    ) -> SunkCheckpoint:
        # Only what was verified is kept: a stranger's lines would fill the memory.
        known = {(key.name, key.key_id) for key in map(parse_verification_key, keys)}
        own = [line for line in submitted.signatures if (line.name, line.key_id) in known]
        root = b64encode(new.root).decode()
        at = datetime.fromtimestamp(seconds, UTC).isoformat()
        return SunkCheckpoint(new.origin, new.size, root, join_note(submitted.text, [*own, *lines]), at)


def create_witness(witness: Witness) -> Starlette:
    """Return the witness as an application over HTTP."""

    async def add_checkpoint(request: Request) -> Response:
        body = await _body_of(request)
        return _refusal(413, _TOO_LARGE) if body is None else await run_in_threadpool(witness.add_checkpoint, body)

    async def add_handover(request: Request) -> Response:
        body = await _body_of(request)
        return _refusal(413, _TOO_LARGE) if body is None else await run_in_threadpool(witness.add_handover, body)

    async def checkpoints(request: Request) -> Response:
        return await run_in_threadpool(witness.checkpoints, request.query_params.get("name", ""))

    async def livez(_request: Request) -> Response:
        return PlainTextResponse("ok\n")

    return Starlette(
        routes=[
            Route("/add-checkpoint", add_checkpoint, methods=["POST"]),
            Route("/add-handover", add_handover, methods=["POST"]),
            Route("/checkpoints", checkpoints),
            Route("/livez", livez),
        ]
    )


async def _body_of(request: Request) -> bytes | None:
    """Return the body of a request, or None for one that is too large."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > _LARGEST:
            return None
    return bytes(body)


def _handed_over(note: str) -> tuple[VerificationKey, VerificationKey]:
    """Return the keys of a handover that both of them signed; raises NoteMalformed and ``IntegrityBroken``."""
    old, new = parse_key_handover(split_note(note).text)
    verify_handover(note, old.text(), new.text())
    return old, new


def _again(old: VerificationKey, new: VerificationKey, successor: str) -> Response:
    """Return what is answered about a key that has handed over before."""
    if successor == new.text():
        return PlainTextResponse("known\n")
    _log.error("handover refused", name=old.name)
    return _refusal(409, "the key has handed over to another one before")


def _refusal(status: int, why: str) -> Response:
    return PlainTextResponse(f"{why}\n", status)


def _checkpoint(held: SunkCheckpoint | None) -> Checkpoint | None:
    return None if held is None else parse_extended_checkpoint(split_note(held.note).text)
