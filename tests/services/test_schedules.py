"""Allocation lists from specification to use, at the services, on both databases."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from uuid import UUID, uuid4

import msgspec
import pytest
from sqlalchemy import delete, insert, select, update

from app.domain.contents import SlotContents
from app.domain.encoding import canonical_json
from app.domain.schedules import Fill, StratumLength, generate_stratum
from app.domain.sealed import Column, SealContext, Sealed
from app.domain.words import (
    Action,
    ArmCode,
    RandomizationNumber,
    ScheduleStatus,
    SiteCode,
    StratumCode,
    StudyCode,
    StudyStatus,
)
from app.errors import (
    CommitmentDiffers,
    GeneratorCannotApprove,
    IllegalTransition,
    IntegrityBroken,
    InvalidSpecification,
    ListUnavailable,
    Missing,
    StudyNotOpen,
)
from app.services import lists, schedules
from app.services.context import RequestContext
from app.services.evidence import open_slot, slot_place
from app.services.schedules import GeneratedSchedule
from app.storage import commitments, tables
from app.storage import schedules as stored
from app.storage.database import AlreadyThere
from tests import harness
from tests.harness import STUDY, House, SeededEntropy, expect, signed_as
from tests.memory import remembered
from tests.running_study import S, running_study
from tests.services.list_builders import CODE, ListOffice, context, slots_of, wanted

SEX = {
    "factor_code": "sex",
    "label": "Sex",
    "levels": [{"level_code": "f", "label": "Female"}, {"level_code": "m", "label": "Male"}],
}


@pytest.fixture
def office(house: House) -> ListOffice:
    """An unstratified study with two arms, 1:1."""
    return remembered(house, "list office", lambda: ListOffice(house))


class CountedEntropy:
    """Chance that keeps count, and after ``exhausted`` gives none any more."""

    def __init__(self) -> None:
        self.drawn: list[tuple[str, int]] = []
        self.exhausted = False
        self._source = SeededEntropy("counted lists")

    def draw(self, purpose: str, size: int) -> bytes:
        if self.exhausted:
            message = f"a draw for {purpose} after the list was made"
            raise AssertionError(message)
        self.drawn.append((purpose, size))
        return self._source.draw(purpose, size)


class TestGenerating:
    def test_the_stored_list_is_what_the_seed_gives(self, office: ListOffice) -> None:
        """Opened, the slots are arm by arm and block by block the domain's list from the seed. [SEQ-01, SEQ-06]"""
        made = office.generate()
        with office.act() as act:
            kept = commitments.get_list_commitment(act.tx, act.study.study_id, made.schedule_id)
            spec = lists.open_specification(act, made.schedule_id, kept.sealed_specification)
        seed = SeededEntropy("lists").draw("seed", 32)
        planned = list(generate_stratum(spec, spec.strata[0], seed))
        rows = slots_of(office, made)
        found = [
            (row["position"], inside.arm_code, inside.block, inside.block_size)
            for row, inside in ((row, office.opened(row)) for row in rows)
        ]
        assert found == planned
        assert len(found) == made.slots == 48
        assert Counter(arm for _, arm, _, _ in found) == {"CONTROL": 24, "HUCMSC": 24}

    def test_numbers_and_salts_are_each_once(self, office: ListOffice) -> None:
        """Randomization numbers are the sealed ones, and like salts unique over all lists of the study. [BLD-04]"""
        first, second = office.generate(), office.generate(wanted(reason="other block sizes"))
        rows = slots_of(office, first) + slots_of(office, second)
        inside = [office.opened(row) for row in rows]
        assert [row["randomization_number"] for row in rows] == [one.randomization_number for one in inside]
        assert len({one.randomization_number for one in inside}) == len({one.salt for one in inside}) == 96

    def test_a_reader_of_the_database_sees_no_arm(self, office: ListOffice) -> None:
        """No row of the list holds an arm, a label or a block in clear; sealed values are of one length. [BLD-05, CUS-04]"""
        made = office.generate()
        rows = slots_of(office, made)
        assert len({len(row["sealed"]) for row in rows}) == 1
        of_list = [tables.slot, tables.schedule, tables.schedule_stratum]
        text = repr([office.rows(table, made) for table in of_list] + [office.rows(tables.commitment_tile)])
        assert str(made.schedule_id) in text
        for secret in ("CONTROL", "HUCMSC", "placebo", "Experimental", "block_size"):
            assert secret not in text

    def test_the_seed_is_drawn_once_and_nothing_else_is_drawn_with_it(
        self, migrated_database_url: str, tmp_path: Path
    ) -> None:
        """One draw of 32 bytes for a list; approval, activation and use draw nothing from there. [SEQ-05, SEQ-10]"""
        chance = CountedEntropy()
        with harness.house(migrated_database_url, tmp_path, list_entropy=chance) as house:
            office = ListOffice(house)
            assert chance.drawn == []
            made = office.generate()
            assert chance.drawn == [("seed", 32)]
            chance.exhausted = True
            office.approve(made)
            office.activate(made)
            with office.act() as act:
                stratum_id, ordinal = stored.claim_ordinal(act.tx, act.study.study_id, StratumCode(""))
                slot = stored.find_slot(act.tx, act.study.study_id, stratum_id, ordinal)
                assert slot is not None
                assert open_slot(act, slot).arm_code in ("CONTROL", "HUCMSC")

    def test_the_seed_and_what_depends_on_it_never_shows(self, office: ListOffice) -> None:
        """Neither the answer nor the public trail holds seed, block sizes, lengths or slots. [SEQ-07, BLD-03]"""
        made = office.generate()
        seed = SeededEntropy("lists").draw("seed", 32)
        entry = office.house.trail(STUDY)[-1]
        assert seed.hex() not in repr(made)
        assert entry["action"] == "schedule:generate"
        told = {"status", "origin", "list_id", "segment_number", "extends", "algorithm", "commitment"}
        assert entry["after"].keys() == told | {"meaning", "printed_name"}
        assert entry["restricted"] is not None
        assert (entry["target"], entry["before"]) == ({"schedule_id": str(made.schedule_id)}, None)

    def test_a_long_reason_fits(self, office: ListOffice) -> None:
        """The longest reason that the API takes can be kept in the restricted part and in the report. [SEQ-08]"""
        office.generate()
        reason = "\U0001f9ea" * 1000
        made = office.generate(wanted(sizes=range(2, 22, 2), weights=[1000] * 10, length=2000, reason=reason))
        assert self._report(office, made).reason == reason

    def test_a_second_list_needs_a_reason(self, office: ListOffice) -> None:
        """No second list without one; the report of the second shows the first and its reason. [SEQ-08, A1]"""
        first = office.generate(wanted(reason="as in the protocol"))
        with pytest.raises(InvalidSpecification, match="needs a reason") as refusal:
            office.generate()
        assert refusal.value.field == "reason"
        office.reject(first)
        second = office.generate(wanted(reason="protocol amendment 1"))
        report = self._report(office, second)
        assert report.reason == "protocol amendment 1"
        (earlier,) = report.earlier
        assert (earlier.schedule_id, earlier.reason) == (first.schedule_id, "as in the protocol")
        assert (earlier.status, earlier.commitment) == (ScheduleStatus.REJECTED, first.commitment)
        assert self._report(office, first).earlier == ()

    def test_the_same_key_again_makes_no_second_list(self, office: ListOffice) -> None:
        """A repeated request gives the first list again. [ASG-08]"""
        assert office.generate(key="one") == office.generate(key="one")
        assert len(office.rows(tables.schedule)) == 1

    def test_overrun(self, office: ListOffice) -> None:
        """Every stratum has its length and the largest block; the last block may be cut. [SEQ-03, A3]"""
        made = office.active(wanted(length=45, fill=Fill.OVERRUN))
        assert made.slots == 53

    def test_more_than_one_batch(self, office: ListOffice) -> None:
        """A list longer than a batch and than a tile is stored, approved and proved to its last slot. [SEQ-11]"""
        made = office.active(wanted(length=17_000))
        with office.act() as act:
            stratum_id = stored.list_strata(act.tx, act.study.study_id)[StratumCode("")]
            last = stored.get_slot(act.tx, act.study.study_id, made.schedule_id, stratum_id, 16_999)
            assert open_slot(act, last).randomization_number == last.randomization_number

    def test_warnings(self, office: ListOffice) -> None:
        """One small fixed size at one site is predictable, and the answer and the report say so. [SEQ-12, A11]"""
        made = office.generate(wanted(sizes=[4]))
        assert [text for text in made.warnings if "predictable" in text]
        assert self._report(office, made).warnings == made.warnings

    @staticmethod
    def _report(office: ListOffice, made: GeneratedSchedule) -> schedules.ReadQualityReport:
        ctx = context(office.house, office.approver, Action.READ_QUALITY_REPORT)
        return schedules.read_quality_report(ctx, CODE, made.schedule_id)


