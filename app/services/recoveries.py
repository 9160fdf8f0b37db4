"""The recovery of a lost second factor, around the clock, through a second person (EUB-15, USR-13, N05, rule D5).

Who has lost it proves the password and gets a new factor that opens nothing yet, with a code for a colleague. The colleague makes
sure of who asks, and confirms by that code in a session of their own with a fresh second proof. Then the password and the first
code of the new factor put it in the place of the lost one. So it takes the password, the new factor and another person, both named
in the trail; nobody but the person has seen the factor, and who has one of the three has nothing (SIG-07).
"""

import hmac
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

import structlog

from app.domain.encoding import encode
from app.domain.people import HeldGrant, may_vouch
from app.domain.sealed import Column, SealContext
from app.domain.words import Action, IdentityCheck, Username
from app.errors import (
    Forbidden,
    IllegalTransition,
    IntegrityBroken,
    Missing,
    SecondPersonRequired,
    WrongCredentials,
)
from app.identity.codes import accepted_step, new_secret
from app.identity.passwords import as_spoken, spoken_code
from app.services.audited import Act, audited
from app.services.context import Deployment, RequestContext
from app.services.devices import charge
from app.services.outbox import tell_of_recovery, wake_sender
from app.services.sessions import SignedIn, apart, begin_session
from app.services.tries import (
    enter_failed_login,
    factor_context,
    failed_login,
    look,
    name_of,
    require_right,
    try_password,
)
from app.storage import devices, passkeys, people, recoveries
from app.storage.database import Transaction
from app.storage.people import Credential
from app.storage.recoveries import Recovery

LIFE: Final = timedelta(minutes=30)
"""How long a recovery waits for its colleague and its completion."""
MOST_TRIES: Final = 10
"""So many times a recovery may be tried to complete; who mistypes more often asks for another one."""
_log: Final = structlog.get_logger("snose.recoveries")


@dataclass(frozen=True, slots=True)
class RequestedRecovery:
    """A recovery that waits for a colleague. Danger: its secrets are shown once."""

    recovery_id: UUID
    code_for_colleague: str = field(repr=False)
    totp_secret: str = field(repr=False)
    expires_at: datetime


@dataclass(frozen=True, slots=True)
class ConfirmedRecovery:
    """A recovery that only waits for its person."""

    recovery_id: UUID
    username: str
    confirmed_by: str
    confirmed_at: datetime
    expires_at: datetime


def request(ctx: RequestContext, username: str, password: str, device_secret: str | None = None) -> RequestedRecovery:
    """Return a new second factor that opens nothing yet, and the code by which a colleague confirms it.

    A try at the password is counted and slowed down like a sign-in, and at a known device waits behind no stranger. Raises
    ``WrongCredentials``, ``TooManyAttempts``, ``HashingBusy``, and ``IllegalTransition`` for who has no factor of their own that
    could be lost.
    """
    name = name_of(username)
    device = None
    if device_secret is not None:
        device = apart(ctx.deployment, lambda tx: charge(ctx, tx, name, device_secret))
    tried = try_password(ctx, name, password, is_known=device is not None)

    def work(act: Act) -> RequestedRecovery:
        if device is not None:
            act.lasting = {"device_id": str(device.device_id)}
        kept = require_right(act, tried)
        if device is not None and not devices.record_use(act.tx, device.device_id, act.now):
            # Ended while the password was looked at: the next try is one as any other.
            raise WrongCredentials
        act.actor = name
        if kept.must_change:
            message = "There is no second factor to be recovered yet: sign in and change the issued password."
            raise IllegalTransition(message)
        deployment = act.deployment
        recovery_id, code, secret = (
            deployment.new_id(),
            spoken_code(deployment.entropy),
            new_secret(deployment.entropy),
        )
        sealed = deployment.ring.seal(_context(kept.principal_id, recovery_id), secret.encode("ascii"))
        recovery = Recovery(recovery_id, kept.principal_id, name, sealed, kept.totp_last_step, act.now)
        recoveries.add_recovery(act.tx, recovery, _digest(deployment, code))
        act.note(after={"recovery_id": str(recovery_id)})
        return RequestedRecovery(recovery_id, code, secret, act.now + LIFE)

    on_refusal = failed_login(ctx, tried)
    return audited(ctx, Action.REQUEST_FACTOR_RECOVERY, work, target=tried.target(name), on_refusal=on_refusal)


