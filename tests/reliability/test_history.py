"""The checker of histories finds what it is there to find, and the service's histories hold nothing of it."""

import random
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import combinations

import psycopg
import pytest
from psycopg import sql

from tests.reliability import builds, history
from tests.reliability.conftest import Ground
from tests.reliability.history import NEVER, Kind, Operation, Slot
from tests.reliability.records import check_records, used_slots
from tests.reliability.service import SITES, OpenStudy
from tests.reliability.tally import Tally

Told = tuple[list[Operation], dict[str, Slot]]
STRATA = ("01", "02")
STRATA_OF_SERVICE = SITES[:4]
CLIENTS = 32


def told(seed: int, operations: int = 400) -> Told:
    """What clients of a right service are told: each operation happens at one moment between asking and hearing."""
    chance = random.Random(seed)
    kits: dict[str, list[str]] = {}
    slots: dict[str, Slot] = {}
    used, entries, by_key = Counter[str](), 0, dict[str, str]()
    done = []
    for moment in range(operations):
        kind = chance.choice(list(Kind))
        subject = f"S{chance.randrange(operations // 4)}"
        stratum = STRATA[int(subject[1:]) % 2]
        begun, ended = moment - chance.expovariate(0.3), moment + chance.expovariate(0.3)
        key = f"{subject}-{chance.randrange(2)}" if kind is Kind.ASSIGN else None
        status, index, number, shown = 200, None, f"R{subject}", tuple(kits.get(subject, ()))
        if kind is not Kind.ALLOCATE and subject not in kits:
            done.append(Operation(kind, subject, stratum, begun, ended, 404, key=key))
            continue
        if kind is Kind.ALLOCATE:
            if subject not in kits:
                status, kits[subject] = 201, [f"K{moment}"]
                slots[number] = Slot(stratum, used[stratum], subject)
                used[stratum] += 1
            shown = (kits[subject][0],)
        if kind is Kind.ASSIGN:
            assert key is not None
            if key not in by_key:
                status, by_key[key] = 201, f"K{moment}"
                kits[subject].append(by_key[key])
            shown = (by_key[key],)
        if status == 201 and kind is Kind.ALLOCATE:
            index, entries = entries, entries + 1
        if kind is not Kind.READ and chance.random() < 0.05:
            # The answer was lost on its way.
            done.append(Operation(kind, subject, stratum, begun, NEVER, 0, key=key))
            continue
        told_number = None if kind is Kind.ASSIGN else number
        done.append(Operation(kind, subject, stratum, begun, ended, status, told_number, shown, index, key))
    return done, slots


def created(operations: Sequence[Operation], kind: Kind = Kind.ALLOCATE) -> list[int]:
    return [place for place, one in enumerate(operations) if one.kind is kind and one.status == 201]


def one_after_the_other(operations: Sequence[Operation], slots: dict[str, Slot]) -> tuple[int, int]:
    """Two allocations of one stratum, the second begun when the first was answered; nobody else knows of either before."""
    return next(
        (first, second)
        for first, second in combinations(sorted(created(operations), key=lambda place: operations[place].begun), 2)
        if operations[first].stratum == operations[second].stratum
        and operations[first].ended < operations[second].begun
    )


def swapped(operations: list[Operation], slots: dict[str, Slot]) -> None:
    """The later of two got the lower slot."""
    first, second = (operations[place].number or "" for place in one_after_the_other(operations, slots))
    slots[first], slots[second] = (
        slots[first]._replace(ordinal=slots[second].ordinal),
        slots[second]._replace(ordinal=slots[first].ordinal),
    )


def entered_out_of_order(operations: list[Operation], slots: dict[str, Slot]) -> None:
    """The later of two stands before the other in the trail."""
    first, second = one_after_the_other(operations, slots)
    one, other = operations[first], operations[second]
    operations[first] = one._replace(log_index=other.log_index)
    operations[second] = other._replace(log_index=one.log_index)


def one_slot_for_two(operations: list[Operation], slots: dict[str, Slot]) -> None:
    """Two numbers stand for one slot."""
    first, second = (operations[place].number or "" for place in one_after_the_other(operations, slots))
    slots[second] = slots[second]._replace(ordinal=slots[first].ordinal)


def one_number_for_two(operations: list[Operation], slots: dict[str, Slot]) -> None:
    """Two subjects were told one number."""
    first, second = one_after_the_other(operations, slots)
    operations[second] = operations[second]._replace(number=operations[first].number)


