"""What concurrent clients did and were told, with the times of asking and of hearing, and whether one order explains it all.

    steps = script(study, operations=2000, seed=7)
    history = record(port, steps, clients=32)
    assert violations(history, slots_of(used_slots(service, study))) == []

A list is a counter: each allocation takes the next slot of its stratum. All slots being different and without a gap, the only
order that can explain a history is that of the slots; it does when no allocation was answered before one with a lower slot was
even asked for. So it is with the study's log and the entries in it. A reading must see what was acknowledged, or read by
anybody, before it was asked for, and nothing that was asked for after it was answered.
"""

import itertools
import json
import random
import threading
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from queue import SimpleQueue
from typing import Any, Final, NamedTuple

from tests.reliability.load import Answer, Connection, Outcome
from tests.reliability.service import OpenStudy

NEVER: Final = float("inf")
VISITS_A_DAY: Final = 2
"""Further kits that a subject is given in a script; the service asks for a release past a few (rule B9)."""
_SHOWN: Final = frozenset({200, 201})


class Kind(StrEnum):
    """What a client asks for."""

    ALLOCATE = "allocate"
    ASSIGN = "assign"
    """One more kit."""
    READ = "read"


class Step(NamedTuple):
    """One operation that a client is to do."""

    kind: Kind
    subject: str
    stratum: str
    path: str
    token: str
    content: bytes
    key: str | None = None
    """Of a further kit: the visit, sent as the key too."""


class Operation(NamedTuple):
    """One operation as its client saw it; times are seconds of one monotonic clock."""

    kind: Kind
    subject: str
    stratum: str
    begun: float
    ended: float
    """``NEVER``: no answer came, or one that leaves open whether anything was done."""
    status: int
    number: str | None = None
    kits: tuple[str, ...] = ()
    log_index: int | None = None
    """Where an allocation is entered."""
    key: str | None = None

    def __str__(self) -> str:
        """Tell it in a line."""
        return (
            f"{self.kind} {self.subject} [{self.begun:.6f}, {self.ended:.6f}] {self.status} {self.number} {self.kits}"
        )


class Slot(NamedTuple):
    """Where in which list a randomization number was used, and for whom."""

    stratum: str
    ordinal: int
    subject: str


def slots_of(records: Iterable[Mapping[str, Any]]) -> dict[str, Slot]:
    """Return the used slots by randomization number, of what stands in the lists."""
    return {one["randomization_number"]: Slot(one["site_code"], one["ordinal"], one["subject_id"]) for one in records}


# -- recording -------------------------------------------------------------------------------------------------------


def script(study: OpenStudy, operations: int, seed: int, first: int = 0) -> list[Step]:
    """Return so many operations: a quarter first allocations, a quarter the same again, a tenth more kits, the rest readings.

    They concern the subjects of the last few moments, and now and then the next one, so that they meet in the service.
    Subjects are numbered from ``first``.
    """
    chance = random.Random(seed)
    steps: list[Step] = []
    following, visits = first, Counter[int]()
    while len(steps) < operations:
        recent = max(first, following - 1 - int(chance.expovariate(1 / 12)))
        match chance.choices(("new", "again", "kit", "read"), (25, 25, 10, 40))[0]:
            case "new":
                steps.append(allocation(study, following))
                following += 1
            case "again":
                steps.append(allocation(study, recent))
            case "kit" if visits[recent] < VISITS_A_DAY:
                visits[recent] += 1
                # Some visits twice, side by side: one kit (rule C4).
                steps += [_next_kit(study, recent, f"V{len(steps)}")] * chance.choice((1, 1, 2))
            case _:
                steps.append(reading(study, chance.choice((recent, recent, recent, following))))
    return steps[:operations]


def _subject(number: int) -> str:
    return f"S-{number:05}"


def _site(study: OpenStudy, number: int) -> str:
    return study.sites[number % len(study.sites)]


def allocation(study: OpenStudy, number: int) -> Step:
    """Return the step that allocates a subject, or asks for the same again."""
    content = json.dumps(study.body(_subject(number), number)).encode()
    path = f"/v1/studies/{study.code}/allocations"
    return Step(Kind.ALLOCATE, _subject(number), _site(study, number), path, study.token, content)


def _next_kit(study: OpenStudy, number: int, visit: str) -> Step:
    path = f"/v1/studies/{study.code}/subjects/{_subject(number)}/kits"
    return Step(
        Kind.ASSIGN,
        _subject(number),
        _site(study, number),
        path,
        study.token,
        b'{"visit": "%s"}' % visit.encode(),
        visit,
    )


def reading(study: OpenStudy, number: int) -> Step:
    """Return the step that reads a subject's allocation."""
    path = f"/v1/studies/{study.code}/subjects/{_subject(number)}/allocation"
    return Step(Kind.READ, _subject(number), _site(study, number), path, study.token, b"")