def confirm(ctx: RequestContext, username: Username, code: str, identity_check: IdentityCheck) -> ConfirmedRecovery:
    """Return the recovery of a colleague, confirmed by the caller, who has made sure of who asks.

    An unknown code, one of somebody else, and one of somebody for whom the caller may not vouch are all ``Missing``: 58 random bits
    that are good for half an hour are not guessed. Raises ``SecondPersonRequired`` for one's own, ``IllegalTransition`` for a
    recovery that was confirmed, ``Forbidden`` for a caller whose own factor was recovered just now.
    """

    def work(act: Act) -> ConfirmedRecovery:
        act.note(target={"username": username})
        if act.principal.was_recovered_lately(act.now):
            message = "Your own second factor was recovered within the day: somebody else must confirm."
            raise Forbidden(message)
        found = recoveries.hold_by_code(act.tx, _digest(act.deployment, code), act.now - LIFE)
        if found is None or found.name != username:
            raise Missing
        # Who has issued the password may know it still, and would be both.
        credential = people.find_credential(act.tx, found.name, is_machine=False)
        reset_by = credential.reset_by if credential is not None else None
        if act.principal.name in {found.name, reset_by}:
            raise SecondPersonRequired
        if not _is_vouched_for(act.tx, found, act.principal.name, act.now):
            raise Missing
        if found.confirmed_at is not None:
            message = "This recovery was confirmed before."
            raise IllegalTransition(message)
        mac = _mac(act.deployment, found, act.principal.name, act.now, identity_check)
        recoveries.record_confirmation(act.tx, found.recovery_id, act.principal.name, act.now, identity_check, mac)
        act.note(
            target={"username": username, "recovery_id": str(found.recovery_id)},
            after={"identity_check": identity_check},
        )
        return ConfirmedRecovery(found.recovery_id, found.name, act.principal.name, act.now, found.requested_at + LIFE)

    return audited(ctx, Action.CONFIRM_FACTOR_RECOVERY, work, answer_type=ConfirmedRecovery)


def complete(ctx: RequestContext, recovery_id: UUID, password: str, one_time_code: str) -> SignedIn:
    """Return a session with a fresh second proof, by the new factor, which has taken the place of the lost one.

    The lost factor, passkeys and sessions are void. Raises ``WrongCredentials`` for a wrong password and for a recovery that is
    unknown, over or tried too often, ``WrongOneTimeCode``, and ``IllegalTransition`` for one that nobody has confirmed, or whose
    factor was used since: it is not lost.
    """
    (credential, found), fault = look(ctx, password, lambda tx: _charge(ctx, tx, recovery_id))

    def work(act: Act) -> SignedIn:
        if found is None or credential is None or fault is not None:
            raise fault or WrongCredentials
        kept = people.hold_credential(act.tx, credential.principal_id)
        # Read again under the lock: it may have been completed, or the password changed, meanwhile.
        recovery = recoveries.find_recovery(act.tx, recovery_id, act.now - LIFE)
        if recovery is None or not kept.is_active or kept.secret_hash != credential.secret_hash:
            raise WrongCredentials
        confirmed_by = _require_confirmed(act, recovery)
        _require_lost(act, recovery, kept)
        ring, holder = act.deployment.ring, kept.principal_id
        secret = ring.open(_context(holder, recovery_id), recovery.totp_secret)
        step = accepted_step(secret.decode("ascii"), one_time_code.replace(" ", ""), act.now, None)
        people.record_recovered_factor(act.tx, holder, ring.seal(factor_context(holder), secret), step, act.now)
        passkeys.record_all_removed(act.tx, holder, act.now)
        people.end_sessions(act.tx, holder, act.now)
        recoveries.close_all(act.tx, holder, act.now)
        devices.record_all_ended(act.tx, holder, act.now)
        given = begin_session(act, holder, act.now + act.deployment.limits.session_length, "mfa")
        said = {"confirmed_by": confirmed_by, "identity_check": recovery.identity_check}
        act.note(after={**(act.after or {}), **said})
        # In the order of their codes, so that two at once wait for each other, and not both.
        for study_code in sorted(
            {grant.study_code for grant in _owned(act.tx, holder) if grant.study_code is not None}
        ):
            tell_of_recovery(act, study_code, recovery.name, confirmed_by)
        return given

    # An id that nobody was given is noise; a known one's failure is entered.
    on_refusal = enter_failed_login if found is not None else None
    target = {"username": found.name if found is not None else "unknown", "recovery_id": str(recovery_id)}
    given = audited(ctx, Action.COMPLETE_FACTOR_RECOVERY, work, target=target, on_refusal=on_refusal)
    # Told to whoever watches the log, as it is seldom; the entry says who and by whose word.
    _log.warning("second factor recovered", request_id=ctx.request_id)
    wake_sender(ctx.deployment)
    return given


