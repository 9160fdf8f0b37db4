"""Builds that leak, each by one fault of the catalogue of failures; the harness must tell every one of them from an honest build.

    with group_in_the_trail():
        ...                                  # a deployment that is made here names the arm in its trail, as a hash

Each is a small change to the running build, of the kind that was found in public code or that guidance warns of. The three oldest
stand in `twins.py`: the lot shown, the first match, the refusal that depends on the arm.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Final
from unittest.mock import patch

import prometheus_client
import structlog
from prometheus_client import REGISTRY
from sqlalchemy import select

from app import main
from app.api import allocations as allocations_api
from app.api import kits as kits_api
from app.api import schedules as schedules_api
from app.api.doors import Context, Door
from app.api.schemas import Cursor, IdPath, Limit, SitePath, StudyPath, SubjectPath
from app.domain import schedules
from app.domain.schedules import BlockPlan, Specification, StratumSpec
from app.domain.sealed import Sealed
from app.domain.words import Action, ArmCode, KitCode, StudyCode
from app.errors import KitMismatch, StockInsufficient
from app.services import allocations, consignments, evidence, kits, lists, stock
from app.services.audited import Act
from app.services.context import Deployment, RequestContext
from app.services.evidence import OpenedKit, open_kit
from app.services.kits import DispensedKit
from app.storage import tables
from app.storage.kits import Assignable
from tests.security.test_dump import rank_score
from tests.security.truth import open_kits, open_slots
from tests.security.twins import OTHER_BLOCKS, OTHER_CHANCE, PERMUTED, Recording, Twin

Leak = Callable[[], AbstractContextManager[None]]


def _arms_of_subjects(deployment: Deployment, study: str) -> dict[str, ArmCode]:
    """Return the arm of every subject."""
    of_kit = {kit.kit_id: kit.arm_code for kit in open_kits(deployment, StudyCode(study)).values()}
    given, allocation = tables.kit_assignment, tables.allocation
    same = (given.c.study_id == allocation.c.study_id) & (given.c.subject_key == allocation.c.subject_key)
    with deployment.database.transaction() as tx:
        rows = tx.execute(select(allocation.c.subject_id, given.c.kit_id).join_from(given, allocation, same)).all()
    return {row.subject_id: of_kit[row.kit_id] for row in rows if row.kit_id in of_kit}


@contextmanager
def _door(door: Door) -> Iterator[None]:
    with patch.object(main, "DOORS", (door, *main.DOORS)):
        yield


@contextmanager
def mismatch_explained() -> Iterator[None]:
    """A build whose answer to a wrong scan says that the kit is of another arm."""
    honest = kits.dispense_kit

    def told(ctx: RequestContext, study: StudyCode, code: KitCode, subject: str, scanned: KitCode) -> DispensedKit:
        try:
            return honest(ctx, study, code, subject, scanned)
        except KitMismatch:
            kit = open_kits(ctx.deployment, study).get(code)
            own = _arms_of_subjects(ctx.deployment, study).get(subject)
            if kit is not None and own not in (None, kit.arm_code):
                message = "The assignment does not match."
                raise KitMismatch(message) from None
            raise

    with patch.object(kits, "dispense_kit", told):
        yield


@contextmanager
def group_in_the_trail() -> Iterator[None]:
    """A build that enters with each allocation which group it is, as a hash."""
    honest = evidence.seal_binding

    def noted(act: Act, place: Any, binding: Any) -> tuple[Sealed, int]:  # noqa: ANN401  # as they are
        act.lasting = {**(act.lasting or {}), "group": hashlib.sha256(binding.arm_code.encode()).hexdigest()[:8]}
        return honest(act, place, binding)

    with patch.object(allocations, "seal_binding", noted):
        yield


@contextmanager
def group_id_beside_a_masked_label() -> Iterator[None]:
    """A build that masks the label of the group in its answer to the EDC system, and leaves the raw id beside it."""
    door = Door("Leak")

    @door.post("/studies/{study}/allocations", Action.ALLOCATE, 201)
    def allocate_into_a_group(
        study: StudyPath, body: allocations_api.AllocationRequest, ctx: Context
    ) -> dict[str, object]:
        """Randomize a subject."""
        answer = allocations_api.allocate(study, body, ctx).model_dump(mode="json")
        truth = open_kits(ctx.deployment, StudyCode(study))
        groups = sorted({kit.arm_code for kit in truth.values()})
        return {**answer, "group": "[blinded]", "group_id": groups.index(truth[answer["kit_code"]].arm_code)}

    with _door(door):
        yield


@contextmanager
def codes_by_arm() -> Iterator[None]:
    """A build that hands codes to kits in their order, arm after arm."""
    honest = consignments._new_codes

    def in_order(act: Act, count: int) -> list[KitCode]:
        return sorted(honest(act, count))

    with patch.object(consignments, "_new_codes", in_order):
        yield


@contextmanager
def seed_in_the_log() -> Iterator[None]:
    """A build that logs how a list was made."""
    honest = schedules.generate_blocks

    def logged(spec: Specification, stratum: StratumSpec, seed: bytes) -> Iterator[BlockPlan]:
        structlog.get_logger("snose.leak").info("list generated", seed=seed.hex())
        yield from honest(spec, stratum, seed)

    with patch.object(lists, "generate_blocks", logged):
        yield


@contextmanager
def stock_by_arm() -> Iterator[None]:
    """A build whose stock page tells how many kits of each kind are left, under harmless names."""
    door = Door("Leak")

    @door.get("/studies/{study}/sites/{site}/kits", Action.READ_STOCK)
    def read_stock_by_kind(
        study: StudyPath, site: SitePath, ctx: Context, limit: Limit = 100, cursor: Cursor = None
    ) -> dict[str, object]:
        """Read the stock."""
        page = kits_api.read_stock(study, site, ctx, limit, cursor).model_dump(mode="json")
        truth = open_kits(ctx.deployment, StudyCode(study))
        kinds = sorted({kit.arm_code for kit in truth.values()})
        left = Counter(
            kinds.index(truth[item["kit_code"]].arm_code) for item in page["items"] if item["status"] == "in_stock"
        )
        return {**page, "by_kind": [left[kind] for kind in range(len(kinds))]}

    with _door(door):
        yield


@contextmanager
def notice_names_what_is_short() -> Iterator[None]:
    """A build whose notice of a failure says which kind of kits is missing."""
    honest = stock._first_of_every_arm

    def told(act: Act, consignment: Assignable, arms: Collection[ArmCode]) -> dict[ArmCode, OpenedKit] | None:
        found = honest(act, consignment, arms)
        if found is None:
            opened = (open_kit(act, kit) for kit in stock._in_random_order(act, consignment, 100))
            seen = Counter(kit.arm_code for kit in opened)
            message = f"Of kind {min(arms, key=lambda arm: (seen[arm], arm))} there are too few kits."
            raise StockInsufficient(message)
        return found

    with patch.object(stock, "_first_of_every_arm", told):
        yield


@contextmanager
def metric_by_arm() -> Iterator[None]:
    """A build that counts allocations by arm."""
    counter = prometheus_client.Counter("snose_leaked_allocations_total", "Allocations by arm.", ["arm"])
    honest = evidence.open_slot

    def counted(act: Act, slot: Any) -> Any:  # noqa: ANN401  # as they are
        contents = honest(act, slot)
        counter.labels(contents.arm_code).inc()
        return contents

    try:
        with patch.object(allocations, "open_slot", counted):
            yield
    finally:
        REGISTRY.unregister(counter)


@contextmanager
def sizes_of_blocks_shown() -> Iterator[None]:
    """A build that shows whoever reads a list the sizes of its blocks."""
    door = Door("Leak")

    @door.get("/studies/{study}/schedules/{schedule_id}", Action.READ_SCHEDULES)
    def read_schedule_with_sizes(study: StudyPath, schedule_id: IdPath, ctx: Context) -> dict[str, object]:
        """Read a list."""
        summary = schedules_api.read_schedule(study, schedule_id, ctx).model_dump(mode="json")
        sizes = {slot.block_size for slot in open_slots(ctx.deployment, StudyCode(study))}
        return {**summary, "planned_in": sorted(sizes)}

    with _door(door):
        yield


@contextmanager
def columns_filtered_by_name() -> Iterator[None]:
    """A build that takes the columns with ``arm`` in their names out of a joined row, and lets the next one pass."""
    door = Door("Leak")

    @door.get("/studies/{study}/subjects/{subject}/allocation", Action.READ_ALLOCATION)
    def read_joined_row(study: StudyPath, subject: SubjectPath, ctx: Context) -> dict[str, object]:
        """Read an allocation."""
        record = allocations_api.read_allocation(study, subject, ctx).model_dump(mode="json")
        arm_code = _arms_of_subjects(ctx.deployment, study)[record["subject_id"]]
        joined = {**record, "arm_code": arm_code, "arm_label": arm_code, "dose_group": arm_code}
        return {name: value for name, value in joined.items() if "arm" not in name}

    with _door(door):
        yield


@contextmanager
def worklist_by_arm() -> Iterator[None]:
    """A build that sorts the pharmacist's work by what is to be prepared."""
    door = Door("Leak")

    @door.get("/studies/{study}/sites/{site}/worklist", Action.READ_WORKLIST)
    def read_sorted_worklist(study: StudyPath, site: SitePath, ctx: Context) -> dict[str, object]:
        """Read the worklist."""
        page = kits_api.read_worklist(study, site, ctx, 100, None).model_dump(mode="json")
        truth = open_kits(ctx.deployment, StudyCode(study))
        page["items"].sort(key=lambda item: truth[item["kit_code"]].arm_code)
        return {**page}

    with _door(door):
        yield


