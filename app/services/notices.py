"""Who is told when a code was broken: persons of the sponsor by e-mail, machines by webhook (EUB-12, EUB-25)."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final
from uuid import UUID

from app.domain.notices import Channel, check_email, check_url, webhook_secret
from app.domain.words import Action, Mode, StudyCode
from app.errors import AlreadyExists, IllegalTransition
from app.services.audited import Act, Receipt, audited
from app.services.context import RequestContext
from app.services.outbox import webhook_key
from app.storage import notices
from app.storage.notices import NewReceiver, Receiver

MOST: Final = 20
"""Receivers by one channel: a code break writes a row for each."""


@dataclass(frozen=True, slots=True)
class Contact:
    """A person who is told from now on."""

    contact_id: UUID
    email: str
    added_at: datetime
    added_by: str
    receipt: Receipt | None = None


def add_contact(ctx: RequestContext, study: StudyCode, email: str) -> Contact:
    """Return the new contact of the sponsor; its address stands in the restricted part of the trail.

    Raises ``Invalid``, ``AlreadyExists``, and ``IllegalTransition`` where the deployment sends no mail or the study has its fill.
    """

    def work(act: Act) -> Contact:
        address = check_email(email)
        if act.deployment.office.mail is None:
            message = "This deployment sends no e-mail: its settings name no mail server."
            raise IllegalTransition(message)
        added = _add(act, Channel.CONTACT, address)
        return Contact(added.receiver_id, added.address, added.added_at, added.added_by)

    return audited(ctx, Action.ADD_CONTACT, work, study=study, answer_type=Contact)


@dataclass(frozen=True, slots=True)
class Webhook:
    """A machine that is told from now on, with the secret by which it knows us. Danger: shown this once."""

    webhook_id: UUID
    url: str
    secret: str = field(repr=False)
    added_at: datetime
    added_by: str
    receipt: Receipt | None = None


def add_webhook(ctx: RequestContext, study: StudyCode, url: str) -> Webhook:
    """Return the new webhook; its address stands in the restricted part of the trail, its secret nowhere.

    Raises ``Invalid``, ``AlreadyExists``, and ``IllegalTransition`` for a study that has its fill.
    """

    def work(act: Act) -> Webhook:
        address = check_url(url, may_stay_here=act.deployment.mode is Mode.TEST)
        added = _add(act, Channel.WEBHOOK, address)
        secret = webhook_secret(webhook_key(act.deployment, study, added.receiver_id))
        return Webhook(added.receiver_id, added.address, secret, added.added_at, added.added_by)

    return audited(ctx, Action.ADD_WEBHOOK, work, study=study)


def _add(act: Act, channel: Channel, address: str) -> NewReceiver:
    study_id = act.study.study_id
    act.note(restricted={"address": address})
    # Counted and compared under the lock: two who add at once are one behind the other.
    notices.lock_receivers(act.tx, study_id)
    standing = [
        one
        for one in notices.list_receivers(act.tx, study_id, channel)
        if one.removed_at is None and one.disabled_at is None
    ]
    if any(one.address.casefold() == address.casefold() for one in standing):
        message = f"This {channel} is told already."
        raise AlreadyExists(message)
    if len(standing) >= MOST:
        message = f"A study has at most {MOST} receivers of this kind: remove one that is needed no more."
        raise IllegalTransition(message)
    receiver = NewReceiver(act.deployment.new_id(), channel, address, act.now, act.principal.name)
    notices.add_receiver(act.tx, study_id, receiver)
    act.note(target={"receiver_id": str(receiver.receiver_id)}, after={"channel": channel})
    return receiver


def list_receivers(ctx: RequestContext, study: StudyCode, channel: Channel) -> Sequence[Receiver]:
    """Return who is told by a channel, and how many notices reached them, wait, or were given up."""

    def work(act: Act) -> Sequence[Receiver]:
        act.note(target={"channel": channel})
        return notices.list_receivers(act.tx, act.study.study_id, channel)

    return audited(ctx, Action.READ_RECEIVERS, work, study=study)


def remove_receiver(ctx: RequestContext, study: StudyCode, channel: Channel, receiver_id: UUID) -> None:
    """Tell a receiver nothing any more; raise ``Missing`` for one that is not there."""

    def work(act: Act) -> None:
        act.note(target={"receiver_id": str(receiver_id)}, after={"channel": channel})
        notices.record_removal(act.tx, act.study.study_id, channel, receiver_id, act.now, act.principal.name)

    audited(ctx, Action.REMOVE_RECEIVER, work, study=study)
