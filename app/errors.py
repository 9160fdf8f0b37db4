"""Everything that can go wrong, as one tree, without HTTP.

Each class names a situation in the words of the field. ``code`` is the stable name that a caller may rely on, ``advice`` says
what to do next. One table in ``app.api.problems`` gives each branch its status. A message never holds a secret or an arm.

    SnoseError
     ├ Invalid               a value is wrong; the field is named          InvalidSpecification, InvalidStrata, NotConfirmed, ...
     ├ NotAuthenticated      nobody known is asking                        WrongCredentials, WrongOneTimeCode, SignInRefused, ...
     ├ StepUpRequired        a fresh second proof is missing (RFC 9470)
     ├ Forbidden             known, but without the right                  PasswordChangeRequired
     ├ Missing               no such thing here, or not the caller's
     ├ Conflict              the state of things says no                   AlreadyAllocated, StockInsufficient, KitMismatch, ...
     └ Unavailable           not now; nothing was decided                  IntegrityBroken, AuditUnavailable, OutcomeUnknown, ...
"""

from collections.abc import Mapping
from typing import ClassVar


class SnoseError(Exception):
    """Something a caller can be told about."""

    code: ClassVar[str] = "error"
    title: ClassVar[str] = "The request could not be done"
    advice: ClassVar[str] = "Read the detail and send a corrected request."

    def __init__(self, message: str = "", **extra: str) -> None:
        """Keep the plain sentence for the caller and further neutral members of the problem."""
        super().__init__(message or self.title)
        self.message = message or self.title
        self.extra: Mapping[str, str] = extra


# -- values


class Invalid(SnoseError):
    """A value is wrong, and the field is named."""

    code = "invalid"
    title = "A value is not valid"
    advice = "Correct the named field and send the request again; nothing was changed."

    def __init__(self, message: str = "", field: str = "", **extra: str) -> None:
        """Name the field in the words of the request body."""
        super().__init__(message, **extra)
        self.field = field


class InvalidSpecification(Invalid):
    """The specification of an allocation list cannot be used."""

    code = "invalid_specification"
    title = "The specification of the allocation list is not valid"


class InvalidStrata(Invalid):
    """The strata values are not those of the study."""

    code = "invalid_strata"
    title = "The strata values are not valid"
    advice = "Send every factor of the study once, each with one of its levels, and no site."


class NotConfirmed(Invalid):
    """Consent or eligibility was not confirmed."""

    code = "not_confirmed"
    title = "Consent and eligibility must both be confirmed"
    advice = "Confirm both once they are on record at the site, then send the request again."


class InvalidCode(Invalid):
    """A kit code or randomization number is malformed or has a wrong check character."""

    code = "malformed_code"
    title = "The code is not well formed"
    advice = "Read the code from the label again; the last character checks the others."


class PasswordRefused(Invalid):
    """The new password does not meet the rules."""

    code = "password_refused"
    title = "The new password cannot be used"
    advice = "Choose a longer one that is not common and does not hold the user name."


class KeyReused(Invalid):
    """An ``Idempotency-Key`` came back with other content."""

    code = "idempotency_key_reused"
    title = "This Idempotency-Key was used with other content"
    advice = "Use a new key for a new request, or repeat the first request unchanged."


class FaultyImport(Invalid):
    """Lines of an import are wrong; it is refused whole."""

    code = "faulty_import"
    title = "The import holds faults and was refused whole"
    advice = "Mend every named line and import the whole file again; nothing was stored."

    def __init__(self, message: str, faults: tuple[tuple[str, str], ...], field: str) -> None:
        """Keep each fault as (place, sentence); ``field`` is where the import came."""
        super().__init__(message, field)
        self.faults = faults


# -- who


class NotAuthenticated(SnoseError):
    """No token, or one that is unknown, ended or revoked."""

    code = "not_authenticated"
    title = "Sign in first"
    advice = "Get a new access token and send the request again."


class WrongCredentials(NotAuthenticated):
    """User name or password (or client secret) do not fit."""

    code = "wrong_credentials"
    title = "User name or password is wrong"
    advice = "Check both and try again."


class WrongOneTimeCode(NotAuthenticated):
    """The one-time code is wrong, old or used."""

    code = "invalid_code"
    title = "The one-time code is not valid"
    advice = "Wait for the next code of your own device; each works once."


class WrongPasskey(NotAuthenticated):
    """What a device has signed proves nothing here: another challenge, page or key, a key removed, or a signature used before."""

    code = "invalid_passkey"
    title = "The passkey has not proved who you are"
    advice = "Ask for a new challenge and let your own device sign it; each is good once, for five minutes. Or use a one-time code."


class SignInRefused(NotAuthenticated):
    """What came back from the provider begins no session; the entry says why in one word, the caller does not hear it."""

    code = "sign_in_refused"
    title = "The sign-in at the provider opens nothing here"
    advice = "Begin a new sign-in at /v1/sign-ins. When it happens again, ask the service administrator, whom the trail tells why."


