"""The whole trial as a few dictionaries: what the service must answer to each request, and how things stand after it.

Pure: no database, no cipher, no clock. The model is told what the service keeps sealed, the true lists and the arms of the kits.
Chance stays the service's: the model says of which kits one must be drawn, and goes on with the one that the answer names.

    expected = model.enrol("doctor", now, Enrolment("S1", "01", "F"))
    (expected.status, expected.code)     # (201, None), (409, "stock_insufficient"), ...
    expected.take(answer)                # fails unless this can be the answer; from here on the model has it too
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date, datetime, timedelta
from typing import Any, Concatenate, Final, ParamSpec, TypeAlias
from zoneinfo import ZoneInfo

Body: TypeAlias = Mapping[str, Any]
Take: TypeAlias = Callable[[Body | None], None]
"""Looks at an answer and changes the model; without one it changes what was done unheard."""
P = ParamSpec("P")

DAY: Final = timedelta(hours=24)
VISITS_A_DAY: Final = 3
GOING_ON: Final = ("open", "suspended")
UNBLINDED: Final = frozenset({"statistician", "list_approver", "supply_manager", "safety_officer"})

MAY: Final[Mapping[str, frozenset[str]]] = {
    "allocation:create": frozenset({"investigator", "coordinator", "edc_client"}),
    "allocation:mark_error": frozenset({"investigator"}),
    "allocation:link_duplicate": frozenset({"investigator", "coordinator"}),
    "kit:assign": frozenset({"investigator", "pharmacist", "edc_client"}),
    "kit:dispense": frozenset({"pharmacist"}),
    "kit:replace": frozenset({"pharmacist"}),
    "kit:release_replacement": frozenset({"supply_manager"}),
    "kit:quarantine": frozenset({"pharmacist"}),
    "kit:return": frozenset({"pharmacist"}),
    "kit:loss": frozenset({"pharmacist"}),
    "kit:damage": frozenset({"pharmacist"}),
    "kit:release": frozenset({"supply_manager"}),
    "kit:destroy": frozenset({"supply_manager"}),
    "consignment:create": frozenset({"supply_manager"}),
    "consignment:dispatch": frozenset({"supply_manager"}),
    "consignment:receive": frozenset({"pharmacist"}),
    "code_break:create": frozenset({"investigator"}),
    "study:set_status": frozenset({"study_admin"}),
    "site:activate": frozenset({"study_admin"}),
    "schedule:extend": frozenset({"statistician"}),
    "schedule:approve": frozenset({"list_approver"}),
    "schedule:activate": frozenset({"study_admin"}),
    "grant:create": frozenset({"service_admin"}),
    "grant:revoke": frozenset({"service_admin"}),
}
"""Who may do what is done here."""

STEPS: Final[Mapping[str, Mapping[str, str]]] = {
    "kit:quarantine": dict.fromkeys(("in_stock", "assigned"), "quarantined"),
    "kit:return": dict.fromkeys(("dispensed", "replaced", "lost"), "returned"),
    "kit:loss": dict.fromkeys(("in_stock", "assigned", "dispensed", "quarantined"), "lost"),
    "kit:damage": dict.fromkeys(("in_stock", "assigned", "dispensed", "quarantined"), "damaged"),
    "kit:destroy": dict.fromkeys(("quarantined", "returned", "replaced", "damaged"), "destroyed"),
    "replace": {
        **dict.fromkeys(("assigned", "dispensed", "quarantined"), "replaced"),
        "damaged": "damaged",
        "lost": "lost",
    },
    "break": dict.fromkeys(
        ("registered", "dispatched", "missing", "in_stock", "quarantined", "damaged", "lost"), "quarantined"
    ),
}
"""What becomes of a kit."""

STATUSES: Final = {
    ("open", "suspended"),
    ("suspended", "open"),
    ("open", "closed"),
    ("suspended", "closed"),
}


class Divergence(AssertionError):
    """Model and service say different things."""


def same(what: str, got: object, wanted: object) -> None:
    """Fail unless both are equal."""
    if got != wanted:
        raise Divergence(f"{what}: the service has {got!r}, the model {wanted!r}")


def subject_key(spelling: str) -> str:
    """Return what makes two spellings one subject, for the spellings that are used here."""
    return " ".join(spelling.split()).casefold()


class Refused(Exception):
    """The request must be refused so; ``take`` is what stays although it is."""

    def __init__(self, status: int, code: str, take: Take = lambda _body: None) -> None:
        super().__init__(code)
        self.status, self.code, self.take = status, code, take


@dataclass(frozen=True)
class Expected:
    """What a request must be answered with."""

    status: int
    take: Take
    code: str | None = None
    outcome: str = "done"
    """What the trail says of it."""
    action: str = ""
    is_claimed: bool = False
    """Whether the request has a natural key, so that asking again tells how it went (rule C6)."""

    def unheard(self, *, is_committed: bool) -> "Expected":
        """Return what the same request must be answered with when nobody can tell how its first COMMIT went.

        With a key the service asks again, and finds the answer or does the act. Without one it says that it does not know.
        """
        if self.status >= 300:
            return self
        if self.is_claimed:
            return replace(self, status=200, outcome="replayed") if is_committed else self
        code = "reveal_unavailable" if self.action == "code_break:create" else "outcome_unknown"
        return replace(
            self, status=503, code=code, outcome="unknown", take=lambda _body: self.take(None) if is_committed else None
        )


@dataclass(frozen=True)
class Enrolment:
    """A request to randomize a subject."""

    subject: str
    site: str
    level: str
    is_confirmed: bool = True


@dataclass(frozen=True)
class Slot:
    """A place of the true list."""

    number: str
    arm: str


@dataclass
class Segment:
    """A list or an extension of it, by stratum."""

    slots: Mapping[str, Sequence[Slot]]
    status: str = "generated"


@dataclass
class Kit:
    """A kit, and to whom it was given."""

    arm: str
    consignment: str
    status: str = "registered"
    was_broken: bool = False
    """Whether its code was broken before anybody was given it."""
    is_released: bool = False
    """Whether its replacement was released."""
    subject: str | None = None
    visit: str | None = None
    replaces: str | None = None
    at: datetime | None = None


@dataclass
class Consignment:
    """Kits of every arm that come, and go out of use, as a whole."""

    unusable_from: date
    kits: Sequence[str] = ()
    site: str | None = None
    status: str = "registered"


@dataclass
class Subject:
    """A subject with its slot."""

    spelling: str
    site: str
    level: str
    ordinal: int
    first_kit: str
    is_unblinded: bool = False
    error_category: str | None = None
    duplicate_of: str | None = None


@dataclass(frozen=True)
class Answered:
    """What was answered to a key, and to what."""

    content: object
    site: str
    body: Body


@dataclass(frozen=True)
class Break:
    """A line of the register of code breaks."""

    subject: str | None
    kit: str | None
    by: str
    status: str


@dataclass
class Person:
    """Who has, and ever had, which role at which site."""

    grants: dict[tuple[str, str | None], str] = field(default_factory=dict)
    """The id of each grant."""
    ever: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class Right:
    """Where somebody may do what they ask for; None is everywhere."""

    who: str
    sites: frozenset[str] | None

    def require(self, site: str | None) -> None:
        """Refuse a site that is not theirs like one that does not exist."""
        if site is None or (self.sites is not None and site not in self.sites):
            raise Refused(404, "not_found")


@dataclass(frozen=True)
class Offer:
    """The kits of which one must be drawn, and the consignments that are withdrawn by looking."""

    consignment: Consignment
    failing: Sequence[Consignment]


def _act(
    action: str,
) -> Callable[
    [Callable[Concatenate["Model", Right, datetime, P], Expected]],
    Callable[Concatenate["Model", str, datetime, P], Expected],
]:
    """Have the right looked at first, and a refusal be an expectation like any other."""

    def decorate(
        method: Callable[Concatenate["Model", Right, datetime, P], Expected],
    ) -> Callable[Concatenate["Model", str, datetime, P], Expected]:
        def expected(model: "Model", who: str, now: datetime, /, *args: P.args, **kwargs: P.kwargs) -> Expected:
            try:
                found = method(model, model.right(who, action), now, *args, **kwargs)
            except Refused as refused:
                outcome = "denied" if refused.status in (403, 404) else "refused"
                found = Expected(refused.status, refused.take, refused.code, outcome)
            return replace(found, action=action)

        return expected

    return decorate


@dataclass
class Model:
    """How the trial stands."""

    zones: Mapping[str, str]
    """Each site's time zone."""
    treatments: Mapping[str, str]
    """The words of each arm."""
    floor: int
    people: dict[str, Person]
    status: str = "open"
    active: set[str] = field(default_factory=set)
    drilled: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    """Who has practised the code break at which site."""
    segments: dict[str, Segment] = field(default_factory=dict)
    slots: dict[str, list[Slot]] = field(default_factory=lambda: defaultdict(list))
    """What the active segments hold for each stratum, in order."""
    used: Counter[str] = field(default_factory=Counter)
    consignments: dict[str, Consignment] = field(default_factory=dict)
    kits: dict[str, Kit] = field(default_factory=dict)
    subjects: dict[str, Subject] = field(default_factory=dict)
    answers: dict[tuple[str, ...], Answered] = field(default_factory=dict)
    breaks: list[Break] = field(default_factory=list)
    entries: Counter[tuple[str, str]] = field(default_factory=Counter)
    """How often the trail must name each action with each outcome."""

    # -- who

    def right(self, who: str, action: str) -> Right:
        """Return where somebody may do something; refuse strangers to the study before those without the right."""
        person = self.people[who]
        if not person.grants:
            raise Refused(404, "not_found")
        giving = [site for role, site in person.grants if role in MAY[action]]
        if not giving:
            raise Refused(403, "forbidden")
        return Right(who, None if None in giving else frozenset(site for site in giving if site is not None))

    @_act("grant:create")
    def grant(self, _right: Right, _now: datetime, who: str, role: str, site: str | None) -> Expected:
        """Give a role at a site; blinded and unblinded exclude each other, and once unblinded is for ever (rule B10)."""
        person = self.people[who]
        if site is not None and site not in self.zones:
            raise Refused(404, "not_found")
        if (role, site) in person.grants:
            raise Refused(409, "already_exists")
        if any((held in UNBLINDED) != (role in UNBLINDED) for held, _ in person.grants):
            raise Refused(409, "grant_conflict")
        if role not in UNBLINDED and person.ever & UNBLINDED:
            raise Refused(409, "grant_conflict")

        def take(body: Body | None) -> None:
            assert body is not None
            person.grants[role, site] = body["grant_id"]
            person.ever.add(role)

        return Expected(201, take)

    @_act("grant:revoke")
    def revoke(self, _right: Right, _now: datetime, who: str, grant_id: str) -> Expected:
        """End a grant, once."""
        person = self.people[who]
        held = {given: grant for grant, given in person.grants.items()}
        if grant_id not in held:
            raise Refused(404, "not_found")
        return Expected(204, lambda _body: person.grants.__delitem__(held[grant_id]))

    # -- subjects

    @_act("allocation:create")
    def enrol(self, right: Right, now: datetime, wanted: Enrolment, key: str | None = None) -> Expected:
        """Give the next slot of the stratum, and a kit of its arm (rules C1 to C5)."""
        kept = None if key is None else self.answers.get(("key", right.who, key))
        if kept is not None:
            if kept.content != wanted:
                raise Refused(422, "idempotency_key_reused")
            right.require(kept.site)
            return self._again(kept)
        if not wanted.is_confirmed:
            raise Refused(422, "not_confirmed")
        if wanted.level not in self.slots:
            raise Refused(422, "invalid_strata")
        right.require(wanted.site)
        natural = ("allocation", subject_key(wanted.subject))
        found = self._enrol_again(right, wanted, natural) or self._enrol_anew(now, wanted, natural)
        if key is None:
            return found

        def take(body: Body | None) -> None:
            assert body is not None
            found.take(body)
            self.answers["key", right.who, key] = Answered(wanted, wanted.site, body)

        return replace(found, take=take, is_claimed=True)

    def _enrol_again(self, right: Right, wanted: Enrolment, natural: tuple[str, ...]) -> Expected | None:
        kept = self.answers.get(natural)
        if kept is None:
            return None
        if kept.content == (wanted.site, wanted.level):
            return self._again(kept)
        if wanted.site not in self.zones:
            raise Refused(404, "not_found")
        is_theirs = right.sites is None or kept.site in right.sites
        raise Refused(409, "already_allocated" if is_theirs else "subject_id_unavailable")

    def _enrol_anew(self, now: datetime, wanted: Enrolment, natural: tuple[str, ...]) -> Expected:
        if wanted.site not in self.zones:
            raise Refused(404, "not_found")
        if self.status != "open":
            raise Refused(409, "study_not_open")
        if wanted.site not in self.active:
            raise Refused(409, "site_inactive")
        ordinal = self.used[wanted.level]
        if ordinal >= len(self.slots[wanted.level]):
            raise Refused(409, "list_unavailable")
        slot = self.slots[wanted.level][ordinal]
        offer = self._offer(wanted.site, now)
        spelling = " ".join(wanted.subject.split())

        def take(body: Body | None) -> None:
            assert body is not None
            told = {name: body[name] for name in ("subject_id", "site_code", "randomization_number")}
            number = {"subject_id": spelling, "site_code": wanted.site, "randomization_number": slot.number}
            same("allocation", told, number)
            key, kit = subject_key(spelling), body["kit_code"]
            self._give(offer, key, slot.arm, kit, body["allocated_at"])
            self.used[wanted.level] += 1
            self.subjects[key] = Subject(spelling, wanted.site, wanted.level, ordinal, kit)
            self.answers[natural] = Answered((wanted.site, wanted.level), wanted.site, body)

        return Expected(201, take, is_claimed=True)

    def _again(self, kept: Answered) -> Expected:
        """Return the stored answer; it leaves once the entry of its replay is committed for sure, and else not (rule C4)."""
        return Expected(
            200, lambda body: same("replayed answer", body, kept.body) if body is not None else None, outcome="replayed"
        )

    def _subject(self, right: Right, spelling: str) -> tuple[str, Subject]:
        key = subject_key(spelling)
        if key not in self.subjects:
            raise Refused(404, "not_found")
        right.require(self.subjects[key].site)
        return key, self.subjects[key]

    @_act("allocation:mark_error")
    def mark_error(self, right: Right, _now: datetime, spelling: str, category: str) -> Expected:
        """Flag an allocation; subject, slot and kit stay (rule C7)."""
        _, subject = self._subject(right, spelling)
        return Expected(201, lambda _body: setattr(subject, "error_category", category))

    @_act("allocation:link_duplicate")
    def link_duplicate(self, right: Right, _now: datetime, spelling: str, other: str) -> Expected:
        """Say that two subjects are one person; both allocations stay (rule C7)."""
        if subject_key(spelling) == subject_key(other):
            raise Refused(422, "invalid")
        _, subject = self._subject(right, spelling)
        _, first = self._subject(right, other)
        return Expected(201, lambda _body: setattr(subject, "duplicate_of", first.spelling))

    # -- kits for subjects

    def _today(self, site: str, now: datetime) -> date:
        return now.astimezone(ZoneInfo(self.zones[site])).date()

    def _offer(self, site: str, now: datetime) -> Offer:
        """Return the soonest-expiring consignment that holds the floor of every arm; withdraw those before it (rules B5, B6)."""
        today = self._today(site, now)
        failing: list[Consignment] = []
        for consignment in sorted(self.consignments.values(), key=lambda one: one.unusable_from):
            if consignment.site == site and consignment.status == "assignable" and consignment.unusable_from > today:
                if self._holds_floor(consignment):
                    return Offer(consignment, failing)
                failing.append(consignment)

        def take(_body: Body | None) -> None:
            self._withdraw(failing)

        raise Refused(409, "stock_insufficient", take)

    def _holds_floor(self, consignment: Consignment) -> bool:
        left = Counter(self.kits[code].arm for code in consignment.kits if self.kits[code].status == "in_stock")
        return all(left[arm] >= self.floor for arm in self.treatments)

    def _withdraw(self, failing: Collection[Consignment]) -> None:
        for consignment in failing:
            consignment.status = "withdrawn"

    def _give(self, offer: Offer, subject: str, arm: str, code: str, at: str, **why: str | None) -> None:
        """Go on with the kit that the service has drawn."""
        self._withdraw(offer.failing)
        if code not in offer.consignment.kits:
            raise Divergence(f"kit {code} is not of the consignment that expires soonest and holds the floor")
        kit = self.kits[code]
        same(f"status of the drawn kit {code}", kit.status, "in_stock")
        same(f"arm of the drawn kit {code}", kit.arm, arm)
        kit.status, kit.subject, kit.at = "assigned", subject, datetime.fromisoformat(at)
        kit.visit, kit.replaces = why.get("visit"), why.get("replaces")

    def kits_of(self, key: str) -> list[tuple[str, Kit]]:
        """Return the kits of a subject, the first one first."""
        given = [(kit.at, code, kit) for code, kit in self.kits.items() if kit.subject == key and kit.at is not None]
        return [(code, kit) for _, code, kit in sorted(given, key=lambda one: one[:2])]

    def in_order(self) -> list[str]:
        """Return the subjects in the order of time."""
        return [key for _, key in sorted((str(self.kits[one.first_kit].at), key) for key, one in self.subjects.items())]

    def arm_of(self, subject: Subject) -> str:
        """Return the arm that the true list gives a subject."""
        return self.slots[subject.level][subject.ordinal].arm

    @_act("kit:assign")
    def assign(self, right: Right, now: datetime, spelling: str, visit: str) -> Expected:
        """Give a subject the kit for a visit; more than a few a day need a release (rules B7, B9)."""
        key, subject = self._subject(right, spelling)
        natural = ("kit", key, visit.casefold())
        if natural in self.answers:
            return self._again(self.answers[natural])
        self._require_supply(subject.site)
        given = self.kits_of(key)
        recent = [kit for _, kit in given if kit.visit is not None and kit.at is not None and kit.at > now - DAY]
        if len(recent) >= VISITS_A_DAY and not given[-1][1].is_released:
            raise Refused(409, "replacement_needs_release")
        offer = self._offer(subject.site, now)
        return self._one_more(offer, key, subject, natural, visit, None)

    def _require_supply(self, site: str) -> None:
        if self.status not in GOING_ON:
            raise Refused(409, "study_not_open")
        if site not in self.active:
            raise Refused(409, "site_inactive")

    def _one_more(
        self,
        offer: Offer,
        key: str,
        subject: Subject,
        natural: tuple[str, ...],
        visit: str | None,
        replaces: tuple[str, str] | None,
    ) -> Expected:
        """Return that a kit of the subject's arm is given, perhaps in the place of one, which then has another status."""
        old = None if replaces is None else replaces[0]

        def take(body: Body | None) -> None:
            assert body is not None
            told = {name: body[name] for name in ("subject_id", "status", "visit", "replaces")}
            wanted = {"subject_id": subject.spelling, "status": "assigned", "visit": visit, "replaces": old}
            same("assigned kit", told, wanted)
            why = {"visit": visit, "replaces": old}
            self._give(offer, key, self.arm_of(subject), body["kit_code"], body["assigned_at"], **why)
            if replaces is not None:
                self.kits[replaces[0]].status = replaces[1]
            self.answers[natural] = Answered(natural, subject.site, body)

        return Expected(201, take, is_claimed=True)

    @_act("kit:dispense")
    def dispense(self, right: Right, now: datetime, code: str, spelling: str, scanned: str) -> Expected:
        """Hand a kit to its subject; whatever else is wrong with it is one answer (rule B9)."""
        key, subject = self._subject(right, spelling)
        kit = self.kits.get(code)
        if kit is None or scanned != code or kit.subject != key:
            raise Refused(409, "kit_mismatch")
        if kit.status == "dispensed":
            raise Refused(409, "already_dispensed")
        if kit.status != "assigned" or not self.is_usable(code, self._today(subject.site, now)):
            raise Refused(409, "kit_mismatch")
        return Expected(200, lambda _body: setattr(kit, "status", "dispensed"))

    @_act("kit:replace")
    def replace(self, right: Right, now: datetime, code: str, reason_code: str) -> Expected:
        """Put another kit of the same arm in the place of one; a second within a day needs a release (rule B9)."""
        site = self._at_their_site(right, code)
        old = self.kits[code]
        if old.subject is None:
            raise Refused(409, "illegal_transition")
        natural = ("replacement", code, reason_code)
        if natural in self.answers:
            return self._again(self.answers[natural])
        self._require_supply(site)
        given = [kit for _, kit in self.kits_of(old.subject)]
        if any(kit.replaces == code for kit in given):
            raise Refused(409, "illegal_transition")
        if not old.is_released and any(kit.replaces and kit.at is not None and kit.at > now - DAY for kit in given):
            raise Refused(409, "replacement_needs_release")
        status = self._replaced(old.status, reason_code)
        offer = self._offer(site, now)
        subject = self.subjects[old.subject]
        return self._one_more(offer, old.subject, subject, natural, old.visit, (code, status))

    def _replaced(self, status: str, reason_code: str) -> str:
        why = {"damaged": "kit:damage", "lost": "kit:loss"}.get(reason_code)
        if why is not None and status not in ("damaged", "lost"):
            status = self._step(status, why)
        return self._step(status, "replace")

    def _step(self, status: str, step: str) -> str:
        if status not in STEPS[step]:
            raise Refused(409, "illegal_transition")
        return STEPS[step][status]

    def _at_their_site(self, right: Right, code: str) -> str:
        kit = self.kits.get(code)
        site = None if kit is None else self.consignments[kit.consignment].site
        right.require(site)
        assert site is not None
        return site

    @_act("kit:release_replacement")
    def release_replacement(self, _right: Right, _now: datetime, code: str) -> Expected:
        """Let a kit be replaced within the day, once."""
        if code not in self.kits:
            raise Refused(404, "not_found")
        kit = self.kits[code]
        if kit.is_released:
            raise Refused(409, "already_exists")
        return Expected(200, lambda _body: setattr(kit, "is_released", True))

    # -- kits put aside

    def _moved(self, code: str, status: str) -> Expected:
        def take(body: Body | None) -> None:
            if body is not None:
                same("kit", body, {"kit_code": code, "status": status})
            self.kits[code].status = status

        return Expected(200, take)

    def _at_site(self, right: Right, code: str, step: str) -> Expected:
        self._at_their_site(right, code)
        return self._moved(code, self._step(self.kits[code].status, step))

    @_act("kit:quarantine")
    def quarantine(self, right: Right, _now: datetime, code: str) -> Expected:
        """Put a kit aside."""
        return self._at_site(right, code, "kit:quarantine")

    @_act("kit:return")
    def take_back(self, right: Right, _now: datetime, code: str) -> Expected:
        """Take a kit back from its subject."""
        return self._at_site(right, code, "kit:return")

    @_act("kit:loss")
    def report_loss(self, right: Right, _now: datetime, code: str) -> Expected:
        """Report a kit lost."""
        return self._at_site(right, code, "kit:loss")

    @_act("kit:damage")
    def report_damage(self, right: Right, _now: datetime, code: str) -> Expected:
        """Report a kit damaged."""
        return self._at_site(right, code, "kit:damage")

    @_act("kit:release")
    def release(self, _right: Right, _now: datetime, code: str) -> Expected:
        """Let a kit out of quarantine, to where it was; never one by which a code was broken (EUB-07)."""
        if code not in self.kits:
            raise Refused(404, "not_found")
        kit = self.kits[code]
        if kit.was_broken or kit.status != "quarantined":
            raise Refused(409, "illegal_transition")
        return self._moved(code, "in_stock" if kit.subject is None else "assigned")

    @_act("kit:destroy")
    def destroy(self, _right: Right, _now: datetime, code: str) -> Expected:
        """Destroy a kit."""
        if code not in self.kits:
            raise Refused(404, "not_found")
        return self._moved(code, self._step(self.kits[code].status, "kit:destroy"))

    # -- consignments

    @_act("consignment:create")
    def create(self, _right: Right, _now: datetime, code: str, unusable_from: date, kit_count: int) -> Expected:
        """Make a consignment; what it holds is told to the model by ``fill``."""
        if code in self.consignments:
            raise Refused(409, "already_exists")

        def take(body: Body | None) -> None:
            if body is not None:
                same("kits of the consignment", body["kit_count"], kit_count)
            self.consignments[code] = Consignment(unusable_from)

        return Expected(201, take)

    def fill(self, code: str, arms: Mapping[str, str]) -> None:
        """Take in which kits a consignment has, and of which arms they are."""
        self.consignments[code].kits = tuple(sorted(arms))
        self.kits |= {kit: Kit(arm, code) for kit, arm in arms.items()}

    @_act("consignment:dispatch")
    def dispatch(self, _right: Right, _now: datetime, code: str, site: str) -> Expected:
        """Send a consignment."""
        if site not in self.zones or code not in self.consignments:
            raise Refused(404, "not_found")
        consignment = self.consignments[code]
        if consignment.status != "registered":
            raise Refused(409, "illegal_transition")

        def take(_body: Body | None) -> None:
            consignment.status, consignment.site = "dispatched", site
            for kit in consignment.kits:
                if self.kits[kit].status == "registered":
                    self.kits[kit].status = "dispatched"

        return Expected(200, take)

    @_act("consignment:receive")
    def receive(
        self, right: Right, _now: datetime, code: str, received: Sequence[str], missing: Sequence[str]
    ) -> Expected:
        """Receive codes; with the last one the consignment becomes assignable, as a whole (rule B6)."""
        if not received and not missing:
            raise Refused(422, "invalid")
        consignment = self.consignments.get(code)
        right.require(None if consignment is None else consignment.site)
        assert consignment is not None
        if not {*received, *missing} <= set(consignment.kits):
            raise Refused(409, "kit_mismatch")
        is_open = consignment.status == "dispatched"
        moved = {kit: self._received(kit, is_open=is_open) for kit in received}
        moved |= {kit: self._reported(kit) for kit in missing}
        open_still = [kit for kit in consignment.kits if moved.get(kit, self.kits[kit].status) == "dispatched"]
        status = "assignable" if is_open and not open_still else consignment.status

        def take(body: Body | None) -> None:
            for kit, becomes in moved.items():
                self.kits[kit].status = becomes
            consignment.status = status
            if body is not None:
                same("receipt", (body["status"], body["outstanding"]), (status, len(open_still)))

        return Expected(200, take)

    def _received(self, code: str, *, is_open: bool) -> str:
        kit = self.kits[code]
        if kit.status == "missing" or (kit.status == "dispatched" and is_open):
            return "in_stock" if is_open else "quarantined"
        return self._left_aside(kit)

    def _reported(self, code: str) -> str:
        kit = self.kits[code]
        return "missing" if kit.status == "dispatched" else self._left_aside(kit)

    def _left_aside(self, kit: Kit) -> str:
        if not kit.was_broken:
            raise Refused(409, "illegal_transition")
        return kit.status

    # -- the code break

    @_act("code_break:create")
    def break_subject(self, right: Right, _now: datetime, spelling: str) -> Expected:
        """Tell one subject's treatment, whatever the state of study and site (rules D1 to D5)."""
        key, subject = self._subject(right, spelling)
        return self._broken(right, key, subject, None)

    @_act("code_break:create")
    def break_kit(self, right: Right, _now: datetime, code: str) -> Expected:
        """Tell what is in a kit, for any investigator; one of nobody's is put aside (rule D2)."""
        if code not in self.kits:
            raise Refused(404, "not_found")
        kit = self.kits[code]
        if kit.subject is not None:
            return self._broken(right, kit.subject, self.subjects[kit.subject], code)

        def take(body: Body | None) -> None:
            self._check_reveal(body, None, kit.arm, [code])
            self._register(right, body, None, code)
            kit.status = STEPS["break"].get(kit.status, kit.status)
            kit.was_broken = True

        return Expected(201, take, outcome="authorised")

    def _broken(self, right: Right, key: str, subject: Subject, code: str | None) -> Expected:
        def take(body: Body | None) -> None:
            kits = [kit for kit, _ in self.kits_of(key)]
            self._check_reveal(body, subject.spelling, self.arm_of(subject), kits)
            self._register(right, body, key, code)
            subject.is_unblinded = True

        return Expected(201, take, outcome="authorised")

    def _check_reveal(self, body: Body | None, spelling: str | None, arm: str, kits: Sequence[str]) -> None:
        if body is not None:
            told = tuple(body[name] for name in ("subject_id", "arm_code", "treatment", "kit_codes"))
            same("code break", told, (spelling, arm, self.treatments[arm], list(kits)))

    def _register(self, right: Right, body: Body | None, subject: str | None, kit: str | None) -> None:
        self.breaks.append(Break(subject, kit, right.who, "authorised" if body is not None else "withheld"))

    # -- the study, its sites and its lists

    @_act("study:set_status")
    def set_status(self, _right: Right, _now: datetime, status: str) -> Expected:
        """Open, suspend or close; closed is for ever, for the lists too."""
        if (self.status, status) not in STATUSES:
            raise Refused(409, "illegal_transition")

        def take(_body: Body | None) -> None:
            self.status = status
            if status == "closed":
                for segment in self.segments.values():
                    segment.status = {"active": "closed"}.get(segment.status, segment.status)

        return Expected(200, take)

    @_act("site:activate")
    def activate_site(self, _right: Right, now: datetime, site: str) -> Expected:
        """Activate a site with two investigators, a list and stock; looking withdraws nothing (EUB-16)."""
        if site not in self.zones:
            raise Refused(404, "not_found")
        able = [who for who, person in self.people.items() if ("investigator", site) in person.grants]
        today = self._today(site, now)
        is_stocked = any(
            one.site == site and one.status == "assignable" and one.unusable_from > today and self._holds_floor(one)
            for one in self.consignments.values()
        )
        ready = self.drilled[site].intersection(able)
        if len(ready) < 2 or not is_stocked or all(segment.status != "active" for segment in self.segments.values()):
            raise Refused(409, "site_not_ready")
        if site in self.active:
            raise Refused(409, "illegal_transition")
        return Expected(200, lambda _body: self.active.add(site))

    @_act("schedule:extend")
    def extend(self, _right: Right, _now: datetime, schedule_id: str) -> Expected:
        """Make a segment of a list; its slots are told to the model by ``segments``."""
        if self.segments[schedule_id].status not in ("approved", "active"):
            raise Refused(409, "illegal_transition")
        if self.status == "closed":
            raise Refused(409, "study_not_open")

        def take(body: Body | None) -> None:
            assert body is not None
            self.segments[body["schedule_id"]] = Segment({})

        return Expected(201, take)

    @_act("schedule:approve")
    def approve(self, _right: Right, _now: datetime, schedule_id: str) -> Expected:
        """Approve a segment."""
        segment = self.segments[schedule_id]
        if segment.status != "generated":
            raise Refused(409, "illegal_transition")
        return Expected(200, lambda _body: setattr(segment, "status", "approved"))

    @_act("schedule:activate")
    def activate(self, _right: Right, _now: datetime, schedule_id: str) -> Expected:
        """Have a segment follow those that are active (SEQ-17)."""
        segment = self.segments[schedule_id]
        if segment.status != "approved":
            raise Refused(409, "illegal_transition")
        if self.status == "closed":
            raise Refused(409, "study_not_open")

        def take(_body: Body | None) -> None:
            segment.status = "active"
            for level, slots in segment.slots.items():
                self.slots[level].extend(slots)

        return Expected(200, take)

    # -- what is read

    def is_usable(self, code: str, today: date) -> bool:
        """Tell what a site sees of a kit beside its status (rule B11)."""
        kit = self.kits[code]
        consignment = self.consignments[kit.consignment]
        if today >= consignment.unusable_from:
            return False
        return kit.status in ("assigned", "dispensed") or (
            kit.status == "in_stock" and consignment.status == "assignable"
        )

    def stock(self, site: str, now: datetime) -> tuple[Mapping[str, int], list[tuple[str, str, str, bool]]]:
        """Return the counts by status, and every kit of a site: code, consignment, status, and whether it is usable."""
        today = self._today(site, now)
        here = [
            (code, kit.consignment, kit.status, self.is_usable(code, today))
            for code, kit in sorted(self.kits.items())
            if self.consignments[kit.consignment].site == site
        ]
        return Counter(status for _, _, status, _ in here), here

    def record(self, key: str) -> dict[str, Any]:
        """Return an allocation as it is read."""
        subject = self.subjects[key]
        return {
            "subject_id": subject.spelling,
            "site_code": subject.site,
            "randomization_number": self.slots[subject.level][subject.ordinal].number,
            "kit_code": subject.first_kit,
            "current_kit_codes": [code for code, kit in self.kits_of(key) if kit.status in ("assigned", "dispensed")],
            "strata_used": {"SEX": subject.level},
            "is_unblinded": subject.is_unblinded,
            "error_category": subject.error_category,
            "duplicate_of": subject.duplicate_of,
        }
