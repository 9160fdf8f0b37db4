"""The words of the field as types (CDISC, ICH): identifiers, roles, actions, states, and the exclusions between roles."""

import re
import unicodedata
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, NewType

from app.errors import Invalid

StudyCode = NewType("StudyCode", str)
SiteCode = NewType("SiteCode", str)
SubjectId = NewType("SubjectId", str)
"""A subject's identifier as first written; pseudonymous (ASG-23)."""
SubjectKey = NewType("SubjectKey", str)
"""A subject's identifier, normalised: what makes two spellings one subject (rule C4)."""
ArmCode = NewType("ArmCode", str)
KitCode = NewType("KitCode", str)
ConsignmentCode = NewType("ConsignmentCode", str)
RandomizationNumber = NewType("RandomizationNumber", str)
Username = NewType("Username", str)
StratumCode = NewType("StratumCode", str)


class Mode(StrEnum):
    """What a deployment is for; bound into its keys and identifiers (rule A10)."""

    TEST = "test"
    LIVE = "live"


@dataclass(frozen=True, slots=True)
class Arm:
    """A treatment group of the study's definition."""

    arm_code: ArmCode
    label: str
    treatment: str
    ratio: int


@dataclass(frozen=True, slots=True)
class Level:
    """One value of a stratification factor."""

    level_code: str
    label: str


@dataclass(frozen=True, slots=True)
class Factor:
    """A stratification factor with its levels."""

    factor_code: str
    label: str
    levels: tuple[Level, ...]


class StudyStatus(StrEnum):
    """Draft until first opened; closed is for ever."""

    DRAFT = "draft"
    OPEN = "open"
    SUSPENDED = "suspended"
    CLOSED = "closed"


class FurtherKits(StrEnum):
    """What the protocol says of kits for a subject whose code was broken (EUB-14)."""

    ALLOWED = "allowed"
    REFUSED = "refused"


class ScheduleStatus(StrEnum):
    """The life of an allocation list (rule A7); an active one is closed with its study, for ever."""

    GENERATED = "generated"
    APPROVED = "approved"
    REJECTED = "rejected"
    ACTIVE = "active"
    CLOSED = "closed"


class ErrorCategory(StrEnum):
    """What kind of error an allocation was; the reason in free text lies in the restricted part (rule C7, ASG-10)."""

    INELIGIBLE = "ineligible"
    CONSENT_MISSING = "consent_missing"
    NOT_INTENDED = "not_intended"
    WRONG_SUBJECT = "wrong_subject"
    WRONG_STRATUM = "wrong_stratum"
    DUPLICATE = "duplicate"
    OTHER = "other"


class KitStatus(StrEnum):
    """The life of a kit (KIT-03). Expiry is a matter of the consignment and of the day, never of a kit (rule B11)."""

    REGISTERED = "registered"
    DISPATCHED = "dispatched"
    MISSING = "missing"
    IN_STOCK = "in_stock"
    ASSIGNED = "assigned"
    DISPENSED = "dispensed"
    RETURNED = "returned"
    REPLACED = "replaced"
    QUARANTINED = "quarantined"
    DAMAGED = "damaged"
    LOST = "lost"
    DESTROYED = "destroyed"


class ConsignmentStatus(StrEnum):
    """The life of a consignment; it becomes assignable, and is withdrawn, as a whole (rules B5, B6)."""

    REGISTERED = "registered"
    DISPATCHED = "dispatched"
    ASSIGNABLE = "assignable"
    WITHDRAWN = "withdrawn"


class Role(StrEnum):
    """A role that a grant gives to a person or a machine client."""

    STUDY_ADMIN = "study_admin"
    INVESTIGATOR = "investigator"
    COORDINATOR = "coordinator"
    PHARMACIST = "pharmacist"
    MONITOR = "monitor"
    INSPECTOR = "inspector"
    EDC_CLIENT = "edc_client"
    STATISTICIAN = "statistician"
    LIST_APPROVER = "list_approver"
    SUPPLY_MANAGER = "supply_manager"
    UNBLINDED_PHARMACIST = "unblinded_pharmacist"
    SAFETY_OFFICER = "safety_officer"
    TREATING_PHYSICIAN = "treating_physician"
    SERVICE_ADMIN = "service_admin"


