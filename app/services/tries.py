"""How a password is tried: counted before it is looked at, looked at outside any transaction, held against rivals inside.

One count for a name, whatever the password is tried for.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeVar
from uuid import UUID

from app.domain.sealed import Column, SealContext
from app.errors import HashingBusy, SnoseError, TooManyAttempts, WrongCredentials
from app.identity.attempts import ALARMS, Attempts, guessed, network_settles_at, refuse_network
from app.services.audited import Act
from app.services.context import Deployment, RequestContext
from app.services.sessions import apart
from app.storage import people
from app.storage.database import Transaction
from app.storage.people import Credential

T = TypeVar("T")

USERNAME: Final = re.compile(r"[a-z0-9][a-z0-9._-]{1,39}")
_BUCKET_BYTES: Final = 2
"""Tries to sign in are counted in 65,536 buckets of names: room enough for every account, and a bound on what strangers fill."""
SESSION_BUCKETS: Final = 1 << 8 * _BUCKET_BYTES
"""From here on lie those of the sessions that a password is changed in: no try at a name gets there."""
_SHOWN_BUCKETS: Final = 2 * SESSION_BUCKETS
"""And from here on those of who shows a one-time code beside the password."""
_NETWORK_BUCKETS: Final = 3 * SESSION_BUCKETS
"""And from here on those of networks."""
UNKNOWN_NETWORK: Final = "unknown"


@dataclass(frozen=True, slots=True)
class Tried:
    """What came of a try at a password; whoever has the name, or nobody."""

    credential: Credential | None
    bucket: int | None
    guesses: int
    fault: SnoseError | None

    def target(self, name: str) -> dict[str, str]:
        """Return how the entry names the account: never by what was typed (rule E1)."""
        return {"username": name if self.credential is not None else "unknown"}


def name_of(username: str) -> str:
    """Return a user name as it is looked up."""
    return username.strip().casefold()


def try_password(ctx: RequestContext, name: str, password: str, *, is_known: bool = False) -> Tried:
    """Count a try at a name and look at the password; nothing of it says whether anybody has the name.

    Whoever ``is_known`` is not counted, by name or by network. Raises ``TooManyAttempts`` and ``HashingBusy``, counted as noise:
    nothing was looked at.
    """
    bucket = None if is_known else bucket_of(ctx.deployment, name.encode("utf-8", "surrogatepass"))

    def charge(tx: Transaction) -> tuple[Credential | None, int]:
        if not is_known:
            refuse_noisy_network(ctx, tx)
        return charge_name(ctx, tx, name, bucket)

    (credential, guesses), fault = look(ctx, password, charge, is_known=is_known)
    return Tried(credential, bucket, guesses, fault)


def look(
    ctx: RequestContext,
    password: str,
    charge: Callable[[Transaction], tuple[Credential | None, T]],
    *,
    is_known: bool = False,
) -> tuple[tuple[Credential | None, T], SnoseError | None]:
    """Return whose password it would be, by a transaction that counts the try first, and what is wrong with it.

    Raises ``TooManyAttempts`` and ``HashingBusy``, counted as noise: nothing was looked at.
    """
    passwords = ctx.deployment.passwords
    try:
        with passwords.place(is_known=is_known):
            charged = apart(ctx.deployment, charge)
            fault = fault_of(lambda: passwords.verify(password, secret_of(charged[0])))
        if isinstance(fault, HashingBusy):
            raise fault
    except (TooManyAttempts, HashingBusy):
        ctx.deployment.noise.count(ctx.network)
        raise
    return charged, fault


def require_right(act: Act, tried: Tried) -> Credential:
    """Return the credential, held, whose password was right; raise what was wrong with the try, with an alarm at one of many."""
    if tried.credential is None or tried.fault is not None:
        if tried.guesses in ALARMS:
            # Told whether or not anybody has the name, which the entry tells elsewhere.
            act.lasting = {"alarm": "many_guesses", "guesses": tried.guesses, "network": act.ctx.network}
        raise tried.fault or WrongCredentials
    return hold_unchanged(act, tried.credential, tried.bucket)


def bucket_of(deployment: Deployment, name: bytes) -> int:
    """Return where the tries at a name are counted: too few bits, and keyed, to tell what was typed (rule E1)."""
    mac = deployment.ring.mac("sign-in tries", name)
    return int.from_bytes(mac[:_BUCKET_BYTES], "big")


def shown_bucket_of(deployment: Deployment, name: str) -> int:
    """Return where the tries at a name beside a right one-time code are counted."""
    return _SHOWN_BUCKETS + bucket_of(deployment, name.encode())


def charge_name(ctx: RequestContext, tx: Transaction, name: str, bucket: int | None) -> tuple[Credential | None, int]:
    """Count a try at a name, and return its credential and how often it was guessed at; raise ``TooManyAttempts``.

    For a name that nobody has the work is that for any other (USR-10).
    """
    guesses = 0
    if bucket is not None:
        failed, blocked_until, before = people.hold_password_tries(tx, bucket)
        guesses = guessed(before)
        charged = Attempts(failed, blocked_until).charged(ctx.now())
        people.record_password_tries(tx, bucket, charged.failed, charged.blocked_until, guesses)
    return find_named(tx, name), guesses


def find_named(tx: Transaction, name: str) -> Credential | None:
    """Return the credential of whoever has a name; None for nobody."""
    # What cannot be a name is not looked for: PostgreSQL holds no NUL, and neither does a name. Nobody's name is empty.
    return people.find_credential(tx, name if USERNAME.fullmatch(name) else "", is_machine=False)


def hold_unchanged(act: Act, verified: Credential, bucket: int | None) -> Credential:
    """Give the try back and return the credential as it is held now; raise ``WrongCredentials`` if it is another by now."""
    tries = Attempts(*people.hold_password_tries(act.tx, bucket)[:2]) if bucket is not None else None
    kept = people.hold_credential(act.tx, verified.principal_id)
    if not kept.is_active or kept.secret_hash != verified.secret_hash:
        raise WrongCredentials
    if bucket is not None and tries is not None:
        left = tries.given_back(act.now)
        people.record_password_tries(act.tx, bucket, left.failed, left.blocked_until, 0)
    return kept


def secret_of(credential: Credential | None) -> str | None:
    """Return the hash to compare with; None is nobody's."""
    return credential.secret_hash if credential is not None else None


