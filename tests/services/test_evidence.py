"""Somebody who holds the keys as well as the database: what is sealed anew is still not what was signed."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import date
from uuid import UUID, uuid4

import pytest
from sqlalchemy import select, update

from app.domain.contents import Binding, KitContents, SlotContents
from app.domain.sealed import Column, SealContext
from app.domain.words import Action, ArmCode, KitCode, KitStatus, RandomizationNumber, SubjectKey
from app.errors import IntegrityBroken
from app.policy import Decision
from app.services import evidence
from app.services.audited import Act
from app.services.commitments import CommitmentKeeper
from app.services.context import RequestContext
from app.services.evidence import AllocationPlace, KitAssignmentPlace
from app.storage import allocations, kits, schedules, studies, tables
from app.storage.allocations import Allocation
from app.storage.kits import Assignment
from app.storage.schedules import SealedSlot
from tests.harness import STUDY_BODY, House, Json, expect
from tests.running_study import RunningStudy, S, execute, shared_running_study, tampering

SUBJECT = SubjectKey("01-0001")
CONTROL, OTHER = (arm["arm_code"] for arm in STUDY_BODY["arms"])
WORDS = {arm["arm_code"]: arm["treatment"] for arm in STUDY_BODY["arms"]}


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def running(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStudy]:
    for made in shared_running_study(request, tmp_path_factory):
        made.allocate(SUBJECT)
        yield made


@contextmanager
def acting(house: House) -> Iterator[Act]:
    """Give an act of nobody's on the study."""
    with house.deployment.database.transaction() as tx:
        ctx = RequestContext(house.deployment, Action.BREAK_CODE, None, "test", "")
        head = next(iter(studies.list_studies(tx)))
        yield Act(tx, ctx, None, Decision(None, None), head, ctx.now())


@contextmanager
def whole(running: RunningStudy) -> Iterator[tuple[Act, Allocation, Assignment]]:
    """Give the only subject's allocation and kit, which open as they should."""
    with acting(running.house) as act:
        allocation = allocations.find_allocation(act.tx, act.study.study_id, SUBJECT)
        assert allocation is not None
        (assignment,) = kits.list_assignments(act.tx, act.study.study_id, SUBJECT)
        binding = evidence.open_allocation(act, allocation, assignment.kit.kit_id)
        kit, bound = evidence.open_assigned_kit(act, assignment)
        assert binding == bound
        assert binding.arm_code == kit.arm_code
        yield act, allocation, assignment


def slot_of(act: Act, allocation: Allocation) -> SealedSlot:
    return schedules.get_slot(
        act.tx, act.study.study_id, allocation.schedule_id, allocation.stratum_id, allocation.position
    )


def place_of(allocation: Allocation, assignment: Assignment) -> AllocationPlace:
    return AllocationPlace(
        allocation.allocation_id,
        SUBJECT,
        allocation.schedule_id,
        allocation.stratum_id,
        allocation.position,
        allocation.randomization_number,
        assignment.kit.kit_id,
    )


def another(arm_code: str) -> ArmCode:
    return ArmCode(OTHER if arm_code == CONTROL else CONTROL)


