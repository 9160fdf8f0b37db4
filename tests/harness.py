"""The whole service in process: a deployment in a folder, a clock that ticks, seeded chance, and people who call it over HTTP.

    with house(migrated_database_url, tmp_path) as h:                # or the fixture `house` of tests/conftest.py
        h.register_study()                                           # NCT03033277 with site 01, draft
        doctor = h.person("investigator")                            # registered, granted, password and factor their own
        answer = doctor.post("/v1/studies/NCT03033277/allocations", json={...})
        doctor.post("/v1/studies/NCT03033277/code-breaks", json={...}, step_up=True)

``house(url, tmp_path, **overrides) -> House``
    A new deployment on an empty migrated database. Overrides: ``clock``, ``seed`` (all chance but lists), ``list_seed``,
    ``entropy``, ``list_entropy``, and any field of `app.settings.Settings`, such as ``password_max_age_days=90``.
``House``
    ``client`` (the HTTP client, no credentials), ``clock``, ``deployment``, ``app``, ``settings``, ``admin`` (first service admin);
    ``person(role, study=STUDY, site=None, username=None)`` and ``machine(role, study=STUDY)`` give a `Caller`; ``site`` is ``01``
    for site roles unless named, and role ``None`` grants nothing. ``register(username)`` gives an account whose issued
    password still stands. ``grant(caller, role, study, site)`` grants one more and answers its id. ``register_study(code,
    sites=("01",), **fields)`` registers a study (``STUDY_BODY`` with these fields) with its ``study_admin``, kept in
    ``study_admins[code]``. ``trail(study=None)`` gives the entries of a study's or the service's log, read from the database.
    ``restart(**overrides)`` is a new process on the same files. ``close()`` ends it in order; ``with`` leaves it as it stands.
    A house without overrides begins when it is first asked for anything, so that one that ``remembered`` something begins once.
``Caller``
    ``get/post/delete(path, json=None, step_up=False, headers=None)`` sign in once (again when the session is over) and answer the
    response; a 500 fails the test at once. ``step_up=True`` gives a fresh proof first, with a new one-time code: the clock is
    advanced to the next step when this one's code was used. ``token()``, ``elevated_token()`` and ``code()`` are there for
    tests about sessions. ``username``, ``password``, ``totp_secret``, ``client_id``, ``client_secret`` are kept.
``expect(response, status)``
    The response's JSON, or a failure that shows what came instead.
``TickingClock``
    Each call is 1 ms later. ``advance(seconds=30)`` takes the arguments of `timedelta`; ``now`` looks without a tick.
``SeededEntropy(seed)``
    One independent stream for each purpose word; safe for threads.
"""

import hashlib
import json as jsonlib
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from threading import Lock, RLock
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self, TypeAlias
from unittest.mock import patch

import pyotp
from fastapi import FastAPI
from httpx2 import Response
from sqlalchemy import Connection, Engine, select
from starlette.routing import BaseRoute

from app.domain.entropy import Entropy
from app.domain.words import SITE_ROLES, Mode, Role
from app.main import create_app
from app.sealing.providers import KeyFileProvider
from app.services import people
from app.services.context import Deployment
from app.services.keeper import Keeper
from app.services.startup import create_deployment
from app.settings import Settings
from app.storage import tables
from app.surroundings import surroundings
from tests import memory
from tests.declared import is_undeclared
from tests.inprocess import InProcessClient

Json: TypeAlias = Any
"""What JSON holds, and what settings take: a test knows which it sent, and what it expects back."""

STUDY: Final = "NCT03033277"
BEGINNING: Final = datetime(2026, 11, 22, 8, 0, tzinfo=UTC)
STUDY_BODY: Final[Mapping[str, Any]] = {
    "study_code": STUDY,
    "title": "HUC-MSC transplantation in women with primary ovarian insufficiency",
    "blinding": "double",
    "planned_subjects": 320,
    "stock_floor": 3,
    "arms": [
        {
            "arm_code": "CONTROL",
            "label": "Control group",
            "treatment": "Hormone replacement therapy + placebo",
            "ratio": 1,
        },
        {
            "arm_code": "HUCMSC",
            "label": "Experimental group",
            "treatment": "Hormone replacement therapy + HUC-MSCs",
            "ratio": 1,
        },
    ],
    "factors": [],
    "stratify_by_site": False,
    "backup_contact": "Pharmacy on call, +86 10 5550 0100",
}
_ROOT_KEY: Final = bytes(range(32))