class TestSpecificationsRefused:
    @pytest.mark.parametrize(
        ("asked", "field", "words"),
        [
            (wanted(sizes=[5]), "block_sizes", "no multiple of 2"),
            (wanted(sizes=[]), "block_sizes", "1 to 10 block sizes"),
            (wanted(sizes=[4, 4]), "block_sizes", "there twice"),
            (wanted(weights=[1]), "block_size_weights", "one weight for each"),
            (wanted(weights=[1, 0, 1]), "block_size_weights", "1 to 1000"),
            (wanted(length=0), "length_per_stratum", "at least 1"),
            (wanted(length=-4), "length_per_stratum", "at least 1"),
            (wanted(length=47), "length_per_stratum", "exactly"),
            (wanted(length=10_000_002), "length_per_stratum", "more than the 10000000"),
            (wanted(length=None), "lengths", "Give one length_per_stratum"),
            (wanted(lengths=[]), "lengths", "No length is given"),
            (wanted(lengths=[(SiteCode("99"), {}, 4)]), "lengths", "does not have"),
            (wanted(lengths=[(None, {"sex": "f"}, 4)]), "lengths", "does not have"),
            (wanted(lengths=[(None, {}, 4), (None, {}, 4)]), "lengths", "given twice"),
        ],
    )
    def test_refused_in_the_words_of_the_field(
        self, office: ListOffice, asked: schedules.WantedList, field: str, words: str
    ) -> None:
        """What no list can be made of is refused with its field and reason, entered, and leaves nothing. [SEQ-02, A2]"""
        with pytest.raises(InvalidSpecification) as refusal:
            office.generate(asked)
        assert refusal.value.field == field
        assert words in refusal.value.message
        assert office.rows(tables.schedule) == office.rows(tables.slot) == office.rows(tables.stratum) == []
        entry = office.house.trail(STUDY)[-1]
        assert (entry["outcome"], entry["after"]) == ("refused", {"code": "invalid_specification", "fields": field})

    def test_both_lengths(self, office: ListOffice) -> None:
        """One length and lengths by stratum contradict each other. [SEQ-02]"""
        both = schedules.WantedList((4,), None, 48, ((None, {}, 48),), Fill.EXACT, None)
        with pytest.raises(InvalidSpecification, match="Give one length_per_stratum"):
            office.generate(both)

    def test_a_study_stratified_by_site_without_a_site(self, house: House) -> None:
        """There is no stratum to make slots for. [SEQ-02]"""
        with pytest.raises(InvalidSpecification, match="no stratum"):
            ListOffice(house, sites=(), stratify_by_site=True).generate()

    def test_more_strata_than_can_be_kept(self, house: House) -> None:
        """Refused before a slot is made, because it depends on the specification alone. [SEQ-02]"""
        levels = [{"level_code": f"level-{number:02}", "label": f"Level {number}"} for number in range(30)]
        factors = [
            {"factor_code": f"a-long-name-{number}", "label": f"Factor {number}", "levels": levels}
            for number in range(2)
        ]
        factors[1]["levels"] = levels[:29]
        one = {"factor_code": "c", "label": "Factor c", "levels": levels[:10]}
        office = ListOffice(house, factors=[*factors, one])
        with pytest.raises(InvalidSpecification, match="more strata than one list can hold"):
            office.generate(wanted(sizes=[4], length=4))

    def test_more_slots_than_numbers(self, office: ListOffice) -> None:
        """The lists of a study leave gaps between their randomization numbers. [BLD-04]"""
        made = office.generate()
        (row,) = office.rows(tables.schedule)
        another = uuid4()
        with office.act() as act:
            act.tx.execute(
                insert(tables.schedule),
                row | {"schedule_id": another, "list_id": another, "slot_count": lists.MOST_NUMBERS - made.slots - 47},
            )
        with pytest.raises(InvalidSpecification, match=f"at most {lists.MOST_NUMBERS} slots"):
            office.generate(wanted(reason="one too many"))

    def test_a_closed_study(self, office: ListOffice) -> None:
        """No list is made for it, and none activated in it."""
        made = office.generate()
        office.approve(made)
        with office.tampering(tables.study) as tx:
            tx.execute(update(tables.study).values(status=StudyStatus.CLOSED))
        with pytest.raises(StudyNotOpen, match="no list can be made"):
            office.generate(wanted(reason="too late"))
        with pytest.raises(StudyNotOpen, match="no list can be activated"):
            office.activate(made)


