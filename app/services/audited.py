"""The one door: policy asked, transaction opened, work run, one entry on every path, committed, made durable, then answered.

What a use case hands in runs inside the transaction, perhaps more than once (40001, 40P01, 55P03, BUSY), so it has no effect
outside ``act.tx``. When ``audited`` returns, the act is committed; when the act is privileged, its checkpoint is in the sink too.
"""

import hashlib
import json
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, Final, Protocol, TypeVar, cast
from uuid import UUID

import msgspec
import structlog

from app import policy
from app.domain.encoding import canonical_json, encode
from app.domain.merkle import CompletedNode, Frontier, leaf_hash, restricted_hash
from app.domain.notices import Channel, Notice, Topic
from app.domain.people import Principal, Proof
from app.domain.sealed import Column, SealContext, Sealed
from app.domain.signatures import Meaning
from app.domain.words import Action, Role, SiteCode, StudyCode, SubjectKey
from app.errors import (
    AlreadyExists,
    AuditUnavailable,
    DatabaseUnavailable,
    Forbidden,
    InProgress,
    IntegrityBroken,
    Invalid,
    KeyRetired,
    KeyReused,
    Missing,
    NotAuthenticated,
    OutcomeUnknown,
    RollbackSuspected,
    SnoseError,
    StepUpRequired,
    TooManyAttempts,
    TrailForked,
    WrongOneTimeCode,
    WrongPasskey,
)
from app.policy import Decision
from app.services import proofs
from app.services.checkpoints import ALTERED, LogState, Suspicion, head_mac, lookup_mac, origin_of, segment_number
from app.services.context import Deployment, RequestContext
from app.storage import answers, notices, people, studies, trail_writer
from app.storage.answers import NewAnswer, StoredAnswer
from app.storage.database import AlreadyThere, CommitUncertain, Transaction, TryAgain
from app.storage.studies import StudyHead
from app.storage.tables import SERVICE_LOG
from app.storage.trail import Lookup
from app.storage.trail_writer import LogHead, NewEntry

T = TypeVar("T")
_log: Final = structlog.get_logger("snose.door")
Part = Mapping[str, Any]
"""A JSON object of an entry."""

_ATTEMPTS: Final = 8
_FIRST_PAUSE: Final = 0.004
_NOTED_AFTER: Final = timedelta(minutes=1)
"""A sign-in that was used so long ago is noted as used again; not each time, which would be a write for each act."""
_NOT_ENTERED: Final = frozenset({Action.READ_SELF, Action.LIST_SESSIONS, Action.READ_CHECKPOINT, Action.READ_PROOF})
"""What rule E1 leaves out: one's own account, checkpoints and proofs."""
RESTORE_KEYS: Final = "key:restore"
"""What is done at the command line when the key is lost; without it no code break would follow."""
_OPEN_DESPITE_SUSPICION: Final = (
    policy.OWN
    | policy.PUBLIC
    | {
        RESTORE_KEYS,
        Action.BREAK_CODE,
        # Without its second factor nobody would break it.
        Action.CONFIRM_FACTOR_RECOVERY,
        Action.DECLARE_RECOVERY,
        Action.READ_CHECKPOINT,
        Action.READ_PROOF,
    }
)
"""What goes on after a suspected rollback or fork (`custody.md`, "The trail")."""


@dataclass(frozen=True, slots=True)
class Receipt:
    """Where the act stands in the trail; a client can ask for the proof."""

    log_index: int
    leaf_hash: str


class Receipted(Protocol):
    """An answer that carries its receipt, which is known once the entry is appended."""

    receipt: Receipt | None


class Unfinished(ABC):
    """An answer whose rest is made once its act is committed; when that fails, the answer is withheld (rule D4)."""

    __slots__ = ()

    @abstractmethod
    def finish(self) -> None:
        """Make the rest."""