class TooManyAttempts(SnoseError):
    """Wrong tries slow down; the account is never locked for ever."""

    code = "too_many_attempts"
    title = "Too many wrong tries"
    advice = (
        "Wait for the time named in Retry-After, then try again. A sign-in with a one-time code as otp, or from a "
        "known device, need not wait."
    )

    def __init__(self, message: str, retry_after: int) -> None:
        """Say after how many seconds the next try is looked at."""
        super().__init__(message)
        self.retry_after = retry_after


class StepUpRequired(SnoseError):
    """A fresh second proof of the caller is missing (RFC 9470, rule D3)."""

    code = "step_up_required"
    title = "A fresh one-time code is needed"
    advice = "Send your own one-time code to /v1/sessions/step-up and repeat the request with the new token."


class Forbidden(SnoseError):
    """The caller is known here and has no right to do this."""

    code = "forbidden"
    title = "Your role does not include this"
    advice = "Ask the study administrator who may do it; the attempt was entered in the trail."


class PasswordChangeRequired(Forbidden):
    """The issued password has not been replaced yet."""

    code = "password_change_required"
    title = "Change the issued password first"
    advice = "Send the issued and a new password to /v1/me/password."


class TrainingRequired(Forbidden):
    """The role waits for a training that is not on record, or is over."""

    code = "training_required"
    title = "Your role is effective after a recorded training only"
    advice = "Ask the service administrator to record it. An emergency code break is open all the same."


class Missing(SnoseError):
    """No such thing, or none that the caller may know of (USR-21)."""

    code = "not_found"
    title = "Nothing is here for you"
    advice = "Check the identifiers in the path and the body."


# -- the state of things


class Conflict(SnoseError):
    """The state of things does not allow it."""

    code = "conflict"
    title = "The present state does not allow this"
    advice = "Read the current state, then decide anew; nothing was changed."


class AlreadyExists(Conflict):
    """Something of this name is there."""

    code = "already_exists"
    title = "This exists already"


class IllegalTransition(Conflict):
    """The step does not follow from the present status (CUS-01, KIT-03)."""

    code = "illegal_transition"
    title = "This step does not follow from the present status"


class AlreadyAllocated(Conflict):
    """The subject has an allocation from other data (rule C4)."""

    code = "already_allocated"
    title = "This subject was allocated before with other data"
    advice = "Read the existing allocation; an allocation is never made anew."


class SubjectIdUnavailable(Conflict):
    """The identifier is in use where the caller may not look."""

    code = "subject_id_unavailable"
    title = "This subject identifier cannot be used"
    advice = "Check the identifier; ask the study administrator when it is right."


class StockInsufficient(Conflict):
    """The site's stock does not hold the floor of every arm; said in one way for all (rule B6)."""

    code = "stock_insufficient"
    title = "The stock at the site is too low"
    advice = "No slot was used. Ask for a new consignment and repeat the request when it was received."


class ListUnavailable(Conflict):
    """No active list has a slot for this stratum; one answer for all causes (ASG-15)."""

    code = "list_unavailable"
    title = "No allocation list is available"
    advice = "Nothing was used. Ask the study administrator; the code break goes on working."


class SiteInactive(Conflict):
    """The site has not been activated."""

    code = "site_inactive"
    title = "The site is not active"


class StudyNotOpen(Conflict):
    """The study is draft, suspended or closed."""

    code = "study_not_open"
    title = "The study is not open"


class SiteNotReady(Conflict):
    """Something is missing before the site can be activated."""

    code = "site_not_ready"
    title = "The site is not ready"
    advice = "Complete what is named as missing and ask for activation again."


class GeneratorCannotApprove(Conflict):
    """Generator and approver are two people (rule A7)."""

    code = "generator_cannot_approve"
    title = "Who generated the list cannot approve it"
    advice = "Another person with the role list_approver must approve."


class CommitmentDiffers(Conflict):
    """The commitment named is not that of the list."""

    code = "commitment_differs"
    title = "This is not the commitment of the list"
    advice = "Read the summary of the list again and compare the commitment."


class ReviewOutdated(Conflict):
    """The grants are not those that were looked at (USR-07)."""

    code = "review_outdated"
    title = "What was looked at has changed since"


class SecondPersonRequired(Conflict):
    """The second step must be done by another person (rule F3)."""

    code = "second_person_required"
    title = "Another person must do this step"
    advice = "Ask a second person with the right; the request stays open."


class PasskeysOff(Conflict):
    """The deployment names no domain for which devices could keep their keys."""

    code = "passkeys_off"
    title = "This service takes no passkeys"
    advice = "Use the one-time code; the operator can name the domain of the service in its settings."


