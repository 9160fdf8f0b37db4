"""Accounts, sign-in, the second proof, machine clients, and who holds which role.

A password is verified and hashed outside any transaction: Argon2 takes its time, and a transaction that waits for it holds others
up. So what is verified is looked at again inside, under a lock on the credential.
"""

import base64
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime
from functools import partial
from typing import Final, NoReturn
from uuid import UUID

from app.domain.access_reviews import due_at
from app.domain.encoding import encode
from app.domain.people import HeldGrant, Period, Principal
from app.domain.words import (
    BLINDED_ROLES,
    SITE_ROLES,
    UNBLINDED_ROLES,
    WAITING_ROLES,
    Action,
    Role,
    SiteCode,
    StudyCode,
    Username,
    excludes,
)
from app.errors import (
    AlreadyExists,
    Conflict,
    GrantConflict,
    HashingBusy,
    IllegalTransition,
    IntegrityBroken,
    Invalid,
    NotAuthenticated,
    PasswordChangeRequired,
    PasswordRefused,
    SecondPersonRequired,
    SnoseError,
    TooManyAttempts,
    WrongCredentials,
    WrongOneTimeCode,
)
from app.identity import assertions
from app.identity.attempts import CODE_ALARMS, MOST_CODES_ON_DEVICE, MOST_SHOWN, Attempts, coded, coded_in_session
from app.identity.codes import accepted_step, new_secret
from app.identity.jose import PublicKey
from app.identity.passwords import issued_password, refuse_weak
from app.identity.tokens import client_secret_digest, new_client_secret, verify_client_secret
from app.services import devices, pages
from app.services.audited import Act, audited, enter_by_service
from app.services.context import Deployment, RequestContext
from app.services.sessions import SignedIn, apart, begin_session
from app.services.tries import (
    SESSION_BUCKETS,
    USERNAME,
    bucket_of,
    charge_name,
    factor_context,
    failed_login,
    fault_of,
    find_named,
    hold_unchanged,
    is_noisy_network,
    name_of,
    put_to_network,
    require_right,
    secret_of,
    shown_bucket_of,
    try_password,
)
from app.storage import access_reviews, clients, passkeys, pending_grants, people, recoveries, studies
from app.storage import devices as device_rows
from app.storage.database import Transaction
from app.storage.pending_grants import PendingGrant
from app.storage.people import Account, Credential, Delegation, RoleGrant, Training

ASSERTION_TYPE: Final = assertions.TYPE
_AT_TOKENS: Final = "token at "
"""Apart from passwords, so that a machine that fails slows no person down."""
"""What a client that signs for its token calls its assertion (RFC 7523, 2.2)."""
_RESERVED: Final = frozenset({"snose", "unknown"})
"""Names that the trail gives to the service itself and to nobody known."""
_CLIENT_PREFIX: Final = "client-"


@dataclass(frozen=True, slots=True)
class NewPassword:
    """What the first change of a password gives; None at later ones. Danger: shown once."""

    totp_secret: str | None


@dataclass(frozen=True, slots=True)
class IssuedPerson:
    """A new or reset account with its one-time password. Danger: shown once."""

    username: Username
    password: str
    needs_colleague: bool = False
    """Whether the next second factor takes the word of a colleague."""


@dataclass(frozen=True, slots=True)
class IssuedClient:
    """A new machine client with its secret. Danger: shown once."""

    client_id: str
    client_secret: str


@dataclass(frozen=True, slots=True)
class ProofState:
    """The second proof of a session: when it was given, how old it is, whether an act has spent it."""

    at: datetime
    age_seconds: int
    spent: bool


@dataclass(frozen=True, slots=True)
class MySession:
    """A sign-in of one's own that is not over."""

    session_id: UUID
    is_current: bool
    signed_in_at: datetime
    used_at: datetime
    """To the minute; reading about oneself is no use."""
    ends_at: datetime
    proof_at: datetime | None


@dataclass(frozen=True, slots=True)
class Myself:
    """Who is asking, as the service knows them now."""

    username: str
    display_name: str
    is_machine: bool
    acr: str
    proof: ProofState | None
    must_change_password: bool
    password_expired: bool
    grants: tuple[HeldGrant, ...]


@dataclass(frozen=True, slots=True)
class PeoplePage:
    """A page of people by user name."""

    items: Sequence[Account]
    next_cursor: str | None


@dataclass(frozen=True, slots=True)
class Terms:
    """On what terms a role is given: for a time, and after a training."""

    starts_at: datetime | None = None
    ends_at: datetime | None = None
    needs_training: bool = False

    def said(self) -> dict[str, str | bool]:
        """Return how an entry tells them; nothing of those that are not made."""
        dates = {"starts_at": self.starts_at, "ends_at": self.ends_at}
        told: dict[str, str | bool] = {
            name: at.isoformat(timespec="seconds") for name, at in dates.items() if at is not None
        }
        return told | ({"needs_training": True} if self.needs_training else {})


NO_TERMS: Final = Terms()


@dataclass(frozen=True, slots=True)
class WaitingGrant:
    """What is asked for and opens nothing until another service administrator has confirmed it."""

    grant_id: UUID


@dataclass(frozen=True, slots=True)
class Grants:
    """The grants of an account, and what waits to be one."""

    items: Sequence[RoleGrant]
    pending: Sequence[PendingGrant]


@dataclass(frozen=True, slots=True)
class NewTraining:
    """What is recorded of a training."""

    topic: str
    completed_on: date
    valid_until: date | None
    study_code: StudyCode | None