@dataclass(slots=True)
class Act:
    """What the work is handed: the transaction, who acts, and where to note what happened."""

    tx: Transaction
    ctx: RequestContext
    caller: Principal | None
    decision: Decision
    head: StudyHead | None
    now: datetime
    outcome: str = "done"
    target: Part | None = None
    before: Part | None = None
    after: Part | None = None
    restricted: Part | None = None
    lasting: Part | None = None
    """What stays true although the act is refused; its entry tells it either way."""
    subject_key: SubjectKey | None = None
    site_code: SiteCode | None = None
    actor: str | None = None
    """Who acts, where that was shown and no session says so."""
    is_entered: bool = True
    is_signed: bool = False
    """Whether the caller has signed the record of the act (`app.services.signatures`)."""
    claims: list[tuple[UUID, bytes, bytes]] = field(default_factory=list)
    is_claiming: bool = False
    """Whether the act waits for another one with the same key."""
    replayed: object | None = None
    entries_elsewhere: list[tuple[StudyHead, Part]] = field(default_factory=list)

    @property
    def principal(self) -> Principal:
        """Who acts; every action but those of signing in has somebody."""
        if self.caller is None:
            raise NotAuthenticated
        return self.caller

    @property
    def role(self) -> Role | None:
        """The role by which it is done: one that is held at the site of the act, where it has one."""
        return self.decision.role_at(self.site_code)

    @property
    def meaning(self) -> Meaning:
        """What the caller's signature on the record of the act means."""
        return policy.SIGNING[self.ctx.action]

    @property
    def study(self) -> StudyHead:
        """The study of the act."""
        if self.head is None:
            raise Missing
        return self.head

    @property
    def deployment(self) -> Deployment:
        """The running deployment."""
        return self.ctx.deployment

    def at_site(self, site_code: SiteCode) -> None:
        """Ask the same door about a site that is known only inside; raises ``Missing`` when it is not the caller's."""
        self.decision.role_unless_elsewhere(site_code)
        self.site_code = site_code

    def note(
        self,
        *,
        target: Part | None = None,
        before: Part | None = None,
        after: Part | None = None,
        restricted: Part | None = None,
        subject_key: SubjectKey | None = None,
        site_code: SiteCode | None = None,
    ) -> None:
        """Say what the entry will tell; nothing of it may depend on an arm, but the restricted part."""
        self.target = target if target is not None else self.target
        self.before = before if before is not None else self.before
        self.after = after if after is not None else self.after
        self.restricted = restricted if restricted is not None else self.restricted
        self.subject_key = subject_key if subject_key is not None else self.subject_key
        self.site_code = site_code if site_code is not None else self.site_code

    def note_in(self, study: StudyHead, after: Part) -> None:
        """Have the act entered in the log of a study too, besides the one that it belongs to."""
        self.entries_elsewhere.append((study, after))

    def claim(self, scope: bytes, fingerprint: bytes, answer_type: type[T]) -> T | None:
        """Claim a natural key, or return the answer that stands under it; raises ``KeyReused`` for other content (rule C4)."""
        study_id = self.head.study_id if self.head is not None else SERVICE_LOG
        self.is_claiming = True
        stored = answers.claim(self.tx, study_id, scope, self.now)
        self.is_claiming = False
        if stored is None:
            self.claims.append((study_id, scope, fingerprint))
            return None
        kept = _open_answer(self.deployment, study_id, scope, stored)
        if kept["fingerprint"] != fingerprint.hex():
            raise KeyReused
        if kept["site_code"] is not None:
            # Policy is asked before a replay (rule C4), about the site too: the caller's may have changed since.
            self.at_site(kept["site_code"])
        self.note(target=kept["target"], subject_key=kept["subject_key"])
        answer = msgspec.convert(kept["answer"], type=answer_type)
        self.replayed = answer
        self.outcome = "replayed"
        return answer


Work = Callable[[Act], T]
OnRefusal = Callable[[Transaction, SnoseError], None]


def audited(
    ctx: RequestContext,
    action: Action,
    work: Work[T],
    *,
    study: StudyCode | None = None,
    target: Part | None = None,
    answer_type: type[T] | None = None,
    on_refusal: OnRefusal | None = None,
    on_withheld: Callable[[Transaction, T], None] | None = None,
) -> T:
    """Return what ``work`` returns, once it is committed and entered; privileged acts also once their checkpoint is kept.

    ``answer_type`` says that an ``Idempotency-Key`` is honoured, and how a stored answer is read back. ``on_refusal`` is run in
    the transaction of a refusal's entry, ``on_withheld`` in that of a withheld answer's: also when nobody can tell whether the act
    was committed, so it copes with an act that left no row. Raises what policy and work raise, ``InProgress``,
    ``OutcomeUnknown``, ``AuditUnavailable``, and what an ``Unfinished`` answer raises.
    """
    if ctx.action is not action:
        message = f"the route says {ctx.action}, the use case {action}"
        raise RuntimeError(message)
    door = _Door(ctx, action, study, target, answer_type)
    try:
        result, state = door.run(work)
    except SnoseError as error:
        door.enter_refusal(error, on_refusal, on_withheld)
        raise
    if state is not None:
        ctx.checkpoint = ctx.deployment.checkpoints.header(state)
        if action in policy.PRIVILEGED:
            door.make_durable(state, result, on_withheld)
    if isinstance(result, Unfinished):
        door.finish(result, on_withheld)
    return result


