"""The offline verifier: untouched evidence passes, every kind of tampering is found and named. [AUD-18, INT-07, SEQ-11, T9]"""

import base64
import io
import json
import random
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest

from app.domain.encoding import canonical_json
from app.domain.merkle import leaf_hash, tree_root
from app.domain.notes import final_package_text, join_note, list_commitment_text, split_note
from app.domain.schedules import Fill, Specification, generate_stratum
from app.domain.words import SiteCode
from app.sealing.cosigning import Cosigner
from app.verifier import (
    Progress,
    Report,
    canonical,
    main,
    parse_canonical,
    recompute_stratum,
    verify_package,
    verify_trail,
)
from tests.security.evidence_builders import (
    DEPLOYMENT,
    EXTENSION_ID,
    LIST_ID,
    ORIGIN,
    SIGNER,
    STUDY,
    THIEF,
    Package,
    Signer,
    Trail,
    entry,
    handover,
    list_rows,
    package,
    salt,
    schedule_row,
    sink_line,
    specification,
    trail_of,
    write_sink,
)

VERIFIER: Final = Path(__file__).parents[2] / "app" / "verifier.py"
WITNESS: Final = Cosigner("witness.example.org/w1", bytes(32))
OTHER_WITNESS: Final = Cosigner("witness.example.org/w1", bytes([1]) * 32)
COUNT: Final = 23
HELD: Final = (5, 12, 19)
"""Sizes of the checkpoints that the sink holds of the honest log."""


# -- trails: the sixteen ways of tampering -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Tampered:
    """What the verifier is given, and what it must answer."""

    trail: Trail | bytes
    sink: list[dict[str, Any]]
    kinds: set[str]
    index: int | None = None
    keys: tuple[str, ...] = (SIGNER.vkey,)
    witnesses: tuple[str, ...] = ()


def honest() -> Trail:
    return trail_of(entry(index) for index in range(COUNT))


def sink_of(trail: Trail) -> list[dict[str, Any]]:
    return [sink_line(trail, size) for size in HELD]


def cosigned_line(
    trail: Trail, size: int, signer: Signer = SIGNER, by: Cosigner = WITNESS, **changes: object
) -> dict[str, Any]:
    """A line of the sink, or of the witness's own record: the checkpoint with the log's signature and the witness's."""
    row = sink_line(trail, size, signer)
    text, signatures = split_note(row["note"])
    return row | {"note": join_note(text, [*signatures, by.cosign(text, 1_795_338_843)])} | changes


def edited(body: bytes, chance: random.Random) -> bytes:
    name = chance.choice(["actor", "role", "action", "outcome", "request_id"])
    return canonical_json(json.loads(body) | {name: f"x{chance.randrange(10**6)}"})


def bit_flip(trail: Trail, chance: random.Random) -> Tampered:
    index = chance.randrange(COUNT)
    body = bytearray(trail.bodies[index])
    body[chance.randrange(len(body))] ^= 1 << chance.randrange(8)
    sink = sink_of(trail)
    trail.bodies[index] = bytes(body)
    # A bit can turn a letter into a line feed, and one line into two.
    return Tampered(
        trail, sink, {"entry_altered"} if b"\n" not in body else {"malformed"}, None if b"\n" in body else index
    )


def body_edit(trail: Trail, chance: random.Random) -> Tampered:
    index, sink = chance.randrange(COUNT), sink_of(trail)
    trail.bodies[index] = edited(trail.bodies[index], chance)
    return Tampered(trail, sink, {"entry_altered"}, index)


def body_and_leaf_edit(trail: Trail, chance: random.Random) -> Tampered:
    index, sink = chance.randrange(COUNT), sink_of(trail)
    trail.bodies[index] = edited(trail.bodies[index], chance)
    trail.leaves[index] = leaf_hash(trail.bodies[index])
    return Tampered(trail, sink, {"root_mismatch"}, max((size for size in HELD if size <= index), default=0))


def rebuild_unsigned(trail: Trail, chance: random.Random) -> Tampered:
    index, sink, old = chance.randrange(COUNT), sink_of(trail), trail.checkpoint
    trail.bodies[index] = edited(trail.bodies[index], chance)
    trail.sign()
    text = trail.checkpoint.rpartition("\n\n")[0]
    trail.checkpoint = f"{text}\n\n{old.rpartition(chr(10) * 2)[2]}"
    return Tampered(trail, sink, {"bad_signature"})


def delete(trail: Trail, chance: random.Random) -> Tampered:
    index, sink = chance.randrange(COUNT - 1), sink_of(trail)
    count = chance.randint(1, min(3, COUNT - 1 - index))
    del trail.bodies[index : index + count], trail.leaves[index : index + count]
    return Tampered(trail, sink, {"entry_missing"}, index)


def swap(trail: Trail, chance: random.Random) -> Tampered:
    (one, other), sink = sorted(chance.sample(range(COUNT), 2)), sink_of(trail)
    for rows in (trail.bodies, trail.leaves):
        rows[one], rows[other] = rows[other], rows[one]
    return Tampered(trail, sink, {"entry_moved"}, one)


def duplicate(trail: Trail, chance: random.Random) -> Tampered:
    index, sink = chance.randrange(COUNT), sink_of(trail)
    place = chance.randint(index + 1, COUNT)
    trail.bodies.insert(place, trail.bodies[index])
    trail.leaves.insert(place, trail.leaves[index])
    return Tampered(trail, sink, {"entry_duplicated"}, place)


def insert(trail: Trail, chance: random.Random) -> Tampered:
    place, sink = chance.randrange(COUNT), sink_of(trail)
    forged = edited(canonical_json(entry(chance.choice([place, COUNT + 5]), at=entry(place)["at"])), chance)
    trail.bodies.insert(place, forged)
    trail.leaves.insert(place, leaf_hash(forged))
    return Tampered(trail, sink, {"entry_inserted"})


def truncate(trail: Trail, chance: random.Random) -> Tampered:
    size, sink = chance.randrange(COUNT), sink_of(trail)
    del trail.bodies[size:], trail.leaves[size:]
    return Tampered(trail, sink, {"truncated"}, size)


def truncate_to_older_checkpoint(trail: Trail, chance: random.Random) -> Tampered:
    size, sink = chance.randrange(HELD[-1]), sink_of(trail)
    del trail.bodies[size:]
    return Tampered(trail.sign(), sink, {"rolled_back"}, size)


def fork(trail: Trail, chance: random.Random) -> Tampered:
    place, sink = chance.randrange(HELD[-1]), sink_of(trail)
    trail.bodies[place:] = [edited(body, chance) for body in trail.bodies[place:]]
    return Tampered(trail.sign(), sink, {"forked"}, max((size for size in HELD if size <= place), default=0))


def other_key(trail: Trail, chance: random.Random) -> Tampered:
    sink = sink_of(trail)
    pinned = chance.choice([(SIGNER.vkey,), ()])
    return Tampered(trail.sign(THIEF), sink, {"unknown_key"}, None, pinned)


def stolen_key(trail: Trail, chance: random.Random) -> Tampered:
    """Whoever has database, sink and signing key writes all three anew; the witness has seen the honest log."""
    index = chance.randrange(HELD[-1])
    size = chance.choice([held for held in HELD if held > index])
    seen = [cosigned_line(trail, held) for held in HELD if held <= size]
    trail.bodies[index] = edited(trail.bodies[index], chance)
    trail.sign()
    matched = max((held for held in HELD if held <= index), default=0)
    return Tampered(trail, [*sink_of(trail), *seen], {"witness_forked"}, matched, witnesses=(WITNESS.vkey,))


