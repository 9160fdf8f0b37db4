"""The offline verifier: one file that shares no code with the service and needs Python 3.11 and ``cryptography``.

    python verifier.py trail EXPORT.jsonl [--sink FILE] [--key VKEY] [--witness VKEY] [--checkpoint FILE] [--json]
    python verifier.py package FINAL.zip [--sink FILE] [--key VKEY] [--witness VKEY] [--checkpoint FILE] [--json]

It names the first difference in plain words, and prints the newest size of each log that it vouches for. The
exit status is 0 only when everything was verified. What it reads is written down in ``app/domain/evidence.md``.

It cannot prove what lies above the newest checkpoint that somebody kept outside of the service, nor that an
entry tells the truth. Without ``--key`` the keys come from the file itself: then it proves that the file is
whole, and not who made it. With ``--witness`` a checkpoint that this witness cosigned counts as one that was seen by
somebody else: a history that was written anew with the log's own signing key is found out by it.
"""

import argparse
import base64
import csv
import hashlib
import io
import json
import re
import struct
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from typing import IO, Any, Final, NamedTuple, TextIO, TypeVar

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

# -- what is reported --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Finding:
    """One difference: a stable word for its kind, a plain sentence, and the log and entry where they apply."""

    kind: str
    message: str
    log: str | None = None
    index: int | None = None


@dataclass(slots=True)
class Report:
    """What was found. ``vouched`` is the newest verified size of each log, ``witnessed`` the newest cosigned one.

    ``facts`` count what was checked.
    """

    findings: list[Finding] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    vouched: dict[str, int] = field(default_factory=dict)
    witnessed: dict[str, int] = field(default_factory=dict)
    facts: dict[str, int | str] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether everything was verified."""
        return not self.findings

    @property
    def first(self) -> Finding | None:
        """The first difference, or None."""
        return self.findings[0] if self.findings else None

    def add(self, kind: str, message: str, log: str | None = None, index: int | None = None) -> None:
        """Note a difference; beyond a hundred they say no more."""
        if len(self.findings) < _MOST_FINDINGS:
            self.findings.append(Finding(kind, message, log, index))


_T = TypeVar("_T")


class Difference(Exception):
    """The check of one thing ends here, with this finding."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message


Advance = Callable[[str, int, int], None]
"""Told what is being read, how many bytes were, and how many there are (0 when unknown)."""

_MOST_FINDINGS: Final = 100


def _silent(_what: str, _done: int, _total: int) -> None:
    """Tell nobody."""


# -- Merkle trees (RFC 6962, 2.1) --------------------------------------------------------------------------------------


def leaf(content: bytes, salt: bytes = b"") -> bytes:
    """Return SHA-256(0x00 ‖ salt ‖ content)."""
    return hashlib.sha256(b"\x00" + salt + content).digest()


def merkle_root(hashes: Sequence[bytes]) -> bytes:
    """Return the tree hash over leaf hashes."""
    if not hashes:
        return hashlib.sha256(b"").digest()
    row = list(hashes)
    while len(row) > 1:
        joined = [hashlib.sha256(b"\x01" + row[i] + row[i + 1]).digest() for i in range(0, len(row) - 1, 2)]
        row = joined + row[len(joined) * 2 :]
    return row[0]


def _fold(subtrees: Sequence[bytes]) -> bytes:
    """Return the tree hash over complete subtrees, the largest first."""
    if not subtrees:
        return hashlib.sha256(b"").digest()
    root = subtrees[-1]
    for left in reversed(subtrees[:-1]):
        root = hashlib.sha256(b"\x01" + left + root).digest()
    return root


# -- canonical JSON (RFC 8785, without fractions) ----------------------------------------------------------------------


def _refuse_number(text: str) -> None:
    raise ValueError(f"{text} is not a whole number")


def _refuse_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError("a name stands twice in one object")
    return made


_DECODER: Final = json.JSONDecoder(
    parse_float=_refuse_number, parse_constant=_refuse_number, object_pairs_hook=_refuse_twice
)
_ENCODER: Final = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
_BEYOND_BMP: Final = re.compile("[\U00010000-\U0010ffff]")
_LARGEST: Final = 2**53 - 1
_SIXTEEN_DIGITS: Final = re.compile("[0-9]{16}")


def canonical(value: object) -> str:
    """Return the RFC 8785 text of strings, whole numbers, booleans, nulls, arrays and objects of them."""
    text = _ENCODER.encode(value)
    # Names are sorted by UTF-16 units, which differs from Python's order beyond the Basic Multilingual Plane.
    return _utf16_sorted(value) if _BEYOND_BMP.search(text) else text


def _utf16_sorted(value: object) -> str:
    if isinstance(value, dict):
        names = sorted(value, key=lambda name: name.encode("utf-16-be", "surrogatepass"))
        return "{" + ",".join(f"{_ENCODER.encode(name)}:{_utf16_sorted(value[name])}" for name in names) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(_utf16_sorted, value)) + "]"
    return _ENCODER.encode(value)


def _has_large_number(value: object) -> bool:
    if isinstance(value, dict):
        return any(map(_has_large_number, value.values()))
    if isinstance(value, list):
        return any(map(_has_large_number, value))
    return isinstance(value, int) and abs(value) > _LARGEST


def parse_canonical(text: str) -> object:
    """Return the value of canonical JSON; raises ``ValueError`` for any other spelling of it."""
    try:
        value = _DECODER.decode(text)
        same = canonical(value) == text
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    # The search spares most texts the walk through all of their values, which takes half of the time.
    if not same or (_SIXTEEN_DIGITS.search(text) is not None and _has_large_number(value)):
        raise ValueError("it is not spelt canonically (RFC 8785)")
    return value


# -- keys and notes (C2SP signed-note, tlog-checkpoint) ----------------------------------------------------------------


class Note(NamedTuple):
    """A signed note taken apart: text, and (key name, key id, signature) of each line."""

    text: str
    signatures: list[tuple[str, bytes, bytes]]


class Checkpoint(NamedTuple):
    """Origin, size and root of a log."""

    origin: str
    size: int
    root: bytes


_KEY_ID_SIZE: Final = 4
_HASH_SIZE: Final = 32
_SIZE: Final = re.compile(r"0|[1-9][0-9]{0,15}")


def unbase64(text: str) -> bytes:
    """Return the bytes; raises ``ValueError`` for anything but their one spelling."""
    content = base64.b64decode(text, validate=True)
    if base64.b64encode(content).decode() != text:
        raise ValueError("base64 has one spelling, and this is another")
    return content


_NOTE_KEY: Final = b"\x01"
_WITNESS_KEY: Final = b"\x04"


def parse_key(vkey: str, kind: bytes = _NOTE_KEY) -> tuple[str, bytes, bytes]:
    """Return name, id and Ed25519 public key of ``name+hash+base64``; raises ``ValueError``, also for a key of another kind."""
    name, digest, encoded = vkey.split("+", 2)
    content = unbase64(encoded)
    key_id = hashlib.sha256(f"{name}\n".encode() + content).digest()[:_KEY_ID_SIZE]
    if not name or content[:1] != kind or len(content) != 1 + _HASH_SIZE or key_id.hex() != digest:
        raise ValueError("it is not an Ed25519 verification key with its hash")
    return name, key_id, content[1:]


def parse_note(note: str) -> Note:
    """Return a signed note taken apart, nothing verified; raises ``ValueError``."""
    head, blank, tail = note.rpartition("\n\n")
    if not blank or not tail.endswith("\n"):
        raise ValueError("it is not a text, a blank line and signature lines")
    signatures = []
    for line in tail[:-1].split("\n"):
        dash, name, encoded = line.split(" ")
        content = unbase64(encoded)
        if dash != "\u2014" or not name or len(content) <= _KEY_ID_SIZE:
            raise ValueError("a signature line is a dash, a key name and a signature")
        signatures.append((name, content[:_KEY_ID_SIZE], content[_KEY_ID_SIZE:]))
    return Note(head + "\n", signatures)


def parse_checkpoint(text: str) -> Checkpoint:
    """Return the checkpoint of three lines; raises ``ValueError``."""
    origin, size, root, end = text.split("\n")
    checkpoint = Checkpoint(origin, int(size) if _SIZE.fullmatch(size) else -1, unbase64(root))
    if end or not origin or checkpoint.size < 0 or len(checkpoint.root) != _HASH_SIZE:
        raise ValueError("it is not origin, size and root")
    return checkpoint


