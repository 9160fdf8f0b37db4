"""Trail exports and final packages as the service writes them, made without the service, to be tampered with."""

import base64
import copy
import csv
import hashlib
import io
import json
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from app.domain.encoding import canonical_json, encode
from app.domain.merkle import leaf_hash, salted_leaf, tree_root
from app.domain.notes import (
    Checkpoint,
    NoteSignature,
    VerificationKey,
    final_package_text,
    join_note,
    key_handover_text,
    kit_commitment_text,
    list_commitment_text,
    note_text_to_sign,
)
from app.domain.schedules import (
    ALGORITHM,
    IMPORTED,
    Fill,
    Specification,
    enumerate_strata,
    generate_stratum,
)
from app.domain.words import Arm, ArmCode, Factor, Level, Mode, SiteCode, StudyCode

DEPLOYMENT: Final = "0b7e1f0e"
STUDY: Final = "S1"
NAME: Final = f"snose/{DEPLOYMENT}"
ORIGIN: Final = f"{NAME}/{STUDY}"
START: Final = datetime(2026, 11, 22, 9, 14, 3, tzinfo=UTC)


class Signer:
    """A signing key of the deployment."""

    def __init__(self, number: int, name: str = NAME) -> None:
        self._private = Ed25519PrivateKey.from_private_bytes(bytes([number]) * 32)
        self.key = VerificationKey(name, self._private.public_key().public_bytes_raw())
        self.vkey = self.key.text()

    def line(self, text: str) -> NoteSignature:
        return NoteSignature(self.key.name, self.key.key_id, self._private.sign(note_text_to_sign(text)))

    def note(self, text: str) -> str:
        return join_note(text, [self.line(text)])

    def checkpoint(self, leaves: Sequence[bytes], origin: str = ORIGIN) -> str:
        return self.note(Checkpoint(origin, len(leaves), tree_root(leaves)).text())


def handover(old: Signer, new: Signer, signers: Sequence[Signer] | None = None) -> str:
    text = key_handover_text(DEPLOYMENT, old.key, new.key)
    return join_note(text, [signer.line(text) for signer in signers or (old, new)])


SIGNER: Final = Signer(1)
THIEF: Final = Signer(66)


# -- trails ------------------------------------------------------------------------------------------------------------


def entry(index: int, **changes: object) -> dict[str, Any]:
    """The body of an entry; each is a second later than the one before it."""
    body = {
        "v": 1,
        "log": ORIGIN,
        "index": index,
        "at": (START + timedelta(seconds=index)).isoformat(timespec="microseconds"),
        "actor": "nurse.li",
        "role": "coordinator",
        "organisation": "Zhōngshān Hospital",
        "client": None,
        "action": "subject:read",
        "outcome": "done",
        "target": {"site_code": "01", "subject_id": f"01-{index:04}"},
        "before": None,
        "after": None,
        "request_id": hashlib.sha256(str(index).encode()).hexdigest()[:32],
        "restricted": None,
    }
    return body | changes


@dataclass
class Trail:
    """An export before it is written: header members, bodies, and the hashes stated for them."""

    bodies: list[bytes]
    leaves: list[bytes]
    origin: str = ORIGIN
    size: int = 0
    checkpoint: str = ""
    keys: list[str] = field(default_factory=list)
    handovers: list[str] = field(default_factory=list)

    def sign(self, signer: Signer = SIGNER) -> "Trail":
        """Compute everything anew, as one who holds the key can."""
        self.leaves = [leaf_hash(body) for body in self.bodies]
        self.size = len(self.leaves)
        self.checkpoint = signer.checkpoint(self.leaves, self.origin)
        self.keys = [signer.vkey]
        return self

    def copy(self) -> "Trail":
        return copy.deepcopy(self)

    def lines(self) -> list[bytes]:
        header = {
            "snose_trail_export": 1,
            "origin": self.origin,
            "size": self.size,
            "checkpoint": self.checkpoint,
            "keys": self.keys,
            "handovers": self.handovers,
        }
        rows = [
            b'{"body":%b,"leaf_hash":"%b"}\n' % (body, leaf.hex().encode())
            for body, leaf in zip(self.bodies, self.leaves, strict=True)
        ]
        return [canonical_json(header) + b"\n", *rows]

    def write(self, path: Path) -> Path:
        path.write_bytes(b"".join(self.lines()))
        return path


def trail_of(entries: Iterable[dict[str, Any]], signer: Signer = SIGNER, origin: str = ORIGIN) -> Trail:
    return Trail([canonical_json(body) for body in entries], [], origin).sign(signer)


def sink_line(trail: Trail, size: int, signer: Signer = SIGNER, **changes: object) -> dict[str, Any]:
    leaves = trail.leaves[:size]
    row = {
        "origin": trail.origin,
        "size": size,
        "root": base64.b64encode(tree_root(leaves)).decode(),
        "note": signer.checkpoint(leaves, trail.origin),
        "at": START.isoformat(),
    }
    return row | changes