def one_kit_for_two(operations: list[Operation], slots: dict[str, Slot]) -> None:
    """Two subjects were told one kit."""
    first, second = one_after_the_other(operations, slots)
    operations[second] = operations[second]._replace(kits=operations[first].kits)


def gap(operations: list[Operation], slots: dict[str, Slot]) -> None:
    """A slot was left out."""
    for number, slot in slots.items():
        if slot.stratum == "01" and slot.ordinal >= 3:
            slots[number] = slot._replace(ordinal=slot.ordinal + 1)


def lost(operations: list[Operation], slots: dict[str, Slot]) -> None:
    """Somebody was told a number that is not in the list."""
    number = operations[created(operations)[-1]].number or ""
    del slots[number]


def unasked(operations: list[Operation], slots: dict[str, Slot]) -> None:
    """A slot was used for nobody."""
    slots["RX"] = Slot("01", sum(slot.stratum == "01" for slot in slots.values()), "X")


def done_twice(operations: list[Operation], slots: dict[str, Slot]) -> None:
    """A repeated request was told that it created the allocation."""
    place = created(operations)[0]
    operations.append(operations[place])


def replayed_otherwise(operations: list[Operation], slots: dict[str, Slot]) -> None:
    """A repeated request was answered with another kit."""
    one = operations[created(operations)[0]]
    operations.append(one._replace(status=200, kits=("KX",), log_index=None))


def key_used_twice(operations: list[Operation], slots: dict[str, Slot]) -> None:
    """One key gave two kits."""
    one = operations[created(operations, Kind.ASSIGN)[0]]
    operations.append(one._replace(kits=("KX",)))


def stale(operations: list[Operation], slots: dict[str, Slot]) -> None:
    """Nothing is read of somebody whose allocation was acknowledged before."""
    one = operations[created(operations)[0]]
    operations.append(Operation(Kind.READ, one.subject, one.stratum, one.ended + 1, one.ended + 2, 404))


def stale_kits(operations: list[Operation], slots: dict[str, Slot]) -> None:
    """A kit that was acknowledged before is not read."""
    one = operations[created(operations, Kind.ASSIGN)[0]]
    first = next(
        other.kits
        for other in operations
        if other.subject == one.subject and other.kind is Kind.ALLOCATE and other.kits
    )
    begun = max(other.ended for other in operations if other.ended < NEVER) + 1
    operations.append(Operation(Kind.READ, one.subject, one.stratum, begun, begun + 1, 200, f"R{one.subject}", first))


def backwards(operations: list[Operation], slots: dict[str, Slot]) -> None:
    """One reading saw a kit, the next one, begun later, did not: although nobody has heard the answer that gave it."""
    place = created(operations, Kind.ASSIGN)[0]
    one = operations[place]
    operations[place] = one._replace(ended=NEVER, status=0, kits=())
    stay = [other for other in operations if other.subject == one.subject and one.kits[0] not in other.kits]
    operations[:] = [other for other in operations if other.subject != one.subject] + stay
    first = next(other.kits for other in stay if other.kind is Kind.ALLOCATE and other.kits)
    number, begun = f"R{one.subject}", max(other.ended for other in operations if other.ended < NEVER) + 1
    given = {kit for other in stay for kit in other.kits}
    rest = tuple(sorted(given - set(first)))
    shown = Operation(Kind.READ, one.subject, one.stratum, begun, begun + 1, 200, number, (*first, *rest, one.kits[0]))
    operations += [shown, shown._replace(begun=begun + 2, ended=begun + 3, kits=(*first, *rest))]


def from_the_future(operations: list[Operation], slots: dict[str, Slot]) -> None:
    """An allocation was read before anybody had asked for it."""
    one = operations[created(operations)[0]]
    begun = min(other.begun for other in operations) - 2
    operations.append(Operation(Kind.READ, one.subject, one.stratum, begun, begun + 1, 200, one.number, one.kits))


def kit_from_nowhere(operations: list[Operation], slots: dict[str, Slot]) -> None:
    """A kit is read that nobody was ever given, nor can have been."""
    asked = {one.subject for one in operations if one.ended == NEVER}
    one = next(operations[place] for place in created(operations) if operations[place].subject not in asked)
    begun = max(other.ended for other in operations if other.ended < NEVER) + 1
    kits = {kit for other in operations if other.subject == one.subject for kit in other.kits} | {"KX"}
    operations.append(Operation(Kind.READ, one.subject, one.stratum, begun, begun + 1, 200, one.number, tuple(kits)))


