"""Role x endpoint x scope: what each of them gets, status, problem and field sets, as `cells.py` declares it apart from the code.

One grant of each role lives its whole life in one study: not yet begun, waiting for a training, effective, ended, revoked; then it
is given again and the study is closed. In each of these scopes every role asks for every operation; people of another site ask too.
`test_role_matrix.py` asks the same of nobody and of the roles of another study. A new operation has its row there and in
`cells.py`.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta
from enum import StrEnum
from typing import Any, Final, cast

import pytest
from httpx2 import Response

from app import policy
from app.api.problems import status_of
from app.domain.people import HeldGrant, Principal
from app.domain.words import SITE_ROLES, Action, Role, StudyCode
from app.errors import SnoseError
from app.services import schedules
from app.services.context import token_digest_of
from app.storage import people as stored_people
from tests.harness import STUDY, Caller, House, Json, expect
from tests.running_study import S, running_study
from tests.security.cells import CELLS, DESPITE_EXPIRY
from tests.security.operations import Operation, operations_of
from tests.security.test_role_matrix import OWN, RIGHTS, STEP_UP, name_of, routes

FEWEST: Final = 2_000
_FREE: Final = frozenset({"before", "after", "target"})
"""What an entry tells is the action's own; the twins compare it (`test_twins.py`)."""
LISTS: Final = frozenset({Role.STATISTICIAN, Role.LIST_APPROVER})
"""Who sees slots and block sizes (rule B7): those who make and approve the list."""
LAST: Final = ("start_recall", "list_recalls", "list_call_backs")
"""After a recall nothing is as the others expect it; only then its lists hold something."""
_PROOF_LASTS: Final = timedelta(minutes=4)


class Scope(StrEnum):
    """How the caller's grant stands to what is asked for."""

    NOT_BEGUN = "not yet begun"
    UNTRAINED = "waiting for a training"
    OWN = "own site"
    OTHER_SITE = "other site"
    ENDED = "ended"
    REVOKED = "revoked"
    CLOSED = "closed study"


EFFECTIVE: Final = frozenset({Scope.OWN, Scope.OTHER_SITE, Scope.CLOSED})


def declared(operation: Operation, role: Role, scope: Scope) -> str:
    """Return what this cell answers: the status, then the problem's code or the fields."""
    cells, has_right = CELLS[operation.name], role in RIGHTS[operation.name]
    is_lapsed = scope in {Scope.ENDED, Scope.UNTRAINED} and not (has_right and operation.name in DESPITE_EXPIRY)
    if role is Role.SERVICE_ADMIN or scope in {Scope.NOT_BEGUN, Scope.REVOKED} or (is_lapsed and scope is Scope.ENDED):
        # Who holds nothing in a study is not told that there is one (USR-21).
        if "{study}" in operation.path:
            return "404 not_found"
        has_right = has_right and scope is Scope.OWN
    if not has_right:
        return "403 forbidden"
    if is_lapsed:
        return "403 training_required"
    shown = cells.unblinded if role in LISTS else ""
    return {Scope.OTHER_SITE: cells.other_site, Scope.CLOSED: cells.closed}.get(scope) or shown or cells.own


def is_given(role: Role, scope: Scope) -> bool:
    """Return whether a role can be held in this way."""
    if role is Role.SERVICE_ADMIN:
        return scope in {Scope.OWN, Scope.REVOKED, Scope.CLOSED}
    return role is not Role.EDC_CLIENT or scope is not Scope.UNTRAINED


def shape(value: Json) -> str:
    """Return the names of an answer, in order, those inside of one in brackets: ``items(site_code) next_cursor``."""
    if isinstance(value, list):
        inside = [one for one in value if isinstance(one, dict | list)]
        return shape(_united(inside))
    if not isinstance(value, dict):
        return ""
    named = {name: "" if name in _FREE else shape(inner) for name, inner in value.items()}
    return " ".join(f"{name}({inner})" if inner else name for name, inner in sorted(named.items()))


def _united(values: list[Json]) -> dict[str, Json]:
    """Return the members of all of them; where several have one, its members or elements together."""
    united: dict[str, list[Json]] = {}
    for value in values:
        for name, inner in value.items() if isinstance(value, dict) else ():
            united.setdefault(name, []).extend(inner if isinstance(inner, list) else [inner])
    return united


def said(response: Response) -> str:
    """Return what a response says in the words of the declarations."""
    if response.status_code >= 400:
        problem = response.json()
        names = problem.keys() - {"errors"}
        shown = "" if names == PROBLEM else f" with {sorted(names)}"
        return f"{response.status_code} {problem['code']}{shown}"
    kind = response.headers.get("content-type", "").partition(";")[0]
    told = shape(response.json()) if kind == "application/json" else kind
    return f"{response.status_code} {told}".strip()


