"""The final package: every list opened, with what proves it, as one zip file (``app/domain/evidence.md``).

Two steps. The documents are made inside the act that releases them, page by page into a compressed file in memory: what does not
open stops the act. The trail is read once the act is committed and its checkpoint kept, so that the package holds the entry of its
own release, and nothing of it is signed that was not committed (`custody.md`, "The trail"). Danger: it holds every arm and seed.
"""

import csv
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from io import BytesIO, StringIO
from typing import Any, Final, Self, TypeAlias
from uuid import UUID
from zipfile import ZIP_DEFLATED, ZipFile, ZipInfo

from app.domain.contents import SALT_SIZE, Binding, KitContents, SlotContents
from app.domain.notes import final_package_text
from app.domain.sealed import Column, SealContext
from app.domain.words import StratumCode, SubjectKey
from app.errors import DatabaseUnavailable, IntegrityBroken
from app.services.audited import Act
from app.services.evidence import AllocationPlace, KitAssignmentPlace, kit_place, open_binding, slot_place
from app.services.exports import export_lines
from app.storage import commitments, keys, schedules
from app.storage import final_package as storage
from app.storage.database import CommitUncertain, Transaction, TryAgain
from app.storage.final_package import AllocatedSubject, Consignment, GivenKit, PlacedEntry
from app.storage.kits import list_sealed_kits
from app.storage.schedules import ScheduleHead
from app.storage.studies import StudyHead

_CSV_HEADER: Final = (
    "subject_id",
    "randomization_number",
    "arm_code",
    "arm_label",
    "treatment",
    "kit_codes",
    "allocated_at",
)
_Arms: TypeAlias = dict[tuple[str, str], tuple[str, str]]
"""Label and treatment by list and arm, as the specifications have them."""
_IN_MOTION: Final = "The study was in motion while its package was made. Ask for the final unblinding again."
_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r")


@dataclass(frozen=True, slots=True)
class _Committed:
    """What trail and documents must agree about; a closed study allocates nobody any more."""

    lists: list[ScheduleHead]
    consignments: list[Consignment]

    @classmethod
    def now(cls, tx: Transaction, study: StudyHead, at: datetime) -> Self:
        """Read what stands now."""
        return cls(schedules.list_schedules(tx, study.study_id, at), storage.list_consignments(tx, study.study_id))


class FinalPackage:
    """A package whose documents are made; ``complete`` adds the trail and the signed manifest."""

    def __init__(self, act: Act) -> None:
        """Make the documents of the study of an act.

        Raises ``IntegrityBroken`` for what does not open in its place; what opens and does not fit is left to the verifier to name.
        """
        self._deployment = act.deployment
        self._study = act.study
        self._made_at = act.now
        self._committed = _Committed.now(act.tx, act.study, act.now)
        self._file = BytesIO()
        self._archive = ZipFile(self._file, "w", ZIP_DEFLATED)
        self._digests: dict[str, str] = {}
        codes = {stratum_id: code for code, stratum_id in schedules.list_strata(act.tx, act.study.study_id).items()}
        arms: _Arms = {}
        table = _Table(arms)
        self._write("schedules.json", _array("schedules", _schedules(act, self._committed.lists, codes, arms)))
        self._write("kits.json", _array("consignments", _consignments(act, self._committed.consignments)))
        rows = table.noting(_allocations(act, codes))
        self._write("allocations.json", _array("allocations", _joined(map(_json, rows))))
        self._write("list.csv", [table.content()])

    def complete(self) -> bytes:
        """Return the zip file with the trail as it stands now, committed.

        Raises ``DatabaseUnavailable``, also when a list or a consignment was entered since the documents were made.
        """
        deployment, study = self._deployment, self._study
        try:
            with deployment.database.transaction() as tx:
                self._write_trail(tx)
                tx.settle()
        except (TryAgain, CommitUncertain):
            raise DatabaseUnavailable(_IN_MOTION) from None
        manifest = _json(
            {
                "snose_final_package": 1,
                "study_code": study.study_code,
                "mode": deployment.mode,
                "deployment_id": str(deployment.deployment_id),
                "created_at": _time(self._made_at),
                "files": dict(self._digests),
            }
        )
        text = final_package_text(str(deployment.deployment_id), study.study_code, manifest)
        self._write("manifest.note", [deployment.signing.sign_note(text).encode()])
        self._write("manifest.json", [manifest])
        self._archive.close()
        return self._file.getvalue()

    def _write_trail(self, tx: Transaction) -> None:
        deployment = self._deployment
        records = keys.list_signing_keys(tx)
        handovers = [record.handover for record in records if record.handover is not None]
        self._write("keys.json", [_json({"keys": deployment.signing.vkeys(), "handovers": handovers})])
        self._write("trail.jsonl", export_lines(deployment, tx, self._study))
        if _Committed.now(tx, self._study, self._made_at) != self._committed:
            raise DatabaseUnavailable(_IN_MOTION)

    def _write(self, name: str, chunks: Iterable[bytes]) -> None:
        """Write one member, and keep its digest for the manifest."""
        digest = hashlib.sha256()
        # A trail of millions passes 2 GiB before it is compressed.
        with self._archive.open(_member(name, self._made_at), "w", force_zip64=True) as member:
            for chunk in chunks:
                digest.update(chunk)
                member.write(chunk)
        self._digests[name] = digest.hexdigest()


