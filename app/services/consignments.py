"""Consignments of kits: made or imported by the supply manager, packed from a list that two people release, sent, and received.

Which kit is of which arm is sealed before it is stored and committed to before anybody receives it (rule A8). A consignment holds
every arm, has one date in clear, and becomes assignable as a whole (rules B6, B11).
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from typing import Any, Final
from uuid import UUID

from app.domain.codes import draw_kit_codes
from app.domain.contents import SALT_SIZE, KitContents
from app.domain.encoding import canonical_json
from app.domain.imports import Fault, refuse_faults
from app.domain.kits import (
    IMPORT_FIELD,
    LARGEST_CONSIGNMENT,
    STEPS,
    ImportLine,
    PlannedKit,
    Step,
    check_import,
    next_status,
    packing_list,
    read_import,
)
from app.domain.merkle import tiles, tree_root
from app.domain.notes import kit_commitment_text
from app.domain.sealed import Column, SealContext
from app.domain.signatures import RecordKind
from app.domain.words import (
    Action,
    ArmCode,
    ConsignmentCode,
    ConsignmentStatus,
    KitCode,
    KitStatus,
    SiteCode,
    StudyCode,
)
from app.errors import AlreadyExists, IllegalTransition, Invalid, KitMismatch, Missing, SecondPersonRequired
from app.sealing.recipients import encrypt_to
from app.services.audited import Act, audited
from app.services.context import RequestContext
from app.services.evidence import kit_place, open_kit
from app.services.signatures import request_content, sign
from app.storage import commitments, dual_control, kits, studies
from app.storage.dual_control import DualControlRequest
from app.storage.kits import Consignment, NewConsignment, NewKit

_PACKING_LIST: Final = "packing_list"
_LARGEST_RESTRICTED: Final = 8000
_KEY_LENGTH: Final = 8
_ID_LENGTH: Final = 16


@dataclass(frozen=True, slots=True)
class Batch:
    """So many kits of one product: what the service is to make codes for. Danger: holds an arm."""

    arm_code: ArmCode = field(repr=False)
    lot: str = field(repr=False)
    expires_on: date = field(repr=False)
    count: int = field(repr=False)


@dataclass(frozen=True, slots=True)
class CreatedConsignment:
    """A consignment just made, and the root that its kit map was committed to by (hexadecimal)."""

    consignment_code: ConsignmentCode
    kit_count: int
    commitment: str


def create_consignment(
    ctx: RequestContext, study: StudyCode, consignment_code: ConsignmentCode, batches: Sequence[Batch]
) -> CreatedConsignment:
    """Return the new consignment, its kits named by fresh codes that say nothing (rule B4).

    Raises ``AlreadyExists``, ``Invalid`` for an unknown arm, one without kits, or too many kits.
    """

    def work(act: Act) -> CreatedConsignment:
        act.note(target={"consignment_code": consignment_code})
        arms = _arms(act)
        for index, batch in enumerate(batches):
            if batch.arm_code not in arms:
                message = "The study has no such arm."
                raise Invalid(message, f"kits.{index}.arm_code")
        if missing := arms - {batch.arm_code for batch in batches}:
            message = f"The consignment holds no kit of {', '.join(sorted(missing))}."
            raise Invalid(message, "kits")
        count = sum(batch.count for batch in batches)
        if count > LARGEST_CONSIGNMENT:
            message = f"A consignment holds at most {LARGEST_CONSIGNMENT} kits."
            raise Invalid(message, "kits")
        _refuse_taken(act, consignment_code)
        # The codes come in random order, so which of them go to which arm is chance too.
        codes = iter(_new_codes(act, count))
        planned = [
            PlannedKit(next(codes), batch.arm_code, batch.lot, batch.expires_on)
            for batch in batches
            for _ in range(batch.count)
        ]
        return _store(act, consignment_code, planned, "generated")

    return audited(ctx, Action.CREATE_CONSIGNMENT, work, study=study, answer_type=CreatedConsignment)


def import_consignment(
    ctx: RequestContext, study: StudyCode, consignment_code: ConsignmentCode, source: bytes | Sequence[ImportLine]
) -> CreatedConsignment:
    """Return the new consignment with the kits of an import: a CSV file, or its lines.

    Raises ``AlreadyExists``, or ``FaultyImport`` with every fault: it is refused whole.
    """

    def work(act: Act) -> CreatedConsignment:
        act.note(target={"consignment_code": consignment_code})
        lines = read_import(source) if isinstance(source, bytes) else source
        planned, places, faults = check_import(lines, _arms(act))
        if not faults:
            # What is wrong in itself comes first (rule G2); of an import sent twice it is said that it is there.
            _refuse_taken(act, consignment_code)
        known = kits.list_known_codes(act.tx, act.study.study_id, places)
        refuse_faults([*faults, *_known(places, known)], IMPORT_FIELD)
        return _store(act, consignment_code, planned, "imported")

    return audited(ctx, Action.CREATE_CONSIGNMENT, work, study=study, answer_type=CreatedConsignment)


def _refuse_taken(act: Act, consignment_code: ConsignmentCode) -> None:
    if kits.find_consignment(act.tx, act.study.study_id, consignment_code) is not None:
        message = "A consignment of this code exists already."
        raise AlreadyExists(message)


def _arms(act: Act) -> frozenset[ArmCode]:
    return frozenset(arm.arm_code for arm in studies.list_arms(act.tx, act.study.study_id))


def _known(places: Mapping[KitCode, str], known: Collection[KitCode]) -> list[Fault]:
    return [(place, "The study has a kit of this code.") for code, place in places.items() if code in known]


def _new_codes(act: Act, count: int) -> list[KitCode]:
    """Return codes that no kit of the study has: those that met an old one are drawn again."""
    codes: dict[KitCode, None] = {}
    taken: set[KitCode] = set()
    while len(codes) < count:
        drawn = draw_kit_codes(act.deployment.entropy, count - len(codes), taken)
        known = kits.list_known_codes(act.tx, act.study.study_id, drawn)
        codes.update(dict.fromkeys(code for code in drawn if code not in known))
        taken.update(drawn)
    return list(codes)


def _store(
    act: Act, consignment_code: ConsignmentCode, planned: Sequence[PlannedKit], origin: str
) -> CreatedConsignment:
    """Seal every kit in its place, commit to the map of all, store both and enter the commitment (rule A8)."""
    deployment, study = act.deployment, act.study
    consignment_id = deployment.new_id()
    # In the order of the codes, which are chance (or were tested to look like it): the order of the map says nothing.
    ordered = sorted(planned, key=lambda kit: kit.kit_code)
    key_version = deployment.ring.newest_version(study.study_code)
    leaves, rows = _sealed(act, consignment_id, consignment_code, ordered)
    root = tree_root(leaves)
    text = kit_commitment_text(str(deployment.deployment_id), study.study_code, consignment_code, root)
    consignment = NewConsignment(
        consignment_id,
        consignment_code,
        origin,
        len(ordered),
        min(kit.expires_on for kit in ordered),
        root.hex(),
        deployment.signing.sign_note(text),
        root,
        act.now,
        act.principal.name,
    )
    kits.add_consignment(act.tx, study.study_id, consignment, _shuffled(act, rows), key_version)
    commitments.add_tiles(act.tx, study.study_id, consignment_id, tiles(leaves))
    act.note(
        after={
            "kit_count": len(ordered),
            "commitment": root.hex(),
            "origin": origin,
            "unusable_from": consignment.unusable_from.isoformat(),
        },
        restricted=_quantities(ordered),
    )
    return CreatedConsignment(consignment_code, len(ordered), root.hex())


def _sealed(
    act: Act, consignment_id: UUID, consignment_code: ConsignmentCode, ordered: Sequence[PlannedKit]
) -> tuple[list[bytes], list[NewKit]]:
    """Return the leaf of every kit of the map, and its row."""
    deployment, study_code = act.deployment, act.study.study_code
    seal = deployment.ring.sealer_for(Column.KIT, study_code)
    salts = deployment.entropy.draw("salt", SALT_SIZE * len(ordered))
    ids = deployment.entropy.draw("row id", _ID_LENGTH * len(ordered))
    leaves, rows = [], []
    for index, kit in enumerate(ordered):
        salt = salts[SALT_SIZE * index : SALT_SIZE * (index + 1)]
        kit_id = UUID(bytes=ids[_ID_LENGTH * index : _ID_LENGTH * (index + 1)], version=4)
        contents = KitContents(kit.arm_code, kit.lot, kit.expires_on, salt)
        leaves.append(contents.leaf(study_code, deployment.mode, consignment_code, kit.kit_code))
        sealed = seal(kit_place(consignment_id, kit_id, kit.kit_code), contents.to_bytes())
        rows.append(NewKit(kit_id, kit.kit_code, index, sealed))
    return leaves, rows


def _shuffled(act: Act, rows: Sequence[NewKit]) -> list[NewKit]:
    """Return the rows in random order: where a row lies in the database says nothing either (rule B3)."""
    keys = act.deployment.entropy.draw("row order", _KEY_LENGTH * len(rows))
    order = sorted(range(len(rows)), key=lambda row: keys[_KEY_LENGTH * row : _KEY_LENGTH * (row + 1)])
    return [rows[row] for row in order]


def _quantities(planned: Sequence[PlannedKit]) -> dict[str, Any]:
    """Return what the restricted part tells: how many of each arm, and the lots as far as there is room for them."""
    arms = Counter(kit.arm_code for kit in planned)
    lots = Counter((kit.arm_code, kit.lot, kit.expires_on) for kit in planned)
    quantities: dict[str, Any] = {"quantities": dict(sorted(arms.items())), "lot_count": len(lots)}
    detailed = quantities | {
        "lots": [
            {"arm_code": arm, "lot": lot, "expires_on": day.isoformat(), "count": count}
            for (arm, lot, day), count in sorted(lots.items())
        ]
    }
    return detailed if len(canonical_json(detailed)) <= _LARGEST_RESTRICTED else quantities


# -- the packing list: asked for by one person, released by another (rule F3) --------------------------------------------


@dataclass(frozen=True, slots=True)
class PackingListRequest:
    """A request that waits for a second person."""

    request_id: UUID


@dataclass(frozen=True, slots=True)
class PackingList:
    """The list of a consignment: CSV, or encrypted to the recipient's key. Danger: holds every arm of it."""

    content: bytes = field(repr=False)
    media_type: str
    file_name: str