@dataclass(frozen=True, slots=True)
class DelegationPage:
    """A page of a study's delegation log."""

    items: Sequence[Delegation]
    next_cursor: str | None
    access_review_due_at: datetime
    is_access_review_overdue: bool


@dataclass(frozen=True, slots=True)
class Holder:
    """The account that a grant is about: a person or a machine client."""

    name: str
    is_machine: bool

    def account(self, tx: Transaction) -> Account:
        """Return the account; raise ``Missing``."""
        return people.get_account(tx, self.name, is_machine=self.is_machine)

    def target(self) -> dict[str, str]:
        """Return how entries name it."""
        return {"client_id" if self.is_machine else "username": self.name}


# -- sign-in ---------------------------------------------------------------------------------------------------------


def sign_in(
    ctx: RequestContext,
    username: str,
    password: str,
    one_time_code: str | None = None,
    device_secret: str | None = None,
) -> SignedIn:
    """Return a session on the strength of a password; what an account without one would hear tells nothing of it.

    Strangers who go on trying would hold up the owner of a name for as long as they like. So who comes with a known device, or
    shows a code of their own, does not wait behind them, and a place is kept; what is not right changes nothing. Raises
    ``WrongCredentials``, which is entered with the account or ``unknown`` (rule E1), and ``TooManyAttempts`` and ``HashingBusy``,
    which are counted as noise: nothing was looked at.
    """
    name = name_of(username)
    device = None
    if device_secret is not None:
        device = apart(ctx.deployment, lambda tx: devices.charge(ctx, tx, name, device_secret))
    is_shown = (
        device is None
        and one_time_code is not None
        and apart(ctx.deployment, lambda tx: _is_shown(ctx, tx, name, one_time_code))
    )
    tried = try_password(ctx, name, password, is_known=is_shown or device is not None)

    def work(act: Act) -> SignedIn:
        if device is not None:
            act.lasting = {"device_id": str(device.device_id)}
        credential = require_right(act, tried)
        if device is not None and not device_rows.record_use(act.tx, device.device_id, act.now):
            # Ended while the password was looked at: the next try is one as any other.
            raise WrongCredentials
        if is_shown:
            people.forget_guesses(act.tx, shown_bucket_of(act.deployment, name))
        end = act.now + act.deployment.limits.session_length
        device_id = device.device_id if device is not None else None
        return begin_session(act, credential.principal_id, end, "pwd", device_id=device_id)

    return audited(ctx, Action.SIGN_IN, work, target=tried.target(name), on_refusal=failed_login(ctx, tried))


def issue_token(ctx: RequestContext, client_id: str, client_secret: str) -> SignedIn:
    """Return a session of a machine client; raise ``WrongCredentials``.

    Tries are not slowed down: a secret of 256 random bits is not guessed, and a stranger could stand before the EDC system.
    """

    def shown(act: Act, kept: Credential) -> datetime | None:
        former = clients.list_former_secrets(act.tx, kept.principal_id, act.now)
        # The present secret has no end; an empty one opens nothing.
        ends = {one.secret_hash: one.ends_at for one in former} | ({kept.secret_hash: None} if kept.secret_hash else {})
        for digest, end in ends.items():
            if fault_of(partial(verify_client_secret, client_secret, bytes.fromhex(digest))) is None:
                return end
        raise WrongCredentials

    return _issue(ctx, client_id, shown)


def issue_token_to_key(ctx: RequestContext, client_id: str | None, assertion: str) -> SignedIn:
    """Return a session of a machine client that has signed with a key of its own (RFC 7523); raise ``WrongCredentials``.

    ``client_id`` need not be named beside the assertion; if it is, both name the same client.
    """
    fault, read = None, None
    try:
        read = assertions.read(assertion)
    except WrongCredentials as error:
        fault = error
    named = assertions.client_of(read) if read is not None else client_id or ""

    def shown(act: Act, kept: Credential) -> datetime | None:
        if read is None or client_id not in {None, named}:
            raise fault or WrongCredentials
        keys = [
            PublicKey(key.key_id, key.algorithm, key.public_jwk)
            for key in clients.list_keys(act.tx, kept.principal_id)
            if key.revoked_at is None
        ]
        said = assertions.verify(read, named, keys, act.deployment.limits.audiences(), act.now)
        if not clients.claim_assertion(
            act.tx, hashlib.sha256(encode("assertion", named, said.token_id)).digest(), act.now
        ):
            raise WrongCredentials
        act.note(before={"key_id": said.thumbprint})
        return None

    return _issue(ctx, named, shown)


def _issue(ctx: RequestContext, client_id: str, shown: Callable[[Act, Credential], datetime | None]) -> SignedIn:
    """Return a session of a client whose proof is looked at by ``shown``, which returns when that proof ends, if it does."""

    def find(tx: Transaction) -> tuple[Credential | None, bool]:
        return people.find_credential(tx, client_id, is_machine=True), is_noisy_network(ctx, tx, _AT_TOKENS)

    credential, is_noisy = apart(ctx.deployment, find) if USERNAME.fullmatch(client_id) else (None, False)

    def work(act: Act) -> SignedIn:
        if credential is None:
            raise WrongCredentials
        kept = people.hold_credential(act.tx, credential.principal_id)
        if not kept.is_active:
            raise WrongCredentials
        ends_at = shown(act, kept)
        end = act.now + act.deployment.limits.machine_token_length
        # A token does not outlive the secret that it was given for.
        return begin_session(act, credential.principal_id, min(end, ends_at or end), "client")

    def enter(tx: Transaction, _error: SnoseError) -> None:
        put_to_network(ctx, tx, _AT_TOKENS)

    # A name that no client has is noise; a known one's failure is entered, because its secret may have been lost. Of a network
    # that goes on failing most is noise again: nobody fills the log, and no secret that is right waits for that.
    on_refusal = enter if credential is not None and not is_noisy else None
    target = {"client_id": client_id if credential is not None else "unknown"}
    return audited(ctx, Action.ISSUE_TOKEN, work, target=target, on_refusal=on_refusal)


