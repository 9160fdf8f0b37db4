"""The policy decides in the order of rule G2, and absent means no."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest

from app.api.doors import DoorRoute
from app.domain.people import HeldGrant, Principal, Proof
from app.domain.signatures import Meaning
from app.domain.words import BLINDED_ROLES, UNBLINDED_ROLES, Action, Role, SiteCode, StudyCode
from app.errors import (
    Forbidden,
    Missing,
    NotAuthenticated,
    PasswordChangeRequired,
    SnoseError,
    StepUpRequired,
)
from app.main import DOORS
from app.policy import ELEVATED, PERMISSIONS, PRIVILEGED, SIGNING, SPENDING, covered_actions, decide

NOW = datetime(2026, 11, 22, 9, 0, tzinfo=UTC)
STUDY = StudyCode("S1")
SITE = SiteCode("01")


def grant(role: Role, study: str | None = "S1", site: str | None = None) -> HeldGrant:
    return HeldGrant(role, None if study is None else StudyCode(study), None if site is None else SiteCode(site))


def principal(*grants: HeldGrant, proof_age: float | None = None, spent: bool = False) -> Principal:
    proof = None if proof_age is None else Proof(NOW - timedelta(seconds=proof_age), spent)
    return Principal(
        UUID(int=1),
        "li",
        "Dr Li",
        is_machine=False,
        session_id=UUID(int=2),
        sign_in_id=UUID(int=2),
        used_at=NOW,
        must_change_password=False,
        password_expired=False,
        proof=proof,
        grants=grants,
    )


def ended(who: Principal, *grants: HeldGrant) -> Principal:
    return replace(who, ended_grants=grants)


INVESTIGATOR = grant(Role.INVESTIGATOR, site="01")


class TestDecide:
    @pytest.mark.parametrize(
        ("who", "action", "study", "refusal"),
        [
            (None, Action.ALLOCATE, STUDY, NotAuthenticated),
            (principal(), Action.ALLOCATE, STUDY, Missing),
            (principal(grant(Role.INVESTIGATOR, study="S2", site="01")), Action.ALLOCATE, STUDY, Missing),
            (principal(grant(Role.MONITOR)), Action.ALLOCATE, STUDY, Forbidden),
            (principal(grant(Role.MONITOR)), Action.BREAK_CODE, STUDY, Forbidden),
            (principal(INVESTIGATOR), Action.BREAK_CODE, STUDY, StepUpRequired),
            (principal(INVESTIGATOR, proof_age=300.001), Action.BREAK_CODE, STUDY, StepUpRequired),
            (principal(INVESTIGATOR, proof_age=-0.001), Action.BREAK_CODE, STUDY, StepUpRequired),
            (principal(INVESTIGATOR, proof_age=1, spent=True), Action.BREAK_CODE, STUDY, StepUpRequired),
            (ended(principal(), INVESTIGATOR), Action.ALLOCATE, STUDY, Missing),
            (ended(principal(), INVESTIGATOR), Action.BREAK_CODE, STUDY, StepUpRequired),
            (ended(principal(proof_age=1), INVESTIGATOR), Action.BREAK_CODE, StudyCode("S2"), Missing),
            (ended(principal(proof_age=1), grant(Role.MONITOR)), Action.BREAK_CODE, STUDY, Missing),
            (ended(principal(proof_age=1), grant(Role.SAFETY_OFFICER)), Action.UNBLIND_FOR_SAFETY, STUDY, Missing),
            (principal(), Action.REGISTER_PERSON, None, Forbidden),
            (principal(grant(Role.STUDY_ADMIN)), Action.REGISTER_PERSON, None, Forbidden),
            (principal(grant(Role.MONITOR)), Action.READ_SERVICE_TRAIL, None, Forbidden),
            (
                replace(principal(INVESTIGATOR), must_change_password=True),
                Action.ALLOCATE,
                STUDY,
                PasswordChangeRequired,
            ),
            (replace(principal(INVESTIGATOR), password_expired=True), Action.ALLOCATE, STUDY, PasswordChangeRequired),
            (replace(principal(INVESTIGATOR, proof_age=1), is_machine=True), Action.BREAK_CODE, STUDY, Forbidden),
            (replace(principal(), is_machine=True), Action.CHANGE_PASSWORD, None, Forbidden),
        ],
    )
    def test_no(
        self, who: Principal | None, action: Action, study: StudyCode | None, refusal: type[SnoseError]
    ) -> None:
        """Each missing thing has its own no, the earlier before the later. [rule G2, D3, USR-02, SIG-12]"""
        with pytest.raises(SnoseError) as refused:
            decide(action, who, study, NOW)
        assert type(refused.value) is refusal

    def test_yes_at_the_sites_of_the_grants(self) -> None:
        """A site role holds at its sites only, several grants at all of theirs. [USR-03]"""
        decision = decide(Action.ALLOCATE, principal(INVESTIGATOR, grant(Role.COORDINATOR, site="02")), STUDY, NOW)
        assert decision.role is Role.INVESTIGATOR
        assert decision.sites == frozenset({SiteCode("01"), SiteCode("02")})
        assert decision.role_unless_elsewhere(SITE) is Role.INVESTIGATOR
        with pytest.raises(Missing):
            decision.role_unless_elsewhere(SiteCode("03"))

    def test_yes_at_each_site_by_the_role_held_there(self) -> None:
        """With several grants the role is one that the person holds at the site of the act. [AUD-01, USR-03]"""
        decision = decide(Action.ALLOCATE, principal(INVESTIGATOR, grant(Role.COORDINATOR, site="02")), STUDY, NOW)
        for role, site in ((Role.INVESTIGATOR, "01"), (Role.COORDINATOR, "02")):
            assert decision.role_unless_elsewhere(SiteCode(site)) is role
            assert decision.role_at(SiteCode(site)) is role
        # Where no site is known, or a kit of a site elsewhere was found (rule D2), it is a role that gave the right.
        assert decision.role_at(None) is decision.role_at(SiteCode("03")) is Role.INVESTIGATOR

    def test_yes_in_the_whole_study(self) -> None:
        """A study-wide grant is not narrowed by one at a site."""
        decision = decide(Action.READ_ALLOCATION, principal(INVESTIGATOR, grant(Role.MONITOR)), STUDY, NOW)
        assert decision.sites is None
        assert decision.role_unless_elsewhere(SITE) is Role.MONITOR

    @pytest.mark.parametrize("age", [0, 299.9, 300])
    def test_fresh_proof(self, age: float) -> None:
        """A proof of at most five minutes opens a step-up call. [rule D3]"""
        assert decide(Action.BREAK_CODE, principal(INVESTIGATOR, proof_age=age), STUDY, NOW).role is Role.INVESTIGATOR

    def test_expired_password_does_not_stand_before_a_break(self) -> None:
        """An expired password alerts and does not block the code break. [rule D1, EUB-15]"""
        who = replace(principal(INVESTIGATOR, proof_age=1), password_expired=True)
        assert decide(Action.BREAK_CODE, who, STUDY, NOW).role is Role.INVESTIGATOR
        assert decide(Action.CHANGE_PASSWORD, who, None, NOW).role is None

    def test_inspector_of_any_study_reads_the_service_log(self) -> None:
        """The service's own log is open to an inspector of any study. [api.md]"""
        assert decide(Action.READ_SERVICE_TRAIL, principal(grant(Role.INSPECTOR)), None, NOW).role is Role.INSPECTOR

    def test_machine_ends_its_own_session(self) -> None:
        """A machine client may sign out and look at itself."""
        assert decide(Action.SIGN_OUT, replace(principal(), is_machine=True), None, NOW).role is None

    def test_becoming_known(self) -> None:
        """Signing in needs nobody."""
        assert decide(Action.SIGN_IN, None, None, NOW).role is None


