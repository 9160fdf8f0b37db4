"""Who may do what: one table, and one decision (USR-02). Absent means no.

Pure: the table takes words and gives a decision. It is asked by ``app.services.audited`` alone, at every request, with the
grants as they stand in the database at that moment, so that a revocation is effective at once (USR-06).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final

from app.domain.people import Principal
from app.domain.signatures import Meaning
from app.domain.words import Action, Role, SiteCode, StudyCode
from app.errors import Forbidden, Missing, NotAuthenticated, PasswordChangeRequired, StepUpRequired, TrainingRequired

FRESH: Final = timedelta(seconds=300)
"""How old the second proof may be (rule D3)."""

_EVERY_STUDY_ROLE: Final = frozenset(
    {Action.READ_STUDY, Action.LIST_SITES, Action.READ_SCHEDULES, Action.READ_CHECKPOINT, Action.READ_PROOF}
)
_READS_ALLOCATIONS: Final = frozenset({Action.READ_ALLOCATION, Action.LIST_ALLOCATIONS})

PERMISSIONS: Final[Mapping[Role, frozenset[Action]]] = {
    Role.SERVICE_ADMIN: frozenset(
        {
            Action.REGISTER_PERSON,
            Action.LIST_PEOPLE,
            Action.DEACTIVATE_PERSON,
            Action.RESET_PERSON,
            Action.END_SESSIONS,
            Action.REGISTER_CLIENT,
            Action.ISSUE_CLIENT_SECRET,
            Action.ADD_CLIENT_KEY,
            Action.LIST_CLIENT_CREDENTIALS,
            Action.REVOKE_CLIENT_CREDENTIAL,
            Action.REGISTER_ISSUER,
            Action.CONFIRM_ISSUER,
            Action.LIST_ISSUERS,
            Action.REVOKE_ISSUER,
            Action.LINK_IDENTITY,
            Action.CONFIRM_IDENTITY,
            Action.LIST_IDENTITIES,
            Action.END_IDENTITY,
            Action.GRANT_ROLE,
            Action.CONFIRM_GRANT,
            Action.LIST_GRANTS,
            Action.REVOKE_GRANT,
            Action.RECORD_TRAINING,
            Action.LIST_TRAININGS,
            Action.LIST_OUTSTANDING_REVIEWS,
            Action.READ_SERVICE_TRAIL,
            Action.DECLARE_RECOVERY,
            Action.ROTATE_KEYS,
            Action.CONFIRM_FACTOR_RECOVERY,
        }
    ),
    Role.STUDY_ADMIN: _EVERY_STUDY_ROLE
    | _READS_ALLOCATIONS
    | {
        Action.CONFIRM_FACTOR_RECOVERY,
        Action.REGISTER_STUDY,
        Action.ADD_SITE,
        Action.ACTIVATE_SITE,
        Action.SET_STUDY_STATUS,
        Action.ACTIVATE_SCHEDULE,
        Action.READ_RECALLS,
        Action.READ_CODE_BREAKS,
        Action.ASSESS_BREAK,
        Action.RECORD_ACCIDENT,
        Action.READ_ACCIDENTS,
        Action.READ_THIRD_PARTY,
        Action.READ_INTERIMS,
        Action.READ_UNBLINDING_LOG,
        Action.READ_DRILLS,
        Action.ENTER_OPENING,
        Action.READ_ENVELOPES,
        Action.READ_TRAIL,
        Action.READ_DISCLOSURES,
        Action.ADD_CONTACT,
        Action.ADD_WEBHOOK,
        Action.READ_RECEIVERS,
        Action.REMOVE_RECEIVER,
        Action.READ_DELEGATIONS,
        Action.READ_ACCESS_REVIEWS,
        Action.SIGN_ACCESS_REVIEW,
    },
    Role.INVESTIGATOR: _EVERY_STUDY_ROLE
    | _READS_ALLOCATIONS
    | {
        Action.CONFIRM_FACTOR_RECOVERY,
        Action.ALLOCATE,
        Action.MARK_ERROR,
        Action.CORRECT_STRATA,
        Action.LINK_DUPLICATE,
        Action.BREAK_CODE,
        Action.ADD_NARRATIVE,
        Action.ASSESS_BREAK,
        Action.REQUEST_THIRD_PARTY,
        Action.READ_RECALLS,
        Action.READ_CALL_BACKS,
        Action.READ_CODE_BREAKS,
        Action.RECORD_ACCIDENT,
        Action.READ_ACCIDENTS,
        Action.READ_THIRD_PARTY,
        Action.DRILL,
        Action.READ_DRILLS,
        Action.READ_SUBJECT_KITS,
        Action.ASSIGN_KIT,
        Action.READ_TRAIL,
    },
    Role.COORDINATOR: _EVERY_STUDY_ROLE
    | _READS_ALLOCATIONS
    | {
        Action.ALLOCATE,
        Action.CORRECT_STRATA,
        Action.LINK_DUPLICATE,
        Action.READ_RECALLS,
        Action.READ_CALL_BACKS,
        Action.READ_CODE_BREAKS,
        Action.RECORD_ACCIDENT,
        Action.READ_ACCIDENTS,
        Action.READ_THIRD_PARTY,
        Action.READ_TRAIL,
    },
    Role.PHARMACIST: _EVERY_STUDY_ROLE
    | _READS_ALLOCATIONS
    | {
        Action.RECEIVE_CONSIGNMENT,
        Action.READ_STOCK,
        Action.READ_WORKLIST,
        Action.READ_SUBJECT_KITS,
        Action.ASSIGN_KIT,
        Action.DISPENSE_KIT,
        Action.REPLACE_KIT,
        Action.QUARANTINE_KIT,
        Action.RETURN_KIT,
        Action.REPORT_LOSS,
        Action.REPORT_DAMAGE,
        Action.READ_RECALLS,
        Action.READ_CALL_BACKS,
        Action.READ_CODE_BREAKS,
        Action.RECORD_ACCIDENT,
        Action.READ_ACCIDENTS,
        Action.READ_THIRD_PARTY,
        Action.READ_ENVELOPES,
        Action.READ_TRAIL,
    },
    Role.MONITOR: _EVERY_STUDY_ROLE
    | _READS_ALLOCATIONS
    | {
        Action.READ_RECALLS,
        Action.READ_CODE_BREAKS,
        Action.RECORD_ACCIDENT,
        Action.READ_ACCIDENTS,
        Action.READ_THIRD_PARTY,
        Action.READ_DRILLS,
        Action.READ_ENVELOPES,
        Action.READ_TRAIL,
        Action.READ_DISCLOSURES,
        Action.READ_RECEIVERS,
        Action.READ_DELEGATIONS,
        Action.READ_ACCESS_REVIEWS,
    },
    Role.INSPECTOR: _EVERY_STUDY_ROLE
    | _READS_ALLOCATIONS
    | {
        Action.READ_RECALLS,
        Action.READ_CODE_BREAKS,
        Action.READ_ACCIDENTS,
        Action.READ_THIRD_PARTY,
        Action.READ_INTERIMS,
        Action.READ_UNBLINDING_LOG,
        Action.READ_DRILLS,
        Action.READ_ENVELOPES,
        Action.READ_TRAIL,
        Action.READ_DISCLOSURES,
        Action.READ_RECEIVERS,
        Action.READ_DELEGATIONS,
        Action.READ_ACCESS_REVIEWS,
        Action.EXPORT_TRAIL,
        Action.READ_SERVICE_TRAIL,
    },
    Role.EDC_CLIENT: _EVERY_STUDY_ROLE
    | _READS_ALLOCATIONS
    | {
        Action.ALLOCATE,
        Action.READ_SUBJECT_KITS,
        Action.ASSIGN_KIT,
        Action.READ_CODE_BREAKS,
        Action.READ_ACCIDENTS,
        Action.READ_THIRD_PARTY,
    },
    Role.STATISTICIAN: _EVERY_STUDY_ROLE
    | {
        Action.GENERATE_SCHEDULE,
        Action.EXTEND_SCHEDULE,
        Action.IMPORT_SCHEDULE,
        Action.READ_QUALITY_REPORT,
        Action.READ_RESIDUAL,
        Action.RELEASE_PACKING_LIST,
        Action.REQUEST_INTERIM,
        Action.READ_INTERIMS,
        Action.REQUEST_FINAL_UNBLINDING,
        Action.READ_TRAIL,
        Action.READ_RESTRICTED,
    },
    Role.LIST_APPROVER: _EVERY_STUDY_ROLE
    | {
        Action.READ_QUALITY_REPORT,
        Action.APPROVE_SCHEDULE,
        Action.REJECT_SCHEDULE,
        Action.RELEASE_PACKING_LIST,
        Action.RELEASE_INTERIM,
        Action.READ_INTERIMS,
        Action.RELEASE_RECALL,
        Action.READ_RECALLS,
        Action.RELEASE_FINAL_UNBLINDING,
        Action.READ_TRAIL,
    },
    Role.SUPPLY_MANAGER: _EVERY_STUDY_ROLE
    | {
        Action.START_RECALL,
        Action.RELEASE_RECALL,
        Action.READ_RECALLS,
        Action.CREATE_CONSIGNMENT,
        Action.REQUEST_PACKING_LIST,
        Action.RELEASE_PACKING_LIST,
        Action.RELEASE_SHEETS,
        Action.DISPATCH_CONSIGNMENT,
        Action.RELEASE_REPLACEMENT,
        Action.RELEASE_KIT,
        Action.DESTROY_KIT,
        Action.READ_TRAIL,
    },
    Role.UNBLINDED_PHARMACIST: _EVERY_STUDY_ROLE | {Action.READ_PREPARATION, Action.RELEASE_PACKING_LIST},
    Role.SAFETY_OFFICER: _EVERY_STUDY_ROLE
    | {
        Action.CONFIRM_FACTOR_RECOVERY,
        Action.BREAK_CODE,
        Action.ADD_NARRATIVE,
        Action.REQUEST_THIRD_PARTY,
        Action.READ_CODE_BREAKS,
        Action.READ_ACCIDENTS,
        Action.READ_THIRD_PARTY,
        Action.ENTER_OPENING,
        Action.READ_ENVELOPES,
        Action.UNBLIND_FOR_SAFETY,
        Action.READ_SAFETY_UNBLINDINGS,
        Action.RELEASE_PACKING_LIST,
        Action.READ_RESTRICTED,
        Action.READ_DISCLOSURES,
    },
    Role.TREATING_PHYSICIAN: _EVERY_STUDY_ROLE | {Action.OPEN_FOR_THIRD_PARTY},
}
"""Which actions each role includes; for site roles at the sites of the grant only."""

OWN: Final = frozenset(
    {
        Action.READ_SELF,
        Action.CHANGE_PASSWORD,
        Action.SIGN_OUT,
        Action.STEP_UP,
        Action.LIST_SESSIONS,
        Action.BEGIN_PASSKEY,
        Action.ADD_PASSKEY,
        Action.LIST_PASSKEYS,
        Action.REMOVE_PASSKEY,
        Action.LIST_DEVICES,
        Action.END_DEVICE,
        Action.READ_OWN_IDENTITIES,
        Action.CONFIRM_OWN_IDENTITY,
    }
)
"""What everybody may do who is signed in, with one's own account."""