def delete_above_the_sink(trail: Trail, chance: random.Random) -> Tampered:
    sink = sink_of(trail)
    index = chance.randrange(HELD[-1], COUNT)
    del trail.bodies[index], trail.leaves[index]
    return Tampered(trail, sink, {"truncated" if index == COUNT - 1 else "entry_missing"}, index)


def sink_edit(trail: Trail, chance: random.Random) -> Tampered:
    sink = sink_of(trail)
    row = chance.choice(sink)
    match chance.randrange(5):
        case 0:
            row["size"] += chance.choice([-1, 1])
        case 1:
            row["root"] = base64.b64encode(chance.randbytes(32)).decode()
        case 2:
            row["note"] = row["note"].replace("\n", f"\n{chance.randint(1, 9)}", 1)
        case 3:
            row["origin"] += "x"
        case _:
            row["note"] = sink[(sink.index(row) + 1) % len(sink)]["note"]
    return Tampered(trail, sink, {"sink_altered"})


def time_backwards(trail: Trail, chance: random.Random) -> Tampered:
    index = chance.randrange(1, COUNT)
    body = json.loads(trail.bodies[index])
    trail.bodies[index] = canonical_json(body | {"at": body["at"].replace("2026-11-22", "2026-11-21")})
    return Tampered(trail.sign(), [], {"time_backwards"}, index)


OPERATORS: Final[list[Callable[[Trail, random.Random], Tampered]]] = [
    bit_flip,
    body_edit,
    body_and_leaf_edit,
    rebuild_unsigned,
    delete,
    swap,
    duplicate,
    insert,
    truncate,
    truncate_to_older_checkpoint,
    fork,
    other_key,
    stolen_key,
    delete_above_the_sink,
    sink_edit,
    time_backwards,
]
EACH: Final = 64


def verified(tmp_path: Path, tampered: Tampered) -> Report:
    path = tmp_path / "export.jsonl"
    if isinstance(tampered.trail, Trail):
        tampered.trail.write(path)
    else:
        path.write_bytes(tampered.trail)
    sink = write_sink(tmp_path / "sink.jsonl", tampered.sink)
    return verify_trail(path, keys=tampered.keys, sinks=[sink], witnesses=tampered.witnesses)


def check_each(operator: Callable[[Trail, random.Random], Tampered], tmp_path: Path, times: int) -> None:
    for number in range(times):
        tampered = operator(honest(), random.Random(f"{operator.__name__} {number}"))
        report = verified(tmp_path, tampered)
        assert report.first is not None, number
        assert report.first.kind in tampered.kinds, (number, report.first)
        if tampered.index is not None:
            assert report.first.index == tampered.index, (number, report.first)


def check_untouched(tmp_path: Path, times: int) -> None:
    for number in range(times):
        chance = random.Random(number)
        size = chance.randrange(60)
        trail = trail_of(entry(index, after={"b": [1, "x", None], "é": {"a": -5}}) for index in range(size))
        sink = [sink_line(trail, chance.randint(0, size)) for _ in range(3)]
        seen = cosigned_line(trail, chance.randint(0, size))
        report = verified(tmp_path, Tampered(trail, [*sink, seen], set(), witnesses=(WITNESS.vkey,)))
        assert report.findings == []
        assert report.vouched == {ORIGIN: size}
        assert report.witnessed == {ORIGIN: seen["size"]}
        assert report.facts == {"entries": size, "checkpoints_held": 4, "checkpoints_of_other_logs": 0}


class TestTamperedTrails:
    @pytest.mark.parametrize("operator", OPERATORS, ids=lambda operator: operator.__name__)
    def test_found_and_named(self, operator: Callable[[Trail, random.Random], Tampered], tmp_path: Path) -> None:
        """Each of sixteen kinds of tampering, sixty-four times: all found, all rightly named. [AUD-18]"""
        check_each(operator, tmp_path, EACH)

    @pytest.mark.long
    @pytest.mark.timeout(0)
    @pytest.mark.parametrize("operator", OPERATORS, ids=lambda operator: operator.__name__)
    def test_ten_thousand(self, operator: Callable[[Trail, random.Random], Tampered], tmp_path: Path) -> None:
        """The same 640 times each: 10,240 in all. [AUD-18, T9]"""
        check_each(operator, tmp_path, 640)

    def test_mark_of_an_entry_found_by_something_else(self, tmp_path: Path) -> None:
        """The service says that its look-up columns were changed: named at its place, its text still read. [AUD-18, E4]"""
        lines = list(honest().lines())
        mark = b',"lookup":"altered"}\n'
        marked = [line.removesuffix(b"}\n") + mark if number == 6 else line for number, line in enumerate(lines)]
        report = verified(tmp_path, Tampered(b"".join(marked), [], set()))
        assert [(found.kind, found.index) for found in report.findings] == [("lookup_altered", 5)]
        marked[6] = marked[6].replace(b"nurse.li", b"nurse.wu")
        report = verified(tmp_path, Tampered(b"".join(marked), [], set()))
        assert [(found.kind, found.index) for found in report.findings] == [("lookup_altered", 5), ("entry_altered", 5)]
        marked[6] = lines[6].removesuffix(b"}\n") + mark + mark
        assert not verified(tmp_path, Tampered(b"".join(marked), [], set())).ok

    def test_any_byte(self, tmp_path: Path) -> None:
        """Five hundred changed bytes anywhere in an export: none passes. [AUD-18]"""
        chance, whole = random.Random(9), b"".join(honest().lines())
        for _ in range(500):
            place = chance.randrange(len(whole))
            changed = whole[:place] + bytes([whole[place] ^ chance.randint(1, 255)]) + whole[place + 1 :]
            report = verified(tmp_path, Tampered(changed, [], set()))
            assert not report.ok, place
            assert report.vouched.get(ORIGIN, 0) in {0, COUNT}

    def test_vouches_below_the_first_fault(self, tmp_path: Path) -> None:
        """What lies under an older checkpoint that still fits is vouched for, and nothing above. [AUD-18]"""
        trail = honest()
        sink = sink_of(trail)
        trail.bodies[15] = trail.bodies[15].replace(b"nurse.li", b"nurse.wu")
        assert verified(tmp_path, Tampered(trail, sink, set())).vouched == {ORIGIN: 12}