def packing_list_info(study: StudyCode, consignment_code: ConsignmentCode) -> bytes:
    """Return what an encrypted packing list is bound to; its recipient needs it to open the list (RFC 9180, ``info``)."""
    return f"snose/v1/packing-list\n{study}\n{consignment_code}".encode()


def request_packing_list(
    ctx: RequestContext, study: StudyCode, consignment_code: ConsignmentCode, recipient_key: str | None
) -> PackingListRequest:
    """Return the request, which another unblinded person must release; raise ``Invalid`` for a key that is none."""

    def work(act: Act) -> PackingListRequest:
        act.note(target={"consignment_code": consignment_code})
        if recipient_key is not None:
            encrypt_to(recipient_key, b"", b"")
        consignment = _get(act, consignment_code)
        request_id = act.deployment.new_id()
        ring, study_code = act.deployment.ring, act.study.study_code
        # There is no statement to a packing list; the column is never empty, so that a reader of the database cannot tell.
        sealed = ring.seal(SealContext(Column.REQUEST_TEXT, study_code, (str(request_id),)), b"")
        dual_control.add_request(
            act.tx,
            act.study.study_id,
            DualControlRequest(
                request_id,
                _PACKING_LIST,
                consignment.consignment_id,
                recipient_key,
                sealed,
                ring.newest_version(study_code),
                act.now,
                act.principal.name,
            ),
        )
        act.note(after={"request_id": str(request_id), "encrypted": recipient_key is not None})
        return PackingListRequest(request_id)

    return audited(ctx, Action.REQUEST_PACKING_LIST, work, study=study, answer_type=PackingListRequest)