def signed_as(caller: "Caller", meaning: str) -> dict[str, str]:
    """Return what the entry of an act says of the caller's signature."""
    return {"meaning": meaning, "printed_name": f"Person {caller.username}"}


def drill(*people: "Caller", study: str = STUDY, site: str = "01") -> None:
    """Have people practise the code break at a site, which is activated only then."""
    body = {"subject_id": f"DRILL-{site}", "reason_code": "overdose"}
    for who in people:
        expect(who.post(f"/v1/studies/{study}/drills", json=body, step_up=True), 201)


class TickingClock:
    """A frozen clock that ticks: each call is one millisecond later than the one before."""

    def __init__(self, begin: datetime = BEGINNING) -> None:
        self._now = begin
        self._lock = Lock()

    def __call__(self) -> datetime:
        with self._lock:
            self._now += timedelta(milliseconds=1)
            return self._now

    @property
    def now(self) -> datetime:
        return self._now

    def advance(self, by: timedelta | None = None, **amount: float) -> None:
        with self._lock:
            self._now += by if by is not None else timedelta(**amount)


class SeededEntropy:
    """Chance that is the same in every run of a test."""

    def __init__(self, seed: str | int = 0) -> None:
        self._seed = str(seed)
        self._draws: Counter[str] = Counter()
        self._lock = Lock()

    @property
    def drawn(self) -> dict[str, int]:
        """How often each purpose has drawn."""
        with self._lock:
            return dict(self._draws)

    def go_on_from(self, drawn: Mapping[str, int]) -> None:
        """Continue where another of the same seed stands."""
        with self._lock:
            self._draws = Counter(drawn)

    def draw(self, purpose: str, size: int) -> bytes:
        with self._lock:
            self._draws[purpose] += 1
            count = self._draws[purpose]
        return hashlib.shake_256(f"{self._seed}|{purpose}|{count}".encode()).digest(size)


def expect(response: Response, status: int) -> Json:
    """Return what a response says, when it is of this status."""
    if response.status_code != status:
        message = f"{response.request.method} {response.request.url.path}: {response.status_code} {response.text}"
        raise AssertionError(message)
    return response.json() if response.content else None


@dataclass
class Caller:
    """A person or a machine client with its own credentials."""

    house: "House"
    username: str = ""
    password: str = ""
    totp_secret: str = ""
    client_id: str = ""
    client_secret: str = ""
    grant_ids: list[str] = field(default_factory=list)
    _token: str | None = None
    _token_ends: datetime = BEGINNING
    _last_step: int = -1
    _lock: RLock = field(default_factory=RLock)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Caller":
        """The same person or machine at another house; a lock is nobody else's."""
        return replace(self, house=memo[id(self.house)], grant_ids=[*self.grant_ids], _lock=RLock())

    def get(
        self, path: str, *, step_up: bool = False, headers: Mapping[str, str] | None = None, **query: Json
    ) -> Response:
        return self.request("GET", path, step_up=step_up, headers=headers, query=query)

    def post(
        self, path: str, *, json: Json = None, step_up: bool = False, headers: Mapping[str, str] | None = None
    ) -> Response:
        return self.request("POST", path, json=json, step_up=step_up, headers=headers)

    def delete(self, path: str, *, step_up: bool = False, headers: Mapping[str, str] | None = None) -> Response:
        return self.request("DELETE", path, step_up=step_up, headers=headers)

    def request(
        self,
        method: str,
        path: str,
        *,
        json: Json = None,
        step_up: bool = False,
        headers: Mapping[str, str] | None = None,
        query: Mapping[str, Any] | None = None,
    ) -> Response:
        """Send one request with this caller's token."""
        token = self.elevated_token() if step_up else self.token()
        return self.house.send(method, path, token=token, json=json, headers=headers, query=query)

    def token(self) -> str:
        """Return a token without second proof, by a new sign-in when there is none or it has ended."""
        with self._lock:
            if self._token is None or self.house.clock.now >= self._token_ends:
                given = self._sign_in()
                self._token = given["access_token"]
                lasting = timedelta(seconds=given["expires_in"] - 1)
                # However much it is used meanwhile, from then on one need not think about the idle limit.
                self._token_ends = self.house.clock.now + min(lasting, self.house.settings.session_idle())
            return self._token

    def forget_token(self) -> None:
        """Sign in anew at the next request."""
        self._token = None

    def elevated_token(self) -> str:
        """Return a new token with a second proof given just now."""
        with self._lock:
            token = self.token()
            answer = self.house.send("POST", "/v1/sessions/step-up", token=token, json={"otp": self.code()})
            return str(expect(answer, 201)["access_token"])

    def code(self) -> str:
        """Return a one-time code that was not used yet; the clock moves on to the next step when it must."""
        with self._lock:
            clock = self.house.clock
            while int(clock.now.timestamp()) // 30 <= self._last_step:
                clock.advance(seconds=30)
            self._last_step = int(clock.now.timestamp()) // 30
            return pyotp.TOTP(self.totp_secret).at(clock.now)

    def _sign_in(self) -> Json:
        if self.client_id:
            form = {
                "grant_type": "client_credentials",
                "client_id": self.client_id,
                "client_secret": self.client_secret,
            }
            return expect(self.house.client.post("/oauth2/token", data=form), 200)
        credentials = {"username": self.username, "password": self.password}
        return expect(self.house.send("POST", "/v1/sessions", json=credentials), 201)


