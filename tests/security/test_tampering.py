"""What an owner of the database changes is refused by the service or named by the verifier (rules A8, C3, D4, E4; T9, T10)."""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from random import Random
from typing import Any, Final
from uuid import uuid4

import pyotp
import pytest

from app.domain.contents import Binding, KitContents, SlotContents
from app.domain.encoding import canonical_json
from app.domain.merkle import leaf_hash
from app.domain.sealed import Column, SealContext, Sealed
from app.domain.words import ArmCode, Role, StudyCode
from app.errors import AlreadyExists, IntegrityBroken, SnoseError, Unavailable
from app.services.evidence import kit_place, slot_place
from tests.security.conftest import Places
from tests.security.rehearsal import Attempt, Rehearsal, Row, World, body_of, forge
from tests.security.script import OTHER_STUDY, Play, listening, running

ENROLLED: Final = 10


@dataclass(frozen=True)
class Mutation:
    """One change, and the acts that use what was changed; the first that refuses ends it."""

    kind: str
    do: Attempt
    acts: tuple[Attempt, ...] = ()
    in_trail: bool = False
    """Whether the verifier needs to read no more than the trail."""


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def world(request: pytest.FixtureRequest, places: Places) -> Iterator[World]:
    """A trial in its middle: subjects allocated, kits at visits and in another's place, a code broken, and much in stock."""
    with places(request.param) as (url, folder), listening(), running(url, folder) as house:
        play = Play.in_house(house)
        play.prepare()
        for number in range(1, ENROLLED + 1):
            play.enrol(number)
        for number in (1, 2, 3):
            play.tell(play.edc, "POST", f"{play.study}/subjects/{play.subject_id(number)}/kits", {"visit": "V2"})
        for number in (2, 4):
            kit = play.kits_of(number)[0]["kit_code"]
            play.at_kit(kit, "replacement", reason_code="damaged", reason="Broken")
        play.unblind_some()
        _register_another_study(play)
        play.keep()
        opened = World.open(house, play, folder)
        yield opened
        opened.close()


def _register_another_study(play: Play) -> None:
    """Have a study with a key of its own, from which sealed values are carried over."""
    admin = play.who(Role.STUDY_ADMIN)
    grant = {"role": "study_admin", "study_code": OTHER_STUDY}
    play.ask(play.admin, "POST", f"/v1/people/{admin.username}/grants", grant)
    body = {
        "study_code": OTHER_STUDY,
        "title": "Another study",
        "blinding": "double",
        "planned_subjects": 10,
        "arms": play.protocol.arms,
        "backup_contact": "Nobody",
    }
    play.ask(admin, "POST", "/v1/studies", body)
    play.ask(admin, "GET", f"/v1/studies/{OTHER_STUDY}")


# -- what is changed ---------------------------------------------------------------------------------------------------


def flipped(token: str, chance: Random) -> str:
    """Return a token with one character of its nonce or box changed."""
    head = token.index(".", token.index(".") + 1) + 1
    # The last characters of a part may hold bits that mean nothing.
    places = [
        at for at in range(head, len(token) - 2) if token[at] != "." and token[at + 1] != "." and token[at + 2] != "."
    ]
    at = chance.choice(places)
    return token[:at] + ("A" if token[at] != "A" else "B") + token[at + 1 :]


def set_to(table: str, row: Row, **values: object) -> Attempt:
    return lambda rehearsal: rehearsal.change(table, row, **values)


def exchange(table: str, one: Row, other: Row, *columns: str) -> Attempt:
    return lambda rehearsal: rehearsal.swap(table, one, other, *columns)


def both(*steps: Attempt) -> Attempt:
    def do(rehearsal: Rehearsal) -> None:
        for step in steps:
            step(rehearsal)

    return do


def deletes(table: str, row: Row) -> Attempt:
    return lambda rehearsal: rehearsal.delete(table, row)


def inserts(table: str, row: Row) -> Attempt:
    return lambda rehearsal: rehearsal.insert(table, row)


def breaks_kit(kit_code: str) -> Attempt:
    return lambda rehearsal: rehearsal.break_kit(kit_code)


def breaks_code(subject: str) -> Attempt:
    return lambda rehearsal: rehearsal.break_code_of(subject)


def proves(index: int) -> Attempt:
    return lambda rehearsal: rehearsal.prove(index)


def replays(subject: str) -> Attempt:
    return lambda rehearsal: rehearsal.replay(subject)


def opens_restricted(index: int, role: Role) -> Attempt:
    return lambda rehearsal: rehearsal.read_restricted(index, role)


def breaks(subject: str) -> tuple[Attempt, ...]:
    """The acts that use what a subject has."""
    return (lambda r: r.break_code_of(subject),)


def uses(subject: str) -> tuple[Attempt, ...]:
    return (lambda r: r.next_kit(subject), lambda r: r.prepare(subject), lambda r: r.break_code_of(subject))


