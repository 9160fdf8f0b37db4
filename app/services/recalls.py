"""The recall door: a batch is called back, and nobody who is blinded learns whose treatment it was (UNB-01, rule B11).

A manufacturing lot is an arm, so what is put out of use is whole consignments, each of which holds every arm: those that hold any
kit of the lot. Their kits are unusable from that moment, whoever has them, and sites call all of them back alike. Which of them are
of the lot stands on a list that two unblinded people release, and that names no subject. A lot is looked for in every kit of the
study, read to the end: whoever watches the database sees the same, whatever is found.
"""

import csv
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from io import StringIO
from typing import Any, Final
from uuid import UUID

from app.domain.kits import ToDo, to_do_in_recall
from app.domain.sealed import Column, SealContext
from app.domain.signatures import RecordKind, SignatureShown
from app.domain.words import Action, ConsignmentCode, KitCode, KitStatus, SiteCode, StudyCode, SubjectId
from app.errors import IllegalTransition, Invalid, Missing, SecondPersonRequired
from app.sealing.recipients import encrypt_to
from app.services import pages
from app.services.audited import Act, Receipt, audited
from app.services.context import RequestContext
from app.services.evidence import OpenedKit, open_kit
from app.services.final_package import harmless
from app.services.outbox import tell_of_recall, wake_sender
from app.services.signatures import request_content, sign, with_signatures
from app.storage import dual_control, kits, studies
from app.storage.database import Transaction, TryAgain
from app.storage.dual_control import DualControlRequest
from app.storage.kits import Consignment

_RECALL: Final = "recall"
"""The kind under which recalls stand among what two people decide."""
_HEADER: Final = ("kit_code", "consignment_code", "site_code", "arm_code", "lot", "expires_on")


def recall_info(study: StudyCode) -> bytes:
    """Return what an encrypted list of recalled kits is bound to; its recipient needs it to open the list (RFC 9180, ``info``)."""
    return f"snose/v1/recall\n{study}".encode()


@dataclass(frozen=True, slots=True)
class RecallWanted:
    """What is to be called back: a whole consignment, or a lot. Danger: a lot is an arm."""

    consignment_code: ConsignmentCode | None
    lot: str | None = field(repr=False)
    reason: str = field(repr=False)
    recipient_key: str | None


@dataclass(frozen=True, slots=True)
class RecallStarted:
    """That consignments are called back from now on; nothing says which of their kits it is about."""

    recall_id: UUID
    consignment_codes: Sequence[ConsignmentCode]
    recalled_at: datetime
    recalled_by: str
    receipt: Receipt | None = None
    is_signed: bool = False
    signatures: tuple[SignatureShown, ...] = ()


def start_recall(ctx: RequestContext, study: StudyCode, wanted: RecallWanted) -> RecallStarted:
    """Return the recall; every kit of its consignments is unusable from now on, and is on the lists of its site.

    Raises ``Invalid`` unless either a consignment or a lot is named, and for a ``recipient_key`` that is none, ``Missing``, and
    ``IllegalTransition`` for a consignment that was called back before.
    """

    def work(act: Act) -> RecallStarted:
        if wanted.recipient_key is not None:
            encrypt_to(wanted.recipient_key, b"", b"")
        recalled = _locked(act, _concerned(act, wanted))
        codes = [one.consignment_code for one in recalled if one.recall_id is None]
        if wanted.lot is None and not codes:
            message = "This consignment was called back before."
            raise IllegalTransition(message)
        recall_id, ring = act.deployment.new_id(), act.deployment.ring
        told = {"consignment_code": wanted.consignment_code, "lot": wanted.lot}
        request = DualControlRequest(
            recall_id,
            _RECALL,
            # Not even whether a lot was named stands in clear.
            None,
            wanted.recipient_key,
            ring.seal(_context(study, recall_id), json.dumps(told).encode()),
            ring.newest_version(study),
            act.now,
            act.principal.name,
        )
        dual_control.add_request(act.tx, act.study.study_id, request)
        kits.record_recall(act.tx, act.study.study_id, codes, recall_id, act.now)
        tell_of_recall(act, recall_id)
        act.note(
            target={"recall_id": str(recall_id)},
            after={"consignment_codes": codes},
            restricted={**told, "reason": wanted.reason},
        )
        record_id, content = str(recall_id), request_content(request)
        sign(act, RecordKind.RECALL, record_id, content)
        started = RecallStarted(recall_id, codes, act.now, act.principal.name)
        return with_signatures(act, RecordKind.RECALL, [started], lambda _: (record_id, content))[0]

    try:
        return audited(ctx, Action.START_RECALL, work, study=study, answer_type=RecallStarted)
    finally:
        wake_sender(ctx.deployment)


