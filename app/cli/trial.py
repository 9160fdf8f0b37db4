"""A whole trial over HTTP, from the registry's record to the opened list: what `snose demo` runs, and what the tests run on twins.

It knows the service only by its API. People act as people do: each with a password and a one-time code of their own.
"""

import json
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from importlib.resources import files
from typing import Any, Final, Protocol

from app.domain.words import SITE_ROLES, Role
from app.errors import SnoseError
from app.identity.codes import STEP_SECONDS, code_of_step, step_at

FRESH: Final = timedelta(seconds=240)
"""A proof is renewed a minute before the service calls it stale."""
KITS_TO_SPARE: Final = 20
ARM_CODES: Final = {"EXPERIMENTAL": "HUCMSC", "PLACEBO_COMPARATOR": "PLACEBO"}


class Response(Protocol):
    """What the script needs of an HTTP client's response."""

    @property
    def status_code(self) -> int:
        """The status."""

    @property
    def content(self) -> bytes:
        """The body."""

    def json(self) -> Any:  # noqa: ANN401  # whatever JSON holds
        """The body as JSON."""


class Client(Protocol):
    """What the script needs of an HTTP client."""

    def request(
        self,
        method: str,
        url: str,
        *,
        json: Any = None,  # noqa: ANN401  # whatever JSON holds
        data: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Response:
        """Send one request."""


class UnexpectedAnswer(SnoseError):
    """The service said something else than the script expects; holds method, path, status and the problem's code only."""


@dataclass(slots=True)
class Person:
    """Somebody with an account, and what only that person knows."""

    username: str
    password: str = field(repr=False)
    totp_secret: str = field(repr=False)
    roles: tuple[Role, ...]
    token: str = field(default="", repr=False)
    stepped_up: str = field(default="", repr=False)
    stepped_up_at: datetime | None = None
    last_step: int = -1


@dataclass(slots=True)
class Machine:
    """A machine client."""

    client_id: str
    client_secret: str = field(repr=False)
    roles: tuple[Role, ...]
    token: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class StudyProtocol:
    """What the trial's protocol says, read from its registry record."""

    study_code: str
    title: str
    planned_subjects: int
    arms: Sequence[Mapping[str, Any]]


def read_protocol() -> StudyProtocol:
    """Return NCT03033277 as its registry record has it, arms in the record's order, 1:1."""
    record = json.loads((files("app.cli") / "nct03033277.json").read_text(encoding="utf-8"))["protocolSection"]
    identification = record["identificationModule"]
    return StudyProtocol(
        identification["nctId"],
        identification["briefTitle"],
        record["designModule"]["enrollmentInfo"]["count"],
        [
            {
                "arm_code": ARM_CODES[group["type"]],
                "label": group["label"],
                "treatment": group["description"].rstrip(".").replace(", ", " + "),
                "ratio": 1,
            }
            for group in record["armsInterventionsModule"]["armGroups"]
        ],
    )


def sleep_until_next_step(moment: datetime) -> None:
    """Wait for the next one-time code, as a person does."""
    time.sleep(STEP_SECONDS - moment.timestamp() % STEP_SECONDS + 0.1)


@dataclass(slots=True)
class Trial:
    """The script's hands: an HTTP client, a clock that agrees with the service's, and the people."""

    client: Client
    now: Callable[[], datetime]
    wait_for_next_step: Callable[[datetime], None]
    admin: Person
    new_password: Callable[[], str] = lambda: secrets.token_urlsafe(15)
    protocol: StudyProtocol = field(default_factory=read_protocol)
    site_code: str = "01"
    people: dict[Role, list[Person]] = field(default_factory=dict)
    edc: Machine | None = None
    allocations: list[Mapping[str, Any]] = field(default_factory=list)

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
    ) -> Response:
        """Return the 2xx answer; raise ``UnexpectedAnswer`` for any other."""
        sent = dict(headers or {})
        if who is not None:
            sent["Authorization"] = f"Bearer {self._token(who, step_up=step_up)}"
        response = self.client.request(method, path, json=body, headers=sent)
        if not 200 <= response.status_code < 300:  # noqa: PLR2004  # HTTP's own classes
            raise UnexpectedAnswer(f"{method} {path}: {response.status_code} {_code(response)}")
        return response

    def _token(self, who: Person | Machine, *, step_up: bool) -> str:
        if isinstance(who, Machine):
            return who.token or self._get_machine_token(who)
        if not who.token:
            who.token = self._post("/v1/sessions", {"username": who.username, "password": who.password}, None)[
                "access_token"
            ]
        if not step_up:
            return who.token
        if who.stepped_up_at is None or self.now() - who.stepped_up_at > FRESH:
            self.prove(who)
        return who.stepped_up

    def prove(self, who: Person) -> None:
        """Give the service a fresh one-time code of this person's own device; each works once."""
        if step_at(self.now()) <= who.last_step:
            self.wait_for_next_step(self.now())
        moment = self.now()
        who.last_step = step_at(moment)
        code = code_of_step(who.totp_secret, who.last_step)
        token = who.token or self._token(who, step_up=False)
        who.stepped_up = self._post("/v1/sessions/step-up", {"otp": code}, token)["access_token"]
        who.stepped_up_at = moment

    def _get_machine_token(self, machine: Machine) -> str:
        response = self.client.request(
            "POST",
            "/oauth2/token",
            data={
                "grant_type": "client_credentials",
                "client_id": machine.client_id,
                "client_secret": machine.client_secret,
            },
        )
        machine.token = response.json()["access_token"]
        return machine.token

    def _post(self, path: str, body: Mapping[str, str], token: str | None) -> Any:  # noqa: ANN401  # whatever JSON holds
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        return self.ask(None, "POST", path, body, headers=headers).json()

    # -- people

    def join(self, username: str, role: Role) -> Person:
        """Return a new person with one role in the study, with a password and a second factor that only they have seen."""
        issued = self.ask(
            self.admin,
            "POST",
            "/v1/people",
            {
                "username": username,
                "display_name": username.replace(".", " ").title(),
                "email": f"{username}@example.org",
            },
        ).json()["password"]
        self.grant(f"/v1/people/{username}/grants", role)
        person = Person(username, self.new_password(), "", (role,))
        self.own(person, issued)
        self.people.setdefault(role, []).append(person)
        return person

    def own(self, person: Person, issued: str) -> None:
        """Replace an issued password by the person's own, and keep the second factor that comes with it."""
        token = self._post("/v1/sessions", {"username": person.username, "password": issued}, None)["access_token"]
        answer = self._post("/v1/me/password", {"current": issued, "new": person.password}, token)
        person.totp_secret = answer["totp_secret"]
        person.token = token

    def grant(self, path: str, role: Role) -> None:
        """Grant a role in the study, at the site where the role is one of a site."""
        body: dict[str, str] = {"role": role.value}
        if role is not Role.SERVICE_ADMIN:
            body["study_code"] = self.protocol.study_code
        if role in SITE_ROLES:
            body["site_code"] = self.site_code
        self.ask(self.admin, "POST", path, body)

    def join_machine(self, name: str) -> Machine:
        """Return a new machine client, the EDC system of the study."""
        answer = self.ask(self.admin, "POST", "/v1/clients", {"name": name}).json()
        machine = Machine(answer["client_id"], answer["client_secret"], (Role.EDC_CLIENT,))
        self.grant(f"/v1/clients/{machine.client_id}/grants", Role.EDC_CLIENT)
        return machine

    def who(self, role: Role) -> Person:
        """Return the person who acts for a role in this script: the first who joined."""
        return self.people[role][0]

    # -- the trial

    @property
    def study(self) -> str:
        """The path of the study."""
        return f"/v1/studies/{self.protocol.study_code}"

    def register(self) -> None:
        """Register the study and its one site."""
        admin = self.who(Role.STUDY_ADMIN)
        self.ask(
            admin,
            "POST",
            "/v1/studies",
            {
                "study_code": self.protocol.study_code,
                "title": self.protocol.title,
                "blinding": "double",
                "planned_subjects": self.protocol.planned_subjects,
                "stock_floor": 3,
                "arms": self.protocol.arms,
                "factors": [],
                "stratify_by_site": False,
                "backup_contact": "Emergency desk, +00 000 0000, day and night",
            },
        )
        self.ask(
            admin,
            "POST",
            f"{self.study}/sites",
            {"site_code": self.site_code, "name": "Nanjing", "timezone": "Asia/Shanghai"},
        )

    def make_list(self, block_sizes: Sequence[int] = (4, 6, 8)) -> str:
        """Return the commitment of the list: specified, generated, approved by a second person, activated."""
        made = self.ask(
            self.who(Role.STATISTICIAN),
            "POST",
            f"{self.study}/schedules",
            {
                "block_sizes": list(block_sizes),
                "block_size_weights": [1] * len(block_sizes),
                "length_per_stratum": self.protocol.planned_subjects,
                "fill": "exact",
            },
            step_up=True,
        ).json()
        path = f"{self.study}/schedules/{made['schedule_id']}"
        self.ask(
            self.who(Role.LIST_APPROVER),
            "POST",
            f"{path}/approval",
            {"commitment": made["commitment"], "meaning": "approval"},
            step_up=True,
        )
        self.ask(self.who(Role.STUDY_ADMIN), "POST", f"{path}/activation", step_up=True)
        return str(made["commitment"])

    def stock(self, consignment_code: str = "C1", count: int | None = None) -> None:
        """Send the site a consignment with kits of every arm, and have it received in full."""
        each = count or self.protocol.planned_subjects // len(self.protocol.arms) + KITS_TO_SPARE
        expires_on = (self.now().date() + timedelta(days=730)).isoformat()
        manager, pharmacist = self.who(Role.SUPPLY_MANAGER), self.who(Role.PHARMACIST)
        self.ask(
            manager,
            "POST",
            f"{self.study}/consignments",
            {
                "consignment_code": consignment_code,
                "kits": [
                    {
                        "arm_code": arm["arm_code"],
                        "lot": f"L{ordinal}",
                        "expires_on": (date.fromisoformat(expires_on) + timedelta(days=30 * ordinal)).isoformat(),
                        "count": each,
                    }
                    for ordinal, arm in enumerate(self.protocol.arms)
                ],
            },
            step_up=True,
        )
        path = f"{self.study}/consignments/{consignment_code}"
        self.ask(manager, "POST", f"{path}/dispatch", {"site_code": self.site_code})
        codes = self.kit_codes(consignment_code)
        self.ask(pharmacist, "POST", f"{path}/receipt", {"received": codes, "missing": []})

    def kit_codes(self, consignment_code: str) -> list[str]:
        """Return the codes that the pharmacist reads from the labels of a consignment on its way."""
        codes: list[str] = []
        cursor = ""
        while True:
            page = self.ask(
                self.who(Role.PHARMACIST),
                "GET",
                f"{self.study}/sites/{self.site_code}/kits?limit=500{cursor}",
            ).json()
            codes += [kit["kit_code"] for kit in page["items"] if kit["consignment_code"] == consignment_code]
            if page["next_cursor"] is None:
                return codes
            cursor = f"&cursor={page['next_cursor']}"

    def drill(self) -> None:
        """Have two investigators of the site practise the code break."""
        body = {"subject_id": f"DRILL-{self.site_code}", "reason_code": "overdose"}
        for who in self.people[Role.INVESTIGATOR][:2]:
            self.ask(who, "POST", f"{self.study}/drills", body, step_up=True)

    def open(self) -> None:
        """Practise the code break, activate the site and open the study."""
        self.drill()
        admin = self.who(Role.STUDY_ADMIN)
        self.ask(admin, "POST", f"{self.study}/sites/{self.site_code}/activation", step_up=True)
        self.ask(
            admin, "POST", f"{self.study}/status", {"status": "open", "reason": "All approvals are there"}, step_up=True
        )

    def subject_id(self, number: int) -> str:
        """Return the pseudonymous identifier of the site's n-th subject."""
        return f"{self.site_code}-{number:04d}"

    def enrol(self, number: int) -> Mapping[str, Any]:
        """Randomize a subject through the EDC system and dispense the kit with a confirming scan."""
        subject = self.subject_id(number)
        allocated: Mapping[str, Any] = self.ask(
            self.edc,
            "POST",
            f"{self.study}/allocations",
            {
                "subject_id": subject,
                "site_code": self.site_code,
                "strata": {},
                "consent_confirmed": True,
                "eligibility_confirmed": True,
                "reported_user": "nurse.li",
            },
        ).json()
        self.ask(
            self.who(Role.PHARMACIST),
            "POST",
            f"{self.study}/kits/{allocated['kit_code']}/dispensation",
            {"subject_id": subject, "scanned_code": allocated["kit_code"]},
        )
        self.allocations.append(allocated)
        return allocated

    def break_code(self, number: int) -> Mapping[str, Any]:
        """Break one subject's code in an emergency."""
        broken: Mapping[str, Any] = self.ask(
            self.who(Role.INVESTIGATOR),
            "POST",
            f"{self.study}/code-breaks",
            {"subject_id": self.subject_id(number), "reason_code": "serious_adverse_event"},
            step_up=True,
        ).json()
        self.ask(
            self.who(Role.INVESTIGATOR),
            "POST",
            f"{self.study}/code-breaks/{broken['code_break_id']}/narrative",
            {"narrative": "Severe abdominal pain; treating team needed the product."},
        )
        return broken

    def close(self) -> None:
        """Close the study for ever."""
        self.ask(
            self.who(Role.STUDY_ADMIN),
            "POST",
            f"{self.study}/status",
            {"status": "closed", "reason": "Last subject out"},
            step_up=True,
        )

    def unblind(self) -> bytes:
        """Return the final package: asked for by the statistician, released by a second person."""
        asked = self.ask(
            self.who(Role.STATISTICIAN),
            "POST",
            f"{self.study}/final-unblinding-requests",
            {"database_lock_statement": "The clinical database was locked today."},
            step_up=True,
        ).json()
        return self.ask(
            self.who(Role.LIST_APPROVER),
            "POST",
            f"{self.study}/final-unblinding-requests/{asked['request_id']}/release",
            step_up=True,
        ).content

    def export_trail(self) -> bytes:
        """Return the trail as the inspector takes it away."""
        return self.ask(self.who(Role.INSPECTOR), "GET", f"{self.study}/trail/export", step_up=True).content


def _code(response: Response) -> str:
    try:
        return str(response.json().get("code", ""))
    except ValueError:
        return ""
