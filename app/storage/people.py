"""People, machine clients, their credentials, grants and sessions."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any, Final
from uuid import UUID

from sqlalchemy import ColumnElement, Row, and_, bindparam, exists, func, insert, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite

from app.domain.people import HeldGrant, Period, Principal, Proof
from app.domain.sealed import Sealed
from app.domain.words import Role, SiteCode, StudyCode, Username
from app.errors import AlreadyExists, Missing, NotAuthenticated
from app.storage import tables
from app.storage.database import AlreadyThere, Transaction

_p = tables.principal.c
_c = tables.credential.c
_g = tables.role_grant.c
_s = tables.session.c
_first = tables.session.alias("first")
_f = _first.c
_t = tables.sign_in_tries.c
_l = tables.identity_link.c
_d = tables.known_device.c
_tr = tables.training.c


@dataclass(frozen=True, slots=True)
class Account:
    """A person or a machine client as it is listed."""

    principal_id: UUID
    name: str
    display_name: str
    email: str | None
    is_machine: bool
    is_active: bool
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Credential:
    """What an account proves itself with; nothing of it can be read back into a secret without the key ring."""

    principal_id: UUID
    is_machine: bool
    is_active: bool
    secret_hash: str
    secret_set_at: datetime
    must_change: bool
    totp_secret: Sealed | None
    totp_last_step: int | None
    failed_codes: int
    codes_blocked_until: datetime | None
    wrong_codes: int
    """In a row, however long it takes."""
    reset_by: str | None = None
    """Who issued the password of somebody whose new factor takes a colleague; until that one is there."""


@dataclass(frozen=True, slots=True)
class RoleGrant:
    """A grant with its history."""

    grant_id: UUID
    role: Role
    study_code: StudyCode | None
    site_code: SiteCode | None
    granted_at: datetime
    granted_by: str
    revoked_at: datetime | None = None
    revoked_by: str | None = None
    starts_at: datetime | None = None
    ends_at: datetime | None = None
    needs_training: bool | None = None

    def period(self) -> Period:
        """Return the time for which it was given; a revocation may have ended it before."""
        return Period(self.starts_at or self.granted_at, self.ends_at)


@dataclass(frozen=True, slots=True)
class Training:
    """A training as it was recorded: for one study or, without one, for all; valid to the end of a day, or for good."""

    training_id: UUID
    study_code: StudyCode | None
    topic: str
    completed_on: date
    valid_until: date | None
    recorded_at: datetime
    recorded_by: str


@dataclass(frozen=True, slots=True)
class Delegation:
    """A line of a study's delegation log: who may do what, where, from when to when, by whose word (USR-08)."""

    grant_id: UUID
    name: str
    display_name: str
    is_machine: bool
    role: Role
    site_code: SiteCode | None
    starts_at: datetime
    ends_at: datetime | None
    granted_at: datetime
    granted_by: str
    revoked_at: datetime | None
    revoked_by: str | None
    deactivated_at: datetime | None


@dataclass(frozen=True, slots=True)
class OpenSession:
    """A sign-in that is not over, with every token that was stepped up from it."""

    session_id: UUID
    signed_in_at: datetime
    used_at: datetime
    ends_at: datetime
    proof_at: datetime | None


# A second proof makes a new session; it counts as one sign-in with the first, whose row says when it was last used.
_of_sign_in = _f.session_id == func.coalesce(_s.sign_in_id, _s.session_id)
_used_at = func.coalesce(_f.used_at, _f.issued_at)


def is_trained(at: Any, on: Any) -> ColumnElement[bool]:  # noqa: ANN401  # a value, or the place of one
    """Return whether a grant needs no training, or its holder has one for the study, on record and valid at the moment."""
    return or_(
        _g.needs_training.is_not(True),
        exists().where(
            _tr.principal_id == _g.principal_id,
            or_(_tr.study_code.is_(None), _tr.study_code == _g.study_code),
            _tr.recorded_at <= at,
            _tr.completed_on <= on,
            or_(_tr.valid_until.is_(None), _tr.valid_until >= on),
        ),
    )