class TestUntouchedTrails:
    def test_pass(self, tmp_path: Path) -> None:
        """The negative control: two hundred untouched logs of any size pass, and all of each is vouched for."""
        check_untouched(tmp_path, 200)

    @pytest.mark.long
    @pytest.mark.timeout(0)
    def test_a_thousand(self, tmp_path: Path) -> None:
        """The same with a thousand. [T9]"""
        check_untouched(tmp_path, 1000)

    def test_odd_but_canonical_entries(self, tmp_path: Path) -> None:
        """Escapes, other scripts and names beyond the Basic Multilingual Plane are read as RFC 8785 says."""
        odd = {"\U0001f600": 1, "\ufb33": 2, 'quote"\\': "line\nfeed \u007f \u2028", "z": [{"deep": [True, False]}]}
        report = verified(tmp_path, Tampered(trail_of([entry(0, after=odd), entry(1)]), [], set()))
        assert report.ok

    def test_checkpoints_of_other_logs(self, tmp_path: Path) -> None:
        """The sink of a deployment holds the checkpoints of all its logs; those of others are passed over."""
        other = trail_of([entry(0, log=f"{ORIGIN}2")], origin=f"{ORIGIN}2")
        report = verified(tmp_path, Tampered(honest(), [sink_line(other, 1)], set()))
        assert report.ok
        assert report.facts["checkpoints_of_other_logs"] == 1

    def test_line_torn_by_a_crash(self, tmp_path: Path) -> None:
        """A line of the sink that a crash cut short is told, and is no tampering; a changed one is. [INT-07]"""
        trail = honest()
        path, sink = trail.write(tmp_path / "e"), tmp_path / "s"
        whole = json.dumps(sink_line(trail, 5))
        sink.write_text(f"{whole}\n\n{whole[:70]}\n{whole}\n", encoding="utf-8")
        report = verify_trail(path, keys=[SIGNER.vkey], sinks=[sink])
        assert report.ok
        assert "torn" in report.warnings[0]
        sink.write_text(f"{whole[:-1]}]\n", encoding="utf-8")
        first = verify_trail(path, keys=[SIGNER.vkey], sinks=[sink]).first
        assert first is not None
        assert first.kind == "sink_altered"

    def test_own_keys(self, tmp_path: Path) -> None:
        """Without a key from elsewhere the report says that nobody vouches for those in the file."""
        path = honest().write(tmp_path / "e")
        assert "No key was given" in verify_trail(path).warnings[0]
        assert verify_trail(path, keys=[SIGNER.vkey]).warnings == []


class TestWitness:
    """Checkpoints that somebody else has seen, and cosigned. [AUD-18, E4]"""

    def verify(
        self, tmp_path: Path, trail: Trail, sink: list[dict[str, Any]], *witnesses: str, signer: Signer = SIGNER
    ) -> Report:
        return verified(tmp_path, Tampered(trail, sink, set(), None, (signer.vkey,), witnesses))

    def kinds(self, report: Report) -> list[str]:
        return [finding.kind for finding in report.findings]

    def test_not_asked_about(self, tmp_path: Path) -> None:
        """Without the witness's key its line is one of a stranger, as C2SP has it: nothing is claimed of it."""
        trail = honest()
        report = self.verify(tmp_path, trail, [cosigned_line(trail, 12)])
        assert report.ok
        assert report.witnessed == {}

    def test_has_seen_nothing(self, tmp_path: Path) -> None:
        """Whoever writes everything anew must leave the cosignatures out: their absence is named, log by log."""
        trail = honest()
        for line in (sink_line(trail, 12), cosigned_line(trail, 12, by=OTHER_WITNESS)):
            report = self.verify(tmp_path, trail, [line], WITNESS.vkey)
            assert self.kinds(report) == ["not_witnessed"]
            assert report.witnessed == {ORIGIN: 0}
            assert report.vouched == {ORIGIN: COUNT}

    def test_has_seen_more(self, tmp_path: Path) -> None:
        """A log that is shorter than the witness saw it was cut off, whoever signed it anew."""
        trail = honest()
        seen = cosigned_line(trail, 19)
        del trail.bodies[15:]
        report = self.verify(tmp_path, trail.sign(), [seen], WITNESS.vkey)
        assert self.kinds(report) == ["rolled_back"]

    def test_has_seen_a_part(self, tmp_path: Path) -> None:
        """What lies above the newest cosignature is not vouched for by the witness; the report tells up to where it is."""
        trail = honest()
        sink = [cosigned_line(trail, 5), cosigned_line(trail, 12), sink_line(trail, 19)]
        trail.bodies[14] = edited(trail.bodies[14], random.Random(1))
        trail.sign()
        report = self.verify(tmp_path, trail, sink[:2], WITNESS.vkey)
        assert report.ok
        assert report.witnessed == {ORIGIN: 12}

    def test_names_the_stolen_key(self, tmp_path: Path) -> None:
        """A fork that is signed with the log's own key is named as one, with the time and the place of what was seen. [T9]"""
        trail = honest()
        seen = cosigned_line(trail, 12)
        trail.bodies[7] = edited(trail.bodies[7], random.Random(1))
        report = self.verify(tmp_path, trail.sign(), [seen], WITNESS.vkey)
        first = report.findings[0]
        assert (first.kind, first.index, first.log) == ("witness_forked", 0, ORIGIN)
        for words in ("witness.example.org/w1", "2026-11-22T", "entries 0 to 11", "has that key"):
            assert words in first.message
        assert report.witnessed == {ORIGIN: 0}

    def test_cosignature_that_does_not_hold(self, tmp_path: Path) -> None:
        """A changed time, text or signature is named; so is one that is too short."""
        trail = honest()
        good = cosigned_line(trail, 12)
        text, (own, line) = split_note(good["note"])
        for signature in (b"\0" + line.signature[1:8] + bytes(64), line.signature[:20], b"\xff" + line.signature[1:]):
            note = join_note(text, [own, line._replace(signature=signature)])
            report = self.verify(tmp_path, trail, [good, good | {"note": note}], WITNESS.vkey)
            assert self.kinds(report) == ["bad_cosignature"]

    def test_key_that_is_none(self, tmp_path: Path) -> None:
        """The key of a log is none of a witness."""
        trail = honest()
        report = self.verify(tmp_path, trail, [cosigned_line(trail, 12)], SIGNER.vkey)
        assert "malformed" in self.kinds(report)

    def test_in_the_header(self, tmp_path: Path) -> None:
        """An export whose own checkpoint is cosigned carries the proof with it."""
        trail = honest()
        trail.checkpoint = cosigned_line(trail, COUNT)["note"]
        report = self.verify(tmp_path, trail, [], WITNESS.vkey)
        assert report.ok
        assert report.witnessed == {ORIGIN: COUNT}

    def test_of_a_package(self, tmp_path: Path, whole: Package) -> None:
        """The trail inside a final package is held against the witness too."""
        sink = write_sink(tmp_path / "s", [cosigned_line(whole.trail, 9)])
        path = whole.write(tmp_path / "p.zip")
        report = verify_package(path, keys=[SIGNER.vkey], sinks=[sink], witnesses=[WITNESS.vkey])
        assert (report.ok, report.witnessed) == (True, {ORIGIN: 9})
        assert verify_package(path, keys=[SIGNER.vkey], witnesses=[WITNESS.vkey]).findings[0].kind == "not_witnessed"

    def test_on_the_command_line(self, tmp_path: Path) -> None:
        """`--witness` takes the key; the report tells up to which size it has seen the log."""
        trail, out = honest(), io.StringIO()
        sink = write_sink(tmp_path / "s", [cosigned_line(trail, 12)])
        path = trail.write(tmp_path / "e")
        status = main(
            ["trail", str(path), "--sink", str(sink), "--key", SIGNER.vkey, "--witness", WITNESS.vkey], out=out
        )
        assert status == 0
        assert f"{ORIGIN}: cosigned by a witness up to size 12" in out.getvalue()


