"""Every role at every endpoint: the cells as the API's contract declares them, written down apart from the policy table.

A route or a role that is not declared here fails; so does one whose answer differs (USR-02, rule G2).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest
from httpx2 import Response

from app.api.doors import DoorRoute
from app.domain.words import Role
from app.main import DOORS
from tests import harness
from tests.databases import Postgres
from tests.harness import STUDY, Caller, House
from tests.running_study import RunningStudy, running_study

EVERY_STUDY_ROLE: Final = frozenset(Role) - {Role.SERVICE_ADMIN}
READERS: Final = frozenset(
    {
        Role.STUDY_ADMIN,
        Role.INVESTIGATOR,
        Role.COORDINATOR,
        Role.PHARMACIST,
        Role.MONITOR,
        Role.INSPECTOR,
        Role.EDC_CLIENT,
    }
)
UNBLINDED: Final = frozenset(
    {
        Role.STATISTICIAN,
        Role.LIST_APPROVER,
        Role.SUPPLY_MANAGER,
        Role.UNBLINDED_PHARMACIST,
        Role.SAFETY_OFFICER,
    }
)
SIGNED_IN: Final = frozenset(Role)
NOBODY_NEEDED: Final = frozenset[Role]()
ADMIN: Final = frozenset({Role.SERVICE_ADMIN})
STUDY_ADMIN: Final = frozenset({Role.STUDY_ADMIN})
PHARMACIST: Final = frozenset({Role.PHARMACIST})
SUPPLY: Final = frozenset({Role.SUPPLY_MANAGER})
STATISTICIAN: Final = frozenset({Role.STATISTICIAN})
APPROVER: Final = frozenset({Role.LIST_APPROVER})
KIT_READERS: Final = frozenset({Role.PHARMACIST, Role.INVESTIGATOR, Role.EDC_CLIENT})
ENROLLING: Final = frozenset({Role.INVESTIGATOR, Role.COORDINATOR, Role.EDC_CLIENT})
FLAGGING: Final = frozenset({Role.INVESTIGATOR, Role.COORDINATOR})
SAFETY: Final = frozenset({Role.SAFETY_OFFICER})
BREAKING: Final = frozenset({Role.INVESTIGATOR, Role.SAFETY_OFFICER})

RIGHTS: Final[dict[str, frozenset[Role]]] = {
    "register_person": ADMIN,
    "list_people": ADMIN,
    "deactivate_person": ADMIN,
    "reset_person": ADMIN,
    "end_sessions_of_person": ADMIN,
    "grant_role": ADMIN,
    "confirm_grant": ADMIN,
    "list_grants": ADMIN,
    "revoke_grant": ADMIN,
    "record_training": ADMIN,
    "list_trainings": ADMIN,
    "register_client": ADMIN,
    "deactivate_client": ADMIN,
    "register_issuer": ADMIN,
    "confirm_issuer": ADMIN,
    "list_outstanding_reviews": ADMIN,
    "list_issuers": ADMIN,
    "revoke_issuer": ADMIN,
    "link_identity": ADMIN,
    "confirm_identity": ADMIN,
    "list_identities": ADMIN,
    "end_identity": ADMIN,
    "confirm_recovery": ADMIN | STUDY_ADMIN | BREAKING,
    "issue_client_secret": ADMIN,
    "list_client_secrets": ADMIN,
    "revoke_client_secret": ADMIN,
    "add_client_key": ADMIN,
    "list_client_keys": ADMIN,
    "revoke_client_key": ADMIN,
    "grant_client_role": ADMIN,
    "list_client_grants": ADMIN,
    "revoke_client_grant": ADMIN,
    "read_service_trail": ADMIN | {Role.INSPECTOR},
    "declare_recovery": ADMIN,
    "register_study": STUDY_ADMIN,
    "read_study": EVERY_STUDY_ROLE,
    "add_site": STUDY_ADMIN,
    "list_sites": EVERY_STUDY_ROLE,
    "activate_site": STUDY_ADMIN,
    "set_study_status": STUDY_ADMIN,
    "generate_schedule": STATISTICIAN,
    "extend_schedule": STATISTICIAN,
    "import_schedule": STATISTICIAN,
    "list_schedules": EVERY_STUDY_ROLE,
    "read_schedule": EVERY_STUDY_ROLE,
    "read_quality_report": STATISTICIAN | APPROVER,
    "approve_schedule": APPROVER,
    "reject_schedule": APPROVER,
    "activate_schedule": STUDY_ADMIN,
    "create_consignment": SUPPLY,
    "import_consignment": SUPPLY,
    "request_packing_list": SUPPLY,
    "release_packing_list": UNBLINDED,
    "dispatch_consignment": SUPPLY,
    "receive_consignment": PHARMACIST,
    "read_stock": PHARMACIST,
    "read_worklist": PHARMACIST,
    "list_subject_kits": KIT_READERS,
    "assign_kit": KIT_READERS,
    "dispense_kit": PHARMACIST,
    "replace_kit": PHARMACIST,
    "release_replacement": SUPPLY,
    "quarantine_kit": PHARMACIST,
    "return_kit": PHARMACIST,
    "report_loss": PHARMACIST,
    "report_damage": PHARMACIST,
    "release_kit": SUPPLY,
    "destroy_kit": SUPPLY,
    "read_preparation": frozenset({Role.UNBLINDED_PHARMACIST}),
    "allocate": ENROLLING,
    "list_allocations": READERS,
    "read_allocation": READERS,
    "mark_error": frozenset({Role.INVESTIGATOR}),
    "correct_strata": FLAGGING,
    "link_duplicate": FLAGGING,
    "break_code": BREAKING,
    "list_code_breaks": READERS | SAFETY,
    "read_current_access": STUDY_ADMIN | {Role.MONITOR, Role.INSPECTOR},
    "sign_access_review": STUDY_ADMIN,
    "list_access_reviews": STUDY_ADMIN | {Role.MONITOR, Role.INSPECTOR},
    "drill": frozenset({Role.INVESTIGATOR}),
    "list_drills": STUDY_ADMIN | {Role.MONITOR, Role.INSPECTOR, Role.INVESTIGATOR},
    "add_narrative": BREAKING,
    "assess_break": STUDY_ADMIN | {Role.INVESTIGATOR},
    "record_accident": FLAGGING | PHARMACIST | STUDY_ADMIN | {Role.MONITOR},
    "list_accidents": READERS | SAFETY,
    "request_for_third_party": BREAKING,
    "list_third_party": READERS | SAFETY,
    "open_for_third_party": frozenset({Role.TREATING_PHYSICIAN}),
    "release_sheets": SUPPLY,
    "enter_opening": STUDY_ADMIN | SAFETY,
    "read_envelopes": STUDY_ADMIN | PHARMACIST | SAFETY | {Role.MONITOR, Role.INSPECTOR},
    "add_contact": STUDY_ADMIN,
    "list_contacts": STUDY_ADMIN | {Role.MONITOR, Role.INSPECTOR},
    "remove_contact": STUDY_ADMIN,
    "add_webhook": STUDY_ADMIN,
    "list_webhooks": STUDY_ADMIN | {Role.MONITOR, Role.INSPECTOR},
    "remove_webhook": STUDY_ADMIN,
    "unblind_for_safety": SAFETY,
    "list_safety_unblindings": SAFETY,
    "read_unblinding_log": STUDY_ADMIN | {Role.INSPECTOR},
    "export_unblinding_log": STUDY_ADMIN | {Role.INSPECTOR},
    "read_residual": STATISTICIAN,
    "request_interim": STATISTICIAN,
    "release_interim": APPROVER,
    "list_interims": STATISTICIAN | APPROVER | STUDY_ADMIN | {Role.INSPECTOR},
    "start_recall": SUPPLY,
    "release_recall": SUPPLY | APPROVER,
    "list_recalls": (READERS - {Role.EDC_CLIENT}) | SUPPLY | APPROVER,
    "list_call_backs": FLAGGING | PHARMACIST,
    "request_final_unblinding": STATISTICIAN,
    "release_final_unblinding": APPROVER,
    "read_trail": frozenset(Role)
    - ADMIN
    - SAFETY
    - {Role.UNBLINDED_PHARMACIST, Role.TREATING_PHYSICIAN, Role.EDC_CLIENT},
    "read_checkpoint": EVERY_STUDY_ROLE,
    "prove_entry": EVERY_STUDY_ROLE,
    "prove_growth": EVERY_STUDY_ROLE,
    "export_trail": frozenset({Role.INSPECTOR}),
    "read_restricted": STATISTICIAN | SAFETY,
    "list_delegations": frozenset({Role.STUDY_ADMIN, Role.MONITOR, Role.INSPECTOR}),
    "read_disclosures": frozenset({Role.STUDY_ADMIN, Role.MONITOR, Role.INSPECTOR}) | SAFETY,
}
"""Who may call what, from `api.md`."""

OWN: Final = frozenset(
    {
        *("sign_in", "step_up", "sign_out", "read_self", "change_password", "issue_token"),
        *("list_sessions", "end_session", "end_sessions"),
        *("challenge_passkey", "sign_in_by_passkey", "step_up_by_passkey"),
        *("begin_sign_in", "complete_sign_in"),
        *("begin_passkey", "add_passkey", "list_passkeys", "remove_passkey"),
        *("read_own_identities", "confirm_own_identity"),
        *("request_recovery", "complete_recovery"),
        *("list_devices", "end_device"),
    }
)
"""What concerns one's own account, or makes one known; tested with it (`tests/api/test_people.py`, `test_passkeys.py`)."""