def admit_invalid(ctx: RequestContext, study: StudyCode | None, fields: list[str]) -> None:
    """Raise what stands before 422 in the order of rule G2; return when the caller may hear that the request is invalid.

    The refusal is entered, with the names of the fields and none of their values.
    """
    door = _Door(ctx, ctx.action, study, None, None)

    def refuse(_act: Act) -> None:
        message = "The request is not valid."
        raise Invalid(message, ", ".join(fields))

    try:
        door.run(refuse)
    except Invalid as error:
        door.enter_refusal(error, None)
    except SnoseError as error:
        door.enter_refusal(error, None)
        raise


def uncovered(action: Action) -> bool:
    """Return whether no entry of the policy table names an action; `create_app` refuses such a route."""
    return action not in policy.covered_actions()


def is_public(action: Action) -> bool:
    """Return whether an action is open to everybody, because one becomes known by it."""
    return action in policy.PUBLIC


def is_own(action: Action) -> bool:
    """Return whether an action is one with one's own account, open to everybody who is signed in."""
    return action in policy.OWN


def is_elevated(action: Action) -> bool:
    """Return whether an action asks for a fresh second proof (rule D3)."""
    return action in policy.ELEVATED


def describe(action: Action) -> str:
    """Return the right that an action needs, in words for the API's documentation."""
    if action in policy.PUBLIC:
        return "nobody: this is how one becomes known"
    proof = " with a fresh one-time code" if action in policy.ELEVATED else ""
    if action in policy.OWN:
        return f"anyone signed in{proof}"
    roles = sorted(role for role, actions in policy.PERMISSIONS.items() if action in actions)
    return ", ".join(roles) + proof


def enter_by_service(
    deployment: Deployment,
    action: str,
    *,
    study: StudyHead | None = None,
    target: Part | None = None,
    after: Part | None = None,
    site_code: SiteCode | None = None,
    work: Callable[[Transaction], None] | None = None,
    actor: str | None = None,
) -> LogState:
    """Enter what the service itself did or saw, under its own name (AUD-17) unless one is given.

    ``work`` is done in the same transaction.
    """
    with deployment.database.transaction() as tx:
        if work is not None:
            work(tx)
        ctx = RequestContext(deployment, Action.READ_SELF, None, deployment.entropy.draw("request id", 16).hex(), "")
        note = _Note(action, "done", None, None, target, after=after, site_code=site_code, actor=actor)
        state = _append(tx, ctx, study, note, deployment.clock())
    deployment.checkpoints.saw(state)
    return state


# -- inside ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Note:
    """Everything an entry tells."""

    action: str
    outcome: str
    caller: Principal | None
    role: str | None
    target: Part | None = None
    before: Part | None = None
    after: Part | None = None
    restricted: Part | None = None
    subject_key: SubjectKey | None = None
    site_code: SiteCode | None = None
    actor: str | None = None