class Trust:
    """The keys that count: those given, and those tied to them by handovers that old and new key both signed."""

    def __init__(self) -> None:
        self._keys: dict[tuple[str, bytes], Ed25519PublicKey] = {}
        self._vkeys: set[str] = set()

    def add(self, vkey: str) -> None:
        """Trust a key; raises ``ValueError`` when it is malformed."""
        name, key_id, public = parse_key(vkey)
        self._keys[name, key_id] = Ed25519PublicKey.from_public_bytes(public)
        self._vkeys.add(vkey)

    def __contains__(self, vkey: object) -> bool:
        return vkey in self._vkeys

    def __bool__(self) -> bool:
        return bool(self._vkeys)

    def names(self) -> set[str]:
        """Return the names of the keys."""
        return {name for name, _ in self._keys}

    def text_of(self, note: str, what: str) -> str:
        """Return the text of a note that a trusted key signed; raises Difference.

        As C2SP asks, lines of unknown keys are passed over, and a wrong signature of a known one spoils the note.
        """
        try:
            parsed = parse_note(note)
        except ValueError as error:
            raise Difference("bad_signature", f"{what} is not a signed note: {error}.") from None
        signed = False
        for name, key_id, signature in parsed.signatures:
            key = self._keys.get((name, key_id))
            if key is not None:
                try:
                    key.verify(signature, parsed.text.encode())
                except (InvalidSignature, UnicodeEncodeError):
                    message = f"{what} does not carry the signature of {name}: the text or the signature was changed."
                    raise Difference("bad_signature", message) from None
                signed = True
        if not signed:
            names = ", ".join(sorted({f"{name}+{key_id.hex()}" for name, key_id, _ in parsed.signatures}))
            raise Difference("unknown_key", f"{what} is signed by {names}, which is not a key that counts.")
        return parsed.text

    def checkpoint_of(self, note: str, what: str) -> Checkpoint:
        """Return the checkpoint in a note that a trusted key signed; raises Difference."""
        text = self.text_of(note, what)
        try:
            return parse_checkpoint(text)
        except ValueError as error:
            raise Difference("malformed", f"{what} is signed, but {error}.") from None


# -- witnesses (C2SP tlog-cosignature) ---------------------------------------------------------------------------------

_COSIGNATURE: Final = struct.Struct(">Q64s")


class Cosigned(NamedTuple):
    """A checkpoint that a witness has cosigned: where it stands, by whom, and when."""

    at: Checkpoint
    place: str
    witness: str
    time: str


class Witnesses:
    """The witnesses whose word counts, because their keys were given from elsewhere."""

    def __init__(self, vkeys: Sequence[str], report: Report) -> None:
        self._keys: dict[tuple[str, bytes], Ed25519PublicKey] = {}
        self.wanted = bool(vkeys)
        for vkey in vkeys:
            try:
                name, key_id, public = parse_key(vkey, _WITNESS_KEY)
            except ValueError as error:
                report.add("malformed", f"The key {vkey!r} of a witness cannot be used: {error}.")
                continue
            self._keys[name, key_id] = Ed25519PublicKey.from_public_bytes(public)

    def cosigned(self, note: str, place: str) -> list[Cosigned]:
        """Return the cosignatures of a note by these witnesses; raises Difference for one that does not hold."""
        try:
            parsed = parse_note(note)
        except ValueError:
            # Whoever verifies the log's own signature says what is wrong.
            return []
        found = []
        for name, key_id, signature in parsed.signatures:
            key = self._keys.get((name, key_id))
            if key is None:
                continue
            try:
                seconds, signed = _COSIGNATURE.unpack(signature)
                key.verify(signed, f"cosignature/v1\ntime {seconds}\n{parsed.text}".encode())
                checkpoint, time = parse_checkpoint(parsed.text), datetime.fromtimestamp(seconds, UTC).isoformat()
            except (struct.error, InvalidSignature, ValueError, OverflowError, OSError):
                message = f"{place} does not carry the cosignature of the witness {name}: it was changed."
                raise Difference("bad_cosignature", message) from None
            found.append(Cosigned(checkpoint, place, name, time))
        return found


def _build_trust(given: Sequence[str], listed: Sequence[str], handovers: Sequence[str], report: Report) -> Trust:
    """Return the keys that count, and note keys and handovers that do not hold together."""
    trust = Trust()
    for vkey in [*given, *listed]:
        try:
            parse_key(vkey)
        except ValueError as error:
            report.add("malformed", f"The verification key {vkey!r} cannot be used: {error}.")
            return trust
    for vkey in given or listed[:1]:
        trust.add(vkey)
    links = _read_handovers(handovers, report)
    # Each handover carries both signatures, so it ties either key to the other.
    while grown := [pair for pair in links if (pair[0] in trust) != (pair[1] in trust)]:
        for vkey in (vkey for pair in grown for vkey in pair):
            trust.add(vkey)
    for vkey in listed:
        if listed.count(vkey) > 1:
            report.add("duplicate", f"The file lists the key {_short(vkey)} twice.")
        if vkey not in trust:
            message = f"The file lists the key {_short(vkey)}, which no handover ties to a key that counts."
            report.add("unknown_key", message)
    return trust


def _short(vkey: str) -> str:
    """Return name and hash of a key."""
    return "+".join(vkey.split("+", 2)[:2])


def _read_handovers(handovers: Sequence[str], report: Report) -> list[tuple[str, str]]:
    """Return the pairs of old and new key, and note handovers that do not hold."""
    successor: dict[str, str] = {}
    links: list[tuple[str, str]] = []
    for number, note in enumerate(handovers):
        try:
            old, new = _parse_handover(note, f"Key handover {number}")
        except Difference as difference:
            report.add(difference.kind, difference.message)
            continue
        if successor.setdefault(old, new) != new:
            report.add("key_fork", f"Two keys are said to follow {_short(old)}.")
        links.append((old, new))
    return links


def _parse_handover(note: str, what: str) -> tuple[str, str]:
    """Return the old and the new key of a handover that both signed; raises Difference."""
    try:
        purpose, _, old, new, end = parse_note(note).text.split("\n")
        parse_key(old)
        parse_key(new)
    except ValueError:
        raise Difference("bad_handover", f"{what} is not a handover from one key to another.") from None
    if purpose != "snose/v1/key-handover" or end or old == new:
        raise Difference("bad_handover", f"{what} is not a handover from one key to another.")
    for vkey in (old, new):
        one = Trust()
        one.add(vkey)
        try:
            one.text_of(note, what)
        except Difference:
            raise Difference("bad_handover", f"{what} is not signed by both keys.") from None
    return old, new


# -- evidence kept outside of the service ------------------------------------------------------------------------------


class Evidence(NamedTuple):
    """A checkpoint that somebody kept: where it stands, its note, and what the line around it says."""

    place: str
    note: str
    said: Checkpoint | None


_TORN: Final = re.compile(rb'"at": ?"[^"]*"|\}\s*$')
_RECEIPT: Final = re.compile(r"([0-9]+) ([A-Za-z0-9+/=]+) ([A-Za-z0-9+/=]+)")