def release_packing_list(
    ctx: RequestContext, study: StudyCode, consignment_code: ConsignmentCode, request_id: UUID
) -> PackingList:
    """Return the packing list, once, every kit of it proved to the commitment.

    Raises ``Missing``, ``SecondPersonRequired``, ``IllegalTransition`` for a list that was released before, and
    ``IntegrityBroken`` when a kit is not what was committed to.
    """

    def work(act: Act) -> PackingList:
        act.note(target={"consignment_code": consignment_code, "request_id": str(request_id)})
        consignment = _get(act, consignment_code)
        request = dual_control.lock_request(act.tx, act.study.study_id, _PACKING_LIST, request_id)
        if request.consignment_id != consignment.consignment_id:
            raise Missing
        if request.requested_by == act.principal.name:
            raise SecondPersonRequired
        if request.released_at is not None:
            message = "This packing list was released before. Make a new request."
            raise IllegalTransition(message)
        dual_control.record_release(act.tx, act.study.study_id, request_id, act.now, act.principal.name)
        content = _packing_list(act, consignment)
        act.note(after={"kit_count": consignment.kit_count, "encrypted": request.recipient_key is not None})
        sign(act, RecordKind.PACKING_LIST, str(request_id), request_content(request))
        name = f"packing-list-{consignment_code}.csv"
        if request.recipient_key is None:
            return PackingList(content, "text/csv; charset=utf-8", name)
        encrypted = encrypt_to(request.recipient_key, content, packing_list_info(study, consignment_code))
        return PackingList(encrypted, "application/octet-stream", f"{name}.hpke")

    return audited(ctx, Action.RELEASE_PACKING_LIST, work, study=study, on_withheld=_nothing_to_mark)