@dataclass(slots=True)
class _Door:
    """One pass through the door."""

    ctx: RequestContext
    action: Action
    study_code: StudyCode | None
    target: Part | None
    answer_type: type[Any] | None
    act: Act | None = None
    caller: Principal | None = None
    head: StudyHead | None = None
    elsewhere: Sequence[LogState] = ()
    made: object | None = None
    """What the last attempt would have answered; it stands for an answer when its COMMIT went unheard."""
    shown: proofs.Shown | None = None
    """The passkey that has signed this very request: a proof for it alone, whatever proof the session has."""

    def run(self, work: Work[T]) -> tuple[T, LogState | None]:
        """Run the work until it is committed, or raise."""
        uncertain = False
        refused: SnoseError = DatabaseUnavailable()
        for attempt in range(_ATTEMPTS):
            try:
                result, states = self._attempt(work)
            except (TryAgain, KeyRetired) as error:
                refused = self._why_again(error)
            except AlreadyThere:
                # The last line of defence held against a rival; from now on the rival's row is seen, and named.
                refused = AlreadyExists()
            except CommitUncertain:
                uncertain = True
                if self.act is None or not self.act.claims:
                    break
                # The same key on a fresh connection tells the truth: its claim finds the stored answer, or does the act (C6).
            except DatabaseUnavailable:
                # Nothing was decided, but of an act that may have been committed before nobody may say so.
                if not uncertain:
                    raise
            else:
                for state in states:
                    self.ctx.deployment.checkpoints.saw(state)
                self.elsewhere = states[1:]
                return result, states[0] if states else None
            self._pause(attempt)
        raise OutcomeUnknown if uncertain else refused

    def _use_up(self, act: Act, shown: proofs.Shown) -> None:
        """Spend a signature for this request with its COMMIT, so that one that fails does not cost it (rule D3)."""
        try:
            proofs.claim(act.tx, self.ctx, shown)
        except WrongPasskey:
            raise StepUpRequired from None
        act.lasting = {**(act.lasting or {}), "passkey_id": str(shown.passkey.passkey_id)}

    def _why_again(self, error: TryAgain | KeyRetired) -> SnoseError:
        """Return what an act that was rolled back for sure is refused with, if no later attempt goes through."""
        if isinstance(error, KeyRetired):
            # The row was sealed anew between its reading and its opening, and is read again. One that is still retired at the
            # last attempt was put back by somebody.
            return error
        # Only a rival with the same key is worth another name (rule C4).
        return InProgress() if self.act is not None and self.act.is_claiming else DatabaseUnavailable()

    def _pause(self, attempt: int) -> None:
        jitter = 0.5 + self.ctx.deployment.entropy.draw("jitter", 1)[0] / 255
        time.sleep(_FIRST_PAUSE * 2**attempt * jitter)

    def _attempt(self, work: Work[T]) -> tuple[T, list[LogState]]:
        ctx = self.ctx
        self.act = self.made = None
        with ctx.deployment.database.transaction() as tx:
            now = ctx.now()
            decision = self._admit(tx, now)
            act = Act(tx, ctx, self.caller, decision, self.head, now, target=self.target)
            self.act = act
            result = self._replay_by_key(act)
            if result is None:
                result = self._done(work, act)
            if self.shown is not None:
                self._use_up(act, self.shown)
            elif self.action in policy.SPENDING and not people.spend_proof(tx, act.principal.session_id, now):
                raise StepUpRequired
            self._note_use(tx, now)
            # Lock order: the heads of the studies' logs before that of the service's own (`custody.md`).
            elsewhere = self._enter_elsewhere(act)
            result, entered = self._enter(act, result)
            self.made = result
        ctx.replayed = act.replayed is not None
        return result, [] if entered is None else [entered, *elsewhere]

    def _note_use(self, tx: Transaction, now: datetime) -> None:
        """Put off the idle end of the session (USR-12): by acts alone, for what is not entered is what programs ask on their own.

        An act that spends a proof adds nothing: its step-up has just been noted, and nothing stands before a code break (D1).
        """
        caller = self.caller
        if caller is None or caller.is_machine or self.action in _NOT_ENTERED | policy.SPENDING:
            return
        if now - caller.used_at >= _NOTED_AFTER:
            people.record_use(tx, caller.sign_in_id, now)

    def _done(self, work: Work[T], act: Act) -> T:
        """Return what the work returns; at a revealing door a row that cannot be what we wrote is an integrity failure (D4)."""
        try:
            result = work(act)
        except (ArithmeticError, LookupError, TypeError, ValueError) as error:
            if self.action not in policy.SPENDING:
                raise
            _log.error("unreadable row", kind=type(error).__name__, request_id=self.ctx.request_id)
            raise IntegrityBroken from None
        if self.action in policy.SIGNING and not act.is_signed:
            message = f"{self.action} is an act of signing, and nothing was signed"
            raise RuntimeError(message)
        return result

    def _admit(self, tx: Transaction, now: datetime) -> Decision:
        """Load who asks and what about, and ask the policy."""
        ctx, deployment = self.ctx, self.ctx.deployment
        self.caller = self.head = self.shown = None
        max_age = deployment.limits.password_max_age
        if ctx.token_digest is not None and self.action not in policy.PUBLIC:
            self.caller = people.find_principal(
                tx,
                ctx.token_digest,
                now,
                now - deployment.limits.session_idle,
                None if max_age is None else now - max_age,
            )
        if self.caller is not None and ctx.signed is not None and self.action in policy.ELEVATED:
            self.shown = proofs.shown_for_request(ctx, tx, ctx.signed, self.caller.principal_id, now)
            self.caller = replace(self.caller, proof=Proof(now, spent=False) if self.shown is not None else None)
        if self.caller is not None and deployment.limits.second_factor_required:
            asked = not self.caller.is_machine and self.caller.proof is None
            self.caller = replace(self.caller, needs_second_factor=asked)
        head = studies.find_study(tx, self.study_code) if self.study_code is not None else None
        if self.study_code is not None and head is None:
            if self.caller is None:
                raise NotAuthenticated
            raise Missing
        if self.caller is not None and self.study_code is not None and self.caller.is_known_in(self.study_code):
            # From here on a refusal concerns this study; before, it would tell a stranger's doings to the study (rule E1).
            self.head = head
        decision = policy.decide(self.action, self.caller, self.study_code, now)
        if head is not None:
            if not deployment.ring.holds(head.study_code, head.key_version):
                for version, wrapped in studies.list_study_keys(tx, head.study_id):
                    deployment.ring.add_study_key(head.study_code, version, wrapped)
            deployment.ring.retire_study_keys(head.study_code, head.min_key_version)
        self._refuse_without_trail(now)
        return decision

    def _refuse_without_trail(self, now: datetime) -> None:
        keeper = self.ctx.deployment.checkpoints
        if self.action not in _OPEN_DESPITE_SUSPICION:
            suspicion = _suspicion(self.ctx.deployment, self.head) or _suspicion(self.ctx.deployment, None)
            if suspicion is not None:
                # An older state of the service's own log brings back revoked grants, so it concerns every study.
                raise TrailForked if suspicion.kind == ALTERED else RollbackSuspected
            if self.ctx.method != "GET" and keeper.has_failed_too_long(now):
                raise AuditUnavailable

    def _replay_by_key(self, act: Act) -> Any:  # noqa: ANN401  # whatever the stored answer is
        """Return the stored answer of the request's ``Idempotency-Key``; None when there is none (rule C4)."""
        ctx = self.ctx
        if ctx.idempotency_key is None or self.answer_type is None:
            return None
        scope = hashlib.sha256(encode("key", act.principal.name, ctx.method, ctx.path, ctx.idempotency_key)).digest()
        return act.claim(scope, ctx.fingerprint, self.answer_type)

    def _enter_elsewhere(self, act: Act) -> list[LogState]:
        return [
            _append(
                act.tx,
                self.ctx,
                study,
                _Note(self.action, act.outcome, act.caller, act.role, after=after),
                act.now,
            )
            for study, after in sorted(act.entries_elsewhere, key=lambda one: one[0].study_id)
        ]

    def _enter(self, act: Act, result: T) -> tuple[T, LogState | None]:
        """Enter the act and keep its answer; return the answer with its receipt, and how the log stands then."""
        if not act.is_entered or self.action in _NOT_ENTERED:
            answers.store(act.tx, _sealed_answers(act, result))
            # What leaves was read behind a COMMIT that holds, a signed checkpoint above all (`custody.md`, "The trail").
            act.tx.settle()
            return result, None
        note = _Note(
            self.action,
            act.outcome,
            act.caller,
            act.role,
            act.target,
            act.before,
            act.after if act.lasting is None else {**(act.after or {}), **act.lasting},
            act.restricted,
            act.subject_key,
            act.site_code,
            act.actor,
        )
        composed = _compose(act.tx, self.ctx, act.head, note, act.now)
        if act.head is not None and composed.head.key_version > act.head.key_version:
            # A rotation began meanwhile: once it has, nothing is committed that an older version sealed (rule F4).
            raise TryAgain
        result = _with_receipt(result, composed.receipt)
        composed.append_to(act.tx, _sealed_answers(act, result))
        return result, composed.state

    def enter_refusal(
        self,
        error: SnoseError,
        on_refusal: OnRefusal | None,
        on_withheld: Callable[[Transaction, T], None] | None = None,
    ) -> None:
        """Enter a refusal in a transaction of its own: raising would have rolled it back with the rest (AUD-13).

        An answer that may have been committed and was not given out is withheld for sure, so it is marked as such (rule D4).
        """
        ctx, act = self.ctx, self.act
        caller = act.caller if act is not None else self.caller
        if caller is None and on_refusal is None:
            # Whatever an unknown caller was refused for: counted, so that nobody can flood the trail (rule E1).
            ctx.deployment.noise.count(ctx.network)
            return
        if self._is_failed_signing(error):
            # Told at once to whoever watches the log; the entry says who it was (SIG-10).
            _log.warning("signing refused", action=self.action, code=error.code, request_id=ctx.request_id)
        made = self.made if isinstance(error, OutcomeUnknown) and on_withheld is not None else None
        note = _Note(
            self.action,
            _outcome_of(error),
            caller,
            self._role_in_refusal(),
            act.target if act is not None else self.target,
            after={
                **((act.after if act is not None and made is not None else None) or {}),
                "code": error.code,
                **({"fields": error.field} if isinstance(error, Invalid) else {}),
                **((act.lasting if act is not None else None) or {}),
            },
            subject_key=act.subject_key if act is not None else None,
            site_code=act.site_code if act is not None else None,
            actor=None if caller is not None else "unknown",
        )

        # A proof that is only old is in the log, and brings nobody a mail.
        without_right = self.head if isinstance(error, Forbidden) and self.action in policy.SIGNING else None

        def refuse(tx: Transaction) -> None:
            if on_refusal is not None:
                on_refusal(tx, error)
            if without_right is not None and caller is not None:
                self._tell_of_unauthorized(tx, caller, without_right)

        def withhold(tx: Transaction) -> None:
            if made is not None and on_withheld is not None:
                on_withheld(tx, cast("T", made))

        self._enter_apart(note, self.head, refuse, withhold)
        if without_right is not None:
            ctx.deployment.office.wanted.set()

    def _tell_of_unauthorized(self, tx: Transaction, caller: Principal, study: StudyHead) -> None:
        """Put into the outbox that somebody tried what they may not sign: once an hour for each and study (EUB-22, SIG-10).

        By e-mail alone: what a machine is told is about subjects. What cannot be written keeps the entry from nobody.
        """
        deployment, now = self.ctx.deployment, self.ctx.now()
        hour = now.replace(minute=0, second=0, microsecond=0).isoformat()
        # The same for all tries of the hour, so that the outbox itself knows whether it was told.
        name = deployment.ring.mac("unauthorized attempt", encode(study.study_code, caller.principal_id.bytes, hour))
        notice_id = UUID(bytes=name[:16], version=4)
        about = {"username": caller.name, "action": self.action}
        body = Notice(Topic.REFUSED, now, study.study_code, deployment.mode, about).body()
        try:
            with tx.dispensable():
                if not notices.is_posted(tx, study.study_id, notice_id):
                    notices.add_notice(tx, study.study_id, notice_id, body, now, [Channel.CONTACT])
        except (DatabaseUnavailable, IntegrityBroken) as error:
            _log.error("notice not written", request_id=self.ctx.request_id, kind=type(error).__name__)

    def _is_failed_signing(self, error: SnoseError) -> bool:
        """Return whether somebody has tried to sign without the right, or with a second component that was old, spent or wrong.

        Who gave none is told to give one, as RFC 9470 has it: that is how a client begins, and no alarm.
        """
        if self.action is Action.STEP_UP:
            return isinstance(error, TooManyAttempts | WrongOneTimeCode)
        if self.action not in policy.SIGNING:
            return False
        if isinstance(error, StepUpRequired):
            return self.ctx.signed is not None or (self.caller is not None and self.caller.proof is not None)
        return isinstance(error, Forbidden)

    def _enter_apart(
        self,
        note: _Note,
        head: StudyHead | None,
        beside: Callable[[Transaction], None],
        behind: Callable[[Transaction], None],
    ) -> None:
        """Enter something in a transaction of its own; what cannot be entered is told in the service's own output.

        ``beside`` is done before the log is locked, ``behind`` after: what a COMMIT that went unheard may have written is seen
        there, because whoever holds the log has come to an end. The refusal stands all the same: nothing was done, and nothing
        is given out.
        """
        ctx = self.ctx
        now = ctx.now()
        failure: Exception | None = None
        for attempt in range(_ATTEMPTS):
            try:
                with ctx.deployment.database.transaction() as tx:
                    beside(tx)
                    state = _append(tx, ctx, head, note, now)
                    behind(tx)
            except (TryAgain, AlreadyThere, TrailForked, RollbackSuspected) as error:
                # The end of a log that was found broken just now is followed by a new segment at the next try.
                failure = error
                self._pause(attempt)
            except (DatabaseUnavailable, CommitUncertain, IntegrityBroken) as error:
                failure = error
                break
            else:
                ctx.deployment.checkpoints.saw(state)
                return
        _log.error(
            "not entered",
            action=note.action,
            outcome=note.outcome,
            request_id=ctx.request_id,
            kind=type(failure).__name__,
        )

    def _role_in_refusal(self) -> str | None:
        if self.act is not None:
            return self.act.role
        if self.caller is None or self.study_code is None:
            return None
        roles = sorted(self.caller.holds(self.study_code))
        return roles[0] if roles else None

    def make_durable(self, state: LogState, result: T, on_withheld: Callable[[Transaction, T], None] | None) -> None:
        """Write the checkpoint; when the sink fails, enter that the answer was withheld and raise ``AuditUnavailable``."""
        ctx = self.ctx
        try:
            for one in (*self.elsewhere, state):
                ctx.deployment.checkpoints.publish(one, ctx.now())
        except AuditUnavailable:
            self._enter_withheld(result, on_withheld)
            raise

    def finish(self, result: Unfinished, on_withheld: Callable[[Transaction, Any], None] | None) -> None:
        """Have the rest of the answer made; whatever goes wrong, enter that it was withheld and raise it again."""
        try:
            result.finish()
        except Exception:
            self._enter_withheld(result, on_withheld)
            raise

    def _enter_withheld(self, result: T, on_withheld: Callable[[Transaction, T], None] | None) -> None:
        if on_withheld is None:
            return
        act = cast("Act", self.act)
        note = _Note(
            self.action,
            "withheld",
            act.caller,
            act.role,
            act.target,
            after=act.after,
            subject_key=act.subject_key,
            site_code=act.site_code,
        )
        self._enter_apart(note, act.head, lambda _tx: None, lambda tx: on_withheld(tx, result))