def step_up(ctx: RequestContext, one_time_code: str, *, remember_device: bool = False) -> SignedIn:
    """Return a new session with a fresh second proof; it ends when the first one would have ended.

    With the secret by which the device is known from now on, where that is wanted.

    Raises ``WrongOneTimeCode`` for a code that is wrong, old or used (rule D3), ``TooManyAttempts``, ``PasswordChangeRequired``
    before the first change: until then there is no factor that only the person has seen.
    """
    credential, fault = _charge_caller(ctx, _charge_code)

    def work(act: Act) -> SignedIn:
        caller = act.principal
        if caller.must_change_password:
            raise PasswordChangeRequired
        if fault is not None:
            raise fault
        if credential is not None and credential.wrong_codes in CODE_ALARMS:
            act.lasting = {"alarm": "many_wrong_codes", "wrong_codes": credential.wrong_codes, "network": ctx.network}
        kept = people.hold_credential(act.tx, caller.principal_id)
        if credential is None or kept.totp_secret is None:
            message = (
                "This account has no second factor yet: ask for one, with a colleague, at POST /v1/factor-recoveries."
            )
            raise WrongOneTimeCode(message)
        secret = act.deployment.ring.open(factor_context(caller.principal_id), kept.totp_secret).decode("ascii")
        step = accepted_step(secret, one_time_code.replace(" ", ""), act.now, kept.totp_last_step)
        if not people.claim_one_time_step(act.tx, caller.principal_id, step):
            raise WrongOneTimeCode
        people.forget_wrong_codes(act.tx, caller.principal_id, caller.sign_in_id)
        act.lasting = None
        end = people.get_session_end(act.tx, caller.session_id)
        given = begin_session(act, caller.principal_id, end, "mfa")
        return replace(given, device_secret=devices.remember(act)) if remember_device else given

    return audited(ctx, Action.STEP_UP, work)


def sign_out(ctx: RequestContext, session_id: UUID | None = None) -> None:
    """End the session in hand, or another of one's own, with all that was stepped up from it; raise ``Missing``."""

    def work(act: Act) -> None:
        if session_id is not None:
            act.note(target={"session_id": str(session_id)})
        # A step-up at the same moment holds the credential too: either its session is ended here, or it finds its own ended.
        people.hold_credential(act.tx, act.principal.principal_id)
        people.end_session(act.tx, act.principal.principal_id, session_id or act.principal.session_id, act.now)

    audited(ctx, Action.SIGN_OUT, work)


def sign_out_everywhere(ctx: RequestContext) -> None:
    """End every session of one's own, the one in hand too."""

    def work(act: Act) -> None:
        act.note(target={"session_id": "all"})
        _end_sessions(act, act.principal.principal_id)

    audited(ctx, Action.SIGN_OUT, work)


def list_sessions(ctx: RequestContext) -> Sequence[MySession]:
    """Return one's own sign-ins that are not over, the oldest first; raise ``PasswordChangeRequired`` before the first change."""

    def work(act: Act) -> Sequence[MySession]:
        if act.principal.must_change_password:
            raise PasswordChangeRequired
        idle_since = act.now - act.deployment.limits.session_idle
        return [
            MySession(
                one.session_id,
                one.session_id == act.principal.sign_in_id,
                one.signed_in_at,
                one.used_at,
                one.ends_at,
                one.proof_at,
            )
            for one in people.list_sessions(act.tx, act.principal.principal_id, act.now, idle_since)
        ]

    return audited(ctx, Action.LIST_SESSIONS, work)


def read_self(ctx: RequestContext) -> Myself:
    """Return who is asking, with the grants and the proof as they stand now."""

    def work(act: Act) -> Myself:
        caller, proof = act.principal, act.principal.proof
        acr = "client" if caller.is_machine else "pwd" if proof is None else "mfa"
        age = int((act.now - proof.at).total_seconds()) if proof is not None else 0
        return Myself(
            caller.name,
            caller.display_name,
            caller.is_machine,
            acr,
            ProofState(proof.at, age, proof.spent) if proof is not None else None,
            caller.must_change_password,
            caller.password_expired,
            caller.grants,
        )

    return audited(ctx, Action.READ_SELF, work)


def change_password(ctx: RequestContext, current: str, new: str) -> NewPassword:
    """Return the new second factor, which only the person sees, at the first change after registration or reset.

    The token in hand stays, every other session ends. Raises ``PasswordRefused``, ``WrongCredentials``, ``TooManyAttempts``,
    ``HashingBusy``.
    """
    caller = apart(ctx.deployment, lambda tx: _find_caller(ctx, tx))
    secret_hash, fault = "", None
    credential: Credential | None = None
    if caller is not None and not caller.is_machine:
        # A password that is refused anyhow says nothing about the current one, so it costs no try.
        fault = fault_of(lambda: _refuse(caller.name, current, new))
        if fault is None:
            credential, secret_hash, fault = _exchange(ctx, current, new)

    def work(act: Act) -> NewPassword:
        if fault is not None:
            raise fault
        if credential is None or not secret_hash:
            raise NotAuthenticated
        _forget_guesses(act, act.principal.name)
        kept = hold_unchanged(act, credential, _bucket_of_session(act.deployment, act.principal))
        principal_id = act.principal.principal_id
        # Who issued the password could come first: where that must not do, a colleague vouches for the factor (SIG-07).
        factor = new_secret(act.deployment.entropy) if kept.must_change and kept.reset_by is None else None
        sealed = None
        if factor is not None:
            sealed = act.deployment.ring.seal(factor_context(principal_id), factor.encode("ascii"))
        people.record_new_password(act.tx, principal_id, secret_hash, act.now, sealed)
        people.end_sessions(act.tx, principal_id, act.now, but=act.principal.session_id)
        recoveries.close_all(act.tx, principal_id, act.now)
        device_rows.record_all_ended(act.tx, principal_id, act.now)
        act.note(target={"username": act.principal.name}, after={"new_second_factor": factor is not None})
        return NewPassword(factor)

    return audited(ctx, Action.CHANGE_PASSWORD, work)