class TestTable:
    def test_every_action_is_covered(self) -> None:
        """No action of the word list is without an entry. [USR-02]"""
        assert covered_actions() == set(Action)

    def test_every_role_has_an_entry(self) -> None:
        """No role is without a line."""
        assert PERMISSIONS.keys() == set(Role)

    def test_spending_and_elevated_acts_are_privileged(self) -> None:
        """What spends a proof needs one, and what needs one is answered after its checkpoint. [D3, D4]"""
        assert SPENDING <= ELEVATED <= PRIVILEGED

    def test_every_signature_has_two_components_and_a_meaning(self) -> None:
        """Nothing is signed without a fresh second proof; what it means stands in a list. [SIG-01, SIG-02, SIG-08, SIG-09]"""
        assert SIGNING.keys() <= ELEVATED
        assert set(SIGNING.values()) <= set(Meaning)
        assert set(Meaning) == {"authorship", "review", "approval", "responsibility"}

    def test_machines_cannot_sign_or_unblind(self) -> None:
        """No step-up call is open to a machine's role. [SIG-12, USR-15]"""
        assert not PERMISSIONS[Role.EDC_CLIENT] & ELEVATED

    def test_unblinded_planners_read_nothing_about_subjects(self) -> None:
        """Statistician, approver and supply manager have no read of subjects. [rule B10]"""
        about_subjects = {
            Action.READ_ALLOCATION,
            Action.LIST_ALLOCATIONS,
            Action.READ_SUBJECT_KITS,
            Action.READ_WORKLIST,
            Action.READ_CODE_BREAKS,
            Action.BREAK_CODE,
        }
        for role in UNBLINDED_ROLES - {Role.SAFETY_OFFICER, Role.UNBLINDED_PHARMACIST}:
            assert not PERMISSIONS[role] & about_subjects

    def test_no_enrolling_role_touches_a_list(self) -> None:
        """Who enrols, dispenses or monitors neither makes nor reads a list. [rules A7, B7, CUS-02]"""
        of_lists = {action for action in Action if action.value.startswith(("quality_report", "schedule"))}
        of_lists -= {Action.READ_SCHEDULES}
        for role in (Role.INVESTIGATOR, Role.COORDINATOR, Role.PHARMACIST, Role.MONITOR, Role.EDC_CLIENT):
            assert not PERMISSIONS[role] & of_lists

    def test_monitors_and_inspectors_are_blinded_and_read(self) -> None:
        """They change nothing; all that a monitor may write is that somebody learnt a treatment by accident. [USR-20]"""
        changing = {
            route.action
            for door in DOORS
            for route in door.router.routes
            if isinstance(route, DoorRoute) and route.methods != {"GET"}
        }
        assert {Role.MONITOR, Role.INSPECTOR} <= BLINDED_ROLES
        assert PERMISSIONS[Role.MONITOR] & changing == {Action.RECORD_ACCIDENT}
        assert not PERMISSIONS[Role.INSPECTOR] & changing