def _nothing_to_mark(_tx: object, _result: PackingList) -> None:
    """A withheld list is entered as withheld; the request is spent, and a new one is made."""


def _packing_list(act: Act, consignment: Consignment) -> bytes:
    opened = (
        open_kit(act, kit) for kit in kits.list_sealed_kits(act.tx, act.study.study_id, consignment.consignment_id)
    )
    return packing_list(PlannedKit(kit.kit_code, kit.arm_code, kit.lot, kit.expires_on) for kit in opened)


def _get(act: Act, consignment_code: ConsignmentCode) -> Consignment:
    consignment = kits.find_consignment(act.tx, act.study.study_id, consignment_code)
    if consignment is None:
        raise Missing
    return consignment


# -- on the way ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class DispatchedConsignment:
    """A consignment on its way."""

    consignment_code: ConsignmentCode
    site_code: SiteCode
    status: ConsignmentStatus
    kit_count: int
    dispatched_at: datetime


def dispatch_consignment(
    ctx: RequestContext, study: StudyCode, consignment_code: ConsignmentCode, site_code: SiteCode
) -> DispatchedConsignment:
    """Return the consignment, on its way to a site; raise ``Missing``, or ``IllegalTransition`` for one that was sent."""

    def work(act: Act) -> DispatchedConsignment:
        study_id = act.study.study_id
        act.note(target={"consignment_code": consignment_code, "site_code": site_code}, site_code=site_code)
        studies.get_site(act.tx, study_id, site_code)
        kits.lock_stock(act.tx, study_id, site_code)
        consignment = kits.lock_consignment(act.tx, study_id, consignment_code)
        if consignment.status is not ConsignmentStatus.REGISTERED:
            message = "The consignment was sent before."
            raise IllegalTransition(message)
        kits.record_dispatch(act.tx, study_id, consignment.consignment_id, site_code, act.now)
        act.note(before={"status": consignment.status}, after={"status": ConsignmentStatus.DISPATCHED})
        return DispatchedConsignment(
            consignment_code, site_code, ConsignmentStatus.DISPATCHED, consignment.kit_count, act.now
        )

    return audited(ctx, Action.DISPATCH_CONSIGNMENT, work, study=study, answer_type=DispatchedConsignment)


@dataclass(frozen=True, slots=True)
class ReceivedConsignment:
    """How far a consignment is received, all arms pooled."""

    consignment_code: ConsignmentCode
    status: ConsignmentStatus
    received: int
    missing: int
    outstanding: int
    put_aside: Sequence[KitCode] = ()
    """Codes of this receipt that stay aside whatever the parcel held: a code was broken by them (EUB-07)."""


