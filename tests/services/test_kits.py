"""Consignments and single kits below the surface: what is stored, committed to and entered, and what a kit's life allows."""

import json
import random
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import insert, select, update

from app.domain.codes import is_valid, runs_test_p
from app.domain.contents import Binding, KitContents
from app.domain.kits import ReplacementReason, Step, next_status, status_after_replacement
from app.domain.merkle import tree_root
from app.domain.notes import kit_commitment_text
from app.domain.sealed import Column, SealContext, Sealed
from app.domain.words import ConsignmentCode, KitCode, KitStatus, Mode, StudyCode, SubjectKey
from app.errors import IllegalTransition
from app.sealing.notes import verify_note
from app.services.audited import Act
from app.services.evidence import AllocationPlace, KitAssignmentPlace, kit_place, open_binding, seal_binding
from app.storage import allocations, kits, tables
from tests import harness, supply
from tests.doors import lift_triggers
from tests.harness import STUDY, House, SeededEntropy, expect
from tests.supply import ARMS, LATE, S, Trial

ACTIONS = {
    "quarantine": Step.QUARANTINE,
    "return": Step.RETURN,
    "loss": Step.REPORT_LOSS,
    "damage": Step.REPORT_DAMAGE,
    "destruction": Step.DESTROY,
}


def step(trial: Trial, kit_code: str, action: str) -> Any:  # noqa: ANN401  # a response
    """Return the response to a step of one kit, by whoever may take it."""
    body = {"reason": "As it happened."}
    if action in {"release", "destruction"}:
        return trial.supply_manager.post(f"{S}/kits/{kit_code}/{action}", json=body, step_up=True)
    return trial.pharmacist.post(f"{S}/kits/{kit_code}/{action}", json=body)


def dispense(trial: Trial, subject: str, kit_code: str) -> Any:  # noqa: ANN401  # a response
    """Return the response to handing out a kit."""
    body = {"subject_id": subject, "scanned_code": kit_code}
    return trial.pharmacist.post(f"{S}/kits/{kit_code}/dispensation", json=body)


def replace(trial: Trial, kit_code: str, reason_code: str = "other") -> Any:  # noqa: ANN401  # a response
    """Return the response to a replacement."""
    body = {"reason_code": reason_code, "reason": "The seal was open."}
    return trial.pharmacist.post(f"{S}/kits/{kit_code}/replacement", json=body)


def restricted(house: House, entry: Mapping[str, Any]) -> Any:  # noqa: ANN401  # JSON
    """Return the restricted part of an entry of the study's log."""
    part = tables.trail_restricted.c
    with house.deployment.database.transaction() as tx:
        study_id = tx.execute(select(tables.study.c.study_id)).scalar_one()
        token = tx.execute(
            select(part.sealed).where(part.study_id == study_id, part.log_index == entry["index"])
        ).scalar_one()
    context = SealContext(Column.RESTRICTED, StudyCode(STUDY), (1, entry["index"]))
    return json.loads(house.deployment.ring.open(context, Sealed(token))[32:])