class TestItsLife:
    def test_from_generation_to_use(self, office: ListOffice) -> None:
        """Generated, approved under a signature, active; each step entered with who and what. [CUS-01, SIG-05]"""
        made = office.generate()
        assert made.status is ScheduleStatus.GENERATED
        approved = office.approve(made)
        assert (approved.status, approved.decided_by) == (ScheduleStatus.APPROVED, office.approver.username)
        active = office.activate(made)
        assert (active.status, active.activated_by) == (ScheduleStatus.ACTIVE, office.study_admin.username)
        generated, approval, activation = office.house.trail(STUDY)[-3:]
        assert [entry["action"] for entry in (generated, approval, activation)] == [
            "schedule:generate",
            "schedule:approve",
            "schedule:activate",
        ]
        (row,) = office.rows(tables.schedule)
        assert approval["before"] == {"status": "generated"}
        assert approval["after"] == {
            "status": "approved",
            "commitment": made.commitment,
            "signature": row["commitment_note"],
            **signed_as(office.approver, "approval"),
        }
        assert activation["before"] == {"status": "approved"}
        assert activation["after"] == {
            "status": "active",
            "commitment": made.commitment,
            **signed_as(office.study_admin, "responsibility"),
        }

    def test_the_definition_freezes_with_the_first_approval(self, office: ListOffice) -> None:
        """Arms and definitions stand from then on. [api]"""
        made = office.generate()
        (before,) = office.rows(tables.study)
        office.approve(made)
        (after,) = office.rows(tables.study)
        assert (before["is_frozen"], after["is_frozen"]) == (False, True)

    def test_who_generated_cannot_approve(self, office: ListOffice) -> None:
        """Generator and approver are two people, even where one holds both roles. [CUS-02]"""
        office.house.grant(office.statistician, "list_approver")
        made = office.generate()
        with pytest.raises(GeneratorCannotApprove):
            office.approve(made, office.statistician)
        assert office.rows(tables.schedule)[0]["status"] == "generated"

    def test_another_commitment(self, office: ListOffice) -> None:
        """What is signed is this list and no other. [CUS-03]"""
        first, second = office.generate(), office.generate(wanted(reason="another"))
        ctx = context(office.house, office.approver, Action.APPROVE_SCHEDULE)
        with pytest.raises(CommitmentDiffers):
            schedules.approve_schedule(ctx, CODE, first.schedule_id, second.commitment)

    @pytest.mark.parametrize(
        ("steps", "refused"),
        [
            ((), "activate"),
            ((), "extend"),
            (("approve",), "approve"),
            (("approve",), "reject"),
            (("reject",), "approve"),
            (("reject",), "reject"),
            (("reject",), "activate"),
            (("reject",), "extend"),
            (("approve", "activate"), "approve"),
            (("approve", "activate"), "reject"),
            (("approve", "activate"), "activate"),
        ],
    )
    def test_no_step_is_skipped_or_repeated(self, office: ListOffice, steps: tuple[str, ...], refused: str) -> None:
        """Every other step than the next one is refused and changes nothing. [CUS-01, A7]"""
        made = office.generate()
        take: dict[str, Callable[[], object]] = {
            "approve": lambda: office.approve(made),
            "reject": lambda: office.reject(made),
            "activate": lambda: office.activate(made),
            "extend": lambda: office.extend(made.schedule_id),
        }
        for step in steps:
            take[step]()
        before = office.rows(tables.schedule)
        with pytest.raises(IllegalTransition, match="A list that is"):
            take[refused]()
        assert office.rows(tables.schedule) == before

    def test_decided_by_somebody_else_meanwhile(self, office: ListOffice) -> None:
        """The step itself is one statement that looks at the status once more. [CUS-01]"""
        made = office.generate()
        with office.act() as act:
            with pytest.raises(IllegalTransition, match="not approved"):
                stored.record_activation(act.tx, act.study.study_id, made.schedule_id, act.now, "somebody")
            stored.record_rejection(act.tx, act.study.study_id, made.schedule_id, act.now, "somebody")
            with pytest.raises(IllegalTransition, match="not generated"):
                stored.record_approval(act.tx, act.study.study_id, made.schedule_id, "note", act.now, "somebody")

    def test_a_rejected_list_stays_on_record(self, office: ListOffice) -> None:
        """Its slots and report stay, and the reason is no part of the public trail. [SEQ-08]"""
        made = office.generate()
        rejected = office.reject(made, "the lengths are those of another protocol")
        assert rejected.status is ScheduleStatus.REJECTED
        assert len(slots_of(office, made)) == 48
        entry = office.house.trail(STUDY)[-1]
        assert "another protocol" not in repr(entry)
        assert entry["restricted"] is not None

    def test_a_verdict_outside_its_limit(self, office: ListOffice) -> None:
        """Such a list is not approved; nothing is redrawn, and it stays on record. [SEQ-07, A6]"""
        made = office.generate()
        (row,) = office.rows(tables.schedule)
        ring = office.house.deployment.ring
        place = SealContext(Column.QUALITY, CODE, lists.place_of(made.schedule_id))
        kept = msgspec.json.decode(ring.open(place, Sealed(row["sealed_quality_report"])))
        kept["report"]["passed"] = False
        with office.tampering(tables.schedule) as tx:
            sealed = ring.seal(place, msgspec.json.encode(kept)).token
            tx.execute(update(tables.schedule).values(sealed_quality_report=sealed))
        with pytest.raises(IllegalTransition, match="outside its limit"):
            office.approve(made)

    def test_only_one_list_is_active(self, office: ListOffice) -> None:
        """A second first list waits for ever; the active one is extended instead."""
        office.active()
        second = office.generate(wanted(reason="another"))
        office.approve(second)
        with pytest.raises(IllegalTransition, match="active already"):
            office.activate(second)

    def test_a_list_of_another_study(self, office: ListOffice) -> None:
        """It is not there, in every call. [USR-21]"""
        office.house.register_study("OTHER", sites=())
        made = office.generate()
        statistician = office.house.person("statistician", "OTHER")
        approver = office.house.person("list_approver", "OTHER")
        other = StudyCode("OTHER")

        def ctx(caller: harness.Caller, action: Action) -> RequestContext:
            return context(office.house, caller, action)

        with pytest.raises(Missing):
            schedules.read_schedule(ctx(approver, Action.READ_SCHEDULES), other, made.schedule_id)
        with pytest.raises(Missing):
            schedules.read_quality_report(ctx(approver, Action.READ_QUALITY_REPORT), other, made.schedule_id)
        with pytest.raises(Missing):
            schedules.extend_schedule(ctx(statistician, Action.EXTEND_SCHEDULE), other, made.schedule_id, wanted())
        with pytest.raises(Missing):
            schedules.approve_schedule(ctx(approver, Action.APPROVE_SCHEDULE), other, made.schedule_id, made.commitment)
        with office.act() as act, pytest.raises(Missing):
            stored.get_sealed_quality_report(act.tx, uuid4(), made.schedule_id)