class TestSealedAnew:
    def test_slot_with_another_number(self, running: RunningStudy) -> None:
        """The number inside is the number outside. [rule A8, SEQ-11]"""
        with whole(running) as (act, allocation, _):
            slot = slot_of(act, allocation)
            moved = replace(slot, randomization_number=RandomizationNumber("XXXXXX"))
            with pytest.raises(IntegrityBroken, match="randomization number"):
                evidence.open_slot(act, moved)

    def test_slot_with_another_arm(self, running: RunningStudy) -> None:
        """An arm that was sealed with the right key, and not signed, is refused. [rule A8, SEQ-11]"""
        with whole(running) as (act, allocation, _):
            slot = slot_of(act, allocation)
            place = evidence.slot_place(slot.schedule_id, slot.stratum_id, slot.position)
            context = SealContext(Column.SLOT, act.study.study_code, place)
            contents = SlotContents.from_bytes(act.deployment.ring.open(context, slot.sealed))
            forged = replace(contents, arm_code=another(contents.arm_code))
            with pytest.raises(IntegrityBroken):
                evidence.open_slot(act, replace(slot, sealed=act.deployment.ring.seal(context, forged.to_bytes())))

    def test_binding_with_another_arm(self, running: RunningStudy) -> None:
        """What was bound to a subject is what the slot holds. [rules C3, D4]"""
        with whole(running) as (act, allocation, assignment):
            binding = evidence.open_allocation(act, allocation, assignment.kit.kit_id)
            arm = another(binding.arm_code)
            sealed, _ = evidence.seal_binding(act, place_of(allocation, assignment), Binding(arm, WORDS[arm]))
            forged = replace(allocation, sealed_binding=sealed)
            with pytest.raises(IntegrityBroken, match="what the slot holds"):
                evidence.open_allocation(act, forged, assignment.kit.kit_id)

    def test_binding_with_other_words(self, running: RunningStudy) -> None:
        """The words that a doctor reads in a code break are those that the approver signed. [rules C3, D4]"""
        with whole(running) as (act, allocation, assignment):
            binding = evidence.open_allocation(act, allocation, assignment.kit.kit_id)
            words = Binding(binding.arm_code, WORDS[another(binding.arm_code)])
            sealed, _ = evidence.seal_binding(act, place_of(allocation, assignment), words)
            with pytest.raises(IntegrityBroken, match="approver signed"):
                evidence.open_allocation(act, replace(allocation, sealed_binding=sealed), assignment.kit.kit_id)

    def test_kit_binding_with_another_arm(self, running: RunningStudy) -> None:
        """What was bound to a kit when it was given is what the kit holds. [rules C3, D4]"""
        with whole(running) as (act, _, assignment):
            kit, binding = evidence.open_assigned_kit(act, assignment)
            place = KitAssignmentPlace(assignment.assignment_id, SUBJECT, kit.kit_id, kit.kit_code)
            arm = another(binding.arm_code)
            sealed, _ = evidence.seal_binding(act, place, Binding(arm, WORDS[arm]))
            with pytest.raises(IntegrityBroken, match="what the kit holds"):
                evidence.open_assigned_kit(act, replace(assignment, sealed_binding=sealed))

    def test_kit_with_another_date(self, running: RunningStudy) -> None:
        """A kit that was sealed anew with a later expiry is not the one of the signed map. [rules A8, B11]"""
        with whole(running) as (act, _, assignment):
            kit = kits.get_sealed_kit(act.tx, act.study.study_id, assignment.kit.kit_id)
            place = evidence.kit_place(kit.consignment_id, kit.kit_id, kit.kit_code)
            context = SealContext(Column.KIT, act.study.study_code, place)
            contents = KitContents.from_bytes(act.deployment.ring.open(context, kit.sealed))
            later = replace(contents, expires_on=date(2040, 1, 1))
            with pytest.raises(IntegrityBroken):
                evidence.open_kit(act, replace(kit, sealed=act.deployment.ring.seal(context, later.to_bytes())))


class TestCommitmentKeeper:
    """Each keeper is that of a process that has verified nothing yet."""

    def keeper(self, act: Act) -> CommitmentKeeper:
        deployment = act.deployment
        return CommitmentKeeper(deployment.deployment_id, deployment.ring, deployment.signing)

    def test_signed_arms_of_a_new_process(self, running: RunningStudy) -> None:
        """Arms and words come from the signed specification. [rule A7]"""
        with whole(running) as (act, allocation, _):
            arms = self.keeper(act).signed_arms(act.tx, act.study, allocation.schedule_id)
            assert {arm.arm_code: arm.treatment for arm in arms} == WORDS

    def test_stratum_that_was_not_signed(self, running: RunningStudy) -> None:
        """A slot in a stratum of no signed list proves nothing. [rule A8]"""
        with whole(running) as (act, allocation, _), pytest.raises(IntegrityBroken, match="not part of the list"):
            self.keeper(act).prove_slot(act.tx, act.study, allocation.schedule_id, uuid4(), 0, bytes(32))

    def test_unknown_list_and_consignment(self, running: RunningStudy) -> None:
        """What is not there was not signed. [rule A8]"""
        with acting(running.house) as act:
            with pytest.raises(IntegrityBroken):
                self.keeper(act).prove_slot(act.tx, act.study, uuid4(), uuid4(), 0, bytes(32))
            with pytest.raises(IntegrityBroken):
                self.keeper(act).prove_kit(act.tx, act.study, uuid4(), 0, bytes(32))

    @pytest.mark.parametrize("note", [None, "not a note", "of another list"])
    def test_list_without_its_signature(self, running: RunningStudy, note: str | None) -> None:
        """A list counts only under the deployment's own signature on this very list. [rules A7, A8]"""
        with whole(running) as (act, allocation, _):
            schedule_id = allocation.schedule_id
            signed = act.tx.execute(select(tables.schedule.c.commitment_note)).scalar_one()
            elsewhere = act.tx.execute(select(tables.consignment.c.commitment_note)).scalar_one()
        with tampering(running, "schedule"):
            self.write(running, schedule_id, elsewhere if note == "of another list" else note)
            with acting(running.house) as act, pytest.raises(IntegrityBroken):
                self.keeper(act).signed_arms(act.tx, act.study, schedule_id)
            self.write(running, schedule_id, signed)

    def write(self, running: RunningStudy, schedule_id: UUID, note: str | None) -> None:
        with acting(running.house) as act:
            named = tables.schedule.c.schedule_id == schedule_id
            act.tx.execute(update(tables.schedule).where(named).values(commitment_note=note))