def write_sink(path: Path, rows: Iterable[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


# -- packages ----------------------------------------------------------------------------------------------------------

ARMS: Final = (
    Arm(ArmCode("A"), "Control group", "Placebo transplantation", 2),
    Arm(ArmCode("B"), "Experimental group", "HUC-MSCs transplantation", 1),
)
FACTORS: Final = (Factor("sex", "Sex", (Level("f", "Female"), Level("m", "Male"))),)
LIST_ID: Final = "11111111-1111-4111-8111-111111111111"
EXTENSION_ID: Final = "22222222-2222-4222-8222-222222222222"
REJECTED_ID: Final = "33333333-3333-4333-8333-333333333333"


def salt(*label: str | int) -> bytes:
    return hashlib.sha256(encode("salt", *label)).digest()


def specification(
    list_id: str = LIST_ID,
    segment: int = 0,
    *,
    fill: Fill = Fill.EXACT,
    block_sizes: tuple[int, ...] = (3, 6),
    block_size_weights: tuple[int, ...] = (2, 1),
    site_codes: tuple[SiteCode, ...] = (),
    length: int = 6,
) -> Specification:
    """Two arms 2:1; stratified by sex, or by site where sites are given."""
    factors = () if site_codes else FACTORS
    return Specification(
        study_code=StudyCode(STUDY),
        mode=Mode.TEST,
        list_id=list_id,
        segment_number=segment,
        algorithm=ALGORITHM,
        arms=ARMS,
        factors=factors,
        stratify_by_site=bool(site_codes),
        block_sizes=block_sizes,
        block_size_weights=block_size_weights,
        fill=fill,
        strata=enumerate_strata(factors, site_codes or None, length),
    )


def schedule_row(
    spec: Specification, schedule_id: str, *, approved: bool = True, imported: bool = False
) -> dict[str, Any]:
    """A list with its commitment, made by the service's own generator."""
    spec = replace(spec, algorithm=IMPORTED) if imported else spec
    seed = salt("seed", schedule_id)
    strata, parts = [], []
    document, spec_salt = spec.document(), salt("specification", schedule_id)
    parts.append(salted_leaf(spec_salt, canonical_json(document)))
    for number, stratum in enumerate(spec.strata):
        slots, leaves = [], []
        for plan in generate_stratum(spec, stratum, seed):
            randomization_number = f"R{schedule_id[0]}{number}{plan.position:03}"
            slot_salt = salt(schedule_id, number, plan.position)
            content = encode(
                "slot", STUDY, "test", spec.list_id, spec.segment_number, stratum.stratum_code,
                plan.position, plan.arm_code, plan.block, plan.block_size, randomization_number,
            )  # fmt: skip
            leaves.append(salted_leaf(slot_salt, content))
            slots.append(
                [plan.position, plan.arm_code, plan.block, plan.block_size, randomization_number, slot_salt.hex()]
            )
        strata.append({"stratum_code": stratum.stratum_code, "slots": slots})
        parts.append(tree_root(leaves))
    root = tree_root(parts)
    return {
        "schedule_id": schedule_id,
        "list_id": spec.list_id,
        "segment_number": spec.segment_number,
        "status": "active" if approved else "rejected",
        "origin": "imported" if imported else "generated",
        "specification": document,
        "specification_salt": spec_salt.hex(),
        "seed": None if imported else seed.hex(),
        "commitment": root.hex(),
        "commitment_note": SIGNER.note(list_commitment_text(DEPLOYMENT, STUDY, schedule_id, root))
        if approved
        else None,
        "strata": strata,
    }


def consignment_row(code: str, per_arm: int) -> dict[str, Any]:
    kits, leaves = [], []
    for number in range(per_arm * 2):
        kit = {
            "kit_code": f"K{code}{number:03}",
            "arm_code": "AB"[number % 2],
            "lot": f"LOT-{number % 2}",
            "expires_on": "2027-11-30",
            "salt": salt("kit", code, number).hex(),
        }
        content = encode("kit", STUDY, "test", code, kit["kit_code"], kit["arm_code"], kit["lot"], kit["expires_on"])
        leaves.append(salted_leaf(bytes.fromhex(kit["salt"]), content))
        kits.append(kit)
    root = tree_root(leaves)
    note = SIGNER.note(kit_commitment_text(DEPLOYMENT, STUDY, code, root))
    return {
        "consignment_code": code,
        "unusable_from": "2027-11-30",
        "commitment": root.hex(),
        "commitment_note": note,
        "kits": kits,
    }


@dataclass
class Package:
    """A final package before it is written."""

    schedules: list[dict[str, Any]]
    consignments: list[dict[str, Any]]
    allocations: list[dict[str, Any]]
    trail: Trail
    keys: dict[str, Any]
    rows: list[list[str]]
    manifest: dict[str, Any]

    def copy(self) -> "Package":
        return copy.deepcopy(self)

    def files(self) -> dict[str, bytes]:
        text = io.StringIO(newline="")
        csv.writer(text).writerows(self.rows)
        return {
            "trail.jsonl": b"".join(self.trail.lines()),
            "schedules.json": json.dumps({"schedules": self.schedules}).encode(),
            "kits.json": json.dumps({"consignments": self.consignments}).encode(),
            "allocations.json": json.dumps({"allocations": self.allocations}).encode(),
            "keys.json": json.dumps(self.keys).encode(),
            "list.csv": text.getvalue().encode(),
        }

    def write(self, path: Path, instead: Mapping[str, bytes | None] | None = None) -> Path:
        """Write it with a manifest that fits; ``instead`` replaces or (None) leaves out files afterwards."""
        files = self.files()
        hashes = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
        manifest = json.dumps(self.manifest | {"files": hashes}).encode()
        note = SIGNER.note(final_package_text(self.manifest["deployment_id"], self.manifest["study_code"], manifest))
        written: dict[str, bytes | None] = {"manifest.json": manifest, "manifest.note": note.encode(), **files}
        written |= instead or {}
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in written.items():
                if content is not None:
                    archive.writestr(name, content)
        return path


def package(*, imported: bool = False, sites: Sequence[str] = ("01",)) -> Package:
    """Eleven subjects, in turn of each site: six fill stratum f of the first list, two follow in its extension, three are in m."""
    schedules = [
        schedule_row(specification(), LIST_ID, imported=imported),
        schedule_row(specification(segment=1, fill=Fill.OVERRUN), EXTENSION_ID),
        schedule_row(specification(REJECTED_ID), REJECTED_ID, approved=False),
    ]
    consignments = [consignment_row("C1", 10), consignment_row("C2", 4)]
    entries = [entry(0), *_commitment_entries(schedules, consignments)]
    allocations: list[dict[str, Any]] = []
    free = {arm: [k for c in consignments for k in c["kits"] if k["arm_code"] == arm] for arm in "AB"}
    plan = [(0, 0, n) for n in range(6)] + [(1, 0, n) for n in range(2)] + [(0, 1, n) for n in range(3)]
    for number, (which, stratum, position) in enumerate(plan):
        schedule = schedules[which]
        slot = schedule["strata"][stratum]["slots"][position]
        arm = next(arm for arm in ARMS if arm.arm_code == slot[1])
        index = len(entries)
        at = (START + timedelta(seconds=index)).isoformat(timespec="microseconds")
        codes = [free[slot[1]].pop(0)["kit_code"] for _ in range(1 + number % 2)]
        kits = [
            {"kit_code": code, "visit": f"V{visit}" if visit else None, "arm_code": slot[1], "treatment": arm.treatment,
             "assigned_at": at, "dispensed_at": at if visit else None}
            for visit, code in enumerate(codes)
        ]  # fmt: skip
        allocations.append(
            {
                "subject_id": f"01-{number:04}",
                "site_code": sites[number % len(sites)],
                "stratum_code": schedule["strata"][stratum]["stratum_code"],
                "schedule_id": schedule["schedule_id"],
                "position": position,
                "randomization_number": slot[4],
                "strata_used": dict([schedule["strata"][stratum]["stratum_code"].split("=")]),
                "allocated_by": "nurse.li",
                "reported_user": "nurse.li" if number % 2 else None,
                "allocated_at": at,
                "log_index": index,
                "binding": {"arm_code": slot[1], "treatment": arm.treatment},
                "kits": kits,
            }
        )
        target = {"subject_id": f"01-{number:04}", "site_code": sites[number % len(sites)]}
        levels = dict([allocations[-1]["stratum_code"].split("=")])
        after = {"randomization_number": slot[4], "kit_code": codes[0], "strata": levels}
        if number % 2:
            after["reported_user"] = "nurse.li"
        entries.append(entry(index, action="allocation:create", target=target, after=after))
        refused = entry(index + 1, action="allocation:create", outcome="denied", target=target)
        entries.append(refused)
    trail = trail_of(entries)
    made = Package(
        schedules,
        consignments,
        allocations,
        trail,
        {"keys": [SIGNER.vkey], "handovers": []},
        [],
        {
            "snose_final_package": 1,
            "study_code": STUDY,
            "mode": "test",
            "deployment_id": DEPLOYMENT,
            "created_at": "2027-01-01T00:00:00.000000+00:00",
        },
    )
    made.rows = list_rows(made)
    return made


def _commitment_entries(
    schedules: Sequence[dict[str, Any]], consignments: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    told = [("schedule:approve", "schedule_id", row) for row in schedules if row["commitment_note"]]
    told += [("consignment:create", "consignment_code", row) for row in consignments]
    return [
        entry(number, action=action, target={name: row[name]}, after={"commitment": row["commitment"]})
        for number, (action, name, row) in enumerate(told, start=1)
    ]


def list_rows(made: Package) -> list[list[str]]:
    """The list for reading."""
    rows = [["subject_id", "randomization_number", "arm_code", "arm_label", "treatment", "kit_codes", "allocated_at"]]
    for row in made.allocations:
        arm = next(arm for arm in ARMS if arm.arm_code == row["binding"]["arm_code"])
        codes = " ".join(kit["kit_code"] for kit in row["kits"])
        number, at = row["randomization_number"], row["allocated_at"]
        rows.append([row["subject_id"], number, arm.arm_code, arm.label, arm.treatment, codes, at])
    return rows