def fault_of(check: Callable[[], None]) -> SnoseError | None:
    """Return what a check raises, so that it can be raised inside the door and entered there."""
    try:
        check()
    except SnoseError as error:
        return error
    return None


def failed_login(ctx: RequestContext, tried: Tried) -> Callable[[Transaction, SnoseError], None]:
    """Return what is done beside the entry of a failed try: a wrong password is put to the account of its network.

    Behind the try, not before it: few are looked at at once, and a password that is right costs the network nothing.
    In the database, so that every worker and replica counts the same, and a restart forgets nothing.
    """

    def count(tx: Transaction, error: SnoseError) -> None:
        if tried.bucket is not None and isinstance(error, WrongCredentials):
            put_to_network(ctx, tx)

    return count


def refuse_noisy_network(ctx: RequestContext, tx: Transaction, at: str = "") -> None:
    """Raise ``TooManyAttempts`` while too many wrong tries came from the caller's network, at passwords or ``at`` another door."""
    if ctx.network != UNKNOWN_NETWORK:
        refuse_network(people.find_settling(tx, _bucket_of_network(ctx, at)), ctx.now())


def is_noisy_network(ctx: RequestContext, tx: Transaction, at: str) -> bool:
    """Return whether too many wrong tries came from the caller's network at a door."""
    try:
        refuse_noisy_network(ctx, tx, at)
    except TooManyAttempts:
        return True
    return False


def put_to_network(ctx: RequestContext, tx: Transaction, at: str = "") -> None:
    """Put one wrong try to the account of the caller's network."""
    if ctx.network != UNKNOWN_NETWORK:
        bucket = _bucket_of_network(ctx, at)
        _, settled_at, _ = people.hold_password_tries(tx, bucket)
        people.record_password_tries(tx, bucket, 0, network_settles_at(settled_at, ctx.now()), 0)


def _bucket_of_network(ctx: RequestContext, at: str) -> int:
    return _NETWORK_BUCKETS + bucket_of(ctx.deployment, f"{at}{ctx.network}".encode())


def enter_failed_login(_tx: Transaction, _error: SnoseError) -> None:
    """Ask the door to enter the refusal although nobody known is asking (rule E1); there is nothing else to write."""


def factor_context(principal_id: UUID) -> SealContext:
    """Return where the secret of a person's one-time codes is sealed."""
    return SealContext(Column.TOTP, None, (str(principal_id),))
