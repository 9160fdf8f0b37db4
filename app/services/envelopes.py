"""Code-break envelopes as people meet them: sheets for the kits, openings entered after an outage, and the reconciliation (EUB-05).

Sheets go to the supply manager alone, encrypted, and not to two people like a packing list: a sheet opens nothing without the
desk's key, and tells no arm. As long as a consignment is in the depot its sheets can be made anew, every time with an entry; once
it is on its way, they are released at most once.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, cast
from uuid import UUID

from app.domain.signatures import RecordKind
from app.domain.words import (
    Action,
    ConsignmentCode,
    ConsignmentStatus,
    KitCode,
    ReasonCode,
    Role,
    SiteCode,
    StudyCode,
    SubjectId,
)
from app.errors import AlreadyExists, IllegalTransition, Invalid, Missing
from app.sealing.recipients import encrypt_to
from app.services.audited import Act, Receipt, Unfinished, audited
from app.services.context import Deployment, RequestContext
from app.services.enveloping import is_overdue, sheet_code_of
from app.services.outbox import tell_of_break, wake_sender
from app.services.signatures import code_break_content, sign
from app.storage import allocations, envelopes, kits, unblinding
from app.storage.envelopes import IssuedEnvelope, OpenedEnvelope
from app.storage.unblinding import NewCodeBreak

_MOST_SHEETS: Final = 1_000
_MOST_NAMED: Final = 100


# -- the sheets --------------------------------------------------------------------------------------------------------


def sheets_info(study: StudyCode, consignment_code: ConsignmentCode) -> bytes:
    """Return what encrypted sheets are bound to; their recipient needs it to open them (RFC 9180, ``info``)."""
    return f"snose/v1/code-break-sheets\n{study}\n{consignment_code}".encode()


@dataclass(slots=True)
class ReleasedSheets(Unfinished):
    """The sheets of a consignment, for the printer; made once their release is committed, because pages take their time."""

    study: StudyCode
    consignment_code: ConsignmentCode
    site_code: SiteCode | None
    deployment: Deployment
    contact: str
    kits: Sequence[tuple[KitCode, UUID]]
    recipient_key: str
    content: bytes = field(default=b"", repr=False)

    @property
    def file_name(self) -> str:
        """The name under which it is saved."""
        return f"sheets-{self.consignment_code}.pdf.hpke"

    def finish(self) -> None:
        """Make the pages, and encrypt them."""
        from app.services.sheets import Sheet, sheets_pdf  # noqa: PLC0415  # no worker waits for the PDF library to start

        sheets = [Sheet(code, sheet_code_of(self.deployment, self.study, kit_id, code)) for code, kit_id in self.kits]
        pages = sheets_pdf(
            self.study, self.deployment.mode, self.consignment_code, self.site_code, self.contact, sheets
        )
        self.content = encrypt_to(self.recipient_key, pages, sheets_info(self.study, self.consignment_code))


def release_sheets(
    ctx: RequestContext, study: StudyCode, consignment_code: ConsignmentCode, recipient_key: str
) -> ReleasedSheets:
    """Return the sheets of a consignment as PDF, encrypted to the recipient's key.

    Raises ``Missing``, ``Invalid`` for a key that is none, ``IllegalTransition`` where the deployment makes no envelopes, for a
    consignment too large to print, and for sheets that were released before and may be on their way.
    """

    def work(act: Act) -> ReleasedSheets:
        act.note(target={"consignment_code": consignment_code})
        encrypt_to(recipient_key, b"", b"")
        study_id = act.study.study_id
        found = kits.find_consignment(act.tx, study_id, consignment_code)
        if found is None:
            raise Missing
        consignment = kits.lock_consignment(act.tx, study_id, consignment_code)
        act.note(site_code=consignment.site_code)
        if act.deployment.desk is None:
            message = "This deployment makes no code-break envelopes, so there is nothing to print."
            raise IllegalTransition(message)
        if consignment.kit_count > _MOST_SHEETS:
            message = f"Sheets are printed for consignments of at most {_MOST_SHEETS} kits."
            raise IllegalTransition(message)
        before = envelopes.get_sheets_released(act.tx, study_id, consignment.consignment_id)
        if before is not None and consignment.status is not ConsignmentStatus.REGISTERED:
            message = "The sheets of this consignment were released, and it has left the depot with them."
            raise IllegalTransition(message)
        envelopes.record_sheets_released(act.tx, study_id, consignment.consignment_id, act.now)
        act.note(after={"kit_count": consignment.kit_count, "encrypted": True, "anew": before is not None})
        return ReleasedSheets(
            study,
            consignment_code,
            consignment.site_code,
            act.deployment,
            act.study.backup_contact or act.deployment.limits.backup_contact,
            list(envelopes.list_kits(act.tx, study_id, consignment.consignment_id).items()),
            recipient_key,
        )

    return audited(ctx, Action.RELEASE_SHEETS, work, study=study)


# -- what was opened ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Opening:
    """An envelope that was opened while the service was down, as it is told afterwards; it names no treatment."""

    kit_code: KitCode
    opened_at: datetime
    opened_by: str
    reason_code: ReasonCode
    reason: str


@dataclass(frozen=True, slots=True)
class EnteredOpening:
    """That the opening stands in the register of the code breaks."""

    code_break_id: UUID
    kit_code: KitCode
    subject_id: SubjectId
    opened_at: datetime
    receipt: Receipt | None = None


def enter_opening(ctx: RequestContext, study: StudyCode, opening: Opening) -> EnteredOpening:
    """Return the opening as a code break of the register; from now on the subject is flagged as after any other (EUB-05, EUB-13).

    Raises ``Missing`` for a kit without envelope, ``Invalid`` for a time before the envelope was made or to come, ``AlreadyExists``
    for an envelope that was entered before.
    """

    def work(act: Act) -> EnteredOpening:
        study_id = act.study.study_id
        act.note(target={"kit_code": opening.kit_code})
        # Under its lock, because two people may enter the same envelope at once.
        kit = kits.lock_kit(act.tx, study_id, opening.kit_code)
        issued_at = None if kit is None else envelopes.find_issue(act.tx, study_id, kit.kit_id)
        given = None if kit is None else kits.find_assignment_by_kit(act.tx, study_id, kit.kit_id)
        if kit is None or issued_at is None or given is None:
            raise Missing
        allocation = allocations.get_allocation(act.tx, study_id, given.subject_key, None)
        act.note(subject_key=given.subject_key, site_code=allocation.site_code)
        if not issued_at <= opening.opened_at <= act.now:
            message = "An envelope is opened after its kit was given, and not in the time to come."
            raise Invalid(message, "opened_at")
        if envelopes.was_opened(act.tx, study_id, kit.kit_id):
            message = "The opening of this envelope was entered before."
            raise AlreadyExists(message)
        code_break_id = act.deployment.new_id()
        code_break = NewCodeBreak(
            code_break_id,
            given.subject_key,
            kit.kit_id,
            allocation.site_code,
            is_by_kit_code=True,
            is_own_site=True,
            reason_code=opening.reason_code,
            broken_at=opening.opened_at,
            broken_by=act.principal.name,
            # No opening is entered but by a role.
            role=cast("Role", act.decision.role),
            opened_by=opening.opened_by,
        )
        unblinding.add_code_break(act.tx, study_id, code_break)
        act.note(
            target={"kit_code": opening.kit_code, "subject_id": given.subject_key},
            after={
                "code_break_id": str(code_break_id),
                "kind": unblinding.ENVELOPE,
                "reason_code": opening.reason_code,
                "opened_at": opening.opened_at.isoformat(),
                "opened_by": opening.opened_by,
            },
            restricted={"reason": opening.reason},
        )
        sign(act, RecordKind.CODE_BREAK, str(code_break_id), code_break_content(code_break))
        tell_of_break(act, code_break_id, allocation.site_code, allocation.subject_id)
        return EnteredOpening(code_break_id, opening.kit_code, allocation.subject_id, opening.opened_at)

    entered = audited(ctx, Action.ENTER_OPENING, work, study=study, answer_type=EnteredOpening)
    wake_sender(ctx.deployment)
    return entered


# -- the reconciliation ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SiteEnvelopes:
    """What became of the envelopes of a site."""

    site_code: SiteCode
    issued: int
    written: int
    overdue: int
    """Not written although they should be by now."""
    missing: int
    """Written, and their files are gone."""
    opened: int
    without_sheet: int
    """Of kits whose sheets were never released: nobody could open them."""


@dataclass(frozen=True, slots=True)
class Reconciliation:
    """Issued, written, missing and opened: arm-neutral, of the sites that the caller may see."""

    is_on: bool
    sites: Sequence[SiteEnvelopes]
    missing: Sequence[KitCode]
    """The first hundred whose files are gone."""
    opened: Sequence[OpenedEnvelope]


@dataclass(slots=True)
class _Reconciled(Unfinished):
    """What the database says; the folder is asked once the transaction is over, because a disk may take its time."""

    study: StudyCode
    deployment: Deployment
    issued: Sequence[IssuedEnvelope]
    opened: Sequence[OpenedEnvelope]
    now: datetime
    gone: Sequence[IssuedEnvelope] = ()

    def finish(self) -> None:
        """Look for the files."""
        desk = self.deployment.desk
        there = desk.folder.kit_codes(self.study) if desk is not None else frozenset()
        self.gone = [one for one in self.issued if one.written_at is not None and one.kit_code not in there]

    def report(self) -> Reconciliation:
        """Return what is told."""
        of = [
            Counter(one.site_code for one in found)
            for found in (
                self.issued,
                [one for one in self.issued if one.written_at is not None],
                [one for one in self.issued if one.written_at is None and is_overdue(one.issued_at, self.now)],
                self.gone,
                self.opened,
                [one for one in self.issued if not one.has_sheet],
            )
        ]
        return Reconciliation(
            self.deployment.desk is not None,
            [SiteEnvelopes(site, *(counts[site] for counts in of)) for site in sorted(of[0])],
            [one.kit_code for one in self.gone[:_MOST_NAMED]],
            self.opened,
        )


def reconcile(ctx: RequestContext, study: StudyCode) -> Reconciliation:
    """Return what became of the envelopes of a study at the caller's sites."""

    def work(act: Act) -> _Reconciled:
        sites = act.decision.sites
        issued = envelopes.list_issued(act.tx, act.study.study_id, sites)
        opened = envelopes.list_opened(act.tx, act.study.study_id, sites)
        return _Reconciled(study, act.deployment, issued, opened, act.now)

    return audited(ctx, Action.READ_ENVELOPES, work, study=study).report()