def receive_consignment(
    ctx: RequestContext,
    study: StudyCode,
    consignment_code: ConsignmentCode,
    received: Sequence[KitCode],
    missing: Sequence[KitCode],
) -> ReceivedConsignment:
    """Return how far the consignment is received; with its last code it becomes assignable, as a whole (rule B6).

    A receipt is taken whole or not at all; a kit by which a code was broken stays aside, is named as such, and does not keep the
    others from being received. Raises ``Invalid`` for a code named twice, ``Missing`` for a consignment that is not
    on its way to the caller's site, ``KitMismatch`` when any code is not of it, ``IllegalTransition`` when one was received or
    reported before. A code reported missing may be received while others are open, and after that it is put aside.
    """
    named = [*received, *missing]

    def work(act: Act) -> ReceivedConsignment:
        study_id = act.study.study_id
        act.note(target={"consignment_code": consignment_code})
        if not named or len(set(named)) != len(named):
            message = "Name at least one code, and each code once."
            raise Invalid(message, "received")
        site_code = _get(act, consignment_code).site_code
        if site_code is None:
            raise Missing
        act.at_site(site_code)
        kits.lock_stock(act.tx, study_id, site_code)
        consignment = kits.lock_consignment(act.tx, study_id, consignment_code)
        statuses = kits.list_statuses(act.tx, study_id, consignment.consignment_id, named)
        if len(statuses) != len(named):
            message = "A code is not of this consignment. Nothing of the receipt was taken."
            raise KitMismatch(message)
        is_open = consignment.status is ConsignmentStatus.DISPATCHED
        steps = [(code, Step.RECEIVE if is_open else Step.RECEIVE_LATE) for code in received]
        steps += [(code, Step.REPORT_MISSING) for code in missing]
        aside = _aside(act, [code for code, step in steps if statuses[code] not in STEPS[step]])
        moved: dict[KitStatus, list[KitCode]] = {}
        for code, step in steps:
            if code in aside:
                continue
            moved.setdefault(next_status(statuses[code], step), []).append(code)
        for status, codes in moved.items():
            kits.record_statuses(act.tx, study_id, codes, status)
        answer = _progress(act, consignment, [code for code in named if code in aside])
        act.note(
            before={"status": consignment.status},
            after={
                "status": answer.status,
                "received": sorted(set(received) - aside),
                "missing": sorted(set(missing) - aside),
                "outstanding": answer.outstanding,
                **({"put_aside": sorted(aside)} if aside else {}),
                **({"alert": "supply_manager"} if aside or KitStatus.QUARANTINED in moved else {}),
            },
        )
        return answer

    return audited(ctx, Action.RECEIVE_CONSIGNMENT, work, study=study, answer_type=ReceivedConsignment)


def _aside(act: Act, kit_codes: Sequence[KitCode]) -> frozenset[KitCode]:
    """Return which of the kits that no receipt moves any more are aside because a code was broken by them."""
    return frozenset(code for code in kit_codes if _was_broken(act, code))


def _was_broken(act: Act, kit_code: KitCode) -> bool:
    kit = kits.find_kit(act.tx, act.study.study_id, kit_code)
    return kit is not None and kits.was_broken(act.tx, act.study.study_id, kit.kit_id)


def _progress(act: Act, consignment: Consignment, put_aside: Sequence[KitCode]) -> ReceivedConsignment:
    """Return how far a consignment is received, and let it be drawn from once no code is open."""
    study_id = act.study.study_id
    counts = kits.count_in_consignment(act.tx, study_id, consignment.consignment_id)
    outstanding, missing = counts.get(KitStatus.DISPATCHED, 0), counts.get(KitStatus.MISSING, 0)
    status = consignment.status
    if status is ConsignmentStatus.DISPATCHED and not outstanding:
        kits.record_assignable(act.tx, study_id, consignment.consignment_id, act.now)
        status = ConsignmentStatus.ASSIGNABLE
    return ReceivedConsignment(
        consignment.consignment_code,
        status,
        consignment.kit_count - outstanding - missing,
        missing,
        outstanding,
        put_aside,
    )
