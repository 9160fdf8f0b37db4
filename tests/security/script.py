"""The demo's script, extended by everything that blinded people can do, played in process and recorded answer by answer.

with running(url, folder) as house:
    play = Play.in_house(house, subjects=24)
    play.run()
    play.recorder.exchanges
"""

import hashlib
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final, Self
from unittest.mock import patch

import structlog
from httpx2 import Response
from prometheus_client import REGISTRY, disable_created_metrics, enable_created_metrics, generate_latest
from prometheus_client.metrics import MetricWrapperBase

from app.api import edge
from app.cli.trial import Client, Machine, Person, Trial, UnexpectedAnswer, read_protocol
from app.domain.codes import check_character
from app.domain.words import BLINDED_ROLES, Role
from app.services import keeper
from app.services.keeper import Keeper
from tests import harness
from tests.authenticator import SETTINGS
from tests.envelopes import settings_in, writing_when_told
from tests.harness import House, TickingClock
from tests.inprocess import InProcessClient

ANONYMOUS: Final = "anonymous"
SECOND_SITE: Final = "02"
OTHER_STUDY: Final = "OTHER-1"
KITS_AT_THE_FLOOR: Final = 4
"""Kits of each arm in the consignment by which the script goes down to the floor of 3."""
LIST_LENGTH: Final = 24


@dataclass(frozen=True, slots=True)
class Exchange:
    """One request, and everything that came back."""

    who: str
    method: str
    path: str
    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes

    @property
    def place(self) -> str:
        return f"{self.who}: {self.method} {self.path}"


class Recorder:
    """An HTTP client that keeps every answer, under the name of who is speaking."""

    def __init__(self, client: InProcessClient) -> None:
        self._client = client
        self.speaker = ANONYMOUS
        self.exchanges: list[Exchange] = []

    def request(
        self,
        method: str,
        url: str,
        *,
        json: Any = None,  # noqa: ANN401  # whatever JSON holds
        data: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        content: bytes | None = None,
    ) -> Response:
        response = self._client.request(method, url, json=json, data=data, headers=headers, content=content)
        told = tuple((name.lower(), value) for name, value in response.headers.multi_items())
        self.exchanges.append(Exchange(self.speaker, method, url, response.status_code, told, response.content))
        return response


@dataclass
class Output:
    """What the service says beside its answers: its own log lines, and its metrics."""

    lines: io.StringIO = field(default_factory=io.StringIO)

    def log(self) -> list[str]:
        return self.lines.getvalue().splitlines()

    @staticmethod
    def metrics() -> str:
        exposed = generate_latest(REGISTRY).decode().splitlines()
        return "\n".join(line for line in exposed if "snose_" in line)


@contextmanager
def listening() -> Iterator[Output]:
    """Collect log lines and metrics from nothing, with a stop watch that always shows the same times."""
    output = Output()
    watch = count()
    with ExitStack() as stack:
        # Real durations differ from run to run and say nothing; a watch that ticks shows the same on every twin.
        ticking = SimpleNamespace(perf_counter=lambda: next(watch) / 1000)
        stack.enter_context(patch.object(edge, "time", ticking))
        # The round of every minute comes when the script says so, not when the machine happens to be slow.
        stack.enter_context(patch.object(keeper, "INTERVAL", timedelta(days=1)))
        stack.callback(structlog.reset_defaults)
        structlog.configure(
            processors=[structlog.processors.add_log_level, structlog.processors.JSONRenderer(sort_keys=True)],
            logger_factory=structlog.PrintLoggerFactory(output.lines),
            cache_logger_on_first_use=False,
        )
        stack.callback(enable_created_metrics)
        disable_created_metrics()  # type: ignore[no-untyped-call]  # the library has no types here
        for metric in set(REGISTRY._collector_to_names):
            if isinstance(metric, MetricWrapperBase) and metric._name.startswith("snose"):
                metric.clear()
        yield output


def protocol_of(length: int) -> Any:  # noqa: ANN401  # the demo's own StudyProtocol
    """Return NCT03033277, planned for fewer subjects."""
    return replace(read_protocol(), planned_subjects=length)