@dataclass(frozen=True)
class Mutations:
    """Every kind of change, over every row that it can be made to."""

    world: World
    chance: Random
    times: int = 1
    """How many bits are flipped in each value."""

    def all(self) -> Iterator[Mutation]:
        for kind in (
            self.slots,
            self.kits,
            self.allocations,
            self.assignments,
            self.arms,
            self.lists,
            self.consignments,
            self.answers,
            self.factors,
            self.restricted,
            self.safety,
            self.keys,
            self.trail,
        ):
            yield from kind()

    def rows(self, table: str) -> Sequence[Row]:
        return self.world.rows[table]

    def other_arm(self, arm_code: str) -> ArmCode:
        return next(ArmCode(code) for code in self.world.treatments if code != arm_code)

    def opened(self, context: SealContext, token: str) -> bytes:
        return self.world.house.deployment.ring.open(context, Sealed(token))

    def flips(self, kind: str, table: str, column: str, row: Row, acts: tuple[Attempt, ...]) -> Iterator[Mutation]:
        for _ in range(self.times):
            yield Mutation(
                f"{kind}: bit flipped", set_to(table, row, **{column: flipped(row[column], self.chance)}), acts
            )
        yield Mutation(f"{kind}: cut", set_to(table, row, **{column: row[column][:-8]}), acts)
        yield (
            Mutation(
                f"{kind}: key id",
                set_to(table, row, **{column: row[column].replace(".s1.", ".s2.", 1).replace(".d1.", ".d2.", 1)}),
                acts,
            )
            if row[column].split(".")[1] in {"s1", "d1"}
            else Mutation(f"{kind}: emptied", set_to(table, row, **{column: ""}), acts)
        )

    def holder_of_slot(self, row: Row) -> tuple[Attempt, ...]:
        """The acts that use a slot: of its subject, or of the next one, or of the look through the list."""
        for allocation in self.rows("allocation"):
            if (allocation["schedule_id"], allocation["position"]) == (row["schedule_id"], row["position"]):
                return uses(allocation["subject_id"])
        return (lambda r: r.allocate(),) if row["position"] == ENROLLED else (lambda r: r.look_through(),)

    def slots(self) -> Iterator[Mutation]:
        rows = self.rows("slot")
        for at, row in enumerate(rows):
            acts, other = self.holder_of_slot(row), rows[at - 1]
            place = slot_place(row["schedule_id"], row["stratum_id"], row["position"])
            context = SealContext(Column.SLOT, self.world.study, place)
            inside = SlotContents.from_bytes(self.opened(context, row["sealed"]))
            of_other = SlotContents(
                self.other_arm(inside.arm_code),
                inside.block,
                inside.block_size,
                inside.randomization_number,
                inside.salt,
            )
            in_other_study = forge(
                self.world, SealContext(Column.SLOT, StudyCode(OTHER_STUDY), place), inside.to_bytes()
            )
            yield from self.flips("slot", "slot", "sealed", row, acts)
            yield Mutation("slot: swapped", exchange("slot", row, other, "sealed"), acts)
            yield Mutation("slot: copied", set_to("slot", row, sealed=other["sealed"]), acts)
            yield Mutation("slot: value of a kit", set_to("slot", row, sealed=self.rows("kit")[at]["sealed"]), acts)
            yield Mutation("slot: of another study", set_to("slot", row, sealed=in_other_study), acts)
            yield Mutation(
                "slot: another arm under the own key",
                set_to("slot", row, sealed=forge(self.world, context, of_other.to_bytes())),
                acts,
            )
            number = inside.randomization_number
            yield Mutation("slot: number changed", set_to("slot", row, randomization_number=number[::-1]), acts)
            yield Mutation("slot: numbers swapped", exchange("slot", row, other, "randomization_number"), acts)
            yield Mutation("slot: re-ordered", exchange("slot", row, other, "position"), acts)
            yield Mutation("slot: deleted", deletes("slot", row), acts)

    def holder_of_kit(self, row: Row) -> tuple[Attempt, ...]:
        for assignment in self.rows("kit_assignment"):
            if assignment["kit_id"] == row["kit_id"]:
                return breaks(self.subject_of(assignment["subject_key"]))
        code = row["kit_code"]
        return (lambda r: r.break_kit(code),)

    def subject_of(self, subject_key: str) -> str:
        return next(str(row["subject_id"]) for row in self.rows("allocation") if row["subject_key"] == subject_key)

    def kits(self) -> Iterator[Mutation]:
        rows = self.rows("kit")
        arms = {code: kit.arm_code for code, kit in self.world.kits.items()}
        consignments = {row["consignment_id"]: row for row in self.rows("consignment")}
        for at, row in enumerate(rows):
            acts = self.holder_of_kit(row)
            other = next(one for one in (*rows[at + 1 :], *rows[:at]) if arms[one["kit_code"]] != arms[row["kit_code"]])
            place = kit_place(row["consignment_id"], row["kit_id"], row["kit_code"])
            context = SealContext(Column.KIT, self.world.study, place)
            inside = KitContents.from_bytes(self.opened(context, row["sealed"]))
            of_other = KitContents(self.other_arm(inside.arm_code), inside.lot, inside.expires_on, inside.salt)
            other_lot = KitContents(inside.arm_code, inside.lot, inside.expires_on + timedelta(days=900), inside.salt)
            elsewhere = next(key for key in consignments if key != row["consignment_id"])
            yield from self.flips("kit", "kit", "sealed", row, acts)
            yield Mutation("kit: swapped", exchange("kit", row, other, "sealed"), acts)
            yield Mutation(
                "kit: labels swapped", exchange("kit", row, other, "kit_code"), (*acts, *self.holder_of_kit(other))
            )
            yield Mutation(
                "kit: another arm under the own key",
                set_to("kit", row, sealed=forge(self.world, context, of_other.to_bytes())),
                acts,
            )
            yield Mutation(
                "kit: later expiry under the own key",
                set_to("kit", row, sealed=forge(self.world, context, other_lot.to_bytes())),
                acts,
            )
            yield Mutation("kit: of another consignment", set_to("kit", row, consignment_id=elsewhere), acts)
            yield Mutation("kit: another place in the map", set_to("kit", row, map_index=row["map_index"] + 1), acts)

    def allocations(self) -> Iterator[Mutation]:
        rows = self.rows("allocation")
        arm_of = {slot.position: slot.arm_code for slot in self.world.slots}
        for at, row in enumerate(rows):
            subject, other = (
                row["subject_id"],
                next(
                    one for one in (*rows[at + 1 :], *rows[:at]) if arm_of[one["position"]] != arm_of[row["position"]]
                ),
            )
            acts, both_acts = uses(subject), (*uses(subject), *uses(other["subject_id"]))
            first = next(
                one["kit_id"]
                for one in self.rows("kit_assignment")
                if one["subject_key"] == row["subject_key"] and one["visit"] is None and one["replaces"] is None
            )
            place = (
                str(row["allocation_id"]),
                row["subject_key"],
                str(row["schedule_id"]),
                str(row["stratum_id"]),
                row["position"],
                row["randomization_number"],
                str(first),
            )
            context = SealContext(Column.ALLOCATION_BINDING, self.world.study, place)
            arm = arm_of[row["position"]]
            yield from self.flips("allocation", "allocation", "sealed_binding", row, acts)
            for name, binding in self.false_bindings(arm):
                yield Mutation(
                    f"allocation: {name}",
                    set_to("allocation", row, sealed_binding=forge(self.world, context, binding.to_bytes())),
                    acts,
                )
            yield Mutation(
                "allocation: bindings swapped", exchange("allocation", row, other, "sealed_binding"), both_acts
            )
            yield Mutation(
                "allocation: value of a kit's binding",
                set_to("allocation", row, sealed_binding=self.rows("kit_assignment")[at]["sealed_binding"]),
                acts,
            )
            yield Mutation(
                "allocation: subjects swapped",
                exchange("allocation", row, other, "subject_key", "subject_id"),
                both_acts,
            )
            yield Mutation(
                "allocation: subject keys swapped", exchange("allocation", row, other, "subject_key"), both_acts
            )
            yield Mutation("allocation: spellings swapped", exchange("allocation", row, other, "subject_id"), both_acts)
            yield Mutation(
                "allocation: numbers swapped", exchange("allocation", row, other, "randomization_number"), both_acts
            )
            yield Mutation("allocation: slots swapped", exchange("allocation", row, other, "position"), both_acts)
            yield Mutation(
                "allocation: slots and ordinals swapped",
                exchange("allocation", row, other, "position", "ordinal", "randomization_number"),
                both_acts,
            )
            yield Mutation(
                "allocation: all but the subject swapped",
                exchange("allocation", row, other, "position", "ordinal", "randomization_number", "sealed_binding"),
                both_acts,
            )
            yield Mutation(
                "allocation: number changed",
                set_to("allocation", row, randomization_number=row["randomization_number"][::-1]),
                acts,
            )
            yield Mutation("allocation: slot changed", set_to("allocation", row, position=row["position"] + 13), acts)
            yield Mutation("allocation: site changed", set_to("allocation", row, site_code="02"))
            for column, other_value in (
                ("strata_used", '{"sex":"f"}'),
                ("strata_used", "nothing"),
                ("allocated_by", "somebody.else"),
                ("reported_user", "nurse.wang"),
                ("reported_user", None if row["reported_user"] else ""),
            ):
                yield Mutation(f"allocation: {column} changed", set_to("allocation", row, **{column: other_value}))
            yield Mutation(
                "allocation: time changed",
                set_to("allocation", row, allocated_at=row["allocated_at"] + timedelta(hours=1)),
            )
            yield Mutation("allocation: deleted", deletes("allocation", row))

    def false_bindings(self, arm: ArmCode) -> Iterator[tuple[str, Binding]]:
        """Give what a thief of the key, or an older state, may have bound."""
        other, words = self.other_arm(arm), self.world.treatments
        yield "another arm under the own key", Binding(other, words[other])
        yield "another treatment under the own key", Binding(arm, words[other])
        yield "another arm's code under the own key", Binding(other, words[arm])

    def assignments(self) -> Iterator[Mutation]:
        rows = self.rows("kit_assignment")
        code_of = {row["kit_id"]: row["kit_code"] for row in self.rows("kit")}
        arm_of = {row["kit_id"]: self.world.kits[row["kit_code"]].arm_code for row in self.rows("kit")}
        spare = next(row for row in self.rows("kit") if row["status"] == "in_stock")
        for at, row in enumerate(rows):
            subject, arm = self.subject_of(row["subject_key"]), arm_of[row["kit_id"]]
            other = next(one for one in (*rows[at + 1 :], *rows[:at]) if arm_of[one["kit_id"]] != arm)
            acts = breaks(subject)
            both_acts = (*acts, *breaks(self.subject_of(other["subject_key"])))
            place = (str(row["assignment_id"]), row["subject_key"], str(row["kit_id"]), code_of[row["kit_id"]])
            context = SealContext(Column.KIT_BINDING, self.world.study, place)
            yield from self.flips("kit assignment", "kit_assignment", "sealed_binding", row, acts)
            for name, binding in self.false_bindings(arm):
                yield Mutation(
                    f"kit assignment: {name}",
                    set_to("kit_assignment", row, sealed_binding=forge(self.world, context, binding.to_bytes())),
                    acts,
                )
            yield Mutation(
                "kit assignment: bindings swapped", exchange("kit_assignment", row, other, "sealed_binding"), both_acts
            )
            yield Mutation(
                "kit assignment: subjects swapped", exchange("kit_assignment", row, other, "subject_key"), both_acts
            )
            yield Mutation("kit assignment: kits swapped", exchange("kit_assignment", row, other, "kit_id"), both_acts)
            yield Mutation(
                "kit assignment: all but the kit swapped",
                exchange("kit_assignment", row, other, "kit_id", "sealed_binding"),
                both_acts,
            )
            yield Mutation("kit assignment: another kit", set_to("kit_assignment", row, kit_id=spare["kit_id"]), acts)
            yield Mutation(
                "kit assignment: time changed",
                set_to("kit_assignment", row, assigned_at=row["assigned_at"] - timedelta(days=1)),
            )
            yield Mutation("kit assignment: deleted", deletes("kit_assignment", row))

    def arms(self) -> Iterator[Mutation]:
        one, other = self.rows("arm")
        subjects = [row["subject_id"] for row in self.rows("allocation")]
        every: list[Attempt] = [lambda r: r.allocate()]
        every += [breaks_kit(row["kit_code"]) for row in self.rows("kit")[-4:]]
        every += [act for subject in subjects[:4] for act in uses(subject)]
        for one_act in every:
            # Whoever is given a kit is given it under the signed words, whatever the table says; a code break compares the two.
            act = both(one_act, *(breaks_code(subject) for subject in self.one_of_each_arm()))
            yield Mutation("arm: treatments swapped", exchange("arm", one, other, "treatment"), (act,))
            yield Mutation(
                "arm: all words swapped", exchange("arm", one, other, "treatment", "label", "ordinal"), (act,)
            )
            yield Mutation("arm: codes swapped", exchange("arm", one, other, "arm_code"), (act,))
            for row in (one, other):
                text = row["treatment"].replace("therapy", "surgery")
                yield Mutation("arm: a treatment changed", set_to("arm", row, treatment=text), (act,))

    def one_of_each_arm(self) -> list[str]:
        arm_of = {slot.position: slot.arm_code for slot in self.world.slots}
        return list({arm_of[row["position"]]: str(row["subject_id"]) for row in self.rows("allocation")}.values())

    def lists(self) -> Iterator[Mutation]:
        (row,) = self.rows("schedule")
        (stratum,) = self.rows("schedule_stratum")
        place = (str(row["schedule_id"]),)
        specified = SealContext(Column.SPECIFICATION, self.world.study, place)
        seeded = SealContext(Column.SEED, self.world.study, place)
        document = json.loads(self.opened(specified, row["sealed_specification"]))
        secrets = self.opened(seeded, row["sealed_seed"])
        acts: list[Attempt] = [
            lambda r: r.allocate(),
            lambda r: r.break_code_of("01-0001"),
            lambda r: r.prepare("01-0003"),
            lambda r: r.next_kit("01-0002"),
            lambda r: r.look_through(),
        ]
        for one in acts:
            with_act = (one,)
            for column in ("sealed_seed", "sealed_specification"):
                yield from self.flips(f"schedule {column}", "schedule", column, row, with_act)
            words = json.loads(json.dumps(document))
            words["arms"][0]["treatment"], words["arms"][1]["treatment"] = (
                words["arms"][1]["treatment"],
                words["arms"][0]["treatment"],
            )
            sizes = {**document, "block_sizes": [2, 6, 8]}
            for name, changed in (("treatments swapped", words), ("blocks changed", sizes)):
                token = forge(self.world, specified, canonical_json(changed))
                yield Mutation(
                    f"specification: {name} under the own key",
                    set_to("schedule", row, sealed_specification=token),
                    with_act,
                )
            token = forge(self.world, seeded, secrets[:32] + secrets[:32])
            yield Mutation(
                "schedule: salt changed under the own key", set_to("schedule", row, sealed_seed=token), with_act
            )
            for at in range(0, 32, 7):
                root = bytes(byte ^ (index == at) for index, byte in enumerate(stratum["root"]))
                yield Mutation("stratum: root changed", set_to("schedule_stratum", stratum, root=root), with_act)
            yield Mutation(
                "stratum: tree of a kit map",
                set_to("schedule_stratum", stratum, tree_id=self.rows("consignment")[0]["consignment_id"]),
                with_act,
            )
            yield Mutation(
                "schedule: note changed",
                set_to(
                    "schedule", row, commitment_note=row["commitment_note"].replace("list-commitment", "kit-commitment")
                ),
                with_act,
            )
            yield Mutation(
                "schedule: note of a consignment",
                set_to("schedule", row, commitment_note=self.rows("consignment")[0]["commitment_note"]),
                with_act,
            )
            yield Mutation("schedule: note taken away", set_to("schedule", row, commitment_note=None), with_act)
        token = forge(self.world, seeded, secrets[32:] + secrets[32:])
        yield Mutation(
            "schedule: seed changed under the own key",
            set_to("schedule", row, sealed_seed=token),
            (lambda r: r.look_through(),),
        )
        yield Mutation(
            "schedule: commitment changed",
            set_to("schedule", row, commitment=row["commitment"][::-1]),
            (lambda r: r.look_through(),),
        )
        yield Mutation(
            "stratum: fewer slots",
            set_to("schedule_stratum", stratum, slot_count=12),
            (lambda r: r.allocate(), lambda r: r.look_through()),
        )
        for ordinal in (-2, -1, 1):
            yield Mutation(
                "stratum: another first slot",
                set_to("schedule_stratum", stratum, first_ordinal=ordinal),
                (may_use_another_slot,),
            )
        counted = self.rows("stratum")[0]
        for allocated in (ENROLLED + 1, ENROLLED + 3, ENROLLED - 1):
            yield Mutation(
                "stratum: counter changed", set_to("stratum", counted, allocated=allocated), (may_use_another_slot,)
            )
        for tile in self.rows("commitment_tile"):
            mine = tile["tree_id"] == stratum["tree_id"]
            codes = [kit["kit_code"] for kit in self.rows("kit") if kit["consignment_id"] == tile["tree_id"]]
            act: Attempt = breaks_code("01-0001") if mine else breaks_kit((codes or [""])[0])
            for at in range(0, len(tile["hashes"]), 32):
                hashes = bytes(byte ^ (index == at) for index, byte in enumerate(tile["hashes"]))
                yield Mutation("tile changed", set_to("commitment_tile", tile, hashes=hashes), (act,))
            yield Mutation("tile deleted", deletes("commitment_tile", tile), (act,))

    def consignments(self) -> Iterator[Mutation]:
        one, other = self.rows("consignment")[:2]
        for row in self.rows("consignment"):
            codes = [
                kit["kit_code"]
                for kit in self.rows("kit")
                if kit["consignment_id"] == row["consignment_id"] and kit["status"] != "dispensed"
            ]
            acts: tuple[Attempt, ...] = (breaks_kit(codes[-1]),)
            root = bytes([row["map_root"][0] ^ 1]) + row["map_root"][1:]
            yield Mutation("consignment: root changed", set_to("consignment", row, map_root=root), acts)
            yield Mutation(
                "consignment: note changed",
                set_to("consignment", row, commitment_note=row["commitment_note"].replace("kit-", "list-")),
                acts,
            )
            yield Mutation("consignment: code changed", set_to("consignment", row, consignment_code="C7"), acts)
            yield Mutation(
                "consignment: commitment changed", set_to("consignment", row, commitment=row["commitment"][::-1])
            )
            for days in (-1, 400):
                day = row["unusable_from"] + timedelta(days=days)
                yield Mutation("consignment: another last day", set_to("consignment", row, unusable_from=day))
            yield Mutation("consignment: kits fewer", set_to("consignment", row, kit_count=2), acts)
            yield Mutation(
                "consignment: notes swapped", exchange("consignment", one, other, "commitment_note", "map_root"), acts
            )
            yield Mutation("consignment: codes swapped", exchange("consignment", one, other, "consignment_code"), acts)

    def answers(self) -> Iterator[Mutation]:
        """Stored answers of allocations: a replay must give the true one or none."""
        by_time = sorted(
            (row for row in self.rows("stored_answer") if row["sealed_small"]), key=lambda row: row["claimed_at"]
        )
        allocated = {row["allocated_at"]: row["subject_id"] for row in self.rows("allocation")}
        own = [(row, allocated[row["claimed_at"]]) for row in by_time if row["claimed_at"] in allocated]
        assert len(own) >= ENROLLED
        for at, (row, subject) in enumerate(own):
            acts: tuple[Attempt, ...] = (replays(subject),)
            other = own[at - 1][0]
            yield from self.flips("answer", "stored_answer", "sealed_small", row, acts)
            yield Mutation("answer: swapped", exchange("stored_answer", row, other, "sealed_small"), acts)
            yield Mutation("answer: scopes swapped", exchange("stored_answer", row, other, "scope"), acts)
            yield Mutation(
                "answer: moved to the other column",
                set_to("stored_answer", row, sealed_small=None, sealed_large=row["sealed_small"]),
                acts,
            )
            yield Mutation("answer: taken away", set_to("stored_answer", row, sealed_small=None), acts)

    def factors(self) -> Iterator[Mutation]:
        """Second factors: of another person, or changed."""
        monitor = self.world.play.who(Role.MONITOR)
        people = {row["principal_id"]: row["name"] for row in self.rows("principal")}
        own = next(row for row in self.rows("credential") if people[row["principal_id"]] == monitor.username)
        acts: tuple[Attempt, ...] = (
            lambda r: r.step_up(pyotp.TOTP(monitor.totp_secret).at(r.deployment.clock() + timedelta(seconds=0))),
        )
        for row in self.rows("credential"):
            if row["sealed_totp_secret"] and row is not own:
                yield Mutation(
                    "factor: of another person",
                    set_to("credential", own, sealed_totp_secret=row["sealed_totp_secret"]),
                    acts,
                )
        for _ in range(4):
            yield from self.flips("factor", "credential", "sealed_totp_secret", own, acts)

    def restricted(self) -> Iterator[Mutation]:
        rows = self.rows("trail_restricted")
        entries = {row["log_index"]: body_of(row) for row in self.rows("trail_entry")}
        for at, row in enumerate(rows):
            body = entries[row["log_index"]]
            role = (
                Role.SAFETY_OFFICER
                if "code_break" in body["action"] or "safety" in body["action"]
                else Role.STATISTICIAN
            )
            if not body["action"].startswith(("code_break", "safety", "schedule", "consignment")):
                continue
            acts: tuple[Attempt, ...] = (opens_restricted(row["log_index"], role),)
            context = SealContext(Column.RESTRICTED, self.world.study, (row["segment"], row["log_index"]))
            inside = self.opened(context, row["sealed"])
            false = forge(self.world, context, inside[:32] + inside[32:].replace(b"a", b"b"))
            yield from self.flips("restricted part", "trail_restricted", "sealed", row, acts)
            yield Mutation("restricted part: swapped", exchange("trail_restricted", row, rows[at - 1], "sealed"), acts)
            yield Mutation(
                "restricted part: changed under the own key", set_to("trail_restricted", row, sealed=false), acts
            )

    def safety(self) -> Iterator[Mutation]:
        for row in self.rows("safety_unblinding"):
            yield from self.flips("safety", "safety_unblinding", "sealed_subject", row, (check_safety,))

    def keys(self) -> Iterator[Mutation]:
        (study_key,) = self.rows("study_key")
        (signing_key,) = self.rows("signing_key")
        (deployment,) = self.rows("deployment")
        start: tuple[Attempt, ...] = (lambda r: r.start(),)
        for _ in range(4):
            yield Mutation(
                "study key: bit flipped",
                set_to("study_key", study_key, wrapped=flipped(study_key["wrapped"], self.chance)),
                start,
            )
            yield Mutation(
                "signing key: bit flipped",
                set_to("signing_key", signing_key, wrapped=flipped(signing_key["wrapped"], self.chance)),
                start,
            )
            yield Mutation(
                "deployment secret: bit flipped",
                set_to("deployment", deployment, wrapped_secret=flipped(deployment["wrapped_secret"], self.chance)),
                start,
            )
        yield Mutation(
            "study key: the signing key", set_to("study_key", study_key, wrapped=signing_key["wrapped"]), start
        )
        yield Mutation(
            "signing key: the study key", set_to("signing_key", signing_key, wrapped=study_key["wrapped"]), start
        )
        yield Mutation("deployment: another id", set_to("deployment", deployment, deployment_id=uuid4()), start)

    # -- the trail

    def trail(self) -> Iterator[Mutation]:
        entries = self.rows("trail_entry")
        (head,) = self.rows("log")
        reads: tuple[Attempt, ...] = (lambda r: r.read_trail(), lambda r: r.prove(3), lambda r: r.allocate())
        for row in entries:
            yield from self.entry(row, entries[row["log_index"] - 1])
        for node in self.rows("trail_node"):
            changed = bytes([node["hash"][0] ^ 1]) + node["hash"][1:]
            # A node is looked up for proofs only: those of entries below it.
            below = node["node_index"] << node["level"]
            acts: tuple[Attempt, ...] = tuple(
                proves(index) for index in (below ^ (1 << node["level"]),) if index < head["size"]
            )
            yield Mutation("node changed", set_to("trail_node", node, hash=changed), acts, in_trail=True)
        frontier = head["frontier"]
        for at in range(0, len(frontier), 5):
            changed = frontier[:at] + bytes([frontier[at] ^ 1]) + frontier[at + 1 :]
            yield Mutation(
                "head: frontier changed",
                set_to("log", head, frontier=changed),
                (lambda r: r.start(), *reads),
                in_trail=True,
            )
        for size in (head["size"] - 1, head["size"] + 1, head["size"] - 50, 0):
            yield Mutation(
                "head: size changed", set_to("log", head, size=size), (lambda r: r.start(), *reads), in_trail=True
            )
        for at in range(0, 32, 8):
            mac = head["mac"][:at] + bytes([head["mac"][at] ^ 1]) + head["mac"][at + 1 :]
            yield Mutation(
                "head: mac changed", set_to("log", head, mac=mac), (lambda r: r.start(), *reads), in_trail=True
            )
        yield Mutation(
            "head: time changed",
            set_to("log", head, last_at=head["last_at"] + timedelta(hours=1)),
            (lambda r: r.start(), *reads),
            in_trail=True,
        )
        yield Mutation(
            "head: of another log",
            set_to("log", head, origin=head["origin"] + "x"),
            (lambda r: r.start(), *reads),
            in_trail=True,
        )
        yield Mutation("head: deleted", lambda r: r.delete("log", head), (lambda r: r.start(), *reads), in_trail=True)
        last = entries[-1]
        for index in (head["size"], head["size"] + 5):
            row = {**last, "log_index": index}
            yield Mutation("entry: inserted", inserts("trail_entry", row), (goes_on_to(index),), in_trail=True)

    def entry(self, row: Row, other: Row) -> Iterator[Mutation]:
        body = body_of(row)
        edited = canonical_json({**body, "actor": "somebody.else"})
        later = canonical_json({**body, "at": body["at"].replace("2026", "2027")})
        read: tuple[Attempt, ...] = (lambda r: r.read_trail(),)
        prove: tuple[Attempt, ...] = (proves(row["log_index"]),)
        for column, word in (
            ("action", "study:read" if row["action"] != "study:read" else "kit:assign"),
            ("actor", "somebody.else"),
            ("subject_key", "01-0009" if row["subject_key"] != "01-0009" else None),
            ("subject_key", None if row["subject_key"] else ""),
            ("site_code", "02" if row["site_code"] != "02" else "01"),
            ("site_code", None if row["site_code"] else ""),
            ("at", row["at"] + timedelta(minutes=1)),
        ):
            changed_column = set_to("trail_entry", row, **{column: word})
            by_reading = read if row["log_index"] % 2 else ()
            yield Mutation(f"entry: found by another {column}", changed_column, by_reading, in_trail=True)
        chosen = self.chance.randrange(6)
        if chosen == 0:
            yield Mutation("entry: body edited", set_to("trail_entry", row, body=edited), read, in_trail=True)
        elif chosen == 1:
            yield Mutation(
                "entry: body and hash edited",
                set_to("trail_entry", row, body=edited, leaf_hash=leaf_hash(edited)),
                prove,
                in_trail=True,
            )
        elif chosen == 2:
            yield Mutation(
                "entry: time edited with its hash",
                set_to("trail_entry", row, body=later, leaf_hash=leaf_hash(later)),
                in_trail=True,
            )
        elif chosen == 3:
            changed = bytes([row["leaf_hash"][0] ^ 1]) + row["leaf_hash"][1:]
            yield Mutation("entry: hash changed", set_to("trail_entry", row, leaf_hash=changed), read, in_trail=True)
        elif chosen == 4:
            yield Mutation(
                "entry: deleted",
                lambda r: r.delete("trail_entry", row),
                prove if row["log_index"] % 2 else (),
                in_trail=True,
            )
        else:
            yield Mutation(
                "entry: swapped with the one before",
                exchange("trail_entry", row, other, "body", "leaf_hash"),
                in_trail=True,
            )