class TestCreate:
    def test_what_is_stored_and_committed_to(self, house: House) -> None:
        """Codes, order of rows, lengths and map say nothing of the arm; the signed root is that of the kits [B3, B4, A8, SEQ-11]"""
        trial = supply.trial(house, per_arm=3)
        made = trial.create("C2", 300)
        with house.deployment.database.transaction() as tx:
            of_consignment = tables.consignment.c.consignment_code == "C2"
            consignment = tx.execute(select(tables.consignment).where(of_consignment)).one()
            of_kit = tables.kit.c.consignment_id == consignment.consignment_id
            rows = tx.execute(select(tables.kit).where(of_kit)).all()
        assert made == {"consignment_code": "C2", "kit_count": 600, "commitment": consignment.commitment}
        assert len({row.kit_code for row in rows}) == 600
        assert all(is_valid(row.kit_code) for row in rows)
        assert len({len(row.sealed) for row in rows}) == 1
        assert {row.status for row in rows} == {"registered"}
        arms = trial.arms_of("C2")
        stored = [row.kit_code for row in rows]
        assert stored != sorted(stored)
        for order in (stored, sorted(stored)):
            assert runs_test_p([arms[code] for code in order]) > 1e-6
        leaves = []
        for row in sorted(rows, key=lambda row: row.map_index):
            place = kit_place(consignment.consignment_id, row.kit_id, row.kit_code)
            opened = house.deployment.ring.open(SealContext(Column.KIT, StudyCode(STUDY), place), Sealed(row.sealed))
            contents = KitContents.from_bytes(opened)
            leaves.append(contents.leaf(StudyCode(STUDY), Mode.TEST, ConsignmentCode("C2"), row.kit_code))
        root = tree_root(leaves)
        assert root.hex() == consignment.commitment
        text = kit_commitment_text(str(house.deployment.deployment_id), STUDY, "C2", root)
        assert verify_note(consignment.commitment_note, house.deployment.signing.vkeys()) == text

    def test_the_entry_commits_before_anybody_receives(self, house: House) -> None:
        """The root is in clear, quantities and lots are in the restricted part only [A8, E3]"""
        trial = supply.trial(house, per_arm=4)
        created, received = trial.entries("consignment:create")[0], trial.entries("consignment:receive")[0]
        assert created["index"] < received["index"]
        assert created["target"] == {"consignment_code": "C1"}
        assert set(created["after"]) == {"kit_count", "commitment", "origin", "unusable_from"}
        assert len(created["after"]["commitment"]) == 64
        told = restricted(house, created)
        assert told["quantities"] == {ARMS[0]: 4, ARMS[1]: 4}
        assert {"arm_code": ARMS[0], "lot": f"L-{ARMS[0]}", "expires_on": LATE, "count": 4} in told["lots"]

    def test_more_lots_than_the_restricted_part_holds(self, house: House) -> None:
        """Quantities by arm are kept whatever the number of lots [E3]"""
        trial = supply.trial(house, per_arm=3)
        lines = [
            {"arm_code": ARMS[number % 2], "lot": f"LOT-{number:05}", "expires_on": LATE, "count": 1}
            for number in range(200)
        ]
        body = {"consignment_code": "C2", "kits": lines}
        expect(trial.supply_manager.post(f"{S}/consignments", json=body, step_up=True), 201)
        told = restricted(house, trial.entries("consignment:create")[-1])
        assert told == {"quantities": {ARMS[0]: 100, ARMS[1]: 100}, "lot_count": 200}

    def test_a_code_that_the_study_has_is_drawn_again(self, migrated_database_url: str, tmp_path: Path) -> None:
        """A generator that repeats itself makes no second kit of one code [KIT-01]"""
        with harness.house(migrated_database_url, tmp_path, entropy=Repeating()) as house:
            trial = supply.trial(house, per_arm=3)
            trial.create("C2", 3)
            assert not trial.arms_of("C1").keys() & trial.arms_of("C2").keys()


class Repeating(SeededEntropy):
    """Chance that gives the same bytes for the first two consignments' codes."""

    def draw(self, purpose: str, size: int) -> bytes:
        drawn = super().draw(purpose, size)
        if purpose == "kit-code" and self._draws[purpose] == 2:
            self._draws[purpose] = 0
            drawn = super().draw(purpose, size)
            self._draws[purpose] = 2
        return drawn