_included: Final[dict[int, BaseRoute]] = {}


def _share_routes(app: FastAPI) -> None:
    """Have an application use what the first one worked out of each router that both include.

    FastAPI works it out at an application's first request: a quarter of a second, for each of some thousand houses.
    """
    routes = app.router.routes
    for place, route in enumerate(routes):
        router = getattr(route, "original_router", None)
        if router is not None:
            routes[place] = _included.setdefault(id(router), route)


_beginning: Final = RLock()
"""Of several threads that ask a house first, one begins it and the others wait."""
_engines: Final[dict[str, tuple[Any, Any]]] = {}


def _know_already(connection: Connection) -> None:
    """Ask a new connection nothing."""


def _share_statements(engine: Engine) -> None:
    """Have a house's engine use what the first of its kind compiled: a millisecond for each statement of each house."""
    first, compiled = _engines.setdefault(engine.dialect.name, (engine.dialect, engine._compiled_cache))
    if first is not engine.dialect:
        engine.dialect.initialize = _know_already  # type: ignore[method-assign]  # of this engine alone
    engine.dialect, engine._compiled_cache = first, compiled


class House:
    """A running deployment and those who work with it."""

    _put_off: tuple[dict[str, Any], Callable[[], None]]
    """All that a house is, and how it begins, as long as nobody has asked for anything."""

    def __init__(self, settings: Settings, clock: TickingClock, entropy: Entropy, list_entropy: Entropy) -> None:
        self.settings = settings
        self.clock = clock
        self.entropy = entropy
        self.list_entropy = list_entropy
        self.study_admins: dict[str, Caller] = {}
        self.admin = Caller(self)
        self.named: Counter[str] = Counter()
        """How many people of each role were named."""
        self.new_until: datetime | None = None
        """What the clock says as long as nothing has happened; None for a house unlike all others."""

    def put_off(self, begin: Callable[[], None]) -> None:
        """Begin when somebody first asks for anything."""
        held = dict(vars(self))
        vars(self).clear()
        self._put_off = (held, begin)

    if not TYPE_CHECKING:  # For the type checker a house has what it says it has, and nothing else.

        def __getattr__(self, name: str) -> Any:  # noqa: ANN401  # whatever the house has by that name
            """Begin what was put off; Python asks here for nothing but what is not there."""
            with _beginning:
                if name != "_put_off" and (begin := self.take_up()) is not None:
                    begin()
            if name not in vars(self):
                raise AttributeError(name)
            return vars(self)[name]

    def take_up(self) -> Callable[[], None] | None:
        """Return how to begin a house that was put off, which is then for the caller to do; None for one that has begun."""
        if "_put_off" not in vars(self):
            return None
        held, begin = self._put_off
        vars(self).clear()
        vars(self).update(held)
        return begin

    @property
    def is_new(self) -> bool:
        """Whether nothing has happened here since the first administrator took over."""
        return "_put_off" in vars(self) or self.clock.now == self.new_until

    def open(self) -> None:
        """Start the service on the files and the database that are there."""
        around = surroundings(self.settings, self.clock, self.entropy, self.list_entropy)
        _share_statements(around.database.engine)
        self.app: FastAPI = create_app(self.settings, around)
        _share_routes(self.app)
        # Named when it can be used: other threads may be waiting for it.
        self.client = InProcessClient(self.app).__enter__()

    @property
    def deployment(self) -> Deployment:
        deployment: Deployment = self.app.state.deployment
        return deployment

    def restart(self, **overrides: Json) -> None:
        """Go on as a new process with the same database, key and sink, perhaps with other settings."""
        self.close()
        self.settings = self.settings.model_copy(update=overrides)
        self.open()

    def close(self) -> None:
        """End the service in order: the last checkpoints are written."""
        self.client.__exit__(None, None, None)

    def leave(self) -> None:
        """End the service as it stands, for nobody goes on with what it leaves."""
        with patch.object(Keeper, "round"):
            self.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.take_up() is None:
            self.leave()

    # -- requests

    def send(
        self,
        method: str,
        path: str,
        *,
        token: str | None = None,
        json: Json = None,
        headers: Mapping[str, str] | None = None,
        query: Mapping[str, Any] | None = None,
    ) -> Response:
        """Send one request; a fault of the service, or an answer that is not in its document, fails the test (rules G1, G2)."""
        given = {**({"Authorization": f"Bearer {token}"} if token is not None else {}), **(headers or {})}
        content = None if json is None else jsonlib.dumps(json).encode()
        if content is not None:
            given.setdefault("Content-Type", "application/json")
        response = self.client.request(method, path, content=content, headers=given, params=query or None)
        if response.status_code == 500:
            message = f"{method} {path}: the service has a fault; see the captured output"
            raise AssertionError(message)
        if is_undeclared(self.app, method, path, response.status_code):
            message = f"{method} {path}: {response.status_code} is not in the document: {response.text[:300]}"
            raise AssertionError(message)
        return response

    # -- people

    def person(
        self,
        role: Role | str | None,
        study: str | None = STUDY,
        site: str | None = None,
        username: str | None = None,
        password: str | None = None,
    ) -> Caller:
        """Return a new person with a role, who has changed the issued password and keeps a second factor."""

        def begin() -> Caller:
            caller = self.register(username or self._name(role))
            self.take_over(caller, password)
            if role is not None:
                self.grant(caller, role, study, site)
            return caller

        return memory.remembered(self, ("person", role, study, site, username, password), begin)

    def machine(
        self, role: Role | str | None = Role.EDC_CLIENT, study: str | None = STUDY, name: str = "EDC"
    ) -> Caller:
        """Return a new machine client with a role."""
        issued = expect(self.admin.post("/v1/clients", json={"name": name}), 201)
        caller = Caller(self, client_id=issued["client_id"], client_secret=issued["client_secret"])
        if role is not None:
            self.grant(caller, role, study)
        return caller

    def register(self, username: str) -> Caller:
        """Return a new person whose issued password still stands."""
        body = {"username": username, "display_name": f"Person {username}", "email": f"{username}@example.org"}
        issued = expect(self.admin.post("/v1/people", json=body), 201)
        return Caller(self, username=username, password=issued["password"])

    def take_over(self, caller: Caller, password: str | None = None) -> None:
        """Change an issued password as its person does first, and keep the new second factor."""
        new = password or f"heron at dawn {hashlib.sha256(caller.username.encode()).hexdigest()[:12]}"
        answer = caller.post("/v1/me/password", json={"current": caller.password, "new": new})
        caller.totp_secret = str(expect(answer, 200)["totp_secret"])
        caller.password = new
        caller._last_step = -1

    def grant(self, caller: Caller, role: Role | str, study: str | None = STUDY, site: str | None = None) -> str:
        """Grant a role and return the grant's id; site ``01`` for site roles unless named."""
        if site is None and Role(role) in SITE_ROLES:
            site = "01"
        body = {"role": str(role), "study_code": study, "site_code": site}
        grant_id = str(expect(self.admin.post(f"{self.account_path(caller)}/grants", json=body), 201)["grant_id"])
        caller.grant_ids.append(grant_id)
        return grant_id

    def account_path(self, caller: Caller) -> str:
        return f"/v1/clients/{caller.client_id}" if caller.client_id else f"/v1/people/{caller.username}"

    def _name(self, role: Role | str | None) -> str:
        word = str(role or "person").replace("_", "-")
        self.named[word] += 1
        return f"{word}{self.named[word]}"

    # -- studies

    def register_study(self, code: str = STUDY, sites: tuple[str, ...] = ("01",), **fields: Json) -> Json:
        """Register a study, in draft, with sites that are not active yet, and return the answer."""

        def begin() -> Json:
            study_admin = self.study_admins.get(code)
            if study_admin is None:
                study_admin = self.study_admins[code] = self.person(Role.STUDY_ADMIN, code)
            answer = expect(study_admin.post("/v1/studies", json={**STUDY_BODY, "study_code": code, **fields}), 201)
            for site in sites:
                body = {"site_code": site, "name": f"Hospital {site}", "timezone": "Asia/Shanghai"}
                expect(study_admin.post(f"/v1/studies/{code}/sites", json=body), 201)
            return answer

        return memory.remembered(self, ("study", code, sites, repr(fields)), begin)

    # -- what the trail says

    def trail(self, study: str | None = None, last: int | None = None) -> list[dict[str, Any]]:
        """Return the public bodies of a study's log, or of the service's own, in order; all of them, or the last few."""
        entry, of = tables.trail_entry.c, tables.study.c
        with self.deployment.database.transaction() as tx:
            study_id = (
                tables.SERVICE_LOG
                if study is None
                else tx.execute(select(of.study_id).where(of.study_code == study)).scalar_one()
            )
            rows = tx.execute(
                select(entry.body)
                .where(entry.study_id == study_id)
                .order_by(entry.segment.desc(), entry.log_index.desc())
                .limit(last)
            ).all()
        return [jsonlib.loads(row.body) for row in reversed(rows)]

    def bodies(self) -> list[bytes]:
        """Return the bytes of every entry of every log."""
        entry = tables.trail_entry.c
        with self.deployment.database.transaction() as tx:
            rows = tx.execute(select(entry.body).order_by(entry.study_id, entry.segment, entry.log_index))
            return [bytes(row.body) for row in rows]