def other_code(text: str = "KKKKKKKK") -> str:
    """Return a well formed kit code that nobody drew."""
    return text + check_character(text)


class Play(Trial):
    """The demo's script in other hands: every answer is recorded, and refusals are answers too."""

    recorder: Recorder
    clock: TickingClock
    house: House

    @classmethod
    def in_house(cls, house: House, length: int = LIST_LENGTH) -> Self:
        recorder = Recorder(house.client)
        admin = Person("admin", house.admin.password, house.admin.totp_secret, (Role.SERVICE_ADMIN,))
        clock = house.clock

        def next_step(moment: datetime) -> None:
            clock.advance(seconds=30 - moment.timestamp() % 30)

        client: Client = recorder
        play = cls(client, lambda: clock.now, next_step, admin, protocol=protocol_of(length))
        play.recorder, play.clock, play.house = recorder, clock, house
        return play

    # -- asking

    def ask(
        self,
        who: Person | Machine | None,
        method: str,
        path: str,
        body: Any = None,  # noqa: ANN401  # whatever JSON holds
        *,
        step_up: bool = False,
        headers: Mapping[str, str] | None = None,
    ) -> Any:  # noqa: ANN401  # the client's response
        response = self.tell(who, method, path, body, step_up=step_up, headers=headers)
        if not response.is_success:
            raise UnexpectedAnswer(f"{method} {path}: {response.status_code} {response.text}")
        return response

    def tell(
        self,
        who: Person | Machine | None,
        method: str,
        path: str,
        body: Any = None,  # noqa: ANN401  # whatever JSON holds
        *,
        step_up: bool = False,
        headers: Mapping[str, str] | None = None,
        content: bytes | None = None,
    ) -> Response:
        """Send a request and return whatever comes back."""
        sent = dict(headers or {})
        if who is not None:
            sent["Authorization"] = f"Bearer {self._token(who, step_up=step_up)}"
            self.recorder.speaker = name_of(who)
        try:
            if content is not None:
                sent.setdefault("Content-Type", "application/json")
                return self.recorder.request(method, path, headers=sent, content=content)
            return self.recorder.request(method, path, json=body, headers=sent)
        finally:
            self.recorder.speaker = ANONYMOUS

    def prove_anew(self, who: Person) -> None:
        """Forget a proof that an act has spent."""
        who.stepped_up_at = None

    # -- the people

    def own(self, person: Person, issued: str) -> None:
        """Take over an account, with a password that does not hold its name."""
        person.password = f"heron at dawn {hashlib.sha256(person.username.encode()).hexdigest()[:12]}"
        super().own(person, issued)

    def gather(self) -> None:
        """Let everybody join: two of those who act at the site, one of each other role, one at another site, one elsewhere."""
        for role in (Role.STUDY_ADMIN, Role.INVESTIGATOR, Role.INVESTIGATOR, Role.COORDINATOR, Role.PHARMACIST):
            self.join(f"{role.value}.{len(self.people.get(role, ())) + 1}", role)
        for role in (Role.MONITOR, Role.INSPECTOR, Role.STATISTICIAN, Role.LIST_APPROVER, Role.SUPPLY_MANAGER):
            self.join(f"{role.value}.1", role)
        for role in (Role.UNBLINDED_PHARMACIST, Role.SAFETY_OFFICER, Role.TREATING_PHYSICIAN):
            self.join(f"{role.value}.1", role)
        self.edc = self.join_machine("EDC system")
        self.site_code, home = SECOND_SITE, self.site_code
        self.join("investigator.elsewhere", Role.INVESTIGATOR)
        self.join("pharmacist.elsewhere", Role.PHARMACIST)
        self.site_code = home
        self.protocol, study = replace(self.protocol, study_code=OTHER_STUDY), self.protocol
        self.join("monitor.of.another.study", Role.MONITOR)
        self.protocol = study

    def blinded(self) -> list[Person | Machine]:
        """Return everybody who must learn nothing, the administrator of the service included."""
        found: list[Person | Machine] = [self.admin]
        found += [person for role in BLINDED_ROLES for person in self.people.get(role, ())]
        if self.edc is not None:
            found.append(self.edc)
        return sorted(found, key=name_of)

    # -- the script

    def prepare(self) -> None:
        """Take the study from nothing to an open one, with a stocked site and a consignment on its way to another."""
        self.gather()
        self.register()
        admin = self.who(Role.STUDY_ADMIN)
        second = {"site_code": SECOND_SITE, "name": "Suzhou", "timezone": "Asia/Shanghai"}
        self.ask(admin, "POST", f"{self.study}/sites", second)
        self.refuse_early()
        self.make_list(self.block_sizes)
        self.stock("C1")
        self.send("C9", KITS_AT_THE_FLOOR, SECOND_SITE)
        self.read_pages()
        self.open()

    block_sizes: tuple[int, ...] = (4, 6, 8)

    def send(self, consignment_code: str, each: int, site_code: str) -> None:
        """Send a consignment with so many kits of each arm to a site."""
        day = self.now().date() + timedelta(days=700)
        kits = [
            {
                "arm_code": arm["arm_code"],
                "lot": f"L{ordinal}",
                "expires_on": (day + timedelta(days=10 * ordinal)).isoformat(),
                "count": each,
            }
            for ordinal, arm in enumerate(self.protocol.arms)
        ]
        manager = self.who(Role.SUPPLY_MANAGER)
        body = {"consignment_code": consignment_code, "kits": kits}
        self.ask(manager, "POST", f"{self.study}/consignments", body, step_up=True)
        path = f"{self.study}/consignments/{consignment_code}"
        self.ask(manager, "POST", f"{path}/dispatch", {"site_code": site_code})

    def receive(self, consignment_code: str) -> None:
        """Have the site's pharmacist receive a consignment in full."""
        codes = self.kit_codes(consignment_code)
        path = f"{self.study}/consignments/{consignment_code}/receipt"
        self.ask(self.who(Role.PHARMACIST), "POST", path, {"received": codes, "missing": []})

    def refuse_early(self) -> None:
        """Ask for what cannot be yet."""
        self.allocate(self.who(Role.INVESTIGATOR), 1)
        self.tell(self.who(Role.STUDY_ADMIN), "POST", f"{self.study}/sites/01/activation", step_up=True)

    def read_pages(self) -> None:
        """Read the stock in small pages while every kit of it is alike."""
        cursor: str | None = ""
        while cursor is not None:
            path = f"{self.study}/sites/{self.site_code}/kits?limit=40{cursor and f'&cursor={cursor}'}"
            cursor = self.tell(self.who(Role.PHARMACIST), "GET", path).json()["next_cursor"]

    def allocation_of(self, number: int, **changes: object) -> dict[str, object]:
        return {
            "subject_id": self.subject_id(number),
            "site_code": self.site_code,
            "strata": {},
            "consent_confirmed": True,
            "eligibility_confirmed": True,
            "reported_user": "nurse.li",
            **changes,
        }

    def allocate(self, who: Person | Machine | None, number: int, **changes: object) -> Response:
        return self.tell(who, "POST", f"{self.study}/allocations", self.allocation_of(number, **changes))

    def kits_of(self, number: int) -> list[dict[str, Any]]:
        path = f"{self.study}/subjects/{self.subject_id(number)}/kits"
        items: list[dict[str, Any]] = self.tell(self.who(Role.PHARMACIST), "GET", path).json()["items"]
        return items

    def in_stock(self, consignment_code: str) -> list[str]:
        """Return the codes of a consignment that nobody was given, in their order."""
        path = f"{self.study}/sites/{self.site_code}/kits?limit=500"
        items = self.ask(self.who(Role.PHARMACIST), "GET", path).json()["items"]
        return [
            item["kit_code"]
            for item in items
            if item["consignment_code"] == consignment_code and item["status"] == "in_stock"
        ]

    def at_kit(self, kit_code: str, act: str, **body: object) -> Response:
        return self.tell(self.who(Role.PHARMACIST), "POST", f"{self.study}/kits/{kit_code}/{act}", body)

    def dispense(self, number: int, kit_code: str, scanned: str | None = None) -> Response:
        subject = self.subject_id(number)
        return self.at_kit(kit_code, "dispensation", subject_id=subject, scanned_code=scanned or kit_code)

    def refuse_allocations(self, enrolled: int) -> None:
        """Provoke every refusal of an allocation that needs no change of the study."""
        coordinator, study = self.who(Role.COORDINATOR), self.study
        new = enrolled + 1
        self.allocate(coordinator, new, consent_confirmed=False)
        self.allocate(coordinator, new, eligibility_confirmed=False)
        self.allocate(coordinator, new, strata={"sex": "f"})
        self.allocate(coordinator, new, site_code="99")
        self.allocate(coordinator, new, site_code=SECOND_SITE)
        self.allocate(self.people[Role.INVESTIGATOR][2], new, site_code=SECOND_SITE)
        self.allocate(self.edc, new, reported_user=None)
        self.allocate(self.edc, 1)
        self.allocate(coordinator, 1)
        self.allocate(self.people[Role.INVESTIGATOR][2], 1, site_code=SECOND_SITE)
        self.allocate(self.edc, 1, site_code=SECOND_SITE)
        self.allocate(coordinator, new, colour="red")
        self.allocate(coordinator, new, subject_id="../x")
        self.allocate(self.who(Role.MONITOR), new)
        self.allocate(None, new)
        for content in (b"{", b'{"subject_id": "\\ud800"}', b'{"a": 1e400}', b'{"a": 1, "a": 2}', b"[]"):
            self.tell(coordinator, "POST", f"{study}/allocations", content=content)
        self.tell(coordinator, "GET", "/v1/studies/NONE/allocations")
        self.tell(coordinator, "GET", f"{study}/subjects/01-9999/allocation")

    def refuse_kits(self) -> None:
        """Scan every wrong kit there is: unknown, foreign, unassigned, another subject's, unusable, two that differ."""
        own = self.kits_of(1)[0]["kit_code"]
        others = [self.kits_of(number)[0]["kit_code"] for number in range(2, 8)]
        unassigned = self.in_stock("C1")[:8]
        path = f"{self.study}/sites/{SECOND_SITE}/kits?limit=500"
        foreign = self.ask(self.people[Role.PHARMACIST][1], "GET", path).json()["items"][0]["kit_code"]
        for wrong in (other_code(), foreign, *unassigned, *others):
            self.dispense(1, wrong)
            self.dispense(1, own, wrong)
            self.dispense(1, wrong, own)
        self.dispense(1, own)
        self.dispense(999, own)
        self.dispense(1, other_code()[:-1] + "2")
        # What was named here is never given to anybody: its name would tell twins apart that chose differently, as they may.
        for code in unassigned:
            self.at_kit(code, "quarantine", reason="Opened by mistake")
        for act in ("replacement", "quarantine", "return", "loss", "damage"):
            for code in (other_code(), foreign, unassigned[0]):
                reason = {"reason": "A question", **({"reason_code": "other"} if act == "replacement" else {})}
                if act != "replacement" and code == unassigned[0]:
                    continue
                self.at_kit(code, act, **reason)

    def supply(self, enrolled: int) -> None:
        """Give kits at visits, replace, put aside, lose, return, release and destroy."""
        pharmacist, manager = self.who(Role.PHARMACIST), self.who(Role.SUPPLY_MANAGER)
        for number in range(1, min(enrolled, 9)):
            for visit in ("V2", "v2", "V3")[: 3 if number < 4 else 1]:
                path = f"{self.study}/subjects/{self.subject_id(number)}/kits"
                self.tell(self.edc if number % 2 else pharmacist, "POST", path, {"visit": visit})
        for number in range(1, 7):
            first = self.kits_of(number)[0]["kit_code"]
            reason = ("damaged", "lost", "temperature_excursion", "other")[number % 4]
            self.at_kit(first, "replacement", reason_code=reason, reason="It arrived warm")
            self.at_kit(first, "replacement", reason_code=reason, reason="It arrived warm")
        newest = self.kits_of(1)[-1]["kit_code"]
        self.at_kit(newest, "replacement", reason_code="lost", reason="Lost on the way home")
        self.tell(manager, "POST", f"{self.study}/kits/{newest}/replacement-release", step_up=True)
        self.at_kit(newest, "replacement", reason_code="lost", reason="Lost on the way home")
        aside, damaged, lost, found = self.in_stock("C1")[:4]
        given = self.kits_of(5)[-1]["kit_code"]
        for code in (aside, given):
            self.at_kit(code, "quarantine", reason="The fridge was warm")
        self.dispense(5, given)
        for code in (aside, given):
            body = {"reason": "Within its stability data"}
            self.tell(manager, "POST", f"{self.study}/kits/{code}/release", body, step_up=True)
        self.dispense(5, given)
        self.at_kit(given, "return", reason="Brought back")
        self.at_kit(damaged, "damage", reason="Crushed")
        self.at_kit(lost, "loss", reason="Not in the fridge")
        self.tell(manager, "POST", f"{self.study}/kits/{damaged}/destruction", {"reason": "Crushed"}, step_up=True)
        self.tell(pharmacist, "POST", f"{self.study}/kits/{aside}/release", {"reason": "Mine"})
        self.at_kit(aside, "quarantine", reason="The fridge was warm again")
        self.break_kit(found)

    def break_kit(self, kit_code: str) -> None:
        """Break the code of a kit that nobody was given: a child found it."""
        who = self.people[Role.INVESTIGATOR][1]
        self.prove_anew(who)
        body = {"kit_code": kit_code, "reason_code": "accidental_exposure"}
        self.ask(who, "POST", f"{self.study}/code-breaks", body, step_up=True)

    def flag(self) -> None:
        """Mark errors, correct strata, link a duplicate: kept and flagged."""
        investigator, subjects = self.who(Role.INVESTIGATOR), f"{self.study}/subjects"
        body: dict[str, object] = {"category": "ineligible", "reason": "Found out later"}
        self.tell(investigator, "POST", f"{subjects}/{self.subject_id(2)}/error-mark", body, step_up=True)
        self.tell(investigator, "POST", f"{subjects}/{self.subject_id(2)}/error-mark", body)
        body = {"strata": {"sex": "f"}, "reason": "Typed wrongly"}
        self.tell(investigator, "POST", f"{subjects}/{self.subject_id(3)}/strata-correction", body)
        body = {"duplicate_of": self.subject_id(1), "reason": "One person came twice"}
        self.tell(investigator, "POST", f"{subjects}/{self.subject_id(4)}/duplicate-link", body)

    def unblind_some(self) -> None:
        """Break the code of one subject, and of another for safety, by those who may; refuse it to those who may not."""
        self.break_code(min(7, len(self.allocations)))
        for who in self.blinded():
            if Role.INVESTIGATOR not in who.roles:
                body = {"subject_id": self.subject_id(1), "reason_code": "overdose"}
                self.tell(who, "POST", f"{self.study}/code-breaks", body)
        self.tell(
            self.who(Role.SAFETY_OFFICER),
            "POST",
            f"{self.study}/safety-unblindings",
            {"subject_id": self.subject_id(3), "reason": "SUSAR"},
            step_up=True,
        )
        self.assess()
        accidents = f"{self.study}/accidental-unblindings"
        self.tell(self.who(Role.COORDINATOR), "POST", accidents, self.accident(5))
        self.tell(self.edc, "POST", accidents, self.accident(5))
        self.let_a_physician_know(6)
        path = f"{self.study}/subjects/{self.subject_id(2)}/preparation"
        self.tell(self.who(Role.UNBLINDED_PHARMACIST), "GET", path, step_up=True)
        self.tell(self.who(Role.PHARMACIST), "GET", path)

    def assess(self) -> None:
        """Say what the first code break means for the trial, twice; nobody without the right may."""
        breaks = f"{self.study}/code-breaks"
        [first, *_] = self.ask(self.who(Role.STUDY_ADMIN), "GET", breaks).json()["items"]
        body = {"impact": "bias_possible", "assessment": "The ward knows", "corrective_action": "They were told again"}
        for who in (*self.blinded(), self.who(Role.STUDY_ADMIN)):
            self.tell(who, "POST", f"{breaks}/{first['code_break_id']}/assessment", body)

    def let_a_physician_know(self, number: int) -> None:
        """Name a physician, who opens a treatment; whoever asked for it may not."""
        asking, physician = self.who(Role.INVESTIGATOR), self.who(Role.TREATING_PHYSICIAN)
        requests = f"{self.study}/third-party-unblindings"
        self.prove_anew(asking)
        body = {"subject_id": self.subject_id(number), "physician": physician.username, "reason_code": "overdose"}
        asked = self.tell(asking, "POST", requests, body, step_up=True).json()
        self.tell(asking, "POST", requests, {**body, "physician": "nobody.here"}, step_up=True)
        opening = f"{requests}/{asked['third_party_unblinding_id']}/opening"
        self.ask(physician, "POST", opening, step_up=True)
        self.prove_anew(physician)
        for who in self.blinded():
            self.tell(who, "POST", opening)

    def accident(self, number: int) -> dict[str, object]:
        """Return what is told of an accidental unblinding."""
        return {
            "subject_id": self.subject_id(number),
            "happened_at": self.house.clock.now.isoformat(),
            "how_learnt": "document",
            "who_learnt": ["investigator", "subject"],
            "narrative": "A letter lay open",
        }

    def read_everything(self, subjects: Sequence[int]) -> None:
        """Let one person of every blinded role read, or try to read, everything there is, and strangers some of it."""
        paths = [*self.readable(subjects), *self.readable_trail(subjects)]
        readers = {who.roles[0]: who for who in reversed(self.blinded()) if "elsewhere" not in name_of(who)}
        for who in readers.values():
            for path in paths:
                self.tell(who, "GET", path)
        for stranger in (*(who for who in self.blinded() if who not in readers.values()), None):
            for path in paths[::5]:
                self.tell(stranger, "GET", path)
        self.tell(self.who(Role.INSPECTOR), "GET", f"{self.study}/trail/export", step_up=True)

    def read_state(self, subjects: Sequence[int]) -> None:
        """Let those who work at the site, the machine and the monitor read how things stand."""
        roles = (Role.INVESTIGATOR, Role.PHARMACIST, Role.MONITOR)
        for who in (*(self.who(role) for role in roles), self.edc):
            for path in self.readable(subjects):
                self.tell(who, "GET", path)

    def readable(self, subjects: Sequence[int]) -> Iterator[str]:
        """Give every path that tells how the study stands."""
        study = self.study
        lists = self.ask(self.who(Role.STUDY_ADMIN), "GET", f"{study}/schedules").json()["items"]
        schedule = f"{study}/schedules/{lists[0]['schedule_id']}"
        yield from ("/v1/me", study, f"{study}/sites", f"{study}/schedules", schedule, f"{schedule}/quality-report")
        yield from (f"{study}/allocations?limit=500", f"{study}/allocations?limit=5")
        yield from (f"{study}/code-breaks", f"{study}/safety-unblindings")
        yield from (f"{study}/accidental-unblindings", f"{study}/third-party-unblindings")
        yield from (f"{study}/unblinding-log?limit=5", f"{study}/unblinding-log/export", f"{study}/residual-inference")
        for site in (self.site_code, SECOND_SITE):
            yield from (f"{study}/sites/{site}/kits?limit=500", f"{study}/sites/{site}/worklist")
        for number in subjects:
            subject = f"{study}/subjects/{self.subject_id(number)}"
            yield from (f"{subject}/allocation", f"{subject}/kits", f"{subject}/preparation")

    def readable_trail(self, subjects: Sequence[int]) -> Iterator[str]:
        """Give every path that tells what was done."""
        study = self.study
        yield from (f"{study}/trail?limit=500", f"{study}/trail?limit=7", f"{study}/trail?actor=pharmacist.1&limit=50")
        for number in subjects:
            yield f"{study}/trail?subject={self.subject_id(number)}"
        for action in ("allocation:create", "kit:assign", "kit:replace", "consignment:create", "code_break:create"):
            yield f"{study}/trail?action={action}"
        yield f"{study}/trail?from=2026-11-22T08:01:00Z&to=2026-11-22T09:00:00Z&limit=20"
        yield from (f"{study}/trail/checkpoint", f"{study}/trail/proofs/3", f"{study}/trail/proofs/40")
        yield from (f"{study}/trail/consistency?from=5&to=40", f"{study}/trail/consistency?from=40")
        yield from (f"{study}/trail/3/restricted", f"{study}/trail/export", "/v1/trail?limit=500", "/v1/people")
        yield from ("/livez", "/readyz", "/v1/trail/nothing")

    def go_to_the_floor(self, enrolled: int) -> int:
        """Put nearly all stock aside, go on with a consignment of the least size, and return how many are enrolled then."""
        for code in self.in_stock("C1")[2:]:
            self.at_kit(code, "quarantine", reason="Temperature excursion")
        self.allocate(self.who(Role.COORDINATOR), enrolled + 1)
        path = f"{self.study}/subjects/{self.subject_id(1)}/kits"
        self.tell(self.edc, "POST", path, {"visit": "V9"})
        self.send("C2", KITS_AT_THE_FLOOR, self.site_code)
        self.receive("C2")
        for number in range(enrolled + 1, enrolled + 5):
            self.allocate(self.edc, number)
            self.allocate(self.edc, number)
        self.send("C3", 12, self.site_code)
        self.receive("C3")
        return enrolled + 3

    def exhaust(self, enrolled: int) -> None:
        """Use the list up, and ask for more."""
        for number in range(enrolled + 1, self.protocol.planned_subjects + 3):
            self.allocate(self.edc, number)

    def stop(self) -> None:
        """Suspend, go on with code breaks, close, and unblind the study."""
        admin = self.who(Role.STUDY_ADMIN)
        body = {"status": "suspended", "reason": "A question of safety"}
        self.tell(admin, "POST", f"{self.study}/status", body, step_up=True)
        self.allocate(self.edc, 500)
        self.prove_anew(self.who(Role.INVESTIGATOR))
        self.break_code(2)
        self.tell(self.edc, "POST", f"{self.study}/subjects/{self.subject_id(6)}/kits", {"visit": "V7"})
        self.close()
        self.allocate(self.edc, 501)
        self.tell(self.edc, "POST", f"{self.study}/subjects/{self.subject_id(6)}/kits", {"visit": "V8"})

    def keep(self) -> None:
        """Do what the service does by itself every minute."""
        Keeper(self.house.deployment).round()

    def run_short(self) -> None:
        """Play what kits and stock are about, with few readings and without the end."""
        self.prepare()
        enrolled = self.protocol.planned_subjects - 6
        for number in range(1, enrolled + 1):
            self.enrol(number)
        given = [self.kits_of(number)[0]["kit_code"] for number in range(1, 9)]
        for code in given[1:]:
            self.dispense(1, code)
        self.go_to_the_floor(enrolled)
        for path in self.readable([1, 5]):
            self.tell(self.who(Role.PHARMACIST), "GET", path)

    def play_blinded(self) -> int:
        """Play everything that comes before the first code break; return how many are enrolled then."""
        self.prepare()
        enrolled = self.protocol.planned_subjects - 6
        for number in range(1, enrolled + 1):
            self.enrol(number)
        self.refuse_allocations(enrolled)
        self.refuse_kits()
        self.supply(enrolled)
        self.flag()
        return enrolled

    def run(self) -> bytes:
        """Play the whole script and return the final package."""
        enrolled = self.play_blinded()
        self.unblind_some()
        self.keep()
        self.read_state([1, 5])
        enrolled = self.go_to_the_floor(enrolled)
        self.exhaust(enrolled)
        self.stop()
        package = self.unblind()
        self.keep()
        self.read_everything([2, enrolled])
        return package


def name_of(who: Person | Machine) -> str:
    """Return the name under which somebody's answers are kept."""
    return f"{who.roles[0].value} {who.username if isinstance(who, Person) else 'machine'}"


@contextmanager
def running(url: str, folder: Path, **overrides: Any) -> Iterator[House]:  # noqa: ANN401  # as the harness takes them
    """Give a new deployment with code-break envelopes on an empty database."""
    with writing_when_told(), harness.house(url, folder, **{**settings_in(folder), **SETTINGS, **overrides}) as house:
        yield house


def json_lines(content: bytes) -> list[Any]:
    """Return what the lines of an export say."""
    return [json.loads(line) for line in content.splitlines()]