# -- inside ----------------------------------------------------------------------------------------------------------


def _charge(ctx: RequestContext, tx: Transaction, recovery_id: UUID) -> tuple[Credential | None, Recovery | None]:
    """Count a try to complete a recovery, and return it with its person's credential; nothing of one that is over."""
    charged = recoveries.charge_try(tx, recovery_id, MOST_TRIES)
    found = recoveries.find_recovery(tx, recovery_id, ctx.now() - LIFE)
    # Whatever is known of the recovery, a credential is looked for.
    credential = people.find_credential(tx, found.name if charged and found is not None else "", is_machine=False)
    return credential, found


def _is_vouched_for(tx: Transaction, recovery: Recovery, by: str, now: datetime) -> bool:
    """Return whether somebody may vouch for the owner of a recovery, by what both hold now."""
    voucher = people.get_account(tx, by, is_machine=False)
    held = people.list_grants(tx, voucher.principal_id, now)
    owned = _owned(tx, recovery.principal_id)
    return voucher.is_active and may_vouch(*([_held(grant) for grant in grants] for grants in (held, owned)))


def _owned(tx: Transaction, principal_id: UUID) -> list[people.RoleGrant]:
    """Return the grants of an account that nobody has revoked.

    What has ended, or waits for a training, opens a code break all the same (rule D1); what was revoked opens nothing.
    """
    return [grant for grant in people.list_grants(tx, principal_id) if grant.revoked_at is None]


def _held(grant: people.RoleGrant) -> HeldGrant:
    return HeldGrant(grant.role, grant.study_code, grant.site_code)


def _require_confirmed(act: Act, recovery: Recovery) -> str:
    """Return who has confirmed a recovery, and may still; raise ``IllegalTransition``, ``IntegrityBroken`` for a planted word."""
    by, at = recovery.confirmed_by, recovery.confirmed_at
    if by is None or at is None:
        message = "No colleague has confirmed this recovery yet."
        raise IllegalTransition(message)
    mac = _mac(act.deployment, recovery, by, at, recovery.identity_check or "")
    if not hmac.compare_digest(mac, recovery.confirmation_mac or b""):
        raise IntegrityBroken
    if not _is_vouched_for(act.tx, recovery, by, act.now):
        message = "Who has confirmed this recovery may not do so any more: ask another colleague, with a new one."
        raise IllegalTransition(message)
    return by


def _require_lost(act: Act, recovery: Recovery, kept: Credential) -> None:
    """Raise ``IllegalTransition`` when a factor of the person was used since it was said to be lost: somebody has it."""
    used = [one.last_challenge_at for one in passkeys.list_passkeys(act.tx, kept.principal_id)]
    if kept.totp_last_step != recovery.former_last_step or any(
        at is not None and at > recovery.requested_at for at in used
    ):
        message = (
            "A second factor of this account was used since: it is not lost. If somebody stole it, ask for a reset."
        )
        raise IllegalTransition(message)


def _context(principal_id: UUID, recovery_id: UUID) -> SealContext:
    return SealContext(Column.RECOVERY, None, (str(principal_id), str(recovery_id)))


def _digest(deployment: Deployment, code: str) -> bytes:
    """Return under what a code is found: keyed, so that who reads the database does not find the code by trying."""
    return deployment.ring.mac("factor recovery code", as_spoken(code))


def _mac(deployment: Deployment, recovery: Recovery, by: str, at: datetime, identity_check: str) -> bytes:
    """Return what binds a confirmation: nobody can plant one in the database."""
    said = (str(recovery.recovery_id), str(recovery.principal_id), by, at.isoformat(), identity_check)
    return deployment.ring.mac("factor recovery", encode(*said))