def read_sink(path: Path, report: Report) -> Iterator[Evidence]:
    """Give the checkpoints of a sink file; lines that are not in their form are noted."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            place = f"Line {number} of the sink {path.name}"
            if not line.strip():
                continue
            try:
                row = _DECODER.decode(line.decode())
                said = Checkpoint(
                    _text(row, "origin", place), _int(row, "size", place), unbase64(_text(row, "root", place))
                )
                note = _text(row, "note", place)
            except (ValueError, RecursionError, Difference):
                # A crash can tear a line off before its end; such a line is short of its last member.
                if line.startswith(b'{"origin"') and not _TORN.search(line):
                    report.warnings.append(f"{place} was torn off while it was written.")
                else:
                    report.add("sink_altered", f"{place} is not a checkpoint: it was changed.")
                continue
            yield Evidence(place, note, said)


def read_checkpoints(path: Path, report: Report) -> Iterator[Evidence]:
    """Give the checkpoints of a file that holds one signed note, or lines of ``Audit-Checkpoint`` headers.

    A header line tells no log: it is taken for the log of the export.
    """
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines()
    if lines and all(_RECEIPT.fullmatch(line.removeprefix("Audit-Checkpoint: ")) for line in lines):
        for number, line in enumerate(lines, start=1):
            yield Evidence(f"Line {number} of {path.name}", line.removeprefix("Audit-Checkpoint: "), None)
    elif "\n\n" in text:
        yield Evidence(f"The checkpoint {path.name}", text, None)
    else:
        report.add("malformed", f"{path.name} holds neither a signed note nor Audit-Checkpoint lines.")


def _note_of_receipt(evidence: Evidence, origin: str, trust: Trust) -> str:
    """Return the note that an ``Audit-Checkpoint`` header stands for."""
    match = _RECEIPT.fullmatch(evidence.note)
    if match is None:
        return evidence.note
    size, root, signature = match.groups()
    names = sorted(trust.names())
    return f"{origin}\n{size}\n{root}\n\n" + "".join(f"\u2014 {name} {signature}\n" for name in names)


# -- the trail ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Watched:
    """An entry that a package refers to."""

    log: str
    index: int
    entry: Mapping[str, Any]


_PLAIN: Final = r'"[^"\\\x00-\x1f]*+"'
_PLAIN_OR_NULL: Final = rf"(?:{_PLAIN}|null)"
_VALUE: Final = rf"(?:{_PLAIN}|null|true|false|0|-?[1-9][0-9]{{0,14}})"
# An allocation's strata, as far as they need no sorting: none, or one.
_INNER: Final = rf"\{{(?:{_PLAIN}:{_VALUE})?\}}"
_MEMBER: Final = rf'"[a-z0-9_]++":(?:{_VALUE}|\[(?:{_VALUE}(?:,{_VALUE})*+)?\]|{_INNER})'
_AT: Final = r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{6}\+00:00"
_OBJECT: Final = rf"(null|\{{(?:{_MEMBER}(?:,{_MEMBER})*+)?\}})"
# The ordinary spelling of a body, in which every name stands at its place: it is canonical when the names inside
# of after, before and target are sorted too. Whatever does not match is parsed and spelt anew, more slowly.
_ORDINARY: Final = re.compile(
    rf'\{{"action":"([a-z_:]++)","actor":{_PLAIN},"after":{_OBJECT},"at":"({_AT})","before":{_OBJECT},'
    rf'"client":{_PLAIN_OR_NULL},"index":(0|[1-9][0-9]{{0,14}}),"log":"([^"\\\x00-\x1f]*+)",'
    rf'"organisation":{_PLAIN_OR_NULL},"outcome":{_PLAIN},"request_id":{_PLAIN},"restricted":{_PLAIN_OR_NULL},'
    rf'"role":{_PLAIN_OR_NULL},"target":{_OBJECT},"v":1\}}'
)
_NAMES: Final = re.compile(r'"([a-z0-9_]+)":')
_ENTRY_NAMES: Final = {
    "v", "log", "index", "at", "actor", "role", "organisation", "client", "action", "outcome", "target", "before",
    "after", "request_id", "restricted",
}  # fmt: skip
_BODY: Final = b'{"body":'
_HASH: Final = b',"leaf_hash":"'
_FOUND_ELSEWHERE: Final = b',"lookup":"altered"}\n'
_TAIL: Final = len(_HASH) + 2 * _HASH_SIZE + len(b'"}\n')
_TELL_EVERY: Final = 4096


class _Log:
    """One log while its entries stream by."""

    def __init__(self, origin: str, checkpoint: Checkpoint, wanted: set[int], report: Report) -> None:
        self.origin = origin
        self.checkpoint = checkpoint
        self.report = report
        self.count = 0
        self.subtrees: list[bytes] = []
        self.wanted = wanted | {checkpoint.size}
        self.roots: dict[int, bytes] = {0: _fold([])}
        self.leaves = bytearray()
        self.last_at = ""
        self.faults: list[Finding] = []
        # The first place where the numbers of the entries do not go on: (place, number found there, leaf found there).
        self.jump: tuple[int, int, bytes] | None = None
        self.found_later = False

    def fault(self, kind: str, index: int, message: str) -> None:
        if len(self.faults) < _MOST_FINDINGS:
            self.faults.append(Finding(kind, message, self.origin, index))

    def take(self, line: bytes) -> tuple[int, str, str] | None:
        """Add one line; return index, action and text of an entry that is in order."""
        body = line[len(_BODY) : -_TAIL]
        content = b"\x00" + body
        digest = hashlib.sha256(content)
        read = None
        if line[-_TAIL:] == b'%b%b"}\n' % (_HASH, digest.hexdigest().encode()):
            node = digest.digest()
            read = self._read(body, node)
        elif line.endswith(_FOUND_ELSEWHERE):
            message = (
                f"Entry {self.count} was stored under another action, actor, subject, site or time than the service "
                "sealed: its text is whole, but whoever looked for it by one of these did not find it."
            )
            self.fault("lookup_altered", self.count, message)
            return self.take(line.removesuffix(_FOUND_ELSEWHERE) + b"}\n")
        else:
            node = self._altered(line)
        self.leaves += node
        position = self.count
        while position & 1:
            node = hashlib.sha256(b"\x01" + self.subtrees.pop() + node).digest()
            position >>= 1
        self.subtrees.append(node)
        self.count += 1
        if self.count in self.wanted:
            self.roots[self.count] = _fold(self.subtrees)
        return read

    def _altered(self, line: bytes) -> bytes:
        """Note a line whose text and hash disagree, and return the hash that it states."""
        try:
            stated = line[-_TAIL + len(_HASH) : -3]
            node = bytes.fromhex(stated.decode())
        except ValueError:
            node = b""
        if line[-_TAIL:] != b'%b%b"}\n' % (_HASH, node.hex().encode()):
            self.fault("malformed", self.count, f"The line of entry {self.count} is not an entry with its hash.")
            return leaf(line)
        message = (
            f"The text of entry {self.count} does not have the hash under which it was stored: one of them was changed."
        )
        self.fault("entry_altered", self.count, message)
        return node

    def _read(self, body: bytes, node: bytes) -> tuple[int, str, str] | None:
        try:
            text = body.decode()
            match = _ORDINARY.fullmatch(text)
            if match is not None and _names_sorted(*match.group(2, 4, 7)):
                action, at, number, log = match.group(1, 3, 5, 6)
                index = int(number)
            else:
                index, at, log, action = _read_slowly(text)
            datetime.fromisoformat(at)
        except ValueError as error:
            self.fault("malformed", self.count, f"Entry {self.count} is not the canonical text of an entry: {error}.")
            return None
        if log != self.origin:
            self.fault("wrong_log", self.count, f"Entry {self.count} belongs to the log {log}, not to {self.origin}.")
        if index != self.count:
            self._misplaced(index, node)
        if at < self.last_at:
            message = f"Time goes backwards at entry {self.count}: {at} stands after {self.last_at}."
            self.fault("time_backwards", self.count, message)
        self.last_at = at
        return index, action, text

    def _misplaced(self, index: int, node: bytes) -> None:
        if self.jump is None:
            self.jump = (self.count, index, node)
        elif index == self.jump[0]:
            self.found_later = True

    def close(self) -> None:
        """Note what the order of the entries shows, then everything about single entries, the first one first."""
        if self.jump is not None:
            self._name_jump(*self.jump)
        self.report.findings += sorted(self.faults, key=lambda fault: fault.index or 0)
        size, count = self.checkpoint.size, self.count
        if count < size and not any(fault.kind == "entry_missing" for fault in self.faults):
            message = f"The last {size - count} entries are missing: {count} of {size} are there, the first missing is {count}."
            self.report.add("truncated", message, self.origin, count)
        if count > size and self.jump is None:
            message = f"{count - size} entries from {size} on lie under no checkpoint: they were added."
            self.report.add("entries_uncovered", message, self.origin, size)

    def _name_jump(self, place: int, index: int, node: bytes) -> None:
        surplus = self.count - self.checkpoint.size
        if index > place and not self.found_later and surplus <= 0:
            which = f"Entry {place} is" if index == place + 1 else f"Entries {place} to {index - 1} are"
            kind, message = "entry_missing", f"{which} missing: entry {index} stands at place {place}."
        elif index > place and surplus <= 0:
            kind = "entry_moved"
            message = f"The order was changed: entry {index} stands at place {place}, and entry {place} later."
        elif index < place and self.leaves[index * _HASH_SIZE : (index + 1) * _HASH_SIZE] == node:
            kind, message = "entry_duplicated", f"Entry {index} stands a second time, at place {place}."
        else:
            kind = "entry_inserted"
            message = f"An entry was put in at place {place} or before it: it says that it is number {index}."
        # It explains whatever else is wrong at this place, so it is named first.
        self.faults.insert(0, Finding(kind, message, self.origin, place))

    def sound_until(self) -> int:
        """Return the size up to which no single entry is at fault."""
        return min((fault.index or 0 for fault in self.faults), default=self.count)


def _names_sorted(*parts: str) -> bool:
    """Return whether the names in each part rise; "null" has none."""
    for part in parts:
        last = ""
        for name in _NAMES.findall(part):
            if name <= last:
                return False
            last = name
    return True


def _read_slowly(text: str) -> tuple[int, str, str, str]:
    """Return index, time, log and action of any canonical body; raises ``ValueError``."""
    entry = parse_canonical(text)
    if not isinstance(entry, dict) or set(entry) != _ENTRY_NAMES or entry["v"] != 1:
        raise ValueError("it has not exactly the members of an entry of version 1")
    place = "the entry"
    try:
        index, at = _int(entry, "index", place), _text(entry, "at", place)
        log, action = _text(entry, "log", place), _text(entry, "action", place)
    except Difference as difference:
        raise ValueError(difference.message) from None
    if not re.fullmatch(_AT, at):
        raise ValueError(f"its time {at!r} is not UTC with microseconds")
    return index, at, log, action


class _TrailReader:
    """An export while it is read: its logs one after the other, and the evidence against which each is held."""

    def __init__(
        self,
        report: Report,
        given: Sequence[str],
        evidence: Sequence[Evidence],
        watch: frozenset[str],
        witnesses: Witnesses,
    ) -> None:
        self.report = report
        self.witnesses = witnesses
        self.cosigned: dict[str, list[Cosigned]] = {}
        self.given = given
        self.evidence = list(evidence)
        self.watch = watch
        self.watched: list[Watched] = []
        self.log: _Log | None = None
        self.origins: list[str] = []
        self.held: dict[str, list[tuple[Checkpoint, str]]] = {}
        self.passed_over = 0
        self.signed = True
        self.entries = 0

    def read(self, lines: Iterable[bytes], tell: Callable[[int], None]) -> None:
        """Read every line, and note all differences."""
        done = 0
        for number, line in enumerate(lines, start=1):
            done += len(line)
            if line.startswith(_BODY):
                if self.log is None:
                    raise Difference("malformed", "The export does not begin with the header of a log.")
                read = self.log.take(line)
                if read is not None and read[1] in self.watch:
                    self.watched.append(Watched(self.log.origin, read[0], json.loads(read[2])))
                if number % _TELL_EVERY == 0:
                    tell(done)
            else:
                self._close()
                self._open(line, number)
        self._close()
        tell(done)
        if not self.origins:
            raise Difference("malformed", "The export is empty: it holds no log.")
        self._check_continuations()

    def _open(self, line: bytes, number: int) -> None:
        place = f"The header in line {number}"
        try:
            header = _DECODER.decode(line.decode())
        except (ValueError, RecursionError):
            raise Difference("malformed", f"Line {number} is neither an entry nor the header of a log.") from None
        if not isinstance(header, dict) or header.get("snose_trail_export") != 1:
            raise Difference("malformed", f"{place} is not that of a trail export of version 1.")
        origin, size = _text(header, "origin", place), _int(header, "size", place)
        trust = _build_trust(self.given, _texts(header, "keys", place), _texts(header, "handovers", place), self.report)
        self._check_origin(origin, trust)
        note = _text(header, "checkpoint", place)
        self.signed = True
        try:
            checkpoint = trust.checkpoint_of(note, f"The checkpoint of {origin}")
        except Difference as difference:
            self.report.add(difference.kind, difference.message, origin)
            self.signed = False
            checkpoint = _unverified(note, origin, size)
        if checkpoint.origin != origin:
            self.report.add(
                "wrong_log",
                f"The checkpoint in the header is of the log {checkpoint.origin}, not of {origin}.",
                origin,
            )
            self.signed = False
        if checkpoint.size != size:
            message = f"The header tells of {size} entries, its checkpoint of {checkpoint.size}."
            self.report.add("size_mismatch", message, origin)
        self._weigh(origin, trust)
        self._weigh_cosignatures(origin, note, f"The checkpoint of {origin}")
        wanted = {held.size for held, _ in self.held.get(origin, [])}
        wanted |= {one.at.size for one in self.cosigned.get(origin, [])}
        self.log = _Log(origin, checkpoint, wanted, self.report)

    def _check_origin(self, origin: str, trust: Trust) -> None:
        base, _, _ = origin.partition("~")
        if self.origins and origin != f"{base}~{len(self.origins) + 1}" and origin != _next_origin(self.origins[-1]):
            self.report.add("wrong_log", f"The log {origin} does not continue {self.origins[-1]}.", origin)
        if self.origins and base != self.origins[0].partition("~")[0]:
            self.report.add("wrong_log", f"The log {origin} is not of {self.origins[0]}.", origin)
        self.origins.append(origin)
        name = "/".join(origin.split("/")[:2])
        if trust and trust.names() != {name}:
            self.report.add("unknown_key", f"The log {origin} is signed by keys of another name than {name}.", origin)

    def _weigh(self, origin: str, trust: Trust) -> None:
        """Verify the evidence about this log before its entries stream by."""
        kept = []
        for one in self.evidence:
            note = _note_of_receipt(one, origin, trust)
            about = one.said.origin if one.said else note.partition("\n")[0]
            inner = note.partition("\n")[0]
            if origin not in {about, inner}:
                kept.append(one)
                continue
            self._weigh_cosignatures(origin, note, one.place)
            try:
                checkpoint = trust.checkpoint_of(note, one.place)
            except Difference as difference:
                kind = "sink_altered" if one.said and difference.kind == "bad_signature" else difference.kind
                self.report.add(kind, difference.message, origin)
                continue
            if one.said and checkpoint != one.said:
                message = f"{one.place} says something else than the note that is signed in it."
                self.report.add("sink_altered", message, origin)
            self.held.setdefault(checkpoint.origin, []).append((checkpoint, one.place))
        self.evidence = kept

    def _weigh_cosignatures(self, origin: str, note: str, place: str) -> None:
        try:
            found = self.witnesses.cosigned(note, place)
        except Difference as difference:
            self.report.add(difference.kind, difference.message, origin)
            return
        for one in found:
            self.cosigned.setdefault(one.at.origin, []).append(one)

    def _close(self) -> None:
        log = self.log
        if log is None:
            return
        log.close()
        self.entries += log.count
        sound, size = log.sound_until(), log.checkpoint.size
        root = log.roots.get(size)
        agrees = root == log.checkpoint.root
        held = sorted(self.held.get(log.origin, []))
        matched = max((at.size for at, _ in held if at.size <= log.count and log.roots[at.size] == at.root), default=0)
        if root is not None and not agrees:
            message = (
                f"The {size} entries do not give the root that was signed: one or more of the entries "
                f"{_range_of(log, held, matched)} were rewritten."
            )
            self.report.add("root_mismatch", message, log.origin, matched)
        if self.witnesses.wanted:
            self._compare_witnessed(log, agrees=agrees)
        self._compare(log, held, matched, agrees=agrees)
        vouched = [at.size for at, _ in held if at.size <= sound and log.roots.get(at.size) == at.root]
        if self.signed and agrees and size <= sound:
            vouched.append(size)
        self.report.vouched[log.origin] = max(vouched, default=0)
        self.log = None

    def _compare_witnessed(self, log: _Log, *, agrees: bool) -> None:
        """Hold the log against what the witnesses have seen: no key of the log helps against it."""
        seen = sorted(self.cosigned.get(log.origin, []))
        same = [one for one in seen if one.at.size <= log.count and log.roots[one.at.size] == one.at.root]
        matched = max((one.at.size for one in same), default=0)
        self.report.witnessed[log.origin] = min(matched, log.sound_until())
        if not seen:
            message = (
                f"The witness's key was given, and nothing that was given with it about {log.origin} is cosigned by it."
            )
            self.report.add("not_witnessed", message, log.origin)
        other = [one for one in seen if one.at.size <= log.count and log.roots[one.at.size] != one.at.root]
        if other and agrees:
            at, place, witness, time = other[0]
            message = (
                f"This history is not the one that the witness {witness} saw: at {time} it cosigned another root at size "
                f"{at.size} ({place}). The first difference is in the entries {matched} to {at.size - 1}. The export is "
                "signed with the log's own key all the same: whoever wrote it anew has that key."
            )
            self.report.add("witness_forked", message, log.origin, matched)

    def _compare(self, log: _Log, held: Sequence[tuple[Checkpoint, str]], matched: int, *, agrees: bool) -> None:
        """Hold the log against the evidence: nobody may have seen more of it, or anything else."""
        beyond = [(at, place) for at, place in held if at.size > max(log.count, log.checkpoint.size)]
        if beyond:
            at, place = beyond[-1]
            message = f"{place} tells of {at.size} entries; the export ends at {log.checkpoint.size}: it is older, or cut off."
            if self.watch:
                # A package is closed before its own release is entered. Its manifest is signed; what came after it is for the
                # trail's own export to show.
                self.report.warnings.append(
                    f"{message} Verify a trail export of today for what came after the package."
                )
            else:
                self.report.add("rolled_back", message, log.origin, log.checkpoint.size)
        if not agrees:
            return
        other = [(at, place) for at, place in held if at.size <= log.count and log.roots[at.size] != at.root]
        if other:
            at, place = other[0]
            message = (
                f"Two histories were signed: {place} has another root at size {at.size} than this export. "
                f"The first difference is in the entries {matched} to {at.size - 1}."
            )
            self.report.add("forked", message, log.origin, matched)

    def _check_continuations(self) -> None:
        """Note a later part of the log that somebody holds a checkpoint of, and that the export leaves out."""
        base = self.origins[0].partition("~")[0]
        for one in self.evidence:
            origin = one.said.origin if one.said else one.note.partition("\n")[0]
            if origin.partition("~")[0] != base or origin in self.origins:
                self.passed_over += 1
            elif _part(origin) > _part(self.origins[-1]):
                message = f"{one.place} is of the log {origin}, which the export leaves out."
                self.report.add("rolled_back", message, origin)
            else:
                self.report.warnings.append(f"{one.place} is of the earlier log {origin}, which the export leaves out.")


def _range_of(log: _Log, held: Sequence[tuple[Checkpoint, str]], matched: int) -> str:
    """Return the narrowest range of entries in which a difference lies, as far as checkpoints tell."""
    wrong = [at.size for at, _ in held if at.size <= log.count and log.roots[at.size] != at.root]
    return f"{matched} to {min([*wrong, log.checkpoint.size]) - 1}"


def _next_origin(origin: str) -> str:
    return f"{origin.partition('~')[0]}~{_part(origin) + 1}"


def _part(origin: str) -> int:
    """Return the number of a log's segment: 1, and then what stands behind the tilde."""
    number = origin.partition("~")[2]
    return int(number) if number.isdecimal() else 1