# -- accounts --------------------------------------------------------------------------------------------------------


def register_person(ctx: RequestContext, username: str, display_name: str, email: str) -> IssuedPerson:
    """Return a new account with a one-time password; raise ``AlreadyExists`` for a name that was ever used (USR-18)."""
    issue = _issued(ctx)

    def work(act: Act) -> IssuedPerson:
        password, secret_hash = issue()
        name = check_username(username)
        act.note(target={"username": name})
        account = Account(act.deployment.new_id(), name, display_name, email, False, True, act.now)  # noqa: FBT003  # a person, active
        people.add_account(act.tx, account, secret_hash, must_change=True)
        act.note(after={"display_name": display_name, "is_active": True})
        return IssuedPerson(name, password)

    return audited(ctx, Action.REGISTER_PERSON, work)


def list_people(ctx: RequestContext, limit: int, cursor: str | None) -> PeoplePage:
    """Return people by user name: those who were registered when the first page was read."""

    def work(act: Act) -> PeoplePage:
        after, until = "", act.now
        if cursor is not None:
            after, pinned = pages.decode(act, cursor)
            until = datetime.fromisoformat(pinned)
        found = people.list_people(act.tx, after, until, limit + 1)
        more = pages.encode(act, [found[limit - 1].name, until.isoformat()]) if len(found) > limit else None
        return PeoplePage(found[:limit], more)

    return audited(ctx, Action.LIST_PEOPLE, work)


def deactivate(ctx: RequestContext, holder: Holder) -> Account:
    """Return the account, switched off and never deleted; its sessions end at once. Raises ``Conflict`` for the last admin."""

    def work(act: Act) -> Account:
        act.note(target=holder.target())
        admins = people.hold_service_admins(act.tx)
        account = holder.account(act.tx)
        people.lock_account(act.tx, account.principal_id)
        if not holder.account(act.tx).is_active:
            message = "The account is switched off already."
            raise IllegalTransition(message)
        _keep_one_admin(admins, account.principal_id)
        people.record_deactivation(act.tx, account.principal_id, act.now)
        people.end_sessions(act.tx, account.principal_id, act.now)
        act.note(before={"is_active": True}, after={"is_active": False})
        return holder.account(act.tx)

    return audited(ctx, Action.DEACTIVATE_PERSON, work, answer_type=Account)


def end_sessions(ctx: RequestContext, username: Username) -> None:
    """End every session of a person, who may sign in again at once (USR-13): a code break is no further away than that."""

    def work(act: Act) -> None:
        act.note(target={"username": username})
        _end_sessions(act, people.get_account(act.tx, username, is_machine=False).principal_id)

    audited(ctx, Action.END_SESSIONS, work)


def reset(ctx: RequestContext, username: Username) -> IssuedPerson:
    """Return a one-time password after a loss: the old one, the second factor and every session are void (USR-13, EUB-15).

    Where grants take two people, whoever holds a role gets the next factor by a colleague's word alone (`recoveries`): else who
    issues the password, and comes first, could sign in another's name (SIG-07). Raises ``IllegalTransition`` for an account that
    is switched off.
    """
    issue = _issued(ctx)

    def work(act: Act) -> IssuedPerson:
        password, secret_hash = issue()
        act.note(target={"username": username})
        account = people.get_account(act.tx, username, is_machine=False)
        _forget_guesses(act, username)
        # A grant that is confirmed meanwhile is seen, or finds the issued password.
        people.lock_account(act.tx, account.principal_id)
        people.hold_credential(act.tx, account.principal_id)
        if not account.is_active:
            message = "The account is switched off."
            raise IllegalTransition(message)
        standing = any(grant.revoked_at is None for grant in people.list_grants(act.tx, account.principal_id))
        needs_colleague = act.deployment.limits.two_person_grants and standing
        reset_by = act.principal.name if needs_colleague else None
        people.record_issued_password(act.tx, account.principal_id, secret_hash, act.now, reset_by)
        passkeys.record_all_removed(act.tx, account.principal_id, act.now)
        recoveries.close_all(act.tx, account.principal_id, act.now)
        device_rows.record_all_ended(act.tx, account.principal_id, act.now)
        people.end_sessions(act.tx, account.principal_id, act.now)
        colleague = {"needs_colleague": True} if needs_colleague else {}
        act.note(after={"must_change_password": True, "second_factor": None, **colleague})
        return IssuedPerson(username, password, needs_colleague)

    return audited(ctx, Action.RESET_PERSON, work)