def record(port: int, steps: Iterable[Step], clients: int) -> list[Operation]:
    """Have so many clients do the steps, each the next one that is waiting, and return what each saw.

    Fails on an answer that no client should get: this is a service that nobody disturbs.
    """
    waiting: SimpleQueue[Step | None] = SimpleQueue()
    for step in (*steps, *[None] * clients):
        waiting.put(step)
    histories: list[list[Operation]] = [[] for _ in range(clients)]
    failures: list[Exception] = []

    def work(history: list[Operation]) -> None:
        connection = Connection(port)
        try:
            while (step := waiting.get()) is not None:
                history.append(_do(connection, step))
        except (OSError, AssertionError, KeyError, ValueError) as error:
            failures.append(error)
        finally:
            connection.close()

    threads = [threading.Thread(target=work, args=(history,)) for history in histories]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    return [operation for history in histories for operation in history]


def _do(connection: Connection, step: Step) -> Operation:
    if step.kind is Kind.READ:
        return seen(step, connection.get(step.path, step.token))
    return seen(step, connection.post(step.path, step.token, step.content, step.key))


def seen(step: Step, answer: Answer) -> Operation:
    """Return the operation that an answer tells of."""
    kind, subject, stratum, begun, ended = (
        step.kind,
        step.subject,
        step.stratum,
        answer.begun,
        answer.begun + answer.seconds,
    )
    body = json.loads(answer.body)
    if answer.status in _SHOWN:
        number = body.get("randomization_number")
        kits = tuple(body["current_kit_codes"]) if kind is Kind.READ else (body["kit_code"],)
        # A further kit comes without a receipt.
        index = body["receipt"]["log_index"] if answer.status == 201 and kind is Kind.ALLOCATE else None
        return Operation(kind, subject, stratum, begun, ended, answer.status, number, kits, index, step.key)
    # Of one that is not allocated yet there is nothing to read, and no kit to give; the checker knows whether it was.
    if answer.status == 404:
        return Operation(kind, subject, stratum, begun, ended, 404, key=step.key)
    assert answer.status == 503 or body["code"] == "in_progress", (kind, answer.status, body)
    return Operation(kind, subject, stratum, begun, NEVER, answer.status, key=step.key)


def of_outcome(outcome: Outcome, study: OpenStudy) -> list[Operation]:
    """Return the history of a run of allocations."""
    sites = {request.subject: json.loads(request.content)["site_code"] for request, _ in outcome.answers}
    return [
        seen(Step(Kind.ALLOCATE, request.subject, sites[request.subject], "", "", b""), answer)
        for request, answer in outcome.answers
    ]


def count(history: Sequence[Operation]) -> dict[str, int]:
    """Return how many operations of which sort a history has."""
    sorts = Counter(
        "unanswered"
        if operation.ended == NEVER
        else "not_there_yet"
        if operation.status == 404
        else {
            (Kind.ALLOCATE, 201): "allocations",
            (Kind.ALLOCATE, 200): "replays",
            (Kind.ASSIGN, 201): "kits",
            (Kind.ASSIGN, 200): "replays",
        }.get((operation.kind, operation.status), "readings")
        for operation in history
    )
    return {"operations": len(history), **sorts}


# -- checking --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Subject:
    """All operations about one subject."""

    name: str
    operations: Sequence[Operation]

    @cached_property
    def begun(self) -> float:
        """Before this its allocation cannot have happened."""
        return min((one.begun for one in _creators(self.operations, Kind.ALLOCATE)), default=NEVER)

    @cached_property
    def ended(self) -> float:
        """At this moment somebody had seen its allocation."""
        return min((one.ended for one in self.operations if one.status in _SHOWN), default=NEVER)

    @cached_property
    def kits(self) -> Mapping[str, tuple[float, float]]:
        """Each kit that anybody saw: before when it cannot have been given, and when it had been seen."""
        by_key = defaultdict(list)
        for one in self.operations:
            if one.kind is Kind.ASSIGN:
                by_key[one.key].append(one)
        given = {}
        for acts in by_key.values():
            for code in {code for one in acts for code in one.kits}:
                given[code] = min((one.begun for one in _creators(acts, Kind.ASSIGN)), default=NEVER)
        for code in {code for one in self.operations if one.kind is Kind.ALLOCATE for code in one.kits}:
            given[code] = self.begun
        # Whose answer was lost may have given any kit that nobody was told of.
        lost = min(
            (one.begun for one in self.operations if one.kind is not Kind.READ and one.ended == NEVER), default=NEVER
        )
        seen_at: dict[str, float] = defaultdict(lambda: NEVER)
        for one in self.operations:
            for code in one.kits:
                seen_at[code] = min(seen_at[code], one.ended)
        return {code: (given.get(code, lost), ended) for code, ended in seen_at.items()}


def _creators(operations: Iterable[Operation], kind: Kind) -> Sequence[Operation]:
    """Return the one of several requests for the same that did it, or all that may have."""
    same = [one for one in operations if one.kind is kind]
    return [one for one in same if one.status == 201] or [one for one in same if one.ended == NEVER]