PUBLIC: Final = frozenset(
    {
        Action.BEGIN_SIGN_IN,
        Action.SIGN_IN,
        Action.ISSUE_TOKEN,
        Action.CHALLENGE_PASSKEY,
        Action.REQUEST_FACTOR_RECOVERY,
        Action.COMPLETE_FACTOR_RECOVERY,
    }
)
"""What is done to become known."""

ELEVATED: Final = frozenset(
    {
        Action.CONFIRM_GRANT,
        Action.CONFIRM_ISSUER,
        Action.CONFIRM_IDENTITY,
        Action.CONFIRM_OWN_IDENTITY,
        Action.CONFIRM_FACTOR_RECOVERY,
        Action.SIGN_ACCESS_REVIEW,
        Action.ACTIVATE_SITE,
        Action.SET_STUDY_STATUS,
        Action.GENERATE_SCHEDULE,
        Action.EXTEND_SCHEDULE,
        Action.IMPORT_SCHEDULE,
        Action.APPROVE_SCHEDULE,
        Action.REJECT_SCHEDULE,
        Action.ACTIVATE_SCHEDULE,
        Action.CREATE_CONSIGNMENT,
        Action.REQUEST_PACKING_LIST,
        Action.RELEASE_PACKING_LIST,
        Action.RELEASE_REPLACEMENT,
        Action.RELEASE_KIT,
        Action.DESTROY_KIT,
        Action.READ_PREPARATION,
        Action.MARK_ERROR,
        Action.RELEASE_SHEETS,
        Action.ENTER_OPENING,
        Action.BREAK_CODE,
        Action.DRILL,
        Action.UNBLIND_FOR_SAFETY,
        Action.REQUEST_THIRD_PARTY,
        Action.OPEN_FOR_THIRD_PARTY,
        Action.REQUEST_INTERIM,
        Action.RELEASE_INTERIM,
        Action.START_RECALL,
        Action.RELEASE_RECALL,
        Action.REQUEST_FINAL_UNBLINDING,
        Action.RELEASE_FINAL_UNBLINDING,
        Action.READ_RESTRICTED,
        Action.EXPORT_TRAIL,
        Action.DECLARE_RECOVERY,
        Action.ROTATE_KEYS,
        # Else a stolen session would bring a factor of its own, or take the owner's away.
        Action.BEGIN_PASSKEY,
        Action.ADD_PASSKEY,
        Action.REMOVE_PASSKEY,
    }
)
"""What needs the caller's own fresh second proof (rule D1)."""

