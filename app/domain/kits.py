"""The life of a kit, step by step; what makes it usable; and what an import or a packing list of kits looks like.

    registered ──dispatch──> dispatched ──receive──> in_stock ──assign──> assigned ──dispense──> dispensed ──return──> returned
                                  └──report_missing──> missing

- *Missing* is what was not in the parcel. While other codes of the parcel are still open it may yet be received like them; found
  after the parcel was complete it is only put aside (``receive_late``): a kit that joined an assignable consignment one by one
  would be an oracle (rule B6). So is everything of a parcel that was called back on its way.
- *Quarantined* from stock or from a subject, at once and by the site (KIT-05, 06); released, by the supply manager alone, to where
  it was. A kit whose code was broken before anybody was given it is put aside too (``break_code``), wherever it was.
- *Replaced*, *damaged*, *lost* end a kit's use; what is replaced when damaged or lost stays so. A lost kit that turns up is
  returned: nobody knows how it was kept.
- *Returned* kits are never dispensed again (KIT-11). *Destroyed* is the end, and the supply manager's word (KIT-12); stock that is
  left over is put aside first.

Expiry is no status: it is a matter of the consignment's one date and of the day at the site (rule B11).
"""

import csv
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from enum import StrEnum
from io import StringIO
from typing import Final

from app.domain.codes import RUNS_TEST_LIMIT, codes_tell, normalise_kit_code, runs_test_p
from app.domain.imports import Fault, read_table
from app.domain.words import ArmCode, ConsignmentStatus, KitCode, KitStatus
from app.errors import IllegalTransition, InvalidCode

LARGEST_CONSIGNMENT: Final = 200_000
IMPORT_HEADER: Final = ("kit_code", "arm_code", "lot", "expires_on")
IMPORT_FIELD: Final = "kits"
_LOT: Final = re.compile(r"(?![=+@-])[!-~](?:[ -~]{0,38}[!-~])?")
_DAY: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")


class Step(StrEnum):
    """What happens to a kit."""

    DISPATCH = "dispatch"
    RECEIVE = "receive"
    RECEIVE_LATE = "receive_late"
    REPORT_MISSING = "report_missing"
    ASSIGN = "assign"
    DISPENSE = "dispense"
    RETURN = "return"
    QUARANTINE = "quarantine"
    RELEASE_TO_STOCK = "release_to_stock"
    RELEASE_TO_SUBJECT = "release_to_subject"
    BREAK_CODE = "break_code"
    REPORT_DAMAGE = "damage"
    REPORT_LOSS = "loss"
    REPLACE = "replace"
    DESTROY = "destroy"


class ReplacementReason(StrEnum):
    """Why a subject gets another kit of the same arm."""

    DAMAGED = "damaged"
    LOST = "lost"
    TEMPERATURE_EXCURSION = "temperature_excursion"
    EXPIRED = "expired"
    OTHER = "other"


_K = KitStatus
STEPS: Final[Mapping[Step, Mapping[KitStatus, KitStatus]]] = {
    Step.DISPATCH: {_K.REGISTERED: _K.DISPATCHED},
    Step.RECEIVE: {_K.DISPATCHED: _K.IN_STOCK, _K.MISSING: _K.IN_STOCK},
    Step.RECEIVE_LATE: {_K.MISSING: _K.QUARANTINED, _K.DISPATCHED: _K.QUARANTINED},
    Step.REPORT_MISSING: {_K.DISPATCHED: _K.MISSING},
    Step.ASSIGN: {_K.IN_STOCK: _K.ASSIGNED},
    Step.DISPENSE: {_K.ASSIGNED: _K.DISPENSED},
    Step.RETURN: {_K.DISPENSED: _K.RETURNED, _K.REPLACED: _K.RETURNED, _K.LOST: _K.RETURNED},
    Step.QUARANTINE: {_K.IN_STOCK: _K.QUARANTINED, _K.ASSIGNED: _K.QUARANTINED},
    Step.RELEASE_TO_STOCK: {_K.QUARANTINED: _K.IN_STOCK},
    Step.RELEASE_TO_SUBJECT: {_K.QUARANTINED: _K.ASSIGNED},
    Step.BREAK_CODE: {
        _K.REGISTERED: _K.QUARANTINED,
        _K.DISPATCHED: _K.QUARANTINED,
        _K.MISSING: _K.QUARANTINED,
        _K.IN_STOCK: _K.QUARANTINED,
        _K.QUARANTINED: _K.QUARANTINED,
        _K.DAMAGED: _K.QUARANTINED,
        _K.LOST: _K.QUARANTINED,
    },
    Step.REPORT_DAMAGE: {
        _K.IN_STOCK: _K.DAMAGED,
        _K.ASSIGNED: _K.DAMAGED,
        _K.DISPENSED: _K.DAMAGED,
        _K.QUARANTINED: _K.DAMAGED,
    },
    Step.REPORT_LOSS: {
        _K.IN_STOCK: _K.LOST,
        _K.ASSIGNED: _K.LOST,
        _K.DISPENSED: _K.LOST,
        _K.QUARANTINED: _K.LOST,
    },
    Step.REPLACE: {
        _K.ASSIGNED: _K.REPLACED,
        _K.DISPENSED: _K.REPLACED,
        _K.QUARANTINED: _K.REPLACED,
        _K.DAMAGED: _K.DAMAGED,
        _K.LOST: _K.LOST,
    },
    Step.DESTROY: {
        _K.QUARANTINED: _K.DESTROYED,
        _K.RETURNED: _K.DESTROYED,
        _K.REPLACED: _K.DESTROYED,
        _K.DAMAGED: _K.DESTROYED,
    },
}
"""Every legal step, from where to where; what is not here is refused (KIT-03)."""


