"""The interim door: the allocations up to a data cut, for an independent board alone (UNB-06, rules D7, F3).

It can be of a part of the study alone, a cohort, that is named by levels of its factors (UNB-10).

Two unblinded people sign it, and neither reads it: the package is always encrypted to the board's key, which both of them name. So
statistician and approver still learn nothing about any subject before the final unblinding (rule B10). Nobody who was allocated
after the cut, or is of another part, is opened. Group codes instead of arms are a courtesy to the board, no blinding: they count
as unblinded.
"""

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from io import StringIO
from typing import Final
from uuid import UUID

from app.domain.contents import Binding
from app.domain.encoding import encode
from app.domain.sealed import Column, SealContext
from app.domain.signatures import RecordKind, SignatureShown
from app.domain.words import Action, ArmCode, StudyCode, SubjectKey
from app.errors import IllegalTransition, IntegrityBroken, Invalid, SecondPersonRequired
from app.sealing.recipients import encrypt_to
from app.services import pages
from app.services.audited import Act, Receipt, audited
from app.services.context import RequestContext
from app.services.evidence import open_allocation
from app.services.final_package import harmless
from app.services.signatures import request_content, sign, with_signatures
from app.storage import allocations, dual_control, studies
from app.storage.allocations import Allocation
from app.storage.database import Transaction
from app.storage.dual_control import DualControlRequest
from app.storage.final_package import list_given_kits

_INTERIM: Final = "interim_unblinding"
"""The kind under which its requests stand among those that two people decide."""
_PAGE: Final = 500
_SETTLED: Final = timedelta(minutes=5)
"""No allocation is under way for so long: what was begun before a cut of this age is there, or will never be."""
_HEADER: Final = ("subject_id", "site_code", "randomization_number", "allocated_at")


class Shown(StrEnum):
    """What the board is shown of each subject."""

    ARMS = "arms"
    GROUPS = "groups"
    """``G1``, ``G2`` ... instead of arms, the same at each interim of a study."""


def interim_info(study: StudyCode) -> bytes:
    """Return what an interim package is bound to; the board needs it to open it (RFC 9180, ``info``)."""
    return f"snose/v1/interim\n{study}".encode()


@dataclass(frozen=True, slots=True)
class InterimWanted:
    """What the board is to get."""

    data_cut_at: datetime
    show: Shown
    board: str
    recipient_key: str
    strata: Mapping[str, str] = field(default_factory=dict)
    """Levels of factors: whoever was allocated with all of them is of the part; all subjects, if none is named."""


@dataclass(frozen=True, slots=True)
class InterimRequested:
    """A request that waits for its second person."""

    request_id: UUID
    data_cut_at: datetime
    requested_at: datetime
    requested_by: str
    receipt: Receipt | None = None
    is_signed: bool = False
    signatures: tuple[SignatureShown, ...] = ()


def request_interim(ctx: RequestContext, study: StudyCode, wanted: InterimWanted) -> InterimRequested:
    """Return the signed request for the allocations up to a data cut, which another unblinded person must release.

    Raises ``Invalid`` for a cut that is not five minutes ago, a part that the study has not, and a ``recipient_key`` that is none.
    """

    def work(act: Act) -> InterimRequested:
        encrypt_to(wanted.recipient_key, b"", b"")
        if wanted.data_cut_at > act.now - _SETTLED:
            message = (
                "The data are cut at a moment at least five minutes ago: else an allocation could be under way still."
            )
            raise Invalid(message, "data_cut_at")
        _check_strata(act, wanted.strata)
        request_id = act.deployment.new_id()
        ring = act.deployment.ring
        strata = dict(wanted.strata)
        told = {
            "data_cut_at": wanted.data_cut_at.isoformat(),
            "show": wanted.show,
            "board": wanted.board,
            "strata": strata,
        }
        request = DualControlRequest(
            request_id,
            _INTERIM,
            None,
            wanted.recipient_key,
            ring.seal(_context(study, request_id), json.dumps(told, ensure_ascii=False).encode()),
            ring.newest_version(study),
            act.now,
            act.principal.name,
        )
        dual_control.add_request(act.tx, act.study.study_id, request)
        act.note(
            target={"request_id": str(request_id)},
            after={"data_cut_at": wanted.data_cut_at.isoformat(), "show": wanted.show, "strata": strata},
            restricted={"board": wanted.board, "recipient_key": wanted.recipient_key},
        )
        record_id, content = str(request_id), request_content(request)
        sign(act, RecordKind.INTERIM_UNBLINDING, record_id, content)
        requested = InterimRequested(request_id, wanted.data_cut_at, act.now, act.principal.name)
        return with_signatures(act, RecordKind.INTERIM_UNBLINDING, [requested], lambda _: (record_id, content))[0]

    return audited(ctx, Action.REQUEST_INTERIM, work, study=study, answer_type=InterimRequested)