class TestHeaders:
    @pytest.mark.parametrize(
        ("change", "kind"),
        [
            ({"size": COUNT + 1}, "size_mismatch"),
            ({"origin": ORIGIN + "x"}, "wrong_log"),
            ({"snose_trail_export": 2}, "malformed"),
            ({"keys": "none"}, "malformed"),
            ({"keys": [1]}, "malformed"),
            ({"keys": ["no key"]}, "malformed"),
            ({"keys": [SIGNER.vkey, THIEF.vkey]}, "unknown_key"),
            ({"keys": [Signer(1, "other").vkey]}, "unknown_key"),
            ({"checkpoint": "no note"}, "bad_signature"),
            ({"checkpoint": "a\n\n- x\n"}, "bad_signature"),
            ({"checkpoint": "a\n\n\u2014  AAAAAAAA\n"}, "bad_signature"),
            ({"checkpoint": SIGNER.note("signed, but no checkpoint\n")}, "malformed"),
            ({"checkpoint": SIGNER.note(f"{ORIGIN}\n07\nAAAA\n")}, "malformed"),
            ({"checkpoint": f"a\n\n\u2014 {SIGNER.key.name} AAAAAAB=\n"}, "bad_signature"),
            ({"handovers": ["no note"]}, "bad_handover"),
            ({"handovers": ["no note"] * 200}, "bad_handover"),
            ({"handovers": [SIGNER.note("snose/v1/other\nd\n" + f"{SIGNER.vkey}\n{THIEF.vkey}\n")]}, "bad_handover"),
            ({"handovers": [handover(SIGNER, THIEF, [THIEF])]}, "bad_handover"),
        ],
    )
    def test_changed(self, change: dict[str, Any], kind: str, tmp_path: Path) -> None:
        """A header that does not fit its entries is named, in a hundred findings at most. [AUD-18]"""
        header, *rows = honest().lines()
        changed = canonical_json(json.loads(header) | change) + b"\n" + b"".join(rows)
        report = verified(tmp_path, Tampered(changed, [], set(), keys=()))
        assert kind in {finding.kind for finding in report.findings}, report.findings
        assert len(report.findings) <= 101

    @pytest.mark.parametrize("content", [b"", b"\n", b"[]\n", b'{"body":{}}\n', b"\xff\n", b"[" * 100_000 + b"\n"])
    def test_not_an_export(self, content: bytes, tmp_path: Path) -> None:
        """A file that is something else is said to be so, whatever it is."""
        report = verified(tmp_path, Tampered(content, [], set()))
        assert report.first is not None
        assert report.first.kind == "malformed"

    def test_entries_under_no_checkpoint(self, tmp_path: Path) -> None:
        """Entries added behind the checkpoint are not vouched for."""
        trail = honest()
        more = canonical_json(entry(COUNT))
        trail.bodies.append(more)
        trail.leaves.append(leaf_hash(more))
        report = verified(tmp_path, Tampered(trail, [], set()))
        assert report.first is not None
        assert (report.first.kind, report.first.index) == ("entries_uncovered", COUNT)
        assert report.vouched == {ORIGIN: COUNT}


class TestBodies:
    @pytest.mark.parametrize(
        "change",
        [
            lambda body: body.replace(b'"actor":', b'"actor": '),
            lambda body: body.replace(b'{"action"', b'{"a":1,"action"'),
            lambda body: body.replace(b'"v":1', b'"v":2'),
            lambda body: body.replace(b'"v":1', b'"v":1.0'),
            lambda body: body.replace(b'"after":null', b'"after":NaN'),
            lambda body: body.replace(b'"after":null', b'"after":{"b":1,"a":2}'),
            lambda body: body.replace(b'"after":null', b'"after":{"a":1,"a":1}'),
            lambda body: body.replace(b'"after":null', b'"after":{"a":-0}'),
            lambda body: body.replace(b'"after":null', b'"after":{"a":9007199254740992}'),
            lambda body: body.replace(b'"after":null', b'"after":[[9007199254740992]]'),
            lambda body: body.replace(b'"after":null', b'"after":{"a":"\\u0041"}'),
            lambda body: body.replace(b'"after":null', b'"after":{"a":"\\ud800"}'),
            lambda body: body.replace(b'"after":null', '"after":{"\ufb33":1,"\U0001f600":2}'.encode()),
            lambda body: body.replace(b'"after":null', b'"after":' + b"[" * 100_000 + b"]" * 100_000),
            lambda body: body.replace(b'"index":3', b'"index":"3"'),
            lambda body: body.replace(b'"index":3', b'"index":true'),
            lambda body: body.replace(b".000000+00:00", b"+00:00"),
            lambda body: body.replace(b"2026-11-22", b"2026-13-22"),
            lambda body: body.replace(b"nurse.li", b"nurse\xff"),
            lambda _body: b"[]",
        ],
    )
    def test_not_canonical(self, change: Callable[[bytes], bytes], tmp_path: Path) -> None:
        """A signed entry that is not the one canonical text of version 1 is refused: two readers might differ. [AUD-18]"""
        trail = honest()
        assert change(trail.bodies[3]) != trail.bodies[3]
        trail.bodies[3] = change(trail.bodies[3])
        report = verified(tmp_path, Tampered(trail.sign(), [], set()))
        assert report.first is not None
        assert (report.first.kind, report.first.index) == ("malformed", 3)
        assert report.vouched == {ORIGIN: 0}

    def test_foreign_entry(self, tmp_path: Path) -> None:
        """An entry of another log is named."""
        trail = trail_of(entry(index, log=ORIGIN if index != 4 else f"{ORIGIN}x") for index in range(9))
        first = verified(tmp_path, Tampered(trail, [], set())).first
        assert first is not None
        assert (first.kind, first.index) == ("wrong_log", 4)

    def test_many_faults(self, tmp_path: Path) -> None:
        """A log that is wrong throughout gives its first hundred faults, the first one first."""
        trail = trail_of(entry(index) for index in range(300))
        trail.bodies = [body.replace(b"nurse.li", b"nurse.wu") for body in trail.bodies]
        report = verified(tmp_path, Tampered(trail, [], set()))
        assert [finding.index for finding in report.findings] == list(range(100))

    def test_fast_and_slow_reading_agree(self) -> None:
        """Canonical text is what the service's own RFC 8785 library writes, and nothing else is taken."""
        chance = random.Random(8785)

        def value(depth: int) -> object:
            kind = chance.randrange(7 if depth else 5)
            if kind == 5:
                return [value(depth - 1) for _ in range(chance.randrange(4))]
            if kind == 6:
                return {text(): value(depth - 1) for _ in range(chance.randrange(5))}
            return [None, True, chance.randint(-(2**53) + 1, 2**53 - 1), text(), 0][kind]

        def text() -> str:
            return "".join(
                chance.choice('ab"\\\n\x01\x7f\u2028é\ue000\ufb33\U0001f600\U00010000')
                for _ in range(chance.randrange(4))
            )

        for _ in range(500):
            made = {text(): value(3) for _ in range(4)}
            spelt = canonical_json(made).decode()
            assert canonical(made) == spelt
            assert parse_canonical(spelt) == made