def _outcome_of(error: SnoseError) -> str:
    if isinstance(error, NotAuthenticated | StepUpRequired | Forbidden | Missing):
        return "denied"
    if isinstance(error, OutcomeUnknown):
        return "unknown"
    return "integrity" if isinstance(error, IntegrityBroken) else "refused"


def _with_receipt(result: T, receipt: Receipt) -> T:
    if getattr(result, "receipt", ...) is None:
        return cast("T", replace(cast("Any", result), receipt=receipt))
    return result


def _suspicion(deployment: Deployment, head: StudyHead | None) -> Suspicion | None:
    """Return why a log must not simply go on, whichever of its segments the suspicion names."""
    return deployment.checkpoints.suspicion_of(deployment.origin(head.study_code if head is not None else None))


def _locked_head(
    tx: Transaction, deployment: Deployment, study: StudyHead | None, now: datetime, action: str
) -> LogHead:
    """Return the end of the log to append to: the known one, or a new segment when that one cannot be trusted."""
    keeper = deployment.checkpoints
    study_id = study.study_id if study is not None else SERVICE_LOG
    name = deployment.origin(study.study_code if study is not None else None)
    head = trail_writer.lock_head(tx, study_id)
    if head is None:
        # A log that is new here and known to the sink was rolled back to nothing: its old names are taken.
        key_version = study.key_version if study is not None else 1
        return _opened(tx, deployment, study_id, keeper.highest_segment(name) + 1, name, now, key_version)
    suspicion = keeper.suspicion_of(name)
    if suspicion is None or head.segment > segment_number(suspicion.origin):
        try:
            keeper.check_continues(head.origin, head.frontier, head.last_at, head.mac)
        except (TrailForked, RollbackSuspected):
            if action not in _OPEN_DESPITE_SUSPICION:
                raise
            suspicion = keeper.suspicion_of(name)
        else:
            return head
    lost = segment_number(suspicion.origin) if suspicion is not None else 0
    return _opened(tx, deployment, study_id, max(head.segment, lost) + 1, name, now, head.key_version)


