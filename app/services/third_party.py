"""The third party's door: a named physician learns a treatment, and who asks for it does not (rule D6, UNB-01, failures 8).

Two steps. Who is blinded names the physician; the physician, with an account, a role and a second factor of their own, opens it. So
the treatment never passes through the hands of who asked, not even encrypted: a ciphertext could be for a key of their own, or tell
by its length. And the trail says who looked, and when, which an encrypted letter could not.

Request and openings are flags of the subject's: kept beside the allocation, never undone.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final, cast
from uuid import UUID

from app.domain.signatures import RecordKind, SignatureShown
from app.domain.words import (
    Action,
    KitCode,
    ReasonCode,
    Role,
    SiteCode,
    StudyCode,
    SubjectId,
    SubjectKey,
    Username,
    subject_key,
)
from app.errors import IllegalTransition, Missing, SecondPersonRequired
from app.services import pages
from app.services.audited import Act, Receipt, audited
from app.services.context import RequestContext
from app.services.signatures import Content, sign, with_signatures
from app.services.treatments import contact_when_unavailable, open_subject
from app.storage import allocations, people, unblinding
from app.storage.allocations import (
    THIRD_PARTY,
    THIRD_PARTY_OPENING,
    THIRD_PARTY_WITHHELD,
    FlaggedSubject,
    SubjectFlag,
)
from app.storage.database import Transaction

OPEN_FOR: Final = timedelta(hours=24)
"""How long a physician may look, and look again; after that it takes a new request, by who sees the subject."""


@dataclass(frozen=True, slots=True)
class ThirdPartyRequested:
    """That a physician was named. It holds no treatment."""

    third_party_unblinding_id: UUID
    subject_id: SubjectId
    physician: Username
    open_until: datetime
    receipt: Receipt | None = None
    is_signed: bool = False
    signatures: tuple[SignatureShown, ...] = ()


def request_for_third_party(
    ctx: RequestContext, study: StudyCode, subject: str, physician: Username, reason_code: ReasonCode
) -> ThirdPartyRequested:
    """Return the request by which a physician, and nobody else, may open one subject's treatment for a day.

    Raises ``Missing`` for a subject that is not the caller's, and for who is no treating physician of the study,
    ``SecondPersonRequired`` for the caller's own name.
    """
    key = subject_key(subject)

    def work(act: Act) -> ThirdPartyRequested:
        study_id = act.study.study_id
        act.note(target={"subject_id": key}, subject_key=key)
        allocation = allocations.get_allocation(act.tx, study_id, key, act.decision.sites)
        act.note(site_code=allocation.site_code)
        if physician == act.principal.name:
            raise SecondPersonRequired
        named = people.list_holders(act.tx, study, [Role.TREATING_PHYSICIAN])
        if physician not in {one.name for one in named}:
            raise Missing
        detail = {"physician": physician, "reason_code": reason_code, "role": cast("Role", act.role)}
        flag = SubjectFlag(act.deployment.new_id(), key, THIRD_PARTY, detail, act.now, act.principal.name)
        allocations.add_flag(act.tx, study_id, flag)
        act.note(
            after={
                "third_party_unblinding_id": str(flag.flag_id),
                "physician": physician,
                "reason_code": reason_code,
            }
        )
        record_id, content = _signed_request(flag)
        sign(act, RecordKind.THIRD_PARTY_REQUEST, record_id, content)
        requested = ThirdPartyRequested(flag.flag_id, allocation.subject_id, physician, act.now + OPEN_FOR)
        return with_signatures(act, RecordKind.THIRD_PARTY_REQUEST, [requested], lambda _: (record_id, content))[0]

    return audited(ctx, Action.REQUEST_THIRD_PARTY, work, study=study, answer_type=ThirdPartyRequested)


def _signed_request(flag: SubjectFlag) -> tuple[str, Content]:
    """Return what is signed of a request: who named which physician for whom, when and why."""
    content = {
        "subject": flag.subject_key,
        **{name: flag.detail[name] for name in ("physician", "reason_code", "role")},
        "requested_at": flag.flagged_at.isoformat(timespec="microseconds"),
        "requested_by": flag.flagged_by,
    }
    return str(flag.flag_id), content


@dataclass(frozen=True, slots=True)
class _Opened:
    """Which look at whose treatment it is."""

    study_id: UUID
    subject_key: SubjectKey
    opening_id: UUID
    request_id: UUID
    opened_at: datetime
    opened_by: str


@dataclass(frozen=True, slots=True)
class ThirdPartyReveal:
    """The answer to the named physician, and to nobody else (rule D6). Danger: holds a treatment."""

    opened: _Opened
    third_party_unblinding_id: UUID
    subject_id: SubjectId
    treatment: str = field(repr=False)
    kit_codes: Sequence[KitCode]
    revealed_at: datetime
    receipt: Receipt | None = None


def open_for_third_party(ctx: RequestContext, study: StudyCode, third_party_unblinding_id: UUID) -> ThirdPartyReveal:
    """Return one subject's treatment to the physician who was named, once that is durably recorded; each look is a new event.

    Raises ``Missing`` for whoever was not named, as for a request that is none, ``IllegalTransition`` after a day, and
    ``RevealUnavailable`` with the back-up contact.
    """
    with contact_when_unavailable(ctx) as contact:

        def work(act: Act) -> ThirdPartyReveal:
            study_id = act.study.study_id
            contact.text = act.study.backup_contact or contact.text
            act.note(target={"third_party_unblinding_id": str(third_party_unblinding_id)})
            asked = allocations.get_flagged(act.tx, study_id, THIRD_PARTY, third_party_unblinding_id)
            if asked.flag.detail["physician"] != act.principal.name:
                # Whose treatment it is, is none of another physician's business.
                raise Missing
            key = asked.flag.subject_key
            act.note(
                target={"third_party_unblinding_id": str(third_party_unblinding_id), "subject_id": key},
                subject_key=key,
                site_code=asked.site_code,
            )
            if act.now > asked.flag.flagged_at + OPEN_FOR:
                message = "A physician may look for a day; ask for a new request."
                raise IllegalTransition(message)
            shown = open_subject(act, allocations.get_allocation(act.tx, study_id, key, None))
            opened = _Opened(
                study_id, key, act.deployment.new_id(), third_party_unblinding_id, act.now, act.principal.name
            )
            flag = _add_flag(ctx, act.tx, opened, THIRD_PARTY_OPENING)
            act.outcome = unblinding.AUTHORISED
            act.note(after={"opening_id": str(opened.opening_id)})
            sign(act, RecordKind.THIRD_PARTY_OPENING, *_signed_opening(flag))
            return ThirdPartyReveal(
                opened,
                third_party_unblinding_id,
                asked.subject_id,
                shown.treatment,
                shown.kit_codes,
                act.now,
            )

        def on_withheld(tx: Transaction, result: ThirdPartyReveal) -> None:
            _add_flag(ctx, tx, result.opened, THIRD_PARTY_WITHHELD)

        return audited(ctx, Action.OPEN_FOR_THIRD_PARTY, work, study=study, on_withheld=on_withheld)


def _add_flag(ctx: RequestContext, tx: Transaction, opened: _Opened, kind: str) -> SubjectFlag:
    flag_id = opened.opening_id if kind == THIRD_PARTY_OPENING else ctx.deployment.new_id()
    of = opened.request_id if kind == THIRD_PARTY_OPENING else opened.opening_id
    flag = SubjectFlag(flag_id, opened.subject_key, kind, {"of": str(of)}, opened.opened_at, opened.opened_by)
    allocations.add_flag(tx, opened.study_id, flag)
    return flag


def _signed_opening(flag: SubjectFlag) -> tuple[str, Content]:
    """Return what is signed of a look: whose it was, at which request and when, and nothing of what was shown."""
    content = {
        "subject": flag.subject_key,
        "third_party_unblinding_id": flag.detail["of"],
        "opened_at": flag.flagged_at.isoformat(timespec="microseconds"),
        "opened_by": flag.flagged_by,
    }
    return str(flag.flag_id), content


@dataclass(frozen=True, slots=True)
class Opening:
    """That the physician looked; ``withheld`` where the answer could not leave (rule D4)."""

    flag: SubjectFlag
    opened_at: datetime
    status: str
    is_signed: bool = False
    signatures: tuple[SignatureShown, ...] = ()


@dataclass(frozen=True, slots=True)
class ThirdPartyRecord:
    """A line of the register: who asked, for which physician, and whether they looked. It holds no treatment."""

    flag: SubjectFlag
    third_party_unblinding_id: UUID
    subject_id: SubjectId
    site_code: SiteCode
    physician: Username
    reason_code: ReasonCode
    requested_at: datetime
    requested_by: str
    role: Role
    openings: Sequence[Opening]
    is_signed: bool = False
    signatures: tuple[SignatureShown, ...] = ()


@dataclass(frozen=True, slots=True)
class ThirdPartyPage:
    """A page of the register."""

    items: Sequence[ThirdPartyRecord]
    next_cursor: str | None


def list_third_party(ctx: RequestContext, study: StudyCode, limit: int, cursor: str | None) -> ThirdPartyPage:
    """Return the requests for third parties in the order of time, as many as stood there at the first page."""

    def work(act: Act) -> ThirdPartyPage:
        study_id = act.study.study_id
        after, until = pages.place_in_time(act, cursor)
        found = allocations.list_flagged(act.tx, study_id, THIRD_PARTY, act.decision.sites, after, until, limit + 1)
        more, found = len(found) > limit, found[:limit]
        flags = allocations.list_flags(act.tx, study_id, {one.flag.subject_key for one in found})
        records = [_record(act, one, flags[one.flag.subject_key]) for one in found]
        kind = RecordKind.THIRD_PARTY_REQUEST
        items = with_signatures(act, kind, records, lambda record: _signed_request(record.flag))
        following = None
        if more:
            last = items[-1]
            following = pages.cursor_in_time(act, last.requested_at, last.third_party_unblinding_id, until)
        return ThirdPartyPage(items, following)

    return audited(ctx, Action.READ_THIRD_PARTY, work, study=study)


def _record(act: Act, asked: FlaggedSubject, flags: Sequence[SubjectFlag]) -> ThirdPartyRecord:
    flag = asked.flag
    withheld = {one.detail["of"] for one in flags if one.kind == THIRD_PARTY_WITHHELD}
    openings = [
        Opening(one, one.flagged_at, unblinding.WITHHELD if str(one.flag_id) in withheld else unblinding.AUTHORISED)
        for one in flags
        if one.kind == THIRD_PARTY_OPENING and one.detail["of"] == str(flag.flag_id)
    ]
    return ThirdPartyRecord(
        flag,
        flag.flag_id,
        asked.subject_id,
        asked.site_code,
        Username(flag.detail["physician"]),
        ReasonCode(flag.detail["reason_code"]),
        flag.flagged_at,
        flag.flagged_by,
        Role(flag.detail["role"]),
        with_signatures(act, RecordKind.THIRD_PARTY_OPENING, openings, lambda look: _signed_opening(look.flag)),
    )