_FIND_SESSION: Final = (
    select(
        _s.session_id,
        _f.session_id.label("sign_in_id"),
        _used_at.label("used_at"),
        _s.proof_at,
        _s.proof_spent_at,
        _s.link_id,
        _l.proof_spent_until,
        _p.principal_id,
        _p.name,
        _p.display_name,
        _p.is_machine,
        _c.must_change,
        _c.secret_set_at,
        _c.factor_recovered_at,
        _g.role,
        _g.study_code,
        _g.site_code,
        _g.ends_at,
        is_trained(bindparam("now"), bindparam("today")).label("is_trained"),
    )
    .select_from(
        tables.session.join(_first, _of_sign_in)
        .join(tables.principal, _p.principal_id == _s.principal_id)
        .join(tables.credential, _c.principal_id == _s.principal_id)
        .outerjoin(tables.identity_link, _l.link_id == _s.link_id)
        .outerjoin(
            tables.role_grant,
            and_(
                _g.principal_id == _s.principal_id,
                _g.revoked_at.is_(None),
                or_(_g.starts_at.is_(None), _g.starts_at <= bindparam("now")),
            ),
        )
    )
    .where(
        _s.token_digest == bindparam("token_digest"),
        _s.expires_at > bindparam("now"),
        _s.ended_at.is_(None),
        or_(_p.is_machine, _used_at > bindparam("idle_since")),
        or_(_s.link_id.is_(None), and_(_l.confirmed_at.is_not(None), _l.ended_at.is_(None))),
        _p.is_active,
    )
    .order_by(_g.granted_at, _g.grant_id)
)


def find_principal(
    tx: Transaction,
    token_digest: bytes,
    now: datetime,
    idle_since: datetime,
    password_expired_before: datetime | None = None,
) -> Principal | None:
    """Return who holds this token now, with the grants that hold now; None for a token unknown, ended, idle or switched off."""
    rows = tx.execute(
        _FIND_SESSION, {"token_digest": token_digest, "now": now, "today": now.date(), "idle_since": idle_since}
    ).all()
    if not rows:
        return None
    first = rows[0]
    held = [row for row in rows if row.role is not None]
    expired = password_expired_before is not None and first.secret_set_at < password_expired_before
    return Principal(
        principal_id=first.principal_id,
        name=first.name,
        display_name=first.display_name,
        is_machine=first.is_machine,
        session_id=first.session_id,
        sign_in_id=first.sign_in_id,
        used_at=first.used_at,
        # A password that one does not sign in with stands before nothing.
        must_change_password=first.must_change and first.link_id is None,
        password_expired=expired and not first.is_machine and first.link_id is None,
        proof=_proof(first, now),
        grants=tuple(_held(row) for row in held if not _has_ended(row, now) and row.is_trained),
        ended_grants=tuple(_held(row) for row in held if _has_ended(row, now)),
        untrained_grants=tuple(_held(row) for row in held if not _has_ended(row, now) and not row.is_trained),
        is_outside=first.link_id is not None,
        factor_recovered_at=first.factor_recovered_at,
    )


def _has_ended(row: Row[Any], now: datetime) -> bool:
    return row.ends_at is not None and row.ends_at <= now


def _held(row: Row[Any]) -> HeldGrant:
    return HeldGrant(Role(row.role), row.study_code, row.site_code)


def record_use(tx: Transaction, sign_in_id: UUID, at: datetime) -> None:
    """Note that a sign-in was used."""
    tx.execute(update(tables.session).where(_s.session_id == sign_in_id).values(used_at=at))


def _proof(row: Row[Any], now: datetime) -> Proof | None:
    if row.proof_at is None:
        return None
    in_another = row.proof_spent_until is not None and row.proof_spent_until >= row.proof_at
    spent = row.proof_spent_at is not None or in_another
    # An issuer's clock may be a little ahead of ours; its tokens are refused when it is more.
    return Proof(row.proof_at if row.link_id is None else min(row.proof_at, now), spent)