def _opened(  # everything that an end of a log is made of
    tx: Transaction,
    deployment: Deployment,
    study_id: UUID,
    segment: int,
    name: str,
    now: datetime,
    key_version: int,
) -> LogHead:
    origin = origin_of(name, segment)
    frontier = Frontier()
    head = LogHead(
        study_id, segment, origin, frontier, now, head_mac(deployment.ring, origin, frontier, now), key_version
    )
    trail_writer.open_log(tx, head)
    return head


@dataclass(frozen=True, slots=True)
class _Composed:
    """An entry that only needs to be written, behind the locked head of its log."""

    head: LogHead
    entry: NewEntry
    nodes: Sequence[CompletedNode]
    restricted: tuple[Sealed, int] | None

    @property
    def receipt(self) -> Receipt:
        return Receipt(self.entry.log_index, self.entry.leaf_hash.hex())

    @property
    def state(self) -> LogState:
        return LogState(self.head.origin, self.head.frontier)

    def append_to(self, tx: Transaction, kept: Sequence[NewAnswer] = ()) -> None:
        """Write the entry, and with it what was answered."""
        trail_writer.append(tx, self.head, self.entry, self.nodes, self.restricted, kept)


def _append(tx: Transaction, ctx: RequestContext, study: StudyHead | None, note: _Note, now: datetime) -> LogState:
    """Append one entry to the study's log, or to the service's own, and return how the log stands then."""
    composed = _compose(tx, ctx, study, note, now)
    composed.append_to(tx)
    return composed.state


