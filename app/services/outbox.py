"""The outbox of notices: a row for each receiver in the transaction of what it tells of, sent by a thread of the keeper (EUB-12).

An act writes rows and waits for nobody; whatever hinders the sending hinders no code break. Each notice is sent at least once: one
that was sent by a process that died before it could say so is sent again, under the same id, by which a receiver knows it.
"""

import json
from collections.abc import Collection, Mapping
from datetime import datetime, timedelta
from email.message import EmailMessage
from email.utils import format_datetime
from threading import Event
from typing import Final
from uuid import UUID

import structlog

from app.domain.encoding import encode
from app.domain.frequency import USUAL_AT_SITE, USUAL_BY_PERSON
from app.domain.notices import (
    Channel,
    Notice,
    Topic,
    mail_subject,
    mail_text,
    next_try_at,
    webhook_headers,
)
from app.domain.words import SiteCode, StudyCode, SubjectId
from app.errors import DatabaseUnavailable, IntegrityBroken
from app.services.audited import Act, enter_by_service
from app.services.context import Deployment
from app.storage import notices, studies
from app.storage.database import AlreadyThere, Transaction
from app.storage.delivery import NotDelivered
from app.storage.notices import DueNotice
from app.storage.studies import StudyHead

LEASE: Final = timedelta(minutes=2)
"""How long whoever has claimed a notice keeps it from others: longer than any sending takes."""
GIVEN_UP: Final = "notice:give_up"
"""The action of the entry, the service's own."""
_SUCCESS: Final = range(200, 300)
_GONE: Final = "http_410"
"""What a webhook answers that wants no more (Standard Webhooks)."""
_A_MOMENT: Final = timedelta(seconds=1)

_log: Final = structlog.get_logger("snose.outbox")


def tell_of_break(act: Act, code_break_id: UUID, site_code: SiteCode | None, subject_id: SubjectId | None) -> None:
    """Put into the outbox, in this transaction, that a code was broken; nothing of what it showed, nor why (BLD-14).

    An outbox that cannot be written stands before no treatment: that is told in the service's output and in the entry (rule D6).
    """
    about = {"site_code": site_code, "subject_id": subject_id, "code_break_id": str(code_break_id)}
    _put(act, act.study, Topic.CODE_BREAK, about)


def tell_of_frequency(act: Act, site_code: SiteCode | None, by_person: int, at_site: int) -> None:
    """Put into the outbox that codes are broken unusually often; once for each time that it begins, not for each break."""
    if by_person == USUAL_BY_PERSON + 1 or at_site == USUAL_AT_SITE + 1:
        counts = {"by_person_in_a_day": str(by_person), "at_site_in_a_day": str(at_site)}
        _put(act, act.study, Topic.FREQUENT, {"site_code": site_code, **counts})


def tell_of_recall(act: Act, recall_id: UUID) -> None:
    """Put into the outbox, in this transaction, that consignments are called back; no lot, kit or subject."""
    _put(act, act.study, Topic.RECALL, {"recall_id": str(recall_id)})


def tell_of_recovery(act: Act, study_code: StudyCode, username: str, confirmed_by: str) -> None:
    """Put into the outbox of a study that somebody of it has a second factor anew, for its contacts alone (EUB-15, SIG-07)."""
    study = studies.find_study(act.tx, study_code)
    if study is not None:
        about = {"username": username, "confirmed_by": confirmed_by}
        _put(act, study, Topic.FACTOR_RECOVERY, about, [Channel.CONTACT])


def _put(
    act: Act,
    study: StudyHead,
    topic: Topic,
    about: Mapping[str, str | None],
    channels: Collection[Channel] = tuple(Channel),
) -> None:
    body = Notice(topic, act.now, study.study_code, act.deployment.mode, about).body()
    try:
        with act.tx.dispensable():
            notices.add_notice(act.tx, study.study_id, act.deployment.new_id(), body, act.now, channels)
    except (DatabaseUnavailable, IntegrityBroken) as error:
        _log.error("notice not written", request_id=act.ctx.request_id, kind=type(error).__name__)
        act.note(after={**(act.after or {}), "notice": "not_written"})


def tell_once(deployment: Deployment, study_id: UUID, secret: bytes, notice: Notice) -> None:
    """Put a notice into the outbox of a study unless it was put there before.

    The same ``secret`` makes the same id for every worker and every round, so that the outbox itself knows whether it was told.
    """
    notice_id = UUID(bytes=secret[:16], version=4)
    try:
        with deployment.database.transaction() as tx:
            if not notices.is_posted(tx, study_id, notice_id):
                notices.add_notice(tx, study_id, notice_id, notice.body(), notice.at)
    except AlreadyThere:
        # Another worker was at it in the same moment.
        return