def next_status(status: KitStatus, step: Step) -> KitStatus:
    """Return the status after a step; raise ``IllegalTransition`` for a step that does not follow."""
    try:
        return STEPS[step][status]
    except KeyError:
        message = f"A kit that is {status.replace('_', ' ')} cannot take the step {step.replace('_', ' ')}."
        raise IllegalTransition(message) from None


def status_after_replacement(status: KitStatus, reason: ReplacementReason) -> KitStatus:
    """Return what a kit is once another one stands in its place: damaged or lost when that is why, else replaced (KIT-10)."""
    why = {ReplacementReason.DAMAGED: Step.REPORT_DAMAGE, ReplacementReason.LOST: Step.REPORT_LOSS}.get(reason)
    if why is not None and status not in {KitStatus.DAMAGED, KitStatus.LOST}:
        status = next_status(status, why)
    return next_status(status, Step.REPLACE)


def is_usable(
    status: KitStatus,
    consignment_status: ConsignmentStatus,
    unusable_from: date,
    day_at_site: date,
    *,
    is_recalled: bool = False,
) -> bool:
    """Return the one thing that a site is told of a kit beside its status (rule B11).

    In stock: it may be assigned, because its consignment is assignable. With a subject: it may be used. From the consignment's date
    on nothing of it is usable, assigned or not; nor from the moment on at which the consignment was called back.
    """
    if is_recalled or day_at_site >= unusable_from:
        return False
    if status is KitStatus.IN_STOCK:
        return consignment_status is ConsignmentStatus.ASSIGNABLE
    return status in {KitStatus.ASSIGNED, KitStatus.DISPENSED}


# -- recalls -----------------------------------------------------------------------------------------------------------


class ToDo(StrEnum):
    """What a site does with a kit that is called back."""

    CALL_BACK = "call_back"
    """From its subject."""
    PUT_ASIDE = "put_aside"


TO_DO_IN_RECALL: Final[Mapping[KitStatus, ToDo]] = {
    _K.DISPATCHED: ToDo.PUT_ASIDE,
    _K.IN_STOCK: ToDo.PUT_ASIDE,
    _K.ASSIGNED: ToDo.PUT_ASIDE,
    _K.DISPENSED: ToDo.CALL_BACK,
    # One that another kit stands in for may still be with its subject.
    _K.REPLACED: ToDo.CALL_BACK,
}
"""What is still to be done, by status; a kit of any other is back, aside or accounted for."""


def to_do_in_recall(status: KitStatus) -> ToDo:
    """Return what a site has to do with a recalled kit of a status in ``TO_DO_IN_RECALL``."""
    return TO_DO_IN_RECALL[status]


# -- imports -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PlannedKit:
    """A kit of a consignment that is to be made. Danger: holds an arm."""

    kit_code: KitCode
    arm_code: ArmCode = field(repr=False)
    lot: str = field(repr=False)
    expires_on: date = field(repr=False)


@dataclass(frozen=True, slots=True)
class ImportLine:
    """A line of an import as it came, and the place by which a fault in it is named. Danger: holds an arm."""

    place: str
    kit_code: str
    arm_code: str = field(repr=False)
    lot: str = field(repr=False)
    expires_on: str = field(repr=False)