def spend_proof(tx: Transaction, session_id: UUID, at: datetime) -> bool:
    """Mark the session's proof as spent; return whether it was not spent before.

    A proof given to an outside issuer may stand in many of its tokens: it is spent in all of them (rule D3).
    """
    given = tx.execute(select(_s.link_id, _s.proof_at).where(_s.session_id == session_id)).one()
    if given.link_id is not None:
        first = tx.execute(
            update(tables.identity_link)
            .where(
                _l.link_id == given.link_id, or_(_l.proof_spent_until.is_(None), _l.proof_spent_until < given.proof_at)
            )
            .values(proof_spent_until=given.proof_at)
        )
        if first.rowcount != 1:
            return False
    spent = tx.execute(
        update(tables.session)
        .where(_s.session_id == session_id, _s.proof_spent_at.is_(None), _s.proof_at.is_not(None))
        .values(proof_spent_at=at)
    )
    return spent.rowcount == 1


def add_account(tx: Transaction, account: Account, secret_hash: str, *, must_change: bool) -> None:
    """Record a new account; raise ``AlreadyExists`` for a name that was ever used (USR-18)."""
    try:
        tx.execute(
            insert(tables.principal),
            {
                "principal_id": account.principal_id,
                "name": account.name,
                "display_name": account.display_name,
                "email": account.email,
                "is_machine": account.is_machine,
                "is_active": account.is_active,
                "created_at": account.created_at,
            },
        )
    except AlreadyThere:
        message = f"The name {account.name} is in use or was once; names are never given twice."
        raise AlreadyExists(message) from None
    tx.execute(
        insert(tables.credential),
        {
            "principal_id": account.principal_id,
            "secret_hash": secret_hash,
            "secret_set_at": account.created_at,
            "must_change": must_change,
            "failed_codes": 0,
        },
    )


def _account(row: Row[Any]) -> Account:
    return Account(**{name: getattr(row, name) for name in Account.__dataclass_fields__})


_ACCOUNT: Final = select(*(_p[name] for name in Account.__dataclass_fields__))


def get_account(tx: Transaction, name: str, *, is_machine: bool) -> Account:
    """Return an account by its name; raise ``Missing``."""
    row = tx.execute(_ACCOUNT.where(_p.name == name, _p.is_machine == is_machine)).one_or_none()
    if row is None:
        raise Missing
    return _account(row)


def list_people(tx: Transaction, after: str, until: datetime, limit: int) -> list[Account]:
    """Return people by user name, those after ``after`` who were registered no later than ``until``."""
    rows = tx.execute(
        _ACCOUNT.where(_p.is_machine.is_(False), _p.name > after, _p.created_at <= until).order_by(_p.name).limit(limit)
    )
    return [_account(row) for row in rows]


_CREDENTIAL: Final = select(_p.is_machine, _p.is_active, *tables.credential.c).join_from(
    tables.principal, tables.credential, _c.principal_id == _p.principal_id
)


def find_credential(tx: Transaction, name: str, *, is_machine: bool) -> Credential | None:
    """Return what an account proves itself with; None when there is no such account."""
    row = tx.execute(_CREDENTIAL.where(_p.name == name, _p.is_machine == is_machine)).one_or_none()
    return _credential(row) if row is not None else None


def hold_credential(tx: Transaction, principal_id: UUID) -> Credential:
    """Return what an account proves itself with, and keep others from changing it until the transaction ends."""
    tx.execute(select(_c.principal_id).where(_c.principal_id == principal_id).with_for_update())
    # Read after the lock was given, in a statement of its own: what a rival committed meanwhile is seen.
    return _credential(tx.execute(_CREDENTIAL.where(_p.principal_id == principal_id)).one())


def _credential(row: Row[Any]) -> Credential:
    return Credential(
        principal_id=row.principal_id,
        is_machine=row.is_machine,
        is_active=row.is_active,
        secret_hash=row.secret_hash,
        secret_set_at=row.secret_set_at,
        must_change=row.must_change,
        totp_secret=Sealed(row.sealed_totp_secret) if row.sealed_totp_secret is not None else None,
        totp_last_step=row.totp_last_step,
        failed_codes=row.failed_codes,
        codes_blocked_until=row.codes_blocked_until,
        wrong_codes=row.wrong_codes,
        reset_by=row.reset_by,
    )