def wake_sender(deployment: Deployment) -> None:
    """Have notices that are committed sent in a moment, and not with the next round only."""
    deployment.office.wanted.set()


# -- the sending -------------------------------------------------------------------------------------------------------


def send_notices(deployment: Deployment, stopped: Event, longest: timedelta) -> timedelta:
    """Send every notice that is due, one after the other, and return how long there is nothing more to do, at most ``longest``.

    Each is claimed, sent outside of any transaction, and what became of it is recorded: on SQLite nobody waits meanwhile.
    """
    while not stopped.is_set():
        with deployment.database.transaction() as tx:
            next_at = notices.find_next_try(tx)
            if next_at is None:
                return longest
            now = deployment.clock()
            due = notices.claim_due(tx, now, now + LEASE) if next_at <= now else None
        if due is None:
            # Not yet, or another worker has it.
            return min(max(next_at - now, _A_MOMENT), longest)
        _send(deployment, due)
    return longest


def _send(deployment: Deployment, due: DueNotice) -> None:
    if not due.is_wanted:
        _give_up(deployment, due, "removed")
        return
    try:
        if due.channel is Channel.WEBHOOK:
            _post(deployment, due)
        else:
            _mail(deployment, due)
    except NotDelivered as error:
        _log.warning("notice not delivered", notice=str(due.notice_id), trouble=str(error))
        _put_off(deployment, due, error)
        return
    with deployment.database.transaction() as tx:
        notices.record_delivered(tx, due, deployment.clock())


def _put_off(deployment: Deployment, due: DueNotice, error: NotDelivered) -> None:
    """Have it tried again later, or given up."""
    again_at = next_try_at(due.failures + 1, deployment.clock(), deployment.entropy.draw("jitter", 2))
    if again_at is None or str(error) == _GONE:
        _give_up(deployment, due, str(error))
        return
    with deployment.database.transaction() as tx:
        notices.record_failure(tx, due, again_at)


def _give_up(deployment: Deployment, due: DueNotice, trouble: str) -> None:
    """Try it no more, and enter that (the dead letter stays in the outbox)."""

    def work(tx: Transaction) -> None:
        if not notices.record_given_up(tx, due, at):
            raise AlreadyThere(GIVEN_UP)
        if trouble == _GONE:
            notices.record_disabled(tx, due.study_id, due.receiver_id, at)

    at = deployment.clock()
    with deployment.database.transaction() as tx:
        study = studies.find_study(tx, due.study_code)
    enter_by_service(
        deployment,
        GIVEN_UP,
        study=study,
        target={"notice_id": str(due.notice_id), "receiver_id": str(due.receiver_id)},
        after={"channel": due.channel, "failures": due.failures + 1, "trouble": trouble},
        work=work,
    )
    _log.error("notice given up", notice=str(due.notice_id), trouble=trouble)


def webhook_key(deployment: Deployment, study_code: StudyCode, receiver_id: UUID) -> bytes:
    """Return the key by which notices to a webhook are signed. Danger: shown once, to who names the webhook.

    Made anew from the deployment's secret each time, so that the database holds nothing of it.
    """
    return deployment.ring.mac("webhooks", encode(study_code, str(receiver_id)))


def _post(deployment: Deployment, due: DueNotice) -> None:
    """Send a notice to a machine; raise ``NotDelivered`` for any answer but a success."""
    key = webhook_key(deployment, due.study_code, due.receiver_id)
    headers = webhook_headers(key, str(due.notice_id), deployment.clock(), due.body)
    client = deployment.office.webhooks
    status = client.post(due.address, due.body.encode(), {"Content-Type": "application/json", **headers})
    if status not in _SUCCESS:
        message = f"http_{status}"
        raise NotDelivered(message)


def _mail(deployment: Deployment, due: DueNotice) -> None:
    """Send a notice to a person; raise ``NotDelivered``."""
    client = deployment.office.mail
    if client is None:
        message = "no_mail_server"
        raise NotDelivered(message)
    told = json.loads(due.body)
    mail = EmailMessage()
    mail["From"] = client.sender
    mail["To"] = due.address
    mail["Subject"] = mail_subject(told["type"], due.study_code, deployment.mode)
    mail["Date"] = format_datetime(datetime.fromisoformat(told["timestamp"]))
    # The same at every try, so that a mailbox may show it once.
    mail["Message-ID"] = f"<{due.notice_id}.{due.receiver_id}@{client.sender.rpartition('@')[2]}>"
    mail["Auto-Submitted"] = "auto-generated"
    # Printable ASCII on the way, whatever letters a subject's identifier has.
    mail.set_content(mail_text(told["type"], told["timestamp"], told["data"]), cte="quoted-printable")
    client.send(mail)