UNBLINDED_ROLES: Final = frozenset(
    {
        Role.STATISTICIAN,
        Role.LIST_APPROVER,
        Role.SUPPLY_MANAGER,
        Role.UNBLINDED_PHARMACIST,
        Role.SAFETY_OFFICER,
        Role.TREATING_PHYSICIAN,
    }
)
WAITING_ROLES: Final = UNBLINDED_ROLES | {Role.INVESTIGATOR, Role.STUDY_ADMIN, Role.SERVICE_ADMIN}
"""What gives a right to unblind, to give one, or to vouch for who has one; where grants take two people, these wait."""
SITE_ROLES: Final = frozenset({Role.INVESTIGATOR, Role.COORDINATOR, Role.PHARMACIST, Role.UNBLINDED_PHARMACIST})
BLINDED_ROLES: Final = frozenset(Role) - UNBLINDED_ROLES - {Role.SERVICE_ADMIN}
ENROLLING_ROLES: Final = frozenset(
    {Role.INVESTIGATOR, Role.COORDINATOR, Role.PHARMACIST, Role.MONITOR, Role.EDC_CLIENT}
)


def excludes(one: Role, other: Role) -> bool:
    """Return whether one person may not hold both roles in one study (rule B10, BLD-17, USR-16)."""
    if one == other:
        return False
    if Role.SERVICE_ADMIN in (one, other):
        return True
    return (one in UNBLINDED_ROLES) != (other in UNBLINDED_ROLES)