def _member(name: str, at: datetime) -> ZipInfo:
    info = ZipInfo(name, (at.year, at.month, at.day, at.hour, at.minute, at.second))
    info.compress_type = ZIP_DEFLATED
    return info


def _json(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def _array(name: str, chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Give the chunks of a JSON object with one array, whose chunks are given with their commas."""
    yield f'{{"{name}":['.encode()
    yield from chunks
    yield b"]}\n"


def _joined(items: Iterable[bytes]) -> Iterator[bytes]:
    separator = b""
    for item in items:
        yield separator + item
        separator = b",\n"


def _time(at: datetime | None) -> str | None:
    return None if at is None else at.isoformat(timespec="microseconds")


# -- lists and kits ----------------------------------------------------------------------------------------------------


def _schedules(
    act: Act, lists: Iterable[ScheduleHead], codes: Mapping[UUID, StratumCode], arms: _Arms
) -> Iterator[bytes]:
    """Give every list that was ever made, in chunks, those not approved included (rule A6); notes their arms."""
    for ordinal, head in enumerate(lists):
        yield b",\n" if ordinal else b""
        yield from _schedule(act, head, codes, arms)


def _schedule(act: Act, head: ScheduleHead, codes: Mapping[UUID, StratumCode], arms: _Arms) -> Iterator[bytes]:
    study, ring = act.study, act.deployment.ring
    kept = commitments.get_list_commitment(act.tx, study.study_id, head.schedule_id)
    schedule_id = str(head.schedule_id)
    context = SealContext(Column.SPECIFICATION, study.study_code, (schedule_id,))
    specification = json.loads(ring.open(context, kept.sealed_specification))
    for arm in specification["arms"]:
        arms[schedule_id, arm["arm_code"]] = (arm["label"], arm["treatment"])
    # The seed, which an imported list has none of, and the salt of the specification behind it.
    seed_and_salt = ring.open(SealContext(Column.SEED, study.study_code, (schedule_id,)), kept.sealed_seed)
    known = _json(
        {
            "schedule_id": schedule_id,
            "list_id": str(head.list_id),
            "segment_number": head.segment_number,
            "status": head.status,
            "origin": head.origin,
            "specification": specification,
            "specification_salt": seed_and_salt[-SALT_SIZE:].hex(),
            "seed": seed_and_salt[:-SALT_SIZE].hex() or None,
            "commitment": head.commitment,
            "commitment_note": kept.note,
        }
    )
    yield known[:-1] + b',"strata":['
    open_ = ring.opener_for(Column.SLOT, study.study_code)
    for ordinal, stratum in enumerate(kept.strata):
        code = json.dumps(codes.get(stratum.stratum_id, ""))
        yield f'{"," if ordinal else ""}{{"stratum_code":{code},"slots":['.encode()
        yield from _joined(_slots(act, open_, head.schedule_id, stratum.stratum_id))
        yield b"]}"
    yield b"]}"


def _slots(
    act: Act, open_: Callable[[tuple[str | int, ...], str], bytes], schedule_id: UUID, stratum_id: UUID
) -> Iterator[bytes]:
    for position, number, token in schedules.list_slots(act.tx, act.study.study_id, schedule_id, stratum_id):
        slot = SlotContents.from_bytes(open_(slot_place(schedule_id, stratum_id, position), token))
        row = [position, slot.arm_code, slot.block, slot.block_size, number, slot.salt.hex()]
        yield json.dumps(row, separators=(",", ":")).encode()


def _consignments(act: Act, consignments: Iterable[Consignment]) -> Iterator[bytes]:
    for ordinal, consignment in enumerate(consignments):
        known = _json(
            {
                "consignment_code": consignment.consignment_code,
                "unusable_from": consignment.unusable_from.isoformat(),
                "commitment": consignment.commitment,
                "commitment_note": consignment.commitment_note,
            }
        )
        yield (b",\n" if ordinal else b"") + known[:-1] + b',"kits":['
        yield from _joined(_kits(act, consignment.consignment_id))
        yield b"]}"


def _kits(act: Act, consignment_id: UUID) -> Iterator[bytes]:
    open_ = act.deployment.ring.opener_for(Column.KIT, act.study.study_code)
    # The kit map is in the order of the codes.
    for sealed in list_sealed_kits(act.tx, act.study.study_id, consignment_id):
        place = kit_place(consignment_id, sealed.kit_id, sealed.kit_code)
        kit = KitContents.from_bytes(open_(place, sealed.sealed.token))
        yield _json(
            {
                "kit_code": sealed.kit_code,
                "arm_code": kit.arm_code,
                "lot": kit.lot,
                "expires_on": kit.expires_on.isoformat(),
                "salt": kit.salt.hex(),
            }
        )


# -- subjects ----------------------------------------------------------------------------------------------------------


def _allocations(act: Act, codes: Mapping[UUID, StratumCode]) -> Iterator[dict[str, Any]]:
    study_id = act.study.study_id
    for page in storage.walk_allocations(act.tx, study_id):
        subjects = [allocation.subject_key for allocation in page]
        given = storage.list_given_kits(act.tx, study_id, subjects)
        entries = storage.list_allocation_entries(act.tx, study_id, subjects)
        for allocation in page:
            key = allocation.subject_key
            # The kit of the allocation itself comes first: of no visit, and in no other kit's place.
            kits = sorted(given[key], key=lambda one: not _is_first(one))
            entry = _own_entry(entries[key])
            if not kits or entry is None:
                message = "An allocation has lost its kit or its entry."
                raise IntegrityBroken(message)
            yield _allocation(act, allocation, codes.get(allocation.stratum_id, ""), kits, entry)


def _is_first(given: GivenKit) -> bool:
    return given.assignment.visit is None and given.assignment.replaces is None


def _own_entry(entries: Iterable[PlacedEntry]) -> Mapping[str, Any] | None:
    """Return the body of the entry that allocated a subject; replays and refusals are others."""
    bodies = (json.loads(entry.body) for entry in entries)
    return next((body for body in bodies if body["outcome"] == "done"), None)


def _allocation(
    act: Act,
    allocation: AllocatedSubject,
    stratum_code: str,
    kits: list[GivenKit],
    entry: Mapping[str, Any],
) -> dict[str, Any]:
    key: SubjectKey = allocation.subject_key
    place = AllocationPlace(
        allocation.allocation_id,
        key,
        allocation.schedule_id,
        allocation.stratum_id,
        allocation.position,
        allocation.randomization_number,
        kits[0].assignment.kit_id,
    )
    binding = open_binding(act, place, allocation.sealed_binding)
    return {
        "subject_id": key,
        "site_code": allocation.site_code,
        "stratum_code": stratum_code,
        "schedule_id": str(allocation.schedule_id),
        "position": allocation.position,
        "randomization_number": allocation.randomization_number,
        "strata_used": _strata(allocation),
        "allocated_by": allocation.allocated_by,
        "reported_user": allocation.reported_user,
        "allocated_at": _time(allocation.allocated_at),
        "log": entry["log"],
        "log_index": entry["index"],
        "binding": _words(binding),
        "kits": [_given_kit(act, key, one) for one in kits],
    }


def _strata(allocation: AllocatedSubject) -> object:
    try:
        return json.loads(allocation.strata_used)
    except ValueError:
        message = "The strata of an allocation are not what was stored."
        raise IntegrityBroken(message) from None


def _words(binding: Binding) -> dict[str, str]:
    return {"arm_code": binding.arm_code, "treatment": binding.treatment}


def _given_kit(act: Act, key: SubjectKey, given: GivenKit) -> dict[str, Any]:
    assignment = given.assignment
    place = KitAssignmentPlace(assignment.assignment_id, key, assignment.kit_id, given.kit_code)
    binding = open_binding(act, place, assignment.sealed_binding)
    return {
        "kit_code": given.kit_code,
        "visit": assignment.visit,
        **_words(binding),
        "assigned_at": _time(assignment.assigned_at),
        "dispensed_at": _time(assignment.dispensed_at),
    }


@dataclass(slots=True)
class _Table:
    """The list for reading, noted while the allocations pass by."""

    arms: _Arms = field(repr=False)
    text: StringIO = field(default_factory=lambda: StringIO(newline=""), repr=False)

    def noting(self, rows: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """Give the rows on, each noted as a line."""
        writer = csv.writer(self.text)
        writer.writerow(_CSV_HEADER)
        for row in rows:
            arm_code = row["binding"]["arm_code"]
            label, treatment = self.arms.get((row["schedule_id"], arm_code), ("", ""))
            cells = (
                row["subject_id"],
                row["randomization_number"],
                arm_code,
                label,
                treatment,
                " ".join(kit["kit_code"] for kit in row["kits"]),
                row["allocated_at"],
            )
            writer.writerow(map(harmless, cells))
            yield row

    def content(self) -> bytes:
        """Return the file."""
        return self.text.getvalue().encode()


def harmless(cell: str) -> str:
    """Return a cell that no spreadsheet takes for a formula."""
    return f"'{cell}" if cell.startswith(_FORMULA) else cell