class TestLife:
    def test_received_is_the_sum_of_what_became_of_it(self, house: House) -> None:
        """Whatever is done in whatever order, each kit is where the state machine says and none is lost count of [KIT-03, 09]"""
        trial = supply.trial(house, per_arm=30)
        model = dict.fromkeys((str(code) for code in trial.arms_of("C1")), KitStatus.IN_STOCK)
        subjects = [f"01-{number:04}" for number in range(6)]
        owner: dict[str, str] = {}
        for subject in subjects:
            code = trial.allocate(subject)["kit_code"]
            owner[code], model[code] = subject, KitStatus.ASSIGNED
        chance = random.Random(7)
        outcomes: Counter[int] = Counter()
        for _ in range(120):
            # Mostly kits that subjects have: more happens to them.
            code = chance.choice(sorted(owner) * 4 + sorted(model))
            action = chance.choice([*ACTIONS, "release", "dispensation", "replacement"])
            status = expected(model[code], action, assigned=code in owner)
            if action == "dispensation":
                answer = dispense(trial, owner.get(code, subjects[0]), code)
            elif action == "replacement":
                house.clock.advance(hours=25)
                answer = replace(trial, code)
                if any(one["replaces"] == code for one in replaced(house)) and answer.status_code == 201:
                    new = answer.json()["kit_code"]
                    owner[new], model[new] = owner[code], KitStatus.ASSIGNED
            else:
                answer = step(trial, code, action)
            outcomes[answer.status_code] += 1
            if answer.status_code in {200, 201} and "Idempotency-Replayed" not in answer.headers:
                assert status is not None, (model[code], action)
                model[code] = status
            elif answer.status_code == 409:
                assert status is None or (action, model[code]) in UNCERTAIN, (model[code], action, answer.text)
        assert outcomes[200] > 20
        assert outcomes[409] > 20
        assert trial.statuses("C1") == {code: status.value for code, status in model.items()}
        page = expect(trial.pharmacist.get(f"{S}/sites/01/kits"), 200)
        assert page["counts"] == Counter(status.value for status in model.values())
        assert sum(page["counts"].values()) == 60


UNCERTAIN = {("replacement", KitStatus.DAMAGED), ("replacement", KitStatus.LOST)}
"""A damaged or lost kit keeps its status when it is replaced, so that the model cannot tell a second replacement."""


def expected(status: KitStatus, action: str, *, assigned: bool) -> KitStatus | None:
    """Return the status that the model expects, None for a refusal."""
    try:
        if action == "replacement":
            return status_after_replacement(status, ReplacementReason.OTHER) if assigned else None
        if action == "release":
            return next_status(status, Step.RELEASE_TO_SUBJECT if assigned else Step.RELEASE_TO_STOCK)
        if action == "dispensation":
            return next_status(status, Step.DISPENSE) if assigned else None
        return next_status(status, ACTIONS[action])
    except IllegalTransition:
        return None


def replaced(house: House) -> list[dict[str, Any]]:
    """Return which kit stands in which one's place."""
    old, new = tables.kit.alias("old"), tables.kit
    given = tables.kit_assignment.c
    with house.deployment.database.transaction() as tx:
        rows = tx.execute(
            select(new.c.kit_code, old.c.kit_code.label("replaces"))
            .join_from(tables.kit_assignment, new, new.c.kit_id == given.kit_id)
            .join(old, old.c.kit_id == given.replaces)
        )
        return [{"kit_code": row.kit_code, "replaces": row.replaces} for row in rows]