def _unverified(note: str, origin: str, size: int) -> Checkpoint:
    """Return what a note claims although its signature does not hold, so that the entries can still be compared."""
    try:
        return parse_checkpoint(parse_note(note).text)
    except ValueError:
        return Checkpoint(origin, size, b"")


def verify_trail(
    path: Path,
    *,
    keys: Sequence[str] = (),
    sinks: Sequence[Path] = (),
    checkpoints: Sequence[Path] = (),
    witnesses: Sequence[str] = (),
    advance: Advance = _silent,
) -> Report:
    """Return what is right and wrong with a trail export, held against keys, sinks and checkpoints kept elsewhere."""
    report = Report()
    total = path.stat().st_size
    with path.open("rb") as file:
        _warn_of_own_keys(report, keys)
        _read_trail(
            report,
            file,
            keys,
            _evidence(sinks, checkpoints, report),
            lambda done: advance("trail", done, total),
            witnesses=Witnesses(witnesses, report),
        )
    return report


def _warn_of_own_keys(report: Report, given: Sequence[str]) -> None:
    if not given:
        report.warnings.append("No key was given: the keys are those that the file names itself.")


def _evidence(sinks: Sequence[Path], checkpoints: Sequence[Path], report: Report) -> list[Evidence]:
    found = [one for path in sinks for one in read_sink(path, report)]
    return found + [one for path in checkpoints for one in read_checkpoints(path, report)]