class TestClosing:
    def test_with_its_study(self, house: House) -> None:
        """Closed for ever with every active segment, entered; the rest stays, and codes are broken as before. [A7, D5]"""
        study = running_study(house, subjects=1)
        made = {"block_sizes": [2, 4], "length_per_stratum": 12, "fill": "exact", "reason": "another"}
        other = expect(study.people["statistician"].post(f"{S}/schedules", json=made, step_up=True), 201)["schedule_id"]
        study.set_status("closed")
        listed = {
            one["schedule_id"]: one["status"] for one in expect(study.investigator.get(f"{S}/schedules"), 200)["items"]
        }
        assert listed == {study.schedule_id: "closed", other: "generated"}
        entry = next(one for one in reversed(house.trail(STUDY)) if one["action"] == Action.SET_STUDY_STATUS)
        assert entry["after"] == {
            "status": "closed",
            "closed_schedules": [study.schedule_id],
            **signed_as(study.study_admin, "responsibility"),
        }
        again = study.study_admin.post(f"{S}/schedules/{study.schedule_id}/activation", step_up=True)
        assert expect(again, 409)["code"] == "illegal_transition"
        extension = study.people["statistician"].post(
            f"{S}/schedules/{study.schedule_id}/segments", json=made, step_up=True
        )
        assert expect(extension, 409)["code"] == "illegal_transition"
        for found in ({"subject_id": "01-0001"}, {"kit_code": study.free_kit()}):
            body = {**found, "reason_code": "overdose"}
            expect(study.investigator.post(f"{S}/code-breaks", json=body, step_up=True), 201)

    def test_not_while_it_is_suspended(self, house: House) -> None:
        """Suspended may go on again, so its list stays active. [A7]"""
        study = running_study(house, subjects=1)
        study.set_status("suspended")
        assert expect(study.investigator.get(f"{S}/schedules"), 200)["items"][0]["status"] == "active"
        study.set_status("open")
        study.new_subject()