def may_use_another_slot(rehearsal: Rehearsal) -> None:
    """Allocate where the counter was changed: a slot is never used twice; that one was left out is for the verifier to say."""
    try:
        rehearsal.allocate()
    except AlreadyExists as error:
        raise IntegrityBroken from error
    except AssertionError:
        return


def goes_on_to(index: int) -> Attempt:
    """Go on until the log is as long as a row that somebody put above its end: it is never shown, and stops the log there."""

    def go_on(rehearsal: Rehearsal) -> None:
        shown = len(rehearsal.world.rows["trail_entry"])
        try:
            while True:
                now = rehearsal.read_trail()
                assert now <= shown, "an entry was shown that the log does not hold"
                assert now <= index, "the log went on over a row that it did not write"
                shown = now + 1
        except AlreadyExists as error:
            raise IntegrityBroken from error

    return go_on


def check_safety(rehearsal: Rehearsal) -> None:
    assert rehearsal.read_safety() == ["01-0003"]


# -- trying --------------------------------------------------------------------------------------------------------------


def outcome_of(world: World, mutation: Mutation) -> str:
    """Return how a mutation was found out: ``refused`` or ``named``; or ``undetected``, or what wrong answer was given."""
    with world.rehearsal() as rehearsal:
        mutation.do(rehearsal)
        for act in mutation.acts:
            try:
                act(rehearsal)
            except Unavailable:
                return "refused"
            except SnoseError:
                # Not found, not possible: no answer, but nothing was named either.
                continue
            except AssertionError as error:
                return f"WRONG ANSWER: {error}"
            if rehearsal.deployment.checkpoints.suspicions:
                return "refused"
        try:
            report = rehearsal.verify_trail() if mutation.in_trail else rehearsal.verify()
        except Unavailable:
            return "refused"
        return "undetected" if report.ok else "named"