_OPEN_BUCKET: Final = {
    True: postgresql.insert(tables.sign_in_tries).on_conflict_do_nothing(),
    False: sqlite.insert(tables.sign_in_tries).on_conflict_do_nothing(),
}


def hold_password_tries(tx: Transaction, bucket: int) -> tuple[int, datetime | None, int]:
    """Return the wrong tries at a bucket of names, from when on the next one is looked at, and all guesses; held."""
    tx.execute(_OPEN_BUCKET[tx.is_postgresql], {"bucket": bucket, "failed": 0})
    row = tx.execute(select(_t.failed, _t.blocked_until, _t.guesses).where(_t.bucket == bucket).with_for_update()).one()
    return row.failed, row.blocked_until, row.guesses


def record_password_tries(  # what one try changes
    tx: Transaction, bucket: int, failed: int, blocked_until: datetime | None, guesses: int
) -> None:
    """Keep the wrong tries at the passwords of a bucket of names."""
    tx.execute(
        update(tables.sign_in_tries)
        .where(_t.bucket == bucket)
        .values(failed=failed, blocked_until=blocked_until, guesses=guesses)
    )


def find_settling(tx: Transaction, bucket: int) -> datetime | None:
    """Return when the wrong passwords of a bucket of networks are all forgotten; None where there never was one."""
    at: datetime | None = tx.execute(select(_t.blocked_until).where(_t.bucket == bucket)).scalar_one_or_none()
    return at


def forget_guesses(tx: Transaction, bucket: int) -> None:
    """Begin at nothing for a new password: what was guessed at the old one is void."""
    tx.execute(update(tables.sign_in_tries).where(_t.bucket == bucket).values(guesses=0))


def record_code_tries(
    tx: Transaction, principal_id: UUID, failed: int, blocked_until: datetime | None, wrong: int
) -> None:
    """Keep the wrong tries at an account's one-time code, and from when on the next one is looked at."""
    tx.execute(
        update(tables.credential)
        .where(_c.principal_id == principal_id)
        .values(failed_codes=failed, codes_blocked_until=blocked_until, wrong_codes=wrong)
    )


@dataclass(frozen=True, slots=True)
class CodesTried:
    """The wrong codes of one sign-in in a row, and those of the known device from which it began, where it is known still."""

    in_session: int
    device_id: UUID | None
    on_device: int


def find_codes_tried(tx: Transaction, sign_in_id: UUID, now: datetime) -> CodesTried:
    """Return the wrong codes that were tried in a sign-in; it goes with its credential's lock."""
    row = tx.execute(
        select(_s.wrong_codes, _d.device_id, _d.wrong_codes.label("on_device"))
        .select_from(
            tables.session.outerjoin(
                tables.known_device,
                and_(_d.device_id == _s.device_id, _d.ended_at.is_(None), _d.expires_at > now),
            )
        )
        .where(_s.session_id == sign_in_id)
    ).one()
    return CodesTried(row.wrong_codes, row.device_id, row.on_device or 0)


def record_codes_tried(tx: Transaction, sign_in_id: UUID, wrong: int) -> None:
    """Keep the wrong codes of one sign-in."""
    tx.execute(update(tables.session).where(_s.session_id == sign_in_id).values(wrong_codes=wrong))


def forget_wrong_codes(tx: Transaction, principal_id: UUID, sign_in_id: UUID) -> None:
    """Begin at nothing: the person has given a second proof that is right."""
    record_code_tries(tx, principal_id, 0, None, 0)
    record_codes_tried(tx, sign_in_id, 0)
    tx.execute(update(tables.known_device).where(_d.principal_id == principal_id).values(wrong_codes=0))


def claim_one_time_step(tx: Transaction, principal_id: UUID, step: int) -> bool:
    """Use up a step of the one-time code; return False when it, or a later one, was used before (rule D3)."""
    claimed = tx.execute(
        update(tables.credential)
        .where(
            _c.principal_id == principal_id,
            or_(_c.totp_last_step.is_(None), _c.totp_last_step < step),
        )
        .values(totp_last_step=step)
    )
    return claimed.rowcount == 1


