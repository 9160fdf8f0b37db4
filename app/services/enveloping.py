"""Making code-break envelopes, and keeping their files: with each kit given, and with every round of the keeper (EUB-05).

The envelope is finished in the transaction that gives the kit and lies in an outbox from then on: who writes its file needs nothing
of the arm, and a crash between the two forgets nothing. Whatever hinders the files hinders no allocation and no code break; it is
told by the log, the metrics, `snose doctor` and the reconciliation.

The code of a sheet is not stored at all. It comes from the deployment secret and the kit by HMAC: so the database and its copies
hold nothing of it, sheets printed a year ago go on fitting whatever study keys were rotated since, and making an envelope reads no
further row.
"""

from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

import structlog
from prometheus_client import Gauge

from app.domain.encoding import encode
from app.domain.envelopes import EnvelopeContent, EnvelopeHeader, sheet_code
from app.domain.words import KitCode, SiteCode, StudyCode, SubjectId
from app.sealing.envelopes import close_envelope
from app.services.audited import Act, enter_by_service
from app.services.context import Deployment
from app.services.desk import EmergencyDesk
from app.services.evidence import OpenedKit
from app.storage import envelopes, studies
from app.storage.envelopes import EnvelopeFile

PATIENCE: Final = timedelta(minutes=5)
"""After this an envelope without file is overdue."""
PUT_BACK: Final = "envelope:put_back"
"""The action of the entry, the service's own."""

_NONCE: Final = 12
_AT_ONCE: Final = 100
_LOOKED_AT: Final = 5_000
"""Files that one round looks for; the next one goes on behind them."""
_waiting: Final = Gauge(
    "snose_envelopes_waiting", "Code-break envelopes whose file is not written yet", multiprocess_mode="mostrecent"
)
_missing: Final = Gauge(
    "snose_envelopes_missing", "Files of code-break envelopes that were gone", multiprocess_mode="mostrecent"
)
_log: Final = structlog.get_logger("snose.envelopes")


def put_by(act: Act, subject_id: SubjectId, site_code: SiteCode, kit: OpenedKit, treatment: str) -> None:
    """Make the envelope of a kit that is given in this transaction; nothing, where the deployment has none.

    The same work whatever the arm is: one length, one statement.
    """
    deployment = act.deployment
    if deployment.desk is None:
        return
    study_code = act.study.study_code
    header = EnvelopeHeader(str(deployment.deployment_id), deployment.mode, study_code, kit.kit_code)
    content = EnvelopeContent(site_code, subject_id, kit.kit_code, act.now, treatment)
    code = sheet_code_of(deployment, study_code, kit.kit_id, kit.kit_code)
    nonce = deployment.entropy.draw("nonce", _NONCE)
    closed = close_envelope(deployment.desk.public_key, code, header, content.to_bytes(), nonce)
    envelopes.add_envelope(act.tx, act.study.study_id, kit.kit_id, closed, act.now)


def wake_writer(deployment: Deployment) -> None:
    """Have the files of envelopes that are committed written in a moment, and not with the next round only."""
    if deployment.desk is not None:
        deployment.desk.wanted.set()


def sheet_code_of(deployment: Deployment, study_code: StudyCode, kit_id: UUID, kit_code: KitCode) -> str:
    """Return the code on the sheet of a kit. Danger: goes onto paper and into a key, and nowhere else."""
    return sheet_code(deployment.ring.mac("envelope-sheets", encode(study_code, str(kit_id), kit_code)))


# -- the files ---------------------------------------------------------------------------------------------------------


def write_envelopes(deployment: Deployment) -> None:
    """Write the files that wait; a folder that cannot be written is told, and left to the next time."""
    desk = deployment.desk
    if desk is None:
        return
    try:
        with desk.folder.alone() as is_alone:
            while is_alone and _write_some(deployment, desk):
                pass
    except OSError as error:
        _log.error("envelopes not written", kind=type(error).__name__, errno=error.errno)
    with deployment.database.transaction() as tx:
        backlog = envelopes.get_backlog(tx)
    _waiting.set(backlog.waiting)
    if is_overdue(backlog.oldest, deployment.clock()):
        _log.error("envelopes overdue", count=backlog.waiting)


def is_overdue(issued_at: datetime | None, now: datetime) -> bool:
    """Return whether an envelope that was made then should have its file by now."""
    return issued_at is not None and now - issued_at > PATIENCE


def _write_some(deployment: Deployment, desk: EmergencyDesk) -> bool:
    """Return whether there may be more to write."""
    with deployment.database.transaction() as tx:
        found = envelopes.list_waiting(tx, _AT_ONCE)
        # The file of an allocation that a failover undoes would say of its kit what is not so.
        tx.settle()
    if not found:
        return False
    for one in found:
        _write(deployment, desk, one)
    with deployment.database.transaction() as tx:
        envelopes.record_written(tx, found, deployment.clock())
    return len(found) == _AT_ONCE


def _write(deployment: Deployment, desk: EmergencyDesk, one: EnvelopeFile) -> None:
    # Not within the transaction: SQLite would keep everybody waiting for another disk.
    with deployment.database.transaction() as tx:
        content = envelopes.get_content(tx, one)
    desk.folder.write(one.study_code, one.kit_code, content, one.issued_at)


def look_after_envelopes(deployment: Deployment) -> None:
    """Look for the files that were written; one that is gone is told, put back and entered.

    Each round looks for so many, and the next one goes on behind them: what is read does not grow with the study.
    """
    desk = deployment.desk
    if desk is None:
        return
    with deployment.database.transaction() as tx:
        page = envelopes.list_written(tx, desk.looked_until, _LOOKED_AT)
    desk.looked_until = (page[-1].study_id, page[-1].kit_id) if len(page) == _LOOKED_AT else None
    there = {study: desk.folder.kit_codes(study) for study in {one.study_code for one in page}}
    gone = [one for one in page if one.kit_code not in there[one.study_code]]
    _missing.set(len(gone))
    for study in sorted({one.study_code for one in gone}):
        lost = [one for one in gone if one.study_code == study]
        _log.error("envelopes missing", study=study, count=len(lost))
        _put_back(deployment, desk, lost)


def _put_back(deployment: Deployment, desk: EmergencyDesk, lost: list[EnvelopeFile]) -> None:
    try:
        with desk.folder.alone() as is_alone:
            if not is_alone:
                return
            for one in lost:
                _write(deployment, desk, one)
    except OSError as error:
        _log.error("envelopes not put back", kind=type(error).__name__, errno=error.errno)
        return
    with deployment.database.transaction() as tx:
        study = studies.find_study(tx, lost[0].study_code)
    # How many and not which: the supply manager reads this, and is not to know which kits were given (rule B10).
    enter_by_service(deployment, PUT_BACK, study=study, after={"count": len(lost)})