def try_all(world: World, mutations: Iterator[Mutation]) -> tuple[Counter[str], list[str]]:
    tried: Counter[str] = Counter()
    faults = []
    for mutation in mutations:
        outcome = outcome_of(world, mutation)
        tried[outcome if outcome in {"refused", "named"} else "FAULT"] += 1
        if outcome not in {"refused", "named"}:
            faults.append(f"{mutation.kind}: {outcome}")
    return tried, faults


def sampled(mutations: Iterator[Mutation], most: int) -> Iterator[Mutation]:
    """Give at most so many of each kind, chosen by chance that is the same in every run."""
    kinds: dict[str, list[Mutation]] = {}
    for mutation in mutations:
        kinds.setdefault(mutation.kind, []).append(mutation)
    for kind, found in kinds.items():
        yield from Random(kind).sample(found, min(most, len(found)))


class TestTampering:
    def test_nothing_changed(self, world: World) -> None:
        """Every act works and the verifier finds nothing where nothing was changed: the refusals below are earned."""
        acts: list[Callable[[Rehearsal], Any]] = [
            lambda r: r.start(),
            lambda r: r.allocate(),
            lambda r: r.look_through(),
            lambda r: r.read_trail(),
            lambda r: r.prove(3),
            check_safety,
            *(replays(row["subject_id"]) for row in world.rows["allocation"]),
            *(act for row in world.rows["allocation"] for act in uses(row["subject_id"])),
            *(breaks_kit(row["kit_code"]) for row in world.rows["kit"]),
        ]
        with world.rehearsal() as rehearsal:
            assert rehearsal.verify().findings == []
            assert rehearsal.verify_trail().findings == []
            for act in acts:
                act(rehearsal)
            assert not rehearsal.deployment.checkpoints.suspicions

    def test_every_mutation_is_found_out(self, world: World) -> None:
        """500 mutations on each database: each is refused or named, and none gives another arm. [CUS-10, SEQ-11, T9, T10]"""
        tried, faults = try_all(world, sampled(Mutations(world, Random(20261122)).all(), 5))

        assert Counter(faults) == Counter()
        assert sum(tried.values()) >= 500
        assert tried["refused"] > tried["named"] > 0

    @pytest.mark.long
    @pytest.mark.timeout(0)
    def test_ten_thousand_mutations(self, world: World) -> None:
        """The same with many flips of each value, 5,000 mutations on each database. [CUS-10, SEQ-11, T9, T10]"""
        tried, faults = try_all(world, Mutations(world, Random(1), times=20).all())

        assert Counter(faults) == Counter()
        assert sum(tried.values()) >= 5000