STEP_UP: Final = frozenset(
    {
        "confirm_issuer",
        "confirm_grant",
        "sign_access_review",
        "confirm_identity",
        "confirm_recovery",
        "activate_site",
        "set_study_status",
        "generate_schedule",
        "extend_schedule",
        "import_schedule",
        "approve_schedule",
        "reject_schedule",
        "activate_schedule",
        "create_consignment",
        "import_consignment",
        "request_packing_list",
        "release_packing_list",
        "release_replacement",
        "release_kit",
        "destroy_kit",
        "read_preparation",
        "mark_error",
        "break_code",
        "request_for_third_party",
        "open_for_third_party",
        "drill",
        "release_sheets",
        "enter_opening",
        "unblind_for_safety",
        "request_interim",
        "release_interim",
        "start_recall",
        "release_recall",
        "request_final_unblinding",
        "release_final_unblinding",
        "read_restricted",
        "export_trail",
        "declare_recovery",
    }
)
"""What is marked (2) in `api.md`."""

OF_A_SITE: Final = frozenset({"read_stock", "read_worklist", "list_call_backs"})
OF_A_SUBJECT: Final = frozenset({"list_subject_kits", "read_allocation"})
"""Reads of one site or subject: another site's is not found."""


def routes() -> list[DoorRoute]:
    return [route for door in DOORS for route in door.router.routes if isinstance(route, DoorRoute)]