def record_new_password(
    tx: Transaction, principal_id: UUID, secret_hash: str, at: datetime, totp_secret: Sealed | None
) -> None:
    """Replace the password by the person's own; ``totp_secret`` is given at the first change only."""
    values: dict[str, object] = {"secret_hash": secret_hash, "secret_set_at": at, "must_change": False}
    if totp_secret is not None:
        # A new factor begins with no wrong tries; a new password leaves those at the old factor.
        values |= {"sealed_totp_secret": totp_secret.token, "totp_last_step": None}
        values |= {"failed_codes": 0, "codes_blocked_until": None, "wrong_codes": 0}
        values |= {"factor_recovered_at": None}
    tx.execute(update(tables.credential).where(_c.principal_id == principal_id).values(**values))


def record_recovered_factor(tx: Transaction, principal_id: UUID, totp_secret: Sealed, step: int, at: datetime) -> None:
    """Put a new second factor in the place of a lost one; the code that tested it is used up."""
    tx.execute(
        update(tables.credential)
        .where(_c.principal_id == principal_id)
        .values(
            sealed_totp_secret=totp_secret.token,
            totp_last_step=step,
            failed_codes=0,
            codes_blocked_until=None,
            wrong_codes=0,
            factor_recovered_at=at,
            reset_by=None,
        )
    )


def record_issued_password(
    tx: Transaction, principal_id: UUID, secret_hash: str, at: datetime, reset_by: str | None
) -> None:
    """Replace the password by an issued one and void the second factor, as after its loss (EUB-15, USR-13).

    ``reset_by`` is who has issued it, when somebody else has to vouch for the next factor.
    """
    tx.execute(
        update(tables.credential)
        .where(_c.principal_id == principal_id)
        .values(
            secret_hash=secret_hash,
            secret_set_at=at,
            must_change=True,
            sealed_totp_secret=None,
            totp_last_step=None,
            failed_codes=0,
            codes_blocked_until=None,
            wrong_codes=0,
            factor_recovered_at=None,
            reset_by=reset_by,
        )
    )


def record_deactivation(tx: Transaction, principal_id: UUID, at: datetime) -> None:
    """Switch an account off; it is never deleted (USR-18)."""
    off = {"is_active": False, "deactivated_at": at}
    tx.execute(update(tables.principal).where(_p.principal_id == principal_id).values(**off))


def add_session(  # noqa: PLR0913, PLR0917  # all that a session is made of
    tx: Transaction,
    session_id: UUID,
    token_digest: bytes,
    principal_id: UUID,
    issued_at: datetime,
    expires_at: datetime,
    proof_at: datetime | None = None,
    sign_in_id: UUID | None = None,
    link_id: UUID | None = None,
    device_id: UUID | None = None,
) -> None:
    """Record a session, of the sign-in that is named or its own; only the digest of its token is kept."""
    tx.execute(
        insert(tables.session),
        {
            "session_id": session_id,
            "token_digest": token_digest,
            "principal_id": principal_id,
            "issued_at": issued_at,
            "expires_at": expires_at,
            "proof_at": proof_at,
            "sign_in_id": sign_in_id or session_id,
            "used_at": issued_at,
            "link_id": link_id,
            "device_id": device_id,
        },
    )


def get_session_end(tx: Transaction, session_id: UUID) -> datetime:
    """Return when a session ends by itself; raise ``NotAuthenticated`` when it was ended meanwhile."""
    end: datetime | None = tx.execute(
        select(_s.expires_at).where(_s.session_id == session_id, _s.ended_at.is_(None))
    ).scalar_one_or_none()
    if end is None:
        raise NotAuthenticated
    return end


def list_sessions(tx: Transaction, principal_id: UUID, now: datetime, idle_since: datetime) -> list[OpenSession]:
    """Return the sign-ins of an account that are not over, the oldest first."""
    rows = tx.execute(
        select(
            _f.session_id,
            _f.issued_at,
            _used_at.label("used_at"),
            _s.expires_at,
            func.max(_s.proof_at).label("proof_at"),
        )
        .select_from(tables.session.join(_first, _of_sign_in))
        .where(_s.principal_id == principal_id, _s.expires_at > now, _s.ended_at.is_(None), _used_at > idle_since)
        .group_by(_f.session_id, _f.issued_at, _f.used_at, _s.expires_at)
        .order_by(_f.issued_at, _f.session_id)
    )
    return [OpenSession(row.session_id, row.issued_at, row.used_at, row.expires_at, row.proof_at) for row in rows]


