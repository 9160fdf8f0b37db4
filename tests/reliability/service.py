"""A real service: `snose serve` with its worker processes, on loopback, set by the environment, ended in order or killed.

with Service(folder, url, workers=2) as service:
    issued = service.create()
    service.start()
    sponsor = Sponsor(service, issued)               # people, and studies that stand open with lists and kits
    study = sponsor.open_study("LOAD-1", ("01", "02"), slots_per_stratum=40, kits_per_arm=50)
    service.kill()                                   # every process of it at once
"""

import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Final, Self

import httpx

from app.cli.trial import Machine, Person, StudyProtocol, Trial, sleep_until_next_step
from app.domain.words import SITE_ROLES, Role
from app.sealing.providers import KeyFileProvider
from app.services import startup
from app.services.people import register_first_admin
from app.settings import Settings
from app.storage import migrate
from app.surroundings import surroundings
from tests.databases import processes_below

# Guards against a hang, never a measurement: the machine may be busy with other tests.
READY_WITHIN_SECONDS: Final = 180.0
GONE_WITHIN_SECONDS: Final = 90.0
SITES: Final = tuple(f"{number:02}" for number in range(1, 9))
TEAM: Final = (
    Role.STUDY_ADMIN,
    Role.STATISTICIAN,
    Role.LIST_APPROVER,
    Role.SUPPLY_MANAGER,
    Role.PHARMACIST,
    Role.INVESTIGATOR,
    Role.INSPECTOR,
)
ARMS: Final = (
    {"arm_code": "A", "label": "Arm A", "treatment": "Product A", "ratio": 1},
    {"arm_code": "B", "label": "Arm B", "treatment": "Product B", "ratio": 1},
)