def _concerned(act: Act, wanted: RecallWanted) -> list[Consignment]:
    """Return the consignment that was named, or those that hold a kit of the lot; raise ``Missing``."""
    if (wanted.consignment_code is None) == (wanted.lot is None):
        message = "Name one consignment or one lot, and not both."
        raise Invalid(message, "consignment_code")
    every = kits.list_consignments(act.tx, act.study.study_id)
    if wanted.lot is None:
        found = [one for one in every if one.consignment_code == wanted.consignment_code]
    else:
        found = [one for one in every if wanted.lot in {kit.lot for kit in _opened(act, one)}]
    if not found:
        raise Missing
    return found


def _opened(act: Act, consignment: Consignment) -> Iterator[OpenedKit]:
    """Give every kit of a consignment, proved to its commitment. Danger: each holds an arm."""
    study_id = act.study.study_id
    return (open_kit(act, kit) for kit in kits.list_sealed_kits(act.tx, study_id, consignment.consignment_id))


def _locked(act: Act, found: Sequence[Consignment]) -> list[Consignment]:
    """Return consignments that nobody sends, receives or draws from until the transaction ends: stock first (lock order)."""
    study_id = act.study.study_id
    sites = {one.site_code for one in found if one.site_code is not None}
    for site_code in sorted(sites):
        kits.lock_stock(act.tx, study_id, site_code)
    locked = [kits.lock_consignment(act.tx, study_id, one.consignment_code) for one in found]
    if {one.site_code for one in locked if one.site_code is not None} != sites:
        # One was sent just now: the stock of its site is to be locked too.
        raise TryAgain
    return locked


@dataclass(frozen=True, slots=True)
class RecalledKits:
    """The list of the kits that a recall is about, as it leaves. Danger: holds an arm."""

    content: bytes = field(repr=False)
    media_type: str
    file_name: str


def release_recall(ctx: RequestContext, study: StudyCode, recall_id: UUID) -> RecalledKits:
    """Return which kits a recall is about, once, to another unblinded person than who started it (rule F3).

    Raises ``Missing``, ``SecondPersonRequired``, ``IllegalTransition`` for a list that was released before, and
    ``IntegrityBroken`` when a kit is not what was committed to.
    """

    def work(act: Act) -> RecalledKits:
        study_id = act.study.study_id
        act.note(target={"recall_id": str(recall_id)})
        request = dual_control.lock_request(act.tx, study_id, _RECALL, recall_id)
        if request.requested_by == act.principal.name:
            raise SecondPersonRequired
        if request.released_at is not None:
            message = "This list was released before; another copy needs a new recall."
            raise IllegalTransition(message)
        dual_control.record_release(act.tx, study_id, recall_id, act.now, act.principal.name)
        content, codes = _list_of(act, request)
        # How many kits are on it would be a quantity by arm (rule E3).
        encrypted = request.recipient_key is not None
        act.note(after={"requested_by": request.requested_by, "consignment_codes": codes, "encrypted": encrypted})
        sign(act, RecordKind.RECALL, str(recall_id), request_content(request))
        if request.recipient_key is None:
            return RecalledKits(content, "text/csv; charset=utf-8", f"{study}-recall.csv")
        sealed = encrypt_to(request.recipient_key, content, recall_info(study))
        return RecalledKits(sealed, "application/octet-stream", f"{study}-recall.csv.hpke")

    return audited(ctx, Action.RELEASE_RECALL, work, study=study, on_withheld=_nothing_to_mark)


def _nothing_to_mark(_tx: Transaction, _result: RecalledKits) -> None:
    """A withheld list is entered as withheld; the recall stands, and a new one gives another copy."""


def _context(study: StudyCode, recall_id: UUID) -> SealContext:
    return SealContext(Column.REQUEST_TEXT, study, (str(recall_id),))