class TestReplacement:
    def test_comes_silently_from_the_same_arm(self, house: House) -> None:
        """Same arm, linked, the old kit retired by its reason, the reason in the restricted part [KIT-10, BLD-16, B9]"""
        trial = supply.trial(house)
        arms = trial.arms_of("C1")
        for number, (reason, status) in enumerate([("damaged", "damaged"), ("lost", "lost"), ("expired", "replaced")]):
            old = trial.allocate(f"01-{number}")["kit_code"]
            new = expect(replace(trial, old, reason), 201)
            assert arms[KitCode(new["kit_code"])] == arms[old]
            assert set(new) == {"subject_id", "kit_code", "status", "assigned_at", "visit", "replaces"}
            assert (new["replaces"], new["status"], new["visit"]) == (old, "assigned", None)
            assert trial.statuses("C1")[old] == status
            assert {"kit_code": new["kit_code"], "replaces": old} in replaced(house)
            entry = trial.entries("kit:replace")[-1]
            assert entry["after"] == {"status": status, "reason_code": reason, "replaced_by": new["kit_code"]}
            assert restricted(house, entry) == {"reason": "The seal was open."}

    def test_the_second_within_a_day_waits_for_the_supply_manager(self, house: House) -> None:
        """Who learns the kit and not the subject; the leave serves that kit once; a day later none is needed [B9, ASG-13]"""
        trial = supply.trial(house)
        first = trial.allocate("01-0001")["kit_code"]
        second = expect(replace(trial, first), 201)["kit_code"]
        assert expect(replace(trial, second), 409)["code"] == "replacement_needs_release"
        # Another subject is not held up by it.
        expect(replace(trial, trial.allocate("01-0002")["kit_code"]), 201)
        path = f"{S}/kits/{second}/replacement-release"
        released = expect(trial.supply_manager.post(path, step_up=True), 200)
        assert set(released) == {"kit_code", "released_at"}
        entry = trial.entries("kit:release_replacement")[-1]
        assert "01-0001" not in json.dumps(entry)
        assert expect(trial.supply_manager.post(path, step_up=True), 409)["code"] == "already_exists"
        third = expect(replace(trial, second), 201)["kit_code"]
        assert expect(replace(trial, third), 409)["code"] == "replacement_needs_release"
        house.clock.advance(hours=24, seconds=1)
        expect(replace(trial, third), 201)

    def test_a_kit_is_replaced_once(self, house: House) -> None:
        """The same request again gives the same kit; with another reason it is refused [C4, KIT-10]"""
        trial = supply.trial(house)
        old = trial.allocate("01-0001")["kit_code"]
        new = expect(replace(trial, old, "lost"), 201)
        again = replace(trial, old, "lost")
        assert (again.status_code, again.headers["Idempotency-Replayed"], again.json()) == (200, "true", new)
        house.clock.advance(days=2)
        assert expect(replace(trial, old, "damaged"), 409)["code"] == "illegal_transition"
        stock = next(code for code, status in trial.statuses("C1").items() if status == "in_stock")
        assert expect(replace(trial, stock), 409)["code"] == "illegal_transition"

    def test_obeys_the_floor_like_an_allocation(self, house: House) -> None:
        """Below the floor of any arm nothing is replaced, the consignment is withdrawn, the old kit stays as it is [B6, B9]"""
        trial = supply.trial(house, per_arm=3)
        old = trial.allocate("01-0001")["kit_code"]
        assert expect(replace(trial, old), 409)["code"] == "stock_insufficient"
        assert trial.statuses("C1")[old] == "assigned"
        assert trial.consignment_status("C1") == "withdrawn"


class TestQuarantine:
    def test_unassigned_kits_alert_the_supply_manager(self, house: House) -> None:
        """Not so the kit of a subject, whose entry is about the subject [B6, KIT-05]"""
        trial = supply.trial(house)
        mine = trial.allocate("01-0001")["kit_code"]
        free = next(code for code, status in trial.statuses("C1").items() if status == "in_stock")
        for action, status in (("quarantine", "quarantined"), ("damage", "damaged"), ("loss", "lost")):
            free = next(code for code, at in trial.statuses("C1").items() if at == "in_stock")
            assert expect(step(trial, free, action), 200) == {"kit_code": free, "status": status}
            entry = trial.entries(f"kit:{action}")[-1]
            assert entry["after"] == {"status": status, "alert": "supply_manager"}
            assert restricted(house, entry) == {"reason": "As it happened."}
        expect(step(trial, mine, "quarantine"), 200)
        assert trial.entries("kit:quarantine")[-1]["after"] == {"status": "quarantined"}
        assert expect(step(trial, mine, "release"), 200)["status"] == "assigned"
        expect(dispense(trial, "01-0001", mine), 200)

    def test_a_kit_by_which_a_code_was_broken_comes_back_no_more(self, house: House) -> None:
        """Somebody at the site knows its arm: it can only be destroyed [D2, B1]"""
        trial = supply.trial(house)
        free = next(code for code, status in trial.statuses("C1").items() if status == "in_stock")
        expect(step(trial, free, "quarantine"), 200)

        def broken(act: Act) -> None:
            kit = kits.find_kit(act.tx, act.study.study_id, free)
            assert kit is not None
            act.tx.execute(insert(tables.code_break), a_break(act.study.study_id, kit.kit_id, act))

        trial.act(broken)
        assert expect(step(trial, free, "release"), 409)["code"] == "illegal_transition"
        assert expect(step(trial, free, "destruction"), 200)["status"] == "destroyed"