class TestPreparation:
    """What the unblinded pharmacist reads before a product is made fresh is refused where two of its sources differ."""

    def read(self, running: RunningStudy, subject: str) -> Json:
        pharmacist = running.person("unblinded_pharmacist", site="01")
        return expect(pharmacist.get(f"{S}/subjects/{subject}/preparation", step_up=True), 503)

    def test_subject_without_its_first_kit(self, running: RunningStudy) -> None:
        """An allocation stands only together with its kit. [rules C3, D4]"""
        running.allocate("01-0002")
        with tampering(running, "kit_assignment"):
            execute(running, "UPDATE kit_assignment SET visit = 'V1' WHERE subject_key = '01-0002'")
        assert self.read(running, "01-0002")["code"] == "integrity_failure"

    def test_kit_of_another_arm(self, running: RunningStudy) -> None:
        """A kit of another arm, bound with the right key, is not what the subject was given. [rules C3, B10]"""
        running.allocate("01-0003")
        expect(running.investigator.post(f"{S}/subjects/01-0003/kits", json={"visit": "V2"}), 201)
        with tampering(running, "kit_assignment"), acting(running.house) as act:
            _, assignment = kits.list_assignments(act.tx, act.study.study_id, SubjectKey("01-0003"))
            _, bound = evidence.open_assigned_kit(act, assignment)
            free = [kits.find_kit(act.tx, act.study.study_id, KitCode(code)) for code in running.kit_codes]
            opened = [
                evidence.open_kit(act, kits.get_sealed_kit(act.tx, act.study.study_id, kit.kit_id))
                for kit in free
                if kit is not None and kit.status is KitStatus.IN_STOCK
            ]
            other = next(kit for kit in opened if kit.arm_code != bound.arm_code)
            place = KitAssignmentPlace(assignment.assignment_id, SubjectKey("01-0003"), other.kit_id, other.kit_code)
            sealed, _ = evidence.seal_binding(act, place, Binding(other.arm_code, WORDS[other.arm_code]))
            of = tables.kit_assignment.c.assignment_id == assignment.assignment_id
            act.tx.execute(
                update(tables.kit_assignment).where(of).values(kit_id=other.kit_id, sealed_binding=sealed.token)
            )
            kits.record_status(act.tx, act.study.study_id, other.kit_id, KitStatus.ASSIGNED)
        assert self.read(running, "01-0003")["code"] == "integrity_failure"

    def test_further_kit_at_a_site_that_is_not_active(self, running: RunningStudy) -> None:
        """Subjects are given kits at active sites only, also where a site's row was changed from outside. [ASG-01]"""
        running.allocate("01-0004")
        with tampering(running, "site"):
            execute(running, "UPDATE site SET is_active = false WHERE site_code = '01'")
            problem = expect(running.investigator.post(f"{S}/subjects/01-0004/kits", json={"visit": "V2"}), 409)
            execute(running, "UPDATE site SET is_active = true WHERE site_code = '01'")
        assert problem["code"] == "site_inactive"