@dataclass(frozen=True)
class Planted:
    """A leak, on which twin it shows, and at which place."""

    leak: Leak
    twin: Twin
    place: str
    place_alone: str | None = None
    """Where it shows in a build with no other fault, if elsewhere: the others change what is refused where."""

    def is_among(self, differences: Sequence[str], *, is_alone: bool = False) -> bool:
        """Return whether the harness has found it, in a build with the other faults or with this one alone."""
        place = self.place_alone if is_alone and self.place_alone is not None else self.place
        return any(place in found.partition("\n")[0] for found in differences)


PLANTED: Final = {
    "row 4": Planted(seed_in_the_log, OTHER_CHANCE, "a log line"),
    "row 5": Planted(metric_by_arm, PERMUTED, "the metrics"),
    "row 7": Planted(stock_by_arm, PERMUTED, "/sites/01/kits"),
    "row 7, worklist": Planted(worklist_by_arm, PERMUTED, "/sites/01/worklist"),
    "row 8": Planted(
        notice_names_what_is_short,
        PERMUTED,
        "POST /v1/studies/NCT03033277/subjects/01-0001/kits",
        place_alone="POST /v1/studies/NCT03033277/allocations",
    ),
    "row 9": Planted(mismatch_explained, OTHER_CHANCE, "/dispensation"),
    "row 10": Planted(group_in_the_trail, PERMUTED, "the public trail"),
    "row 13": Planted(sizes_of_blocks_shown, OTHER_BLOCKS, "/schedules/"),
    "row 30": Planted(group_id_beside_a_masked_label, PERMUTED, "POST /v1/studies/NCT03033277/allocations"),
    "row 33": Planted(columns_filtered_by_name, PERMUTED, "/subjects/01-0005/allocation"),
}
"""By the row of the catalogue; that of the codes (row 1) is not a difference of twins, but an order that tells."""


@contextmanager
def all_of_them() -> Iterator[None]:
    """A build with every planted leak at once: each shows at a place of its own."""
    with ExitStack() as stack:
        for planted in PLANTED.values():
            stack.enter_context(planted.leak())
        stack.enter_context(codes_by_arm())
        yield


# -- orders that tell --------------------------------------------------------------------------------------------------


def codes_tell(recording: Recording) -> float:
    """Return how far the arms in the order of kit codes are from chance, in standard deviations: the worst consignment's."""
    worst = 0.0
    for consignment in {kit.consignment_code for kit in recording.kits.values()}:
        ordered = sorted(
            (kit for kit in recording.kits.values() if kit.consignment_code == consignment),
            key=lambda kit: kit.kit_code,
        )
        worst = max(worst, abs(rank_score([kit.arm_code for kit in ordered])))
    return worst