class Action(StrEnum):
    """What may be done, and what the trail says was done: one word list for both (``resource:verb``)."""

    # accounts, outside any study
    SIGN_IN = "session:create"
    STEP_UP = "session:step_up"
    SIGN_OUT = "session:end"
    ISSUE_TOKEN = "token:create"
    CHANGE_PASSWORD = "password:change"
    READ_SELF = "me:read"
    LIST_SESSIONS = "session:list"
    END_SESSIONS = "session:end_all"
    BEGIN_SIGN_IN = "sign_in:begin"
    CHALLENGE_PASSKEY = "passkey:challenge"
    BEGIN_PASSKEY = "passkey:begin"
    ADD_PASSKEY = "passkey:create"
    LIST_PASSKEYS = "passkey:list"
    REMOVE_PASSKEY = "passkey:remove"
    LIST_DEVICES = "device:list"
    END_DEVICE = "device:end"
    REQUEST_FACTOR_RECOVERY = "factor_recovery:request"
    CONFIRM_FACTOR_RECOVERY = "factor_recovery:confirm"
    COMPLETE_FACTOR_RECOVERY = "factor_recovery:complete"
    REGISTER_PERSON = "person:create"
    LIST_PEOPLE = "person:list"
    DEACTIVATE_PERSON = "person:deactivate"
    RESET_PERSON = "person:reset"
    REGISTER_CLIENT = "client:create"
    ISSUE_CLIENT_SECRET = "client_secret:create"
    ADD_CLIENT_KEY = "client_key:create"
    LIST_CLIENT_CREDENTIALS = "client_credential:list"
    REVOKE_CLIENT_CREDENTIAL = "client_credential:revoke"
    REGISTER_ISSUER = "issuer:create"
    CONFIRM_ISSUER = "issuer:confirm"
    LIST_ISSUERS = "issuer:list"
    REVOKE_ISSUER = "issuer:revoke"
    LINK_IDENTITY = "identity_link:create"
    CONFIRM_IDENTITY = "identity_link:confirm"
    LIST_IDENTITIES = "identity_link:list"
    END_IDENTITY = "identity_link:end"
    READ_OWN_IDENTITIES = "identity_link:read_own"
    CONFIRM_OWN_IDENTITY = "identity_link:confirm_own"
    GRANT_ROLE = "grant:create"
    CONFIRM_GRANT = "grant:confirm"
    LIST_GRANTS = "grant:list"
    REVOKE_GRANT = "grant:revoke"
    RECORD_TRAINING = "training:record"
    LIST_TRAININGS = "training:list"
    READ_DELEGATIONS = "delegation:list"
    READ_SERVICE_TRAIL = "service_trail:read"
    DECLARE_RECOVERY = "recovery:declare"
    ROTATE_KEYS = "key:rotate"
    # studies
    REGISTER_STUDY = "study:register"
    READ_STUDY = "study:read"
    ADD_SITE = "site:add"
    LIST_SITES = "site:list"
    ACTIVATE_SITE = "site:activate"
    SET_STUDY_STATUS = "study:set_status"
    # allocation lists
    GENERATE_SCHEDULE = "schedule:generate"
    EXTEND_SCHEDULE = "schedule:extend"
    IMPORT_SCHEDULE = "schedule:import"
    READ_SCHEDULES = "schedule:read"
    READ_QUALITY_REPORT = "quality_report:read"
    APPROVE_SCHEDULE = "schedule:approve"
    REJECT_SCHEDULE = "schedule:reject"
    ACTIVATE_SCHEDULE = "schedule:activate"
    # kits
    CREATE_CONSIGNMENT = "consignment:create"
    REQUEST_PACKING_LIST = "packing_list:request"
    RELEASE_PACKING_LIST = "packing_list:release"
    DISPATCH_CONSIGNMENT = "consignment:dispatch"
    RECEIVE_CONSIGNMENT = "consignment:receive"
    READ_STOCK = "stock:read"
    READ_WORKLIST = "worklist:read"
    READ_SUBJECT_KITS = "subject_kits:read"
    ASSIGN_KIT = "kit:assign"
    DISPENSE_KIT = "kit:dispense"
    REPLACE_KIT = "kit:replace"
    RELEASE_REPLACEMENT = "kit:release_replacement"
    QUARANTINE_KIT = "kit:quarantine"
    RETURN_KIT = "kit:return"
    REPORT_LOSS = "kit:loss"
    REPORT_DAMAGE = "kit:damage"
    RELEASE_KIT = "kit:release"
    DESTROY_KIT = "kit:destroy"
    READ_PREPARATION = "preparation:read"
    # allocations
    ALLOCATE = "allocation:create"
    READ_ALLOCATION = "allocation:read"
    LIST_ALLOCATIONS = "allocation:list"
    MARK_ERROR = "allocation:mark_error"
    CORRECT_STRATA = "allocation:correct_strata"
    LINK_DUPLICATE = "allocation:link_duplicate"
    # unblinding
    BREAK_CODE = "code_break:create"
    ADD_NARRATIVE = "code_break:add_narrative"
    ASSESS_BREAK = "code_break:assess"
    READ_CODE_BREAKS = "code_break:list"
    READ_ACCESS_REVIEWS = "access_review:list"
    SIGN_ACCESS_REVIEW = "access_review:create"
    LIST_OUTSTANDING_REVIEWS = "access_review:list_outstanding"
    DRILL = "drill:create"
    READ_DRILLS = "drill:list"
    RELEASE_SHEETS = "envelope:release_sheets"
    ENTER_OPENING = "envelope:enter_opening"
    READ_ENVELOPES = "envelope:read"
    UNBLIND_FOR_SAFETY = "safety_unblinding:create"
    READ_SAFETY_UNBLINDINGS = "safety_unblinding:list"
    RECORD_ACCIDENT = "accidental_unblinding:record"
    READ_ACCIDENTS = "accidental_unblinding:list"
    REQUEST_THIRD_PARTY = "third_party_unblinding:request"
    OPEN_FOR_THIRD_PARTY = "third_party_unblinding:open"
    READ_THIRD_PARTY = "third_party_unblinding:list"
    REQUEST_INTERIM = "interim_unblinding:request"
    RELEASE_INTERIM = "interim_unblinding:release"
    READ_INTERIMS = "interim_unblinding:list"
    READ_UNBLINDING_LOG = "unblinding_log:read"
    READ_RESIDUAL = "residual_inference:read"
    START_RECALL = "recall:create"
    RELEASE_RECALL = "recall:release"
    READ_RECALLS = "recall:list"
    READ_CALL_BACKS = "recall:read_call_backs"
    REQUEST_FINAL_UNBLINDING = "final_unblinding:request"
    RELEASE_FINAL_UNBLINDING = "final_unblinding:release"
    # notices
    ADD_CONTACT = "contact:add"
    ADD_WEBHOOK = "webhook:add"
    READ_RECEIVERS = "receiver:list"
    REMOVE_RECEIVER = "receiver:remove"
    # trail
    READ_TRAIL = "trail:read"
    READ_RESTRICTED = "trail:read_restricted"
    READ_CHECKPOINT = "checkpoint:read"
    READ_PROOF = "proof:read"
    EXPORT_TRAIL = "trail:export"
    READ_DISCLOSURES = "disclosures:read"