def end_session(tx: Transaction, principal_id: UUID, session_id: UUID, at: datetime) -> None:
    """End a session of an account with its family; raise ``Missing`` when it has none of this id that goes on.

    A stepped-up token keeps the end of the session that it came from.
    """
    family_ends_at = select(_s.expires_at).where(_s.session_id == session_id, _s.principal_id == principal_id)
    ended = tx.execute(
        update(tables.session)
        .where(
            _s.principal_id == principal_id,
            _s.expires_at == family_ends_at.scalar_subquery(),
            _s.expires_at > at,
            _s.ended_at.is_(None),
        )
        .values(ended_at=at)
    )
    if ended.rowcount == 0:
        raise Missing


def end_sessions(tx: Transaction, principal_id: UUID, at: datetime, but: UUID | None = None) -> None:
    """End the sessions of an account, except perhaps the one in hand."""
    ending = update(tables.session).where(_s.principal_id == principal_id, _s.ended_at.is_(None))
    if but is not None:
        ending = ending.where(_s.session_id != but)
    tx.execute(ending.values(ended_at=at))


def add_grant(tx: Transaction, principal_id: UUID, grant: RoleGrant) -> None:
    """Record a grant to an account."""
    given = {name: getattr(grant, name) for name in RoleGrant.__dataclass_fields__}
    tx.execute(insert(tables.role_grant), {"principal_id": principal_id, **given})


def lock_account(tx: Transaction, principal_id: UUID) -> None:
    """Keep others from changing the account's grants until the transaction ends."""
    tx.execute(select(_p.principal_id).where(_p.principal_id == principal_id).with_for_update())


def list_grants(tx: Transaction, principal_id: UUID, at: datetime | None = None) -> list[RoleGrant]:
    """Return the grants of an account: all of its history, or those that held at a moment (USR-19)."""
    query = select(*(_g[name] for name in RoleGrant.__dataclass_fields__)).where(_g.principal_id == principal_id)
    if at is not None:
        query = query.where(*_held_at(at))
    return [
        RoleGrant(
            row.grant_id,
            Role(row.role),
            row.study_code,
            row.site_code,
            row.granted_at,
            row.granted_by,
            row.revoked_at,
            row.revoked_by,
            row.starts_at,
            row.ends_at,
            row.needs_training,
        )
        for row in tx.execute(query.order_by(_g.granted_at, _g.grant_id))
    ]


def _held_at(at: datetime) -> tuple[ColumnElement[bool], ...]:
    """Return what a grant has that held at a moment."""
    return (
        func.coalesce(_g.starts_at, _g.granted_at) <= at,
        or_(_g.ends_at.is_(None), _g.ends_at > at),
        or_(_g.revoked_at.is_(None), _g.revoked_at > at),
        is_trained(at, at.date()),
    )


def add_training(tx: Transaction, principal_id: UUID, training: Training) -> None:
    """Record a training of an account."""
    said = {name: getattr(training, name) for name in Training.__dataclass_fields__}
    tx.execute(insert(tables.training), {"principal_id": principal_id, **said})


def list_trainings(tx: Transaction, principal_id: UUID) -> list[Training]:
    """Return the trainings of an account in the order in which they were recorded."""
    rows = tx.execute(
        select(*(_tr[name] for name in Training.__dataclass_fields__))
        .where(_tr.principal_id == principal_id)
        .order_by(_tr.recorded_at, _tr.training_id)
    )
    return [Training(**row._asdict()) for row in rows]


