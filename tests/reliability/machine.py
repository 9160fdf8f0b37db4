"""Whole trials played step by step against the service and the model beside it, each step as chance has it (T23).

Every rule can be tried at any moment: what is picked is picked by number among what there is, and where there is nothing the
request is made about something unknown. So what the service does never decides what hypothesis draws.

After each step the stock of a site or a subject is read and compared; at the end everything: every answer that can be read,
every row, the trail by the offline verifier.
"""

import copy
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta
from threading import Barrier, BrokenBarrierError, get_ident
from typing import Any, ClassVar, Final, TypeVar
from unittest.mock import patch
from zoneinfo import ZoneInfo

from httpx2 import Response
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test
from sqlalchemy import Table, select

from app.domain.words import StudyCode
from app.services import audited, keys
from app.storage import database, tables
from app.storage.database import CommitUncertain, Transaction
from app.verifier import verify_trail
from tests.harness import STUDY, STUDY_BODY, Caller, House, Json, drill, expect
from tests.memory import remembered
from tests.reliability.model import MAY, Divergence, Enrolment, Expected, Model, Person, Segment, Slot, same
from tests.running_study import S
from tests.security.truth import open_kits, open_slots

T = TypeVar("T")
Houses = Callable[[], AbstractContextManager[House]]
"""Gives a new house each time."""
Plant = Callable[[House], AbstractContextManager[object]]
"""Makes the build that a house runs a faulty one."""

STEPS_OF_A_TRIAL: Final = 50
FLOOR: Final = 2
ZONES: Final = {"01": "Asia/Shanghai", "02": "America/Los_Angeles"}
LEVELS: Final = ("F", "M")
ARMS: Final = tuple(arm["arm_code"] for arm in STUDY_BODY["arms"])
STAFF: Final[Mapping[str, tuple[str, str | None]]] = {
    "doctor": ("investigator", "01"),
    "assistant": ("investigator", "01"),
    "nurse": ("coordinator", "01"),
    "pharmacist": ("pharmacist", "01"),
    "colleague": ("investigator", "02"),
    "locum": ("investigator", "02"),
    "druggist": ("pharmacist", "02"),
    "edc": ("edc_client", None),
    "supply_manager": ("supply_manager", None),
    "statistician": ("statistician", None),
    "list_approver": ("list_approver", None),
    "study_admin": ("study_admin", None),
}
"""Who asks, and as what."""
PASSING: Final = ("doctor", "nurse", "pharmacist", "colleague", "locum", "druggist", "edc", "supply_manager")
"""Whose roles come and go."""
UNKNOWN_KIT: Final = "K7XQ4M2PF"
REASONS: Final = ("damaged", "lost", "temperature_excursion", "expired", "other")
SUBJECTS: Final = 14
MOST: Final = {"rotations": 2, "restarts": 3, "extensions": 4}
"""How often a trial does what takes much longer than a request."""
NUMBERS: Final = st.integers(0, 999)


def honest(_house: House) -> AbstractContextManager[object]:
    """Plant nothing."""
    return nullcontext()


@dataclass(frozen=True)
class Stage:
    """Where trials are played, and in which build, once they have begun."""

    houses: Houses
    plant: Plant = honest


@dataclass(frozen=True)
class Start:
    """A trial that has begun: who is there, and the model of it."""

    callers: Mapping[str, Caller]
    model: Model
    schedule_id: str
    entries: int
    """How many entries the study's log had then."""


def begun(house: House) -> Start:
    """Return a trial under way: site 01 is active with two consignments, site 02 waits, each stratum has four slots."""
    return remembered(house, "model", lambda: _begin(house))


def _begin(house: House) -> Start:
    levels = [{"level_code": level, "label": level} for level in LEVELS]
    house.register_study(
        sites=("01",), stock_floor=FLOOR, factors=[{"factor_code": "SEX", "label": "Sex", "levels": levels}]
    )
    admin = house.study_admins[STUDY]
    site = {"site_code": "02", "name": "Hospital 02", "timezone": ZONES["02"]}
    expect(admin.post(f"{S}/sites", json=site), 201)
    callers: dict[str, Caller] = {"study_admin": admin}
    people: dict[str, Person] = {"admin": Person({("service_admin", None): ""}, {"service_admin"})}
    for who, (role, at) in STAFF.items():
        if who not in callers:
            callers[who] = house.machine(role) if who == "edc" else house.person(role, site=at)
        people[who] = Person({(role, at): callers[who].grant_ids[0]}, {role})
    for who, role, at in (
        ("monitor", "monitor", None),
        ("inspector", "inspector", None),
        ("clerk of 01", "pharmacist", "01"),
        ("clerk of 02", "pharmacist", "02"),
    ):
        callers[who] = house.person(role, site=at)
    body = {"block_sizes": [2, 4], "length_per_stratum": 4, "fill": "exact"}
    made = expect(callers["statistician"].post(f"{S}/schedules", json=body, step_up=True), 201)
    schedule = f"{S}/schedules/{made['schedule_id']}"
    approval = {"commitment": made["commitment"], "meaning": "approval"}
    expect(callers["list_approver"].post(f"{schedule}/approval", json=approval, step_up=True), 200)
    expect(admin.post(f"{schedule}/activation", step_up=True), 200)
    treatments = {arm["arm_code"]: arm["treatment"] for arm in STUDY_BODY["arms"]}
    model = Model(ZONES, treatments, FLOOR, people, active={"01"})
    model.segments[made["schedule_id"]] = Segment(true_slots(house)[made["schedule_id"]], "active")
    for level in LEVELS:
        model.slots[level] = [*model.segments[made["schedule_id"]].slots[level]]
    for code, per_arm, day in (("C1", 4, date(2026, 11, 25)), ("C2", 3, date(2026, 12, 8))):
        _stock(house, callers, model, code, per_arm, day)
    for place, able in (("01", ("doctor", "assistant")), ("02", ("colleague", "locum"))):
        drill(*(callers[one] for one in able), site=place)
        model.drilled[place] = {*able}
    expect(admin.post(f"{S}/sites/01/activation", step_up=True), 200)
    expect(admin.post(f"{S}/status", json={"status": "open", "reason": "Ready."}, step_up=True), 200)
    return Start(callers, model, made["schedule_id"], len(house.trail(STUDY)))