class ReasonCode(StrEnum):
    """Why a code is broken: subject safety only (EUB-23)."""

    SERIOUS_ADVERSE_EVENT = "serious_adverse_event"
    OVERDOSE = "overdose"
    PREGNANCY_EXPOSURE = "pregnancy_exposure"
    ACCIDENTAL_EXPOSURE = "accidental_exposure"
    URGENT_TREATMENT_DECISION = "urgent_treatment_decision"
    OTHER_SAFETY = "other_safety"


class IdentityCheck(StrEnum):
    """How a colleague made sure of who asks for the recovery of a second factor."""

    IN_PERSON = "in_person"
    VIDEO = "video"
    CALL_BACK = "call_back"
    """Called back at a number that was known before."""


class Impact(StrEnum):
    """What a code break means for the trial (EUB-24)."""

    NONE = "none"
    SUBJECT_EXCLUDED_FROM_ANALYSIS = "subject_excluded_from_analysis"
    BIAS_POSSIBLE = "bias_possible"
    OTHER = "other"


class Late(StrEnum):
    """What a code break still waits for after its time (EUB-09)."""

    NARRATIVE = "narrative"
    ASSESSMENT = "assessment"


class HowLearnt(StrEnum):
    """By which way a treatment became known by accident (EUB-19); ways that every treatment could take, so that none tells one."""

    PACKAGING = "packaging"
    DOCUMENT = "document"
    CONVERSATION = "conversation"
    SYSTEM = "system"
    OTHER = "other"


class WhoLearnt(StrEnum):
    """To whom a treatment became known by accident; nobody is named (EUB-19)."""

    SUBJECT = "subject"
    INVESTIGATOR = "investigator"
    COORDINATOR = "coordinator"
    PHARMACIST = "pharmacist"
    MONITOR = "monitor"
    STUDY_ADMIN = "study_admin"
    TREATING_CLINICIAN = "treating_clinician"
    SPONSOR = "sponsor"
    OTHER = "other"


_SUBJECT_KEY: Final = re.compile(r"[\w.\-]+(?: [\w.\-]+)*")
_SUBJECT_ID_LENGTH: Final = 40


def subject_key(subject_id: str) -> SubjectKey:
    """Return the normalised form under which a subject is one subject (rule C4, ASG-07).

    NFKC, trimmed, inner spaces collapsed, case folded. Raises ``Invalid`` for anything but 1 to 40 letters, digits,
    ``-``, ``_``, ``.`` and single inner spaces, and for ``.`` and ``..``, which a path cannot carry.
    """
    folded = unicodedata.normalize("NFKC", " ".join(unicodedata.normalize("NFKC", subject_id).split()).casefold())
    if not 1 <= len(folded) <= _SUBJECT_ID_LENGTH or folded in {".", ".."} or not _SUBJECT_KEY.fullmatch(folded):
        message = "A subject identifier has 1 to 40 letters, digits, '-', '_', '.' or single inner spaces."
        raise Invalid(message, "subject_id")
    return SubjectKey(folded)


def subject_spelling(subject_id: str) -> SubjectId:
    """Return the identifier as answers show it: the caller's spelling, trimmed, composed, inner spaces collapsed."""
    return SubjectId(" ".join(unicodedata.normalize("NFKC", subject_id).split()))