def read_import(content: bytes) -> list[ImportLine]:
    """Return the lines of a CSV file; raise ``FaultyImport`` as ``read_table`` does."""
    _, lines = read_table(content, (IMPORT_HEADER,), IMPORT_FIELD)
    return [ImportLine(place, *cells) for place, cells in lines]


def check_import(
    lines: Sequence[ImportLine], arms: Collection[ArmCode]
) -> tuple[list[PlannedKit], Mapping[KitCode, str], list[Fault]]:
    """Return the kits, the place at which each code stands, and every fault (none: the kits are all of the lines).

    A fault is also a code that stands twice, an arm without a kit, and codes or an order of lines that tell the arm (rule B4).
    """
    kits: list[PlannedKit] = []
    places: dict[KitCode, str] = {}
    faults: list[Fault] = []
    for line in lines:
        kit, line_faults = _check_line(line, arms)
        if kit is not None and kit.kit_code in places:
            line_faults.append(f"The kit code stands already at {places[kit.kit_code]}.")
        faults.extend((line.place, sentence) for sentence in line_faults)
        if kit is not None and not line_faults:
            places[kit.kit_code] = line.place
            kits.append(kit)
    if len(lines) > LARGEST_CONSIGNMENT:
        faults.append(("kits", f"A consignment holds at most {LARGEST_CONSIGNMENT} kits."))
    if not faults:
        faults = [*_missing_arms(kits, arms), *_telling_orders(kits)]
    return kits, places, faults


def _check_line(line: ImportLine, arms: Collection[ArmCode]) -> tuple[PlannedKit | None, list[str]]:
    faults = []
    kit_code: KitCode | None = None
    try:
        kit_code = normalise_kit_code(line.kit_code)
    except InvalidCode as error:
        faults.append(error.message)
    if line.arm_code not in arms:
        faults.append("The study has no such arm.")
    if not is_lot(line.lot):
        faults.append("A lot has 1 to 40 printable ASCII characters and does not begin with =, +, - or @.")
    expires_on = parse_day(line.expires_on)
    if expires_on is None:
        faults.append("expires_on is a day such as 2027-06-30.")
    if kit_code is None or expires_on is None:
        return None, faults
    return PlannedKit(kit_code, ArmCode(line.arm_code), line.lot, expires_on), faults


def is_lot(text: str) -> bool:
    """Return whether a text can name a lot: 1 to 40 printable ASCII characters, none in front that a spreadsheet runs."""
    return _LOT.fullmatch(text) is not None


def parse_day(text: str) -> date | None:
    """Return the day that ``YYYY-MM-DD`` names, or None."""
    try:
        return date.fromisoformat(text) if _DAY.fullmatch(text) else None
    except ValueError:
        return None


def _missing_arms(kits: Iterable[PlannedKit], arms: Collection[ArmCode]) -> list[Fault]:
    # A consignment holds every arm, so that its coming tells nothing (rule B6). Which one is missing the supply manager may know.
    missing = set(arms) - {kit.arm_code for kit in kits}
    return [("kits", f"The consignment holds no kit of {', '.join(sorted(missing))}.")] if missing else []


def _telling_orders(kits: Sequence[PlannedKit]) -> list[Fault]:
    arms = [kit.arm_code for kit in kits]
    faults = []
    if codes_tell([kit.kit_code for kit in kits], arms):
        faults.append(("kits", "The kit codes tell the arm: in their order the arms do not alternate as by chance."))
    if runs_test_p(arms) < RUNS_TEST_LIMIT:
        faults.append(("kits", "The order of the lines tells the arm: shuffle them."))
    return faults


# -- the packing list --------------------------------------------------------------------------------------------------


def packing_list(kits: Iterable[PlannedKit]) -> bytes:
    """Return the CSV that a packer works from, in the order of the codes. Danger: holds every arm of a consignment."""
    text = StringIO()
    writer = csv.writer(text, lineterminator="\r\n")
    writer.writerow(IMPORT_HEADER)
    for kit in sorted(kits, key=lambda kit: kit.kit_code):
        writer.writerow(map(_harmless, (kit.kit_code, kit.arm_code, kit.lot, kit.expires_on.isoformat())))
    return text.getvalue().encode()


def _harmless(cell: str) -> str:
    """Return a cell that no spreadsheet runs: an arm's code may begin with a hyphen."""
    return f"'{cell}" if cell.startswith(("=", "+", "-", "@", "\t", "\r")) else cell