class TestExtending:
    @pytest.fixture
    def by_site(self, house: House) -> ListOffice:
        """A study stratified by site and sex, with two sites."""
        return ListOffice(house, sites=("01", "02"), stratify_by_site=True, factors=[SEX])

    def test_a_new_site_and_more_slots(self, by_site: ListOffice) -> None:
        """A segment has its own seed and approval, follows the slots there are, and changes none of them. [SEQ-17]"""
        first = by_site.active(wanted(sizes=[4], length=8))
        before = slots_of(by_site, first)
        add_site(by_site, "03")
        lengths: list[StratumLength] = [(SiteCode("03"), {"sex": "f"}, 4), (SiteCode("01"), {"sex": "m"}, 12)]
        segment = by_site.extend(first.schedule_id, wanted(sizes=[4], lengths=lengths))
        assert (segment.segment_number, segment.list_id, segment.extends) == (1, first.list_id, first.schedule_id)
        assert segment.slots == 16
        by_site.approve(segment)
        by_site.activate(segment)
        assert slots_of(by_site, first) == before
        assert place_of(by_site, "site=01;sex=m", 7) == (first.schedule_id, 7)
        assert place_of(by_site, "site=01;sex=m", 8) == (segment.schedule_id, 0)
        assert place_of(by_site, "site=01;sex=m", 19) == (segment.schedule_id, 11)
        assert place_of(by_site, "site=01;sex=m", 20) is None
        assert place_of(by_site, "site=03;sex=f", 0) == (segment.schedule_id, 0)
        assert place_of(by_site, "site=02;sex=f", 8) is None

    def test_every_segment_has_its_own_seed(self, office: ListOffice) -> None:
        """Two segments of one specification are two lists. [SEQ-09, SEQ-17]"""
        first = office.active()
        segment = office.extend(first.schedule_id)
        arms = [[office.opened(row).arm_code for row in slots_of(office, made)] for made in (first, segment)]
        assert len(arms[0]) == len(arms[1]) == 48
        assert arms[0] != arms[1]

    def test_its_own_order_of_activation(self, office: ListOffice) -> None:
        """Segments follow each other as they are activated; one of a list that is not active waits. [SEQ-17]"""
        first = office.generate()
        office.approve(first)
        one, two = office.extend(first.schedule_id), office.extend(first.schedule_id, wanted(length=12))
        assert [one.segment_number, two.segment_number] == [1, 2]
        office.approve(two)
        with pytest.raises(IllegalTransition, match="that this segment extends is not active"):
            office.activate(two)
        office.activate(first)
        office.activate(two)
        assert place_of(office, "", 48) == (two.schedule_id, 0)
        assert place_of(office, "", 60) is None
        office.approve(one)
        office.activate(one)
        assert place_of(office, "", 60) == (one.schedule_id, 0)
        third = office.extend(two.schedule_id)
        assert (third.segment_number, third.list_id) == (3, first.list_id)

    @pytest.mark.parametrize(
        ("lengths", "words"),
        [
            ([], "at least one stratum"),
            ([(SiteCode("09"), {"sex": "f"}, 4)], "does not have"),
            ([(SiteCode("01"), {"sex": "f"}, 4)] * 2, "given twice"),
            ([(SiteCode("01"), {"sex": "f"}, 0)], "at least 1"),
        ],
    )
    def test_strata_refused(self, by_site: ListOffice, lengths: list[StratumLength], words: str) -> None:
        """An extension names strata of the study, each once and with a length. [SEQ-02]"""
        first = by_site.active(wanted(sizes=[4], length=8))
        with pytest.raises(InvalidSpecification, match=words):
            by_site.extend(first.schedule_id, wanted(sizes=[4], lengths=lengths))