class TestKeysAndContinuations:
    def test_handover(self, tmp_path: Path) -> None:
        """A new key that the old one handed over to is trusted through either of the two. [AUD-18]"""
        new, newest = Signer(2), Signer(3)
        trail = honest()
        sink = sink_of(trail)
        trail.sign(newest)
        trail.keys = [SIGNER.vkey, new.vkey, newest.vkey]
        trail.handovers = [handover(new, newest), handover(SIGNER, new)]
        for keys in ((SIGNER.vkey,), (newest.vkey,), ()):
            assert verified(tmp_path, Tampered(trail, sink, set(), keys=keys)).ok

    def test_two_successors(self, tmp_path: Path) -> None:
        """A key that hands over twice is suspect: a retired key was used again."""
        trail = honest()
        trail.handovers = [handover(SIGNER, Signer(2)), handover(SIGNER, THIEF)]
        first = verified(tmp_path, Tampered(trail, [], set())).first
        assert first is not None
        assert first.kind == "key_fork"

    def continued(self) -> tuple[Trail, Trail]:
        second = f"{ORIGIN}~2"
        return honest(), trail_of((entry(index, log=second) for index in range(4)), origin=second)

    def test_continuation(self, tmp_path: Path) -> None:
        """A log that was continued after a suspected fork is verified part by part."""
        one, two = self.continued()
        sink = [*sink_of(one), sink_line(two, 3)]
        content = b"".join([*one.lines(), *two.lines()])
        report = verified(tmp_path, Tampered(content, sink, set()))
        assert report.ok
        assert report.vouched == {ORIGIN: COUNT, f"{ORIGIN}~2": 4}

    def test_continuation_left_out(self, tmp_path: Path) -> None:
        """An export that ends before a continuation that somebody has seen is older, or cut off. [INT-07]"""
        one, two = self.continued()
        first = verified(tmp_path, Tampered(one, [sink_line(two, 3)], set())).first
        assert first is not None
        assert first.kind == "rolled_back"

    def test_earlier_part_left_out(self, tmp_path: Path) -> None:
        """A continuation alone verifies, with a word about the part that is not there."""
        one, two = self.continued()
        report = verified(tmp_path, Tampered(two, [sink_line(one, 3)], set()))
        assert report.ok
        assert "leaves out" in report.warnings[0]

    def test_wrong_continuation(self, tmp_path: Path) -> None:
        """Parts out of order, or of another log, are named."""
        one, two = self.continued()
        other = trail_of([entry(0, log=f"{ORIGIN}x~2")], origin=f"{ORIGIN}x~2")
        for trails in ((two, one), (one, one), (one, other)):
            content = b"".join(line for trail in trails for line in trail.lines())
            first = verified(tmp_path, Tampered(content, [], set())).first
            assert first is not None
            assert first.kind == "wrong_log"


class TestKeptCheckpoints:
    def check(self, tmp_path: Path, trail: Trail, kept: str) -> Report:
        path = tmp_path / "kept"
        path.write_text(kept, encoding="utf-8")
        return verify_trail(trail.write(tmp_path / "e"), keys=[SIGNER.vkey], checkpoints=[path])

    def receipt(self, trail: Trail, size: int) -> str:
        note = SIGNER.checkpoint(trail.leaves[:size])
        return f"{size} {base64.b64encode(tree_root(trail.leaves[:size])).decode()} {note.rstrip().rsplit(' ', 1)[1]}"

    def test_note_and_headers(self, tmp_path: Path) -> None:
        """A note, and the Audit-Checkpoint headers that an EDC system kept, are evidence."""
        trail = honest()
        assert self.check(tmp_path, trail, SIGNER.checkpoint(trail.leaves[:7])).facts["checkpoints_held"] == 1
        headers = f"{self.receipt(trail, 3)}\nAudit-Checkpoint: {self.receipt(trail, 20)}\n"
        report = self.check(tmp_path, trail, headers)
        assert report.ok
        assert report.facts["checkpoints_held"] == 2

    def test_against_a_shorter_or_other_history(self, tmp_path: Path) -> None:
        """A header kept outside shows a rollback and a fork that the service's own files hide. [INT-07]"""
        trail = honest()
        kept = self.receipt(trail, 20)
        del trail.bodies[18:]
        first = self.check(tmp_path, trail.sign(), kept).first
        assert first is not None
        assert first.kind == "rolled_back"
        other = trail_of(entry(index, actor="nurse.wu") for index in range(COUNT))
        first = self.check(tmp_path, other, kept).first
        assert first is not None
        assert first.kind == "forked"

    def test_changed(self, tmp_path: Path) -> None:
        """Kept evidence that is not signed as it stands proves nothing, and is named."""
        trail = honest()
        for kept, kind in (
            ("", "malformed"),
            ("something else", "malformed"),
            (SIGNER.checkpoint(trail.leaves[:7]).replace("\n7\n", "\n8\n"), "bad_signature"),
            (self.receipt(trail, 20).replace("20 ", "21 "), "bad_signature"),
            (THIEF.checkpoint(trail.leaves[:7]), "unknown_key"),
        ):
            first = self.check(tmp_path, trail, kept).first
            assert first is not None
            assert first.kind == kind


# -- final packages ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole() -> Package:
    return package()


def check(tmp_path: Path, made: Package, instead: dict[str, bytes | None] | None = None) -> Report:
    path = made.write(tmp_path / "final.zip", instead)
    return verify_package(path, keys=[SIGNER.vkey])


class TestUntouchedPackages:
    @pytest.mark.parametrize("imported", [False, True])
    def test_pass(self, imported: bool, tmp_path: Path) -> None:
        """Generated and imported lists verify; the imported one cannot be computed anew, and this is said. [A8, SEQ-11]"""
        report = check(tmp_path, package(imported=imported))
        assert report.findings == []
        assert report.facts == {
            "entries": 27,
            "checkpoints_held": 0,
            "checkpoints_of_other_logs": 0,
            "lists": 3,
            "lists_not_recomputable": int(imported),
            "slots": 12 + 24 + 12,
            "consignments": 2,
            "kits": 28,
            "allocations": 11,
            "kits_assigned": 16,
        }

    @pytest.mark.parametrize(
        ("slot", "words"),
        [
            ([0, "A", 0, 2], "the block that begins here"),
            ([0, "B", 1, 4], "the block that begins here"),
            (None, "not as many slots"),
        ],
    )
    def test_an_imported_list_that_is_not_its_specification(
        self, slot: list[Any] | None, words: str, tmp_path: Path
    ) -> None:
        """What nobody can compute anew is held to lengths, block sizes and ratios. [A3, SEQ-16]"""
        made = package(imported=True)
        slots = made.schedules[0]["strata"][0]["slots"]
        slots[:1] = [] if slot is None else [[*slot, *slots[0][4:]]]
        if slot is None:
            for position, one in enumerate(slots):
                one[0] = position
        found = [finding for finding in check(tmp_path, made).findings if finding.kind == "list_mismatch"]
        assert words in found[0].message

    def test_an_imported_list_with_a_wrong_arm(self, tmp_path: Path) -> None:
        """One arm too many in a block, and the block is named. [A3, SEQ-16]"""
        made = package(imported=True)
        slots = made.schedules[0]["strata"][0]["slots"]
        slots[0][1] = next(arm for arm in "AB" if arm != slots[0][1])
        found = [finding for finding in check(tmp_path, made).findings if finding.kind == "list_mismatch"]
        assert "slot 0: the block that begins here" in found[0].message

    def test_without_a_key(self, tmp_path: Path, whole: Package) -> None:
        """The package's own keys do, with a note that nobody vouches for them."""
        report = verify_package(whole.write(tmp_path / "p.zip"))
        assert report.ok
        assert len(report.warnings) == 1

    def test_formula_in_a_spreadsheet(self, tmp_path: Path, whole: Package) -> None:
        """A cell that a spreadsheet would run may carry an apostrophe."""
        made = whole.copy()
        made.allocations[0]["subject_id"] = "-1"
        bodies = [json.loads(body) for body in made.trail.bodies]
        for body in bodies:
            if body["action"] == "allocation:create" and body["target"]["subject_id"] == "01-0000":
                body["target"]["subject_id"] = "-1"
        made.trail = trail_of(bodies)
        made.rows = list_rows(made)
        assert check(tmp_path, made).ok
        made.rows[1][0] = "'-1"
        assert check(tmp_path, made).ok


# What a package tells beside what can be derived: the signature of the manifest alone covers it.
NOT_DERIVABLE: Final = {"created_at", "visit", "assigned_at", "dispensed_at"}


FIELDS: Final = {"schedules": 546, "consignments": 180, "allocations": 251, "keys": 3, "rows": 96, "manifest": 4}
"""How many values each document of the built package has."""