PLANTED: dict[Callable[[list[Operation], dict[str, Slot]], None], str] = {
    swapped: "slot of",
    entered_out_of_order: "entry",
    one_slot_for_two: "the slots of",
    one_number_for_two: "belongs to",
    one_kit_for_two: "belongs to",
    gap: "the slots of",
    lost: "has no slot of",
    unasked: "whom nobody asked for",
    done_twice: "was created 2 times",
    replayed_otherwise: "was answered differently",
    key_used_twice: "was created 2 times",
    stale: "stale",
    stale_kits: "stale",
    backwards: "stale",
    from_the_future: "told before",
    kit_from_nowhere: "told before",
}


@pytest.mark.parametrize("seed", range(20))
def test_right_history_is_accepted(seed: int) -> None:
    """Clients overlap, answers are lost, and nothing is wrong with it [T15]"""
    operations, slots = told(seed)
    random.Random(seed).shuffle(operations)
    assert len(slots) > 40
    assert history.violations(operations, slots) == []


@pytest.mark.parametrize("plant", PLANTED, ids=lambda plant: plant.__name__)
def test_planted_violation_is_found(plant: Callable[[list[Operation], dict[str, Slot]], None]) -> None:
    """The only thing wrong with a history is found, and named [T15]"""
    for seed in range(5):
        operations, slots = told(seed)
        plant(operations, slots)
        found = history.violations(operations, slots)
        assert any(PLANTED[plant] in violation for violation in found), found


# -- the service's own histories -------------------------------------------------------------------------------------


def open_study(ground: Ground, operations: int) -> OpenStudy:
    """A study of four sites with room and kits for a script of so many operations."""
    at_site = operations // 4 // len(STRATA_OF_SERVICE) + 60
    # Kits for a site where one arm leads, two in three subjects with one more, beside the floor.
    return ground.sponsor.open_study("HISTORY", STRATA_OF_SERVICE, at_site, at_site * 5 // 6 + 40)


@pytest.mark.long
@pytest.mark.timeout(0)
@pytest.mark.parametrize(("database_kind", "operations"), [("postgresql", 5000), ("sqlite", 3000)])
def test_one_order_explains_what_concurrent_clients_saw(
    ground: Ground, operations: int, round_seed: int, tally: Tally
) -> None:
    """First allocations, repeated ones, further kits and readings, by 16 clients for each of two workers [C4, C5; T15, G5]

    The push form is in test_load.py.
    """
    study = open_study(ground, operations)
    told = history.record(ground.service.port, history.script(study, operations, round_seed), CLIENTS)
    records = check_records(ground.service, study, ground.folder)
    assert history.violations(told, history.slots_of(records.values())) == []
    tally(**history.count(told))


@pytest.mark.long
@pytest.mark.timeout(0)
@pytest.mark.parametrize("database_kind", ["postgresql", "sqlite"])
@pytest.mark.parametrize(("build", "finding"), [("kept slots", "slot of"), ("stale readings", "stale")])
def test_broken_build_is_found(ground: Ground, build: str, finding: str, round_seed: int) -> None:
    """Slots handed out from a cache, and readings from a cache, are found by the same script [control of T15]"""
    study = open_study(ground, 1000)
    ground.service.stop()
    ground.service.start(builds.chosen(ground.folder, build))
    told = history.record(ground.service.port, history.script(study, 600, round_seed), CLIENTS)
    found = history.violations(told, history.slots_of(used_slots(ground.service, study)))
    assert any(violation.startswith(finding) for violation in found), found


@pytest.mark.long
@pytest.mark.timeout(0)
@pytest.mark.parametrize("database_kind", ["postgresql"])
def test_build_without_claims_and_constraint_is_found(ground: Ground) -> None:
    """A repeated request that is a second act, once the last line of defence is taken away too, is found [C4; control of T15]"""
    study = open_study(ground, 400)
    ground.service.stop()
    with psycopg.connect(ground.service.url, autocommit=True) as connection:
        (name,) = connection.execute(
            "SELECT conname FROM pg_constraint WHERE conrelid = 'allocation'::regclass"
            " AND pg_get_constraintdef(oid) = 'UNIQUE (study_id, subject_key)'"
        ).fetchone() or ("",)
        connection.execute(sql.SQL("ALTER TABLE allocation DROP CONSTRAINT {}").format(sql.Identifier(name)))
    ground.service.start(builds.chosen(ground.folder, "unclaimed subjects"))
    steps = [history.allocation(study, number) for number in range(40) for _ in range(2)]
    found = history.violations(
        history.record(ground.service.port, steps, CLIENTS), history.slots_of(used_slots(ground.service, study))
    )
    assert any("was created 2 times" in violation for violation in found), found
    assert any("has the numbers" in violation for violation in found), found