def name_of(route: DoorRoute) -> str:
    return str(route.operation_id)


def method_of(route: DoorRoute) -> str:
    return next(iter(route.methods or ()))


class TestDeclaration:
    def test_every_route_is_declared(self) -> None:
        """An endpoint without a declared cell for each role fails the build. [USR-02]"""
        assert {name_of(route) for route in routes()} == RIGHTS.keys() | OWN

    def test_every_step_up_call_is_a_route(self) -> None:
        """The list of step-up calls names no call that is not there. [SIG-11]"""
        assert RIGHTS.keys() >= STEP_UP


@dataclass(frozen=True)
class Cast:
    """One person (or machine) for each role in the study, and one of each in another study and at another site."""

    study: RunningStudy
    here: dict[Role, Caller]
    elsewhere: dict[Role, Caller]
    other_site: dict[Role, Caller]

    @property
    def house(self) -> House:
        return self.study.house

    def last(self, study: str | None) -> dict[str, Any]:
        """Return the newest entry of a log."""
        return self.house.trail(study, last=1)[0]

    def ends(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the newest entry of the study's and of the service's log."""
        return self.last(STUDY), self.last(None)

    def path(self, route: DoorRoute) -> str:
        """Return the route's path with things that exist, where a cell's answer could depend on it."""
        allocation = self.study.allocations[0]
        return route.path.format(
            study=STUDY,
            site="01",
            subject=allocation["subject_id"],
            kit_code=allocation["kit_code"],
            schedule_id=self.study.schedule_id,
            code="C1",
            request_id="00000000-0000-4000-8000-000000000000",
            code_break_id="00000000-0000-4000-8000-000000000000",
            username="nobody.here",
            client_id="client-nobody",
            issuer_id="00000000-0000-4000-8000-000000000000",
            link_id="00000000-0000-4000-8000-000000000000",
            recovery_id="00000000-0000-4000-8000-000000000000",
            key_id="A" * 43,
            fingerprint="0" * 16,
            contact_id="00000000-0000-4000-8000-000000000000",
            webhook_id="00000000-0000-4000-8000-000000000000",
            grant_id="00000000-0000-4000-8000-000000000000",
            index="0",
        )


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def cast(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cast]:
    """One study under way with everybody in it; the cells refuse, so that they do not disturb each other."""
    folder = tmp_path_factory.mktemp("matrix")
    if request.param == "sqlite":
        copied = folder / "snose.sqlite"
        copied.write_bytes(Path(request.getfixturevalue("migrated_sqlite")).read_bytes())
        with harness.house(f"sqlite:///{copied}", folder) as opened:
            yield assembled(opened)
        return
    server: Postgres = request.getfixturevalue("postgres")
    with (
        server.database(template=request.getfixturevalue("migrated_postgres")) as url,
        harness.house(url, folder) as opened,
    ):
        yield assembled(opened)


def assembled(house: House) -> Cast:
    study = running_study(house, subjects=2)
    here: dict[Role, Caller] = {Role.SERVICE_ADMIN: house.admin}
    elsewhere: dict[Role, Caller] = {}
    for role in EVERY_STUDY_ROLE:
        if role is Role.EDC_CLIENT:
            here[role] = house.machine(role)
            elsewhere[role] = house.machine(role, study="OTHER")
        else:
            here[role] = house.person(role)
            elsewhere[role] = house.person(role, study="OTHER")
    other_site = {
        role: house.person(role, site="02")
        for role in (Role.INVESTIGATOR, Role.COORDINATOR, Role.PHARMACIST, Role.UNBLINDED_PHARMACIST)
    }
    return Cast(study, here, elsewhere, other_site)


def ask(caller: Caller, route: DoorRoute, path: str) -> Response:
    """Send a request that says nothing: who asks is looked at before what is said (rule G2)."""
    method = method_of(route)
    if method == "GET":
        return caller.get(path)
    return caller.delete(path) if method == "DELETE" else caller.post(path, json={})


@pytest.mark.parametrize("route", [route for route in routes() if name_of(route) in RIGHTS], ids=name_of)
class TestCells:
    def test_anonymous(self, cast: Cast, route: DoorRoute) -> None:
        """Nobody known gets 401 with a challenge, is counted by network and enters no log. [AUD-13, USR-02]"""
        method = method_of(route)
        before = cast.ends()
        cast.house.deployment.noise.take()
        response = cast.house.client.request(method, cast.path(route), json=None if method == "GET" else {})
        assert response.status_code == 401
        assert response.headers["WWW-Authenticate"] == "Bearer"
        assert sum(cast.house.deployment.noise.take().values()) == 1
        assert cast.ends() == before

    def test_with_the_right(self, cast: Cast, route: DoorRoute) -> None:
        """Each role that is declared gets past the right; where a proof is due, it gets the challenge. [SIG-11]"""
        name = name_of(route)
        for role in RIGHTS[name]:
            response = ask(cast.here[role], route, cast.path(route))
            if name in STEP_UP:
                assert response.status_code == 401, (role, name)
                assert 'error="insufficient_user_authentication"' in response.headers["WWW-Authenticate"]
            else:
                assert response.status_code not in {401, 403}, (role, name, response.text)
                assert response.status_code < 500, (role, name, response.text)

    def test_without_the_right(self, cast: Cast, route: DoorRoute) -> None:
        """Each role that is not declared gets 403, and the attempt is entered under its name. [AUD-13, EUB-22]"""
        name = name_of(route)
        in_study = "{study}" in route.path
        for role in frozenset(Role) - RIGHTS[name]:
            caller = cast.here[role]
            response = ask(caller, route, cast.path(route))
            expected = 404 if in_study and role is Role.SERVICE_ADMIN else 403
            assert response.status_code == expected, (role, name, response.text)
            entry = cast.last(STUDY if expected == 403 and in_study else None)
            assert entry["outcome"] == "denied"
            assert entry["action"] == route.action.value
            assert entry["actor"] == (caller.client_id or caller.username)

    def test_wrong_study(self, cast: Cast, route: DoorRoute) -> None:
        """A role in another study is none here: 404, entered in the service's log, and nothing in the study's. [USR-21]"""
        if "{study}" not in route.path:
            return
        before = cast.last(STUDY)
        for role, caller in cast.elsewhere.items():
            response = ask(caller, route, cast.path(route))
            assert response.status_code == 404, (role, name_of(route))
            assert cast.last(None)["outcome"] == "denied"
            unknown = ask(caller, route, cast.path(route).replace(STUDY, "UNKNOWN"))
            assert (unknown.status_code, unknown.json()["code"]) == (404, response.json()["code"])
        assert cast.last(STUDY) == before

    def test_wrong_site(self, cast: Cast, route: DoorRoute) -> None:
        """What is at another site is not found, like what is nowhere, and the attempt is entered. [USR-21]"""
        name = name_of(route)
        if name not in OF_A_SITE | OF_A_SUBJECT:
            return
        for role in RIGHTS[name] & cast.other_site.keys():
            caller = cast.other_site[role]
            foreign = ask(caller, route, cast.path(route))
            assert foreign.status_code == 404, (role, name)
            entry = cast.last(STUDY)
            assert (entry["outcome"], entry["actor"]) == ("denied", caller.username)
            nowhere = ask(caller, route, cast.path(route).replace("/01/", "/77/").replace("01-0001", "77-0001"))
            assert nowhere.status_code == 404
            assert {**nowhere.json(), "request_id": ""} == {**foreign.json(), "request_id": ""}
