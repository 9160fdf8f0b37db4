"""What really is in the sealed values: opened with the deployment's own keys, for tests that must know the truth."""

from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import select

from app.domain.contents import KitContents, SlotContents
from app.domain.sealed import Column, SealContext, Sealed
from app.domain.words import ArmCode, StudyCode
from app.services.context import Deployment
from app.services.evidence import kit_place, slot_place
from app.storage import tables


@dataclass(frozen=True, slots=True)
class KitTruth:
    """One kit, opened."""

    kit_id: UUID
    kit_code: str
    consignment_code: str
    arm_code: ArmCode
    lot: str


@dataclass(frozen=True, slots=True)
class SlotTruth:
    """One slot, opened."""

    schedule_id: UUID
    stratum_id: UUID
    position: int
    randomization_number: str
    arm_code: ArmCode
    block_size: int


def open_kits(deployment: Deployment, study: StudyCode) -> dict[str, KitTruth]:
    """Return every kit of a study by its code."""
    kit, consignment, head = tables.kit.c, tables.consignment.c, tables.study.c
    query = (
        select(kit.kit_id, kit.kit_code, kit.consignment_id, kit.sealed, consignment.consignment_code)
        .join_from(tables.kit, tables.consignment, kit.consignment_id == consignment.consignment_id)
        .join(tables.study, head.study_id == kit.study_id)
        .where(head.study_code == study)
    )
    with deployment.database.transaction() as tx:
        rows = tx.execute(query).all()
    found = {}
    for row in rows:
        context = SealContext(Column.KIT, study, kit_place(row.consignment_id, row.kit_id, row.kit_code))
        inside = KitContents.from_bytes(deployment.ring.open(context, Sealed(row.sealed)))
        found[row.kit_code] = KitTruth(row.kit_id, row.kit_code, row.consignment_code, inside.arm_code, inside.lot)
    return found


def open_slots(deployment: Deployment, study: StudyCode) -> list[SlotTruth]:
    """Return every slot of a study, in the order of its lists."""
    slot, head = tables.slot.c, tables.study.c
    query = (
        select(tables.slot)
        .join(tables.study, head.study_id == slot.study_id)
        .where(head.study_code == study)
        .order_by(slot.schedule_id, slot.stratum_id, slot.position)
    )
    with deployment.database.transaction() as tx:
        rows = tx.execute(query).all()
    found = []
    for row in rows:
        context = SealContext(Column.SLOT, study, slot_place(row.schedule_id, row.stratum_id, row.position))
        inside = SlotContents.from_bytes(deployment.ring.open(context, Sealed(row.sealed)))
        found.append(
            SlotTruth(
                row.schedule_id,
                row.stratum_id,
                row.position,
                row.randomization_number,
                inside.arm_code,
                inside.block_size,
            )
        )
    return found