def _read_trail(
    report: Report,
    lines: Iterable[bytes],
    keys: Sequence[str],
    evidence: Sequence[Evidence],
    tell: Callable[[int], None],
    watch: frozenset[str] = frozenset(),
    *,
    witnesses: Witnesses,
) -> _TrailReader:
    reader = _TrailReader(report, keys, evidence, watch, witnesses)
    try:
        reader.read(lines, tell)
    except Difference as difference:
        report.add(difference.kind, difference.message)
    report.facts["entries"] = reader.entries
    report.facts["checkpoints_held"] = sum(map(len, reader.held.values()))
    report.facts["checkpoints_of_other_logs"] = reader.passed_over
    return reader


# -- reading JSON documents --------------------------------------------------------------------------------------------


def _member(row: object, name: str, place: str, kind: type[_T]) -> _T:
    value = row.get(name) if isinstance(row, dict) else None
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is int):
        raise Difference("malformed", f"{place} has no proper {name!r}.")
    return value


def _text(row: object, name: str, place: str) -> str:
    return _member(row, name, place, str)


def _int(row: object, name: str, place: str) -> int:
    return _member(row, name, place, int)


def _list(row: object, name: str, place: str) -> list[Any]:
    return _member(row, name, place, list)


def _object(row: object, name: str, place: str) -> dict[str, Any]:
    return _member(row, name, place, dict)


def _texts(row: object, name: str, place: str) -> list[str]:
    values = _list(row, name, place)
    if not all(isinstance(value, str) for value in values):
        raise Difference("malformed", f"{place} has no proper {name!r}.")
    return values


def _hex(row: object, name: str, place: str) -> bytes:
    """Return the 32 bytes that 64 lower-case hexadecimal digits tell."""
    return _unhex(_text(row, name, place), f"{place} has no proper {name!r}.")


def _unhex(text: object, message: str) -> bytes:
    if not isinstance(text, str) or not _HEX.fullmatch(text):
        raise Difference("malformed", message)
    return bytes.fromhex(text)


_HEX: Final = re.compile(r"[0-9a-f]{64}")


# -- the allocation algorithm, written a second time -------------------------------------------------------------------

ALGORITHM: Final = "snose-permuted-blocks-1"
_IMPORTED: Final = "imported"


def encode(*fields: str | int | bytes) -> bytes:
    """Return each field as a 4-byte big-endian length and its bytes; whole numbers as decimal text."""
    joined = b""
    for one in fields:
        content = one if isinstance(one, bytes) else str(one).encode()
        joined += struct.pack(">I", len(content)) + content
    return joined


class _Words:
    """The 4-byte words of a SHAKE-256 output, each used once."""

    def __init__(self, label: bytes) -> None:
        self._sponge = hashlib.shake_256(label)
        self._words: tuple[int, ...] = ()
        self._used = 0

    def below(self, n: int) -> int:
        """Return the next number of 0 to n - 1, by rejection."""
        limit = 2**32 // n * n
        while True:
            if self._used == len(self._words):
                count = max(256, 2 * self._used)
                self._words = struct.unpack(f">{count}I", self._sponge.digest(4 * count))
            word = self._words[self._used]
            self._used += 1
            if word < limit:
                return word % n