SPENDING: Final = frozenset(
    {
        Action.BREAK_CODE,
        Action.UNBLIND_FOR_SAFETY,
        Action.OPEN_FOR_THIRD_PARTY,
        Action.RELEASE_PACKING_LIST,
        Action.RELEASE_INTERIM,
        Action.RELEASE_RECALL,
        Action.RELEASE_FINAL_UNBLINDING,
        Action.READ_PREPARATION,
        Action.READ_RESTRICTED,
    }
)
"""What spends the proof with its COMMIT (rule D3)."""

SIGNING: Final[Mapping[Action, Meaning]] = {
    Action.GENERATE_SCHEDULE: Meaning.AUTHORSHIP,
    Action.EXTEND_SCHEDULE: Meaning.AUTHORSHIP,
    Action.IMPORT_SCHEDULE: Meaning.AUTHORSHIP,
    Action.APPROVE_SCHEDULE: Meaning.APPROVAL,
    Action.ACTIVATE_SCHEDULE: Meaning.RESPONSIBILITY,
    Action.ACTIVATE_SITE: Meaning.RESPONSIBILITY,
    Action.SET_STUDY_STATUS: Meaning.RESPONSIBILITY,
    Action.SIGN_ACCESS_REVIEW: Meaning.REVIEW,
    Action.BREAK_CODE: Meaning.RESPONSIBILITY,
    Action.ENTER_OPENING: Meaning.AUTHORSHIP,
    Action.UNBLIND_FOR_SAFETY: Meaning.RESPONSIBILITY,
    Action.REQUEST_THIRD_PARTY: Meaning.RESPONSIBILITY,
    Action.OPEN_FOR_THIRD_PARTY: Meaning.RESPONSIBILITY,
    Action.REQUEST_INTERIM: Meaning.RESPONSIBILITY,
    Action.RELEASE_INTERIM: Meaning.APPROVAL,
    Action.START_RECALL: Meaning.RESPONSIBILITY,
    Action.RELEASE_RECALL: Meaning.APPROVAL,
    Action.REQUEST_FINAL_UNBLINDING: Meaning.RESPONSIBILITY,
    Action.RELEASE_FINAL_UNBLINDING: Meaning.APPROVAL,
    Action.RELEASE_PACKING_LIST: Meaning.APPROVAL,
    Action.EXPORT_TRAIL: Meaning.RESPONSIBILITY,
    Action.MARK_ERROR: Meaning.AUTHORSHIP,
    Action.RELEASE_KIT: Meaning.RESPONSIBILITY,
    Action.DESTROY_KIT: Meaning.RESPONSIBILITY,
}
"""What is signed, and what the signature means (SIG-08, SIG-09): the session and the fresh second proof are its two components."""