def _list_of(act: Act, request: DualControlRequest) -> tuple[bytes, list[ConsignmentCode]]:
    """Return the list, and of which consignments its kits are."""
    context = _context(act.study.study_code, request.request_id)
    told: dict[str, Any] = json.loads(act.deployment.ring.open(context, request.sealed_statement))
    text = StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(_HEADER)
    codes: dict[ConsignmentCode, None] = {}
    for consignment in kits.list_consignments(act.tx, act.study.study_id):
        if told["lot"] is None and consignment.consignment_code != told["consignment_code"]:
            continue
        for kit in _opened(act, consignment):
            if told["lot"] in (None, kit.lot):
                codes[consignment.consignment_code] = None
                where = consignment.consignment_code, consignment.site_code or ""
                cells = (kit.kit_code, *where, kit.arm_code, kit.lot, kit.expires_on.isoformat())
                writer.writerow(map(harmless, cells))
    return text.getvalue().encode(), list(codes)


# -- what everybody may see ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RecallRecord:
    """A line of the register: which consignments were called back, by whom and when. It has no field for a lot or a reason."""

    request: DualControlRequest
    recall_id: UUID
    consignment_codes: Sequence[ConsignmentCode]
    recalled_at: datetime
    recalled_by: str
    released_at: datetime | None
    released_by: str | None
    is_signed: bool = False
    signatures: tuple[SignatureShown, ...] = ()


@dataclass(frozen=True, slots=True)
class RecallPage:
    """A page of the register."""

    items: Sequence[RecallRecord]
    next_cursor: str | None


def list_recalls(ctx: RequestContext, study: StudyCode, limit: int, cursor: str | None) -> RecallPage:
    """Return the recalls in the order of time, with those of their consignments that are at sites of the caller's."""

    def work(act: Act) -> RecallPage:
        study_id, sites = act.study.study_id, act.decision.sites
        after, until = pages.place_in_time(act, cursor)
        found = dual_control.list_requests(act.tx, study_id, _RECALL, after, until, limit + 1)
        codes: dict[UUID, list[ConsignmentCode]] = {}
        for one in kits.list_consignments(act.tx, study_id):
            if one.recall_id is not None and (sites is None or one.site_code in sites):
                codes.setdefault(one.recall_id, []).append(one.consignment_code)
        records = [
            RecallRecord(
                one,
                one.request_id,
                codes.get(one.request_id, []),
                one.requested_at,
                one.requested_by,
                one.released_at,
                one.released_by,
            )
            for one in found[:limit]
        ]
        following = None
        if len(found) > limit:
            following = pages.cursor_in_time(act, records[-1].recalled_at, records[-1].recall_id, until)
        named = with_signatures(
            act, RecordKind.RECALL, records, lambda one: (str(one.recall_id), request_content(one.request))
        )
        return RecallPage(named, following)

    return audited(ctx, Action.READ_RECALLS, work, study=study)


@dataclass(frozen=True, slots=True)
class CallBack:
    """A kit of a site that is called back: fetched from its subject, or put aside."""

    kit_code: KitCode
    consignment_code: ConsignmentCode
    status: KitStatus
    subject_id: SubjectId | None
    to_do: ToDo


@dataclass(frozen=True, slots=True)
class CallBackPage:
    """A page of what a site has still to do."""

    items: Sequence[CallBack]
    next_cursor: str | None


def list_call_backs(
    ctx: RequestContext, study: StudyCode, site_code: SiteCode, limit: int, cursor: str | None
) -> CallBackPage:
    """Return the kits of recalled consignments with which a site has still something to do, in the order of their codes.

    All kits of such a consignment are on it alike, whatever is in them; a kit that was returned, put aside or accounted for is not.
    """

    def work(act: Act) -> CallBackPage:
        act.note(target={"site_code": site_code})
        act.at_site(site_code)
        study_id = act.study.study_id
        studies.get_site(act.tx, study_id, site_code)
        after = None if cursor is None else KitCode(pages.decode(act, cursor)[0])
        found = kits.list_recalled(act.tx, study_id, site_code, after, limit + 1)
        items = [
            CallBack(one.kit_code, one.consignment_code, one.status, one.subject_id, to_do_in_recall(one.status))
            for one in found[:limit]
        ]
        return CallBackPage(items, pages.encode(act, [items[-1].kit_code]) if len(found) > limit else None)

    return audited(ctx, Action.READ_CALL_BACKS, work, study=study)