def register_client(ctx: RequestContext, name: str) -> IssuedClient:
    """Return a new machine client with its secret."""

    def work(act: Act) -> IssuedClient:
        deployment = act.deployment
        drawn = base64.b32encode(deployment.entropy.draw("client id", 10)).decode("ascii").lower()
        issued = IssuedClient(_CLIENT_PREFIX + drawn, new_client_secret(deployment.entropy))
        account = Account(deployment.new_id(), issued.client_id, name, None, True, True, act.now)  # noqa: FBT003  # a machine, active
        people.add_account(act.tx, account, client_secret_digest(issued.client_secret).hex(), must_change=False)
        act.note(target={"client_id": issued.client_id}, after={"name": name, "is_active": True})
        return issued

    return audited(ctx, Action.REGISTER_CLIENT, work)


def register_first_admin(deployment: Deployment, username: str, display_name: str, email: str) -> str:
    """Return the one-time password of the first service admin, entered by the service itself.

    Raises ``AlreadyExists`` when there is an active service admin, ``Invalid`` for a name that cannot be one.
    """
    name = check_username(username)
    password = issued_password(deployment.entropy)
    secret_hash = deployment.passwords.hash(password)
    now = deployment.clock()
    account = Account(deployment.new_id(), name, display_name, email, False, True, now)  # noqa: FBT003  # a person, active

    def work(tx: Transaction) -> None:
        if people.hold_service_admins(tx):
            message = "There is a service admin already, who registers further people."
            raise AlreadyExists(message)
        people.add_account(tx, account, secret_hash, must_change=True)
        grant = RoleGrant(deployment.new_id(), Role.SERVICE_ADMIN, None, None, now, granted_by="snose")
        people.add_grant(tx, account.principal_id, grant)

    after = {"display_name": display_name, "is_active": True, "role": Role.SERVICE_ADMIN}
    state = enter_by_service(deployment, Action.REGISTER_PERSON, target={"username": name}, after=after, work=work)
    deployment.checkpoints.publish(state, now)
    return password


def check_username(username: str) -> Username:
    """Return the name; raise ``Invalid`` for one that cannot be a person's, or that the trail gives to others."""
    if not USERNAME.fullmatch(username) or username in _RESERVED or username.startswith(_CLIENT_PREFIX):
        message = (
            "A user name has 2 to 40 lower-case letters, digits, '.', '_' or '-', begins with a letter or digit, "
            "and is not one that the service keeps for itself."
        )
        raise Invalid(message, "username")
    return Username(username)


# -- grants ----------------------------------------------------------------------------------------------------------


def grant_role(
    ctx: RequestContext,
    holder: Holder,
    role: Role,
    study_code: StudyCode | None,
    site_code: SiteCode | None,
    terms: Terms = NO_TERMS,
) -> UUID | WaitingGrant:
    """Return the id of the new grant, effective at once unless its terms say later; entered in the log of a registered study.

    Where a right to unblind takes two people, what is returned instead waits for another service administrator and opens nothing.

    Raises ``Invalid`` for a role that does not fit account, study or site, ``Missing`` for an unknown account or site,
    ``GrantConflict`` for roles that exclude each other (rule B10), ``AlreadyExists``, ``IllegalTransition``.
    """

    def work(act: Act) -> UUID | WaitingGrant:
        act.note(target={**holder.target(), **_grant_part(role, study_code, site_code)})
        _check_shape(holder, role, study_code, site_code)
        _check_terms(act.now, role, terms)
        account = _hold_fitting(act, holder, role, study_code, site_code, terms)
        grant_id = act.deployment.new_id()
        by = act.principal.name
        is_waiting = act.deployment.limits.two_person_grants and role in WAITING_ROLES
        if is_waiting:
            dates = (terms.starts_at, terms.ends_at, terms.needs_training)
            pending_grants.add_pending(
                act.tx, account.principal_id, PendingGrant(grant_id, role, study_code, site_code, *dates, act.now, by)
            )
        else:
            _add_grant(act, account, grant_id, role, study_code, site_code, terms)
        act.note(
            after={
                "grant_id": str(grant_id),
                **_grant_part(role, study_code, site_code),
                **terms.said(),
                **({"status": "pending"} if is_waiting else {}),
            },
            site_code=site_code,
        )
        return WaitingGrant(grant_id) if is_waiting else grant_id

    # The type checker knows a union as no type; what reads a stored answer back does.
    return audited(ctx, Action.GRANT_ROLE, work, answer_type=UUID | WaitingGrant)  # type: ignore[arg-type]


def confirm_grant(ctx: RequestContext, holder: Holder, grant_id: UUID) -> UUID:
    """Return the id of the grant, effective from now on by the word of two service administrators.

    Everything is looked at again: it may have been asked for days ago. Raises ``SecondPersonRequired`` for whoever asked for it,
    ``Missing``, ``IllegalTransition`` for what waits no more or was asked for by somebody who is no administrator any more, and
    what ``grant_role`` raises.
    """

    def work(act: Act) -> UUID:
        act.note(target={**holder.target(), "grant_id": str(grant_id)})
        admins = people.hold_service_admins(act.tx)
        account = holder.account(act.tx)
        people.lock_account(act.tx, account.principal_id)
        # Read after the lock was given: of two who confirm at once, the second finds it confirmed.
        asked = pending_grants.get_pending(act.tx, account.principal_id, grant_id)
        if not asked.is_open(act.now):
            message = "This waits for nobody: it was confirmed or withdrawn, or nobody confirmed it in time."
            raise IllegalTransition(message)
        if act.principal.name == asked.requested_by:
            raise SecondPersonRequired
        asker = people.get_account(act.tx, asked.requested_by, is_machine=False)
        if not {asker.principal_id, act.principal.principal_id} <= set(admins):
            message = "Who asked for it, or who confirms it, is no service administrator any more: ask for it anew."
            raise IllegalTransition(message)
        if people.hold_credential(act.tx, account.principal_id).must_change:
            message = (
                "Its holder has not changed the issued password yet: confirm when the person says that it is done."
            )
            raise IllegalTransition(message)
        # Nobody held it before it was confirmed, whatever date was meant.
        starts_at = asked.starts_at if asked.starts_at is not None and asked.starts_at > act.now else None
        terms = Terms(starts_at, asked.ends_at, asked.needs_training)
        part = (asked.role, asked.study_code, asked.site_code)
        _hold_fitting(act, holder, *part, terms)
        _add_grant(act, account, grant_id, *part, terms)
        pending_grants.record_decision(act.tx, grant_id, act.now, act.principal.name)
        act.note(
            before={"status": "pending", "requested_by": asked.requested_by},
            after={"grant_id": str(grant_id), **_grant_part(*part), **terms.said()},
            site_code=asked.site_code,
        )
        return grant_id

    return audited(ctx, Action.CONFIRM_GRANT, work, answer_type=UUID)