PRIVILEGED: Final = ELEVATED | {
    Action.REGISTER_PERSON,
    Action.DEACTIVATE_PERSON,
    Action.RESET_PERSON,
    Action.END_SESSIONS,
    Action.REGISTER_CLIENT,
    Action.ISSUE_CLIENT_SECRET,
    Action.ADD_CLIENT_KEY,
    Action.REVOKE_CLIENT_CREDENTIAL,
    Action.REGISTER_ISSUER,
    Action.REVOKE_ISSUER,
    Action.LINK_IDENTITY,
    Action.END_IDENTITY,
    Action.GRANT_ROLE,
    Action.REVOKE_GRANT,
    Action.RECORD_TRAINING,
    Action.CHANGE_PASSWORD,
    Action.COMPLETE_FACTOR_RECOVERY,
}
"""What is answered only after its checkpoint stands in the file sink (`custody.md`, "The trail")."""

_ANYWHERE: Final = frozenset({Action.READ_SERVICE_TRAIL, Action.REGISTER_STUDY, Action.CONFIRM_FACTOR_RECOVERY})
"""What a role of any one study includes outside the studies; registering and confirming look at the study inside."""

_LOCAL: Final = frozenset(
    {
        Action.CHANGE_PASSWORD,
        Action.STEP_UP,
        Action.BEGIN_PASSKEY,
        Action.ADD_PASSKEY,
        Action.REMOVE_PASSKEY,
        Action.CONFIRM_OWN_IDENTITY,
        Action.CONFIRM_FACTOR_RECOVERY,
    }
)
"""What touches the factors of a local account, or lets another identity stand for it: never by an outside issuer's word."""