PROBLEM: Final = frozenset({"type", "title", "status", "detail", "code", "request_id", "advice"})


@dataclass
class Person:
    """Who holds one role, and the grant of it."""

    caller: Caller
    grant_id: str = ""
    proved_until: Any = None
    token: str = ""
    known: Principal | None = None
    """Who it is to the policy in the present scope."""

    def fresh(self) -> str:
        """Return a token with a second proof that is neither old nor spent."""
        now = self.caller.house.clock.now
        if self.proved_until is None or now > self.proved_until:
            self.token = self.caller.elevated_token()
            self.proved_until = self.caller.house.clock.now + _PROOF_LASTS
        return self.token


@dataclass
class Matrix:
    """One study, somebody of every role, and what every cell has answered."""

    house: House
    only: frozenset[str] = frozenset(RIGHTS)
    """The operations that are asked for; all, unless a planted fault is looked for."""
    roles: frozenset[Role] = frozenset(Role)
    cells: Counter[Scope] = field(default_factory=Counter)
    """How many were asked for over HTTP."""
    decisions: Counter[Scope] = field(default_factory=Counter)
    """How many the policy was asked about."""
    differing: list[str] = field(default_factory=list)

    def play(self) -> None:
        """Ask every cell, scope after scope."""
        self.study = running_study(self.house, subjects=3)
        first, second = self.study.allocations[:2]
        self.examples = {
            "01-0007": first["subject_id"],
            "01-0003": second["subject_id"],
            "K7XQ4M2PF": first["kit_code"],
        }
        found = operations_of(expect(self.house.client.get("/openapi.json"), 200))
        self.operations = sorted(found, key=lambda one: LAST.index(one.name) if one.name in LAST else -1)
        self.people = {
            role: Person(self.house.machine(None) if role is Role.EDC_CLIENT else self.house.person(None))
            for role in sorted(self.roles)
        }
        begin, end = self.house.clock.now + timedelta(hours=1), self.house.clock.now + timedelta(hours=2)
        for role in self.people:
            # The administrator of the service is given without terms, and a machine is trained in nothing.
            terms = {"starts_at": begin.isoformat(), "ends_at": end.isoformat(), "needs_training": self.waits(role)}
            self.grant(role, **({} if role is Role.SERVICE_ADMIN else terms))
        self.ask_all(Scope.NOT_BEGUN)
        self.house.clock.advance(begin - self.house.clock.now)
        self.ask_all(Scope.UNTRAINED)
        self.train()
        if self.roles == frozenset(Role):
            self.happen()
        self.ask_all(Scope.OWN)
        own = self.people
        self.people = {role: Person(self.house.person(role, site="02")) for role in SITE_ROLES & own.keys()}
        self.ask_all(Scope.OTHER_SITE)
        self.people = own
        self.house.clock.advance(end - self.house.clock.now)
        self.ask_all(Scope.ENDED)
        for person in self.people.values():
            path = self.house.account_path(person.caller)
            expect(self.house.admin.delete(f"{path}/grants/{person.grant_id}"), 204)
        self.ask_all(Scope.REVOKED)
        for role in self.people:
            self.grant(role)
        self.study.set_status("closed")
        self.ask_all(Scope.CLOSED)

    def waits(self, role: Role) -> bool:
        return role not in {Role.SERVICE_ADMIN, Role.EDC_CLIENT}

    def grant(self, role: Role, **terms: Json) -> None:
        person = self.people[role]
        body = {
            "role": role.value,
            "study_code": None if role is Role.SERVICE_ADMIN else STUDY,
            "site_code": "01" if role in SITE_ROLES else None,
            **terms,
        }
        answer = self.house.admin.post(f"{self.house.account_path(person.caller)}/grants", json=body)
        person.grant_id = expect(answer, 201)["grant_id"]

    def train(self) -> None:
        body = {"topic": "Protocol 2.1", "completed_on": "2026-11-20"}
        for role, person in self.people.items():
            if self.waits(role):
                path = f"{self.house.account_path(person.caller)}/trainings"
                expect(self.house.admin.post(path, json=body), 201)

    def happen(self) -> None:
        """Have the registers hold something: a list of nothing has no fields."""
        study, physician = self.study, self.people[Role.TREATING_PHYSICIAN].caller
        self.examples["dr.okafor"] = physician.username
        subject, broken = ({"subject_id": f"01-000{number}"} for number in (2, 3))
        why = {"reason_code": "overdose"}
        expect(study.investigator.post(f"{S}/code-breaks", json={**broken, **why}, step_up=True), 201)
        asked = {**subject, **why, "physician": physician.username}
        expect(study.investigator.post(f"{S}/third-party-unblindings", json=asked, step_up=True), 201)
        bodies: dict[str, Any] = {one.name: next(iter(one.bodies.values()), None) for one in self.operations}
        acts = {
            "accidental-unblindings": (study.investigator, {**bodies["record_accident"], **subject}),
            "safety-unblindings": (study.person(Role.SAFETY_OFFICER), {**bodies["unblind_for_safety"], **subject}),
            "interim-unblinding-requests": (study.person(Role.STATISTICIAN), bodies["request_interim"]),
            "webhooks": (study.study_admin, bodies["add_webhook"]),
        }
        for path, (who, body) in acts.items():
            expect(who.post(f"{S}/{path}", json=body, step_up=True), 201)

    def ask_all(self, scope: Scope) -> None:
        for person in self.people.values():
            person.known = None
        for number, operation in enumerate(self.operations):
            # Outside the studies there is no other site, and nothing is closed.
            is_outside = "{study}" not in operation.path and scope in {Scope.OTHER_SITE, Scope.CLOSED}
            if operation.name not in self.only or is_outside:
                continue
            given = [role for role in self.people if is_given(role, scope)]
            without = [role for role in given if role not in RIGHTS[operation.name]]
            for role in given:
                is_in_turn = bool(without) and role is without[number % len(without)]
                self.ask(operation, role, scope, over_http=is_in_turn or role in RIGHTS[operation.name])

    def ask(self, operation: Operation, role: Role, scope: Scope, *, over_http: bool) -> None:
        """Ask over HTTP whoever has the right, and one who has not; about the others the policy, with what the database knows."""
        person = self.people[role]
        answer = self.answered(operation, role, scope) if over_http else self.decided(operation, person)
        (self.cells if over_http else self.decisions)[scope] += 1
        if answer != (wanted := declared(operation, role, scope)):
            self.differing.append(f"{operation.name}, {role}, {scope}: declared {wanted}; answered {answer}")

    def answered(self, operation: Operation, role: Role, scope: Scope) -> str:
        person = self.people[role]
        is_proved = operation.name in STEP_UP and role in RIGHTS[operation.name]
        is_proved = is_proved and (scope in EFFECTIVE or operation.name in DESPITE_EXPIRY)
        response = self.house.send(
            operation.method,
            operation.at(self.known()),
            token=person.fresh() if is_proved else person.caller.token(),
            json=self.body(operation, scope) if operation.method == "POST" else None,
        )
        if operation.spends_the_proof and response.status_code < 300:
            person.proved_until = None
        return said(response)

    def decided(self, operation: Operation, person: Person) -> str:
        now = self.house.clock.now
        assert operation.action is not None
        study = StudyCode(STUDY) if "{study}" in operation.path else None
        try:
            policy.decide(operation.action, self.principal(person), study, now)
        except SnoseError as error:
            return f"{status_of(error)} {error.code}"
        return "allowed"

    def principal(self, person: Person) -> Principal | None:
        """Return who the database says it is, as it stands in this scope."""
        if person.known is None:
            digest, now = token_digest_of(person.caller.token()), self.house.clock.now
            with self.house.deployment.database.transaction() as tx:
                person.known = stored_people.find_principal(tx, digest, now, now - timedelta(minutes=5))
        return person.known

    def known(self) -> Mapping[str, str]:
        """Return what stands in the place of a path's parameters: things that are there, at site 01."""
        first = self.study.allocations[0]
        return {
            "study": STUDY,
            "site": "01",
            "subject": first["subject_id"],
            "kit_code": first["kit_code"],
            "schedule_id": self.study.schedule_id,
            "code": "C1",
            "username": "nobody.here",
            "client_id": "client-nobody",
            "key_id": "A" * 43,
            "fingerprint": "0" * 16,
            "index": "0",
        }

    def body(self, operation: Operation, scope: Scope) -> Json:
        """Return a request that says nothing, which only who may ask is told; of another site or a closed study, a whole one."""
        if scope not in {Scope.OTHER_SITE, Scope.CLOSED}:
            return {}
        whole = self.about_ours(next(iter(operation.bodies.values()), {}))
        if operation.name == "allocate":
            return {**whole, "subject_id": "01-0099"}
        return whole

    def about_ours(self, example: Json) -> Json:
        """Return the document's example about a subject and a kit that are there."""
        if isinstance(example, dict):
            return {name: self.about_ours(inner) for name, inner in example.items()}
        if isinstance(example, list):
            return [self.about_ours(inner) for inner in example]
        return self.examples.get(example, example) if isinstance(example, str) else example