def a_break(study_id: UUID, kit_id: UUID, act: Act) -> dict[str, Any]:
    """Return the row of a code break by a kit that nobody was given."""
    return {
        "study_id": study_id,
        "code_break_id": kit_id,
        "subject_key": None,
        "kit_id": kit_id,
        "site_code": "01",
        "is_by_kit_code": True,
        "is_own_site": True,
        "reason_code": "accidental_exposure",
        "status": "authorised",
        "broken_at": act.now,
        "broken_by": "doctor",
        "role": "investigator",
    }


class TestTampering:
    def test_words_that_nobody_signed(self, house: House) -> None:
        """Words that somebody with the key bound to subject, kit and arm agree, and were not signed. [D4, EUB-10]"""
        trial = supply.trial(house)
        trial.allocate("01-0001")
        preparer = trial.another("unblinded_pharmacist", "01")
        path = f"{S}/subjects/01-0001/preparation"
        word = expect(preparer.get(path, step_up=True), 200)["treatment"]

        def bind(act: Act) -> None:
            allocation = allocations.get_allocation(act.tx, act.study.study_id, SubjectKey("01-0001"), None)
            [given] = kits.list_assignments(act.tx, act.study.study_id, SubjectKey("01-0001"))
            of_subject = AllocationPlace(
                allocation.allocation_id,
                allocation.subject_key,
                allocation.schedule_id,
                allocation.stratum_id,
                allocation.position,
                allocation.randomization_number,
                given.kit.kit_id,
            )
            of_kit = KitAssignmentPlace(given.assignment_id, given.subject_key, given.kit.kit_id, given.kit.kit_code)
            arm_code = open_binding(act, of_subject, allocation.sealed_binding).arm_code
            for table, place in ((tables.allocation, of_subject), (tables.kit_assignment, of_kit)):
                lift_triggers(act.tx, table.name)
                sealed, _ = seal_binding(act, place, Binding(arm_code, f"{word}, doubled"))
                act.tx.execute(update(table).values(sealed_binding=sealed.token))
            lift_triggers(act.tx, "arm")
            words = update(tables.arm).where(tables.arm.c.arm_code == arm_code).values(treatment=f"{word}, doubled")
            act.tx.execute(words)

        trial.act(bind)
        assert expect(preparer.get(path, step_up=True), 503)["code"] == "integrity_failure"
        assert trial.entries("preparation:read")[-1]["outcome"] == "integrity"

    @pytest.mark.parametrize("planted", ["another kit", "another word"])
    def test_evidence_that_disagrees_is_never_used(self, house: House, planted: str) -> None:
        """A kit whose sealed value is another's gives no answer, here not even to the pharmacist who prepares [C3, D4]"""
        trial = supply.trial(house)
        code = trial.allocate("01-0001")["kit_code"]
        preparer = trial.another("unblinded_pharmacist", "01")
        path = f"{S}/subjects/01-0001/preparation"
        assert expect(preparer.get(path, step_up=True), 200)["kit_code"] == code
        kit = tables.kit.c
        with house.deployment.database.transaction() as tx:
            other = tx.execute(select(kit.sealed).where(kit.kit_code != code).limit(1)).scalar_one()
            resealed = {"sealed": other if planted == "another kit" else "v1.s1.AAAA.AAAA", "key_version": 2}
            tx.execute(tables.kit.update().where(kit.kit_code == code), resealed)
        answer = expect(preparer.get(path, step_up=True), 503)
        assert answer["code"] == "integrity_failure"
        assert trial.entries("preparation:read")[-1]["outcome"] == "integrity"