def place_of(office: ListOffice, code: str, ordinal: int) -> tuple[UUID, int] | None:
    """Return list and position of the slot for a subject of a stratum, opened and proved."""
    with office.act() as act:
        stratum_id = stored.list_strata(act.tx, act.study.study_id)[StratumCode(code)]
        slot = stored.find_slot(act.tx, act.study.study_id, stratum_id, ordinal)
        if slot is None:
            return None
        assert slot.stratum_code == code
        assert open_slot(act, slot).randomization_number == slot.randomization_number
        return slot.schedule_id, slot.position


def add_site(office: ListOffice, code: str) -> None:
    body = {"site_code": code, "name": f"Hospital {code}", "timezone": "Asia/Shanghai"}
    harness.expect(office.study_admin.post(f"/v1/studies/{STUDY}/sites", json=body), 201)


class TestClaiming:
    def test_ordinals_follow_each_other(self, office: ListOffice) -> None:
        """Each claim gives the next ordinal of its stratum, without gap. [ASG-09, C5]"""
        office.generate()
        with office.act() as act:
            claimed = [stored.claim_ordinal(act.tx, act.study.study_id, StratumCode("")) for _ in range(3)]
        assert [ordinal for _, ordinal in claimed] == [0, 1, 2]
        assert len({stratum_id for stratum_id, _ in claimed}) == 1

    def test_a_stratum_that_no_list_was_made_for(self, office: ListOffice) -> None:
        """It is unavailable in the one way. [ASG-15]"""
        with office.act() as act, pytest.raises(ListUnavailable):
            stored.claim_ordinal(act.tx, act.study.study_id, StratumCode(""))

    def test_a_list_that_is_not_active_gives_no_slot(self, office: ListOffice) -> None:
        """Neither a generated nor an approved list is used. [CUS-01]"""
        made = office.generate()
        assert place_of(office, "", 0) is None
        office.approve(made)
        assert place_of(office, "", 0) is None
        office.activate(made)
        assert place_of(office, "", 0) == (made.schedule_id, 0)

    def test_a_slot_that_is_gone(self, office: ListOffice) -> None:
        """What an allocation names must be there."""
        made = office.generate()
        with office.act() as act, pytest.raises(IntegrityBroken):
            stored.get_slot(act.tx, act.study.study_id, made.schedule_id, uuid4(), 0)