def _stock(house: House, callers: Mapping[str, Caller], model: Model, code: str, per_arm: int, day: date) -> None:
    supply, now = callers["supply_manager"], house.clock.now
    expect(supply.post(f"{S}/consignments", json=consignment(code, per_arm, day), step_up=True), 201)
    model.create("supply_manager", now, code, day, per_arm * len(ARMS)).take(None)
    model.fill(code, true_kits(house, code))
    kits = list(model.consignments[code].kits)
    expect(supply.post(f"{S}/consignments/{code}/dispatch", json={"site_code": "01"}), 200)
    expect(callers["pharmacist"].post(f"{S}/consignments/{code}/receipt", json={"received": kits}), 200)
    model.dispatch("supply_manager", now, code, "01").take(None)
    model.receive("pharmacist", now, code, kits, []).take(None)


def consignment(code: str, per_arm: int, day: date) -> Json:
    """Return the body that makes a consignment: so many kits of each arm, which all expire on one day."""
    kits = [{"arm_code": arm, "lot": f"L-{arm}", "expires_on": day.isoformat(), "count": per_arm} for arm in ARMS]
    return {"consignment_code": code, "kits": kits}


# -- the truth, opened -------------------------------------------------------------------------------------------------


def true_kits(house: House, code: str) -> dict[str, str]:
    """Return the arm of each kit of a consignment."""
    opened = open_kits(house.deployment, StudyCode(STUDY))
    return {kit.kit_code: kit.arm_code for kit in opened.values() if kit.consignment_code == code}


def true_slots(house: House) -> dict[str, dict[str, list[Slot]]]:
    """Return what every segment really holds for each stratum, in order."""
    of = tables.stratum.c
    with house.deployment.database.transaction() as tx:
        codes = {row.stratum_id: row.stratum_code for row in tx.execute(select(of.stratum_id, of.stratum_code))}
    found: dict[str, dict[str, list[Slot]]] = {}
    for slot in open_slots(house.deployment, StudyCode(STUDY)):
        level = codes[slot.stratum_id].removeprefix("SEX=")
        strata = found.setdefault(str(slot.schedule_id), {})
        strata.setdefault(level, []).append(Slot(slot.randomization_number, slot.arm_code))
    return found


# -- one request -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ask:
    """A request, and what the model says to it."""

    who: str
    path: str
    predict: Callable[[Model, datetime], Expected]
    json: Json = None
    is_elevated: bool = False
    key: str | None = None
    method: str = "POST"
    is_heard: bool = False
    """Whether the model needs the answer to know what was made, so that its COMMIT does not go unheard."""

    def __str__(self) -> str:
        return f"{self.who}: {self.method} {self.path} {self.json}"


@dataclass
class Unheard:
    """One COMMIT of which nobody learns how it went (rule C6): it was done, or it was not."""

    is_committed: bool
    is_spent: bool = False
    inside: int | None = None
    """The thread that is in the act."""

    @contextmanager
    def of_the_next_act(self) -> Iterator[None]:
        """Let the first COMMIT of an act's own transaction go unheard; those of what is entered apart are heard."""
        attempt, commit = audited._Door._attempt, database._commit

        def attempted(door: Any, work: Any) -> Any:  # noqa: ANN401  # as they are
            self.inside = get_ident()
            try:
                return attempt(door, work)
            finally:
                self.inside = None

        def committed(tx: Transaction) -> None:
            if self.inside != get_ident() or self.is_spent:
                commit(tx)
                return
            self.is_spent = True
            if self.is_committed:
                commit(tx)
            raise CommitUncertain

        with patch.object(audited._Door, "_attempt", attempted), patch.object(database, "_commit", committed):
            yield


class Meeting:
    """Where two who were sent at the same time wait for each other, once: only a faulty build comes here."""

    def __init__(self) -> None:
        self._barrier: Barrier | None = None

    @contextmanager
    def of_two(self) -> Iterator[None]:
        """Let those who come meanwhile meet."""
        self._barrier = Barrier(2)
        try:
            yield
        finally:
            self._barrier = None

    def wait(self) -> None:
        """Return when the other one has come, or will not come any more; at once when nobody is to be met."""
        barrier, patience = self._barrier, 2.0
        if barrier is not None:
            with suppress(BrokenBarrierError):
                barrier.wait(patience)
            self._barrier = None


MEETING: Final = Meeting()