_USUAL: Final[Mapping[str, Json]] = {"mode": Mode.TEST, "backup_contact": "Back-up desk, +86 10 5550 0199"}


@cache
def _usual_settings() -> Settings:
    """Return what most houses are set to, made once: to look through the environment takes a third of a house's time."""
    return Settings(**_USUAL)


def house(url: str, tmp_path: Path, **overrides: Json) -> House:
    """Return a new deployment in test mode on a database that is migrated and empty.

    Where a house can begin as a copy (`memory.knows_a_new`) and nothing is overridden, the database need not be there.
    """
    is_like_all_others = not overrides
    clock = overrides.pop("clock", None) or TickingClock()
    seed = overrides.pop("seed", "rest")
    entropy = overrides.pop("entropy", None) or SeededEntropy(seed)
    list_entropy = overrides.pop("list_entropy", None) or SeededEntropy(overrides.pop("list_seed", "lists"))
    folder = tmp_path / f"house-{len(list(tmp_path.glob('house-*')))}"
    folder.mkdir()
    places = {"database_url": url, "key_file": folder / "key", "checkpoint_file": folder / "checkpoints.jsonl"}
    settings = (
        _usual_settings().model_copy(update=places)
        if is_like_all_others
        else Settings(**{**_USUAL, **places, **overrides})
    )
    KeyFileProvider.create(settings.key_file, _ROOT_KEY)
    made = House(settings, clock, entropy, list_entropy)

    def begin() -> None:
        around = surroundings(settings, clock, entropy, list_entropy)
        create_deployment(around, settings.mode)
        around.database.close()
        made.open()
        password = people.register_first_admin(made.deployment, "admin", "First Admin", "admin@example.org")
        made.admin.username, made.admin.password = "admin", password
        made.take_over(made.admin)

    def begin_like_all_others() -> None:
        memory.begun(made, memory.NEW, begin)
        made.new_until = clock.now

    if is_like_all_others:
        made.put_off(begin_like_all_others)
    else:
        begin()
    return made