Tamper = Callable[[ListOffice, GeneratedSchedule], None]


def change_slot(office: ListOffice, at: int, **values: object) -> None:
    with office.tampering(tables.slot) as tx:
        tx.execute(update(tables.slot).where(tables.slot.c.position == at).values(**values))


def swap_sealed(office: ListOffice, made: GeneratedSchedule) -> None:
    one, other = slots_of(office, made)[:2]
    change_slot(office, 0, sealed=other["sealed"])
    change_slot(office, 1, sealed=one["sealed"])


def change_number(office: ListOffice, _made: GeneratedSchedule) -> None:
    change_slot(office, 7, randomization_number=RandomizationNumber("R4K7QK"))


def reorder(office: ListOffice, made: GeneratedSchedule) -> None:
    """Move the last slot to the front, and everything else one on."""
    change_slot(office, 47, position=1000)
    with office.tampering(tables.slot) as tx:
        for position in range(46, -1, -1):
            tx.execute(update(tables.slot).where(tables.slot.c.position == position).values(position=position + 1))
    change_slot(office, 1000, position=0)


def cut(office: ListOffice, _made: GeneratedSchedule) -> None:
    with office.tampering(tables.slot) as tx:
        tx.execute(delete(tables.slot).where(tables.slot.c.position == 47))


def lengthen(office: ListOffice, made: GeneratedSchedule) -> None:
    last = slots_of(office, made)[-1]
    with office.tampering(tables.slot) as tx:
        tx.execute(insert(tables.slot), last | {"position": 48, "randomization_number": "R4K7QK"})


def seal_another_arm(office: ListOffice, made: GeneratedSchedule) -> None:
    """What somebody with the key could do: a slot sealed in its own place, with the other arm."""
    row = slots_of(office, made)[5]
    inside = office.opened(row)
    arm = next(code for code in ("CONTROL", "HUCMSC") if code != inside.arm_code)
    changed = SlotContents(
        ArmCode(arm), inside.block, inside.block_size, inside.randomization_number, inside.salt
    ).to_bytes()
    place = SealContext(Column.SLOT, CODE, slot_place(made.schedule_id, row["stratum_id"], 5))
    change_slot(office, 5, sealed=office.house.deployment.ring.seal(place, changed).token)


def seal_another_salt(office: ListOffice, made: GeneratedSchedule) -> None:
    """The right arm in the right place, but not the leaf that was committed to."""
    row = slots_of(office, made)[5]
    inside = office.opened(row)
    changed = SlotContents(
        inside.arm_code, inside.block, inside.block_size, inside.randomization_number, bytes(32)
    ).to_bytes()
    place = SealContext(Column.SLOT, CODE, slot_place(made.schedule_id, row["stratum_id"], 5))
    change_slot(office, 5, sealed=office.house.deployment.ring.seal(place, changed).token)


def change_tile(office: ListOffice, _made: GeneratedSchedule) -> None:
    with office.tampering(tables.commitment_tile) as tx:
        tx.execute(update(tables.commitment_tile).values(hashes=bytes(32 * 48)))


def change_root(office: ListOffice, _made: GeneratedSchedule) -> None:
    with office.tampering(tables.schedule_stratum) as tx:
        tx.execute(update(tables.schedule_stratum).values(root=bytes(32)))


def change_slot_count(office: ListOffice, _made: GeneratedSchedule) -> None:
    with office.tampering(tables.schedule_stratum) as tx:
        tx.execute(update(tables.schedule_stratum).values(slot_count=47))


def change_segment_number(office: ListOffice, _made: GeneratedSchedule) -> None:
    with office.tampering(tables.schedule) as tx:
        tx.execute(update(tables.schedule).values(segment_number=1))


def rename_stratum(office: ListOffice, _made: GeneratedSchedule) -> None:
    with office.tampering(tables.stratum) as tx:
        tx.execute(update(tables.stratum).values(stratum_code="sex=f"))


def swap_seed_and_specification(office: ListOffice, _made: GeneratedSchedule) -> None:
    column = tables.schedule.c
    with office.tampering(tables.schedule) as tx:
        tx.execute(update(tables.schedule).values(sealed_seed=column.sealed_specification))