class Service:
    """A deployment in a folder, and the processes that serve it."""

    def __init__(self, folder: Path, url: str, workers: int, **more: str) -> None:
        self.folder = folder
        self.url = url
        self.port = _free_port()
        self.sink = folder / "checkpoints.jsonl"
        self.log = folder / "service.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._environment = {
            "SNOSE_MODE": "test",
            "SNOSE_DATABASE_URL": url,
            "SNOSE_KEY_FILE": str(folder / "key"),
            "SNOSE_CHECKPOINT_FILE": str(self.sink),
            "SNOSE_BACKUP_CONTACT": "Emergency desk, day and night",
            "SNOSE_HOST": "127.0.0.1",
            "SNOSE_PORT": str(self.port),
            "SNOSE_WORKERS": str(workers),
            **more,
        }

    @property
    def environment(self) -> Mapping[str, str]:
        """What its processes, and an operator's commands beside them, are set by."""
        return self._environment

    def create(self) -> str:
        """Make a new deployment in the empty database, and return the password issued to its first administrator."""
        migrate.upgrade(self.url)
        KeyFileProvider.create(self.folder / "key", secrets.token_bytes(32))
        settings = self.settings()
        around = surroundings(settings)
        try:
            startup.create_deployment(around, settings.mode, is_demo=True)
            deployment = startup.unseal(around, settings.mode)
            return register_first_admin(deployment, "first.admin", "First Admin", "first@example.org")
        finally:
            around.database.close()

    def settings(self) -> Settings:
        """Return the settings that the processes read."""
        return Settings.model_validate(
            {name.removeprefix("SNOSE_").lower(): value for name, value in self._environment.items()}
        )

    @property
    def base_url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """The process id of the parent, and of the group that all workers are in."""
        assert self._process is not None, "the service is not running"
        return self._process.pid

    def start(
        self, more: Mapping[str, str] = MappingProxyType({}), until: str = "/readyz", under: Sequence[str] = ()
    ) -> float:
        """Start it, and return after how many seconds it was ready, or answered at another path.

        ``more`` is set for these processes alone; ``under`` is what runs the command, such as a tracer with its options.
        """
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("SNOSE_")}
        begun = time.monotonic()
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [*under, sys.executable, "-m", "app.cli", "serve"],
                env={**inherited, **self._environment, **more},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        with httpx.Client(base_url=self.base_url, trust_env=False) as client:
            while time.monotonic() - begun < READY_WITHIN_SECONDS:
                assert self._process.poll() is None, self._end_of_log()
                try:
                    if client.get(until).status_code == httpx.codes.OK:
                        return time.monotonic() - begun
                except httpx.TransportError:
                    time.sleep(0.02)
        raise AssertionError(self._end_of_log())

    def stop(self) -> None:
        """End it in order: what is in hand is finished first."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(GONE_WITHIN_SECONDS)
            self._process = None

    def kill(self) -> None:
        """End every process of it at once, by a signal that none of them can handle."""
        if self._process is None:
            return
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._process = None
        until = time.monotonic() + GONE_WITHIN_SECONDS
        # The workers hold the listening socket; when nobody answers there, the last of them is gone.
        while time.monotonic() < until:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
            except OSError:
                return
            time.sleep(0.01)
        message = "the workers outlived the kill"
        raise AssertionError(message)

    def worker_pids(self) -> list[int]:
        """Return the process ids of the workers: the parent's children that run the application, and have not ended."""
        return [pid for pid, command in processes_below(self.pid).items() if "spawn_main" in command]

    def _end_of_log(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")[-3000:]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.kill()


@dataclass(frozen=True)
class OpenStudy:
    """A study in which subjects can be allocated now."""

    code: str
    sites: tuple[str, ...]
    token: str
    """Of a machine client with the right to allocate at every site."""
    trial: Trial

    def body(self, subject: str, number: int) -> dict[str, Any]:
        """Return the request for a subject; the sites take turns."""
        return {
            "subject_id": subject,
            "site_code": self.sites[number % len(self.sites)],
            "strata": {},
            "consent_confirmed": True,
            "eligibility_confirmed": True,
            "reported_user": "nurse.li",
        }


class Sponsor:
    """Those who set studies up: one person a role, in every study, who work over HTTP like anybody."""

    def __init__(self, service: Service, issued: str) -> None:
        # A list of a million slots takes minutes to make, and to check before it is approved and activated.
        self._client = httpx.Client(base_url=service.base_url, timeout=1800, trust_env=False)
        self._admin = Person("first.admin", "a heron at dawn", "", (Role.SERVICE_ADMIN,))
        self._people: dict[Role, list[Person]] = {}
        self._machine: Machine | None = None
        self._trial("-").own(self._admin, issued)

    @property
    def investigators(self) -> Sequence[Person]:
        """Those who can break a code."""
        return self._people[Role.INVESTIGATOR]

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def open_study(
        self,
        code: str,
        sites: Sequence[str],
        slots_per_stratum: int,
        kits_per_arm: int,
        consignments: int = 1,
    ) -> OpenStudy:
        """Return an open study, stratified by site, with a list and so many consignments at each site."""
        # Even, so that blocks of even sizes fill it exactly.
        trial = self._trial(code, slots_per_stratum + slots_per_stratum % 2)
        trial.people = self._people
        for role in TEAM:
            self._grant(trial, role, sites)
        self._register(trial, sites)
        trial.make_list()
        for site in sites:
            trial.site_code = site
            self._stock(trial, [f"{site}-{number}" for number in range(consignments)], kits_per_arm)
            trial.drill()
            trial.ask(trial.who(Role.STUDY_ADMIN), "POST", f"{trial.study}/sites/{site}/activation", step_up=True)
        trial.ask(
            trial.who(Role.STUDY_ADMIN),
            "POST",
            f"{trial.study}/status",
            {"status": "open", "reason": "All approvals are there"},
            step_up=True,
        )
        if self._machine is None:
            self._machine = trial.join_machine("EDC system")
        else:
            trial.grant(f"/v1/clients/{self._machine.client_id}/grants", Role.EDC_CLIENT)
        trial.edc = self._machine
        return OpenStudy(code, tuple(sites), trial._get_machine_token(self._machine), trial)

    def restock(self, study: OpenStudy, site: str, code: str, kits_per_arm: int) -> None:
        """Give a site one more consignment."""
        study.trial.site_code = site
        self._stock(study.trial, [code], kits_per_arm)

    def _trial(self, code: str, slots_per_stratum: int = 1) -> Trial:
        protocol = StudyProtocol(code, f"Study {code}", slots_per_stratum, ARMS)
        return Trial(self._client, lambda: datetime.now(UTC), sleep_until_next_step, self._admin, protocol=protocol)

    def _grant(self, trial: Trial, role: Role, sites: Sequence[str]) -> None:
        """Have the people of a role hold it in the study, at every site where it is one of a site."""
        places = list(sites if role in SITE_ROLES else sites[:1])
        if role not in self._people:
            trial.site_code = places.pop(0)
            # A site is ready only when two people there can break a code (EUB-16).
            for number in range(2 if role is Role.INVESTIGATOR else 1):
                trial.join(f"{role.value}.{number}", role)
        for trial.site_code in places:
            for person in self._people[role]:
                trial.grant(f"/v1/people/{person.username}/grants", role)

    def _register(self, trial: Trial, sites: Sequence[str]) -> None:
        admin = trial.who(Role.STUDY_ADMIN)
        definition = {
            "study_code": trial.protocol.study_code,
            "title": trial.protocol.title,
            "blinding": "double",
            "planned_subjects": trial.protocol.planned_subjects,
            "stock_floor": 3,
            "arms": trial.protocol.arms,
            "factors": [],
            "stratify_by_site": True,
            "backup_contact": "Emergency desk, day and night",
        }
        trial.ask(admin, "POST", "/v1/studies", definition)
        for site in sites:
            place = {"site_code": site, "name": f"Hospital {site}", "timezone": "Asia/Shanghai"}
            trial.ask(admin, "POST", f"{trial.study}/sites", place)

    def _stock(self, trial: Trial, codes: Sequence[str], kits_per_arm: int) -> None:
        """Have consignments made, sent and received; each expires a day after the one before."""
        manager, pharmacist = trial.who(Role.SUPPLY_MANAGER), trial.who(Role.PHARMACIST)
        for ordinal, code in enumerate(codes):
            expires_on = (trial.now().date() + timedelta(days=700 + ordinal)).isoformat()
            kits = [
                {
                    "arm_code": arm["arm_code"],
                    "lot": f"L{arm['arm_code']}",
                    "expires_on": expires_on,
                    "count": kits_per_arm,
                }
                for arm in trial.protocol.arms
            ]
            trial.ask(
                manager,
                "POST",
                f"{trial.study}/consignments",
                {"consignment_code": code, "kits": kits},
                step_up=True,
            )
            trial.ask(manager, "POST", f"{trial.study}/consignments/{code}/dispatch", {"site_code": trial.site_code})
        for code, received in _codes_by_consignment(trial).items():
            if code in codes:
                trial.ask(
                    pharmacist,
                    "POST",
                    f"{trial.study}/consignments/{code}/receipt",
                    {"received": received, "missing": []},
                )


def _codes_by_consignment(trial: Trial) -> Mapping[str, list[str]]:
    found: dict[str, list[str]] = {}
    cursor = ""
    while True:
        path = f"{trial.study}/sites/{trial.site_code}/kits?limit=500{cursor}"
        page = trial.ask(trial.who(Role.PHARMACIST), "GET", path).json()
        for kit in page["items"]:
            found.setdefault(kit["consignment_code"], []).append(kit["kit_code"])
        if page["next_cursor"] is None:
            return found
        cursor = f"&cursor={page['next_cursor']}"


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