def fields(value: object, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value in a document."""
    if path:
        yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, inner in items:
        yield from fields(inner, (*path, name))


def changed(value: object, chance: random.Random) -> object:
    """Something else of the same type."""
    other: object
    match value:
        case bool():
            other = not value
        case int():
            other = value + chance.choice([-1, 1, 5])
        case str() if value and set(value) <= set("0123456789abcdef"):
            other = value[:-1] + ("0" if value[-1] != "0" else "1")
        case str():
            other = value + "x"
        case list() if len(value) > 1:
            choices = [value[:-1], [*value, value[0]], value[::-1]]
            other = chance.choice([choice for choice in choices if choice != value])
        case list():
            other = [*value, *value] or ["x"]
        case dict():
            gone = chance.choice(sorted(set(value) - NOT_DERIVABLE))
            other = {name: inner for name, inner in value.items() if name != gone}
        case _:
            other = "x"
    return other


def mutated(made: Package, part: str, path: tuple[Any, ...], chance: random.Random) -> Package:
    other = made.copy()
    holder = getattr(other, part)
    for step in path[:-1]:
        holder = holder[step]
    holder[path[-1]] = changed(holder[path[-1]], chance)
    return other


class TestTamperedPackages:
    @pytest.mark.parametrize("part", ["schedules", "consignments", "allocations", "keys", "rows", "manifest"])
    def test_each_field(self, part: str, tmp_path: Path, whole: Package) -> None:
        """Every value of every document is changed by one who can sign the manifest again: each is found. [SEQ-11]"""
        chance = random.Random(part)
        paths = [path for path in fields(getattr(whole, part)) if path[-1] not in NOT_DERIVABLE]
        assert len(paths) == FIELDS[part]
        assert [path for path in paths if check(tmp_path, mutated(whole, part, path, chance)).ok] == []

    def test_without_signing_the_manifest(self, tmp_path: Path, whole: Package) -> None:
        """One who cannot sign changes nothing at all, be it derivable or not: two hundred changed bytes are found."""
        chance = random.Random(5)
        files = whole.files()
        for _ in range(200):
            name = chance.choice(sorted(files))
            place = chance.randrange(len(files[name]))
            content = bytearray(files[name])
            content[place] ^= chance.randint(1, 255)
            report = check(tmp_path, whole, {name: bytes(content)})
            assert report.first is not None
            assert (report.first.kind, name in report.first.message) == ("file_altered", True)

    def test_trail_of_the_package(self, tmp_path: Path, whole: Package) -> None:
        """A trail that was changed in the package is named like one outside of it."""
        made = whole.copy()
        made.trail.bodies[3] = made.trail.bodies[3].replace(b"nurse.li", b"nurse.wu")
        first = check(tmp_path, made).first
        assert first is not None
        assert (first.kind, first.index) == ("entry_altered", 3)


def swap_subjects(made: Package) -> None:
    one, other = made.allocations[0], made.allocations[1]
    one["subject_id"], other["subject_id"] = other["subject_id"], one["subject_id"]


def swap_slots_with_labels(made: Package) -> None:
    slots = made.schedules[0]["strata"][0]["slots"]
    a = next(i for i, slot in enumerate(slots) if slot[1] != slots[0][1])
    slots[0][1], slots[a][1] = slots[a][1], slots[0][1]


def kit_of_other_arm(made: Package) -> None:
    used = {kit["kit_code"] for row in made.allocations for kit in row["kits"]}
    row = made.allocations[1]
    arm = row["binding"]["arm_code"]
    free = next(k for k in made.consignments[0]["kits"] if k["arm_code"] != arm and k["kit_code"] not in used)
    row["kits"][1]["kit_code"] = free["kit_code"]


def kit_twice(made: Package) -> None:
    arm = made.allocations[0]["binding"]["arm_code"]
    later = next(row for row in made.allocations[1:] if row["binding"]["arm_code"] == arm and len(row["kits"]) > 1)
    later["kits"][1]["kit_code"] = made.allocations[0]["kits"][0]["kit_code"]


def unknown_kit(made: Package) -> None:
    made.allocations[1]["kits"][1]["kit_code"] = "KNONE"


def kit_in_two_consignments(made: Package) -> None:
    made.consignments[1]["kits"].insert(0, made.consignments[0]["kits"][0])


def treatment_text(made: Package) -> None:
    row = made.allocations[0]
    row["binding"]["treatment"] = row["kits"][0]["treatment"] = "Something else"


def leave_out_last_allocation(made: Package) -> None:
    made.allocations.pop()
    made.rows = list_rows(made)


def leave_out_subject_of_list(made: Package) -> None:
    made.rows.pop()


def leave_out_list(made: Package) -> None:
    made.schedules = made.schedules[:1]


def leave_out_consignment(made: Package) -> None:
    made.consignments.pop()


def list_twice(made: Package) -> None:
    made.schedules.append({**made.schedules[2]})


def shop_for_seeds(made: Package) -> None:
    """Another list, committed to and signed with the stolen key, in place of the one in the trail."""
    row = schedule_row(specification(), LIST_ID)
    other = schedule_row(specification(), EXTENSION_ID)
    row |= {"seed": other["seed"], "strata": other["strata"]}
    made.schedules[0] = row


def other_list_with_own_commitment(made: Package) -> None:
    row = schedule_row(specification(), LIST_ID)
    row["specification_salt"] = salt("another").hex()
    made.schedules[0] = recommitted(row)


def recommitted(row: dict[str, Any]) -> dict[str, Any]:
    from app.verifier import _Package  # noqa: PLC0415  # the one place that computes a root from a row

    reader = _Package.__new__(_Package)
    reader.study, reader.mode = STUDY, "test"
    root = reader._list_root(row, row["specification"], "test")
    row["commitment"] = root.hex()
    row["commitment_note"] = SIGNER.note(list_commitment_text(DEPLOYMENT, STUDY, row["schedule_id"], root))
    return row


def slot_of_a_rejected_list(made: Package) -> None:
    made.allocations[0]["schedule_id"] = made.schedules[2]["schedule_id"]


def subject_twice(made: Package) -> None:
    made.allocations[1]["subject_id"] = made.allocations[0]["subject_id"]


def no_kit(made: Package) -> None:
    made.allocations[0]["kits"] = []


def empty_consignment(made: Package) -> None:
    made.consignments[1]["kits"] = []


def gap(made: Package) -> None:
    made.allocations[5]["position"] = 6


def beyond_the_list(made: Package) -> None:
    made.allocations[6] |= {"schedule_id": LIST_ID, "position": 6}


def extension_before_the_end(made: Package) -> None:
    first, later = made.allocations[5], made.allocations[6]
    first["log_index"], later["log_index"] = later["log_index"], first["log_index"]


def signature_of_another_list(made: Package) -> None:
    made.schedules[0]["commitment_note"] = made.schedules[1]["commitment_note"]


def approved_without_signature(made: Package) -> None:
    made.schedules[0]["commitment_note"] = None


def kit_map_signed_by_thief(made: Package) -> None:
    note = made.consignments[0]["commitment_note"]
    made.consignments[0]["commitment_note"] = THIEF.note(note.rpartition("\n\n")[0] + "\n")


def foreign_log(made: Package) -> None:
    made.allocations[0]["log"] = f"{ORIGIN}x"


def other_site(made: Package) -> None:
    made.allocations[0]["site_code"] = "02"


def dispensed_before_assigned(made: Package) -> None:
    made.allocations[1]["kits"][1]["dispensed_at"] = "2020-01-01T00:00:00.000000+00:00"


def list_says_other_arm(made: Package) -> None:
    made.rows[1][2] = "B" if made.rows[1][2] == "A" else "A"


def list_with_a_stranger(made: Package) -> None:
    made.rows.append(["99-0001", *made.rows[1][1:]])


def list_with_a_short_line(made: Package) -> None:
    made.rows[1].pop()


def list_with_an_empty_line(made: Package) -> None:
    made.rows.insert(1, [])


def other_key_name(made: Package) -> None:
    made.keys["keys"] = [Signer(1, "other").vkey]


def unusable_specification(made: Package) -> None:
    made.schedules[2]["specification"]["block_sizes"] = [4]


def endless_specification(made: Package) -> None:
    made.schedules[2]["specification"]["strata"][0]["length"] = 7


CASES: Final[list[tuple[Callable[[Package], None], str, str]]] = [
    (swap_subjects, "entry_mismatch", "'subject_id'"),
    (swap_slots_with_labels, "list_mismatch", "the seed and the specification give another list"),
    (kit_of_other_arm, "arm_mismatch", "of different arms"),
    (kit_twice, "duplicate", "assigned twice"),
    (unknown_kit, "kit_mismatch", "in no consignment"),
    (kit_in_two_consignments, "duplicate", "two consignments"),
    (treatment_text, "arm_mismatch", "treatment"),
    (leave_out_last_allocation, "left_out", "leaves out"),
    (leave_out_subject_of_list, "list_mismatch", "leaves out subject 01-0010"),
    (leave_out_list, "left_out", "leaves out"),
    (leave_out_consignment, "left_out", "consignment C2"),
    (list_twice, "duplicate", "there twice"),
    (shop_for_seeds, "commitment_mismatch", "do not give its commitment"),
    (other_list_with_own_commitment, "commitment_mismatch", "another commitment was entered"),
    (slot_of_a_rejected_list, "slot_mismatch", "not approved"),
    (subject_twice, "duplicate", "allocated twice"),
    (no_kit, "entry_mismatch", "'kit_code'"),
    (empty_consignment, "commitment_mismatch", "Consignment C2"),
    (gap, "order_mismatch", "slot 5 was the next"),
    (beyond_the_list, "order_mismatch", "slot 6"),
    (extension_before_the_end, "order_mismatch", "has slots left"),
    (signature_of_another_list, "commitment_mismatch", "what was signed"),
    (approved_without_signature, "malformed", "'commitment_note'"),
    (kit_map_signed_by_thief, "unknown_key", "not a key that counts"),
    (foreign_log, "malformed", "not the study's"),
    (other_site, "entry_mismatch", "'site_code'"),
    (dispensed_before_assigned, "kit_mismatch", "before it was assigned"),
    (list_says_other_arm, "list_mismatch", "Line 2 of list.csv"),
    (list_with_a_stranger, "list_mismatch", "Line 13 of list.csv"),
    (list_with_a_short_line, "list_mismatch", "Line 2 of list.csv"),
    (list_with_an_empty_line, "list_mismatch", "Line 2 of list.csv"),
    (other_key_name, "unknown_key", "which no handover ties"),
    (unusable_specification, "malformed", "cannot be followed"),
    (endless_specification, "malformed", "never fill"),
]


class TestNamedDifferences:
    @pytest.mark.parametrize(("change", "kind", "words"), CASES, ids=lambda case: getattr(case, "__name__", None))
    def test_first_difference(
        self, change: Callable[[Package], None], kind: str, words: str, tmp_path: Path, whole: Package
    ) -> None:
        """What a fraud would do, signed again with a stolen key, is named in plain words. [SEQ-11, A8]"""
        made = whole.copy()
        change(made)
        first = check(tmp_path, made).first
        assert first is not None
        assert (first.kind, words in first.message) == (kind, True), first

    def entries(self, made: Package, change: Callable[[list[dict[str, Any]]], None]) -> None:
        bodies = [json.loads(body) for body in made.trail.bodies]
        change(bodies)
        for index, body in enumerate(bodies):
            body |= {"index": index, "at": entry(index)["at"]}
        made.trail = trail_of(bodies)

    def test_commitment_after_use(self, tmp_path: Path, whole: Package) -> None:
        """A list, or a kit map, that was entered only after its first use was not committed to. [SEQ-11]"""
        for action, words in (("schedule:approve", "before its list"), ("consignment:create", "entered later")):
            made = whole.copy()

            def last_first(bodies: list[dict[str, Any]], action: str = action) -> None:
                found = next(body for body in bodies if body["action"] == action)
                bodies.remove(found)
                bodies.append(found)

            self.entries(made, last_first)
            for row in made.allocations:
                row["log_index"] -= 1
                row["allocated_at"] = entry(row["log_index"])["at"]
            bodies = [json.loads(body) for body in made.trail.bodies]
            for body in bodies:
                if body["action"] == "allocation:create" and body["after"]:
                    body["after"] |= {"allocated_at": body["at"]}
            made.trail = trail_of(bodies)
            made.rows = list_rows(made)
            report = check(tmp_path, made)
            assert report.first is not None
            assert report.first.kind == "order_mismatch"
            assert words in report.first.message

    def test_second_approval(self, tmp_path: Path, whole: Package) -> None:
        """A list that was approved twice has no one commitment."""
        made = whole.copy()

        def twice(bodies: list[dict[str, Any]]) -> None:
            bodies.append(next(body for body in bodies if body["action"] == "schedule:approve") | {})

        self.entries(made, twice)
        first = check(tmp_path, made).first
        assert first is not None
        assert (first.kind, "2 entries" in first.message) == ("entry_not_found", True)

    @pytest.mark.parametrize(
        ("after", "words"),
        [
            ({"kit_code": "KNONE"}, "'kit_code'"),
            ({"randomization_number": None}, "'randomization_number'"),
            ({"allocated_at": "2020"}, "'allocated_at'"),
            ({"strata": {"sex": "x"}}, "'strata'"),
        ],
    )
    def test_entry_tells_otherwise(self, after: dict[str, Any], words: str, tmp_path: Path, whole: Package) -> None:
        """What the entry of an allocation says is what the package says."""
        made = whole.copy()

        def other(bodies: list[dict[str, Any]]) -> None:
            body = bodies[made.allocations[0]["log_index"]]
            body["after"] = body["after"] | after

        self.entries(made, other)
        first = check(tmp_path, made).first
        assert first is not None
        assert (first.kind, words in first.message) == ("entry_mismatch", True), first

    def test_entry_older_than_the_allocation(self, tmp_path: Path, whole: Package) -> None:
        """An allocation cannot be younger than its entry."""
        made = whole.copy()
        later = "2027-01-01T00:00:00.000000+00:00"
        made.allocations[0]["allocated_at"] = later
        self.entries(made, lambda bodies: bodies[made.allocations[0]["log_index"]]["after"].update(allocated_at=later))
        first = check(tmp_path, made).first
        assert first is not None
        assert "older than" in first.message

    def test_site_of_the_stratum(self, tmp_path: Path) -> None:
        """A subject of one site does not stand in the stratum of another."""
        made = package()
        spec = specification(site_codes=(SiteCode("02"),))
        row = schedule_row(spec, LIST_ID)
        made.schedules = [row]
        made.allocations = made.allocations[:1]
        made.allocations[0]["stratum_code"] = "site=02"

        def only(bodies: list[dict[str, Any]]) -> None:
            bodies[:] = [body for body in bodies[:6] if body["target"].get("schedule_id") != EXTENSION_ID]
            for body in bodies:
                if body["action"] == "schedule:approve":
                    body["after"]["commitment"] = row["commitment"]

        made.allocations[0]["log_index"] = 4
        self.entries(made, only)
        first = check(tmp_path, made).first
        assert first is not None
        assert "another site" in first.message


class TestBrokenPackages:
    @pytest.mark.parametrize(
        ("instead", "kind"),
        [
            ({"manifest.json": None}, "file_missing"),
            ({"manifest.json": b"[]"}, "malformed"),
            ({"manifest.json": b"{"}, "malformed"),
            ({"manifest.json": b'{"snose_final_package":2}'}, "malformed"),
            ({"manifest.note": None}, "file_missing"),
            ({"manifest.note": b"no note"}, "bad_signature"),
            ({"trail.jsonl": None}, "file_missing"),
            ({"schedules.json": None}, "file_missing"),
            ({"kits.json": b"[" * 100_000}, "file_altered"),
            ({"keys.json": None}, "file_missing"),
            ({"list.csv": None}, "file_missing"),
            ({"list.csv": b"\xff"}, "file_altered"),
            ({"list.csv": b"subject\n"}, "file_altered"),
            ({"more.txt": b""}, "file_unlisted"),
        ],
        ids=str,
    )
    def test_files(self, instead: dict[str, bytes | None], kind: str, tmp_path: Path, whole: Package) -> None:
        """A package that lacks a file, or has one that is not what it should be, is named as such and never a crash."""
        first = check(tmp_path, whole, instead).first
        assert first is not None
        assert first.kind == kind

    def test_not_a_zip(self, tmp_path: Path) -> None:
        """Something else than a package is said to be so."""
        path = tmp_path / "x"
        path.write_bytes(b"no zip")
        first = verify_package(path).first
        assert first is not None
        assert first.kind == "malformed"

    @pytest.mark.filterwarnings("ignore:Duplicate name")
    def test_two_files_of_one_name(self, tmp_path: Path, whole: Package) -> None:
        """Two readers could read two files: a name is there once."""
        path = whole.write(tmp_path / "p.zip")
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr("kits.json", b"{}")
        first = verify_package(path, keys=[SIGNER.vkey]).first
        assert first is not None
        assert "two files of one name" in first.message

    def test_changed_bytes_of_the_zip(self, tmp_path: Path, whole: Package) -> None:
        """Three hundred changed bytes of the file itself: found, or of no consequence to any file in it; never a crash."""
        chance = random.Random(7)
        path = whole.write(tmp_path / "p.zip")
        content = path.read_bytes()
        with zipfile.ZipFile(path) as archive:
            original = {name: archive.read(name) for name in archive.namelist()}
        for _ in range(300):
            place = chance.randrange(len(content))
            path.write_bytes(
                content[:place] + bytes([content[place] ^ 1 << chance.randrange(8)]) + content[place + 1 :]
            )
            if verify_package(path, keys=[SIGNER.vkey]).ok:
                with zipfile.ZipFile(path) as archive:
                    assert {name: archive.read(name) for name in archive.namelist()} == original

    def test_manifest_of_another_study(self, tmp_path: Path, whole: Package) -> None:
        """A signature for one study does not serve for another."""
        made = whole.copy()
        manifest = json.dumps(made.manifest).encode()
        note = SIGNER.note(final_package_text(DEPLOYMENT, "S2", manifest)).encode()
        kinds = {
            finding.kind
            for finding in check(tmp_path, made, {"manifest.json": manifest, "manifest.note": note}).findings
        }
        assert "commitment_mismatch" in kinds


class TestSecondImplementation:
    def test_lists_agree(self) -> None:
        """Generator and verifier were written apart and make the same lists. [SEQ-06]"""
        chance = random.Random(6)
        for number in range(60):
            fill = chance.choice(list(Fill))
            spec = specification(
                segment=number % 3,
                fill=fill,
                block_sizes=(3, 6, 9),
                block_size_weights=(chance.randint(1, 5), chance.randint(1, 5), chance.randint(1, 5)),
                length=3 * chance.randint(1, 60),
            )
            seed = chance.randbytes(32)
            self.compare(spec, seed)

    def compare(self, spec: Specification, seed: bytes) -> None:
        document = json.loads(json.dumps(spec.document()))
        for stratum, planned in zip(spec.strata, document["strata"], strict=True):
            made = [(slot.arm_code, slot.block, slot.block_size) for slot in generate_stratum(spec, stratum, seed)]
            assert recompute_stratum(document, planned, seed) == made


# -- the command -------------------------------------------------------------------------------------------------------


class Terminal(io.StringIO):
    """A stream that says that somebody is looking at it."""

    def isatty(self) -> bool:
        return True


class TestCommand:
    def test_runs_alone(self, tmp_path: Path, whole: Package) -> None:
        """The file runs by itself, outside of the service, and its exit status is 0 only when all is verified."""
        alone = tmp_path / "alone.py"
        alone.write_bytes(VERIFIER.read_bytes())
        trail = honest()
        path = trail.write(tmp_path / "e.jsonl")
        sink = write_sink(tmp_path / "s.jsonl", sink_of(trail))
        command = [sys.executable, "-I", str(alone)]
        done = subprocess.run(
            [*command, "trail", str(path), "--sink", str(sink), "--key", SIGNER.vkey],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert f"{ORIGIN}: vouched for up to size {COUNT}" in done.stdout
        assert done.stdout.endswith("VERIFIED\n")
        assert "trail: 100%" in done.stderr
        del trail.bodies[-1], trail.leaves[-1]
        trail.write(path)
        done = subprocess.run([*command, "trail", str(path), "--json"], capture_output=True, text=True, check=False)
        assert done.returncode == 1
        told = json.loads(done.stdout)
        assert told["ok"] is False
        assert told["findings"][0]["kind"] == "truncated"

    def test_package(self, tmp_path: Path, whole: Package) -> None:
        """A package is verified by the same command."""
        out = io.StringIO()
        path = whole.write(tmp_path / "p.zip")
        assert main(["package", str(path), "--key", SIGNER.vkey], out) == 0
        assert "allocations: 11" in out.getvalue()
        made = whole.copy()
        treatment_text(made)
        out = io.StringIO()
        assert main(["package", str(made.write(path))], out) == 1
        assert "first difference [arm_mismatch]: Subject 01-0000" in out.getvalue()
        assert "note: No key was given" in out.getvalue()
        assert out.getvalue().endswith("NOT VERIFIED\n")

    def test_no_file(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """A file that cannot be read is not a file that was verified."""
        assert main(["trail", str(tmp_path / "none")]) == 2
        assert "cannot be read" in capsys.readouterr().err

    def test_progress_on_a_terminal(self) -> None:
        """A terminal gets a bar that ends in a line of its own; the same step is told once."""
        stream = Terminal()
        progress = Progress(stream)
        for done in (0, 1, 50, 100):
            progress.advance("trail", done, 100)
            progress.advance("trail", done, 100)
        progress.close()
        assert stream.getvalue().count("\r") == 4
        assert stream.getvalue().endswith("100%\n")
        quiet = Terminal()
        Progress(quiet).close()
        assert quiet.getvalue() == ""

    def test_growing_log(self, tmp_path: Path) -> None:
        """A long export reports its progress while it is read."""
        told = list[tuple[str, int, int]]()
        path = trail_of(entry(index) for index in range(4100)).write(tmp_path / "e")
        verify_trail(path, keys=[SIGNER.vkey], advance=lambda *step: told.append(step))
        assert len(told) == 2
        assert told[-1] == ("trail", path.stat().st_size, path.stat().st_size)