def forged(**changes: object) -> Tamper:
    """Return what somebody with the key could do: a specification sealed in its own place, with other members."""

    def forge(office: ListOffice, made: GeneratedSchedule) -> None:
        place = SealContext(Column.SPECIFICATION, CODE, lists.place_of(made.schedule_id))
        with office.act() as act:
            kept = commitments.get_list_commitment(act.tx, act.study.study_id, made.schedule_id)
            document = json.loads(office.house.deployment.ring.open(place, kept.sealed_specification)) | changes
        token = office.house.deployment.ring.seal(place, canonical_json(document)).token
        with office.tampering(tables.schedule) as tx:
            tx.execute(update(tables.schedule).values(sealed_specification=token))

    return forge


FORGED = {
    "fewer weights": forged(block_size_weights=[1, 1]),
    "no weight": forged(block_size_weights=[0, 0, 0]),
    "no arms": forged(arms=[]),
    "a size of nothing": forged(block_sizes=[0, 6, 8]),
    "words for sizes": forged(block_sizes=["4", "6", "8"]),
    "another member": forged(seed="00"),
    "another algorithm": forged(algorithm="coin"),
}


class TestTampering:
    @pytest.mark.parametrize("what", FORGED)
    def test_a_specification_of_no_list(self, office: ListOffice, what: str) -> None:
        """One that no list can have been made from is a broken record, and neither a fault of ours nor the caller's. [SEQ-11]"""
        made = office.generate()
        FORGED[what](office, made)
        with office.act() as act, pytest.raises(IntegrityBroken):
            lists.check_list(act, stored.get_schedule(act.tx, act.study.study_id, made.schedule_id))

    @pytest.mark.parametrize(
        "tamper",
        [
            swap_sealed,
            change_number,
            reorder,
            cut,
            lengthen,
            seal_another_arm,
            seal_another_salt,
            change_tile,
            change_root,
            change_slot_count,
            change_segment_number,
            rename_stratum,
            swap_seed_and_specification,
        ],
    )
    @pytest.mark.parametrize("step", ["approval", "activation"])
    def test_a_list_that_was_changed_is_refused(self, office: ListOffice, tamper: Tamper, step: str) -> None:
        """Whatever an owner of the database did to the list, the next step sees it and enters it. [SEQ-11, CUS-10]"""
        made = office.generate()
        if step == "activation":
            office.approve(made)
        tamper(office, made)
        before = office.rows(tables.schedule)
        with pytest.raises(IntegrityBroken):
            (office.approve if step == "approval" else office.activate)(made)
        assert office.rows(tables.schedule) == before
        assert office.house.trail(STUDY)[-1]["outcome"] == "integrity"

    def test_another_signature(self, office: ListOffice) -> None:
        """A list that was approved under another root is not activated. [CUS-10]"""
        first, second = office.generate(), office.generate(wanted(reason="another"))
        office.approve(first)
        office.approve(second)
        notes = select(tables.schedule.c.commitment_note).where(tables.schedule.c.schedule_id == second.schedule_id)
        with office.tampering(tables.schedule) as tx:
            note = tx.execute(notes).scalar_one()
            tx.execute(
                update(tables.schedule)
                .where(tables.schedule.c.schedule_id == first.schedule_id)
                .values(commitment_note=note)
            )
        with pytest.raises(IntegrityBroken):
            office.activate(first)

    def test_a_number_is_never_there_twice(self, office: ListOffice) -> None:
        """The database itself keeps the randomization numbers of a study apart. [BLD-04]"""
        made = office.generate()
        first = slots_of(office, made)[0]
        with pytest.raises(AlreadyThere), office.act() as act:
            act.tx.execute(insert(tables.slot), first | {"position": 48})


class TestUsedNumbers:
    def test_each_is_new_once(self) -> None:
        """A number is known by its five characters; the last and the first one there can be are told apart. [BLD-04]"""
        used = lists.UsedNumbers()
        numbers = ["22222A", "ZZZZZ2", "22223B", "2222ZC"]
        assert [used.take(number) for number in numbers] == [True] * 4
        assert [used.take(number) for number in numbers] == [False] * 4

    def test_numbers_are_drawn_past_those_in_use(self) -> None:
        """What the same chance gives again is passed over: no number of a study comes twice. [BLD-04]"""
        used = lists.UsedNumbers()
        first = list(lists._numbers(SeededEntropy("numbers"), used, 5000))
        again = list(lists._numbers(SeededEntropy("numbers"), used, 5000))
        assert len({*first, *again}) == 10_000