_DESPITE_EXPIRY: Final = frozenset({Action.BREAK_CODE, Action.ADD_NARRATIVE})
"""An expired password, training or delegation alerts and does not stand before a code break; a revocation does (rule D1)."""


@dataclass(frozen=True, slots=True)
class Decision:
    """A yes: the role that gave it, and where it holds."""

    role: Role | None
    sites: frozenset[SiteCode] | None
    """The caller's sites for this action; None is every site of the study."""
    roles: Mapping[SiteCode, Role] = field(default_factory=dict)
    """Which role it is at each of these sites."""

    def role_unless_elsewhere(self, site: SiteCode) -> Role | None:
        """Return the role that the caller holds at a site; raise ``Missing`` for one that is not the caller's (USR-21)."""
        if self.sites is not None and site not in self.sites:
            raise Missing
        return self.role_at(site)

    def role_at(self, site: SiteCode | None) -> Role | None:
        """Return the role that decided at a site; where the site is not known, or not the caller's, one that gave the yes."""
        return self.role if site is None else self.roles.get(site, self.role)


def decide(action: Action, principal: Principal | None, study: StudyCode | None, now: datetime) -> Decision:
    """Return the decision for an action in a study, or raise in the order of rule G2.

    ``NotAuthenticated`` for nobody, ``Missing`` for a study in which the caller has no role, ``Forbidden`` without the right
    (machines at step-up calls included), ``StepUpRequired`` without a fresh, unspent second proof.
    """
    if action in PUBLIC:
        return Decision(None, None)
    if principal is None:
        raise NotAuthenticated
    if principal.must_change_password and action not in OWN:
        raise PasswordChangeRequired
    if principal.is_outside and action in _LOCAL:
        message = "Sign in with your own password for this: an outside issuer vouches for nothing of it."
        raise Forbidden(message)
    if action in OWN:
        if principal.is_machine and action is not Action.SIGN_OUT and action is not Action.READ_SELF:
            raise Forbidden
        if action in ELEVATED:
            _require_fresh_proof(principal, now)
        return Decision(None, None)
    return _decide_by_grants(action, principal, study, now)


def _decide_by_grants(action: Action, principal: Principal, study: StudyCode | None, now: datetime) -> Decision:
    held = [grant for grant in principal.grants if action in _ANYWHERE or grant.study_code == study]
    if action in _DESPITE_EXPIRY:
        # Behind those that hold, so that one of these is told first.
        held += [
            grant
            for grant in principal.lapsed_grants
            if grant.study_code == study and action in PERMISSIONS[grant.role]
        ]
    waiting = [grant for grant in principal.untrained_grants if action in _ANYWHERE or grant.study_code == study]
    if study is not None and not held and not waiting:
        raise Missing
    giving = [grant for grant in held if action in PERMISSIONS[grant.role]]
    if not giving:
        raise TrainingRequired if any(action in PERMISSIONS[grant.role] for grant in waiting) else Forbidden
    if principal.password_expired and action not in _DESPITE_EXPIRY:
        message = "Your password has expired; only a code break is open until you change it."
        raise PasswordChangeRequired(message)
    if action in ELEVATED:
        if principal.is_machine:
            raise Forbidden
        _require_fresh_proof(principal, now)
    elif principal.needs_second_factor:
        # A code break asks for a proof anyway, so nothing more stands before it (rule D1).
        raise StepUpRequired
    everywhere = [grant for grant in giving if grant.site_code is None]
    if everywhere:
        return Decision(everywhere[0].role, None)
    # Backwards, so that of several roles at one site the first is told.
    roles = {grant.site_code: grant.role for grant in reversed(giving) if grant.site_code is not None}
    return Decision(giving[0].role, frozenset(roles), roles)


def _require_fresh_proof(principal: Principal, now: datetime) -> None:
    proof = principal.proof
    if proof is None or proof.spent or not timedelta(0) <= now - proof.at <= FRESH:
        raise StepUpRequired


def covered_actions() -> frozenset[Action]:
    """Return every action that some entry of the table names; a route of any other must not be built."""
    return frozenset().union(*PERMISSIONS.values()) | OWN | PUBLIC