@dataclass(frozen=True, slots=True)
class InterimPackage:
    """The package as it leaves, for the holder of the board's key alone."""

    content: bytes = field(repr=False)
    file_name: str


def release_interim(
    ctx: RequestContext,
    study: StudyCode,
    request_id: UUID,
    data_cut_at: datetime,
    recipient_key: str,
    strata: Mapping[str, str],
) -> InterimPackage:
    """Return the package, once, to another person than who asked; both name the same data cut, the same part and the same key.

    Raises ``Missing``, ``SecondPersonRequired``, ``IllegalTransition`` for one that was released before, ``Invalid`` for another
    cut, part or key than was asked for, and ``IntegrityBroken`` when a slot or a binding is not what was committed to.
    """

    def work(act: Act) -> InterimPackage:
        study_id = act.study.study_id
        act.note(target={"request_id": str(request_id)})
        request = dual_control.lock_request(act.tx, study_id, _INTERIM, request_id)
        if request.requested_by == act.principal.name:
            raise SecondPersonRequired
        if request.released_at is not None:
            message = "This request was released before; another copy needs a new request."
            raise IllegalTransition(message)
        told = _told(act, request)
        if told.data_cut_at != data_cut_at:
            message = "The request is for another data cut."
            raise Invalid(message, "data_cut_at")
        if told.strata != strata:
            message = "The request is for another part of the study."
            raise Invalid(message, "strata")
        if request.recipient_key != recipient_key:
            message = "The request is for the holder of another key: ask the board for its own."
            raise Invalid(message, "recipient_key")
        dual_control.record_release(act.tx, study_id, request_id, act.now, act.principal.name)
        content = _package(act, told)
        act.note(
            after={
                "requested_by": request.requested_by,
                "data_cut_at": told.data_cut_at.isoformat(),
                "show": told.show,
                "strata": dict(told.strata),
                "encrypted": True,
            }
        )
        sign(act, RecordKind.INTERIM_UNBLINDING, str(request_id), request_content(request))
        encrypted = encrypt_to(recipient_key, content, interim_info(study))
        return InterimPackage(encrypted, f"{study}-interim.csv.hpke")

    return audited(ctx, Action.RELEASE_INTERIM, work, study=study, on_withheld=_nothing_to_mark)


def _nothing_to_mark(_tx: Transaction, _result: InterimPackage) -> None:
    """A withheld package is entered as withheld; the request is spent, and a new one gives another copy."""


@dataclass(frozen=True, slots=True)
class InterimRecord:
    """A line of the register: who asked and who released, for which board and up to when; nothing of any subject."""

    request_id: UUID
    data_cut_at: datetime
    show: Shown
    board: str
    strata: Mapping[str, str]
    requested_at: datetime
    requested_by: str
    released_at: datetime | None
    released_by: str | None
    is_signed: bool = False
    signatures: tuple[SignatureShown, ...] = ()


@dataclass(frozen=True, slots=True)
class InterimPage:
    """A page of the register."""

    items: Sequence[InterimRecord]
    next_cursor: str | None


def list_interims(ctx: RequestContext, study: StudyCode, limit: int, cursor: str | None) -> InterimPage:
    """Return the interim requests in the order of time, as many as stood there at the first page."""

    def work(act: Act) -> InterimPage:
        after, until = pages.place_in_time(act, cursor)
        found = dual_control.list_requests(act.tx, act.study.study_id, _INTERIM, after, until, limit + 1)
        contents = {one.request_id: request_content(one) for one in found[:limit]}
        records = [_told(act, one) for one in found[:limit]]
        kind = RecordKind.INTERIM_UNBLINDING
        items = with_signatures(act, kind, records, lambda one: (str(one.request_id), contents[one.request_id]))
        following = None
        if len(found) > limit:
            following = pages.cursor_in_time(act, items[-1].requested_at, items[-1].request_id, until)
        return InterimPage(items, following)

    return audited(ctx, Action.READ_INTERIMS, work, study=study)


