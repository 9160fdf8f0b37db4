"""Opening one slot, one kit, one binding: always proved to the signed commitment, always in its own place (rules A8, C3, F3)."""

from dataclasses import dataclass, field
from datetime import date
from uuid import UUID

from app.domain.contents import Binding, KitContents, SlotContents, SlotPlace
from app.domain.sealed import Column, SealContext, Sealed
from app.domain.words import ArmCode, KitCode, RandomizationNumber, SubjectKey
from app.errors import IntegrityBroken
from app.services.audited import Act
from app.storage.allocations import Allocation
from app.storage.kits import Assignment, SealedKit, get_sealed_kit
from app.storage.schedules import SealedSlot, get_slot


@dataclass(frozen=True, slots=True)
class OpenedKit:
    """A kit whose inside was proved. Danger: holds an arm."""

    kit_id: UUID
    kit_code: KitCode
    arm_code: ArmCode = field(repr=False)
    lot: str = field(repr=False)
    expires_on: date = field(repr=False)


def slot_place(schedule_id: UUID, stratum_id: UUID, position: int) -> tuple[str, str, int]:
    """Return what binds a sealed slot to its row."""
    return str(schedule_id), str(stratum_id), position


def kit_place(consignment_id: UUID, kit_id: UUID, kit_code: KitCode) -> tuple[str, str, str]:
    """Return what binds a sealed kit to its row."""
    return str(consignment_id), str(kit_id), kit_code


def safety_context(act: Act, safety_unblinding_id: UUID) -> SealContext:
    """Return what binds the sealed subject of a safety unblinding to its row."""
    return SealContext(Column.SAFETY_SUBJECT, act.study.study_code, (str(safety_unblinding_id),))


def open_slot(act: Act, slot: SealedSlot) -> SlotContents:
    """Return the inside of a slot; raise ``IntegrityBroken`` unless it is what was committed to at this very place."""
    study = act.study
    context = SealContext(Column.SLOT, study.study_code, slot_place(slot.schedule_id, slot.stratum_id, slot.position))
    contents = SlotContents.from_bytes(act.deployment.ring.open(context, slot.sealed))
    if contents.randomization_number != slot.randomization_number:
        message = "The randomization number of a slot is not the one that was sealed."
        raise IntegrityBroken(message)
    place = SlotPlace(
        study.study_code,
        act.deployment.mode,
        str(slot.list_id),
        slot.segment_number,
        slot.stratum_code,
        slot.position,
    )
    act.deployment.commitments.prove_slot(
        act.tx, study, slot.schedule_id, slot.stratum_id, slot.position, contents.leaf(place)
    )
    return contents


def open_kit(act: Act, kit: SealedKit) -> OpenedKit:
    """Return the inside of a kit; raise ``IntegrityBroken`` unless it is what was committed to."""
    study = act.study
    context = SealContext(Column.KIT, study.study_code, kit_place(kit.consignment_id, kit.kit_id, kit.kit_code))
    contents = KitContents.from_bytes(act.deployment.ring.open(context, kit.sealed))
    leaf = contents.leaf(study.study_code, act.deployment.mode, kit.consignment_code, kit.kit_code)
    act.deployment.commitments.prove_kit(act.tx, study, kit.consignment_id, kit.map_index, leaf)
    return OpenedKit(kit.kit_id, kit.kit_code, contents.arm_code, contents.lot, contents.expires_on)


@dataclass(frozen=True, slots=True)
class AllocationPlace:
    """What an allocation's binding is bound to: subject, slot, number and first kit (rule C3)."""

    allocation_id: UUID
    subject_key: SubjectKey
    schedule_id: UUID
    stratum_id: UUID
    position: int
    randomization_number: RandomizationNumber
    kit_id: UUID

    def context(self, act: Act) -> SealContext:
        """Return where the binding is sealed."""
        return SealContext(
            Column.ALLOCATION_BINDING,
            act.study.study_code,
            (
                str(self.allocation_id),
                self.subject_key,
                str(self.schedule_id),
                str(self.stratum_id),
                self.position,
                self.randomization_number,
                str(self.kit_id),
            ),
        )


@dataclass(frozen=True, slots=True)
class KitAssignmentPlace:
    """What a kit assignment's binding is bound to."""

    assignment_id: UUID
    subject_key: SubjectKey
    kit_id: UUID
    kit_code: KitCode

    def context(self, act: Act) -> SealContext:
        """Return where the binding is sealed."""
        return SealContext(
            Column.KIT_BINDING,
            act.study.study_code,
            (str(self.assignment_id), self.subject_key, str(self.kit_id), self.kit_code),
        )


def seal_binding(act: Act, place: AllocationPlace | KitAssignmentPlace, binding: Binding) -> tuple[Sealed, int]:
    """Return a binding sealed for its place, and the key version."""
    ring = act.deployment.ring
    return ring.seal(place.context(act), binding.to_bytes()), ring.newest_version(act.study.study_code)


def open_binding(act: Act, place: AllocationPlace | KitAssignmentPlace, sealed: Sealed) -> Binding:
    """Return the binding; raise ``SealBroken`` when it belongs elsewhere or was changed."""
    return Binding.from_bytes(act.deployment.ring.open(place.context(act), sealed))


def open_allocation(act: Act, allocation: Allocation, first_kit_id: UUID) -> Binding:
    """Return what was bound to a subject; raise ``IntegrityBroken`` unless slot and signed words say the same.

    ``first_kit_id`` is the kit that came with the allocation: the binding is bound to it too (rule C3).
    """
    slot = get_slot(act.tx, act.study.study_id, allocation.schedule_id, allocation.stratum_id, allocation.position)
    contents = open_slot(act, slot)
    place = AllocationPlace(
        allocation.allocation_id,
        allocation.subject_key,
        allocation.schedule_id,
        allocation.stratum_id,
        allocation.position,
        allocation.randomization_number,
        first_kit_id,
    )
    binding = open_binding(act, place, allocation.sealed_binding)
    if contents.arm_code != binding.arm_code or contents.randomization_number != allocation.randomization_number:
        message = "What was bound to the subject is not what the slot holds."
        raise IntegrityBroken(message)
    signed = act.deployment.commitments.signed_arms(act.tx, act.study, allocation.schedule_id)
    if (binding.arm_code, binding.treatment) not in {(arm.arm_code, arm.treatment) for arm in signed}:
        message = "The treatment that was bound to the subject is not the one that the approver signed."
        raise IntegrityBroken(message)
    return binding


def open_assigned_kit(act: Act, assignment: Assignment) -> tuple[OpenedKit, Binding]:
    """Return a kit that was given to a subject, and what was bound then; raise ``IntegrityBroken`` unless both say the same."""
    kit = open_kit(act, get_sealed_kit(act.tx, act.study.study_id, assignment.kit.kit_id))
    place = KitAssignmentPlace(assignment.assignment_id, assignment.subject_key, kit.kit_id, kit.kit_code)
    binding = open_binding(act, place, assignment.sealed_binding)
    if kit.arm_code != binding.arm_code:
        message = "What was bound to the kit is not what the kit holds."
        raise IntegrityBroken(message)
    return kit, binding