class Trial(RuleBasedStateMachine):
    """A trial, its people, and the model of it."""

    stage: ClassVar[Stage]
    played: ClassVar[Counter[str]] = Counter()
    """How many trials and requests there were, and how often each answer came."""

    def __init__(self) -> None:
        super().__init__()
        self._stack = ExitStack()
        self.house = self._stack.enter_context(self.stage.houses())
        start = begun(self.house)
        self.callers = {**start.callers, "admin": self.house.admin}
        self.model: Model = start.model
        self.first_list, self.first_entry = start.schedule_id, start.entries
        self.unheard: Unheard | None = None
        self.has_diverged = False
        self.told: list[str] = []
        """What was asked and answered so far, for whoever reads a failure."""
        self.consignments_made = 0
        self.jumps = 0
        self.done = Counter[str]()
        """How often what takes its time was done."""
        self._stack.enter_context(self.stage.plant(self.house))
        self._pool = self._stack.enter_context(ThreadPoolExecutor(2))

    # -- asking

    def _send(self, ask: Ask, token: str) -> Response:
        headers = {} if ask.key is None else {"Idempotency-Key": ask.key}
        return self.house.send(ask.method, ask.path, token=token, json=ask.json, headers=headers)

    def _signed_in(self, who: str) -> Caller:
        """Return somebody whose session does not end while the next few requests are made."""
        caller = self.callers[who]
        if self.house.clock.now > caller._token_ends - timedelta(minutes=5):
            caller.forget_token()
        return caller

    def _token(self, ask: Ask) -> str:
        caller = self._signed_in(ask.who)
        # A machine has no second factor; it is refused for what it is.
        return caller.elevated_token() if ask.is_elevated and not caller.client_id else caller.token()

    def do(self, ask: Ask) -> Expected:
        """Ask, compare the answer with the model's, and take it in."""
        unheard, self.unheard = (None, self.unheard) if ask.is_heard else (self.unheard, None)
        with self._failing():
            token, now = self._token(ask), self.house.clock.now
            with nullcontext() if unheard is None else unheard.of_the_next_act():
                response = self._send(ask, token)
            self._tell(ask, response, "" if unheard is None else f" (unheard, {unheard.is_committed})")
            return self._settle(self.model, ask, now, response, unheard)

    def _settle(
        self, model: Model, ask: Ask, now: datetime, response: Response, unheard: Unheard | None = None
    ) -> Expected:
        expected = ask.predict(model, now)
        if unheard is not None and expected.status < 300:
            if unheard.is_committed:
                model.entries[expected.action, expected.outcome] += 1
            expected = expected.unheard(is_committed=unheard.is_committed)
        body = response.json() if response.content else None
        code = body["code"] if body is not None and response.status_code >= 400 else None
        same(str(ask), (response.status_code, code), (expected.status, expected.code))
        is_replay = response.headers.get("Idempotency-Replayed") == "true"
        same(f"{ask}: replayed", is_replay, expected.status == 200 and expected.outcome == "replayed")
        expected.take(body)
        model.entries[expected.action, expected.outcome] += 1
        self.played["requests"] += 1
        self.played[f"{expected.action} {expected.outcome} {code or response.status_code}"] += 1
        return expected

    def do_both(self, one: Ask, other: Ask) -> None:
        """Ask both at the same time; the answers must be those of one after the other, in some order."""
        asks, together = (one, other), Barrier(2)

        def send(ask: Ask, token: str) -> Response:
            together.wait()
            return self._send(ask, token)

        with self._failing():
            tokens = [self._token(ask) for ask in asks]
            now = self.house.clock.now
            with MEETING.of_two():
                responses = list(self._pool.map(send, asks, tokens))
            for ask, response in zip(asks, responses, strict=True):
                self._tell(ask, response, " (at once)")
            self.model = self._in_some_order(asks, responses, now)

    def _in_some_order(self, asks: Sequence[Ask], responses: Sequence[Response], now: datetime) -> Model:
        """Return the model of whichever came first, by which both answers are right."""
        differences = []
        for order in ((0, 1), (1, 0)):
            model = copy.deepcopy(self.model)
            try:
                for at in order:
                    self._settle(model, asks[at], now, responses[at])
            except Divergence as difference:
                differences.append(str(difference))
            else:
                return model
        raise Divergence("two at once, in no order: " + " | ".join(differences))

    def _tell(self, ask: Ask, response: Response, how: str) -> None:
        self.told.append(
            f"{self.house.clock.now:%d %H:%M:%S} {ask}{how} -> {response.status_code} {response.text[:300]}"
        )

    @contextmanager
    def _failing(self) -> Iterator[None]:
        try:
            yield
        except AssertionError as difference:
            self.has_diverged = True
            difference.add_note("\n".join(self.told[-12:]))
            raise

    # -- picking

    def _subject(self, number: int) -> str:
        """Return a subject's identifier, in one of its spellings; new or known."""
        name = f"S-{number % SUBJECTS:02}"
        return (name, name.lower(), f" {name} ")[number // SUBJECTS % 3]

    def _known_subject(self, number: int) -> str:
        """Return a subject that was allocated, mostly."""
        known = [subject.spelling for subject in self.model.subjects.values()]
        return pick(known, number // 8) if known and number % 8 else self._subject(number)

    def _site_of(self, spelling: str) -> str:
        subject = self.model.subjects.get(spelling.strip().casefold())
        return "01" if subject is None else subject.site

    def _kit(self, number: int, *statuses: str) -> str:
        """Return a kit, mostly one of these statuses; sometimes one that nobody knows."""
        fitting = [code for code, kit in self.model.kits.items() if kit.status in statuses]
        if fitting and number % 8:
            return pick(fitting, number // 8)
        return pick([UNKNOWN_KIT, *self.model.kits], number // 8)

    def _own(self, code: str) -> str:
        """Return the pharmacist of the site where a kit is."""
        kit = self.model.kits.get(code)
        at = None if kit is None else self.model.consignments[kit.consignment].site
        return "druggist" if at == "02" else "pharmacist"

    def _or_somebody(self, who: str, number: int) -> str:
        """Return somebody, who is mostly the right one."""
        return pick(PASSING, number // 8) if number % 8 == 0 else who

    def _is_enough(self, what: str) -> bool:
        """Return whether something was done often enough in this trial: hypothesis likes to do one thing again and again."""
        self.done[what] += 1
        return self.done[what] > MOST[what]

    # -- what can happen

    @rule(subject=NUMBERS, who=NUMBERS, level=NUMBERS, twist=NUMBERS)
    def enrol(self, subject: int, who: int, level: int, twist: int) -> None:
        self.do(self._enrolment(subject, who, level, twist))
        self._compare(subject)

    @rule(subject=NUMBERS, who=NUMBERS, level=NUMBERS)
    def enrol_in_order(self, subject: int, who: int, level: int) -> None:
        """Most enrolments are of somebody new, by somebody who may."""
        number = len(self.model.subjects) + subject // 500
        self.do(self._enrolment(number, who, level, 1))
        self._compare(number)

    def _enrolment(self, subject: int, who: int, level: int, twist: int) -> Ask:
        asking = pick(("doctor", "nurse", "edc", "colleague", "locum", "edc"), who)
        site = "02" if asking in ("colleague", "locum") or (asking == "edc" and who % 7 == 0) else "01"
        if twist % 16 == 0:
            site = pick(("01", "02", "09"), twist // 16)
        of = "X" if twist % 16 == 2 else pick(LEVELS, level)
        wanted = Enrolment(self._subject(subject), site, of, is_confirmed=twist % 16 != 4)
        key = f"key-{twist // 16 % 4}" if twist % 4 == 3 else None
        return self.asked_to_enrol(self._or_somebody(asking, twist // 16), wanted, key)

    def asked_to_enrol(self, who: str, wanted: Enrolment, key: str | None = None) -> Ask:
        """Return the request that randomizes a subject."""
        body = {
            "subject_id": wanted.subject,
            "site_code": wanted.site,
            "strata": {"SEX": wanted.level},
            "consent_confirmed": True,
            "eligibility_confirmed": wanted.is_confirmed,
            "reported_user": "nurse.li" if who == "edc" else None,
        }
        return Ask(who, f"{S}/allocations", lambda model, now: model.enrol(who, now, wanted, key), body, key=key)

    @rule(subject=NUMBERS, who=NUMBERS, other=NUMBERS)
    def enrol_again(self, subject: int, who: int, other: int) -> None:
        """The same request again, or one with other content (rule C4)."""
        self.do(self._enrolment_again(subject, who, other))
        self._compare(subject)

    def _enrolment_again(self, number: int, who: int, other: int) -> Ask:
        spelling = self._known_subject(number)
        known = self.model.subjects.get(spelling.strip().casefold())
        level = pick(LEVELS, other) if known is None or other % 4 == 0 else known.level
        asking = "edc" if who % 2 else pick(PASSING, who // 2)
        return self.asked_to_enrol(asking, Enrolment(spelling.lower(), self._site_of(spelling), level))

    @rule(subject=NUMBERS, visit=NUMBERS, who=NUMBERS)
    def visit(self, subject: int, visit: int, who: int) -> None:
        self.do(self._visit(subject, visit, who))
        self._compare(subject)

    def _visit(self, subject: int, visit: int, who: int) -> Ask:
        spelling, named = self._known_subject(subject), ("V1", "v1", "V2", "V3", "v4")[visit % 5]
        asking = self._or_somebody("edc" if who % 2 else self._physician(spelling), who)
        path = f"{S}/subjects/{spelling.strip()}/kits"
        return Ask(asking, path, lambda model, now: model.assign(asking, now, spelling, named), {"visit": named})

    def _physician(self, spelling: str) -> str:
        return "colleague" if self._site_of(spelling) == "02" else "doctor"

    @rule(kit=NUMBERS, twist=NUMBERS)
    def dispense(self, kit: int, twist: int) -> None:
        ask = self._dispensation(kit, twist)
        self.do(ask)
        self._compare(kit)

    def _dispensation(self, number: int, twist: int) -> Ask:
        code = self._kit(number, "assigned", "dispensed")
        held = self.model.kits.get(code)
        spelling = self._known_subject(twist)
        if held is not None and held.subject is not None and twist % 4:
            spelling = self.model.subjects[held.subject].spelling
        scanned = UNKNOWN_KIT if twist % 16 == 5 else code
        who = self._or_somebody("druggist" if self._site_of(spelling) == "02" else "pharmacist", twist // 16)
        return self.asked_to_dispense(who, code, spelling, scanned)

    def asked_to_dispense(self, who: str, code: str, spelling: str, scanned: str | None = None) -> Ask:
        """Return the request that hands a kit out."""
        on_the_label = scanned or code
        return Ask(
            who,
            f"{S}/kits/{code}/dispensation",
            lambda model, now: model.dispense(who, now, code, spelling, on_the_label),
            {"subject_id": spelling, "scanned_code": on_the_label},
        )

    @rule(kit=NUMBERS, reason=NUMBERS, who=NUMBERS)
    def replace(self, kit: int, reason: int, who: int) -> None:
        self.do(self._replacement(kit, reason, who))
        self._compare(kit)

    def _replacement(self, kit: int, reason: int, who: int) -> Ask:
        code = self._kit(kit, "assigned", "dispensed", "quarantined", "damaged", "lost", "replaced")
        asking, why = self._or_somebody(self._own(code), who), pick(REASONS, reason)
        return Ask(
            asking,
            f"{S}/kits/{code}/replacement",
            lambda model, now: model.replace(asking, now, code, why),
            {"reason_code": why, "reason": "as it was found"},
        )

    @rule(kit=NUMBERS, step=NUMBERS, who=NUMBERS)
    def put_aside(self, kit: int, step: int, who: int) -> None:
        self.do(self._put_aside(kit, step, who))
        self._compare(kit)

    def _put_aside(self, kit: int, step: int, who: int) -> Ask:
        act = pick(("quarantine", "return", "loss", "damage"), step)
        code = self._kit(kit, "in_stock", "assigned", "dispensed")
        asking = self._or_somebody(self._own(code), who)

        def predict(model: Model, now: datetime) -> Expected:
            steps = {
                "quarantine": model.quarantine,
                "return": model.take_back,
                "loss": model.report_loss,
                "damage": model.report_damage,
            }
            return steps[act](asking, now, code)

        return Ask(asking, f"{S}/kits/{code}/{act}", predict, {"reason": "as it was found"})

    @rule(kit=NUMBERS, step=NUMBERS, who=NUMBERS)
    def decide_on_a_kit(self, kit: int, step: int, who: int) -> None:
        act = pick(("release", "destruction", "replacement-release"), step)
        code = self._kit(
            kit, *(("assigned", "dispensed") if act == "replacement-release" else ("quarantined", "returned"))
        )
        asking = self._or_somebody("supply_manager", who)

        def predict(model: Model, now: datetime) -> Expected:
            steps = {
                "release": model.release,
                "destruction": model.destroy,
                "replacement-release": model.release_replacement,
            }
            return steps[act](asking, now, code)

        body = None if act == "replacement-release" else {"reason": "as decided"}
        self.do(Ask(asking, f"{S}/kits/{code}/{act}", predict, body, is_elevated=True))
        self._compare(kit)

    @rule(number=NUMBERS, days=NUMBERS)
    def create_consignment(self, number: int, days: int) -> None:
        self.do(self._creation(number, days))
        self._fill()

    def _creation(self, number: int, days: int) -> Ask:
        if number % 8:
            self.consignments_made += 1
        code, per_arm = f"D{self.consignments_made}", number // 8 % 3 + 2
        # No two expire on the same day: of such two, chance decides which comes first.
        taken = {one.unusable_from for one in self.model.consignments.values()}
        day = self.house.clock.now.date() + timedelta(days=days % 8)
        while day in taken:
            day += timedelta(days=1)
        return Ask(
            "supply_manager",
            f"{S}/consignments",
            lambda model, now: model.create("supply_manager", now, code, day, per_arm * len(ARMS)),
            consignment(code, per_arm, day),
            is_elevated=True,
        )

    def _fill(self) -> None:
        for code, made in self.model.consignments.items():
            if not made.kits:
                self.model.fill(code, true_kits(self.house, code))

    @rule(number=NUMBERS, how=NUMBERS)
    def send_on(self, number: int, how: int) -> None:
        """Dispatch what is registered, receive what is on its way, in parts or whole."""
        waiting = [code for code, one in self.model.consignments.items() if one.status in ("registered", "dispatched")]
        code = pick(waiting, number // 8) if waiting and number % 8 else pick(["D99", *self.model.consignments], number)
        known = self.model.consignments.get(code)
        if known is not None and known.status != "registered" and how % 8:
            self.do(self._receipt(code, how))
        else:
            site = pick(("01", "02", "01", "02", "09"), number // 8)
            self.do(
                Ask(
                    "supply_manager",
                    f"{S}/consignments/{code}/dispatch",
                    lambda model, now: model.dispatch("supply_manager", now, code, site),
                    {"site_code": site},
                )
            )
        self._compare(number)

    def _receipt(self, code: str, how: int) -> Ask:
        known = self.model.consignments[code]
        who = self._or_somebody("druggist" if known.site == "02" else "pharmacist", how // 8)
        still = [kit for kit in known.kits if self.model.kits[kit].status in ("dispatched", "missing")] or [*known.kits]
        received, missing = still, list[str]()
        if how % 8 == 1:
            received, missing = still[1:], still[:1]
        elif how % 8 == 2:
            received = still[: len(still) // 2]
        elif how % 8 == 3:
            received = [*still, UNKNOWN_KIT]
        return Ask(
            who,
            f"{S}/consignments/{code}/receipt",
            lambda model, now: model.receive(who, now, code, received, missing),
            {"received": received, "missing": missing},
        )

    @rule(how=NUMBERS)
    def pass_time(self, how: int) -> None:
        """An hour, a day, or to one side of midnight at a site: expiry begins there (rule B11)."""
        self.jumps += 1
        site = pick(tuple(ZONES), how // 8)
        now = self.house.clock.now
        if how % 4 < 2:
            self.house.clock.advance(hours=(1, 25)[how % 2])
        else:
            there = now.astimezone(ZoneInfo(ZONES[site]))
            midnight = there.replace(hour=0, minute=0, second=0, microsecond=0) + timedelta(days=1)
            # Never twice at the same second of the day, so that no two acts are a day apart to the millisecond.
            aside = timedelta(seconds=self.jumps) * (1 if how % 4 == 2 else -1)
            if midnight + aside > there:
                self.house.clock.advance(midnight + aside - there)
        self.told.append(f"{self.house.clock.now:%d %H:%M:%S} now")
        self._compare(how)

    @rule(number=NUMBERS)
    def set_status(self, number: int) -> None:
        # Closed is for ever, so it is seldom.
        status = "closed" if number % 32 == 7 else pick(("open", "open", "open", "suspended"), number)
        self.do(self._new_status(status))

    def _new_status(self, status: str) -> Ask:
        return Ask(
            "study_admin",
            f"{S}/status",
            lambda model, now: model.set_status("study_admin", now, status),
            {"status": status, "reason": "as decided"},
            is_elevated=True,
        )

    @rule(number=NUMBERS)
    def activate_site(self, number: int) -> None:
        site = pick(("02", "02", "02", "01", "09"), number)
        self.do(
            Ask(
                "study_admin",
                f"{S}/sites/{site}/activation",
                lambda model, now: model.activate_site("study_admin", now, site),
                is_elevated=True,
            )
        )

    @rule(number=NUMBERS)
    def extend_list(self, number: int) -> None:
        """Make a segment; mostly approve it, and mostly activate it."""
        if self._is_enough("extensions"):
            self.decide_on_a_segment(number)
            return
        body = {
            "block_sizes": [2],
            "lengths": [
                {"strata": {"SEX": level}, "length": 2}
                for place, level in enumerate(LEVELS)
                if number % 4 in (3, place)
            ]
            or [{"strata": {"SEX": "F"}, "length": 4}],
            "fill": "exact",
        }
        known = set(self.model.segments)
        self.do(
            Ask(
                "statistician",
                f"{S}/schedules/{self.first_list}/segments",
                lambda model, now: model.extend("statistician", now, self.first_list),
                body,
                is_elevated=True,
                is_heard=True,
            )
        )
        for made in self.model.segments.keys() - known:
            self.model.segments[made].slots = true_slots(self.house)[made]
        if number // 4 % 4:
            self._approve(number)
        if number // 4 % 4 > 1:
            self._activate(number)

    @rule(number=NUMBERS)
    def decide_on_a_segment(self, number: int) -> None:
        (self._approve if number % 2 else self._activate)(number // 2)

    def _segment(self, number: int, status: str) -> str:
        fitting = [segment for segment, one in self.model.segments.items() if one.status == status]
        return pick(fitting or list(self.model.segments), number)

    def _approve(self, number: int) -> None:
        segment = self._segment(number, "generated")
        path = f"{S}/schedules/{segment}"
        commitment = expect(self.callers["list_approver"].get(path), 200)["commitment"]
        self.do(
            Ask(
                "list_approver",
                f"{path}/approval",
                lambda model, now: model.approve("list_approver", now, segment),
                {"commitment": commitment, "meaning": "approval"},
                is_elevated=True,
            )
        )

    def _activate(self, number: int) -> None:
        segment = self._segment(number, "approved")
        self.do(
            Ask(
                "study_admin",
                f"{S}/schedules/{segment}/activation",
                lambda model, now: model.activate("study_admin", now, segment),
                is_elevated=True,
            )
        )

    @rule()
    def rotate_the_key(self) -> None:
        """Everything is sealed anew, and nothing else changes (rule F4)."""
        if self._is_enough("rotations"):
            return
        keys.rotate_study_key(self.house.deployment, StudyCode(STUDY))
        self.told.append("rotated")
        self._compare(0)

    @rule(is_killed=st.booleans())
    def restart(self, is_killed: bool) -> None:
        """A new process, after the old one has stopped in order or fallen over."""
        if self._is_enough("restarts"):
            return
        if is_killed:
            self.house.leave()
            self.house.open()
        else:
            self.house.restart()
        self.told.append("restarted")
        self._compare(0)

    @rule(who=NUMBERS, number=NUMBERS)
    def revoke(self, who: int, number: int) -> None:
        """End a role, or one that has ended; the next request feels it."""
        name = pick(PASSING, who)
        held = list(self.model.people[name].grants.values())
        grant = pick(held, number) if held and number % 8 else "3f0c9b5e-6f0e-4c5e-9a59-3d1c6a4f2b10"
        self.do(
            Ask(
                "admin",
                f"{self.house.account_path(self.callers[name])}/grants/{grant}",
                lambda model, now: model.revoke("admin", now, name, grant),
                method="DELETE",
            )
        )

    @rule(who=NUMBERS, number=NUMBERS)
    def grant(self, who: int, number: int) -> None:
        """Give back a role that somebody lost, or another one."""
        without = [name for name in PASSING if not self.model.people[name].grants]
        name = pick(without, who) if without and number % 8 else pick(PASSING, who)
        role, site = STAFF[name]
        if number % 4 == 0 and name != "edc":
            role = pick(("investigator", "pharmacist", "coordinator", "supply_manager"), number // 4)
            site = None if role == "supply_manager" else pick(("01", "02", "09"), number // 16)
        self.do(
            Ask(
                "admin",
                f"{self.house.account_path(self.callers[name])}/grants",
                lambda model, now: model.grant("admin", now, name, role, site),
                {"role": role, "study_code": STUDY, "site_code": site},
                is_heard=True,
            )
        )

    @rule(number=NUMBERS, who=NUMBERS)
    def break_code(self, number: int, who: int) -> None:
        self.do(self._code_break(number, who))
        self._compare(number)

    def _code_break(self, number: int, who: int) -> Ask:
        reason = {"reason_code": "serious_adverse_event"}
        if number % 2:
            code = self._kit(number // 2, "in_stock", "assigned", "dispensed", "registered", "dispatched")
            asking = self._or_somebody("doctor", who)
            about, predict = {"kit_code": code}, lambda model, now: model.break_kit(asking, now, code)
        else:
            spelling = self._known_subject(number // 2)
            asking = self._or_somebody(self._physician(spelling), who)
            about, predict = {"subject_id": spelling}, lambda model, now: model.break_subject(asking, now, spelling)
        return Ask(asking, f"{S}/code-breaks", predict, about | reason, is_elevated=True)

    @rule(subject=NUMBERS, who=NUMBERS)
    def mark_error(self, subject: int, who: int) -> None:
        spelling = self._known_subject(subject)
        asking = self._or_somebody(self._physician(spelling), who)
        self.do(self.asked_to_mark(asking, spelling, pick(("ineligible", "wrong_stratum", "duplicate"), who)))
        self._compare(subject)

    def asked_to_mark(self, who: str, spelling: str, category: str) -> Ask:
        """Return the request that marks an allocation as made in error."""
        return Ask(
            who,
            f"{S}/subjects/{spelling.strip()}/error-mark",
            lambda model, now: model.mark_error(who, now, spelling, category),
            {"category": category, "reason": "as it was found"},
            is_elevated=True,
        )

    @rule(subject=NUMBERS, other=NUMBERS, who=NUMBERS)
    def link_duplicate(self, subject: int, other: int, who: int) -> None:
        spelling, first = self._known_subject(subject), self._known_subject(other)
        asking = self._or_somebody(self._physician(spelling), who)
        self.do(
            Ask(
                asking,
                f"{S}/subjects/{spelling.strip()}/duplicate-link",
                lambda model, now: model.link_duplicate(asking, now, spelling, first),
                {"duplicate_of": first, "reason": "one person"},
            )
        )
        self._compare(subject)

    @rule(is_committed=st.booleans())
    def lose_sight_of_the_next_commit(self, is_committed: bool) -> None:
        """The next act's COMMIT goes unheard: done or not, the service finds out, or says that it does not know (rule C6)."""
        self.unheard = Unheard(is_committed)

    # -- two at once

    @rule(first=NUMBERS, second=NUMBERS, who=NUMBERS, other=NUMBERS)
    def enrol_two_at_once(self, first: int, second: int, who: int, other: int) -> None:
        """Somebody new and somebody else, or the same twice: slots in order, kits of one consignment (rules C4, C5)."""
        level = pick(LEVELS, other)
        number = len(self.model.subjects) + first // 500
        one = self.asked_to_enrol("edc", Enrolment(self._subject(number), "01", level))
        site = pick(("01", "01", "02"), second)
        by = "doctor" if site == "01" else "colleague"
        again = number + (0 if second % 4 == 0 else 1)
        self.do_both(one, self.asked_to_enrol(by, Enrolment(self._subject(again), site, pick(LEVELS, who))))
        self._compare(number)

    @rule(kind=NUMBERS, first=NUMBERS, second=NUMBERS)
    def do_two_at_once(self, kind: int, first: int, second: int) -> None:
        """The same act twice, or an enrolment beside something that moves stock or study."""
        new = self.asked_to_enrol("edc", Enrolment(self._subject(len(self.model.subjects)), "01", pick(LEVELS, second)))
        pairs: Sequence[Callable[[], tuple[Ask, Ask]]] = (
            lambda: (self._dispensation(first, 1), self._dispensation(first, 1)),
            lambda: (self._visit(first, second, 1), self._visit(first, second // 5, 3)),
            lambda: (self._replacement(first, second, 1), self._replacement(first, second, 1)),
            lambda: (new, self._visit(first, second, 1)),
            lambda: (new, self._put_aside(first, second, 1)),
            lambda: (new, self._code_break(first, 1)),
            lambda: (new, self._new_status(pick(("suspended", "open"), second))),
            lambda: (self._creation(first, second), self._creation(8, second + 1)),
            lambda: (self._visit(first, second, 1), self._replacement(second, first, 1)),
        )
        self.do_both(*pick(pairs, kind)())
        self._fill()
        self._compare(first)

    @rule(level=NUMBERS, subject=NUMBERS)
    def enrol_while_the_key_is_rotated(self, level: int, subject: int) -> None:
        """Who allocates notices nothing of a rotation (rule F4)."""
        number = len(self.model.subjects) + subject // 500
        if self._is_enough("rotations"):
            self.enrol_in_order(subject, 2, level)
            return
        rotation = self._pool.submit(keys.rotate_study_key, self.house.deployment, StudyCode(STUDY))
        ask = self.asked_to_enrol("edc", Enrolment(self._subject(number), "01", pick(LEVELS, level)))
        self.do(replace(ask, is_heard=True))
        rotation.result()
        self._compare(number)

    # -- comparing

    def check_invariants(self, *given: Any) -> None:  # noqa: ANN401  # hypothesis's own
        """Count the steps: this is called before the first and after each."""
        super().check_invariants(*given)
        self.played["steps"] += 1

    def _compare(self, number: int) -> None:
        """Compare the stock of a site, or a subject, with the model's."""
        with self._failing():
            if self.model.subjects and number % 2:
                self._compare_subject(pick(list(self.model.subjects), number // 2))
            else:
                self._compare_stock(pick(("01", "01", "02"), number // 2))

    def _compare_stock(self, site: str) -> None:
        reader = self.callers[f"clerk of {site}"]
        reader.token()
        now = self.house.clock.now
        page = expect(reader.get(f"{S}/sites/{site}/kits", limit=500), 200)
        told = [(one["kit_code"], one["consignment_code"], one["status"], one["usable"]) for one in page["items"]]
        counts, kits = self.model.stock(site, now)
        same(f"stock of site {site}", told, kits)
        same(f"counts of site {site}", page["counts"], dict(counts))

    def _compare_subject(self, key: str) -> None:
        record = expect(self.callers["monitor"].get(f"{S}/subjects/{key}/allocation"), 200)
        same(f"subject {key}", _of_record(record), self.model.record(key))

    def teardown(self) -> None:
        """Compare everything once more, and leave."""
        try:
            if not self.has_diverged:
                with self._failing():
                    self._compare_everything()
                self.played["trials"] += 1
                # Before the first step there was a look too.
                self.played["steps"] -= 1
        finally:
            self._stack.close()

    def _compare_everything(self) -> None:
        for site in ZONES:
            self._compare_stock(site)
        monitor = self.callers["monitor"]
        listed = expect(monitor.get(f"{S}/allocations", limit=500), 200)["items"]
        same("allocations", [_of_record(one) for one in listed], list(map(self.model.record, self.model.in_order())))
        for key in self.model.subjects:
            self._compare_kits_of(key)
        same("status of the study", expect(monitor.get(S), 200)["status"], self.model.status)
        sites = expect(monitor.get(f"{S}/sites"), 200)["items"]
        same("active sites", {one["site_code"] for one in sites if one["is_active"]}, self.model.active)
        register = expect(monitor.get(f"{S}/code-breaks", limit=500), 200)["items"]
        names = {self.callers[who].username: who for who in STAFF if who != "edc"}
        told = [
            (str(one["subject_id"]).casefold(), one["kit_code"], names[one["broken_by"]], one["status"])
            for one in register
        ]
        kept = [(str(one.subject).casefold(), one.kit, one.by, one.status) for one in self.model.breaks]
        same("register of code breaks", told, kept)
        self._compare_rows()
        self._compare_trail()

    def _compare_kits_of(self, key: str) -> None:
        path = f"{S}/subjects/{key}/kits"
        reader = self.callers[f"clerk of {self.model.subjects[key].site}"]
        reader.token()
        today = self.model._today(self.model.subjects[key].site, self.house.clock.now)
        told = [
            (one["kit_code"], one["status"], one["usable"], one["visit"])
            for one in expect(reader.get(path), 200)["items"]
        ]
        kept = [
            (code, kit.status, self.model.is_usable(code, today), kit.visit) for code, kit in self.model.kits_of(key)
        ]
        same(f"kits of {key}", told, kept)

    def _rows(self, table: Table) -> list[Any]:
        with self.house.deployment.database.transaction() as tx:
            return list(tx.execute(select(table)))

    def _compare_rows(self) -> None:
        """Every allocation, kit, consignment and segment as it lies in the database, and no claim without its answer."""
        model = self.model
        strata = {row.stratum_id: row.stratum_code.removeprefix("SEX=") for row in self._rows(tables.stratum)}
        used = {strata[row.stratum_id]: row.allocated for row in self._rows(tables.stratum)}
        same("used slots", used, {level: model.used[level] for level in LEVELS})
        allocated = {
            row.subject_key: (strata[row.stratum_id], row.ordinal, row.randomization_number)
            for row in self._rows(tables.allocation)
        }
        same(
            "allocations",
            allocated,
            {
                key: (one.level, one.ordinal, model.slots[one.level][one.ordinal].number)
                for key, one in model.subjects.items()
            },
        )
        kits = self._rows(tables.kit)
        code_of = {row.kit_id: row.kit_code for row in kits}
        same("kits", {row.kit_code: row.status for row in kits}, {code: kit.status for code, kit in model.kits.items()})
        given = {
            code_of[row.kit_id]: (row.subject_key, row.visit, row.replaces and code_of[row.replaces])
            for row in self._rows(tables.kit_assignment)
        }
        held = {code: (kit.subject, kit.visit, kit.replaces) for code, kit in model.kits.items() if kit.subject}
        same("assignments", given, held)
        consignments = {row.consignment_code: (row.status, row.site_code) for row in self._rows(tables.consignment)}
        same("consignments", consignments, {code: (one.status, one.site) for code, one in model.consignments.items()})
        segments = {str(row.schedule_id): row.status for row in self._rows(tables.schedule)}
        same("segments", segments, {code: one.status for code, one in model.segments.items()})
        claims = self._rows(tables.stored_answer)
        same("claims without an answer", [row for row in claims if not (row.sealed_small or row.sealed_large)], [])

    def _compare_trail(self) -> None:
        """One entry for each act, and an export that the offline verifier accepts against the sink."""
        entries = self.house.trail(STUDY)[self.first_entry :]
        entered = Counter((entry["action"], entry["outcome"]) for entry in entries)
        wanted = Counter({one: count for one, count in self.model.entries.items() if _stands_in_the_study(*one)})
        same("entries", Counter({one: entered[one] for one in entered if _stands_in_the_study(*one)}), wanted)
        export = self.house.settings.checkpoint_file.parent / "export.jsonl"
        answer = self._signed_in("inspector").get(f"{S}/trail/export", step_up=True)
        export.write_bytes(answer.content)
        report = verify_trail(export, sinks=[self.house.settings.checkpoint_file])
        same("findings of the verifier", [finding.message for finding in report.findings], [])


def pick(items: Sequence[T], number: int) -> T:
    """Return one of the items."""
    return items[number % len(items)]


def _stands_in_the_study(action: str, outcome: str) -> bool:
    """Return whether the study's own log has it; refusals may be those of strangers, who stand in the service's (rule E1)."""
    if outcome == "unknown":
        return action in MAY and not action.startswith("grant")
    return action in MAY and outcome in ("done", "replayed", "authorised")


def _of_record(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the model knows of an allocation."""
    named = ("subject_id", "site_code", "randomization_number", "kit_code", "current_kit_codes", "strata_used")
    flags = record["flags"]
    return {name: record[name] for name in named} | {
        "is_unblinded": flags["unblinded_at"] is not None,
        "error_category": flags["error_mark"] and flags["error_mark"]["category"],
        "duplicate_of": flags["duplicate_of"],
    }


def trial_class(houses: Houses, plant: Plant = honest) -> type[Trial]:
    """Return what plays trials in such houses, in a build that has what is planted."""
    return type("PlayedTrial", (Trial,), {"stage": Stage(houses, plant), "played": Counter()})


def play(
    kind: type[Trial], trials: int, number: int, steps: int = STEPS_OF_A_TRIAL, *, is_shrunk: bool = False
) -> None:
    """Play so many trials, the same ones for the same number, and count them in ``kind.played``. Fails at a divergence."""
    run_state_machine_as_test(
        seed(number)(kind),
        settings=settings(
            max_examples=trials,
            stateful_step_count=steps,
            phases=[Phase.generate, *([Phase.shrink] if is_shrunk else [])],
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            report_multiple_bugs=False,
            print_blob=False,
        ),
    )