def _hold_fitting(
    act: Act,
    holder: Holder,
    role: Role,
    study_code: StudyCode | None,
    site_code: SiteCode | None,
    terms: Terms,
) -> Account:
    """Return the account, held, that may be given this role now; the entry goes to the log of the study, if it is registered."""
    account = holder.account(act.tx)
    study = studies.find_study(act.tx, study_code) if study_code is not None else None
    if study is not None and site_code is not None:
        studies.get_site(act.tx, study.study_id, site_code)
    # Two at once would not see each other's grant: the account is held first, and its grants are read after.
    people.lock_account(act.tx, account.principal_id)
    if not holder.account(act.tx).is_active:
        message = "The account is switched off."
        raise IllegalTransition(message)
    history = people.list_grants(act.tx, account.principal_id)
    # Not as of `act.now`: this act may have begun before the one that it waited for has granted something.
    standing = [grant for grant in history if grant.revoked_at is None]
    period = Period(terms.starts_at or act.now, terms.ends_at)
    _check_exclusions(standing, role, study_code, site_code, period)
    _check_past(history, role, study_code)
    act.head = study
    return account


def _add_grant(  # all that a grant is made of
    act: Act,
    account: Account,
    grant_id: UUID,
    role: Role,
    study_code: StudyCode | None,
    site_code: SiteCode | None,
    terms: Terms,
) -> None:
    grant = RoleGrant(
        grant_id,
        role,
        study_code,
        site_code,
        act.now,
        act.principal.name,
        starts_at=terms.starts_at,
        ends_at=terms.ends_at,
        needs_training=terms.needs_training,
    )
    people.add_grant(act.tx, account.principal_id, grant)


def list_grants(ctx: RequestContext, holder: Holder, at: datetime | None) -> Grants:
    """Return the grants of an account that held at a moment (USR-19); when none is named, those that nobody has revoked."""

    def work(act: Act) -> Grants:
        act.note(target=holder.target())
        principal_id = holder.account(act.tx).principal_id
        found = people.list_grants(act.tx, principal_id, at)
        if at is not None:
            return Grants(found, ())
        standing = [grant for grant in found if grant.revoked_at is None]
        return Grants(standing, pending_grants.list_pending(act.tx, principal_id, act.now))

    return audited(ctx, Action.LIST_GRANTS, work)


def record_training(ctx: RequestContext, username: Username, new: NewTraining) -> UUID:
    """Return the id of the training on record; roles that waited for it are effective at the next request (USR-08).

    Entered in the log of its study, when that is registered. Raises ``Missing``, ``Invalid`` for days that make no sense.
    """

    def work(act: Act) -> UUID:
        act.note(target={"username": username})
        if new.completed_on > act.now.date():
            message = "A training is recorded when it is completed."
            raise Invalid(message, "completed_on")
        if new.valid_until is not None and new.valid_until < new.completed_on:
            message = "It must be valid on the day on which it was completed, at the least."
            raise Invalid(message, "valid_until")
        account = people.get_account(act.tx, username, is_machine=False)
        training = Training(
            act.deployment.new_id(),
            new.study_code,
            new.topic,
            new.completed_on,
            new.valid_until,
            act.now,
            act.principal.name,
        )
        people.add_training(act.tx, account.principal_id, training)
        act.head = studies.find_study(act.tx, new.study_code) if new.study_code is not None else None
        act.note(
            after={
                "training_id": str(training.training_id),
                "study_code": new.study_code,
                "topic": new.topic,
                "completed_on": new.completed_on.isoformat(),
                "valid_until": new.valid_until.isoformat() if new.valid_until is not None else None,
            }
        )
        return training.training_id

    return audited(ctx, Action.RECORD_TRAINING, work, answer_type=UUID)


def list_trainings(ctx: RequestContext, username: Username) -> Sequence[Training]:
    """Return the trainings of a person in the order in which they were recorded."""

    def work(act: Act) -> Sequence[Training]:
        act.note(target={"username": username})
        return people.list_trainings(act.tx, people.get_account(act.tx, username, is_machine=False).principal_id)

    return audited(ctx, Action.LIST_TRAININGS, work)