def recompute_stratum(
    specification: Mapping[str, Any], stratum: Mapping[str, Any], seed: bytes
) -> list[tuple[str, int, int]]:
    """Return (arm, block, block size) of each slot of a stratum from the seed; raises Difference for a bad document."""
    place = "The specification"
    arms = [(_text(arm, "arm_code", place), _int(arm, "ratio", place)) for arm in _list(specification, "arms", place)]
    sizes, weights = _numbers(specification, "block_sizes"), _numbers(specification, "block_size_weights")
    fill, length = _text(specification, "fill", place), _int(stratum, "length", place)
    ratio_sum = sum(ratio for _, ratio in arms)
    usable = len(sizes) == len(weights) and ratio_sum > 0 and not any(size % ratio_sum for size in sizes)
    if not usable or fill not in {"exact", "overrun"} or not 0 < length <= _MOST_SLOTS:
        raise Difference("malformed", "The specification cannot be followed.")
    label = encode(
        ALGORITHM,
        seed,
        _text(specification, "study_code", place),
        _int(specification, "segment_number", place),
        _text(stratum, "stratum_code", place),
    )
    words = _Words(label)
    slots = length if fill == "exact" else length + max(sizes)
    drawn = _draw_sizes(words, sizes, weights, slots, exact=fill == "exact")
    made: list[tuple[str, int, int]] = []
    for block, size in enumerate(drawn):
        order = [arm for arm, ratio in arms for _ in range(ratio * (size // ratio_sum))]
        for last in range(size - 1, 0, -1):
            other = words.below(last + 1)
            order[last], order[other] = order[other], order[last]
        made += [(arm, block, size) for arm in order]
    return made[:slots]


_MOST_SLOTS: Final = 10_000_000
_MOST_DRAWS: Final = 100_000


def _numbers(specification: Mapping[str, Any], name: str) -> list[int]:
    values = _list(specification, name, "The specification")
    if not values or not all(isinstance(value, int) and value > 0 for value in values):
        raise Difference("malformed", f"The specification has no proper {name!r}.")
    return values


def _draw_sizes(words: _Words, sizes: Sequence[int], weights: Sequence[int], slots: int, *, exact: bool) -> list[int]:
    for _ in range(_MOST_DRAWS):
        drawn: list[int] = []
        total = 0
        while total < slots:
            rest = words.below(sum(weights))
            for size, weight in zip(sizes, weights, strict=True):
                if rest < weight:
                    drawn.append(size)
                    total += size
                    break
                rest -= weight
        if total == slots or not exact:
            return drawn
    raise Difference("malformed", "The block sizes of the specification never fill its length.")


# -- the final package -------------------------------------------------------------------------------------------------

_FILES: Final = ("trail.jsonl", "schedules.json", "kits.json", "allocations.json", "keys.json", "list.csv")
_UNLISTED: Final = ("manifest.json", "manifest.note")
_BAD_ZIP: Final = (
    zipfile.BadZipFile,
    zlib.error,
    RuntimeError,
    NotImplementedError,
    OSError,
    EOFError,
    ValueError,
)
_DONE: Final = "done"
_APPROVE, _CREATE_KITS, _ALLOCATE = "schedule:approve", "consignment:create", "allocation:create"
_GIVEN_IN: Final = {"kit:assign": "kit_code", "kit:replace": "replaced_by"}
"""Where the entries of kits after the first one name the kit that was given."""
_WATCHED: Final = frozenset({_APPROVE, _CREATE_KITS, _ALLOCATE, *_GIVEN_IN})
_APPROVED: Final = {"approved", "active", "closed"}
_CSV_HEADER: Final = [
    "subject_id",
    "randomization_number",
    "arm_code",
    "arm_label",
    "treatment",
    "kit_codes",
    "allocated_at",
]
_FORMULA: Final = re.compile(r"[=+\-@\t\r]")


class _Slot(NamedTuple):
    arm: str
    randomization_number: str


class _Segment(NamedTuple):
    """One approved list segment, as far as the join needs it."""

    list_id: str
    number: int
    arms: Mapping[str, tuple[str, str]]
    strata: Mapping[str, Sequence[_Slot]]
    committed_at: tuple[str, int]


class _Kit(NamedTuple):
    arm: str
    committed_at: tuple[str, int]


class _Package:
    """A final package while it is verified, part by part."""

    def __init__(self, archive: zipfile.ZipFile, report: Report) -> None:
        self.archive = archive
        self.report = report
        self.study = self.mode = self.deployment = ""
        self.trust = Trust()
        self.entries: dict[str, list[Watched]] = {}
        self.segments: dict[str, _Segment] = {}
        self.kits: dict[str, _Kit] = {}
        self.rows: list[list[str]] = []

    def check(self, part: Callable[[], None]) -> None:
        """Run one part; its difference does not keep the others from being checked."""
        try:
            part()
        except Difference as difference:
            self.report.add(difference.kind, difference.message)

    def document(self, name: str) -> object:
        """Return a JSON file of the package; raises Difference."""
        try:
            return _DECODER.decode(self.archive.read(name).decode())
        except KeyError:
            raise Difference("file_missing", f"The package lacks {name}.") from None
        except (*_BAD_ZIP, RecursionError) as error:
            raise Difference("malformed", f"{name} cannot be read: {error}.") from None

    # -- what is in it

    def check_manifest(self) -> None:
        """Compare every file with the manifest."""
        names = self.archive.namelist()
        if len(set(names)) != len(names):
            raise Difference("malformed", "The package holds two files of one name.")
        manifest = self.document("manifest.json")
        place = "The manifest"
        if _int(manifest, "snose_final_package", place) != 1:
            raise Difference("malformed", "The manifest is not that of a final package of version 1.")
        self.study, self.mode = _text(manifest, "study_code", place), _text(manifest, "mode", place)
        self.deployment = _text(manifest, "deployment_id", place)
        _text(manifest, "created_at", place)
        files = _object(manifest, "files", place)
        for name in sorted({*_FILES, *files} - set(names)):
            raise Difference("file_missing", f"The package lacks {name}.")
        for name in sorted({*names, *_FILES} - set(files) - set(_UNLISTED)):
            raise Difference("file_unlisted", f"The manifest does not name {name}.")
        for name in sorted(files):
            self._check_file(name, _text(files, name, place))

    def _check_file(self, name: str, expected: str) -> None:
        digest = hashlib.sha256()
        try:
            with self.archive.open(name) as file:
                while chunk := file.read(1 << 20):
                    digest.update(chunk)
        except _BAD_ZIP as error:
            raise Difference("malformed", f"{name} cannot be read: {error}.") from None
        if digest.hexdigest() != expected:
            raise Difference("file_altered", f"{name} is not the file that the manifest names: it was changed.")

    def check_signature(self) -> None:
        """Verify the signature of the manifest."""
        try:
            manifest, note = self.archive.read("manifest.json"), self.archive.read("manifest.note").decode()
        except (KeyError, *_BAD_ZIP):
            raise Difference(
                "file_missing", "The package lacks manifest.note, the signature of the manifest."
            ) from None
        digest = base64.b64encode(hashlib.sha256(manifest).digest()).decode()
        self._signed(note, "final-package", [digest], "The manifest")

    def _signed(self, note: str, purpose: str, lines: Sequence[str], what: str) -> None:
        """Return when a trusted key signed these lines for this purpose; raises Difference."""
        text = self.trust.text_of(note, what)
        if text != "\n".join((f"snose/v1/{purpose}", self.deployment, self.study, *lines, "")):
            raise Difference("commitment_mismatch", f"{what}: what was signed is not what is in the package.")

    def check_keys(self, given: Sequence[str]) -> list[str]:
        """Return the keys that count for the rest."""
        try:
            document = self.document("keys.json")
            place = "keys.json"
            listed, handovers = _texts(document, "keys", place), _texts(document, "handovers", place)
        except Difference as difference:
            self.report.add(difference.kind, difference.message)
            listed, handovers = [], []
        self.trust = _build_trust(given, listed, handovers, self.report)
        if self.trust and self.trust.names() != {f"snose/{self.deployment}"}:
            self.report.add("unknown_key", f"The package of {self.deployment} is signed by keys of another name.")
        return [*given] or listed[:1]

    def check_trail(
        self, keys: Sequence[str], evidence: Sequence[Evidence], witnesses: Witnesses, advance: Advance
    ) -> None:
        """Verify the trail of the study."""
        try:
            total = self.archive.getinfo("trail.jsonl").file_size
            with self.archive.open("trail.jsonl") as file:
                reader = _read_trail(
                    self.report,
                    file,
                    keys,
                    evidence,
                    lambda done: advance("trail", done, total),
                    _WATCHED,
                    witnesses=witnesses,
                )
        except KeyError:
            raise Difference("file_missing", "The package lacks trail.jsonl.") from None
        except _BAD_ZIP as error:
            raise Difference("malformed", f"trail.jsonl cannot be read: {error}.") from None
        expected = f"snose/{self.deployment}/{self.study}"
        if any(origin.partition("~")[0] != expected for origin in reader.origins):
            self.report.add("wrong_log", f"The trail in the package is not that of {expected}.")
        for one in reader.watched:
            if one.entry["outcome"] == _DONE:
                self.entries.setdefault(one.entry["action"], []).append(one)

    def _entry(self, action: str, name: str, value: str, root: bytes, what: str) -> tuple[str, int]:
        """Return the place of the one entry that made a commitment known; raises Difference."""
        found = [one for one in self.entries.get(action, []) if (one.entry["target"] or {}).get(name) == value]
        if len(found) != 1:
            raise Difference("entry_not_found", f"{what}: the trail has {len(found)} entries {action} of it, not one.")
        if (found[0].entry["after"] or {}).get("commitment") != root.hex():
            raise Difference("commitment_mismatch", f"{what}: another commitment was entered in the trail.")
        return found[0].log, found[0].index

    # -- the lists

    def check_schedules(self) -> None:
        """Compare every list with its commitment, and with what its seed gives."""
        numbers: set[str] = set()
        not_recomputable = slots = 0
        schedules = _list(self.document("schedules.json"), "schedules", "schedules.json")
        for row in schedules:
            place = f"List {_text(row, 'schedule_id', 'A list')}"
            not_recomputable += row.get("seed") is None
            try:
                self._check_schedule(row, place, numbers)
            except Difference as difference:
                self.report.add(difference.kind, difference.message)
            slots += sum(len(_list(stratum, "slots", place)) for stratum in _list(row, "strata", place))
        ids = [row["schedule_id"] for row in schedules]
        self._none_left_out(_APPROVE, "schedule_id", ids, "list")
        self.report.facts |= {"lists": len(ids), "lists_not_recomputable": not_recomputable, "slots": slots}

    def _none_left_out(self, action: str, name: str, values: Sequence[str], what: str) -> None:
        for value in sorted({value for value in values if values.count(value) > 1}):
            self.report.add("duplicate", f"The {what} {value} is in the package twice.")
        for one in self.entries.get(action, []):
            told = (one.entry["target"] or {}).get(name)
            if told not in values:
                message = f"The trail tells of the {what} {told}, which the package leaves out."
                self.report.add("left_out", message, one.log, one.index)

    def _check_schedule(self, row: dict[str, Any], place: str, numbers: set[str]) -> None:
        document = _object(row, "specification", place)
        list_id, number = _text(row, "list_id", place), _int(row, "segment_number", place)
        if number == 0 and list_id != row["schedule_id"]:
            raise Difference("specification_mismatch", f"{place} is the first of its list, which has another id.")
        told = {"study_code": self.study, "mode": self.mode, "list_id": list_id, "segment_number": number}
        for name, value in told.items():
            if document.get(name) != value:
                raise Difference("specification_mismatch", f"{place}: its specification has another {name!r}.")
        strata = self._check_slots(row, document, place, numbers)
        arms = {
            _text(arm, "arm_code", place): (_text(arm, "label", place), _text(arm, "treatment", place))
            for arm in _list(document, "arms", place)
        }
        self._recompute(row, document, place)
        root = self._list_root(row, document, place)
        schedule_id, status = row["schedule_id"], _text(row, "status", place)
        if root != _hex(row, "commitment", place):
            raise Difference("commitment_mismatch", f"{place}: specification and slots do not give its commitment.")
        if status not in _APPROVED:
            if status not in {"generated", "rejected"} or row.get("commitment_note") is not None:
                raise Difference("malformed", f"{place} has the status {status!r}, which does not fit its commitment.")
            return
        lines = [schedule_id, base64.b64encode(root).decode()]
        self._signed(_text(row, "commitment_note", place), "list-commitment", lines, f"{place}, its commitment")
        committed_at = self._entry(_APPROVE, "schedule_id", schedule_id, root, place)
        self.segments[schedule_id] = _Segment(list_id, number, arms, strata, committed_at)

    def _check_slots(
        self, row: dict[str, Any], document: dict[str, Any], place: str, numbers: set[str]
    ) -> dict[str, list[_Slot]]:
        """Return the slots of each stratum, in order and well formed."""
        codes = [_text(stratum, "stratum_code", place) for stratum in _list(document, "strata", place)]
        listed = [_text(stratum, "stratum_code", place) for stratum in _list(row, "strata", place)]
        if listed != codes or len(set(codes)) != len(codes):
            raise Difference("list_mismatch", f"{place}: its strata are not those of its specification, in order.")
        arm_codes = {_text(arm, "arm_code", place) for arm in _list(document, "arms", place)}
        strata: dict[str, list[_Slot]] = {}
        for stratum in row["strata"]:
            code = stratum["stratum_code"]
            slots = strata[code] = []
            for position, slot in enumerate(_list(stratum, "slots", place)):
                at = f"{place}, stratum {code!r}, slot {position}"
                arm, randomization_number = _slot_words(slot, position, at)
                if arm not in arm_codes:
                    raise Difference("list_mismatch", f"{at} has an arm that the specification does not have.")
                if randomization_number in numbers:
                    raise Difference(
                        "duplicate", f"{at}: the randomization number {randomization_number} is there twice."
                    )
                numbers.add(randomization_number)
                slots.append(_Slot(arm, randomization_number))
        return strata

    def _recompute(self, row: dict[str, Any], document: dict[str, Any], place: str) -> None:
        origin = _text(row, "origin", place)
        algorithm = _text(document, "algorithm", place)
        if origin == algorithm == _IMPORTED and row.get("seed") is None:
            self._check_blocks(row, document, place)
            return
        if origin != "generated" or algorithm != ALGORITHM:
            raise Difference("malformed", f"{place} is neither imported nor made by {ALGORITHM}.")
        seed = _hex(row, "seed", place)
        for planned, stratum in zip(document["strata"], row["strata"], strict=True):
            made = recompute_stratum(document, planned, seed)
            held = [(slot[1], slot[2], slot[3]) for slot in stratum["slots"]]
            if made != held:
                code = stratum["stratum_code"]
                differing = (i for i, (a, b) in enumerate(zip(made, held, strict=False)) if a != b)
                position = next(differing, min(len(made), len(held)))
                message = (
                    f"{place}, stratum {code!r}, slot {position}: the seed and the specification give another list."
                )
                raise Difference("list_mismatch", message)

    def _check_blocks(self, row: dict[str, Any], document: dict[str, Any], place: str) -> None:
        """Compare a list that nobody can compute with what its specification says of lengths, block sizes and ratios."""
        ratios = {_text(arm, "arm_code", place): _int(arm, "ratio", place) for arm in _list(document, "arms", place)}
        sizes, is_cut = _numbers(document, "block_sizes"), _text(document, "fill", place) == "overrun"
        for planned, stratum in zip(document["strata"], row["strata"], strict=True):
            at = f"{place}, stratum {stratum['stratum_code']!r}"
            slots = stratum["slots"]
            if len(slots) != _int(planned, "length", at) + is_cut * max(sizes):
                raise Difference("list_mismatch", f"{at} has not as many slots as its specification says.")
            for number, (block, members) in enumerate(groupby(slots, key=lambda slot: slot[2])):
                group = list(members)
                arms, size = [slot[1] for slot in group], group[0][3]
                is_last = is_cut and group[-1] is slots[-1]
                sound = block == number and size in sizes and {slot[3] for slot in group} == {size}
                sound = sound and (len(group) == size or (is_last and len(group) < size))
                if not sound or any(arms.count(arm) * sum(ratios.values()) > size * ratios[arm] for arm in arms):
                    message = f"{at}, slot {group[0][0]}: the block that begins here is none of the specification's."
                    raise Difference("list_mismatch", message)

    def _list_root(self, row: dict[str, Any], document: dict[str, Any], place: str) -> bytes:
        """Return the root over the specification and the strata."""
        parts = [leaf(canonical(document).encode(), _hex(row, "specification_salt", place))]
        for stratum in row["strata"]:
            fields = (self.study, self.mode, row["list_id"], row["segment_number"], stratum["stratum_code"])
            head = encode("slot", *fields)
            message = f"{place}, stratum {stratum['stratum_code']!r}: a salt is not 32 bytes in hexadecimal digits."
            leaves = [
                leaf(head + encode(position, arm, block, size, number), _unhex(salt, message))
                for position, arm, block, size, number, salt in stratum["slots"]
            ]
            parts.append(merkle_root(leaves))
        return merkle_root(parts)

    # -- the kits

    def check_kits(self) -> None:
        """Compare every kit map with its commitment."""
        consignments = _list(self.document("kits.json"), "consignments", "kits.json")
        for row in consignments:
            place = f"Consignment {_text(row, 'consignment_code', 'A consignment')}"
            try:
                self._check_consignment(row, place)
            except Difference as difference:
                self.report.add(difference.kind, difference.message)
        codes = [row["consignment_code"] for row in consignments]
        self._none_left_out(_CREATE_KITS, "consignment_code", codes, "consignment")
        self.report.facts |= {"consignments": len(codes), "kits": len(self.kits)}

    def _check_consignment(self, row: dict[str, Any], place: str) -> None:
        code = row["consignment_code"]
        kits: dict[str, str] = {}
        leaves = []
        days = set()
        last = ""
        for kit in _list(row, "kits", place):
            kit_code, arm = _text(kit, "kit_code", place), _text(kit, "arm_code", place)
            if kit_code <= last:
                raise Difference(
                    "duplicate", f"{place}: kit {kit_code} is not in the order of the codes, or there twice."
                )
            last = kit_code
            if kit_code in self.kits:
                raise Difference("duplicate", f"Kit {kit_code} is in two consignments.")
            kits[kit_code] = arm
            days.add(_text(kit, "expires_on", place))
            fields = (code, kit_code, arm, _text(kit, "lot", place), _text(kit, "expires_on", place))
            leaves.append(leaf(encode("kit", self.study, self.mode, *fields), _hex(kit, "salt", place)))
        root = merkle_root(leaves)
        if root != _hex(row, "commitment", place):
            raise Difference("commitment_mismatch", f"{place}: its kits do not give its commitment.")
        if _text(row, "unusable_from", place) != min(days, default=""):
            message = f"{place} was given another last day than that of its kit that expires first."
            raise Difference("kit_mismatch", message)
        lines = [code, base64.b64encode(root).decode()]
        self._signed(_text(row, "commitment_note", place), "kit-commitment", lines, f"{place}, its commitment")
        committed_at = self._entry(_CREATE_KITS, "consignment_code", code, root, place)
        self.kits |= {kit_code: _Kit(arm, committed_at) for kit_code, arm in kits.items()}

    # -- the join: subject -> slot -> kit -> arm

    def check_allocations(self) -> None:
        """Verify that every subject got the next slot and kits of its arm, and that nobody is left out."""
        rows = _list(self.document("allocations.json"), "allocations", "allocations.json")
        used: dict[tuple[str, str], int] = {}
        subjects: set[str] = set()
        kits: set[str] = set()
        entries = {(one.log, one.index): one for one in self.entries.get(_ALLOCATE, [])}
        first = f"snose/{self.deployment}/{self.study}"
        for row in sorted(rows, key=lambda row: _log_place(row, first)):
            place = f"Subject {_text(row, 'subject_id', 'An allocation')}"
            at = _log_place(row, first)
            entry = entries.pop((first if at[0] == 1 else f"{first}~{at[0]}", at[1]), None)
            if row["subject_id"] in subjects:
                raise Difference("duplicate", f"{place} was allocated twice.")
            subjects.add(row["subject_id"])
            slot, arms = self._check_use(row, place, used, at)
            self._check_entry(row, place, entry)
            self._check_binding(row, place, slot, arms)
            self._check_first_kit(row, place, at)
            for kit in row["kits"]:
                self._check_kit(row, kit, place, kits)
            self._note_row(row, slot, arms)
        for log, index in sorted(entries):
            message = f"Entry {index} allocated a subject whom the package leaves out."
            self.report.add("left_out", message, log, index)
        self._check_given(rows)
        self.report.facts |= {"allocations": len(rows), "kits_assigned": len(kits)}

    def _check_given(self, rows: Sequence[dict[str, Any]]) -> None:
        """Verify that every kit that the trail says was given to a subject is among the subject's kits."""
        given = {(row["subject_id"], kit["kit_code"]) for row in rows for kit in row["kits"]}
        for action, name in _GIVEN_IN.items():
            for one in self.entries.get(action, []):
                target, after = one.entry["target"] or {}, one.entry["after"] or {}
                if (target.get("subject_id"), after.get(name)) not in given:
                    message = f"Entry {one.index} gave a kit to a subject whom the package shows without it."
                    self.report.add("left_out", message, one.log, one.index)

    def _check_use(
        self, row: dict[str, Any], place: str, used: dict[tuple[str, str], int], at: tuple[int, int]
    ) -> tuple[_Slot, Mapping[str, tuple[str, str]]]:
        """Return the slot of an allocation, which is the next one of its stratum, and the arms of its list."""
        schedule_id, code, position = (
            _text(row, "schedule_id", place),
            _text(row, "stratum_code", place),
            _int(row, "position", place),
        )
        segment = self.segments.get(schedule_id)
        if segment is None or code not in segment.strata:
            raise Difference("slot_mismatch", f"{place} stands on a list or in a stratum that was not approved.")
        if _site_of(code) not in {None, _text(row, "site_code", place)}:
            raise Difference("slot_mismatch", f"{place} of another site stands in stratum {code!r}.")
        expected = used.get((schedule_id, code), 0)
        slots = segment.strata[code]
        if position != expected or position >= len(slots):
            message = f"{place} has slot {position} of stratum {code!r}, where slot {expected} was the next."
            raise Difference("order_mismatch", message)
        used[schedule_id, code] = expected + 1
        for other_id, other in self.segments.items():
            earlier = other.list_id == segment.list_id and other.number < segment.number and code in other.strata
            if earlier and used.get((other_id, code), 0) < len(other.strata[code]):
                message = f"{place} has a slot of segment {segment.number} while segment {other.number} has slots left."
                raise Difference("order_mismatch", message)
        if _after(segment.committed_at, at):
            raise Difference("order_mismatch", f"{place} was allocated before its list was approved.")
        slot = slots[position]
        if _text(row, "randomization_number", place) != slot.randomization_number:
            raise Difference("slot_mismatch", f"{place} has another randomization number than its slot.")
        return slot, segment.arms

    def _check_entry(self, row: dict[str, Any], place: str, entry: Watched | None) -> None:
        """Compare an allocation with its entry in the trail."""
        allocated_at = _text(row, "allocated_at", place)
        kit_codes = [_text(kit, "kit_code", place) for kit in _list(row, "kits", place)]
        if entry is None:
            raise Difference(
                "entry_not_found", f"{place}: entry {row['log_index']} of the trail is not its allocation."
            )
        target, after = entry.entry["target"] or {}, entry.entry["after"] or {}
        if "reported_user" not in row:
            raise Difference("malformed", f"{place} does not tell its 'reported_user'.")
        levels = _levels_of(row["stratum_code"])
        strata = after.get("strata", levels)
        compared = {
            "subject_id": (target.get("subject_id"), row["subject_id"]),
            "site_code": (target.get("site_code", row["site_code"]), row["site_code"]),
            "randomization_number": (after.get("randomization_number"), row["randomization_number"]),
            "kit_code": (after.get("kit_code"), kit_codes[0] if kit_codes else None),
            "strata": (strata, levels),
            "strata_used": (strata, _object(row, "strata_used", place)),
            "allocated_by": (entry.entry["actor"], _text(row, "allocated_by", place)),
            "reported_user": (after.get("reported_user"), row["reported_user"]),
            "allocated_at": (after.get("allocated_at", allocated_at), allocated_at),
        }
        for name, (entered, told) in compared.items():
            if entered != told:
                message = f"{place}: its entry {entry.index} in the trail has another {name!r}."
                raise Difference("entry_mismatch", message)
        if entry.entry["at"] < allocated_at:
            raise Difference("entry_mismatch", f"{place}: its entry {entry.index} is older than the allocation.")

    def _check_binding(self, row: dict[str, Any], place: str, slot: _Slot, arms: Mapping[str, tuple[str, str]]) -> None:
        binding = _object(row, "binding", place)
        if _text(binding, "arm_code", place) != slot.arm:
            raise Difference("arm_mismatch", f"{place}: the binding and the slot are of different arms.")
        if _text(binding, "treatment", place) != arms[slot.arm][1]:
            raise Difference("arm_mismatch", f"{place}: the treatment in the binding is not that of the arm.")

    def _check_first_kit(self, row: dict[str, Any], place: str, at: tuple[int, int]) -> None:
        """Compare the kit of the allocation itself, whose entry is known, with the entry of its consignment."""
        code = row["kits"][0]["kit_code"]
        if code in self.kits and _after(self.kits[code].committed_at, at):
            raise Difference("order_mismatch", f"{place} has kit {code}, whose consignment was entered later.")

    def _check_kit(self, row: dict[str, Any], kit: dict[str, Any], place: str, kits: set[str]) -> None:
        code = _text(kit, "kit_code", place)
        known = self.kits.get(code)
        if known is None:
            raise Difference("kit_mismatch", f"{place} has kit {code}, which is in no consignment.")
        if code in kits:
            raise Difference("duplicate", f"Kit {code} was assigned twice.")
        kits.add(code)
        arm, treatment = _text(kit, "arm_code", place), _text(kit, "treatment", place)
        if not arm == known.arm == row["binding"]["arm_code"] or treatment != row["binding"]["treatment"]:
            raise Difference("arm_mismatch", f"{place}: kit {code} and the slot are of different arms.")
        times = [_text(kit, "assigned_at", place)]
        if kit.get("dispensed_at") is not None:
            times.append(_text(kit, "dispensed_at", place))
        if sorted(times) != times or times[0] < row["allocated_at"]:
            raise Difference("kit_mismatch", f"{place}: kit {code} was given out before it was assigned.")

    def _note_row(self, row: dict[str, Any], slot: _Slot, arms: Mapping[str, tuple[str, str]]) -> None:
        label, treatment = arms[slot.arm]
        codes = " ".join(kit["kit_code"] for kit in row["kits"])
        number = slot.randomization_number
        self.rows.append([row["subject_id"], number, slot.arm, label, treatment, codes, row["allocated_at"]])

    def check_list(self) -> None:
        """Compare the list for reading with the documents."""
        try:
            content = self.archive.read("list.csv").decode()
            read = list(csv.reader(io.StringIO(content, newline=""), strict=True))
        except KeyError:
            raise Difference("file_missing", "The package lacks list.csv.") from None
        except (*_BAD_ZIP, csv.Error) as error:
            raise Difference("malformed", f"list.csv cannot be read: {error}.") from None
        if read[:1] != [_CSV_HEADER]:
            raise Difference("malformed", f"list.csv does not begin with {','.join(_CSV_HEADER)}.")
        told = {row[0]: row for row in self.rows}
        for number, row in enumerate(read[1:], start=2):
            expected = told.pop(row[0].removeprefix("'") if row else "", None) or told.pop(row[0] if row else "", None)
            if expected is None or not _same_cells(row, expected):
                raise Difference(
                    "list_mismatch", f"Line {number} of list.csv says something else than allocations.json."
                )
        for subject in told:
            raise Difference("list_mismatch", f"list.csv leaves out subject {subject}.")


def _slot_words(slot: object, position: int, at: str) -> tuple[str, str]:
    """Return arm and randomization number of a slot that is well formed and in its place."""
    match slot:
        case [int(own), str(arm), int(block), int(size), str(number), str()] if bool not in map(
            type, (own, block, size)
        ):
            if own != position:
                raise Difference("list_mismatch", f"{at} says that it is slot {own}.")
            return arm, number
        case _:
            raise Difference("malformed", f"{at} is not [position, arm, block, block size, number, salt].")


def _log_place(row: dict[str, Any], first: str) -> tuple[int, int]:
    """Return segment and index of the entry of an allocation; raises Difference."""
    index = _int(row, "log_index", "An allocation")
    log = _text({"log": first} | row, "log", "An allocation")
    if log.partition("~")[0] != first:
        raise Difference("malformed", "An allocation names a log that is not the study's.")
    return _part(log), index


def _after(committed_at: tuple[str, int], at: tuple[int, int]) -> bool:
    return (_part(committed_at[0]), committed_at[1]) > at


def _site_of(stratum_code: str) -> str | None:
    first = stratum_code.partition(";")[0]
    return first.removeprefix("site=") if first.startswith("site=") else None


def _levels_of(stratum_code: str) -> dict[str, str]:
    """Return level by factor, the site left out."""
    pairs = (part.partition("=") for part in stratum_code.split(";") if part)
    return {factor: level for factor, _, level in pairs if factor != "site"}


def _same_cells(row: Sequence[str], expected: Sequence[str]) -> bool:
    """Return whether the cells are equal; one that a spreadsheet would take for a formula may carry an apostrophe."""
    if len(row) != len(expected):
        return False
    return all(a == b or (_FORMULA.match(b) and a == f"'{b}") for a, b in zip(row, expected, strict=True))


def verify_package(
    path: Path,
    *,
    keys: Sequence[str] = (),
    sinks: Sequence[Path] = (),
    checkpoints: Sequence[Path] = (),
    witnesses: Sequence[str] = (),
    advance: Advance = _silent,
) -> Report:
    """Return what is right and wrong with a final package: files, trail, lists, kit maps, and the join of all of them."""
    report = Report()
    try:
        archive = zipfile.ZipFile(path)
    except _BAD_ZIP as error:
        report.add("malformed", f"{path.name} is not a zip file: {error}.")
        return report
    with archive:
        package = _Package(archive, report)
        package.check(package.check_manifest)
        _warn_of_own_keys(report, keys)
        counted = package.check_keys(keys)
        package.check(package.check_signature)
        evidence = _evidence(sinks, checkpoints, report)
        known = Witnesses(witnesses, report)
        package.check(lambda: package.check_trail(counted, evidence, known, advance))
        for part in (
            package.check_schedules,
            package.check_kits,
            package.check_allocations,
            package.check_list,
        ):
            package.check(part)
    return report


# -- the command -------------------------------------------------------------------------------------------------------


class Progress:
    """Tells how far the reading is: a bar on a terminal, a plain line for every tenth elsewhere."""

    _WIDTH: Final = 30

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._bar = stream.isatty()
        self._told = -1

    def advance(self, what: str, done: int, total: int) -> None:
        """Tell that ``done`` of ``total`` bytes were read."""
        share = min(done / total, 1.0) if total else 1.0
        step = int(share * (100 if self._bar else 10))
        if step == self._told:
            return
        self._told = step
        if self._bar:
            filled = int(share * self._WIDTH)
            self._stream.write(f"\r{what} [{'#' * filled}{' ' * (self._WIDTH - filled)}] {share:4.0%}")
        else:
            self._stream.write(f"{what}: {share:.0%}\n")
        self._stream.flush()

    def close(self) -> None:
        """End the line of the bar."""
        if self._bar and self._told >= 0:
            self._stream.write("\n")


def _print_report(report: Report, out: IO[str]) -> None:
    for warning in report.warnings:
        out.write(f"note: {warning}\n")
    for name, value in report.facts.items():
        out.write(f"{name.replace('_', ' ')}: {value}\n")
    for origin, size in report.vouched.items():
        out.write(f"{origin}: vouched for up to size {size}\n")
    for origin, size in report.witnessed.items():
        out.write(f"{origin}: cosigned by a witness up to size {size}\n")
    for number, finding in enumerate(report.findings):
        out.write(f"{'first difference' if number == 0 else 'also'} [{finding.kind}]: {finding.message}\n")
    out.write("VERIFIED\n" if report.ok else "NOT VERIFIED\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="verifier", description="Verify a trail export or a final package, offline.")
    parser.add_argument("what", choices=["trail", "package"], help="what the file is")
    parser.add_argument("file", type=Path, help="the trail export (JSON Lines) or the final package (zip)")
    parser.add_argument("--sink", type=Path, action="append", default=[], help="a file of checkpoints kept elsewhere")
    parser.add_argument(
        "--key", action="append", default=[], help="a verification key known from elsewhere: name+hash+base64"
    )
    parser.add_argument(
        "--witness", action="append", default=[], help="the verification key of a witness, known from elsewhere"
    )
    parser.add_argument(
        "--checkpoint",
        type=Path,
        action="append",
        default=[],
        help="a signed checkpoint, or lines of Audit-Checkpoint headers",
    )
    parser.add_argument("--json", action="store_true", help="print one line of JSON")
    return parser


def main(arguments: Sequence[str] | None = None, out: IO[str] | None = None) -> int:
    """Run the command and return its exit status: 0 when all was verified, 1 when not, 2 when a file cannot be read."""
    chosen = _parser().parse_args(arguments)
    stream = sys.stdout if out is None else out
    progress = Progress(sys.stderr)
    verify = verify_trail if chosen.what == "trail" else verify_package
    try:
        report = verify(
            chosen.file,
            keys=chosen.key,
            sinks=chosen.sink,
            checkpoints=chosen.checkpoint,
            witnesses=chosen.witness,
            advance=progress.advance,
        )
    except (OSError, UnicodeDecodeError) as error:
        sys.stderr.write(f"A file cannot be read: {error}\n")
        return 2
    finally:
        progress.close()
    if chosen.json:
        stream.write(json.dumps({"ok": report.ok, **asdict(report)}, ensure_ascii=False) + "\n")
    else:
        _print_report(report, stream)
    return 0 if report.ok else 1


if __name__ == "__main__":
    sys.exit(main())