def _compose(tx: Transaction, ctx: RequestContext, study: StudyHead | None, note: _Note, now: datetime) -> _Composed:
    """Lock the head of the log, which is locked last (`custody.md`), and return the entry that continues it."""
    deployment = ctx.deployment
    head = _locked_head(tx, deployment, study, now, note.action)
    at = max(now, head.last_at)
    index = head.frontier.size
    after = note.after
    if index == 0 and head.segment > 1:
        after = {**(after or {}), "suspected_fork_of_segment": head.segment - 1}
    sealed: tuple[Sealed, int] | None = None
    restricted_name: str | None = None
    study_code = study.study_code if study is not None else None
    if note.restricted is not None:
        salt = deployment.entropy.draw("salt", 32)
        part = canonical_json(note.restricted)
        restricted_name = restricted_hash(salt, part).hex()
        context = SealContext(Column.RESTRICTED, study_code, (head.segment, index))
        longest, _ = max(note.restricted.items(), key=lambda one: len(canonical_json(one[1])))
        _refuse_too_long(salt + part, context.column, "The text is too long to be kept with its entry.", longest)
        sealed = (deployment.ring.seal(context, salt + part), deployment.ring.newest_version(study_code))
    caller = note.caller
    actor = note.actor or (caller.name if caller is not None else "snose")
    body = canonical_json(
        {
            "v": 1,
            "log": head.origin,
            "index": index,
            "at": at.isoformat(timespec="microseconds"),
            "actor": actor,
            "role": note.role,
            "organisation": None,
            "client": caller.name if caller is not None and caller.is_machine else None,
            "action": note.action,
            "outcome": note.outcome,
            "target": note.target,
            "before": note.before,
            "after": after,
            "request_id": ctx.request_id,
            "restricted": restricted_name,
        }
    )
    leaf = leaf_hash(body)
    frontier, nodes = head.frontier.append(leaf)
    mac = head_mac(deployment.ring, head.origin, frontier, at)
    moved = LogHead(head.study_id, head.segment, head.origin, frontier, at, mac, head.key_version)
    lookup = Lookup(at, note.action, actor, note.subject_key, note.site_code)
    sealed_lookup = lookup_mac(deployment.ring, head.origin, index, leaf, lookup)
    entry = NewEntry(index, at, note.action, actor, note.subject_key, note.site_code, body, leaf, sealed_lookup)
    return _Composed(moved, entry, nodes, sealed)