def list_delegations(
    ctx: RequestContext, study: StudyCode, at: datetime | None, limit: int, cursor: str | None
) -> DelegationPage:
    """Return the study's delegation log in the order of the grants: all, or who could do what at a moment (USR-08, USR-19)."""
    filters = [at.isoformat() if at is not None else None]

    def work(act: Act) -> DelegationPage:
        after, until = pages.place_in_time(act, cursor, filters)
        found = people.list_delegations(act.tx, study, at, after, until, limit + 1)
        following = None
        if len(found) > limit:
            last = found[limit - 1]
            following = pages.cursor_in_time(act, last.granted_at, last.grant_id, until, filters)
        [state] = access_reviews.list_states(act.tx, study)
        due = due_at(state.reviewed_at, state.registered_at, act.deployment.limits.access_review_period)
        return DelegationPage(found[:limit], following, due, due < act.now)

    return audited(ctx, Action.READ_DELEGATIONS, work, study=study)


def revoke_grant(ctx: RequestContext, holder: Holder, grant_id: UUID) -> None:
    """End a grant; live tokens feel it at their next request (USR-06). Raises ``Missing``, ``Conflict`` for the last admin's.

    What waits for a second administrator is withdrawn.
    """

    def work(act: Act) -> None:
        act.note(target={**holder.target(), "grant_id": str(grant_id)})
        admins = people.hold_service_admins(act.tx)
        account = holder.account(act.tx)
        people.lock_account(act.tx, account.principal_id)
        waiting = pending_grants.list_pending(act.tx, account.principal_id, act.now)
        asked = next((one for one in waiting if one.grant_id == grant_id), None)
        if asked is not None:
            pending_grants.record_decision(act.tx, grant_id, act.now, act.principal.name)
            part = _grant_part(asked.role, asked.study_code, asked.site_code)
            act.head = studies.find_study(act.tx, asked.study_code) if asked.study_code is not None else None
            act.note(before={**part, "status": "pending"}, site_code=asked.site_code)
            return
        ended = people.record_revocation(act.tx, account.principal_id, grant_id, act.now, act.principal.name)
        if ended.role is Role.SERVICE_ADMIN:
            _keep_one_admin(admins, account.principal_id)
        act.head = studies.find_study(act.tx, ended.study_code) if ended.study_code is not None else None
        act.note(before=_grant_part(ended.role, ended.study_code, ended.site_code), site_code=ended.site_code)

    audited(ctx, Action.REVOKE_GRANT, work)


def _grant_part(role: Role, study_code: StudyCode | None, site_code: SiteCode | None) -> dict[str, str | None]:
    return {"role": role, "study_code": study_code, "site_code": site_code}


def _check_shape(holder: Holder, role: Role, study_code: StudyCode | None, site_code: SiteCode | None) -> None:
    if (role is Role.EDC_CLIENT) != holder.is_machine:
        message = "Machine clients hold edc_client and nothing else; people hold the other roles."
        raise Invalid(message, "role")
    if (role is Role.SERVICE_ADMIN) != (study_code is None):
        message = "Every role but service_admin is held in one study, which must be named; service_admin in none."
        raise Invalid(message, "study_code")
    if (role in SITE_ROLES) != (site_code is not None):
        message = f"A site is named for {', '.join(sorted(SITE_ROLES))}, and for no other role."
        raise Invalid(message, "site_code")


def _check_terms(now: datetime, role: Role, terms: Terms) -> None:
    if role is Role.SERVICE_ADMIN and terms.said():
        # The last one's would lapse some day, and leave the service without anybody (USR-07).
        message = "The role of service_admin is given without terms."
        raise Invalid(message, next(iter(terms.said())))
    if role is Role.EDC_CLIENT and terms.needs_training:
        message = "A machine is not trained."
        raise Invalid(message, "needs_training")
    if terms.starts_at is not None and terms.starts_at < now:
        message = "Nothing is delegated for the past."
        raise Invalid(message, "starts_at")
    if terms.ends_at is not None and terms.ends_at <= (terms.starts_at or now):
        message = "The end must lie in the future, and behind the start."
        raise Invalid(message, "ends_at")


def _check_exclusions(
    standing: Sequence[RoleGrant],
    role: Role,
    study_code: StudyCode | None,
    site_code: SiteCode | None,
    period: Period,
) -> None:
    for grant in standing:
        same_role = (grant.role, grant.study_code, grant.site_code) == (role, study_code, site_code)
        if same_role and grant.period().overlaps(period):
            message = "The account holds this role there already."
            raise AlreadyExists(message)
        # Whatever its dates: one that has ended still opens a code break (rule D1), and is revoked first.
        # Administration of the service excludes every role of every study (USR-16); the rest concerns one study.
        same = grant.study_code == study_code or Role.SERVICE_ADMIN in (grant.role, role)
        if same and excludes(grant.role, role):
            message = f"The account holds {grant.role}, which excludes {role}."
            raise GrantConflict(message)


def _check_past(ever: Sequence[RoleGrant], role: Role, study_code: StudyCode | None) -> None:
    """Raise ``GrantConflict`` for a blinded role of somebody once unblinded in the study: what was seen stays known (B10)."""
    if role in BLINDED_ROLES and any(
        grant.role in UNBLINDED_ROLES and grant.study_code == study_code for grant in ever
    ):
        message = "The account held an unblinded role in this study, and cannot hold a blinded one any more."
        raise GrantConflict(message)


def _keep_one_admin(admins: Sequence[UUID], leaving: UUID) -> None:
    if list(admins) == [leaving]:
        message = "The last active service admin stays: grant the role to somebody else first."
        raise Conflict(message)


# -- inside ----------------------------------------------------------------------------------------------------------


def _nobody_asks() -> NoReturn:
    raise NotAuthenticated


def _find_caller(ctx: RequestContext, tx: Transaction) -> Principal | None:
    if ctx.token_digest is None:
        return None
    now = ctx.now()
    return people.find_principal(tx, ctx.token_digest, now, now - ctx.deployment.limits.session_idle)