def _check_strata(act: Act, strata: Mapping[str, str]) -> None:
    """Raise ``Invalid`` unless a part is named by factors of the study and their levels."""
    known = {
        factor.factor_code: {level.level_code for level in factor.levels}
        for factor in studies.list_factors(act.tx, act.study.study_id)
    }
    if any(level not in known.get(code, ()) for code, level in strata.items()):
        message = "A part is named by stratification factors of the study, each with one of its levels."
        raise Invalid(message, "strata")


def is_of_part(strata_used: Mapping[str, str], strata: Mapping[str, str]) -> bool:
    """Return whether a subject who was allocated with these strata is of a part."""
    return strata.items() <= strata_used.items()


def _context(study: StudyCode, request_id: UUID) -> SealContext:
    return SealContext(Column.REQUEST_TEXT, study, (str(request_id),))


def _told(act: Act, request: DualControlRequest) -> InterimRecord:
    opened = act.deployment.ring.open(_context(act.study.study_code, request.request_id), request.sealed_statement)
    told = json.loads(opened)
    return InterimRecord(
        request.request_id,
        datetime.fromisoformat(told["data_cut_at"]),
        Shown(told["show"]),
        told["board"],
        # Requests from before this release are for all subjects.
        told.get("strata", {}),
        request.requested_at,
        request.requested_by,
        request.released_at,
        request.released_by,
    )


# -- the package. Danger: holds the arm of everybody up to the cut


def _package(act: Act, told: InterimRecord) -> bytes:
    text = StringIO(newline="")
    writer = csv.writer(text)
    are_groups = told.show is Shown.GROUPS
    writer.writerow([*_HEADER, "group" if are_groups else "arm_code"])
    groups = _groups(act)
    for allocation, binding in _opened(act, told.data_cut_at, told.strata):
        cells = (
            allocation.subject_id,
            allocation.site_code,
            allocation.randomization_number,
            allocation.allocated_at.isoformat(),
            groups[binding.arm_code] if are_groups else binding.arm_code,
        )
        writer.writerow(map(harmless, cells))
    return text.getvalue().encode()


def _groups(act: Act) -> dict[ArmCode, str]:
    """Return the group code of each arm: in an order that nobody knows who has not the key."""
    study, ring = act.study, act.deployment.ring
    arms = [arm.arm_code for arm in studies.list_arms(act.tx, study.study_id)]
    arms.sort(key=lambda arm: ring.mac("interim-groups", encode(study.study_code, arm)))
    return {arm: f"G{at}" for at, arm in enumerate(arms, 1)}


def _opened(act: Act, data_cut_at: datetime, strata: Mapping[str, str]) -> Iterator[tuple[Allocation, Binding]]:
    """Give who of a part was allocated up to the cut, each proved to the signed list; nothing of anybody else is opened."""
    study_id = act.study.study_id
    after: tuple[datetime, UUID] | None = None
    while page := allocations.list_allocations(act.tx, study_id, None, after, data_cut_at, _PAGE):
        theirs = [one for one in page if is_of_part(one.strata_used, strata)]
        firsts = _first_kits(act, [one.subject_key for one in theirs])
        for one in theirs:
            if one.subject_key not in firsts:
                message = "An allocation has lost its kit."
                raise IntegrityBroken(message)
            yield one, open_allocation(act, one, firsts[one.subject_key])
        after = (page[-1].allocated_at, page[-1].allocation_id)


def _first_kits(act: Act, subjects: Sequence[SubjectKey]) -> dict[SubjectKey, UUID]:
    given = list_given_kits(act.tx, act.study.study_id, subjects)
    return {
        subject: one.assignment.kit_id
        for subject, kits in given.items()
        for one in kits
        if one.assignment.visit is None and one.assignment.replaces is None
    }