def played(house: House, *roles: Role, only: str) -> list[str]:
    """Return what differs at one operation, asked for by a few roles."""
    matrix = Matrix(house, frozenset({only}), frozenset(roles))
    matrix.play()
    return matrix.differing


class TestDeclarations:
    def test_every_operation_and_every_role_is_declared(self) -> None:
        """An endpoint, or a role, without a declaration fails the build. [USR-02, USR-16]"""
        assert CELLS.keys() == RIGHTS.keys(), "say in tests/security/cells.py what the operation answers"
        assert {name_of(route) for route in routes()} == RIGHTS.keys() | OWN
        assert frozenset(Role) == frozenset().union(*RIGHTS.values()), "say in RIGHTS what the role may do"
        assert RIGHTS.keys() >= DESPITE_EXPIRY


def test_every_cell(house: House) -> None:
    """At least 2,000 cells, each exactly as declared, field sets too. [USR-02, USR-06, USR-21, EUB-02, BLD-09, rules B1, G2]"""
    matrix = Matrix(house)
    matrix.play()
    assert matrix.differing == []
    assert matrix.cells.total() >= FEWEST
    assert matrix.decisions.total() >= FEWEST
    assert matrix.cells.keys() == set(Scope)


@pytest.mark.parametrize("database_kind", ["sqlite"])
class TestPlanted:
    """The matrix has teeth: each faulty build is seen at its place, and nowhere else."""

    def test_a_right_too_much(self, house: House, monkeypatch: pytest.MonkeyPatch) -> None:
        """A coordinator who may break a code. [USR-02]"""
        more = policy.PERMISSIONS[Role.COORDINATOR] | {Action.BREAK_CODE}
        monkeypatch.setitem(cast("dict[Role, frozenset[Action]]", policy.PERMISSIONS), Role.COORDINATOR, more)
        found = played(house, Role.COORDINATOR, Role.MONITOR, only="break_code")
        assert [line.partition(": ")[0] for line in found] == [
            f"break_code, coordinator, {scope}"
            for scope in (Scope.UNTRAINED, Scope.OWN, Scope.OTHER_SITE, Scope.ENDED, Scope.CLOSED)
        ]

    def test_a_site_that_is_not_looked_at(self, house: House, monkeypatch: pytest.MonkeyPatch) -> None:
        """One operation at which every site is one's own. [USR-21]"""
        real = policy.decide

        def everywhere(action: Action, *asked: Any) -> policy.Decision:  # noqa: ANN401  # as it is asked
            decision = real(action, *asked)
            return policy.Decision(decision.role, None) if action is Action.READ_ALLOCATION else decision

        monkeypatch.setattr(policy, "decide", everywhere)
        found = played(house, Role.INVESTIGATOR, Role.MONITOR, only="read_allocation")
        assert [line.partition(": ")[0] for line in found] == [f"read_allocation, investigator, {Scope.OTHER_SITE}"]

    def test_grants_that_are_remembered(self, house: House, monkeypatch: pytest.MonkeyPatch) -> None:
        """A build that goes on honouring what was granted once. [USR-06]"""
        real = stored_people.find_principal
        known: dict[str, tuple[HeldGrant, ...]] = {}

        def remembered(*asked: Any) -> Principal | None:  # noqa: ANN401  # as it is asked
            found = real(*asked)
            if found is not None and found.grants:
                known[found.name] = found.grants
            return found if found is None else replace(found, grants=known.get(found.name, ()))

        monkeypatch.setattr(stored_people, "find_principal", remembered)
        found = played(house, Role.MONITOR, Role.SERVICE_ADMIN, only="list_allocations")
        assert [line.partition(": ")[0] for line in found] == [
            f"list_allocations, monitor, {scope}" for scope in (Scope.ENDED, Scope.REVOKED)
        ]

    def test_a_field_too_much(self, house: House, monkeypatch: pytest.MonkeyPatch) -> None:
        """A monitor who is shown the size of the blocks, as those are who make the list. [BLD-03, rule B7]"""
        monkeypatch.setattr(schedules, "_READS_UNBLINDED", schedules._READS_UNBLINDED | {Role.MONITOR})
        found = played(house, Role.MONITOR, only="read_schedule")
        assert [line.partition(": ")[0] for line in found] == [
            f"read_schedule, monitor, {scope}" for scope in (Scope.OWN, Scope.CLOSED)
        ]