def _issued(ctx: RequestContext) -> Callable[[], tuple[str, str]]:
    """Return what gives a one-time password and its hash behind the door, or raises there why there is none.

    For an unknown caller none is computed; with too many hashes in hand it is ``HashingBusy``.
    """
    if apart(ctx.deployment, lambda tx: _find_caller(ctx, tx)) is None:
        return _nobody_asks
    password = issued_password(ctx.deployment.entropy)
    try:
        with ctx.deployment.passwords.place():
            secret_hash = ctx.deployment.passwords.hash(password)
    except HashingBusy as error:
        return partial(_raise, error)
    return lambda: (password, secret_hash)


def _raise(error: SnoseError) -> NoReturn:
    raise error


def _exchange(ctx: RequestContext, current: str, new: str) -> tuple[Credential | None, str, SnoseError | None]:
    """Count a try at the caller's password, and return its credential, the hash of the new one, and what is wrong."""
    passwords = ctx.deployment.passwords
    credential: Credential | None = None
    try:
        with passwords.place():
            credential, fault = _charge_caller(ctx, _charge_password)
            if fault is not None:
                return None, "", fault
            passwords.verify(current, secret_of(credential))
            return credential, passwords.hash(new), None
    except (WrongCredentials, IntegrityBroken, HashingBusy) as error:
        return credential, "", error


def _refuse(name: str, current: str, new: str) -> None:
    refuse_weak(new, name)
    if new == current:
        message = "The new password must differ from the current one."
        raise PasswordRefused(message, "new")


def _bucket_of_session(deployment: Deployment, caller: Principal) -> int:
    """Return where the tries to change a password are counted.

    A bucket for each session: neither strangers who know a name, nor a thief of one session, keep its owner from changing the
    password in another, which throws the thief out (USR-13).
    """
    return SESSION_BUCKETS + bucket_of(deployment, caller.session_id.bytes)


def _is_shown(ctx: RequestContext, tx: Transaction, name: str, one_time_code: str) -> bool:
    """Return whether the device of whoever has this name shows this code now; if so, the code is used up by that.

    Guesses are not counted: few in a million are right, and one that is opens a single try at the password, of twenty in a row.
    Were the code not used up, whoever knows the password could find out here what a step-up takes.
    """
    credential = find_named(tx, name)
    if credential is None or credential.totp_secret is None:
        holder, last_step = UUID(int=0), None
        # Who has no device costs what the others do, so that the time tells no name (USR-10).
        sealed = ctx.deployment.ring.seal(factor_context(holder), new_secret(ctx.deployment.entropy).encode("ascii"))
    else:
        holder, last_step, sealed = credential.principal_id, credential.totp_last_step, credential.totp_secret
    try:
        secret = ctx.deployment.ring.open(factor_context(holder), sealed).decode("ascii")
        step = accepted_step(secret, one_time_code.replace(" ", ""), ctx.now(), last_step)
    except (WrongOneTimeCode, IntegrityBroken):
        # A secret that does not open is told at the step-up, where it is entered.
        return False
    if not people.claim_one_time_step(tx, holder, step):
        return False
    bucket = shown_bucket_of(ctx.deployment, name)
    failed, blocked_until, guesses = people.hold_password_tries(tx, bucket)
    people.record_password_tries(tx, bucket, failed, blocked_until, guesses + 1)
    return guesses < MOST_SHOWN


def _charge_password(ctx: RequestContext, tx: Transaction, caller: Principal) -> Credential | None:
    return charge_name(ctx, tx, caller.name, _bucket_of_session(ctx.deployment, caller))[0]


def _charge_code(ctx: RequestContext, tx: Transaction, caller: Principal) -> Credential:
    """Count a try at a code, and return the credential with the wrong ones in a row; none of those at a known device."""
    credential = people.hold_credential(tx, caller.principal_id)
    now = ctx.now()
    tried = people.find_codes_tried(tx, caller.sign_in_id, now)
    people.record_codes_tried(tx, caller.sign_in_id, coded_in_session(tried.in_session))
    if tried.device_id is not None and tried.on_device < MOST_CODES_ON_DEVICE:
        # What others try elsewhere, with the password even, neither delays nor stops who is at a known device.
        device_rows.record_wrong_codes(tx, tried.device_id, tried.on_device + 1)
        return replace(credential, wrong_codes=0)
    charged = Attempts(credential.failed_codes, credential.codes_blocked_until).charged(now)
    wrong = coded(credential.wrong_codes)
    people.record_code_tries(tx, caller.principal_id, charged.failed, charged.blocked_until, wrong)
    return replace(credential, wrong_codes=wrong)


def _charge_caller(
    ctx: RequestContext, count: Callable[[RequestContext, Transaction, Principal], Credential | None]
) -> tuple[Credential | None, SnoseError | None]:
    """Count a try of whoever holds the token; nothing without a person who holds it."""

    def charge(tx: Transaction) -> Credential | None:
        caller = _find_caller(ctx, tx)
        if caller is None or caller.is_machine:
            return None
        return count(ctx, tx, caller)

    try:
        return apart(ctx.deployment, charge), None
    except TooManyAttempts as error:
        return None, error


def _forget_guesses(act: Act, name: str) -> None:
    """Begin at nothing for a new password."""
    people.forget_guesses(act.tx, bucket_of(act.deployment, name.encode()))
    people.forget_guesses(act.tx, shown_bucket_of(act.deployment, name))


def _end_sessions(act: Act, principal_id: UUID) -> None:
    people.hold_credential(act.tx, principal_id)
    people.end_sessions(act.tx, principal_id, act.now)