class GrantConflict(Conflict):
    """The person holds a role that excludes this one (rule B10)."""

    code = "grant_conflict"
    title = "The roles exclude each other"
    advice = "Blinded and unblinded roles, and administration, belong to different people."


class KitMismatch(Conflict):
    """Unknown, foreign, unassigned, another subject's or arm's, or unusable: one answer (rule B9)."""

    code = "kit_mismatch"
    title = "This is not a kit to be given to this subject"
    advice = "Do not give it. Read the subject's assigned kit codes and scan again."


class SubjectMismatch(Conflict):
    """Whom the caller named to be sure is not whom the code would be broken for (EUB-21)."""

    code = "subject_mismatch"
    title = "This is not the subject that you named to confirm"
    advice = (
        "Nothing was opened, and your proof is not spent. Read the identifiers again, or leave confirm_subject_id out."
    )


class AlreadyDispensed(Conflict):
    """The kit was given to this subject before."""

    code = "already_dispensed"
    title = "This kit was dispensed to this subject before"


class ReplacementNeedsRelease(Conflict):
    """A second replacement for a subject within 24 hours waits for the supply manager (rule B9)."""

    code = "replacement_needs_release"
    title = "A second replacement within 24 hours needs a release"
    advice = "Ask the supply manager to release the replacement of this kit, then repeat the request."


class InProgress(Conflict):
    """The first request with this key outlasts the lock limit."""

    code = "in_progress"
    title = "The first request with this key is still running"
    advice = "Wait a moment and repeat the request unchanged."


# -- not now


class Unavailable(SnoseError):
    """Not now; nothing was decided."""

    code = "unavailable"
    title = "The service cannot do this now"
    advice = "Repeat the request unchanged in a moment."


class HashingBusy(Unavailable):
    """More passwords are being looked at than the service takes on at a time; this one was not."""

    code = "busy"
    title = "Too many people sign in at this moment"
    advice = (
        "Wait for the time named in Retry-After, then send the request again. A sign-in with a one-time code as otp has a place "
        "kept; step-up and code breaks go on working."
    )
    retry_after: ClassVar[int] = 2
    """Seconds."""


class DatabaseUnavailable(Unavailable):
    """The database does not answer or refuses to write."""

    code = "database_unavailable"
    title = "The database does not answer"


class OutcomeUnknown(Unavailable):
    """Whether the act was committed could not be learnt in time (rule C6)."""

    code = "outcome_unknown"
    title = "It is not known whether this was done"
    advice = "Repeat the same request unchanged: it gives the stored answer, or does it once."


class AuditUnavailable(Unavailable):
    """No checkpoint can be written, and without a trail nothing is done (rule E2)."""

    code = "audit_unavailable"
    title = "The audit trail cannot be made durable"
    advice = "Tell the operator of the service; repeat the request when /readyz is ok."


class RollbackSuspected(Unavailable):
    """The database is older than a checkpoint held outside it (INT-07)."""

    code = "rollback_suspected"
    title = "The database may have been rolled back"
    advice = "Randomization stays shut until a signed recovery statement; code breaks go on working."


class RevealUnavailable(Unavailable):
    """The record of a code break cannot be made durable (rule D4)."""

    code = "reveal_unavailable"
    title = "The treatment cannot be revealed by the service now"
    advice = "Use the back-up contact named here."


class IntegrityBroken(Unavailable):
    """Stored values do not fit together or to what was signed."""

    code = "integrity_failure"
    title = "Stored values do not fit together"
    advice = "Tell the operator of the service at once; nothing was given out."


class SealBroken(IntegrityBroken):
    """A sealed value does not open in this place."""


class KeyRetired(SealBroken):
    """A sealed value names a version of its study's key that was retired."""


class ProofInvalid(IntegrityBroken):
    """A Merkle proof does not lead to the root it should."""


class TrailForked(IntegrityBroken):
    """The head of a log does not carry the service's own seal."""

    code = "trail_forked"
    title = "The audit trail does not continue what was written before"


class ProviderUnavailable(Unavailable):
    """An outside issuer does not answer, or nothing that can be used; ``why`` is one word for the log, never for the caller."""

    code = "provider_unavailable"
    title = "The identity provider gives no answer that can be used"
    advice = (
        "Sign in with your own password at /v1/sessions, and step up with your one-time code: that, and every code break by it, "
        "goes on working. Or try again in a minute."
    )

    def __init__(self, why: str = "unknown", **extra: str) -> None:
        """Keep what hindered it, in one word of ours."""
        super().__init__(**extra)
        self.why = why


class KeyUnavailable(Unavailable):
    """The key provider is absent, unreachable or answers garbage; the service stays sealed (rule F2)."""

    code = "sealed"
    title = "The service is sealed"
    advice = "The operator must make the key available; until then only the health checks answer."


class UnsafeSetting(SnoseError):
    """A setting that live mode refuses (rule F2)."""

    code = "unsafe_setting"
    title = "A setting is unsafe"