def _answer_context(column: Column, study_id: UUID, scope: bytes) -> SealContext:
    return SealContext(column, None, (str(study_id), scope.hex()))


def _sealed_answers(act: Act, result: object) -> list[NewAnswer]:
    """Return the answer sealed for every key that the act has claimed."""
    return [
        NewAnswer(study_id, scope, _seal_answer(act, study_id, scope, fingerprint, result))
        for study_id, scope, fingerprint in act.claims
    ]


def _seal_answer(act: Act, study_id: UUID, scope: bytes, fingerprint: bytes, result: object) -> StoredAnswer:
    """Seal an answer with the fingerprint of its request inside; small ones apart from large ones, one length each (rule B3).

    Beside it lies what a replay must know: the site to ask about, and what the entry tells of it.
    """
    plaintext = msgspec.json.encode(
        {
            "fingerprint": fingerprint.hex(),
            "answer": result,
            "site_code": act.site_code,
            "subject_key": act.subject_key,
            "target": act.target,
        }
    )
    ring = act.deployment.ring
    if len(plaintext) <= Column.ANSWER_SMALL.capacity:
        return StoredAnswer(ring.seal(_answer_context(Column.ANSWER_SMALL, study_id, scope), plaintext), None)
    message = "The answer is too large to be kept for a repeated request."
    _refuse_too_long(plaintext, Column.ANSWER_LARGE, message, "Idempotency-Key")
    return StoredAnswer(None, ring.seal(_answer_context(Column.ANSWER_LARGE, study_id, scope), plaintext))


def _refuse_too_long(plaintext: bytes, column: Column, message: str, field: str) -> None:
    if len(plaintext) > column.capacity:
        raise Invalid(message, field)


def _open_answer(deployment: Deployment, study_id: UUID, scope: bytes, stored: StoredAnswer) -> Mapping[str, Any]:
    if stored.small is not None:
        opened = deployment.ring.open(_answer_context(Column.ANSWER_SMALL, study_id, scope), stored.small)
    elif stored.large is not None:
        opened = deployment.ring.open(_answer_context(Column.ANSWER_LARGE, study_id, scope), stored.large)
    else:
        # A claim is committed only together with its answer.
        raise IntegrityBroken
    return cast("Mapping[str, Any]", json.loads(opened))