def list_delegations(
    tx: Transaction,
    study_code: StudyCode,
    held_at: datetime | None,
    after: tuple[datetime, UUID] | None,
    until: datetime,
    limit: int,
) -> list[Delegation]:
    """Return the grants in a study in the order in which they were given: all, or those that held at a moment (USR-19)."""
    query = (
        select(*_g, _p.name, _p.display_name, _p.is_machine, _p.deactivated_at)
        .join_from(tables.role_grant, tables.principal, _p.principal_id == _g.principal_id)
        .where(_g.study_code == study_code, _g.granted_at <= until)
    )
    if after is not None:
        at, grant_id = after
        query = query.where(or_(_g.granted_at > at, and_(_g.granted_at == at, _g.grant_id > grant_id)))
    if held_at is not None:
        query = query.where(*_held_at(held_at), or_(_p.deactivated_at.is_(None), _p.deactivated_at > held_at))
    return [
        Delegation(
            row.grant_id,
            row.name,
            row.display_name,
            row.is_machine,
            Role(row.role),
            row.site_code,
            row.starts_at or row.granted_at,
            row.ends_at,
            row.granted_at,
            row.granted_by,
            row.revoked_at,
            row.revoked_by,
            row.deactivated_at,
        )
        for row in tx.execute(query.order_by(_g.granted_at, _g.grant_id).limit(limit))
    ]


def record_revocation(tx: Transaction, principal_id: UUID, grant_id: UUID, at: datetime, by: str) -> RoleGrant:
    """End a grant and return it; raise ``Missing`` when it is not one of the account that holds."""
    ended = tx.execute(
        update(tables.role_grant)
        .where(_g.grant_id == grant_id, _g.principal_id == principal_id, _g.revoked_at.is_(None))
        .values(revoked_at=at, revoked_by=by)
    )
    if ended.rowcount != 1:
        raise Missing
    return next(grant for grant in list_grants(tx, principal_id) if grant.grant_id == grant_id)


_SERVICE_ADMINS: Final = (
    select(_p.principal_id)
    .where(
        _p.is_active,
        _p.principal_id.in_(select(_g.principal_id).where(_g.role == Role.SERVICE_ADMIN, _g.revoked_at.is_(None))),
    )
    .order_by(_p.principal_id)
)


def list_service_admins(tx: Transaction) -> list[UUID]:
    """Return the active service admins."""
    return [row.principal_id for row in tx.execute(_SERVICE_ADMINS)]


def hold_service_admins(tx: Transaction) -> list[UUID]:
    """Return the active service admins, and keep others from changing any of them until the transaction ends."""
    tx.execute(_SERVICE_ADMINS.with_for_update())
    # Read after the locks were given: who was switched off meanwhile is seen, and everybody locks in the same order.
    return list_service_admins(tx)


@dataclass(frozen=True, slots=True)
class Holder:
    """Somebody who holds a role in a study."""

    name: Username
    role: Role
    site_code: SiteCode | None


def list_holders(tx: Transaction, study_code: StudyCode, roles: Sequence[Role] = tuple(Role)) -> list[Holder]:
    """Return the active accounts that hold one of the roles in a study now, oldest grant first."""
    rows = tx.execute(
        select(_p.name, _g.role, _g.site_code)
        .join_from(tables.role_grant, tables.principal, _p.principal_id == _g.principal_id)
        .where(
            _g.study_code == study_code,
            _g.revoked_at.is_(None),
            _g.role.in_(list(roles)),
            _p.is_active,
        )
        .order_by(_g.granted_at, _g.grant_id)
    )
    return [Holder(row.name, Role(row.role), row.site_code) for row in rows]


def list_able_to_break(
    tx: Transaction, study_code: StudyCode, now: datetime, site_code: SiteCode | None = None
) -> list[tuple[SiteCode, Username]]:
    """Return who can break a code now at which site: active investigators with a second factor of their own (EUB-16)."""
    query = (
        select(_g.site_code, _p.name)
        .distinct()
        .select_from(
            tables.role_grant.join(tables.principal, _p.principal_id == _g.principal_id).join(
                tables.credential, _c.principal_id == _p.principal_id
            )
        )
        .where(
            _g.study_code == study_code,
            _g.role == Role.INVESTIGATOR,
            _g.site_code.is_not(None),
            *_held_at(now),
            _p.is_active,
            _c.must_change.is_(False),
            _c.sealed_totp_secret.is_not(None),
        )
        .order_by(_g.site_code, _p.name)
    )
    if site_code is not None:
        query = query.where(_g.site_code == site_code)
    return [(SiteCode(row.site_code), Username(row.name)) for row in tx.execute(query)]