def violations(history: Sequence[Operation], slots: Mapping[str, Slot]) -> list[str]:
    """Return everything about a history that no right service could have said; ``slots`` are those used in the end."""
    by_subject: dict[str, list[Operation]] = defaultdict(list)
    for operation in history:
        by_subject[operation.subject].append(operation)
    subjects = {name: Subject(name, operations) for name, operations in by_subject.items()}
    return [
        *_acts_done_twice(subjects.values()),
        *_shared(subjects.values()),
        *_wrong_slots(subjects, slots),
        *_slots_out_of_order(subjects, slots),
        *_entries_out_of_order(history, subjects),
        *itertools.chain.from_iterable(map(_wrong_readings, subjects.values())),
    ]


def _acts_done_twice(subjects: Iterable[Subject]) -> Iterator[str]:
    """One number for a subject, one kit for a key, and one answer that says "created" to each."""
    for subject in subjects:
        numbers = {one.number for one in subject.operations if one.number is not None}
        if len(numbers) > 1:
            yield f"{subject.name} has the numbers {sorted(numbers)}"
        acts = defaultdict(list)
        for one in subject.operations:
            if one.kind is not Kind.READ:
                acts[one.kind, one.key].append(one)
        for (kind, key), same in acts.items():
            created = sum(one.status == 201 for one in same)
            lost = any(one.ended == NEVER for one in same)
            shown = any(one.status in _SHOWN for one in same)
            if created > 1 or (shown and created == 0 and not lost):
                yield f"{kind} {subject.name} {key or ''} was created {created} times"
            if len({one.kits for one in same if one.status in _SHOWN}) > 1:
                yield f"{kind} {subject.name} {key or ''} was answered differently"


def _shared(subjects: Iterable[Subject]) -> Iterator[str]:
    """No number and no kit belongs to two subjects."""
    owners: dict[str, set[str]] = defaultdict(set)
    for subject in subjects:
        for one in subject.operations:
            for thing in (one.number, *one.kits):
                if thing is not None:
                    owners[thing].add(subject.name)
    for thing, names in owners.items():
        if len(names) > 1:
            yield f"{thing} belongs to {sorted(names)}"


def _wrong_slots(subjects: Mapping[str, Subject], slots: Mapping[str, Slot]) -> Iterator[str]:
    """What was acknowledged stands in the list; what stands there was asked for; no slot twice, none left out."""
    for subject in subjects.values():
        for one in subject.operations:
            if one.number is not None and slots.get(one.number, Slot("", 0, ""))[::2] != (one.stratum, subject.name):
                yield f"{one.number} of {subject.name} has no slot of {one.stratum}: {slots.get(one.number)}"
    used = defaultdict(list)
    for number, slot in slots.items():
        used[slot.stratum].append(slot.ordinal)
        if slot.subject not in subjects or subjects[slot.subject].begun == NEVER:
            yield f"{number} was used for {slot.subject}, whom nobody asked for"
    for stratum, ordinals in used.items():
        if sorted(ordinals) != list(range(len(ordinals))):
            yield f"the slots of {stratum} are {sorted(ordinals)}"


def _slots_out_of_order(subjects: Mapping[str, Subject], slots: Mapping[str, Slot]) -> Iterator[str]:
    counters = defaultdict(list)
    for slot in slots.values():
        if (subject := subjects.get(slot.subject)) is not None:
            counters[slot.stratum].append((slot.ordinal, subject.begun, subject.ended, subject.name))
    for stratum, taken in counters.items():
        yield from _out_of_order(f"slot of {stratum}", taken)


def _entries_out_of_order(history: Sequence[Operation], subjects: Mapping[str, Subject]) -> Iterator[str]:
    taken = [
        (one.log_index, one.begun, subjects[one.subject].ended, one.subject)
        for one in history
        if one.log_index is not None
    ]
    indexes = Counter(index for index, *_ in taken)
    yield from (f"{times} allocations are entered at {index}" for index, times in indexes.items() if times > 1)
    yield from _out_of_order("entry", taken)


def _out_of_order(what: str, taken: Iterable[tuple[int, float, float, str]]) -> Iterator[str]:
    """From the highest value down: whoever was begun after a higher value had been seen should have got one above it."""
    earliest, by = NEVER, ""
    for value, begun, ended, name in sorted(taken, reverse=True):
        if begun > earliest:
            yield f"{what} {value} was taken by {name} from {begun:.6f} on, when {by} was known since {earliest:.6f}"
        if ended < earliest:
            earliest, by = ended, f"{value} of {name}"


def _wrong_readings(subject: Subject) -> Iterator[str]:
    for one in subject.operations:
        if one.status == 404 and one.begun > subject.ended:
            yield f"stale: {one}, seen at {subject.ended:.6f}"
        if one.status == 200 and one.ended < subject.begun:
            yield f"told before it was asked for: {one}, {subject.begun:.6f}"
        if one.kind is not Kind.READ or one.status != 200:
            continue
        for code, (begun, ended) in subject.kits.items():
            if one.begun > ended and code not in one.kits:
                yield f"stale: {one} without {code}, seen at {ended:.6f}"
            if one.ended < begun and code in one.kits:
                yield f"told before it was asked for: {one} with {code}, {begun:.6f}"
