"""The residual-inference report: what the treatments that became known tell about others (BLD-15, failures 12).

For the unblinded statistician, who knows the blocks and no subject (rule B10): it tells blocks and chances, no arm, nobody by name.
It is the worst case: as if one person knew all that was revealed at the doors of single subjects and by accident, and every block's
beginning and end. Whose case a safety unblinding was stays with the safety officer, and is not in it.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from uuid import UUID

from app.domain.contents import SlotContents
from app.domain.residual import BlockSlot, residual
from app.domain.words import Action, StratumCode, StudyCode
from app.services.audited import Act, audited
from app.services.context import RequestContext
from app.services.evidence import open_slot
from app.storage import allocations, schedules
from app.storage.allocations import UsedSlot


@dataclass(frozen=True, slots=True)
class BlockReport:
    """A block in which a treatment became known."""

    schedule_id: UUID
    stratum_code: StratumCode
    block: int
    block_size: int
    revealed: int
    hidden: int
    chance_before: float
    chance_after: float


@dataclass(frozen=True, slots=True)
class ResidualReport:
    """Every block in which a treatment became known."""

    items: Sequence[BlockReport]


def read_residual(ctx: RequestContext, study: StudyCode) -> ResidualReport:
    """Return what the revealed treatments tell about the rest of their blocks; raise ``IntegrityBroken`` for a changed slot."""

    def work(act: Act) -> ResidualReport:
        revealed = allocations.list_revealed_slots(act.tx, act.study.study_id)
        items: list[BlockReport] = []
        seen: set[UsedSlot] = set()
        for slot in sorted(revealed, key=lambda one: (str(one.schedule_id), str(one.stratum_id), one.position)):
            if slot not in seen:
                block = _block_around(act, slot)
                seen.update(UsedSlot(slot.schedule_id, slot.stratum_id, position) for position in block)
                items.append(_report(act, slot, block, revealed))
        return ResidualReport(items)

    return audited(ctx, Action.READ_RESIDUAL, work, study=study)


def _block_around(act: Act, slot: UsedSlot) -> dict[int, SlotContents]:
    """Return the slots of the block in which a slot lies, by position, each proved to the signed list."""
    own = open_slot(
        act, schedules.get_slot(act.tx, act.study.study_id, slot.schedule_id, slot.stratum_id, slot.position)
    )
    block = {slot.position: own}
    for step in (-1, 1):
        position = slot.position + step
        while (other := _open(act, slot, position)) is not None and other.block == own.block:
            block[position] = other
            position += step
    return block


def _open(act: Act, beside: UsedSlot, position: int) -> SlotContents | None:
    sealed = schedules.find_slot_at(act.tx, act.study.study_id, beside.schedule_id, beside.stratum_id, position)
    return None if sealed is None else open_slot(act, sealed)


def _report(act: Act, slot: UsedSlot, block: dict[int, SlotContents], revealed: Collection[UsedSlot]) -> BlockReport:
    study_id = act.study.study_id
    used = allocations.list_used_positions(act.tx, study_id, slot.schedule_id, slot.stratum_id, block)
    found = residual(
        [
            BlockSlot(
                contents.arm_code,
                is_allocated=position in used,
                is_revealed=UsedSlot(slot.schedule_id, slot.stratum_id, position) in revealed,
            )
            for position, contents in block.items()
        ]
    )
    codes = {stratum_id: code for code, stratum_id in schedules.list_strata(act.tx, study_id).items()}
    own = block[slot.position]
    return BlockReport(
        slot.schedule_id,
        codes[slot.stratum_id],
        own.block,
        own.block_size,
        found.revealed,
        found.hidden,
        found.chance_before,
        found.chance_after,
    )
